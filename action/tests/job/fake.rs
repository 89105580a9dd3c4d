//! A CI and a jobpass server in one, on loopback: strict about what a client must send, scripted in
//! what it answers.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jobpass_protocol::{Credential, ExchangeRequest, LeaseHandle, LeaseId, RevokeRequest, TokenRequest, TokenResponse};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

pub(crate) const PASSWORD: &str = "Pa5/word+with spaces&more";
pub(crate) const KEY: &str = "first-line-of-key\nsecond-line-of-key\n";

/// What came in, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    CiToken(usize),
    Exchange { grant: String, token: String, session: String, request_id: String, ttl: Option<u32> },
    Renew { handle: String, request_id: String },
    Revoke(String),
    Other(String),
}

/// What to answer to the next POST instead of the right answer.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// The right one after all.
    Right,
    /// Close the connection without an answer.
    Cut,
    /// Status, header lines, body.
    Status(u16, &'static str, &'static str),
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    script: VecDeque<Reply>,
    /// Seconds that the CI's tokens live, in their order; afterwards 300.
    token_lives: VecDeque<i64>,
    expires_in: u64,
    leases: u8,
    tokens: usize,
}

/// The fake; it ends with the test's process.
pub(crate) struct Fake {
    pub(crate) url: String,
    /// The CA of its certificate, PEM; empty where it speaks plain http.
    pub(crate) ca: String,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::listen("http", String::new(), serve)
    }

    /// With TLS, and a certificate of a private CA for its address.
    pub(crate) fn start_tls() -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().expect("key");
        let ca_pem = ca.self_signed(&ca_key).expect("certificate").pem();
        let key = KeyPair::generate().expect("key");
        let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).expect("name");
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).expect("certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let config = config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).expect("certificate");
        let config = Arc::new(config);
        Self::listen("https", ca_pem, move |stream, state, url| {
            serve(StreamOwned::new(ServerConnection::new(config.clone()).expect("connection"), stream), state, url);
        })
    }

    fn listen(
        scheme: &str,
        ca: String,
        serve: impl Fn(TcpStream, &Mutex<State>, &str) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("{scheme}://{}", listener.local_addr().expect("address"));
        let state = Arc::new(Mutex::new(State { expires_in: 900, ..State::default() }));
        let (shared, audience, serve) = (state.clone(), url.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, audience, serve) = (shared.clone(), audience.clone(), serve.clone());
                thread::spawn(move || serve(stream.expect("connection"), &shared, &audience));
            }
        });
        Self { url, ca, state }
    }

    pub(crate) fn script(&self, replies: &[Reply]) -> &Self {
        self.state.lock().expect("lock").script.extend(replies.iter().cloned());
        self
    }

    pub(crate) fn token_lives(&self, lives: &[i64]) {
        self.state.lock().expect("lock").token_lives.extend(lives);
    }

    pub(crate) fn expires_in(&self, seconds: u64) {
        self.state.lock().expect("lock").expires_in = seconds;
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().expect("lock").seen.clone()
    }

    /// The requests to the server, one word each.
    pub(crate) fn story(&self) -> String {
        let words = self.seen().into_iter().filter_map(|seen| match seen {
            Seen::CiToken(_) => None,
            Seen::Exchange { grant, .. } => Some(grant),
            Seen::Renew { .. } => Some("renew".to_owned()),
            Seen::Revoke(_) => Some("revoke".to_owned()),
            Seen::Other(line) => Some(line),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// What came in and may not be seen, and whether GitHub may be told to mask it.
    pub(crate) fn secrets(&self) -> Vec<(String, bool)> {
        let secrets = self.seen().into_iter().flat_map(|seen| match seen {
            Seen::Exchange { token, session, .. } => vec![(token, true), (session, false)],
            Seen::Renew { handle, .. } | Seen::Revoke(handle) => vec![(handle, false)],
            Seen::CiToken(_) | Seen::Other(_) => vec![],
        });
        secrets.collect()
    }

    /// A token as a CI would have put it into the job's environment.
    pub(crate) fn token(&self) -> String {
        jwt(&self.url, 300, 0)
    }
}

/// A certificate over a public key (PROTOCOL.certkeys).
fn certificate(line: &str) -> String {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let string = |bytes: &[u8]| [&u32::try_from(bytes.len()).expect("short").to_be_bytes(), bytes].concat();
    let blob = STANDARD.decode(line.split(' ').nth(1).expect("a key")).expect("base64");
    let kind = "ssh-ed25519-cert-v01@openssh.com";
    let ca = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a key");
    let body = [
        string(kind.as_bytes()),
        string(&[7; 32]), // nonce
        string(&blob[blob.len() - 32..]),
        vec![0; 8], // serial
        vec![0, 0, 0, 1],
        string(b"key id"),
        string(&string(b"deploy")),
        vec![0; 8],
        vec![255; 8],
        [string(b""), string(b""), string(b"")].concat(),
        string(&[string(b"ssh-ed25519"), string(ca.public_key().as_ref())].concat()),
    ]
    .concat();
    let signature = [string(b"ssh-ed25519"), string(ca.sign(&body).as_ref())].concat();
    format!("{kind} {} test", STANDARD.encode([body, string(&signature)].concat()))
}

/// A certificate over the key of a request.
fn leaf(request: &str) -> String {
    let request = rcgen::CertificateSigningRequestParams::from_pem(request).expect("signed by its own key");
    let authority = Issuer::new(CertificateParams::default(), KeyPair::generate().expect("key"));
    request.signed_by(&authority).expect("certificate").pem()
}

pub(crate) fn jwt(audience: &str, life: i64, number: usize) -> String {
    #[expect(clippy::disallowed_methods, reason = "a token's life is measured by the clock that the client reads")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims =
        format!(r#"{{"aud":"{audience}","exp":{},"jti":"{number}"}}"#, i64::try_from(now).expect("date") + life);
    [r#"{"alg":"RS256"}"#, &claims, "signature"].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

fn serve(mut stream: impl Read + Write, state: &Mutex<State>, audience: &str) {
    let mut reader = BufReader::new(&mut stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let wanted = |line: &&String| line.to_ascii_lowercase().starts_with(&format!("{name}:"));
        lines.iter().find(wanted).map(|line| line[name.len() + 1..].trim().to_owned())
    };
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().expect("length"))];
    reader.read_exact(&mut body).expect("body");
    assert!(header("user-agent").is_some_and(|agent| agent.starts_with("jobpass/")), "{lines:?}");
    let mut state = state.lock().expect("lock");
    let (status, headers, answer) = match lines[0].rsplit_once(' ').expect("request line").0 {
        get if get.starts_with("GET /ci?api=1&audience=") => {
            assert_eq!(header("authorization").as_deref(), Some("Bearer ci-bearer"));
            assert_eq!(get, format!("GET /ci?api=1&audience={}", audience.replace(':', "%3A").replace('/', "%2F")));
            state.tokens += 1;
            let (number, life) = (state.tokens, state.token_lives.pop_front().unwrap_or(300));
            state.seen.push(Seen::CiToken(number));
            (200, "", format!(r#"{{"value":"{}"}}"#, jwt(audience, life, number)))
        }
        post @ ("POST /token" | "POST /revoke") => {
            assert_eq!(header("content-type").as_deref(), Some("application/x-www-form-urlencoded"));
            let answer = if post == "POST /token" { state.token(&body) } else { state.revoke(&body) };
            match state.script.pop_front() {
                Some(Reply::Cut) => return,
                Some(Reply::Status(status, headers, body)) => (status, headers, body.to_owned()),
                Some(Reply::Right) | None => answer,
            }
        }
        other => {
            state.seen.push(Seen::Other(other.to_owned()));
            (404, "content-type: text/html\r\n", "<html>".to_owned())
        }
    };
    drop(state);
    let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", answer.len());
    // A client that was stopped reads no answer.
    let _ = stream.write_all(&[head.as_bytes(), answer.as_bytes()].concat());
}

impl State {
    fn token(&mut self, body: &[u8]) -> (u16, &'static str, String) {
        match TokenRequest::parse(body).expect("the form is well-formed") {
            TokenRequest::Exchange(request) => self.exchange(*request),
            TokenRequest::Renew(request) => {
                let lease = request.handle.lease();
                let request_id = request.request_id.expect("request_id").as_str().to_owned();
                self.seen.push(Seen::Renew { handle: request.handle.expose().to_owned(), request_id });
                let handle = LeaseHandle::from_random(lease, &[99; 32]);
                let answer = format!(r#"{{"expires_in":900,"refresh_token":"{}"}}"#, handle.expose());
                (200, "", answer)
            }
        }
    }

    fn exchange(&mut self, request: ExchangeRequest) -> (u16, &'static str, String) {
        self.seen.push(Seen::Exchange {
            grant: request.grant.clone(),
            token: request.subject_token.expose().to_owned(),
            session: request.session.expect("session").expose().to_owned(),
            request_id: request.request_id.expect("request_id").as_str().to_owned(),
            ttl: request.ttl,
        });
        let credential = match request.grant.as_str() {
            "db" => Credential::postgres("db.example", 5432, "app", "jobpass_1", PASSWORD.into(), "require"),
            "api" => Credential::bearer("bearer-token-of-the-api".into()),
            "other-api" => Credential::bearer("bearer-token-of-the-api-and-more".into()),
            "key" => Credential::bearer(KEY.into()),
            "k8s" => Credential::kubernetes(
                "https://k8s.example",
                None,
                "prod",
                "service-account-token".into(),
                r#"{"users":[{"user":{"token":"service-account-token"}}]}"#.into(),
                "2026-01-01T00:00:00Z",
            ),
            "id" => Credential::jwt("header.payload.signature".into()),
            "ssh" => Credential::ssh_certificate(&certificate(request.public_key.as_deref().expect("a key"))),
            "images" => Credential::oci_registry("registry.example", "token-of-the-registry".into()),
            "x509" => Credential::x509_certificate(&leaf(request.csr.as_deref().expect("a request"))),
            "aws" => Credential::aws_session("ASIA1", "aws-secret".into(), "aws-token".into(), "2026-01-01T00:00:00Z"),
            _ => {
                let denial = r#"{"error":"invalid_target","error_description":"not yours","decision_id":"d-1"}"#;
                return (400, "content-type: application/json\r\n", denial.to_owned());
            }
        };
        self.leases += 1;
        let lease_id: LeaseId = format!("01920000-0000-7000-8000-0000000000{:02}", self.leases).parse().expect("UUID");
        let handle = LeaseHandle::from_random(lease_id, &[self.leases; 32]);
        let answer =
            TokenResponse { credential, expires_in: self.expires_in, scope: vec![], handle, lease_id, revocable: true };
        (200, "content-type: application/json\r\n", answer.to_json().to_string())
    }

    fn revoke(&mut self, body: &[u8]) -> (u16, &'static str, String) {
        let request = RevokeRequest::parse(body).expect("the form is well-formed");
        let handle = LeaseHandle::parse(request.token.expose()).expect("a handle");
        self.seen.push(Seen::Revoke(handle.expose().to_owned()));
        (200, "", r#"{"state":"ended"}"#.to_owned())
    }
}
