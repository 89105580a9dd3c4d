//! `fixed`: a static secret that somebody else made, for systems that know nothing better.
//!
//! Nothing is made here, and nothing can be taken back: whoever had the secret has it until its owner
//! rotates it. So one workload at most may have it (one backend names one grant, whose one rule pins one
//! workload), it has an owner and an interval of rotation, and being late is told again and again. A lease
//! ends when a declared hook says that the secret was rotated; without a hook it outlives its job
//! until the day by which the owner has to rotate it.

mod hook;
mod source;
#[cfg(test)]
mod tests;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Rotation, Spec,
    registry::BuildContext,
    spec::{self, SpecReader},
    vault,
};
use crate::{
    clock::{Clock, Timestamp},
    config::{SecretRef, Span},
    leases::{Lease, Revocability},
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use hook::{Hook, HookFile};
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, GrantContext, Permit};
use jobpass_protocol::{Credential, GrantName, LeaseId};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use source::Source;
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use uuid::Uuid;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The one grant that may hand it out.
    #[schemars(with = "String")]
    pub grant: GrantName,
    /// Who rotates it, and answers for it.
    pub owner: String,
    /// Where it is.
    pub source: SourceFile,
    /// How often it has to be rotated, such as `90d`.
    pub rotate_every: Span,
    /// When it was last rotated, but for the hook: a day such as `2026-10-01`, or RFC 3339. Default: when its source
    /// says that this version of it was made. A secret by reference has no such date that could be believed, and
    /// needs this one.
    pub rotated_at: Option<String>,
    /// What happens once it is overdue. Default `warn`.
    #[serde(default)]
    pub overdue: Overdue,
    /// Rotates it when a lease ends.
    pub rotate: Option<HookFile>,
    /// How long its source, or the hook, may take. Default `10s`.
    pub deadline: Option<Span>,
}

/// Where a secret is.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceFile {
    /// By reference: `file:/path`, `env:NAME` or `credential:NAME`.
    Secret(SecretRef),
    /// In AWS Secrets Manager, read with the server's own AWS identity.
    AwsSecretsManager(AwsFile),
    /// In a KV engine (version 2) of Vault or OpenBao, read by login with a token that we sign.
    VaultKv(Box<VaultFile>),
}

/// A secret in AWS Secrets Manager.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsFile {
    /// The region.
    pub region: String,
    /// Its name or ARN.
    pub secret_id: String,
    /// Another endpoint, such as a VPC endpoint's.
    pub endpoint_url: Option<String>,
    /// Private networks in which the endpoint may lie (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// The endpoint's own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// A secret in Vault or OpenBao.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VaultFile {
    /// The server, as the backend `vault` takes it.
    pub server: vault::File,
    /// The role of the auth method.
    pub role: String,
    /// Where the KV engine is mounted. Default `secret`.
    pub mount: Option<String>,
    /// The secret's path in the engine.
    pub path: String,
}

/// What happens with a secret that is overdue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overdue {
    /// It is told: at start, every hour, at every use, in `check-config` and in the metrics.
    #[default]
    Warn,
    /// And nobody gets it until it is rotated. Where a hook rotates it, only while that fails.
    Refuse,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// How the job gets it.
    #[serde(rename = "as")]
    pub shape: Shape,
    /// Which field of a secret that has fields. Not for `as: fields`, which gives all of them.
    pub field: Option<String>,
    /// The API that an `api_key` is for.
    pub url: Option<String>,
}

/// How the job gets a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// As a bearer token.
    Bearer,
    /// As an API's address and key.
    ApiKey,
    /// As the fields that it has: a JSON object, or what Vault keeps.
    Fields,
}

impl File {
    /// The audiences that the backend presents.
    pub(super) fn presents(&self) -> Vec<String> {
        match &self.source {
            SourceFile::VaultKv(file) => vec![file.server.presents().to_owned()],
            SourceFile::Secret(_) | SourceFile::AwsSecretsManager(_) => Vec::new(),
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(10);

/// A backend that hands out one static secret.
pub struct Fixed {
    grant: GrantName,
    owner: String,
    source: Source,
    identity: String,
    rotate_every: Duration,
    rotated_at: Option<Timestamp>,
    /// What the source said when it was last asked, or when the hook last rotated it.
    seen: Mutex<Option<Timestamp>>,
    /// Whether the hook failed when it was last called.
    stuck: AtomicBool,
    overdue: Overdue,
    hook: Option<Hook>,
    deadline: Duration,
    clock: Arc<dyn Clock>,
}

struct Compiled(SpecFile);

impl Fixed {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        if file.owner.trim().is_empty() {
            return Err("owner: say who rotates the secret, such as team-erp@acme.example".to_owned());
        }
        if file.rotate_every.0.is_zero() {
            return Err("rotate_every: expected an interval such as 90d".to_owned());
        }
        let rotated_at = file.rotated_at.as_deref().map(day).transpose()?;
        if rotated_at.is_some_and(|at| at > context.clock.now()) {
            return Err("rotated_at: it is in the future".to_owned());
        }
        if rotated_at.is_none() && matches!(file.source, SourceFile::Secret(_)) {
            return Err("rotated_at: a secret by reference does not say when it was made, so this has to: \
                        the day of its last rotation, such as 2026-10-01"
                .to_owned());
        }
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        let source = Source::build(file.source, deadline, context).map_err(|why| format!("source.{why}"))?;
        let hook = file.rotate.map(|hook| Hook::build(hook, deadline, context));
        Ok(Self {
            grant: file.grant,
            owner: file.owner,
            identity: source.to_string(),
            source,
            rotate_every: file.rotate_every.0,
            rotated_at,
            seen: Mutex::default(),
            stuck: AtomicBool::new(false),
            overdue: file.overdue,
            hook: hook.transpose().map_err(|why| format!("rotate.{why}"))?,
            deadline,
            clock: Arc::clone(&context.clock),
        })
    }

    fn note(&self, made_at: Option<Timestamp>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = made_at;
    }

    /// When nobody can use the secret any more, as far as its owner's word goes: the next rotation. One that is
    /// late already comes within another interval, or nobody knows when.
    fn gone_by(&self, now: Timestamp) -> Timestamp {
        match self.rotation() {
            Some(Rotation { due, .. }) if due > now => due,
            _ => now + self.rotate_every,
        }
    }
}

/// A day, or a moment.
fn day(text: &str) -> Result<Timestamp, String> {
    let at = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let day: jiff::civil::Date = text.parse().ok()?;
        Some(day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    });
    let at = at.ok_or_else(|| "rotated_at: expected a day such as 2026-10-01, or RFC 3339".to_owned())?;
    Ok(Timestamp::from_millis(at.as_millisecond()))
}

impl Describe for Fixed {
    fn kind(&self) -> &'static str {
        "fixed"
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        if *grant.name() != self.grant {
            let message = format!("this secret is for the grant `{}` alone", self.grant);
            reader.refuse(&[], message, "give every workload a secret of its own: a backend of type `fixed` each");
        }
        if let Err((message, help)) = grant.one_workload() {
            reader.refuse(&[], message, format!("a static secret is for one workload: {help}"));
        }
        if file.shape == Shape::Fields && file.field.is_some() {
            reader.refuse(&["field"], "`as: fields` gives all fields", "take it away, or choose another shape");
        }
        if file.shape != Shape::Fields && file.field.is_none() && self.source.has_fields() {
            reader.refuse(&[], "this secret has fields", "name one with `field`, or write `as: fields`");
        }
        if (file.shape == Shape::ApiKey) != file.url.is_some() {
            reader.refuse(&["url"], "`url` belongs to `as: api_key`", "give both, or neither");
        }
        reader.finish(Some(Compiled(file)))
    }

    fn preflight(&self) -> Result<(), String> {
        self.hook.as_ref().map_or(Ok(()), Hook::preflight)?;
        self.source.preflight()
    }

    fn rotation(&self) -> Option<Rotation> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let due = self.rotated_at.max(seen)? + self.rotate_every;
        Some(Rotation { what: "secret".to_owned(), due, owner: self.owner.clone() })
    }

    fn look(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.rotated_at.is_some() {
                return;
            }
            let now = self.clock.now();
            let lease = LeaseId::from_uuid(Uuid::now_v7()); // of nothing: only the login's `jti` is made of it
            let order = Order { lease, at: now, expires_at: now, public_key: None, csr: None };
            match tokio::time::timeout(self.deadline, self.source.read(&self.grant, &order)).await {
                Ok(Ok(held)) => self.note(held.made_at),
                Ok(Err(error)) => {
                    tracing::warn!(source = %self.source, %error, "when a static secret was rotated is not known")
                }
                Err(_) => {
                    tracing::warn!(source = %self.source, "when a static secret was rotated is not known: no answer in time")
                }
            }
        })
    }
}

impl RemoteBackend for Fixed {
    fn revocability(&self) -> Revocability {
        if self.hook.is_some() { Revocability::ByName } else { Revocability::None }
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        Duration::ZERO // reading makes nothing
    }

    /// The secret that the job has already, which the hook leaves as it is until then.
    fn extends(&self) -> bool {
        self.hook.is_some()
    }

    fn extend<'a>(&'a self, _: &'a Lease, _: Timestamp) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let Compiled(file) = spec::of(permit)?;
        let worst_expiry = if self.hook.is_some() { order.expires_at } else { self.gone_by(order.at) };
        Ok(Plan { object: Value::Null, rendered: Arc::new(Compiled(file.clone())), worst_expiry })
    }

    fn mint<'a>(
        &'a self,
        _pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let Compiled(file) = spec::rendered(rendered)?;
            let held = self.source.read(&self.grant, order).await.map_err(MintError::after_reading)?;
            if self.rotated_at.is_none() {
                self.note(held.made_at);
            }
            if let Some(why) = self.rotation().and_then(|rotation| rotation.overdue(order.at)) {
                // Where a hook works, the end of this very lease rotates it.
                let rotates = self.hook.is_some() && !self.stuck.load(Ordering::Relaxed);
                if self.overdue == Overdue::Refuse && !rotates {
                    return Err(spec::unfit("backend", &why));
                }
                tracing::error!(source = %self.source, "{why}");
            }
            let unusable = |why: String| MintError::Refused(format!("{}: {why}", self.source));
            let credential = match file.shape {
                Shape::Fields => Credential::fixed_secret(held.value.fields().map_err(unusable)?),
                Shape::ApiKey | Shape::Bearer => {
                    let text = held.value.one(file.field.as_deref()).map_err(unusable)?;
                    match &file.url {
                        Some(url) => Credential::api_key(url, text),
                        None => Credential::bearer(text),
                    }
                }
            };
            let expires_at =
                if self.hook.is_some() { order.expires_at } else { self.gone_by(order.at).max(order.expires_at) };
            Ok(Minted { credential, expires_at })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let hook = self.hook.as_ref().ok_or_else(|| RemoteError("put `rotate` back into the config".to_owned()))?;
            let called = hook.call(lease).await;
            self.stuck.store(called.is_err(), Ordering::Relaxed);
            called.map_err(RemoteError)?;
            self.note(Some(self.clock.now()));
            Ok(Revoked::Gone)
        })
    }
}
