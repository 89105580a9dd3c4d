//! A real PostgreSQL 15 of its own.

use crate::{
    ports,
    program::{self, Program},
    tls,
};
use serde_json::{Value, json};
use std::{path::PathBuf, process::Command};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// The superuser that the tests and the server's backend log in as.
pub const ADMIN: &str = "admin";
/// Its password.
pub const ADMIN_PASSWORD: &str = "adminpw";

/// A running server with an empty database `postgres`; ended and removed on drop.
pub struct Postgres {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    directory: TempDir,
    _program: Program,
}

impl Postgres {
    /// Initialises a cluster and starts it: about two seconds.
    pub async fn start() -> Self {
        Self::launch(false, &[]).await
    }

    /// The same with settings of its own, such as `work_mem=1MB`.
    pub async fn start_with(settings: &[&str]) -> Self {
        Self::launch(false, settings).await
    }

    /// The same with TLS, by a certificate of an authority of its own, and room for many connections.
    pub async fn start_tls() -> Self {
        Self::launch(true, &["max_connections=300"]).await
    }

    async fn launch(with_tls: bool, settings: &[&str]) -> Self {
        let directory =
            tempfile::Builder::new().prefix("postgres").tempdir().expect("the temporary directory is there");
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, ADMIN_PASSWORD).expect("the directory is ours");
        if with_tls {
            tls::certificates(directory.path()).await;
        }
        if rustix::process::geteuid().is_root() {
            let chown = Command::new("chown").args(["-R", "postgres"]).arg(directory.path()).status();
            assert!(
                chown.is_ok_and(|status| status.success()),
                "there is no user postgres: run tests/run --install-only"
            );
        }
        let data = directory.path().join("data");

        let mut initdb = unprivileged("initdb");
        initdb.args(["-U", ADMIN, "--auth=scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
        initdb.arg("--pwfile").arg(&password_file);
        Program::run(initdb).await.expect_success();

        let port = ports::free();
        let mut postgres = unprivileged("postgres");
        postgres.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        postgres.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "log_statement=none"]);
        postgres.args(settings.iter().flat_map(|setting| ["-c", setting]));
        if with_tls {
            let file = |name: &str| directory.path().join(name).display().to_string();
            postgres.args(["-c", "ssl=on", "-c", &format!("ssl_cert_file={}", file("server.pem"))]);
            postgres.args(["-c", &format!("ssl_key_file={}", file("server.key"))]);
        }
        let program = Program::start(postgres).ready(async || connect(port, "postgres").await.is_ok()).await;
        Self { port, directory, _program: program }
    }

    /// This server as a backend in jobpass's config; `password` is the reference to the superuser's.
    #[must_use]
    pub fn backend(&self, password: &str) -> Value {
        json!({ "postgres": {
            "host": "127.0.0.1", "port": self.port, "database": "postgres", "user": ADMIN, "password": password,
        } })
    }

    /// A connection as the superuser.
    pub async fn admin(&self) -> Client {
        self.admin_of("postgres").await
    }

    /// The same to another database.
    pub async fn admin_of(&self, database: &str) -> Client {
        connect(self.port, database).await.expect("a ready server takes its superuser")
    }

    /// The certificate of the server's authority, if it was started with TLS.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Whether a role of this name exists.
    pub async fn has_role(&self, name: &str) -> bool {
        let found = self.admin().await.query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&name]).await;
        found.expect("the catalogue can be read").is_some()
    }

    /// The roles that leases made: all whose names begin as such names do.
    pub async fn leased_roles(&self) -> Vec<String> {
        let query = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'jobpass\\_%' ORDER BY 1";
        let rows = self.admin().await.query(query, &[]).await.expect("the catalogue can be read");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

async fn connect(port: u16, database: &str) -> Result<Client, tokio_postgres::Error> {
    let config = format!("host=127.0.0.1 port={port} user={ADMIN} password={ADMIN_PASSWORD} dbname={database}");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// PostgreSQL refuses to run as root.
fn unprivileged(name: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return program::installed(name);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    // Resolved here: the link to it may lie where that user cannot look.
    command.arg(program::bin().join(name).canonicalize().expect("an installed program is there")).current_dir("/");
    command
}
