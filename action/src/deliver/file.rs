//! A credential in a file: 0600, whole or not at all, never through a symlink.

use super::DeliverError;
use crate::client::random;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A file as this program wrote it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Written {
    path: PathBuf,
    /// SHA-256 of what was written.
    sha256: String,
}

impl Written {
    /// Remembers what a file was given.
    pub(crate) fn new(path: PathBuf, contents: &[u8]) -> Self {
        Self { path, sha256: format!("{:x}", Sha256::digest(contents)) }
    }

    /// Removes the file, once what it holds is worth nothing; not what somebody else wrote there since.
    pub(crate) fn remove(&self) {
        let holds_it = || {
            let mut digest = Sha256::new();
            let read = File::open(&self.path).and_then(|mut file| io::copy(&mut file, &mut digest));
            read.is_ok() && format!("{:x}", digest.finalize()) == self.sha256
        };
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_file()) && holds_it() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes the file, in place of a regular one that is there. Returns its absolute path.
///
/// # Errors
/// When the path names something else, or cannot be written.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<PathBuf, DeliverError> {
    let failed = |problem: String| DeliverError::File { path: path.display().to_string(), problem };
    let name = path.file_name().ok_or_else(|| failed("is not a file's name".into()))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize().map_err(|error| failed(format!("its directory: {error}")))?;
    let target = parent.join(name);
    match fs::symlink_metadata(&target) {
        Ok(found) if !found.is_file() => return Err(failed("is there already and is not a regular file".into())),
        _ => {}
    }
    let next = parent.join(format!(".jobpass-{:016x}", u64::from_ne_bytes(random())));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&next, &target));
    if let Err(error) = written {
        let _ = fs::remove_file(&next);
        return Err(failed(error.to_string()));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn what_somebody_else_wrote_since_stays() {
        let base = tempfile::tempdir().expect("directory");
        let target = base.path().join("token");
        for (since, stays) in [(None, false), (Some("the job's own"), true), (Some("secret and more"), true)] {
            let written = Written::new(write(&target, b"secret").expect("written"), b"secret");
            // In place: the file is the same one.
            since.into_iter().for_each(|text| fs::write(&target, text).expect("written over"));
            written.remove();
            assert_eq!(target.exists(), stays, "{since:?}");
        }
    }

    #[test]
    fn files() {
        let base = tempfile::tempdir().expect("directory");
        let target = base.path().join("token");
        for contents in ["one", "two"] {
            write(&target, contents.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&target).expect("read"), contents);
            assert_eq!(fs::metadata(&target).expect("metadata").permissions().mode() & 0o777, 0o600);
        }
        let link = base.path().join("link");
        symlink(&target, &link).expect("symlink");
        for bad in [&link, &base.path().join("missing/token"), &base.path().to_owned(), &PathBuf::from("/")] {
            assert!(write(bad, b"three").is_err(), "{}", bad.display());
        }
        assert_eq!(fs::read_to_string(&target).expect("read"), "two");
        assert_eq!(fs::read_dir(base.path()).expect("list").count(), 2, "nothing is left lying about");
    }
}
