//! The token server of a registry: what a lease's token is good for as a password, and when it is not.

use jobpass_exchanger::{admin::Admin, http::admin::FreezeRequest};
use jobpass_tests::world::{Setting, World, grant};
use serde_json::Value;

/// Asks the token server of a backend; returns the status and the body.
async fn ask(world: &World, backend: &str, query: &str, password: Option<&str>) -> (u16, Value) {
    let request = world.client.get(format!("{}/oci_registry/{backend}/token?{query}", world.url));
    let request = match password {
        Some(password) => request.basic_auth("anybody", Some(password)),
        None => request,
    };
    let response = request.send().await.expect("the server answers");
    let challenged = response.headers().get("www-authenticate").is_some_and(|value| value == "Basic realm=\"jobpass\"");
    assert_eq!(challenged, response.status() == 401);
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_a_password_while_its_lease_is_good() {
    let secrets = tempfile::tempdir().expect("a directory");
    let pair = rcgen::generate_simple_self_signed(["signer".to_owned()]).expect("a certificate");
    let path = |name: &str| secrets.path().join(name).display().to_string();
    std::fs::write(path("cert.pem"), pair.cert.pem()).expect("writes");
    std::fs::write(path("key.pem"), pair.signing_key.serialize_pem()).expect("writes");
    // One key signs for two registries.
    let backend = |name: &str| {
        let (key, certificate) = (path("key.pem"), path("cert.pem"));
        format!(
            "  {name}: {{ oci_registry: {{ registry: {name}.example, service: {name}, key: \"file:{key}\", certificate: {certificate} }} }}\n"
        )
    };
    let access = "access: [{ repository: ci/app, actions: [pull, push] }]";
    let world = World::of(Setting {
        grants: ["images", "other"].map(|name| (format!("{name}.yaml"), grant(name, name, access))).into(),
        backends: backend("images") + &backend("other"),
        ..Setting::default()
    })
    .await;
    let (first, second) = (world.issue("images").await, world.issue("images").await);
    let [first_token, second_token] = [&first, &second].map(|answer| answer.text_at("/credential/token"));
    let other = world.issue("other").await.text_at("/credential/token");
    let pull = "service=images&scope=repository:ci/app:pull";
    for (what, backend, query, password, expected) in [
        ("the lease's own", "images", pull, Some(first_token.as_str()), 200),
        ("no scope", "images", "service=images", Some(&first_token), 200),
        ("no password", "images", pull, None, 401),
        ("of another registry", "images", pull, Some(&other), 401),
        ("a word", "images", pull, Some("password"), 401),
        ("for another service", "images", "service=other", Some(&first_token), 400),
        ("no registry", "oidc", pull, Some(&first_token), 404),
        ("no backend", "nowhere", pull, Some(&first_token), 404),
    ] {
        let (status, body) = ask(&world, backend, query, password).await;
        assert_eq!((status, body["token"].is_string()), (expected, expected == 200), "{what}: {body}");
        if let Some(token) = body["token"].as_str() {
            world.keep_secret(token);
        }
    }

    let good = async |token: &str| ask(&world, "images", pull, Some(token)).await.0 == 200;
    let admin = Admin::of(&world.state()).expect("a client");
    let freeze = |reason: Option<&str>| FreezeRequest {
        grant: Some("images".parse().expect("a name")),
        issuer: None,
        reason: reason.map(str::to_owned),
    };
    admin.freeze(&freeze(Some("incident 7"))).await.expect("frozen");
    assert!(!good(&first_token).await, "its grant is frozen");
    admin.freeze(&freeze(None)).await.expect("thawed");
    assert!(good(&first_token).await);
    world.revoke(&first.handle()).await;
    assert!(!good(&first_token).await, "its lease was taken back");
    assert!(good(&second_token).await);
    world.advance(std::time::Duration::from_secs(841));
    assert!(!good(&second_token).await, "its time is over");
    world.close().await;
}
