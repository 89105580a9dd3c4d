//! The config file as it is written. Unknown keys are refused; what the program runs on is
//! [`super::Config`].

use crate::{backends::registry::Configured, config::SecretRef, signing::KeyType};
use jobpass_protocol::{BackendName, IssuerName};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU32, path::PathBuf};

/// The whole file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The server's URL as jobs reach it: the audience that their tokens are for, and the issuer of
    /// the tokens that jobpass signs. No path, no slash at the end.
    #[schemars(with = "String")]
    pub public_url: Spanned<String>,
    /// Where jobs are served. Default `127.0.0.1:8420`.
    #[schemars(with = "Option<String>")]
    pub listen: Option<Spanned<SocketAddr>>,
    /// Where `/health`, `/ready` and `/metrics` are served; none without it.
    #[schemars(with = "Option<String>")]
    pub management: Option<Spanned<SocketAddr>>,
    /// Says that a proxy in front ends TLS, so that plain http may listen beyond loopback.
    #[serde(default)]
    pub behind_proxy: bool,
    /// The certificate to serve; reloaded when the files change.
    pub tls: Option<Tls>,
    /// Where the store, the keys and the admin socket are. The server's own, mode 0700.
    pub state_dir: PathBuf,
    /// Who may vouch for jobs.
    #[schemars(with = "BTreeMap<String, Issuer>")]
    pub issuers: BTreeMap<IssuerName, Spanned<Issuer>>,
    /// What makes credentials.
    #[schemars(with = "BTreeMap<String, Configured>")]
    pub backends: BTreeMap<BackendName, Configured>,
    /// Directories of grant files, each loaded as a whole. Relative to this file.
    #[schemars(with = "Vec<String>")]
    pub policies: Vec<Spanned<PathBuf>>,
    /// Where the audit log is streamed to.
    #[serde(default)]
    pub audit: Audit,
    /// Durations and sizes that have good defaults.
    #[serde(default)]
    pub limits: Limits,
    /// The keys that jobpass signs with.
    #[serde(default)]
    pub signing: Signing,
    /// The keys of what leases keep.
    pub sealing: Option<Sealing>,
}

/// What seals what a lease must keep of a credential that can only be taken back with itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sealing {
    /// The keys, by reference: 32 bytes in base64, one a line. The first seals, all open.
    pub keys: SecretRef,
}

/// A certificate chain and its key, PEM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain, leaf first.
    #[schemars(with = "String")]
    pub certificate: Spanned<PathBuf>,
    /// The leaf's private key.
    #[schemars(with = "String")]
    pub key: Spanned<PathBuf>,
}

/// One trusted issuer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What its tokens look like: the name of a profile. Default: the issuer's own name.
    #[schemars(with = "Option<String>")]
    pub profile: Option<Spanned<String>>,
    /// Its exact URL, as in `iss`. Default: the profile's.
    #[schemars(with = "Option<String>")]
    pub url: Option<Spanned<String>>,
    /// Which tenants' jobs may ask at all: immutable ids, as the profile's tenant claim has them.
    #[serde(default)]
    pub tenants: Vec<String>,
    /// Signature algorithms to accept. Default: the profile's.
    #[schemars(with = "Option<Vec<String>>")]
    pub algorithms: Option<Spanned<Vec<String>>>,
    /// Where its keys are, if not where its discovery document says.
    #[schemars(with = "Option<String>")]
    pub jwks_uri: Option<Spanned<String>>,
    /// Its keys from a file, without any network: for air-gapped or unreachable issuers.
    #[schemars(with = "Option<String>")]
    pub jwks_file: Option<Spanned<PathBuf>>,
    /// Private networks in which it may live (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<ipnet::IpNet>,
    /// Its own certificate authority, PEM.
    #[schemars(with = "Option<String>")]
    pub ca_file: Option<Spanned<PathBuf>>,
    /// Keys (`kid`) that are not to be trusted any more, whatever the issuer publishes.
    #[serde(default)]
    pub distrusted_keys: Vec<String>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// Where the audit log is streamed to; the store has it in any case.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// A file of JSON lines, appended to. Reopened when it was moved away.
    pub file: Option<PathBuf>,
    /// Standard output.
    #[serde(default)]
    pub stdout: bool,
    /// A file that holds the newest signed head, to be copied elsewhere: with it `audit verify` finds a cut tail too.
    pub head_file: Option<PathBuf>,
}

/// Durations and sizes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How many exchanges one workload (issuer and `sub`) may ask for in a minute. Default 600; 0: no limit.
    pub exchanges_per_minute: Option<u32>,
    /// How many connections each listener has open at once; others wait. Default 4096.
    pub connections: Option<NonZeroU32>,
    /// How long a connection may take to its first request: TLS handshake and headers. Default `10s`.
    #[schemars(with = "Option<String>")]
    pub first_request: Option<Spanned<String>>,
    /// How long a connection is kept without a request after its last answer. Default `60s`.
    #[schemars(with = "Option<String>")]
    pub idle: Option<Spanned<String>>,
    /// How long ended leases stay listed. Default `7d`.
    #[schemars(with = "Option<String>")]
    pub keep_ended: Option<Spanned<String>>,
    /// How long audit entries that were streamed stay in the store too. Default: for ever.
    #[schemars(with = "Option<String>")]
    pub keep_audit: Option<Spanned<String>>,
    /// Free bytes on the store's disk under which nothing is issued. Default 64 MiB.
    pub reserve_bytes: Option<u64>,
    /// How often policy directories are looked at. Default `10s`.
    #[schemars(with = "Option<String>")]
    pub policy_interval: Option<Spanned<String>>,
    /// How long a stopping server waits for exchanges in flight. Default `30s`.
    #[schemars(with = "Option<String>")]
    pub drain: Option<Spanned<String>>,
}

/// The keys that jobpass signs with.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signing {
    /// A key is kept for each; the first is what tokens are signed with unless a grant says otherwise.
    /// Default: `[ES256]`.
    pub keys: Option<Vec<KeyType>>,
    /// How long a new key is published before it signs. Default `10m`: twice as long as others may keep
    /// the key set.
    #[schemars(with = "Option<String>")]
    pub propagation: Option<Spanned<String>>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_is_current() {
        let text = serde_json::to_string_pretty(&schemars::schema_for!(super::File)).expect("JSON") + "\n";
        let kept = include_str!("../../../docs/schemas/config.json");
        assert!(kept == text, "docs/schemas/config.json is old: write it with `jobpass-exchanger schema`");
    }
}
