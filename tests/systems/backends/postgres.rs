//! PostgreSQL over TLS and `psql`, with a role for jobpass that may do no more than its page says.

use super::{System, Try};
use jobpass_tests::{
    postgres::Postgres,
    program::{self, Program},
    server::Setup,
};
use serde_json::{Value, json};
use std::process::Command;

pub(super) struct Role(Postgres);

const SETUP: &str = r#"
    CREATE ROLE jobpass LOGIN CREATEROLE PASSWORD 'jobpasspw';
    CREATE ROLE app;
    GRANT app TO jobpass WITH ADMIN OPTION;
    CREATE TABLE deploys (n int);
    CREATE TABLE salaries (n int);
    GRANT INSERT ON deploys TO app;
    CREATE SCHEMA ci_772002;
    CREATE TABLE ci_772002.runs (id serial, n int);
    GRANT USAGE ON SCHEMA ci_772002 TO jobpass WITH GRANT OPTION;
    GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA ci_772002 TO jobpass WITH GRANT OPTION;
    GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA ci_772002 TO jobpass WITH GRANT OPTION"#;
const SETUP_REPORTS: &str = r#"
    CREATE SCHEMA "wei""rd";
    CREATE TABLE "wei""rd"."t 1" (n int);
    CREATE TABLE "wei""rd".t2 (n int);
    GRANT USAGE, CREATE ON SCHEMA "wei""rd" TO jobpass WITH GRANT OPTION;
    GRANT SELECT ON ALL TABLES IN SCHEMA "wei""rd" TO jobpass WITH GRANT OPTION"#;

impl Role {
    async fn psql(&self, credential: &Value, database: &str, command: &str) -> Result<(), String> {
        let done = Program::run(self.client(credential, database, command)).await;
        if done.status.success() { Ok(()) } else { Err(done.log) }
    }

    fn client(&self, credential: &Value, database: &str, command: &str) -> Command {
        let mut psql = program::installed("psql");
        for (variable, field) in [
            ("PGHOST", "host"),
            ("PGPORT", "port"),
            ("PGUSER", "username"),
            ("PGPASSWORD", "password"),
            ("PGSSLMODE", "sslmode"),
        ] {
            psql.env(variable, credential[field].as_str().expect("a text"));
        }
        psql.env("PGDATABASE", database).env("PGSSLROOTCERT", self.0.ca_file());
        psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-c", command]);
        psql
    }
}

/// Holds the role's own row, which whoever shuts it out has to change, and stays.
const LINGER: &str = "ALTER ROLE CURRENT_USER PASSWORD 'mine'; SELECT pg_sleep(600)";

impl System for Role {
    const GONE: [&str; 2] = ["password authentication failed for user"; 2];

    async fn start() -> Self {
        let postgres = Postgres::start_tls().await;
        postgres.admin().await.batch_execute(SETUP).await.expect("the superuser may");
        postgres.admin().await.batch_execute("CREATE DATABASE reports").await.expect("the superuser may");
        postgres.admin_of("reports").await.batch_execute(SETUP_REPORTS).await.expect("the superuser may");
        Self(postgres)
    }

    fn backend(&self, setup: &Setup) -> Value {
        json!({ "postgres": {
            "host": "127.0.0.1", "port": self.0.port, "database": "postgres", "user": "jobpass", "statements": true,
            "password": setup.secret("postgres-password", "jobpasspw"), "settle": "1s", "deadline": "10s", "max_connections": 100, "roles": ["app"],
            "sslmode": "verify-full", "ca_file": self.0.ca_file(),
        } })
    }

    fn credential(&self) -> Value {
        json!({
            "roles": ["app"],
            "privileges": [
                { "schema": "ci_{{ claims.repository_id }}", "allow": ["select", "insert", "sequences"] },
                { "database": "reports", "schema": "wei\"rd", "tables": ["t 1"], "allow": ["select", "create"] },
            ],
            "statements": ["ALTER ROLE {{ role }} SET application_name = {{ claims.repository_id }}"],
        })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        let command = "INSERT INTO deploys VALUES (1); INSERT INTO ci_772002.runs (n) SELECT count(*) FROM ci_772002.runs; \
                       SELECT 1 / ssl::int FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        self.psql(credential, "postgres", command).await?;
        let command = r#"SELECT * FROM "wei""rd"."t 1"; CREATE TABLE IF NOT EXISTS "wei""rd".mine (n int)"#;
        self.psql(credential, "reports", command).await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        let mut tries = Vec::new();
        for (database, command, says) in [
            ("postgres", "SELECT * FROM salaries", "permission denied for table salaries"),
            ("postgres", "DELETE FROM deploys", "permission denied for table deploys"),
            ("postgres", "DELETE FROM ci_772002.runs", "permission denied for table runs"),
            ("postgres", "CREATE TABLE ci_772002.mine (n int)", "permission denied for schema ci_772002"),
            ("postgres", "CREATE ROLE mine", "permission denied to create role"),
            ("reports", r#"SELECT * FROM "wei""rd".t2"#, "permission denied for table t2"),
            ("reports", r#"INSERT INTO "wei""rd"."t 1" VALUES (1)"#, "permission denied for table t 1"),
        ] {
            tries.push((command, says, self.psql(credential, database, command).await));
        }
        tries
    }

    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        let psql = format!("PGSSLROOTCERT={} psql -X -v ON_ERROR_STOP=1 -c", self.0.ca_file().display());
        let script = format!("{psql} 'INSERT INTO deploys VALUES (1)'; ! {psql} 'SELECT * FROM salaries'");
        let from_files = |what: &str| format!("test -z \"${{PGPASSWORD-}}\"; test -s \"${what}\"; {script}");
        vec![
            (&[], script.clone()),
            (&["--file", "PGPASSFILE=pgpass"], from_files("PGPASSFILE")),
            (
                &["--file", "PGSERVICEFILE=pgservice"],
                format!("unset PGHOST PGPORT PGDATABASE PGUSER PGSSLMODE; {}", from_files("PGSERVICEFILE")),
            ),
        ]
    }

    async fn hold(&self, credential: &Value) -> Option<Program> {
        let held = Program::start(self.client(credential, "reports", LINGER));
        let user = credential["username"].as_str().expect("a text");
        let (admin, query) = (self.0.admin().await, "SELECT 1 FROM pg_stat_activity WHERE usename = $1");
        let connected = async || admin.query_opt(query, &[&user]).await.expect("the query is right").is_some();
        let held = held.ready(connected).await;
        let plain = "SELECT 1 FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename = 'jobpass' AND NOT ssl";
        assert!(admin.query(plain, &[]).await.expect("the query is right").is_empty(), "jobpass itself uses no TLS");
        Some(held)
    }

    async fn left(&self) -> Vec<String> {
        self.0.leased_roles().await
    }
}
