//! GitLab's REST API for project and group access tokens, as strict as its reference says ("Project access
//! tokens", "Group access tokens"): scopes, roles and dates are checked, lists come in pages, and a token ends
//! at midnight UTC.

use crate::ports;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// The administrator's token: Maintainer of both places.
pub const ADMIN_TOKEN: &str = "glpat-administrator";
/// Places by kind and by what names them.
const PLACES: [(&str, &str); 2] = [("projects", "772002"), ("groups", "acme/team")];
const SCOPES: [&str; 5] = ["api", "read_api", "read_repository", "write_repository", "read_registry"];
const MAINTAINER: u64 = 40;

#[derive(Clone)]
struct Token {
    id: u64,
    place: (String, String),
    name: String,
    text: String,
    scopes: Vec<String>,
    level: u64,
    expires_at: String,
    revoked: bool,
}

#[derive(Default)]
struct Inner {
    tokens: Vec<Token>,
    /// The place that was named last.
    named: String,
    lose_answers: u32,
    rotations: u32,
}

struct Shared {
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    inner: Mutex<Inner>,
}

/// A running API; ended on drop.
pub struct GitLabApi {
    /// Its address.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl GitLabApi {
    /// Starts it; `now` tells the seconds since the epoch.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Shared { now: Box::new(now), inner: Mutex::default() });
        let router = Router::new()
            .route("/api/v4/{kind}/{place}/access_tokens", post(create).get(list))
            .route("/api/v4/{kind}/{place}/access_tokens/{id}", delete(revoke))
            .route("/api/v4/{kind}/{place}/files", get(read).put(write))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the API keeps serving") });
        Self { url, shared, task }
    }

    /// The names of the tokens that are not revoked.
    #[must_use]
    pub fn live(&self) -> Vec<String> {
        self.shared.inner().tokens.iter().filter(|token| !token.revoked).map(|token| token.name.clone()).collect()
    }

    /// The place that a token was last asked for.
    #[must_use]
    pub fn named(&self) -> String {
        self.shared.inner().named.clone()
    }

    /// Makes tokens that are nobody's business, more than fit a page.
    pub fn crowd(&self) {
        let mut inner = self.shared.inner();
        for _ in 0..250 {
            let token = Token {
                id: inner.tokens.len() as u64 + 1,
                place: ("projects".to_owned(), "772002".to_owned()),
                name: "of another".to_owned(),
                text: Uuid::new_v4().simple().to_string(),
                scopes: vec!["api".to_owned()],
                level: 30,
                expires_at: "2099-01-01".to_owned(),
                revoked: false,
            };
            inner.tokens.push(token);
        }
    }

    /// Acts on the next creations and answers 502.
    pub fn lose_answers(&self, times: u32) {
        self.shared.inner().lose_answers = times;
    }

    /// Before each of the next deletions the job rotates its token, as `personal_access_tokens/self/rotate` does.
    pub fn rotate_meanwhile(&self, times: u32) {
        self.shared.inner().rotations = times;
    }
}

impl Drop for GitLabApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test dies in here")
    }

    fn today(&self) -> String {
        jiff::Timestamp::from_second((self.now)()).expect("a time").to_string()[..10].to_owned()
    }

    #[expect(clippy::result_large_err, reason = "an answer is what refuses here, and nothing counts its bytes")]
    fn admits(&self, headers: &HeaderMap, kind: &str, place: &str) -> Result<(), Response> {
        if headers.get("private-token").and_then(|value| value.to_str().ok()) != Some(ADMIN_TOKEN) {
            return Err(problem(StatusCode::UNAUTHORIZED, "401 Unauthorized"));
        }
        if !PLACES.contains(&(kind, place)) {
            return Err(problem(StatusCode::NOT_FOUND, "404 Not Found"));
        }
        Ok(())
    }

    fn uses(&self, headers: &HeaderMap, kind: &str, place: &str, scopes: &[&str], level: u64) -> Response {
        let text =
            headers.get("authorization").and_then(|v| v.to_str().ok()?.strip_prefix("Bearer ")).unwrap_or_default();
        let (today, inner) = (self.today(), self.inner());
        let token = inner.tokens.iter().find(|token| token.text == text && !token.revoked && today < token.expires_at);
        let Some(token) = token else { return problem(StatusCode::UNAUTHORIZED, "401 Unauthorized") };
        if token.place != (kind.to_owned(), place.to_owned()) {
            return problem(StatusCode::NOT_FOUND, "404 Not Found");
        }
        if token.level < level || !token.scopes.iter().any(|scope| scopes.contains(&scope.as_str())) {
            return problem(StatusCode::FORBIDDEN, "insufficient_scope");
        }
        Json(json!([])).into_response()
    }
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}

async fn create(
    State(api): State<Arc<Shared>>,
    Path((kind, place)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    api.inner().named.clone_from(&place);
    if let Err(refusal) = api.admits(&headers, &kind, &place) {
        return refusal;
    }
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let known = ["name", "scopes", "access_level", "expires_at", "description"];
    let scopes: Vec<String> = serde_json::from_value(asked["scopes"].clone()).unwrap_or_default();
    let (name, level) =
        (asked["name"].as_str().unwrap_or_default(), asked["access_level"].as_u64().unwrap_or(MAINTAINER));
    let (expires_at, today) = (asked["expires_at"].as_str().unwrap_or_default().to_owned(), api.today());
    let wrong = if asked.as_object().is_none_or(|asked| asked.keys().any(|key| !known.contains(&key.as_str()))) {
        Some("an unknown parameter")
    } else if name.is_empty() || name.len() > 255 {
        Some("name is invalid")
    } else if scopes.is_empty() || !scopes.iter().all(|scope| SCOPES.contains(&scope.as_str())) {
        Some("scopes does not have a valid value")
    } else if ![10, 15, 20, 30, 40, 50].contains(&level) {
        Some("access_level does not have a valid value")
    } else if expires_at.len() != 10 || expires_at <= today {
        Some("expires_at is invalid: must be in the future")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return problem(StatusCode::BAD_REQUEST, wrong);
    }
    if level > MAINTAINER {
        return problem(
            StatusCode::BAD_REQUEST,
            "Access level of the token can't be greater than the access level of the user who created the token",
        );
    }
    let mut inner = api.inner();
    let id = inner.tokens.len() as u64 + 1;
    let text = format!("glpat-{}", Uuid::new_v4().simple());
    let token =
        Token { id, place: (kind, place), name: name.to_owned(), text, scopes, level, expires_at, revoked: false };
    let answer =
        json!({ "id": id, "name": token.name, "token": token.text, "expires_at": token.expires_at, "active": true });
    inner.tokens.push(token);
    if inner.lose_answers > 0 {
        inner.lose_answers -= 1;
        return problem(StatusCode::BAD_GATEWAY, "502");
    }
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn list(
    State(api): State<Arc<Shared>>,
    Path((kind, place)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = api.admits(&headers, &kind, &place) {
        return refusal;
    }
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let number = |name: &str, default: usize| query.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (page, size) = (number("page", 1), number("per_page", 20).min(100));
    let inner = api.inner();
    // As versions without a search do: everything, active or not, a page at a time.
    let here = inner.tokens.iter().filter(|token| token.place == (kind.clone(), place.clone()));
    let listed = here.skip((page - 1) * size).take(size);
    let listed: Vec<Value> =
        listed.map(|token| json!({ "id": token.id, "name": token.name, "revoked": token.revoked })).collect();
    Json(listed).into_response()
}

async fn revoke(
    State(api): State<Arc<Shared>>,
    Path((kind, place, id)): Path<(String, String, u64)>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = api.admits(&headers, &kind, &place) {
        return refusal;
    }
    let mut inner = api.inner();
    if inner.rotations > 0
        && let Some(old) = inner.tokens.iter_mut().find(|token| token.id == id && !token.revoked)
    {
        let text = format!("glpat-{}", Uuid::new_v4().simple());
        let mut next = Token { text, ..old.clone() };
        old.revoked = true;
        next.id = inner.tokens.len() as u64 + 1;
        inner.tokens.push(next);
        inner.rotations -= 1;
    }
    match inner
        .tokens
        .iter_mut()
        .find(|token| token.id == id && token.place == (kind.clone(), place.clone()) && !token.revoked)
    {
        Some(token) => {
            token.revoked = true;
            StatusCode::NO_CONTENT.into_response()
        }
        None => problem(StatusCode::NOT_FOUND, "404 Not Found"),
    }
}

async fn read(api: State<Arc<Shared>>, Path((kind, place)): Path<(String, String)>, headers: HeaderMap) -> Response {
    api.uses(&headers, &kind, &place, &["api", "read_api", "read_repository", "write_repository"], 20)
}

async fn write(api: State<Arc<Shared>>, Path((kind, place)): Path<(String, String)>, headers: HeaderMap) -> Response {
    api.uses(&headers, &kind, &place, &["api", "write_repository"], 30)
}
