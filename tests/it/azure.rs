//! Microsoft Entra, through the front door: a strict authority that trusts nothing but our published keys.

use jobpass_tests::{
    entra::{Entra, LIFE, TENANT},
    world::{NOON, Setting, World, WorldClock, grant, session},
};
use std::time::Duration;

const CLIENT: &str = "00000000-0000-4000-8000-000000000001";
const AUDIENCE: &str = "api://AzureADTokenExchange";

async fn start() -> (World, Entra) {
    let clock = WorldClock::default();
    let entra = Entra::start(clock.seconds()).await;
    let backends =
        format!("  entra:\n    azure: {{ tenant: {TENANT}, authority: \"{}\", insecure_http: true }}\n", entra.url);
    let spec = format!("client_id: {CLIENT}\n  scope: https://management.example/.default");
    let grants = [
        ("whole", format!("{spec}\n  sub: \"{{{{ claims.repository_id }}}}\"")),
        ("unbound", spec.clone()),
        ("unknown", spec.replace("0001", "0002")),
    ];
    let grants = grants.map(|(name, spec)| {
        (format!("{name}.yaml"), grant(name, "entra", &spec).replace("ttl: 15m\nmax_lifetime: 1h", "ttl: 90m"))
    });
    let config = "signing: { keys: [ES256, RS256] }\n".to_owned();
    let world = World::of(Setting { grants: grants.into(), backends, config, ..Setting::default() }).await;
    clock.is(&world);
    entra.federate(CLIENT, &world.url, "grant:whole:772002", AUDIENCE);
    (world, entra)
}

/// The status of asking an API with a token.
async fn ask(world: &World, entra: &Entra, token: &str, resource: &str) -> u16 {
    let request = world.client.get(format!("{}/{resource}", entra.url)).bearer_auth(token);
    request.send().await.expect("the API answers").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_one_resource_until_it_expires() {
    let (world, entra) = start().await;
    let answer = world.issue("whole").await;
    let (token, lease) = (answer.text_at("/access_token"), answer.text_at("/lease_id"));
    assert_eq!((&answer.body["token_type"], &answer.body["expires_in"]), (&"Bearer".into(), &LIFE.into()));
    assert_eq!(answer.body["revocable"], false);
    assert_eq!(answer.text_at("/credential/client_id"), CLIENT);
    assert_eq!(ask(&world, &entra, &token, "management.example").await, 200);
    assert_eq!(ask(&world, &entra, &token, "graph.example").await, 401, "another resource");

    let told = world.revoke(&answer.handle()).await;
    assert_eq!((&told.body["state"], &told.body["until"]), (&"outliving".into(), &(NOON + LIFE).into()));
    world.advance(Duration::from_secs(LIFE as u64 - 1));
    assert_eq!(ask(&world, &entra, &token, "management.example").await, 200, "before its end");
    world.advance(Duration::from_secs(1));
    assert_eq!(ask(&world, &entra, &token, "management.example").await, 401, "after its end");
    world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_entra_refuses_leaves_no_lease_open() {
    let (world, entra) = start().await;
    for (name, code) in [("unbound", "AADSTS700213"), ("unknown", "AADSTS700016")] {
        world.exchange(&world.token(), name, &[("session", &session())]).await.refused(502, "server_error");
        assert!(entra.refused().pop().is_some_and(|why| why.contains(code)), "{name}: {:?}", entra.refused());
        world
            .until("the reason is in the audit log", async || {
                world.audit().iter().any(|line| line.to_string().contains(code))
            })
            .await;
    }
    for lease in world.leases().await {
        assert_eq!(serde_json::to_value(lease.state).expect("JSON")["state"], "ended");
    }
    world.exchange(&world.token(), "whole", &[("ttl", "600")]).await.refused(400, "invalid_request");
    world.close().await;
}
