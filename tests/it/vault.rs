//! The `vault` backend's answer to a token that may have been renewed while nobody could be asked. The rest of
//! it is proven against a real server, in `systems`.

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use jobpass_tests::{
    https,
    world::{Setting, World, grant},
};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const SEALING: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const TTL: Duration = Duration::from_secs(900);

/// A server that gives one token, and what it says of its revocation: nothing while it cannot be reached.
#[derive(Default)]
struct Server {
    renewable: bool,
    says: Mutex<Option<(u16, &'static str)>>,
    revoked: Mutex<usize>,
}

type Shared = State<Arc<Server>>;

async fn login(State(server): Shared) -> Json<Value> {
    Json(json!({ "auth": {
        "client_token": "hvs.of-the-job", "token_type": "service", "policies": ["default"],
        "lease_duration": TTL.as_secs(), "renewable": server.renewable,
    } }))
}

async fn revoke_self(State(server): Shared) -> (StatusCode, Json<Value>) {
    let Some((status, said)) = *server.says.lock().expect("not poisoned") else {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(Value::Null));
    };
    *server.revoked.lock().expect("not poisoned") += 1;
    (StatusCode::from_u16(status).expect("a status"), Json(json!({ "errors": [said] })))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_be_renewed_is_not_ended_by_the_clock() {
    let hour = Duration::from_secs(3600);
    // (renewable, what the server says once it is back, after how long, what that makes of the lease)
    for (renewable, says, after, ended) in [
        (true, Some((204, "")), hour, true),
        (true, Some((403, "permission denied; invalid token")), hour, true),
        (true, Some((403, "permission denied")), hour, false),
        (true, Some((403, "permission denied")), 26 * hour, true),
        (true, None, 26 * hour, false),
        (false, None, hour, true),
    ] {
        let what = format!("renewable: {renewable}, {says:?} after {after:?}");
        let server = Arc::new(Server { renewable, ..Server::default() });
        let (url, serve) = https::plain().await;
        let api = Router::new()
            .route("/v1/auth/jwt/login", post(login))
            .route("/v1/auth/token/revoke-self", post(revoke_self))
            .with_state(Arc::clone(&server));
        tokio::spawn(serve(api));
        let secrets = tempfile::tempdir().expect("a directory");
        let keys = secrets.path().join("sealing");
        std::fs::write(&keys, SEALING).expect("writable");
        let config = format!("sealing: {{ keys: \"file:{}\" }}\n", keys.display());
        let backends = format!(
            "  bao:\n    vault: {{ address: \"{url}\", audience: bao.example, token_lifetime: 24h, insecure_http: true }}\n"
        );
        let grants = vec![("bao.yaml".to_owned(), grant("bao", "bao", "role: ci"))];
        let world = World::of(Setting { grants, backends, config, ..Setting::default() }).await;
        world.keep_secret("hvs.of-the-job");
        let answer = world.issue("bao").await;
        let lease = answer.text_at("/lease_id");

        // The job renews its token, and the server cannot be reached past the token's first life.
        world.advance(TTL);
        let failed = async || world.app().reaper.counters().failed.load(std::sync::atomic::Ordering::Relaxed) > 0;
        world.until("its time is over, and nobody answers", failed).await;
        *server.says.lock().expect("not poisoned") = says;
        let before = world.app().reaper.counters().failed.load(std::sync::atomic::Ordering::Relaxed);
        world.advance(after);
        let counters = world.app().reaper.counters();
        let heard = || counters.failed.load(std::sync::atomic::Ordering::Relaxed) > before;
        world.until(&what, async || heard() || world.state_of(&lease).await["state"] == "ended").await;
        assert_eq!(world.state_of(&lease).await["state"] == "ended", ended, "{what}");
        let asked = *server.revoked.lock().expect("not poisoned");
        assert_eq!(asked > 0, says.is_some(), "{what}: asked {asked} times");
        world.close().await;
    }
}
