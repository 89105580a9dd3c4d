//! Google's Security Token Service, service account credentials API and a bucket, by their published
//! protocol and as strict as that: what they would refuse, this refuses.
//!
//! Google Cloud documentation: "Security Token Service API, Method: token", "IAM Service Account Credentials
//! API, generateAccessToken", "Credential Access Boundaries overview".

use crate::{
    form, ports,
    relying_party::{Trust, verify},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// The provider that trusts the server under test.
pub const PROVIDER: &str = "projects/123456789012/locations/global/workloadIdentityPools/ci/providers/jobpass";
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
const READ_ONLY: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// A running Google; ended on drop.
pub struct Google {
    /// The address of all its APIs.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    /// The issuer that the provider trusts.
    issuer: Mutex<String>,
    /// Which subject may be which service account.
    bindings: Mutex<Vec<(String, String)>>,
    tokens: Mutex<BTreeMap<String, Token>>,
    asked: Mutex<Vec<(&'static str, String)>>,
    refused: Mutex<Vec<String>>,
}

#[derive(Clone)]
enum Token {
    Federated { subject: String, expires: i64 },
    Account { scopes: Vec<String>, expires: i64 },
    Narrowed { of: String, rules: Value },
}

impl Google {
    /// Starts it.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Shared {
            now: Box::new(now),
            issuer: Mutex::default(),
            bindings: Mutex::default(),
            tokens: Mutex::default(),
            asked: Mutex::default(),
            refused: Mutex::default(),
        });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it keeps serving") });
        Self { url, shared, task }
    }

    /// Sets the provider's issuer.
    pub fn trust(&self, issuer: &str) {
        *self.shared.issuer.lock().expect("no test dies in here") = issuer.to_owned();
    }

    /// Lets a subject impersonate a service account (`roles/iam.workloadIdentityUser`).
    pub fn bind(&self, subject: &str, service_account: &str) {
        let binding = (subject.to_owned(), service_account.to_owned());
        self.shared.bindings.lock().expect("no test dies in here").push(binding);
    }

    /// What was asked for last, by one of: `subject`, `account`, `bucket`, `prefix` (as a condition has it).
    #[must_use]
    pub fn asked(&self, what: &str) -> String {
        let asked = self.shared.asked.lock().expect("no test dies in here");
        asked.iter().rfind(|(kind, _)| *kind == what).map(|(_, text)| text.clone()).unwrap_or_default()
    }

    /// Why requests were refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.shared.refused.lock().expect("no test dies in here").clone()
    }
}

impl Drop for Google {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What names must begin with, by a rule's condition. The form in which the documentation writes it; nothing else
/// is understood here.
fn prefix(rule: &Value) -> Option<String> {
    let condition = rule["availabilityCondition"]["expression"].as_str()?;
    let rest = condition.strip_prefix("resource.name.startsWith('").expect("a condition on the name");
    Some(rest.split_once('\'').expect("a closed literal").0.to_owned())
}

/// A status, Google's error code and a message.
type Refusal = (StatusCode, &'static str, String);

fn invalid(why: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, "invalid_request", why.into())
}

fn forbidden(why: impl Into<String>) -> Refusal {
    (StatusCode::FORBIDDEN, "PERMISSION_DENIED", why.into())
}

async fn handle(
    State(google): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path();
    let account =
        path.strip_prefix("/v1/projects/-/serviceAccounts/").and_then(|rest| rest.strip_suffix(":generateAccessToken"));
    let answer = match (&method, account) {
        (&Method::POST, None) if path == "/v1/token" => google.token(&headers, &body).await,
        (&Method::POST, Some(account)) => google.generate(account, &headers, &body),
        (&Method::GET, None) if path.starts_with("/storage/v1/b/") => google.read(path, &headers),
        _ => Err((StatusCode::NOT_FOUND, "NOT_FOUND", format!("{method} {path}"))),
    };
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err((status, code, message)) => {
            google.refused.lock().expect("no test dies in here").push(format!("{code}: {message}"));
            let body = match path {
                "/v1/token" => json!({ "error": code, "error_description": message }),
                _ => json!({ "error": { "code": status.as_u16(), "message": message, "status": code } }),
            };
            (status, Json(body)).into_response()
        }
    }
}

impl Shared {
    fn note(&self, what: &'static str, text: &str) {
        self.asked.lock().expect("no test dies in here").push((what, text.to_owned()));
    }

    fn keep(&self, prefix: &str, token: Token) -> String {
        let text = format!("{prefix}.{}", uuid::Uuid::new_v4().simple());
        self.tokens.lock().expect("no test dies in here").insert(text.clone(), token);
        text
    }

    fn find(&self, text: &str) -> Option<Token> {
        self.tokens.lock().expect("no test dies in here").get(text).cloned()
    }

    async fn token(&self, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
        let mut form = form::read(headers, body).map_err(invalid)?;
        let mut take = |name: &str| form::take(&mut form, name).map_err(invalid);
        if take("grant_type")? != "urn:ietf:params:oauth:grant-type:token-exchange"
            || take("requested_token_type")? != "urn:ietf:params:oauth:token-type:access_token"
        {
            return Err(invalid("only token exchange for an access token is offered"));
        }
        let (kind, subject_token) = (take("subject_token_type")?, take("subject_token")?);
        let (token, life) = match kind.strip_prefix("urn:ietf:params:oauth:token-type:") {
            Some("jwt" | "id_token") => {
                if take("audience")? != format!("//iam.googleapis.com/{PROVIDER}") {
                    return Err(invalid("Invalid value for \"audience\"."));
                }
                if ![CLOUD_PLATFORM, "https://www.googleapis.com/auth/iam"].contains(&take("scope")?.as_str()) {
                    return Err(invalid("scope must be cloud-platform or iam, which impersonation needs"));
                }
                form.remove("options"); // google-auth says which project pays
                (self.federate(&subject_token).await?, json!(3600))
            }
            Some("access_token") => {
                let options: Value = serde_json::from_str(&take("options")?).unwrap_or_default();
                (self.narrow(&subject_token, &options)?, Value::Null)
            }
            _ => return Err(invalid("subject_token_type is not one of Google's")),
        };
        if let Some(unknown) = form.keys().next() {
            return Err(invalid(format!("{unknown} is not a parameter")));
        }
        let mut answer = json!({
            "access_token": token, "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        });
        if !life.is_null() {
            answer["expires_in"] = life;
        }
        Ok(answer)
    }

    async fn federate(&self, token: &str) -> Result<String, Refusal> {
        let issuer = self.issuer.lock().expect("no test dies in here").clone();
        let name = format!("//iam.googleapis.com/{PROVIDER}");
        let trust = Trust {
            issuer: Some(&issuer),
            keys_of: None,
            audiences: &[&format!("https:{name}"), &name],
            algorithms: &[Algorithm::RS256, Algorithm::ES256],
            longest: 24 * 3600,
            now: (self.now)(),
        };
        let claims = verify(token, &trust).await.map_err(|why| (StatusCode::BAD_REQUEST, "invalid_grant", why))?;
        let subject = claims["sub"].as_str().unwrap_or_default().to_owned();
        self.note("subject", &subject);
        if subject.is_empty() || subject.len() > 127 {
            return Err((StatusCode::BAD_REQUEST, "invalid_grant", "google.subject has 1 to 127 bytes".to_owned()));
        }
        Ok(self.keep("ya29.d.federated", Token::Federated { subject, expires: (self.now)() + 3600 }))
    }

    fn narrow(&self, token: &str, options: &Value) -> Result<String, Refusal> {
        let Some(Token::Account { .. }) = self.find(token) else {
            return Err(invalid("the subject token is no access token of ours"));
        };
        let rules = &options["accessBoundary"]["accessBoundaryRules"];
        let fits = |rule: &Value| {
            let resource = rule["availableResource"].as_str().unwrap_or_default();
            let roles = rule["availablePermissions"].as_array();
            let Some(bucket) = resource.strip_prefix("//storage.googleapis.com/projects/_/buckets/") else {
                return false;
            };
            self.note("bucket", bucket);
            if let Some(prefix) = prefix(rule) {
                self.note("prefix", &prefix);
            }
            roles.is_some_and(|roles| {
                !roles.is_empty() && roles.iter().all(|r| r.as_str().is_some_and(|r| r.starts_with("inRole:")))
            })
        };
        if !rules.as_array().is_some_and(|rules| (1..=10).contains(&rules.len()) && rules.iter().all(fits)) {
            return Err(invalid("the access boundary is malformed"));
        }
        Ok(self.keep("ya29.dr.narrowed", Token::Narrowed { of: token.to_owned(), rules: rules.clone() }))
    }

    fn generate(&self, account: &str, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
        let now = (self.now)();
        let subject = match form::bearer(headers).and_then(|token| self.find(token)) {
            Some(Token::Federated { subject, expires }) if expires > now => subject,
            _ => return Err((StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "no valid federated token".to_owned())),
        };
        self.note("account", account);
        let body: Value = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
        if body
            .as_object()
            .is_none_or(|body| body.keys().any(|key| !["scope", "lifetime", "delegates"].contains(&&**key)))
        {
            return Err(invalid("unknown name in the body"));
        }
        let scopes: Vec<String> = serde_json::from_value(body["scope"].clone()).unwrap_or_default();
        if scopes.is_empty() || !scopes.iter().all(|scope| scope.starts_with("https://www.googleapis.com/auth/")) {
            return Err(invalid("Scope required."));
        }
        let seconds = body["lifetime"].as_str().unwrap_or("3600s").strip_suffix('s').and_then(|s| s.parse().ok());
        let seconds: i64 = seconds.filter(|seconds| (1..=3600).contains(seconds)).ok_or_else(|| {
            invalid("The access token lifetime cannot exceed 3600 seconds unless an organization policy allows it.")
        })?;
        let bindings = self.bindings.lock().expect("no test dies in here");
        if !bindings.iter().any(|(bound, may)| *bound == subject && may == account) {
            return Err(forbidden(
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
            ));
        }
        drop(bindings);
        let expires = now + seconds;
        let token = self.keep("ya29.c.account", Token::Account { scopes, expires });
        let expire_time = jiff::Timestamp::from_second(expires).expect("the clock is within reason").to_string();
        Ok(json!({ "accessToken": token, "expireTime": expire_time }))
    }

    /// `GET /storage/v1/b/BUCKET/o/OBJECT`, the object's name with `%2F` for `/`.
    fn read(&self, path: &str, headers: &HeaderMap) -> Result<Value, Refusal> {
        let unauthenticated = || (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "Invalid Credentials".to_owned());
        let presented = form::bearer(headers).ok_or_else(unauthenticated)?;
        let (token, rules) = match self.find(presented).ok_or_else(unauthenticated)? {
            Token::Narrowed { of, rules } => (self.find(&of).ok_or_else(unauthenticated)?, Some(rules)),
            other => (other, None),
        };
        let Token::Account { scopes, expires } = token else { return Err(unauthenticated()) };
        if expires <= (self.now)() {
            return Err(unauthenticated());
        }
        if !scopes.iter().any(|scope| [CLOUD_PLATFORM, READ_ONLY].contains(&scope.as_str())) {
            return Err(forbidden("Insufficient scopes"));
        }
        let (bucket, object) = path
            .strip_prefix("/storage/v1/b/")
            .and_then(|rest| rest.split_once("/o/"))
            .ok_or_else(|| invalid("no such path"))?;
        let name = format!("projects/_/buckets/{bucket}/objects/{}", object.replace("%2F", "/"));
        let within = |rule: &Value| {
            let bucket = format!("//storage.googleapis.com/projects/_/buckets/{bucket}");
            rule["availableResource"] == bucket.as_str() && prefix(rule).is_none_or(|prefix| name.starts_with(&prefix))
        };
        match rules {
            Some(rules) if !rules.as_array().is_some_and(|rules| rules.iter().any(within)) => {
                Err(forbidden("the access boundary does not reach there"))
            }
            _ => Ok(json!({ "name": name })),
        }
    }
}
