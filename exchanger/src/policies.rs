//! Policy directories: read whole or not at all, compiled together, and the last good set kept.
//!
//! A directory with a broken file keeps its last good sources, loudly, and does not hold up the
//! others. Removing a grant's file always takes effect. The last good sources survive a restart.

use crate::{backends::Backends, telemetry::Metrics};
use arc_swap::{ArcSwap, Guard};
use jobpass_policy::{Compiled, Diagnostic, Issuer, PolicySet, Severity, Source, compile, lint};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The largest grant file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// How many problems are shown at a time.
const MAX_SHOWN: usize = 50;
/// How often a directory that changes while it is read is read again.
const READ_ATTEMPTS: usize = 5;

/// The loaded policies.
pub struct Policies {
    current: ArcSwap<PolicySet>,
    directories: Vec<PathBuf>,
    kept: PathBuf,
    issuers: Vec<Issuer>,
    backends: Backends,
    /// What was last compiled, by directory, so that an unchanged one costs no work.
    seen: Mutex<Sources>,
    /// The diagnostics that were last told: files may stay broken for long.
    told: Mutex<Vec<String>>,
}

/// One source as it is kept on disk for the next start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    path: String,
    text: String,
}

/// Sources by directory.
type Sources = BTreeMap<PathBuf, Vec<Kept>>;

/// How a (re)load went.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether the policies changed.
    pub changed: bool,
    /// Directories that are not in force as they are on disk, each with the reason.
    pub stale: Vec<(PathBuf, String)>,
    /// Warnings and errors, rendered.
    pub diagnostics: Vec<String>,
}

impl Report {
    /// The (re)load itself came to nothing.
    pub(crate) fn failed(why: &str) -> Self {
        Self { stale: vec![(PathBuf::new(), format!("the policies could not be loaded: {why}"))], ..Self::default() }
    }

    fn is_stale(&self, directory: &Path) -> bool {
        self.stale.iter().any(|(stale, _)| stale == directory)
    }

    fn show<'a>(&mut self, found: impl IntoIterator<Item = &'a Diagnostic>) {
        let mut found = found.into_iter();
        self.diagnostics.extend(found.by_ref().take(MAX_SHOWN).map(|diagnostic| diagnostic.render(false)));
        match found.count() {
            0 => {}
            more => self.diagnostics.push(format!("and {more} more; `jobpass-exchanger check-config` shows them all")),
        }
    }
}

impl Policies {
    /// Loads all directories. A directory that is broken now starts with its last good sources, or,
    /// if it never had any, with none.
    #[must_use]
    pub fn load(
        directories: Vec<PathBuf>,
        state_dir: &Path,
        issuers: Vec<Issuer>,
        backends: Backends,
    ) -> (Self, Report) {
        let empty = compile(&[], &issuers, &backends).set;
        let policies = Self {
            current: ArcSwap::from_pointee(empty),
            directories,
            kept: state_dir.join("policies"),
            issuers,
            backends,
            seen: Mutex::default(),
            told: Mutex::default(),
        };
        let report = policies.reload();
        (policies, report)
    }

    /// The policies in force.
    #[must_use]
    pub fn current(&self) -> Guard<Arc<PolicySet>> {
        self.current.load()
    }

    /// Reads all directories again and puts what compiles in force.
    pub fn reload(&self) -> Report {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = Report::default();
        let mut sources = Sources::new();
        let mut guards_are_known = true;
        for directory in &self.directories {
            let read = read_directory(directory).unwrap_or_else(|error| {
                report.stale.push((directory.clone(), format!("{}: {error}", directory.display())));
                // Which grants were removed can be known without reading a file.
                let present = policy_files(directory).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(Vec::new()),
                    _ => Err(error),
                });
                let guards = present.as_ref().ok().and_then(|present| read_guards(present).ok());
                guards_are_known &= guards.is_some();
                let is_there =
                    |path: &str| present.as_ref().map_or(true, |present| present.iter().any(|known| *known == *path));
                self.stand_in(directory, &seen, is_there, guards.unwrap_or_default())
            });
            sources.insert(directory.clone(), read);
        }
        if *seen == sources && report.stale.is_empty() {
            return report;
        }
        let mut compiled = self.compile(&sources);
        loop {
            if compiled.guards_are_broken || !guards_are_known {
                compiled = self.hold(&compiled, &mut sources, &seen, &mut report);
                guards_are_known = true;
            }
            let broken = self.broken(&compiled, &sources, &seen, &report);
            if broken.is_empty() {
                break;
            }
            for directory in broken {
                report.show(errors_in(&compiled, &directory));
                report.stale.push((directory.clone(), format!("{}: has errors", directory.display())));
                let present = sources.remove(&directory).unwrap_or_default();
                let is_there = |path: &str| present.iter().any(|kept| kept.path == path);
                let guards = present.iter().filter(|kept| is_guard(&kept.path)).cloned().collect();
                sources.insert(directory.clone(), self.stand_in(&directory, &seen, is_there, guards));
            }
            compiled = self.compile(&sources);
        }
        report.show(&compiled.diagnostics);
        report.changed = compiled.set.digest() != self.current.load().digest();
        // Also what stands in for a directory: a grant that was removed stays removed.
        for (directory, kept) in &sources {
            if let Err(error) = self.keep(directory, kept) {
                tracing::warn!(directory = %directory.display(), %error, "the last good policies could not be kept");
            }
        }
        self.current.store(Arc::new(compiled.set));
        *seen = sources;
        report
    }

    /// Reports a (re)load to logs and metrics.
    pub fn tell(&self, report: &Report, metrics: &Metrics) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !report.diagnostics.is_empty() && report.diagnostics != *told {
            report.diagnostics.iter().for_each(|text| tracing::warn!("{text}"));
            told.clone_from(&report.diagnostics);
        }
        for (_, reason) in &report.stale {
            tracing::error!(
                reason,
                "a policy directory is not in force as it is on disk, but as it last was without errors"
            );
        }
        let set = self.current();
        if report.changed {
            tracing::info!(digest = &**set.digest(), grants = set.grants().count(), "policies are in force");
        }
        metrics.policies(report.stale.is_empty(), set.grants().count());
    }

    fn compile(&self, sources: &Sources) -> Compiled {
        let all = sources.values().flatten().map(|kept| Source { path: kept.path.clone(), text: kept.text.clone() });
        compile_and_lint(&all.collect::<Vec<_>>(), &self.issuers, &self.backends)
    }

    /// Has all directories stay as they last were without errors, and lets nothing but removals through: what would
    /// bind every grant is not known. Where there is no such state, nothing is granted.
    fn hold(&self, compiled: &Compiled, sources: &mut Sources, seen: &Sources, report: &mut Report) -> Compiled {
        report.show(&compiled.diagnostics);
        for (directory, read) in sources.iter_mut() {
            *read = self.fall_back(directory, seen, |path| read.iter().any(|present| present.path == path));
            if !report.is_stale(directory) {
                report.stale.push((directory.clone(), "the guards have errors".to_owned()));
            }
        }
        self.compile(sources)
    }

    /// The directories that are to fall back now. Where grants have one name, the one that has been in force keeps
    /// it, so that nobody takes a grant out of force, or holds up its changes, by naming another one like it.
    fn broken(&self, compiled: &Compiled, sources: &Sources, seen: &Sources, report: &Report) -> Vec<PathBuf> {
        let is_broken = |directory: &&PathBuf| {
            !report.is_stale(directory) && errors_in(compiled, directory).any(|error| error.code != "duplicate-grant")
        };
        // One at a time: what is wrong in one may be a consequence of what is in another.
        if let Some(first) = sources.keys().find(is_broken) {
            return vec![first.clone()];
        }
        for (name, paths) in &compiled.duplicates {
            let named = |directory: &&PathBuf| paths.iter().any(|path| Path::new(path).parent() == Some(directory));
            let holds = |directory: &&PathBuf| {
                let good = Sources::from([((*directory).clone(), self.last_good(directory, seen))]);
                self.compile(&good).set.grant(name.as_str()).is_some()
            };
            let (holders, newcomers): (Vec<_>, Vec<_>) = sources.keys().filter(named).partition(holds);
            let mut back = if newcomers.is_empty() { holders } else { newcomers };
            back.retain(|directory| !report.is_stale(directory));
            if !back.is_empty() {
                return back.into_iter().cloned().collect();
            }
        }
        Vec::new()
    }

    /// What was last good in a directory, without the grants whose files are gone. What binds grants stays.
    fn fall_back(&self, directory: &Path, seen: &Sources, is_there: impl Fn(&str) -> bool) -> Vec<Kept> {
        let mut good = self.last_good(directory, seen);
        good.retain(|kept| is_guard(&kept.path) || is_there(&kept.path));
        good
    }

    /// What is in force of a directory that cannot be as it is on disk: what it falls back to, and the files there
    /// that bind grants and are new. These only forbid more, and there may be nothing to fall back to.
    fn stand_in(
        &self,
        directory: &Path,
        seen: &Sources,
        is_there: impl Fn(&str) -> bool,
        mut guards: Vec<Kept>,
    ) -> Vec<Kept> {
        let mut good = self.fall_back(directory, seen, is_there);
        guards.retain(|guard| good.iter().all(|kept| kept.path != guard.path));
        good.append(&mut guards);
        good.sort_by(|one, other| one.path.cmp(&other.path));
        good
    }

    fn last_good(&self, directory: &Path, seen: &Sources) -> Vec<Kept> {
        if let Some(kept) = seen.get(directory) {
            return kept.clone();
        }
        let path = self.kept_path(directory);
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(directory = %directory.display(), path = %path.display(), %error, "the last good policies cannot be read");
            }
            Vec::new()
        })
    }

    fn keep(&self, directory: &Path, sources: &[Kept]) -> io::Result<()> {
        fs::create_dir_all(&self.kept)?;
        let path = self.kept_path(directory);
        let text = serde_json::to_vec(sources)?;
        if fs::read(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(new, path)
    }

    fn kept_path(&self, directory: &Path) -> PathBuf {
        let name = Sha256::digest(directory.as_os_str().as_encoded_bytes());
        self.kept.join(format!("{}.json", crate::exchange::hex(&name[..8])))
    }
}

/// Reads and compiles directories as they are on disk, and keeps nothing.
///
/// # Errors
/// When a directory cannot be read.
pub fn check(directories: &[PathBuf], issuers: &[Issuer], backends: &Backends) -> io::Result<Compiled> {
    let mut sources = Vec::new();
    for directory in directories {
        sources.extend(read_directory(directory)?.into_iter().map(|kept| Source { path: kept.path, text: kept.text }));
    }
    Ok(compile_and_lint(&sources, issuers, backends))
}

/// Notes of files that would bind grants, in directories below these that are not among them.
pub fn passed_over(directories: &[PathBuf]) -> impl Iterator<Item = String> {
    let below = |directory: &PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_dir() && !directories.contains(path)).collect::<Vec<_>>()
    };
    let files = directories.iter().flat_map(below).flat_map(|below| policy_files(&below).unwrap_or_default());
    files
        .filter(|path| is_guard(path))
        .map(|path| format!("note: nothing reads {}: name its directory in `policies:`", path.display()))
}

/// What linting finds of severity error counts as an error of the file.
fn compile_and_lint(sources: &[Source], issuers: &[Issuer], backends: &Backends) -> Compiled {
    let mut compiled = compile(sources, issuers, backends);
    compiled.diagnostics.extend(lint::errors(&compiled));
    compiled
}

/// Whether a file binds grants rather than being one.
fn is_guard(path: impl AsRef<Path>) -> bool {
    let name = path.as_ref().file_stem().unwrap_or_default();
    name == "guards" || name == "scope"
}

/// Reads those of some policy files that bind grants.
fn read_guards(files: &[PathBuf]) -> io::Result<Vec<Kept>> {
    let mut guards = Vec::new();
    for path in files.iter().filter(|path| is_guard(path)) {
        let real = real(path)?;
        if fs::metadata(&real)?.is_file() {
            guards.push(Kept { path: path.display().to_string(), text: read_bounded(&real)? });
        }
    }
    Ok(guards)
}

/// The errors in a directory's own files. Those of a directory within it are that one's.
fn errors_in<'a>(compiled: &'a Compiled, directory: &'a Path) -> impl Iterator<Item = &'a Diagnostic> {
    compiled.diagnostics.iter().filter(move |diagnostic| {
        diagnostic.severity == Severity::Error && Path::new(diagnostic.path()).parent() == Some(directory)
    })
}

/// Reads a directory's policy files as one state of it: read again when it changed meanwhile, as it
/// does when a checkout or a ConfigMap is swapped.
fn read_directory(directory: &Path) -> io::Result<Vec<Kept>> {
    for _ in 0..READ_ATTEMPTS {
        let before = signature(directory)?;
        let mut read = Vec::with_capacity(before.len());
        for file in &before {
            // By its real path: a symbolic link that is swapped meanwhile must not mix two states.
            match read_bounded(&file.real) {
                Ok(text) => read.push(Kept { path: file.path.display().to_string(), text }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", file.path.display()))),
            }
        }
        if read.len() == before.len() && signature(directory)? == before {
            return Ok(read);
        }
    }
    Err(io::Error::other("it changes faster than it can be read"))
}

/// Reads no more than is allowed, whatever size the file says it has.
fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // Nobody may ever write to a pipe of that name.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

#[derive(PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    real: PathBuf,
    bytes: u64,
    modified: std::time::SystemTime,
}

fn signature(directory: &Path) -> io::Result<Vec<Stamp>> {
    let mut files = Vec::new();
    for path in policy_files(directory)? {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let real = real(&path).map_err(named)?;
        let metadata = fs::metadata(&real).map_err(named)?;
        if metadata.is_file() {
            files.push(Stamp { path, real, bytes: metadata.len(), modified: metadata.modified()? });
        }
    }
    Ok(files)
}

/// Where a policy file really is: in its directory, as the files of a ConfigMap are behind their links. A link that
/// leads out of it would show what is there to whoever reads of its mistakes.
fn real(path: &Path) -> io::Result<PathBuf> {
    let real = fs::canonicalize(path)?;
    let directory = fs::canonicalize(path.parent().unwrap_or(Path::new(".")))?;
    match real.starts_with(directory) {
        true => Ok(real),
        false => Err(io::Error::other("it leads out of its directory: put the file itself there")),
    }
}

/// The directory's policy files, by name.
fn policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let policy = (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.starts_with('.');
        if policy && !name.ends_with(".cases.yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
