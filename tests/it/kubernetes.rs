//! A Kubernetes cluster, through the front door.

use jobpass_tests::{
    kubernetes::{ADMIN, Kubernetes},
    world::{NOON, Setting, World, WorldClock, grant, session},
};
use std::time::Duration;
use tempfile::TempDir;

async fn start() -> (World, Kubernetes, TempDir) {
    let clock = WorldClock::default();
    let cluster = Kubernetes::start(clock.seconds()).await;
    let secrets = tempfile::tempdir().expect("a directory");
    let token = secrets.path().join("token");
    std::fs::write(&token, ADMIN).expect("writes");
    let backend = |name: &str, bound: bool| {
        format!(
            "  {name}:\n    kubernetes: {{ server: \"{}\", token: \"file:{}\", bound: {bound}, insecure_http: true }}\n",
            cluster.url,
            token.display()
        )
    };
    let deploy = "namespace: prod\n  service_account: deploy";
    let grants = [
        ("bound", "bound", format!("{deploy}\n  annotations: {{ run: \"{{{{ claims.run_id }}}}\" }}")),
        ("unbound", "unbound", deploy.to_owned()),
        ("elsewhere", "unbound", format!("{deploy}\n  audiences: [https://vault.example]")),
        ("missing", "bound", deploy.replace("account: deploy", "account: nobody")),
        ("forbidden", "bound", deploy.replace("prod", "kube-system")),
    ];
    let grants = grants.map(|(name, backend, spec)| (format!("{name}.yaml"), grant(name, backend, &spec)));
    let backends = backend("bound", true) + &backend("unbound", false);
    let world = World::of(Setting { grants: grants.into(), backends, ..Setting::default() }).await;
    world.keep_secret(ADMIN);
    clock.is(&world);
    (world, cluster, secrets)
}

/// The status of listing pods with a token.
async fn list(world: &World, cluster: &Kubernetes, token: &str, namespace: &str) -> u16 {
    let url = format!("{}/api/v1/namespaces/{namespace}/pods", cluster.url);
    world.client.get(url).bearer_auth(token).send().await.expect("the API server answers").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_token_is_taken_back() {
    let (world, cluster, _secrets) = start().await;
    let answer = world.issue("bound").await;
    let (token, lease) = (answer.text_at("/credential/token"), answer.text_at("/lease_id"));
    assert_eq!(answer.body["revocable"], true);
    let kubeconfig: serde_json::Value =
        serde_json::from_str(&answer.text_at("/credential/kubeconfig")).expect("a kubeconfig");
    assert_eq!(kubeconfig["users"][0]["user"]["token"], token.as_str());
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], cluster.url.as_str());
    assert_eq!(list(&world, &cluster, &token, "prod").await, 200);
    assert_eq!(list(&world, &cluster, &token, "kube-system").await, 403);
    let made = cluster.secrets();
    assert_eq!(made[0]["metadata"]["name"], format!("jobpass-{}", lease.replace('-', "")));
    assert_eq!(made[0]["metadata"]["annotations"]["jobpass/run"], "15410912345", "claims are stamped into it");
    assert_eq!(made[0]["metadata"]["annotations"]["jobpass/lease"], lease.as_str());

    assert_eq!(world.revoke(&answer.handle()).await.body["state"], "ended");
    assert_eq!(list(&world, &cluster, &token, "prod").await, 401);
    assert!(cluster.secrets().is_empty());
    assert_eq!(world.revoke(&answer.handle()).await.body["state"], "ended", "revocation is idempotent");

    let answer = world.issue("bound").await;
    let token = answer.text_at("/credential/token");
    world.advance(Duration::from_secs(901));
    world.until("the reaper deletes the Secret", async || cluster.secrets().is_empty()).await;
    assert_eq!(list(&world, &cluster, &token, "prod").await, 401);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unbound_token_ends_by_itself() {
    let (world, cluster, _secrets) = start().await;
    let elsewhere = world.issue("elsewhere").await.text_at("/credential/token");
    assert_eq!(list(&world, &cluster, &elsewhere, "prod").await, 401, "it is for another audience");
    let answer = world.issue("unbound").await;
    let (token, lease) = (answer.text_at("/credential/token"), answer.text_at("/lease_id"));
    let told = world.revoke(&answer.handle()).await;
    assert_eq!((&told.body["state"], &told.body["until"]), (&"outliving".into(), &(NOON + 900).into()));
    world.advance(Duration::from_secs(899));
    assert_eq!(list(&world, &cluster, &token, "prod").await, 200, "before its end");
    world.advance(Duration::from_secs(1));
    assert_eq!(list(&world, &cluster, &token, "prod").await, 401, "after its end");
    world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;
    assert!(cluster.secrets().is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_refuses_leaves_nothing_behind() {
    let (world, cluster, _secrets) = start().await;
    for (name, reason) in [("missing", "\"nobody\" not found"), ("forbidden", "cannot POST")] {
        world.exchange(&world.token(), name, &[("session", &session())]).await.refused(502, "server_error");
        assert!(cluster.refused().iter().any(|why| why.contains(reason)), "{name}: {:?}", cluster.refused());
    }
    assert!(cluster.secrets().is_empty(), "what was made first is deleted at once");
    assert!(world.leases().await.iter().all(|lease| lease.state.name() == "ended"));
    // What one grant gets wrong, again and again, rests no backend.
    for _ in 0..5 {
        world.exchange(&world.token(), "missing", &[("session", &session())]).await.refused(502, "server_error");
    }
    world.issue("bound").await;
    world.exchange(&world.token(), "bound", &[("ttl", "60")]).await.refused(400, "invalid_request");
    world.close().await;
}
