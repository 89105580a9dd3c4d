//! A first grant, written from what the job's own token says, or from answers to a profile's
//! questions ([`Ask`]).
//!
//! What comes out compiles, lints clean and passes its own tests, or does not come out.

use crate::{
    cases,
    claims::Claims,
    compile::{AnyCredential, Source, compile},
    fixtures::FIXTURES,
    issuer::{Ask, Claim, Issuer, Kind},
    lint::lint,
    source::{Diagnostic, Severity},
};
use std::{collections::BTreeMap, fmt::Write as _};

/// What a first grant says.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// What jobs ask for.
    pub grant: &'a str,
    /// Who answers for it.
    pub owner: &'a str,
    /// The day of its review, YYYY-MM-DD.
    pub review_by: &'a str,
    /// What it is for.
    pub description: &'a str,
    /// What makes the credential.
    pub backend: &'a str,
    /// How long a credential lives.
    pub ttl: &'a str,
    /// Whose jobs it is for.
    pub issuer: &'a Issuer,
    /// What the claims have to be that the profile asks for; see [`answer`].
    pub answers: &'a BTreeMap<String, String>,
}

/// What a token says to a question; nothing, where the grant is to leave the claim alone.
#[must_use]
pub fn answer(ask: &Ask, claims: &Claims) -> Option<String> {
    let said = claims.text(&ask.claim).filter(|said| !said.is_empty())?;
    (ask.only.as_ref().is_none_or(|only| **only == *said)).then(|| said.into_owned())
}

impl Draft<'_> {
    /// The grant's file.
    ///
    /// # Errors
    /// What is wrong with it, or what linting says of it at `at` (epoch seconds) that is at least a
    /// warning: of the claims of a pull request, say, no good grant can be made.
    pub fn write(&self, at: i64) -> Result<String, Vec<Diagnostic>> {
        let text = self.text();
        let source = Source { path: format!("{}.yaml", self.grant), text: text.clone() };
        let compiled = compile(&[source], std::slice::from_ref(self.issuer), &AnyCredential);
        let mut found = lint(&compiled, at);
        found.retain(|diagnostic| diagnostic.severity >= Severity::Warning);
        found.extend(cases::run(&compiled.set).results.into_iter().filter_map(|result| result.failure));
        if found.is_empty() { Ok(text) } else { Err(found) }
    }

    /// The claims of the rule: what each must be, or `None` for one that must not be there.
    fn lines(&self) -> impl Iterator<Item = (&Claim, Option<&str>)> {
        let profile = &self.issuer.profile;
        profile.first().iter().filter_map(|ask| {
            let answer = self.answers.get(&ask.claim).map(String::as_str);
            let line = profile.claim(&ask.claim).zip(answer.map(Some).or_else(|| ask.absent.then_some(None)));
            line.filter(|(_, answer)| *answer != Some(""))
        })
    }

    fn text(&self) -> String {
        let profile = &self.issuer.profile;
        let mut out = String::new();
        for (field, value) in
            [("grant", self.grant), ("owner", self.owner), ("description", self.description), ("backend", self.backend)]
        {
            line(&mut out, &format!("{field}: {}", scalar(value)));
        }
        for (field, value) in [("review_by", self.review_by), ("ttl", self.ttl)] {
            let is_plain = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            line(&mut out, &format!("{field}: {}", if is_plain { value.to_owned() } else { scalar(value) }));
        }
        line(&mut out, "# credential: what the backend is to make; see docs/backends/");
        line(&mut out, &format!("rules:\n  - name: first\n    issuer: {}\n    match:", self.issuer.name));
        for (claim, wanted) in self.lines() {
            let wanted = wanted.map_or("{ absent: true }".to_owned(), scalar);
            line(&mut out, &format!("      {}: {wanted}", claim.name));
        }
        let prefix = format!("{}/", profile.name());
        let Some((fixture, payload)) = FIXTURES.iter().find(|(name, _)| name.starts_with(&prefix)) else { return out };
        let like = Claims::parse(profile, payload.as_bytes()).ok();
        let case = |changed: Option<(&str, &str)>| {
            let claims = self.lines().filter_map(|(claim, wanted)| {
                let value = match changed {
                    Some((name, value)) if *name == *claim.name => Some(value),
                    _ => wanted,
                };
                let is_so = like.as_ref().is_some_and(|like| like.text(&claim.name).as_deref() == value);
                (!is_so).then(|| format!(", {}: {}", claim.name, value.map_or("~".to_owned(), scalar)))
            });
            format!("    issuer: {}\n    claims: {{ from: {fixture}{} }}", self.issuer.name, claims.collect::<String>())
        };
        line(&mut out, &format!("tests:\n  - name: the job\n{}\n    expect: permit\n    rule: first", case(None)));
        for (claim, wanted) in self.lines() {
            let other = other(claim, wanted);
            line(&mut out, &format!("  - name: another {}", claim.name.rsplit('/').next().unwrap_or(&claim.name)));
            line(&mut out, &case(Some((&claim.name, &other))));
            line(&mut out, &format!("    expect: deny\n    because: {{ first: [{}] }}", claim.name));
        }
        out
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

/// A value that the claim could have as well.
fn other(claim: &Claim, wanted: Option<&str>) -> String {
    let Some(wanted) = wanted else { return "other".to_owned() };
    if claim.kind == Kind::Bool {
        return if wanted == "true" { "false" } else { "true" }.to_owned();
    }
    let other = claim.values.iter().find(|value| *value != wanted);
    other.cloned().unwrap_or_else(|| format!("{wanted}1"))
}

/// A text as a YAML scalar: in quotes, unless it is a word that nothing could take for something else.
fn scalar(text: &str) -> String {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&&*text.to_ascii_lowercase());
    // A JSON string is a YAML one (YAML 1.2.2 §1.2).
    if is_word { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_stay_texts() {
        for (text, written) in [
            ("refs/heads/main", "refs/heads/main"),
            ("team@acme.example", "team@acme.example"),
            ("1001", "\"1001\""),
            ("No", "\"No\""),
            ("a: b # c", "\"a: b # c\""),
            ("{x}", "\"{x}\""),
            ("a\"\n", "\"a\\\"\\n\""),
            ("", "\"\""),
        ] {
            assert_eq!(scalar(text), written);
        }
    }
}
