//! One line of the audit log: allow-listed fields only.

use super::chain::hex_of_hash;
use crate::{
    clock::Timestamp,
    leases::{Lease, State},
};
use jobpass_policy::{Claims, Recorded};
use jobpass_protocol::{BackendName, DecisionId, GrantName, IssuerName, LeaseId, RuleName};
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A permit: the lease is open (its credential may still fail to come to be).
    Permitted,
    /// A remote credential came to be and is on its way to the job.
    Issued,
    /// A denial by policy, or a spent token.
    Denied,
    /// A remote credential did not come to be.
    Failed,
    /// A lease got a later expiry or a child.
    Renewed,
    /// A lease is to be ended before its time.
    Revoking,
    /// A lease ended.
    Ended,
    /// A credential outlives its lease.
    Outliving,
    /// An admin froze or thawed something.
    Freeze,
    /// A signing key came or went.
    Keys,
    /// Policies were loaded.
    Policies,
    /// The server started or stopped.
    Server,
}

/// Verified claims that the issuer's profile marks as recorded.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum RecordedClaims {
    /// Of a token that is in memory as long as the entry is.
    Of(Recorded<Arc<Claims>>),
    /// As JSON: denials are kept for a while to be folded, and must not keep whole tokens.
    Json(Box<RawValue>),
}

/// One audit entry, before the chain numbers and hashes it.
///
/// Allow-listed by construction: identities, decisions, hashes. There is no field that could hold a
/// token, a credential, a header or a raw body.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// When, in epoch milliseconds.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
    /// The decision that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<DecisionId>,
    /// The lease that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<LeaseId>,
    /// The grant that was asked for, if it is a valid name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantName>,
    /// The rule that permitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// The issuer that vouched for the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<IssuerName>,
    /// The backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendName>,
    /// The verified claims that the issuer's profile marks as recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<RecordedClaims>,
    /// SHA-256 (hex) that names the subject token.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_hex")]
    pub token: Option<[u8; 32]>,
    /// When the credential expires.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_rfc3339_option")]
    pub expires_at: Option<Timestamp>,
    /// The policy set's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// A short code or text: a denial's kind, an ending's reason, a backend's error without secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who acted, where it was an admin (the peer's user id) or the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// A denial's trace, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<RawValue>>,
    /// How many like it were folded into this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The decisions that were, as far as they are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<DecisionId>,
}

impl Entry {
    /// An entry with nothing but time and event.
    #[must_use]
    pub const fn new(at: Timestamp, event: Event) -> Self {
        Self {
            at,
            event,
            decision_id: None,
            lease_id: None,
            grant: None,
            rule: None,
            issuer: None,
            backend: None,
            claims: None,
            token: None,
            expires_at: None,
            policy: None,
            reason: None,
            actor: None,
            trace: None,
            count: None,
            decisions: Vec::new(),
        }
    }

    /// The entry as the chain covers it.
    ///
    /// # Errors
    /// When a part of it is no JSON, which none of ours is.
    pub fn to_json(&self) -> serde_json::Result<String> {
        // Long enough for most, so that it does not grow.
        let mut json = Vec::with_capacity(2048);
        serde_json::to_writer(&mut json, self)?;
        String::from_utf8(json).map_err(serde::ser::Error::custom)
    }

    /// What there is to say of a lease that is on its way out, or ended.
    #[must_use]
    pub fn of_lease(lease: &Lease, at: Timestamp) -> Self {
        let (event, because) = match lease.state() {
            State::Pending { .. } => (Event::Permitted, None),
            State::Active { .. } => (Event::Issued, None),
            State::Revoking { because, .. } => (Event::Revoking, Some(because)),
            State::Outliving { because, .. } => (Event::Outliving, Some(because)),
            State::Ended { how, .. } => (Event::Ended, Some(how)),
        };
        let subject = lease.subject();
        Self {
            lease_id: Some(lease.id()),
            grant: Some(subject.grant.clone()),
            rule: Some(subject.rule.clone()),
            issuer: Some(subject.issuer.clone()),
            backend: Some(lease.placement().backend.clone()),
            reason: because.map(|ending| ending.name().to_owned()),
            ..Self::new(at, event)
        }
    }
}

fn as_hex<S: serde::Serializer>(hash: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    match hash {
        Some(hash) => serializer.serialize_str(hex_of_hash(hash, &mut [0; 64])),
        None => serializer.serialize_none(),
    }
}

fn as_rfc3339<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

fn as_rfc3339_option<S: serde::Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => as_rfc3339(at, serializer),
        None => serializer.serialize_none(),
    }
}
