//! Where an issuer's keys are: OpenID Connect Discovery 1.0 §4.
//!
//! Of the document only `issuer` and `jwks_uri` are read. CI providers leave out members that the
//! specification requires of a login provider (GitHub has no `authorization_endpoint`), so
//! openidconnect's types for the two are used, and not its type for the whole.

use super::keys::FetchError;
use crate::outbound::{Fetched, Outbound};
use openidconnect::{IssuerUrl, JsonWebKeySetUrl};
use serde::Deserialize;
use url::Url;

#[derive(Deserialize)]
struct Metadata {
    issuer: IssuerUrl,
    jwks_uri: JsonWebKeySetUrl,
}

/// Asks the issuer where its keys are. `elsewhere` is an address that its profile names, if any;
/// otherwise they have to be on the issuer's own host.
pub(super) async fn find_keys(outbound: &Outbound, issuer: &str, elsewhere: Option<&str>) -> Result<Url, FetchError> {
    let issuer = IssuerUrl::new(issuer.to_owned()).map_err(|_| FetchError::Document("the issuer's URL"))?;
    let address =
        issuer.join(".well-known/openid-configuration").map_err(|_| FetchError::Document("the issuer's URL"))?;
    let body = fetch(outbound, &address).await?;
    let metadata: Metadata =
        serde_json::from_slice(&body).map_err(|_| FetchError::Document("the discovery document"))?;
    if metadata.issuer != issuer {
        return Err(FetchError::OtherIssuer(metadata.issuer.as_str().chars().take(200).collect()));
    }
    let keys = metadata.jwks_uri.url().clone();
    if keys.origin() != issuer.url().origin() && elsewhere != Some(metadata.jwks_uri.as_str()) {
        return Err(FetchError::OtherHost(keys.host_str().unwrap_or_default().to_owned()));
    }
    Ok(keys)
}

/// The body of a 200 answer.
pub(super) async fn fetch(outbound: &Outbound, address: &Url) -> Result<Vec<u8>, FetchError> {
    let Fetched { status, body, .. } = outbound.get(address).await?;
    if status == http::StatusCode::OK { Ok(body) } else { Err(FetchError::Status(status)) }
}
