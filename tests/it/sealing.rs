//! Credentials that can only be taken back with what the answer said: kept sealed, and gone for certain.

use jobpass_exchanger::{
    admin::Admin,
    demo::ledger::{Answer, Fault, On},
};
use jobpass_tests::world::{Setting, World, grant};
use serde_json::json;
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;

const FIRST: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const SECOND: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// A world whose grant `kept` is at the ledger too, which is not told the lease's name: keys are deleted by
/// the name that the answer has.
async fn start() -> (World, PathBuf, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let keys = directory.path().join("sealing");
    fs::write(&keys, FIRST).expect("writable");
    let setting = Setting { config: format!("sealing: {{ keys: file:{} }}\n", keys.display()), ..Setting::default() };
    let mut world = World::of(setting).await;
    world.stop_server().await;
    let config = fs::read_to_string(world.config_path()).expect("a config");
    let (before, after) = config.split_once("sealing:").expect("the last key");
    let ledger = jobpass_exchanger::demo::ledger_backend(world.ledger.url(), "file:ledger-admin-token")
        .replace("  ledger:", "  kept:")
        .replace("name: \"{{ lease.name }}\"", "name: \"k-{{ parameters.note }}\"")
        .replace("secret: /key", "secret: /key\n        id: /name")
        .replace("/keys/{{ lease.name }}", "/keys/{{ answer.id }}");
    fs::write(world.config_path(), format!("{before}{ledger}sealing:{after}")).expect("writable");
    let kept = grant("kept", "kept", "parameters: { note: \"{{ claims.run_id }}\" }");
    fs::write(world.grants().join("kept.yaml"), kept).expect("writable");
    world.start_server().await.expect("it starts");
    (world, keys, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_kept_sealed_and_taken_back() {
    let (world, _keys, _directory) = start().await;
    let held = world.issue("kept").await;
    assert_eq!(held.body["revocable"], true);
    let (key, lease) = (held.text_at("/credential/key"), held.text_at("/lease_id"));
    assert!(world.key_works(&key).await);
    let name = world.ledger.keys()[0].name.clone();
    for file in fs::read_dir(world.state()).expect("the state").map(|entry| entry.expect("an entry").path()) {
        let bytes = if file.is_file() { fs::read(&file).expect("a file") } else { Vec::new() };
        for text in [&key, &format!("/keys/{name}")] {
            let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "what takes it back can be read in {}", file.display());
        }
    }
    for _ in 0..2 {
        let told = world.revoke(&held.handle()).await.granted();
        assert_eq!(told.body["state"], "ended", "and revocation is idempotent");
    }
    assert!(!world.key_works(&key).await);
    assert_eq!(world.state_of(&lease).await["how"], "revoked");

    world.issue("kept").await;
    world.advance(Duration::from_secs(16 * 60));
    world.until_keys(0).await;
    world.until("it expired", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_is_honest() {
    let (world, _keys, _directory) = start().await;
    world.ledger.misbehave(vec![Fault { answer: Answer::Cut, ..Fault::on(On::Create) }]);
    world.exchange(&world.token(), "kept", &[]).await.refused(502, "server_error");
    let lease = world.leases().await[0].id.to_string();
    let state = world.state_of(&lease).await;
    assert_eq!((&state["state"], &state["why"]), (&json!("outliving"), &json!("outcome_unknown")));
    world.advance(Duration::from_secs(14 * 60));
    assert_eq!(world.state_of(&lease).await["state"], "outliving");
    world.advance(Duration::from_secs(3 * 60));
    world.until("it ended", async || world.state_of(&lease).await["state"] == "ended").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_while_the_server_runs() {
    let (mut world, keys, _directory) = start().await;
    let mut held = Vec::new();
    for run in 0..3 {
        let token = world.token_with(|token| token.claim("run_id", format!("{run}")));
        held.push(world.exchange(&token, "kept", &[]).await.granted().handle());
    }
    let restart = async |world: &mut World, text: &str| {
        world.stop_server().await;
        fs::write(&keys, text).expect("writable");
        world.start_server().await.err().map(|error| error.to_string())
    };
    // Another key, or none that is one: no start, and the cure.
    for (text, expected) in [(SECOND, "add that key again"), ("hunter2", "openssl rand -base64 32")] {
        let error = restart(&mut world, text).await.expect("refused");
        assert!(error.contains(expected) && !error.contains(text), "{error}");
    }
    let config = fs::read_to_string(world.config_path()).expect("a config");
    fs::write(world.config_path(), config.split("sealing:").next().expect("it")).expect("writable");
    let error = restart(&mut world, FIRST).await.expect("refused");
    assert!(error.contains("backend `kept`") && error.contains("`sealing: {"), "{error}");
    fs::write(world.config_path(), config).expect("writable");

    assert_eq!(restart(&mut world, FIRST).await, None);
    let admin = Admin::of(&world.state()).expect("a client");
    fs::write(&keys, format!("{SECOND}\n{FIRST}\n")).expect("writable");
    let first = admin.reseal().await.expect("sealed anew");
    assert_eq!((first.leases, admin.reseal().await.expect("again").leases), (3, 0));
    assert_eq!(restart(&mut world, SECOND).await, None, "the old key is not needed any more");
    world.revoke(&held[0]).await.granted();
    world.until_keys(2).await;
    // By a restart, as with a systemd credential.
    assert_eq!(restart(&mut world, &format!("{FIRST}\n{SECOND}")).await, None);
    let admin = Admin::of(&world.state()).expect("a client");
    world.until("the start seals anew", async || admin.reseal().await.is_ok_and(|view| view.leases == 0)).await;
    assert_eq!(restart(&mut world, FIRST).await, None);
    for handle in &held[1..] {
        world.revoke(handle).await.granted();
    }
    world.until_keys(0).await;
    assert!(world.audit().iter().any(|line| line.to_string().contains("sealed anew")));
    world.close().await;
}
