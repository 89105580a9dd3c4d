//! GitHub's REST API for Apps, as strict as its reference says (version 2022-11-28): "Create an installation
//! access token for an app", "Revoke an installation access token", "List repositories accessible to the app
//! installation", "Get repository content". It lies under `/api/v3`, as on GitHub Enterprise Server.
//!
//! With a validator behind it (GitHub's own OpenAPI description), every request goes there too, and one that
//! the description does not allow is refused and noted.

use crate::{http::client, ports};
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeySize, PublicKeyComponents},
    signature::{KeyPair as _, RsaKeyPair},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// The account's repositories, by id and name.
pub const REPOSITORIES: [(u64, &str); 2] = [(772_002, "api"), (772_003, "web")];
/// What the installation may do.
const GRANTED: [(&str, &str); 3] = [("contents", "write"), ("issues", "read"), ("metadata", "read")];
/// What GitHub gives a token.
const LIFETIME: i64 = 3600;

/// A running API; ended on drop.
pub struct GitHubApi {
    /// Its address, for the backend's `api_url`.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// An App that is installed there.
struct App {
    key: DecodingKey,
    remaining: u32,
}

struct Token {
    text: String,
    expires_at: i64,
    repositories: Vec<u64>,
    permissions: BTreeMap<String, String>,
    revoked: bool,
}

#[derive(Default)]
struct Inner {
    /// By client id; the n-th has the installation n.
    apps: BTreeMap<String, App>,
    tokens: Vec<Token>,
    asked: Vec<String>,
    /// The body of the last request for a token.
    body: Value,
    violations: Vec<String>,
    lose_answers: u32,
    give_more: bool,
}

struct Shared {
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    validator: Option<String>,
    inner: Mutex<Inner>,
}

impl GitHubApi {
    /// Starts it; `now` tells the seconds since the epoch, `validator` is where the description is served.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static, validator: Option<String>) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
        let url = format!("http://{}/api/v3", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Shared { now: Box::new(now), validator, inner: Mutex::default() });
        let api = Router::new()
            .route("/app/installations/{id}/access_tokens", post(create))
            .route("/installation/token", delete(revoke))
            .route("/installation/repositories", get(repositories))
            .route("/repos/{owner}/{repo}/contents/{path}", get(read_content).put(write_content))
            .with_state(Arc::clone(&shared));
        let router = Router::new().nest("/api/v3", api);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the API keeps serving") });
        Self { url, shared, task }
    }

    /// Installs an App; returns its private key in PEM, as GitHub gives it.
    #[must_use]
    pub fn install(&self, client_id: &str, requests: u32) -> String {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let app = App { key: DecodingKey::from_rsa_raw_components(&n, &e), remaining: requests };
        self.shared.inner().apps.insert(client_id.to_owned(), app);
        let der: Pkcs8V1Der<'_> = pair.as_der().expect("a key has an encoding");
        let body: Vec<String> = STANDARD
            .encode(der.as_ref())
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8_lossy(line).into())
            .collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", body.join("\n"))
    }

    /// Which Apps made tokens, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.shared.inner().asked.clone()
    }

    /// The body of the last request for a token.
    #[must_use]
    pub fn body(&self) -> Value {
        self.shared.inner().body.clone()
    }

    /// Which requests the description did not allow.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.shared.inner().violations.clone()
    }

    /// How many tokens work now.
    #[must_use]
    pub fn live(&self) -> usize {
        let now = (self.shared.now)();
        self.shared.inner().tokens.iter().filter(|token| !token.revoked && now < token.expires_at).count()
    }

    /// Acts on the next creations and answers 502.
    pub fn lose_answers(&self, times: u32) {
        self.shared.inner().lose_answers = times;
    }

    /// Gives more than is asked for from now on.
    pub fn give_more(&self) {
        self.shared.inner().give_more = true;
    }
}

impl Drop for GitHubApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test dies in here")
    }

    /// Has the description look at a request.
    async fn validate(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Result<(), Response> {
        let Some(validator) = &self.validator else { return Ok(()) };
        let mut headers = headers.clone();
        headers.remove("host");
        let request = client().request(method.clone(), format!("{validator}{}", uri.path())).headers(headers);
        let answer = request.body(body.clone()).timeout(Duration::from_secs(30)).send().await.expect("it answers");
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = format!("{method} {uri}: {status} {}", answer.text().await.unwrap_or_default());
        self.inner().violations.push(text.clone());
        Err(problem(StatusCode::IM_A_TEAPOT, &text))
    }
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message, "documentation_url": "https://docs.github.com/rest" }))).into_response()
}

fn bearer(headers: &HeaderMap) -> &str {
    headers.get("authorization").and_then(|v| v.to_str().ok()?.strip_prefix("Bearer ")).unwrap_or_default()
}

async fn create(
    State(api): State<Arc<Shared>>,
    Path(installation): Path<usize>,
    (method, uri, headers, body): (Method, Uri, HeaderMap, Bytes),
) -> Response {
    if let Err(refusal) = api.validate(&method, &uri, &headers, &body).await {
        return refusal;
    }
    let now = (api.now)();
    let mut inner = api.inner();
    let client = match client_of(&inner, bearer(&headers), now) {
        Ok(client) => client,
        Err(why) => return problem(StatusCode::UNAUTHORIZED, why),
    };
    let Some((_, app)) =
        inner.apps.iter_mut().enumerate().find(|(n, (name, _))| *n + 1 == installation && **name == client)
    else {
        return problem(StatusCode::NOT_FOUND, "Not Found");
    };
    let app = app.1;
    if app.remaining == 0 {
        let headers = [("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", (now + 600).to_string())];
        return (headers, problem(StatusCode::FORBIDDEN, "API rate limit exceeded")).into_response();
    }
    app.remaining -= 1;
    let limits = [("x-ratelimit-remaining", app.remaining.to_string()), ("x-ratelimit-reset", (now + 600).to_string())];
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    inner.body.clone_from(&asked);
    let token = match narrow(&asked, inner.give_more) {
        Ok((repositories, permissions)) => {
            let text = format!("ghs_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            Token { text, expires_at: now + LIFETIME, repositories, permissions, revoked: false }
        }
        Err(why) => return (limits, problem(StatusCode::UNPROCESSABLE_ENTITY, &why)).into_response(),
    };
    let expires_at = jiff::Timestamp::from_second(token.expires_at).expect("a time").to_string();
    let selection = if token.repositories.len() == REPOSITORIES.len() { "all" } else { "selected" };
    let answer = json!({
        "token": token.text, "expires_at": expires_at, "permissions": token.permissions, "repository_selection": selection,
    });
    inner.tokens.push(token);
    inner.asked.push(client);
    if inner.lose_answers > 0 {
        inner.lose_answers -= 1;
        return problem(StatusCode::BAD_GATEWAY, "Server Error");
    }
    (StatusCode::CREATED, limits, Json(answer)).into_response()
}

/// The App whose JWT this is: RS256 by its key, `exp` at most ten minutes ahead, `iat` not in the future.
fn client_of(inner: &Inner, jwt: &str, now: i64) -> Result<String, &'static str> {
    let claims = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(jwt)
        .map_err(|_| "A JSON web token could not be decoded")?;
    let client = claims.claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    let app = inner.apps.get(client).ok_or("'Issuer' claim ('iss') must be an Integer or a client id")?;
    let mut rules = Validation::new(Algorithm::RS256);
    (rules.validate_exp, rules.validate_aud) = (false, false);
    rules.set_required_spec_claims(&["iss", "exp"]);
    let claims =
        jsonwebtoken::decode::<Map<String, Value>>(jwt, &app.key, &rules).map_err(|_| "Bad credentials")?.claims;
    let time = |name: &str| claims.get(name).and_then(Value::as_i64).unwrap_or(i64::MAX);
    match (time("iat"), time("exp")) {
        (iat, _) if iat > now => {
            Err("'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued")
        }
        (_, exp) if exp <= now => {
            Err("'Expiration time' claim ('exp') must be a numeric value representing the future time")
        }
        (_, exp) if exp > now + 600 => Err("'Expiration time' claim ('exp') is too far in the future"),
        _ => Ok(client.to_owned()),
    }
}

/// What a token may be for: no more than the installation has.
fn narrow(asked: &Value, give_more: bool) -> Result<(Vec<u64>, BTreeMap<String, String>), String> {
    let mut repositories = Vec::new();
    for id in asked["repository_ids"].as_array().into_iter().flatten() {
        repositories.extend(REPOSITORIES.iter().find(|(known, _)| Some(*known) == id.as_u64()).map(|(id, _)| *id));
        if repositories.is_empty() {
            return Err(
                "There is at least one repository that does not exist or is not accessible to the parent installation."
                    .to_owned(),
            );
        }
    }
    for name in asked["repositories"].as_array().into_iter().flatten() {
        let known = REPOSITORIES.iter().find(|(_, known)| Some(*known) == name.as_str()).map(|(id, _)| *id);
        repositories.push(known.ok_or("There is at least one repository that does not exist")?);
    }
    if repositories.is_empty() {
        repositories = REPOSITORIES.iter().map(|(id, _)| *id).collect();
    }
    let mut permissions = BTreeMap::from([("metadata".to_owned(), "read".to_owned())]);
    for (name, level) in asked["permissions"].as_object().into_iter().flatten() {
        let level = level.as_str().unwrap_or_default();
        let granted = GRANTED.iter().find(|(known, _)| known == name).map(|(_, level)| *level);
        if granted != Some("write") && granted != Some(level) {
            return Err("The permissions requested are not granted to this installation.".to_owned());
        }
        permissions.insert(name.clone(), level.to_owned());
    }
    if give_more {
        permissions.insert("contents".to_owned(), "write".to_owned());
    }
    Ok((repositories, permissions))
}

async fn revoke(
    State(api): State<Arc<Shared>>,
    (method, uri, headers, body): (Method, Uri, HeaderMap, Bytes),
) -> Response {
    if let Err(refusal) = api.validate(&method, &uri, &headers, &body).await {
        return refusal;
    }
    let now = (api.now)();
    match live(&mut api.inner().tokens, bearer(&headers), now) {
        Some(token) => {
            token.revoked = true;
            StatusCode::NO_CONTENT.into_response()
        }
        None => problem(StatusCode::UNAUTHORIZED, "Bad credentials"),
    }
}

fn live<'t>(tokens: &'t mut [Token], text: &str, now: i64) -> Option<&'t mut Token> {
    tokens.iter_mut().find(|token| token.text == text && !token.revoked && now < token.expires_at)
}

async fn repositories(State(api): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let now = (api.now)();
    match live(&mut api.inner().tokens, bearer(&headers), now) {
        Some(token) => {
            Json(json!({ "total_count": token.repositories.len(), "ids": token.repositories })).into_response()
        }
        None => problem(StatusCode::UNAUTHORIZED, "Bad credentials"),
    }
}

async fn read_content(api: State<Arc<Shared>>, path: Path<(String, String, String)>, headers: HeaderMap) -> Response {
    content(&api, &path.1, &headers, &["read", "write"])
}

async fn write_content(api: State<Arc<Shared>>, path: Path<(String, String, String)>, headers: HeaderMap) -> Response {
    content(&api, &path.1, &headers, &["write"])
}

fn content(api: &Shared, repository: &str, headers: &HeaderMap, levels: &[&str]) -> Response {
    let now = (api.now)();
    let mut inner = api.inner();
    let Some(token) = live(&mut inner.tokens, bearer(headers), now) else {
        return problem(StatusCode::UNAUTHORIZED, "Bad credentials");
    };
    let id = REPOSITORIES.iter().find(|(_, name)| *name == repository).map(|(id, _)| *id);
    if !id.is_some_and(|id| token.repositories.contains(&id)) {
        return problem(StatusCode::NOT_FOUND, "Not Found");
    }
    if !token.permissions.get("contents").is_some_and(|level| levels.contains(&level.as_str())) {
        return problem(StatusCode::FORBIDDEN, "Resource not accessible by integration");
    }
    Json(json!({ "type": "file", "path": "README.md" })).into_response()
}
