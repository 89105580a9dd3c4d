//! A file system that is really full, under a running server: nothing is issued, and what expires, what a
//! job gives back and what an admin revokes is taken back all the same.

use crate::{
    crash::{ledger_backend, settled},
    world::{issuer, token},
};
use jobpass_exchanger::demo::{
    Ci,
    issuer::Issuer,
    ledger::{Act, Ledger},
};
use jobpass_tests::{
    http::now,
    ports, program,
    server::{Answer, Server, Setup},
};
use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::PathBuf,
    time::Duration,
};

/// Enough for an empty store and a few leases.
const DISK: usize = 2 << 20;

/// A server on a small disk, its CI and its upstream.
struct Small {
    github: Issuer,
    ledger: Ledger,
    server: Server,
}

impl Small {
    async fn start(change: impl FnOnce(String) -> String) -> Self {
        let github = issuer(Ci::GitHub).await;
        let ledger = Ledger::start(ports::ANY, now).await.expect("the ledger starts");
        let setup = Setup::new().issuer("github", github.url(), &["1001"]).unlimited().disk(DISK);
        let keys = ledger_backend(&ledger, &setup.secret("ledger-token", ledger.admin_token().expose()));
        let grant = program::root().join("tests/systems/fixtures/grants/crash-ledger.yaml");
        let grant = change(fs::read_to_string(grant).expect("it is there"));
        let server = setup.backend("ledger", keys).grant_text("crash-ledger", &grant).start().await;
        Self { github, ledger, server }
    }

    /// Waits until the upstream holds so many keys.
    async fn until_keys(&self, count: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.ledger.keys().len() != count {
            assert!(tokio::time::Instant::now() < deadline, "not {count} keys: {:?}", self.ledger.keys());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn exchange(&self) -> Answer {
        self.server.exchange("crash-ledger", &token(&self.github, &self.server), &[]).await
    }

    /// Fills the disk; returns what has to be removed again, and how many leases there still was room for.
    async fn fill(&self) -> (PathBuf, usize) {
        let filler = self.server.state().join("filler");
        let mut file = fs::File::create(&filler).expect("the state directory is seen");
        let full = (0..=DISK).find_map(|_| file.write_all(&[0; 512]).err()).expect("the disk has an end");
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        // What the log still has room for may be issued; then no more.
        for issued in 0..100 {
            let answer = self.exchange().await;
            if answer.status != 200 {
                assert_eq!((answer.status, answer.body["error"].as_str()), (503, Some("temporarily_unavailable")));
                return (filler, issued);
            }
        }
        panic!("the disk is full, and it goes on issuing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_issuing_and_not_revoking() {
    let small = Small::start(|grant| grant).await;
    let Small { ledger, server, .. } = &small;
    assert_eq!(small.exchange().await.status, 200, "there is space");
    let (filler, more) = small.fill().await;
    let made = || ledger.log().iter().filter(|line| line.act == Act::Created).count();
    let before = made();
    for _ in 0..5 {
        assert_eq!(small.exchange().await.status, 503);
    }
    assert_eq!(made(), before, "nothing is minted");

    small.until_keys(0).await;
    assert_eq!(small.exchange().await.status, 503, "it is still full");

    fs::remove_file(&filler).expect("the filler is ours");
    settled(server).await;
    let expired = server.lease_states().iter().filter(|state| *state == "ended: expired").count();
    assert_eq!(expired, 1 + more, "recorded once there was space: {:?}", server.lease_states());
    assert_eq!(small.exchange().await.status, 200, "and it issues again");
    server.verify_audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_jobs_give_back_and_admins_revoke_and_freeze() {
    let long = |grant: String| grant.replace("ttl: 6s", "ttl: 30m").replace("max_lifetime: 20s", "max_lifetime: 1h");
    let small = Small::start(long).await;
    let Small { github, ledger, server } = &small;
    let mine = token(github, server);
    let own = async |token: &str| {
        let session = [("session", "0123456789abcdef0123456789abcdef")];
        server.exchange("crash-ledger", token, &session).await
    };
    assert_eq!(own(&mine).await.status, 200, "there is space");
    let given = small.exchange().await;
    let (filler, more) = small.fill().await;
    assert_eq!(ledger.keys().len(), 2 + more);

    let handle = given.body["refresh_token"].as_str().expect("a handle");
    let told = server.post("/revoke", &[("token", handle)]).await;
    let text = told.body["error_description"].as_str().unwrap_or_default();
    assert!(told.status == 503 && text.contains("cannot record"), "{told:?}");
    small.until_keys(1 + more).await;

    let freeze = ["freeze", "--grant", "crash-ledger", "--reason", "incident 7"];
    for (command, says) in [
        (&["leases", "revoke", "--grant", "crash-ledger"][..], "the backends were asked all the same"),
        (&freeze, "in force until the server is restarted"),
    ] {
        let answer = server.admin(command).await;
        assert!(!answer.status.success() && answer.log.contains(says), "{command:?}: {}", answer.log);
    }
    small.until_keys(0).await;

    fs::remove_file(&filler).expect("the filler is ours");
    settled(server).await;
    let states = server.lease_states();
    let by = |how: &str| states.iter().filter(|state| *state == how).count();
    assert_eq!((by("ended: revoked"), by("ended: revoked_by_admin")), (1, 1 + more), "{states:?}");
    assert_eq!(small.exchange().await.status, 400, "it is frozen");
    server.admin(&["thaw", "--grant", "crash-ledger"]).await.expect_success();
    assert_eq!(own(&mine).await.status, 400, "its session is closed");
    assert_eq!(small.exchange().await.status, 200, "and it issues again");
    server.verify_audit().await;
}
