//! What the job's later jobpass calls must know: the session secret and the leases that are held.
//!
//! One file per job and server, 0600, in a private 0700 directory, in memory where the system has a
//! place for that. Changes happen under a lock and replace the file whole. Follows no symlink and
//! trusts no file that another user owns or can read.

use crate::{client::random, deliver::file::Written, env::Env};
use jobpass_protocol::{GrantName, LeaseHandle, LeaseId, SessionSecret};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
    process,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// Variables that name the directory of the job's own files: GitHub's, GitLab's.
const WORKSPACES: &[&str] = &["GITHUB_WORKSPACE", "CI_PROJECT_DIR"];
/// No CI lets a job, and with it its token, live for longer.
const LONGEST_JOB: Duration = Duration::from_secs(32 * 24 * 3600);

/// Why the session cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// No directory is private enough.
    #[error(
        "no private directory for the job's session; tried {0}\n  set XDG_RUNTIME_DIR to a directory that only this user can read"
    )]
    NoDirectory(String),
    /// The file is not as this program leaves it.
    #[error("the job's session file {path} {problem}: remove it and run the job again")]
    Untrusted { path: String, problem: &'static str },
    /// The system refused.
    #[error("the job's session file {path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// A lease that this job has to give back.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) lease: LeaseId,
    pub(crate) grant: GrantName,
    handle: Zeroizing<String>,
    /// The file that the credential was written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<Written>,
}

impl Held {
    pub(crate) fn new(grant: GrantName, handle: &LeaseHandle) -> Self {
        Self { lease: handle.lease(), grant, handle: Zeroizing::new(handle.expose().to_owned()), file: None }
    }

    /// The handle, unless the file was tampered with.
    pub(crate) fn handle(&self) -> Option<LeaseHandle> {
        LeaseHandle::parse(&self.handle).ok()
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    secret: Zeroizing<String>,
    leases: Vec<Held>,
}

/// The session of one job with one server.
pub(crate) struct Session {
    directory: OwnedFd,
    file: String,
    path: PathBuf,
}

impl Session {
    /// Finds the session's place; makes the directory where it is missing.
    ///
    /// # Errors
    /// When no directory is private.
    pub(crate) fn open(env: &Env, job_key: &str, server: &str) -> Result<Self, SessionError> {
        let own = format!("jobpass-{}", process::geteuid().as_raw());
        let mut candidates: Vec<PathBuf> =
            [env.path("XDG_RUNTIME_DIR"), Some("/dev/shm".into()), env.path("RUNNER_TEMP")]
                .into_iter()
                .flatten()
                .chain([env.path("TMPDIR").unwrap_or_else(|| "/tmp".into())])
                .map(|base| base.join(&own))
                .collect();
        // What lies there may be cached, uploaded or read by the next job.
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let workspaces: Vec<PathBuf> = WORKSPACES.iter().filter_map(|name| Some(real(&env.path(name)?))).collect();
        candidates.sort_by_key(|path| {
            let base = real(path.parent().unwrap_or(path));
            workspaces.iter().any(|workspace| base.starts_with(workspace))
        });
        let Some((directory, path)) = candidates.iter().find_map(|path| Some((private_directory(path)?, path))) else {
            let tried = candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
            return Err(SessionError::NoDirectory(tried.join(", ")));
        };
        let file = format!("{:x}", Sha256::digest(format!("{job_key}\n{server}")));
        Ok(Self { directory, path: path.join(&file), file })
    }

    /// The private directory that it lies in.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Whether that is kept in memory only, as far as the system can tell.
    pub(crate) fn is_in_memory(&self) -> bool {
        // statfs(2): TMPFS_MAGIC and RAMFS_MAGIC.
        rustix::fs::fstatfs(&self.directory).is_ok_and(|system| [0x0102_1994, 0x8584_58f6].contains(&system.f_type))
    }

    /// The session secret; made at first use.
    ///
    /// # Errors
    /// When the file cannot be trusted, read or written.
    pub(crate) fn secret(&self) -> Result<SessionSecret, SessionError> {
        let text = self.change(|state| state.secret.clone())?;
        SessionSecret::parse(&text).map_err(|_| self.untrusted("is damaged"))
    }

    /// Remembers a lease, in place of what was known of it.
    ///
    /// # Errors
    /// See [`Session::secret`].
    pub(crate) fn remember(&self, held: Held) -> Result<(), SessionError> {
        self.change(|state| {
            state.leases.retain(|other| other.lease != held.lease);
            state.leases.push(held);
        })
    }

    /// Forgets a lease that was given back.
    ///
    /// # Errors
    /// See [`Session::secret`].
    pub(crate) fn forget(&self, lease: LeaseId) -> Result<(), SessionError> {
        self.change(|state| state.leases.retain(|other| other.lease != lease))
    }

    /// The leases that are held. Makes no session where there is none.
    ///
    /// # Errors
    /// See [`Session::secret`].
    pub(crate) fn leases(&self) -> Result<Vec<Held>, SessionError> {
        let _lock = self.lock()?;
        Ok(self.read()?.map(|state| state.leases).unwrap_or_default())
    }

    /// Removes the session, unless leases are still held.
    ///
    /// # Errors
    /// See [`Session::secret`].
    pub(crate) fn end(&self) -> Result<(), SessionError> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(state) if state.leases.is_empty() => {
                fs::unlinkat(&self.directory, &self.file, AtFlags::empty()).map_err(|error| self.io(error))
            }
            _ => Ok(()),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, SessionError> {
        let _lock = self.lock()?;
        let mut state = match self.read()? {
            Some(state) => state,
            None => {
                self.sweep();
                let secret = Zeroizing::new(SessionSecret::from_random(&random()).expose().to_owned());
                State { secret, leases: Vec::new() }
            }
        };
        let result = change(&mut state);
        self.write(&state)?;
        Ok(result)
    }

    /// Removes the sessions of jobs that ended long ago, where no token could make their end known.
    fn sweep(&self) {
        let Ok(files) = self.directory().read_dir() else { return };
        for file in files.flatten() {
            let age =
                file.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
            if age > Some(LONGEST_JOB) {
                let _ = fs::unlinkat(&self.directory, file.file_name(), AtFlags::empty());
            }
        }
    }

    /// Held until it is dropped; the kernel frees it when the process dies.
    fn lock(&self) -> Result<OwnedFd, SessionError> {
        let lock =
            fs::openat(&self.directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let lock = lock.map_err(|error| self.io(error))?;
        fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| self.io(error))?;
        Ok(lock)
    }

    fn read(&self) -> Result<Option<State>, SessionError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match fs::openat(&self.directory, &self.file, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.untrusted("is a symlink")),
            Err(error) => return Err(self.io(error)),
        };
        if !is_private(&file, FileType::RegularFile) {
            return Err(self.untrusted("belongs to another user or can be read by one"));
        }
        let mut json = Zeroizing::new(Vec::with_capacity(4096));
        File::from(file).read_to_end(&mut json).map_err(|error| self.io(error))?;
        serde_json::from_slice(&json).map(Some).map_err(|_| self.untrusted("is damaged"))
    }

    fn write(&self, state: &State) -> Result<(), SessionError> {
        let json = Zeroizing::new(serde_json::to_vec(state).map_err(|error| self.io(error))?);
        let next = format!("{}.next", self.file);
        // What an interrupted write left behind; nobody else writes under our lock.
        let _ = fs::unlinkat(&self.directory, &next, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            fs::openat(&self.directory, &next, flags, Mode::RUSR | Mode::WUSR).map_err(|error| self.io(error))?;
        File::from(file).write_all(&json).map_err(|error| self.io(error))?;
        fs::renameat(&self.directory, &next, &self.directory, &self.file).map_err(|error| self.io(error))
    }

    fn untrusted(&self, problem: &'static str) -> SessionError {
        SessionError::Untrusted { path: self.path.display().to_string(), problem }
    }

    fn io(&self, error: impl Into<std::io::Error>) -> SessionError {
        SessionError::Io { path: self.path.display().to_string(), source: error.into() }
    }
}

fn private_directory(path: &Path) -> Option<OwnedFd> {
    match fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(_) => return None,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::open(path, flags, Mode::empty()).ok()?;
    is_private(&directory, FileType::Directory).then_some(directory)
}

fn is_private(file: impl AsFd, kind: FileType) -> bool {
    fs::fstat(file).is_ok_and(|stat| {
        stat.st_uid == process::geteuid().as_raw()
            && FileType::from_raw_mode(stat.st_mode) == kind
            && Mode::from_raw_mode(stat.st_mode).intersection(Mode::RWXG | Mode::RWXO).is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn session(base: &Path, job: &str) -> Result<Session, SessionError> {
        Session::open(&Env::from([("XDG_RUNTIME_DIR", base.to_str().expect("UTF-8"))]), job, "https://jobpass.example")
    }

    fn held(number: u8) -> Held {
        let id: LeaseId = format!("01920000-0000-7000-8000-0000000000{number:02}").parse().expect("UUID");
        Held::new("deploy".parse().expect("name"), &LeaseHandle::from_random(id, &[number; 32]))
    }

    #[test]
    fn a_job_keeps_its_session_and_shares_it_with_no_other() {
        let base = tempfile::tempdir().expect("directory");
        let first = session(base.path(), "job 1").expect("session");
        let secret = first.secret().expect("secret");
        assert_eq!(session(base.path(), "job 1").expect("session").secret().expect("secret").expose(), secret.expose());
        assert_ne!(session(base.path(), "job 2").expect("session").secret().expect("secret").expose(), secret.expose());
        first.remember(held(1)).expect("remember");
        first.remember(held(2)).expect("remember");
        first.end().expect("not yet");
        first.forget(held(1).lease).expect("forget");
        let left = session(base.path(), "job 1").expect("session").leases().expect("leases");
        assert_eq!(left.iter().map(|held| held.lease).collect::<Vec<_>>(), [held(2).lease]);
        first.forget(held(2).lease).expect("forget");
        first.end().expect("end");
        assert!(!first.path.exists());
        assert!(first.leases().expect("none").is_empty());
        assert!(!first.path.exists(), "asking for leases makes no session");
    }

    #[test]
    fn sessions_of_jobs_long_ended_are_removed() {
        let base = tempfile::tempdir().expect("directory");
        for (job, days, left) in [("old", 33, false), ("running", 30, true)] {
            let earlier = session(base.path(), job).expect("session");
            earlier.secret().expect("secret");
            let file = File::options().write(true).open(&earlier.path).expect("file");
            let written = file.metadata().and_then(|metadata| metadata.modified()).expect("time");
            file.set_modified(written - Duration::from_secs(days * 24 * 3600)).expect("older");
            session(base.path(), &format!("after {job}")).expect("session").secret().expect("secret");
            assert_eq!(earlier.path.exists(), left, "{job}");
        }
    }

    #[test]
    fn what_others_can_touch_is_not_trusted() {
        type Damage = fn(&Path);
        let damage: [(&str, Damage); 4] = [
            ("can be read", |path| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).expect("chmod")
            }),
            ("is damaged", |path| std::fs::write(path, "{").expect("write")),
            ("is a symlink", |path| {
                std::fs::rename(path, path.with_extension("x")).expect("rename");
                symlink(path.with_extension("x"), path).expect("symlink");
            }),
            ("belongs to", |path| {
                std::fs::remove_file(path).expect("remove");
                std::fs::create_dir(path).expect("mkdir");
            }),
        ];
        for (problem, damage) in damage {
            let base = tempfile::tempdir().expect("directory");
            let session = session(base.path(), "job").expect("session");
            session.secret().expect("secret");
            damage(&session.path);
            let error = session.secret().expect_err(problem).to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_directory_in_the_workspace_is_the_last_resort() {
        let base = tempfile::tempdir().expect("directory");
        let text = base.path().to_str().expect("UTF-8");
        let session = |workspace| {
            let env = Env::from([("XDG_RUNTIME_DIR", text), ("GITHUB_WORKSPACE", workspace)]);
            Session::open(&env, "job", "https://jobpass.example").expect("session")
        };
        assert!(session("/elsewhere").path.starts_with(base.path()));
        assert!(!session(text).path.starts_with(base.path()));
        let memory = Env::from([("XDG_RUNTIME_DIR", "/dev/shm")]);
        assert!(Session::open(&memory, "job", "https://jobpass.example").expect("session").is_in_memory());
    }

    #[test]
    fn a_directory_that_is_not_private_is_passed_over() {
        let base = tempfile::tempdir().expect("directory");
        let own = base.path().join(format!("jobpass-{}", process::geteuid().as_raw()));
        std::fs::create_dir(&own).expect("mkdir");
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let session = session(base.path(), "job").expect("another place");
        assert!(!session.path.starts_with(base.path()));
    }
}
