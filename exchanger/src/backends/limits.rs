//! What one backend may cost the server: how many of its calls run at once, and when it is left alone.
//!
//! Every remote backend has limits of its own, so that one that is slow or dead takes nothing from the
//! others. After some failures in a row it *rests*: for a while jobs are refused at once instead of
//! after its deadline, then one of them tries it. What is refused here left nothing behind: no lease is
//! written without a [`Slot`]. Resting never stops the reaper, whose attempts tell whether the system is
//! back; it only keeps callers from waiting for one that is not.

use super::{MintError, Minted, RemoteError};
use crate::config::Span;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    future::Future,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};

/// Limits of one backend in the server's config, beside its type.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// How many credentials may be in the making at once, and how many on their way out. Default 32.
    pub concurrency: Option<NonZeroU32>,
    /// How long a job waits for its turn before it is refused. Default `2s`.
    pub wait: Option<Span>,
    /// After how many failures in a row the backend rests. Default 5.
    pub failures: Option<NonZeroU32>,
    /// How long it rests before it is tried again. Default `10s`.
    pub rest: Option<Span>,
    /// How long one attempt to take a credential back may take. Default `15s`, or the backend's `deadline` if
    /// that is longer.
    pub revoke_deadline: Option<Span>,
}

const CONCURRENCY: usize = 32;
const WAIT: Duration = Duration::from_secs(2);
const FAILURES: u32 = 5;
const REST: Duration = Duration::from_secs(10);
const REVOKE_DEADLINE: Duration = Duration::from_secs(15);
/// The longest that a system may ask to be left alone.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Before a mint that certainly made nothing is tried a second time.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The limits of one backend, and how it stands with them.
pub struct Limits {
    backend: String,
    minting: Arc<Semaphore>,
    revoking: Semaphore,
    concurrency: usize,
    wait: Duration,
    failures: u32,
    rest: Duration,
    revoke_deadline: Option<Duration>,
    health: Mutex<Health>,
    counters: Counters,
}

/// What happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls that failed, or were not answered in time.
    pub failed: AtomicU64,
    /// Requests that were refused without a call.
    pub refused: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum Health {
    /// So many failures in a row.
    Awake(u32),
    /// Left alone until then; after that one request tries it (`probed`).
    Resting { until: Instant, probed: bool },
}

/// Why a backend is not asked now. Nothing was written or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// It failed too often in a row, or asked to be left alone.
    #[error("the backend rests after failures; it is tried again in {} s", .0.as_secs() + 1)]
    Resting(Duration),
    /// As many of its calls as may run are running.
    #[error("all {0} places of the backend were taken for too long")]
    Full(usize),
}

impl Busy {
    /// When it is worth asking again.
    #[must_use]
    pub fn retry_after(self) -> Duration {
        match self {
            Self::Resting(rest) => rest + Duration::from_secs(1),
            Self::Full(_) => Duration::from_secs(1),
        }
    }
}

/// What a call told about the system.
enum Sign {
    Alive,
    Failing,
    LeaveAlone(Duration),
}

impl Limits {
    /// Limits as they are configured.
    #[must_use]
    pub fn new(backend: &str, file: File) -> Self {
        let concurrency = file.concurrency.map_or(CONCURRENCY, |n| usize::try_from(n.get()).unwrap_or(CONCURRENCY));
        let concurrency = concurrency.min(Semaphore::MAX_PERMITS);
        Self {
            backend: backend.to_owned(),
            minting: Arc::new(Semaphore::new(concurrency)),
            revoking: Semaphore::new(concurrency),
            concurrency,
            wait: file.wait.map_or(WAIT, |span| span.0),
            failures: file.failures.map_or(FAILURES, NonZeroU32::get),
            rest: file.rest.map_or(REST, |span| span.0),
            revoke_deadline: file.revoke_deadline.map(|span| span.0),
            health: Mutex::new(Health::Awake(0)),
            counters: Counters::default(),
        }
    }

    /// A place for one mint, or why there is none. Waits for a turn, but never long.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn admit(self: &Arc<Self>) -> Result<Slot, Busy> {
        let admitted = async {
            if let Some(rest) = self.resting() {
                return Err(Busy::Resting(rest));
            }
            match timeout(self.wait, Arc::clone(&self.minting).acquire_owned()).await {
                Ok(Ok(place)) => Ok(Slot { probe: self.start_probe()?, limits: Arc::clone(self), _place: place }),
                _ => Err(Busy::Full(self.concurrency)),
            }
        };
        admitted.await.inspect_err(|_| count(&self.counters.refused))
    }

    /// Runs a revocation in its turn and in time, at a backend whose mints have that `deadline`. One that
    /// fails or is slow is no sign against the system: its job may have made it so.
    ///
    /// # Errors
    /// The revocation's own, or that there was no answer.
    pub async fn revoke<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let in_turn = async {
            let _place = self.revoking.acquire().await;
            work.await
        };
        let deadline = self.revoke_deadline.unwrap_or_else(|| deadline.max(REVOKE_DEADLINE));
        self.hear(timeout(deadline, in_turn).await.ok())
    }

    /// How long the backend is still left alone, if it is.
    #[must_use]
    pub fn resting(&self) -> Option<Duration> {
        match *self.health() {
            Health::Awake(_) => None,
            Health::Resting { until, probed } => {
                let left = until.saturating_duration_since(Instant::now());
                (probed || !left.is_zero()).then_some(left)
            }
        }
    }

    /// How many credentials are in the making.
    #[must_use]
    pub fn minting(&self) -> usize {
        self.concurrency - self.minting.available_permits()
    }

    /// What happened since the start.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the caller is the one that tries a backend after its rest.
    fn start_probe(&self) -> Result<bool, Busy> {
        let mut health = self.health();
        match &mut *health {
            Health::Awake(_) => Ok(false),
            Health::Resting { until, probed } => {
                let left = until.saturating_duration_since(Instant::now());
                if *probed || !left.is_zero() {
                    return Err(Busy::Resting(left));
                }
                *probed = true;
                Ok(true)
            }
        }
    }

    /// What came of a call that changes or ends a credential; `None`: no answer in time. Only a success says
    /// something of the system.
    fn hear<T>(&self, answer: Option<Result<T, RemoteError>>) -> Result<T, RemoteError> {
        let late = || Err(RemoteError("no answer before the deadline".to_owned()));
        let answer = answer.unwrap_or_else(late);
        if answer.is_ok() {
            self.note(&Sign::Alive);
        }
        answer
    }

    fn note(&self, sign: &Sign) {
        let (now, backend) = (Instant::now(), &self.backend);
        let mut health = self.health();
        let before = *health;
        let rest = match (sign, before) {
            (Sign::Alive, _) => None,
            (Sign::LeaveAlone(rest), _) => Some((*rest).min(LONGEST_REST)),
            (Sign::Failing, Health::Awake(failures)) if failures + 1 < self.failures => {
                *health = Health::Awake(failures + 1);
                count(&self.counters.failed);
                return;
            }
            (Sign::Failing, _) => Some(self.rest),
        };
        *health = rest.map_or(Health::Awake(0), |rest| Health::Resting { until: now + rest, probed: false });
        drop(health);
        match (before, rest) {
            (Health::Awake(_), Some(rest)) => {
                tracing::error!(%backend, rest_ms = rest.as_millis(), "backend `{backend}` fails, and rests: jobs are refused \
                    meanwhile (503), revocations go on; look at its system, and at the failures above");
            }
            (Health::Resting { .. }, Some(_)) => tracing::warn!(%backend, "backend `{backend}` still fails"),
            (Health::Resting { .. }, None) => tracing::info!(%backend, "backend `{backend}` answers again"),
            (Health::Awake(_), None) => {}
        }
        if rest.is_some() {
            count(&self.counters.failed);
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's place at a backend. Dropping it gives the place back.
pub struct Slot {
    limits: Arc<Limits>,
    probe: bool,
    _place: OwnedSemaphorePermit,
}

impl Slot {
    /// Makes a credential within `deadline`. Where certainly nothing came of it, it is tried once more, unless
    /// the deadline would cut that try off: what is certain then stays certain.
    ///
    /// # Errors
    /// The backend's own, or that nobody knows what came of it.
    pub async fn mint<F>(self, deadline: Duration, mut attempt: impl FnMut() -> F) -> Result<Minted, MintError>
    where
        F: Future<Output = Result<Minted, MintError>>,
    {
        let start = Instant::now();
        let until = start + deadline;
        let unknown = |_| Err(MintError::OutcomeUnknown("no answer before the deadline".to_owned()));
        let mut minted = timeout_at(until, attempt()).await.unwrap_or_else(unknown);
        let in_time = Instant::now() + RETRY_PAUSE + start.elapsed() < until;
        if matches!(minted, Err(MintError::Unavailable(_))) && !self.probe && in_time {
            sleep(RETRY_PAUSE).await;
            minted = timeout_at(until, attempt()).await.unwrap_or_else(unknown);
        }
        match &minted {
            // An answer is a sign of life, whatever it means for the lease: a job can have brought it about.
            Ok(_) | Err(MintError::Refused(_) | MintError::Unclear(_)) => self.limits.note(&Sign::Alive),
            Err(MintError::Unavailable(_) | MintError::OutcomeUnknown(_)) => self.limits.note(&Sign::Failing),
            Err(MintError::Throttled { retry_after, .. }) => self.limits.note(&Sign::LeaveAlone(*retry_after)),
            Err(MintError::Unfit { .. }) => {}
        }
        minted
    }

    /// Gives a credential a later expiry within `deadline`.
    ///
    /// # Errors
    /// The backend's own, or that there was no answer.
    pub async fn extend<T>(
        self,
        deadline: Duration,
        work: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        self.limits.hear(timeout(deadline, work).await.ok())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A probe that never asked leaves the next one to another.
        if self.probe
            && let Health::Resting { probed, .. } = &mut *self.limits.health()
        {
            *probed = false;
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
