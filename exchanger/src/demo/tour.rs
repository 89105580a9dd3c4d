//! `jobpass-exchanger demo`: a server, a CI issuer and an API on loopback, and one whole exchange, step
//! by step, as a CI job would do it. Fails, naming the step, when anything is not as it should be.

use super::{Ci, issuer::Issuer, issuer::Token, ledger::Ledger};
use crate::{
    app::{self, Running, StartError},
    clock::{Clock, SystemClock},
    config::{Config, Env},
    scratch::Scratch,
};
use anyhow::{Context as _, anyhow, bail, ensure};
use jobpass_protocol::{
    SessionSecret,
    exchange::{GRANT_TYPE_EXCHANGE, TOKEN_TYPE_JWT},
};
use serde_json::Value;
use std::{
    fs, future,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
};
use tokio::signal::unix::{SignalKind, signal};

const GRANT: &str = include_str!("grants/ledger.yaml");

/// The port of a server that stays up.
const PORT: u16 = 8420;

/// Runs the tour; without `once` the servers stay up until the program is told to end. Without a port, `once`
/// takes a free one.
///
/// # Errors
/// Names the step that failed.
pub async fn run(once: bool, port: Option<u16>) -> anyhow::Result<()> {
    crate::telemetry::log_to_stderr(Some("warn"));
    // Listened for from the start: a signal must not leave the directory behind.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let port = match port {
        Some(port) => port,
        None if once => free_port()?,
        None => PORT,
    };
    let stage = Stage::build(port, print).await.context("the demo cannot start")?;
    let told = || if once { Err(anyhow!("the demo was told to end before it was through")) } else { Ok(()) };
    let result = tokio::select! {
        result = stage.show(once) => result,
        _ = terminate.recv() => told(),
        _ = interrupt.recv() => told(),
        _ = hangup.recv() => told(),
    };
    stage.close().await;
    result
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Everything that the demo runs.
struct Stage {
    scratch: Scratch,
    issuer: Issuer,
    ledger: Ledger,
    server: Running,
    url: String,
    client: reqwest::Client,
    say: Say,
}

/// Where a line goes.
type Say = fn(&str) -> anyhow::Result<()>;

/// What the job got.
struct Given {
    key: String,
    handle: String,
}

impl Stage {
    async fn build(port: u16, say: Say) -> anyhow::Result<Self> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let now = || SystemClock.now().secs();
        let issuer = Issuer::start(loopback, Ci::GitHub, now).await?;
        let ledger = Ledger::start(loopback, now).await?;
        let url = format!("http://127.0.0.1:{port}");
        let scratch = Scratch::make("demo")?;
        let directory = scratch.path();
        write_files(directory, &url, &issuer, &ledger)?;
        let config = Config::load(&directory.join("jobpass-exchanger.yaml"), &Env::default())?;
        app::prepare_state_dir(&config.state_dir)?;
        let server = app::start(config, Arc::new(SystemClock)).await.map_err(|error| match &error {
            StartError::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                anyhow!(error).context(format!("port {port} is taken: choose another with --port"))
            }
            _ => anyhow!(error),
        })?;
        #[expect(clippy::disallowed_methods, reason = "this is the job's side of the demo, on loopback")]
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { scratch, issuer, ledger, server, url, client, say })
    }

    async fn show(&self, once: bool) -> anyhow::Result<()> {
        self.perform().await?;
        if once {
            return Ok(());
        }
        self.invite()?;
        future::pending().await
    }

    async fn perform(&self) -> anyhow::Result<()> {
        let say = self.say;
        say("jobpass demo: a CI job trades its token for a credential that dies with the job\n")?;
        say(&format!("  server  {}   (config and grants: {})", self.url, self.scratch.path().display()))?;
        say(&format!("  issuer  {}   (behaves like GitHub's)", self.issuer.url()))?;
        say(&format!("  ledger  {}   (an API with keys: what the job wants to use)\n", self.ledger.url()))?;

        let signs = "The CI signs a token that says what the job is, for our audience only.";
        let token = self.step(1, signs, self.sign()).await?;
        let asks = "The job posts it to /token, asks for the grant `ledger`, and sends a session secret of its own.";
        let given = self.step(2, asks, self.ask(&token)).await?;
        self.step(3, "The job uses the key.", self.spend(&given)).await?;
        let steals = "A thief copied the token from a log. Without the session secret it opens nothing.";
        self.step(4, steals, self.steal(&token)).await?;
        let other = "A pull request of the same repository asks for the same grant.";
        self.step(5, other, self.ask_in_a_pull_request()).await?;
        self.step(6, "The job ends and gives its credential back.", self.give_back(&given)).await?;
        say("\nAll of it is in the audit log, as a chain of hashes.\n")
    }

    /// Says what a step is, and takes it. Whatever fails in it bears its number.
    async fn step<T>(&self, number: u8, what: &str, act: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        (self.say)(&format!("{number}. {what}"))?;
        act.await.with_context(|| format!("step {number}"))
    }

    fn detail(&self, what: &str) -> anyhow::Result<()> {
        (self.say)(&format!("     {what}"))
    }

    async fn sign(&self) -> anyhow::Result<String> {
        let token = self.issuer.mint(&Token::for_audience(self.url.as_str()))?;
        for claim in ["repository", "repository_id", "ref", "event_name", "runner_environment"] {
            self.detail(&format!("{claim}: {}", claim_of(&token, claim)))?;
        }
        Ok(token)
    }

    async fn ask(&self, token: &str) -> anyhow::Result<Given> {
        let answer = self.exchange(token, &session()?).await?;
        ensure!(answer.status == 200, "the exchange was refused: {}", answer.body);
        let lease = text(&answer.body, "/lease_id").context("the answer names no lease")?;
        let key = text(&answer.body, "/credential/key").context("the answer holds no key")?;
        let handle = text(&answer.body, "/refresh_token").context("the answer holds no handle")?;
        self.detail("decision: permit, by rule main-branch")?;
        self.detail(&format!("lease: {lease} (on disk before the ledger was asked)"))?;
        self.detail(&format!(
            "credential: a ledger key named {}, {} characters, gone in {} s",
            remote_name(&lease),
            key.len(),
            answer.body["expires_in"]
        ))?;
        Ok(Given { key, handle })
    }

    async fn spend(&self, given: &Given) -> anyhow::Result<()> {
        let used = self.use_key(&given.key).await?;
        ensure!(used == 200, "the ledger answered {used} to a fresh key");
        self.detail("GET /entries: 200")
    }

    async fn steal(&self, token: &str) -> anyhow::Result<()> {
        let thief = self.exchange(token, &session()?).await?;
        ensure!(
            thief.status == 400 && thief.body["error"] == "invalid_target",
            "the thief was answered {}",
            thief.status
        );
        self.detail(&format!("POST /token: 400 {}, decision {}", thief.body["error"], thief.body["decision_id"]))
    }

    async fn ask_in_a_pull_request(&self) -> anyhow::Result<()> {
        let branch = Token::for_audience(self.url.as_str())
            .claim("ref", "refs/pull/7/merge")
            .claim("event_name", "pull_request");
        let denied = self.exchange(&self.issuer.mint(&branch)?, &session()?).await?;
        ensure!(denied.status == 400, "the pull request was answered {}", denied.status);
        self.detail(&format!("POST /token: 400 {}", denied.body["error"]))?;
        for reason in denied.body["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.detail(reason)?;
        }
        Ok(())
    }

    async fn give_back(&self, given: &Given) -> anyhow::Result<()> {
        let form = [("token", given.handle.as_str())];
        let revoked: Value = self.client.post(format!("{}/revoke", self.url)).form(&form).send().await?.json().await?;
        ensure!(revoked["state"] == "ended", "the lease is {}", revoked["state"]);
        let used = self.use_key(&given.key).await?;
        ensure!(used == 401, "the ledger answered {used} to a key that was given back");
        self.detail("POST /revoke: the lease is ended")?;
        self.detail("GET /entries with the same key: 401")
    }

    async fn exchange(&self, token: &str, session: &SessionSecret) -> anyhow::Result<Answer> {
        let form = [
            ("grant_type", GRANT_TYPE_EXCHANGE),
            ("subject_token_type", TOKEN_TYPE_JWT),
            ("subject_token", token),
            ("audience", "ledger"),
            ("session", session.expose()),
        ];
        let response = self.client.post(format!("{}/token", self.url)).form(&form).send().await?;
        Ok(Answer { status: response.status().as_u16(), body: response.json().await? })
    }

    async fn use_key(&self, key: &str) -> anyhow::Result<u16> {
        let response = self.client.get(format!("{}/entries", self.ledger.url())).bearer_auth(key).send().await?;
        Ok(response.status().as_u16())
    }

    /// What to try by hand.
    fn invite(&self) -> anyhow::Result<()> {
        let (url, request) = (&self.url, self.issuer.request_url());
        let config = self.scratch.path().join("jobpass-exchanger.yaml");
        (self.say)(&format!(
            "The servers stay up. Try it by hand, in another terminal:\n\n\
             # the environment that a GitHub Actions job has\n\
             export GITHUB_ACTIONS=true JOBPASS_URL={url}\n\
             export ACTIONS_ID_TOKEN_REQUEST_URL='{request}'\n\
             export ACTIONS_ID_TOKEN_REQUEST_TOKEN={request_token}\n\n\
             # with curl\n\
             TOKEN=$(curl -s -H \"Authorization: bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN\" \\\n    \
               \"$ACTIONS_ID_TOKEN_REQUEST_URL&audience=$JOBPASS_URL\" | sed 's/.*\"value\":\"\\([^\"]*\\).*/\\1/')\n\
             curl -s {url}/token -d grant_type={GRANT_TYPE_EXCHANGE} \\\n    \
               -d subject_token_type={TOKEN_TYPE_JWT} -d audience=ledger -d subject_token=$TOKEN\n\n\
             # with jobpass: the key is in the child's environment only, and nowhere in its output\n\
             cargo run --release --bin jobpass -- exec --grant ledger -- \\\n    \
               sh -c 'echo \"my key is $JOBPASS_API_KEY\"; curl -s -H \"Authorization: Bearer $JOBPASS_API_KEY\" $JOBPASS_API_URL/entries'\n\n\
             # as the admin\n\
             cargo run --release --bin jobpass-exchanger -- leases list --ended --config {config}\n\
             cargo run --release --bin jobpass-exchanger -- audit verify {audit}\n\n\
             Ctrl-C stops the demo.",
            request_token = self.issuer.request_token().expose(),
            config = config.display(),
            audit = self.scratch.path().join("audit.jsonl").display(),
        ))
    }

    async fn close(self) {
        self.server.stop().await;
    }
}

struct Answer {
    status: u16,
    body: Value,
}

fn write_files(directory: &Path, url: &str, issuer: &Issuer, ledger: &Ledger) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::create_dir(directory.join("grants"))?;
    fs::write(directory.join("grants/ledger.yaml"), GRANT)?;
    let secret = directory.join("ledger-admin-token");
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&secret)?;
    file.write_all(ledger.admin_token().expose().as_bytes())?;
    let listen = url.trim_start_matches("http://");
    fs::write(
        directory.join("jobpass-exchanger.yaml"),
        super::config(listen, issuer.url(), ledger.url(), &format!("file:{}", secret.display())),
    )?;
    Ok(())
}

fn session() -> anyhow::Result<SessionSecret> {
    Ok(SessionSecret::from_random(&super::random()?))
}

fn remote_name(lease: &str) -> String {
    lease.parse().map_or_else(|_| "?".to_owned(), |id: jobpass_protocol::LeaseId| id.remote_name())
}

/// A claim of the demo's own token, for show.
fn claim_of(token: &str, name: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Value = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    claims[name].as_str().unwrap_or("?").to_owned()
}

fn text(body: &Value, pointer: &str) -> Option<String> {
    body.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

fn print(line: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => bail!(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{
        issuer,
        ledger::{self, On},
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_broken_fails_the_step_that_needs_it() {
        type Break = fn(&mut Stage);
        let cases: [(&str, Break, &str); 5] = [
            ("nothing", |_| {}, ""),
            (
                "the issuer's keys",
                |stage| stage.issuer.fail(issuer::Document::Jwks, issuer::Fault::Status(500)),
                "step 2: the exchange was refused: ",
            ),
            (
                "the way to the server",
                |stage| stage.url = "http://127.0.0.1:1".to_owned(),
                "step 2: error sending request for url (http://127.0.0.1:1/token)",
            ),
            (
                "the ledger's key",
                |stage| stage.ledger.misbehave(vec![ledger::Fault { acts: 0, ..fault(On::Create, 403) }]),
                "step 2: the exchange was refused: ",
            ),
            (
                "the ledger's delete",
                |stage| stage.ledger.misbehave(vec![ledger::Fault { acts: 0, times: 9, ..fault(On::Delete, 500) }]),
                "step 6: the lease is \"revoking\"",
            ),
        ];
        for (what, spoil, expected) in cases {
            let mut stage = Stage::build(free_port().expect("a port"), |_| Ok(())).await.expect("it starts");
            spoil(&mut stage);
            let told = stage.perform().await.err().map(|error| crate::cli::explain(&error)).unwrap_or_default();
            let told = told.trim_start_matches("error: ");
            assert!(told.starts_with(expected) && told.is_empty() == expected.is_empty(), "{what}: {told}");
            stage.close().await;
        }
    }

    fn fault(on: On, status: u16) -> ledger::Fault {
        ledger::Fault { answer: ledger::Answer::Status(status), ..ledger::Fault::on(on) }
    }
}
