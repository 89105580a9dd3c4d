//! Tests of policies: a token, and what the policy must say to it and why.

use crate::{
    claims::Claims,
    compile::{Role, unknown_claim},
    decide::{Decision, Denial, DenialKind, Freezes, Request, RuleTrace, decide},
    document::{self, At, CaseFile, CasesFile, Expect, Tree, place, scalar},
    explain::reason,
    fixtures::{FIXTURES, fixture},
    grant::{Grant, PolicySet, Rule},
    issuer::{Kind, Profile},
    problem::Problem,
    source::{Diagnostic, Source, Text, did_you_mean},
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

/// Runs the cases that grants hold.
#[must_use]
pub fn run(policies: &PolicySet) -> Report {
    Suite::new(policies).run()
}

/// Cases, and the policies that they are about.
pub struct Suite<'a> {
    policies: &'a PolicySet,
    cases: Vec<(&'a Arc<Grant>, Arc<Case>)>,
}

/// Rules and matchers that no case exercises.
#[derive(Debug, Default, Serialize)]
pub struct Coverage {
    /// How many rules and matchers there are.
    pub all: usize,
    /// What no case exercises: a rule that gives no permit, a line that fails in no denial.
    pub missed: Vec<Missed>,
}

/// Something that no case exercises, or whose change no case notices.
#[derive(Debug, Serialize)]
pub struct Missed {
    /// The grant.
    pub grant: String,
    /// The rule.
    pub rule: String,
    /// What of it.
    pub what: String,
}

impl<'a> Suite<'a> {
    /// The cases that grants hold.
    #[must_use]
    pub fn new(policies: &'a PolicySet) -> Self {
        let mut suite = Self { policies, cases: Vec::new() };
        for grant in policies.grants() {
            suite.cases.extend(grant.cases().iter().map(|case| (grant, Arc::clone(case))));
        }
        suite.sort();
        suite
    }

    /// Adds the cases of `*.cases.yaml` files; other files are left alone.
    #[must_use]
    pub fn add(&mut self, sources: &[Source]) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for source in sources.iter().filter(|source| Role::of(&source.path) == Role::Cases) {
            let file = Text::from(source);
            match document::parse::<CasesFile>(&file) {
                Err(error) => found.push(error),
                Ok(document) => match self.policies.grant(&document.grant.value) {
                    Some(grant) => {
                        let cases = document.tests.into_iter().map(|case| (grant, Arc::new(Case::new(&file, case))));
                        self.cases.extend(cases);
                    }
                    None => {
                        let name = document.grant.value.clone();
                        let known = self.policies.grants().map(|grant| grant.name().as_str());
                        let nearest = did_you_mean(&name, known).map(str::to_owned);
                        let problem = Problem::UnknownGrant { name, nearest };
                        found.push(problem.at(&file, place(&file, &document.grant)));
                    }
                },
            }
        }
        self.sort();
        found
    }

    /// By grant; within one, in the order of the files.
    fn sort(&mut self) {
        self.cases.sort_by(|a, b| a.0.name().cmp(b.0.name()));
    }

    /// Runs every case.
    #[must_use]
    pub fn run(&self) -> Report {
        let results = self.cases.iter().map(|(grant, case)| CaseResult {
            grant: grant.name().to_string(),
            name: case.written.value.name.value.clone(),
            failure: case.run(self.policies, grant).err(),
        });
        Report { results: results.collect() }
    }

    /// What the cases exercise: a rule by giving a permit, a line of it by failing in a denial.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let mut coverage = Coverage::default();
        for grant in self.grants() {
            let decisions: Vec<_> =
                self.cases_of(grant).filter_map(|case| case.decision(self.policies, grant).ok()).collect();
            let permits = |rule: &Rule| {
                decisions
                    .iter()
                    .any(|decision| matches!(decision, Decision::Permit(permit) if permit.rule() == rule.name()))
            };
            let fails = |rule: &Rule, fails: &dyn Fn(&RuleTrace) -> bool| {
                decisions.iter().any(|decision| match decision {
                    Decision::Denial(denial) => denial.trace().rules.iter().any(|t| t.rule == *rule.name() && fails(t)),
                    Decision::Permit(_) => false,
                })
            };
            for rule in grant.rules() {
                let mut need = |what: String, exercised: bool| {
                    coverage.all += 1;
                    if !exercised {
                        let (grant, rule) = (grant.name().to_string(), rule.name().to_string());
                        coverage.missed.push(Missed { grant, rule, what });
                    }
                };
                need("the rule permits in no case".to_owned(), permits(rule));
                for check in &rule.checks {
                    let failed = |trace: &RuleTrace| trace.failed().any(|failed| *failed.claim == *check.claim);
                    need(format!("`{}` fails in no case", check.claim), fails(rule, &failed));
                }
                if rule.condition.is_some() {
                    let failed = |trace: &RuleTrace| trace.condition.as_ref().is_some_and(|condition| !condition.holds);
                    need("`when` fails in no case".to_owned(), fails(rule, &failed));
                }
            }
        }
        coverage
    }

    /// Changes that make a grant permit more and that none of its cases notices: each line of a rule
    /// taken away, each value made a pattern.
    #[must_use]
    pub fn mutants(&self) -> Vec<Missed> {
        let mut survivors = Vec::new();
        for grant in self.grants() {
            for (index, rule) in grant.rules().iter().enumerate() {
                for (what, mutant) in rule.mutants() {
                    let policies = self.policies.with(grant.with_rule(index, mutant));
                    if self.cases_of(grant).all(|case| case.run(&policies, grant).is_ok()) {
                        let (grant, rule) = (grant.name().to_string(), rule.name().to_string());
                        survivors.push(Missed { grant, rule, what });
                    }
                }
            }
        }
        survivors
    }

    fn grants(&self) -> Vec<&'a Arc<Grant>> {
        let mut grants: Vec<_> = self.policies.grants().collect();
        grants.sort_by(|a, b| a.name().cmp(b.name()));
        grants
    }

    fn cases_of(&self, grant: &Grant) -> impl Iterator<Item = &Case> {
        let name = grant.name().clone();
        self.cases.iter().filter(move |(grant, _)| *grant.name() == name).map(|(_, case)| &**case)
    }
}

impl Report {
    /// JUnit's XML, one suite per grant.
    #[must_use]
    pub fn junit(&self) -> String {
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        for results in self.results.chunk_by(|a, b| a.grant == b.grant) {
            let grant = results.first().map_or("", |result| result.grant.as_str());
            let failed = results.iter().filter(|result| result.failure.is_some()).count();
            out +=
                &format!("  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\">\n", xml(grant), results.len());
            for CaseResult { grant, name, failure } in results {
                let case = format!("    <testcase classname=\"{}\" name=\"{}\"", xml(grant), xml(name));
                match failure {
                    None => out += &format!("{case}/>\n"),
                    Some(failure) => {
                        let (message, text) = (xml(&failure.message), xml(&failure.to_string()));
                        out += &format!(
                            "{case}>\n      <failure message=\"{message}\">{text}</failure>\n    </testcase>\n"
                        );
                    }
                }
            }
            out += "  </testsuite>\n";
        }
        out + "</testsuites>\n"
    }
}

fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            // XML 1.0 has no other control characters, not even escaped.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

impl Case {
    pub(crate) fn new(file: &Text, written: At<CaseFile>) -> Self {
        Self { file: file.clone(), written }
    }

    fn problem<T>(&self, at: &At<T>, problem: &Problem) -> Diagnostic {
        problem.at(&self.file, place(&self.file, at))
    }

    fn run(&self, policies: &PolicySet, grant: &Grant) -> Result<(), Diagnostic> {
        let case = &self.written.value;
        let failed = |message: String| {
            let at = place(&self.file, &case.expect);
            Diagnostic::new(&self.file, at, "case-failed", format!("{}: {message}", case.name.value))
        };
        match (case.expect.value, self.decision(policies, grant)?) {
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

    fn decision(&self, policies: &PolicySet, grant: &Grant) -> Result<Decision, Diagnostic> {
        let case = &self.written.value;
        let (issuer, profile) = self.issuer(grant)?;
        let claims = Arc::new(self.claims(&profile)?);
        let at = match &case.at {
            None => claims.registered().iat,
            Some(at) => {
                let moment: Result<jiff::Timestamp, _> = at.value.parse();
                moment.map_err(|_| self.problem(at, &Problem::Moment(at.value.clone())))?.as_second()
            }
        };
        let request = Request {
            grant: grant.name().as_str(),
            issuer: &issuer,
            claims: &claims,
            scope: case.scope.as_deref(),
            ttl: None,
            at,
            freezes: &Freezes::NONE,
        };
        Ok(decide(policies, &request))
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
            let traced = denial.trace();
            let Some(trace) = traced.rules.iter().find(|trace| trace.rule == *name) else {
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
        DenialKind::NoRule => denial.trace().rules.iter().map(|rule| rule.summary()).collect::<Vec<_>>().join("\n"),
        _ => reason(denial),
    }
}
