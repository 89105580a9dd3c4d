//! The store: what must survive a crash. About a dozen verbs, each one transaction.
//!
//! A verb has happened when it returns `Ok`: its transaction is on disk. A verb that refuses changes
//! nothing. Leases change state by compare-and-set only.

#[cfg(test)]
pub(crate) mod conformance;
mod sqlite;

pub use sqlite::{Claim, SqliteOptions, SqliteStore};

use crate::{
    audit::{Entry, Line, Link},
    clock::Timestamp,
    leases::{Ending, Lease, State, TokenKey},
    sealing::Sealed,
};
use futures_util::future::BoxFuture;
use jobpass_policy::Freezes;
use jobpass_protocol::{BackendName, GrantName, IssuerName, LeaseId};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// SHA-256 of a secret, as it is kept instead of the secret.
pub type Hash = [u8; 32];

/// A verb's answer, once its transaction is durable.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Why a verb did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be read or written now: disk full, read-only, or gone.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
    /// Free space fell under the reserve that is kept for revocations: nothing is issued.
    #[error("free space on the store's disk is under its reserve of {reserve_bytes} bytes")]
    Reserve {
        /// The reserve, in bytes.
        reserve_bytes: u64,
    },
    /// What was read is not what this program writes.
    #[error("the store holds something that cannot be read: {0}")]
    Corrupt(String),
}

/// Who holds a token: written by the first exchange, asked for by every later one.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The token.
    pub token: TokenKey,
    /// Keep the row until then: `exp`, the leeway and one hour more.
    pub keep_until: Timestamp,
    /// Hash of the session secret; `None`: the token works once.
    pub session: Option<Hash>,
    /// Hash of the request id. The same one again says that the first answer was lost.
    pub request: Option<Hash>,
    /// How many exchanges one token is good for.
    pub max_uses: u32,
}

/// Spends a lease handle (RFC 9700 §2.2.2).
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The lease that the handle names.
    pub lease: LeaseId,
    /// Hash of the handle that was presented.
    pub presented: Hash,
    /// Hash of the request id. A spent handle is honoured once more with the same one.
    pub request: Option<Hash>,
}

/// By what right a lease is opened.
#[derive(Clone, Debug)]
pub enum Entitlement {
    /// By a subject token, which is bound to its holder in the same transaction.
    Token(Binding),
    /// By renewing a lease, whose handle is spent in the same transaction.
    Renewal(Rotation),
}

/// A lease to be written, and what goes with it in one transaction.
#[derive(Clone, Debug)]
pub struct Opening {
    /// By what right.
    pub by: Entitlement,
    /// The lease: `Active` for a local backend, `Pending` for a remote one.
    pub lease: Lease,
    /// Hash of the new handle.
    pub handle: Hash,
    /// What the audit log says of it.
    pub entry: Entry,
}

/// Proof that a lease is on disk as `Pending`. Only the store makes one, and a remote backend
/// is asked for nothing without it.
#[derive(Debug)]
pub struct PendingLease {
    lease: Lease,
    kept: Mutex<Option<Sealed>>,
}

impl PendingLease {
    const fn new(lease: Lease) -> Self {
        Self { lease, kept: Mutex::new(None) }
    }

    /// Has the lease keep something from its activation on; the last one counts. A mint that fails after that
    /// is taken back with it.
    pub(crate) fn keep(&self, sealed: Sealed) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(sealed);
    }

    /// What it is to keep.
    #[must_use]
    pub fn kept(&self) -> Option<Sealed> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lease.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The name that the remote object carries.
    #[must_use]
    pub fn remote_name(&self) -> String {
        self.lease.id().remote_name()
    }
}

/// How an opening went.
#[derive(Debug)]
pub enum Opened<T> {
    /// It is durable.
    Yes {
        /// What the caller may go on with.
        value: T,
        /// The leases whose answers were lost; they are being taken back now.
        superseded: Vec<Lease>,
    },
    /// It was refused, and nothing was written (but see [`Refusal::HandleReused`]).
    Refused(Refusal),
}

/// Why a token or a handle gives no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The token is bound to another session, or was used without one.
    Spent,
    /// The token was used as often as it may be.
    UsesExhausted,
    /// An admin revoked a lease of this token.
    SessionClosed,
    /// The answer to one request was asked for too often, or too late.
    RetriesExhausted,
    /// No such handle.
    HandleUnknown,
    /// A spent handle: the whole family is being taken back now.
    HandleReused,
    /// The lease is over.
    LeaseOver,
    /// The family was renewed as often as it may be.
    RenewalsExhausted,
}

/// How many renewals a family may have, those counted that came to nothing: it is taken back as a whole.
pub const MAX_RENEWALS: u32 = 1000;

/// How often, and how long after the first request, one `request_id` may ask again.
pub const MAX_RETRIES: u32 = 3;
/// See [`MAX_RETRIES`].
pub const RETRY_WINDOW: std::time::Duration = std::time::Duration::from_secs(120);

/// Which of a handle's lives was presented.
#[derive(Debug)]
pub enum Held {
    /// No lease has this handle.
    Unknown,
    /// The lease's present handle.
    Current(Lease),
    /// A handle that was spent by a renewal.
    Spent(Lease),
}

/// Which leases a revocation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// The family that this lease belongs to.
    Family(LeaseId),
    /// Just these.
    Leases(Vec<LeaseId>),
}

/// A revocation to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Which leases.
    pub targets: Targets,
    /// Why.
    pub because: Ending,
    /// Whether the tokens of these leases are good for nothing from now on.
    pub close_sessions: bool,
    /// When.
    pub at: Timestamp,
    /// Who, for the audit log.
    pub actor: Option<String>,
}

/// Which leases a listing is about; empty means all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this grant.
    pub grant: Option<GrantName>,
    /// Of this issuer.
    pub issuer: Option<IssuerName>,
    /// Whose stored claims have these values.
    pub claims: Vec<(String, String)>,
    /// Ended ones too.
    pub ended: bool,
    /// Only older ones than this.
    pub before: Option<LeaseId>,
}

/// What repeats of an audit entry within a minute are folded by.
#[derive(Clone, Copy, Debug)]
pub struct Fold {
    /// What repeats have in common.
    pub key: Hash,
    /// Whose entries they are. Who causes too many kinds at a time has the rest of them folded into one, so
    /// that nobody fills the log by asking for something else each time.
    pub of: Hash,
}

impl Fold {
    /// For entries of which there cannot be many kinds.
    #[must_use]
    pub const fn alone(key: Hash) -> Self {
        Self { key, of: key }
    }
}

/// What an admin froze or thawed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreezeTarget {
    /// Everything.
    All,
    /// One issuer.
    Issuer(IssuerName),
    /// One grant.
    Grant(GrantName),
}

/// The verbs.
pub trait Store: Send + Sync {
    /// Writes a local backend's lease `Active`, with its entitlement and audit entry.
    fn open_active(&self, opening: Opening) -> Answer<'_, Opened<()>>;

    /// Writes a remote backend's lease `Pending`, with its entitlement and audit entry.
    fn open_pending(&self, opening: Opening) -> Answer<'_, Opened<PendingLease>>;

    /// Moves a lease from one state to another if it still is in the first; says whether it was. From then
    /// on the lease keeps `kept`, unless it keeps something already, until it ends.
    fn transition(
        &self,
        lease: LeaseId,
        from: State,
        to: State,
        kept: Option<Sealed>,
        entry: Option<Entry>,
    ) -> Answer<'_, bool>;

    /// Spends a handle and gives the same lease a later expiry, before its backend is told.
    fn extend(
        &self,
        rotation: Rotation,
        handle: Hash,
        expires_at: Timestamp,
        entry: Entry,
    ) -> Answer<'_, Opened<Lease>>;

    /// Decides to take leases back; returns them as they are now. Leases already on their way out are
    /// returned too, unchanged; of a family those that ended may be left out. Writes an audit entry for each that changed. A family is one transaction;
    /// a long list of leases is several.
    fn revoke(&self, revocation: Revocation) -> Answer<'_, Vec<Lease>>;

    /// Each backend that has leases which did not end, and when the reaper has to look at its first.
    fn agenda(&self) -> Answer<'_, Vec<(BackendName, Timestamp)>>;

    /// The leases of one backend that the reaper has to look at, most overdue first. By backend, so that
    /// one that hangs hides nothing of the others.
    fn due(&self, backend: BackendName, now: Timestamp, limit: usize) -> Answer<'_, Vec<Lease>>;

    /// Ends some of one backend's leases whose credentials nobody can take back and whose time is
    /// certainly over, with one audit entry. Returns how many; zero when none is left.
    fn expire(&self, backend: BackendName, now: Timestamp) -> Answer<'_, usize>;

    /// The leases of one backend whose credentials outlive them.
    fn outliving(&self, backend: BackendName) -> Answer<'_, Vec<LeaseId>>;

    /// One lease.
    fn lease(&self, id: LeaseId) -> Answer<'_, Option<Lease>>;

    /// The family that a lease belongs to; those that ended may be left out.
    fn family(&self, id: LeaseId) -> Answer<'_, Vec<Lease>>;

    /// The lease of a handle.
    fn held(&self, id: LeaseId, handle: Hash) -> Answer<'_, Held>;

    /// Leases, newest first.
    fn leases(&self, filter: Filter, limit: usize) -> Answer<'_, Vec<Lease>>;

    /// The leases that keep something, in order, after one of them.
    fn sealed(&self, after: Option<LeaseId>, limit: usize) -> Answer<'_, Vec<Lease>>;

    /// Has leases keep the second instead of the first, where they still keep that; returns how many.
    fn reseal(&self, changes: Vec<(LeaseId, Sealed, Sealed)>) -> Answer<'_, usize>;

    /// The value by which a start knows whether it was given the right sealing key.
    fn seal_check(&self) -> Answer<'_, Option<Sealed>>;

    /// See [`Store::seal_check`].
    fn set_seal_check(&self, check: Sealed) -> Answer<'_, ()>;

    /// Writes an audit entry that belongs to no lease. What is folded costs a counter and, when the minute
    /// is over, one entry with a count.
    fn record(&self, entry: Entry, fold: Option<Fold>) -> Answer<'_, ()>;

    /// What is frozen.
    fn freezes(&self) -> Answer<'_, Freezes>;

    /// Freezes (with a reason) or thaws.
    fn freeze(&self, target: FreezeTarget, reason: Option<String>, entry: Entry) -> Answer<'_, ()>;

    /// Forgets some of the tokens that can no longer be replayed, of the leases that ended long ago, and of
    /// the audit entries that every stream wrote long ago. Returns how many rows; zero when none is left.
    fn prune(&self, now: Timestamp) -> Answer<'_, usize>;

    /// The audit log after the entry numbered `after`, in order.
    fn audit(&self, after: u64, limit: usize) -> Answer<'_, Vec<Line>>;

    /// The end of the audit chain, as far as it is durable.
    fn audit_head(&self) -> watch::Receiver<Link>;

    /// The number of the last entry that a stream of the audit log is known to have written.
    fn streamed(&self, stream: String) -> Answer<'_, Option<u64>>;

    /// From now on entries are kept until these streams wrote them, and for no other stream.
    fn keep_for_streams(&self, streams: Vec<&'static str>) -> Answer<'_, ()>;

    /// See [`Store::streamed`].
    fn set_streamed(&self, stream: String, seq: u64) -> Answer<'_, ()>;

    /// Fails when nothing could be issued now: for readiness, and before work that would be for nothing.
    fn check(&self) -> Result<(), StoreError>;

    /// Writes what is buffered and closes; later verbs fail.
    fn close(&self) -> BoxFuture<'_, ()>;
}
