//! Where a static secret is read from. Reading makes nothing, so every failure is one after which nothing was made.

use super::{AwsFile, SourceFile, VaultFile};
use crate::{
    backends::{
        MintError, Order,
        aws_identity::AwsIdentity,
        registry::BuildContext,
        upstream::{self, Upstream},
        vault::Vault,
    },
    clock::Timestamp,
    config::{Env, SecretRef},
};
use http::Request;
use jobpass_protocol::{GrantName, Secret};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{fmt, time::Duration};
use url::Url;

/// A secret as its source has it now.
pub(super) struct Held {
    pub(super) value: Material,
    /// When this version of it was made, where the source says so.
    pub(super) made_at: Option<Timestamp>,
}

/// What was read.
pub(super) enum Material {
    Text(Secret),
    Fields(Map<String, Value>),
}

impl Material {
    /// One text: all of it, or the field of this name.
    pub(super) fn one(self, field: Option<&str>) -> Result<Secret, String> {
        let text = match (self, field) {
            (Self::Text(text), None) => text,
            (Self::Fields(_), None) => return Err("the secret has fields, and the grant names none".to_owned()),
            (material, Some(field)) => {
                let found = material.fields()?.find_map(|(name, value)| (name == field).then_some(value));
                found.ok_or_else(|| format!("the secret has no field `{field}`"))?
            }
        };
        if text.is_empty() { Err("the secret is empty".to_owned()) } else { Ok(text) }
    }

    /// Its fields; a text has them where it is a JSON object.
    pub(super) fn fields(self) -> Result<impl Iterator<Item = (String, Secret)>, String> {
        let fields: Map<String, Value> = match self {
            Self::Fields(fields) => fields,
            Self::Text(text) => {
                serde_json::from_str(text.expose()).map_err(|_| "the secret is not a JSON object".to_owned())?
            }
        };
        Ok(fields.into_iter().map(|(name, value)| match value {
            Value::String(text) => (name, Secret::new(text)),
            other => (name, Secret::new(other.to_string())),
        }))
    }
}

/// Where a secret is.
pub(super) enum Source {
    Reference(SecretRef, Env),
    Aws(Box<SecretsManager>),
    Vault(Box<Kv>),
}

pub(super) struct SecretsManager {
    region: String,
    secret_id: String,
    url: Url,
    upstream: Upstream,
    identity: AwsIdentity,
}

pub(super) struct Kv {
    server: Vault,
    address: String,
    role: String,
    mount: String,
    path: String,
}

/// `GetSecretValue` (AWS Secrets Manager API reference).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SecretValue {
    #[serde(default)]
    secret_string: Option<String>,
    /// Seconds since the epoch.
    created_date: f64,
}

impl Source {
    pub(super) fn build(file: SourceFile, deadline: Duration, context: &BuildContext) -> Result<Self, String> {
        Ok(match file {
            SourceFile::Secret(reference) => Self::Reference(context.secret(reference), context.env.clone()),
            SourceFile::AwsSecretsManager(file) => {
                let manager = SecretsManager::build(file, deadline, context);
                Self::Aws(Box::new(manager.map_err(|why| format!("aws_secrets_manager.{why}"))?))
            }
            SourceFile::VaultKv(file) => {
                let kv = Kv::build(*file, context);
                Self::Vault(Box::new(kv.map_err(|why| format!("vault_kv.{why}"))?))
            }
        })
    }

    /// Whether it always has fields.
    pub(super) const fn has_fields(&self) -> bool {
        matches!(self, Self::Vault(_))
    }

    pub(super) fn preflight(&self) -> Result<(), String> {
        match self {
            Self::Reference(reference, env) => reference.read(env).map(drop).map_err(|error| error.to_string()),
            Self::Aws(manager) => manager.upstream.client().map(drop).map_err(|error| error.to_string()),
            Self::Vault(kv) => crate::backends::Describe::preflight(&kv.server),
        }
    }

    /// Reads it.
    pub(super) async fn read(&self, grant: &GrantName, order: &Order) -> Result<Held, MintError> {
        match self {
            Self::Reference(reference, env) => {
                let text = reference.read(env).map_err(|error| MintError::Unavailable(error.to_string()))?;
                Ok(Held { value: Material::Text(text), made_at: None })
            }
            Self::Aws(manager) => manager.read().await,
            Self::Vault(kv) => {
                let Kv { server, role, mount, path, .. } = &**kv;
                let (fields, made_at) = server.read_static(order, grant, role, (mount, path)).await?;
                Ok(Held { value: Material::Fields(fields), made_at: Some(made_at) })
            }
        }
    }
}

/// What a lease remembers of where its credential is.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference, _) => reference.fmt(f),
            Self::Aws(manager) => write!(f, "aws-secrets-manager:{}:{}", manager.region, manager.secret_id),
            Self::Vault(kv) => write!(f, "vault-kv:{}/{}/{}", kv.address, kv.mount, kv.path),
        }
    }
}

impl SecretsManager {
    fn build(file: AwsFile, deadline: Duration, context: &BuildContext) -> Result<Self, String> {
        let default = format!("https://secretsmanager.{}.amazonaws.com", file.region);
        let url = Url::parse(file.endpoint_url.as_deref().unwrap_or(&default));
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline);
        Ok(Self {
            identity: AwsIdentity::new("secretsmanager", &file.region, context),
            region: file.region,
            secret_id: file.secret_id,
            url: url.map_err(|error| format!("endpoint_url: {error}"))?,
            upstream: Upstream::new("AWS Secrets Manager", options, context),
        })
    }

    async fn read(&self) -> Result<Held, MintError> {
        let mut request = Request::post(self.url.as_str())
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "secretsmanager.GetSecretValue")
            .body(json!({ "SecretId": self.secret_id }).to_string().into_bytes())
            .map_err(|error| MintError::Refused(error.to_string()))?;
        self.identity.sign(&mut request).await?;
        let answer = self.upstream.send(request).await.map_err(|error| upstream::unanswered(&error))?;
        self.upstream.made(&answer)?;
        let unusable = |why: &str| MintError::Refused(format!("AWS Secrets Manager: {why}"));
        let read: SecretValue =
            serde_json::from_slice(&answer.body).map_err(|_| unusable("the answer has no secret"))?;
        let text = read.secret_string.map(Secret::new).ok_or_else(|| unusable("the secret is binary, not text"))?;
        #[expect(clippy::cast_possible_truncation, reason = "seconds since the epoch; the fraction does not matter")]
        let made_at = Timestamp::from_secs(read.created_date as i64);
        Ok(Held { value: Material::Text(text), made_at: Some(made_at) })
    }
}

impl Kv {
    fn build(file: VaultFile, context: &BuildContext) -> Result<Self, String> {
        let mount = file.mount.unwrap_or_else(|| "secret".to_owned());
        for (field, path) in [("mount", &mount), ("path", &file.path)] {
            if !Vault::is_path(path) {
                return Err(format!("{field}: expected a path of letters, digits and ._-/"));
            }
        }
        let address = file.server.address.trim_end_matches('/').to_owned();
        let server = Vault::build(file.server, context).map_err(|why| format!("server.{why}"))?;
        Ok(Self { server, address, role: file.role, mount, path: file.path })
    }
}
