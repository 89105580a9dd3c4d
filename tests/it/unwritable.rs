//! A store that cannot be written: what is asked for is refused, what is due is taken back.

use jobpass_tests::world::{World, session};
use rusqlite::Connection;
use std::{fs, path::PathBuf, time::Duration};

/// Puts the store out of reach, and back.
enum Trouble {
    Held(Connection),
    Moved(PathBuf, PathBuf),
}

impl Trouble {
    fn held(database: PathBuf) -> Self {
        let store = Connection::open(database).expect("the store");
        store.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        Self::Held(store)
    }

    fn moved(database: PathBuf) -> Self {
        let away = database.with_extension("away");
        fs::rename(&database, &away).expect("the directory is ours");
        Self::Moved(database, away)
    }

    fn over(self) {
        match self {
            Self::Held(store) => store.execute_batch("ROLLBACK").expect("it was held"),
            Self::Moved(database, away) => fs::rename(away, database).expect("the directory is ours"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_issued_and_what_expires_is_taken_back() {
    for (name, begin) in [("held", Trouble::held as fn(PathBuf) -> Trouble), ("moved", Trouble::moved)] {
        let world = World::start().await;
        let held = world.issue("ledger").await;
        let (key, lease) = (held.text_at("/credential/key"), held.text_at("/lease_id"));
        let made = world.ledger.log();
        let trouble = begin(world.state().join("jobpass.db"));

        for grant in ["ledger", "id", "ledger", "id"] {
            let refused = world.exchange(&world.token(), grant, &[("session", &session())]).await;
            let refused = refused.refused(503, "temporarily_unavailable");
            assert_eq!(refused.retry_after.as_deref(), Some("5"), "{name}: {}", refused.text);
        }
        let refused = world.renew(&held.handle(), &[]).await.refused(503, "temporarily_unavailable");
        assert_eq!(refused.retry_after.as_deref(), Some("5"), "{name}: {}", refused.text);
        assert_eq!(world.ledger.log(), made, "{name}: nothing is minted");
        assert!(world.key_works(&key).await);

        world.advance(Duration::from_secs(15 * 60 + 1));
        // Where two want to read a store that was moved, one may find no way: it tries again after a rest.
        let taken_back = async || {
            world.app().reaper.nudge();
            world.advance(Duration::from_secs(1));
            world.ledger.keys().is_empty()
        };
        world.until(&format!("{name}: it is taken back"), taken_back).await;

        trouble.over();
        let recorded = async || {
            world.app().reaper.nudge();
            world.advance(Duration::from_secs(1));
            world.state_of(&lease).await["how"] == "expired"
        };
        world.until("it is recorded", recorded).await;
        world.issue("ledger").await;
        world.close().await;
    }
}
