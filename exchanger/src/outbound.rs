//! The one place that makes HTTP clients.
//!
//! A client made here reaches public addresses only, unless its options name more: names are filtered
//! when they are resolved, IP literals before a request is sent (reqwest does not ask the resolver
//! about those). It follows no redirect, takes no proxy from the environment, reads no more than it was
//! told to, and never waits without a deadline. It must never put a URL's query, a header or a body
//! into an error.

use crate::clock::Timestamp;
use http::{HeaderMap, Request, StatusCode};
use ipnet::IpNet;
use reqwest::{
    Certificate, Client, Proxy,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect, retry,
};
use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use url::{Host, Url};

/// No connection takes longer to make than this, whatever the deadline of the whole request is.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

const USER_AGENT: &str = concat!("jobpass-exchanger/", env!("CARGO_PKG_VERSION"));

/// What one client may do.
#[derive(Clone, Debug)]
pub struct OutboundOptions {
    /// Networks that may be reached although they are not public.
    pub allow_networks: Vec<IpNet>,
    /// The only CA certificates (PEM) that are trusted; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether plain http may be used, to loopback addresses and to `localhost` only.
    pub insecure_http: bool,
    /// The proxy for https, as an http URL. It resolves the names, so it has to filter what they resolve to.
    pub proxy: Option<Url>,
    /// How long one request may take, from the first packet to the last byte of the answer.
    pub deadline: Duration,
    /// The largest body that is read, in bytes.
    pub max_body: usize,
}

impl Default for OutboundOptions {
    fn default() -> Self {
        Self {
            allow_networks: Vec::new(),
            ca_file: None,
            insecure_http: false,
            proxy: None,
            deadline: Duration::from_secs(10),
            max_body: 256 * 1024,
        }
    }
}

/// Why no answer was had. Names hosts and addresses, and nothing else of the request.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The CA file cannot be read, or holds no certificate.
    #[error("cannot use the CA file {path}: {why}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The client cannot be made with these options.
    #[error("cannot set up an HTTP client: {0}")]
    Setup(String),
    /// Not a URL with a host.
    #[error("not an absolute URL with a host")]
    Url,
    /// A scheme that the options do not allow.
    #[error("{0}: only https is allowed (http only to loopback, and only with `insecure_http: true`)")]
    Scheme(String),
    /// The host is, or resolves to, addresses that the options do not allow.
    #[error("{host} is at {address}, which is not a public address: name its network in `allow_networks` to reach it")]
    Address {
        /// The host as it was asked for.
        host: String,
        /// The first refused address.
        address: IpAddr,
    },
    /// No connection could be made.
    #[error("cannot connect to {host}: {why}")]
    Connect {
        /// The host as it was asked for.
        host: String,
        /// The chain of causes.
        why: String,
    },
    /// No complete answer in time.
    #[error("{host} did not answer in time")]
    Deadline {
        /// The host as it was asked for.
        host: String,
    },
    /// The answer is larger than the options allow.
    #[error("{host} answered with more than {max} bytes")]
    TooLarge {
        /// The host as it was asked for.
        host: String,
        /// The limit.
        max: usize,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("the connection to {host} failed: {why}")]
    Broken {
        /// The host as it was asked for.
        host: String,
        /// The chain of causes.
        why: String,
    },
}

impl OutboundError {
    /// Whether the request certainly never reached the other side, so that it cannot have had an effect.
    #[must_use]
    pub const fn never_sent(&self) -> bool {
        match self {
            Self::CaFile { .. }
            | Self::Setup(_)
            | Self::Url
            | Self::Scheme(_)
            | Self::Address { .. }
            | Self::Connect { .. } => true,
            Self::Deadline { .. } | Self::TooLarge { .. } | Self::Broken { .. } => false,
        }
    }
}

/// A complete answer, of whatever status: a redirect is an answer, and is not followed.
pub struct Fetched {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; it may hold a credential.
    pub body: Vec<u8>,
}

impl Fetched {
    /// How long the other side asks to be left alone (`Retry-After`, RFC 9110 §10.2.3); `now` is for an answer
    /// that names a date.
    #[must_use]
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(Timestamp::from_millis(at.as_millisecond()).since(now))
    }
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("status", &self.status).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// An HTTP client that cannot be talked into reaching what it must not.
#[derive(Clone, Debug)]
pub struct Outbound {
    client: Client,
    filter: Arc<Filter>,
    max_body: usize,
}

impl Outbound {
    /// Makes a client.
    ///
    /// # Errors
    /// [`OutboundError::CaFile`] and [`OutboundError::Setup`].
    #[expect(clippy::disallowed_methods, reason = "this is the one place that makes clients")]
    pub fn new(options: OutboundOptions) -> Result<Self, OutboundError> {
        let setup = |error: reqwest::Error| OutboundError::Setup(causes(&error));
        let filter = Arc::new(Filter {
            allow: options.allow_networks,
            insecure_http: options.insecure_http,
            proxy: options.proxy.as_ref().and_then(|url| url.host_str().map(str::to_owned)),
        });
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .user_agent(USER_AGENT)
            .https_only(!options.insecure_http)
            .timeout(options.deadline)
            .connect_timeout(options.deadline.min(CONNECT_DEADLINE))
            .dns_resolver(Resolver(Arc::clone(&filter)));
        if let Some(path) = options.ca_file {
            let fail = |why: String| OutboundError::CaFile { path: path.clone(), why };
            let pem = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| fail(causes(&error)))?;
            if certificates.is_empty() {
                return Err(fail("no PEM certificate in it".to_owned()));
            }
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(url) = options.proxy {
            builder = builder.proxy(Proxy::https(url).map_err(setup)?);
        }
        Ok(Self { client: builder.build().map_err(setup)?, filter, max_body: options.max_body })
    }

    /// Fetches a URL.
    ///
    /// # Errors
    /// See [`OutboundError`]. An answer of any status is no error.
    pub async fn get(&self, url: &Url) -> Result<Fetched, OutboundError> {
        self.execute(reqwest::Request::new(http::Method::GET, url.clone())).await
    }

    /// Sends a request.
    ///
    /// # Errors
    /// See [`OutboundError`]. An answer of any status is no error.
    pub async fn send(&self, request: Request<Vec<u8>>) -> Result<Fetched, OutboundError> {
        self.execute(request.try_into().map_err(|_: reqwest::Error| OutboundError::Url)?).await
    }

    async fn execute(&self, request: reqwest::Request) -> Result<Fetched, OutboundError> {
        let host = self.filter.check(request.url())?;
        let too_large = || OutboundError::TooLarge { host: host.clone(), max: self.max_body };
        let fail = |error| describe(error, &host);
        let mut response = self.client.execute(request).await.map_err(fail)?;
        if response.content_length().is_some_and(|length| length > self.max_body as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(fail)? {
            if body.len() + chunk.len() > self.max_body {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Fetched { status: response.status(), headers: std::mem::take(response.headers_mut()), body })
    }
}

/// Whether an address may be reached: it is in one of the `allow`ed networks, or it is public.
///
/// Public is what IANA's special-purpose registries (RFC 6890) leave, without multicast. An IPv4 address
/// inside an IPv6 one (mapped, RFC 4291 §2.5.5.2; NAT64, RFC 6052) is judged as the IPv4 address.
#[must_use]
pub fn address_allowed(address: IpAddr, allow: &[IpNet]) -> bool {
    let inner = match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => embedded(v6).map_or(address, IpAddr::V4),
    };
    let public = match inner {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    };
    public || allow.iter().any(|network| network.contains(&address) || network.contains(&inner))
}

fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [high, low] = [address.segments()[6], address.segments()[7]].map(u16::to_be_bytes);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            Some(Ipv4Addr::new(high[0], high[1], low[0], low[1]))
        }
        _ => None,
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 10 | 127 | 224..=255, ..]
            | [100, 64..=127, ..]
            | [169, 254, ..]
            | [172, 16..=31, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [192, 168, ..]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
            // Azure's WireServer: a public address by number, the machine's own agent by use.
            | [168, 63, 129, 16]
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // Only 2000::/3 is given out; of it 2001::/23 is for protocols (Teredo), 2002::/16 is 6to4.
    matches!(address.segments(), [0x2000..=0x3fff, ..])
        && !matches!(
            address.segments(),
            [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..]
        )
}

/// Decides which addresses a client may connect to.
#[derive(Debug)]
struct Filter {
    allow: Vec<IpNet>,
    insecure_http: bool,
    proxy: Option<String>,
}

impl Filter {
    /// The URL's host, where its scheme and, if it is a literal, its address may be used.
    fn check(&self, url: &Url) -> Result<String, OutboundError> {
        let host = url.host().ok_or(OutboundError::Url)?;
        let address = match host {
            Host::Ipv4(v4) => Some(IpAddr::V4(v4)),
            Host::Ipv6(v6) => Some(IpAddr::V6(v6)),
            Host::Domain(_) => None,
        };
        let loopback = is_loopback(&host);
        match url.scheme() {
            "https" => {}
            "http" if self.insecure_http && loopback => return Ok(host.to_string()),
            scheme => return Err(OutboundError::Scheme(scheme.to_owned())),
        }
        match address {
            Some(address) if !address_allowed(address, &self.allow) => {
                Err(OutboundError::Address { host: host.to_string(), address })
            }
            _ => Ok(host.to_string()),
        }
    }
}

/// Whether a URL's host is this machine: a loopback address, or the name `localhost`.
pub(crate) fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(v4) => v4.is_loopback(),
        Host::Ipv6(v6) => v6.is_loopback(),
        Host::Domain(name) => *name == "localhost",
    }
}

/// Resolves names to the addresses that the filter allows.
struct Resolver(Arc<Filter>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let filter = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            let may_use = |address: IpAddr| {
                address_allowed(address, &filter.allow)
                    || (filter.insecure_http && host == "localhost" && address.is_loopback())
                    || filter.proxy.as_deref() == Some(host)
            };
            let (allowed, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(|at| may_use(at.ip()));
            match (allowed.is_empty(), refused.first()) {
                (true, Some(at)) => Err(Refused(at.ip()).into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// How the resolver's refusal travels through reqwest.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a public address")]
struct Refused(IpAddr);

fn describe(error: reqwest::Error, host: &str) -> OutboundError {
    let host = host.to_owned();
    let mut source: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Refused(address)) = cause.downcast_ref() {
            return OutboundError::Address { host, address: *address };
        }
        source = cause.source();
    }
    if error.is_connect() {
        OutboundError::Connect { host, why: causes(&error.without_url()) }
    } else if error.is_timeout() {
        OutboundError::Deadline { host }
    } else {
        OutboundError::Broken { host, why: causes(&error.without_url()) }
    }
}

/// An error and what caused it, on one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
