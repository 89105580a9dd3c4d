//! The pipeline of one request. Read this first.
//!
//! ```text
//! token::Verifier   who is asking?          -> VerifiedToken, or a refusal that cost nothing
//! policy::decide    may this job have it?   -> Permit, or a Denial with its trace
//! store             write the lease         -> durable before anything exists elsewhere
//! backends          make the credential     -> only with a permit and, if remote, a pending lease
//! store             activate                -> whoever loses the race revokes what it minted
//! ```
//!
//! Renewal ([`renew`]) decides again on today's policy; [`give_back`] needs possession and nothing else.

mod story;
mod to_its_end;

use crate::{
    app::App,
    audit::{Entry, Event, chain::hex_of_byte},
    backends::{Backend, LocalBackend, MintError, Minted, Order, RemoteBackend, limits::Slot},
    clock::Timestamp,
    leases::{Ending, Family, Lease, Outlives, Placement, Revocability, State, Subject, TokenKey},
    store::{
        Binding, Entitlement, Hash, Held, Opened, Opening, PendingLease, Revocation, Rotation, StoreError, Targets,
    },
    token::{TokenError, keep_until},
};
use jobpass_policy::{Claims, Decision, Permit, Request, decide};
use jobpass_protocol::{
    Credential, DecisionId, ExchangeRequest, LeaseHandle, LeaseState, RenewRequest, RequestId, RevokeRequest,
    RevokeResponse, TokenResponse,
};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use story::Story;
pub use to_its_end::Orphans;
use to_its_end::ToItsEnd;

/// Why a request got no credential. Knows nothing of HTTP; `http::error` gives each its answer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The subject token is not one that we take.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Unknown grant, denied grant and spent token: one refusal, so that they look the same.
    #[error("denied")]
    Denied {
        /// Under which id the operators find why.
        decision: DecisionId,
        /// What the grant's `disclose` tells this caller.
        reasons: Vec<String>,
    },
    /// The grant does not have the scope that was asked for.
    #[error("the scope goes beyond what the grant allows")]
    Scope {
        /// Under which id the operators find more.
        decision: DecisionId,
    },
    /// The job's own input, or its claims, do not fit what the backend makes.
    #[error("{field}: {message}")]
    Unfit {
        /// Which field.
        field: String,
        /// What is wrong with it, without its value.
        message: String,
        /// Under which id the operators find more.
        decision: DecisionId,
    },
    /// The lease handle gives no right: unknown, spent, or its lease is over.
    #[error("the lease handle is not valid")]
    Handle,
    /// The lease's family was renewed as often as it may be.
    #[error("the lease was renewed too often")]
    Renewals,
    /// This workload asks too often.
    #[error("too many requests")]
    TooMany {
        /// When to come back.
        retry_after: Duration,
    },
    /// The backend did not make the credential.
    #[error("the backend failed")]
    Backend {
        /// Under which id the operators find why.
        decision: DecisionId,
    },
    /// The backend is not to be asked now, or asks to be left alone.
    #[error("the backend cannot be asked now")]
    Busy {
        /// When to come back.
        retry_after: Duration,
        /// Under which id the operators find why.
        decision: DecisionId,
    },
    /// The store cannot record: nothing is issued.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Trades a subject token for a credential.
///
/// # Errors
/// One variant per reason; see [`Refusal`].
pub async fn exchange(app: &Arc<App>, request: ExchangeRequest) -> Result<TokenResponse, Refusal> {
    let now = app.clock.now();
    let token =
        app.verifier.verify(request.subject_token.expose()).await.inspect_err(|e| app.metrics.token_refused(e))?;
    let (issuer, key, key_id) = (Arc::clone(token.issuer()), token.key(), Arc::clone(token.key_id()));
    let claims = Arc::new(token.into_claims());
    app.metrics.verified(&issuer.name, &claims);
    app.admit(&issuer.name, &claims).map_err(|retry_after| Refusal::TooMany { retry_after })?;

    let asked = Request {
        grant: &request.grant,
        issuer: &issuer.name,
        claims: &claims,
        scope: request.scope.as_deref(),
        ttl: request.ttl,
        at: now.secs(),
        freezes: &app.freezes.load(),
    };
    let story =
        Story { decision: app.new_decision(now), at: now, issuer: issuer.name.clone(), token: key, renewed: None };
    let permit = match decide(&app.policies.current(), &asked) {
        Decision::Permit(permit) => permit,
        Decision::Denial(denial) => return Err(story.deny(app, &request.grant, &claims, denial).await),
    };
    let slot = story.admit(app, &permit).await?;
    let now = app.clock.now();
    let order = Order {
        lease: app.new_lease_id(now),
        at: now,
        expires_at: now + Duration::from_secs(permit.ttl().into()),
        public_key: request.public_key,
        csr: request.csr,
    };
    let family = Family {
        root: order.lease,
        parent: None,
        ends_at: now + Duration::from_secs(permit.max_lifetime().into()),
        renewals: 0,
    };
    let subject = Subject {
        grant: permit.grant().name().clone(),
        rule: permit.rule().clone(),
        issuer: issuer.name.clone(),
        issuer_url: issuer.url.clone(),
        claims: claims.to_stored(),
        key_id,
        scope: permit.scope().to_vec(),
    };
    let by = Entitlement::Token(Binding {
        token: key,
        keep_until: keep_until(key),
        session: request.session.as_ref().map(|session| hash(session.expose())),
        request: request.request_id.as_ref().map(hash_request),
        max_uses: issuer.profile.uses_per_token(),
    });
    // From here on a client that goes away changes nothing: the lease is carried to its end.
    detached(app, permit, slot, order, Draft { family, subject, token: key, by }, story).await
}

/// Gives a lease a longer life, on today's policy.
///
/// # Errors
/// One variant per reason; see [`Refusal`].
pub async fn renew(app: &Arc<App>, request: RenewRequest) -> Result<TokenResponse, Refusal> {
    let now = app.clock.now();
    let presented = hash(request.handle.expose());
    let lease = match app.store.held(request.handle.lease(), presented).await? {
        Held::Unknown => return Err(Refusal::Handle),
        Held::Current(lease) | Held::Spent(lease) => lease,
    };
    let rotation = Rotation { lease: lease.id(), presented, request: request.request_id.as_ref().map(hash_request) };
    let subject = lease.subject();
    let story = Story {
        decision: app.new_decision(now),
        at: now,
        issuer: subject.issuer.clone(),
        token: lease.token(),
        renewed: Some(lease.id()),
    };
    // An issuer that was removed or moved, or a key that is distrusted now, vouches for nobody.
    let issuer =
        app.verifier.issuer(&subject.issuer).filter(|trusted| trusted.vouches(&subject.issuer_url, &subject.key_id));
    let Some(issuer) = issuer else {
        story.deny_plainly(app, &subject.grant, "issuer_or_key_no_longer_trusted").await;
        return Err(Refusal::Handle);
    };
    let Ok(claims) = Claims::from_stored(issuer.profile(), &subject.claims) else {
        story.deny_plainly(app, &subject.grant, "stored_claims_no_longer_fit_the_profile").await;
        return Err(Refusal::Handle);
    };
    app.admit(&subject.issuer, &claims).map_err(|retry_after| Refusal::TooMany { retry_after })?;
    let claims = Arc::new(claims);
    let asked = Request {
        grant: subject.grant.as_str(),
        issuer: &subject.issuer,
        claims: &claims,
        scope: (!subject.scope.is_empty()).then_some(subject.scope.as_slice()),
        ttl: request.ttl,
        at: now.secs(),
        freezes: &app.freezes.load(),
    };
    let permit = match decide(&app.policies.current(), &asked) {
        Decision::Permit(permit) => permit,
        Decision::Denial(denial) => return Err(story.deny(app, subject.grant.as_str(), &claims, denial).await),
    };
    // `max_lifetime` bounds the family, whatever is asked for and whatever the grant says today.
    let family_ends =
        lease.family().ends_at.min(lease_started(&lease) + Duration::from_secs(permit.max_lifetime().into()));
    let expires_at = (now + Duration::from_secs(permit.ttl().into())).min(family_ends);
    if expires_at <= now {
        return Err(Refusal::Handle);
    }
    let order = Order { lease: app.new_lease_id(now), at: now, expires_at, public_key: None, csr: None };
    let mut slot = story.admit(app, &permit).await?;

    if let Some(Backend::Remote(backend)) = app.backends.named(permit.grant().backend()) {
        let Placement { backend: name, identity, object, .. } = lease.placement();
        let same_place = permit.grant().backend() == name && backend.identity() == identity;
        // An extension changes no rights: where the grant gives others today, there is a new credential.
        let made_now = Order { lease: lease.id(), ..order.clone() };
        let same = || backend.plan(&permit, &made_now).is_ok_and(|plan| plan.object == *object);
        if same_place
            && backend.extends()
            && same()
            && let Some(slot) = slot.take()
        {
            let orphans = &app.orphans;
            let (app, backend) = (Arc::clone(app), Arc::clone(backend));
            let extended = async move { extend(&app, &*backend, slot, &permit, rotation, expires_at, &story).await };
            return ToItsEnd::new(orphans, extended).await;
        }
    }
    let draft = Draft {
        family: Family { parent: Some(lease.id()), ends_at: family_ends, ..lease.family().clone() },
        subject: Subject { rule: permit.rule().clone(), scope: permit.scope().to_vec(), ..subject.clone() },
        token: lease.token(),
        by: Entitlement::Renewal(rotation),
    };
    detached(app, permit, slot, order, draft, story).await
}

/// Why a lease is not given back as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NotGivenBack {
    /// Nobody knows what the handle stands for.
    #[error(transparent)]
    Unread(#[from] StoreError),
    /// It was taken back as far as the backends answered, and that is not on disk yet.
    #[error("taken back, and not recorded yet: {0}")]
    Unrecorded(StoreError),
}

/// Takes back what a handle, or a token that we signed, gives possession of (RFC 7009).
///
/// # Errors
/// Only when the store cannot be used; see [`NotGivenBack`].
pub async fn give_back(app: &Arc<App>, request: RevokeRequest) -> Result<RevokeResponse, NotGivenBack> {
    let Some(lease) = possessed(app, &request).await? else {
        return Ok(RevokeResponse::default()); // RFC 7009 §2.2: an unknown token is no error
    };
    let (orphans, app) = (&app.orphans, Arc::clone(app));
    ToItsEnd::new(orphans, async move {
        let revocation = Revocation {
            targets: Targets::Family(lease.id()),
            because: Ending::Revoked,
            close_sessions: false,
            at: app.clock.now(),
            actor: None,
        };
        match app.store.revoke(revocation.clone()).await {
            Ok(family) => Ok(told(&app.reaper.take_back(family).await)),
            Err(error) => {
                // Revocation never waits for the store: it is idempotent, and recorded later.
                let family = app.store.family(lease.id()).await.unwrap_or_else(|_| vec![lease]);
                app.reaper.take_back(app.reaper.decide(family, &revocation)).await;
                Err(NotGivenBack::Unrecorded(error))
            }
        }
    })
    .await
}

async fn possessed(app: &App, request: &RevokeRequest) -> Result<Option<Lease>, StoreError> {
    let text = request.token.expose();
    if let Ok(handle) = LeaseHandle::parse(text) {
        return Ok(match app.store.held(handle.lease(), hash(text)).await? {
            Held::Unknown => None,
            Held::Current(lease) | Held::Spent(lease) => Some(lease),
        });
    }
    match app.keys.verify_own(text) {
        Some(id) => app.store.lease(id).await,
        None => Ok(None),
    }
}

/// The worst that any lease of a family stands at: what the holder has to know.
fn told(family: &[State]) -> RevokeResponse {
    let outliving = family.iter().filter_map(|state| match state {
        State::Outliving { until, .. } => Some(until.secs()),
        _ => None,
    });
    if let Some(until) = outliving.max() {
        return RevokeResponse { state: Some(LeaseState::Outliving), until: Some(until) };
    }
    let ended = family.iter().all(|state| matches!(state, State::Ended { .. }));
    RevokeResponse { state: Some(if ended { LeaseState::Ended } else { LeaseState::Revoking }), until: None }
}

async fn detached(
    app: &Arc<App>,
    permit: Permit,
    slot: Option<Slot>,
    order: Order,
    draft: Draft,
    story: Story,
) -> Result<TokenResponse, Refusal> {
    let (orphans, app) = (&app.orphans, Arc::clone(app));
    ToItsEnd::new(orphans, async move {
        let issued = match (app.backends.named(permit.grant().backend()), slot) {
            (Some(Backend::Local(backend)), _) => issue_local(&app, &**backend, &permit, &order, draft, &story).await,
            // In a box, so that what local ones need is not as large as what these do.
            (Some(Backend::Remote(backend)), Some(slot)) => {
                Box::pin(issue_remote(&app, &**backend, slot, &permit, &order, draft, &story)).await
            }
            // A grant does not compile without its backend; the set may be older than the config.
            (Some(Backend::Remote(_)) | None, _) => Err(Refusal::Backend { decision: story.decision }),
        };
        app.metrics.exchanged(permit.grant().name(), issued.is_ok());
        issued
    })
    .await
}

/// Local: mint in memory, then one transaction, then the answer.
async fn issue_local(
    app: &App,
    backend: &dyn LocalBackend,
    permit: &Permit,
    order: &Order,
    draft: Draft,
    story: &Story,
) -> Result<TokenResponse, Refusal> {
    let minted = backend.mint(permit, order).map_err(|error| story.unfit(error))?;
    let placement = Placement {
        backend: permit.grant().backend().clone(),
        identity: backend.identity().to_owned(),
        revocability: Revocability::None,
        object: serde_json::Value::Null,
    };
    let (lease, by) = draft.lease(app, order, placement, State::Active { expires_at: minted.expires_at });
    let handle = app.new_handle(order.lease);
    let entry = story.entry(Event::Issued, permit, &lease, minted.expires_at);
    let opening = Opening { by, lease, handle: hash(handle.expose()), entry };
    match app.store.open_active(opening).await? {
        Opened::Refused(why) => Err(story.unentitled(app, permit, why).await),
        Opened::Yes { superseded, .. } => {
            app.reaper.nudge_for(&superseded);
            Ok(answer(permit, order, minted, handle, false))
        }
    }
}

/// Remote: a durable pending lease first, then the backend, then compare-and-set to active.
async fn issue_remote(
    app: &App,
    backend: &dyn RemoteBackend,
    slot: Slot,
    permit: &Permit,
    order: &Order,
    draft: Draft,
    story: &Story,
) -> Result<TokenResponse, Refusal> {
    let plan = backend.plan(permit, order).map_err(|error| story.unfit(error))?;
    let placement = Placement {
        backend: permit.grant().backend().clone(),
        identity: backend.identity().to_owned(),
        revocability: backend.revocability(),
        object: plan.object,
    };
    let mint_by = order.at + backend.deadline();
    let waiting = State::Pending { mint_by, reap_at: mint_by + backend.settle(), worst_expiry: plan.worst_expiry };
    let (lease, by) = draft.lease(app, order, placement, waiting.clone());
    let handle = app.new_handle(order.lease);
    let entry = story.entry(Event::Permitted, permit, &lease, order.expires_at);
    let opening = Opening { by, lease, handle: hash(handle.expose()), entry };
    let pending = match app.store.open_pending(opening).await? {
        Opened::Refused(why) => return Err(story.unentitled(app, permit, why).await),
        Opened::Yes { value, superseded } => {
            app.reaper.nudge_for(&superseded);
            value
        }
    };
    let minted = match slot.mint(backend.deadline(), || backend.mint(&pending, order, &plan.rendered)).await {
        Ok(_) if backend.revocability() == Revocability::ByToken && pending.kept().is_none() => {
            let error = MintError::OutcomeUnknown("nothing was kept by which to take it back".to_owned());
            return Err(abandon(app, story, pending, waiting, error).await);
        }
        Ok(minted) => minted,
        Err(error) => return Err(abandon(app, story, pending, waiting, error).await),
    };
    let active = State::Active { expires_at: minted.expires_at };
    let entry = story.entry(Event::Issued, permit, pending.lease(), minted.expires_at);
    match app.store.transition(order.lease, waiting, active, pending.kept(), Some(entry)).await {
        Ok(true) => Ok(answer(permit, order, minted, handle, backend.revocability() != Revocability::None)),
        lost => {
            // Somebody decided to take it back while it was made (or the store is gone): it is here, so
            // it can be taken back for certain now.
            take_back_minted(app, &pending, minted.expires_at).await;
            if lost.is_err() {
                let lease = Lease { sealed: pending.kept(), ..pending.lease().clone() };
                let decision = Revocation {
                    targets: Targets::Leases(vec![order.lease]),
                    because: Ending::Abandoned,
                    close_sessions: false,
                    at: app.clock.now(),
                    actor: None,
                };
                app.reaper.take_back(app.reaper.decide(vec![lease], &decision)).await;
            }
            lost?;
            Err(Refusal::Denied { decision: story.decision, reasons: Vec::new() })
        }
    }
}

/// The mint failed: ends the lease if certainly nothing was made, else leaves it to the reaper.
async fn abandon(app: &App, story: &Story, pending: PendingLease, waiting: State, error: MintError) -> Refusal {
    let lease = pending.lease();
    let certainly_nothing = error.made_nothing();
    let now = app.clock.now();
    let after = match pending.kept() {
        // Something came to be all the same, and this takes it back.
        Some(_) => Some(State::take_back_now(now, Ending::Abandoned)),
        None if certainly_nothing => Some(State::Ended { how: Ending::Abandoned, at: now }),
        None => waiting.take_back(lease.placement().revocability, now, Ending::Abandoned),
    };
    tracing::warn!(decision = %story.decision, lease = %lease.id(), backend = %lease.placement().backend, %error, "mint failed");
    let mut entry = Entry::new(now, Event::Failed);
    entry.decision_id = Some(story.decision);
    entry.lease_id = Some(lease.id());
    entry.grant = Some(lease.subject().grant.clone());
    entry.backend = Some(lease.placement().backend.clone());
    entry.reason = Some(error.to_string());
    if let Some(after) = after
        && let Err(error) = app.store.transition(lease.id(), waiting, after, pending.kept(), Some(entry)).await
    {
        // The lease stays `Pending` on disk, and the reaper comes for it.
        tracing::warn!(lease = %lease.id(), %error, "a failed mint is not recorded yet");
    }
    app.reaper.nudge();
    story.unfit(error)
}

/// The credential exists for certain, and its lease is on the way out: says so in the lease, and takes it back.
async fn take_back_minted(app: &App, pending: &PendingLease, expires_at: Timestamp) {
    let id = pending.lease().id();
    let Ok(Some(lease)) = app.store.lease(id).await else { return };
    let now = app.clock.now();
    let known = match *lease.state() {
        State::Revoking { because, .. } => State::take_back_now(now, because),
        State::Outliving { because, .. } if pending.kept().is_some() => State::take_back_now(now, because),
        State::Outliving { because, .. } => State::Outliving { until: expires_at, why: Outlives::Irrevocable, because },
        _ => return,
    };
    if let Err(error) = app.store.transition(id, lease.state().clone(), known, pending.kept(), None).await {
        tracing::warn!(lease = %id, %error, "the outcome of a mint is not recorded yet");
    }
    if let Ok(Some(lease)) = app.store.lease(id).await {
        app.reaper.take_back(vec![lease]).await;
    }
}

/// The lease's new expiry is durable before the system is told.
async fn extend(
    app: &App,
    backend: &dyn RemoteBackend,
    slot: Slot,
    permit: &Permit,
    rotation: Rotation,
    expires_at: Timestamp,
    story: &Story,
) -> Result<TokenResponse, Refusal> {
    let handle = app.new_handle(rotation.lease);
    let mut entry = story.blank(Event::Renewed);
    entry.grant = Some(permit.grant().name().clone());
    entry.rule = Some(permit.rule().clone());
    entry.expires_at = Some(expires_at);
    let lease = match app.store.extend(rotation, hash(handle.expose()), expires_at, entry).await? {
        Opened::Yes { value, .. } => value,
        Opened::Refused(why) => return Err(story.unentitled(app, permit, why).await),
    };
    if let Err(error) = slot.extend(backend.deadline(), backend.extend(&lease, expires_at)).await {
        tracing::warn!(decision = %story.decision, lease = %lease.id(), %error, "the backend did not extend");
        return Err(Refusal::Backend { decision: story.decision });
    }
    Ok(TokenResponse {
        credential: Credential::unchanged(),
        expires_in: expires_at.since(story.at).as_secs(),
        scope: permit.scope().to_vec(),
        handle,
        lease_id: lease.id(),
        revocable: backend.revocability() != Revocability::None,
    })
}

fn answer(permit: &Permit, order: &Order, minted: Minted, handle: LeaseHandle, revocable: bool) -> TokenResponse {
    TokenResponse {
        credential: minted.credential,
        expires_in: minted.expires_at.since(order.at).as_secs(),
        scope: permit.scope().to_vec(),
        handle,
        lease_id: order.lease,
        revocable,
    }
}

/// A lease in the making.
struct Draft {
    family: Family,
    subject: Subject,
    token: TokenKey,
    by: Entitlement,
}

impl Draft {
    /// The lease, and what entitles to it.
    fn lease(self, app: &App, order: &Order, placement: Placement, state: State) -> (Lease, Entitlement) {
        let digest = Arc::clone(app.policies.current().digest());
        let lease =
            Lease::draft(order.lease, self.family, self.subject, placement, order.at, self.token, digest, state);
        (lease, self.by)
    }
}

/// When the family began: lease ids are UUIDs of version 7, and so hold their time.
fn lease_started(lease: &Lease) -> Timestamp {
    let millis = lease.family().root.uuid().get_timestamp().map(|at| {
        let (secs, nanos) = at.to_unix();
        secs * 1000 + u64::from(nanos / 1_000_000)
    });
    millis.and_then(|ms| i64::try_from(ms).ok()).map_or_else(|| lease.opened_at(), Timestamp::from_millis)
}

fn hash_request(id: &RequestId) -> Hash {
    hash(id.as_str())
}

/// SHA-256 of a secret text.
#[must_use]
pub fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| hex_of_byte(*byte)).map(char::from).collect()
}
