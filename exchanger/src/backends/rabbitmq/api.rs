//! Calls of RabbitMQ's management API (its "HTTP API" page).

use crate::{
    backends::{MintError, RemoteError, upstream},
    clock::Clock,
    config::{Env, SecretRef},
    outbound::{Outbound, OutboundError, OutboundOptions},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, Request, header};
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use url::Url;
use zeroize::Zeroizing;

/// The API, and who we are there.
pub(super) struct Api {
    url: Url,
    user: String,
    password: SecretRef,
    env: Env,
    options: OutboundOptions,
    client: OnceLock<Outbound>,
    clock: Arc<dyn Clock>,
}

/// Why a call did not do what it was for. Holds no secret.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was never sent.
    NotSent(String),
    /// The API refused it, and did nothing: the status, and what it said.
    Refused(u16, String),
    /// It was sent, and nobody knows more; or it asks to be left alone.
    Open(MintError),
}

impl From<Trouble> for RemoteError {
    fn from(trouble: Trouble) -> Self {
        Self(match trouble {
            Trouble::NotSent(why) | Trouble::Refused(_, why) => why,
            Trouble::Open(error) => error.to_string(),
        })
    }
}

impl Api {
    pub(super) fn new(
        url: Url,
        user: String,
        password: SecretRef,
        env: Env,
        options: OutboundOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { url, user, password, env, options, client: OnceLock::new(), clock }
    }

    /// Whether the CA file and the password can be read.
    pub(super) fn check(&self) -> Result<(), String> {
        self.client().map_err(|error| error.to_string())?;
        self.authorization().map(|_| ())
    }

    /// Calls `/api/` and these segments.
    pub(super) async fn call(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<(), Trouble> {
        let request = self.request(method, path, body).map_err(Trouble::NotSent)?;
        let answer = match self.client().map_err(|error| Trouble::NotSent(error.to_string()))?.send(request).await {
            Ok(answer) => answer,
            Err(error) if error.never_sent() => return Err(Trouble::NotSent(error.to_string())),
            Err(error) => return Err(Trouble::Open(upstream::unanswered(&error))),
        };
        if answer.status.is_success() {
            return Ok(());
        }
        let status = answer.status.as_u16();
        let told: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let reason = told.as_ref().and_then(|told| told["reason"].as_str()).unwrap_or_default();
        let cure = match status {
            401 | 403 => ": jobpass's user has to be an administrator (docs/backends/rabbitmq.md)",
            _ => "",
        };
        let retry_after = answer.retry_after(self.clock.now());
        Err(match upstream::not_made("the management API", answer.status, retry_after, &format!(" {reason}{cure}")) {
            MintError::Refused(why) => Trouble::Refused(status, why),
            open => Trouble::Open(open),
        })
    }

    fn request(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<Request<Vec<u8>>, String> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // As segments, so that a `/` in a virtual host's name stays one.
            segments.pop_if_empty().push("api").extend(path);
        }
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::AUTHORIZATION, self.authorization()?)
            .header(header::CONTENT_TYPE, "application/json");
        request
            .body(body.map_or_else(Vec::new, |body| body.to_string().into_bytes()))
            .map_err(|error| error.to_string())
    }

    /// RFC 7617. Read for each call, so that a rotated password needs no restart.
    fn authorization(&self) -> Result<HeaderValue, String> {
        let password = self.password.read(&self.env).map_err(|error| format!("password: {error}"))?;
        let pair = Zeroizing::new(format!("{}:{}", self.user, password.expose()));
        let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(&*pair)))
            .map_err(|_| "password: not a header's value".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn client(&self) -> Result<&Outbound, OutboundError> {
        match self.client.get() {
            Some(client) => Ok(client),
            None => {
                let client = Outbound::new(self.options.clone())?;
                Ok(self.client.get_or_init(|| client))
            }
        }
    }
}
