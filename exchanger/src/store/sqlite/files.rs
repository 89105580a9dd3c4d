//! The store's files, as this process left them. SQLite trusts that nobody else touches them: a database that was
//! copied over, or a log that was cut, would take what is written from now on with it, freezes and used tokens too.

use super::{Fault, writer::lock};
use crate::store::StoreError;
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A file at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    /// Its device and its number there.
    file: (u64, u64),
    bytes: u64,
    /// In seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self { file: (file.dev(), file.ino()), bytes: file.len(), modified: (file.mtime(), file.mtime_nsec()) })
    }
}

/// The lock, the database and its log.
pub(super) struct Files {
    lock: PathBuf,
    locked: Option<Stamp>,
    database: Arc<Database>,
    log: PathBuf,
    /// `None` until something was written to it.
    logged: Option<Stamp>,
}

/// The database itself, which the checkpointer writes beside the writer.
pub(super) struct Database {
    path: PathBuf,
    left: Mutex<Option<Stamp>>,
    /// Steps of the checkpointer that are not over.
    steps: AtomicUsize,
}

impl Files {
    /// Those of a store that was just opened.
    ///
    /// # Errors
    /// When there is no such database.
    pub(super) fn of(path: &Path) -> Result<Self, Fault> {
        let beside = |end| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let left = Stamp::of(path)
            .ok_or_else(|| Fault::Store(StoreError::Unavailable(format!("{}: it was removed", path.display()))))?;
        let database = Database { path: path.to_owned(), left: Mutex::new(Some(left)), steps: AtomicUsize::new(0) };
        let (lock, log) = (beside(".lock"), beside("-wal"));
        Ok(Self { locked: Stamp::of(&lock), logged: Stamp::of(&log), lock, database: Arc::new(database), log })
    }

    /// The database.
    pub(super) const fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// The log was written to.
    pub(super) fn wrote_log(&mut self) {
        self.logged = Stamp::of(&self.log);
    }

    /// Any of them may have been written to, or made anew.
    pub(super) fn wrote(&mut self) {
        self.wrote_log();
        self.database.wrote();
    }

    /// A file that is not as it was left.
    pub(super) fn changed(&self) -> Option<&Path> {
        let is_another = |path: &Path, left: Stamp| Stamp::of(path).is_none_or(|now| now.file != left.file);
        if self.locked.is_some_and(|left| is_another(&self.lock, left)) {
            return Some(&self.lock);
        }
        let Database { path, left, steps } = &*self.database;
        // What the checkpointer is at changes. First, because it notes what it left before its step is over.
        let changes = steps.load(Ordering::Acquire) > 0;
        let left = *lock(left);
        if left.is_some_and(|left| if changes { is_another(path, left) } else { Stamp::of(path) != Some(left) }) {
            return Some(path);
        }
        (self.logged.is_some() && Stamp::of(&self.log) != self.logged).then_some(self.log.as_path())
    }
}

impl Database {
    /// It may have been written to, or made anew.
    pub(super) fn wrote(&self) {
        let mut left = lock(&self.left);
        *left = Stamp::of(&self.path);
    }

    /// The checkpointer is about to be asked for a step.
    pub(super) fn step_begins(&self) {
        self.steps.fetch_add(1, Ordering::AcqRel);
    }

    /// It is over, or not needed.
    pub(super) fn step_ends(&self) {
        self.steps.fetch_sub(1, Ordering::AcqRel);
    }
}
