//! Somebody else's authorization server and an API behind it: client credentials (RFC 6749 §4.4) with a secret
//! or a key (RFC 7523), and token exchange (RFC 8693). As strict as the RFCs let it be.

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
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// How long tokens live, in seconds.
pub const LIFE: i64 = 600;
/// The secret of the client `with secret`, which has to be encoded to fit a header.
pub const SECRET: &str = "p%40ss: wörd/0123456789";

/// A running server; ended on drop.
pub struct AuthorizationServer {
    /// Its address; the token endpoint is `/token`.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    url: String,
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    /// The issuer whose keys clients and subject tokens are signed with.
    issuer: Mutex<String>,
    used: Mutex<BTreeSet<String>>,
    /// Token to its subject, scope and end.
    tokens: Mutex<BTreeMap<String, (String, String, i64)>>,
    refused: Mutex<Vec<String>>,
}

impl AuthorizationServer {
    /// Starts it.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(ports::ANY).await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Shared {
            url: url.clone(),
            now: Box::new(now),
            issuer: Mutex::default(),
            used: Mutex::default(),
            tokens: Mutex::default(),
            refused: Mutex::default(),
        });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it keeps serving") });
        Self { url, shared, task }
    }

    /// Trusts an issuer's keys.
    pub fn trust(&self, issuer: &str) {
        *self.shared.issuer.lock().expect("no test dies in here") = issuer.to_owned();
    }

    /// Why requests were refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.shared.refused.lock().expect("no test dies in here").clone()
    }
}

impl Drop for AuthorizationServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A status, OAuth's error code and a message.
type Refusal = (StatusCode, &'static str, String);

fn bad(code: &'static str, why: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, code, why.into())
}

async fn handle(
    State(server): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = match (&method, uri.path()) {
        (&Method::POST, "/token") => server.token(&headers, &body).await,
        (&Method::POST, "/revoke") => server.revoke(&headers, &body).await,
        (&Method::GET, path) => server.api(path.trim_start_matches('/'), &headers),
        _ => Err((StatusCode::NOT_FOUND, "not_found", uri.path().to_owned())),
    };
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err((status, code, why)) => {
            server.refused.lock().expect("no test dies in here").push(format!("{code}: {why}"));
            (status, Json(json!({ "error": code, "error_description": why }))).into_response()
        }
    }
}

impl Shared {
    async fn token(&self, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
        let mut form = form::read(headers, body).map_err(|why| bad("invalid_request", why))?;
        let client = self.client(headers, &mut form).await?;
        let mut take = |name: &str| form::take(&mut form, name).map_err(|why| bad("invalid_request", why));
        let subject = match (take("grant_type")?.as_str(), client) {
            ("client_credentials", Some(client)) => client,
            ("client_credentials", None) => {
                return Err((StatusCode::UNAUTHORIZED, "invalid_client", "who are you?".to_owned()));
            }
            ("urn:ietf:params:oauth:grant-type:token-exchange", _) => {
                let kinds = (take("subject_token_type")?, take("requested_token_type")?);
                let prefix = "urn:ietf:params:oauth:token-type:";
                if kinds != (format!("{prefix}jwt"), format!("{prefix}access_token")) {
                    return Err(bad("invalid_request", "only a JWT for an access token"));
                }
                let claims = self.verify(&take("subject_token")?, None, &self.url).await;
                let claims = claims.map_err(|why| bad("invalid_grant", why))?;
                claims["sub"].as_str().unwrap_or_default().to_owned()
            }
            (other, _) => return Err(bad("unsupported_grant_type", other)),
        };
        let scope = form.remove("scope").unwrap_or_default();
        if let Some(scope) = scope.split(' ').find(|scope| !["", "read", "write", "repo:772002"].contains(scope)) {
            return Err(bad("invalid_scope", scope));
        }
        if form.remove("resource").is_some_and(|resource| resource != "https://api.example") {
            return Err(bad("invalid_target", "no such resource"));
        }
        if let Some(unknown) = form.keys().next() {
            return Err(bad("invalid_request", format!("{unknown} is not a parameter")));
        }
        let token = format!("at.{}", uuid::Uuid::new_v4().simple());
        let kept = (subject, scope, (self.now)() + LIFE);
        self.tokens.lock().expect("no test dies in here").insert(token.clone(), kept);
        Ok(json!({ "access_token": token, "token_type": "bearer", "expires_in": LIFE }))
    }

    /// RFC 7009, for clients.
    async fn revoke(&self, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
        let mut form = form::read(headers, body).map_err(|why| bad("invalid_request", why))?;
        if self.client(headers, &mut form).await?.is_none() {
            return Err((StatusCode::UNAUTHORIZED, "invalid_client", "who are you?".to_owned()));
        }
        let token = form::take(&mut form, "token").map_err(|why| bad("invalid_request", why))?;
        self.tokens.lock().expect("no test dies in here").remove(&token);
        Ok(json!({}))
    }

    /// The client that the request proves to be from, if it says so.
    async fn client(
        &self,
        headers: &HeaderMap,
        form: &mut BTreeMap<String, String>,
    ) -> Result<Option<String>, Refusal> {
        let refuse = |why: &str| Err((StatusCode::UNAUTHORIZED, "invalid_client", why.to_owned()));
        if let Some(basic) = headers.get("authorization") {
            let pair = basic.to_str().ok().and_then(|text| text.strip_prefix("Basic "));
            let pair = pair.and_then(|text| String::from_utf8(STANDARD.decode(text).ok()?).ok()).unwrap_or_default();
            let decoded: Vec<(String, String)> =
                url::form_urlencoded::parse(pair.replacen(':', "=", 1).as_bytes()).into_owned().collect();
            return match decoded.as_slice() {
                [(id, secret)] if id == "with secret" && secret == SECRET => Ok(Some(id.clone())),
                _ => refuse("wrong id or secret"),
            };
        }
        let Some(assertion) = form.remove("client_assertion") else { return Ok(None) };
        let kind = form.remove("client_assertion_type");
        if kind.as_deref() != Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") {
            return refuse("no such type of assertion");
        }
        let issuer = self.issuer.lock().expect("no test dies in here").clone();
        let claims = match self.verify(&assertion, Some(&issuer), &format!("{}/token", self.url)).await {
            Ok(claims) => claims,
            Err(why) => return refuse(&why),
        };
        if claims["iss"] != "with-key"
            || claims["sub"] != "with-key"
            || form.remove("client_id").as_deref() != Some("with-key")
        {
            return refuse("the assertion is not of the client");
        }
        Ok(Some("with-key".to_owned()))
    }

    /// A token of the trusted issuer, once only (RFC 7523 §3).
    async fn verify(
        &self,
        token: &str,
        keys_of: Option<&str>,
        audience: &str,
    ) -> Result<serde_json::Map<String, Value>, String> {
        let issuer = self.issuer.lock().expect("no test dies in here").clone();
        let trust = Trust {
            issuer: keys_of.is_none().then_some(issuer.as_str()),
            keys_of,
            audiences: &[audience],
            algorithms: &[Algorithm::ES256, Algorithm::RS256],
            longest: 600,
            now: (self.now)(),
        };
        let claims = verify(token, &trust).await?;
        let id = claims.get("jti").and_then(Value::as_str).ok_or("the token has no jti")?;
        let fresh = self.used.lock().expect("no test dies in here").insert(format!("{audience} {id}"));
        if fresh { Ok(claims) } else { Err("the token was used before".to_owned()) }
    }

    /// `GET /SCOPE`: for tokens that have it.
    fn api(&self, scope: &str, headers: &HeaderMap) -> Result<Value, Refusal> {
        let tokens = self.tokens.lock().expect("no test dies in here");
        match form::bearer(headers).and_then(|token| tokens.get(token)) {
            Some((subject, has, until)) if *until > (self.now)() => match has.split(' ').any(|has| has == scope) {
                true => Ok(json!({ "subject": subject })),
                false => Err((StatusCode::FORBIDDEN, "insufficient_scope", scope.to_owned())),
            },
            _ => Err((StatusCode::UNAUTHORIZED, "invalid_token", "unknown or expired".to_owned())),
        }
    }
}
