//! A whole jobpass on loopback, with a clock that the test turns: the real server, an issuer that
//! behaves like a CI's, and the ledger. Closing it asserts what must hold after every test.

use crate::secrets::Secrets;
use anyhow::Context as _;
use jobpass_exchanger::{
    app::{self, App, Running},
    clock::{Clock, ManualClock, Timestamp},
    config::{Config, Env},
    demo::{
        Ci,
        issuer::{Issuer, Token},
        ledger::Ledger,
    },
    http::admin::{LeaseView, Selection},
};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tempfile::TempDir;

/// When tests take place: 2026-11-22T12:00:00Z.
pub const NOON: i64 = 1_795_348_800;

/// What a world is started with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The CI whose tokens are taken.
    pub ci: Ci,
    /// Grant files by name.
    pub grants: Vec<(String, String)>,
    /// More lines of the config file, at its top level.
    pub config: String,
    /// More blocks under `backends:`, indented by two.
    pub backends: String,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            ci: Ci::GitHub,
            grants: vec![
                (
                    "ledger.yaml".to_owned(),
                    grant("ledger", "ledger", "parameters: { note: \"run {{ claims.run_id }}\" }"),
                ),
                (
                    "id.yaml".to_owned(),
                    grant(
                        "id",
                        "oidc",
                        "audience: https://cloud.example\n  sub: \"repository_id:{{ claims.repository_id }}\"",
                    ),
                ),
            ],
            config: String::new(),
            backends: String::new(),
        }
    }
}

/// A grant for pushes to the main branch of the demo's repository.
#[must_use]
pub fn grant(name: &str, backend: &str, credential: &str) -> String {
    format!(
        "grant: {name}\nowner: team@acme.example\nreview_by: 2099-12-31\ndescription: A test's grant.\nbackend: {backend}\n\
         credential:\n  {credential}\nttl: 15m\nmax_lifetime: 1h\nrules:\n  - name: main\n    issuer: ci\n    match:\n      \
         repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      ref: refs/heads/main\n      ref_type: branch\n      \
         event_name: [push]\n"
    )
}

/// See the module.
pub struct World {
    /// The CI.
    pub issuer: Issuer,
    /// The upstream.
    pub ledger: Ledger,
    /// The time.
    pub clock: ManualClock,
    /// Where the server is.
    pub url: String,
    /// For requests of the test's own.
    pub client: reqwest::Client,
    server: Option<Running>,
    directory: TempDir,
    secrets: Secrets,
    closed: bool,
}

/// The clock of a world, for an upstream that has to be there before the world is.
#[derive(Clone, Default)]
pub struct WorldClock(Arc<OnceLock<ManualClock>>);

impl WorldClock {
    /// Seconds since the epoch, from when the world is there.
    pub fn seconds(&self) -> impl Fn() -> i64 + Send + Sync + 'static {
        let clock = Arc::clone(&self.0);
        move || clock.get().expect("the world is there").now().secs()
    }

    /// Takes the world's clock.
    pub fn is(&self, world: &World) {
        assert!(self.0.set(world.clock.clone()).is_ok(), "there is one world");
    }
}

/// What the server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Retry-After`, if there was one.
    pub retry_after: Option<String>,
    /// The body as text.
    pub text: String,
    /// The body as JSON; `null` when it is none.
    pub body: Value,
}

impl Answer {
    /// Fails the test unless this is a credential.
    #[track_caller]
    pub fn granted(self) -> Self {
        assert_eq!(self.status, 200, "refused: {}", self.text);
        self
    }

    /// Fails the test unless this is a refusal of this kind.
    #[track_caller]
    pub fn refused(self, status: u16, error: &str) -> Self {
        assert_eq!((self.status, self.body["error"].as_str()), (status, Some(error)), "{}", self.text);
        self
    }

    /// A text in the body.
    #[track_caller]
    #[must_use]
    pub fn text_at(&self, pointer: &str) -> String {
        self.body
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no {pointer} in {}", self.text))
            .to_owned()
    }

    /// The lease handle.
    #[track_caller]
    #[must_use]
    pub fn handle(&self) -> String {
        self.text_at("/refresh_token")
    }
}

impl World {
    /// The usual world: a GitHub-like issuer, the grants `ledger` (remote) and `id` (local).
    pub async fn start() -> Self {
        Self::of(Setting::default()).await
    }

    /// A world of the test's making.
    pub async fn of(setting: Setting) -> Self {
        listen_to_logs();
        let clock = ManualClock::at(Timestamp::from_secs(NOON));
        let now = |clock: &ManualClock| {
            let clock = clock.clone();
            move || clock.now().secs()
        };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let issuer = Issuer::start(any, setting.ci, now(&clock)).await.expect("an issuer");
        let ledger = Ledger::start(any, now(&clock)).await.expect("a ledger");
        let directory = tempfile::tempdir().expect("a directory");
        let port = super::ports::free();
        let url = format!("http://127.0.0.1:{port}");
        write(directory.path(), &setting, &url, &issuer, &ledger).expect("files");
        let client = super::http::client();
        let secrets = Secrets::default();
        secrets.keep(ledger.admin_token().expose());
        let mut world = Self { issuer, ledger, clock, url, client, server: None, directory, secrets, closed: false };
        world.start_server().await.expect("the server starts");
        world
    }

    /// Starts the server (again).
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn start_server(&mut self) -> anyhow::Result<()> {
        let config = Config::load(&self.config_path(), &Env::default())?;
        app::prepare_state_dir(&config.state_dir)?;
        self.server = Some(app::start(config, Arc::new(self.clock.clone())).await?);
        Ok(())
    }

    /// Stops the server in order.
    pub async fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// The config file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("jobpass-exchanger.yaml")
    }

    /// The directory of grants.
    #[must_use]
    pub fn grants(&self) -> PathBuf {
        self.directory.path().join("grants")
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The running server's parts.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.server.as_ref().expect("the server runs").app
    }

    /// A fresh token of a push to main.
    #[must_use]
    pub fn token(&self) -> String {
        self.token_with(|token| token)
    }

    /// A fresh token that differs.
    #[must_use]
    pub fn token_with(&self, change: impl FnOnce(Token) -> Token) -> String {
        let token = self.issuer.mint(&change(Token::for_audience(self.url.as_str()))).expect("a token");
        self.keep_secret(&token);
        token
    }

    /// From now on no log may hold this text, nor a token's payload or signature.
    pub fn keep_secret(&self, text: &str) {
        self.secrets.keep(text);
    }

    /// Asks for a grant.
    pub async fn exchange(&self, token: &str, grant: &str, more: &[(&str, &str)]) -> Answer {
        let mut form = vec![
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("subject_token", token),
            ("audience", grant),
        ];
        form.extend_from_slice(more);
        self.post("/token", &form).await
    }

    /// Asks for a grant with a fresh token and a fresh session.
    pub async fn issue(&self, grant: &str) -> Answer {
        self.exchange(&self.token(), grant, &[("session", &session())]).await.granted()
    }

    /// Renews by handle.
    pub async fn renew(&self, handle: &str, more: &[(&str, &str)]) -> Answer {
        let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", handle)];
        form.extend_from_slice(more);
        self.post("/token", &form).await
    }

    /// Revokes by handle or token.
    pub async fn revoke(&self, token: &str) -> Answer {
        self.post("/revoke", &[("token", token)]).await
    }

    /// Posts a form.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        self.try_post(path, form).await.expect("the server answers")
    }

    /// Posts a form; the server may be gone.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn try_post(&self, path: &str, form: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let response = self.client.post(format!("{}{path}", self.url)).form(form).send().await?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let text = response.text().await?;
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        for pointer in
            ["/access_token", "/refresh_token", "/credential/key", "/credential/token", "/credential/password"]
        {
            if let Some(secret) = body.pointer(pointer).and_then(Value::as_str) {
                self.keep_secret(secret);
            }
        }
        Ok(Answer { status, retry_after, text, body })
    }

    /// Whether a ledger key works.
    pub async fn key_works(&self, key: &str) -> bool {
        let request = self.client.get(format!("{}/entries", self.ledger.url())).bearer_auth(key);
        request.send().await.expect("the ledger answers").status().is_success()
    }

    /// The time, in seconds since the epoch.
    #[must_use]
    pub fn clock_seconds(&self) -> i64 {
        self.clock.now().secs()
    }

    /// Turns the clock.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// All leases, as an admin sees them.
    pub async fn leases(&self) -> Vec<LeaseView> {
        let admin = jobpass_exchanger::admin::Admin::of(&self.state()).expect("a client");
        let selection = Selection { all: true, ended: true, ..Selection::default() };
        admin.leases(&selection).await.expect("leases").leases
    }

    /// One lease's state, as JSON.
    pub async fn state_of(&self, lease: &str) -> Value {
        let lease = self.leases().await.into_iter().find(|view| view.id.to_string() == lease);
        serde_json::to_value(lease.expect("the lease is listed").state).expect("JSON")
    }

    /// Waits (by the machine's clock, at most a minute) until something holds.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !holds().await {
            assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the ledger holds exactly so many keys.
    pub async fn until_keys(&self, count: usize) {
        self.until(&format!("the ledger holds {count} keys"), || async { self.ledger.keys().len() == count }).await;
    }

    /// The audit log as it was streamed.
    #[must_use]
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Ends the test: no lease may be left `Pending`, the audit log must verify, and no log may hold a secret.
    pub async fn close(mut self) {
        if self.server.is_some() {
            let pending: Vec<_> =
                self.leases().await.into_iter().filter(|lease| lease.state.name() == "pending").collect();
            assert!(pending.is_empty(), "leases are left pending: {pending:?}");
            self.stop_server().await;
        }
        let audit = self.directory.path().join("audit.jsonl");
        if audit.exists() {
            jobpass_exchanger::audit::verify::command(&audit, None, None).expect("the audit log verifies");
        }
        let logs = String::from_utf8_lossy(&logs().lock().expect("not poisoned")).into_owned();
        let audit = fs::read_to_string(audit).unwrap_or_default();
        self.secrets.assert_unsaid(&logs, "a log");
        self.secrets.assert_unsaid(&audit, "the audit log");
        self.closed = true;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        assert!(self.closed || std::thread::panicking(), "end the test with `world.close().await`");
    }
}

/// A fresh session secret.
#[must_use]
pub fn session() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn write(directory: &Path, setting: &Setting, url: &str, issuer: &Issuer, ledger: &Ledger) -> anyhow::Result<()> {
    let grants = directory.join("grants");
    fs::create_dir(&grants)?;
    for (name, text) in &setting.grants {
        fs::write(grants.join(name), text)?;
    }
    fs::write(directory.join("ledger-admin-token"), ledger.admin_token().expose())?;
    let profile = match setting.ci {
        Ci::GitHub => "github",
        Ci::GitLab => "gitlab",
    };
    let config = json!({
        "public_url": url,
        "listen": url.trim_start_matches("http://"),
        "state_dir": "state",
        "issuers": { "ci": { "profile": profile, "url": issuer.url(), "insecure_http": true, "tenants": ["1001"] } },
        "policies": ["grants"],
        "audit": { "file": "audit.jsonl", "head_file": "heads.jsonl" },
    });
    let mut text = String::new();
    for (key, value) in config.as_object().context("an object")? {
        text.push_str(&format!("{key}: {value}\n"));
    }
    text.push_str(&format!(
        "backends:\n  oidc:\n    signed_jwt: {{ audiences: [\"https://cloud.example\"] }}\n{}{}",
        jobpass_exchanger::demo::ledger_backend(ledger.url(), "file:ledger-admin-token"),
        setting.backends
    ));
    text.push_str(&setting.config);
    fs::write(directory.join("jobpass-exchanger.yaml"), text)?;
    Ok(())
}

fn logs() -> &'static Mutex<Vec<u8>> {
    static LOGS: OnceLock<Mutex<Vec<u8>>> = OnceLock::new();
    LOGS.get_or_init(Mutex::default)
}

/// Everything that is logged at any level, by any crate, is kept and searched for secrets.
fn listen_to_logs() {
    struct Keep;
    impl io::Write for Keep {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            logs().lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // A second world finds the subscriber set; that is fine.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(|| Keep)
        .try_init();
}
