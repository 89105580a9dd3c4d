//! `rabbitmq`: a user for each lease, with permissions in one virtual host, by the management API.
//!
//! The server gets a salted hash of a password and never the password. A user is made without a right
//! and then given its rights; when one of them is refused it is deleted again. RabbitMQ has no expiry for
//! users: the reaper deletes them, and RabbitMQ closes a deleted user's connections.

mod api;
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
    leases::{Lease, Revocability},
    store::PendingLease,
};
use api::{Api, Trouble};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::Method;
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::Credential;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The management API's address, such as `https://rabbit.acme.example:15671`.
    pub management_url: String,
    /// The user that makes and deletes users. RabbitMQ allows that to administrators only.
    pub user: String,
    /// Its password, by reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub password: SecretRef,
    /// Private networks in which the API may live (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// The API's own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
    /// The virtual hosts that grants may name. Default: any.
    pub vhosts: Option<Vec<String>>,
    /// Where jobs find the broker.
    pub advertise: Advertise,
    /// How long a creation may take. Default `10s`.
    pub deadline: Option<Span>,
    /// How long after the deadline one may still be on its way inside the server. Default `30s`.
    pub settle: Option<Span>,
}

/// Where jobs find the broker.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Its host.
    pub host: String,
    /// Its port. Default 5671, AMQP over TLS.
    pub port: Option<u16>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The virtual host, a template over stable claims.
    pub vhost: String,
    /// The queues and exchanges that may be made and deleted: names, or their beginnings and `*`, as
    /// templates over stable claims.
    #[serde(default)]
    pub configure: Vec<String>,
    /// Those that may be written to. The default exchange is `amq.default`.
    #[serde(default)]
    pub write: Vec<String>,
    /// Those that may be read from.
    #[serde(default)]
    pub read: Vec<String>,
    /// What the user may see of the server's management.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// How many connections it may have at once. Default 5.
    pub connection_limit: Option<u16>,
}

/// RabbitMQ's own tags, but for those with which a user could make users and policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tag {
    /// Sees its own virtual hosts.
    Management,
    /// Sees all virtual hosts, connections and nodes.
    Monitoring,
}

const AMQPS_PORT: u16 = 5671;
const CONNECTION_LIMIT: u16 = 5;
const DEADLINE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(30);

/// What is put into a regular expression, where all of it is quoted; so that people can read it, no more than this.
const NAME: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "-._:/{}@=+,|#".contains(c),
    max_len: 255,
    expected: "letters, digits and -._:/{}@=+,|#, with * at the end or nowhere",
};

const VHOST: FieldRules =
    FieldRules { authority: true, allowed: |c| !c.is_control(), max_len: 255, expected: "no control characters" };

/// A backend that makes users of a broker.
pub struct Rabbitmq {
    identity: String,
    api: Api,
    vhosts: Option<Vec<String>>,
    advertise: Advertise,
    deadline: Duration,
    settle: Duration,
}

struct Compiled {
    vhost: Template,
    permissions: [(&'static str, Vec<Pattern>); 3],
    tags: Vec<Tag>,
    connection_limit: u16,
}

struct Rendered {
    vhost: String,
    permissions: Value,
    tags: String,
    connection_limit: u16,
}

impl Rabbitmq {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let url = Url::parse(&file.management_url).map_err(|error| format!("management_url: {error}"))?;
        if url.cannot_be_a_base() || url.query().is_some() || !url.username().is_empty() {
            return Err("management_url: expected https://host:15671, without query or user".to_owned());
        }
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline);
        Ok(Self {
            identity: url.to_string(),
            api: Api::new(
                url,
                file.user,
                context.secret(file.password),
                context.env.clone(),
                options,
                Arc::clone(&context.clock),
            ),
            vhosts: file.vhosts,
            advertise: file.advertise,
            deadline,
            settle: file.settle.map_or(SETTLE, |span| span.0),
        })
    }

    fn may_name(&self, vhost: &str) -> Result<(), &'static str> {
        match &self.vhosts {
            Some(known) if !known.iter().any(|name| name == vhost) => {
                Err("this virtual host is not among those that grants may name")
            }
            // In a URL's path the two dots mean something else.
            _ if matches!(vhost, "" | "." | "..") => Err("expected a virtual host"),
            _ => Ok(()),
        }
    }

    async fn make(&self, name: &str, order: &Order, rendered: &Rendered) -> Result<Minted, MintError> {
        let password = spec::password()?;
        let salt = spec::random::<4>()?;
        let user = json!({
            "password_hash": password_hash(*salt, password.expose()),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": rendered.tags,
        });
        self.api.call(Method::PUT, &["users", name], Some(&user)).await?;
        let limit = json!({ "value": rendered.connection_limit });
        for (path, body) in [
            (&["user-limits", name, "max-connections"], &limit),
            (&["permissions", rendered.vhost.as_str(), name], &rendered.permissions),
        ] {
            if let Err(trouble) = self.api.call(Method::PUT, path, Some(body)).await {
                let unknown = |trouble: Trouble| MintError::from(trouble).after_making();
                let Trouble::Refused(_, why) = trouble else { return Err(unknown(trouble)) };
                // Certainly nothing is left of it, or nobody knows.
                self.api.call(Method::DELETE, &["users", name], None).await.map_err(unknown)?;
                return Err(MintError::Refused(why));
            }
        }
        let port = self.advertise.port.unwrap_or(AMQPS_PORT);
        let place = Some(("vhost", rendered.vhost.as_str()));
        let credential = Credential::login("rabbitmq", &self.advertise.host, port, place, name, password);
        Ok(Minted { credential, expires_at: order.expires_at })
    }
}

impl From<Trouble> for MintError {
    /// Before anything was made.
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotSent(why) => Self::Unavailable(why),
            Trouble::Refused(_, why) => Self::Refused(why),
            Trouble::Open(error) => error,
        }
    }
}

/// RabbitMQ, "Credentials and Passwords": base64 of a salt of 32 bits and SHA-256 of salt and password.
fn password_hash(salt: [u8; 4], password: &str) -> String {
    let hash = Sha256::new().chain_update(salt).chain_update(password).finalize();
    STANDARD.encode([&salt[..], &hash[..]].concat())
}

/// A regular expression (PCRE) for these names and no other; `^$` is RabbitMQ's own for none.
fn expression(names: &[Names]) -> String {
    let one = |Names { text, open }: &Names| {
        let mut quoted = String::new();
        for c in text.chars() {
            if !c.is_ascii_alphanumeric() && c.is_ascii() {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted + if *open { ".*" } else { "" }
    };
    let all: Vec<String> = names.iter().map(one).collect();
    // `$` would also match before a newline at the end.
    if all.is_empty() { "^$".to_owned() } else { format!("\\A(?:{})\\z", all.join("|")) }
}

impl Describe for Rabbitmq {
    fn kind(&self) -> &'static str {
        "rabbitmq"
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
        let vhost = reader.template(&["vhost"], &file.vhost, &VHOST);
        if vhost.as_ref().is_some_and(|template| template.claims().next().is_none())
            && let Err(why) = self.may_name(&file.vhost)
        {
            reader.refuse(&["vhost"], why, "choose one of the virtual hosts in the backend's config");
        }
        if file.configure.is_empty() && file.write.is_empty() && file.read.is_empty() {
            reader.refuse(&[], "a user without permissions can do nothing", "give `configure`, `write` or `read`");
        }
        if file.connection_limit == Some(0) {
            reader.refuse(&["connection_limit"], "nobody could connect", "allow at least one connection");
        }
        let permissions = [("configure", &file.configure), ("write", &file.write), ("read", &file.read)]
            .map(|(field, texts)| (field, Pattern::read_all(&mut reader, field, texts, &NAME)));
        let connection_limit = file.connection_limit.unwrap_or(CONNECTION_LIMIT);
        reader.finish(vhost.map(|vhost| Compiled { vhost, permissions, tags: file.tags, connection_limit }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.api.check()
    }
}

impl RemoteBackend for Rabbitmq {
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
        let vhost = spec::render("credential.vhost", &compiled.vhost, permit)?;
        self.may_name(&vhost).map_err(|why| spec::unfit("credential.vhost", &why))?;
        let mut permissions = serde_json::Map::new();
        for (field, patterns) in &compiled.permissions {
            let names = Pattern::render_all(field, patterns, permit)?;
            permissions.insert((*field).to_owned(), expression(&names).into());
        }
        // Tags of nobody's making mean nothing to RabbitMQ: they tell people whose user it is.
        let mut tags = vec![
            "jobpass".to_owned(),
            format!("lease:{}", order.lease),
            format!("grant:{}", permit.grant().name()),
            format!("issuer:{}", permit.issuer()),
        ];
        tags.extend(compiled.tags.iter().map(|tag| match tag {
            Tag::Management => "management".to_owned(),
            Tag::Monitoring => "monitoring".to_owned(),
        }));
        let rendered = Rendered {
            vhost,
            permissions: permissions.into(),
            tags: tags.join(","),
            connection_limit: compiled.connection_limit,
        };
        let worst_expiry = order.expires_at.max(order.at + self.deadline + self.settle);
        let rights =
            spec::digest(&json!([rendered.vhost, rendered.permissions, rendered.tags, rendered.connection_limit]));
        let object = json!({ "user": order.lease.remote_name(), "rights": rights });
        Ok(Plan { object, rendered: Arc::new(rendered), worst_expiry })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move { self.make(&pending.remote_name(), order, spec::rendered(rendered)?).await })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            match self.api.call(Method::DELETE, &["users", &lease.id().remote_name()], None).await {
                Ok(()) => Ok(Revoked::Gone),
                Err(Trouble::Refused(404, _)) => Ok(Revoked::NotFound),
                Err(trouble) => Err(trouble.into()),
            }
        })
    }

    fn extend<'a>(&'a self, _lease: &'a Lease, _until: Timestamp) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
