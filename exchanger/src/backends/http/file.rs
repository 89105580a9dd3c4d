//! What the config and a grant say of the backend.

use crate::config::{SecretRef, Span};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The API's address, to which paths are added.
    pub base_url: String,
    /// Headers of every request: how the server proves to the API who it is.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderFile>,
    /// Private networks in which the API may live (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// The API's own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
    /// What a grant's `credential.parameters` may set.
    #[serde(default)]
    pub parameters: BTreeMap<String, ParameterFile>,
    /// The request that makes a key.
    pub create: CreateFile,
    /// The request that deletes it. Without one keys end by themselves, so `create` has to say when.
    pub delete: Option<DeleteFile>,
    /// What the job receives: `api_key` (the base URL and the key; the default) or `bearer`.
    #[serde(default)]
    pub credential: Shape,
    /// How long a request may take. Default `10s`.
    pub deadline: Option<Span>,
    /// How long after the deadline a creation may still be on its way inside the API. Default `30s`.
    pub settle: Option<Span>,
}

/// A header: its text, or a secret by reference with what stands before it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderFile {
    /// The text.
    pub value: Option<String>,
    /// Or the secret: `file:/path`, `env:NAME` or `credential:NAME`.
    pub secret: Option<SecretRef>,
    /// What stands before the secret, such as `"Bearer "`.
    #[serde(default)]
    pub prefix: String,
}

/// A parameter that grants fill with a template.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterFile {
    /// Whether it decides what the key can do. Such a parameter takes only stable claims. Default: yes.
    #[serde(default = "yes")]
    pub authority: bool,
    /// The longest value, in bytes. Default 256.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
}

const fn yes() -> bool {
    true
}

const fn default_max_length() -> usize {
    256
}

/// The request that makes a key. Places such as `{{ lease.name }}` may stand in path and body.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFile {
    /// Default `POST`.
    pub method: Option<String>,
    /// The path, beginning with `/`.
    pub path: String,
    /// The JSON body.
    pub body: Option<Value>,
    /// Where the key is in the answer: a JSON pointer (RFC 6901) such as `/data/key`.
    pub secret: String,
    /// Where the answer says when the key expires, if it does: RFC 3339 or epoch seconds.
    pub expires_at: Option<String>,
    /// Where the answer says the key's id, for `{{ answer.id }}` in the deletion.
    pub id: Option<String>,
    /// How long a key lives at most if nobody deletes it, where the request cannot say when it ends.
    pub lifetime: Option<Span>,
}

/// The request that deletes a key: by the lease's name, or by what the answer said (`{{ answer.id }}`,
/// `{{ answer.secret }}`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteFile {
    /// Default `DELETE`.
    pub method: Option<String>,
    /// The path, beginning with `/`.
    pub path: String,
    /// The JSON body.
    pub body: Option<Value>,
    /// Headers of this request alone, instead of those of that name that every request has.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Statuses, besides 2xx, that say that there is no such key. Default `[404, 410]`.
    pub absent: Option<Vec<u16>>,
}

/// What the job receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The API's URL and the key.
    #[default]
    ApiKey,
    /// A bearer token.
    Bearer,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The parameters that the backend declares, as templates. All of them.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}
