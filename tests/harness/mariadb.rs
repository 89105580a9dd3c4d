//! A real MariaDB of its own, with TLS.

use crate::{
    ports,
    program::{self, Program},
    tls,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The user that may do everything, from 127.0.0.1.
pub const ADMIN: &str = "admin";
/// Its password.
pub const ADMIN_PASSWORD: &str = "adminpw";

/// A running server with an empty database `app`; ended and removed on drop.
pub struct Mariadb {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    directory: TempDir,
    _program: Program,
}

impl Mariadb {
    /// Initialises a data directory and starts it: about eight seconds.
    pub async fn start() -> Self {
        let directory = program::data_directory("mysql");
        let (data, start) = (directory.path().join("data"), directory.path().join("start.sql"));
        let mut install = program::system_as("mysql", "mariadb-install-db");
        install.args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"]);
        install.arg(format!("--datadir={}", data.display())).env("TMPDIR", directory.path());
        Program::run(install).await.expect_success();

        let admin = format!(
            "CREATE USER {ADMIN}@'127.0.0.1' IDENTIFIED BY '{ADMIN_PASSWORD}'; \
             GRANT ALL ON *.* TO {ADMIN}@'127.0.0.1' WITH GRANT OPTION; CREATE DATABASE app;"
        );
        std::fs::write(&start, admin.replace("; ", ";\n")).expect("the directory is ours");
        program::give_to("mysql", &start);
        tls::certificates(directory.path()).await;
        program::give_to("mysql", &directory.path().join("server.key"));
        let port = ports::free();
        let mut server = program::system_as("mysql", "mariadbd");
        server.env("TMPDIR", directory.path());
        server.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve", "--max-connections=500"]);
        server.arg(format!("--port={port}")).arg(format!("--datadir={}", data.display()));
        server.arg(format!("--socket={}", directory.path().join("socket").display()));
        server.arg(format!("--init-file={}", start.display())).arg("--innodb-flush-log-at-trx-commit=0");
        for (option, file) in [("--ssl-ca", "ca.pem"), ("--ssl-cert", "server.pem"), ("--ssl-key", "server.key")] {
            server.arg(format!("{option}={}", directory.path().join(file).display()));
        }
        let ca = directory.path().join("ca.pem");
        let ask = || client(port, &ca, ADMIN, ADMIN_PASSWORD, "app", "SELECT 1");
        let program = Program::start(server).ready(async || Program::run(ask()).await.status.success()).await;
        Self { port, directory, _program: program }
    }

    /// Runs statements as the admin and returns the rows as text.
    pub async fn admin(&self, statements: &str) -> String {
        Program::run(self.client(ADMIN, ADMIN_PASSWORD, "app", statements)).await.expect_success()
    }

    /// Statements for the `mariadb` client.
    #[must_use]
    pub fn client(&self, user: &str, password: &str, database: &str, statements: &str) -> Command {
        client(self.port, &self.ca_file(), user, password, database, statements)
    }

    /// The certificate of the server's authority.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The names of the users that leases made.
    pub async fn leased_users(&self) -> Vec<String> {
        let names = self.admin("SELECT user FROM mysql.user WHERE user LIKE 'jobpass\\_%'").await;
        names.lines().map(str::to_owned).collect()
    }
}

fn client(port: u16, ca: &Path, user: &str, password: &str, database: &str, statements: &str) -> Command {
    let mut client = program::system("mariadb");
    client.args([
        "--no-defaults",
        "-h",
        "127.0.0.1",
        "-P",
        &port.to_string(),
        "-u",
        user,
        "-N",
        "-B",
        "-e",
        statements,
    ]);
    client.arg(format!("--ssl-ca={}", ca.display()));
    client.arg(database).env("MYSQL_PWD", password);
    client
}
