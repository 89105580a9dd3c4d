//! HTTP: every route on one page. The only room that knows axum, besides the demo.

pub mod admin;
pub mod certificate;
mod error;
mod handlers;
mod registry;
pub mod server;

use crate::app::App;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, header},
    response::Response,
    routing::{get, post},
};
use jobpass_protocol::exchange::MAX_FORM_BYTES;
use std::sync::Arc;
use tower::util::MapResponseLayer;

/// What jobs see.
pub fn public(app: Arc<App>) -> Router {
    Router::new()
        .route("/token", post(handlers::token))
        .route("/revoke", post(handlers::revoke))
        .route("/.well-known/oauth-authorization-server", get(handlers::authorization_server))
        .route("/.well-known/openid-configuration", get(handlers::openid_configuration))
        .route("/.well-known/jwks.json", get(handlers::jwks))
        .route("/oci_registry/{backend}/token", get(registry::token))
        .route("/{kind}/{backend}/{document}", get(handlers::published))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer((MapResponseLayer::new(guard), DefaultBodyLimit::max(MAX_FORM_BYTES)))
        .with_state(app)
}

/// What the platform team's monitoring sees.
pub fn management(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(handlers::health))
        .route("/ready", get(handlers::ready))
        .route("/metrics", get(handlers::metrics))
        .with_state(app)
}

/// Headers that every public answer carries. Only what says otherwise may be stored (RFC 6749 §5.1).
fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
