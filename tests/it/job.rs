//! Real programs on both sides: a job's `jobpass`, and a `jobpass-exchanger` that makes keys of a ledger for it.

use jobpass_exchanger::demo::{self, Ci, issuer::Issuer, ledger::Ledger};
use jobpass_tests::{
    http::{client, now},
    ports,
    program::{Finished, Program, built},
    server::{Server, Setup},
    world::grant,
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process::Command};
use tempfile::TempDir;

/// What a server stands between.
pub(crate) struct Upstreams {
    pub(crate) ci: Issuer,
    pub(crate) ledger: Ledger,
}

impl Upstreams {
    /// With a server's setup that has the grant `ledger` for jobs of this CI.
    pub(crate) async fn start() -> (Self, Setup) {
        let ci = Issuer::start(ports::ANY, Ci::GitHub, now).await.expect("an issuer");
        let ledger = Ledger::start(ports::ANY, now).await.expect("a ledger");
        let setup = Setup::new();
        let token = setup.secret("ledger-token", ledger.admin_token().expose());
        let backend: Value = serde_saphyr::from_str(&demo::ledger_backend(ledger.url(), &token)).expect("YAML");
        let issuer = json!({ "profile": "github", "url": ci.url(), "insecure_http": true, "tenants": ["1001"] });
        let note = "parameters: { note: \"run {{ claims.run_id }}\" }";
        let setup = setup.set("issuers.ci", issuer).backend("ledger", backend["ledger"].clone());
        (Self { ci, ledger }, setup.grant_text("ledger", &grant("ledger", "ledger", note)))
    }

    /// Whether a key of the ledger works.
    pub(crate) async fn key_works(&self, key: &str) -> bool {
        let request = client().get(format!("{}/entries", self.ledger.url())).bearer_auth(key);
        request.send().await.expect("the ledger answers").status().is_success()
    }

    /// A whole exchange: a job takes a key, which works, and gives it back, whereupon it does not.
    pub(crate) async fn serve(&self, job: &Job, server: &Server) {
        let key = job.takes().await;
        server.keep_quiet(&key);
        assert!(self.key_works(&key).await);
        job.jobpass(&["revoke"]).await.expect_success();
        assert!(!self.key_works(&key).await);
    }
}

/// A job, with an environment and a private directory of its own.
pub(crate) struct Job {
    home: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Job {
    /// One that knows its server, and nothing else.
    pub(crate) fn new(server: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let directory = home.path().to_str().expect("UTF-8").to_owned();
        let environment = vec![
            ("PATH", "/usr/bin:/bin".to_owned()),
            ("XDG_RUNTIME_DIR", directory),
            ("JOBPASS_URL", server.to_owned()),
        ];
        Self { home, environment }
    }

    /// One on GitHub.
    pub(crate) fn on_github(github: &Issuer, server: &str) -> Self {
        Self::new(server)
            .with("GITHUB_ACTIONS", "true")
            .with("ACTIONS_ID_TOKEN_REQUEST_URL", &github.request_url())
            .with("ACTIONS_ID_TOKEN_REQUEST_TOKEN", github.request_token().expose())
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    /// With a file, which the variable names.
    pub(crate) fn with_file(self, name: &'static str, text: &str) -> Self {
        let path = self.path(name);
        fs::write(&path, text).expect("the directory is ours");
        self.with(name, path.to_str().expect("UTF-8"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) async fn jobpass(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(built("jobpass"));
        command.args(arguments).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        Program::run(command).await
    }

    /// Asks for a key into a file.
    pub(crate) async fn asks(&self) -> Finished {
        let file = self.path("key");
        let file = file.to_str().expect("UTF-8");
        self.jobpass(&["get", "--grant", "ledger", "--field", "key", "--to", file]).await
    }

    /// Gets a key.
    pub(crate) async fn takes(&self) -> String {
        self.asks().await.expect_success();
        fs::read_to_string(self.path("key")).expect("the key")
    }
}
