//! The one place that knows status codes: each refusal becomes RFC 6749 JSON.

use crate::{
    exchange::{NotGivenBack, Refusal},
    store::StoreError,
    token::TokenError,
};
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use jobpass_protocol::{DecisionId, ErrorBody, ErrorCode, FormError};
use std::time::Duration;

/// One text for an unknown grant, a denied one and a spent token, so that nobody learns which it was.
const DENIED: &str = "No grant of this name is open to this job: the name may be misspelt, the grant's rules may not match \
                      this job's claims, or the job's token was used by another session before. The server's operators \
                      find the reason under the decision_id.";
/// How long a client waits when the store is down.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<Duration>,
}

impl Failure {
    fn new(status: StatusCode, error: ErrorCode, description: impl Into<String>) -> Self {
        let body = ErrorBody { error, error_description: description.into(), decision_id: None, reasons: Vec::new() };
        Self { status, body, retry_after: None }
    }

    pub(super) fn bad(description: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest, description)
    }

    pub(super) fn unavailable(description: impl Into<String>, retry_after: Duration) -> Self {
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TemporarilyUnavailable, description);
        Self { retry_after: Some(retry_after), ..failure }
    }

    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn decided(mut self, decision: DecisionId) -> Self {
        self.body.decision_id = Some(decision.to_string());
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // Plain strings and an enum: this serialisation cannot fail.
        let json = serde_json::to_vec(&self.body).unwrap_or_default();
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

impl From<FormError> for Failure {
    fn from(error: FormError) -> Self {
        let code = match error {
            FormError::GrantType => ErrorCode::UnsupportedGrantType,
            FormError::Handle(_) => ErrorCode::InvalidGrant,
            FormError::Missing(_)
            | FormError::Duplicated(_)
            | FormError::Unsupported(_)
            | FormError::Invalid { .. }
            | FormError::Name(_)
            | FormError::TooLarge => ErrorCode::InvalidRequest,
        };
        Self::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store cannot be used: nothing is issued");
        Self::unavailable("The server cannot record leases now, so it issues nothing. Try again later.", STORE_RETRY)
    }
}

impl From<NotGivenBack> for Failure {
    fn from(error: NotGivenBack) -> Self {
        tracing::error!(%error, "the store cannot be used for giving back");
        let text = match error {
            NotGivenBack::Unread(_) => "The server cannot look up the lease now. Try again later.",
            NotGivenBack::Unrecorded(_) => {
                "The server asked the backend to take the credential back, and cannot record that now. Try again later."
            }
        };
        Self::unavailable(text, STORE_RETRY)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let bad = StatusCode::BAD_REQUEST;
        match refusal {
            Refusal::Token(TokenError::KeysUnavailable { retry_after, .. }) => {
                Self::unavailable("The keys of the token's issuer cannot be had now. Try again later.", retry_after)
            }
            Refusal::Token(error) => Self::bad(format!("subject_token: {error}")),
            Refusal::Denied { decision, reasons } => {
                let mut failure = Self::new(bad, ErrorCode::InvalidTarget, DENIED).decided(decision);
                failure.body.reasons = reasons;
                failure
            }
            Refusal::Scope { decision } => {
                Self::new(bad, ErrorCode::InvalidScope, "The scope goes beyond what the grant allows.").decided(decision)
            }
            Refusal::Unfit { field, message, decision } => Self::bad(format!("{field}: {message}")).decided(decision),
            Refusal::Handle => Self::new(
                bad,
                ErrorCode::InvalidGrant,
                "The lease handle is not valid: it is unknown, was used before, or its lease is over. Exchange a token again.",
            ),
            Refusal::Renewals => Self::new(
                bad,
                ErrorCode::InvalidGrant,
                "The lease was renewed as often as a lease may be. Exchange a token again.",
            ),
            Refusal::TooMany { retry_after } => {
                let failure = Self::unavailable("This workload asks too often. Wait, then try again.", retry_after);
                failure.status(StatusCode::TOO_MANY_REQUESTS)
            }
            Refusal::Backend { decision } => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::ServerError,
                "The backend did not make the credential. The server's operators find the reason under the decision_id.",
            )
            .decided(decision),
            Refusal::Busy { retry_after, decision } => Self::unavailable(
                "The backend is busy, or rests after failures. Try again later. The server's operators find the reason \
                 under the decision_id.",
                retry_after,
            )
            .decided(decision),
            Refusal::Store(error) => error.into(),
        }
    }
}

pub(super) async fn not_found(uri: Uri) -> Failure {
    tracing::debug!(path = uri.path(), "no such path");
    Failure::bad("There is nothing here. Exchange a token with POST /token.").status(StatusCode::NOT_FOUND)
}

pub(super) async fn method_not_allowed() -> Failure {
    Failure::bad("This path does not take this method.").status(StatusCode::METHOD_NOT_ALLOWED)
}
