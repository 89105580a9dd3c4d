//! MariaDB over TLS and `mariadb`, with a user for jobpass that may do no more than its page says.

use super::{System, Try};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_tests::{mariadb::Mariadb, program::Program, server::Setup};
use serde_json::{Value, json};
use uuid::Uuid;

pub(super) struct Shop(Mariadb);

fn login(credential: &Value) -> [&str; 3] {
    ["username", "password", "database"].map(|field| credential[field].as_str().expect("a text"))
}

impl Shop {
    async fn run(&self, credential: &Value, statement: &str) -> Result<(), String> {
        let [user, password, database] = login(credential);
        let done = Program::run(self.0.client(user, password, database, statement)).await;
        if done.status.success() { Ok(()) } else { Err(done.log) }
    }
}

impl System for Shop {
    const GONE: [&str; 2] = ["ERROR 1045 (28000): Access denied for user"; 2];

    async fn start() -> Self {
        let mariadb = Mariadb::start().await;
        mariadb
            .admin(
                "CREATE TABLE deploys (n int); CREATE TABLE salaries (n int); CREATE DATABASE app_ci; \
                 CREATE DATABASE appxci; CREATE TABLE appxci.t (n int); \
                 CREATE USER jobpass@'127.0.0.1' IDENTIFIED BY 'jobpasspw'; \
                 GRANT CREATE USER, PROCESS, CONNECTION ADMIN ON *.* TO jobpass@'127.0.0.1'; \
                 GRANT SELECT, INSERT ON app.deploys TO jobpass@'127.0.0.1' WITH GRANT OPTION; \
                 GRANT SELECT, INSERT, CREATE ON `app\\_ci`.* TO jobpass@'127.0.0.1' WITH GRANT OPTION",
            )
            .await;
        Self(mariadb)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let password = setup.secret("mariadb-password", "jobpasspw");
        json!({ "mysql": {
            "host": "127.0.0.1", "port": self.0.port, "user": "jobpass", "password": password, "job_hosts": "127.0.0.%",
            "settle": "1s", "deadline": "10s", "max_connections": 100, "tls": true, "ca_file": self.0.ca_file(),
        } })
    }

    fn credential(&self) -> Value {
        json!({ "connection_limit": 3, "privileges": [
            { "database": "app", "table": "deploys", "allow": ["select", "insert"] },
            { "database": "app_ci", "allow": ["select", "create"] },
        ] })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.run(credential, "INSERT INTO deploys VALUES (1); CREATE TABLE IF NOT EXISTS app_ci.t (n int)").await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        let mut tries = Vec::new();
        for (statement, says) in [
            ("SELECT * FROM salaries", "SELECT command denied"),
            ("DELETE FROM deploys", "DELETE command denied"),
            ("INSERT INTO app_ci.t VALUES (1)", "INSERT command denied"),
            ("SELECT * FROM appxci.t", "SELECT command denied"), // `_` is no pattern
            ("CREATE USER mine", "you need (at least one of) the CREATE USER privilege"),
            ("GRANT SELECT ON deploys TO CURRENT_USER", "GRANT command denied"),
            ("SELECT * FROM mysql.user", "SELECT command denied"),
        ] {
            tries.push((statement, says, self.run(credential, statement).await));
        }
        let [user, password, database] = login(credential);
        let mut plain = self.0.client(user, password, database, "SELECT 1");
        let done = Program::run({
            plain.arg("--skip-ssl");
            plain
        })
        .await;
        tries.push((
            "without TLS",
            "ERROR 1045 (28000): Access denied for user",
            if done.status.success() { Ok(()) } else { Err(done.log) },
        ));
        tries
    }

    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        let ca = self.0.ca_file();
        let mariadb = format!("mariadb --defaults-file=\"$CNF\" --ssl-ca={} -e", ca.display());
        vec![(
            &["--file", "CNF=my_cnf"],
            format!("{mariadb} 'SELECT * FROM deploys'; ! {mariadb} 'DELETE FROM deploys'"),
        )]
    }

    async fn hold(&self, credential: &Value) -> Option<Program> {
        let [user, password, database] = login(credential);
        let held = Program::start(self.0.client(user, password, database, "SELECT SLEEP(600)"));
        let sessions = format!("SELECT user FROM information_schema.processlist WHERE user = '{user}'");
        Some(held.ready(async || self.0.admin(&sessions).await.contains(user)).await)
    }

    /// A user's name has 32 characters at most.
    fn named(remote_name: &str) -> String {
        let id: Uuid = remote_name["jobpass_".len()..].parse().expect("a lease's id");
        format!("jobpass_{}", URL_SAFE_NO_PAD.encode(id.as_bytes()))
    }

    async fn left(&self) -> Vec<String> {
        self.0.leased_users().await
    }
}
