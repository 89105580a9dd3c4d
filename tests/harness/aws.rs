//! A small AWS account by its published APIs: STS as strict as [`crate::sts`], IAM's inline policies of roles, and
//! buckets that ask both. Sessions end when they should, by the clock of the test.
//!
//! IAM user guide, "Policy evaluation logic": an explicit deny wins, and a session policy only narrows.

use crate::{
    ports,
    sts::{check, error},
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// The role that there is; it may do everything with every bucket.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/ci/deploy-api";
/// The key that may put and delete the role's inline policies.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";

struct Session {
    name: String,
    policy: Option<Value>,
    expires: i64,
}

#[derive(Default)]
struct Inner {
    /// What `sub` the role trusts.
    trusted: String,
    /// By session token.
    sessions: BTreeMap<String, Session>,
    /// By name.
    policies: BTreeMap<String, Value>,
    failures: u32,
    /// What the token of the last session said.
    claims: Value,
}

struct Shared {
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    inner: Mutex<Inner>,
}

/// A running account; ended on drop.
pub struct Aws {
    /// The endpoint of STS, IAM and the buckets.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Aws {
    /// Starts it.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Shared { now: Box::new(now), inner: Mutex::default() });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it keeps serving") });
        Self { url, shared, task }
    }

    /// Lets tokens with such a `sub` assume the role; a `*` stands for anything.
    pub fn trust(&self, sub: &str) {
        sub.clone_into(&mut self.shared.inner().trusted);
    }

    /// Has IAM fail so many times.
    pub fn fail(&self, times: u32) {
        self.shared.inner().failures = times;
    }

    /// What the token said by which the last session was made.
    #[must_use]
    pub fn claims(&self) -> Value {
        self.shared.inner().claims.clone()
    }

    /// The names of the role's inline policies.
    #[must_use]
    pub fn policies(&self) -> Vec<String> {
        self.shared.inner().policies.keys().cloned().collect()
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test dies in here")
    }

    /// IAM API reference, `PutRolePolicy` and `DeleteRolePolicy`.
    fn iam(&self, signer: Option<&str>, form: &BTreeMap<String, String>) -> Response {
        let mut inner = self.inner();
        if inner.failures > 0 {
            inner.failures -= 1;
            return error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "later");
        }
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let name = field("PolicyName");
        let word = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        if signer != Some(ACCESS_KEY) {
            return error(StatusCode::FORBIDDEN, "AccessDenied", "not authorized");
        }
        if field("Version") != "2010-05-08" || name.is_empty() || name.len() > 128 || !name.chars().all(word) {
            return error(StatusCode::BAD_REQUEST, "ValidationError", "a name of [A-Za-z0-9_+=,.@-]");
        }
        if field("RoleName") != "deploy-api" {
            return error(StatusCode::NOT_FOUND, "NoSuchEntity", "there is no such role");
        }
        if field("Action") == "DeleteRolePolicy" {
            if inner.policies.remove(name).is_none() {
                return error(StatusCode::NOT_FOUND, "NoSuchEntity", "there is no such policy");
            }
        } else {
            let Ok(policy) = serde_json::from_str::<Value>(field("PolicyDocument")) else {
                return error(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", "not JSON");
            };
            if policy["Version"] != "2012-10-17" || !policy["Statement"].is_array() {
                return error(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", "not a policy");
            }
            inner.policies.insert(name.to_owned(), policy);
        }
        (StatusCode::OK, "<Response/>").into_response()
    }

    /// Whether a bucket lets this session do that, and if not, why.
    fn decide(&self, token: &str, action: &str, path: &str) -> Result<(), &'static str> {
        let inner = self.inner();
        let session = inner.sessions.get(token).ok_or("InvalidToken")?;
        if session.expires <= (self.now)() {
            return Err("ExpiredToken");
        }
        let resource = format!("arn:aws:s3:::{}", path.trim_start_matches('/'));
        let user = format!("AROAEXAMPLEROLEID:{}", session.name);
        let applies = |statement: &Value| {
            let of = statement.pointer("/Condition/StringLike/aws:userid").and_then(Value::as_str);
            like(&statement["Action"], action)
                && like(&statement["Resource"], &resource)
                && of.is_none_or(|pattern| like(&pattern.into(), &user))
        };
        let statements = |policy: &Value| policy["Statement"].as_array().cloned().unwrap_or_default();
        let denied = inner.policies.values().flat_map(statements).any(|s| s["Effect"] == "Deny" && applies(&s));
        let narrowed = session.policy.as_ref();
        let allowed =
            narrowed.is_none_or(|policy| statements(policy).iter().any(|s| s["Effect"] == "Allow" && applies(s)));
        if denied || !allowed { Err("AccessDenied") } else { Ok(()) }
    }
}

/// A pattern with one `*` at most.
fn like(pattern: &Value, text: &str) -> bool {
    let pattern = pattern.as_str().unwrap_or_default();
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end),
    }
}

fn signer(headers: &HeaderMap) -> Option<&str> {
    let signed = headers.get("authorization")?.to_str().ok()?.strip_prefix("AWS4-HMAC-SHA256 Credential=")?;
    signed.split('/').next()
}

async fn handle(State(aws): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    if uri.path() != "/" {
        let token = headers.get("x-amz-security-token").and_then(|token| token.to_str().ok()).unwrap_or_default();
        let action = if method == Method::PUT { "s3:PutObject" } else { "s3:GetObject" };
        return match aws.decide(token, action, uri.path()) {
            Ok(()) => StatusCode::OK.into_response(),
            Err(code) => error(StatusCode::FORBIDDEN, code, "no"),
        };
    }
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    if form.get("Action").is_some_and(|action| action.ends_with("RolePolicy")) {
        return aws.iam(signer(&headers), &form);
    }
    let now = (aws.now)();
    let accepted = match check(&headers, &body, now).await {
        Ok(accepted) => accepted,
        Err((code, message)) => return error(StatusCode::BAD_REQUEST, code, &message),
    };
    let field = |name: &str| accepted.parameters.get(name).cloned().unwrap_or_default();
    let mut inner = aws.inner();
    let sub = accepted.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    if field("RoleArn") != ROLE || !like(&Value::from(inner.trusted.as_str()), sub) {
        return error(StatusCode::FORBIDDEN, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    }
    let token = format!("session-token-{}", uuid::Uuid::new_v4().simple());
    let expires = now + field("DurationSeconds").parse::<i64>().unwrap_or(3600);
    let policy = accepted.parameters.get("Policy").and_then(|policy| serde_json::from_str(policy).ok());
    inner.claims = accepted.claims.clone().into();
    inner.sessions.insert(token.clone(), Session { name: field("RoleSessionName"), policy, expires });
    let expiration = jiff::Timestamp::from_second(expires).expect("the clock is within reason");
    let credentials = format!(
        "<Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>secret-{token}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{expiration}</Expiration></Credentials>"
    );
    let result = "AssumeRoleWithWebIdentityResult";
    let xml = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{result}>{credentials}\
         </{result}></AssumeRoleWithWebIdentityResponse>"
    );
    (StatusCode::OK, [("content-type", "text/xml")], xml).into_response()
}
