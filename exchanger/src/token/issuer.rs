//! Whom we trust: one CI's exact URL, where its keys are, and which algorithms it uses.

use super::jwks::Algorithm;
use crate::outbound::{self, Outbound, OutboundError, OutboundOptions};
use ipnet::IpNet;
use jobpass_policy::{Issuer, Profile};
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;

/// Where an issuer's keys are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// Where its discovery document says (OpenID Connect Discovery 1.0 §4), on the issuer's own host or
    /// at the address that its profile names.
    Discovery,
    /// At this address, whatever host it is on. Discovery is not asked.
    Uri(Url),
    /// In this file, which is read again when what was read is half a minute old.
    File(PathBuf),
}

/// How long a fetch of discovery or keys may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// An issuer as the config describes it. [`super::Verifier::new`] checks it.
#[derive(Clone, Debug)]
pub struct TrustedIssuer {
    /// As policy sees it.
    pub policy: Issuer,
    /// The accepted algorithms, a part of the profile's; `None` for all of them.
    pub algorithms: Option<Vec<String>>,
    /// Where its keys are.
    pub keys: KeySource,
    /// Key ids that are not accepted any more, although the issuer may still publish them.
    pub distrusted_keys: Vec<String>,
    /// The networks of an issuer that is not on a public address.
    pub allow_networks: Vec<IpNet>,
    /// The only CA (PEM) that its certificate may come from; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether it may be asked over plain http, on loopback only.
    pub insecure_http: bool,
    /// The https proxy on the way to it.
    pub proxy: Option<Url>,
}

/// Why an issuer cannot be trusted as the config describes it.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The URL is not one that discovery could start from.
    #[error(
        "`url: {0}` is not an issuer's URL: expected https://host[:port][/path] in lower case, \
         without user, query or fragment (http only to loopback, and only with `insecure_http: true`)"
    )]
    Url(String),
    /// The profile's CI has no issuer at such a URL.
    #[error("`url: {url}` is not where an issuer of the profile `{profile}` is")]
    Profile {
        /// The configured URL.
        url: String,
        /// The profile's name.
        profile: String,
    },
    /// An algorithm that the profile does not list or that does not exist here.
    #[error("algorithm `{algorithm}`: the profile's are {allowed}")]
    Algorithm {
        /// The configured algorithm.
        algorithm: String,
        /// The profile's.
        allowed: String,
    },
    /// No algorithm at all.
    #[error("`algorithms` is empty: leave it out to accept the profile's")]
    NoAlgorithm,
    /// Tenants, and a profile that cannot tell tenants apart.
    #[error("`tenants` cannot be checked: tokens of the profile `{0}` do not say whose job it is")]
    Tenants(String),
    /// The address of the keys is not https.
    #[error("`jwks_uri: {0}` has to be https (http only to loopback, and only with `insecure_http: true`)")]
    JwksUri(Url),
    /// No client can be made to fetch the keys with.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

/// An issuer whose tokens are believed once they are verified.
///
/// INVARIANT: made by [`Trust::new`] only, so its URL is canonical and https, or http to loopback where
/// the config says so.
#[derive(Debug)]
pub struct Trust {
    pub(super) policy: Arc<Issuer>,
    pub(super) url: Url,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) origin: Origin,
    pub(super) distrusted_keys: Vec<String>,
}

/// Where keys come from, and the means to get them.
#[derive(Debug)]
pub(super) enum Origin {
    /// A file: no client is needed.
    File(PathBuf),
    /// This address, or where discovery says.
    Web(Outbound, Option<Url>),
}

impl Trust {
    /// Checks what the config says. Nothing is fetched.
    pub(super) fn new(issuer: TrustedIssuer) -> Result<Self, IssuerError> {
        let TrustedIssuer { policy, algorithms, keys, distrusted_keys, allow_networks, ca_file, insecure_http, proxy } =
            issuer;
        let profile = &policy.profile;
        let url = parse_url(&policy.url, insecure_http).ok_or_else(|| IssuerError::Url(policy.url.clone()))?;
        if !profile.url_matches(&policy.url) {
            return Err(IssuerError::Profile { url: policy.url, profile: profile.name().to_owned() });
        }
        if !policy.tenants.is_empty() && profile.tenant_claim().is_none() {
            return Err(IssuerError::Tenants(profile.name().to_owned()));
        }
        if let KeySource::Uri(at) = &keys
            && !is_secure(at, insecure_http)
        {
            return Err(IssuerError::JwksUri(at.clone()));
        }
        let algorithms = algorithms.unwrap_or_else(|| profile.algorithms().to_vec());
        if algorithms.is_empty() {
            return Err(IssuerError::NoAlgorithm);
        }
        let algorithms = algorithms
            .into_iter()
            .map(|name| {
                Algorithm::named(&name)
                    .filter(|_| profile.algorithms().contains(&name))
                    .ok_or_else(|| IssuerError::Algorithm { algorithm: name, allowed: profile.algorithms().join(", ") })
            })
            .collect::<Result<_, _>>()?;
        let options = OutboundOptions {
            allow_networks,
            ca_file,
            insecure_http,
            proxy,
            deadline: DEADLINE,
            ..OutboundOptions::default()
        };
        let origin = match keys {
            KeySource::File(path) => Origin::File(path),
            KeySource::Uri(address) => Origin::Web(Outbound::new(options)?, Some(address)),
            KeySource::Discovery => Origin::Web(Outbound::new(options)?, None),
        };
        Ok(Self { policy: Arc::new(policy), url, algorithms, origin, distrusted_keys })
    }

    /// What its tokens look like.
    #[must_use]
    pub fn profile(&self) -> &Arc<Profile> {
        &self.policy.profile
    }

    /// Whether a token that was verified earlier would still be believed: the issuer is the one at that
    /// URL, and the key is not distrusted by now.
    #[must_use]
    pub fn vouches(&self, url: &str, key_id: &str) -> bool {
        self.policy.url == url && !self.distrusted_keys.iter().any(|distrusted| distrusted == key_id)
    }
}

/// The URL, if it is written as it will be compared.
pub(crate) fn parse_url(text: &str, insecure_http: bool) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let canonical = url.as_str() == text || url.as_str().strip_suffix('/') == Some(text);
    let bare =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    (canonical && bare && is_secure(&url, insecure_http)).then_some(url)
}

/// Whether what is fetched from there can be believed.
pub(crate) fn is_secure(url: &Url, insecure_http: bool) -> bool {
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(host)) => insecure_http && outbound::is_loopback(&host),
        _ => false,
    }
}
