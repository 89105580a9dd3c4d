//! Changes of rights, one after the other where they are about the same objects.
//!
//! PostgreSQL fails all but one of the transactions that change the rights on one object at the same time. Ours
//! wait for each other in here and never in the database: a lock there could be held by any job's session, and
//! would stop everybody's mints and revocations. What somebody else changed meanwhile is tried again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_postgres::{
    Client, Error, SimpleQueryMessage,
    error::{Severity, SqlState},
};

/// The first pause before a transaction that met another one is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// After a pause of this length it is not tried again.
const LAST_PAUSE: Duration = Duration::from_millis(640);

/// Who is at what. What holds up those of one name holds up nobody else.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<AsyncMutex<()>>>>);

impl Turns {
    /// The turn of all that go by one name.
    pub(super) fn of(&self, name: &str) -> Arc<AsyncMutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        turns.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let turn = Arc::default();
            turns.insert(name.to_owned(), Arc::downgrade(&turn));
            turn
        })
    }
}

/// Runs statements as one transaction, again where it met another one.
pub(super) async fn transact(client: &Client, statements: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
    let mut pause = FIRST_PAUSE;
    loop {
        match client.simple_query(statements).await {
            Err(error) if pause <= LAST_PAUSE && met_another(&error) => tokio::time::sleep(pause).await,
            done => return done,
        }
        pause *= 2;
    }
}

/// Whether a transaction came to nothing because of what another one did at the same time. "Tuple concurrently
/// updated" is an internal error to PostgreSQL, as are the other ways in which catalogues change under one's feet.
fn met_another(error: &Error) -> bool {
    error.as_db_error().is_some_and(|refusal| {
        matches!(refusal.parsed_severity(), Some(Severity::Error))
            && [SqlState::INTERNAL_ERROR, SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE]
                .contains(refusal.code())
    })
}
