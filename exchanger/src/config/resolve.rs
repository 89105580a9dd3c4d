//! From the file as it is written to the config as it is meant, or every problem that it has.

use super::{ConfigError, Env, Place, Problem, Problems, SecretError, SecretRef, Span, file, files::Needed};
use crate::{
    audit::StreamSettings,
    backends::registry::{BuildContext, Configured},
    clock::Clock,
    http::{certificate::Certificate, server::Bounds},
    sealing::Sealing,
    signing::{self, JWKS_MAX_AGE, Keys},
    store::SqliteOptions,
    token::{
        issuer::{self, KeySource, TrustedIssuer},
        without_slash,
    },
};
use jobpass_policy::{Issuer, Profile, yaml};
use jobpass_protocol::{BackendName, IssuerName};
use serde_saphyr::{Location, Spanned};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use url::Url;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8420);
const DEFAULT_EXCHANGES_PER_MINUTE: u32 = 600;
const DEFAULT_CONNECTIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);
const DEFAULT_RESERVE: u64 = 64 * 1024 * 1024;

/// What the program runs on. Everything in it was checked.
pub struct Config {
    /// The server's URL, without a slash at its end.
    pub public_url: String,
    /// Where jobs are served.
    pub listen: SocketAddr,
    /// Where monitoring is served.
    pub management: Option<SocketAddr>,
    /// The certificate to serve.
    pub certificate: Option<Certificate>,
    /// What the connections of each listener may take.
    pub bounds: Bounds,
    /// The server's own directory.
    pub state_dir: PathBuf,
    /// Who may vouch for jobs.
    pub issuers: Vec<TrustedIssuer>,
    /// What makes credentials.
    pub backends: BTreeMap<BackendName, Configured>,
    /// Policy directories.
    pub policies: Vec<PathBuf>,
    /// Where the audit log is streamed to.
    pub audit: StreamSettings,
    /// The store's numbers.
    pub store: SqliteOptions,
    /// The signing keys' numbers.
    pub signing: signing::Settings,
    /// Where the sealing keys are.
    pub sealing: Option<SecretRef>,
    /// A workload's limit; 0: none.
    pub exchanges_per_minute: u32,
    /// How often policy directories are looked at.
    pub policy_interval: Duration,
    /// How long requests in flight may take when the server stops.
    pub drain: Duration,
    needed: Vec<Needed>,
    env: Env,
    base: PathBuf,
}

impl Config {
    /// Reads and checks a config file. Paths in it are relative to it. What only serving needs is not looked for:
    /// see [`Self::check_files`].
    ///
    /// # Errors
    /// Every problem that was found, with its place and its cure.
    pub fn load(path: &Path, env: &Env) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, path.parent().unwrap_or(Path::new(".")), env)
            .map_err(|problems| ConfigError::Problems(Problems(problems)))
    }

    fn parse(path: &str, text: &str, base: &Path, env: &Env) -> Result<Self, Vec<Problem>> {
        let file: file::File = serde_saphyr::from_str(text).map_err(|error| {
            let at = error.location().unwrap_or(Location::UNKNOWN);
            let (told, cure) = yaml::explain(&error);
            let cure = cure.unwrap_or_else(|| {
                let cure = match told.contains("socket address") {
                    true => "write an IP address and a port, such as `127.0.0.1:8420`",
                    false => "see docs/config.md for every key, or `jobpass-exchanger schema` for your editor",
                };
                cure.to_owned()
            });
            // The line may hold the secret itself.
            if told.contains(&SecretError::NotAReference.to_string()) {
                let cure = "put it into a file and write `file:/path` here, or use `env:NAME` or `credential:NAME`; \
                            if this was a secret in use, change it";
                return vec![Place { excerpt: None, ..Place::new(path, text, at) }.problem(told, cure)];
            }
            vec![Place::new(path, text, at).problem(told, cure)]
        })?;
        let (needed, urls, problems) = (Vec::new(), BTreeMap::new(), Vec::new());
        Reader { path, text, base, needed, urls, problems }.resolve(file, env)
    }

    /// Opens the files that serving needs: the certificate and its key, the issuers' authorities and key sets.
    ///
    /// # Errors
    /// Every one that cannot be used, with its place in the config and its cure.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        let problems: Vec<Problem> = self.needed.iter().filter_map(Needed::problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Problems(Problems(problems))) }
    }

    /// What seals; it has read no key yet.
    #[must_use]
    pub fn sealing(&self) -> Arc<Sealing> {
        Arc::new(Sealing::new(self.sealing.clone(), self.env.clone()))
    }

    /// What backends are built with.
    #[must_use]
    pub fn build_context(&self, clock: &Arc<dyn Clock>, keys: &Arc<Keys>, sealing: &Arc<Sealing>) -> BuildContext {
        BuildContext {
            sealing: Arc::clone(sealing),
            clock: Arc::clone(clock),
            keys: Arc::clone(keys),
            public_url: self.public_url.clone(),
            env: self.env.clone(),
            base: self.base.clone(),
        }
    }
}

struct Reader<'a> {
    path: &'a str,
    text: &'a str,
    base: &'a Path,
    needed: Vec<Needed>,
    /// Whose URL is whose, without a slash at its end.
    urls: BTreeMap<String, IssuerName>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, at: Location, message: impl Into<String>, cure: impl Into<String>) {
        self.problems.push(self.place(at).problem(message, cure));
    }

    fn place(&self, at: Location) -> Place {
        Place::new(self.path, self.text, at)
    }

    fn resolve(mut self, file: file::File, env: &Env) -> Result<Config, Vec<Problem>> {
        let limits = file.limits;
        let listen = file.listen.as_ref().map_or(DEFAULT_LISTEN, |listen| listen.value);
        let public_url = self.public_url(&file.public_url);
        let listen_at = file.listen.as_ref().map_or(file.public_url.referenced, |listen| listen.referenced);
        if file.tls.is_none() && !file.behind_proxy && !listen.ip().is_loopback() {
            self.problem(
                listen_at,
                "plain http would be served beyond loopback: tokens and credentials could be read on the way",
                "set `tls:` (certificate, key), or `behind_proxy: true` if a proxy in front ends TLS, or listen on 127.0.0.1",
            );
        }
        let issuers =
            file.issuers.into_iter().filter_map(|(name, issuer)| self.issuer(&name, issuer, &public_url)).collect();
        let policies = file.policies.iter().map(|directory| self.directory(directory)).collect();
        let certificate = file.tls.map(|tls| self.certificate(&tls));
        let config = Config {
            listen,
            management: file.management.map(|address| address.value),
            certificate,
            bounds: Bounds {
                connections: limits.connections.unwrap_or(DEFAULT_CONNECTIONS),
                first_request: self.duration(limits.first_request.as_ref(), Duration::from_secs(10)),
                idle: self.duration(limits.idle.as_ref(), Duration::from_secs(60)),
            },
            state_dir: self.join(&file.state_dir),
            issuers,
            backends: file.backends,
            policies,
            audit: StreamSettings {
                file: file.audit.file.map(|path| self.join(&path)),
                stdout: file.audit.stdout,
                head_file: file.audit.head_file.map(|path| self.join(&path)),
            },
            store: SqliteOptions {
                reserve_bytes: limits.reserve_bytes.unwrap_or(DEFAULT_RESERVE),
                keep_ended: self.duration(limits.keep_ended.as_ref(), Duration::from_secs(7 * 86_400)),
                keep_audit: limits.keep_audit.as_ref().map(|text| self.duration(Some(text), Duration::ZERO)),
            },
            signing: self.signing(file.signing),
            sealing: file.sealing.map(|sealing| sealing.keys.within(self.base)),
            exchanges_per_minute: limits.exchanges_per_minute.unwrap_or(DEFAULT_EXCHANGES_PER_MINUTE),
            policy_interval: self.duration(limits.policy_interval.as_ref(), Duration::from_secs(10)),
            drain: self.duration(limits.drain.as_ref(), Duration::from_secs(30)),
            needed: std::mem::take(&mut self.needed),
            env: env.clone(),
            base: self.base.to_owned(),
            public_url,
        };
        if self.problems.is_empty() { Ok(config) } else { Err(self.problems) }
    }

    fn join(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// An absolute http(s) URL with nothing but a host (and port): it is compared byte by byte, in
    /// `aud` and in `iss`.
    fn public_url(&mut self, url: &Spanned<String>) -> String {
        let exact = Url::parse(&url.value).ok().filter(|parsed| {
            let bare = parsed.path() == "/" && parsed.query().is_none() && parsed.fragment().is_none();
            let plain = parsed.username().is_empty() && parsed.password().is_none();
            let scheme = parsed.scheme() == "https" || parsed.scheme() == "http" && is_loopback(parsed);
            bare && plain && scheme && parsed.as_str().trim_end_matches('/') == url.value
        });
        if exact.is_none() {
            self.problem(
                url.referenced,
                "`public_url` must be the server's exact https URL: a host in lower case and, if needed, a port; no path, no slash at the end",
                "for example `https://jobpass.acme.example` (http only on loopback)",
            );
        }
        url.value.clone()
    }

    /// In one spelling: whether one directory is within another is told by their paths.
    fn directory(&mut self, directory: &Spanned<PathBuf>) -> PathBuf {
        let joined = self.join(&directory.value);
        let path: PathBuf = joined.components().filter(|part| *part != Component::CurDir).collect();
        let path = if path.as_os_str().is_empty() { joined } else { path };
        if !path.is_dir() {
            self.problem(
                directory.referenced,
                format!("{} is not a directory", path.display()),
                "create it, or name the directory that holds the grant files",
            );
        }
        path
    }

    fn certificate(&mut self, tls: &file::Tls) -> Certificate {
        let files = Certificate { chain: self.join(&tls.certificate.value), key: self.join(&tls.key.value) };
        let (chain, key) = (self.place(tls.certificate.referenced), self.place(tls.key.referenced));
        self.needed.push(Needed::Certificate { files: files.clone(), chain, key });
        files
    }

    fn duration(&mut self, text: Option<&Spanned<String>>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        Span::try_from(text.value.clone()).map(|span| span.0).unwrap_or_else(|_| {
            self.problem(text.referenced, "this is not a duration", "write it like `30s`, `10m`, `12h` or `7d`");
            default
        })
    }

    fn signing(&mut self, file: file::Signing) -> signing::Settings {
        let default = signing::Settings::default();
        let propagation = self.duration(file.propagation.as_ref(), default.propagation);
        if let Some(text) = file.propagation
            && propagation < JWKS_MAX_AGE
        {
            self.problem(
                text.referenced,
                format!(
                    "others may keep the key set for {} s and would not know a new key yet",
                    JWKS_MAX_AGE.as_secs()
                ),
                "make it at least as long, better twice as long",
            );
        }
        signing::Settings {
            types: file.keys.filter(|keys| !keys.is_empty()).unwrap_or(default.types),
            propagation,
            ..default
        }
    }

    fn issuer(&mut self, name: &IssuerName, file: Spanned<file::Issuer>, public_url: &str) -> Option<TrustedIssuer> {
        let (here, file) = (file.referenced, file.value);
        let at = file.profile.as_ref().map_or(here, |profile| profile.referenced);
        let wanted = file.profile.as_ref().map_or(name.as_str(), |profile| profile.value.as_str());
        let Some(profile) = Profile::named(wanted) else {
            let known: Vec<&str> = Profile::all().map(|profile| profile.name()).collect();
            self.problem(
                at,
                format!("there is no issuer profile `{wanted}`"),
                format!("set `profile:` to one of {}", known.join(", ")),
            );
            return None;
        };
        let at = file.url.as_ref().map_or(here, |url| url.referenced);
        let Some(url) = file.url.map(|url| url.value).or_else(|| profile.default_url().map(str::to_owned)) else {
            self.problem(
                at,
                format!("issuer `{name}` has no URL"),
                "set `url:` to the issuer's exact URL, as in its tokens' `iss`",
            );
            return None;
        };
        let parsed = issuer::parse_url(&url, file.insecure_http);
        if !profile.url_matches(&url) {
            let message = format!("`{url}` is not a URL that issuers of profile `{wanted}` have");
            self.problem(at, message, "check the URL against a token's `iss`, or choose another profile");
        } else if parsed.is_none() {
            self.problem(
                at,
                format!("`{url}` is not a URL that tokens can be of, or keys be fetched from"),
                "write https://host[:port][/path] in lower case, without user, query or fragment (http only to \
                 loopback, and only with `insecure_http: true`)",
            );
        }
        if let Some(other) = profile.shared_elsewhere(&url) {
            let message = format!("`{url}` is the issuer of {}, where strangers get tokens too", other.title());
            self.problem(at, message, format!("set `profile: {}`, which knows whose they are", other.name()));
        }
        if let Some(bare) = parsed.as_ref().map(without_slash) {
            if bare == public_url {
                self.problem(at, "jobpass cannot be its own subject issuer", "name the CI's issuer");
            }
            if let Some(other) = self.urls.insert(bare.to_owned(), name.clone()) {
                let message = format!("issuers `{other}` and `{name}` have the same URL");
                self.problem(at, message, "keep one of them: rules tell its jobs apart by their claims");
            }
        }
        if !file.tenants.is_empty() && profile.tenant_claim().is_none() {
            let message =
                format!("`tenants` cannot be checked: tokens of profile `{wanted}` do not say whose job it is");
            self.problem(here, message, "leave it out, and let rules match the claims that say which job it is");
        }
        let shared = profile.is_shared(&url);
        if let Some(algorithms) = &file.algorithms {
            if algorithms.value.is_empty() {
                self.problem(algorithms.referenced, "no algorithm is accepted", "leave it out to accept the profile's");
            }
            for algorithm in &algorithms.value {
                if !profile.algorithms().iter().any(|known| *known == algorithm.as_str()) {
                    let message = format!("profile `{wanted}` does not sign with `{algorithm}`");
                    self.problem(
                        algorithms.referenced,
                        message,
                        format!("choose among {}", profile.algorithms().join(", ")),
                    );
                }
            }
        }
        let keys = match (file.jwks_file, file.jwks_uri) {
            (Some(_), Some(_)) => {
                self.problem(at, "`jwks_file` and `jwks_uri` exclude each other", "keep one of them");
                return None;
            }
            (Some(path), None) => {
                if file.ca_file.is_some() {
                    self.problem(at, "`ca_file` has no use beside `jwks_file`", "leave it out: nothing is fetched");
                }
                let algorithms = file.algorithms.as_ref().map_or_else(|| profile.algorithms(), |some| &some.value);
                let place = self.place(path.referenced);
                let path = self.join(&path.value);
                self.needed.push(Needed::KeySet { path: path.clone(), algorithms: algorithms.to_vec(), place });
                KeySource::File(path)
            }
            (None, Some(uri)) => match Url::parse(&uri.value) {
                Ok(url) if issuer::is_secure(&url, file.insecure_http) => KeySource::Uri(url),
                Ok(url) => {
                    self.problem(
                        uri.referenced,
                        format!("`jwks_uri: {url}` has to be https"),
                        "whoever can change the keys on their way can sign tokens (http only to loopback, and only with \
                         `insecure_http: true`)",
                    );
                    return None;
                }
                Err(error) => {
                    self.problem(
                        uri.referenced,
                        format!("`jwks_uri` is not a URL: {error}"),
                        "write the whole URL, https",
                    );
                    return None;
                }
            },
            (None, None) => KeySource::Discovery,
        };
        let ca_file = file.ca_file.map(|path| {
            let (place, path) = (self.place(path.referenced), self.join(&path.value));
            self.needed.push(Needed::Authority { path: path.clone(), place });
            path
        });
        Some(TrustedIssuer {
            policy: Issuer { name: name.clone(), url, profile, tenants: file.tenants, shared },
            algorithms: file.algorithms.map(|algorithms| algorithms.value),
            keys,
            distrusted_keys: file.distrusted_keys,
            allow_networks: file.allow_networks,
            ca_file,
            insecure_http: file.insecure_http,
            proxy: None,
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests;
