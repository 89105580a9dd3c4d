//! What must always hold, where no other test already says it. Each of these fails for a mutant in
//! tests/mutants.

use jobpass_exchanger::{
    admin::Admin,
    app,
    config::{Config, Env},
    http::admin::{FreezeRequest, Selection},
};
use jobpass_tests::world::{Setting, World, session};
use rusqlite::Connection;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// What the store answers while it cannot write.
const RETRY: Option<&str> = Some("5");

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_before_its_lease_is_durable() {
    let world = World::start().await;
    world.issue("id").await; // the issuer's keys are there from now on
    let store = Connection::open(world.state().join("jobpass.db")).expect("the store");
    store.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
    let (mine, token) = (session(), [world.token(), world.token()]);
    for (token, grant) in token.iter().zip(["id", "ledger"]) {
        let more = [("session", mine.as_str())];
        let asked = tokio::time::timeout(Duration::from_millis(700), world.exchange(token, grant, &more)).await;
        assert!(asked.is_err(), "{grant}: answered while nothing can be written: {asked:?}");
    }
    assert!(world.ledger.log().is_empty(), "the backend was asked before the lease was durable");
    store.execute_batch("ROLLBACK").expect("it was held");
    // The client went away; what it asked for is carried to its end all the same.
    world.until_keys(1).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_space_nothing_is_issued_and_everything_is_taken_back() {
    let mut world = World::start().await;
    let held = world.issue("ledger").await;
    world.stop_server().await;
    let mut config = fs::read_to_string(world.config_path()).expect("the config");
    config.push_str("limits: { reserve_bytes: 1000000000000000 }\n");
    fs::write(world.config_path(), config).expect("the config");
    world.start_server().await.expect("restarted");
    for grant in ["ledger", "id"] {
        let refused = world.exchange(&world.token(), grant, &[]).await.refused(503, "temporarily_unavailable");
        assert_eq!(refused.retry_after.as_deref(), RETRY);
    }
    assert_eq!(world.ledger.keys().len(), 1, "nothing was made");
    world.revoke(&held.handle()).await.granted();
    world.until_keys(0).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_everything_is_taken_back() {
    let world = World::start().await;
    let admin = Admin::of(&world.state()).expect("a client");
    let renewed = world.renew(&world.issue("ledger").await.handle(), &[]).await.granted();
    world.issue("ledger").await;
    world.until_keys(3).await;
    let store = Connection::open(world.state().join("jobpass.db")).expect("the store");
    store.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");

    let told = world.revoke(&renewed.handle()).await.refused(503, "temporarily_unavailable");
    assert!(told.text.contains("cannot record"), "{}", told.text);
    world.until_keys(1).await; // the whole family's are gone
    let revoked = admin.revoke(&Selection { all: true, ..Selection::default() }).await.expect("revokes");
    assert!(revoked.unrecorded.is_some_and(|why| why.contains("cannot record")));
    world.until_keys(0).await;
    let freeze = FreezeRequest { issuer: None, grant: None, reason: Some("incident 10".to_owned()) };
    let frozen = admin.freeze(&freeze).await.expect("freezes");
    assert!(frozen.all.is_some() && frozen.unrecorded.is_some_and(|why| why.contains("until the server is restarted")));

    store.execute_batch("ROLLBACK").expect("it was held");
    world.exchange(&world.token(), "id", &[]).await.refused(400, "invalid_target");
    let recorded = async || {
        world.app().reaper.nudge();
        world.advance(Duration::from_secs(1));
        world.leases().await.iter().all(|lease| lease.state.name() == "ended")
    };
    world.until("it is recorded", recorded).await;
    let ended = |how: &str, by: bool| {
        let fits = |line: &Value| line["entry"]["reason"] == how && line["entry"]["actor"].is_string() == by;
        world.audit().iter().filter(|line| fits(line) && line["entry"]["event"] == "ended").count()
    };
    let told = async || (ended("revoked", false), ended("revoked_by_admin", true)) == (2, 1);
    world.until("with its reason, and who it was", told).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_changes_nothing() {
    let world = World::start().await;
    let keys = world.state().join("keys");
    fs::write(keys.join("half.new"), "a rotation that goes on").expect("writable");
    let listed = |directory: &Path| {
        let names = fs::read_dir(directory).expect("is there").map(|entry| entry.expect("an entry").file_name());
        names.collect::<BTreeSet<_>>()
    };
    let before = (listed(&world.state()), listed(&keys));
    let mut text = fs::read_to_string(world.config_path()).expect("the config");
    text.push_str("signing: { keys: [ES256, EdDSA, RS256] }\n");
    fs::write(world.config_path(), text).expect("the config");
    let config = Config::load(&world.config_path(), &Env::default()).expect("a config");
    let refused = app::start(config, Arc::new(world.clock.clone())).await.err().expect("is refused").to_string();
    assert!(refused.contains("another server is running"), "{refused}");
    assert_eq!((listed(&world.state()), listed(&keys)), before);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_others_can_change_is_refused() {
    let mut world = World::start().await;
    world.stop_server().await;
    for (mode, says) in [(0o777, Some("chmod go-w")), (0o770, Some("chmod go-w")), (0o755, None), (0o700, None)] {
        fs::set_permissions(world.state(), Permissions::from_mode(mode)).expect("it is ours");
        let refused = world.start_server().await.err().map(|error| error.to_string());
        assert_eq!(refused.is_some(), says.is_some(), "{mode:o}: {refused:?}");
        assert!(refused.unwrap_or_default().contains(says.unwrap_or_default()), "{mode:o}");
        world.stop_server().await;
    }
    if rustix::process::geteuid().is_root() {
        chown(world.state(), Some(65534), None).expect("root may");
        let refused = world.start_server().await.expect_err("it is another user's").to_string();
        assert!(refused.contains("chown 0"), "{refused}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_issuer_is_never_asked_anything() {
    let world = World::start().await;
    let own = world.issuer.url().to_owned();
    for iss in [format!("{own}/other"), format!("{own}/"), own.replace("http:", "https:"), world.url.clone()] {
        let token = world.token_with(|token| token.claim("iss", iss.as_str()));
        world.exchange(&token, "id", &[]).await.refused(400, "invalid_request");
    }
    let asked = world.issuer.requests();
    assert_eq!((asked.discovery, asked.jwks), (0, 0));
    world.issue("id").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_on_disk() {
    let mut world = World::start().await;
    let (token, mine) = (world.token(), session());
    let key = world.exchange(&token, "ledger", &[("session", &mine), ("request_id", "first")]).await.granted();
    let signed = world.exchange(&token, "id", &[("session", &mine)]).await.granted();
    let renewed = world.renew(&key.handle(), &[]).await.granted();
    world.keep_secret(&mine);
    world.stop_server().await;
    let secrets = [
        token.rsplit_once('.').expect("a signature").1.to_owned(),
        mine.clone(),
        key.handle(),
        key.text_at("/credential/key"),
        signed.handle(),
        signed.text_at("/access_token").rsplit_once('.').expect("a signature").1.to_owned(),
        renewed.handle(),
        renewed.text_at("/credential/key"),
    ];
    let files = fs::read_dir(world.state()).expect("the state").map(|entry| entry.expect("an entry").path());
    for file in files.filter(|path| path.is_file()) {
        let bytes = fs::read(&file).expect("a file");
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a secret is in {}", file.display());
        }
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn knowing_an_id_takes_nothing_back() {
    let world = World::start().await;
    let answer = world.issue("ledger").await;
    let (handle, lease) = (answer.handle(), answer.text_at("/lease_id"));
    // A handle holds its lease's id; the rest of it is the secret.
    let forged = {
        let last = if handle.ends_with('A') { "Q" } else { "A" };
        let cut = handle.len() - 8;
        format!("{}{}", &handle[..cut], last.repeat(8))
    };
    for known in [lease.clone(), lease.replace('-', ""), forged.clone()] {
        let told = world.revoke(&known).await.granted();
        assert!(told.body.get("state").is_none(), "{known}: {}", told.text);
    }
    world.renew(&forged, &[]).await.refused(400, "invalid_grant");
    assert!(world.key_works(&answer.text_at("/credential/key")).await);
    assert_eq!(world.state_of(&lease).await["state"], "active");
    world.revoke(&handle).await.granted();
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_issuer_renews_nothing() {
    let world = World::of(Setting::default()).await;
    let handle = world.issue("ledger").await.handle();
    let admin = Admin::of(&world.state()).expect("a client");
    let freeze = FreezeRequest {
        issuer: Some("ci".parse().expect("a name")),
        grant: None,
        reason: Some("incident 9".to_owned()),
    };
    admin.freeze(&freeze).await.expect("frozen");
    world.renew(&handle, &[]).await.refused(400, "invalid_target");
    world.revoke(&handle).await.granted();
    world.until_keys(0).await;
    world.close().await;
}
