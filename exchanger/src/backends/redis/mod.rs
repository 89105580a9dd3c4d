//! `redis`: an ACL user for each lease, for the grant's keys, channels and commands.
//!
//! The server gets the SHA-256 of a password and never the password. One command makes the user as a
//! whole; one command deletes it, and ends its connections with it. Redis has no expiry for users: the
//! reaper deletes them.

mod link;
#[cfg(test)]
mod tests;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec,
    pattern::{Names, Pattern},
    registry::BuildContext,
    spec,
    spec::SpecReader,
};
use crate::{
    clock::Timestamp,
    config::{SecretRef, Span},
    exchange::hex,
    leases::{Lease, Revocability},
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit};
use jobpass_protocol::Credential;
use link::{Link, Trouble};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The server's host name or address.
    pub host: String,
    /// Its port. Default 6379.
    pub port: Option<u16>,
    /// The ACL user that makes and deletes users. Default: `default`.
    pub user: Option<String>,
    /// Its password, by reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub password: Option<SecretRef>,
    /// Whether the connection uses TLS, with the server's certificate checked. Default: unless it is loopback.
    pub tls: Option<bool>,
    /// The server's own certificate authority, PEM. Default: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The commands and categories that grants may allow. Default: all but those that reach beyond data.
    pub commands: Option<Vec<String>>,
    /// Where jobs find the server, if not where we do.
    #[serde(default)]
    pub advertise: Advertise,
    /// How long a creation may take. Default `5s`.
    pub deadline: Option<Span>,
    /// How long after the deadline one may still be on its way inside the server. Default `10s`.
    pub settle: Option<Span>,
}

/// Where jobs find the server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Its host.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The keys that may be read and written: names, or their beginnings and `*`, as templates over stable claims.
    #[serde(default)]
    pub keys: Vec<String>,
    /// The keys that may be read. Redis 7 and later.
    #[serde(default)]
    pub read_keys: Vec<String>,
    /// The channels of publish and subscribe.
    #[serde(default)]
    pub channels: Vec<String>,
    /// The commands (`get`, `client|id`) and categories (`@read`); one that begins with `-` is taken away again.
    pub commands: Vec<String>,
}

const PORT: u16 = 6379;
const DEADLINE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(10);

/// Commands of the harmless categories that reach beyond a grant's keys and channels: they tell of others' (a client
/// that tracks is told of every key), or change what others run.
const UNRESTRAINED: &[&str] =
    &["acl", "client", "cluster", "dbsize", "function", "memory", "pubsub", "randomkey", "scan", "script"];

/// Commands and categories that reach beyond data: other users, the server itself, other clients.
const PRIVILEGED: &[&str] = &[
    "@admin",
    "@all",
    "@dangerous",
    "bgrewriteaof",
    "bgsave",
    "config",
    "debug",
    "failover",
    "flushall",
    "flushdb",
    "info",
    "keys",
    "lastsave",
    "latency",
    "migrate",
    "module",
    "monitor",
    "pfdebug",
    "pfselftest",
    "psync",
    "replconf",
    "replicaof",
    "restore",
    "restore-asking",
    "role",
    "save",
    "shutdown",
    "slaveof",
    "slowlog",
    "sort",
    "sort_ro",
    "swapdb",
    "sync",
];

/// No space (Redis refuses it in a rule) and nothing that a glob-style pattern would act on.
const NAME: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "-._:/{}@=+,|#".contains(c),
    max_len: 512,
    expected: "letters, digits and -._:/{}@=+,|#, with * at the end or nowhere",
};

/// A backend that makes ACL users.
pub struct Redis {
    identity: String,
    link: Link,
    commands: Option<Vec<String>>,
    job_host: String,
    job_port: u16,
    deadline: Duration,
    settle: Duration,
}

struct Compiled {
    keys: Vec<Pattern>,
    read_keys: Vec<Pattern>,
    channels: Vec<Pattern>,
    commands: Vec<String>,
}

/// The rules of `ACL SETUSER`, without the password.
#[derive(Debug)]
struct Rendered(Vec<String>);

impl Redis {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let port = file.port.unwrap_or(PORT);
        let tls = file.tls.unwrap_or_else(|| !super::is_loopback(&file.host));
        if !tls && file.ca_file.is_some() {
            return Err("ca_file: it is of no use with `tls: false`".to_owned());
        }
        if let Some(name) = file.commands.iter().flatten().find(|name| !is_command(name)) {
            return Err(format!("commands: `{}` is no command and no @category", name.escape_debug()));
        }
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        Ok(Self {
            identity: format!("redis://{}:{port}", file.host),
            link: Link::new(link::Server {
                host: file.host.clone(),
                port,
                user: file.user.unwrap_or_else(|| "default".to_owned()),
                password: file.password.map(|reference| context.secret(reference)),
                env: context.env.clone(),
                tls: tls.then(|| file.ca_file.map(|path| context.path(&path))),
                deadline,
            }),
            commands: file.commands,
            job_host: file.advertise.host.unwrap_or(file.host),
            job_port: file.advertise.port.unwrap_or(port),
            deadline,
            settle: file.settle.map_or(SETTLE, |span| span.0),
        })
    }

    fn may_allow(&self, command: &str) -> Result<(), &'static str> {
        let whole = command.split('|').next().unwrap_or(command);
        match &self.commands {
            Some(known) if !known.iter().any(|name| name == command || name == whole) => {
                Err("this command is not among those that grants may allow")
            }
            None if [PRIVILEGED, UNRESTRAINED].iter().any(|list| list.contains(&command) || list.contains(&whole)) => {
                Err("commands that reach beyond data have to be listed in the backend's `commands`")
            }
            _ => Ok(()),
        }
    }
}

/// A command, a subcommand (`client|id`) or a category (`@read`), as `ACL CAT` writes them.
fn is_command(text: &str) -> bool {
    let name = text.strip_prefix('@').unwrap_or(text);
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "|_-.".contains(c))
}

impl Describe for Redis {
    fn kind(&self) -> &'static str {
        "redis"
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
        if file.commands.is_empty() {
            reader.refuse(&["commands"], "a user without commands can do nothing", "name at least one, such as @read");
        }
        let mut commands = Vec::with_capacity(file.commands.len());
        for (index, text) in file.commands.iter().enumerate() {
            let at = index.to_string();
            let path = ["commands", at.as_str()];
            let (sign, name) = text.strip_prefix('-').map_or(('+', text.as_str()), |name| ('-', name));
            if !is_command(name) {
                reader.refuse(
                    &path,
                    "expected a command or a category",
                    "write get, client|id or @read, in lower case",
                );
            } else if sign == '+'
                && let Err(why) = self.may_allow(name)
            {
                reader.refuse(&path, why, "choose a narrower one, or add it to the backend's config");
            }
            commands.push(format!("{sign}{name}"));
        }
        let keys = Pattern::read_all(&mut reader, "keys", &file.keys, &NAME);
        let read_keys = Pattern::read_all(&mut reader, "read_keys", &file.read_keys, &NAME);
        let channels = Pattern::read_all(&mut reader, "channels", &file.channels, &NAME);
        reader.finish(Some(Compiled { keys, read_keys, channels, commands }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.link.client().map(|_| ())
    }
}

impl RemoteBackend for Redis {
    fn revocability(&self) -> Revocability {
        Revocability::ByName
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        self.settle
    }

    /// A user has no expiry of its own: that of the lease is the only one.
    fn extends(&self) -> bool {
        true
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let compiled: &Compiled = spec::of(permit)?;
        let mut rules = Vec::new();
        for (field, prefix, patterns) in [
            ("keys", "~", &compiled.keys),
            ("read_keys", "%R~", &compiled.read_keys),
            ("channels", "&", &compiled.channels),
        ] {
            let names = Pattern::render_all(field, patterns, permit)?;
            rules.extend(
                names.into_iter().map(|Names { text, open }| format!("{prefix}{text}{}", if open { "*" } else { "" })),
            );
        }
        // Categories hold commands that no key pattern restrains (`KEYS`, `FLUSHALL`, `ACL`): only a grant
        // that names one of them gets it, where the config lets grants name it.
        let (taken, given): (Vec<_>, Vec<_>) =
            compiled.commands.iter().cloned().partition(|rule| rule.starts_with('-'));
        let (categories, single): (Vec<_>, Vec<_>) = given.into_iter().partition(|rule| rule.starts_with("+@"));
        let unrestrained = ["@dangerous", "@admin"]
            .into_iter()
            .filter(|category| !categories.iter().any(|given| given[1..] == **category || given == "+@all"));
        let unrestrained: Vec<String> =
            unrestrained.chain(UNRESTRAINED.iter().copied()).map(|rule| format!("-{rule}")).collect();
        let unrestrained = if categories.is_empty() { Vec::new() } else { unrestrained };
        rules.extend([categories, unrestrained, single, taken].into_iter().flatten());
        let worst_expiry = order.expires_at.max(order.at + self.deadline + self.settle);
        let object = json!({ "user": order.lease.remote_name(), "rights": spec::digest(&json!(rules)) });
        Ok(Plan { object, rendered: Arc::new(Rendered(rules)), worst_expiry })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let Rendered(rules) = spec::rendered(rendered)?;
            let (name, password) = (pending.remote_name(), spec::password()?);
            let mut command = ::redis::cmd("ACL");
            command.arg("SETUSER").arg(&name);
            // All that the server's defaults would give to a new user is taken first.
            command.arg(&["reset", "resetkeys", "resetchannels", "-@all", "on"]);
            command.arg(format!("#{}", hex(&Sha256::digest(password.expose())))).arg(rules);
            match self.link.run::<()>(&command).await {
                Ok(()) => {
                    let credential = Credential::login("redis", &self.job_host, self.job_port, None, &name, password);
                    Ok(Minted { credential, expires_at: order.expires_at })
                }
                Err(Trouble::NotSent(why)) => Err(MintError::Unavailable(why)),
                Err(Trouble::Refused(why)) => Err(MintError::Refused(why)),
                Err(Trouble::Unknown(why)) => Err(MintError::OutcomeUnknown(why)),
            }
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let mut command = ::redis::cmd("ACL");
            // The user's connections are closed by the same command.
            command.arg("DELUSER").arg(lease.id().remote_name());
            let gone: u64 = self.link.run(&command).await?;
            // Somebody may have saved the users while this one was among them: it would come back.
            match self.link.run::<()>(::redis::cmd("ACL").arg("SAVE")).await {
                Err(Trouble::Refused(why)) if why.contains("not configured to use an ACL file") => {}
                saved => saved?,
            }
            Ok(if gone == 0 { Revoked::NotFound } else { Revoked::Gone })
        })
    }

    fn extend<'a>(&'a self, _lease: &'a Lease, _until: Timestamp) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
