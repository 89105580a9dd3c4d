//! The reaper: takes back what is due, and keeps at it until it is certainly gone.
//!
//! It works on each backend by itself, so that one that hangs delays no other. It never ends a lease
//! whose backend it did not hear from, and it goes on while the store cannot be written: what it did
//! then is kept in memory and recorded once the store is back.

use super::{Ending, Lease, Placement, Revocability, State};
use crate::{
    audit::Entry,
    backends::{Backend, Backends, RemoteBackend, Revoked, limits::Limits},
    clock::{Clock, Timestamp},
    store::{Revocation, Store, StoreError, Targets},
};
use futures_util::{StreamExt as _, future::join_all, stream};
use jobpass_protocol::{BackendName, LeaseId};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

/// Leases of one backend that are worked on at once.
const CONCURRENCY: usize = 8;
/// Leases of one backend that are read at once.
const ROUND: usize = 128;
/// The first wait after an attempt that failed or could not be certain; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The wait while the store cannot be read or written, or nothing moves.
const STORE_WAIT: Duration = Duration::from_secs(1);
/// Leases that the store is told of at once, when it can be told.
const TOLD_AT_ONCE: usize = 64;
/// How often it looks at what is due when nothing tells it to.
const LOOK: Duration = Duration::from_secs(1);
/// How long a caller of [`Reaper::take_back`] waits for backends.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the reaper did since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Credentials taken back, or found gone.
    pub revoked: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Credentials that ended by themselves.
    pub expired: AtomicU64,
    /// Attempts that could not be made because the backend is no longer configured as it was.
    pub unreachable: AtomicU64,
}

/// Takes credentials back.
pub struct Reaper {
    store: Arc<dyn Store>,
    backends: Backends,
    clock: Arc<dyn Clock>,
    nudged: Notify,
    /// Leases that are being worked on.
    busy: Mutex<HashSet<LeaseId>>,
    /// What happened while the store could not be written.
    unrecorded: Mutex<HashMap<LeaseId, Unrecorded>>,
    counters: Counters,
}

#[derive(Clone)]
struct Unrecorded {
    /// As the store has it.
    lease: Lease,
    now: State,
    entry: Option<Entry>,
    /// What was decided about it, to be told to the store too: it may have moved the lease meanwhile, and
    /// it closes sessions.
    decision: Option<Revocation>,
}

/// What a look at a backend's due leases came to.
enum Round {
    /// Nothing is due any more.
    Done,
    /// Something moved; there may be more.
    Moved,
    /// Nothing moved: looking again at once would be in vain.
    Stuck,
}

impl Reaper {
    /// A reaper that does nothing until it runs.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, backends: Backends, clock: Arc<dyn Clock>) -> Self {
        let (nudged, busy, unrecorded) = (Notify::new(), Mutex::default(), Mutex::default());
        Self { store, backends, clock, nudged, busy, unrecorded, counters: Counters::default() }
    }

    /// What it did since the start.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Has it look at once.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Has it look at once if there is something to take back.
    pub fn nudge_for(&self, leases: &[Lease]) {
        if !leases.is_empty() {
            self.nudge();
        }
    }

    /// Works until `stop` is true (or its sender is gone), then finishes what it is at.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut lanes: JoinSet<(BackendName, Timestamp)> = JoinSet::new();
        let mut working: HashMap<BackendName, Option<Timestamp>> = HashMap::new();
        while !*stop.borrow() {
            self.settle().await;
            let now = self.clock.now();
            // Leases that were opened meanwhile are not announced: the agenda is looked at every second.
            let mut wake = now + LOOK;
            let agenda = self.store.agenda().await.unwrap_or_else(|error| {
                tracing::error!(%error, "the reaper cannot read which leases are due; it goes on with those it knows");
                Vec::new()
            });
            for (backend, due) in agenda.into_iter().chain(self.unrecorded_agenda()) {
                // `None`: a lane is at it, and says when it is through.
                match working.get(&backend) {
                    Some(None) => {}
                    Some(Some(rest)) if !rest.is_over(now, STORE_WAIT) => wake = wake.min(*rest),
                    _ if due > now => wake = wake.min(due),
                    _ => {
                        working.insert(backend.clone(), None);
                        lanes.spawn(Arc::clone(&self).work(backend, stop.clone()));
                    }
                }
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = self.nudged.notified() => {}
                () = self.clock.sleep_until(wake) => {}
                Some(Ok((backend, rest))) = lanes.join_next() => drop(working.insert(backend, Some(rest))),
            }
        }
        // Every attempt has a deadline; this is for a store that does not answer.
        if timeout(PATIENCE, async { while lanes.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("the reaper stopped while it was at something; it goes on with that at the next start");
        }
        self.settle().await;
    }

    /// Tries once, now, to take back leases that are due; returns where each stands after that. What
    /// cannot be done within ten seconds, or is at a backend that rests, is left to [`Reaper::run`].
    pub async fn take_back(&self, leases: Vec<Lease>) -> Vec<State> {
        let deadline = Instant::now() + PATIENCE;
        let states = stream::iter(leases)
            .map(|lease| async move {
                let state = lease.state.clone();
                if self.remote(&lease).is_some_and(|(_, limits)| limits.resting().is_some()) {
                    return state;
                }
                timeout_at(deadline, self.process(lease)).await.map_or(state, |(state, _)| state)
            })
            .buffered(2 * CONCURRENCY)
            .collect()
            .await;
        self.nudge();
        states
    }

    /// Decides to take leases back where the store could not record it: that is done later. Returns them as
    /// they are now, for [`Reaper::take_back`]. A pending one that keeps something came to be.
    #[must_use]
    pub fn decide(&self, mut leases: Vec<Lease>, decision: &Revocation) -> Vec<Lease> {
        let (now, because) = (self.clock.now(), decision.because);
        let mut unrecorded = lock(&self.unrecorded);
        for lease in &mut leases {
            let known = unrecorded.entry(lease.id).or_insert_with(|| Unrecorded::of(lease.clone()));
            let came_to_be = matches!(known.now, State::Pending { .. }) && lease.sealed.is_some();
            let next = match came_to_be {
                true => Some(State::take_back_now(now, because)),
                false => known.now.take_back(lease.placement.revocability, now, because),
            };
            if let Some(mut next) = next {
                if let State::Revoking { next_at, .. } = &mut next {
                    *next_at = now;
                }
                let lease = Lease { state: next.clone(), ..lease.clone() };
                known.entry = Some(Entry { actor: decision.actor.clone(), ..Entry::of_lease(&lease, now) });
                known.now = next;
            }
            known.decision = Some(Revocation { targets: Targets::Leases(vec![lease.id]), ..decision.clone() });
            lease.state = known.now.clone();
        }
        leases
    }

    /// Works through what is due at one backend; returns when it is worth looking again.
    async fn work(self: Arc<Self>, backend: BackendName, stop: watch::Receiver<bool>) -> (BackendName, Timestamp) {
        loop {
            match self.round(&backend, &stop).await {
                Ok(Round::Moved) if !*stop.borrow() => {}
                Ok(Round::Moved | Round::Done) => return (backend, self.clock.now()),
                Ok(Round::Stuck) => return (backend, self.clock.now() + STORE_WAIT),
                Err(error) => {
                    tracing::error!(%backend, %error, "the reaper cannot use the store");
                    return (backend, self.clock.now() + STORE_WAIT);
                }
            }
        }
    }

    async fn round(&self, backend: &BackendName, stop: &watch::Receiver<bool>) -> Result<Round, StoreError> {
        // A store that can only be read must not keep revocable credentials alive.
        let ended = self.store.expire(backend.clone(), self.clock.now()).await.unwrap_or(0);
        self.counters.expired.fetch_add(u64::try_from(ended).unwrap_or(0), Ordering::Relaxed);
        if ended > 0 {
            return Ok(Round::Moved);
        }
        let now = self.clock.now();
        // The store lists those that it was not told of where it has them, which may be first.
        let (mut due, known) = self.unrecorded_due(backend, now);
        let listed = self.store.due(backend.clone(), now, ROUND + known.len()).await;
        let unread =
            listed.map(|listed| due.extend(listed.into_iter().filter(|lease| !known.contains(&lease.id)))).err();
        if due.is_empty() {
            // What the store still lists is done, and stays listed until it is told.
            return unread.map_or(Ok(if known.is_empty() { Round::Done } else { Round::Stuck }), Err);
        }
        let unreachable = due.iter().filter(|lease| !ends_by_itself(lease) && self.remote(lease).is_none()).count();
        if unreachable > 0 {
            tracing::error!(
                %backend, leases = unreachable,
                "put backend `{backend}` back into the config as it was when these leases were opened \
                 (`leases list` shows them): their credentials may still work, and cannot be taken back without it"
            );
        }
        let moved = stream::iter(due)
            .take_while(|_| std::future::ready(!*stop.borrow()))
            .map(|lease| self.process(lease))
            .buffer_unordered(CONCURRENCY)
            .filter(|(_, moved)| std::future::ready(*moved))
            .count()
            .await;
        match unread {
            Some(error) => Err(error),
            None if moved > 0 => Ok(Round::Moved),
            None => Ok(Round::Stuck),
        }
    }

    /// Of each lease that the store does not know of as it is, where it is and when it is to be looked at.
    fn unrecorded_agenda(&self) -> Vec<(BackendName, Timestamp)> {
        let unrecorded = lock(&self.unrecorded);
        let due = |known: &Unrecorded| Some((known.lease.placement.backend.clone(), known.due_at()?));
        unrecorded.values().filter_map(due).collect()
    }

    /// Of one backend's leases that the store does not know of as they are: those to be looked at now, and
    /// those that the store would have looked at.
    fn unrecorded_due(&self, backend: &BackendName, now: Timestamp) -> (Vec<Lease>, HashSet<LeaseId>) {
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let unrecorded = lock(&self.unrecorded);
        let here = || unrecorded.values().filter(|known| known.lease.placement.backend == *backend);
        let due = here().filter(|known| is_due(known.due_at())).take(ROUND).map(Unrecorded::as_it_is).collect();
        let listed = here().filter(|known| is_due(known.lease.state.due_at())).map(|known| known.lease.id).collect();
        (due, listed)
    }

    /// Does what one lease needs now: where it stands after that, and whether the store knows of a change.
    async fn process(&self, mut lease: Lease) -> (State, bool) {
        let Some(_busy) = Busy::start(&self.busy, lease.id) else { return (lease.state, false) };
        if let Some(known) = lock(&self.unrecorded).get(&lease.id) {
            lease = known.as_it_is();
        }
        let now = self.clock.now();
        if lease.state.due_at().is_none_or(|at| at > now) || ends_by_itself(&lease) {
            return (lease.state, false);
        }
        let mut moved = false;
        if !matches!(lease.state, State::Revoking { .. }) {
            let because = if matches!(lease.state, State::Active { .. }) { Ending::Expired } else { Ending::Abandoned };
            if let Some(next) = lease.state.take_back(lease.placement.revocability, now, because) {
                moved = self.record(&mut lease, next, true).await;
            }
        }
        if matches!(lease.state, State::Revoking { .. }) {
            let next = self.attempt(&lease, now).await;
            let tell = matches!(next, State::Ended { .. });
            moved = self.record(&mut lease, next, tell).await;
        }
        (lease.state, moved)
    }

    /// Asks the backend to take back a lease that is `Revoking`; returns the state after that.
    async fn attempt(&self, lease: &Lease, now: Timestamp) -> State {
        let State::Revoking { attempts, certain_at, because, .. } = lease.state else { return lease.state.clone() };
        let wait = wait_after(lease.id, attempts);
        let again = State::Revoking { attempts: attempts.saturating_add(1), next_at: now + wait, certain_at, because };
        let Some((backend, limits)) = self.remote(lease) else {
            self.counters.unreachable.fetch_add(1, Ordering::Relaxed);
            return again;
        };
        let answer = limits.revoke(backend.deadline(), backend.revoke(lease)).await;
        let now = self.clock.now();
        match (answer, certain_at) {
            // A late creation may still land: looked at again soon, then less often, and once more when
            // nothing can come any more.
            (Ok(Revoked::NotFound), Some(certain)) if now < certain => State::Revoking {
                attempts: attempts.saturating_add(1),
                next_at: (now + wait).min(certain),
                certain_at,
                because,
            },
            (Ok(Revoked::Barred(until)), _) => {
                State::Revoking { attempts: attempts.saturating_add(1), next_at: until, certain_at: None, because }
            }
            (Ok(Revoked::Gone | Revoked::NotFound), _) => {
                self.counters.revoked.fetch_add(1, Ordering::Relaxed);
                State::Ended { how: because, at: now }
            }
            (Err(error), _) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                let (lease, backend) = (lease.id, &lease.placement.backend);
                tracing::warn!(%lease, %backend, attempts, %error, "a credential is not taken back yet; it is tried again");
                again
            }
        }
    }

    /// Moves a lease: in the store (then says so), or in memory for as long as that cannot be written.
    async fn record(&self, lease: &mut Lease, next: State, tell: bool) -> bool {
        let before = lease.clone();
        lease.state = next.clone();
        let entry = tell.then(|| Entry::of_lease(lease, self.clock.now()));
        if !lock(&self.unrecorded).contains_key(&lease.id) {
            match self.store.transition(lease.id, before.state.clone(), next.clone(), None, entry.clone()).await {
                // Where somebody else moved it meanwhile, it is due again, and taking back is idempotent.
                Ok(moved) => return moved,
                Err(error) => {
                    let lease = lease.id;
                    tracing::error!(%lease, %error, "the reaper goes on; what it did is recorded when the store is back");
                }
            }
        }
        self.remember(&before, next, entry);
        false
    }

    fn remember(&self, lease: &Lease, next: State, entry: Option<Entry>) {
        let mut unrecorded = lock(&self.unrecorded);
        let known = unrecorded.entry(lease.id).or_insert_with(|| Unrecorded::of(lease.clone()));
        known.now = next;
        known.entry = entry.or_else(|| known.entry.take());
        if let (Some(entry), Some(decision)) = (&mut known.entry, &known.decision) {
            entry.actor.clone_from(&decision.actor);
        }
    }

    /// Tells the store what it does not know of yet: of one lease first, to see whether it can be told.
    async fn settle(&self) {
        let waiting: Vec<LeaseId> = lock(&self.unrecorded).keys().copied().collect();
        let (first, rest) = waiting.split_at(waiting.len().min(1));
        for leases in std::iter::once(first).chain(rest.chunks(TOLD_AT_ONCE)) {
            let told = join_all(leases.iter().map(|lease| self.tell(*lease))).await;
            if told.contains(&false) {
                return;
            }
        }
    }

    /// Tells the store of one lease; says whether it can be told.
    async fn tell(&self, id: LeaseId) -> bool {
        // Whoever works on it may come to something newer.
        let Some(_busy) = Busy::start(&self.busy, id) else { return true };
        let Some(known) = lock(&self.unrecorded).get(&id).cloned() else { return true };
        let Unrecorded { lease, now, entry, decision } = known;
        let mut told = self.store.transition(id, lease.state, now, lease.sealed, entry).await.map(drop);
        if let (Ok(()), Some(decision)) = (&told, decision.clone()) {
            told = self.store.revoke(decision).await.map(drop);
        }
        let mut unrecorded = lock(&self.unrecorded);
        if told.is_ok() && unrecorded.get(&id).is_some_and(|known| known.decision == decision) {
            unrecorded.remove(&id);
        }
        told.is_ok()
    }

    /// The lease's backend, if it still is what it was when the lease was opened.
    fn remote(&self, lease: &Lease) -> Option<(&Arc<dyn RemoteBackend>, &Limits)> {
        let Placement { backend, identity, .. } = &lease.placement;
        match self.backends.named(backend)? {
            Backend::Remote(remote) if remote.identity() == identity => Some((remote, self.backends.limits(backend)?)),
            Backend::Remote(_) | Backend::Local(_) => None,
        }
    }
}

impl Unrecorded {
    fn of(lease: Lease) -> Self {
        let now = lease.state.clone();
        Self { lease, now, entry: None, decision: None }
    }

    fn as_it_is(&self) -> Lease {
        Lease { state: self.now.clone(), ..self.lease.clone() }
    }

    /// When its backend is to be asked.
    fn due_at(&self) -> Option<Timestamp> {
        matches!(self.now, State::Revoking { .. }).then(|| self.now.due_at()).flatten()
    }
}

/// Marks a lease as being worked on, for as long as it lives.
struct Busy<'a>(&'a Mutex<HashSet<LeaseId>>, LeaseId);

impl<'a> Busy<'a> {
    fn start(busy: &'a Mutex<HashSet<LeaseId>>, lease: LeaseId) -> Option<Self> {
        lock(busy).insert(lease).then(|| Self(busy, lease))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

/// Whether time alone ends the lease: [`Store::expire`] says when.
fn ends_by_itself(lease: &Lease) -> bool {
    match lease.state {
        State::Active { .. } => lease.placement.revocability == Revocability::None,
        State::Outliving { .. } | State::Ended { .. } => true,
        State::Pending { .. } | State::Revoking { .. } => false,
    }
}

/// Doubles with each attempt, spread by a fifth either way so that leases of one moment part.
fn wait_after(lease: LeaseId, attempts: u32) -> Duration {
    let wait = FIRST_WAIT.saturating_mul(1_u32.checked_shl(attempts).unwrap_or(u32::MAX)).min(LONGEST_WAIT);
    let spread = u32::from(lease.as_bytes()[15].rotate_left(attempts & 7));
    wait * (800 + 400 * spread / 255) / 1000
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
