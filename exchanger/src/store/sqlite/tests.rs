use super::{Claim, Fault, SqliteOptions, SqliteStore, writer::Transaction};
use crate::{
    audit::{Entry, Event},
    clock::{Clock, ManualClock, Timestamp},
    leases::{Ending, Lease, Revocability, State},
    store::{
        Entitlement, FreezeTarget, Opened, Opening, Refusal, Store, StoreError,
        conformance::{CASES, Place, World},
    },
};
use std::sync::{Arc, Mutex};

#[derive(Clone)]
struct File {
    directory: Arc<tempfile::TempDir>,
    reserve_bytes: u64,
    last: Arc<Mutex<Option<Arc<SqliteStore>>>>,
}

impl File {
    fn new(reserve_bytes: u64) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        Self { directory, reserve_bytes, last: Arc::default() }
    }

    fn store(&self, clock: Arc<dyn Clock>) -> Result<Arc<SqliteStore>, StoreError> {
        let options = SqliteOptions { reserve_bytes: self.reserve_bytes, ..SqliteOptions::default() };
        SqliteStore::open(Claim::new(&self.directory.path().join("jobpass.db"))?, options, clock)
    }

    async fn meddle(&self, sql: &'static str) {
        let store = self.last.lock().expect("lock").clone().expect("is open");
        store.meddle(sql).await;
    }
}

impl SqliteStore {
    /// Runs a statement on the writer's own connection, outside of what any verb would do.
    pub(crate) async fn meddle(&self, sql: &'static str) {
        let work = move |tx: &mut Transaction<'_>| -> Result<(), Fault> { Ok(tx.conn.execute_batch(sql)?) };
        self.writer.write(work).await.expect("runs");
    }
}

impl Place for File {
    fn open(&self, clock: Arc<dyn Clock>) -> Arc<dyn Store> {
        // The one before lets go of the file when nobody has it any more.
        *self.last.lock().expect("lock") = None;
        let store = self.store(clock).expect("opens");
        *self.last.lock().expect("lock") = Some(store.clone());
        store
    }
}

fn opening(world: &World) -> Opening {
    let by = Entitlement::Token(world.binding(world.token(), None, None));
    world.opening(by, world.active(), Revocability::ByName)
}

async fn end(world: &World, lease: &Lease) -> Result<bool, StoreError> {
    let ended = State::Ended { how: Ending::Revoked, at: world.now() };
    let entry = Entry::new(world.now(), Event::Ended);
    world.store.transition(lease.id(), lease.state().clone(), ended, None, Some(entry)).await
}

async fn freeze(world: &World) -> Result<(), StoreError> {
    let entry = Entry::new(world.now(), Event::Freeze);
    world.store.freeze(FreezeTarget::All, Some("an incident".to_owned()), entry).await
}

#[tokio::test]
async fn conforms() {
    for (name, case) in CASES {
        eprintln!("{name}");
        case(&mut World::new(Box::new(File::new(0)))).await;
    }
}

#[tokio::test]
async fn one_server_per_file() {
    let file = File::new(0);
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp::from_secs(1)));
    let first = file.store(clock.clone()).expect("opens");
    let second = file.store(clock.clone()).err().expect("is refused");
    assert!(second.to_string().contains("another server is running"), "{second}");
    drop(first);
    file.store(clock).expect("opens again");
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    file.meddle("PRAGMA user_version = 99").await;
    world.store.close().await;
    let (clock, _) = (Arc::new(world.clock.clone()), drop(world));
    *file.last.lock().expect("lock") = None;
    assert!(matches!(file.store(clock), Err(StoreError::Corrupt(text)) if text.contains("version 99")));
}

#[tokio::test]
async fn an_older_schema_is_migrated() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    let (id, _) = world.fresh().await;
    // As the first version left it.
    file.meddle("ALTER TABLE leases DROP COLUMN renewals").await;
    file.meddle("DROP INDEX leases_sealed").await;
    file.meddle("ALTER TABLE leases DROP COLUMN sealed").await;
    file.meddle("DROP TABLE sealing").await;
    file.meddle("PRAGMA user_version = 1").await;
    world.store.close().await;
    let (clock, _) = (Arc::new(world.clock.clone()), drop(world));
    *file.last.lock().expect("lock") = None;
    let store = file.store(clock).expect("migrates");
    assert!(store.lease(id).await.expect("reads").is_some_and(|lease| lease.sealed().is_none()));
    assert!(store.sealed(None, 9).await.expect("reads").is_empty());
}

#[tokio::test]
async fn under_the_reserve_nothing_is_issued_and_everything_is_taken_back() {
    let file = File::new(0);
    let mut world = World::new(Box::new(file.clone()));
    let opened = opening(&world);
    let lease = opened.lease.clone();
    assert!(matches!(world.store.open_active(opened).await, Ok(Opened::Yes { .. })));
    world.store.check().expect("there is space");

    world.place = Box::new(File { reserve_bytes: u64::MAX, ..file });
    world.reopen().await;
    assert!(matches!(world.store.check(), Err(StoreError::Reserve { .. })));
    let refused = world.store.open_active(opening(&world)).await;
    assert!(matches!(refused, Err(StoreError::Reserve { .. })), "{refused:?}");
    assert!(end(&world, &lease).await.expect("a transition is written"));
    world.store.record(Entry::new(world.now(), Event::Denied), None).await.expect("an entry is written");
    assert_eq!(world.audit().await.len(), 3);
}

#[tokio::test]
async fn a_full_disk_and_a_read_only_one_pass() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    let mut opened = 0;
    for (trouble, cure) in [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000"),
        // A connection that may not write is opened anew, which is the cure.
        ("PRAGMA query_only = 1", "SELECT 1"),
    ] {
        file.meddle(trouble).await;
        let failure = loop {
            match world.store.open_active(opening(&world)).await {
                Ok(_) => opened += 1,
                Err(failure) => break failure,
            }
            assert!(opened < 1000, "{trouble}: the disk fills up");
        };
        assert!(matches!(failure, StoreError::Unavailable(_)), "{trouble}: {failure:?}");
        assert!(world.store.check().is_err(), "{trouble}");
        assert_eq!(world.audit().await.len(), opened, "{trouble}: a failed batch leaves nothing behind");
        file.meddle(cure).await;
        assert!(matches!(world.store.open_active(opening(&world)).await, Ok(Opened::Yes { .. })), "{trouble}");
        opened += 1;
        world.store.check().expect("it is back");
        assert_eq!(world.audit().await.len(), opened, "{trouble}");
    }
}

#[tokio::test]
async fn what_a_spoiled_batch_used_is_as_before() {
    let too_much = "INSERT INTO samples VALUES (1, 'x', hex(zeroblob(1000000)))";
    for (name, spoil) in [
        ("a new connection", "DELETE FROM used; DELETE FROM leases; SELECT no_such_function()"),
        ("the same one, because only space is missing", too_much),
    ] {
        let file = File::new(0);
        let world = World::new(Box::new(file.clone()));
        let store = file.last.lock().expect("lock").clone().expect("is open");
        let first = world.binding(world.token(), None, None);
        world.exchange(first.clone()).await.expect("the first use");
        let (go_on, waits) = std::sync::mpsc::channel();
        file.meddle("PRAGMA max_page_count = 60").await;
        let holds_up = store.writer.write(move |_| Ok(waits.recv().is_ok()));
        let opens = world.store.open_active(opening(&world));
        let spoils = store.writer.write(|tx| -> Result<(), Fault> { Ok(tx.conn.execute_batch(spoil)?) });
        let all_are_sent = async move { go_on.send(()).expect("it waits") };
        let (_, opened, spoiled, ()) = tokio::join!(holds_up, opens, spoils, all_are_sent);
        assert!(spoiled.is_err(), "{name}");
        assert!(matches!(opened, Ok(Opened::Yes { .. })), "{name}: it is done again, alone: {opened:?}");
        assert_eq!(world.exchange(first).await, Err(Refusal::Spent), "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_removed_takes_nothing_until_it_is_back() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    let aside = file.directory.path().join("aside");
    freeze(&world).await.expect("frozen");
    for name in ["jobpass.db", "jobpass.db-wal", "jobpass.db.lock"] {
        let path = file.directory.path().join(name);
        std::fs::rename(&path, &aside).expect("moved");
        for replaced in [false, true] {
            if replaced {
                std::fs::write(&path, "").expect("written");
            }
            let refused = freeze(&world).await.expect_err("nothing of this would be left").to_string();
            assert!(refused.contains(&format!("{name} was removed, replaced or changed")), "{refused}");
            assert!(world.store.check().is_err(), "the server is not ready");
        }
        std::fs::rename(&aside, &path).expect("moved back");
        freeze(&world).await.expect("frozen");
        world.store.check().expect("ready");
    }
}

#[tokio::test]
async fn a_file_that_is_written_over_takes_nothing() {
    for (name, by) in
        [("jobpass.db", "an older one"), ("jobpass.db-wal", "an older one"), ("jobpass.db-wal", "nothing")]
    {
        let file = File::new(0);
        let mut world = World::new(Box::new(file.clone()));
        let path = file.directory.path().join(name);
        freeze(&world).await.expect("frozen");
        let older = if by == "nothing" { Vec::new() } else { std::fs::read(&path).expect("read") };
        world.fresh().await;
        let newer = std::fs::read(&path).expect("read");
        // Under the same inode, as `cp` does it.
        std::fs::write(&path, older).expect("written");
        let refused = freeze(&world).await.expect_err("nothing of this would be left").to_string();
        assert!(refused.contains(&format!("{name} was removed, replaced or changed")), "{refused}");
        world.store.close().await;
        std::fs::write(&path, newer).expect("written");
        world.store = world.place.open(Arc::new(world.clock.clone()));
        assert!(world.store.freezes().await.expect("reads").all.is_some(), "{name}: nothing was spoiled at the end");
        assert_eq!(world.audit().await.len(), 2);
    }
}

#[tokio::test]
async fn what_somebody_writes_while_a_verb_waits_is_not_taken_for_ours() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    freeze(&world).await.expect("frozen");
    let other = rusqlite::Connection::open(file.directory.path().join("jobpass.db")).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE; DELETE FROM freezes").expect("it has the lock");
    let mut waits =
        world.store.freeze(FreezeTarget::All, Some("again".to_owned()), Entry::new(world.now(), Event::Freeze));
    assert!(futures_util::poll!(&mut waits).is_pending());
    // However far the verb has come.
    other.execute_batch("COMMIT").expect("written");
    assert!(waits.await.is_err() && freeze(&world).await.is_err());
}

#[tokio::test]
async fn what_somebody_writes_beside_a_long_log_is_not_taken_for_ours() {
    for all_of_it in [false, true] {
        let file = File::new(0);
        let world = World::new(Box::new(file.clone()));
        freeze(&world).await.expect("frozen");
        let path = file.directory.path().join("jobpass.db");
        let reader = rusqlite::Connection::open(&path).expect("opens");
        reader.execute_batch("BEGIN; SELECT * FROM freezes").expect("it keeps the log from starting again");
        file.meddle("INSERT INTO samples VALUES (1, 'x', hex(zeroblob(20000000)))").await;
        // A step of the checkpointer changes the database, and is over before the next verb is done.
        world.store.record(Entry::new(world.now(), Event::Server), None).await.expect("written");
        if all_of_it {
            // Who knows what: that it is the same this time keeps SQLite from noticing by itself.
            std::fs::write(&path, std::fs::read(&path).expect("read")).expect("copied over");
        } else {
            let other = rusqlite::Connection::open(&path).expect("opens");
            other.execute_batch("DELETE FROM freezes").expect("written");
        }
        for _ in 0..3 {
            assert!(freeze(&world).await.is_err(), "all of it: {all_of_it}");
        }
    }
}

#[tokio::test]
async fn a_backup_disturbs_nothing_and_can_be_put_back() {
    let file = File::new(0);
    let mut world = World::new(Box::new(file.clone()));
    freeze(&world).await.expect("frozen");
    let path = |name| file.directory.path().join(name);
    let other = rusqlite::Connection::open(path("jobpass.db")).expect("opens");
    other.execute("VACUUM INTO ?1", [path("backup.db").to_str()]).expect("copied");
    drop(other);
    world.fresh().await;
    world.store.close().await;
    let _ = std::fs::remove_file(path("jobpass.db-wal"));
    std::fs::rename(path("backup.db"), path("jobpass.db")).expect("put back");
    world.store = world.place.open(Arc::new(world.clock.clone()));
    assert!(world.store.freezes().await.expect("reads").all.is_some());
    assert_eq!(world.audit().await.len(), 1);
    world.fresh().await;
}

#[tokio::test]
async fn an_idle_store_notices_that_the_disk_is_back() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    file.meddle("PRAGMA query_only = 1").await;
    world.store.record(Entry::new(world.now(), Event::Server), None).await.expect_err("nothing can be written");
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while world.store.check().is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it comes back by itself");
}

#[tokio::test]
async fn the_log_starts_again_under_load() {
    let file = File::new(0);
    let world = World::new(Box::new(file.clone()));
    for _ in 0..40 {
        let batch = (0..64).map(|_| world.store.open_active(opening(&world)));
        for answer in futures_util::future::join_all(batch).await {
            assert!(matches!(answer, Ok(Opened::Yes { .. })));
        }
    }
    let log = std::fs::metadata(file.directory.path().join("jobpass.db-wal")).expect("is there").len();
    assert!(log < 64 << 20, "{log} bytes");
}
