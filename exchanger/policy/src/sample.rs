//! Tokens made up to order: complete ones as the CI sends them, but with the claims that are wanted.

use crate::{
    cases::set,
    claims::{Claims, Held, Value},
    fixtures::FIXTURES,
    issuer::{Derivation, Kind, Profile, unwrapped},
    language::{Found, Languages},
    pattern::Matcher,
    values::{Choice, Domain, Line, choose, language},
};
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// What is wanted of the claims, by name.
pub(crate) type Point<'a> = BTreeMap<&'a str, Vec<Line<'a>>>;

/// The moment at which made-up tokens are issued, in epoch seconds.
pub(crate) const NOW: i64 = 1_795_300_000;

/// A made-up token.
pub(crate) struct Sample {
    pub(crate) payload: Map<String, Json>,
    pub(crate) claims: Arc<Claims>,
}

/// Makes tokens of one profile.
pub(crate) struct Sampler {
    profile: Arc<Profile>,
    /// What tokens hold where nothing else is wanted.
    usual: Map<String, Json>,
    like: Option<Claims>,
    languages: Languages,
    asked: usize,
}

impl Sampler {
    /// Makes tokens like the CI's first fixture.
    pub(crate) fn of(profile: &Arc<Profile>) -> Self {
        let fixture = FIXTURES.iter().find(|(name, _)| name.split('/').next() == Some(profile.name()));
        let usual = fixture.and_then(|(_, payload)| serde_json::from_str(payload).ok()).unwrap_or_default();
        Self::with(profile, usual)
    }

    /// Makes tokens like this one.
    pub(crate) fn like(claims: &Claims) -> Self {
        Self::with(claims.profile(), serde_json::from_str(&claims.to_stored()).unwrap_or_default())
    }

    fn with(profile: &Arc<Profile>, mut usual: Map<String, Json>) -> Self {
        for (claim, value) in [
            ("iss", profile.default_url().unwrap_or("https://issuer.example").into()),
            ("aud", json!("https://jobpass.example")),
            ("iat", json!(NOW)),
            ("exp", json!(NOW + 300)),
            ("jti", json!("a-token")),
        ] {
            usual.entry(claim).or_insert(value);
        }
        let like = Claims::parse(profile, Json::Object(usual.clone()).to_string().as_bytes()).ok();
        Self { profile: Arc::clone(profile), usual, like, languages: Languages::default(), asked: 0 }
    }

    /// Lets the work begin anew: for the next grant.
    pub(crate) fn renew(&mut self) {
        self.languages.renew();
        self.asked = 0;
    }

    /// How many questions it was asked since.
    pub(crate) fn asked(&self) -> usize {
        self.asked
    }

    /// Whether the lines leave a claim any value. `None`: too large a question.
    pub(crate) fn leaves_any(&mut self, claim: &str, lines: &[Line<'_>]) -> Option<bool> {
        match self.choose(claim, lines, true) {
            Choice::Value(_) => Some(true),
            Choice::Impossible => Some(false),
            Choice::Unknown => None,
        }
    }

    /// A token that fulfils everything, if one can be made.
    pub(crate) fn sample(&mut self, point: &Point<'_>) -> Option<Sample> {
        let profile = Arc::clone(&self.profile);
        let mut payload = self.usual.clone();
        let mut cut: BTreeMap<&str, Vec<(&str, Json)>> = BTreeMap::new();
        let required = profile.required_claims().iter().map(String::as_str).filter(|_| self.like.is_none());
        let mut point = point.clone();
        for name in required {
            point.entry(name).or_default();
        }
        for (name, lines) in &point {
            let Choice::Value(value) = self.choose(name, lines, true) else { return None };
            match profile.derived_from(name) {
                Some(from) => cut.entry(from).or_default().push((name, value)),
                None => set(&mut payload, &profile.path_of(name), value),
            }
        }
        for (from, parts) in cut {
            let value = self.compose(from, &parts, &point)?;
            set(&mut payload, &profile.path_of(from), value);
        }
        let claims = Claims::parse(&profile, Json::Object(payload.clone()).to_string().as_bytes()).ok()?;
        let fulfilled = point.iter().all(|(name, lines)| {
            let slot = profile.slot(name);
            slot.is_some_and(|slot| lines.iter().all(|(m, holds)| m.is_match(claims.held(&slot)) == *holds))
        });
        fulfilled.then(|| Sample { payload, claims: Arc::new(claims) })
    }

    fn choose(&mut self, name: &str, lines: &[Line<'_>], or_nothing: bool) -> Choice {
        self.asked += 1;
        let profile = Arc::clone(&self.profile);
        let Some(claim) = profile.claim(name) else { return Choice::Unknown };
        let derived = profile.derived_from(name).and_then(|from| derivation(&profile, from));
        let required = profile.required_claims().iter().any(|required| required == name);
        let subject = profile.subject_shape(name);
        let domain = Domain {
            claim,
            likely: self.like.iter().filter_map(|like| like.get(name)).map(json_of).collect(),
            unusable: match (&derived, &subject, claim.kind) {
                (Some(_), ..) | (_, _, Kind::Json) => None,
                (_, Some(_), _) => Some(json!("?")),
                _ => (!required).then(|| json!({})),
            },
            optional: or_nothing && (derived.is_some() || !required),
            shape: derived.map(|derived| shape_of_part(derived, name)).or(subject),
        };
        choose(&domain, lines, &mut self.languages)
    }

    /// A value from which the profile cuts these parts.
    fn compose(&mut self, from: &str, parts: &[(&str, Json)], point: &Point<'_>) -> Option<Json> {
        let profile = Arc::clone(&self.profile);
        let derivation = derivation(&profile, from)?;
        let patterns: Vec<&str> = derivation.patterns.iter().map(unwrapped).collect();
        let mut sides = (Vec::from_iter(profile.subject_shape(from)), Vec::new());
        let lines = |name: &str| point.get(name).map_or(&[][..], Vec::as_slice);
        let may_lack = |name: &str| lines(name).iter().all(|(m, holds)| m.is_match(&Held::Absent) == *holds);
        for (matcher, holds) in lines(from) {
            if let Matcher::Text { exact, patterns } = matcher {
                let side = if *holds { &mut sides.0 } else { &mut sides.1 };
                side.push(language(exact, patterns));
            }
        }
        let (mut inside, mut outside) = sides;
        let usual: Vec<(&str, String)> = (derivation.targets.iter())
            .filter(|(name, _)| parts.iter().all(|(part, _)| part != name))
            .filter_map(|(name, _)| Some((name.as_str(), self.like.as_ref()?.text(name)?.into_owned())))
            .collect();
        for pattern in &patterns {
            let fill = |pattern: String, (name, text): (&str, &str)| {
                let place = group(&pattern, name)?.0;
                let mut filled = pattern;
                filled.replace_range(place, &format!("(?:{})", regex::escape(text)));
                Some(filled)
            };
            let filled = parts.iter().try_fold((*pattern).to_owned(), |pattern, (name, value)| {
                match (group(&pattern, name), value) {
                    (None, _) => may_lack(name).then_some(pattern),
                    (Some(_), Json::String(text)) => fill(pattern, (name, text)),
                    // Chosen to be absent, but this pattern cuts it out.
                    (Some(_), _) => match self.choose(name, lines(name), false) {
                        Choice::Value(Json::String(text)) => fill(pattern, (name, &text)),
                        _ => None,
                    },
                }
            });
            let Some(filled) = filled else { continue };
            let as_usual = usual
                .iter()
                .fold(filled.clone(), |pattern, (name, text)| fill(pattern.clone(), (name, text)).unwrap_or(pattern));
            // The shortest text leaves out what is optional, which may be what is wanted.
            let whole = |pattern: &str| pattern.replace(")?", ")");
            for pattern in [whole(&as_usual), as_usual, whole(&filled), filled] {
                inside.push(pattern);
                let found = self.languages.find(&inside, &outside);
                inside.pop();
                let Found::Text(text) = found else { continue };
                let captures = derivation.patterns.iter().find_map(|pattern| pattern.captures(&text));
                let cut = |name: &str| captures.as_ref().and_then(|captures| captures.name(name));
                let held =
                    |name: &str| cut(name).map_or(Held::Absent, |part| Held::Is(Value::Text(part.as_str().into())));
                let fits = |name: &str| lines(name).iter().all(|(m, holds)| m.is_match(&held(name)) == *holds);
                if parts.iter().all(|(name, _)| fits(name)) {
                    return Some(text.into());
                }
            }
        }
        if !parts.iter().all(|(name, _)| may_lack(name)) {
            return None;
        }
        // Nothing is to be cut out of it: any value that no pattern matches, or none.
        outside.extend(patterns.into_iter().map(str::to_owned));
        match self.languages.find(&inside, &outside) {
            Found::Text(text) => Some(text.into()),
            Found::Nothing | Found::Unknown => Some(Json::Null),
        }
    }
}

fn derivation<'a>(profile: &'a Profile, from: &str) -> Option<&'a Derivation> {
    let is_it = |derivation: &&Derivation| profile.claim_at(derivation.from).is_some_and(|claim| &*claim.name == from);
    profile.derivations().iter().find(is_it)
}

fn shape_of_part(derivation: &Derivation, name: &str) -> String {
    let parts = derivation.patterns.iter().filter_map(|pattern| {
        let pattern = unwrapped(pattern);
        pattern.get(group(pattern, name)?.1).map(|part| format!("(?:{part})"))
    });
    parts.collect::<Vec<_>>().join("|")
}

/// Where a named group is in a regular expression: with its parentheses, and without.
fn group(pattern: &str, name: &str) -> Option<(Range<usize>, Range<usize>)> {
    let open = format!("(?<{name}>");
    let start = pattern.find(&open)?;
    let inner = start + open.len();
    let (mut depth, mut class, mut escaped) = (1, false, false);
    for (at, c) in pattern.get(inner..)?.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => class = true,
            ']' => class = false,
            '(' if !class => depth += 1,
            ')' if !class => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((start..inner + at + 1, inner..inner + at));
        }
    }
    None
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::Text(text) => Json::from(&**text),
        Value::Int(number) => json!(number),
        Value::Bool(yes) => json!(yes),
        Value::List(items) => items.iter().map(|item| Json::from(&**item)).collect(),
        Value::Json(value) => value.clone(),
    }
}
