//! What is told of one request: to the audit log, and to whoever asked.

use super::{Refusal, hash, hex};
use crate::{
    app::App,
    audit::{Entry, Event, RecordedClaims},
    backends::{
        MintError,
        limits::{Busy, Slot},
    },
    clock::Timestamp,
    leases::{Lease, TokenKey},
    store::{Fold, Refusal as Unentitled},
};
use jobpass_policy::{Claims, Denial, DenialKind, Permit};
use jobpass_protocol::{DecisionId, GrantName, IssuerName, LeaseId};
use serde_json::value::to_raw_value;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// What every audit entry of one request has in common.
pub(super) struct Story {
    pub(super) decision: DecisionId,
    pub(super) at: Timestamp,
    pub(super) issuer: IssuerName,
    pub(super) token: TokenKey,
    pub(super) renewed: Option<LeaseId>,
}

impl Story {
    /// An entry with what all have.
    pub(super) fn blank(&self, event: Event) -> Entry {
        let mut entry = Entry::new(self.at, event);
        entry.decision_id = Some(self.decision);
        entry.issuer = Some(self.issuer.clone());
        entry.token = Some(self.token.hash);
        entry.lease_id = self.renewed;
        entry
    }

    /// An entry about a lease that a permit gives.
    pub(super) fn entry(&self, event: Event, permit: &Permit, lease: &Lease, expires_at: Timestamp) -> Entry {
        let mut entry =
            self.blank(if self.renewed.is_some() && event == Event::Issued { Event::Renewed } else { event });
        entry.lease_id = Some(lease.id());
        entry.grant = Some(permit.grant().name().clone());
        entry.rule = Some(permit.rule().clone());
        entry.backend = Some(lease.placement().backend.clone());
        entry.claims = Some(RecordedClaims::Of(Arc::clone(permit.claims()).into_recorded()));
        entry.expires_at = Some(expires_at);
        entry.policy = Some(Arc::clone(lease.policy_digest()));
        entry
    }

    /// A policy's no, audited with its trace; repeats are folded.
    pub(super) async fn deny(&self, app: &App, grant: &str, claims: &Claims, denial: Denial) -> Refusal {
        let mut entry = self.blank(Event::Denied);
        entry.grant = GrantName::parse(grant).ok();
        entry.claims = to_raw_value(&claims.recorded()).ok().map(RecordedClaims::Json);
        entry.policy = Some(Arc::clone(app.policies.current().digest()));
        entry.reason = Some(kind_code(&denial.kind).to_owned());
        entry.trace = to_raw_value(&denial.trace()).ok();
        // Unknown grants are folded as known ones are, or the time that a denial takes would tell them apart.
        let job = Sha256::new()
            .chain_update(self.issuer.as_str())
            .chain_update([0])
            .chain_update(claims.registered().sub.as_deref().unwrap_or_default());
        let kind = job.clone().chain_update([0]).chain_update(grant).chain_update([0]);
        let kind = kind.chain_update(kind_code(&denial.kind));
        app.record(entry, Some(Fold { key: kind.finalize().into(), of: job.finalize().into() })).await;
        app.metrics.denied();
        match denial.kind {
            DenialKind::Scope { .. } => Refusal::Scope { decision: self.decision },
            _ => Refusal::Denied { decision: self.decision, reasons: denial.disclosed() },
        }
    }

    /// A no for which no policy was asked, audited; repeats are folded.
    pub(super) async fn deny_plainly(&self, app: &App, grant: &GrantName, reason: &str) {
        let mut entry = self.blank(Event::Denied);
        entry.grant = Some(grant.clone());
        entry.reason = Some(reason.to_owned());
        let fold = hash(&format!("plainly\n{}\n{}\n{grant}\n{reason}", self.issuer, hex(&self.token.hash)));
        app.record(entry, Some(Fold::alone(fold))).await;
        app.metrics.denied();
    }

    /// A place at the permit's backend before anything is written. Repeats in the audit log are folded.
    pub(super) async fn admit(&self, app: &App, permit: &Permit) -> Result<Option<Slot>, Refusal> {
        let (grant, backend) = (permit.grant().name(), permit.grant().backend());
        match app.backends.admit(backend).await {
            Ok(slot) => Ok(slot),
            Err(busy) => {
                let mut entry = self.blank(Event::Failed);
                entry.grant = Some(grant.clone());
                entry.backend = Some(backend.clone());
                entry.reason = Some(busy.to_string());
                let full = matches!(busy, Busy::Full(_));
                let fold = Fold::alone(hash(&format!("busy\n{backend}\n{grant}\n{full}")));
                app.record(entry, Some(fold)).await;
                app.metrics.exchanged(grant, false);
                Err(Refusal::Busy { retry_after: busy.retry_after(), decision: self.decision })
            }
        }
    }

    /// The policy said yes, and the token or the handle gives no right.
    pub(super) async fn unentitled(&self, app: &App, permit: &Permit, why: Unentitled) -> Refusal {
        let reason = match why {
            Unentitled::Spent => "token_spent",
            Unentitled::UsesExhausted => "token_uses_exhausted",
            Unentitled::SessionClosed => "session_closed",
            Unentitled::RetriesExhausted => "retries_exhausted",
            Unentitled::HandleUnknown => "handle_unknown",
            Unentitled::HandleReused => "handle_reused",
            Unentitled::LeaseOver => "lease_over",
            Unentitled::RenewalsExhausted => "renewals_exhausted",
        };
        self.deny_plainly(app, permit.grant().name(), reason).await;
        match why {
            Unentitled::HandleUnknown | Unentitled::LeaseOver => Refusal::Handle,
            Unentitled::RenewalsExhausted => Refusal::Renewals,
            Unentitled::HandleReused => {
                app.reaper.nudge();
                Refusal::Handle
            }
            _ => Refusal::Denied { decision: self.decision, reasons: Vec::new() },
        }
    }

    /// What a mint's failure is to the job.
    pub(super) fn unfit(&self, error: MintError) -> Refusal {
        match error {
            MintError::Unfit { field, message } => Refusal::Unfit { field, message, decision: self.decision },
            MintError::Throttled { retry_after, .. } => Refusal::Busy { retry_after, decision: self.decision },
            MintError::Unavailable(_)
            | MintError::Refused(_)
            | MintError::OutcomeUnknown(_)
            | MintError::Unclear(_) => Refusal::Backend { decision: self.decision },
        }
    }
}

const fn kind_code(kind: &DenialKind) -> &'static str {
    match kind {
        DenialKind::UnknownGrant => "unknown_grant",
        DenialKind::Frozen { .. } => "frozen",
        DenialKind::NoRule => "no_rule",
        DenialKind::Guard { .. } => "guard",
        DenialKind::Shadow { .. } => "shadow",
        DenialKind::Scope { .. } => "scope",
    }
}
