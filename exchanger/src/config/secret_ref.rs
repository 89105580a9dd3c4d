//! Secrets by reference: config files name them and never hold them.

use super::env::Env;
use jobpass_protocol::Secret;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fmt,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Where a secret is: `file:/path`, `env:NAME`, or `credential:NAME` (systemd's
/// `LoadCredential=`, read from `$CREDENTIALS_DIRECTORY`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum SecretRef {
    /// A file; one line end at its end is dropped.
    File(PathBuf),
    /// An environment variable of the server.
    Env(String),
    /// A systemd credential.
    Credential(String),
}

/// Why a secret cannot be had. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The text is no reference. It may be the secret itself, so it is not shown.
    #[error("a secret is given by reference: `file:/path`, `env:NAME` or `credential:NAME`, never as itself")]
    NotAReference,
    /// The file cannot be read.
    #[error("the secret {reference} cannot be read: {source}")]
    Unreadable {
        /// The reference.
        reference: SecretRef,
        /// Why.
        source: std::io::Error,
    },
    /// There is no such variable, or no credentials directory.
    #[error("the secret {0} is not there")]
    Absent(SecretRef),
    /// It is empty or not UTF-8.
    #[error("the secret {0} is empty or not UTF-8 text")]
    NotText(SecretRef),
}

impl TryFrom<String> for SecretRef {
    type Error = SecretError;
    fn try_from(text: String) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("credential", name)) if !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.') => {
                Ok(Self::Credential(name.to_owned()))
            }
            _ => Err(SecretError::NotAReference),
        }
    }
}

impl From<SecretRef> for String {
    fn from(reference: SecretRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SecretRef {
    /// The same, with a relative path as it was meant.
    #[must_use]
    pub fn within(self, base: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(base.join(path)),
            other => other,
        }
    }

    /// Reads the secret.
    ///
    /// # Errors
    /// When it is absent, unreadable, empty or not UTF-8.
    pub fn read(&self, env: &Env) -> Result<Secret, SecretError> {
        let path = match self {
            Self::Env(name) => {
                return env.var(name).map(Secret::from).ok_or_else(|| SecretError::Absent(self.clone()));
            }
            Self::File(path) => {
                tell_if_exposed(path);
                path.clone()
            }
            Self::Credential(name) => {
                let directory = env.var("CREDENTIALS_DIRECTORY").ok_or_else(|| SecretError::Absent(self.clone()))?;
                PathBuf::from(directory).join(name)
            }
        };
        let unreadable = |source| SecretError::Unreadable { reference: self.clone(), source };
        let mut text = String::from_utf8(std::fs::read(path).map_err(unreadable)?)
            .map_err(|_| SecretError::NotText(self.clone()))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() { Err(SecretError::NotText(self.clone())) } else { Ok(Secret::new(text)) }
    }
}

/// Says once of each file, which may be read again and again, that everybody can read it.
fn tell_if_exposed(path: &Path) {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if is_exposed(path) && TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned()) {
        tracing::warn!(path = %path.display(), "every user of this machine can read this secret: `chmod o-r` it");
    }
}

fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (text, valid) in [
            ("file:/etc/key", true),
            ("env:KEY", true),
            ("credential:key", true),
            ("credential:../key", false),
            ("file:", false),
            ("hunter2", false),
            ("vault:x", false),
        ] {
            let got = SecretRef::try_from(text.to_owned());
            assert_eq!(got.is_ok(), valid, "{text}");
            if let Err(error) = got {
                assert!(!error.to_string().contains("hunter2"), "a secret given by mistake is not echoed");
            }
        }
    }

    #[test]
    fn files_that_everybody_can_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (mode, exposed) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(is_exposed(file.path()), exposed, "{mode:o}");
        }
        assert!(!is_exposed(Path::new("/nonexistent")));
    }

    #[test]
    fn one_line_end_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        for (content, expected) in [("a\n", Some("a")), ("a\r\n", Some("a")), ("a\n\n", Some("a\n")), ("\n", None)] {
            std::fs::write(&path, content).expect("write");
            let got = SecretRef::File(path.clone()).read(&Env::default()).ok();
            assert_eq!(got.as_ref().map(Secret::expose), expected, "{content:?}");
        }
    }
}
