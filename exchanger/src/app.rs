//! Puts the parts together, starts them, and stops them in order.

use crate::{
    audit::{self, Entry, Event, Sign},
    backends::{Backends, Document, registry},
    clock::{Clock, SystemClock, Timestamp},
    config::{Config, ConfigError},
    exchange::{Orphans, hash},
    http::{self, server::Served},
    leases::{
        reaper::Reaper,
        resealing::{self, ResealError},
    },
    policies::{self, Policies, Report},
    random,
    scratch::Scratch,
    sealing::Sealing,
    signing::Keys,
    store::{Claim, Fold, FreezeTarget, Hash, SqliteStore, Store, StoreError},
    telemetry::Metrics,
    token::{Verifier, VerifierError},
};
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use governor::{Quota, RateLimiter, clock::QuantaClock, state::keyed::DashMapStateStore};
use jobpass_policy::{Claims, Freezes};
use jobpass_protocol::{DecisionId, IssuerName, LeaseHandle, LeaseId};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use std::{
    io,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle};
use uuid::Uuid;

/// How often what can be forgotten is.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// How many files are open besides the two listeners' connections.
const FILES: u64 = 512;

/// How often it is looked at which secrets should have been rotated.
const ROTATION_INTERVAL: Duration = Duration::from_secs(3600);

/// How long a list of what was taken back is handed out before it is made again.
const REVOCATIONS_FRESH: Duration = Duration::from_secs(1);

type Limiter = RateLimiter<[u8; 16], DashMapStateStore<[u8; 16]>, QuantaClock>;

/// Everything that a request needs.
pub struct App {
    /// The server's URL: the audience of subject tokens and the issuer of our own.
    pub public_url: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who is asking.
    pub verifier: Verifier,
    /// What is allowed.
    pub policies: Policies,
    /// What is frozen; the store has it too, but for a freeze that could not be written.
    pub freezes: ArcSwap<Freezes>,
    /// What makes credentials.
    pub backends: Backends,
    /// What must survive.
    pub store: Arc<dyn Store>,
    /// Our signing keys.
    pub keys: Arc<Keys>,
    /// What seals what leases keep.
    pub sealing: Arc<Sealing>,
    /// What takes credentials back.
    pub reaper: Arc<Reaper>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What backends publish of leases that were taken back, by path, for as long as it is fresh.
    pub revocations: moka::future::Cache<String, Document>,
    /// What clients left behind.
    pub orphans: Orphans,
    limiter: Option<Limiter>,
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or directory cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// Which, and what for.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Others can change the state.
    #[error("state_dir: {} {why}", directory.display())]
    OpenToOthers {
        /// The state directory.
        directory: PathBuf,
        /// How, and the cure.
        why: String,
    },
    /// A file that the config names cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing keys cannot be opened.
    #[error(transparent)]
    Keys(#[from] crate::signing::KeysError),
    /// An issuer cannot be trusted as it is configured.
    #[error("issuers: {0}")]
    Issuers(VerifierError),
    /// What the store keeps sealed cannot be opened.
    #[error(transparent)]
    Sealing(#[from] ResealError),
    /// A backend cannot be built from its config.
    #[error("backends.{0}")]
    Backend(String),
    /// Policies are broken, and there never was a good set of them.
    #[error("{0}")]
    Policies(String),
}

impl App {
    /// A fresh decision id; it grows with time.
    pub fn new_decision(&self, now: Timestamp) -> DecisionId {
        DecisionId::from_uuid(uuid_v7(now))
    }

    /// A fresh lease id; it grows with time.
    pub fn new_lease_id(&self, now: Timestamp) -> LeaseId {
        LeaseId::from_uuid(uuid_v7(now))
    }

    /// A fresh handle for a lease.
    pub fn new_handle(&self, lease: LeaseId) -> LeaseHandle {
        LeaseHandle::from_random(lease, &random::secret())
    }

    /// Counts a workload's request against its limit.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn admit(&self, issuer: &IssuerName, claims: &Claims) -> Result<(), Duration> {
        // The limiter has a clock of its own: it protects a machine, not a policy.
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let sub = claims.registered().sub.as_deref().unwrap_or_default();
        let full: Hash = hash(&format!("{issuer}\n{sub}"));
        let mut key = [0; 16];
        key.copy_from_slice(&full[..16]);
        limiter
            .check_key(&key)
            .map_err(|wait| wait.wait_time_from(governor::clock::Clock::now(&QuantaClock::default())))
    }

    /// Writes an audit entry that belongs to no lease; a store that cannot be written is logged, and
    /// does not turn a denial into something else.
    pub async fn record(&self, entry: Entry, fold: Option<Fold>) {
        if let Err(error) = self.store.record(entry, fold).await {
            tracing::error!(%error, "an audit entry could not be written");
        }
    }

    /// Freezes (with a reason) or thaws, in memory: the store has it too, or could not take it.
    pub fn freeze(&self, target: &FreezeTarget, reason: Option<&str>) {
        self.freezes.rcu(|freezes| {
            let (mut next, reason) = (Freezes::clone(freezes), reason.map(str::to_owned));
            match (target, reason) {
                (FreezeTarget::All, reason) => next.all = reason,
                (FreezeTarget::Issuer(name), Some(reason)) => drop(next.issuers.insert(name.clone(), reason)),
                (FreezeTarget::Issuer(name), None) => drop(next.issuers.remove(name)),
                (FreezeTarget::Grant(name), Some(reason)) => drop(next.grants.insert(name.clone(), reason)),
                (FreezeTarget::Grant(name), None) => drop(next.grants.remove(name)),
            }
            next
        });
    }
}

/// Makes the state directory if it is not there, for its owner alone.
///
/// # Errors
/// When it cannot be made, or others than the server's user and root can change what is in it.
pub fn prepare_state_dir(directory: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    let metadata = made.and_then(|()| std::fs::metadata(directory));
    let metadata =
        metadata.map_err(|source| StartError::Io { what: format!("state_dir: {}", directory.display()), source })?;
    let (own, owner, mode) = (geteuid().as_raw(), metadata.uid(), metadata.mode() & 0o7777);
    let why = if owner != own && owner != 0 {
        format!("belongs to the user {owner}: `chown {own}` it, or run the server as that user")
    } else if mode & 0o022 != 0 {
        format!(
            "can be written by others (mode {mode:o}): `chmod go-w` it, or name a directory in it, which is then \
             made for the server alone"
        )
    } else {
        return Ok(());
    };
    Err(StartError::OpenToOthers { directory: directory.to_owned(), why })
}

/// What a check of config and policies found.
pub struct Checked {
    /// Everything that was found, rendered.
    pub diagnostics: Vec<String>,
    /// How many of them are errors.
    pub errors: usize,
    /// Grants that would be loaded.
    pub grants: usize,
    /// How the grants' own tests went.
    pub cases: jobpass_policy::cases::Report,
}

/// Builds what a server would be built from, without starting it or touching its state.
///
/// # Errors
/// When an issuer or a backend cannot be built, or a file that serving needs cannot be used.
pub fn check(config: &Config) -> Result<Checked, StartError> {
    config.check_files()?;
    let (issuers, backends) = policy_world(config)?;
    build_verifier(config, &(Arc::new(SystemClock) as Arc<dyn Clock>))?;
    let compiled = policies::check(&config.policies, &issuers, &backends)
        .map_err(|source| StartError::Io { what: "policies".to_owned(), source })?;
    let overdue = backends.overdue(SystemClock.now()).map(|(name, why)| format!("warning: backend `{name}`: {why}"));
    Ok(Checked {
        errors: compiled
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == jobpass_policy::Severity::Error)
            .count(),
        diagnostics: compiled
            .diagnostics
            .iter()
            .map(|diagnostic| diagnostic.render(false))
            .chain(overdue)
            .chain(policies::passed_over(&config.policies))
            .collect(),
        grants: compiled.set.grants().count(),
        cases: jobpass_policy::cases::run(&compiled.set),
    })
}

/// What policies are compiled against: a config's issuers and backends, without a server.
///
/// # Errors
/// When a backend cannot be built.
pub fn policy_world(config: &Config) -> Result<(Vec<jobpass_policy::Issuer>, Backends), StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let scratch = Scratch::make("check").map_err(|source| StartError::Io { what: "keys to try".to_owned(), source })?;
    let keys = Keys::open(scratch.path(), Arc::clone(&clock), config.signing.clone())?;
    Ok((policy_issuers(config), build_backends(config, &clock, &keys, &config.sealing())?))
}

fn build_backends(
    config: &Config,
    clock: &Arc<dyn Clock>,
    keys: &Arc<Keys>,
    sealing: &Arc<Sealing>,
) -> Result<Backends, StartError> {
    registry::build_all(&config.backends, &config.build_context(clock, keys, sealing))
        .map_err(|error| StartError::Backend(error.to_string()))
}

fn build_verifier(config: &Config, clock: &Arc<dyn Clock>) -> Result<Verifier, StartError> {
    Verifier::new(config.public_url.clone(), config.issuers.clone(), Arc::clone(clock)).map_err(StartError::Issuers)
}

fn policy_issuers(config: &Config) -> Vec<jobpass_policy::Issuer> {
    config.issuers.iter().map(|issuer| issuer.policy.clone()).collect()
}

/// A running server.
pub struct Running {
    /// Where jobs are served.
    pub address: SocketAddr,
    /// Where monitoring is served.
    pub management: Option<SocketAddr>,
    /// The parts, for the demo and for tests.
    pub app: Arc<App>,
    public: Served,
    monitoring: Option<Served>,
    admin: http::admin::Socket,
    stop: watch::Sender<bool>,
    background: Vec<JoinHandle<()>>,
    stop_streams: watch::Sender<bool>,
    streams: Vec<JoinHandle<()>>,
    drain: Duration,
}

/// Starts a server.
///
/// # Errors
/// One variant per reason; see [`StartError`].
pub async fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
    // First, so that a second server changes nothing of the running one's.
    let claim = Claim::new(&config.state_dir.join("jobpass.db"))?;
    config.check_files()?;
    let keys = Keys::open(&config.state_dir.join("keys"), Arc::clone(&clock), config.signing.clone())?;
    let sealing = config.sealing();
    let backends = build_backends(&config, &clock, &keys, &sealing)?;
    backends.preflight().map_err(|error| StartError::Backend(error.to_string()))?;
    let verifier = build_verifier(&config, &clock)?;
    let (policies, report) =
        Policies::load(config.policies.clone(), &config.state_dir, policy_issuers(&config), backends.clone());
    let metrics = Arc::new(Metrics::new(backends.clone()));
    policies.tell(&report, &metrics);
    policies::passed_over(&config.policies).for_each(|note| tracing::warn!("{note}"));
    if !report.stale.is_empty() && policies.current().grants().next().is_none() {
        return Err(StartError::Policies(report.diagnostics.join("\n")));
    }
    let store = SqliteStore::open(claim, config.store.clone(), Arc::clone(&clock))?;
    resealing::check(&sealing, &*store).await?;
    let reaper = Arc::new(Reaper::new(Arc::clone(&store) as Arc<dyn Store>, backends.clone(), Arc::clone(&clock)));
    let app = Arc::new(App {
        public_url: config.public_url.clone(),
        freezes: ArcSwap::from_pointee(store.freezes().await?),
        clock,
        verifier,
        policies,
        backends,
        store,
        keys,
        sealing,
        reaper,
        metrics,
        revocations: moka::future::Cache::builder().time_to_live(REVOCATIONS_FRESH).build(),
        orphans: Orphans::default(),
        limiter: NonZeroU32::new(config.exchanges_per_minute).map(|limit| RateLimiter::keyed(Quota::per_minute(limit))),
    });

    let (stop, stopped) = watch::channel(false);
    let background = vec![
        tokio::spawn(Arc::clone(&app.reaper).run(stopped.clone())),
        tokio::spawn(watch_policies(Arc::clone(&app), config.policy_interval, stopped.clone())),
        tokio::spawn(prune(Arc::clone(&app), stopped.clone())),
        tokio::spawn(watch_rotation(Arc::clone(&app), stopped.clone())),
        tokio::spawn(seal_anew(Arc::clone(&app))),
    ];

    let (stop_streams, streams_stopped) = watch::channel(false);
    let signer: Arc<dyn Sign> = Arc::clone(&app.keys) as Arc<dyn Sign>;
    let streams = audit::stream(&config.audit, &app.store, &signer, &app.clock, &streams_stopped)
        .await
        .map_err(|source| StartError::Io { what: "audit".to_owned(), source })?;

    let (public, monitoring, admin) = match listen(&config, &app).await {
        Ok(listeners) => listeners,
        Err(error) => {
            let _ = stop_streams.send(true);
            join(streams).await;
            return Err(error);
        }
    };

    let mut entry = Entry::new(app.clock.now(), Event::Server);
    entry.reason = Some(format!("started, version {}", env!("CARGO_PKG_VERSION")));
    entry.policy = Some(Arc::clone(app.policies.current().digest()));
    app.record(entry, None).await;
    tracing::info!(address = %public.address, public_url = app.public_url, "jobpass-exchanger is ready");
    Ok(Running {
        address: public.address,
        management: monitoring.as_ref().map(|served| served.address),
        app,
        public,
        monitoring,
        admin,
        stop,
        background,
        stop_streams,
        streams,
        drain: config.drain,
    })
}

async fn listen(config: &Config, app: &Arc<App>) -> Result<(Served, Option<Served>, http::admin::Socket), StartError> {
    let io = |what: String| move |source| StartError::Io { what, source };
    allow_files(config.bounds.connections.get());
    let (routes, counts) = (http::public(Arc::clone(app)), app.metrics.listener("public"));
    let public = Served::start(config.listen, config.certificate.clone(), routes, config.bounds, counts)
        .await
        .map_err(io(format!("listen: {}", config.listen)))?;
    let monitoring = match config.management {
        None => None,
        Some(address) => {
            let (routes, counts) = (http::management(Arc::clone(app)), app.metrics.listener("management"));
            let served = Served::start(address, None, routes, config.bounds, counts).await;
            Some(served.map_err(io(format!("management: {address}")))?)
        }
    };
    let socket = config.state_dir.join(http::admin::SOCKET);
    let admin = http::admin::Socket::start(&socket, Arc::clone(app)).map_err(io(socket.display().to_string()))?;
    Ok((public, monitoring, admin))
}

impl Running {
    /// Reads policies again, as on SIGHUP.
    pub async fn reload(&self) {
        reload_policies(&self.app).await;
    }

    /// Stops: listeners close, exchanges in flight finish, the reaper stops, the store closes.
    pub async fn stop(self) {
        tracing::info!("stopping: requests in flight may finish");
        let stopping = Instant::now();
        self.public.stop(self.drain).await;
        self.admin.stop().await;
        // Its client may be gone, and the backend asked.
        if !self.app.orphans.ended(self.drain.saturating_sub(stopping.elapsed())).await {
            tracing::warn!("exchanges in flight are cut off: they took longer than `limits.drain`");
        }
        let mut entry = Entry::new(self.app.clock.now(), Event::Server);
        entry.reason = Some("stopped".to_owned());
        self.app.record(entry, None).await;
        // Nobody listens any more only when every receiver is gone already.
        let _ = self.stop.send(true);
        join(self.background).await;
        // Last, so that they stream what the others wrote at their end.
        let _ = self.stop_streams.send(true);
        join(self.streams).await;
        self.app.store.close().await;
        if let Some(monitoring) = self.monitoring {
            monitoring.stop(Duration::from_secs(1)).await;
        }
    }
}

/// Lets the process open what so many connections and the rest of it need, as far as it may.
fn allow_files(connections: u32) {
    let wanted = u64::from(connections) * 2 + FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|soft| soft >= wanted) {
        return;
    }
    let allowed = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    // Lower than it was it never gets, and what fails here fails later and says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), ..limit });
    if allowed < wanted {
        tracing::warn!(allowed, wanted, "the process may open too few files for `limits.connections`: raise its limit");
    }
}

async fn join(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::warn!(%error, "a background task was lost");
        }
    }
}

async fn watch_policies(app: Arc<App>, interval: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            () = tokio::time::sleep(interval) => {}
        }
        reload_policies(&app).await;
    }
}

/// Reads policies again, and tells logs, metrics and the audit log if that changed something.
pub(crate) async fn reload_policies(app: &Arc<App>) -> Report {
    let loader = Arc::clone(app);
    // Reading and compiling blocks: not on the threads that serve.
    let report = tokio::task::spawn_blocking(move || loader.policies.reload()).await;
    let report = report.unwrap_or_else(|error| Report::failed(&error.to_string()));
    app.policies.tell(&report, &app.metrics);
    if report.changed {
        let mut entry = Entry::new(app.clock.now(), Event::Policies);
        entry.policy = Some(Arc::clone(app.policies.current().digest()));
        app.record(entry, None).await;
    }
    report
}

/// After a start with another key first; `keys rotate --sealing` does the same while the server runs.
async fn seal_anew(app: Arc<App>) {
    if !app.sealing.configured() {
        return;
    }
    match resealing::reseal(&app.sealing, &*app.store).await {
        Ok((_, 0)) => {}
        Ok((key, count)) => tracing::info!(%key, count, "what leases keep is sealed anew"),
        Err(error) => tracing::error!(%error, "what leases keep is not sealed anew: keep the old key, and look why"),
    }
}

/// Says again and again which secrets and certificates should have been rotated.
async fn watch_rotation(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    loop {
        let look = async {
            join_all(app.backends.iter().map(|(_, backend)| backend.describe().look())).await;
            for (backend, why) in app.backends.overdue(app.clock.now()) {
                tracing::error!(%backend, "{why}");
            }
            tokio::time::sleep(ROTATION_INTERVAL).await;
        };
        tokio::select! {
            _ = stop.changed() => return,
            () = look => {}
        }
    }
}

async fn prune(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            () = tokio::time::sleep(PRUNE_INTERVAL) => {}
        }
        if let Some(limiter) = &app.limiter {
            limiter.retain_recent();
        }
        while !*stop.borrow() {
            match app.store.prune(app.clock.now()).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "what can be forgotten could not be");
                    break;
                }
            }
        }
    }
}

fn uuid_v7(now: Timestamp) -> Uuid {
    let millis = u64::try_from(now.millis()).unwrap_or(0);
    let random = random::distinct::<10>();
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}
