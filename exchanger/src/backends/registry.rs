//! Every type of backend, on one page. To add one: a file beside this one, and a line in each list here.

use super::{
    Backend, Backends, aws_sts, azure, fixed, gcp, github_app, gitlab, http, kubernetes, limits, mysql, oauth2,
    oci_registry, postgres, rabbitmq, redis, signed_jwt, ssh, vault, x509,
};
use crate::{
    clock::Clock,
    config::{Env, SecretRef},
    leases::Revocability,
    outbound::OutboundOptions,
    sealing::{Sealing, SealingError},
    signing::Keys,
};
use ipnet::IpNet;
use jobpass_policy::document::GrantFile;
use jobpass_protocol::BackendName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A backend in the server's config: `{ TYPE: { … }, limits: { … } }`.
#[derive(Clone, Debug)]
pub struct Configured {
    /// Its type, and what that type takes.
    pub file: BackendFile,
    /// What every type takes.
    pub limits: limits::File,
}

/// A backend's type, and what that type takes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackendFile {
    /// AWS sessions.
    AwsSts(aws_sts::File),
    /// Access tokens of Microsoft Entra.
    Azure(azure::File),
    /// A static secret that somebody else made.
    Fixed(Box<fixed::File>),
    /// Access tokens of Google Cloud's service accounts.
    Gcp(gcp::File),
    /// Installation tokens of GitHub Apps.
    GithubApp(github_app::File),
    /// Project and group access tokens of GitLab.
    Gitlab(gitlab::File),
    /// Tokens of our own issuer.
    SignedJwt(signed_jwt::File),
    /// Keys of any HTTP API.
    Http(Box<http::File>),
    /// Tokens of a cluster's service accounts.
    Kubernetes(Box<kubernetes::File>),
    /// Access tokens of another authorization server, as its client.
    #[serde(rename = "oauth2_client_credentials")]
    OAuth2ClientCredentials(Box<oauth2::ClientCredentialsFile>),
    /// Access tokens of another authorization server, for a token that we sign.
    TokenExchange(Box<oauth2::TokenExchangeFile>),
    /// Login roles of PostgreSQL.
    Postgres(Box<postgres::File>),
    /// Users of MariaDB and MySQL.
    Mysql(Box<mysql::File>),
    /// ACL users of Redis.
    Redis(Box<redis::File>),
    /// Users of RabbitMQ.
    Rabbitmq(Box<rabbitmq::File>),
    /// SSH user certificates.
    Ssh(ssh::File),
    /// Tokens and dynamic secrets of Vault and OpenBao.
    Vault(Box<vault::File>),
    /// Client certificates.
    X509(x509::File),
    /// Tokens for a container registry.
    OciRegistry(oci_registry::File),
}

impl BackendFile {
    /// The audiences of the tokens that the backend itself presents to a cloud. No job may get a token for one.
    fn presents(&self) -> Vec<String> {
        match self {
            Self::AwsSts(file) => file.presents().map(str::to_owned).into_iter().collect(),
            Self::Azure(file) => vec![file.presents().to_owned()],
            Self::Fixed(file) => file.presents(),
            Self::Gcp(file) => file.presents(),
            Self::OAuth2ClientCredentials(file) => file.presents(),
            Self::TokenExchange(file) => file.presents(),
            Self::Vault(file) => vec![file.presents().to_owned()],
            _ => Vec::new(),
        }
    }
}

// By hand: `serde(flatten)` would lose the places that errors point at.
impl<'de> Deserialize<'de> for Configured {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Block;
        impl<'de> Visitor<'de> for Block {
            type Value = Configured;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a backend: its type, such as `postgres:`, and what that takes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Configured, A::Error> {
                let mut found = None;
                let file = BackendFile::deserialize(MapAccessDeserializer::new(Beside(&mut map, &mut found)))?;
                match Beside(&mut map, &mut found).next_key::<String>()? {
                    None => Ok(Configured { file, limits: found.unwrap_or_default() }),
                    Some(key) => Err(A::Error::unknown_field(&key, &["limits"])), // a backend has one type
                }
            }
        }
        deserializer.deserialize_map(Block)
    }
}

/// A backend's block without `limits`, which is kept aside.
struct Beside<'a, A>(&'a mut A, &'a mut Option<limits::File>);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Beside<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.0.next_key::<String>()? {
            if key != "limits" {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            *self.1 = Some(self.0.next_value()?);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

impl JsonSchema for Configured {
    fn schema_name() -> Cow<'static, str> {
        "Backend".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let limits = generator.subschema_for::<limits::File>();
        let mut schema = BackendFile::json_schema(generator);
        for kind in schema.get_mut("oneOf").and_then(|kinds| kinds.as_array_mut()).into_iter().flatten() {
            kind["properties"]["limits"] = limits.clone().to_value();
        }
        schema
    }
}

/// What backends are built with.
#[derive(Clone)]
pub struct BuildContext {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Our signing keys.
    pub keys: Arc<Keys>,
    /// What seals what a lease must keep.
    pub sealing: Arc<Sealing>,
    /// The server's URL: the issuer of the tokens that we sign.
    pub public_url: String,
    /// Where `env:` and `credential:` secrets come from.
    pub env: Env,
    /// The directory that relative paths start from: that of the config file.
    pub base: PathBuf,
}

impl BuildContext {
    /// A path as it was meant.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// How a backend's requests go out, by what its config says of the network.
    #[must_use]
    pub fn outbound(
        &self,
        allow_networks: Vec<IpNet>,
        ca_file: Option<PathBuf>,
        insecure_http: bool,
        deadline: Duration,
    ) -> OutboundOptions {
        let ca_file = ca_file.map(|path| self.path(&path));
        OutboundOptions { allow_networks, ca_file, insecure_http, deadline, ..OutboundOptions::default() }
    }

    /// A secret's reference as it was meant.
    #[must_use]
    pub fn secret(&self, reference: SecretRef) -> SecretRef {
        reference.within(&self.base)
    }
}

/// The schema of grant files, for editors, with what the types of backends take as `credential`.
#[must_use]
pub fn grant_schema() -> Schema {
    let mut generator = SchemaGenerator::default();
    let mut kinds: Vec<Schema> = Vec::new();
    let mut add = |kind: &str, mut schema: Schema| {
        schema.insert("title".to_owned(), format!("for a backend of type {kind}").into());
        kinds.push(schema);
    };
    add("aws_sts", generator.subschema_for::<aws_sts::SpecFile>());
    add("azure", generator.subschema_for::<azure::SpecFile>());
    add("fixed", generator.subschema_for::<fixed::SpecFile>());
    add("gcp", generator.subschema_for::<gcp::SpecFile>());
    add("github_app", generator.subschema_for::<github_app::SpecFile>());
    add("gitlab", generator.subschema_for::<gitlab::SpecFile>());
    add("http", generator.subschema_for::<http::SpecFile>());
    add("kubernetes", generator.subschema_for::<kubernetes::SpecFile>());
    add("mysql", generator.subschema_for::<mysql::SpecFile>());
    add("oauth2_client_credentials or token_exchange", generator.subschema_for::<oauth2::SpecFile>());
    add("oci_registry", generator.subschema_for::<oci_registry::SpecFile>());
    add("postgres", generator.subschema_for::<postgres::SpecFile>());
    add("rabbitmq", generator.subschema_for::<rabbitmq::SpecFile>());
    add("redis", generator.subschema_for::<redis::SpecFile>());
    add("signed_jwt", generator.subschema_for::<signed_jwt::SpecFile>());
    add("ssh", generator.subschema_for::<ssh::SpecFile>());
    add("vault", generator.subschema_for::<vault::SpecFile>());
    add("x509", generator.subschema_for::<x509::SpecFile>());
    let mut schema = generator.into_root_schema_for::<GrantFile>();
    if let Some(credential) = schema.pointer_mut("/properties/credential").and_then(Value::as_object_mut) {
        credential.remove("type");
        kinds.push(json_schema!({ "type": "null" }));
        credential.insert("anyOf".to_owned(), kinds.into_iter().map(Value::from).collect());
    }
    schema
}

/// Why a backend cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("backend `{name}`: {message}")]
pub struct BuildError {
    /// The backend.
    pub name: BackendName,
    /// The field, what is wrong with it, and the cure.
    pub message: String,
}

/// Builds all backends. Reads no file and no secret, and connects to nothing: see
/// [`Backends::preflight`].
///
/// # Errors
/// The first backend that cannot be built.
pub fn build_all(files: &BTreeMap<BackendName, Configured>, context: &BuildContext) -> Result<Backends, BuildError> {
    let presented: Vec<String> = files.values().flat_map(|configured| configured.file.presents()).collect();
    let mut secrets = BTreeMap::new();
    let built = files.iter().map(|(name, Configured { file, limits })| {
        let backend = build(file.clone(), context, &presented);
        let backend = backend.map_err(|message| BuildError { name: name.clone(), message })?;
        if let BackendFile::Fixed(_) = file
            && let Some(other) = secrets.insert(Path::new(backend.describe().identity()).to_owned(), name)
        {
            let why = "is handed out by backend";
            let message =
                format!("source: the same secret {why} `{other}`, and is for one workload: give each its own");
            return Err(BuildError { name: name.clone(), message });
        }
        let keeps = matches!(&backend, Backend::Remote(remote) if remote.revocability() == Revocability::ByToken);
        if keeps && !context.sealing.configured() {
            let why = "what takes its credentials back is kept sealed, and";
            return Err(BuildError { name: name.clone(), message: format!("{why} {}", SealingError::NoKey) });
        }
        Ok((name.clone(), backend, *limits))
    });
    built.collect::<Result<Vec<_>, _>>().map(Backends::new)
}

fn build(file: BackendFile, context: &BuildContext, presented: &[String]) -> Result<Backend, String> {
    Ok(match file {
        BackendFile::AwsSts(file) => Backend::Remote(Arc::new(aws_sts::AwsSts::build(file, context)?)),
        BackendFile::Azure(file) => Backend::Remote(Arc::new(azure::Azure::build(file, context)?)),
        BackendFile::Fixed(file) => Backend::Remote(Arc::new(fixed::Fixed::build(*file, context)?)),
        BackendFile::Gcp(file) => Backend::Remote(Arc::new(gcp::Gcp::build(file, context)?)),
        BackendFile::Vault(file) => Backend::Remote(Arc::new(vault::Vault::build(*file, context)?)),
        BackendFile::Gitlab(file) => Backend::Remote(Arc::new(gitlab::GitLab::build(file, context)?)),
        BackendFile::GithubApp(file) => Backend::Remote(Arc::new(github_app::GitHubApp::build(file, context)?)),
        BackendFile::SignedJwt(file) => {
            Backend::Local(Arc::new(signed_jwt::SignedJwt::build(file, context, presented)?))
        }
        BackendFile::Http(file) => Backend::Remote(Arc::new(http::Http::build(*file, context)?)),
        BackendFile::Kubernetes(file) => Backend::Remote(Arc::new(kubernetes::Kubernetes::build(*file, context)?)),
        BackendFile::OAuth2ClientCredentials(file) => {
            Backend::Remote(Arc::new(oauth2::OAuth2::client_credentials(*file, context)?))
        }
        BackendFile::TokenExchange(file) => Backend::Remote(Arc::new(oauth2::OAuth2::token_exchange(*file, context)?)),
        BackendFile::Postgres(file) => Backend::Remote(Arc::new(postgres::Postgres::build(*file, context)?)),
        BackendFile::Mysql(file) => Backend::Remote(Arc::new(mysql::Mysql::build(*file, context)?)),
        BackendFile::Redis(file) => Backend::Remote(Arc::new(redis::Redis::build(*file, context)?)),
        BackendFile::Rabbitmq(file) => Backend::Remote(Arc::new(rabbitmq::Rabbitmq::build(*file, context)?)),
        BackendFile::Ssh(file) => Backend::Local(Arc::new(ssh::Ssh::build(file, context)?)),
        BackendFile::X509(file) => Backend::Local(Arc::new(x509::X509::build(file, context)?)),
        BackendFile::OciRegistry(file) => Backend::Local(Arc::new(oci_registry::OciRegistry::build(file, context)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_of_grants_knows_every_type() {
        let schema = grant_schema();
        let kept = include_str!("../../../docs/schemas/grant.json");
        let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
        assert!(text == kept, "write docs/schemas/grant.json anew: jobpass-exchanger policy schema grant");
        let kinds = schemars::schema_for!(BackendFile);
        let kinds = kinds.get("oneOf").and_then(Value::as_array).expect("a list of types");
        for kind in kinds {
            let kind = kind["required"][0].as_str().expect("a name");
            let known = schema.pointer("/properties/credential/anyOf").and_then(Value::as_array).expect("a list");
            let title = |known: &Value| known["title"].as_str().is_some_and(|t| t.split(' ').any(|word| word == kind));
            let known = known.iter().find(|known| title(known)).unwrap_or_else(|| panic!("{kind} is missing"));
            let at = known["$ref"].as_str().expect("a reference").trim_start_matches('#');
            let spec = schema.pointer(at).expect("what it refers to");
            assert!(spec["properties"].is_object() && spec["additionalProperties"] == false, "{kind}: {spec}");
        }
    }

    #[test]
    fn blocks() {
        let jwt = "signed_jwt: { audiences: [\"https://cloud.example\"] }";
        for (block, expected) in [
            (jwt.to_owned(), Ok(None)),
            (format!("{jwt}\nlimits: {{ concurrency: 7 }}"), Ok(Some(7))),
            (format!("limits: {{ concurrency: 7 }}\n{jwt}"), Ok(Some(7))),
            (format!("{jwt}\nlimits: {{ concurrency: 0 }}"), Err("nonzero")),
            (format!("{jwt}\nlimits: {{ rest: soon }}"), Err("expected a duration")),
            (format!("{jwt}\nlimits: {{ breaker: 1 }}"), Err("breaker")),
            (format!("{jwt}\npostgres: {{}}"), Err("unknown field `postgres`, expected one of limits")),
            ("limits: {}".to_owned(), Err("")),
            ("oracle: {}".to_owned(), Err("oracle")),
        ] {
            match (serde_saphyr::from_str::<Configured>(&block), expected) {
                (Ok(read), Ok(concurrency)) => {
                    assert_eq!(read.limits.concurrency.map(std::num::NonZeroU32::get), concurrency, "{block}");
                }
                (Err(error), Err(text)) => {
                    assert!(error.location().is_some(), "{block}: {error}");
                    assert!(error.to_string().contains(text), "{block}: {error}");
                }
                (read, _) => panic!("{block}: {read:?}"),
            }
        }
    }
}
