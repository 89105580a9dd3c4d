//! Renewal, lost answers, and what a spent handle gives away.

use axum::{Router, body::Bytes, http::Uri};
use jobpass_exchanger::demo::ledger::{Answer as Told, Fault, On};
use jobpass_tests::{
    https,
    world::{Setting, World, grant, session},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_rotates_the_handle_and_decides_again() {
    let world = World::start().await;
    let first = world.issue("ledger").await;
    world.advance(Duration::from_secs(600));
    let second = world.renew(&first.handle(), &[]).await.granted();
    assert_ne!(first.handle(), second.handle());
    assert!(world.key_works(&second.text_at("/credential/key")).await);
    // The policy changes: the next renewal is denied.
    let file = world.grants().join("ledger.yaml");
    let stricter = std::fs::read_to_string(&file).expect("read").replace("772002", "772003");
    std::fs::write(&file, stricter).expect("write");
    world.app().policies.reload();
    world.renew(&second.handle(), &[]).await.refused(400, "invalid_target");
    world.close().await;
}

/// The credential of an extension is the one that the job has: it must not keep rights that the grant lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_extended_only_while_its_grant_gives_the_same() {
    // A broker's management API that takes everything and remembers the permissions.
    let permissions = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&permissions);
    let api = Router::new().fallback(async move |uri: Uri, body: Bytes| {
        if uri.path().contains("/permissions/") {
            seen.lock().expect("not poisoned").push(String::from_utf8_lossy(&body).into_owned());
        }
    });
    let (url, serve) = https::plain().await;
    tokio::spawn(serve(api));
    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    std::fs::write(&password, "adminpw").expect("writable");
    let backends = format!(
        "  broker:\n    rabbitmq: {{ management_url: \"{url}\", insecure_http: true, user: jobpass, \
         password: \"file:{}\", advertise: {{ host: broker.example }} }}\n",
        password.display()
    );
    let grants = vec![("queues.yaml".to_owned(), grant("queues", "broker", "{ vhost: /, read: [orders, salaries] }"))];
    let world = World::of(Setting { grants, backends, ..Setting::default() }).await;
    let file = world.grants().join("queues.yaml");
    let change = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&file).expect("readable");
        std::fs::write(&file, text.replace(from, to)).expect("writable");
        world.app().policies.reload();
    };

    let mut last = world.issue("queues").await;
    for (what, from, to, extended) in [
        ("nothing", "", "", true),
        ("how long it lives", "ttl: 15m", "ttl: 10m", true),
        ("its rights", "orders, salaries", "orders", false),
        ("nothing since", "", "", true),
    ] {
        change(from, to);
        world.advance(Duration::from_secs(60));
        let renewed = world.renew(&last.handle(), &[]).await.granted();
        assert_eq!(renewed.text_at("/lease_id") == last.text_at("/lease_id"), extended, "{what}: {}", renewed.text);
        assert_eq!(renewed.body["credential"]["type"] == "unchanged", extended, "{what}");
        last = renewed;
    }
    let permissions = permissions.lock().expect("not poisoned").clone();
    let told: Vec<bool> = permissions.iter().map(|body| body.contains("salaries")).collect();
    assert_eq!(told, [true, false], "{permissions:?}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_handle_revokes_the_family() {
    let world = World::start().await;
    let first = world.issue("ledger").await;
    let second = world.renew(&first.handle(), &[("request_id", "r1")]).await.granted();
    assert_eq!(world.ledger.keys().len(), 2);
    world.renew(&first.handle(), &[("request_id", "other")]).await.refused(400, "invalid_grant");
    world.until_keys(0).await;
    world.renew(&second.handle(), &[]).await.refused(400, "invalid_grant");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_handle_is_honoured_once_more_for_the_same_request() {
    let world = World::start().await;
    let first = world.issue("ledger").await;
    let lost = world.renew(&first.handle(), &[("request_id", "r1")]).await.granted();
    let again = world.renew(&first.handle(), &[("request_id", "r1")]).await.granted();
    assert!(world.key_works(&again.text_at("/credential/key")).await);
    let gone = lost.text_at("/credential/key");
    world.until("the lost one is gone", || async { !world.key_works(&gone).await }).await;
    world.renew(&first.handle(), &[("request_id", "r1")]).await.refused(400, "invalid_grant");
    world.until_keys(0).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_again_and_again_is_audited_once() {
    let world = World::start().await;
    let spent = world.token();
    world.exchange(&spent, "ledger", &[("session", &session())]).await.granted();
    let refuse = async |token: &str| world.exchange(token, "ledger", &[("session", &session())]).await;
    for _ in 0..5 {
        refuse(&spent).await.refused(400, "invalid_target");
    }
    let handle = world.issue("ledger").await.handle();
    world.revoke(&handle).await.granted();
    for _ in 0..3 {
        world.renew(&handle, &[]).await.refused(400, "invalid_grant");
    }
    world.advance(Duration::from_secs(61));
    let counts = |reason: &str| -> Vec<u64> {
        let entries = world.audit().into_iter().map(|line| line["entry"].clone());
        entries.filter(|entry| entry["reason"] == reason).map(|entry| entry["count"].as_u64().unwrap_or(1)).collect()
    };
    world
        .until("the minute is told of", async || counts("token_spent").len() > 1 && counts("lease_over").len() > 1)
        .await;
    assert_eq!((counts("token_spent"), counts("lease_over")), (vec![1, 4], vec![1, 2]));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_family_outlives_its_max_lifetime() {
    let world = World::start().await;
    let mut handle = world.issue("ledger").await.handle();
    for _ in 0..5 {
        world.advance(Duration::from_secs(600));
        handle = world.renew(&handle, &[]).await.granted().handle();
    }
    world.advance(Duration::from_secs(540));
    let last = world.renew(&handle, &[]).await.granted();
    assert_eq!(last.body["expires_in"], 60, "an hour in all");
    world.advance(Duration::from_secs(61));
    world.renew(&last.handle(), &[]).await.refused(400, "invalid_grant");
    world.until_keys(0).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for_again() {
    let world = World::start().await;
    let (token, mine) = (world.token(), session());
    let more = [("session", mine.as_str()), ("request_id", "first")];
    let lost = world.exchange(&token, "ledger", &more).await.granted();
    let again = world.exchange(&token, "ledger", &more).await.granted();
    assert!(world.key_works(&again.text_at("/credential/key")).await);
    let gone = lost.text_at("/credential/key");
    world.until("the first one is gone", || async { !world.key_works(&gone).await }).await;
    assert_eq!(world.state_of(&lost.text_at("/lease_id")).await["how"], "superseded");
    for _ in 0..2 {
        world.exchange(&token, "ledger", &more).await.granted();
    }
    world.exchange(&token, "ledger", &more).await.refused(400, "invalid_target");
    world.until_keys(1).await;
    // Another session with the same id is a thief, and one that comes too late is not believed.
    world
        .exchange(&token, "ledger", &[("session", &session()), ("request_id", "first")])
        .await
        .refused(400, "invalid_target");
    let more = [("session", mine.as_str()), ("request_id", "second")];
    world.exchange(&token, "ledger", &more).await.granted();
    world.advance(Duration::from_secs(121));
    world.exchange(&token, "ledger", &more).await.refused(400, "invalid_target");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_in_flight_leaves_nothing_behind() {
    let world = World::start().await;
    let (token, mine) = (world.token(), session());
    let more = [("session", mine.as_str()), ("request_id", "first")];
    world.ledger.misbehave(vec![Fault { late_ms: 700, ..Fault::on(On::Create) }]);
    let first = world.exchange(&token, "ledger", &more);
    let second = async {
        world.until("the first lease is pending", || async { world.leases().await.len() == 1 }).await;
        world.exchange(&token, "ledger", &more).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_ne!(first.status, 200, "whoever lost the race gets nothing: {}", first.text);
    let second = second.granted();
    world.until_keys(1).await;
    assert!(world.key_works(&second.text_at("/credential/key")).await);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_looked_for_until_it_is_certain() {
    for (what, fault) in [
        ("the connection is cut after the act", Fault { answer: Told::Cut, ..Fault::on(On::Create) }),
        ("the answer is garbage", Fault { answer: Told::Garbage, ..Fault::on(On::Create) }),
        ("the act happens twice", Fault { acts: 2, answer: Told::Cut, ..Fault::on(On::Create) }),
        ("the request is lost", Fault { acts: 0, answer: Told::Cut, ..Fault::on(On::Create) }),
    ] {
        let world = World::start().await;
        world.ledger.misbehave(vec![fault]);
        let answer = world.exchange(&world.token(), "ledger", &[("session", &session())]).await;
        assert_eq!(answer.status, 502, "{what}: {}", answer.text);
        // Nothing ends before it is certain: the worst case is the credential's whole life.
        world.advance(Duration::from_secs(120));
        world.until_keys(0).await;
        let state = serde_json::to_value(&world.leases().await[0].state).expect("JSON");
        assert_eq!(state["state"], "revoking", "{what}: {state}");
        world.advance(Duration::from_secs(3600));
        world.until(what, || async { world.leases().await[0].state.name() == "ended" }).await;
        world.close().await;
    }
}
