//! PostgreSQL and `psql`.

use super::System;
use jobpass_tests::{
    postgres::{ADMIN_PASSWORD, Postgres},
    program::{self, Program},
    server::Setup,
};
use serde_json::{Value, json};
use std::process::Command;

pub(super) struct Role(Postgres);

impl Role {
    async fn psql(&self, credential: &Value, command: &str) -> Result<(), String> {
        let done = Program::run(psql(credential, command)).await;
        if done.status.success() { Ok(()) } else { Err(done.log) }
    }
}

fn psql(credential: &Value, command: &str) -> Command {
    let mut psql = program::installed("psql");
    for (variable, field) in [
        ("PGHOST", "host"),
        ("PGPORT", "port"),
        ("PGDATABASE", "database"),
        ("PGUSER", "username"),
        ("PGPASSWORD", "password"),
    ] {
        psql.env(variable, credential[field].as_str().expect("a text"));
    }
    psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-c", command]);
    psql
}

impl System for Role {
    async fn start() -> Self {
        let postgres = Postgres::start().await;
        let setup = "CREATE ROLE app; CREATE TABLE deploys (n int); CREATE TABLE salaries (n int); \
                     GRANT SELECT, INSERT ON deploys TO app";
        postgres.admin().await.batch_execute(setup).await.expect("the superuser may");
        Self(postgres)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let mut backend = self.0.backend(&setup.secret("postgres-password", ADMIN_PASSWORD));
        backend["postgres"]["settle"] = "1s".into();
        backend
    }

    fn credential(&self) -> Value {
        json!({ "roles": ["app"] })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.psql(credential, "INSERT INTO deploys VALUES (1)").await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<(&'static str, Result<(), String>)> {
        let mut tries = Vec::new();
        for command in ["SELECT * FROM salaries", "DELETE FROM deploys", "CREATE ROLE mine"] {
            tries.push((command, self.psql(credential, command).await));
        }
        tries
    }

    async fn hold(&self, credential: &Value) -> Option<Program> {
        let held = Program::start(psql(credential, "SELECT pg_sleep(600)"));
        let user = credential["username"].as_str().expect("a text");
        let (admin, query) = (self.0.admin().await, "SELECT 1 FROM pg_stat_activity WHERE usename = $1");
        let connected = async || admin.query_opt(query, &[&user]).await.expect("the query is right").is_some();
        Some(held.ready(connected).await)
    }

    async fn left(&self) -> Vec<String> {
        self.0.leased_roles().await
    }
}
