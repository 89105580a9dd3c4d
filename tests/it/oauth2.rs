//! Other authorization servers, through the front door: client credentials with a secret and with our key, and
//! token exchange.

use jobpass_tests::{
    authorization_server::{AuthorizationServer, LIFE, SECRET},
    world::{Setting, World, WorldClock, grant, session},
};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;

async fn start() -> (World, AuthorizationServer, TempDir) {
    let clock = WorldClock::default();
    let server = AuthorizationServer::start(clock.seconds()).await;
    let secrets = tempfile::tempdir().expect("a directory");
    let secret = secrets.path().join("secret");
    std::fs::write(&secret, SECRET).expect("writes");
    let (url, secret) = (&server.url, secret.display());
    let common = format!("token_url: \"{url}/token\", token_lifetime: 10m, insecure_http: true");
    let backends = format!(
        "  basic:\n    oauth2_client_credentials: {{ {common}, client: {{ id: with secret, secret: \"file:{secret}\" }} }}\n  \
         key:\n    oauth2_client_credentials: {{ {common}, client: {{ id: with-key }} }}\n  \
         short:\n    oauth2_client_credentials: {{ {}, client: {{ id: with-key }} }}\n  \
         exchange:\n    token_exchange: {{ {common}, audience: \"{url}\" }}\n",
        common.replace("10m", "5m")
    ) + &format!(
        "  revocable:\n    oauth2_client_credentials: {{ {common}, client: {{ id: with-key }}, revocation_url: \"{url}/revoke\" }}\n"
    );
    let scopes = "scopes: [read, \"repo:{{ claims.repository_id }}\"]";
    let grants = [
        ("basic", "basic", scopes),
        ("key", "key", scopes),
        ("short", "short", scopes),
        (
            "exchange",
            "exchange",
            "scopes: [read]\n  sub: \"{{ claims.repository_id }}\"\n  resource: https://api.example",
        ),
        ("revocable", "revocable", scopes),
        ("greedy", "key", "scopes: [admin]"),
    ];
    let grants = grants.map(|(name, backend, spec)| (format!("{name}.yaml"), grant(name, backend, spec)));
    let sealing = secrets.path().join("sealing");
    std::fs::write(&sealing, "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=").expect("writes");
    let config = format!("sealing: {{ keys: \"file:{}\" }}\n", sealing.display());
    let world = World::of(Setting { grants: grants.into(), backends, config, ..Setting::default() }).await;
    world.keep_secret(SECRET);
    clock.is(&world);
    server.trust(&world.url);
    (world, server, secrets)
}

/// The status and the answer of an API for this scope.
async fn ask(world: &World, server: &AuthorizationServer, token: &str, scope: &str) -> (u16, Value) {
    let request = world.client.get(format!("{}/{scope}", server.url)).bearer_auth(token);
    let answer = request.send().await.expect("the API answers");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_its_scopes_until_it_expires() {
    let (world, server, _secrets) = start().await;
    for (name, subject) in [("basic", "with secret"), ("key", "with-key"), ("exchange", "grant:exchange:772002")] {
        let answer = world.issue(name).await;
        let (token, lease) = (answer.text_at("/access_token"), answer.text_at("/lease_id"));
        let issued_at = world.clock_seconds();
        assert_eq!((&answer.body["expires_in"], &answer.body["revocable"]), (&json!(LIFE), &json!(false)));
        assert_eq!(ask(&world, &server, &token, "read").await, (200, json!({ "subject": subject })), "{name}");
        assert_eq!(ask(&world, &server, &token, "write").await.0, 403, "{name}");
        let told = world.revoke(&answer.handle()).await;
        assert_eq!((&told.body["state"], &told.body["until"]), (&json!("outliving"), &json!(issued_at + LIFE)));
        world.advance(Duration::from_secs(LIFE as u64 - 1));
        assert_eq!(ask(&world, &server, &token, "read").await.0, 200, "{name} before its end");
        world.advance(Duration::from_secs(1));
        assert_eq!(ask(&world, &server, &token, "read").await.0, 401, "{name} after its end");
        world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_or_gives_for_too_long_is_no_credential() {
    let (world, server, _secrets) = start().await;
    for (name, reason, state) in
        [("greedy", "invalid_scope: admin", "ended"), ("short", "raise the backend's `token_lifetime`", "outliving")]
    {
        let before: Vec<String> = world.leases().await.iter().map(|lease| lease.id.to_string()).collect();
        world.exchange(&world.token(), name, &[("session", &session())]).await.refused(502, "server_error");
        world
            .until("the reason is in the audit log", async || {
                world.audit().iter().any(|line| line.to_string().contains(reason))
            })
            .await;
        let leases = world.leases().await;
        let new = leases.iter().find(|lease| !before.contains(&lease.id.to_string())).expect("a lease");
        assert_eq!(serde_json::to_value(&new.state).expect("JSON")["state"], state, "{name}");
    }
    server.trust("http://127.0.0.1:1");
    for name in ["key", "exchange"] {
        world.exchange(&world.token(), name, &[("session", &session())]).await.refused(502, "server_error");
    }
    assert_eq!(server.refused().len(), 3, "{:?}", server.refused());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_server_offers_it_a_token_is_revoked() {
    let (world, server, _secrets) = start().await;
    let answer = world.exchange(&world.token(), "revocable", &[("session", &session()), ("ttl", "60")]).await.granted();
    assert_eq!((&answer.body["expires_in"], &answer.body["revocable"]), (&json!(60), &json!(true)));
    let token = answer.text_at("/access_token");
    assert_eq!(ask(&world, &server, &token, "read").await.0, 200);
    assert_eq!(world.revoke(&answer.handle()).await.body["state"], "ended");
    assert_eq!(ask(&world, &server, &token, "read").await.0, 401);
    assert_eq!(world.revoke(&answer.handle()).await.body["state"], "ended", "revocation is idempotent");

    let answer = world.exchange(&world.token(), "revocable", &[("session", &session()), ("ttl", "60")]).await.granted();
    let token = answer.text_at("/access_token");
    world.advance(Duration::from_secs(61));
    world.until("the reaper takes it back", async || ask(&world, &server, &token, "read").await.0 == 401).await;
    world.close().await;
}
