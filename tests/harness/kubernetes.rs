//! A Kubernetes API server by its published API: Secrets, TokenRequest and a list of pods, with the checks
//! that the real one makes of them.
//!
//! Kubernetes API reference, "TokenRequest v1", "Secret v1", "Status v1"; "Managing Service Accounts".

use crate::{
    form,
    https::{self, Certificate, Serving},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::task::JoinHandle;

/// The token of the identity that may make and delete Secrets and ask for tokens, in namespace `prod` only.
pub const ADMIN: &str = "kubernetes-admin-token-0123456789";

/// A running API server; ended on drop.
pub struct Kubernetes {
    /// Its address.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By name; all in `prod`.
    secrets: BTreeMap<String, Value>,
    tokens: BTreeMap<String, Token>,
    refused: Vec<String>,
}

struct Token {
    /// The Secret's name and uid that it is bound to.
    bound: Option<(String, String)>,
    for_us: bool,
    expires: i64,
}

/// A status, the reason and a message of a `Status` object.
type Refusal = (StatusCode, &'static str, String);

fn refuse<T>(status: u16, reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err((StatusCode::from_u16(status).expect("a status"), reason, message.into()))
}

impl Kubernetes {
    /// Starts it, with the service account `deploy` in namespace `prod`, which may list pods there.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let (url, serve) = https::plain().await;
        Self::serve(url, serve, now)
    }

    /// The same over https.
    pub async fn start_tls(certificate: &Certificate, now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let (url, serve) = certificate.server().await;
        Self::serve(url, serve, now)
    }

    fn serve(
        url: String,
        serve: impl FnOnce(Router) -> Serving,
        now: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { now: Box::new(now), inner: Mutex::default() });
        let serving = serve(Router::new().fallback(handle).with_state(Arc::clone(&shared)));
        let task = tokio::spawn(async move { serving.await.expect("it keeps serving") });
        Self { url, shared, task }
    }

    /// The Secrets that there are.
    #[must_use]
    pub fn secrets(&self) -> Vec<Value> {
        self.shared.inner().secrets.values().cloned().collect()
    }

    /// Why requests were refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.shared.inner().refused.clone()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn handle(
    State(server): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match server.answer(&method, uri.path(), &headers, &body) {
        Ok((status, answer)) => (status, Json(answer)).into_response(),
        Err((status, reason, message)) => {
            server.inner().refused.push(format!("{reason}: {message}"));
            let code = status.as_u16();
            let body = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "code": code,
            });
            (status, Json(body)).into_response()
        }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test dies in here")
    }

    fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(StatusCode, Value), Refusal> {
        let Some(token) = form::bearer(headers) else { return refuse(401, "Unauthorized", "Unauthorized") };
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if token != ADMIN {
            self.authenticate(token)?;
        }
        match (method, parts.as_slice()) {
            // What kubectl asks first.
            (&Method::GET, ["api"]) => Ok((StatusCode::OK, json!({ "kind": "APIVersions", "versions": ["v1"] }))),
            (&Method::GET, ["apis"]) => {
                Ok((StatusCode::OK, json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })))
            }
            (&Method::GET, ["api", "v1"]) => {
                let pods = json!({ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"] });
                let list = json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [pods] });
                Ok((StatusCode::OK, list))
            }
            (&Method::GET, ["api", "v1", "namespaces", "prod", "pods"]) => {
                let pod = json!({
                    "metadata": { "name": "api-0", "namespace": "prod", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z" },
                    "spec": { "containers": [] }, "status": { "phase": "Running" },
                });
                let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod] });
                Ok((StatusCode::OK, list))
            }
            (_, ["api", "v1", "namespaces", "prod", rest @ ..]) if token == ADMIN => {
                self.administer(method, rest, headers, body)
            }
            _ => refuse(403, "Forbidden", format!("cannot {method} {path}")),
        }
    }

    /// A bound token is good for as long as what it is bound to is there, under the same uid.
    fn authenticate(&self, token: &str) -> Result<(), Refusal> {
        let inner = self.inner();
        let good = inner.tokens.get(token).is_some_and(|token| {
            let bound = token.bound.as_ref().is_none_or(|(name, uid)| {
                inner.secrets.get(name).is_some_and(|secret| secret["metadata"]["uid"] == uid.as_str())
            });
            token.for_us && token.expires > (self.now)() && bound
        });
        if good { Ok(()) } else { refuse(401, "Unauthorized", "Unauthorized") }
    }

    fn administer(
        &self,
        method: &Method,
        rest: &[&str],
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(StatusCode, Value), Refusal> {
        let mut inner = self.inner();
        if method == Method::DELETE {
            let ["secrets", name] = rest else { return refuse(405, "MethodNotAllowed", "not this") };
            return match inner.secrets.remove(*name) {
                Some(_) => Ok((StatusCode::OK, json!({ "kind": "Status", "status": "Success" }))),
                None => refuse(404, "NotFound", format!("secrets \"{name}\" not found")),
            };
        }
        if headers.get("content-type").is_none_or(|kind| kind != "application/json") {
            return refuse(415, "UnsupportedMediaType", "the body is not JSON");
        }
        let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
            return refuse(400, "BadRequest", "the body is not JSON");
        };
        match rest {
            ["secrets"] => {
                if (&object["apiVersion"], &object["kind"]) != (&json!("v1"), &json!("Secret")) {
                    return refuse(400, "BadRequest", "not a v1 Secret");
                }
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
                if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
                    return refuse(422, "Invalid", "metadata.name: a lowercase RFC 1123 subdomain");
                }
                if inner.secrets.contains_key(&name) {
                    return refuse(409, "AlreadyExists", format!("secrets \"{name}\" already exists"));
                }
                object["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
                inner.secrets.insert(name, object.clone());
                Ok((StatusCode::CREATED, object))
            }
            ["serviceaccounts", "deploy", "token"] => {
                let spec = &object["spec"];
                let kind = (&object["apiVersion"], &object["kind"]);
                if kind != (&json!("authentication.k8s.io/v1"), &json!("TokenRequest")) {
                    return refuse(400, "BadRequest", "not a TokenRequest");
                }
                let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
                if !(600..=1 << 32).contains(&seconds) {
                    return refuse(
                        422,
                        "Invalid",
                        "spec.expirationSeconds: may not specify a duration less than 10 minutes",
                    );
                }
                let bound = match &spec["boundObjectRef"] {
                    Value::Null => None,
                    reference => {
                        let text = |name: &str| reference[name].as_str().unwrap_or_default();
                        if (text("kind"), text("apiVersion")) != ("Secret", "v1") {
                            return refuse(400, "BadRequest", "cannot bind token to object of this kind");
                        }
                        let Some(secret) = inner.secrets.get(text("name")) else {
                            return refuse(404, "NotFound", format!("secrets \"{}\" not found", text("name")));
                        };
                        if secret["metadata"]["uid"] != reference["uid"] {
                            return refuse(409, "Conflict", "the UID in the bound object reference does not match");
                        }
                        Some((text("name").to_owned(), text("uid").to_owned()))
                    }
                };
                let expires = (self.now)() + seconds;
                let token = format!("eyJ0.{}", uuid::Uuid::new_v4().simple());
                let audiences = spec["audiences"].as_array().map(Vec::len).unwrap_or_default();
                inner.tokens.insert(token.clone(), Token { bound, for_us: audiences == 0, expires });
                let until = jiff::Timestamp::from_second(expires).expect("the clock is within reason").to_string();
                object["status"] = json!({ "token": token, "expirationTimestamp": until });
                Ok((StatusCode::CREATED, object))
            }
            ["serviceaccounts", name, "token"] => {
                refuse(404, "NotFound", format!("serviceaccounts \"{name}\" not found"))
            }
            _ => refuse(404, "NotFound", "the server could not find the requested resource"),
        }
    }
}
