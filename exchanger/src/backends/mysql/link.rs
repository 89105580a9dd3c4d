//! Connections to one MariaDB or MySQL server: a few, kept open, each proven alive before it is relied on.

use crate::{
    backends::RemoteError,
    config::{Env, SecretRef},
};
use mysql_async::{Conn, Error, Opts, OptsBuilder, SslOpts, prelude::Queryable as _};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How to reach the server, and as whom.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: Option<SecretRef>,
    pub(super) env: Env,
    /// The authority's file, if it is not the public ones; `None`: no TLS.
    pub(super) tls: Option<Option<PathBuf>>,
}

/// Why a statement has no answer. Holds no secret and no statement.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was never sent.
    NotSent(String),
    /// The server refused it: its error number, and what it said.
    Refused(u16, String),
    /// It was sent, and nobody knows more.
    Unknown(String),
}

impl From<Trouble> for RemoteError {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::NotSent(why) | Trouble::Refused(_, why) | Trouble::Unknown(why)) = trouble;
        Self(why)
    }
}

/// The connections.
pub(super) struct Pool {
    server: Server,
    idle: Mutex<Vec<Conn>>,
    turns: Arc<Semaphore>,
}

/// A connection taken from the pool. Dropped, it is closed.
pub(super) struct Link {
    conn: Conn,
    _turn: OwnedSemaphorePermit,
}

impl Link {
    /// Runs one statement.
    pub(super) async fn run(&mut self, statement: &str, within: Duration) -> Result<(), Trouble> {
        timeout(within, self.conn.query_drop(statement)).await.map_err(|_| late())?.map_err(|error| trouble(&error))
    }

    /// Runs one query with a single column.
    pub(super) async fn column(&mut self, query: &str, within: Duration) -> Result<Vec<String>, Trouble> {
        timeout(within, self.conn.query(query)).await.map_err(|_| late())?.map_err(|error| trouble(&error))
    }
}

impl Pool {
    pub(super) fn new(server: Server, connections: usize) -> Self {
        Self { server, idle: Mutex::default(), turns: Arc::new(Semaphore::new(connections)) }
    }

    /// The login with the password as it is now, so that a rotated one needs no restart.
    pub(super) fn options(&self) -> Result<Opts, String> {
        let Server { host, port, user, password, env, tls } = &self.server;
        let password = password.as_ref().map(|reference| reference.read(env)).transpose();
        let password = password.map_err(|error| format!("password: {error}"))?;
        let tls = match tls {
            None => None,
            Some(None) => Some(SslOpts::default()),
            Some(Some(path)) => {
                let pem = std::fs::read(path).map_err(|error| format!("ca_file: {}: {error}", path.display()))?;
                Some(SslOpts::default().with_root_certs(vec![pem.into()]).with_disable_built_in_roots(true))
            }
        };
        let options = OptsBuilder::default()
            .ip_or_hostname(host)
            .tcp_port(*port)
            .prefer_socket(false)
            .user(Some(user))
            .pass(password.as_ref().map(|password| password.expose()))
            .ssl_opts(tls)
            .stmt_cache_size(0)
            // No mode but one changes what a text means, and `sql::literal` relies on that. On MariaDB alone (which
            // runs such comments) a `GRANT` would make a user who is not there any more. Nothing waits long for a lock.
            .setup(vec![
                "SET SESSION sql_mode = CONCAT('' /*M! , 'NO_AUTO_CREATE_USER' */), SESSION lock_wait_timeout = 5",
            ]);
        Ok(options.into())
    }

    /// A connection that was alive a moment ago.
    pub(super) async fn take(&self, within: Duration) -> Result<Link, Trouble> {
        let taken = timeout(within, self.take_in_turn()).await;
        taken.unwrap_or_else(|_| Err("no connection in time".to_owned())).map_err(Trouble::NotSent)
    }

    async fn take_in_turn(&self) -> Result<Link, String> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|error| error.to_string())?;
        while let Some(mut conn) = self.pop() {
            if conn.ping().await.is_ok() {
                return Ok(Link { conn, _turn: turn });
            }
        }
        let conn = Conn::new(self.options()?).await.map_err(|error| format!("cannot connect: {}", describe(&error)))?;
        Ok(Link { conn, _turn: turn })
    }

    /// Keeps a connection for the next one who needs it.
    pub(super) fn give_back(&self, link: Link) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(link.conn);
    }

    fn pop(&self) -> Option<Conn> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

fn late() -> Trouble {
    Trouble::Unknown("the server did not answer in time".to_owned())
}

fn trouble(error: &Error) -> Trouble {
    match error {
        Error::Server(refusal) => Trouble::Refused(refusal.code, describe(error)),
        other => Trouble::Unknown(describe(other)),
    }
}

/// ER_PARSE_ERROR: its message quotes the statement.
const PARSE_ERROR: u16 = 1064;
/// ER_DBACCESS_DENIED_ERROR, ER_ACCESS_DENIED_ERROR, ER_TABLEACCESS_DENIED_ERROR, ER_SPECIFIC_ACCESS_DENIED_ERROR.
const DENIED: &[u16] = &[1044, 1045, 1142, 1227];

fn describe(error: &Error) -> String {
    match error {
        Error::Server(refusal) if refusal.code == PARSE_ERROR => {
            "the server does not understand the statement".to_owned()
        }
        Error::Server(refusal) => {
            let cure = if DENIED.contains(&refusal.code) {
                ": see what jobpass's user needs in docs/backends/mysql.md"
            } else {
                ""
            };
            format!("{} (error {}){cure}", refusal.message, refusal.code)
        }
        other => other.to_string(),
    }
}
