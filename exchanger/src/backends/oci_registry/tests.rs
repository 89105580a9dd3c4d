use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, NOW, order},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

/// A key, and a file with its certificate.
fn signer() -> (String, tempfile::NamedTempFile) {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::default().self_signed(&key).expect("a certificate");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), certificate.pem()).expect("written");
    (key.serialize_pem(), file)
}

fn config(certificate: &tempfile::NamedTempFile, more: &str) -> String {
    let path = certificate.path().display();
    format!(
        "images: {{ oci_registry: {{ registry: \"registry.example:5000\", service: registry.example, key: env:KEY, \
         certificate: {path}{more} }} }}"
    )
}

fn mint(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Value, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Local(backend) = bench.backend() else { panic!("oci_registry is local") };
    let minted = backend.mint(&permit, &order(&permit)).map_err(|error| error.to_string())?;
    assert_eq!(minted.expires_at, order(&permit).expires_at);
    let token = minted.credential.field("token").map(Secret::expose).expect("a token");
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a payload")).expect("base64url");
    Ok(serde_json::from_slice(&payload).expect("JSON"))
}

const APP: &str = "access: [{ repository: \"ci/r{{ claims.repository_id }}/app\", actions: [pull, push] }]";

#[test]
fn a_token_says_what_and_where() {
    let (key, certificate) = signer();
    let bench = Bench::with(&config(&certificate, ""), [("KEY", key.as_str())]);
    let payload = mint(&bench, APP, &[]).expect("a token");
    let expected = json!({
        "iss": "https://jobpass.acme.example", "sub": "grant:deploy-prod", "aud": "registry.example",
        "exp": NOW.secs() + 900 - 60, "nbf": NOW.secs(), "iat": NOW.secs(),
        "jti": "01990000-0000-7000-8000-000000000001",
        "access": [{ "type": "repository", "name": "ci/r772002/app", "actions": ["pull", "push"] }],
    });
    assert_eq!(payload, expected);
}

#[test]
fn specs() {
    let (key, certificate) = signer();
    let bench = Bench::with(&config(&certificate, ""), [("KEY", key.as_str())]);
    for (credential, refusal) in [
        ("access: []", "can do nothing"),
        ("access: [{ repository: ci/app, actions: [] }]", "nothing is allowed"),
        ("access: [{ repository: ci/app, actions: [\"*\"] }]", "*"),
        ("access: [{ repository: ci//app, actions: [pull] }]", "no repository's name"),
        ("access: [{ repository: ci/*, actions: [pull] }]", "'*' is not allowed"),
        ("access: [{ repository: Ci/app, actions: [pull] }]", "'C' is not allowed"),
        ("access: [{ repository: \"{{ claims.actor }}\", actions: [pull] }]", "decides here"),
    ] {
        let error = mint(&bench, credential, &[]).expect_err(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
    let error = bench.permit(APP, "60s", &[]).expect_err("too short");
    assert!(error.contains("for 60 seconds after its end"), "{error}");
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let (key, certificate) = signer();
    let bench = Bench::with(&config(&certificate, ""), [("KEY", key.as_str())]);
    for hostile in HOSTILE {
        match mint(&bench, APP, &[("repository_id", hostile)]) {
            Ok(payload) => assert_eq!((payload["access"][0]["name"].as_str(), *hostile), (Some("ci/ra/b/app"), "a/b")),
            Err(error) => assert!(error.contains("credential.access.0.repository"), "{hostile:?}: {error}"),
        }
    }
}

#[test]
fn repositories() {
    for (text, is) in [
        ("app", true),
        ("ci/app", true),
        ("a.b_c__d-e---f/0", true),
        ("", false),
        ("/app", false),
        ("app/", false),
        ("a..b", false),
        ("a___b", false),
        ("a._b", false),
        ("-a", false),
        ("a-", false),
        ("../a", false),
    ] {
        assert_eq!(is_repository(text), is, "{text}");
    }
}

#[test]
fn configs() {
    let (key, certificate) = signer();
    let (other, _) = signer();
    let good = config(&certificate, "");
    for (from, to, refusal) in [
        ("registry.example:5000", "https://x/", "registry: expected host"),
        ("service: registry.example", "service: \"\"", "service"),
    ] {
        let error = Bench::new(&good.replacen(from, to, 1)).backends.err().expect("refused");
        assert!(error.contains(refusal), "{error}");
    }
    for (key, config, refusal) in [
        ("hunter2", good.clone(), "key: env:KEY: expected a P-256"),
        (&other, good.clone(), "another key than `key`"),
        (
            &key,
            good.replace(&certificate.path().display().to_string(), "absent.pem"),
            "certificate: /nowhere/absent.pem",
        ),
    ] {
        let bench = Bench::with(&config, [("KEY", key)]);
        let error = bench.backend().describe().preflight().expect_err("refused");
        assert!(error.contains(refusal) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_token_that_is_brought_back_is_narrowed() {
    let (key, certificate) = signer();
    let bench = |more: &str| Bench::with(&config(&certificate, more), [("KEY", key.as_str())]);
    let here = bench("");
    let credential =
        "access: [{ repository: ci/app, actions: [pull, push] }, { repository: base/debian, actions: [pull] }]";
    let permit = here.permit(credential, "15m", &[]).expect("permitted");
    let Backend::Local(backend) = here.backend() else { panic!("oci_registry is local") };
    let minted = backend.mint(&permit, &order(&permit)).expect("a token");
    let token = minted.credential.field("token").map(Secret::expose).expect("a token");
    let server = backend.token_server().expect("it is one");
    let ends = NOW + Duration::from_secs(900 - 60);

    let pull = json!([{ "type": "repository", "name": "ci/app", "actions": ["pull"] }]);
    let both = json!([
        { "type": "repository", "name": "ci/app", "actions": ["pull", "push"] },
        { "type": "repository", "name": "base/debian", "actions": ["pull"] },
    ]);
    for (scopes, access) in [
        (&["repository:ci/app:pull"][..], &pull),
        (&["repository:ci/app:pull,delete", "repository:other:pull"], &pull),
        (&["repository:ci/app:push,pull", "repository:base/debian:pull,push"], &both),
        (&["repository:ci/app:push,pull repository:base/debian:pull"], &both),
        (&[], &json!([])),
        (
            &["repository:ci/app:*", "repository:ci:pull", "registry:catalog:*", "repository(plugin):ci/app:pull", "x"],
            &json!([]),
        ),
    ] {
        let brought = server.take(token, NOW).expect("a key").expect("it is good");
        assert_eq!((brought.lease(), brought.expires_in(NOW)), (order(&permit).lease, 840));
        let narrow = server.narrow(brought, scopes.iter().copied(), NOW).expect("signed");
        let payload = URL_SAFE_NO_PAD.decode(narrow.expose().split('.').nth(1).expect("a payload")).expect("base64url");
        let payload: Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!((&payload["access"], &payload["exp"]), (access, &json!(ends.secs())), "{scopes:?}");
        assert!(server.take(narrow.expose(), NOW).expect("a key").is_some(), "it is one of ours");
    }

    let last = token.len() - 1;
    let forged = format!("{}{}", &token[..last], if token.ends_with('A') { 'B' } else { 'A' });
    let widened = {
        let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
        parts[1] = URL_SAFE_NO_PAD.encode(
            String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[1]).expect("base64url"))
                .expect("JSON")
                .replace("debian", "fedora"),
        );
        parts.join(".")
    };
    for (what, token, at) in [
        ("its time is over", token, ends),
        ("forged", forged.as_str(), NOW),
        ("widened", widened.as_str(), NOW),
        ("no token", "", NOW),
        ("no token", "a.b.c", NOW),
    ] {
        assert!(server.take(token, at).expect("a key").is_none(), "{what}");
    }
    let elsewhere = bench(", issuer: https://other.example");
    assert!(elsewhere.backend().describe().token_server().expect("one").take(token, NOW).expect("a key").is_none());
}
