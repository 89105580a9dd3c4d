//! Administration over a Unix socket in the state directory: mode 0600, and the peer's user checked.
//! The same binary is its client; see [`crate::admin`].

use crate::{
    app::{App, reload_policies},
    audit::{Entry, Event, find},
    clock::Timestamp,
    leases::{Ending, Lease, resealing},
    signing::{Published, Rotation},
    store::{Filter, FreezeTarget, Revocation, StoreError, Targets},
};
use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
    serve::IncomingStream,
};
use jobpass_policy::did_you_mean;
use jobpass_protocol::{DecisionId, GrantName, IssuerName, LeaseId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{net::UnixListener, sync::oneshot, task::JoinHandle};

/// The socket's name in the state directory.
pub const SOCKET: &str = "admin.sock";
/// The most leases that one answer shows.
const MOST: usize = 100_000;
/// Leases that are read, and decided to be taken back, at once.
const PAGE: usize = 1000;
/// Why a freeze is refused.
pub(crate) const NO_REASON: &str = "a freeze needs a --reason: whoever finds it must know why";

/// Which leases an admin means.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Selection {
    /// Just these.
    #[serde(default)]
    pub ids: Vec<LeaseId>,
    /// All of this grant.
    pub grant: Option<GrantName>,
    /// All of this issuer.
    pub issuer: Option<IssuerName>,
    /// All whose claims have these values.
    #[serde(default)]
    pub claims: Vec<(String, String)>,
    /// All. Without it an empty selection means none, so that a forgotten option revokes nothing.
    #[serde(default)]
    pub all: bool,
    /// Ended ones too, where it lists.
    #[serde(default)]
    pub ended: bool,
    /// Only say which.
    #[serde(default)]
    pub dry_run: bool,
    /// The most to list.
    pub limit: Option<usize>,
}

/// A lease, as an admin sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// Where it stands, with that state's data.
    pub state: crate::leases::State,
    /// What was asked for.
    pub grant: String,
    /// By which rule.
    pub rule: String,
    /// On whose word.
    pub issuer: String,
    /// Where the credential lives.
    pub backend: String,
    /// What the remote object is called.
    pub remote_name: String,
    /// Since when.
    pub opened_at: Timestamp,
    /// Under which policies.
    pub policy: String,
    /// What the token said of the job.
    pub claims: serde_json::Value,
}

impl LeaseView {
    fn of(lease: &Lease) -> Self {
        let subject = lease.subject();
        Self {
            id: lease.id(),
            state: lease.state().clone(),
            grant: subject.grant.to_string(),
            rule: subject.rule.to_string(),
            issuer: subject.issuer.to_string(),
            backend: lease.placement().backend.to_string(),
            remote_name: lease.id().remote_name(),
            opened_at: lease.opened_at(),
            policy: lease.policy_digest().to_string(),
            claims: serde_json::from_str(&subject.claims).unwrap_or_default(),
        }
    }
}

/// Leases, and what there is to know beside them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Listing {
    /// The leases, newest first.
    pub leases: Vec<LeaseView>,
    /// What is not in here, for people.
    pub left_out: Option<String>,
    /// They were taken back, and the store could not record it: what that means.
    pub unrecorded: Option<String>,
    /// What may not be as it was meant, for people.
    #[serde(default)]
    pub note: Option<String>,
}

/// What an admin freezes or thaws.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FreezeRequest {
    /// One issuer; with `grant` absent too: everything.
    pub issuer: Option<IssuerName>,
    /// One grant.
    pub grant: Option<GrantName>,
    /// Why; absent: thaw.
    pub reason: Option<String>,
}

/// What is frozen, and why.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FreezeView {
    /// Everything.
    pub all: Option<String>,
    /// By issuer.
    pub issuers: Vec<(IssuerName, String)>,
    /// By grant.
    pub grants: Vec<(GrantName, String)>,
    /// The last freeze is in force, and the store could not record it: what that means.
    pub unrecorded: Option<String>,
    /// What may not be as it was meant, for people.
    #[serde(default)]
    pub note: Option<String>,
}

/// How keys are to be rotated.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RotateRequest {
    /// With overlap, or at once.
    pub rotation: Rotation,
}

/// A refusal of the admin socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdminError {
    /// What happened, and the cure.
    pub error: String,
}

/// The listening socket.
pub struct Socket {
    path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Socket {
    /// Listens.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn start(path: &Path, app: Arc<App>) -> io::Result<Self> {
        // What is left there is of a server that was killed: the store's lock says that none runs.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let service = router(app).into_make_service_with_connect_info::<Peer>();
        let server = axum::serve(listener, service).with_graceful_shutdown(async move {
            // Stopped or dropped: both mean to end.
            let _ = stopped.await;
        });
        Ok(Self { path: path.to_owned(), stop, task: tokio::spawn(server.into_future()) })
    }

    /// Stops listening and removes the socket.
    pub async fn stop(self) {
        // A server that ended by itself has dropped the receiver.
        let _ = self.stop.send(());
        let _ = self.task.await;
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the admin socket was gone");
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

impl Peer {
    fn name(&self) -> String {
        self.uid.map_or_else(|| "admin".to_owned(), |uid| format!("uid {uid}"))
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/leases/list", post(list))
        .route("/leases/revoke", post(revoke))
        .route("/decisions", post(decision))
        .route("/freeze", post(freeze))
        .route("/freezes", post(freezes))
        .route("/keys", post(keys))
        .route("/keys/rotate", post(rotate))
        .route("/keys/reseal", post(reseal))
        .route("/policies/reload", post(reload))
        .layer(middleware::from_fn(own_user_only))
        .with_state(app)
}

/// The server's own user, or root. The file's mode says the same; this holds where modes do not.
async fn own_user_only(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let own = rustix::process::geteuid().as_raw();
    match peer.uid {
        Some(uid) if uid == own || uid == 0 => next.run(request).await,
        _ => (
            StatusCode::FORBIDDEN,
            Json(AdminError { error: "the admin socket is for the server's own user and root".into() }),
        )
            .into_response(),
    }
}

/// An admin's request that was refused.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(AdminError { error: self.1 })).into_response()
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl Selection {
    /// Those that are not named one by one.
    fn filter(&self) -> Option<Filter> {
        let any = self.all || self.grant.is_some() || self.issuer.is_some() || !self.claims.is_empty();
        any.then(|| Filter {
            grant: self.grant.clone(),
            issuer: self.issuer.clone(),
            claims: self.claims.clone(),
            ended: self.ended,
            before: None,
        })
    }
}

async fn named(app: &App, ids: &[LeaseId]) -> Result<Vec<Lease>, Refused> {
    let mut leases = Vec::new();
    for id in ids {
        match app.store.lease(*id).await? {
            Some(lease) => leases.push(lease),
            None => return Err(Refused(StatusCode::NOT_FOUND, format!("there is no lease {id}"))),
        }
    }
    Ok(leases)
}

async fn list(State(app): State<Arc<App>>, Json(selection): Json<Selection>) -> Result<Json<Listing>, Refused> {
    let mut leases = named(&app, &selection.ids).await?;
    let mut left_out = None;
    if let Some(filter) = selection.filter() {
        let limit = selection.limit.unwrap_or(MOST).min(MOST);
        // One more, to see whether there is one.
        let mut found = app.store.leases(filter, limit + 1).await?;
        left_out = (found.len() > limit).then(|| format!("there are older ones than these {limit}"));
        found.truncate(limit);
        leases.extend(found);
    }
    Ok(Json(Listing { leases: leases.iter().map(LeaseView::of).collect(), left_out, ..Listing::default() }))
}

async fn revoke(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(selection): Json<Selection>,
) -> Result<Json<Listing>, Refused> {
    let mut taking = Taking::new(&app, selection.dry_run, peer.name());
    taking.take(named(&app, &selection.ids).await?).await;
    let mut note = None;
    if let Some(mut filter) = selection.filter() {
        loop {
            let page = app.store.leases(filter.clone(), PAGE).await?;
            let Some(oldest) = page.last() else { break };
            filter.before = Some(oldest.id());
            taking.take(page).await;
        }
        if filter.before.is_none() {
            let unknown = unknown(&app, selection.issuer.as_ref(), selection.grant.as_ref());
            let why = unknown.map(|unknown| format!(": {unknown}")).unwrap_or_default();
            note = Some(format!("no live lease fits what was said{why}"));
        }
    }
    Ok(Json(Listing { note, ..taking.end().await }))
}

/// Of names that nothing has now: so, and which may be meant. They may be right, of what was or will be.
fn unknown(app: &App, issuer: Option<&IssuerName>, grant: Option<&GrantName>) -> Option<String> {
    let policies = app.policies.current();
    if let Some(name) = grant.filter(|name| policies.grant(name.as_str()).is_none()) {
        return Some(format!("there is no grant {name}{}", policies.did_you_mean(name.as_str())));
    }
    let name = issuer.filter(|name| app.verifier.issuer(name).is_none())?;
    let nearest = did_you_mean(name.as_str(), app.verifier.issuers().map(IssuerName::as_str));
    let nearest = nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
    Some(format!("there is no issuer {name}{nearest}"))
}

/// A revocation, page by page: all is decided before a backend is waited for.
struct Taking<'a> {
    app: &'a App,
    dry_run: bool,
    decision: Revocation,
    leases: Vec<Lease>,
    /// Those that one answer does not show; the reaper comes for them by itself.
    more: usize,
    failure: Option<StoreError>,
}

impl<'a> Taking<'a> {
    fn new(app: &'a App, dry_run: bool, actor: String) -> Self {
        let decision = Revocation {
            targets: Targets::Leases(Vec::new()),
            because: Ending::RevokedByAdmin,
            close_sessions: true,
            at: app.clock.now(),
            actor: Some(actor),
        };
        Self { app, dry_run, decision, leases: Vec::new(), more: 0, failure: None }
    }

    async fn take(&mut self, mut page: Vec<Lease>) {
        if !self.dry_run {
            self.decision.targets = Targets::Leases(page.iter().map(Lease::id).collect());
            page = self.app.store.revoke(self.decision.clone()).await.unwrap_or_else(|error| {
                self.failure = Some(error);
                self.app.reaper.decide(page, &self.decision)
            });
        }
        let room = MOST.saturating_sub(self.leases.len());
        self.more += page.len().saturating_sub(room);
        self.leases.extend(page.into_iter().take(room));
    }

    async fn end(self) -> Listing {
        let mut leases: Vec<LeaseView> = self.leases.iter().map(LeaseView::of).collect();
        if !self.dry_run {
            for (view, state) in leases.iter_mut().zip(self.app.reaper.take_back(self.leases).await) {
                view.state = state;
            }
        }
        let left_out = (self.more > 0).then(|| format!("so are {} older ones, which are not shown", self.more));
        let unrecorded = self.failure.map(|error| {
            format!(
                "the store cannot record that they are taken back ({error}): the backends were asked all the same. The \
                 record follows, and their sessions are closed, when the store can be written; do it again if the \
                 server is restarted before"
            )
        });
        Listing { leases, left_out, unrecorded, note: None }
    }
}

async fn decision(
    State(app): State<Arc<App>>,
    Json(id): Json<DecisionId>,
) -> Result<Json<Vec<Box<RawValue>>>, Refused> {
    let entries = find::entries_of(&*app.store, id).await?;
    if entries.is_empty() {
        let why = "it is older than what the store keeps, or one of many like it within a minute, which become one \
                   entry of the audit log when the minute is over: then ask again";
        return Err(Refused(StatusCode::NOT_FOUND, format!("there is no decision {id}: {why}")));
    }
    let raw = entries
        .into_iter()
        .map(|entry| RawValue::from_string(entry).map_err(|error| StoreError::Corrupt(error.to_string())));
    Ok(Json(raw.collect::<Result<_, _>>()?))
}

async fn freeze(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<FreezeRequest>,
) -> Result<Json<FreezeView>, Refused> {
    if request.reason.as_ref().is_some_and(|reason| reason.trim().is_empty()) {
        return Err(Refused(StatusCode::BAD_REQUEST, NO_REASON.to_owned()));
    }
    let unknown = unknown(&app, request.issuer.as_ref(), request.grant.as_ref()).filter(|_| request.reason.is_some());
    let note = unknown.map(|unknown| format!("it is frozen as it was said, but {unknown}"));
    let mut entry = Entry::new(app.clock.now(), Event::Freeze);
    entry.actor = Some(peer.name());
    entry.issuer = request.issuer.clone();
    entry.grant = request.grant.clone();
    entry.reason = Some(request.reason.clone().unwrap_or_else(|| "thawed".to_owned()));
    let target = match (request.issuer, request.grant) {
        (Some(_), Some(_)) => {
            return Err(Refused(StatusCode::BAD_REQUEST, "freeze an issuer or a grant, one at a time".to_owned()));
        }
        (Some(issuer), None) => FreezeTarget::Issuer(issuer),
        (None, Some(grant)) => FreezeTarget::Grant(grant),
        (None, None) => FreezeTarget::All,
    };
    let unrecorded = match app.store.freeze(target.clone(), request.reason.clone(), entry).await {
        Ok(()) => None,
        Err(error) if request.reason.is_some() => Some(format!(
            "the store cannot record the freeze ({error}): it is in force until the server is restarted; freeze again \
             when the store can be written"
        )),
        // What cannot be recorded is not thawed: it would be frozen again after a restart.
        Err(error) => return Err(error.into()),
    };
    if let Some(why) = &unrecorded {
        tracing::error!(actor = peer.name(), ?target, "{why}");
    }
    app.freeze(&target, request.reason.as_deref());
    Ok(Json(FreezeView { unrecorded, note, ..frozen(&app) }))
}

async fn freezes(State(app): State<Arc<App>>) -> Json<FreezeView> {
    Json(frozen(&app))
}

fn frozen(app: &App) -> FreezeView {
    let freezes = app.freezes.load();
    FreezeView {
        all: freezes.all.clone(),
        issuers: freezes.issuers.iter().map(|(name, reason)| (name.clone(), reason.clone())).collect(),
        grants: freezes.grants.iter().map(|(name, reason)| (name.clone(), reason.clone())).collect(),
        ..FreezeView::default()
    }
}

async fn keys(State(app): State<Arc<App>>) -> Json<Vec<Published>> {
    Json(app.keys.published())
}

async fn rotate(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<RotateRequest>,
) -> Result<Json<Vec<Published>>, Refused> {
    let published = app
        .keys
        .rotate(request.rotation)
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut entry = Entry::new(app.clock.now(), Event::Keys);
    entry.actor = Some(peer.name());
    entry.reason = Some(match request.rotation {
        Rotation::Overlapping => "rotated with overlap".to_owned(),
        Rotation::AtOnce => "rotated at once: older tokens are refused".to_owned(),
    });
    app.record(entry, None).await;
    Ok(Json(published))
}

/// What is sealed anew, as an admin sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResealView {
    /// The id of the key that seals now.
    pub key: String,
    /// How many leases were sealed with another.
    pub leases: usize,
}

async fn reseal(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Result<Json<ResealView>, Refused> {
    let failed = |error: String| Refused(StatusCode::INTERNAL_SERVER_ERROR, error);
    app.sealing.load().map_err(|error| failed(error.to_string()))?;
    let (key, leases) =
        resealing::reseal(&app.sealing, &*app.store).await.map_err(|error| failed(error.to_string()))?;
    let mut entry = Entry::new(app.clock.now(), Event::Keys);
    entry.actor = Some(peer.name());
    entry.reason = Some(format!("sealed anew with the key {key}"));
    entry.count = u64::try_from(leases).ok();
    app.record(entry, None).await;
    Ok(Json(ResealView { key: key.to_string(), leases }))
}

/// How a reload went, as an admin sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadView {
    /// The digest of the policies in force.
    pub digest: String,
    /// Whether they changed.
    pub changed: bool,
    /// Directories that are not in force as they are on disk, and the diagnostics.
    pub problems: Vec<String>,
}

async fn reload(State(app): State<Arc<App>>) -> Json<ReloadView> {
    let report = reload_policies(&app).await;
    let problems =
        report.stale.iter().map(|(_, reason)| reason.clone()).chain(report.diagnostics.iter().cloned()).collect();
    Json(ReloadView { digest: app.policies.current().digest().to_string(), changed: report.changed, problems })
}
