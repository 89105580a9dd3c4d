//! Leases: the durable record of each credential, from before it exists until it is certainly gone.
//!
//! States carry their data, transitions are values, and only the store applies them, by
//! compare-and-set. `Ended` never means "probably".

pub mod reaper;
pub mod resealing;

use crate::{clock::Timestamp, sealing::Sealed};
use arcstr::ArcStr;
use jobpass_protocol::{BackendName, GrantName, IssuerName, LeaseId, RuleName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a backend can take a credential back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revocability {
    /// By the name that the lease holds.
    ByName,
    /// Only with the credential itself, which the lease keeps sealed.
    ByToken,
    /// Not at all: it ends by itself.
    None,
}

/// Where a lease stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// The backend may be making the credential.
    Pending {
        /// The backend is not asked after this.
        mint_by: Timestamp,
        /// `mint_by` and the backend's settle time: before then the reaper leaves it alone.
        reap_at: Timestamp,
        /// If the backend made it all the same, it is gone by then.
        worst_expiry: Timestamp,
    },
    /// The job has the credential, or may have.
    Active {
        /// When the credential stops working.
        expires_at: Timestamp,
    },
    /// It is to be taken back, and that is not done yet.
    Revoking {
        /// Attempts that failed or could not be certain.
        attempts: u32,
        /// When to try (again).
        next_at: Timestamp,
        /// Set while nobody knows whether the credential came to be: "not found" before then is not
        /// "gone", because a late creation may still land.
        certain_at: Option<Timestamp>,
        /// Why it is taken back.
        because: Ending,
    },
    /// It cannot be taken back, or nobody knows whether it exists.
    Outliving {
        /// Until when it may work.
        until: Timestamp,
        /// Why it is left to end by itself.
        why: Outlives,
        /// Why its lease is over before it.
        because: Ending,
    },
    /// The credential is certainly gone.
    Ended {
        /// What ended it.
        how: Ending,
        /// Since when that is certain.
        at: Timestamp,
    },
}

/// Why a lease ended, or is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its time was over.
    Expired,
    /// Its holder gave it back.
    Revoked,
    /// An admin took it.
    RevokedByAdmin,
    /// Its answer was lost and the client asked again.
    Superseded,
    /// The credential was never made, or never reached the job.
    Abandoned,
    /// A spent handle was used: somebody else may hold the family.
    HandleReused,
}

impl Ending {
    /// Its name, as people and logs read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::RevokedByAdmin => "revoked_by_admin",
            Self::Superseded => "superseded",
            Self::Abandoned => "abandoned",
            Self::HandleReused => "handle_reused",
        }
    }
}

/// Why a credential outlives its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outlives {
    /// Its system cannot take it back.
    Irrevocable,
    /// Nobody knows whether it came to be, and without its text it cannot be taken back.
    OutcomeUnknown,
}

impl State {
    /// When the reaper has to look at a lease in this state; `None` when never.
    #[must_use]
    pub const fn due_at(&self) -> Option<Timestamp> {
        match self {
            Self::Pending { reap_at, .. } => Some(*reap_at),
            Self::Active { expires_at } => Some(*expires_at),
            Self::Revoking { next_at, .. } => Some(*next_at),
            Self::Outliving { until, .. } => Some(*until),
            Self::Ended { .. } => None,
        }
    }

    /// The state's name, as people and logs read it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Active { .. } => "active",
            Self::Revoking { .. } => "revoking",
            Self::Outliving { .. } => "outliving",
            Self::Ended { .. } => "ended",
        }
    }

    /// The state of a credential that came to be while, or before, it was decided to take it back.
    #[must_use]
    pub const fn take_back_now(now: Timestamp, because: Ending) -> Self {
        Self::Revoking { attempts: 0, next_at: now, certain_at: None, because }
    }

    /// The state after the decision to take the credential back; `None` when that was decided before,
    /// or when there is nothing left to take.
    #[must_use]
    pub fn take_back(&self, revocability: Revocability, now: Timestamp, because: Ending) -> Option<Self> {
        let by_name = revocability == Revocability::ByName;
        match *self {
            Self::Pending { reap_at, worst_expiry, .. } if by_name => {
                Some(Self::Revoking { attempts: 0, next_at: reap_at, certain_at: Some(worst_expiry), because })
            }
            // Without its text nothing can be taken back, and the text is not here yet.
            Self::Pending { worst_expiry, .. } => {
                Some(Self::Outliving { until: worst_expiry, why: Outlives::OutcomeUnknown, because })
            }
            Self::Active { expires_at } if revocability == Revocability::None && expires_at <= now => {
                Some(Self::Ended { how: because, at: now })
            }
            Self::Active { expires_at } if revocability == Revocability::None => {
                Some(Self::Outliving { until: expires_at, why: Outlives::Irrevocable, because })
            }
            Self::Active { .. } => Some(Self::take_back_now(now, because)),
            Self::Revoking { .. } | Self::Outliving { .. } | Self::Ended { .. } => None,
        }
    }
}

/// Names one subject token for as long as it could be replayed (one holder: see ARCHITECTURE.md).
///
/// `expires` is the raw `exp` in epoch seconds; `hash` is SHA-256 over the length-prefixed issuer URL and
/// `jti`, or over the signing input where the issuer has no `jti`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    /// The token's `exp`, in epoch seconds.
    pub expires: i64,
    /// What tells it from every other token.
    pub hash: [u8; 32],
}

/// What a lease is about; fixed when it is opened.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The grant that was asked for.
    pub grant: GrantName,
    /// The rule that permitted it.
    pub rule: RuleName,
    /// Who vouched for the job.
    pub issuer: IssuerName,
    /// The issuer's URL at that time.
    pub issuer_url: String,
    /// All verified claims, as [`jobpass_policy::Claims::to_stored`] wrote them: renewal decides on them again.
    pub claims: ArcStr,
    /// The `kid` of the issuer's key that signed the subject token.
    pub key_id: Arc<str>,
    /// The granted scope.
    pub scope: Vec<String>,
}

/// Where the credential lives; fixed when the lease is opened, so that a moved backend is noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The backend's name in the config.
    pub backend: BackendName,
    /// What the backend talked to then: endpoint, account, database.
    pub identity: String,
    /// How the credential can be taken back.
    pub revocability: Revocability,
    /// What revocation needs besides the remote name, as the backend wrote it. Never a secret.
    pub object: serde_json::Value,
}

/// The durable record of one credential.
///
/// Private fields: [`Lease::draft`] makes a new one, the store reads back what it wrote.
#[derive(Clone, Debug)]
pub struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) family: Family,
    pub(crate) subject: Subject,
    pub(crate) placement: Placement,
    pub(crate) opened_at: Timestamp,
    pub(crate) token: TokenKey,
    pub(crate) policy_digest: Arc<str>,
    pub(crate) state: State,
    pub(crate) sealed: Option<Sealed>,
}

/// The leases that one exchange and its renewals made: a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The first lease of the chain.
    pub root: LeaseId,
    /// The lease that this one renewed.
    pub parent: Option<LeaseId>,
    /// No credential of the family works after this (`max_lifetime`).
    pub ends_at: Timestamp,
    /// How many renewals it had when the lease was opened or last renewed; the store counts them.
    pub renewals: u32,
}

impl Lease {
    /// A lease that is not recorded yet.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "the one maker; every field is needed and none has a default")]
    pub fn draft(
        id: LeaseId,
        family: Family,
        subject: Subject,
        placement: Placement,
        opened_at: Timestamp,
        token: TokenKey,
        policy_digest: Arc<str>,
        state: State,
    ) -> Self {
        Self { id, family, subject, placement, opened_at, token, policy_digest, state, sealed: None }
    }

    /// The lease's id.
    #[must_use]
    pub const fn id(&self) -> LeaseId {
        self.id
    }

    /// The chain that the lease belongs to.
    #[must_use]
    pub const fn family(&self) -> &Family {
        &self.family
    }

    /// What the lease is about.
    #[must_use]
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Where the credential lives.
    #[must_use]
    pub const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// When the lease was opened.
    #[must_use]
    pub const fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// The token that it was exchanged for.
    #[must_use]
    pub const fn token(&self) -> TokenKey {
        self.token
    }

    /// The digest of the policies that permitted it.
    #[must_use]
    pub fn policy_digest(&self) -> &Arc<str> {
        &self.policy_digest
    }

    /// What it keeps, sealed, so that its credential can be taken back ([`Revocability::ByToken`]).
    #[must_use]
    pub const fn sealed(&self) -> Option<&Sealed> {
        self.sealed.as_ref()
    }

    /// Where the lease stands.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }
}
