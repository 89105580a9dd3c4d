//! The environment, read once and passed in. The only module that asks the operating system for it.

use std::{collections::BTreeMap, ffi::OsString};

/// The variables that the process was started with.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

impl Env {
    /// The process's own environment.
    #[must_use]
    pub fn system() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// An environment of the caller's making.
    #[must_use]
    pub fn of(variables: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// One variable, if it is set, not empty, and UTF-8.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.get(std::ffi::OsStr::new(name)).and_then(|value| value.to_str()).filter(|value| !value.is_empty())
    }
}

/// Names only: values may be secrets.
impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
