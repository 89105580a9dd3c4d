//! TLS by the server itself.

use crate::{
    authority::Authority,
    job::{Job, Upstreams},
};
use jobpass_tests::{http::client_with, program::built, server::Setup};
use serde_json::json;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Twice as long as the server takes to look at its files, and more.
const SEEN: Duration = Duration::from_secs(90);

/// Puts both files in place at once each, as those who renew certificates do.
fn put(directory: &Path, files: &[String; 2]) {
    for (name, text) in ["chain.pem", "key.pem"].iter().zip(files) {
        let new = directory.join(format!("{name}.new"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, directory.join(name))).expect("the directory is ours");
    }
}

/// Has the server serve TLS with these files of a directory, at that name.
pub(crate) fn serves_tls(setup: Setup, host: &str, authority: &Authority, directory: &Path) -> Setup {
    put(directory, &authority.server(&[host]));
    let tls = json!({ "certificate": directory.join("chain.pem"), "key": directory.join("key.pem") });
    let at = setup.listens();
    let client = client_with(|client| authority.trusted_by(client).resolve(host, at));
    setup.set("tls", tls).reached_at(&format!("https://{host}:{}", at.port()), client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_served_without_a_restart() {
    let (upstreams, setup) = Upstreams::start().await;
    let (directory, old, new) =
        (tempfile::tempdir().expect("a directory"), Authority::new("old"), Authority::new("new"));
    let server = serves_tls(setup, "127.0.0.1", &old, directory.path()).start().await;
    let job = |authority: &Authority| {
        Job::on_github(&upstreams.ci, &server.url).with_file("JOBPASS_CA_FILE", &authority.pem())
    };
    let stranger = "the TLS certificate is not trusted";
    upstreams.serve(&job(&old), &server).await;
    let refused = job(&new).asks().await;
    assert!(!refused.status.success() && refused.log.contains(stranger), "{}", refused.log);

    put(directory.path(), &new.server(&["127.0.0.1"]));
    let keys = format!("{}/.well-known/jwks.json", server.url);
    let deadline = Instant::now() + SEEN;
    while client_with(|client| new.trusted_by(client)).get(&keys).send().await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not served:\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    upstreams.serve(&job(&new), &server).await;
    let refused = job(&old).asks().await;
    assert!(!refused.status.success() && refused.log.contains(stranger), "{}", refused.log);
    assert!(server.log().contains("the certificate was read again"), "{}", server.log());
    assert_eq!(server.lease_states(), ["ended: revoked", "ended: revoked"]);
}

#[test]
fn plain_http_leaves_the_machine_only_behind_a_proxy() {
    let directory = tempfile::tempdir().expect("a directory");
    put(directory.path(), &Authority::new("own").server(&["jobpass.acme.example"]));
    fs::create_dir(directory.path().join("grants")).expect("the directory is ours");
    let config = directory.path().join("jobpass-exchanger.yaml");
    let tls = "tls: { certificate: chain.pem, key: key.pem }";
    for (listen, how, served) in [
        ("0.0.0.0:8420", "", false),
        ("0.0.0.0:8420", "behind_proxy: false", false),
        ("\"[::]:8420\"", "", false),
        ("10.0.0.1:8420", "", false),
        ("0.0.0.0:8420", "behind_proxy: true", true),
        ("0.0.0.0:8420", tls, true),
        ("127.0.0.1:8420", "", true),
        ("\"[::1]:8420\"", "", true),
    ] {
        let text = format!(
            "public_url: https://jobpass.acme.example\nlisten: {listen}\nstate_dir: state\nissuers: {{}}\nbackends: {{}}\n\
             policies: [grants]\n{how}\n"
        );
        fs::write(&config, text).expect("the directory is ours");
        let mut command = Command::new(built("jobpass-exchanger"));
        let said = command.args(["check-config", "--config"]).arg(&config).output().expect("it runs");
        let told = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.success(), served, "{listen} {how}: {told}");
        assert_eq!(told.contains("plain http would be served beyond loopback"), !served, "{listen} {how}: {told}");
    }
}
