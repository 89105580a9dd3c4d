//! Guards, which bind every grant, and scopes, which bind the grants of one directory.
//!
//! Neither can permit anything. What a grant's file shows (TTL, pins, issuers, backends, roles) is
//! checked when it is loaded; what only a request shows (claims, the time) when it is decided. A
//! guard that cannot be evaluated denies.

use crate::{
    compile::{FileCompiler, seconds},
    condition::Condition,
    document::{At, ForbidFile, GuardsFile, ScopeFile, SelectFile, Tree, scalar},
    grant::{Check, Grant},
    issuer::Profile,
    pattern::Glob,
    problem::Problem,
    source::Text,
};
use jiff::{Timestamp, civil, tz::TimeZone};
use jobpass_protocol::{GrantName, IssuerName, RuleName};
use std::sync::Arc;

/// The guards of a server.
#[derive(Debug, Default)]
pub struct Guards {
    pub(crate) forbid: Vec<Forbid>,
    pub(crate) closed: Vec<Closed>,
    pub(crate) ceilings: Vec<Ceiling>,
    pub(crate) require: Vec<(IssuerName, Vec<String>)>,
    pub(crate) issuers: Option<Vec<String>>,
    pub(crate) deny_overdue: bool,
}

/// A rule that denies.
#[derive(Debug)]
pub(crate) struct Forbid {
    pub(crate) name: RuleName,
    pub(crate) issuer: IssuerName,
    pub(crate) profile: Arc<Profile>,
    pub(crate) select: Select,
    pub(crate) checks: Vec<Check>,
    pub(crate) condition: Option<Condition>,
}

/// A time in which nothing is issued.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) name: RuleName,
    select: Select,
    when: Window,
}

#[derive(Debug)]
enum Window {
    Between(Timestamp, Timestamp),
    /// Days of the week from Monday = 1, and minutes of the day, in UTC.
    Weekly(Vec<i8>, u16, u16),
}

/// The most that a grant can ask for.
#[derive(Debug)]
pub(crate) struct Ceiling {
    select: Select,
    ttl: Option<u32>,
    max_lifetime: Option<u32>,
}

/// Some of the grants: all, where nothing is selected by.
#[derive(Debug)]
pub(crate) struct Select {
    grants: Vec<Glob>,
    backends: Vec<String>,
}

impl Select {
    pub(crate) fn covers(&self, grant: &GrantName, backend: &str) -> bool {
        let by_name = self.grants.is_empty() || self.grants.iter().any(|glob| glob.is_match(grant.as_str()));
        by_name && (self.backends.is_empty() || self.backends.iter().any(|name| name == backend))
    }
}

impl Forbid {
    /// Whether it denies. A claim of an unknown form counts as the forbidden one, and so does a
    /// condition that cannot be evaluated.
    pub(crate) fn denies(&self, grant: &Grant, issuer: &IssuerName, claims: &crate::claims::Claims) -> bool {
        if self.issuer != *issuer || !self.select.covers(&grant.name, grant.backend.as_str()) {
            return false;
        }
        if !Arc::ptr_eq(&self.profile, claims.profile()) {
            return true;
        }
        let matches = |check: &Check| {
            let held = claims.held(&check.slot);
            *held == crate::claims::Held::Unusable || check.matcher.is_match(held)
        };
        self.checks.iter().all(matches)
            && self.condition.as_ref().is_none_or(|condition| condition.evaluate(claims).unwrap_or(true))
    }
}

impl Closed {
    /// Whether it is closed at `at` (epoch seconds). A moment that no calendar has is.
    pub(crate) fn denies(&self, grant: &Grant, at: i64) -> bool {
        self.select.covers(&grant.name, grant.backend.as_str())
            && Timestamp::from_second(at).map_or(true, |at| self.when.holds(at))
    }
}

impl Window {
    fn holds(&self, at: Timestamp) -> bool {
        match self {
            Self::Between(from, until) => (*from..*until).contains(&at),
            Self::Weekly(days, from, until) => {
                let at = at.to_zoned(TimeZone::UTC);
                let minute = u16::from(at.hour().unsigned_abs()) * 60 + u16::from(at.minute().unsigned_abs());
                days.contains(&at.weekday().to_monday_one_offset()) && (*from..*until).contains(&minute)
            }
        }
    }
}

/// Whether the day after `review_by` has begun (UTC). A day that cannot be read is overdue.
pub(crate) fn is_overdue(review_by: &str, at: i64) -> bool {
    let today = Timestamp::from_second(at).map(|at| at.to_zoned(TimeZone::UTC).date());
    match (review_by.parse::<civil::Date>(), today) {
        (Ok(day), Ok(today)) => today > day,
        _ => true,
    }
}

impl Guards {
    /// What the guards have against a grant as it is written.
    pub(crate) fn against(&self, grant: &Grant) -> Vec<Problem> {
        let mut problems = Vec::new();
        for ceiling in self.ceilings.iter().filter(|c| c.select.covers(&grant.name, grant.backend.as_str())) {
            over(&mut problems, "ttl", grant.ttl, ceiling.ttl, "guards.yaml");
            over(&mut problems, "max_lifetime", grant.max_lifetime, ceiling.max_lifetime, "guards.yaml");
        }
        for rule in &grant.rules {
            let name = rule.name.to_string();
            if self
                .issuers
                .as_ref()
                .is_some_and(|issuers| !issuers.iter().any(|issuer| *issuer == rule.issuer.as_str()))
            {
                problems.push(Problem::GuardIssuer { rule: name.clone(), issuer: rule.issuer.to_string() });
            }
            for (_, claims) in self.require.iter().filter(|(issuer, _)| *issuer == rule.issuer) {
                for claim in claims.iter().filter(|claim| !rule.pins(claim)) {
                    problems.push(Problem::GuardPin { rule: name.clone(), claim: claim.clone() });
                }
            }
        }
        problems
    }
}

fn over(problems: &mut Vec<Problem>, field: &'static str, is: u32, most: Option<u32>, by: &str) {
    if let Some(most) = most.filter(|most| is > *most) {
        problems.push(Problem::Ceiling { field, is, most, by: by.to_owned() });
    }
}

/// A directory's ceiling, which its grants cannot lift.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) directory: String,
    path: String,
    names: Vec<Glob>,
    backends: Option<Vec<String>>,
    issuers: Option<Vec<String>>,
    /// Claim values that every rule of the issuer must pin a part of.
    pins: Vec<(IssuerName, String, Vec<String>)>,
    /// Fields of the credential spec and the texts that may stand in them.
    credential: Vec<(String, Vec<Glob>)>,
    ttl: Option<u32>,
    max_lifetime: Option<u32>,
}

impl Scope {
    pub(crate) fn covers(&self, path: &str) -> bool {
        self.directory.is_empty() || path.strip_prefix(&self.directory).is_some_and(|rest| rest.starts_with('/'))
    }

    /// What the scope has against a grant as it is written.
    pub(crate) fn against(&self, grant: &Grant, credential: Option<&Tree>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let by = || self.path.clone();
        let mut refuse = |what: &'static str, value: &str| {
            problems.push(Problem::OutOfScope { what, value: value.to_owned(), by: by() });
        };
        if !self.names.is_empty() && !self.names.iter().any(|glob| glob.is_match(grant.name.as_str())) {
            refuse("the grant's name", grant.name.as_str());
        }
        if self.backends.as_ref().is_some_and(|known| !known.iter().any(|name| *name == grant.backend.as_str())) {
            refuse("the backend", grant.backend.as_str());
        }
        for rule in &grant.rules {
            if self.issuers.as_ref().is_some_and(|known| !known.iter().any(|name| *name == rule.issuer.as_str())) {
                refuse("the issuer", rule.issuer.as_str());
            }
            for (_, claim, values) in self.pins.iter().filter(|(issuer, ..)| *issuer == rule.issuer) {
                match rule.pinned(claim) {
                    Some(pinned) => {
                        pinned.iter().filter(|v| !values.contains(v)).for_each(|v| refuse("the rule's claim value", v))
                    }
                    None => refuse("a rule that does not list the values of", claim),
                }
            }
        }
        for (field, allowed) in &self.credential {
            for text in leaves(&grant.file, credential, field) {
                if !allowed.iter().any(|glob| glob.is_match(&text)) {
                    refuse("the credential's value", &text);
                }
            }
        }
        over(&mut problems, "ttl", grant.ttl, self.ttl, &self.path);
        over(&mut problems, "max_lifetime", grant.max_lifetime, self.max_lifetime, &self.path);
        problems
    }
}

/// Every scalar at or below the top-level member `field` of a credential spec.
fn leaves(file: &Text, credential: Option<&Tree>, field: &str) -> Vec<String> {
    let Some(Tree::Map(entries)) = credential else { return Vec::new() };
    let mut found = Vec::new();
    let mut open: Vec<&At<Tree>> =
        entries.iter().filter(|(key, _)| key.value == field).map(|(_, value)| value).collect();
    while let Some(next) = open.pop() {
        match &next.value {
            Tree::Scalar(text) => found.push(scalar(file, next.referenced, text).to_owned()),
            Tree::Null => found.push(String::new()),
            Tree::List(items) => open.extend(items),
            Tree::Map(entries) => open.extend(entries.iter().map(|(_, value)| value)),
        }
    }
    found
}

impl FileCompiler<'_> {
    pub(crate) fn guards(&mut self, file: GuardsFile) -> Guards {
        let mut guards = Guards { deny_overdue: file.deny_overdue_review, ..Guards::default() };
        guards.issuers = file.issuers.map(|names| self.issuer_names(&names));
        for forbid in &file.forbid {
            guards.forbid.extend(self.forbid(&forbid.value));
        }
        for ceiling in &file.ceilings {
            guards.ceilings.push(Ceiling {
                select: self.select(&ceiling.value.on),
                ttl: self.limit(&ceiling.value.ttl),
                max_lifetime: self.limit(&ceiling.value.max_lifetime),
            });
        }
        for require in &file.require {
            let Some(issuer) = self.issuer(&require.value.issuer) else { continue };
            for claim in &require.value.pin {
                self.known_claim(&issuer.profile, claim);
            }
            let pins = require.value.pin.iter().map(|claim| claim.value.clone()).collect();
            guards.require.push((issuer.name.clone(), pins));
        }
        for closed in &file.closed {
            let window = match (&closed.value.from, &closed.value.until, &closed.value.weekly) {
                (Some(from), Some(until), None) => {
                    let moments = (self.moment(from), self.moment(until));
                    moments.0.zip(moments.1).map(|(from, until)| Window::Between(from, until))
                }
                (None, None, Some(weekly)) => {
                    let days = weekly.days.iter().map(|day| self.weekday(day)).collect::<Option<Vec<_>>>();
                    let hours = (self.minute(&weekly.from), self.minute(&weekly.until));
                    days.zip(hours.0.zip(hours.1)).map(|(days, (from, until))| Window::Weekly(days, from, until))
                }
                _ => {
                    self.report_at(&closed.value.name, Problem::Window);
                    None
                }
            };
            let name = self.name(&closed.value.name, RuleName::parse);
            let select = self.select(&closed.value.on);
            guards.closed.extend(name.zip(window).map(|(name, when)| Closed { name, select, when }));
        }
        guards
    }

    pub(crate) fn scope(&mut self, file: ScopeFile) -> Scope {
        let path = self.file.path.clone();
        let mut scope = Scope {
            directory: path.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned(),
            path,
            names: self.globs(&file.names),
            backends: file.backends.map(|names| names.into_iter().map(|name| name.value).collect()),
            issuers: file.issuers.map(|names| self.issuer_names(&names)),
            pins: Vec::new(),
            credential: file
                .credential
                .0
                .iter()
                .map(|(field, globs)| (field.value.clone(), self.globs(globs)))
                .collect(),
            ttl: self.limit(&file.max_ttl),
            max_lifetime: self.limit(&file.max_lifetime),
        };
        for (issuer, claims) in &file.claims.0 {
            let Some(issuer) = self.issuer(issuer) else { continue };
            for (claim, values) in &claims.0 {
                self.known_claim(&issuer.profile, claim);
                let values = values.iter().map(|value| value.value.clone()).collect();
                scope.pins.push((issuer.name.clone(), claim.value.clone(), values));
            }
        }
        scope
    }

    fn forbid(&mut self, file: &ForbidFile) -> Option<Forbid> {
        let name = self.name(&file.name, RuleName::parse);
        let issuer = self.issuer(&file.issuer)?;
        let before = self.found.len();
        let checks: Vec<_> =
            file.matches.0.iter().filter_map(|(claim, wanted)| self.check(&issuer.profile, claim, wanted)).collect();
        let condition = self.condition(&issuer.profile, file.when.as_ref());
        let select = self.select(&file.on);
        if self.found.len() > before {
            return None;
        }
        let (issuer, profile) = (issuer.name.clone(), Arc::clone(&issuer.profile));
        Some(Forbid { name: name?, issuer, profile, select, checks, condition })
    }

    fn known_claim(&mut self, profile: &Profile, claim: &At<String>) {
        if profile.claim(&claim.value).is_none() {
            self.report_at(claim, crate::compile::unknown_claim(profile, &claim.value));
        }
    }

    fn issuer_names(&mut self, names: &[At<String>]) -> Vec<String> {
        names.iter().filter_map(|name| self.issuer(name).map(|issuer| issuer.name.to_string())).collect()
    }

    fn select(&mut self, file: &SelectFile) -> Select {
        Select {
            grants: self.globs(&file.grants),
            backends: file.backends.iter().map(|name| name.value.clone()).collect(),
        }
    }

    fn globs(&mut self, texts: &[At<String>]) -> Vec<Glob> {
        texts.iter().filter_map(|text| self.ok(text, Glob::new(&text.value, "").map_err(Problem::Pattern))).collect()
    }

    fn limit(&mut self, text: &Option<At<String>>) -> Option<u32> {
        text.as_ref().and_then(|text| self.ok(text, seconds(&text.value)))
    }

    fn moment(&mut self, text: &At<String>) -> Option<Timestamp> {
        self.ok(text, text.value.parse().map_err(|_| Problem::Moment(text.value.clone())))
    }

    fn weekday(&mut self, text: &At<String>) -> Option<i8> {
        const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
        let day = (1_i8..).zip(DAYS).find(|(_, day)| *day == text.value).map(|(number, _)| number);
        self.ok(text, day.ok_or_else(|| Problem::Moment(text.value.clone())))
    }

    /// `18:00` as minutes since midnight; `24:00` is the day's end.
    fn minute(&mut self, text: &At<String>) -> Option<u16> {
        let parsed = text.value.split_once(':').and_then(|(hours, minutes)| {
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            Some(hours * 60 + minutes).filter(|all| minutes < 60 && hours <= 24 && *all <= 24 * 60)
        });
        self.ok(text, parsed.ok_or_else(|| Problem::Moment(text.value.clone())))
    }
}
