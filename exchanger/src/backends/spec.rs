//! Reading a grant's `credential:` for a backend, and getting it back from a permit.

use super::{MintError, Spec};
use crate::clock::Timestamp;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::Secret;
use serde::de::{Deserialize as _, Deserializer, Error as _};
use std::{any::Any, fmt, sync::Arc};

/// Collects everything that is wrong with a spec, so that an admin sees it all at once.
pub(super) struct SpecReader<'a> {
    credential: &'a CredentialSource<'a>,
    grant: &'a GrantContext<'a>,
    errors: Vec<Diagnostic>,
}

impl<'a> SpecReader<'a> {
    pub(super) fn new(credential: &'a CredentialSource<'a>, grant: &'a GrantContext<'a>) -> Self {
        Self { credential, grant, errors: Vec::new() }
    }

    /// Notes what is wrong with a field, and how to repair it.
    pub(super) fn refuse(&mut self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(self.credential.diagnostic(path, message, help));
    }

    /// Compiles a field that is a template; `None` when it was refused.
    pub(super) fn template(&mut self, path: &[&str], text: &str, rules: &FieldRules) -> Option<Template> {
        match Template::compile(text, self.grant, rules) {
            Ok(template) => Some(template),
            Err(error) => {
                self.refuse(path, error.to_string(), error.help());
                None
            }
        }
    }

    /// Compiles a mapping of templates.
    pub(super) fn templates<'t>(
        &mut self,
        field: &str,
        texts: impl IntoIterator<Item = (&'t String, &'t String)>,
        rules: &FieldRules,
    ) -> Vec<(String, Template)> {
        texts
            .into_iter()
            .filter_map(|(name, text)| Some((name.clone(), self.template(&[field, name], text, rules)?)))
            .collect()
    }

    /// The spec, if nothing was refused.
    pub(super) fn finish<T: Any + Send + Sync>(self, spec: Option<T>) -> Result<Spec, Vec<Diagnostic>> {
        match spec {
            Some(spec) if self.errors.is_empty() => Ok(Arc::new(spec)),
            _ => Err(self.errors),
        }
    }
}

/// What the backend made of the grant's spec.
///
/// # Errors
/// When the grant was compiled for a backend of another type, which only a mistake of ours can cause.
pub(super) fn of<T: Any>(permit: &Permit) -> Result<&T, MintError> {
    permit.grant().spec().ok_or_else(|| unfit("backend", &"the grant was read by another backend"))
}

/// The same for a spec that was rendered for one job.
///
/// # Errors
/// As [`of`].
pub(super) fn rendered<T: Any>(rendered: &Spec) -> Result<&T, MintError> {
    rendered.downcast_ref().ok_or_else(|| unfit("backend", &"the credential was planned by another backend"))
}

/// Renders one field.
///
/// # Errors
/// When the claims do not fit it.
pub(super) fn render(field: &str, template: &Template, permit: &Permit) -> Result<String, MintError> {
    template.render(permit.claims()).map_err(|error| unfit(field, &error))
}

/// The claims or the job's input do not fit a field.
pub(super) fn unfit(field: &str, why: &dyn fmt::Display) -> MintError {
    MintError::Unfit { field: field.to_owned(), message: why.to_string() }
}

/// Reads a text of an upstream's answer as the secret that it is; an empty one is none.
///
/// # Errors
/// When there is no such text.
pub(super) fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let text = Secret::new(String::deserialize(deserializer)?);
    if text.is_empty() { Err(D::Error::custom("it is empty")) } else { Ok(text) }
}

/// Reads a time of an upstream's answer: RFC 3339.
///
/// # Errors
/// When there is no such text.
pub(super) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let at: jiff::Timestamp = String::deserialize(deserializer)?.parse().map_err(D::Error::custom)?;
    Ok(Timestamp::from_millis(at.as_millisecond()))
}
