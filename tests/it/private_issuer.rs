//! A CI of a company's own: https by a private authority, at an address that is not public.

use crate::{
    authority::Authority,
    job::{Job, Upstreams},
};
use axum::{Json, Router, routing::get};
use axum_server::tls_rustls::RustlsConfig;
use jobpass_exchanger::demo::issuer::{Issuer, Token};
use jobpass_tests::ports;
use serde_json::json;
use std::{fs, net::SocketAddr};

/// Publishes the issuer's keys over https, at another URL; returns that.
async fn publish(issuer: &Issuer, authority: &Authority) -> String {
    // A second one finds it installed; that is fine.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let [chain, key] = authority.server(&["127.0.0.1"]).map(String::into_bytes);
    let tls = RustlsConfig::from_pem(chain, key).await.expect("a certificate");
    let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let url = format!("https://{address}");
    let keys = format!("{url}/keys");
    let (discovery, keys) = (json!({ "issuer": url, "jwks_uri": keys }), issuer.jwks());
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(async || Json(discovery)))
        .route("/keys", get(async || Json(keys)));
    tokio::spawn(axum_server::bind_rustls(address, tls).serve(router.into_make_service()));
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_heard_by_its_authority_and_its_network_alone() {
    let (own, other, directory) =
        (Authority::new("own"), Authority::new("other"), tempfile::tempdir().expect("a directory"));
    let file = |name: &str, authority: &Authority| {
        let path = directory.path().join(name);
        fs::write(&path, authority.pem()).expect("the directory is ours");
        json!(path)
    };
    let (own_file, other_file) = (file("own.pem", &own), file("other.pem", &other));
    let loopback = json!(["127.0.0.0/8"]);
    for (ca_file, networks, told) in [
        (&own_file, &loopback, None),
        (&other_file, &loopback, Some("invalid peer certificate: UnknownIssuer")),
        (&json!(null), &loopback, Some("invalid peer certificate: UnknownIssuer")),
        (
            &own_file,
            &json!([]),
            Some("which is not a public address: name its network in `allow_networks` to reach it"),
        ),
        (&own_file, &json!(["10.0.0.0/8"]), Some("127.0.0.1 is at 127.0.0.1, which is not a public address")),
    ] {
        let (upstreams, setup) = Upstreams::start().await;
        let url = publish(&upstreams.ci, &own).await;
        let issuer = json!({
            "profile": "github", "url": url, "tenants": ["1001"], "ca_file": ca_file, "allow_networks": networks,
        });
        let server = setup.set("issuers.ci", issuer).start().await;
        let token = upstreams.ci.mint(&Token::for_audience(server.url.as_str()).claim("iss", url.as_str()));
        let token = token.expect("a token");
        let Some(told) = told else {
            upstreams.serve(&Job::new(&server.url).with("JOBPASS_ID_TOKEN", &token), &server).await;
            assert_eq!(server.lease_states(), ["ended: revoked"]);
            continue;
        };
        let answer = server.exchange("ledger", &token, &[]).await;
        assert_eq!((answer.status, answer.body["error"].as_str()), (503, Some("temporarily_unavailable")), "{told}");
        let log = server.log();
        let line = log.lines().find(|line| line.contains("cannot fetch an issuer's keys")).unwrap_or_default();
        assert!(line.contains("WARN") && line.contains(told) && line.contains("127.0.0.1"), "{told}:\n{log}");
        assert!(upstreams.ledger.log().is_empty() && server.lease_states().is_empty());
    }
}
