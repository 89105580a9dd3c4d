//! One token, one holder, one credential: the exchange over HTTP.

use jobpass_exchanger::demo::ledger::{Fault, On};
use jobpass_tests::world::{Setting, World, grant, session};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_a_key_uses_it_and_gives_it_back() {
    let world = World::start().await;
    let answer = world.issue("ledger").await;
    assert_eq!(answer.body["token_type"], "N_A");
    assert_eq!(answer.body["expires_in"], 900);
    let key = answer.text_at("/credential/key");
    assert!(world.key_works(&key).await);
    let made = world.ledger.keys();
    let lease = answer.text_at("/lease_id");
    assert_eq!(
        made[0].name,
        format!("jobpass_{}", lease.replace('-', "")),
        "the remote name derives from the lease id"
    );
    assert_eq!(made[0].note, "run 15410912345", "claims are stamped into the credential");

    let told = world.revoke(&answer.handle()).await;
    assert_eq!((told.status, &told.body["state"]), (200, &json!("ended")));
    assert!(!world.key_works(&key).await);
    assert_eq!(world.state_of(&lease).await["how"], "revoked");
    let again = world.revoke(&answer.handle()).await;
    assert_eq!((again.status, &again.body["state"]), (200, &json!("ended")), "revocation is idempotent");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_token_ends_by_itself_and_says_so() {
    let world = World::start().await;
    let answer = world.issue("id").await;
    assert_eq!(answer.body["token_type"], "Bearer");
    assert_eq!(answer.body["revocable"], false);
    let lease = answer.text_at("/lease_id");
    let told = world.revoke(&answer.text_at("/access_token")).await;
    assert_eq!(told.body["state"], "outliving", "a token that we signed is possession too");
    let until = told.body["until"].as_i64().expect("until when");
    assert_eq!(world.state_of(&lease).await["why"], "irrevocable");
    world.advance(Duration::from_secs(16 * 60));
    world.until("the lease is ended", || async { world.state_of(&lease).await["state"] == "ended" }).await;
    assert!(until > jobpass_tests::world::NOON);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_one_holder() {
    let world = World::start().await;
    let (token, mine) = (world.token(), session());
    world.exchange(&token, "ledger", &[("session", &mine)]).await.granted();
    world.exchange(&token, "id", &[("session", &mine)]).await.granted();
    for (thief, grant) in [(Some(session()), "ledger"), (Some(session()), "id"), (None, "ledger")] {
        let more: Vec<(&str, &str)> = thief.iter().map(|session| ("session", session.as_str())).collect();
        world.exchange(&token, grant, &more).await.refused(400, "invalid_target");
    }
    let once = world.token();
    world.exchange(&once, "id", &[]).await.granted();
    world.exchange(&once, "id", &[]).await.refused(400, "invalid_target");
    world.exchange(&once, "id", &[("session", &mine)]).await.refused(400, "invalid_target");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_first_uses_have_one_winner() {
    let world = World::start().await;
    let token = world.token();
    let sessions: Vec<String> = (0..100).map(|_| session()).collect();
    let asks = sessions.iter().map(|session| {
        let (world, token) = (&world, &token);
        async move { world.exchange(token, "ledger", &[("session", session)]).await.status }
    });
    let statuses = futures_util::future::join_all(asks).await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 400).count(), 99, "{statuses:?}");
    assert_eq!(world.ledger.log().len(), 1, "nothing was made for the others");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_used_a_bounded_number_of_times() {
    let world = World::start().await;
    let (token, mine) = (world.token(), session());
    for _ in 0..16 {
        world.exchange(&token, "id", &[("session", &mine)]).await.granted();
    }
    world.exchange(&token, "id", &[("session", &mine)]).await.refused(400, "invalid_target");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_denied_and_spent_look_the_same() {
    let mut setting = Setting::default();
    let silent =
        grant("silent", "oidc", "audience: https://cloud.example\n  sub: x").replace("ttl:", "disclose: none\nttl:");
    setting.grants.push(("silent.yaml".to_owned(), silent));
    let world = World::of(setting).await;
    let spent = world.token();
    world.exchange(&spent, "silent", &[]).await.granted();
    let elsewhere = world.token_with(|token| token.claim("ref", "refs/heads/feature"));
    let answers = [
        world.exchange(&spent, "silent", &[]).await,
        world.exchange(&elsewhere, "silent", &[]).await,
        world.exchange(&world.token(), "does-not-exist", &[]).await,
        world.exchange(&world.token(), "Not A Name", &[]).await,
    ];
    let mut seen = BTreeSet::new();
    for answer in answers {
        let decision = answer.text_at("/decision_id");
        seen.insert((answer.status, answer.text.replace(&decision, "")));
    }
    assert_eq!(seen.len(), 1, "{seen:#?}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_binds_nothing() {
    let world = World::start().await;
    let token = world.token();
    world.exchange(&token, "does-not-exist", &[("session", &session())]).await.refused(400, "invalid_target");
    world.exchange(&token, "id", &[("session", &session())]).await.granted();
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_costs_nothing() {
    let world = World::start().await;
    let before = world.audit().len();
    for _ in 0..20 {
        let stranger = world.token_with(|token| token.claim("repository_owner_id", "666000666000666"));
        let answer = world.exchange(&stranger, "ledger", &[]).await.refused(400, "invalid_request");
        assert!(answer.body.get("decision_id").is_none(), "a stranger leaves no record: {}", answer.text);
    }
    world.issue("id").await; // whatever the strangers wrote would be streamed by now
    world.until("the exchange is in the audit log", || async { world.audit().len() > before }).await;
    assert!(world.audit().iter().all(|line| !line.to_string().contains("666000666000666")));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ttl_narrows_and_never_widens() {
    let world = World::start().await;
    for (asked, expected) in [("60", 60), ("900", 900), ("901", 900), ("86400", 900)] {
        let answer = world.exchange(&world.token(), "id", &[("ttl", asked)]).await.granted();
        assert_eq!(answer.body["expires_in"], expected, "ttl {asked}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_gave_back_is_reaped() {
    let world = World::start().await;
    let answer = world.issue("ledger").await;
    world.advance(Duration::from_secs(14 * 60));
    assert_eq!(world.ledger.keys().len(), 1, "not before its time");
    world.advance(Duration::from_secs(2 * 60));
    world.until_keys(0).await;
    let lease = answer.text_at("/lease_id");
    world.until("the lease is ended", || async { world.state_of(&lease).await["state"] == "ended" }).await;
    assert_eq!(world.state_of(&lease).await["how"], "expired");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invented_grants_do_not_fill_the_audit_log() {
    let world = World::start().await;
    let store = rusqlite::Connection::open(world.state().join("jobpass.db")).expect("the store");
    let entries = || store.query_row("SELECT count(*) FROM audit", [], |row| row.get::<_, u32>(0)).expect("reads");
    let before = entries();
    for turn in 0..30 {
        let invented = format!("invented-{turn}");
        world.exchange(&world.token(), &invented, &[]).await.refused(400, "invalid_target");
    }
    assert_eq!(entries() - before, 9, "some are written as they are, and the first of the rest");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_beats_policy_and_survives_a_restart() {
    let mut world = World::start().await;
    let admin = jobpass_exchanger::admin::Admin::of(&world.state()).expect("a client");
    let handle = world.issue("ledger").await.handle();
    let freeze = |grant: Option<&str>, issuer: Option<&str>, reason: Option<&str>| {
        jobpass_exchanger::http::admin::FreezeRequest {
            issuer: issuer.map(|name| name.parse().expect("a name")),
            grant: grant.map(|name| name.parse().expect("a name")),
            reason: reason.map(str::to_owned),
        }
    };
    admin.freeze(&freeze(Some("ledger"), None, Some("incident 7"))).await.expect("frozen");
    world.exchange(&world.token(), "ledger", &[]).await.refused(400, "invalid_target");
    world.renew(&handle, &[]).await.refused(400, "invalid_target");
    world.issue("id").await;
    admin.freeze(&freeze(None, Some("ci"), Some("incident 8"))).await.expect("frozen");
    world.exchange(&world.token(), "id", &[]).await.refused(400, "invalid_target");
    world.stop_server().await;
    world.start_server().await.expect("restarted");
    world.exchange(&world.token(), "id", &[]).await.refused(400, "invalid_target");
    admin.freeze(&freeze(None, Some("ci"), None)).await.expect("thawed");
    world.issue("id").await;
    world.exchange(&world.token(), "ledger", &[]).await.refused(400, "invalid_target");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_guards_keep_the_old_ones_and_let_removals_through_only() {
    let mut setting = Setting::default();
    let guards = "forbid:\n  - { name: no-tags, issuer: ci, match: { ref_type: tag } }\n";
    setting.grants.push(("guards.yaml".to_owned(), guards.to_owned()));
    let mut world = World::of(setting).await;
    world.issue("id").await;
    std::fs::write(world.grants().join("guards.yaml"), "forbid: [").expect("write");
    let wider = std::fs::read_to_string(world.grants().join("id.yaml")).expect("read").replace("ttl: 15m", "ttl: 30m");
    std::fs::write(world.grants().join("id.yaml"), wider).expect("write");
    std::fs::remove_file(world.grants().join("ledger.yaml")).expect("removed");
    for restarted in [false, true] {
        if restarted {
            world.stop_server().await;
            world.start_server().await.expect("the last good guards survive a restart");
        }
        world.app().policies.reload();
        assert_eq!(world.issue("id").await.body["expires_in"], 900, "no change gets through");
        world.exchange(&world.token(), "ledger", &[]).await.refused(400, "invalid_target");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lint_calls_an_error_is_not_taken() {
    let world = World::start().await;
    let good = std::fs::read_to_string(world.grants().join("id.yaml")).expect("read").replace("ttl: 15m", "ttl: 30m");
    let dangerous = good.replace("event_name: [push]", "event_name: [push, pull_request_target]");
    assert_ne!(dangerous, good);
    let allow = "allow: [{ lint: dangerous-event, reason: it labels and runs nothing }]\n";
    for (text, expires_in) in [(&dangerous, 900), (&format!("{dangerous}{allow}"), 1800)] {
        std::fs::write(world.grants().join("id.yaml"), text).expect("write");
        let report = world.app().policies.reload();
        assert_eq!(report.diagnostics.concat().contains("dangerous-event"), expires_in == 900, "{report:?}");
        assert_eq!(world.issue("id").await.body["expires_in"], expires_in, "{text}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_that_never_were_good_grant_nothing() {
    let mut setting = Setting::default();
    setting.grants.push(("guards.yaml".to_owned(), "forbid: [".to_owned()));
    let refused = std::panic::AssertUnwindSafe(World::of(setting));
    let outcome = futures_util::FutureExt::catch_unwind(refused).await;
    assert!(outcome.is_err(), "the server does not start without the guards that it was given");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_what_a_client_left_behind() {
    let mut world = World::start().await;
    // Made at once, and answered late.
    world.ledger.misbehave(vec![Fault { slow_ms: 1000, ..Fault::on(On::Create) }]);
    let token = world.token();
    let made = async {
        while world.ledger.keys().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = world.exchange(&token, "ledger", &[]) => panic!("{answer:?}"),
        () = made => {} // and the client is gone
    }
    world.stop_server().await;
    world.start_server().await.expect("starts again");
    let states: Vec<_> = world.leases().await.iter().map(|lease| serde_json::to_value(&lease.state)).collect();
    assert!(matches!(&states[..], [Ok(state)] if state["state"] == "active"), "{states:?}");
    world.close().await;
}
