//! The real server, as a process of its own: `jobpass-exchanger serve` on a spare loopback port.

use crate::{
    http::client,
    ports,
    program::{self, Finished, Program},
    secrets::Secrets,
};
use reqwest::Client;
use serde_json::{Value, json};
use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The form's `grant_type` and `subject_token_type` of an exchange (RFC 8693 §2.1, §3).
const EXCHANGE: [(&str, &str); 2] = [
    ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
    ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
];

/// What a server is to be run with, before it is started.
pub struct Setup {
    directory: TempDir,
    url: String,
    config: Value,
    client: Option<Client>,
    environment: Vec<(&'static str, &'static str)>,
    disk: Option<usize>,
}

impl Setup {
    /// A server without issuers, backends and grants, whose address is known already.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it takes a port and a directory of the machine")]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("server").tempdir().expect("the temporary directory is there");
        fs::create_dir(directory.path().join("grants")).expect("the directory is ours");
        let listen = format!("127.0.0.1:{}", ports::free());
        let url = format!("http://{listen}");
        let config = json!({
            "public_url": url, "listen": listen, "state_dir": directory.path().join("state"),
            "issuers": {}, "backends": {}, "policies": [directory.path().join("grants")],
            "audit": { "file": directory.path().join("audit.jsonl") },
        });
        Self { directory, url, config, client: None, environment: Vec::new(), disk: None }
    }

    /// The server's public URL: the audience that its jobs' tokens are for, and the issuer of its own.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Trusts an issuer; it is on loopback.
    #[must_use]
    pub fn issuer(mut self, name: &str, url: &str, tenants: &[&str]) -> Self {
        self.config["issuers"][name] = json!({ "url": url, "tenants": tenants, "insecure_http": true });
        self
    }

    /// Sets something of the config that has no function here, such as `issuers.github`.
    #[must_use]
    pub fn set(mut self, place: &str, value: Value) -> Self {
        let place = place.split('.').fold(&mut self.config, |at, key| &mut at[key]);
        *place = value;
        self
    }

    /// Where it listens, which is not its public URL where something stands in front of it.
    #[must_use]
    pub fn listens(&self) -> SocketAddr {
        self.config["listen"].as_str().and_then(|text| text.parse().ok()).expect("an address")
    }

    /// Gives it another public URL, and the client that reaches it there.
    #[must_use]
    pub fn reached_at(mut self, url: &str, client: Client) -> Self {
        url.clone_into(&mut self.url);
        self.client = Some(client);
        self.set("public_url", json!(url))
    }

    /// Adds a backend.
    #[must_use]
    pub fn backend(mut self, name: &str, config: Value) -> Self {
        self.config["backends"][name] = config;
        self
    }

    /// Lets a workload ask as often as it likes.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        self.config["limits"]["exchanges_per_minute"] = json!(0);
        self
    }

    /// Has it seal with a key.
    #[must_use]
    pub fn sealing(mut self, key: &str) -> Self {
        self.config["sealing"] = json!({ "keys": self.secret("sealing", key) });
        self
    }

    /// Has it sign with keys of these types.
    #[must_use]
    pub fn signing(mut self, types: &[&str]) -> Self {
        self.config["signing"] = json!({ "keys": types });
        self
    }

    /// Adds a grant file from `tests/systems/fixtures/grants`.
    #[must_use]
    pub fn grant(self, file: &str) -> Self {
        let from = program::root().join("tests/systems/fixtures/grants").join(file);
        fs::copy(&from, self.directory.path().join("grants").join(file))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self
    }

    /// Adds a grant file of the test's own making.
    #[must_use]
    pub fn grant_text(self, name: &str, text: &str) -> Self {
        fs::write(self.directory.path().join("grants").join(format!("{name}.yaml")), text)
            .expect("the directory is ours");
        self
    }

    /// Gives the server's state a file system of its own with this many bytes, all of which it may use.
    #[must_use]
    pub fn disk(mut self, bytes: usize) -> Self {
        self.config["limits"]["reserve_bytes"] = json!(0);
        self.disk = Some(bytes);
        self
    }

    /// Sets a variable of the server's environment.
    #[must_use]
    pub fn environment(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Writes a secret down and returns the reference by which the config names it.
    #[must_use]
    pub fn secret(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the directory is ours");
        format!("file:{}", path.display())
    }

    /// Starts the server and waits until it serves.
    pub async fn start(self) -> Server {
        let Self { directory, url, config, client, environment, disk } = self;
        let file = directory.path().join("jobpass-exchanger.yaml");
        fs::write(&file, config.to_string()).expect("the directory is ours");
        let mut server =
            Server { url, client, directory, environment, disk, program: None, secrets: Secrets::default() };
        server.restart().await;
        server
    }
}

/// A running server. Dropping it checks that it left nothing half done and told no secret, and ends it.
pub struct Server {
    /// Its public URL.
    pub url: String,
    client: Option<Client>,
    directory: TempDir,
    environment: Vec<(&'static str, &'static str)>,
    disk: Option<usize>,
    program: Option<Program>,
    secrets: Secrets,
}

/// The server's answer to a form.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body.
    pub body: Value,
}

impl Server {
    /// Starts it (again) on the same state.
    pub async fn restart(&mut self) {
        self.program = None;
        let exchanger = program::built("jobpass-exchanger");
        let mut command = match self.disk {
            None => Command::new(exchanger),
            Some(bytes) => with_disk(bytes, &self.path("state"), &exchanger),
        };
        command.args(["serve", "--config"]).arg(self.path("jobpass-exchanger.yaml"));
        command.envs(self.environment.iter().copied());
        let keys = format!("{}/.well-known/jwks.json", self.url);
        let serves = async || self.client().get(&keys).send().await.is_ok_and(|answer| answer.status().is_success());
        self.program = Some(Program::start(command).ready(serves).await);
    }

    /// Exchanges a token for the credential of a grant; `more` are further fields of the form.
    pub async fn exchange(&self, grant: &str, token: &str, more: &[(&str, &str)]) -> Answer {
        let form = [&EXCHANGE[..], &[("audience", grant), ("subject_token", token)], more].concat();
        self.keep_quiet(token);
        let answer = self.post("/token", &form).await;
        for pointer in ["/access_token", "/refresh_token"] {
            if let Some(secret) = answer.body.pointer(pointer).and_then(Value::as_str) {
                self.keep_quiet(secret);
            }
        }
        answer
    }

    /// Posts a form.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        let answer =
            self.client().post(format!("{}{path}", self.url)).form(form).send().await.expect("the server answers");
        let status = answer.status().as_u16();
        Answer { status, body: answer.json().await.expect("the server answers in JSON") }
    }

    /// Says that a text, and a token's payload and signature, must not appear in the server's log or audit.
    pub fn keep_quiet(&self, secret: &str) {
        self.secrets.keep(secret);
    }

    /// All leases, the ended ones too, as an admin sees them.
    #[must_use]
    pub fn leases(&self) -> Vec<Value> {
        let mut command = Command::new(program::built("jobpass-exchanger"));
        command.args(["leases", "list", "--ended", "--limit", "100000", "--json", "--state-dir"]).arg(self.state());
        let output = command.output().expect("the admin's command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("the admin's command prints JSON")
    }

    /// Runs an admin's command.
    pub async fn admin(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(program::built("jobpass-exchanger"));
        command.args(arguments).arg("--state-dir").arg(self.state());
        Program::run(command).await
    }

    /// Takes everything back, as an admin.
    pub async fn revoke_all(&self) {
        self.admin(&["leases", "revoke", "--all"]).await.expect_success();
    }

    /// All leases as an admin reads them.
    pub async fn lease_table(&self) -> String {
        self.admin(&["leases", "list", "--ended", "--limit", "1000"]).await.expect_success()
    }

    /// The state of each lease, and how it ended: `ended: revoked`.
    #[must_use]
    pub fn lease_states(&self) -> Vec<String> {
        let told = |lease: &Value| match (lease["state"]["state"].as_str(), lease["state"]["how"].as_str()) {
            (Some(state), Some(how)) => format!("{state}: {how}"),
            (state, _) => state.unwrap_or_default().to_owned(),
        };
        self.leases().iter().map(told).collect()
    }

    /// Waits until the audit log is streamed, and checks it with the admin's command.
    pub async fn verify_audit(&self) {
        let mut command = Command::new(program::built("jobpass-exchanger"));
        command.args(["audit", "verify"]).arg(self.path("audit.jsonl"));
        Program::run(command).await.expect_success();
    }

    /// What it wrote since it was started last.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.as_ref().map(Program::log).unwrap_or_default()
    }

    /// The audit log, as streamed to its file.
    #[must_use]
    pub fn audit(&self) -> String {
        fs::read_to_string(self.path("audit.jsonl")).unwrap_or_default()
    }

    /// The state directory, as the server sees it.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        let state = self.path("state");
        match (self.disk, &self.program) {
            (Some(_), Some(server)) => {
                Path::new(&format!("/proc/{}/root", server.id())).join(state.strip_prefix("/").unwrap_or(&state))
            }
            _ => state,
        }
    }

    fn client(&self) -> Client {
        self.client.clone().unwrap_or_else(client)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A command that runs `program` with a file system of `bytes` at `at`, which nobody else sees.
fn with_disk(bytes: usize, at: &Path, program: &Path) -> Command {
    let mount = "mount -t tmpfs -o size=$1,mode=700 jobpass \"$2\" && shift 2 && exec \"$@\"";
    fs::create_dir_all(at).expect("the directory is ours");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", &bytes.to_string()]);
    command.arg(at).arg(program);
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(program) = &self.program else { return };
        let log = program.log();
        if std::thread::panicking() {
            println!("the server's log:\n{log}");
            return;
        }
        self.secrets.assert_unsaid(&log, "the server's log");
        self.secrets.assert_unsaid(&self.audit(), "the audit log");
        assert!(self.lease_states().iter().all(|state| state != "pending"), "a lease is left pending:\n{log}");
    }
}
