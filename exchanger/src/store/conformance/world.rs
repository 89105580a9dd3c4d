//! One store under test, and the means to write test cases in few words.

use crate::{
    audit::{Entry, Event, Line, Link},
    clock::{Clock, ManualClock, Timestamp},
    leases::{Ending, Family, Lease, Placement, Revocability, State, Subject, TokenKey},
    store::{Binding, Entitlement, Hash, Opened, Opening, Refusal, Revocation, Rotation, Store, Targets},
};
use jobpass_protocol::{BackendName, GrantName, IssuerName, LeaseId, RuleName};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Opens a store. Every call with one `Place` opens the same data; the caller closes the store before.
pub(crate) trait Place: Send + Sync {
    fn open(&self, clock: Arc<dyn Clock>) -> Arc<dyn Store>;
}

/// One store under test, and the means to write test cases in few words.
pub(crate) struct World {
    pub(crate) place: Box<dyn Place>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: ManualClock,
    next: AtomicU64,
}

pub(crate) const TTL: Duration = Duration::from_secs(900);
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);

impl World {
    pub(crate) fn new(place: Box<dyn Place>) -> Self {
        let clock = ManualClock::at(Timestamp::from_secs(1_790_000_000));
        let store = place.open(Arc::new(clock.clone()));
        Self { place, store, clock, next: AtomicU64::new(1) }
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        self.store = self.place.open(Arc::new(self.clock.clone()));
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// 32 bytes that nobody else has.
    pub(crate) fn hash(&self) -> Hash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        hash
    }

    pub(crate) fn token(&self) -> TokenKey {
        TokenKey { expires: (self.now() + TTL).secs(), hash: self.hash() }
    }

    pub(crate) fn binding(&self, token: TokenKey, session: Option<Hash>, request: Option<Hash>) -> Binding {
        let keep_until = Timestamp::from_secs(token.expires) + LIFETIME;
        Binding { token, keep_until, session, request, max_uses: 4 }
    }

    pub(crate) fn active(&self) -> State {
        State::Active { expires_at: self.now() + TTL }
    }

    pub(crate) fn pending(&self) -> State {
        let mint_by = self.now() + Duration::from_secs(10);
        State::Pending { mint_by, reap_at: mint_by + Duration::from_secs(5), worst_expiry: self.now() + TTL }
    }

    /// A lease, its handle's hash and what opens it.
    pub(crate) fn opening(&self, by: Entitlement, state: State, revocability: Revocability) -> Opening {
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let millis = u64::try_from(self.now().millis()).expect("after 1970");
        let id = LeaseId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid());
        let token = match &by {
            Entitlement::Token(binding) => binding.token,
            Entitlement::Renewal(_) => self.token(),
        };
        let lease = Lease::draft(
            id,
            Family { root: id, parent: None, ends_at: self.now() + LIFETIME, renewals: 0 },
            Subject {
                grant: GrantName::parse("deploy-prod").expect("a name"),
                rule: RuleName::parse("main").expect("a name"),
                issuer: IssuerName::parse("github").expect("a name"),
                issuer_url: "https://token.actions.githubusercontent.com".into(),
                claims: r#"{"repository":"acme/api","run_id":42}"#.into(),
                key_id: "k1".into(),
                scope: vec!["read".into(), "write".into()],
            },
            Placement {
                backend: BackendName::parse("ledger").expect("a name"),
                identity: "http://127.0.0.1:1".into(),
                revocability,
                object: serde_json::json!({"a": 1}),
            },
            self.now(),
            token,
            "digest".into(),
            state,
        );
        let mut entry = Entry::new(self.now(), Event::Permitted);
        entry.lease_id = Some(id);
        Opening { by, lease, handle: self.hash(), entry }
    }

    /// Opens an active lease on a token; gives its id and handle.
    pub(crate) async fn exchange(&self, binding: Binding) -> Result<(LeaseId, Hash), Refusal> {
        let opening = self.opening(Entitlement::Token(binding), self.active(), Revocability::ByName);
        let (id, handle) = (opening.lease.id(), opening.handle);
        match self.store.open_active(opening).await.expect("the store works") {
            Opened::Yes { .. } => Ok((id, handle)),
            Opened::Refused(why) => Err(why),
        }
    }

    /// An active lease on a token of its own.
    pub(crate) async fn fresh(&self) -> (LeaseId, Hash) {
        let binding = self.binding(self.token(), Some(self.hash()), None);
        self.exchange(binding).await.expect("a fresh token gives a lease")
    }

    pub(super) async fn renew(
        &self,
        rotation: &Rotation,
        state: State,
    ) -> Result<(LeaseId, Hash, Vec<LeaseId>), Refusal> {
        let opening = self.opening(Entitlement::Renewal(rotation.clone()), state, Revocability::ByName);
        let (id, handle) = (opening.lease.id(), opening.handle);
        match self.store.open_active(opening).await.expect("the store works") {
            Opened::Yes { superseded, .. } => Ok((id, handle, superseded.iter().map(Lease::id).collect())),
            Opened::Refused(why) => Err(why),
        }
    }

    pub(super) async fn extend(&self, rotation: &Rotation) -> Result<Hash, Refusal> {
        let (handle, until) = (self.hash(), self.now() + TTL);
        let entry = Entry::new(self.now(), Event::Renewed);
        match self.store.extend(rotation.clone(), handle, until, entry).await.expect("the store works") {
            Opened::Yes { value, .. } => {
                assert_eq!(value.state(), &State::Active { expires_at: until });
                Ok(handle)
            }
            Opened::Refused(why) => Err(why),
        }
    }

    pub(crate) async fn state(&self, id: LeaseId) -> State {
        self.store.lease(id).await.expect("the store works").expect("the lease is there").state().clone()
    }

    pub(super) async fn revoke(&self, targets: Targets, because: Ending) -> Vec<Lease> {
        let close_sessions = because == Ending::RevokedByAdmin;
        let revocation = Revocation { targets, because, close_sessions, at: self.now(), actor: None };
        self.store.revoke(revocation).await.expect("the store works")
    }

    pub(crate) async fn audit(&self) -> Vec<Line> {
        let lines = self.store.audit(0, 10_000).await.expect("the store works");
        let mut link = Link::START;
        for line in &lines {
            assert_eq!(line.prev, link.hash, "a gap or a fork before entry {}", line.link.seq);
            link = link.next(&line.entry);
            assert_eq!(line.link, link, "the chain");
        }
        assert_eq!(*self.store.audit_head().borrow(), link, "the head in memory is the head on disk");
        lines
    }

    pub(crate) async fn audited(&self, event: &str) -> usize {
        let needle = format!("\"event\":\"{event}\"");
        self.audit().await.iter().filter(|line| line.entry.contains(&needle)).count()
    }
}
