//! Every backend through the front door, against the real system and its own client: get a credential,
//! use it, be refused what the grant does not allow, give it back, be refused, and let one expire.
//! What can be taken back by name also survives `kill -9` at any moment.
//!
//! To add a backend: a file in `backends/` that implements [`System`], and a row in the table.

mod gitlab;
mod injection;
mod kubernetes;
mod mysql;
mod oci_registry;
mod postgres;
mod rabbitmq;
mod redis;
mod ssh;
mod x509;

use crate::world::{as_job, grant, issuer, token};
use futures_util::future::join_all;
use jobpass_exchanger::demo::{
    Ci,
    issuer::{Issuer, Token},
};
use jobpass_tests::{
    http::{client, now},
    program::{self, Program},
    server::{Answer, Server, Setup},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// One test for each system, and one more where credentials are taken back by name.
macro_rules! table {
    ($($name:ident: $system:ty, $ends:ident;)*) => { $(mod $name {
        use super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn is_used_and_gone() {
            super::check::<$system>(super::Ends::$ends).await;
        }
        crashes!($ends, $system);
    })* };
}
macro_rules! crashes {
    (ByName, $system:ty) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn leaves_nothing_when_killed() {
            super::crash::<$system>().await;
        }
    };
    (ByItself, $system:ty) => {};
}

table! {
    postgres_role: postgres::Role, ByName;
    mysql_user: mysql::Shop, ByName;
    redis_user: redis::Cache, ByName;
    rabbitmq_user: rabbitmq::Broker, ByName;
    ssh_ed25519: ssh::Host<ssh::Ed25519>, ByItself;
    ssh_ecdsa: ssh::Host<ssh::Ecdsa>, ByItself;
    ssh_rsa: ssh::Host<ssh::Rsa>, ByItself;
    x509_certificate: x509::Mesh, ByItself;
    registry_token: oci_registry::Images, ByItself;
}

/// The same for those that are only imitated here.
mod imitated {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kubernetes_leaves_nothing_when_killed() {
        crash::<kubernetes::Cluster>().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn gitlab_leaves_nothing_when_killed() {
        crash::<gitlab::Project>().await;
    }
}

/// How a credential ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// It is taken back.
    ByName,
    /// It cannot be taken back; at most a list says that it was.
    ByItself,
}

/// A real system with a backend before it.
trait System: Sized {
    /// The shortest life of a credential here, in seconds.
    const SHORTEST: i64 = 3;

    /// What its client says of a credential that was taken back, and of one that expired.
    const GONE: [&str; 2];

    /// The life of the credentials in whose making the server is killed: no longer than a test can wait, if it can.
    const TTL: &str = "10s";

    async fn start() -> Self;

    /// The backend in jobpass's config.
    fn backend(&self, setup: &Setup) -> Value;

    /// The grant's `credential:`.
    fn credential(&self) -> Value;

    /// Further fields of the form.
    fn form(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Uses a credential for what it is for.
    async fn used(&self, credential: &Value) -> Result<(), String>;

    /// Tries what the grant does not allow; everything that is tried for is there, and says how each try went.
    async fn overstepped(&self, credential: &Value) -> Vec<Try>;

    /// Stays connected with a credential, until it is thrown out.
    async fn hold(&self, _credential: &Value) -> Option<Program> {
        None
    }

    /// What steps of a job do with what `jobpass exec` hands over: its arguments, and a script that succeeds.
    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        Vec::new()
    }

    /// What the system holds of ours: everything whose name begins with `jobpass_`.
    async fn left(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the object of a lease with this remote name is called among those.
    fn named(remote_name: &str) -> String {
        remote_name.to_owned()
    }

    /// Fetches the list of what was taken back, as the system's own timer would; says whether there is one.
    async fn fetch_list(&self, _server: &Server) -> bool {
        false
    }
}

/// What was tried, how a refusal of it is told by who refuses, and how it went.
type Try = (&'static str, &'static str, Result<(), String>);

/// A server with one system behind it.
struct World<S> {
    system: S,
    server: Server,
    github: Issuer,
}

impl<S: System> World<S> {
    async fn start(ttl: &str) -> Self {
        let github = issuer(Ci::GitHub).await;
        let system = S::start().await;
        let setup = Setup::new().issuer("github", github.url(), &["1001"]).unlimited();
        let mut backend = system.backend(&setup);
        // A place for each of those who ask at once.
        backend["limits"] = json!({ "concurrency": MINTS, "wait": "30s" });
        let grant = grant("it", "system", &system.credential(), ttl);
        let server = setup.backend("system", backend).grant_text("it", &grant).start().await;
        Self { system, server, github }
    }

    async fn ask(&self, more: &[(&str, &str)]) -> Answer {
        let form = self.system.form();
        let mut form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        form.extend(more);
        let answer = self.server.exchange("it", &token(&self.github, &self.server), &form).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer
    }

    async fn step(&self, arguments: &[&str], script: &str) {
        let home = tempfile::tempdir().expect("the temporary directory is there");
        let mut jobpass = Command::new(program::built("jobpass"));
        as_job(&mut jobpass, &self.github, &self.server, home.path());
        jobpass.args(["exec", "--grant", "it"]).args(arguments).args(["--", "sh", "-euc", script]).current_dir(&home);
        Program::run(jobpass).await.expect_success();
    }

    async fn revoke(&self, answer: &Answer) -> Value {
        let handle = answer.body["refresh_token"].as_str().expect("a handle");
        self.server.post("/revoke", &[("token", handle)]).await.body
    }

    async fn until(&self, what: &str, within: Duration, holds: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + within;
        while !holds().await {
            assert!(Instant::now() < deadline, "never came true: {what}; leases: {:?}", self.server.lease_states());
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Whether it was refused, and for that reason.
fn is_refused(went: &Result<(), String>, says: &str) -> bool {
    went.as_ref().is_err_and(|told| told.contains(says))
}

const SOON: Duration = Duration::from_secs(20);

async fn check<S: System>(ends: Ends) {
    let world = World::<S>::start("15m").await;
    let (system, server) = (&world.system, &world.server);

    // Used for what it is for, and for nothing else.
    let answer = world.ask(&[]).await;
    let credential = &answer.body["credential"];
    system.used(credential).await.expect("the grant allows it");
    let tries = system.overstepped(credential).await;
    assert!(!tries.is_empty());
    let wrong: Vec<_> = tries.iter().filter(|(_, says, went)| !is_refused(went, says)).collect();
    assert!(wrong.is_empty(), "the grant does not allow it: {wrong:#?}");

    let held = system.hold(credential).await;

    // Taken back, twice.
    let told = world.revoke(&answer).await;
    match ends {
        Ends::ByName => {
            world.until("it is gone", SOON, async || server.lease_states() == ["ended: revoked"]).await;
            let went = system.used(credential).await;
            assert!(is_refused(&went, S::GONE[0]), "it was taken back: {went:?}");
            if let Some(held) = held {
                held.finish().await; // an open session would go on for ever
            }
            assert_eq!(system.left().await, [""; 0]);
            assert_eq!(world.revoke(&answer).await["state"], "ended", "taking back is idempotent");
        }
        Ends::ByItself => {
            let until = now() + answer.body["expires_in"].as_i64().expect("seconds");
            let told_until = told["until"].as_i64().expect("it says until when it may work");
            assert!(told["state"] == "outliving" && (until - told_until).abs() <= 5, "{told} and {until}");
            system.used(credential).await.expect("it works until it ends, and nobody was told otherwise");
            if system.fetch_list(server).await {
                let went = system.used(credential).await;
                assert!(is_refused(&went, S::GONE[0]), "the list says that it was taken back: {went:?}");
            }
            assert_eq!(world.revoke(&answer).await, told, "taking back is idempotent");
        }
    }

    // Left to expire.
    let short = S::SHORTEST.to_string();
    let answer = world.ask(&[("ttl", &short)]).await;
    let ends_at = now() + answer.body["expires_in"].as_i64().expect("seconds");
    let credential = &answer.body["credential"];
    system.used(credential).await.expect("it works before its time is over");
    let ended = async || server.lease_states().iter().any(|state| state == "ended: expired");
    world.until("it is over", SOON + Duration::from_secs(S::SHORTEST.unsigned_abs()), ended).await;
    assert!(now() >= ends_at - 1, "it ended before its time");
    let went = system.used(credential).await;
    assert!(is_refused(&went, S::GONE[1]), "its time is over: {went:?}");
    assert_eq!(system.left().await, [""; 0]);

    // In the hands of the job's own tool.
    for (arguments, script) in system.steps() {
        world.step(arguments, &script).await;
    }
    assert_eq!(system.left().await, [""; 0]);
    server.verify_audit().await;
}

/// Mints at once, how many kills have to come in the middle of some, and how many may miss.
const MINTS: usize = 100;
const CUTS: usize = 3;
const KILLS: usize = 30;

/// What a job was told, if it was told anything: the lease of its credential, or a refusal.
type Told = Option<Result<String, String>>;

/// Asks one time after another until the server is dying, so that some are in the making when it is killed.
async fn job(url: &str, github: &Issuer, dying: &AtomicBool) -> Vec<Told> {
    let (client, mut told) = (client(), Vec::new());
    while !dying.load(Relaxed) {
        let token = github.mint(&Token::for_audience(url)).expect("the key signs");
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("subject_token", &token),
            ("audience", "it"),
        ];
        let answer = async {
            let answer = client.post(format!("{url}/token")).form(&form).send().await?;
            answer.json::<Value>().await
        };
        // Answered or cut off: both are right.
        told.push(answer.await.ok().map(|body| match body["lease_id"].as_str() {
            Some(lease) => Ok(lease.to_owned()),
            None => Err(body.to_string()),
        }));
    }
    told
}

async fn crash<S: System>() {
    let mut world = World::<S>::start(S::TTL).await;
    let (mut kills, mut cuts, mut cut, mut orphans) = (0, 0, 0, 0);
    let mut answered = BTreeSet::new();
    while cuts < CUTS || orphans == 0 {
        kills += 1;
        assert!(kills <= KILLS, "no kill came between an object and its record: {cut} mints were cut in {cuts} kills");
        let World { system, server, github } = &mut world;
        let (url, before, dying) = (server.url.clone(), system.left().await, AtomicBool::new(false));
        // Killed while some were asked for, some are being made, and some are made and not recorded.
        let kill = async {
            let deadline = Instant::now() + SOON;
            while system.left().await.iter().filter(|name| !before.contains(name)).count() < 10 * (cuts + 1) {
                assert!(Instant::now() < deadline, "nothing is made");
            }
            dying.store(true, Relaxed);
            server.restart().await;
            system.left().await
        };
        let (told, left) = tokio::join!(join_all((0..MINTS).map(|_| job(&url, github, &dying))), kill);
        for told in told.into_iter().flatten().flatten() {
            answered.insert(told.expect("there is a place for everybody"));
        }
        // What nobody was told of: no lease of it was ever answered, whatever became of its mint.
        let leases = world.server.leases();
        let unheard = leases.iter().filter(|lease| !answered.contains(lease["id"].as_str().expect("an id")));
        let unheard: Vec<_> = unheard.map(|lease| lease["remote_name"].as_str().expect("a name")).collect();
        let fresh = left.iter().filter(|name| !before.contains(name));
        orphans += fresh.filter(|name| unheard.iter().any(|unheard| S::named(unheard) == **name)).count();
        cuts += usize::from(unheard.len() > cut);
        cut = unheard.len();
    }
    if S::TTL == "10s" {
        let settled = async || world.server.lease_states().iter().all(|state| state.starts_with("ended"));
        world.until("all leases ended", Duration::from_secs(120), settled).await;
    } else {
        // What nobody heard of may still come until its worst expiry: such leases are looked at until then.
        world.server.revoke_all().await;
        let settled = async || world.system.left().await.is_empty();
        world.until("nothing is left", Duration::from_secs(120), settled).await;
        let over = |state: &String| state == "revoking" || state.starts_with("ended");
        assert!(world.server.lease_states().iter().all(over));
    }
    assert_eq!(world.system.left().await, [""; 0], "an object without a live lease");
    println!(
        "{kills} kills: {} leases answered, {cut} cut, {orphans} of those with an object right after",
        answered.len()
    );
    world.server.verify_audit().await;
}
