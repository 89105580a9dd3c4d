//! The world of a platform team: its two CIs, its database, and a server that trusts the ones with
//! the other.

use jobpass_exchanger::demo::{
    Ci,
    issuer::{Issuer, Token},
};
use jobpass_tests::{
    http::now,
    ports,
    server::{Server, Setup},
};
use serde_json::json;

/// The audience of the tokens of the grant `vault`.
pub const VAULT_AUDIENCE: &str = "openbao.acme.example";

/// A server that trusts both CIs, with the grant `vault` of its own tokens.
pub fn setup(github: &Issuer, gitlab: &Issuer) -> Setup {
    Setup::new()
        .issuer("github", github.url(), &["1001"])
        .issuer("gitlab", gitlab.url(), &["1001"])
        .backend("oidc", json!({ "signed_jwt": { "audiences": [VAULT_AUDIENCE] } }))
        .grant("vault.yaml")
        .grant("report.yaml")
}

/// A CI.
pub async fn issuer(ci: Ci) -> Issuer {
    Issuer::start(ports::ANY, ci, now).await.expect("the issuer starts")
}

/// A job's token for a server.
pub fn token(issuer: &Issuer, server: &Server) -> String {
    let token = issuer.mint(&Token::for_audience(server.url.as_str())).expect("the key signs");
    server.keep_quiet(&token);
    token
}
