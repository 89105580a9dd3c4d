//! Every type of backend, on one page. To add one: a file beside this one, and a line in each list here.

use super::{Backend, Backends, aws_sts, http, postgres, signed_jwt};
use crate::{
    clock::Clock,
    config::{Env, SecretRef},
    signing::Keys,
};
use jobpass_protocol::BackendName;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A backend in the server's config: its type, and what that type takes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackendFile {
    /// AWS sessions.
    AwsSts(aws_sts::File),
    /// Tokens of our own issuer.
    SignedJwt(signed_jwt::File),
    /// Keys of any HTTP API.
    Http(Box<http::File>),
    /// Login roles of PostgreSQL.
    Postgres(Box<postgres::File>),
}

impl BackendFile {
    /// The audience of the tokens that the backend itself presents to a cloud. No job may get a token for it.
    fn presents(&self) -> Option<&str> {
        match self {
            Self::AwsSts(file) => file.presents(),
            Self::SignedJwt(_) | Self::Http(_) | Self::Postgres(_) => None,
        }
    }
}

/// What backends are built with.
#[derive(Clone)]
pub struct BuildContext {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Our signing keys.
    pub keys: Arc<Keys>,
    /// The server's URL: the issuer of the tokens that we sign.
    pub public_url: String,
    /// Where `env:` and `credential:` secrets come from.
    pub env: Env,
    /// The directory that relative paths start from: that of the config file.
    pub base: PathBuf,
}

impl BuildContext {
    /// A path as it was meant.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// A secret's reference as it was meant.
    #[must_use]
    pub fn secret(&self, reference: SecretRef) -> SecretRef {
        match reference {
            SecretRef::File(path) => SecretRef::File(self.path(&path)),
            other => other,
        }
    }
}

/// Why a backend cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("backend `{name}`: {message}")]
pub struct BuildError {
    /// The backend.
    pub name: BackendName,
    /// The field, what is wrong with it, and the cure.
    pub message: String,
}

/// Builds all backends. Reads no file and no secret, and connects to nothing: see
/// [`Backends::preflight`].
///
/// # Errors
/// The first backend that cannot be built.
pub fn build_all(files: &BTreeMap<BackendName, BackendFile>, context: &BuildContext) -> Result<Backends, BuildError> {
    let presented: Vec<&str> = files.values().filter_map(BackendFile::presents).collect();
    let built = files.iter().map(|(name, file)| {
        let backend = build(file.clone(), context, &presented);
        let backend = backend.map_err(|message| BuildError { name: name.clone(), message })?;
        Ok((name.clone(), backend))
    });
    built.collect::<Result<_, _>>().map(Backends::new)
}

fn build(file: BackendFile, context: &BuildContext, presented: &[&str]) -> Result<Backend, String> {
    Ok(match file {
        BackendFile::AwsSts(file) => Backend::Remote(Arc::new(aws_sts::AwsSts::build(file, context)?)),
        BackendFile::SignedJwt(file) => {
            Backend::Local(Arc::new(signed_jwt::SignedJwt::build(file, context, presented)?))
        }
        BackendFile::Http(file) => Backend::Remote(Arc::new(http::Http::build(*file, context)?)),
        BackendFile::Postgres(file) => Backend::Remote(Arc::new(postgres::Postgres::build(*file, context)?)),
    })
}
