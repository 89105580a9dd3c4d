//! Asking another system over HTTP: a client that is made when it is first needed, and what an answer says
//! about whether anything was made.

use super::{MintError, registry::BuildContext};
use crate::{
    clock::Clock,
    outbound::{Fetched, Outbound, OutboundError, OutboundOptions},
};
use http::{HeaderValue, Request, StatusCode, header};
use jobpass_protocol::Secret;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use url::{Url, form_urlencoded::Serializer};
use zeroize::Zeroizing;

/// How long a system is left alone that says 429 and not for how long.
const THROTTLED: Duration = Duration::from_secs(1);

/// Another system.
pub(super) struct Upstream {
    /// What it is called in errors.
    name: &'static str,
    options: OutboundOptions,
    client: OnceLock<Outbound>,
    clock: Arc<dyn Clock>,
}

impl Upstream {
    pub(super) fn new(name: &'static str, options: OutboundOptions, context: &BuildContext) -> Self {
        Self { name, options, client: OnceLock::new(), clock: Arc::clone(&context.clock) }
    }

    /// The client; made here if need be, so that a CA file that cannot be read is found before the first job.
    ///
    /// # Errors
    /// [`OutboundError::CaFile`] and [`OutboundError::Setup`].
    pub(super) fn client(&self) -> Result<&Outbound, OutboundError> {
        match self.client.get() {
            Some(client) => Ok(client),
            None => {
                let client = Outbound::new(self.options.clone())?;
                Ok(self.client.get_or_init(|| client))
            }
        }
    }

    /// Sends a request as it is.
    ///
    /// # Errors
    /// See [`OutboundError`]. An answer of any status is no error.
    pub(super) async fn send(&self, request: Request<Vec<u8>>) -> Result<Fetched, OutboundError> {
        self.client()?.send(request).await
    }

    /// Posts a form (RFC 6749 §4.4.2 and the like), and reads what was made from the JSON that comes back.
    ///
    /// # Errors
    /// `OutcomeUnknown` or `Unclear` wherever it is not certain that nothing was made.
    pub(super) async fn post_form<T: DeserializeOwned>(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        form: &[(&str, &str)],
    ) -> Result<T, MintError> {
        let answer = self.send_form(url, authorization, form).await.map_err(|error| unanswered(&error))?;
        self.read(&answer)
    }

    /// Posts a form.
    ///
    /// # Errors
    /// See [`OutboundError`]. An answer of any status is no error.
    pub(super) async fn send_form(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        form: &[(&str, &str)],
    ) -> Result<Fetched, OutboundError> {
        let body = Zeroizing::new(Serializer::new(String::new()).extend_pairs(form).finish());
        self.send(post(url, "application/x-www-form-urlencoded", authorization, body.as_bytes())?).await
    }

    /// Posts JSON, and reads what was made from the JSON that comes back.
    ///
    /// # Errors
    /// `OutcomeUnknown` or `Unclear` wherever it is not certain that nothing was made.
    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        body: &Value,
    ) -> Result<T, MintError> {
        let body = Zeroizing::new(body.to_string());
        let request = post(url, "application/json", authorization, body.as_bytes());
        let sent = async { self.send(request?).await };
        self.read(&sent.await.map_err(|error| unanswered(&error))?)
    }

    /// What was made, from the answer that says so.
    fn read<T: DeserializeOwned>(&self, answer: &Fetched) -> Result<T, MintError> {
        self.made(answer)?;
        serde_json::from_slice(&answer.body).map_err(|_| {
            let status = answer.status.as_u16();
            MintError::Unclear(format!("{} answered {status} without what was asked for", self.name))
        })
    }

    /// Whether the answer says that something was made.
    ///
    /// # Errors
    /// `OutcomeUnknown` or `Unclear` wherever it is not certain that nothing was.
    pub(super) fn made(&self, answer: &Fetched) -> Result<(), MintError> {
        if answer.status.is_success() {
            return Ok(());
        }
        let retry_after = answer.retry_after(self.clock.now());
        Err(not_made(self.name, answer.status, retry_after, &reason(&answer.body)))
    }
}

/// What an answer that is not the one that was asked for says of whether anything was made; `said` are the
/// system's own words.
pub(super) fn not_made(name: &str, status: StatusCode, retry_after: Option<Duration>, said: &str) -> MintError {
    let code = status.as_u16();
    if status == StatusCode::TOO_MANY_REQUESTS {
        let message = format!("{name} says that it is asked too often (429)");
        MintError::Throttled { message, retry_after: retry_after.unwrap_or(THROTTLED) }
    } else if certainly_refused(status) {
        MintError::Refused(format!("{name} refused: {code}{said}"))
    } else if status.is_server_error() {
        MintError::OutcomeUnknown(format!("{name} answered {code}"))
    } else {
        MintError::Unclear(format!("{name} answered {code}"))
    }
}

/// What it means for a mint that no answer came.
pub(super) fn unanswered(error: &OutboundError) -> MintError {
    let text = error.to_string();
    if error.never_sent() { MintError::Unavailable(text) } else { MintError::OutcomeUnknown(text) }
}

/// A refusal after which certainly nothing was made: the system said what is wrong with the request.
/// A conflict, a timeout or a status of the server's own class leaves that open.
fn certainly_refused(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status.as_u16(), 408 | 409 | 425 | 429 | 499)
}

/// `Authorization: Bearer`, marked so that no log shows it.
///
/// # Errors
/// When the token is not one line of ASCII.
pub(super) fn bearer(token: &Secret) -> Result<HeaderValue, MintError> {
    let text = Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::try_from(&*text)
        .map_err(|_| MintError::Unavailable("the token for the other system is not one line of ASCII".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn post(
    url: &Url,
    content_type: &'static str,
    authorization: Option<HeaderValue>,
    body: &[u8],
) -> Result<Request<Vec<u8>>, OutboundError> {
    let mut request = Request::post(url.as_str())
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, content_type);
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(body.to_vec()).map_err(|error| OutboundError::Setup(error.to_string()))
}

/// The longest part of an upstream's own words that is told, in characters.
const MAX_REASON: usize = 300;
/// Longer words are identifiers at best, and tokens at worst.
const MAX_WORD: usize = 64;

/// What the system says of its refusal, for operators: OAuth's `error` and `error_description` (RFC 6749 §5.2),
/// Google's `error.message`, Kubernetes's `message`. Words that could be a token are left out.
fn reason(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let texts = ["/error", "/error/message", "/error_description", "/message"];
    let said: Vec<&str> = texts.iter().filter_map(|pointer| body.pointer(pointer)?.as_str()).collect();
    let said = said.join(": ");
    let words = said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.map(|word| if word.len() > MAX_WORD { "…" } else { word }).collect();
    let said: String = words.join(" ").chars().take(MAX_REASON).collect();
    if said.is_empty() { said } else { format!(" ({said})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::testing::Bench;
    use http::HeaderMap;

    #[test]
    fn what_an_answer_says() {
        let upstream = Upstream::new("it", OutboundOptions::default(), &Bench::new("{}").context);
        let long = "x".repeat(65);
        for (status, body, expected) in [
            (200, "", "made"),
            (
                400,
                r#"{"error":"invalid_grant","error_description":"wrong\naudience"}"#,
                "refused: 400 (invalid_grant: wrong audience)",
            ),
            (403, r#"{"error":{"code":403,"message":"Permission denied"}}"#, "refused: 403 (Permission denied)"),
            (403, r#"{"kind":"Status","message":"no"}"#, "refused: 403 (no)"),
            (400, &format!(r#"{{"error":"{long}"}}"#), "refused: 400 (…)"),
            (401, "no JSON", "refused: 401"),
            (429, "", "Throttled"),
            (302, "", "Unclear"),
            (408, "", "Unclear"),
            (409, "", "Unclear"),
            (500, "", "OutcomeUnknown"),
        ] {
            let answer = Fetched {
                status: StatusCode::from_u16(status).expect("a status"),
                headers: HeaderMap::new(),
                body: body.into(),
            };
            let said = upstream.made(&answer).map_or_else(|error| format!("{error:?} {error}"), |()| "made".to_owned());
            assert!(said.contains(expected), "{status} {body}: {said}");
        }
    }
}
