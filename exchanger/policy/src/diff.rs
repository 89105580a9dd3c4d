//! `diff`: what two policy sets decide differently, each with a token that shows it.
//!
//! Every example has been decided under both sets. Where none was found and none is certain not to
//! exist, the answer is "may differ"; never "same".

use crate::{
    decide::{Decision, Freezes, Request, decide},
    document::Mode,
    grant::{Grant, PolicySet, Rule},
    guards::Forbid,
    issuer::Profile,
    pattern::plain,
    reach::words,
    region::{Outcome, Region},
    sample::{NOW, Sample, Sampler},
};
use jobpass_protocol::{GrantName, IssuerName, RuleName};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What two policy sets decide differently.
#[derive(Debug, Default, Serialize)]
pub struct Diff {
    /// Grants that differ, by name.
    pub grants: Vec<GrantDiff>,
    /// What is said of all grants and differs.
    pub may_differ: Vec<String>,
}

/// What two policy sets decide differently of one grant.
#[derive(Debug, Serialize)]
pub struct GrantDiff {
    /// The grant.
    pub grant: GrantName,
    /// What became of it.
    pub status: Status,
    /// What becomes permitted.
    pub permitted: Vec<Change>,
    /// What becomes denied.
    pub denied: Vec<Change>,
    /// What may become permitted or denied: nobody can say.
    pub may_differ: Vec<String>,
    /// What a permit is worth, where that changes.
    pub terms: Vec<Term>,
}

/// What became of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There was none of that name.
    Added,
    /// There is none any more.
    Removed,
    /// It is in both sets.
    Changed,
}

/// Tokens that are decided differently.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The rule that permits, in the set that does.
    pub rule: RuleName,
    /// The issuer of the tokens.
    pub issuer: IssuerName,
    /// All that the rule permits, in words.
    pub words: String,
    /// The claims of the example that matter.
    pub example: BTreeMap<String, Json>,
    /// The example's whole payload.
    pub payload: Map<String, Json>,
    /// Why the other set denies it.
    pub because: String,
}

/// A difference in what a permit is worth.
#[derive(Debug, Serialize)]
pub struct Term {
    /// What it is: `ttl`, `backend`, …
    pub what: &'static str,
    /// What it was.
    pub old: String,
    /// What it is.
    pub new: String,
}

impl Diff {
    /// Whether there is nothing to be said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.may_differ.is_empty()
    }
}

/// Compares two sets.
#[must_use]
pub fn diff(old: &PolicySet, new: &PolicySet) -> Diff {
    let mut names: Vec<&GrantName> = old.grants().chain(new.grants()).map(|grant| grant.name()).collect();
    names.sort();
    names.dedup();
    let mut samplers = Samplers::default();
    let mut grants: Vec<GrantDiff> = names.into_iter().map(|name| grant(old, new, name, &mut samplers)).collect();
    grants.retain(|grant| {
        let quiet = grant.permitted.is_empty() && grant.denied.is_empty();
        !quiet || !grant.may_differ.is_empty() || !grant.terms.is_empty() || grant.status != Status::Changed
    });
    let mut may_differ = Vec::new();
    let (was, is) = (old.guards(), new.guards());
    if format!("{:?}", was.closed) != format!("{:?}", is.closed) {
        may_differ.push("the times differ at which guards let nothing be issued".to_owned());
    }
    if was.deny_overdue != is.deny_overdue {
        may_differ.push("only one of the sets denies what is overdue for review".to_owned());
    }
    Diff { grants, may_differ }
}

fn grant(old: &PolicySet, new: &PolicySet, name: &GrantName, samplers: &mut Samplers) -> GrantDiff {
    let (was, is) = (old.grant(name.as_str()), new.grant(name.as_str()));
    let mut may_differ = Vec::new();
    samplers.renew();
    let permitted = gained(old, new, name, samplers, &mut may_differ, "permitted");
    let denied = gained(new, old, name, samplers, &mut may_differ, "denied");
    let (status, terms) = match (was, is) {
        (Some(was), Some(is)) => {
            if was.review_by != is.review_by && (old.guards().deny_overdue || new.guards().deny_overdue) {
                may_differ.push("the day from which it is denied as overdue for review".to_owned());
            }
            (Status::Changed, terms(was, is))
        }
        (None, _) => (Status::Added, Vec::new()),
        (_, None) => (Status::Removed, Vec::new()),
    };
    GrantDiff { grant: name.clone(), status, permitted, denied, may_differ, terms }
}

/// What `more` permits and `less` does not, rule by rule of `more`.
fn gained(
    less: &PolicySet,
    more: &PolicySet,
    name: &GrantName,
    samplers: &mut Samplers,
    may_differ: &mut Vec<String>,
    becomes: &str,
) -> Vec<Change> {
    let Some(grant) = more.grant(name.as_str()) else { return Vec::new() };
    let forbidden: Vec<Region<'_>> = forbids(more, grant).map(Region::forbidden).collect();
    let other = less.grant(name.as_str());
    let excused: Vec<_> = other.iter().flat_map(|other| forbids(less, other)).map(Region::forbidden).collect();
    let let_in: Vec<_> = other.iter().flat_map(|other| issuing(other)).map(Region::of).collect();
    let mut changes = Vec::new();
    for rule in issuing(grant) {
        let region = Region::of(rule);
        let sampler = samplers.of(&rule.profile);
        let outside: Vec<Region<'_>> = forbidden.iter().chain(&let_in).cloned().collect();
        // What the other set does not let in, and what it lets in but its guards forbid.
        let mut parts = vec![(region.clone(), outside)];
        parts.extend(excused.iter().filter_map(|guard| Some((region.and(guard)?, forbidden.clone()))));
        let mut unsure = false;
        let change = parts.into_iter().find_map(|(inside, outside)| {
            let mut accept = |sample: Sample| change(less, more, name, rule, sample, &inside, &outside);
            match inside.find_outside(&outside, sampler, &mut accept) {
                Outcome::Found(change) => Some(change),
                Outcome::Nothing => None,
                Outcome::Unsure => {
                    unsure = true;
                    None
                }
            }
        });
        match change {
            Some(change) => changes.push(change),
            None if unsure => {
                may_differ.push(format!("rule {}: some of it may become {becomes}: {}", rule.name, words(&region)))
            }
            None => {}
        }
    }
    changes
}

/// The rules by which credentials are issued.
fn issuing(grant: &Grant) -> impl Iterator<Item = &Rule> {
    grant.rules.iter().filter(|rule| grant.mode == Mode::Enforce && rule.mode == Mode::Enforce)
}

/// The guards that forbid something of a grant.
pub(crate) fn forbids<'a>(set: &'a PolicySet, grant: &Grant) -> impl Iterator<Item = &'a Forbid> {
    set.guards().forbid.iter().filter(|forbid| forbid.select.covers(&grant.name, grant.backend.as_str()))
}

/// The example, if the two sets really decide it differently.
fn change(
    less: &PolicySet,
    more: &PolicySet,
    grant: &GrantName,
    rule: &Rule,
    sample: Sample,
    inside: &Region<'_>,
    outside: &[Region<'_>],
) -> Option<Change> {
    let issuer = &rule.issuer;
    let request = Request {
        grant: grant.as_str(),
        issuer,
        claims: &sample.claims,
        scope: None,
        ttl: None,
        at: NOW,
        freezes: &Freezes::NONE,
    };
    let (Decision::Denial(denial), Decision::Permit(_)) = (decide(less, &request), decide(more, &request)) else {
        return None;
    };
    let lines =
        outside.iter().filter(|region| region.issuer == issuer).chain([inside]).flat_map(|region| &region.lines);
    let conditions = outside.iter().chain([inside]).flat_map(|region| &region.conditions);
    let claims = lines.map(|(claim, _)| *claim).chain(conditions.flat_map(|condition| condition.reads()));
    let example = claims.filter_map(|claim| {
        let value = sample.claims.get(claim);
        Some((claim.to_owned(), value.map_or(Some(Json::Null), |value| serde_json::to_value(value).ok())?))
    });
    Some(Change {
        rule: rule.name.clone(),
        issuer: issuer.clone(),
        words: words(&Region::of(rule)),
        example: example.collect(),
        because: crate::explain::reason(&denial),
        payload: sample.payload,
    })
}

fn terms(old: &Grant, new: &Grant) -> Vec<Term> {
    let values = |grant: &Grant| {
        [
            ("backend", grant.backend.to_string()),
            ("credential", grant.credential.clone()),
            ("ttl", format!("{} s", grant.ttl)),
            ("max_lifetime", format!("{} s", grant.max_lifetime)),
            ("scopes", grant.scopes.join(" ")),
            ("mode", format!("{:?}", grant.mode).to_lowercase()),
            ("disclose", format!("{:?}", grant.disclose).to_lowercase()),
        ]
    };
    let pairs = values(old).into_iter().zip(values(new));
    pairs.filter(|(old, new)| old != new).map(|((what, old), (_, new))| Term { what, old, new }).collect()
}

/// A maker of tokens per profile: their automata are worth keeping.
#[derive(Default)]
pub(crate) struct Samplers(Vec<(Arc<Profile>, Sampler)>);

impl Samplers {
    /// Lets their work begin anew.
    fn renew(&mut self) {
        self.0.iter_mut().for_each(|(_, sampler)| sampler.renew());
    }

    pub(crate) fn of(&mut self, profile: &Arc<Profile>) -> &mut Sampler {
        let place = self.0.iter().position(|(known, _)| Arc::ptr_eq(known, profile)).unwrap_or_else(|| {
            self.0.push((Arc::clone(profile), Sampler::of(profile)));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for grant in &self.grants {
            write!(f, "{grant}")?;
        }
        for doubt in &self.may_differ {
            writeln!(f, "all grants\n  ? may differ: {doubt}")?;
        }
        Ok(())
    }
}

impl fmt::Display for GrantDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Added => " (new)",
            Status::Removed => " (removed)",
            Status::Changed => "",
        };
        writeln!(f, "{}{status}", self.grant)?;
        let signs = [("+", "permitted", "old", &self.permitted), ("-", "denied", "new", &self.denied)];
        for (sign, becomes, denying, changes) in signs {
            for change in changes {
                let Change { rule, issuer, words, example, because, .. } = change;
                writeln!(f, "  {sign} becomes {becomes}, some or all of rule {rule}: {words}")?;
                writeln!(f, "      for example a token of {issuer} with")?;
                for (claim, value) in example {
                    let value = if value.is_null() { "(absent)".to_owned() } else { text(value) };
                    writeln!(f, "        {claim} = {value}")?;
                }
                writeln!(f, "      the {denying} policies deny it: {because}")?;
            }
        }
        for doubt in &self.may_differ {
            writeln!(f, "  ? may differ: {doubt}")?;
        }
        for Term { what, old, new } in &self.terms {
            writeln!(f, "  ~ {what}: {old} -> {new}")?;
        }
        Ok(())
    }
}

/// Text without quotes, anything else as JSON.
pub(crate) fn text(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), plain)
}
