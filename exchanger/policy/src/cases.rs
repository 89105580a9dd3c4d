//! Tests of policies: a token, and what the policy must say to it and why.

use crate::{
    claims::Claims,
    compile::unknown_claim,
    decide::{Decision, Denial, DenialKind, Freezes, Request, decide},
    document::{At, CaseFile, Expect, Tree, place, scalar},
    fixtures::{FIXTURES, fixture},
    grant::{Grant, PolicySet, Rule},
    issuer::{Kind, Profile},
    problem::Problem,
    source::{Diagnostic, Text, did_you_mean},
};
use jobpass_protocol::IssuerName;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;

/// A case as written, and the file that it is written in.
pub struct Case {
    file: Text,
    written: At<CaseFile>,
}

/// What came of all cases.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// One per case, by grant.
    pub results: Vec<CaseResult>,
}

impl Report {
    /// Whether every case came out as it must.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.results.iter().all(|result| result.failure.is_none())
    }
}

/// What came of one case.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// The grant.
    pub grant: String,
    /// The case.
    pub name: String,
    /// What went wrong, at the line of the case that says otherwise.
    pub failure: Option<Diagnostic>,
}

/// Runs the cases of every grant.
#[must_use]
pub fn run(policies: &PolicySet) -> Report {
    let mut grants: Vec<_> = policies.grants().collect();
    grants.sort_by(|a, b| a.name().cmp(b.name()));
    let cases = grants.into_iter().flat_map(|grant| grant.cases().iter().map(move |case| (grant, case)));
    let results = cases.map(|(grant, case)| CaseResult {
        grant: grant.name().to_string(),
        name: case.written.value.name.value.clone(),
        failure: case.run(policies, grant).err(),
    });
    Report { results: results.collect() }
}

impl Case {
    pub(crate) fn new(file: &Text, written: At<CaseFile>) -> Self {
        Self { file: file.clone(), written }
    }

    fn problem<T>(&self, at: &At<T>, problem: &Problem) -> Diagnostic {
        Diagnostic::new(&self.file, place(&self.file, at), problem.code(), problem.to_string())
            .with_help(problem.help())
    }

    fn run(&self, policies: &PolicySet, grant: &Grant) -> Result<(), Diagnostic> {
        let case = &self.written.value;
        let (issuer, profile) = self.issuer(grant)?;
        let claims = Arc::new(self.claims(&profile)?);
        let request = Request {
            grant: grant.name().as_str(),
            issuer: &issuer,
            claims: &claims,
            scope: case.scope.as_deref(),
            ttl: None,
            at: claims.registered().iat,
            freezes: &Freezes::NONE,
        };
        let failed = |message: String| {
            let at = place(&self.file, &case.expect);
            Diagnostic::new(&self.file, at, "case-failed", format!("{}: {message}", case.name.value))
        };
        match (case.expect.value, decide(policies, &request)) {
            (Expect::Permit, Decision::Permit(permit)) => self.check_rule(grant, permit.rule().as_str()),
            (Expect::Permit, Decision::Denial(denial)) => {
                Err(failed("expected a permit, and it was denied".to_owned()).with_help(why(&denial)))
            }
            (Expect::Deny, Decision::Permit(permit)) => {
                Err(failed(format!("expected a denial, and rule {} permits it", permit.rule())))
            }
            (Expect::Deny, Decision::Denial(denial)) => self.check_reasons(grant, &denial),
        }
    }

    fn check_rule(&self, grant: &Grant, by: &str) -> Result<(), Diagnostic> {
        let case = &self.written.value;
        if let Some((rule, _)) = case.because.0.first() {
            return Err(self.problem(
                rule,
                &Problem::CaseReason("`because` gives reasons for a denial; a permit names its `rule`"),
            ));
        }
        match &case.rule {
            Some(rule) if rule.value != by => {
                self.rule(grant, rule)?;
                let at = place(&self.file, rule);
                let message = format!("{}: rule {by} permits it", case.name.value);
                Err(Diagnostic::new(&self.file, at, "case-failed", message))
            }
            _ => Ok(()),
        }
    }

    fn check_reasons(&self, grant: &Grant, denial: &Denial) -> Result<(), Diagnostic> {
        let case = &self.written.value;
        if let Some(rule) = &case.rule {
            return Err(
                self.problem(rule, &Problem::CaseReason("`rule` names the rule that permits; a denial has `because`"))
            );
        }
        for (rule, claims) in &case.because.0 {
            let name = &self.rule(grant, rule)?.name;
            let failed = |message: String| {
                let message = format!("{}: {message}", case.name.value);
                Diagnostic::new(&self.file, place(&self.file, rule), "case-failed", message).with_help(why(denial))
            };
            let Some(trace) = denial.trace.rules.iter().find(|trace| trace.rule == *name) else {
                return Err(failed(format!("rule {name} was not looked at")));
            };
            for claim in claims {
                if trace.failed().all(|check| check.claim != claim.value) {
                    return Err(failed(format!("`{}` is not among what fails in rule {name}", claim.value)));
                }
            }
        }
        Ok(())
    }

    fn rule<'g>(&self, grant: &'g Grant, name: &At<String>) -> Result<&'g Rule, Diagnostic> {
        let found = grant.rules().iter().find(|rule| rule.name().as_str() == name.value);
        found.ok_or_else(|| {
            let known = grant.rules().iter().map(|rule| rule.name().as_str());
            let nearest = did_you_mean(&name.value, known).map(str::to_owned);
            self.problem(name, &Problem::UnknownRule { name: name.value.clone(), nearest })
        })
    }

    /// The issuer that the token is from.
    fn issuer(&self, grant: &Grant) -> Result<(IssuerName, Arc<Profile>), Diagnostic> {
        let case = &self.written.value;
        let fixture_profile = self.from().map(|from| from.1.split('/').next().unwrap_or_default());
        let mut fitting: Vec<_> = (grant.rules().iter())
            .filter(|rule| match &case.issuer {
                Some(issuer) => rule.issuer().as_str() == issuer.value,
                None => fixture_profile.is_none_or(|profile| rule.profile().name() == profile),
            })
            .map(|rule| (rule.issuer().clone(), Arc::clone(rule.profile())))
            .collect();
        fitting.sort_by(|a, b| a.0.cmp(&b.0));
        fitting.dedup_by(|a, b| a.0 == b.0);
        match (fitting.len(), &case.issuer, fixture_profile) {
            (1, _, _) => Ok(fitting.remove(0)),
            (0, Some(issuer), _) => {
                let message = format!("no rule of this grant is for the issuer `{}`", issuer.value);
                Err(self.problem(issuer, &Problem::CaseIssuer(message)))
            }
            (0, None, Some(name)) => {
                // A token of an issuer that no rule speaks of: denied, and worth a case.
                let assumed = IssuerName::parse(name).ok().zip(Profile::named(name));
                assumed.ok_or_else(|| self.problem(&case.claims, &self.unknown_fixture()))
            }
            _ => {
                let message = "the grant has rules for several issuers that this token could be from".to_owned();
                Err(self.problem(&case.name, &Problem::CaseIssuer(message)))
            }
        }
    }

    fn unknown_fixture(&self) -> Problem {
        let name = self.from().map(|(_, name)| name).unwrap_or_default();
        let nearest = did_you_mean(name, FIXTURES.iter().map(|(known, _)| *known)).map(str::to_owned);
        Problem::UnknownFixture { name: name.to_owned(), nearest }
    }

    fn overrides(&self) -> &[(At<String>, At<Tree>)] {
        match &self.written.value.claims.value {
            Tree::Map(entries) => entries,
            Tree::Scalar(_) | Tree::Null | Tree::List(_) => &[],
        }
    }

    fn from(&self) -> Option<(&At<Tree>, &str)> {
        let (_, value) = self.overrides().iter().find(|(key, _)| key.value == "from")?;
        match &value.value {
            Tree::Scalar(text) => Some((value, scalar(&self.file, value.referenced, text))),
            Tree::Null | Tree::List(_) | Tree::Map(_) => Some((value, "")),
        }
    }

    fn claims(&self, profile: &Arc<Profile>) -> Result<Claims, Diagnostic> {
        let claims = &self.written.value.claims;
        let mut payload: Map<String, Json> = match self.from() {
            None => Map::new(),
            Some((at, name)) => {
                let text = fixture(name).ok_or_else(|| self.problem(at, &self.unknown_fixture()))?;
                serde_json::from_str(text).map_err(|e| self.problem(at, &Problem::CaseClaims(e.to_string())))?
            }
        };
        let now = 1_795_300_000_i64;
        for (claim, value) in [
            ("iss", json!("https://issuer.example")),
            ("aud", json!("https://jobpass.example")),
            ("iat", json!(now)),
            ("exp", json!(now + 300)),
            ("jti", json!("a-token")),
        ] {
            payload.entry(claim).or_insert(value);
        }
        for (key, value) in self.overrides().iter().filter(|(key, _)| key.value != "from") {
            let Some(claim) = profile.claim(&key.value) else {
                return Err(self.problem(key, &unknown_claim(profile, &key.value)));
            };
            if let Some(from) = profile.derived_from(&key.value) {
                let (claim, from) = (key.value.clone(), from.to_owned());
                return Err(self.problem(key, &Problem::DerivedClaim { claim, from }));
            }
            let path = profile.path_of(&key.value);
            set(&mut payload, &path, self.json(value, claim.kind));
        }
        let payload = Json::Object(payload).to_string();
        Claims::parse(profile, payload.as_bytes())
            .map_err(|error| self.problem(claims, &Problem::CaseClaims(error.to_string())))
    }

    /// A value in the type that the token would have it in.
    fn json(&self, value: &At<Tree>, kind: Kind) -> Json {
        match &value.value {
            Tree::Null => Json::Null,
            Tree::Scalar(text) => {
                let text = scalar(&self.file, value.referenced, text);
                let typed = match kind {
                    Kind::Int => text.parse::<i64>().ok().map(Json::from),
                    Kind::Bool => text.parse::<bool>().ok().map(Json::from),
                    Kind::Text | Kind::List | Kind::Json => None,
                };
                typed.unwrap_or_else(|| text.into())
            }
            Tree::List(items) => items.iter().map(|item| self.json(item, Kind::Text)).collect(),
            Tree::Map(entries) => {
                entries.iter().map(|(key, value)| (key.value.clone(), self.json(value, Kind::Text))).collect()
            }
        }
    }
}

/// Puts a value where a claim lies; null takes it away.
pub(crate) fn set(object: &mut Map<String, Json>, path: &[String], value: Json) {
    match path {
        [] => {}
        [last] if value.is_null() => drop(object.remove(last)),
        [last] => drop(object.insert(last.clone(), value)),
        [step, rest @ ..] => {
            let inner = object.entry(step.clone()).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn why(denial: &Denial) -> String {
    match &denial.kind {
        DenialKind::NoRule => denial.trace.rules.iter().map(|rule| rule.summary()).collect::<Vec<_>>().join("\n"),
        DenialKind::UnknownGrant => "no grant has that name".to_owned(),
        DenialKind::Guard { name } => format!("a guard denies: {name}"),
        DenialKind::Shadow { rule } => format!("rule {rule} would permit it, but it is in mode: shadow"),
        DenialKind::Frozen { reason } => format!("frozen: {reason}"),
        DenialKind::Scope { beyond } => format!("the grant has no scope {}", beyond.join(", ")),
    }
}
