//! `replay`: recorded exchanges, decided again under other policies.
//!
//! The audit log keeps only the claims that a profile marks as recorded. Where others would decide,
//! the answer is "undecidable", never a guess.

use crate::{
    cases::set,
    claims::Claims,
    decide::{Decision, Freezes, Request, RuleTrace, decide, trace},
    diff::forbids,
    explain::reason,
    grant::{Grant, PolicySet},
    issuer::{Issuer, Profile},
    record::{Record, permits},
};
use jobpass_protocol::IssuerName;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// What came of deciding again.
#[derive(Debug, Default, Serialize)]
pub struct Replay {
    /// How many recorded decisions there were.
    pub decisions: u64,
    /// How many of them come out the same.
    pub same: u64,
    /// Those that do not.
    pub changes: Vec<Replayed>,
    /// Those of which nobody can say.
    pub undecidable: Vec<Replayed>,
}

/// A recorded decision, and what came of deciding it again.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// When it was decided, as recorded.
    pub at: String,
    /// Its id.
    pub decision_id: Option<String>,
    /// The grant.
    pub grant: String,
    /// The issuer of the token.
    pub issuer: String,
    /// What was decided: `permitted by RULE`, `denied`.
    pub was: String,
    /// What the new policies decide.
    pub is: String,
    /// Why.
    pub because: String,
    /// How many recorded decisions like it were folded into one.
    pub count: u64,
}

/// What the policies say to a recorded request.
enum Verdict {
    Permitted(String),
    Denied(String),
    Undecidable(String),
}

/// Decides what was recorded again. Frozen, spent and failed requests are left out: no policy decided them.
#[must_use]
pub fn replay(policies: &PolicySet, issuers: &[Issuer], records: &[Record]) -> Replay {
    let mut replay = Replay::default();
    let is_denial = |record: &&Record| {
        record.event == "denied" && record.trace.is_some() && record.reason.as_deref() != Some("frozen")
    };
    let mut decided: Vec<_> = permits(records).chain(records.iter().filter(is_denial)).collect();
    decided.sort_by_key(|record| record.at);
    for record in decided {
        let was = record.rule.as_ref().filter(|_| record.event != "denied");
        let (Some(grant), Some(issuer), Some(_)) = (&record.grant, &record.issuer, &record.claims) else { continue };
        replay.decisions += record.count;
        let verdict = verdict(policies, issuers, grant, issuer, record);
        let (is, because) = match &verdict {
            Verdict::Permitted(rule) => (format!("permitted by {rule}"), "it matches".to_owned()),
            Verdict::Denied(reason) => ("denied".to_owned(), reason.clone()),
            Verdict::Undecidable(reason) => ("undecidable".to_owned(), reason.clone()),
        };
        let replayed = Replayed {
            at: record.at.to_string(),
            decision_id: record.decision_id.clone(),
            grant: grant.clone(),
            issuer: issuer.clone(),
            was: was.map_or_else(|| "denied".to_owned(), |rule| format!("permitted by {rule}")),
            is,
            because,
            count: record.count,
        };
        match verdict {
            Verdict::Undecidable(_) => replay.undecidable.push(replayed),
            _ if replayed.was == replayed.is => replay.same += record.count,
            _ => replay.changes.push(replayed),
        }
    }
    replay
}

fn verdict(policies: &PolicySet, issuers: &[Issuer], grant: &str, issuer: &str, record: &Record) -> Verdict {
    let Some(issuer) = issuers.iter().find(|known| known.name.as_str() == issuer) else {
        return Verdict::Denied(format!("there is no issuer {issuer}"));
    };
    let Some(grant) = policies.grant(grant) else { return Verdict::Denied("no grant has that name".to_owned()) };
    let recorded = record.claims.clone().unwrap_or_default();
    let claims = match rebuild(&issuer.profile, &recorded, record.at()) {
        Ok(claims) => Arc::new(claims),
        Err(error) => return Verdict::Undecidable(error),
    };
    let request = Request {
        grant: grant.name.as_str(),
        issuer: &issuer.name,
        claims: &claims,
        scope: None,
        ttl: None,
        at: record.at(),
        freezes: &Freezes::NONE,
    };
    let (rules, profile) = (trace(grant, &request).rules, &issuer.profile);
    let missing: Vec<BTreeSet<String>> = rules.iter().filter_map(|rule| missing(rule, profile)).collect();
    if !missing.is_empty() && !missing.iter().any(BTreeSet::is_empty) {
        return unrecorded(missing.into_iter().flatten().collect());
    }
    match decide(policies, &request) {
        Decision::Denial(denial) => Verdict::Denied(reason(&denial)),
        Decision::Permit(permit) => {
            let missing = guarded(policies, grant, &issuer.name, &claims);
            if missing.is_empty() { Verdict::Permitted(permit.rule().to_string()) } else { unrecorded(missing) }
        }
    }
}

fn unrecorded(claims: BTreeSet<String>) -> Verdict {
    let claims: Vec<_> = claims.into_iter().map(|claim| format!("claim {claim} not recorded")).collect();
    Verdict::Undecidable(claims.join(", "))
}

/// The claims that are missing to say whether a rule matches: none, if it certainly does; `None`, if
/// it certainly does not.
fn missing(rule: &RuleTrace, profile: &Profile) -> Option<BTreeSet<String>> {
    let condition = rule.condition.iter();
    let read = || condition.clone().flat_map(|condition| &condition.reads).map(|(claim, _)| claim);
    let certain = |claim: &String| profile.is_recorded(claim);
    let fails = !rule.issuer_matches
        || rule.failed().any(|check| certain(&check.claim))
        || (condition.clone().any(|condition| !condition.holds) && read().all(certain));
    let claims = rule.checks.iter().map(|check| &check.claim).chain(read());
    (!fails).then(|| claims.filter(|claim| !certain(claim)).cloned().collect())
}

/// The claims that are missing to say whether a guard denies what a rule permits.
fn guarded(policies: &PolicySet, grant: &Grant, issuer: &IssuerName, claims: &Claims) -> BTreeSet<String> {
    let certain = |claim: &str| claims.profile().is_recorded(claim);
    let mut missing = BTreeSet::new();
    for forbid in forbids(policies, grant).filter(|forbid| forbid.issuer == *issuer) {
        let spares =
            |check: &crate::grant::Check| certain(&check.claim) && !check.matcher.is_match(claims.held(&check.slot));
        if !forbid.checks.iter().any(spares) {
            let read = forbid.condition.iter().flat_map(|condition| condition.reads());
            let named = forbid.checks.iter().map(|check| &*check.claim).chain(read);
            missing.extend(named.filter(|claim| !certain(claim)).map(str::to_owned));
        }
    }
    missing
}

/// The token as far as it was recorded.
fn rebuild(profile: &Arc<Profile>, recorded: &Map<String, Json>, at: i64) -> Result<Claims, String> {
    let mut payload = Map::new();
    for (claim, value) in [
        ("iss", json!("https://issuer.example")),
        ("aud", json!("https://jobpass.example")),
        ("iat", json!(at)),
        ("exp", json!(at + 300)),
        ("jti", json!("a-token")),
    ] {
        payload.insert(claim.to_owned(), value);
    }
    // A required claim of which nothing was recorded was there all the same, of a form nobody knows.
    let required = profile.required_claims().iter().filter(|claim| !recorded.contains_key(*claim));
    for claim in required {
        set(&mut payload, &profile.path_of(claim), json!("(not recorded)"));
    }
    for (claim, value) in recorded {
        set(&mut payload, &profile.path_of(claim), value.clone());
    }
    Claims::parse(profile, Json::Object(payload).to_string().as_bytes()).map_err(|error| error.to_string())
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Replayed { at, decision_id, grant, issuer, was, is, because, count } in
            self.changes.iter().chain(&self.undecidable)
        {
            let id = decision_id.as_deref().unwrap_or("-");
            writeln!(f, "{at} {id} {grant} for a token of {issuer} ({count}): was {was}, is {is}: {because}")?;
        }
        let changed: u64 = self.changes.iter().map(|change| change.count).sum();
        let undecidable: u64 = self.undecidable.iter().map(|change| change.count).sum();
        let Self { decisions, same, .. } = self;
        writeln!(f, "{decisions} decisions: {same} the same, {changed} changed, {undecidable} undecidable")
    }
}
