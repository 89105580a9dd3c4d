//! `explain`: why a request was decided as it was, nearest rule first, and the smallest change that
//! would permit it.
//!
//! It says what [`crate::decide`] says, from the same trace that the audit log holds.

use crate::{
    claims::Claims,
    decide::{Decision, Denial, DenialKind, Request, RuleTrace, Trace, decide, trace},
    diff::{forbids, text},
    grant::{Grant, PolicySet},
    region::{Outcome, Region},
    sample::{Sample, Sampler},
};
use jobpass_protocol::RuleName;
use serde::{Deserialize as _, Serialize};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// How many rules, the nearest ones, are asked for a change that would make them match.
const MAX_RULES: usize = 8;
const NO_GRANT: &str = "no grant has that name";

/// Why a request was decided as it was.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The decision.
    pub permitted: bool,
    /// The rule that permits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// The decision in a line.
    pub reason: String,
    /// What each rule wanted and what the token said, the nearest rule first.
    pub trace: Trace,
    /// The smallest change of the token that would permit it, tried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// A change that would permit a request.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The rule that would match.
    pub rule: RuleName,
    /// What the token would have to say; null is nothing.
    pub claims: BTreeMap<String, Json>,
}

impl Explanation {
    /// Explains a decision as the audit log keeps it: an entry, a line of the log with one in it, or a
    /// denial's trace alone. `None`: it is none of them.
    #[must_use]
    pub fn of_stored(json: &Json) -> Option<Self> {
        let entry = json.get("entry").unwrap_or(json);
        let text = |field| entry.get(field).and_then(Json::as_str);
        let trace = Trace::deserialize(entry.get("trace").unwrap_or(entry)).ok();
        let permitted = match text("event") {
            None => return trace.map(Self::of_trace),
            Some("denied") => false,
            Some("permitted" | "issued" | "renewed" | "failed") => true,
            Some(_) => return None,
        };
        let rule = text("rule").and_then(|rule| RuleName::parse(rule).ok());
        let code = text("reason");
        let trace = trace.map(nearest_first).unwrap_or_else(|| Trace {
            grant: text("grant").unwrap_or("(no valid name)").to_owned(),
            because: None,
            rules: Vec::new(),
        });
        let reason = match (permitted, code, &rule) {
            (true, Some(why), Some(rule)) => format!("rule {rule} matched; no credential came of it: {why}"),
            (true, None, Some(rule)) => format!("rule {rule} matched"),
            (false, ..) if trace.because.is_some() => because(&trace),
            (_, code, ..) => code.unwrap_or("no reason is recorded").replace('_', " "),
        };
        Some(Self { permitted, rule, reason, trace, change: None })
    }

    fn of_trace(trace: Trace) -> Self {
        let trace = nearest_first(trace);
        let rule = trace.rules.first().filter(|rule| rule.matches()).map(|rule| rule.rule.clone());
        let reason = because(&trace);
        Self { permitted: rule.is_some() && trace.because.is_none(), rule, reason, trace, change: None }
    }
}

/// Decides, and says why.
#[must_use]
pub fn explain(policies: &PolicySet, request: &Request<'_>) -> Explanation {
    let grant = policies.grant(request.grant);
    match decide(policies, request) {
        Decision::Permit(permit) => Explanation {
            permitted: true,
            rule: Some(permit.rule().clone()),
            reason: format!("rule {} matches", permit.rule()),
            trace: nearest_first(trace(permit.grant(), request)),
            change: None,
        },
        Decision::Denial(denial) => {
            let mut reason = reason(&denial);
            if grant.is_none() {
                reason.push_str(&policies.did_you_mean(request.grant));
            }
            let trace = nearest_first(denial.trace());
            let change = grant.and_then(|grant| smallest_change(policies, grant, request, &trace));
            Explanation { permitted: false, rule: None, reason, trace, change }
        }
    }
}

/// A denial in a line.
pub(crate) fn reason(denial: &Denial) -> String {
    because(&denial.trace())
}

/// What a trace comes to, in a line.
fn because(trace: &Trace) -> String {
    match &trace.because {
        Some(DenialKind::UnknownGrant) => NO_GRANT.to_owned(),
        Some(DenialKind::Frozen { reason }) => format!("frozen: {reason}"),
        Some(DenialKind::Guard { name }) => format!("a guard denies: {name}"),
        Some(DenialKind::Shadow { rule }) => format!("rule {rule} matches, but it is only tried out (mode: shadow)"),
        Some(DenialKind::Scope { beyond }) if beyond.is_empty() => {
            "it asks for a scope that the grant has not".to_owned()
        }
        Some(DenialKind::Scope { beyond }) => format!("the grant has no scope {}", beyond.join(", ")),
        Some(DenialKind::NoRule) | None => {
            let nearest = trace.rules.iter().min_by_key(|rule| distance(rule));
            nearest.map_or_else(|| "it has no rules".to_owned(), RuleTrace::summary)
        }
    }
}

fn nearest_first(mut trace: Trace) -> Trace {
    trace.rules.sort_by_key(distance);
    trace
}

/// Another issuer is farthest; then what fails counts, then what does not.
fn distance(rule: &RuleTrace) -> (bool, usize, usize) {
    let failed = rule.failed().count() + usize::from(rule.condition.as_ref().is_some_and(|condition| !condition.holds));
    (!rule.issuer_matches, failed, usize::MAX - rule.checks.len())
}

fn smallest_change(policies: &PolicySet, grant: &Grant, request: &Request<'_>, trace: &Trace) -> Option<Change> {
    let guards: Vec<Region<'_>> = forbids(policies, grant).map(Region::forbidden).collect();
    let mut sampler = Sampler::like(request.claims);
    let near = trace.rules.iter().filter(|rule| rule.issuer_matches).take(MAX_RULES);
    let changes = near.filter_map(|near| {
        let rule = grant.rules.iter().find(|rule| rule.name == near.rule)?;
        let region = Region::of(rule);
        let mut permitted = |sample: Sample| match decide(policies, &Request { claims: &sample.claims, ..*request }) {
            Decision::Permit(_) => Some(sample),
            Decision::Denial(_) => None,
        };
        let Outcome::Found(sample) = region.find_outside(&guards, &mut sampler, &mut permitted) else { return None };
        let named = region.lines.iter().map(|(claim, _)| *claim);
        Some(Change { rule: rule.name.clone(), claims: changed(request.claims, &sample.claims, named) })
    });
    changes.min_by_key(|change| change.claims.len()).filter(|change| !change.claims.is_empty())
}

/// What the changed token says differently.
fn changed<'a>(was: &Claims, is: &'a Claims, named: impl Iterator<Item = &'a str>) -> BTreeMap<String, Json> {
    let profile = is.profile();
    let known = profile.claims().map(|claim| &*claim.name);
    let names: BTreeSet<&str> = named.chain(known).filter(|name| profile.derived_from(name).is_none()).collect();
    let differing = names.into_iter().filter(|name| was.get(name) != is.get(name));
    differing
        .map(|name| {
            (name.to_owned(), is.get(name).and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default())
        })
        .collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", if self.permitted { "permitted" } else { "denied" }, self.trace.grant)?;
        writeln!(f, "  {}", self.reason)?;
        if let Some(Change { rule, claims }) = &self.change {
            writeln!(f, "\nThe smallest change that would permit it (rule {rule}):")?;
            for (claim, value) in claims {
                match value {
                    Json::Null => writeln!(f, "  no {claim}")?,
                    value => writeln!(f, "  {claim} = {}", text(value))?,
                }
            }
        }
        self.trace.rules.iter().try_for_each(|rule| write_rule(f, rule))
    }
}

fn write_rule(f: &mut fmt::Formatter<'_>, rule: &RuleTrace) -> fmt::Result {
    let failed = distance(rule).1;
    let lines = rule.checks.len() + usize::from(rule.condition.is_some());
    match (rule.issuer_matches, failed) {
        (false, _) => {
            return writeln!(f, "\nrule {}: for tokens of {}, this is another issuer's", rule.rule, rule.issuer);
        }
        (true, 0) => writeln!(f, "\nrule {}: matches", rule.rule)?,
        (true, _) => writeln!(f, "\nrule {}: {failed} of {lines} lines fail", rule.rule)?,
    }
    let width = |head: &str, cell: fn(&crate::decide::CheckTrace) -> &str| {
        rule.checks.iter().map(|check| cell(check).chars().count()).max().unwrap_or(0).max(head.len())
    };
    let (claims, wanted) = (width("claim", |check| &check.claim), width("the rule wants", |check| &check.wanted));
    writeln!(f, "      {:claims$}  {:wanted$}  the token says", "claim", "the rule wants")?;
    for check in &rule.checks {
        let mark = if check.matches { "ok  " } else { "FAIL" };
        let got = check.got.as_deref().unwrap_or("(absent)");
        writeln!(f, " {mark} {:claims$}  {:wanted$}  {got}", check.claim, check.wanted)?;
    }
    match &rule.condition {
        Some(condition) => writeln!(f, " {} {}", if condition.holds { "ok  " } else { "FAIL" }, condition.summary()),
        None => Ok(()),
    }
}
