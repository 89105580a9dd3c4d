//! Connections to one PostgreSQL server: a few, kept open, each proven alive before it is relied on.

use super::sql;
use crate::{
    clock::{Clock, Timestamp},
    config::{Env, SecretRef},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::BuilderVerifierExt as _;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connection that told its time this recently is taken for alive.
const FRESH: Duration = Duration::from_secs(1);

/// Why there is no connection. Nothing was asked of the server yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    /// The password or the CA file cannot be read.
    #[error("{0}")]
    Setup(String),
    /// The server refused the connection, or cannot be reached.
    #[error("cannot connect to PostgreSQL: {0}")]
    Connect(String),
    /// All connections are busy, or the server does not answer.
    #[error("no connection to PostgreSQL within {0:?}")]
    Deadline(Duration),
}

/// How to reach the server, and as whom.
pub(super) struct Server {
    /// Host, port, user and database; no password.
    pub(super) config: Config,
    pub(super) password: Option<SecretRef>,
    pub(super) env: Env,
    pub(super) tls: Option<Tls>,
}

/// Which certificates are trusted.
pub(super) struct Tls {
    /// PEM; the system's where there is none.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) connector: OnceLock<MakeRustlsConnect>,
}

impl Tls {
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, Unreachable> {
        if let Some(connector) = self.connector.get() {
            return Ok(connector.clone());
        }
        let fail = |error: &dyn std::fmt::Display| Unreachable::Setup(format!("TLS cannot be set up: {error}"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| fail(&e))?;
        let config = match &self.ca_file {
            None => builder.with_platform_verifier().map_err(|e| fail(&e))?.with_no_client_auth(),
            Some(path) => {
                let fail = |error: &dyn std::fmt::Display| {
                    Unreachable::Setup(format!("ca_file {} cannot be used: {error}", path.display()))
                };
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(path).map_err(|e| fail(&e))? {
                    roots.add(certificate.map_err(|e| fail(&e))?).map_err(|e| fail(&e))?;
                }
                if roots.is_empty() {
                    return Err(fail(&"it holds no certificate"));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        Ok(self.connector.get_or_init(|| MakeRustlsConnect::new(config)).clone())
    }
}

impl Server {
    /// Connects to a database of the server; the configured one where none is named.
    pub(super) async fn connect(&self, database: Option<&str>) -> Result<Client, Unreachable> {
        let mut config = self.config.clone();
        if let Some(database) = database {
            config.dbname(database);
        }
        if let Some(reference) = &self.password {
            // Read for each connection, so that a rotated password needs no restart.
            let password = reference.read(&self.env).map_err(|error| Unreachable::Setup(error.to_string()))?;
            config.password(password.expose());
        }
        let fail = |error: tokio_postgres::Error| Unreachable::Connect(super::describe(&error));
        let client = match &self.tls {
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(fail)?;
                tokio::spawn(connection);
                client
            }
            Some(tls) => {
                let (client, connection) = config.connect(tls.connector()?).await.map_err(fail)?;
                tokio::spawn(connection);
                client
            }
        };
        client
            .batch_execute(
                "SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET search_path = pg_catalog; \
                 SET client_min_messages = warning",
            )
            .await
            .map_err(fail)?;
        Ok(client)
    }
}

/// An open connection, taken from the pool.
pub(super) struct Link {
    pub(super) client: Client,
    /// The server's clock minus ours, in milliseconds; never more than it is.
    offset: i64,
    learned_at: Instant,
    /// Held while the link is out.
    _turn: Option<OwnedSemaphorePermit>,
}

impl Link {
    /// A time of our clock, by the server's.
    pub(super) const fn by_server(&self, at: Timestamp) -> Timestamp {
        Timestamp::from_millis(at.millis().saturating_add(self.offset))
    }

    /// Takes note of the server's time, which an answer that has just come in brought along.
    pub(super) fn learn_time(&mut self, answer: &[SimpleQueryMessage], now: Timestamp) {
        let told = answer.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i64>().ok(),
            _ => None,
        });
        if let Some(server) = told {
            self.offset = server - now.millis();
            self.learned_at = Instant::now();
        }
    }
}

/// The connections.
pub(super) struct Pool {
    pub(super) server: Server,
    clock: Arc<dyn Clock>,
    idle: Mutex<Vec<Link>>,
    turns: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn new(server: Server, clock: Arc<dyn Clock>, max_connections: usize) -> Self {
        Self { server, clock, idle: Mutex::default(), turns: Arc::new(Semaphore::new(max_connections)) }
    }

    /// A connection that was alive a moment ago, and whose clock is known.
    pub(super) async fn take(&self, within: Duration) -> Result<Link, Unreachable> {
        timeout(within, self.take_in_turn()).await.unwrap_or(Err(Unreachable::Deadline(within)))
    }

    async fn take_in_turn(&self) -> Result<Link, Unreachable> {
        let closed = |_| Unreachable::Connect("the pool is closed".to_owned());
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(closed)?;
        while let Some(mut link) = self.pop() {
            let alive =
                !link.client.is_closed() && (link.learned_at.elapsed() < FRESH || self.probe(&mut link).await.is_ok());
            if alive {
                link._turn = Some(turn);
                return Ok(link);
            }
        }
        let client = self.server.connect(None).await?;
        let mut link = Link { client, offset: 0, learned_at: Instant::now(), _turn: Some(turn) };
        self.probe(&mut link).await.map_err(|error| Unreachable::Connect(super::describe(&error)))?;
        Ok(link)
    }

    /// Keeps a connection for the next one who needs it. One that failed, or that was left in the
    /// middle of something, is dropped instead.
    pub(super) fn give_back(&self, mut link: Link) {
        link._turn = None;
        if !link.client.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(link);
        }
    }

    fn pop(&self) -> Option<Link> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    async fn probe(&self, link: &mut Link) -> Result<(), tokio_postgres::Error> {
        let answer = link.client.simple_query(&format!("SELECT {}", sql::NOW)).await?;
        link.learn_time(&answer, self.clock.now());
        Ok(())
    }
}
