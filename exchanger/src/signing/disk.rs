//! Keys on disk: one file each, `<kid>.json`, written whole or not at all.

use super::{Held, KeyType, SigningKey, Unusable};
use crate::clock::Timestamp;
use jobpass_protocol::Secret;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Why our keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file system said no.
    #[error("{}: {error}", path.display())]
    Disk {
        /// What was to be read or written.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// Others than the owner may read the key.
    #[error("{} can be read by others: `chmod 600` it, and `keys rotate --at-once` if anybody did", .0.display())]
    Exposed(PathBuf),
    /// The file does not hold the key that its name says.
    #[error(
        "{} does not hold the signing key that it is named for: restore it, or remove it and tokens that it signed are void",
        .0.display()
    )]
    Broken(PathBuf),
    /// No key can be made.
    #[error("no key can be made: {0}")]
    Unusable(#[from] Unusable),
}

/// A key's file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile<'a> {
    r#type: KeyType,
    /// Epoch milliseconds.
    signs_from: i64,
    /// PKCS #8, base64.
    private_key: &'a str,
}

const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".new";

/// Makes the directory, for us alone.
pub(super) fn prepare(dir: &Path) -> Result<(), KeysError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| disk(dir, error))
}

/// Reads all keys; removes what a crash left half-written.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Held>, KeysError> {
    let mut keys = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| disk(dir, error))? {
        let path = entry.map_err(|error| disk(dir, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(UNFINISHED) {
            fs::remove_file(&path).map_err(|error| disk(&path, error))?;
        } else if let Some(kid) = name.strip_suffix(SUFFIX) {
            keys.push(read(&path, kid)?);
        }
    }
    Ok(keys)
}

fn read(path: &Path, kid: &str) -> Result<Held, KeysError> {
    let mode = fs::metadata(path).map_err(|error| disk(path, error))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(KeysError::Exposed(path.to_owned()));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| disk(path, error))?);
    let broken = || KeysError::Broken(path.to_owned());
    let file: KeyFile<'_> = serde_json::from_str(&text).map_err(|_| broken())?;
    let key = SigningKey::parse(file.r#type, &file.private_key.into()).map_err(|_| broken())?;
    if key.id() != kid {
        return Err(broken());
    }
    Ok(Held { key, signs_from: Timestamp::from_millis(file.signs_from) })
}

/// Writes a key: it is whole and on disk when this returns.
pub(super) fn write(dir: &Path, held: &Held, private_key: &Secret) -> Result<(), KeysError> {
    let file =
        KeyFile { r#type: held.key.kind(), signs_from: held.signs_from.millis(), private_key: private_key.expose() };
    let text = Zeroizing::new(serde_json::to_vec(&file).map_err(|_| Unusable)?);
    let path = dir.join(format!("{}{SUFFIX}", held.key.id()));
    let unfinished = dir.join(format!("{}{UNFINISHED}", held.key.id()));
    let written = (|| {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        out.write_all(&text)?;
        out.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|error| disk(&path, error))
}

/// Removes a key's file. One that stays is read again at the next start, and removed then.
pub(super) fn remove(dir: &Path, kid: &str) {
    let path = dir.join(format!("{kid}{SUFFIX}"));
    if let Err(error) = fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "a key that is over could not be removed");
    }
}

fn disk(path: &Path, error: io::Error) -> KeysError {
    KeysError::Disk { path: path.to_owned(), error }
}
