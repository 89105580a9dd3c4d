//! The token server of container registries: `GET /oci_registry/NAME/token`, where a registry sends its clients
//! (`auth.token.realm`). The password is the token of a lease, and the answer is as much of it as was asked for.

use super::error::{Failure, not_found};
use crate::{
    app::App,
    leases::{Lease, State as LeaseState},
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jobpass_protocol::BackendName;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use zeroize::Zeroizing;

const RETRY: Duration = Duration::from_secs(5);

/// See the module.
pub(super) async fn token(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    let name = uri.path().split('/').nth(2).and_then(|name| BackendName::parse(name).ok());
    let Some((name, registry)) = name.and_then(|name| {
        let registry = app.backends.named(&name)?.describe().token_server()?;
        Some((name, registry))
    }) else {
        return not_found(uri).await.into_response();
    };
    let now = app.clock.now();
    let (mut services, mut scopes) = (Vec::new(), Vec::new());
    for (key, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*key {
            "service" => services.push(value),
            "scope" => scopes.push(value),
            _ => {}
        }
    }
    if services.iter().any(|service| service != registry.service()) {
        return Failure::bad("service: this is the token server of another registry").into_response();
    }
    let failed = |why: String| {
        tracing::error!(backend = %name, why, "a registry's token cannot be made");
        Failure::unavailable("The token cannot be made now.", RETRY).into_response()
    };
    let brought = match password(&headers).map(|token| registry.take(&token, now)).transpose() {
        Ok(brought) => brought.flatten(),
        Err(why) => return failed(why),
    };
    let Some(brought) = brought else { return unauthorized() };
    match app.store.lease(brought.lease()).await {
        Ok(Some(lease)) if lease.placement().backend == name && is_good(&app, &lease) => {}
        Ok(_) => return unauthorized(),
        Err(error) => return Failure::from(error).into_response(),
    }
    let expires_in = brought.expires_in(now);
    match registry.narrow(brought, scopes.iter().map(|scope| &**scope), now) {
        Ok(token) => {
            let token = token.expose();
            Json(json!({ "token": token, "access_token": token, "expires_in": expires_in })).into_response()
        }
        Err(why) => failed(why),
    }
}

/// Whether a lease was neither taken back nor frozen.
fn is_good(app: &App, lease: &Lease) -> bool {
    let subject = lease.subject();
    let frozen = app.freezes.load().reason(&subject.issuer, &subject.grant).is_some();
    matches!(lease.state(), LeaseState::Active { .. }) && !frozen
}

/// RFC 7617 §2.
fn password(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let (scheme, encoded) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let encoded = scheme.eq_ignore_ascii_case("basic").then_some(encoded.trim())?;
    let decoded = Zeroizing::new(STANDARD.decode(encoded).ok()?);
    let (_, password) = str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Zeroizing::new(password.to_owned()))
}

fn unauthorized() -> Response {
    let failure = Failure::bad("The password is the token of a lease that is good: ask jobpass for one.");
    let challenge = (header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"jobpass\""));
    ([challenge], failure.status(StatusCode::UNAUTHORIZED)).into_response()
}
