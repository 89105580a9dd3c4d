//! jobpass as it is measured: the real binary, one issuer whose keys are pinned in a file, one grant of
//! `signed_jwt`, and everything durable: lease, token, audit chain and audit file.

use crate::{
    load::Connection,
    machine,
    server::{self, Server},
    tokens::{Forge, ISSUER, TENANT, Token, random_hex},
};
use anyhow::Result;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// It has to match as much as OpenBao's role does, and more, because less does not compile.
const GRANT: &str = r#"grant: deploy
owner: team@octo-org.example
review_by: 2099-12-31
description: What the benchmark asks for.
backend: oidc
credential:
  audience: https://cloud.example
  sub: "repository_id:{{ claims.repository_id }}"
ttl: 1h
max_lifetime: 1h
rules:
  - name: production
    issuer: github
    match:
      repository_owner_id: "65"
      repository: { glob: "octo-org/*" }
      ref: refs/heads/main
      ref_type: branch
      environment: production
      event_name: [push, workflow_dispatch]
      runner_environment: github-hosted
"#;

/// A jobpass that can be started.
pub(crate) struct Jobpass {
    program: PathBuf,
    directory: PathBuf,
    address: SocketAddr,
    /// Its URL: the audience of tokens.
    pub(crate) url: String,
}

impl Jobpass {
    /// Writes its files.
    pub(crate) fn prepare(program: &Path, directory: &Path, forge: &Forge) -> Result<Self> {
        let address = server::free_address()?;
        let url = format!("http://{address}");
        fs::create_dir_all(directory.join("grants"))?;
        fs::write(directory.join("grants/deploy.yaml"), GRANT)?;
        fs::write(directory.join("jwks.json"), forge.jwks().to_string())?;
        let config = format!(
            "public_url: {url}\nlisten: {address}\nstate_dir: state\nissuers:\n  github:\n    url: {ISSUER}\n    \
             tenants: [\"{TENANT}\"]\n    jwks_file: jwks.json\nbackends:\n  oidc:\n    signed_jwt:\n      \
             audiences: [https://cloud.example]\n      algorithm: ES256\npolicies: [grants]\naudit: {{ file: audit.jsonl }}\n\
             limits: {{ exchanges_per_minute: 0 }}\n"
        );
        fs::write(directory.join("jobpass-exchanger.yaml"), config)?;
        Ok(Self { program: program.to_owned(), directory: directory.to_owned(), address, url })
    }

    /// Starts it; returns how long it took until a job got a credential.
    pub(crate) fn start(&self, forge: &Forge) -> Result<(Server, Duration)> {
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--config").arg(self.directory.join("jobpass-exchanger.yaml"));
        let request = forge.mint(1, &self.url)?.iter().map(|token| self.request(token)).collect::<Vec<_>>().concat();
        let ready = |connection: &mut Connection| Ok(connection.ask(&request)?.status == 200);
        Server::start(command, self.address, &self.directory.join("log"), &ready)
    }

    /// A whole request, as the job's program sends it.
    pub(crate) fn request(&self, token: &Token) -> Vec<u8> {
        let random = || random_hex().unwrap_or_default();
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt\
             &subject_token={token}&audience=deploy&session={}&request_id={}",
            random(),
            random()
        );
        let head = format!(
            "POST /token HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             accept: application/json\r\nuser-agent: jobpass\r\ncontent-length: {}\r\n\r\n",
            self.address,
            form.len()
        );
        (head + &form).into_bytes()
    }

    /// Bytes on disk: the store with its log, and the audit file.
    pub(crate) fn disk(&self) -> Result<u64> {
        let store = fs::read_dir(self.directory.join("state"))?.filter_map(Result::ok).map(|entry| entry.path());
        let files: Vec<_> = store.chain([self.directory.join("audit.jsonl")]).collect();
        Ok(machine::disk_usage(&files))
    }
}
