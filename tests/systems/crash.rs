//! `kill -9` at a hundred random moments, under a mixed load: afterwards no object is without a live
//! lease, no lease is stuck, and nobody changed the past.

use crate::world::{issuer, token};
use jobpass_exchanger::demo::{
    Ci,
    issuer::{Issuer, Token},
    ledger::{Act, Answer as Told, Fault, Ledger, On},
};
use jobpass_tests::{
    http::{client, now},
    ports,
    postgres::{self, Postgres},
    server::{Server, Setup},
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

const SEALING: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KILLS: usize = 100;
const WORKERS: u64 = 6;
/// The grants' `max_lifetime` (20 s), what may still be on its way, and some time to take it back.
const SETTLED: Duration = Duration::from_secs(90);

/// A small generator of the test's own (splitmix64), so that a run can be done again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// The ledger as a backend that makes up its mind quickly.
pub(crate) fn ledger_backend(ledger: &Ledger, secret: &str) -> Value {
    json!({ "http": {
        "base_url": ledger.url(), "insecure_http": true, "deadline": "1s", "settle": "1s",
        "headers": { "Authorization": { "prefix": "Bearer ", "secret": secret } },
        "parameters": { "note": { "authority": false } },
        "create": {
            "path": "/keys", "secret": "/key",
            "body": { "name": "{{ lease.name }}", "note": "{{ parameters.note }}", "expires_at": "{{ lease.expires_at_unix }}" },
        },
        "delete": { "path": "/keys/{{ lease.name }}" },
    } })
}

/// One job after another, each with a fresh token; the server may be gone at any moment.
async fn work(url: String, issuer: Arc<Issuer>, seed: u64, stop: Arc<AtomicBool>, issued: Arc<AtomicU64>) {
    let mut dice = Dice(seed);
    let post = async |path: &str, form: Vec<(&str, String)>| -> Option<(u16, Value)> {
        let answer = client().post(format!("{url}{path}")).form(&form).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    };
    while !stop.load(Relaxed) {
        let token = issuer.mint(&Token::for_audience(url.as_str())).expect("the key signs");
        let form = vec![
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange".to_owned()),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt".to_owned()),
            ("subject_token", token),
            ("audience", if dice.roll(3) == 0 { "crash-db" } else { "crash-ledger" }.to_owned()),
            ("session", format!("{:032x}", u128::from(seed) << 64 | u128::from(dice.roll(u64::MAX)))),
            ("request_id", "r".to_owned()),
        ];
        let Some((status, body)) = post("/token", form).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Some(mut handle) = body["refresh_token"].as_str().map(str::to_owned) else {
            assert!(matches!(status, 502 | 503), "{status} {body}");
            continue;
        };
        issued.fetch_add(1, Relaxed);
        if dice.roll(3) == 0 {
            let form = vec![("grant_type", "refresh_token".to_owned()), ("refresh_token", handle.clone())];
            if let Some((200, body)) = post("/token", form).await {
                handle = body["refresh_token"].as_str().unwrap_or_default().to_owned();
            }
        }
        if dice.roll(2) == 0 {
            let _ = post("/revoke", vec![("token", handle)]).await;
        }
    }
}

/// Waits until every lease has ended.
pub(crate) async fn settled(server: &Server) {
    let deadline = tokio::time::Instant::now() + SETTLED;
    loop {
        let open: Vec<String> = server.lease_states().into_iter().filter(|state| !state.starts_with("ended")).collect();
        if open.is_empty() {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} leases are stuck: {:?}",
            open.len(),
            &open[..open.len().min(10)]
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_leave_nothing_behind() {
    let github = Arc::new(issuer(Ci::GitHub).await);
    let ledger = Ledger::start(ports::ANY, now).await.expect("the ledger starts");
    let postgres = Postgres::start().await;
    postgres.admin().await.batch_execute("CREATE ROLE app").await.expect("the superuser may");
    let setup = Setup::new().issuer("github", github.url(), &["1001"]);
    let database = postgres.backend(&setup.secret("postgres-password", postgres::ADMIN_PASSWORD));
    let keys = ledger_backend(&ledger, &setup.secret("ledger-token", ledger.admin_token().expose()));
    let setup = setup.backend("app-db", database).backend("ledger", keys);
    let mut server = setup.unlimited().grant("crash-db.yaml").grant("crash-ledger.yaml").start().await;

    let (stop, issued) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<_> = (0..WORKERS)
        .map(|seed| {
            tokio::spawn(work(server.url.clone(), Arc::clone(&github), seed, Arc::clone(&stop), Arc::clone(&issued)))
        })
        .collect();
    let mut dice = Dice(20_261_122);
    for _ in 0..KILLS {
        // A random moment is the point of this test; nothing is hoped for here.
        tokio::time::sleep(Duration::from_millis(dice.roll(250))).await;
        server.restart().await;
    }
    stop.store(true, Relaxed);
    for worker in workers {
        worker.await.expect("the server's answers are what they may be");
    }
    settled(&server).await;
    assert_eq!(postgres.leased_roles().await, [""; 0], "a role without a live lease");
    assert!(ledger.keys().is_empty(), "a key without a live lease: {:?}", ledger.keys());
    let issued = issued.load(Relaxed);
    assert!(issued > 200, "the load was none: {issued}");
    println!("{issued} credentials issued, {} leases, {KILLS} kills", server.leases().len());
    server.verify_audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_lands_after_the_reaper_looked_is_found() {
    let github = issuer(Ci::GitHub).await;
    let ledger = Ledger::start(ports::ANY, now).await.expect("the ledger starts");
    let setup = Setup::new().issuer("github", github.url(), &["1001"]);
    let keys = ledger_backend(&ledger, &setup.secret("ledger-token", ledger.admin_token().expose()));
    let server = setup.backend("ledger", keys).grant("crash-ledger.yaml").start().await;
    // The answer is lost, and the act comes three seconds after the deadline, settle time included.
    ledger.misbehave(vec![Fault { late_ms: 5000, answer: Told::Cut, ..Fault::on(On::Create) }]);
    let answer = server.exchange("crash-ledger", &token(&github, &server), &[]).await;
    assert_eq!(answer.status, 502, "{}", answer.body);
    settled(&server).await;
    let acts: Vec<Act> = ledger.log().iter().map(|line| line.act).collect();
    assert_eq!(acts, [Act::Created, Act::Deleted], "it landed late, and was found");
    assert_eq!(server.lease_states(), ["ended: abandoned"]);
}

const RUNS: usize = 3;
const MINTS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_lost_answer_could_take_back_is_told_until_it_is_gone() {
    let github = issuer(Ci::GitHub).await;
    let ledger = Ledger::start(ports::ANY, now).await.expect("the ledger starts");
    let setup = Setup::new().issuer("github", github.url(), &["1001"]).unlimited().sealing(SEALING);
    let mut keys = ledger_backend(&ledger, &setup.secret("ledger-token", ledger.admin_token().expose()));
    // The API takes back by what its answer said, and by nothing else.
    keys["http"]["create"]["id"] = json!("/name");
    keys["http"]["delete"]["path"] = json!("/keys/{{ answer.id }}");
    keys["http"]["deadline"] = json!("10s");
    keys["http"]["create"]["lifetime"] = json!("20s");
    keys["limits"] = json!({ "concurrency": MINTS });
    let mut server = setup.backend("ledger", keys).grant("crash-ledger.yaml").start().await;
    for run in 1..=RUNS {
        // Made at once, and answered when nobody listens any more.
        ledger.misbehave(vec![Fault { slow_ms: 60_000, times: u32::MAX, ..Fault::on(On::Create) }]);
        let asks = (0..MINTS).map(|_| {
            let token = github.mint(&Token::for_audience(server.url.as_str())).expect("the key signs");
            let form = [
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange".to_owned()),
                ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt".to_owned()),
                ("subject_token", token),
                ("audience", "crash-ledger".to_owned()),
            ];
            client().post(format!("{}/token", server.url)).form(&form).send()
        });
        let asks = tokio::spawn(futures_util::future::join_all(asks));
        let deadline = tokio::time::Instant::now() + SETTLED;
        while ledger.keys().len() < MINTS * run {
            assert!(tokio::time::Instant::now() < deadline, "only {} keys are made", ledger.keys().len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.restart().await;
        assert!(asks.await.expect("they end").iter().all(Result::is_err), "nobody was answered");
    }
    // Once they can no longer be on their way, all of them are told of: nobody has them, and nothing takes them back.
    let unknown = |lease: &Value| lease["state"]["why"] == "outcome_unknown" || lease["state"]["how"] == "abandoned";
    let deadline = tokio::time::Instant::now() + SETTLED;
    let mut told = 0;
    loop {
        let table = server.lease_table().await;
        told = told.max(table.matches("nobody knows whether it came to be").count());
        let leases = server.leases();
        assert_eq!(leases.len(), RUNS * MINTS);
        if leases.iter().all(|lease| lease["state"]["how"] == "abandoned") {
            break;
        }
        let pending = |lease: &Value| lease["state"]["state"] == "pending";
        assert!(leases.iter().all(|lease| unknown(lease) || pending(lease)), "{table}");
        assert!(tokio::time::Instant::now() < deadline, "{table}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(told >= MINTS, "{told}");
    // None ended before its key did.
    let keys = ledger.keys();
    assert_eq!(keys.len(), RUNS * MINTS);
    for lease in server.leases() {
        let key = keys.iter().find(|key| lease["remote_name"] == key.name.as_str()).expect("every key has its lease");
        let at = lease["state"]["at"].as_i64().expect("when") / 1000;
        assert!(key.expires_at.is_some_and(|expires| at >= expires), "{lease} {key:?}");
    }
    server.verify_audit().await;
}
