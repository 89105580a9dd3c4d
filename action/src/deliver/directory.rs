//! A directory for the files of one command: private, in memory where the system has a place for that, outside
//! the job's workspace, and gone with the command. One that a killed jobpass left behind goes with the next.

use super::{DeliverError, file};
use crate::client::random;
use rustix::{
    fd::OwnedFd,
    fs::{self, FlockOperation, Mode, OFlags},
};
use std::path::{Path, PathBuf};

const PREFIX: &str = "exec-";

/// See the module. Removed with all that is in it when it is dropped.
pub(crate) struct PrivateDirectory {
    path: PathBuf,
    /// Locked for as long as this process lives; the kernel frees it when it dies.
    _lock: OwnedFd,
}

impl PrivateDirectory {
    /// Makes a directory in one that is private already.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn make(within: &Path) -> Result<Self, DeliverError> {
        let path = within.join(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random())));
        let failed = |error: rustix::io::Errno| DeliverError::File {
            path: path.display().to_string(),
            problem: error.to_string(),
        };
        // One at a time: what is not locked yet would look left behind to another one that tidies up.
        let _turn = lock(within, FlockOperation::LockExclusive).map_err(failed)?;
        for entry in within.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            if ours && lock(&path, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
        fs::mkdir(&path, Mode::RWXU).map_err(failed)?;
        let lock = lock(&path, FlockOperation::NonBlockingLockExclusive).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    /// Writes a file (0600) and returns its path.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, DeliverError> {
        file::write(&self.path.join(name), contents)
    }

    /// Writes a file (0600) into a directory of its own (0700), and returns the directory's path.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn write_in(&self, directory: &str, name: &str, contents: &[u8]) -> Result<PathBuf, DeliverError> {
        let path = self.path.join(directory);
        let failed = |error: rustix::io::Errno| DeliverError::File {
            path: path.display().to_string(),
            problem: error.to_string(),
        };
        fs::mkdir(&path, Mode::RWXU).map_err(failed)?;
        file::write(&path.join(name), contents).map(|_| path)
    }

    /// Where a file of this name would be.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn lock(path: &Path, how: FlockOperation) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::open(path, flags, Mode::empty())?;
    fs::flock(&directory, how)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_goes_with_its_owner() {
        let base = tempfile::tempdir().expect("directory");
        let first = PrivateDirectory::make(base.path()).expect("made");
        let path = first.write("a", b"secret").expect("written");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("parent"))), (0o600, 0o700));
        let left_behind = base.path().join("exec-0000");
        std::fs::create_dir(&left_behind).expect("mkdir");
        std::fs::write(left_behind.join("b"), "secret").expect("write");
        let second = PrivateDirectory::make(base.path()).expect("made");
        assert!(path.exists() && !left_behind.exists(), "what lives stays, what was left goes");
        drop((first, second));
        assert_eq!(base.path().read_dir().expect("list").count(), 0);
    }

    #[test]
    fn many_begin_at_once() {
        let base = tempfile::tempdir().expect("directory");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| drop(PrivateDirectory::make(base.path()).expect("made"))));
            }
        });
        assert_eq!(base.path().read_dir().expect("list").count(), 0);
    }
}
