//! Streams the audit log, after it is durable, to a file and to standard output as JSON lines.
//!
//! Each stream has a thread of its own and reads from the store by number: one that is slow, or that
//! cannot be written, holds up no exchange and loses nothing. It goes on where it was. A signed head
//! follows every minute and at the end.

use super::{Head, Line, Link, Sign};
use crate::{
    clock::{Clock, Timestamp},
    store::{Store, StoreError},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::JoinHandle,
};

/// How often a head is signed.
const HEAD_INTERVAL: Duration = Duration::from_secs(60);
/// How often the store is told how far a stream is.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long entries may gather before they are written together, and how often a file is looked after
/// that somebody rotates.
const GATHER: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(1);
/// How long a stop waits for a stream that hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lines that are written at once.
const CHUNK: usize = 512;
/// How much of a file's end is read for its last line.
const TAIL_BYTES: u64 = 1 << 20;

/// Where the audit log is streamed to.
#[derive(Clone, Debug, Default)]
pub struct StreamSettings {
    /// A file of JSON lines, appended to; made anew when somebody moved it away.
    pub file: Option<PathBuf>,
    /// Standard output.
    pub stdout: bool,
    /// A file that holds the newest signed head, to be kept elsewhere.
    pub head_file: Option<PathBuf>,
}

/// Starts the streams. Each ends, with a last head, when `stop` becomes true. From now on the store keeps
/// entries for these streams, and for no other one.
///
/// # Errors
/// When a file cannot be opened for writing.
pub async fn stream(
    settings: &StreamSettings,
    store: &Arc<dyn Store>,
    keys: &Arc<dyn Sign>,
    clock: &Arc<dyn Clock>,
    stop: &watch::Receiver<bool>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut targets = Vec::new();
    if let Some(path) = &settings.file {
        targets.push(Target::File(LogFile::open(path).map_err(|error| named(path, &error))?));
    }
    if settings.stdout {
        targets.push(Target::Stdout);
    }
    if let Some(path) = &settings.head_file {
        targets.push(Target::Head(path.clone()));
    }
    // A head follows the store, and has nothing to catch up with.
    let behind = targets.iter().filter(|target| !matches!(target, Target::Head(_))).map(Target::name);
    if let Err(error) = store.keep_for_streams(behind.collect()).await {
        tracing::warn!(%error, "the store does not know which audit streams there are: it may keep entries for longer");
    }
    let start = |target| {
        let (store, keys, clock, stop) = (store.clone(), keys.clone(), clock.clone(), stop.clone());
        let stream = Stream { target, store, keys, clock, runtime: Handle::current(), stop, saved: Link::START };
        stream.start()
    };
    targets.into_iter().map(start).collect()
}

enum Target {
    File(LogFile),
    Stdout,
    Head(PathBuf),
}

impl Target {
    /// The stream's name in the store.
    const fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Stdout => "stdout",
            Self::Head(_) => "head",
        }
    }
}

struct Stream {
    target: Target,
    store: Arc<dyn Store>,
    keys: Arc<dyn Sign>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    stop: watch::Receiver<bool>,
    saved: Link,
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Stream {
    fn start(self) -> io::Result<JoinHandle<()>> {
        let (done, ended) = oneshot::channel::<()>();
        let (name, mut stop) = (self.name(), self.stop.clone());
        // Not one of the runtime's threads: a write that hangs must not keep the server from stopping.
        thread::Builder::new().name(format!("audit-{name}")).spawn(move || {
            self.run();
            drop(done);
        })?;
        Ok(tokio::spawn(async move {
            // Both fail only when what they wait for is over.
            let _ = stop.wait_for(|stop| *stop).await;
            if tokio::time::timeout(PATIENCE, ended).await.is_err() {
                tracing::error!("the audit stream `{name}` hangs; it goes on at the next start");
            }
        }))
    }

    fn name(&self) -> &'static str {
        self.target.name()
    }

    fn run(mut self) {
        let mut at: Option<Link> = None;
        let (mut head_at, mut save_at) = (self.clock.now() + HEAD_INTERVAL, self.clock.now() + SAVE_INTERVAL);
        let mut failing = false;
        loop {
            let stopping = *self.stop.borrow_and_update();
            let now = self.clock.now();
            let head = stopping || head_at.is_over(now, HEAD_INTERVAL);
            let save = stopping || save_at.is_over(now, SAVE_INTERVAL);
            match self.step(&mut at, head, save) {
                Ok(()) => {
                    if head {
                        head_at = now + HEAD_INTERVAL;
                    }
                    if save {
                        save_at = now + SAVE_INTERVAL;
                    }
                    if failing {
                        tracing::info!("the audit stream `{}` works again", self.name());
                    }
                    failing = false;
                }
                Err(error) => {
                    if !failing || stopping {
                        tracing::error!(%error, "the audit stream `{}` stands still; nothing is lost", self.name());
                    }
                    failing = true;
                }
            }
            if stopping {
                return;
            }
            self.wait(at, failing, head_at.min(save_at));
        }
    }

    /// Writes all that the store has and the stream has not, then what else it is time for.
    fn step(&mut self, at: &mut Option<Link>, head: bool, save: bool) -> Result<(), StreamError> {
        let mut last = match *at {
            Some(last) => last,
            None => self.resume()?,
        };
        *at = Some(last);
        if let Target::Head(path) = &self.target {
            last = *self.store.audit_head().borrow();
            if head && let Some(head) = self.sign(last) {
                replace(path, &format!("{head}\n"))?;
            }
            *at = Some(last);
            return Ok(());
        }
        self.follow_rotation(last)?;
        loop {
            let lines = self.runtime.block_on(self.store.audit(last.seq, CHUNK))?;
            let Some(end) = lines.last() else { break };
            let text: String = lines.iter().flat_map(|line| [line.to_text(), "\n".to_owned()]).collect();
            self.write(&text)?;
            last = end.link;
            *at = Some(last);
        }
        if head
            && last != Link::START
            && let Some(head) = self.sign(last)
        {
            self.write(&format!("{head}\n"))?;
        }
        if save { self.save(last) } else { Ok(()) }
    }

    /// Where the stream was: its file's last line says so; standard output's place is in the store.
    fn resume(&mut self) -> Result<Link, StreamError> {
        let newest = *self.store.audit_head().borrow();
        let mut last = Link::START;
        if let Target::File(file) = &mut self.target {
            last = file.last_link()?.unwrap_or(last);
        }
        if last == Link::START
            && let Some(seq) = self.runtime.block_on(self.store.streamed(self.name().to_owned()))?
        {
            // A line's hash is only asked for when there is a line to follow it.
            last = Link { seq, hash: if seq == newest.seq { newest.hash } else { Link::START.hash } };
        }
        if last.seq > newest.seq {
            tracing::error!(
                "the audit stream `{}` ends with entry {}, and the store with entry {}: was the store replaced?",
                self.name(),
                last.seq,
                newest.seq
            );
            last = newest;
        }
        self.saved = last;
        Ok(last)
    }

    /// After somebody moved the file away, the store has to know what was in it, or a crash would have it
    /// all written again.
    fn follow_rotation(&mut self, last: Link) -> Result<(), StreamError> {
        let Target::File(file) = &self.target else { return Ok(()) };
        if file.is_in_place() {
            return Ok(());
        }
        let path = file.path.clone();
        self.save(last)?;
        self.target = Target::File(LogFile::open(&path)?);
        tracing::info!(path = %path.display(), "the audit file was rotated");
        Ok(())
    }

    fn save(&mut self, last: Link) -> Result<(), StreamError> {
        if self.saved == last {
            return Ok(());
        }
        if let Target::File(file) = &self.target {
            file.file.sync_data()?;
        }
        self.runtime.block_on(self.store.set_streamed(self.name().to_owned(), last.seq))?;
        self.saved = last;
        Ok(())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        match &mut self.target {
            Target::File(file) => file.append(text),
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()
            }
            Target::Head(_) => Ok(()),
        }
    }

    fn sign(&self, link: Link) -> Option<String> {
        match Head::sign(link, self.clock.now(), &*self.keys) {
            Ok(head) => Some(head.to_text()),
            Err(error) => {
                tracing::error!(error, "the audit log's head is not signed");
                None
            }
        }
    }

    /// Until there is something to write, or to look after.
    fn wait(&mut self, at: Option<Link>, failing: bool, next: Timestamp) {
        let mut newest = self.store.audit_head();
        let (stop, clock) = (&mut self.stop, &self.clock);
        self.runtime.block_on(async {
            let more = async {
                if failing {
                    return tokio::time::sleep(IDLE).await;
                }
                // An error means that the store is gone, and the stop is near.
                let _ = newest.wait_for(|newest| Some(*newest) != at).await;
                tokio::time::sleep(GATHER).await;
            };
            tokio::select! {
                () = more => {}
                () = tokio::time::sleep(IDLE) => {}
                () = clock.sleep_until(next), if !failing => {}
                _ = stop.changed() => {}
            }
        });
    }
}

/// A file that is only appended to, whole lines at a time.
struct LogFile {
    path: PathBuf,
    file: File,
    /// Its length before a write that failed: what is behind it is half a line.
    torn_at: Option<u64>,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, torn_at: None })
    }

    /// Whether the path still names this file.
    fn is_in_place(&self) -> bool {
        match (fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
            _ => false,
        }
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        if let Some(length) = self.torn_at {
            self.file.set_len(length)?;
            self.torn_at = None;
        }
        let length = self.file.metadata()?.len();
        self.file.write_all(text.as_bytes()).inspect_err(|_| self.torn_at = Some(length))
    }

    /// The link of the last entry in the file. Half a line at its end, which a crash leaves, is cut off.
    fn last_link(&mut self) -> io::Result<Option<Link>> {
        let length = self.file.metadata()?.len();
        let start = length.saturating_sub(TAIL_BYTES);
        self.file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        self.file.read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < tail.len() {
            self.file.set_len(start + whole as u64)?;
        }
        let text = String::from_utf8_lossy(&tail[..whole]);
        Ok(text.lines().rev().find_map(Line::parse).map(|line| line.link))
    }
}

/// Replaces a file's content at once.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_added_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&next, path)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Entry, Event, verify::verify},
        clock::ManualClock,
        store::{Claim, SqliteOptions, SqliteStore},
    };
    use std::time::Instant;

    struct Key;

    impl Sign for Key {
        fn sign(&self, message: &[u8]) -> Result<(String, Vec<u8>), String> {
            Ok(("k1".to_owned(), message.to_vec()))
        }
    }

    struct World {
        directory: tempfile::TempDir,
        clock: ManualClock,
        store: Arc<dyn Store>,
        stop: watch::Sender<bool>,
        streams: Vec<JoinHandle<()>>,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let clock = ManualClock::at(Timestamp::from_secs(1_790_000_000));
            let options = SqliteOptions { reserve_bytes: 0, ..SqliteOptions::default() };
            let path = directory.path().join("jobpass.db");
            let claim = Claim::new(&path).expect("nobody else has it");
            let store = SqliteStore::open(claim, options, Arc::new(clock.clone())).expect("opens");
            Self { directory, clock, store, stop: watch::Sender::new(false), streams: Vec::new() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        async fn start(&mut self) {
            let (file, head_file) = (Some(self.path("audit.jsonl")), Some(self.path("head.json")));
            let settings = StreamSettings { file, stdout: false, head_file };
            let keys: Arc<dyn Sign> = Arc::new(Key);
            let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
            self.stop.send_replace(false);
            let streams = stream(&settings, &self.store, &keys, &clock, &self.stop.subscribe()).await;
            self.streams = streams.expect("starts");
        }

        async fn stop(&mut self) {
            self.stop.send_replace(true);
            for stream in self.streams.drain(..) {
                stream.await.expect("ends");
            }
        }

        async fn record(&self, count: usize) {
            for _ in 0..count {
                self.store.record(Entry::new(self.clock.now(), Event::Server), None).await.expect("records");
            }
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        async fn wait_for(&self, name: &str, what: &str, fits: impl Fn(&str) -> bool) {
            let start = Instant::now();
            while !fits(&self.read(name)) {
                assert!(start.elapsed() < Duration::from_secs(30), "{what}: {}", self.read(name));
                tokio::task::yield_now().await;
            }
        }

        /// The log passes, with its heads, from entry 1 to `last`.
        fn passes(&self, log: &str, last: u64) {
            let (report, problems) = verify(log.as_bytes(), &[], None).expect("reads");
            assert_eq!((problems, report.first, report.last.seq), (vec![], 1, last), "{log}");
        }
    }

    #[tokio::test]
    async fn streams_go_on_where_they_were() {
        let mut world = World::new();
        world.store.set_streamed("stdout".to_owned(), 1).await.expect("writes");
        world.record(3).await;
        world.start().await;
        world.record(2).await;
        let gone = world.store.streamed("stdout".to_owned()).await.expect("reads");
        assert_eq!(gone, None, "entries are kept for no stream that is gone");
        world.wait_for("audit.jsonl", "five entries", |log| log.lines().count() == 5).await;
        world.clock.advance(HEAD_INTERVAL);
        world.wait_for("audit.jsonl", "a head after a minute", |log| log.contains("{\"head\":{\"seq\":5,")).await;
        world.wait_for("head.json", "the same beside it", |head| head.starts_with("{\"head\":{\"seq\":5,")).await;
        world.record(1).await;
        // A clock that was a day ahead stops no heads.
        world.clock.set(world.clock.now() - 1440 * HEAD_INTERVAL);
        world.wait_for("head.json", "a head at once", |head| head.starts_with("{\"head\":{\"seq\":6,")).await;
        world.stop().await;
        let log = world.read("audit.jsonl");
        world.passes(&log, 6);
        assert!(log.lines().last().is_some_and(|line| line.starts_with("{\"head\":{\"seq\":6,")), "a last head");
        assert_eq!(Head::parse(world.read("head.json").trim()).map(|head| head.seq), Some(6));

        // A crash left half a line, and another whole line is lost.
        let cut = log.lines().take(4).collect::<Vec<_>>().join("\n");
        fs::write(world.path("audit.jsonl"), format!("{cut}\n{}", &log[..50])).expect("writes");
        world.record(1).await;
        world.start().await;
        world.stop().await;
        world.passes(&world.read("audit.jsonl"), 7);
    }

    #[tokio::test]
    async fn a_rotated_file_is_followed() {
        let mut world = World::new();
        world.record(1).await;
        world.start().await;
        world.wait_for("audit.jsonl", "the first entry", |log| log.lines().count() == 1).await;
        fs::rename(world.path("audit.jsonl"), world.path("audit.1")).expect("moves");
        world.wait_for("audit.1", "the new file is there", |_| world.path("audit.jsonl").exists()).await;
        world.record(1).await;
        world.stop().await;
        let old = world.read("audit.1");
        world.passes(&(old.clone() + &world.read("audit.jsonl")), 2);

        // Rotated while the server was down.
        fs::rename(world.path("audit.jsonl"), world.path("audit.2")).expect("moves");
        world.record(1).await;
        world.start().await;
        world.stop().await;
        world.passes(&(old + &world.read("audit.2") + &world.read("audit.jsonl")), 3);
    }

    #[tokio::test]
    async fn a_stream_that_cannot_be_written_holds_up_nothing() {
        let mut world = World::new();
        fs::create_dir(world.path("logs")).expect("makes");
        let settings = StreamSettings { file: Some(world.path("logs/a")), ..StreamSettings::default() };
        let (keys, clock): (Arc<dyn Sign>, Arc<dyn Clock>) = (Arc::new(Key), Arc::new(world.clock.clone()));
        let streams = stream(&settings, &world.store, &keys, &clock, &world.stop.subscribe()).await;
        world.streams = streams.expect("starts");
        fs::rename(world.path("logs"), world.path("gone")).expect("moves");
        world.record(3).await;
        fs::create_dir(world.path("logs")).expect("makes");
        world
            .wait_for("logs/a", "the new file", |log| {
                log.lines().count() == 3 || world.read("gone/a").lines().count() == 3
            })
            .await;
        world.stop().await;
        world.passes(&(world.read("gone/a") + &world.read("logs/a")), 3);
    }
}
