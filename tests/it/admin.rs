//! The admin's commands, over their socket.

use jobpass_exchanger::{admin::Admin, http::admin::Selection};
use jobpass_tests::world::World;
use rusqlite::Connection;
use std::time::Duration;

/// More than are read at once.
const MANY: usize = 2300;

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_the_oldest_lease() {
    let world = World::start().await;
    world.issue("id").await;
    let store = Connection::open(world.state().join("jobpass.db")).expect("the store");
    store.busy_timeout(Duration::from_secs(30)).expect("it waits");
    let columns: String = store
        .query_row(
            "SELECT group_concat('\"' || name || '\"') FROM pragma_table_info('leases') WHERE cid > 0",
            [],
            |row| row.get(0),
        )
        .expect("reads");
    let copies = format!(
        "WITH RECURSIVE turn(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM turn WHERE n < {MANY}) \
         INSERT INTO leases (id, {columns}) SELECT randomblob(16), {columns} FROM leases, turn"
    );
    assert_eq!(store.execute(&copies, []).expect("writes"), MANY - 1);

    let admin = Admin::of(&world.state()).expect("a client");
    let all = Selection { all: true, ..Selection::default() };
    let listed = admin.leases(&Selection { limit: Some(MANY - 1), ..all.clone() }).await.expect("leases");
    assert!(listed.leases.len() == MANY - 1 && listed.left_out.is_some(), "it says that there are more");
    let listed = admin.leases(&Selection { limit: Some(MANY), ..all.clone() }).await.expect("leases");
    assert!(listed.leases.len() == MANY && listed.left_out.is_none());

    let revoked = admin.revoke(&all).await.expect("revokes");
    assert!(revoked.left_out.is_none() && revoked.unrecorded.is_none());
    assert_eq!(revoked.leases.iter().filter(|lease| lease.state.name() == "outliving").count(), MANY);
    let active = store.query_row("SELECT count(*) FROM leases WHERE state < 2", [], |row| row.get::<_, usize>(0));
    assert_eq!(active.expect("reads"), 0);
    world.close().await;
}
