//! Taking a role back: shut out first, then its sessions and prepared transactions, then what it owns, then
//! itself. What others hold up is tried again later, and takes few connections meanwhile.

use super::{Postgres, Revoked, STEP, Trouble, pool::Link, run, sql, sql::Identifier};
use crate::backends::RemoteError;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

/// How long one session is given to end.
const SESSION_END_MS: u64 = 5000;
/// How long a lock-out waits before what blocks it is ended.
const BLOCKED_AFTER: Duration = Duration::from_millis(300);
/// How long one waits for others whose objects are removed, before it is tried again later.
const REMOVALS_WAIT: Duration = Duration::from_secs(2);
/// How long the removal of objects waits for each lock that somebody's session holds on them. Short: the role is
/// shut out already, and whoever waits for the place waits for several of these.
const REMOVAL_LOCK_WAIT: Duration = Duration::from_millis(250);
/// How often sessions and objects that turn up meanwhile are cleared away before it is tried again later.
const ROUNDS: usize = 3;

impl Postgres {
    /// Takes a role back: see the module.
    pub(super) async fn take_back(&self, role: &Identifier) -> Result<Revoked, RemoteError> {
        let mut link = self.link().await?;
        if !self.lock_out(&link, role).await? {
            self.pool.give_back(link);
            return Ok(Revoked::NotFound);
        }
        for _ in 0..ROUNDS {
            let holdings = Holdings::read(&run(&link.client, &sql::holdings(role)).await?);
            if holdings.works {
                run(&link.client, &sql::become_member(role)).await?;
                self.end_work(&link, role).await?;
                // What they were about to commit, they may have committed: look again.
                continue;
            }
            if !holdings.databases.is_empty() {
                // What it made would go on with its roles' rights, shut out or not, while others hold this up.
                run(&link.client, &format!("{}; {}", sql::become_member(role), sql::expel(role))).await?;
                // Whoever waits here needs no connection meanwhile.
                self.pool.give_back(link);
                let place = timeout(REMOVALS_WAIT, self.removals.acquire()).await;
                let _place =
                    place.map_err(|_| RemoteError("the removal of other roles' objects takes long".to_owned()))?;
                link = self.link().await?;
                for database in &holdings.databases {
                    self.disown(&link, role, database).await?;
                }
            }
            let revoked = match run(&link.client, &sql::drop_role(role)).await {
                Ok(_) => Revoked::Gone,
                Err(Trouble::Server(SqlState::UNDEFINED_OBJECT, _)) => Revoked::NotFound,
                Err(Trouble::Server(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, _)) => continue,
                Err(trouble) => return Err(trouble.into()),
            };
            self.pool.give_back(link);
            return Ok(revoked);
        }
        Err(RemoteError(format!("{} still has sessions or objects", role.as_str())))
    }

    /// Shuts the role out; says whether it is there.
    async fn lock_out(&self, link: &Link, role: &Identifier) -> Result<bool, RemoteError> {
        // A session of the role that holds its row (it may change its own password) would keep the lock-out
        // waiting: then its work is ended from beside, while the lock-out stands in line.
        let help = async {
            sleep(BLOCKED_AFTER).await;
            if let Ok(beside) = self.pool.take(STEP).await {
                // What fails here is said by the lock-out.
                let _ = run(&beside.client, &sql::become_member(role)).await;
                let _ = self.end_work(&beside, role).await;
                self.pool.give_back(beside);
            }
            std::future::pending().await
        };
        let lock_out = sql::lock_out(role);
        let locked_out = tokio::select! {
            locked_out = run(&link.client, &lock_out) => locked_out,
            never = help => never,
        };
        match locked_out {
            Ok(_) => Ok(true),
            Err(Trouble::Server(SqlState::UNDEFINED_OBJECT, _)) => Ok(false),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// Ends the role's sessions, then what they prepared (two-phase commit), which would outlive them.
    async fn end_work(&self, link: &Link, role: &Identifier) -> Result<(), RemoteError> {
        run(&link.client, &sql::terminate(role, SESSION_END_MS)).await?;
        for message in run(&link.client, &sql::prepared(role)).await? {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let (Some(prepared), Some(database)) = (row.get(0), row.get(1)) else { continue };
            // In its database, and as the role: so on a connection that goes with it.
            let client = self.connect(database).await?;
            run(&client, &sql::become_role(role)).await?;
            match run(&client, &sql::roll_back(prepared)).await {
                Ok(_) | Err(Trouble::Server(SqlState::UNDEFINED_OBJECT, _)) => {}
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Ok(())
    }

    async fn disown(&self, link: &Link, role: &Identifier, database: &str) -> Result<(), RemoteError> {
        let statements = format!("{}; {}", sql::lock_timeout(REMOVAL_LOCK_WAIT), sql::disown(role, self.heir.as_ref()));
        let elsewhere = if database == self.database { None } else { Some(self.connect(database).await?) };
        run(elsewhere.as_ref().unwrap_or(&link.client), &statements).await?;
        Ok(())
    }
}

/// What a role holds on to.
struct Holdings {
    /// Open sessions, or prepared transactions.
    works: bool,
    databases: Vec<String>,
}

impl Holdings {
    fn read(answer: &[SimpleQueryMessage]) -> Self {
        let mut holdings = Self { works: false, databases: Vec::new() };
        for message in answer {
            let SimpleQueryMessage::Row(row) = message else { continue };
            match row.get(0) {
                Some(database) => holdings.databases.push(database.to_owned()),
                None => holdings.works = true,
            }
        }
        holdings
    }
}
