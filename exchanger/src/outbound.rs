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
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    const PATIENT: Duration = Duration::from_secs(30);
    const HASTY: Duration = Duration::from_millis(200);

    #[test]
    fn addresses() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("140.82.112.3", true),
            ("100.63.255.255", true),
            ("100.128.0.0", true),
            ("172.15.0.1", true),
            ("172.32.0.1", true),
            ("192.0.1.1", true),
            ("198.17.0.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false), // Alibaba's metadata
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("168.63.129.16", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.192", false), // Oracle's metadata
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:50c0:8000::153", true),
            ("2a00:1450:4001:829::200e", true),
            ("::", false),
            ("::1", false),
            ("::8.8.8.8", false), // IPv4-compatible, deprecated
            ("::ffff:8.8.8.8", true),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::ffff:0:8.8.8.8", false), // SIIT
            ("64:ff9b::8.8.8.8", true),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b::169.254.169.254", false),
            ("64:ff9b:1::8.8.8.8", false), // NAT64 for local use
            ("100::1", false),
            ("2001::1", false),
            ("2001:1ff::1", false),
            ("2001:200::1", true),
            ("2001:db8::1", false),
            ("2002:7f00:1::1", false), // 6to4
            ("2002:808:808::1", false),
            ("3fff:1::1", false),
            ("3fff:1000::1", true),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false), // AWS's metadata
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(address_allowed(address, &[]), public, "{address}");
            assert!(address_allowed(address, &[IpNet::from(address)]), "{address} is named");
        }
        let named = ["10.1.0.0/16".parse().expect("a network")];
        assert!(address_allowed("::ffff:10.1.2.3".parse().expect("an address"), &named));
        assert!(!address_allowed("10.2.0.1".parse().expect("an address"), &named));
    }

    #[test]
    fn urls() {
        for (url, insecure_http, expected) in [
            ("https://example.com/", false, None),
            ("https://8.8.8.8/", false, None),
            ("http://127.0.0.1:80/", true, None),
            ("http://[::1]/", true, None),
            ("http://localhost/", true, None),
            ("http://127.0.0.1/", false, Some("only https")),
            ("http://example.com/", true, Some("only https")),
            ("http://8.8.8.8/", true, Some("only https")),
            ("http://localhost.example.com/", true, Some("only https")),
            ("ftp://example.com/", true, Some("only https")),
            ("file:///etc/passwd", true, Some("not an absolute URL")),
            ("data:text/plain,x", true, Some("not an absolute URL")),
            ("https://127.0.0.1/", true, Some("not a public address")),
            ("https://0x7f.1/", false, Some("not a public address")),
            ("https://2130706433/", false, Some("not a public address")),
            ("https://[::ffff:10.0.0.1]/", false, Some("not a public address")),
            ("https://169.254.169.254/latest/meta-data/", false, Some("not a public address")),
        ] {
            let filter = Filter { allow: Vec::new(), insecure_http, proxy: None };
            match (filter.check(&Url::parse(url).expect("a URL")), expected) {
                (Ok(_), None) => {}
                (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{url}: {error}"),
                (found, _) => panic!("{url}: {found:?}"),
            }
        }
    }

    /// A server on loopback that reads a request's head, answers so, and hangs up unless it is not done.
    async fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                if answer.is_empty() || answer.ends_with("...") {
                    std::future::pending::<()>().await;
                }
            }
        });
        address
    }

    fn client(insecure_http: bool, deadline: Duration) -> Outbound {
        Outbound::new(OutboundOptions { insecure_http, deadline, max_body: 100, ..OutboundOptions::default() })
            .expect("a client")
    }

    #[tokio::test]
    async fn answers() {
        let check = async |answer: &'static str, expected: Result<u16, &str>| {
            let address = serve(answer).await;
            let url = Url::parse(&format!("http://localhost:{}/a?secret=hunter2", address.port())).expect("a URL");
            let deadline = if expected == Err("did not answer in time") { HASTY } else { PATIENT };
            match (client(true, deadline).get(&url).await, expected) {
                (Ok(fetched), Ok(status)) => assert_eq!(fetched.status, status, "{answer}"),
                (Err(error), Err(text)) => {
                    let shown = format!("{error} {error:?}");
                    assert!(shown.contains(text), "{answer}: {shown}");
                    assert!(!shown.contains("hunter2") && !error.never_sent(), "{answer}: {shown}");
                }
                (found, _) => panic!("{answer}: {found:?}"),
            }
        };
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok(200)).await;
        check("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", Ok(500)).await;
        check("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n", Ok(302)).await;
        check("HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n", Err("more than 100 bytes")).await;
        let chunk = "32\r\n01234567890123456789012345678901234567890123456789\r\n";
        let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n");
        check(chunked.leak(), Err("more than 100 bytes")).await;
        check("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nwait...", Err("did not answer in time")).await;
        check("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nand no more", Err("failed")).await;
        check("SSH-2.0-OpenSSH\r\n", Err("failed")).await;
        check("", Err("did not answer in time")).await;
    }

    #[tokio::test]
    async fn names_that_resolve_to_loopback() {
        let address = serve("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let url = Url::parse(&format!("https://localhost:{}/", address.port())).expect("a URL");
        let error = client(false, PATIENT).get(&url).await.expect_err("loopback");
        assert!(matches!(&error, OutboundError::Address { address, .. } if address.is_loopback()), "{error:?}");
        assert!(error.never_sent());
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("an address");
        let request = Request::post(format!("http://{closed}/")).body(b"x".to_vec()).expect("a request");
        let error = client(true, PATIENT).send(request).await.expect_err("nobody listens");
        assert!(matches!(error, OutboundError::Connect { .. }) && error.never_sent(), "{error:?}");
    }

    #[test]
    fn retry_after() {
        let now = Timestamp::from_secs(784_111_777);
        for (text, seconds) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, text.parse().expect("a value"))]);
            let fetched = Fetched { status: StatusCode::TOO_MANY_REQUESTS, headers, body: Vec::new() };
            assert_eq!(fetched.retry_after(now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn ca_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca.pem");
        for text in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).expect("writable");
            let options = OutboundOptions { ca_file: Some(path.clone()), ..OutboundOptions::default() };
            assert!(Outbound::new(options).is_err(), "{text}");
        }
    }
}
