//! From HTTP to the pipeline and back. Nothing is decided here.

use super::error::{Failure, not_found};
use crate::{
    app::App,
    backends::{Document, Publication},
    exchange,
    signing::{Algorithm, JWKS_MAX_AGE},
};
use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use jobpass_protocol::{
    BackendName, RevokeRequest, TokenRequest,
    exchange::{GRANT_TYPE_EXCHANGE, GRANT_TYPE_REFRESH},
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// How long a client may take to send its form.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// How long who asks for a document waits when it cannot be made.
const PUBLISH_RETRY: Duration = Duration::from_secs(5);

/// `POST /token`: RFC 8693 token exchange and RFC 6749 §6 renewal.
pub(super) async fn token(State(app): State<Arc<App>>, Form(body): Form) -> Result<Response, Failure> {
    let started = tokio::time::Instant::now();
    let answer = match TokenRequest::parse(&body)? {
        TokenRequest::Exchange(request) => exchange::exchange(&app, *request).await,
        TokenRequest::Renew(request) => exchange::renew(&app, request).await,
    };
    app.metrics.took(started.elapsed().as_secs_f64());
    let mut json = answer?.to_json();
    // The body leaves the process now; what is left behind of it is moved, not copied.
    Ok(json_response(std::mem::take(&mut *json).into()))
}

/// `POST /revoke`: RFC 7009.
pub(super) async fn revoke(State(app): State<Arc<App>>, Form(body): Form) -> Result<Response, Failure> {
    let told = exchange::give_back(&app, RevokeRequest::parse(&body)?).await?;
    Ok(json_response(to_json(&told)))
}

#[derive(Serialize)]
struct Metadata<'a> {
    issuer: &'a str,
    token_endpoint: String,
    revocation_endpoint: String,
    jwks_uri: String,
    grant_types_supported: [&'static str; 2],
    token_endpoint_auth_methods_supported: [&'static str; 1],
    revocation_endpoint_auth_methods_supported: [&'static str; 1],
    // OAuth wants it present; jobpass has no authorization endpoint.
    response_types_supported: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    subject_types_supported: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token_signing_alg_values_supported: Option<Vec<&'static str>>,
}

impl<'a> Metadata<'a> {
    fn new(app: &'a App) -> Self {
        let issuer = app.public_url.as_str();
        Self {
            issuer,
            token_endpoint: format!("{issuer}/token"),
            revocation_endpoint: format!("{issuer}/revoke"),
            jwks_uri: format!("{issuer}/.well-known/jwks.json"),
            grant_types_supported: [GRANT_TYPE_EXCHANGE, GRANT_TYPE_REFRESH],
            token_endpoint_auth_methods_supported: ["none"],
            revocation_endpoint_auth_methods_supported: ["none"],
            response_types_supported: &[],
            subject_types_supported: None,
            id_token_signing_alg_values_supported: None,
        }
    }
}

/// RFC 8414.
pub(super) async fn authorization_server(State(app): State<Arc<App>>) -> Response {
    cacheable(to_json(&Metadata::new(&app)))
}

/// OpenID Connect Discovery 1.0 §3: what a cloud reads before it trusts our tokens.
pub(super) async fn openid_configuration(State(app): State<Arc<App>>) -> Response {
    let metadata = Metadata {
        response_types_supported: &["id_token"],
        subject_types_supported: Some(["public"]),
        id_token_signing_alg_values_supported: Some(app.keys.algorithms().map(Algorithm::as_str).collect()),
        ..Metadata::new(&app)
    };
    cacheable(to_json(&metadata))
}

/// RFC 7517: the public halves of our signing keys.
pub(super) async fn jwks(State(app): State<Arc<App>>) -> Response {
    cacheable(Body::from(app.keys.jwks()))
}

/// What a backend publishes: a certificate authority's key, a list of what was taken back.
pub(super) async fn published(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let found = async || {
        let mut path = uri.path().split('/').skip(1);
        let (kind, name, document) = (path.next()?, BackendName::parse(path.next()?).ok()?, path.next()?);
        let backend = app.backends.named(&name)?.describe();
        let publication = (backend.kind() == kind).then(|| backend.publication(document))??;
        Some(match publication {
            Publication::Fixed(made) => made,
            // Anybody may ask, so that the store is asked once for all who come at the same time.
            Publication::Revocations => {
                let list =
                    async { backend.revocations(document, &app.store.outliving(name.clone()).await.map_err(text)?) };
                app.revocations.try_get_with(uri.path().to_owned(), list).await.map_err(|error| String::clone(&error))
            }
        })
    };
    match found().await {
        None => Err(not_found(uri).await),
        Some(Ok(Document { content_type, body })) => {
            Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response())
        }
        Some(Err(error)) => {
            tracing::error!(path = uri.path(), error, "a document cannot be published");
            Err(Failure::unavailable("The document cannot be made now.", PUBLISH_RETRY))
        }
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Whether the process lives.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Whether something could be issued now.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.store.check() {
        Ok(()) => "ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// OpenMetrics text.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], app.metrics.render()).into_response()
}

/// A form body of the right content type, within its size and in time.
pub(super) struct Form(Bytes);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        if !is_form(request.headers()) {
            return Err(Failure::bad("The content type must be application/x-www-form-urlencoded.")
                .status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        match tokio::time::timeout(BODY_DEADLINE, Bytes::from_request(request, state)).await {
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(rejection)) => Err(too_large_or_broken(&rejection)),
            Err(_) => Err(Failure::bad("The form took too long to arrive.").status(StatusCode::REQUEST_TIMEOUT)),
        }
    }
}

fn too_large_or_broken(rejection: &BytesRejection) -> Failure {
    let status = rejection.status();
    let text = if status == StatusCode::PAYLOAD_TOO_LARGE {
        "The form is too large."
    } else {
        "The form did not arrive whole."
    };
    Failure::bad(text).status(status)
}

fn is_form(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let first = types.next().and_then(|value| value.to_str().ok());
    let form = first.and_then(|value| value.split(';').next()).map(str::trim);
    types.next().is_none() && form.is_some_and(|form| form.eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

fn to_json(value: &impl Serialize) -> Body {
    // Strings and lists of them: this serialisation cannot fail.
    Body::from(serde_json::to_vec(value).unwrap_or_default())
}

fn json_response(body: Body) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn cacheable(body: Body) -> Response {
    let mut response = json_response(body);
    let value = HeaderValue::try_from(format!("public, max-age={}", JWKS_MAX_AGE.as_secs()));
    response.headers_mut().extend(value.ok().map(|value| (header::CACHE_CONTROL, value)));
    response
}
