//! The one thread that writes, with group commit: verbs that arrive together share one transaction
//! and one fsync. No answer leaves before its commit, and no verb's failure is another verb's.

use super::{
    Fault,
    files::{Database, Files},
    folds::Folds,
    packed::{Packed, Samples},
    recent::Recent,
    rows::Inserts,
    schema,
    tokens::Tokens,
};
use crate::{
    audit::{Entry, Line, Link},
    clock::{Clock, Timestamp},
    store::StoreError,
};
use jobpass_policy::Freezes;
use rusqlite::Connection;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicI32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// How long the writer waits for more for each verb that it had last time, when that was more than one,
/// and how long at most: a fuller batch costs each of its verbs less.
const GATHER: Duration = Duration::from_micros(60);
const GATHER_AT_MOST: Duration = Duration::from_millis(1);
const MAX_BATCH: usize = 256;
/// How often an idle writer looks after folded denials and a store that failed.
const TICK: Duration = Duration::from_millis(500);
/// Pages in the log after which the checkpointer takes its next step.
const CHECKPOINT_STEP: i32 = 500;
/// Pages in the log after which the writer waits for the last step, so that the log starts again.
const LOG_PAGES: i32 = 4000;

/// What a verb sees of its batch's transaction.
pub(super) struct Transaction<'c> {
    /// The connection, inside the transaction.
    pub(super) conn: &'c Connection,
    /// The time of the batch.
    pub(super) now: Timestamp,
    /// What is frozen once the batch is durable, if that changed.
    pub(super) freezes: Option<Freezes>,
    tokens: &'c mut Option<Tokens>,
    /// Statements that are ready.
    pub(super) inserts: Inserts<'c>,
    head: Link,
    lines: Vec<Line>,
}

impl Transaction<'_> {
    /// The tokens that were used.
    pub(super) fn tokens(&mut self) -> Result<&mut Tokens, Fault> {
        Ok(match &mut *self.tokens {
            Some(tokens) => tokens,
            none => none.insert(Tokens::load(self.conn)?),
        })
    }

    /// Adds an entry to the audit chain.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), Fault> {
        let body = entry.to_json().map_err(super::rows::corrupt)?;
        let packed = Packed::plain(&body);
        self.append_text(entry.at, body.into(), &packed)
    }

    /// Adds an entry that is JSON already, and packed, to the audit chain.
    pub(super) fn append_text(&mut self, at: Timestamp, body: Arc<str>, packed: &Packed) -> Result<(), Fault> {
        packed.write_sample(self.conn)?;
        let next = self.head.next(&body);
        let seq = i64::try_from(next.seq).map_err(super::rows::corrupt)?;
        self.inserts.audit.execute((seq, at.millis(), &next.hash, packed.bytes()))?;
        self.lines.push(Line { link: next, prev: self.head.hash, entry: body });
        self.head = next;
        Ok(())
    }
}

/// Something to be done in a transaction; it may be run again after a rollback.
trait Job: Send {
    fn run(&mut self, tx: &mut Transaction<'_>) -> Result<(), Fault>;
    fn finish(self: Box<Self>, failure: Option<StoreError>);
}

struct Verb<T, F> {
    work: F,
    done: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnMut(&mut Transaction<'_>) -> Result<T, Fault> + Send> Job for Verb<T, F> {
    fn run(&mut self, tx: &mut Transaction<'_>) -> Result<(), Fault> {
        self.done = Some((self.work)(tx)?);
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<StoreError>) {
        let answer = match (failure, self.done) {
            (None, Some(done)) => Ok(done),
            (failure, _) => Err(failure.unwrap_or_else(closed)),
        };
        // The asker may be gone; what was written stays.
        let _ = self.reply.send(answer);
    }
}

/// Folded denials whose minute is over; they go back if they cannot be written.
struct Flush {
    entries: Vec<Entry>,
    folds: Arc<Mutex<Folds>>,
    samples: Arc<Samples>,
}

impl Job for Flush {
    fn run(&mut self, tx: &mut Transaction<'_>) -> Result<(), Fault> {
        self.entries.iter().try_for_each(|entry| {
            let (at, body, packed) = self.samples.pack_entry(entry)?;
            tx.append_text(at, body, &packed)
        })
    }

    fn finish(self: Box<Self>, failure: Option<StoreError>) {
        if failure.is_some() {
            lock(&self.folds).put_back(self.entries);
        }
    }
}

/// Writes something, to see whether the store is back.
struct Probe;

impl Job for Probe {
    fn run(&mut self, tx: &mut Transaction<'_>) -> Result<(), Fault> {
        let sql = "INSERT OR REPLACE INTO progress VALUES ('probe', ?1)";
        tx.conn.prepare_cached(sql)?.execute([tx.now.millis()])?;
        Ok(())
    }

    fn finish(self: Box<Self>, _: Option<StoreError>) {}
}

enum Message {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<()>),
}

/// What the writer and the rest of the store share.
pub(super) struct Shared {
    /// Why the last batch failed, until one succeeds.
    pub(super) failure: Mutex<Option<StoreError>>,
    /// Denials being folded.
    pub(super) folds: Arc<Mutex<Folds>>,
    /// What is frozen.
    pub(super) freezes: RwLock<Freezes>,
    /// What packed texts are compared with.
    pub(super) samples: Arc<Samples>,
    /// The end of the audit chain, as far as it is durable.
    pub(super) head: watch::Sender<Link>,
    /// The newest lines of the audit log.
    pub(super) recent: Mutex<Recent>,
}

/// Sends verbs to the writer's thread. When the last one is dropped, the thread ends.
pub(super) struct Writer(Sender<Message>);

impl Writer {
    /// Starts the thread on an open connection.
    pub(super) fn start(
        path: &Path,
        conn: Connection,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Fault> {
        let (sender, inbox) = channel();
        let head = schema::chain_head(&conn)?;
        shared.head.send_replace(head);
        let files = Files::of(path)?;
        let mut state = Thread {
            path: path.to_owned(),
            conn: None,
            log_pages: Arc::default(),
            checkpointer: start_checkpointer(path, Arc::clone(files.database()))?,
            files,
            checkpointed: 0,
            head,
            tokens: None,
            shared,
            clock,
        };
        state.adopt(conn)?;
        spawn("store-writer", move || state.run(&inbox))?;
        Ok(Self(sender))
    }

    /// Does `work` in a transaction and answers once it is durable.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let verb = Verb { work, done: None, reply };
        self.0.send(Message::Job(Box::new(verb))).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Ends the thread after what was sent before.
    pub(super) async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.0.send(Message::Close(reply)).is_ok() {
            // An error means that the thread has ended already.
            let _ = done.await;
        }
    }
}

struct Thread {
    path: PathBuf,
    files: Files,
    conn: Option<Connection>,
    log_pages: Arc<AtomicI32>,
    checkpointer: SyncSender<()>,
    checkpointed: i32,
    head: Link,
    /// None when it has to be read from disk: at the start, and after a failure.
    tokens: Option<Tokens>,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
}

impl Thread {
    fn run(mut self, inbox: &Receiver<Message>) {
        // Here, because nobody has to wait for it yet. What fails is tried again by the first batch.
        self.tokens = self.conn.as_ref().and_then(|conn| Tokens::load(conn).ok());
        let mut last = 1;
        let mut closing = None;
        while closing.is_none() {
            let mut batch: Vec<Box<dyn Job>> = Vec::new();
            match self.wait(inbox) {
                Ok(Message::Job(job)) => batch.push(job),
                Ok(Message::Close(reply)) => closing = Some(Some(reply)),
                Err(RecvTimeoutError::Timeout) => self.shrink(),
                Err(RecvTimeoutError::Disconnected) => closing = Some(None),
            }
            if last > 1 && closing.is_none() && !batch.is_empty() {
                thread::sleep((GATHER * last).min(GATHER_AT_MOST));
            }
            while closing.is_none() && batch.len() < MAX_BATCH {
                match inbox.try_recv() {
                    Ok(Message::Job(job)) => batch.push(job),
                    Ok(Message::Close(reply)) => closing = Some(Some(reply)),
                    Err(_) => break,
                }
            }
            last = u32::try_from(batch.len()).unwrap_or(u32::MAX);
            let now = self.clock.now();
            let folded = {
                let mut folds = lock(&self.shared.folds);
                if closing.is_some() { folds.take_all() } else { folds.take_due(now) }
            };
            if !folded.is_empty() {
                let Shared { folds, samples, .. } = &*self.shared;
                batch.push(Box::new(Flush { entries: folded, folds: folds.clone(), samples: samples.clone() }));
            }
            if batch.is_empty() && lock(&self.shared.failure).is_some() {
                batch.push(Box::new(Probe));
            }
            self.commit(batch);
            self.checkpoint();
        }
        if let Some(conn) = self.conn.take()
            && self.files.changed().is_none()
        {
            // Best effort: what is left in the log is read at the next start.
            let _ = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        if let Some(Some(reply)) = closing {
            let _ = reply.send(());
        }
    }

    fn wait(&self, inbox: &Receiver<Message>) -> Result<Message, RecvTimeoutError> {
        let watchful = lock(&self.shared.failure).is_some()
            || !lock(&self.shared.folds).is_empty()
            || self.log_pages.load(Ordering::Relaxed) >= CHECKPOINT_STEP;
        if watchful { inbox.recv_timeout(TICK) } else { inbox.recv().map_err(|_| RecvTimeoutError::Disconnected) }
    }

    fn commit(&mut self, mut batch: Vec<Box<dyn Job>>) {
        if !batch.is_empty()
            && let Some(failure) = self.meddled_with()
        {
            self.failed(&failure);
            return batch.into_iter().for_each(|job| job.finish(Some(failure.clone())));
        }
        match self.attempt(&mut batch) {
            Ok(failures) => {
                for (job, failure) in batch.into_iter().zip(failures) {
                    job.finish(failure);
                }
            }
            Err(fault) if batch.len() == 1 => {
                let failure = self.fail(fault);
                batch.into_iter().for_each(|job| job.finish(Some(failure.clone())));
            }
            // One of them spoiled the transaction: each gets its own.
            Err(fault) => {
                self.fail(fault);
                batch.into_iter().for_each(|job| self.commit(vec![job]));
            }
        }
    }

    /// Runs a batch in one transaction; says which of its jobs failed alone, without having written.
    fn attempt(&mut self, batch: &mut [Box<dyn Job>]) -> Result<Vec<Option<StoreError>>, Fault> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        if self.conn.is_none() {
            let conn = schema::open_writer(&self.path)?;
            self.head = schema::chain_head(&conn)?;
            self.adopt(conn)?;
        }
        let Some(conn) = &self.conn else { return Err(Fault::Store(closed())) };
        let before = conn.total_changes();
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        // Whoever held the lock may have used it.
        if let Some(failure) = self.meddled_with() {
            conn.execute_batch("ROLLBACK")?;
            self.failed(&failure);
            return Ok(vec![Some(failure); batch.len()]);
        }
        let (now, head, inserts) = (self.clock.now(), self.head, Inserts::prepare(conn)?);
        let tokens = &mut self.tokens;
        let mut tx = Transaction { conn, now, freezes: None, tokens, inserts, head, lines: Vec::new() };
        let mut failures = Vec::with_capacity(batch.len());
        for job in batch {
            let untouched = conn.total_changes();
            match job.run(&mut tx) {
                Ok(()) => failures.push(None),
                Err(fault) if !conn.is_autocommit() && conn.total_changes() == untouched => {
                    failures.push(Some(fault.into()));
                }
                Err(fault) => return Err(fault),
            }
        }
        conn.prepare_cached("COMMIT")?.execute([])?;
        if let Some(tokens) = tx.tokens {
            tokens.committed();
        }
        self.files.wrote_log();
        if let Some(freezes) = tx.freezes {
            *self.shared.freezes.write().unwrap_or_else(PoisonError::into_inner) = freezes;
        }
        if tx.head != self.head {
            self.head = tx.head;
            lock(&self.shared.recent).add(tx.lines);
            self.shared.head.send_replace(tx.head);
        }
        if conn.total_changes() != before {
            *lock(&self.shared.failure) = None;
        }
        Ok(failures)
    }

    /// After a failed batch: back to what is on disk.
    fn fail(&mut self, fault: Fault) -> StoreError {
        let (full, waited) = (fault.is_full(), fault.is_busy());
        let failure = StoreError::from(fault);
        let mut tokens = self.tokens.take();
        if let Some(conn) = self.conn.take() {
            let rolled_back = conn.is_autocommit() || conn.execute_batch("ROLLBACK").is_ok();
            // A connection that only ran out of space is sound; any other is opened anew, and what is on disk read again.
            if full && rolled_back {
                self.conn = Some(conn);
                self.tokens = tokens.take().map(Tokens::rolled_back);
            }
        }
        if !waited {
            self.files.wrote();
        }
        self.failed(&failure);
        failure
    }

    /// What is written now would be gone with this process; another file knows of other freezes and tokens.
    fn meddled_with(&self) -> Option<StoreError> {
        let path = self.files.changed()?.display();
        Some(StoreError::Unavailable(format!(
            "{path} was removed, replaced or changed while the server uses it: stop the server, and put the right file back"
        )))
    }

    fn failed(&self, why: &StoreError) {
        if lock(&self.shared.failure).replace(why.clone()).is_none() {
            tracing::error!(error = %why, "nothing can be written to the store");
        }
    }

    fn adopt(&mut self, mut conn: Connection) -> Result<(), Fault> {
        self.shared.samples.attach(&conn)?;
        let pages = self.log_pages.clone();
        conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, in_log: i32| {
            pages.store(in_log, Ordering::Relaxed);
            Ok(())
        }))?;
        self.conn = Some(conn);
        Ok(())
    }

    /// Lets the checkpointer take a step when there is one's worth in the log. The log starts again only
    /// when nothing is left in it, which under load takes a moment without writes: then the writer does
    /// the little that is left itself.
    fn checkpoint(&mut self) {
        let in_log = self.log_pages.load(Ordering::Relaxed);
        if in_log < self.checkpointed {
            self.checkpointed = 0;
        }
        let (last, step) = (in_log >= LOG_PAGES, in_log - self.checkpointed >= CHECKPOINT_STEP);
        // What somebody else did to the files is not to be taken for a step's work.
        if !(last || step) || self.files.changed().is_some() {
            return;
        }
        if last && let Some(conn) = &self.conn {
            // Not possible while the checkpointer is at it: then after the next batch. It gets no new step.
            let _ = conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)").and_then(|mut s| s.query_row([], |_| Ok(())));
            self.files.database().wrote();
        } else if step {
            self.files.database().step_begins();
            match self.checkpointer.try_send(()) {
                Ok(()) => self.checkpointed = in_log,
                Err(_) => self.files.database().step_ends(),
            }
        }
    }

    /// In a quiet moment, gives the log's space back.
    fn shrink(&mut self) {
        let Some(conn) = self.conn.as_ref().filter(|_| self.files.changed().is_none()) else { return };
        if self.log_pages.load(Ordering::Relaxed) < CHECKPOINT_STEP || conn.busy_timeout(Duration::ZERO).is_err() {
            return;
        }
        // 1: a reader is still in the log. The next quiet moment will do.
        let busy = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        if matches!(busy, Ok(0)) {
            self.log_pages.store(0, Ordering::Relaxed);
        }
        // A connection that waited longer or shorter would be as good.
        let _ = conn.busy_timeout(schema::BUSY_TIMEOUT);
        self.files.wrote();
    }
}

fn start_checkpointer(path: &Path, database: Arc<Database>) -> Result<SyncSender<()>, Fault> {
    let (step, steps) = sync_channel(1);
    let conn = schema::open_checkpointer(path)?;
    spawn("store-checkpointer", move || {
        while steps.recv().is_ok() {
            // What fails now is done by a later step.
            let _ = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            database.wrote();
            database.step_ends();
        }
    })?;
    Ok(step)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(body);
    spawned.map(drop).map_err(|error| Fault::Store(StoreError::Unavailable(error.to_string())))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> StoreError {
    StoreError::Unavailable("it is closed".to_owned())
}
