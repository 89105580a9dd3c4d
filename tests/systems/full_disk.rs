//! A file system that is really full, under a running server: nothing is issued, and what expires is
//! taken back all the same.

use crate::{
    crash::{ledger_backend, settled},
    world::{issuer, token},
};
use jobpass_exchanger::demo::{
    Ci,
    ledger::{Act, Ledger},
};
use jobpass_tests::{http::now, ports, server::Setup};
use std::{fs, io::Write as _, time::Duration};

/// Enough for an empty store and a few leases.
const DISK: usize = 2 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_issuing_and_not_revoking() {
    let github = issuer(Ci::GitHub).await;
    let ledger = Ledger::start(ports::ANY, now).await.expect("the ledger starts");
    let setup = Setup::new().issuer("github", github.url(), &["1001"]).unlimited().disk(DISK);
    let keys = ledger_backend(&ledger, &setup.secret("ledger-token", ledger.admin_token().expose()));
    let server = setup.backend("ledger", keys).grant("crash-ledger.yaml").start().await;
    let exchange = async || server.exchange("crash-ledger", &token(&github, &server), &[]).await;
    assert_eq!(exchange().await.status, 200, "there is space");

    let filler = server.state().join("filler");
    let mut file = fs::File::create(&filler).expect("the state directory is seen");
    let full = (0..=DISK).find_map(|_| file.write_all(&[0; 512]).err()).expect("the disk has an end");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");

    // What the log still has room for may be issued; then no more.
    let mut issued = 1;
    let refused = loop {
        let answer = exchange().await;
        if answer.status != 200 {
            break answer;
        }
        issued += 1;
        assert!(issued < 100, "the disk is full, and it goes on issuing");
    };
    assert_eq!((refused.status, refused.body["error"].as_str()), (503, Some("temporarily_unavailable")));
    let made = || ledger.log().iter().filter(|line| line.act == Act::Created).count();
    let before = made();
    for _ in 0..5 {
        assert_eq!(exchange().await.status, 503);
    }
    assert_eq!(made(), before, "nothing is minted");

    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !ledger.keys().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "expired keys are still there: {:?}", ledger.keys());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(exchange().await.status, 503, "it is still full");

    drop(file);
    fs::remove_file(&filler).expect("the filler is ours");
    settled(&server).await;
    let expired = server.lease_states().iter().filter(|state| *state == "ended: expired").count();
    assert_eq!(expired, issued, "recorded once there was space: {:?}", server.lease_states());
    assert_eq!(exchange().await.status, 200, "and it issues again");
    server.verify_audit().await;
}
