//! A private directory that goes with what needed it.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// A directory that only its owner can look into, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one; its name says what it is for.
    ///
    /// # Errors
    /// When it cannot be made: says where, and the cure.
    pub(crate) fn make(purpose: &str) -> io::Result<Self> {
        let parent = std::env::temp_dir();
        let path = parent.join(format!("jobpass-{purpose}-{}", Uuid::now_v7()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            let told = format!(
                "no directory can be made in {}: {error}; set TMPDIR to one that can be written",
                parent.display()
            );
            io::Error::new(error.kind(), told)
        })?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is removed with the system's temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}
