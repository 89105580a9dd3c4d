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
    /// When it cannot be made.
    pub(crate) fn make(purpose: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("jobpass-{purpose}-{}", Uuid::now_v7()));
        DirBuilder::new().mode(0o700).create(&path)?;
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
