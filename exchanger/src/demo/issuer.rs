//! An issuer on loopback that behaves like a CI's: discovery, keys, and the endpoint where a job
//! fetches its token. Its keys rotate, and its documents fail, when it is told so.

use super::{
    Algorithm, Ci, DemoError, Now,
    keys::Key,
    lock,
    loopback::{self, Listening},
    random,
};
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_protocol::Secret;
use serde_json::{Map, Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

/// One of the issuer's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// `/.well-known/openid-configuration`.
    Discovery,
    /// The key set.
    Jwks,
    /// The endpoint that gives a job its token.
    Token,
}

/// How a document goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status and no body.
    Status(u16),
    /// 200 with this body instead of the right one.
    Body(String),
    /// 302 to this address.
    Redirect(String),
    /// 200 with so many bytes of white space before the right body.
    Padded(usize),
    /// No answer at all; the connection stays open.
    Stall,
}

/// How the signing keys change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// A new key signs from now on; the old ones stay published.
    Add,
    /// A new key signs from now on; the old ones are gone from the key set.
    Replace,
    /// The `kid` stays and the key behind it changes, as after a restored backup.
    Swap,
}

/// How often each document was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Requests for the discovery document.
    pub discovery: u32,
    /// Requests for the key set.
    pub jwks: u32,
    /// Requests for a job's token.
    pub token: u32,
}

/// A token to mint. Whatever is not said is what the CI would say.
#[derive(Clone, Debug, Default)]
pub struct Token {
    claims: Map<String, Value>,
    header: Map<String, Value>,
    algorithm: Option<Algorithm>,
    age: i64,
    lifetime: Option<i64>,
}

impl Token {
    /// A token for one audience, or for several when given an array.
    #[must_use]
    pub fn for_audience(audience: impl Into<Value>) -> Self {
        Self::default().claim("aud", audience)
    }

    /// Sets a claim; `null` removes it.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Sets a header; `null` removes it.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.to_owned(), value.into());
        self
    }

    /// Signs with the newest key of this algorithm.
    #[must_use]
    pub const fn signed_with(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// Minted so many seconds ago; negative is the future.
    #[must_use]
    pub const fn aged(mut self, seconds: i64) -> Self {
        self.age = seconds;
        self
    }

    /// Valid for so many seconds from its minting.
    #[must_use]
    pub const fn lasting(mut self, seconds: i64) -> Self {
        self.lifetime = Some(seconds);
        self
    }
}

/// A running issuer; dropping it closes its port.
pub struct Issuer {
    shared: Arc<Shared>,
    _listening: Listening,
}

struct Shared {
    url: String,
    ci: Ci,
    now: Now,
    request_token: Secret,
    inner: Mutex<Inner>,
}

struct Inner {
    keys: Vec<Key>,
    job: Map<String, Value>,
    faults: Vec<(Document, Fault)>,
    requests: Requests,
}

impl Issuer {
    /// Starts an issuer with one RS256 key at a loopback address (port 0: any free one).
    ///
    /// `now` tells the seconds since the epoch.
    ///
    /// # Errors
    /// When the port cannot be bound or no key can be made.
    pub async fn start(
        address: SocketAddr,
        ci: Ci,
        now: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, DemoError> {
        let (listener, url) = loopback::bind(address).await?;
        let inner = Inner {
            keys: vec![Key::generate(key_id()?, Algorithm::Rs256)?],
            job: Map::new(),
            faults: Vec::new(),
            requests: Requests::default(),
        };
        let request_token = Secret::new(URL_SAFE_NO_PAD.encode(random::<24>()?));
        let shared = Arc::new(Shared { url, ci, now: Box::new(now), request_token, inner: Mutex::new(inner) });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route(ci.jwks_path(), get(jwks))
            .route("/token", get(token))
            .with_state(Arc::clone(&shared));
        Ok(Self { shared, _listening: loopback::serve(listener, router) })
    }

    /// The issuer's URL: the `iss` of its tokens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// What a job finds in `ACTIONS_ID_TOKEN_REQUEST_URL`.
    #[must_use]
    pub fn request_url(&self) -> String {
        format!("{}/token?api-version=2.0", self.shared.url)
    }

    /// What a job finds in `ACTIONS_ID_TOKEN_REQUEST_TOKEN`.
    #[must_use]
    pub fn request_token(&self) -> &Secret {
        &self.shared.request_token
    }

    /// Changes what the tokens from now on say about the job; `null` removes a claim.
    pub fn describe_job(&self, claims: Map<String, Value>) {
        lock(&self.shared.inner).job = claims;
    }

    /// Mints a token.
    ///
    /// # Errors
    /// When the issuer has no key of the wanted algorithm.
    pub fn mint(&self, token: &Token) -> Result<String, DemoError> {
        self.shared.mint(token)
    }

    /// Signs any payload under any header, with the newest key (whatever the header says).
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, header: &str, payload: &str) -> Result<String, DemoError> {
        let inner = lock(&self.shared.inner);
        inner.keys.last().map_or(Err(DemoError::NoKey("signing")), |key| compact(key, header, payload))
    }

    /// The key set as published now.
    #[must_use]
    pub fn jwks(&self) -> Value {
        self.shared.jwks()
    }

    /// Changes the signing keys.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn rotate(&self, rotation: Rotation, algorithm: Algorithm) -> Result<(), DemoError> {
        let mut inner = lock(&self.shared.inner);
        let kid = match (rotation, inner.keys.last()) {
            (Rotation::Swap, Some(key)) => key.kid.clone(),
            _ => key_id()?,
        };
        let key = Key::generate(kid, algorithm)?;
        match rotation {
            Rotation::Add => {}
            Rotation::Replace => inner.keys.clear(),
            Rotation::Swap => drop(inner.keys.pop()),
        }
        inner.keys.push(key);
        Ok(())
    }

    /// Makes a document go wrong until [`Issuer::recover`].
    pub fn fail(&self, document: Document, fault: Fault) {
        let mut inner = lock(&self.shared.inner);
        inner.faults.retain(|(other, _)| *other != document);
        inner.faults.push((document, fault));
    }

    /// Ends all faults.
    pub fn recover(&self) {
        lock(&self.shared.inner).faults.clear();
    }

    /// How often each document was asked for so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        lock(&self.shared.inner).requests
    }
}

impl Shared {
    fn mint(&self, token: &Token) -> Result<String, DemoError> {
        let inner = lock(&self.inner);
        let issued = (self.now)() - token.age;
        let mut claims = self.ci.claims();
        claims.insert("iss".to_owned(), json!(self.url));
        claims.insert("jti".to_owned(), json!(key_id()?));
        claims.insert("iat".to_owned(), json!(issued));
        claims.insert("nbf".to_owned(), json!(issued - self.ci.backdating()));
        claims.insert("exp".to_owned(), json!(issued + token.lifetime.unwrap_or(self.ci.lifetime())));
        overlay(&mut claims, &inner.job);
        overlay(&mut claims, &token.claims);
        if !(inner.job.contains_key("sub") || token.claims.contains_key("sub")) {
            claims.insert("sub".to_owned(), json!(self.ci.subject(&claims)));
        }
        let key = match token.algorithm {
            None => inner.keys.last().ok_or(DemoError::NoKey("signing"))?,
            Some(wanted) => {
                inner.keys.iter().rfind(|key| key.algorithm == wanted).ok_or(DemoError::NoKey(wanted.name()))?
            }
        };
        let mut header = Map::from_iter([
            ("typ".to_owned(), json!("JWT")),
            ("alg".to_owned(), json!(key.algorithm.name())),
            ("kid".to_owned(), json!(key.kid)),
        ]);
        overlay(&mut header, &token.header);
        compact(key, &Value::Object(header).to_string(), &Value::Object(claims).to_string())
    }

    fn jwks(&self) -> Value {
        json!({ "keys": lock(&self.inner).keys.iter().map(Key::jwk).collect::<Vec<_>>() })
    }

    fn fault(&self, document: Document) -> Option<Fault> {
        let mut inner = lock(&self.inner);
        let count = match document {
            Document::Discovery => &mut inner.requests.discovery,
            Document::Jwks => &mut inner.requests.jwks,
            Document::Token => &mut inner.requests.token,
        };
        *count += 1;
        inner.faults.iter().find(|(other, _)| *other == document).map(|(_, fault)| fault.clone())
    }
}

async fn discovery(State(issuer): State<Arc<Shared>>) -> Response {
    let url = &issuer.url;
    let algorithms: Vec<_> = lock(&issuer.inner).keys.iter().map(|key| key.algorithm.name()).collect();
    let document = json!({
        "issuer": url,
        "jwks_uri": format!("{url}{}", issuer.ci.jwks_path()),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public", "pairwise"],
        "id_token_signing_alg_values_supported": algorithms,
        "scopes_supported": ["openid"],
        "claims_supported": ["sub", "aud", "exp", "iat", "iss", "jti", "nbf"],
    });
    respond(issuer.fault(Document::Discovery), document).await
}

async fn jwks(State(issuer): State<Arc<Shared>>) -> Response {
    respond(issuer.fault(Document::Jwks), issuer.jwks()).await
}

async fn token(State(issuer): State<Arc<Shared>>, headers: HeaderMap, uri: Uri) -> Response {
    let fault = issuer.fault(Document::Token);
    let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, secret) = presented.split_once(' ').unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") || secret != issuer.request_token.expose() {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "message": "the request token is not valid" })))
            .into_response();
    }
    let audience = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .find_map(|(name, value)| (name == "audience").then(|| value.into_owned()))
        // GitHub's default is the page of the repository's owner.
        .unwrap_or_else(|| "https://github.com/acme".to_owned());
    match issuer.mint(&Token::for_audience(audience)) {
        Ok(value) => respond(fault, json!({ "count": 1, "value": value })).await,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn respond(fault: Option<Fault>, document: Value) -> Response {
    let json = |body: String| ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response();
    match fault {
        None => json(document.to_string()),
        Some(Fault::Status(status)) => {
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response()
        }
        Some(Fault::Body(body)) => json(body),
        Some(Fault::Redirect(to)) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Some(Fault::Padded(bytes)) => json(" ".repeat(bytes) + &document.to_string()),
        Some(Fault::Stall) => std::future::pending().await,
    }
}

fn overlay(base: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (name, value) in changes {
        if value.is_null() {
            base.remove(name);
        } else {
            base.insert(name.clone(), value.clone());
        }
    }
}

fn compact(key: &Key, header: &str, payload: &str) -> Result<String, DemoError> {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(input.as_bytes())?);
    Ok(format!("{input}.{signature}"))
}

/// A random UUID, as CI providers use them for `kid` and `jti`.
fn key_id() -> Result<String, DemoError> {
    Ok(uuid::Builder::from_random_bytes(random()?).into_uuid().to_string())
}
