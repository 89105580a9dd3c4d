//! Backends: what makes credentials and takes them back.
//!
//! Two traits, so that neither kind can be called the other's way. A *local* backend makes the
//! credential in memory, and the lease is written before it leaves the process. A *remote* backend
//! is asked only with a [`PendingLease`], which only the store can make, and only after its
//! transaction is durable.

mod aws_identity;
pub mod aws_sts;
pub mod azure;
pub mod fixed;
pub mod gcp;
pub mod github_app;
pub mod gitlab;
pub mod http;
pub mod kubernetes;
pub mod limits;
pub mod mysql;
pub mod oauth2;
pub mod oci_registry;
mod pattern;
pub mod postgres;
mod presented;
pub mod rabbitmq;
pub mod redis;
pub mod registry;
pub mod signed_jwt;
mod spec;
pub mod ssh;
#[cfg(test)]
mod testing;
mod token_endpoint;
mod upstream;
pub mod vault;
pub mod x509;

use crate::{
    clock::Timestamp,
    leases::{Lease, Revocability},
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use jobpass_policy::{CredentialSource, Diagnostic, GrantContext, Permit, SpecCompiler};
use jobpass_protocol::{BackendName, Credential, LeaseId};
use limits::{Busy, Limits, Slot};
use std::{any::Any, collections::BTreeMap, sync::Arc, time::Duration};

/// What a grant's `credential:` became after its backend read it.
pub type Spec = Arc<dyn Any + Send + Sync>;

/// What both kinds of backend have.
pub trait Describe: Send + Sync {
    /// The type's name in config, such as `postgres`.
    fn kind(&self) -> &'static str;

    /// What the backend talks to: endpoint, account, database. Leases keep it, so that a backend
    /// that was moved is noticed and its old leases never pass for ended.
    fn identity(&self) -> &str;

    /// Reads and checks a grant's `credential:`. Does no I/O: it also runs offline.
    ///
    /// # Errors
    /// Diagnostics that name the field and the cure.
    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>>;

    /// Reads the files and secrets that the config refers to, so that one that is missing is an error
    /// when the server starts and not when the first job asks. Never called offline.
    ///
    /// # Errors
    /// What cannot be read, and why. Holds no secret.
    fn preflight(&self) -> Result<(), String> {
        Ok(())
    }

    /// By when what the backend hands out, or signs with, has to be changed by its owner, where that is known.
    fn rotation(&self) -> Option<Rotation> {
        None
    }

    /// Finds out what [`Describe::rotation`] says, where another system has to be asked for it.
    fn look(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// What the backend publishes over HTTP as `/<kind>/<name>/<document>`; `None` where it has no
    /// such document.
    fn publication(&self, document: &str) -> Option<Publication> {
        let _ = document;
        None
    }

    /// The token server of a registry, where the backend is one.
    fn token_server(&self) -> Option<&oci_registry::OciRegistry> {
        None
    }

    /// The list of what was taken back before its time. Asked for only where [`Describe::publication`]
    /// says [`Publication::Revocations`].
    ///
    /// # Errors
    /// When it cannot be made.
    fn revocations(&self, document: &str, revoked: &[LeaseId]) -> Result<Document, String> {
        let _ = (document, revoked);
        Err("this backend publishes no revocations".to_owned())
    }
}

/// By when something that jobpass cannot change itself has to be changed.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// What, such as `secret`.
    pub what: String,
    /// By then.
    pub due: Timestamp,
    /// Who has to.
    pub owner: String,
}

impl Rotation {
    /// What there is to say at `now`, if it should have been changed by then.
    #[must_use]
    pub fn overdue(&self, now: Timestamp) -> Option<String> {
        let Self { what, due, owner } = self;
        (*due < now).then(|| format!("its {what} had to be rotated by {due}: {owner} has to rotate it"))
    }
}

/// Something that a backend publishes for the systems that take its credentials.
pub enum Publication {
    /// The same until the config changes, such as a certificate authority's public key.
    Fixed(Result<Document, String>),
    /// What [`Describe::revocations`] makes of the leases whose credentials outlive them.
    Revocations,
}

/// A published document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its media type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// What a mint needs to know besides the permit.
#[derive(Clone, Debug)]
pub struct Order {
    /// The lease that the credential will belong to.
    pub lease: LeaseId,
    /// When the order was made.
    pub at: Timestamp,
    /// When the credential has to stop working.
    pub expires_at: Timestamp,
    /// An SSH public key to be certified, as the job sent it.
    pub public_key: Option<String>,
    /// A PKCS #10 request (PEM) to be certified, as the job sent it.
    pub csr: Option<String>,
}

/// What a remote backend will do, worked out before anything is written or sent.
pub struct Plan {
    /// What revocation will need besides the lease's remote name, and what tells whether an extension would
    /// still be what the grant says; stored in the lease. Never a secret.
    pub object: serde_json::Value,
    /// The rendered spec, handed back to [`RemoteBackend::mint`].
    pub rendered: Spec,
    /// If nobody hears of the outcome, the credential is gone by then at the latest.
    pub worst_expiry: Timestamp,
}

/// A credential that was just made.
#[derive(Debug)]
pub struct Minted {
    /// What the job receives.
    pub credential: Credential,
    /// When it stops working; never after the order's `expires_at` rounded up to what the system can express.
    pub expires_at: Timestamp,
}

/// Why no credential was made. Texts are for operators and hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The claims or the job's own input do not fit the grant's spec. Nothing was sent.
    #[error("{field}: {message}")]
    Unfit {
        /// The field of the spec or the form.
        field: String,
        /// What is wrong with the value, without the value.
        message: String,
    },
    /// The system cannot be reached or is overloaded, and certainly made nothing.
    #[error("{0}")]
    Unavailable(String),
    /// The system certainly made nothing, and asks to be left alone for a while.
    #[error("{message}; it asks to be left alone for {} s", .retry_after.as_secs())]
    Throttled {
        /// What it said.
        message: String,
        /// How long.
        retry_after: Duration,
    },
    /// The system refused, and certainly made nothing.
    #[error("{0}")]
    Refused(String),
    /// The system does not answer, or fails: nobody knows whether it made the credential.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// The system is well, but answered something else than was asked for: nobody knows what it made.
    #[error("{0}")]
    Unclear(String),
}

impl MintError {
    /// Whether the system certainly made nothing.
    #[must_use]
    pub const fn made_nothing(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown(_) | Self::Unclear(_))
    }

    /// The same where something was made before: that is there, whatever became of the rest.
    fn after_making(self) -> Self {
        match self {
            Self::Unavailable(why) | Self::OutcomeUnknown(why) => Self::OutcomeUnknown(why),
            other => Self::Unclear(other.to_string()),
        }
    }

    /// The same where the request could make nothing.
    fn after_reading(self) -> Self {
        match self {
            Self::OutcomeUnknown(why) => Self::Unavailable(why),
            Self::Unclear(why) => Self::Refused(why),
            other => other,
        }
    }
}

/// How a revocation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It was there, and is gone now.
    Gone,
    /// It is not there now. Where nobody knows whether its creation came to anything, it may still come.
    NotFound,
    /// It works no more, and what keeps it from working can go at that time.
    Barred(Timestamp),
}

/// Why a revocation or an extension failed; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RemoteError(pub String);

/// A backend that makes credentials in memory: nothing exists outside this process until the answer
/// goes out. Such a credential cannot be taken back; at most a list says that it should not be taken.
pub trait LocalBackend: Describe {
    /// Makes the credential.
    ///
    /// # Errors
    /// When claims or the job's input do not fit the spec.
    fn mint(&self, permit: &Permit, order: &Order) -> Result<Minted, MintError>;
}

/// A backend that asks another system.
pub trait RemoteBackend: Describe {
    /// How its credentials can be taken back.
    fn revocability(&self) -> Revocability;

    /// How long one mint may take; `mint_by` of the lease comes from it.
    fn deadline(&self) -> Duration;

    /// How long after `mint_by` a late creation may still be on its way inside the system.
    fn settle(&self) -> Duration;

    /// Whether [`RemoteBackend::extend`] can give the same credential a later expiry. It is asked only where
    /// [`RemoteBackend::plan`] comes to the same [`Plan::object`] as when the credential was made.
    fn extends(&self) -> bool {
        false
    }

    /// Renders the spec and works out what will be made. Sends nothing.
    ///
    /// # Errors
    /// When claims or the job's input do not fit the spec.
    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError>;

    /// Makes the credential under the lease's remote name. Safe to be cut off at any point: what it
    /// leaves behind is found by that name.
    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>>;

    /// Takes the credential back: idempotent, and certain when it says so.
    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>>;

    /// Gives the same credential a later expiry, which the lease already holds.
    fn extend<'a>(&'a self, lease: &'a Lease, until: Timestamp) -> BoxFuture<'a, Result<(), RemoteError>> {
        let _ = (lease, until);
        Box::pin(async { Err(RemoteError("this backend cannot extend a credential".to_owned())) })
    }
}

/// One configured backend.
#[derive(Clone)]
pub enum Backend {
    /// Makes credentials in memory.
    Local(Arc<dyn LocalBackend>),
    /// Asks another system.
    Remote(Arc<dyn RemoteBackend>),
}

impl Backend {
    /// What both kinds have.
    #[must_use]
    pub fn describe(&self) -> &dyn Describe {
        match self {
            Self::Local(backend) => &**backend,
            Self::Remote(backend) => &**backend,
        }
    }
}

/// All configured backends by name, each with its limits.
#[derive(Clone, Default)]
pub struct Backends(BTreeMap<BackendName, (Backend, Arc<Limits>)>);

impl Backends {
    /// Collects backends with their limits.
    #[must_use]
    pub fn new(backends: impl IntoIterator<Item = (BackendName, Backend, limits::File)>) -> Self {
        let limited = |(name, backend, file): (BackendName, Backend, limits::File)| {
            let limits = Arc::new(Limits::new(name.as_str(), file));
            (name, (backend, limits))
        };
        Self(backends.into_iter().map(limited).collect())
    }

    /// One backend by its name.
    #[must_use]
    pub fn named(&self, name: &BackendName) -> Option<&Backend> {
        self.0.get(name).map(|(backend, _)| backend)
    }

    /// The limits of a backend that there is.
    #[must_use]
    pub fn limits(&self, name: &BackendName) -> Option<&Arc<Limits>> {
        self.0.get(name).map(|(_, limits)| limits)
    }

    /// A place for one mint or extension at a remote backend; none is needed elsewhere.
    ///
    /// # Errors
    /// [`Busy`]: it is not to be asked now.
    pub async fn admit(&self, name: &BackendName) -> Result<Option<Slot>, Busy> {
        match self.0.get(name) {
            Some((Backend::Remote(_), limits)) => limits.admit().await.map(Some),
            Some((Backend::Local(_), _)) | None => Ok(None),
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&BackendName, &Backend)> {
        self.0.iter().map(|(name, (backend, _))| (name, backend))
    }

    /// Those whose secret or certificate should have been rotated by `now`, each with what there is to say of it.
    pub fn overdue(&self, now: Timestamp) -> impl Iterator<Item = (&BackendName, String)> {
        self.iter().filter_map(move |(name, backend)| Some((name, backend.describe().rotation()?.overdue(now)?)))
    }

    /// Reads the files and secrets that backends need: see [`Describe::preflight`].
    ///
    /// # Errors
    /// The first backend that lacks something.
    pub fn preflight(&self) -> Result<(), registry::BuildError> {
        self.iter().try_for_each(|(name, backend)| {
            let failed = |message| registry::BuildError { name: name.clone(), message };
            backend.describe().preflight().map_err(failed)
        })
    }
}

/// Whether a host is this machine, so that what is sent to it passes nobody.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl SpecCompiler for Backends {
    fn compile(
        &self,
        backend: &BackendName,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        match self.named(backend) {
            Some(backend) => backend.describe().compile_spec(credential, grant),
            None => {
                let known: Vec<&str> = self.0.keys().map(BackendName::as_str).collect();
                let help = format!("the configured backends are: {}", known.join(", "));
                Err(vec![credential.backend_diagnostic(format!("there is no backend `{backend}`"), help)])
            }
        }
    }
}
