//! A static secret through the front door, before a system that knows one key and nothing better.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use jobpass_exchanger::{
    app,
    config::{Config, Env},
};
use jobpass_tests::{
    ports,
    world::{NOON, Setting, World, grant, session},
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

/// The key to the API, which whoever holds the administrator's key can have changed.
const FIRST: &str = "erp-key-1";
const ADMIN: &str = "erp-administrator";
const DAY: u64 = 24 * 3600;

/// A system with one API key. Its key lies in a file as well, which is what jobpass reads.
struct Erp {
    url: String,
    directory: TempDir,
    calls: Calls,
    task: JoinHandle<()>,
}

type Calls = Arc<Mutex<Vec<Value>>>;

#[derive(Clone)]
struct Shared {
    key: PathBuf,
    calls: Calls,
}

fn is(headers: &HeaderMap, key: &str) -> bool {
    headers.get("authorization").is_some_and(|value| value == format!("Bearer {key}").as_str())
}

async fn orders(State(erp): State<Shared>, headers: HeaderMap) -> StatusCode {
    let key = fs::read_to_string(&erp.key).unwrap();
    if is(&headers, &key) { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
}

/// Rotates once per lease; the first call is answered as if something went wrong.
async fn rotate(State(erp): State<Shared>, headers: HeaderMap, body: String) -> StatusCode {
    if !is(&headers, ADMIN) {
        return StatusCode::FORBIDDEN;
    }
    let mut calls = erp.calls.lock().unwrap();
    calls.push(serde_json::from_str(&body).unwrap());
    if calls.len() == 1 {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    fs::write(&erp.key, format!("erp-key-{}", calls.len())).unwrap();
    StatusCode::OK
}

impl Erp {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (key, calls) = (directory.path().join("key"), Calls::default());
        fs::write(&key, FIRST).unwrap();
        fs::write(directory.path().join("admin"), ADMIN).unwrap();
        let shared = Shared { key, calls: Arc::clone(&calls) };
        let router = Router::new().route("/orders", get(orders)).route("/rotate", post(rotate)).with_state(shared);
        let listener = TcpListener::bind(ports::ANY).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, directory, calls, task }
    }

    /// The backend's block, with more of it. By a name of its own each hands out the one key that the ERP takes.
    fn backend(&self, name: &str, grant: &str, more: &Value) -> String {
        let key = self.directory.path().join(name);
        symlink("key", &key).unwrap();
        let mut fixed = json!({
            "grant": grant, "owner": "erp@acme.example", "rotate_every": "90d", "rotated_at": "2026-10-01",
            "source": { "secret": format!("file:{}", key.display()) },
        });
        fixed.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("  {name}: {}\n", json!({ "fixed": fixed }))
    }

    async fn works(&self, world: &World, key: &str) -> bool {
        let request = world.client.get(format!("{}/orders", self.url)).bearer_auth(key);
        request.send().await.unwrap().status().is_success()
    }
}

impl Drop for Erp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn world(erp: &Erp) -> World {
    let admin = format!("file:{}", erp.directory.path().join("admin").display());
    let hook = json!({ "rotate": { "http": {
        "url": format!("{}/rotate", erp.url), "insecure_http": true,
        "headers": { "Authorization": { "prefix": "Bearer ", "secret": admin } },
    } } });
    let command =
        json!({ "rotate": { "command": ["/bin/sh", "-c", "test \"$JOBPASS_GRANT\" = ran && test -z \"$HOME\""] } });
    let failing = json!({ "rotate": { "command": ["/bin/false"] } });
    let backends = [
        erp.backend("erp", "plain", &json!({})),
        erp.backend("erp-strict", "strict", &json!({ "overdue": "refuse" })),
        erp.backend("erp-hook", "hooked", &hook),
        erp.backend("erp-command", "ran", &command),
        erp.backend("erp-false", "stuck", &failing),
    ];
    let spec = format!("as: api_key\n  url: {}", erp.url);
    let grants = [
        ("plain", "erp"),
        ("strict", "erp-strict"),
        ("hooked", "erp-hook"),
        ("ran", "erp-command"),
        ("stuck", "erp-false"),
    ];
    let grants = grants.map(|(name, backend)| (format!("{name}.yaml"), grant(name, backend, &spec)));
    let world = World::of(Setting { grants: grants.into(), backends: backends.concat(), ..Setting::default() }).await;
    for secret in [FIRST, ADMIN] {
        world.keep_secret(secret);
    }
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_hook_it_outlives_the_job_and_says_so() {
    let erp = Erp::start().await;
    let world = world(&erp).await;
    let answer = world.issue("plain").await;
    let (key, lease) = (answer.text_at("/credential/key"), answer.text_at("/lease_id"));
    assert!(erp.works(&world, &key).await);
    assert!(!erp.works(&world, "another").await);
    // 2026-10-01 and 90 days.
    let due = 1_798_588_800;
    assert_eq!((&answer.body["revocable"], &answer.body["expires_in"]), (&json!(false), &json!(due - NOON)));
    for _ in 0..2 {
        let told = world.revoke(&answer.handle()).await;
        assert_eq!(told.body, json!({ "state": "outliving", "until": due }));
    }
    assert_eq!(world.state_of(&lease).await["why"], "irrevocable");
    assert!(erp.works(&world, &key).await, "as the answer said");
    world
        .until("the audit log says so", async || {
            let told = |line: &Value| line.to_string().contains("outliving") && line.to_string().contains(&lease);
            world.audit().iter().any(told)
        })
        .await;

    // Overdue: told, and refused where the config says so.
    let told = |world: &World| world.app().metrics.render();
    assert!(
        told(&world).contains(&format!("jobpass_rotation_due_seconds{{backend=\"erp\"}} {due}")),
        "{}",
        told(&world)
    );
    assert!(world.app().backends.overdue(world.app().clock.now()).next().is_none());
    world.issue("strict").await;
    world.advance(Duration::from_secs(41 * DAY));
    assert_eq!(world.app().backends.overdue(world.app().clock.now()).count(), 5);
    let late = world.issue("plain").await;
    assert_eq!(late.body["expires_in"], 90 * DAY, "nobody knows when: another interval at most");
    let refused = world.exchange(&world.token(), "strict", &[("session", &session())]).await;
    let refused = refused.refused(400, "invalid_request");
    let why = refused.text_at("/error_description");
    assert!(why.contains("rotated by 2026-12-30") && why.contains("erp@acme.example"), "{why}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_hook_it_is_rotated_when_the_lease_ends() {
    let erp = Erp::start().await;
    let world = world(&erp).await;
    let answer = world.issue("hooked").await;
    let (key, lease) = (answer.text_at("/credential/key"), answer.text_at("/lease_id"));
    assert_eq!((&answer.body["revocable"], &answer.body["expires_in"]), (&json!(true), &json!(900)));
    assert!(erp.works(&world, &key).await);
    // The first call fails, and is made again.
    assert_eq!(world.revoke(&answer.handle()).await.body["state"], "revoking");
    world.advance(Duration::from_secs(2));
    world.until("it is rotated", async || world.state_of(&lease).await["how"] == "revoked").await;
    assert!(!erp.works(&world, &key).await, "rotated");
    assert_eq!(*erp.calls.lock().unwrap(), vec![json!({ "lease": lease, "grant": "hooked" }); 2]);
    assert_eq!(world.revoke(&answer.handle()).await.body["state"], "ended", "taking back is idempotent");

    // The next job gets the next key, which the reaper has rotated when it is over.
    let answer = world.issue("hooked").await;
    let next = answer.text_at("/credential/key");
    assert!(next != key && erp.works(&world, &next).await);
    // A renewal keeps it as it is, for longer.
    world.advance(Duration::from_secs(600));
    assert_eq!(world.renew(&answer.handle(), &[]).await.granted().body["credential"]["type"], "unchanged");
    world.advance(Duration::from_secs(600));
    assert!(erp.works(&world, &next).await);
    world.advance(Duration::from_secs(301));
    world.until("it is over", async || world.state_of(&answer.text_at("/lease_id")).await["how"] == "expired").await;
    assert!(!erp.works(&world, &next).await);

    for (name, state) in [("ran", "ended"), ("stuck", "revoking")] {
        let answer = world.issue(name).await;
        assert_eq!(world.revoke(&answer.handle()).await.body["state"], state, "{name}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_works_counts_as_the_rotation() {
    let erp = Erp::start().await;
    let late = |hook: &str| json!({ "rotated_at": "2020-01-01", "overdue": "refuse", "rotate": { "command": [hook] } });
    let backends =
        [erp.backend("works", "works", &late("/bin/true")), erp.backend("fails", "fails", &late("/bin/false"))];
    let grants = ["works", "fails"].map(|name| (format!("{name}.yaml"), grant(name, name, "as: bearer")));
    let world = World::of(Setting { grants: grants.into(), backends: backends.concat(), ..Setting::default() }).await;
    let overdue = || world.app().backends.overdue(world.app().clock.now()).map(|(name, _)| name.to_string());
    assert_eq!(overdue().collect::<Vec<_>>(), ["fails", "works"]);
    for (name, state) in [("works", "ended"), ("fails", "revoking")] {
        let answer = world.issue(name).await;
        assert_eq!(world.revoke(&answer.handle()).await.body["state"], state, "{name}");
    }
    assert_eq!(overdue().collect::<Vec<_>>(), ["fails"]);
    world.issue("works").await;
    world.exchange(&world.token(), "fails", &[("session", &session())]).await.refused(400, "invalid_request");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_overdue_is_told_by_check_config() {
    let erp = Erp::start().await;
    let backends = erp.backend("erp", "plain", &json!({ "rotated_at": "2020-01-01" }));
    let grants = vec![("plain.yaml".to_owned(), grant("plain", "erp", "as: bearer"))];
    let world = World::of(Setting { grants, backends, ..Setting::default() }).await;
    let config = Config::load(&world.config_path(), &Env::default()).unwrap();
    let told = app::check(&config).unwrap();
    assert_eq!(told.errors, 0, "a warning");
    let expected = "warning: backend `erp`: its secret had to be rotated by 2020-03-31T00:00:00.000Z: erp@acme.example";
    assert!(told.diagnostics.iter().any(|line| line.starts_with(expected)), "{:?}", told.diagnostics);
    world.close().await;
}
