//! The `credential:` of grants, which backends understand and policy does not.

use crate::{
    document::{self, At, Tree, place},
    grant::GrantContext,
    source::{Diagnostic, Text},
};
use jobpass_protocol::BackendName;
use serde::de::DeserializeOwned;
use std::{any::Any, sync::Arc};

/// Types the `credential:` of grants. The server's backends are one; tools that know no backends
/// use [`AnyCredential`].
pub trait SpecCompiler {
    /// Types one credential spec, without any I/O.
    ///
    /// # Errors
    /// Everything that is wrong with it, or that no backend has that name.
    fn compile(
        &self,
        backend: &BackendName,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Arc<dyn Any + Send + Sync>, Vec<Diagnostic>>;
}

/// Accepts every credential spec unread.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyCredential;

impl SpecCompiler for AnyCredential {
    fn compile(
        &self,
        _: &BackendName,
        _: &CredentialSource<'_>,
        _: &GrantContext<'_>,
    ) -> Result<Arc<dyn Any + Send + Sync>, Vec<Diagnostic>> {
        Ok(Arc::new(()))
    }
}

/// A grant's `credential:`, as written.
pub struct CredentialSource<'a> {
    pub(super) file: &'a Text,
    pub(super) tree: Option<&'a Tree>,
    pub(super) backend: &'a At<String>,
}

impl CredentialSource<'_> {
    /// Reads it as a backend's own type; `serde_saphyr::Spanned` works in it.
    ///
    /// # Errors
    /// The first thing that is wrong with it, with its place.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Diagnostic> {
        #[derive(serde::Deserialize)]
        struct Only<T> {
            credential: T,
        }
        document::parse::<Only<T>>(self.file).map(|only| only.credential)
    }

    /// A diagnostic at a field of it: `["session_tags", "run"]`. Where there is no such field, at
    /// the nearest one around it.
    #[must_use]
    pub fn diagnostic(&self, path: &[&str], message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        let mut at = place(self.file, self.backend);
        let mut tree = self.tree;
        for step in path {
            tree = match tree {
                Some(Tree::Map(entries)) => entries.iter().find(|(key, _)| key.value == *step).map(|(key, value)| {
                    at = match value.value {
                        Tree::Map(_) | Tree::List(_) => place(self.file, key),
                        Tree::Scalar(_) | Tree::Null => place(self.file, value),
                    };
                    &value.value
                }),
                Some(Tree::List(items)) => step.parse().ok().and_then(|index: usize| items.get(index)).map(|item| {
                    at = place(self.file, item);
                    &item.value
                }),
                _ => None,
            };
        }
        Diagnostic::new(self.file, at, "credential", message.into()).with_help(help)
    }

    /// A diagnostic at the backend's name.
    #[must_use]
    pub fn backend_diagnostic(&self, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::new(self.file, place(self.file, self.backend), "unknown-backend", message.into()).with_help(help)
    }
}
