//! The embedded store: one SQLite file, one writer with group commit, readers beside it.
//!
//! Write-ahead log with `synchronous=FULL`: what was answered survives a power cut. One process per
//! file, held by a lock beside it, because the end of the audit chain is kept in memory.

mod files;
mod folds;
mod packed;
mod recent;
mod rows;
mod schema;
mod tokens;
mod verbs;
mod writer;

use super::{
    Answer, Filter, Fold, FreezeTarget, Hash, Held, Opened, Opening, PendingLease, Revocation, Rotation, Store,
    StoreError, Targets,
};
use crate::{
    audit::{Entry, Line, Link},
    clock::{Clock, Timestamp},
    leases::{Lease, State},
    sealing::Sealed,
};
use folds::Folds;
use futures_util::future::BoxFuture;
use jobpass_policy::Freezes;
use jobpass_protocol::{BackendName, LeaseId};
use packed::{Kind, Samples, Sort};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use rustix::fs::{FlockOperation, flock, statvfs};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use verbs::Texts;
use writer::{Shared, Writer, lock};

/// How much one step of [`Store::expire`] ends, and of [`Store::revoke`] decides: a longer transaction
/// would hold up exchanges.
const STEP: usize = 256;
/// How long the answer about free space is good for.
const SPACE_CHECK: Duration = Duration::from_secs(1);
/// Connections that are kept for readers.
const READERS: usize = 4;

/// What can be chosen about the embedded store.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// Free bytes on its disk under which nothing is issued, so that revocations can still be written.
    pub reserve_bytes: u64,
    /// How long leases are kept after they ended.
    pub keep_ended: Duration,
    /// How long audit entries are kept after every stream has written them; `None`: for ever.
    pub keep_audit: Option<Duration>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { reserve_bytes: 64 << 20, keep_ended: 7 * day, keep_audit: Some(30 * day) }
    }
}

/// The embedded store.
pub struct SqliteStore {
    path: PathBuf,
    options: SqliteOptions,
    writer: Writer,
    shared: Arc<Shared>,
    readers: Arc<Mutex<Vec<Connection>>>,
    space: Mutex<Option<(Instant, Result<(), StoreError>)>>,
    // Held until the store is closed.
    held: Mutex<Option<File>>,
}

/// The right to a store's file and to what lies beside it, which one process has at a time.
pub struct Claim {
    path: PathBuf,
    held: File,
}

impl Claim {
    /// Claims the store in the file `path`, whose directory exists, before anything in there is touched.
    ///
    /// # Errors
    /// When it belongs to another running server, or the lock beside it cannot be made.
    pub fn new(path: &Path) -> Result<Self, StoreError> {
        let held = own_file(&path.with_added_extension("lock"))?;
        flock(&held, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            StoreError::Unavailable(format!("another server is running on {}: stop it first", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), held })
    }
}

impl SqliteStore {
    /// Opens or makes the store that was claimed.
    ///
    /// # Errors
    /// When the file cannot be opened for writing, or belongs to a newer version of this one.
    pub fn open(claim: Claim, options: SqliteOptions, clock: Arc<dyn Clock>) -> Result<Arc<Self>, StoreError> {
        let Claim { path, held } = claim;
        let path = path.as_path();
        // Made here for its mode; SQLite gives the same one to the files beside it.
        drop(own_file(path)?);
        let conn = schema::open_writer(path)?;
        let shared = Arc::new(Shared {
            failure: Mutex::new(None),
            folds: Arc::new(Mutex::new(Folds::default())),
            freezes: RwLock::new(verbs::freezes(&conn)?),
            samples: Samples::load(&conn)?,
            head: watch::Sender::new(Link::START),
            recent: Mutex::default(),
        });
        let writer = Writer::start(path, conn, shared.clone(), clock)?;
        let (path, readers, space) = (path.to_owned(), Arc::default(), Mutex::new(None));
        Ok(Arc::new(Self { path, options, writer, shared, readers, space, held: Mutex::new(Some(held)) }))
    }

    /// Reads on a thread where waiting for the disk holds up nobody.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (readers, path, samples) = (self.readers.clone(), self.path.clone(), self.shared.samples.clone());
        let read = move || {
            let idle = lock(&readers).pop();
            let conn = match idle {
                Some(conn) => conn,
                None => {
                    let conn = schema::open_reader(&path)?;
                    samples.attach(&conn)?;
                    conn
                }
            };
            let answer = work(&conn)?;
            let mut idle = lock(&readers);
            if idle.len() < READERS {
                idle.push(conn);
            }
            Ok(answer)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(answer) => answer.map_err(|fault: Fault| fault.into()),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }

    /// Whether there is space for more than revocations.
    fn check_space(&self) -> Result<(), StoreError> {
        let mut space = lock(&self.space);
        if let Some((at, answer)) = &*space
            && at.elapsed() < SPACE_CHECK
        {
            return answer.clone();
        }
        let reserve_bytes = self.options.reserve_bytes;
        let answer = match statvfs(&self.path) {
            Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) >= reserve_bytes => Ok(()),
            Ok(_) => Err(StoreError::Reserve { reserve_bytes }),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        };
        *space = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn open_lease(&self, opening: Opening) -> Result<Opened<()>, StoreError> {
        self.check_space()?;
        let body = opening.entry.to_json().map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let (subject, samples) = (&opening.lease.subject, &self.shared.samples);
        let kind = |sort| Kind(sort, subject.issuer.clone());
        let texts = Arc::new(Texts {
            claims: samples.pack(&kind(Sort::Claims), &subject.claims),
            entry: samples.pack(&kind(Sort::Entry), &body),
            body: body.into(),
        });
        let written = Arc::clone(&texts);
        let opened = self.writer.write(move |tx| verbs::open(tx, &opening, &texts)).await?;
        if matches!(opened, Opened::Yes { .. }) {
            self.shared.samples.written(&written.claims);
            self.shared.samples.written(&written.entry);
        }
        Ok(opened)
    }
}

impl Store for SqliteStore {
    fn open_active(&self, opening: Opening) -> Answer<'_, Opened<()>> {
        Box::pin(self.open_lease(opening))
    }

    fn open_pending(&self, opening: Opening) -> Answer<'_, Opened<PendingLease>> {
        Box::pin(async move {
            let lease = opening.lease.clone();
            Ok(match self.open_lease(opening).await? {
                Opened::Yes { value: (), superseded } => Opened::Yes { value: PendingLease::new(lease), superseded },
                Opened::Refused(refusal) => Opened::Refused(refusal),
            })
        })
    }

    fn transition(
        &self,
        lease: LeaseId,
        from: State,
        to: State,
        kept: Option<Sealed>,
        entry: Option<Entry>,
    ) -> Answer<'_, bool> {
        Box::pin(self.writer.write(move |tx| verbs::transition(tx, lease, &from, &to, kept.as_ref(), entry.as_ref())))
    }

    fn sealed(&self, after: Option<LeaseId>, limit: usize) -> Answer<'_, Vec<Lease>> {
        Box::pin(self.read(move |conn| {
            let rest = "INDEXED BY leases_sealed WHERE sealed IS NOT NULL AND id > ?1 ORDER BY id LIMIT ?2";
            let after = after.map_or([0; 16], |id| *id.as_bytes());
            rows::find_leases(conn, rest, params![after, limit])
        }))
    }

    fn reseal(&self, changes: Vec<(LeaseId, Sealed, Sealed)>) -> Answer<'_, usize> {
        Box::pin(self.writer.write(move |tx| verbs::reseal(tx, &changes)))
    }

    fn seal_check(&self) -> Answer<'_, Option<Sealed>> {
        Box::pin(self.read(|conn| {
            let sql = "SELECT value FROM sealing WHERE name = 'check'";
            let read = |row: &rusqlite::Row<'_>| Ok(Sealed::stored(row.get_ref(0)?.as_blob()?));
            Ok(conn.query_row(sql, [], read).optional()?)
        }))
    }

    fn set_seal_check(&self, check: Sealed) -> Answer<'_, ()> {
        Box::pin(self.writer.write(move |tx| {
            tx.conn.execute("INSERT OR REPLACE INTO sealing VALUES ('check', ?1)", [check.bytes()])?;
            Ok(())
        }))
    }

    fn extend(
        &self,
        rotation: Rotation,
        handle: Hash,
        expires_at: Timestamp,
        entry: Entry,
    ) -> Answer<'_, Opened<Lease>> {
        Box::pin(async move {
            self.check_space()?;
            self.writer.write(move |tx| verbs::extend(tx, &rotation, &handle, expires_at, &entry)).await
        })
    }

    fn revoke(&self, revocation: Revocation) -> Answer<'_, Vec<Lease>> {
        Box::pin(async move {
            let Targets::Leases(ids) = &revocation.targets else {
                return self.writer.write(move |tx| verbs::revoke(tx, &revocation)).await;
            };
            let mut leases = Vec::with_capacity(ids.len());
            for step in ids.chunks(STEP) {
                let step = Revocation { targets: Targets::Leases(step.to_vec()), ..revocation.clone() };
                leases.extend(self.writer.write(move |tx| verbs::revoke(tx, &step)).await?);
            }
            Ok(leases)
        })
    }

    fn agenda(&self) -> Answer<'_, Vec<(BackendName, Timestamp)>> {
        Box::pin(self.read(|conn| {
            // One step into the index per backend, however many leases it has.
            let sql = "SELECT backend, at FROM leases INDEXED BY leases_due WHERE state < 4 AND backend > ?1 \
                 ORDER BY backend, at LIMIT 1";
            let mut statement = conn.prepare_cached(sql)?;
            let mut agenda: Vec<(BackendName, Timestamp)> = Vec::new();
            loop {
                let last = agenda.last().map_or("", |(name, _)| name.as_str());
                let next = statement.query_row([last], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).optional()?;
                let Some((name, at)) = next else { return Ok(agenda) };
                agenda.push((BackendName::parse(&name).map_err(rows::corrupt)?, Timestamp::from_millis(at)));
            }
        }))
    }

    fn due(&self, backend: BackendName, now: Timestamp, limit: usize) -> Answer<'_, Vec<Lease>> {
        Box::pin(self.read(move |conn| {
            let rest = "INDEXED BY leases_due WHERE backend = ?1 AND at <= ?2 AND state < 4 ORDER BY at LIMIT ?3";
            rows::find_leases(conn, rest, params![backend.as_str(), now.millis(), limit])
        }))
    }

    fn expire(&self, backend: BackendName, now: Timestamp) -> Answer<'_, usize> {
        Box::pin(self.writer.write(move |tx| verbs::expire(tx, &backend, now, STEP)))
    }

    fn outliving(&self, backend: BackendName) -> Answer<'_, Vec<LeaseId>> {
        Box::pin(self.read(move |conn| {
            let sql = "SELECT id FROM leases INDEXED BY leases_due WHERE backend = ?1 AND state < 4 AND state = 3";
            let mut statement = conn.prepare_cached(sql)?;
            let ids = statement.query_map([backend.as_str()], |row| row.get(0).map(rows::to_lease_id))?;
            Ok(ids.collect::<Result<_, _>>()?)
        }))
    }

    fn lease(&self, id: LeaseId) -> Answer<'_, Option<Lease>> {
        Box::pin(self.read(move |conn| Ok(rows::find_lease(conn, id)?.map(|(lease, _)| lease))))
    }

    fn family(&self, id: LeaseId) -> Answer<'_, Vec<Lease>> {
        Box::pin(self.read(move |conn| verbs::family(conn, id)))
    }

    fn held(&self, id: LeaseId, handle: Hash) -> Answer<'_, Held> {
        Box::pin(self.read(move |conn| {
            let Some((lease, present)) = rows::find_lease(conn, id)? else { return Ok(Held::Unknown) };
            if bool::from(present.ct_eq(&handle)) {
                return Ok(Held::Current(lease));
            }
            let spent = rows::find_spent(conn, id)?.iter().any(|spent| bool::from(spent.handle.ct_eq(&handle)));
            Ok(if spent { Held::Spent(lease) } else { Held::Unknown })
        }))
    }

    fn leases(&self, filter: Filter, limit: usize) -> Answer<'_, Vec<Lease>> {
        Box::pin(self.read(move |conn| {
            let sql = format!(
                "SELECT {} FROM leases WHERE (?1 OR state < 4) AND (?2 IS NULL OR \"grant\" = ?2) AND \
                 (?3 IS NULL OR issuer = ?3) AND id < ?4 ORDER BY id DESC",
                rows::LEASE
            );
            let (grant, issuer) =
                (filter.grant.as_ref().map(|g| g.as_str()), filter.issuer.as_ref().map(|i| i.as_str()));
            let mut statement = conn.prepare_cached(&sql)?;
            let before = filter.before.map_or([0xff; 16], |id| *id.as_bytes());
            let mut found = statement.query(params![filter.ended, grant, issuer, before])?;
            let mut leases = Vec::new();
            while leases.len() < limit
                && let Some(row) = found.next()?
            {
                let lease = rows::lease(row)?;
                if has_claims(&lease, &filter.claims)? {
                    leases.push(lease);
                }
            }
            Ok(leases)
        }))
    }

    fn record(&self, entry: Entry, fold: Option<Fold>) -> Answer<'_, ()> {
        Box::pin(async move {
            let first = fold.map(|fold| lock(&self.shared.folds).fold(fold, &entry));
            if first == Some(None) {
                return Ok(());
            }
            let (at, body, packed) = self.shared.samples.pack_entry(&entry)?;
            let packed = Arc::new(packed);
            let text = Arc::clone(&packed);
            let written = self.writer.write(move |tx| tx.append_text(at, Arc::clone(&body), &text)).await;
            match (&written, first.flatten()) {
                (Ok(()), _) => self.shared.samples.written(&packed),
                (Err(_), Some(window)) => lock(&self.shared.folds).forget(&window),
                (Err(_), None) => {}
            }
            written
        })
    }

    fn freezes(&self) -> Answer<'_, Freezes> {
        let freezes = self.shared.freezes.read().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(std::future::ready(Ok(freezes)))
    }

    fn freeze(&self, target: FreezeTarget, reason: Option<String>, entry: Entry) -> Answer<'_, ()> {
        Box::pin(self.writer.write(move |tx| verbs::freeze(tx, &target, reason.as_deref(), &entry)))
    }

    fn prune(&self, now: Timestamp) -> Answer<'_, usize> {
        let ended_before = now - self.options.keep_ended;
        let audited_before = self.options.keep_audit.map(|keep| now - keep);
        Box::pin(self.writer.write(move |tx| verbs::prune(tx, now, ended_before, audited_before)))
    }

    fn audit(&self, after: u64, limit: usize) -> Answer<'_, Vec<Line>> {
        if let Some(lines) = lock(&self.shared.recent).after(after, limit) {
            return Box::pin(std::future::ready(Ok(lines)));
        }
        Box::pin(self.read(move |conn| {
            // The entry before the first one is read for its hash; without it there is no line to show.
            let sql = "SELECT seq, hash, unpack(body) FROM audit WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
            let mut statement = conn.prepare_cached(sql)?;
            let mut found = statement.query(params![after, limit.saturating_add(1)])?;
            let mut prev = None;
            let mut lines = Vec::new();
            while let Some(row) = found.next()? {
                let link = Link { seq: row.get(0)?, hash: row.get(1)? };
                let before = if link.seq == 1 { Some(Link::START.hash) } else { prev };
                if let Some(prev) = before
                    && link.seq > after
                    && lines.len() < limit
                {
                    lines.push(Line { link, prev, entry: row.get::<_, String>(2)?.into() });
                }
                prev = Some(link.hash);
            }
            Ok(lines)
        }))
    }

    fn audit_head(&self) -> watch::Receiver<Link> {
        self.shared.head.subscribe()
    }

    fn streamed(&self, stream: String) -> Answer<'_, Option<u64>> {
        Box::pin(self.read(move |conn| {
            let sql = "SELECT value FROM progress WHERE name = ?1";
            Ok(conn.prepare_cached(sql)?.query_row([format!("stream:{stream}")], |row| row.get(0)).optional()?)
        }))
    }

    fn keep_for_streams(&self, streams: Vec<&'static str>) -> Answer<'_, ()> {
        Box::pin(self.writer.write(move |tx| verbs::keep_for_streams(tx, &streams)))
    }

    fn set_streamed(&self, stream: String, seq: u64) -> Answer<'_, ()> {
        Box::pin(self.writer.write(move |tx| {
            let sql = "INSERT OR REPLACE INTO progress VALUES (?1, ?2)";
            let seq = i64::try_from(seq).map_err(rows::corrupt)?;
            tx.conn.prepare_cached(sql)?.execute((format!("stream:{stream}"), seq))?;
            Ok(())
        }))
    }

    fn check(&self) -> Result<(), StoreError> {
        match &*lock(&self.shared.failure) {
            Some(failure) => Err(failure.clone()),
            None => self.check_space(),
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            lock(&self.readers).clear();
            self.writer.close().await;
            *lock(&self.held) = None;
        })
    }
}

/// Why a piece of work on the database failed.
#[derive(Debug)]
enum Fault {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl Fault {
    /// Whether there was no space, and nothing else is wrong.
    fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }

    /// Whether somebody else held the lock, and nothing was done.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Store(error) => error,
            Fault::Sqlite(error) => match error.sqlite_error_code() {
                None | Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(error.to_string()),
                Some(_) => Self::Unavailable(error.to_string()),
            },
        }
    }
}

fn own_file(path: &Path) -> Result<File, StoreError> {
    let made = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))
}

fn has_claims(lease: &Lease, wanted: &[(String, String)]) -> Result<bool, Fault> {
    if wanted.is_empty() {
        return Ok(true);
    }
    let claims: serde_json::Value = serde_json::from_str(&lease.subject.claims).map_err(rows::corrupt)?;
    let text = |name: &str| match claims.get(name)? {
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    Ok(wanted.iter().all(|(name, value)| text(name).as_ref() == Some(value)))
}

#[cfg(test)]
mod tests;
