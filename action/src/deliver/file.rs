//! A credential in a file: 0600, whole or not at all, never through a symlink.

use super::DeliverError;
use crate::client::random;
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

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

/// Removes a file that this program wrote, once what it holds is worth nothing.
pub(crate) fn remove(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

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
