//! jobpass as it is measured: the real binary, one issuer whose keys are pinned in a file, one grant of
//! `signed_jwt`, and everything durable: lease, token, audit chain and audit file.

use crate::{
    load::Connection,
    machine,
    server::{self, Server},
    tokens::{Forge, ISSUER, TENANT, Token, random_hex},
};
use anyhow::Result;
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// It has to match as much as OpenBao's role does, and more, because less does not compile.
const GRANT: &str = r#"grant: NAME
owner: team@octo-org.example
review_by: 2099-12-31
description: What the benchmark asks for.
backend: NAME
credential: CREDENTIAL
ttl: TTL
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

const TOKEN: &str = r#"{ audience: https://cloud.example, sub: "repository_id:{{ claims.repository_id }}" }"#;

/// A backend, and the grant of its name.
pub(crate) struct Backend {
    /// Its name.
    pub(crate) name: &'static str,
    /// The backend in the server's config.
    pub(crate) config: Value,
    /// The grant's `credential`.
    pub(crate) credential: &'static str,
}

/// A jobpass that can be started.
pub(crate) struct Jobpass {
    program: PathBuf,
    directory: PathBuf,
    address: SocketAddr,
    /// Its URL: the audience of tokens.
    pub(crate) url: String,
}

impl Jobpass {
    /// Writes its files; it has `backends` beside the one that signs tokens.
    pub(crate) fn prepare(program: &Path, directory: &Path, forge: &Forge, backends: &[Backend]) -> Result<Self> {
        let address = server::free_address()?;
        let url = format!("http://{address}");
        fs::create_dir_all(directory.join("grants"))?;
        let grant = |name: &str, credential: &str, ttl: &str| {
            let text = GRANT.replace("NAME", name).replace("CREDENTIAL", credential).replace("TTL", ttl);
            fs::write(directory.join(format!("grants/{name}.yaml")), text)
        };
        grant("deploy", TOKEN, "1h")?;
        let mut configs = String::new();
        for Backend { name, config, credential } in backends {
            grant(name, credential, "15m")?;
            configs += &format!("  {name}: {config}\n");
        }
        fs::write(directory.join("jwks.json"), forge.jwks().to_string())?;
        let config = format!(
            "public_url: {url}\nlisten: {address}\nstate_dir: state\nissuers:\n  github:\n    url: {ISSUER}\n    \
             tenants: [\"{TENANT}\"]\n    jwks_file: jwks.json\nbackends:\n  deploy:\n    signed_jwt:\n      \
             audiences: [https://cloud.example]\n      algorithm: ES256\n{configs}policies: [grants]\n\
             audit: {{ file: audit.jsonl }}\nlimits: {{ exchanges_per_minute: 0 }}\n"
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

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A whole request for a token, as the job's program sends it.
    pub(crate) fn request(&self, token: &Token) -> Vec<u8> {
        self.ask(token, "deploy", &[])
    }

    /// A whole request for a grant, with more parameters.
    pub(crate) fn ask(&self, token: &Token, grant: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let random = || random_hex().unwrap_or_default();
        let mut form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt\
             &subject_token={token}&audience={grant}&session={}&request_id={}",
            random(),
            random()
        );
        for (name, value) in more {
            form += &format!("&{name}={}", url::form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>());
        }
        self.post("/token", &form)
    }

    /// A whole request to give back.
    pub(crate) fn revoke(&self, handle: &str) -> Vec<u8> {
        self.post("/revoke", &format!("token={handle}"))
    }

    fn post(&self, path: &str, form: &str) -> Vec<u8> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             accept: application/json\r\nuser-agent: jobpass\r\ncontent-length: {}\r\n\r\n",
            self.address,
            form.len()
        );
        (head + form).into_bytes()
    }

    /// Bytes on disk: the store with its log, and the audit file.
    pub(crate) fn disk(&self) -> Result<u64> {
        let store = fs::read_dir(self.directory.join("state"))?.filter_map(Result::ok).map(|entry| entry.path());
        let files: Vec<_> = store.chain([self.directory.join("audit.jsonl")]).collect();
        Ok(machine::disk_usage(&files))
    }
}
