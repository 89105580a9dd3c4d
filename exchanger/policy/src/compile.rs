//! From policy files to a [`PolicySet`]: everything is checked here, so that a decision cannot
//! meet anything unexpected.
//!
//! A grant with an error is not in the set; the others are.

mod credential;

pub use credential::{AnyCredential, CredentialSource, SpecCompiler};

use crate::{
    cases::Case,
    condition::Condition,
    document::{self, AllowFile, At, GrantFile, RuleFile, Wanted, place, range, scalar},
    grant::{Allow, Check, Grant, PolicySet, Rule},
    guards::{Guards, Scope},
    issuer::{Claim, Issuer, Profile},
    pattern::{Glob, Matcher, Pattern, WholeRegex},
    problem::Problem,
    source::{Diagnostic, Severity, Text, did_you_mean},
};
use jobpass_protocol::{BackendName, GrantName, NameError, RuleName};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    ops::Range,
    sync::Arc,
};

pub use crate::{grant::GrantContext, source::Source};

/// The longest TTL that a grant can have, in seconds: a week.
pub const MAX_TTL: u32 = 7 * 24 * 3600;

/// What came of a set of policy files.
pub struct Compiled {
    /// The grants without errors.
    pub set: PolicySet,
    /// Everything that is to be said, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether the guards or a scope have an error. Then there is no grant in the set: keep the old
    /// one, without the grants whose files are gone.
    pub guards_are_broken: bool,
    /// Names that several files give their grants, with these files' paths. None of these grants is in the set.
    pub duplicates: BTreeMap<GrantName, BTreeSet<String>>,
}

impl Compiled {
    /// Whether any file has an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Compiles policy files. `guards.yaml` binds every grant, a `scope.yaml` those in its directory;
/// every other file is a grant. Files named `*.cases.yaml` are left to [`crate::cases`].
#[must_use]
pub fn compile(sources: &[Source], issuers: &[Issuer], specs: &dyn SpecCompiler) -> Compiled {
    let issuers: HashMap<&str, &Issuer> = issuers.iter().map(|issuer| (issuer.name.as_str(), issuer)).collect();
    let mut diagnostics = Vec::new();
    let mut all = Policies { guards: Guards::default(), scopes: Vec::new() };
    let guards_are_broken = !all.read(sources, &issuers, &mut diagnostics);
    let mut grants: HashMap<GrantName, Arc<Grant>> = HashMap::new();
    let mut duplicates: BTreeMap<GrantName, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| Role::of(&source.path) == Role::Grant) {
        let file = Text::from(source);
        let document: GrantFile = match document::parse(&file) {
            Ok(document) => document,
            Err(error) => {
                diagnostics.push(error);
                continue;
            }
        };
        let mut compiler = FileCompiler { file: &file, issuers: &issuers, found: Vec::new() };
        if let Some(grant) = compiler.grant(document, specs, &all) {
            if let Some(other) = grants.get(&grant.name) {
                let twice = |other: &Grant| Problem::DuplicateGrant {
                    name: grant.name.to_string(),
                    other: other.path().to_owned(),
                };
                compiler.report(grant.at.clone(), twice(other));
                compiler.found.push(twice(&grant).at(&other.file, other.at.clone()));
                let paths = [grant.path(), other.path()].map(str::to_owned);
                duplicates.entry(grant.name.clone()).or_default().extend(paths);
            } else {
                grants.insert(grant.name.clone(), Arc::new(grant));
            }
        }
        diagnostics.append(&mut compiler.found);
    }
    // Which of two was meant cannot be known, and guessing would let one team take another's grant.
    for name in duplicates.keys() {
        grants.remove(name);
    }
    // What a broken guard would have forbidden cannot be known either.
    if guards_are_broken {
        grants.clear();
    }
    let set = PolicySet::new(grants, all.guards, digest(sources));
    Compiled { set, diagnostics, guards_are_broken, duplicates }
}

/// What kind of file a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Grant,
    Guards,
    Scope,
    Cases,
}

impl Role {
    pub(crate) fn of(path: &str) -> Self {
        match path.rsplit('/').next().unwrap_or(path) {
            "guards.yaml" | "guards.yml" => Self::Guards,
            "scope.yaml" | "scope.yml" => Self::Scope,
            name if name.ends_with(".cases.yaml") || name.ends_with(".cases.yml") => Self::Cases,
            _ => Self::Grant,
        }
    }
}

/// What binds the grants of a set.
struct Policies {
    guards: Guards,
    scopes: Vec<Scope>,
}

impl Policies {
    /// Reads guards and scopes; whether all of them are whole.
    fn read(&mut self, sources: &[Source], issuers: &HashMap<&str, &Issuer>, found: &mut Vec<Diagnostic>) -> bool {
        let before = found.len();
        let mut guards_path: Option<&str> = None;
        for source in sources {
            let file = Text::from(source);
            let mut compiler = FileCompiler { file: &file, issuers, found: Vec::new() };
            let read = match Role::of(&source.path) {
                Role::Guards => document::parse(&file).map(|document| {
                    self.guards = compiler.guards(document);
                    if let Some(other) = guards_path.replace(&source.path) {
                        compiler.report(None, Problem::SecondGuards(other.to_owned()));
                    }
                }),
                Role::Scope => document::parse(&file).map(|document| self.scopes.push(compiler.scope(document))),
                Role::Grant | Role::Cases => Ok(()),
            };
            found.append(&mut compiler.found);
            found.extend(read.err());
        }
        found.len() == before
    }
}

fn digest(sources: &[Source]) -> String {
    let mut sources: Vec<_> = sources.iter().collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Sha256::new();
    for part in sources.iter().flat_map(|source| [&source.path, &source.text]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut out, byte| {
        let _ = write!(out, "{byte:02x}"); // writing to a String cannot fail
        out
    })
}

/// Compiles one file, collecting everything that is wrong with it.
pub(crate) struct FileCompiler<'a> {
    pub(crate) file: &'a Text,
    issuers: &'a HashMap<&'a str, &'a Issuer>,
    pub(crate) found: Vec<Diagnostic>,
}

impl<'a> FileCompiler<'a> {
    pub(crate) fn report(&mut self, at: Option<Range<usize>>, problem: Problem) {
        self.found.push(problem.at(self.file, at));
    }

    pub(crate) fn report_at<T>(&mut self, value: &At<T>, problem: Problem) {
        self.report(place(self.file, value), problem);
    }

    /// Keeps a value, or reports why there is none.
    pub(crate) fn ok<T, U>(&mut self, at: &At<U>, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.report_at(at, problem)).ok()
    }

    pub(crate) fn name<T>(&mut self, text: &At<String>, parse: fn(&str) -> Result<T, NameError>) -> Option<T> {
        self.ok(text, parse(&text.value).map_err(Problem::Name))
    }

    fn grant(&mut self, document: GrantFile, specs: &dyn SpecCompiler, all: &Policies) -> Option<Grant> {
        let name = self.name(&document.grant, GrantName::parse);
        let backend = self.name(&document.backend, BackendName::parse);
        if document.owner.value.trim().is_empty() {
            self.report_at(&document.owner, Problem::Owner(document.owner.value.clone()));
        }
        if let Some(day) = document.review_by.as_ref().filter(|day| !is_date(&day.value)) {
            self.report_at(day, Problem::Date(day.value.clone()));
        }
        let ttl = self.ok(&document.ttl, seconds(&document.ttl.value));
        let max_lifetime = match &document.max_lifetime {
            Some(text) => self.ok(text, seconds(&text.value)),
            None => ttl,
        };
        if let (Some(ttl), Some(lifetime), Some(text)) = (ttl, max_lifetime, &document.max_lifetime)
            && lifetime < ttl
        {
            self.report_at(text, Problem::MaxLifetime);
        }
        let scopes = self.scopes(&document.scopes);
        let rules = self.rules(&document.rules);
        let allow = self.allow(&document.allow);
        if !self.found.is_empty() {
            return None;
        }
        let (name, backend, ttl, max_lifetime) = (name?, backend?, ttl?, max_lifetime?);
        let context = GrantContext { name: &name, ttl, max_lifetime, scopes: &scopes, rules: &rules };
        let tree = document.credential.as_ref();
        let credential = CredentialSource { file: self.file, tree, backend: &document.backend };
        let spec = match specs.compile(&backend, &credential, &context) {
            Ok(spec) => spec,
            Err(diagnostics) => {
                self.found.extend(diagnostics);
                return None;
            }
        };
        let grant = Grant {
            name,
            owner: document.owner.value,
            description: document.description.map(|text| text.value),
            review_by: document.review_by.map(|day| day.value),
            backend,
            ttl,
            max_lifetime,
            scopes,
            disclose: document.disclose.map(|disclose| disclose.value).unwrap_or_default(),
            rules,
            spec,
            credential: tree.map(|tree| tree.written(self.file)).unwrap_or_default(),
            mode: document.mode.map(|mode| mode.value).unwrap_or_default(),
            allow,
            cases: document.tests.into_iter().map(|case| Arc::new(Case::new(self.file, case))).collect(),
            file: self.file.clone(),
            at: place(self.file, &document.grant),
            ttl_at: place(self.file, &document.ttl),
        };
        for problem in all.guards.against(&grant) {
            self.report_at(&document.grant, problem);
        }
        for scope in all.scopes.iter().filter(|scope| scope.covers(&self.file.path)) {
            for problem in scope.against(&grant, document.credential.as_ref()) {
                self.report_at(&document.grant, problem);
            }
        }
        self.found.is_empty().then_some(grant)
    }

    fn allow(&mut self, written: &[At<AllowFile>]) -> Vec<Allow> {
        for allow in written.iter().filter(|allow| allow.value.reason.value.trim().is_empty()) {
            self.report_at(&allow.value.reason, Problem::AllowReason(allow.value.lint.value.clone()));
        }
        written
            .iter()
            .map(|allow| Allow { lint: allow.value.lint.clone(), at: place(self.file, &allow.value.lint) })
            .collect()
    }

    pub(crate) fn condition(&mut self, profile: &Arc<Profile>, when: Option<&At<String>>) -> Option<Condition> {
        let when = when?;
        match Condition::compile(when.value.trim(), profile) {
            Ok(condition) => Some(condition),
            Err((error, offset)) => {
                // The place inside the text, where the file has it as it is; else the whole of it.
                let whole = range(when.referenced);
                let text = whole.clone().and_then(|whole| self.file.text.get(whole)).unwrap_or_default();
                let inside = text.find(when.value.trim()).zip(offset.filter(|_| text.is_ascii())).zip(whole);
                let at = inside.map(|((start, offset), whole)| whole.start + start + offset);
                let at = at.filter(|at| *at < self.file.text.len()).map(|at| at..at + 1);
                self.report(at.or_else(|| place(self.file, when)), Problem::Condition(error));
                None
            }
        }
    }

    pub(crate) fn issuer(&mut self, written: &At<String>) -> Option<&'a Issuer> {
        if let Some(issuer) = self.issuers.get(written.value.as_str()) {
            return Some(issuer);
        }
        let mut known: Vec<_> = self.issuers.keys().map(|name| (*name).to_owned()).collect();
        known.sort();
        let name = written.value.clone();
        let nearest = did_you_mean(&name, known.iter().map(String::as_str)).map(str::to_owned);
        self.report_at(written, Problem::UnknownIssuer { name, nearest, known });
        None
    }

    fn scopes(&mut self, written: &[At<String>]) -> Vec<String> {
        let mut scopes: Vec<String> = Vec::new();
        for scope in written {
            // RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
            let fits = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
            if scope.value.is_empty() || !scope.value.chars().all(fits) {
                self.report_at(scope, Problem::Scope(scope.value.clone()));
            } else if scopes.contains(&scope.value) {
                self.report_at(scope, Problem::Duplicate(scope.value.clone()));
            } else {
                scopes.push(scope.value.clone());
            }
        }
        scopes
    }

    fn rules(&mut self, written: &At<Vec<At<RuleFile>>>) -> Vec<Rule> {
        if written.value.is_empty() {
            self.report_at(written, Problem::NoRules);
        }
        let mut rules: Vec<Rule> = Vec::new();
        for rule in &written.value {
            let Some(rule) = self.rule(&rule.value) else { continue };
            rules.push(rule);
        }
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        for (one, other) in rules.iter().zip(rules.iter().skip(1)) {
            if one.name == other.name {
                let is_it = |rule: &&At<RuleFile>| rule.value.name.value == other.name.as_str();
                if let Some(again) = written.value.iter().rfind(is_it) {
                    self.report_at(&again.value.name, Problem::Duplicate(other.name.to_string()));
                }
            }
        }
        rules
    }

    fn rule(&mut self, written: &RuleFile) -> Option<Rule> {
        let name = self.name(&written.name, RuleName::parse);
        let issuer = self.issuer(&written.issuer)?;
        let before = self.found.len();
        let mut checks = Vec::new();
        for (claim, wanted) in &written.matches.0 {
            checks.extend(self.check(&issuer.profile, claim, wanted));
        }
        let condition = self.condition(&issuer.profile, written.when.as_ref());
        let allow = self.allow(&written.allow);
        if self.found.len() > before {
            return None;
        }
        if checks.is_empty() {
            self.report_at(&written.name, Problem::EmptyRule);
            return None;
        }
        let rule = Rule {
            name: name?,
            issuer: issuer.name.clone(),
            profile: Arc::clone(&issuer.profile),
            callers_are_ours: !issuer.shared || !issuer.tenants.is_empty(),
            checks,
            condition,
            mode: written.mode.as_ref().map(|mode| mode.value).unwrap_or_default(),
            allow,
            is_shared: issuer.shared,
            is_hosted: issuer.profile.has_hosted_runners(&issuer.url),
            at: place(self.file, &written.name),
            claims_at: written.matches.0.iter().map(|(claim, _)| place(self.file, claim)).collect(),
            when_at: written.when.as_ref().and_then(|when| place(self.file, when)),
        };
        let tenant = issuer.profile.tenant_claim();
        if !rule.callers_are_ours && !issuer.profile.pins_tenant(|claim| rule.pins(claim)) {
            let (profile, claim) = (issuer.profile.title().to_owned(), tenant.map(str::to_owned));
            self.report_at(&written.name, Problem::TenantPin { profile, claim });
            return None;
        }
        Some(rule)
    }

    pub(crate) fn check(&mut self, profile: &Profile, name: &At<String>, wanted: &At<Wanted>) -> Option<Check> {
        let (Some(claim), Some(slot)) = (profile.claim(&name.value), profile.slot(&name.value)) else {
            self.report_at(name, unknown_claim(profile, &name.value));
            return None;
        };
        let matcher = self.matcher(claim, name, wanted)?;
        Some(Check { claim: name.value.as_str().into(), slot, matcher })
    }

    pub(crate) fn matcher(&mut self, claim: &Claim, name: &At<String>, wanted: &At<Wanted>) -> Option<Matcher> {
        let (mut values, mut patterns) = (Vec::new(), Vec::new());
        match &wanted.value {
            Wanted::Any(items) if items.is_empty() => {
                self.report_at(wanted, Problem::EmptyList);
                return None;
            }
            Wanted::Any(items) => {
                for item in items {
                    self.alternative(claim, name, item, &mut values, &mut patterns)?;
                }
            }
            Wanted::Operators(entries) => {
                let (operator, operand) = self.operator(wanted, entries)?;
                match operator.value.as_str() {
                    "contains" => {
                        let item = self.operand("contains", operand)?;
                        let matcher = Matcher::contains(claim, &item).map_err(Problem::Pattern);
                        return self.ok(operand, matcher);
                    }
                    "absent" => {
                        return match &operand.value {
                            Wanted::Scalar(text) if scalar(self.file, operand.referenced, text) == "true" => {
                                Some(Matcher::Absent)
                            }
                            _ => {
                                self.report_at(operand, Problem::Operand { operator: "absent", expected: "`true`" });
                                None
                            }
                        };
                    }
                    _ => self.alternative(claim, name, wanted, &mut values, &mut patterns)?,
                }
            }
            Wanted::Scalar(_) | Wanted::Null => self.alternative(claim, name, wanted, &mut values, &mut patterns)?,
        }
        let matcher = Matcher::any_of(claim, &values, patterns).map_err(Problem::Pattern);
        self.ok(wanted, matcher)
    }

    /// One of the things that a claim may be: a value, a glob or a regex.
    fn alternative(
        &mut self,
        claim: &Claim,
        name: &At<String>,
        wanted: &At<Wanted>,
        values: &mut Vec<String>,
        patterns: &mut Vec<Pattern>,
    ) -> Option<()> {
        match &wanted.value {
            Wanted::Scalar(text) => values.push(scalar(self.file, wanted.referenced, text).to_owned()),
            Wanted::Null => {
                self.report(
                    range(wanted.referenced).filter(|at| !at.is_empty()).or_else(|| place(self.file, name)),
                    Problem::Null(name.value.clone()),
                );
                return None;
            }
            Wanted::Any(_) => {
                self.report_at(wanted, Problem::Operand { operator: "glob", expected: "one text, not a list" });
                return None;
            }
            Wanted::Operators(entries) => {
                let (operator, operand) = self.operator(wanted, entries)?;
                let pattern = match operator.value.as_str() {
                    "glob" => Glob::parse(&self.operand("glob", operand)?, claim).map(Pattern::Glob),
                    "regex" => WholeRegex::parse(&self.operand("regex", operand)?).map(Pattern::Regex),
                    _ => {
                        let expected = "a place of its own, not one in a list";
                        let operator = if operator.value == "absent" { "absent" } else { "contains" };
                        self.report_at(wanted, Problem::Operand { operator, expected });
                        return None;
                    }
                };
                patterns.push(self.ok(operand, pattern.map_err(Problem::Pattern))?);
            }
        }
        Some(())
    }

    fn operator<'e>(
        &mut self,
        wanted: &At<Wanted>,
        entries: &'e [(At<String>, At<Wanted>)],
    ) -> Option<(&'e At<String>, &'e At<Wanted>)> {
        const OPERATORS: [&str; 4] = ["glob", "regex", "contains", "absent"];
        for (operator, _) in entries {
            if !OPERATORS.contains(&operator.value.as_str()) {
                let nearest = did_you_mean(&operator.value, OPERATORS).map(str::to_owned);
                self.report_at(operator, Problem::UnknownOperator { name: operator.value.clone(), nearest });
                return None;
            }
        }
        match entries {
            [(operator, operand)] => Some((operator, operand)),
            _ => {
                self.report_at(wanted, Problem::OperatorCount(entries.len()));
                None
            }
        }
    }

    fn operand(&mut self, operator: &'static str, operand: &At<Wanted>) -> Option<String> {
        match &operand.value {
            Wanted::Scalar(text) => Some(scalar(self.file, operand.referenced, text).to_owned()),
            _ => {
                self.report_at(operand, Problem::Operand { operator, expected: "one text" });
                None
            }
        }
    }
}

pub(crate) fn unknown_claim(profile: &Profile, name: &str) -> Problem {
    let nearest = did_you_mean(name, profile.claims().map(|claim| &*claim.name)).map(str::to_owned);
    Problem::UnknownClaim { claim: name.to_owned(), profile: profile.title().to_owned(), nearest }
}

/// `15m`, `1h30m`, `90s`, in seconds.
pub(crate) fn seconds(text: &str) -> Result<u32, Problem> {
    let wrong = || Problem::Duration(text.to_owned());
    let (mut total, mut rest) = (0_u64, text.trim());
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest.get(..digits).unwrap_or_default().parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes().get(digits) {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 24 * 3600,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = rest.get(digits + 1..).unwrap_or_default();
    }
    u32::try_from(total).ok().filter(|total| (1..=MAX_TTL).contains(total)).ok_or_else(wrong)
}

fn is_date(text: &str) -> bool {
    text.parse::<jiff::civil::Date>().is_ok_and(|date| date.to_string() == text)
}
