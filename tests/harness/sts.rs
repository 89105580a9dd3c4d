//! A front before moto that is as strict as AWS STS says it is: moto itself accepts any token, any
//! duration and any name.
//!
//! Limits are those of the STS API reference (`AssumeRole`, `AssumeRoleWithWebIdentity`, "IAM and STS
//! quotas"); what a token must be is in the IAM user guide, "Create an OpenID Connect identity provider".

use crate::{
    http::{client, now},
    moto::Moto,
    ports,
    relying_party::{Trust, verify},
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// The longest session that the roles here allow, in seconds.
pub const MAX_SESSION: u32 = 3600;

/// One request that was let through.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its parameters by name, as sent.
    pub parameters: BTreeMap<String, String>,
    /// The claims of its web identity token, if it had one.
    pub claims: Map<String, Value>,
    /// The access key that signed it; none signs a web identity request.
    pub access_key: Option<String>,
}

/// A running front; ended on drop.
pub struct Sts {
    /// The endpoint to give to an AWS client.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    moto: String,
    accepted: Mutex<Vec<Accepted>>,
    refused: Mutex<Vec<String>>,
}

impl Sts {
    /// Starts a front before `moto`.
    pub async fn before(moto: &Moto) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Shared { moto: moto.url.clone(), accepted: Mutex::default(), refused: Mutex::default() });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the front keeps serving") });
        Self { url, shared, task }
    }

    /// What was let through so far.
    #[must_use]
    pub fn accepted(&self) -> Vec<Accepted> {
        self.shared.accepted.lock().expect("no test dies in here").clone()
    }

    /// Why requests were refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.shared.refused.lock().expect("no test dies in here").clone()
    }
}

impl Drop for Sts {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// STS's error code and a message.
pub(crate) type Refusal = (&'static str, String);

async fn handle(State(front): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    match check(&headers, &body, now()).await {
        Ok(accepted) => {
            front.accepted.lock().expect("no test dies in here").push(accepted);
            forward(&front.moto, headers, body).await
        }
        Err((code, message)) => {
            front.refused.lock().expect("no test dies in here").push(format!("{code}: {message}"));
            error(StatusCode::BAD_REQUEST, code, &message)
        }
    }
}

/// An error of AWS's query protocol.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let xml = format!(
        r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error><RequestId>0</RequestId></ErrorResponse>"#
    );
    (status, [("content-type", "text/xml")], xml).into_response()
}

async fn forward(moto: &str, mut headers: HeaderMap, body: Bytes) -> Response {
    headers.remove("host");
    headers.remove("content-length");
    let answer = client().post(moto).headers(headers).body(body).send().await.expect("moto answers");
    let status = answer.status();
    (status, [("content-type", "text/xml")], answer.bytes().await.expect("moto answers")).into_response()
}

/// What a request says, where STS would take it.
pub(crate) async fn check(headers: &HeaderMap, body: &[u8], now: i64) -> Result<Accepted, Refusal> {
    let mut parameters = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(body) {
        if parameters.insert(name.clone().into_owned(), value.into_owned()).is_some() {
            return invalid(format!("{name} is given twice"));
        }
    }
    let mut rest = parameters.clone();
    let action = rest.remove("Action").unwrap_or_default();
    if rest.remove("Version").as_deref() != Some("2011-06-15") {
        return invalid("Version must be 2011-06-15".to_owned());
    }
    let access_key = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("AWS4-HMAC-SHA256 Credential=")?.split('/').next().map(str::to_owned));
    check_common(&mut rest)?;
    let claims = match action.as_str() {
        "AssumeRole" => {
            if access_key.is_none() {
                return Err(("MissingAuthenticationToken", "AssumeRole must be signed".to_owned()));
            }
            check_tags(&mut rest)?;
            check_word(&mut rest, "SourceIdentity", false, 2..=64)?;
            check_word(&mut rest, "ExternalId", false, 2..=1224)?;
            Map::new()
        }
        "AssumeRoleWithWebIdentity" => {
            if access_key.is_some() {
                return invalid("a keyless request must not be signed".to_owned());
            }
            check_token(&rest.remove("WebIdentityToken").unwrap_or_default(), now).await?
        }
        _ => return Err(("InvalidAction", format!("{action} is not an action"))),
    };
    match rest.keys().next() {
        Some(unknown) => invalid(format!("{action} takes no {unknown}")),
        None => Ok(Accepted { parameters, claims, access_key }),
    }
}

/// What both actions take.
fn check_common(rest: &mut BTreeMap<String, String>) -> Result<(), Refusal> {
    let role = rest.remove("RoleArn").unwrap_or_default();
    if !(20..=2048).contains(&role.len()) || !role.starts_with("arn:aws:iam::") || !role.contains(":role/") {
        return invalid(format!("{role} is not the ARN of a role"));
    }
    check_word(rest, "RoleSessionName", true, 2..=64)?;
    let duration = rest.remove("DurationSeconds").unwrap_or_else(|| "3600".to_owned());
    if !duration.parse::<u32>().is_ok_and(|seconds| (900..=MAX_SESSION).contains(&seconds)) {
        return invalid(format!("DurationSeconds must be 900 to the role's {MAX_SESSION}, not {duration}"));
    }
    if let Some(policy) = rest.remove("Policy") {
        let parsed: Option<Value> = serde_json::from_str(&policy).ok();
        if policy.len() > 2048 || !parsed.is_some_and(|policy| policy["Statement"].is_array()) {
            return Err(("MalformedPolicyDocument", "Policy must be a policy of at most 2048 characters".to_owned()));
        }
    }
    Ok(())
}

/// Session tags: at most 50, keys of 1 to 128 and values of at most 256 characters, no key twice in
/// any case, none of AWS's own.
fn check_tags(rest: &mut BTreeMap<String, String>) -> Result<(), Refusal> {
    let fits = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c));
    let mut seen = Vec::new();
    for number in 1.. {
        let Some(key) = rest.remove(&format!("Tags.member.{number}.Key")) else { break };
        let value = rest.remove(&format!("Tags.member.{number}.Value")).unwrap_or_default();
        let lower = key.to_lowercase();
        let key_fits = (1..=128).contains(&key.chars().count()) && fits(&key) && !lower.starts_with("aws:");
        if number > 50 || !key_fits || seen.contains(&lower) || value.chars().count() > 256 || !fits(&value) {
            return invalid(format!("session tag {number} ({key}) breaks the rules for tags"));
        }
        seen.push(lower);
    }
    for number in 1..=50 {
        let Some(key) = rest.remove(&format!("TransitiveTagKeys.member.{number}")) else { break };
        if !seen.contains(&key.to_lowercase()) {
            return invalid(format!("the transitive {key} is no session tag"));
        }
    }
    Ok(())
}

/// A parameter of `[\w+=,.@-]` (and `:/` in an external id).
fn check_word(
    rest: &mut BTreeMap<String, String>,
    name: &str,
    required: bool,
    length: std::ops::RangeInclusive<usize>,
) -> Result<(), Refusal> {
    let Some(text) = rest.remove(name) else {
        return if required { invalid(format!("{name} is missing")) } else { Ok(()) };
    };
    let more = if name == "ExternalId" { ":/" } else { "" };
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) || more.contains(c));
    if fits && length.contains(&text.len()) && !text.starts_with("aws:") {
        Ok(())
    } else {
        invalid(format!("{name} must be {length:?} characters of [A-Za-z0-9_+=,.@-], not {text:?}"))
    }
}

/// Reads a web identity token as IAM does: `aud` is the one audience that was registered.
async fn check_token(token: &str, now: i64) -> Result<Map<String, Value>, Refusal> {
    let trust = Trust {
        issuer: None,
        keys_of: None,
        audiences: &["sts.amazonaws.com"],
        // IAM takes no EdDSA and no PSS.
        algorithms: &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::ES256, Algorithm::ES384],
        longest: i64::MAX,
        now,
    };
    verify(token, &trust).await.map_err(|why| ("InvalidIdentityToken", why))
}

fn invalid<T>(message: String) -> Result<T, Refusal> {
    Err(("ValidationError", message))
}
