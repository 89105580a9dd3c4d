//! The world of a platform team: its two CIs, its database, and a server that trusts the ones with
//! the other.

use jobpass_exchanger::demo::{
    Ci,
    issuer::{Issuer, Token},
};
use jobpass_tests::{
    http::now,
    ports,
    postgres::{self, Postgres},
    program,
    server::{Server, Setup},
};
use serde_json::{Value, json};
use std::{path::Path, process::Command};

/// The audience of the tokens of the grant `vault`.
pub(crate) const VAULT_AUDIENCE: &str = "openbao.acme.example";

/// A server that trusts both CIs, with the grant `vault` of its own tokens.
pub(crate) fn setup(github: &Issuer, gitlab: &Issuer) -> Setup {
    Setup::new()
        .issuer("github", github.url(), &["1001"])
        .issuer("gitlab", gitlab.url(), &["1001"])
        .backend("oidc", json!({ "signed_jwt": { "audiences": [VAULT_AUDIENCE] } }))
        .grant("vault.yaml")
        .grant("report.yaml")
}

/// A CI.
pub(crate) async fn issuer(ci: Ci) -> Issuer {
    Issuer::start(ports::ANY, ci, now).await.expect("the issuer starts")
}

/// A job's token for a server.
pub(crate) fn token(issuer: &Issuer, server: &Server) -> String {
    let token = issuer.mint(&Token::for_audience(server.url.as_str())).expect("the key signs");
    server.keep_quiet(&token);
    token
}

/// A grant for the main branch of the repository of the tests.
pub(crate) fn grant(name: &str, backend: &str, credential: &Value, ttl: &str) -> String {
    let pins = json!({ "repository_owner_id": "1001", "repository_id": "772002", "ref": "refs/heads/main", "ref_type": "branch" });
    json!({
        "grant": name, "owner": "platform@acme.example", "review_by": "2099-12-31", "description": "A test's grant.",
        "backend": backend, "credential": credential, "ttl": ttl, "max_lifetime": ttl,
        "rules": [{ "name": "main", "issuer": "github", "match": pins }],
    })
    .to_string()
}

/// What a step of a job on GitHub finds in its environment, with the installed programs and a home of its own.
pub(crate) fn as_job(command: &mut Command, github: &Issuer, server: &Server, home: &Path) {
    let home = home.to_str().expect("UTF-8");
    command.env_clear().envs([
        ("PATH", program::path().as_str()),
        ("HOME", home),
        ("XDG_RUNTIME_DIR", home),
        ("JOBPASS_URL", &server.url),
        ("GITHUB_ACTIONS", "true"),
        ("ACTIONS_ID_TOKEN_REQUEST_URL", &github.request_url()),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", github.request_token().expose()),
    ]);
}

/// Everything that runs. The server is ended first, after a look at what it left behind.
pub(crate) struct World {
    pub server: Server,
    pub postgres: Postgres,
    pub github: Issuer,
    pub gitlab: Issuer,
}

impl World {
    pub(crate) async fn build() -> Self {
        let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
        let postgres = Postgres::start().await;
        postgres.admin().await.batch_execute("CREATE ROLE app").await.expect("the superuser may");
        let setup = setup(&github, &gitlab).grant("db.yaml");
        let database = postgres.backend(&setup.secret("postgres-password", postgres::ADMIN_PASSWORD));
        let server = setup.backend("app-db", database).start().await;
        Self { server, postgres, github, gitlab }
    }

    /// A token for the server.
    pub(crate) fn token(&self, issuer: &Issuer) -> String {
        token(issuer, &self.server)
    }

    /// Asserts that no role that a lease made is left, and how the leases stand.
    pub(crate) async fn assert_over(&self, lease_states: &[&str]) {
        assert_eq!(self.postgres.leased_roles().await, [""; 0], "a role is left in the database");
        assert_eq!(self.server.lease_states(), lease_states);
    }
}
