//! The ledger: a small HTTP API on loopback that makes and deletes named keys, so that a credential
//! can be seen to work and then not. It writes down what it did, and misbehaves on request the way
//! real APIs do: late, twice, after the caller gave up, or with the answer lost.
//!
//! | request | who | answer |
//! | --- | --- | --- |
//! | `POST /keys {name, note, expires_at}` | admin | 201 `{id, name, key}`; `expires_at` in epoch seconds |
//! | `GET /keys` | admin | `{keys: [{id, name, note, expires_at}]}` |
//! | `DELETE /keys/{name}` | admin | 204, whether or not there was one; removes every key of that name |
//! | `GET /entries` | a key | `{entries: […]}`; 401 once the key is deleted or expired |
//! | `GET /log` | admin | `{log: [{at, act, id, name}]}` |
//! | `POST /faults [{on, times, …}]` | admin | 204; replaces the list of faults to come |

use super::{
    DemoError, Now, lock,
    loopback::{self, Cut, Listening},
    random,
};
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_protocol::Secret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A key as the ledger lists it: everything but the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The ledger's own number for it.
    pub id: u64,
    /// The name that its maker chose; not unique.
    pub name: String,
    /// Whatever its maker wrote down.
    pub note: String,
    /// When it stops working, in seconds since the epoch; never, when absent.
    pub expires_at: Option<i64>,
}

/// What the ledger did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It made a key.
    Created,
    /// It deleted a key.
    Deleted,
}

/// One line of the ledger's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Seconds since the epoch.
    pub at: i64,
    /// What it did.
    pub act: Act,
    /// To which key.
    pub id: u64,
    /// The key's name.
    pub name: String,
}

/// Which requests a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// `POST /keys`.
    Create,
    /// `DELETE /keys/{name}`.
    Delete,
}

/// What the caller sees of a request that met a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The true one.
    #[default]
    Honest,
    /// None: the connection is cut.
    Cut,
    /// 200 with a body that is not JSON.
    Garbage,
    /// This status, with `Retry-After: 1`.
    Status(u16),
}

/// One way to misbehave. The act happens even when the caller has gone away meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Which requests it meets.
    pub on: On,
    /// How many of them, before it is used up.
    #[serde(default = "once")]
    pub times: u32,
    /// Milliseconds between the request and the act.
    #[serde(default)]
    pub late_ms: u64,
    /// How often the act is done: 0 loses the request, 2 does it twice.
    #[serde(default = "once")]
    pub acts: u32,
    /// Milliseconds between the act and the answer.
    #[serde(default)]
    pub slow_ms: u64,
    /// What the caller is told.
    #[serde(default)]
    pub answer: Answer,
}

const fn once() -> u32 {
    1
}

impl Fault {
    /// A request like any other; the start of a fault.
    #[must_use]
    pub const fn on(on: On) -> Self {
        Self { on, times: 1, late_ms: 0, acts: 1, slow_ms: 0, answer: Answer::Honest }
    }
}

/// A running ledger; dropping it closes its port.
pub struct Ledger {
    url: String,
    shared: Arc<Shared>,
    _listening: Listening,
}

struct Shared {
    admin_token: Secret,
    now: Now,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    keys: Vec<(Entry, Secret)>,
    log: Vec<LogLine>,
    faults: Vec<Fault>,
}

impl Ledger {
    /// Starts an empty ledger at a loopback address (port 0: any free one).
    ///
    /// `now` tells the seconds since the epoch.
    ///
    /// # Errors
    /// When the port cannot be bound or there are no random bytes.
    pub async fn start(address: SocketAddr, now: impl Fn() -> i64 + Send + Sync + 'static) -> Result<Self, DemoError> {
        let (listener, url) = loopback::bind(address).await?;
        let admin_token = Secret::new(format!("lda_{}", URL_SAFE_NO_PAD.encode(random::<24>()?)));
        let shared = Arc::new(Shared { admin_token, now: Box::new(now), inner: Mutex::default() });
        let router = Router::new()
            .route("/keys", post(create).get(list))
            .route("/keys/{name}", delete(remove))
            .route("/log", get(log))
            .route("/faults", post(faults))
            .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), admins_only))
            .route("/entries", get(entries))
            .with_state(Arc::clone(&shared));
        Ok(Self { url, shared, _listening: loopback::serve(listener, router) })
    }

    /// The API's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The bearer token of its administrator.
    #[must_use]
    pub fn admin_token(&self) -> &Secret {
        &self.shared.admin_token
    }

    /// The keys that exist now.
    #[must_use]
    pub fn keys(&self) -> Vec<Entry> {
        self.shared.keys()
    }

    /// All that it did so far.
    #[must_use]
    pub fn log(&self) -> Vec<LogLine> {
        lock(&self.shared.inner).log.clone()
    }

    /// Replaces the list of faults to come; the first that fits a request meets it.
    pub fn misbehave(&self, faults: Vec<Fault>) {
        lock(&self.shared.inner).faults = faults;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    #[serde(default)]
    note: String,
    expires_at: Option<i64>,
}

#[derive(Serialize)]
struct Made {
    id: u64,
    name: String,
    key: String,
}

impl Shared {
    fn keys(&self) -> Vec<Entry> {
        lock(&self.inner).keys.iter().map(|(entry, _)| entry.clone()).collect()
    }

    fn create(&self, wanted: &Wanted) -> Result<Made, DemoError> {
        let key = format!("ldg_{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        let mut inner = lock(&self.inner);
        inner.next_id += 1;
        let Wanted { name, note, expires_at } = wanted;
        let entry = Entry { id: inner.next_id, name: name.clone(), note: note.clone(), expires_at: *expires_at };
        let made = Made { id: entry.id, name: name.clone(), key: key.clone() };
        inner.log.push(LogLine { at: (self.now)(), act: Act::Created, id: entry.id, name: name.clone() });
        inner.keys.push((entry, Secret::new(key)));
        Ok(made)
    }

    fn remove(&self, name: &str) {
        let at = (self.now)();
        let Inner { keys, log, .. } = &mut *lock(&self.inner);
        for (entry, _) in keys.extract_if(.., |(entry, _)| entry.name == name) {
            log.push(LogLine { at, act: Act::Deleted, id: entry.id, name: entry.name });
        }
    }

    /// The fault that meets a request, used up by one.
    fn fault(&self, on: On) -> Fault {
        let faults = &mut lock(&self.inner).faults;
        let Some(at) = faults.iter().position(|fault| fault.on == on) else { return Fault::on(on) };
        let fault = faults[at];
        if fault.times <= 1 {
            faults.remove(at);
        } else {
            faults[at].times -= 1;
        }
        fault
    }
}

/// Does `act` as the fault says, in a task of its own so that a caller who leaves does not undo it.
async fn perform(fault: Fault, act: impl Fn() -> Response + Send + 'static) -> Response {
    let task = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(fault.late_ms)).await;
        let mut honest = StatusCode::SERVICE_UNAVAILABLE.into_response();
        for _ in 0..fault.acts {
            honest = act();
        }
        tokio::time::sleep(Duration::from_millis(fault.slow_ms)).await;
        honest
    });
    let honest = task.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response());
    match fault.answer {
        Answer::Honest => honest,
        Answer::Cut => axum::Extension(Cut).into_response(),
        Answer::Garbage => "<html>a proxy's page".into_response(),
        Answer::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, [(header::RETRY_AFTER, "1")]).into_response()
        }
    }
}

async fn create(State(ledger): State<Arc<Shared>>, Json(wanted): Json<Wanted>) -> Response {
    perform(ledger.fault(On::Create), move || match ledger.create(&wanted) {
        Ok(made) => (StatusCode::CREATED, Json(made)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    })
    .await
}

async fn remove(State(ledger): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    perform(ledger.fault(On::Delete), move || {
        ledger.remove(&name);
        StatusCode::NO_CONTENT.into_response()
    })
    .await
}

async fn list(State(ledger): State<Arc<Shared>>) -> Response {
    Json(json!({ "keys": ledger.keys() })).into_response()
}

async fn log(State(ledger): State<Arc<Shared>>) -> Response {
    Json(json!({ "log": lock(&ledger.inner).log })).into_response()
}

async fn faults(State(ledger): State<Arc<Shared>>, Json(faults): Json<Vec<Fault>>) -> StatusCode {
    lock(&ledger.inner).faults = faults;
    StatusCode::NO_CONTENT
}

async fn entries(State(ledger): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let now = (ledger.now)();
    let inner = lock(&ledger.inner);
    let alive = |entry: &Entry| entry.expires_at.is_none_or(|end| now < end);
    match inner.keys.iter().find(|(entry, key)| bearer(&headers) == Some(key.expose()) && alive(entry)) {
        Some((entry, _)) => Json(json!({ "key": entry.name, "entries": [
            { "account": "4000 sales", "amount": "1280.00" },
            { "account": "1200 bank", "amount": "-1280.00" },
        ]}))
        .into_response(),
        None => unauthorized(),
    }
}

async fn admins_only(State(ledger): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if bearer(request.headers()) == Some(ledger.admin_token.expose()) {
        next.run(request).await
    } else {
        unauthorized()
    }
}

fn unauthorized() -> Response {
    (StatusCode::UNAUTHORIZED, Json(json!({ "message": "no such key" }))).into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}
