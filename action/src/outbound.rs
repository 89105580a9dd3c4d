//! Every connection of this program: https (plain http on loopback only), no redirects, proxies and
//! private CAs as the environment names them, a deadline on every request, a cap on every answer.

use crate::env::Env;
use std::{fmt, fs, net::IpAddr, path::Path, sync::OnceLock, time::Duration};
use ureq::{
    Agent, Proxy,
    http::{Uri, uri::Scheme},
    tls::{Certificate, PemItem, RootCerts, TlsConfig},
};
use zeroize::Zeroizing;

const USER_AGENT: &str = concat!("jobpass/", env!("CARGO_PKG_VERSION"));
const MAX_ANSWER_BYTES: u64 = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where systems keep the CAs that their administrators trust: Debian, Fedora, SUSE, Alpine and macOS.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    /// Nothing reached the other side, or the connection broke: worth another attempt.
    #[error("{0}")]
    Network(String),
    /// The other side is not who it must be, or this machine's setup forbids the request.
    #[error("{0}")]
    Setup(String),
}

/// An answer, read whole.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) location: Option<String>,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// An address that a secret may be sent to.
///
/// INVARIANT: https, or http to loopback; a host; no user, query or fragment unless built with them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    uri: Uri,
    loopback: bool,
}

impl Endpoint {
    /// Parses an address. The error is one clause that follows the address's name.
    ///
    /// # Errors
    /// When the text breaks the invariant.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| "is not a URL".to_owned())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err("is not an absolute URL, such as https://jobpass.example".to_owned());
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("must not hold a user or password".to_owned());
        }
        let loopback = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => Ok(Self { uri, loopback }),
            Some(scheme) if *scheme == Scheme::HTTP && loopback => Ok(Self { uri, loopback }),
            _ => Err("must begin with https:// (plain http is for loopback addresses only)".to_owned()),
        }
    }

    /// The address without its query, for messages.
    pub(crate) fn shown(&self) -> String {
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}{}", self.uri.scheme_str().unwrap_or_default(), self.uri.path())
    }

    /// Whether the address has a query.
    pub(crate) fn has_query(&self) -> bool {
        self.uri.query().is_some()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

/// Whom to trust beyond the system's CAs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The jobpass server: `JOBPASS_CA_FILE`, where it is set, holds the only CAs for it.
    Server,
    /// The CI's own endpoints.
    Ci,
}

/// The way out. Agents and CA roots are made at the first request that needs them.
pub(crate) struct Outbound {
    proxy: Option<String>,
    no_proxy: Vec<String>,
    server_ca_file: Option<String>,
    ca_file: Option<String>,
    agents: [OnceLock<Agent>; 4],
}

impl Outbound {
    /// Reads the settings; opens nothing yet.
    pub(crate) fn new(env: &Env) -> Self {
        let no_proxy = env.first(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        Self {
            proxy: env.first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]).map(str::to_owned),
            no_proxy: no_proxy.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect(),
            server_ca_file: env.text("JOBPASS_CA_FILE").map(str::to_owned),
            ca_file: env.text("SSL_CERT_FILE").map(str::to_owned),
            agents: Default::default(),
        }
    }

    /// A GET with a bearer token.
    ///
    /// # Errors
    /// When no answer came; an answer of any status is `Ok`.
    pub(crate) fn fetch(
        &self,
        endpoint: &Endpoint,
        bearer: &str,
        peer: Peer,
        timeout: Duration,
    ) -> Result<Answer, OutboundError> {
        let request = self.agent(endpoint, peer)?.get(endpoint.uri.clone());
        let request = request.header("Authorization", format!("Bearer {bearer}")).header("Accept", "application/json");
        read(request.config().timeout_global(Some(timeout)).build().call(), peer)
    }

    /// A POST of a form.
    ///
    /// # Errors
    /// When no answer came; an answer of any status is `Ok`.
    pub(crate) fn post_form(
        &self,
        endpoint: &Endpoint,
        form: &str,
        peer: Peer,
        timeout: Duration,
    ) -> Result<Answer, OutboundError> {
        let request = self.agent(endpoint, peer)?.post(endpoint.uri.clone());
        let request = request.content_type("application/x-www-form-urlencoded").header("Accept", "application/json");
        read(request.config().timeout_global(Some(timeout)).build().send(form), peer)
    }

    fn agent(&self, endpoint: &Endpoint, peer: Peer) -> Result<&Agent, OutboundError> {
        let cell = &self.agents[usize::from(endpoint.loopback) * 2 + usize::from(peer == Peer::Ci)];
        if let Some(agent) = cell.get() {
            return Ok(agent);
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(USER_AGENT)
            .proxy(if endpoint.loopback { None } else { self.proxy()? });
        if endpoint.uri.scheme() == Some(&Scheme::HTTPS) {
            config = config.tls_config(TlsConfig::builder().root_certs(self.roots(peer)?).build());
        }
        Ok(cell.get_or_init(|| config.build().new_agent()))
    }

    fn proxy(&self) -> Result<Option<Proxy>, OutboundError> {
        let Some(text) = &self.proxy else { return Ok(None) };
        let broken = |_| OutboundError::Setup("HTTPS_PROXY is not the URL of an http or https proxy".to_owned());
        let url = Proxy::new(text).map_err(broken)?;
        let mut proxy = Proxy::builder(url.protocol()).host(url.host()).port(url.port());
        if let Some(username) = url.username() {
            proxy = proxy.username(username);
        }
        if let Some(password) = url.password() {
            proxy = proxy.password(password);
        }
        for entry in &self.no_proxy {
            // curl, Go and Python all take `example.com` to mean its subdomains too.
            proxy = proxy.no_proxy(entry).no_proxy(&format!(".{}", entry.trim_start_matches(['*', '.'])));
        }
        proxy.build().map(Some).map_err(broken)
    }

    fn roots(&self, peer: Peer) -> Result<RootCerts, OutboundError> {
        let named = match (peer, &self.server_ca_file, &self.ca_file) {
            (Peer::Server, Some(path), _) => Some(("JOBPASS_CA_FILE", path)),
            (_, _, Some(path)) => Some(("SSL_CERT_FILE", path)),
            _ => None,
        };
        if let Some((variable, path)) = named {
            return match certificates(Path::new(path)) {
                Ok(roots) if !roots.is_empty() => Ok(RootCerts::from(roots.into_iter())),
                Ok(_) => Err(OutboundError::Setup(format!("{variable}: {path} holds no PEM certificate"))),
                Err(error) => Err(OutboundError::Setup(format!("{variable}: {path} cannot be read: {error}"))),
            };
        }
        let system =
            SYSTEM_BUNDLES.iter().find_map(|path| certificates(Path::new(path)).ok().filter(|c| !c.is_empty()));
        Ok(system.map_or(RootCerts::WebPki, |roots| RootCerts::from(roots.into_iter())))
    }
}

fn certificates(path: &Path) -> std::io::Result<Vec<Certificate<'static>>> {
    let pem = fs::read(path)?;
    Ok(ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect())
}

fn read(sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>, peer: Peer) -> Result<Answer, OutboundError> {
    let mut response = sent.map_err(|error| classify(&error, peer))?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut answer = Answer {
        status: response.status().as_u16(),
        content_type: header("content-type").unwrap_or_default(),
        retry_after: header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs),
        location: header("location"),
        body: Zeroizing::default(),
    };
    let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
    answer.body = Zeroizing::new(body.map_err(|error| classify(&error, peer))?);
    Ok(answer)
}

fn classify(error: &ureq::Error, peer: Peer) -> OutboundError {
    let text = error.to_string();
    if text.contains("certificate") {
        let variable = if peer == Peer::Server { "JOBPASS_CA_FILE" } else { "SSL_CERT_FILE" };
        let cure = format!("\n  if it is of a private CA, {variable} must name a PEM file with that CA");
        return OutboundError::Setup(format!("the TLS certificate is not trusted ({text}){cure}"));
    }
    match error {
        ureq::Error::InvalidProxyUrl | ureq::Error::TlsRequired | ureq::Error::BadUri(_) => OutboundError::Setup(text),
        _ => OutboundError::Network(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_a_secret_may_be_sent_to() {
        for (text, good) in [
            ("https://jobpass.example", true),
            ("https://jobpass.example:8443/base", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080", true),
            ("http://localhost:1", true),
            ("http://jobpass.example", false),
            ("http://127.0.0.1.example", false),
            ("http://localhost.example", false),
            ("https://user:pass@jobpass.example", false),
            ("jobpass.example", false),
            ("/token", false),
            ("ftp://127.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(Endpoint::parse(text).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn proxies() {
        for (proxy, no_proxy, target, bypassed) in [
            ("http://proxy:3128", "", "https://jobpass.example/", Some(false)),
            ("http://u:p@proxy:3128", "other.example", "https://jobpass.example/", Some(false)),
            ("proxy:3128", "jobpass.example", "https://jobpass.example/", Some(true)),
            ("http://proxy:3128", "example", "https://jobpass.example/", Some(true)),
            ("http://proxy:3128", ".example, x", "https://jobpass.example/", Some(true)),
            ("http://proxy:3128", "*", "https://jobpass.example/", Some(true)),
            ("http://proxy:3128", "ample", "https://jobpass.example/", Some(false)),
            ("gopher://proxy", "", "https://jobpass.example/", None),
        ] {
            let outbound = Outbound::new(&Env::from([("HTTPS_PROXY", proxy), ("NO_PROXY", no_proxy)]));
            let found = outbound.proxy().ok().flatten().map(|p| p.is_no_proxy(&target.parse().expect("URI")));
            assert_eq!(found, bypassed, "{proxy} {no_proxy}");
        }
    }
}
