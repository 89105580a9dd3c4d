use super::*;
use crate::{
    backends::{Describe, MintError, Minted, Order, Plan, RemoteError, Spec, limits},
    config::Span,
    leases::Outlives,
    store::{
        Claim, Entitlement, Hash, Opened, PendingLease, Refusal, Revocation, SqliteOptions, SqliteStore, Targets,
        conformance::{Place, TTL, World},
    },
};
use futures_util::future::BoxFuture;
use jobpass_policy::{CredentialSource, Diagnostic, GrantContext, Permit};
use std::{collections::VecDeque, time};

/// Whose leases they are.
const SESSION: Hash = [7; 32];

/// What a revocation meets, call by call; the last one stays.
#[derive(Clone, Copy, Debug)]
enum Meets {
    Gone,
    NotFound,
    Failure,
    Silence,
}

/// A system that does as it is told. Only its revocations are asked for here.
struct Remote {
    identity: &'static str,
    meets: Mutex<VecDeque<Meets>>,
    asked: Mutex<Vec<LeaseId>>,
}

impl Remote {
    fn new(meets: impl IntoIterator<Item = Meets>) -> Arc<Self> {
        let meets = Mutex::new(meets.into_iter().collect());
        Arc::new(Self { identity: "http://127.0.0.1:1", meets, asked: Mutex::default() })
    }
}

impl Describe for Remote {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    fn identity(&self) -> &str {
        self.identity
    }

    fn compile_spec(&self, _: &CredentialSource<'_>, _: &GrantContext<'_>) -> Result<Spec, Vec<Diagnostic>> {
        Err(Vec::new())
    }
}

impl RemoteBackend for Remote {
    fn revocability(&self) -> Revocability {
        Revocability::ByName
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn settle(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn plan(&self, _: &Permit, _: &Order) -> Result<Plan, MintError> {
        Err(MintError::Unavailable(String::new()))
    }

    fn mint<'a>(&'a self, _: &'a PendingLease, _: &'a Order, _: &'a Spec) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async { Err(MintError::Unavailable(String::new())) })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        lock(&self.asked).push(lease.id);
        let mut meets = lock(&self.meets);
        let next = if meets.len() > 1 { meets.pop_front() } else { meets.front().copied() };
        Box::pin(async move {
            match next {
                Some(Meets::Gone) | None => Ok(Revoked::Gone),
                Some(Meets::NotFound) => Ok(Revoked::NotFound),
                Some(Meets::Failure) => Err(RemoteError("down".to_owned())),
                Some(Meets::Silence) => std::future::pending().await,
            }
        })
    }
}

struct Directory(tempfile::TempDir);

impl Place for Directory {
    fn open(&self, clock: Arc<dyn Clock>) -> Arc<dyn Store> {
        let options = SqliteOptions { reserve_bytes: 0, ..SqliteOptions::default() };
        let claim = Claim::new(&self.0.path().join("jobpass.db")).expect("nobody else has it");
        SqliteStore::open(claim, options, clock).expect("opens")
    }
}

fn world() -> World {
    World::new(Box::new(Directory(tempfile::tempdir().expect("a directory"))))
}

fn reaper(world: &World, remotes: &[(&str, &Arc<Remote>)]) -> Arc<Reaper> {
    let named = |(name, remote): &(&str, &Arc<Remote>)| {
        let limits = limits::File { revoke_deadline: Some(Span(Duration::from_millis(50))), ..limits::File::default() };
        (name_of(name), Backend::Remote(Arc::clone(*remote) as Arc<_>), limits)
    };
    let backends: Vec<_> = remotes.iter().map(named).collect();
    Arc::new(Reaper::new(world.store.clone(), Backends::new(backends), Arc::new(world.clock.clone())))
}

fn name_of(backend: &str) -> BackendName {
    BackendName::parse(backend).expect("a name")
}

/// Opens a lease at `backend`.
async fn open(world: &World, backend: &str, state: State, revocability: Revocability) -> Lease {
    let by = Entitlement::Token(world.binding(world.token(), Some(SESSION), None));
    let mut opening = world.opening(by, state, revocability);
    opening.lease.placement.backend = name_of(backend);
    let lease = opening.lease.clone();
    assert!(matches!(world.store.open_active(opening).await, Ok(Opened::Yes { .. })));
    lease
}

fn decision(world: &World, because: Ending) -> Revocation {
    let targets = Targets::Leases(Vec::new());
    Revocation { targets, because, close_sessions: true, at: world.now(), actor: None }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = time::Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::task::yield_now().await;
    }
}

async fn ended(world: &World, lease: &Lease) -> bool {
    matches!(world.state(lease.id()).await, State::Ended { .. })
}

/// Looks at one lease whenever it is due, until nothing more is to be done; says how often the system was
/// asked, how the lease ended, and how long after its opening.
async fn live(state: fn(&World) -> State, revocability: Revocability, meets: &[Meets]) -> (usize, State, Duration) {
    let world = world();
    let remote = Remote::new(meets.iter().copied());
    let reaper = reaper(&world, &[("ledger", &remote)]);
    let lease = open(&world, "ledger", state(&world), revocability).await;
    for _ in 0..100 {
        let now = world.state(lease.id()).await;
        let Some(due) = now.due_at() else { break };
        world.clock.advance(due.since(world.now()));
        let lease = world.store.lease(lease.id()).await.expect("reads").expect("is there");
        if ends_by_itself(&lease) {
            world.store.expire(name_of("ledger"), world.now()).await.expect("writes");
        } else {
            reaper.take_back(vec![lease]).await;
        }
    }
    let asked = lock(&remote.asked).len();
    let state = world.state(lease.id()).await;
    (asked, state, world.now().since(lease.opened_at()))
}

#[tokio::test]
async fn a_lease_ends_when_its_credential_is_certainly_gone() {
    use Meets::{Failure, Gone, NotFound, Silence};
    let active: fn(&World) -> State = World::active;
    let pending: fn(&World) -> State = World::pending;
    let outliving: fn(&World) -> State = |world| State::Outliving {
        until: world.now() + TTL,
        why: Outlives::Irrevocable,
        because: Ending::RevokedByAdmin,
    };
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    // What it starts as, how it can be revoked, what revocations meet; how often, why, and when it ended.
    for (state, revocability, meets, asked, how, between) in [
        (active, Revocability::ByName, &[Gone][..], 1, Ending::Expired, (TTL, TTL)),
        (active, Revocability::ByName, &[NotFound], 1, Ending::Expired, (TTL, TTL)),
        (active, Revocability::ByToken, &[Gone], 1, Ending::Expired, (TTL, TTL)),
        (active, Revocability::None, &[Failure], 0, Ending::Expired, (TTL, TTL)),
        (active, Revocability::ByName, &[Failure, Silence, Gone], 3, Ending::Expired, (TTL, TTL + minutes(1))),
        (outliving, Revocability::None, &[Failure], 0, Ending::RevokedByAdmin, (TTL, TTL)),
        // Nobody knows whether it was made: gone when it was found; else looked for until nothing can come.
        (pending, Revocability::ByName, &[Gone], 1, Ending::Abandoned, (Duration::ZERO, minutes(1))),
        (
            pending,
            Revocability::ByName,
            &[NotFound, NotFound, Gone],
            3,
            Ending::Abandoned,
            (Duration::ZERO, minutes(1)),
        ),
        (pending, Revocability::ByName, &[NotFound], 12, Ending::Abandoned, (TTL, TTL)),
        (pending, Revocability::ByToken, &[Failure], 0, Ending::Abandoned, (TTL, TTL)),
    ] {
        let (times, end, after) = live(state, revocability, meets).await;
        let State::Ended { how: why, .. } = end else { panic!("{meets:?}: {end:?}") };
        assert_eq!(why, how, "{meets:?}");
        assert!((between.0..=between.1).contains(&after), "{meets:?}: ended after {after:?}");
        assert!(times.abs_diff(asked) <= usize::from(asked > 9), "{meets:?}: asked {times} times");
    }
}

#[tokio::test]
async fn the_wait_grows_to_five_minutes() {
    let world = world();
    let remote = Remote::new([Meets::Failure]);
    let reaper = reaper(&world, &[("ledger", &remote)]);
    let lease = open(&world, "ledger", world.active(), Revocability::ByName).await;
    world.clock.advance(TTL);
    let mut waits = Vec::new();
    for _ in 0..14 {
        let lease = world.store.lease(lease.id()).await.expect("reads").expect("is there");
        let [State::Revoking { next_at, .. }] = reaper.take_back(vec![lease]).await[..] else { panic!("revoking") };
        waits.push(next_at.since(world.now()));
        world.clock.advance(next_at.since(world.now()));
    }
    assert!(waits[0] <= Duration::from_millis(1200) && waits[13] >= Duration::from_secs(240), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(360)), "{waits:?}");
}

#[tokio::test]
async fn a_backend_that_hangs_delays_no_other() {
    let world = world();
    let (silent, ready) = (Remote::new([Meets::Silence]), Remote::new([Meets::Gone]));
    let reaper = reaper(&world, &[("silent", &silent), ("ready", &ready)]);
    for _ in 0..ROUND + 10 {
        open(&world, "silent", world.active(), Revocability::ByName).await;
    }
    let lease = open(&world, "ready", world.active(), Revocability::ByName).await;
    let own = open(&world, "own", world.active(), Revocability::None).await;
    world.clock.advance(TTL);
    let stop = watch::Sender::new(false);
    let running = tokio::spawn(Arc::clone(&reaper).run(stop.subscribe()));
    until("the other's lease ends", async || ended(&world, &lease).await).await;
    until("what ends by itself ends", async || ended(&world, &own).await).await;
    world.clock.set(world.now() - Duration::from_secs(24 * 3600));
    let lease = open(&world, "ready", world.active(), Revocability::ByName).await;
    world.clock.advance(TTL);
    let looked = async || {
        reaper.nudge();
        ended(&world, &lease).await
    };
    until("it is looked at after the clock was set back too", looked).await;
    assert!(lock(&silent.asked).len() < ROUND, "the silent one is far from through");
    stop.send_replace(true);
    running.await.expect("it stops");
}

#[tokio::test]
async fn without_its_backend_a_lease_never_ends() {
    let world = world();
    let moved = Arc::new(Remote { identity: "elsewhere", meets: Mutex::default(), asked: Mutex::default() });
    let lost = open(&world, "lost", world.active(), Revocability::ByName).await;
    let gone = open(&world, "moved", world.active(), Revocability::ByName).await;
    world.clock.advance(TTL);
    let stop = watch::Sender::new(false);
    let watched = reaper(&world, &[("moved", &moved)]);
    let running = tokio::spawn(Arc::clone(&watched).run(stop.subscribe()));
    let counted = || watched.counters().unreachable.load(Ordering::Relaxed);
    until("both are tried", async || counted() >= 2).await;
    for lease in [&lost, &gone] {
        let tried = async || matches!(world.state(lease.id()).await, State::Revoking { attempts: 1, .. });
        until("it is on its way out, and no further", tried).await;
    }
    assert!(lock(&moved.asked).is_empty(), "another system is asked for nothing");
    stop.send_replace(true);
    running.await.expect("it stops");

    // The backend is back in the config, as it was.
    let back = Remote::new([Meets::Gone]);
    let healed = reaper(&world, &[("lost", &back), ("moved", &back)]);
    world.clock.advance(LONGEST_WAIT);
    let stop = watch::Sender::new(false);
    let running = tokio::spawn(Arc::clone(&healed).run(stop.subscribe()));
    for lease in [&lost, &gone] {
        until("it ends now", async || ended(&world, lease).await).await;
    }
    stop.send_replace(true);
    running.await.expect("it stops");
}

/// A store that is open already.
struct Given(Arc<SqliteStore>);

impl Place for Given {
    fn open(&self, _: Arc<dyn Clock>) -> Arc<dyn Store> {
        self.0.clone()
    }
}

#[tokio::test]
async fn a_full_disk_hides_no_lease_and_no_backend() {
    let (directory, mut world) = (tempfile::tempdir().expect("a directory"), world());
    let claim = Claim::new(&directory.path().join("jobpass.db")).expect("nobody else has it");
    let options = SqliteOptions { reserve_bytes: 0, ..SqliteOptions::default() };
    let store = SqliteStore::open(claim, options, Arc::new(world.clock.clone())).expect("opens");
    (world.store, world.place) = (store.clone(), Box::new(Given(store.clone())));
    let (silent, ready) = (Remote::new([Meets::Silence]), Remote::new([Meets::Gone]));
    let reaper = reaper(&world, &[("silent", &silent), ("ready", &ready)]);
    let (mut hanging, mut leases) = (Vec::new(), Vec::new());
    for _ in 0..ROUND {
        hanging.push(open(&world, "silent", world.active(), Revocability::ByName).await);
    }
    // More than are read at once.
    for _ in 0..ROUND + 100 {
        leases.push(open(&world, "ready", world.active(), Revocability::ByName).await);
    }
    let revoked = leases[ROUND].id();
    let asked = |lease: &Lease| lock(&ready.asked).contains(&lease.id());

    store.meddle("PRAGMA max_page_count = 1").await;
    hanging.push(leases[ROUND].clone());
    let decision = decision(&world, Ending::RevokedByAdmin);
    assert_eq!(reaper.decide(hanging, &decision).len(), ROUND + 1);
    let stop = watch::Sender::new(false);
    let running = tokio::spawn(Arc::clone(&reaper).run(stop.subscribe()));
    until("what is decided is done at the other backend", async || asked(&leases[ROUND])).await;
    assert!(lock(&silent.asked).len() < ROUND, "the silent one is far from through");
    world.clock.advance(TTL);
    let all = async || {
        world.clock.advance(STORE_WAIT);
        leases.iter().all(asked)
    };
    until("what expires is taken back, however much it is", all).await;

    store.meddle("PRAGMA max_page_count = 1000000").await;
    let over = async || {
        world.clock.advance(STORE_WAIT);
        ended(&world, &leases[0]).await && ended(&world, &leases[ROUND + 99]).await
    };
    until("and recorded", over).await;
    let by_admin = async || matches!(world.state(revoked).await, State::Ended { how: Ending::RevokedByAdmin, .. });
    until("with its reason", by_admin).await;
    stop.send_replace(true);
    running.await.expect("it stops");
}

#[tokio::test]
async fn revocation_goes_on_while_the_store_cannot_be_written() {
    let place = Directory(tempfile::tempdir().expect("a directory"));
    let other = rusqlite::Connection::open(place.0.path().join("jobpass.db")).expect("opens");
    let world = World::new(Box::new(place));
    let remote = Remote::new([Meets::Gone, Meets::Failure, Meets::Gone]);
    let reaper = reaper(&world, &[("ledger", &remote)]);
    let expired = open(&world, "ledger", world.active(), Revocability::ByName).await;
    world.clock.advance(TTL);
    let given_back = open(&world, "ledger", world.active(), Revocability::ByName).await;
    let asked = || lock(&remote.asked).len();

    // Somebody else holds the write lock: every verb that writes fails, and reading goes on.
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let stop = watch::Sender::new(false);
    let running = tokio::spawn(Arc::clone(&reaper).run(stop.subscribe()));
    until("the system is asked all the same", async || asked() == 1).await;
    // A decision that the store could not take, and a system that is down.
    let decided = reaper.decide(vec![given_back.clone()], &decision(&world, Ending::Revoked));
    assert!(matches!(reaper.take_back(decided).await[..], [State::Revoking { attempts: 1, .. }]));
    assert_eq!(asked(), 2, "the system is asked at once");
    for lease in [&expired, &given_back] {
        assert_eq!(world.state(lease.id()).await, *lease.state(), "the store knows of nothing");
    }
    other.execute_batch("ROLLBACK").expect("unlocks");

    until("what was done is recorded", async || ended(&world, &expired).await).await;
    let recorded = async || !matches!(world.state(given_back.id()).await, State::Active { .. });
    until("what was decided is recorded", recorded).await;
    world.clock.advance(Duration::from_secs(2));
    until("it is tried again, and done", async || ended(&world, &given_back).await).await;
    for (lease, because) in [(&expired, Ending::Expired), (&given_back, Ending::Revoked)] {
        assert!(matches!(world.state(lease.id()).await, State::Ended { how, .. } if how == because));
    }
    assert_eq!(asked(), 3);
    let binding = world.binding(given_back.token(), Some(SESSION), None);
    let opening = world.opening(Entitlement::Token(binding), world.active(), Revocability::None);
    let again = world.store.open_active(opening).await.expect("writes");
    assert!(
        matches!(again, Opened::Refused(Refusal::SessionClosed)),
        "what else was decided is made up for: {again:?}"
    );
    stop.send_replace(true);
    running.await.expect("it stops");
}
