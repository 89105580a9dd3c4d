//! A backend that misbehaves: bounded, refused at once when it goes on, no orphan, and the others do not
//! notice.

use futures_util::future::join_all;
use jobpass_exchanger::demo::{
    ledger::{Answer, Fault, Ledger, On},
    ledger_backend,
};
use jobpass_tests::{
    ports,
    world::{NOON, Setting, World, grant, session},
};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// How often a fault that stays is met.
const ALWAYS: u32 = 1_000_000;
const HOUR: Duration = Duration::from_secs(3600);

/// A world whose grant `sick` is at a ledger of its own.
async fn start(limits: &str) -> (World, Ledger, TempDir) {
    start_with("1s", limits).await
}

/// The same, with a deadline of its own for mints.
async fn start_with(deadline: &str, limits: &str) -> (World, Ledger, TempDir) {
    let sick = Ledger::start(ports::ANY, || NOON).await.expect("a ledger");
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, sick.admin_token().expose()).expect("writable");
    let block = ledger_backend(sick.url(), &format!("file:{}", token.display())).replace("  ledger:", "  sick:");
    let backends = format!("{block}      deadline: {deadline}\n      settle: 1s\n    limits: {limits}\n");
    let mut setting = Setting { backends, ..Setting::default() };
    setting.grants.push(("sick.yaml".to_owned(), grant("sick", "sick", "parameters: { note: x }")));
    (World::of(setting).await, sick, directory)
}

/// How long the healthy backend takes, in the median of some exchanges.
async fn median(world: &World) -> Duration {
    let mut took = Vec::new();
    for _ in 0..15 {
        let start = Instant::now();
        world.issue("ledger").await;
        took.push(start.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

async fn metric(world: &World, name: &str) -> u64 {
    let text = world.app().metrics.render();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{backend=\"sick\"}}")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_hangs_is_left_alone_and_the_others_do_not_notice() {
    let (world, sick, _secrets) = start("{ concurrency: 4, wait: 200ms, failures: 3, rest: 3s }").await;
    let before = median(&world).await;
    let fault = Fault { times: ALWAYS, slow_ms: 20_000, ..Fault::on(On::Create) };
    sick.misbehave(vec![fault]);

    let tokens: Vec<String> = (0..40).map(|_| world.token()).collect();
    let hanging = join_all(tokens.iter().map(|token| async {
        let start = Instant::now();
        (world.exchange(token, "sick", &[]).await, start.elapsed())
    }));
    let (answers, during) = tokio::join!(hanging, median(&world));
    println!("the other backend's median: {before:?} before, {during:?} during");
    assert!(during < before * 5 + Duration::from_millis(100), "{before:?} before, {during:?} during");
    let mut asked = 0;
    for (answer, took) in answers {
        assert!(took < Duration::from_secs(5), "bounded: {took:?}");
        match answer.status {
            502 => asked += 1,
            503 => assert!(answer.retry_after.is_some(), "{}", answer.text),
            _ => panic!("{}", answer.text),
        }
    }
    assert_eq!(asked, 4, "no more than its places are at work at once");
    assert_eq!(sick.log().len(), asked);

    world.exchange(&world.token(), "sick", &[]).await.refused(503, "temporarily_unavailable");
    assert_eq!(sick.log().len(), asked, "it rests: nothing is asked of it");
    assert_eq!(metric(&world, "jobpass_backend_resting").await, 1);
    assert!(metric(&world, "jobpass_backend_refusals_total").await > 30);
    assert!(metric(&world, "jobpass_backend_failures_total").await >= 1);

    sick.misbehave(Vec::new());
    let token = world.token();
    let mine = session();
    world
        .until("it is tried again", async || world.exchange(&token, "sick", &[("session", &mine)]).await.status == 200)
        .await;
    assert_eq!(metric(&world, "jobpass_backend_resting").await, 0);
    // What came of the requests that hung is looked for by name, and taken back.
    world.advance(Duration::from_secs(5));
    world.until("only the job's key is left", async || sick.keys().len() == 1).await;
    world.advance(HOUR);
    world.until("nothing is left", async || sick.keys().is_empty()).await;
    let over = async || world.leases().await.iter().all(|lease| lease.state.name() == "ended");
    world.until("every lease ended", over).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sick_backend_answers() {
    let create = Fault::on(On::Create);
    for (name, fault, status, keys) in [
        // What it did is not known, so nothing is sent twice; what it made is found by its name.
        ("garbage", Fault { answer: Answer::Garbage, ..create }, 502, 1),
        ("dropped after acting", Fault { answer: Answer::Cut, ..create }, 502, 1),
        ("dropped before acting", Fault { answer: Answer::Cut, acts: 0, ..create }, 502, 0),
        ("an error after acting", Fault { answer: Answer::Status(500), ..create }, 502, 1),
        ("too often", Fault { answer: Answer::Status(429), acts: 0, ..create }, 503, 0),
        ("refused", Fault { answer: Answer::Status(422), acts: 0, ..create }, 502, 0),
    ] {
        let (world, sick, _secrets) = start("{}").await;
        sick.misbehave(vec![fault]);
        let answer = world.exchange(&world.token(), "sick", &[]).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text);
        assert_eq!(answer.retry_after.is_some(), status == 503, "{name}");
        let made = sick.log().iter().filter(|line| line.act == jobpass_exchanger::demo::ledger::Act::Created).count();
        assert_eq!(made, keys, "{name}: sent once");
        if status == 503 {
            let again = world.exchange(&world.token(), "sick", &[]).await.refused(503, "temporarily_unavailable");
            assert_eq!(again.retry_after.as_deref(), Some("1"), "{name}: it asked to be left alone for a second");
            assert_eq!(sick.log().len(), 0);
        }
        world.advance(Duration::from_secs(5));
        world.until(name, async || sick.keys().is_empty()).await;
        world.advance(HOUR);
        world.until(name, async || world.leases().await.iter().all(|lease| lease.state.name() == "ended")).await;
        world.close().await;
    }
}

/// An answer is a sign of life, whatever it means for the lease.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_say_nothing_rest_no_backend() {
    let (world, sick, _secrets) = start("{ failures: 1, rest: 1h }").await;
    sick.misbehave(vec![Fault { answer: Answer::Garbage, ..Fault::on(On::Create) }]);
    world.exchange(&world.token(), "sick", &[]).await.refused(502, "server_error");
    world.issue("sick").await;
    assert_eq!(metric(&world, "jobpass_backend_failures_total").await, 0);
    world.advance(HOUR);
    world.until("nothing is left", async || sick.keys().is_empty()).await;
    world.close().await;
}

/// What one job can make slow costs the others nothing.
#[tokio::test(flavor = "multi_thread")]
async fn slow_revocations_rest_no_backend() {
    let (world, sick, _secrets) = start_with("20s", "{ failures: 1, rest: 1h, revoke_deadline: 200ms }").await;
    let held = world.issue("sick").await;
    sick.misbehave(vec![Fault { times: ALWAYS, slow_ms: 20_000, acts: 0, ..Fault::on(On::Delete) }]);
    let start = Instant::now();
    let told = world.revoke(&held.handle()).await.granted();
    assert_eq!(told.body["state"], "revoking");
    assert!(start.elapsed() < Duration::from_secs(15), "by its own deadline, not that of a mint");
    world.issue("sick").await;
    assert_eq!(metric(&world, "jobpass_backend_resting").await, 0);
    assert_eq!(metric(&world, "jobpass_backend_failures_total").await, 0);
    sick.misbehave(Vec::new());
    world.advance(HOUR);
    world.until("nothing is left", async || sick.keys().is_empty()).await;
    let over = async || world.leases().await.iter().all(|lease| lease.state.name() == "ended");
    world.until("every lease ended", over).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_rests_is_still_revoked_at() {
    let (world, sick, _secrets) = start("{ failures: 1, rest: 1h }").await;
    let held = world.issue("sick").await;
    sick.misbehave(vec![Fault { acts: 0, answer: Answer::Status(500), ..Fault::on(On::Create) }]);
    world.exchange(&world.token(), "sick", &[]).await.refused(502, "server_error");
    world.exchange(&world.token(), "sick", &[]).await.refused(503, "temporarily_unavailable");
    // The job is told at once; the reaper goes on, and what it hears wakes the backend.
    let told = world.revoke(&held.handle()).await.granted();
    assert_eq!(told.body["state"], "revoking");
    world.until("the key is gone", async || sick.keys().is_empty()).await;
    world.issue("sick").await;
    world.advance(HOUR);
    world.until("nothing is left", async || sick.keys().is_empty()).await;
    let over = async || world.leases().await.iter().all(|lease| lease.state.name() == "ended");
    world.until("every lease ended", over).await;
    world.close().await;
}
