//! Microsoft Entra's v2.0 token endpoint and an API behind it, by the published protocol and as strict as that:
//! what Entra would refuse, this refuses, with its error codes.
//!
//! Microsoft identity platform documentation: "OAuth 2.0 client credentials flow" (third case, federated
//! credential), "Workload identity federation concepts".

use crate::{
    form,
    https::{self, Certificate, Serving},
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
use tokio::task::JoinHandle;

/// The only tenant.
pub const TENANT: &str = "acme.example";
/// How long tokens live, in seconds: Entra gives 60 to 90 minutes, by chance.
pub const LIFE: i64 = 4321;

/// A running authority; ended on drop.
pub struct Entra {
    /// Its address.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    url: String,
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    /// Client id, issuer, subject, audience.
    federated: Mutex<Vec<[String; 4]>>,
    /// Token to its scope and end.
    tokens: Mutex<BTreeMap<String, (String, i64)>>,
    refused: Mutex<Vec<String>>,
}

impl Entra {
    /// Starts it over http.
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let (url, serve) = https::plain().await;
        Self::serve(url, serve, now)
    }

    /// Starts it over https.
    pub async fn start_tls(certificate: &Certificate, now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let (url, serve) = certificate.server().await;
        Self::serve(url, serve, now)
    }

    fn serve(
        url: String,
        serve: impl FnOnce(Router) -> Serving,
        now: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            url: url.clone(),
            now: Box::new(now),
            federated: Mutex::default(),
            tokens: Mutex::default(),
            refused: Mutex::default(),
        });
        let serving = serve(Router::new().fallback(handle).with_state(Arc::clone(&shared)));
        let task = tokio::spawn(async move { serving.await.expect("it keeps serving") });
        Self { url, shared, task }
    }

    /// Gives an application a federated credential.
    pub fn federate(&self, client: &str, issuer: &str, subject: &str, audience: &str) {
        let credential = [client, issuer, subject, audience].map(str::to_owned);
        self.shared.federated.lock().expect("no test dies in here").push(credential);
    }

    /// Why requests were refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.shared.refused.lock().expect("no test dies in here").clone()
    }
}

impl Drop for Entra {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A status, OAuth's error code and a message.
type Refusal = (StatusCode, &'static str, String);

async fn handle(
    State(entra): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = match (&method, uri.path().strip_prefix(&format!("/{TENANT}/"))) {
        (&Method::POST, Some("oauth2/v2.0/token")) => entra.token(&headers, &body).await,
        (&Method::GET, Some("v2.0/.well-known/openid-configuration")) => Ok(entra.discovery()),
        (&Method::GET, None) => entra.api(uri.path(), &headers),
        _ => Err((StatusCode::NOT_FOUND, "not_found", format!("{method} {}", uri.path()))),
    };
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err((status, code, message)) => {
            entra.refused.lock().expect("no test dies in here").push(format!("{code}: {message}"));
            (status, Json(json!({ "error": code, "error_description": message }))).into_response()
        }
    }
}

impl Shared {
    fn discovery(&self) -> Value {
        let base = format!("{}/{TENANT}", self.url);
        json!({
            "issuer": format!("{base}/v2.0"),
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        })
    }

    async fn token(&self, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
        let invalid = |why: String| (StatusCode::BAD_REQUEST, "invalid_request", why);
        let mut form = form::read(headers, body).map_err(invalid)?;
        let mut take = |name: &str| form::take(&mut form, name).map_err(invalid);
        if take("grant_type")? != "client_credentials" {
            return Err((StatusCode::BAD_REQUEST, "unsupported_grant_type", "AADSTS70003".to_owned()));
        }
        if take("client_assertion_type")? != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
            return Err(invalid("AADSTS50027: the assertion's type".to_owned()));
        }
        let (client, scope, assertion) = (take("client_id")?, take("scope")?, take("client_assertion")?);
        // What Microsoft's own libraries add.
        form.retain(|name, _| !name.starts_with("x-client-") && name != "client_info" && name != "claims");
        if let Some(unknown) = form.keys().next() {
            return Err(invalid(format!("{unknown} is not a parameter")));
        }
        if !scope.ends_with("/.default") || scope.contains(' ') {
            let why = "AADSTS1002012: the provided value for scope is not valid. Client credential flows must have a \
                       scope value with /.default suffixed to the resource identifier";
            return Err((StatusCode::BAD_REQUEST, "invalid_scope", why.to_owned()));
        }
        let mut credentials: Vec<[String; 4]> = self.federated.lock().expect("no test dies in here").clone();
        credentials.retain(|credential| credential[0] == client);
        if credentials.is_empty() {
            return Err((
                StatusCode::UNAUTHORIZED,
                "unauthorized_client",
                "AADSTS700016: no such application".to_owned(),
            ));
        }
        let mut why = String::new();
        for [_, issuer, subject, audience] in &credentials {
            let trust = Trust {
                issuer: Some(issuer),
                keys_of: None,
                audiences: &[audience],
                algorithms: &[Algorithm::RS256],
                longest: 24 * 3600,
                now: (self.now)(),
            };
            match verify(&assertion, &trust).await {
                Ok(claims) if claims["sub"] == subject.as_str() => {
                    let token = format!("eyJ0.{}", uuid::Uuid::new_v4().simple());
                    let kept = (scope, (self.now)() + LIFE);
                    self.tokens.lock().expect("no test dies in here").insert(token.clone(), kept);
                    let answer = json!({ "token_type": "Bearer", "access_token": token, "expires_in": LIFE, "ext_expires_in": LIFE });
                    return Ok(answer);
                }
                Ok(claims) => why = format!("AADSTS700213: no federated record for subject {}", claims["sub"]),
                Err(error) => why = format!("AADSTS700211: {error}"),
            }
        }
        Err((StatusCode::UNAUTHORIZED, "invalid_client", why))
    }

    /// An API for each resource: `GET /RESOURCE` takes tokens for `https://RESOURCE/.default`.
    fn api(&self, path: &str, headers: &HeaderMap) -> Result<Value, Refusal> {
        let refuse = |why: &str| Err((StatusCode::UNAUTHORIZED, "InvalidAuthenticationToken", why.to_owned()));
        let tokens = self.tokens.lock().expect("no test dies in here");
        match form::bearer(headers).and_then(|token| tokens.get(token)) {
            None => refuse("no token of ours"),
            Some((_, expires)) if *expires <= (self.now)() => refuse("the token expired"),
            Some((scope, _)) if *scope != format!("https:/{path}/.default") => {
                refuse("the token is for another audience")
            }
            Some(_) => Ok(json!({ "value": [] })),
        }
    }
}
