//! An issuer's keys, kept and renewed.
//!
//! There is one slot per configured issuer, and no other: what strangers send can neither add a slot nor
//! make this fetch more than once per [`UNKNOWN_KEY_INTERVAL`]. Keys are used for [`MAX_AGE`] without
//! asking again (a request after half of it asks in the background), and for [`MAX_STALE`] when the
//! issuer does not answer. All who wait for keys wait for the same fetch.

use super::{
    discovery,
    error::TokenError,
    issuer::{Origin, Trust},
    jwks::{Algorithm, KeyError, KeySet},
};
use crate::{
    clock::{Clock, Timestamp},
    outbound::OutboundError,
};
use arc_swap::ArcSwapOption;
use http::StatusCode;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Mutex;

/// How long fetched keys are used without asking the issuer again. A key that the issuer withdrew works
/// no longer than that, unless the issuer cannot be reached.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The same for keys in a file, which costs nothing to read.
const MAX_AGE_FILE: Duration = Duration::from_secs(30);

/// How long keys are used while the issuer does not answer.
const MAX_STALE: Duration = Duration::from_secs(24 * 3600);

/// How often a key that is not in the set may make us ask for the set again.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(30);

/// The same for keys in a file.
const UNKNOWN_KEY_INTERVAL_FILE: Duration = Duration::from_secs(2);

/// How long the issuer is left alone after its first failure in a row; doubled with each further one.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// The longest that it is left alone.
const MAX_COOL_DOWN: Duration = Duration::from_secs(60);

/// Why keys could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("answered {0}; expected 200, and redirects are not followed")]
    Status(StatusCode),
    #[error("{0} is not what it should be")]
    Document(&'static str),
    #[error("the discovery document is that of another issuer: {0}")]
    OtherIssuer(String),
    #[error("`jwks_uri` is on another host than the issuer ({0}): if that is right, configure it as `jwks_uri`")]
    OtherHost(String),
    #[error("cannot read the key file: {0}")]
    File(#[from] std::io::Error),
    #[error("no key that can be used")]
    NoKeys,
    #[error("the fetch was cut short")]
    Cut,
}

/// How the fetches of one issuer's keys went, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyStatus {
    /// Fetches that brought keys.
    pub fetched: u64,
    /// Fetches that did not.
    pub failed: u64,
    /// Usable keys now.
    pub keys: usize,
    /// When those were fetched.
    pub fetched_at: Option<Timestamp>,
}

/// A key set and when it was had.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) keys: KeySet,
    at: Timestamp,
}

/// One issuer's keys.
#[derive(Debug)]
pub(super) struct Keys {
    of: Trust,
    clock: Arc<dyn Clock>,
    current: ArcSwapOption<Snapshot>,
    /// Held while fetching: whoever gets it looks first whether somebody else was faster. Inside: when
    /// the last fetch began.
    last_attempt: Mutex<Timestamp>,
    /// Failed fetches since the last good one.
    failures: AtomicU32,
    fetched: AtomicU64,
    failed: AtomicU64,
}

impl Keys {
    pub(super) fn new(of: Trust, clock: Arc<dyn Clock>) -> Self {
        Self {
            of,
            clock,
            current: ArcSwapOption::empty(),
            last_attempt: Mutex::default(),
            failures: AtomicU32::new(0),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub(super) fn of(&self) -> &Trust {
        &self.of
    }

    pub(super) fn status(&self) -> KeyStatus {
        let current = self.current.load();
        KeyStatus {
            fetched: self.fetched.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            keys: current.as_ref().map_or(0, |snapshot| snapshot.keys.len()),
            fetched_at: current.as_ref().map(|snapshot| snapshot.at),
        }
    }

    /// The keys to check a token with.
    pub(super) async fn current(self: &Arc<Self>) -> Result<Arc<Snapshot>, TokenError> {
        if let Some(snapshot) = self.current.load_full() {
            let age = snapshot.at.age(self.clock.now());
            if age <= self.max_age() / 2 {
                return Ok(snapshot);
            }
            // Nobody waits for an issuer that is known to be down.
            let is_down = self.failures.load(Ordering::Relaxed) > 0;
            if age <= self.max_age() || (is_down && age <= MAX_STALE) {
                if self.last_attempt.try_lock().is_ok() {
                    tokio::spawn(Arc::clone(self).renew(self.max_age() / 2));
                }
                return Ok(snapshot);
            }
        }
        self.renew_detached(self.max_age()).await;
        let now = self.clock.now();
        match self.current.load_full() {
            Some(snapshot) if snapshot.at.age(now) <= MAX_STALE => Ok(snapshot),
            _ => {
                let wait = self.cool_down(*self.last_attempt.lock().await, now);
                Err(TokenError::KeysUnavailable { retry_after: wait.max(Duration::from_secs(1)) })
            }
        }
    }

    /// Newer keys than `than`, for a token that those do not verify; `None` when there are none, or when
    /// it is too early to ask again.
    pub(super) async fn newer(self: &Arc<Self>, than: &Arc<Snapshot>) -> Option<Arc<Snapshot>> {
        if than.at.age(self.clock.now()) > self.unknown_key_interval() {
            self.renew_detached(self.unknown_key_interval()).await;
        }
        self.current.load_full().filter(|snapshot| !Arc::ptr_eq(snapshot, than))
    }

    /// Renews on a task of its own, so that a caller who goes away does not cut it short for the others.
    async fn renew_detached(self: &Arc<Self>, if_older: Duration) {
        // The task fails only with the runtime; whoever asked then finds no newer keys.
        let _ = tokio::spawn(Arc::clone(self).renew(if_older)).await;
    }

    /// Fetches the keys, unless they are not older than that by now or the issuer has to be left alone.
    async fn renew(self: Arc<Self>, if_older: Duration) {
        let mut last_attempt = self.last_attempt.lock().await;
        let now = self.clock.now();
        let fresh = self.current.load().as_ref().is_some_and(|snapshot| snapshot.at.age(now) <= if_older);
        if fresh || !self.cool_down(*last_attempt, now).is_zero() {
            return;
        }
        *last_attempt = now;
        match self.fetch().await {
            Ok(keys) => {
                tracing::debug!(issuer = %self.of.policy.name, keys = keys.len(), "fetched an issuer's keys");
                self.failures.store(0, Ordering::Relaxed);
                self.fetched.fetch_add(1, Ordering::Relaxed);
                self.current.store(Some(Arc::new(Snapshot { keys, at: now })));
            }
            Err(error) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(issuer = %self.of.policy.name, %error, failures, "cannot fetch an issuer's keys");
            }
        }
    }

    /// How long the issuer has to be left alone from `now` on.
    fn cool_down(&self, last_attempt: Timestamp, now: Timestamp) -> Duration {
        match self.failures.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            failures => {
                let pause = COOL_DOWN.saturating_mul(1 << (failures - 1).min(10)).min(MAX_COOL_DOWN);
                let until = last_attempt + pause;
                if until.is_over(now, pause) { Duration::ZERO } else { until.since(now) }
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let Trust { policy, origin, .. } = &self.of;
        let body = match origin {
            Origin::Web(outbound, None) => {
                let address = discovery::find_keys(outbound, &policy.url, policy.profile.jwks_uri()).await?;
                discovery::fetch(outbound, &address).await?
            }
            Origin::Web(outbound, Some(address)) => discovery::fetch(outbound, address).await?,
            Origin::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || fs::read(path)).await;
                read.map_err(|_| FetchError::Cut)??
            }
        };
        let skipped = |kid: Option<&str>, error| {
            tracing::warn!(issuer = %policy.name, kid, %error, "left out one of an issuer's keys");
        };
        parse(&body, &self.of.algorithms, skipped)
    }

    fn max_age(&self) -> Duration {
        if matches!(self.of.origin, Origin::File(_)) { MAX_AGE_FILE } else { MAX_AGE }
    }

    fn unknown_key_interval(&self) -> Duration {
        if matches!(self.of.origin, Origin::File(_)) { UNKNOWN_KEY_INTERVAL_FILE } else { UNKNOWN_KEY_INTERVAL }
    }
}

/// Whether keys could be had from that file now.
///
/// # Errors
/// Why not; of keys that are there, what is wrong with the first.
pub(crate) fn check_file(path: &Path, algorithms: &[Algorithm]) -> Result<(), String> {
    let body = fs::read(path).map_err(|error| error.to_string())?;
    let mut first = None;
    let skipped = |kid: Option<&str>, error: KeyError| {
        first.get_or_insert_with(|| kid.map_or_else(|| error.to_string(), |kid| format!("`{kid}`: {error}")));
    };
    match parse(&body, algorithms, skipped) {
        Ok(_) => Ok(()),
        Err(FetchError::Document(_)) => Err("it is no key set".to_owned()),
        Err(error) => Err(first.map_or_else(|| error.to_string(), |first| format!("{error}: {first}"))),
    }
}

fn parse(
    body: &[u8],
    algorithms: &[Algorithm],
    skipped: impl FnMut(Option<&str>, KeyError),
) -> Result<KeySet, FetchError> {
    let keys = KeySet::parse(body, algorithms, skipped).map_err(|_| FetchError::Document("the key set"))?;
    if keys.len() == 0 { Err(FetchError::NoKeys) } else { Ok(keys) }
}
