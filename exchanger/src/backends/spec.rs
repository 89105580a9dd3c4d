//! Reading a grant's `credential:` for a backend, getting it back from a permit, and what many
//! backends make of the two.

use super::{MintError, Order, Spec};
use crate::{clock::Timestamp, exchange::hex};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::Secret;
use serde::de::{Deserialize as _, Deserializer, Error as _};
use sha2::{Digest as _, Sha256};
use std::{
    any::Any,
    fmt::{self, Write as _},
    sync::Arc,
};
use zeroize::Zeroizing;

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

    /// Compiles a list of templates. `refuse` looks at texts without claims, and says what is wrong and the cure.
    pub(super) fn list<'t>(
        &mut self,
        field: &str,
        texts: impl IntoIterator<Item = &'t String>,
        rules: &FieldRules,
        refuse: impl Fn(&str) -> Option<(&'static str, &'static str)>,
    ) -> Vec<Template> {
        let mut templates = Vec::new();
        for (index, text) in texts.into_iter().enumerate() {
            let at = index.to_string();
            let path = [field, at.as_str()];
            let Some(template) = self.template(&path, text, rules) else { continue };
            if template.claims().next().is_none()
                && let Some((why, cure)) = refuse(text)
            {
                self.refuse(&path, why, cure);
            }
            templates.push(template);
        }
        templates
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

/// What a credential carries where its system has room for a note: which lease it is, and who asked.
/// Printable ASCII, whatever the system's encoding is, and `max` bytes at most.
pub(super) fn stamp(permit: &Permit, order: &Order, max: usize) -> String {
    let claims = serde_json::to_string(&permit.claims().recorded()).unwrap_or_default();
    let mut text = format!("jobpass lease {} grant {} issuer {} ", order.lease, permit.grant().name(), permit.issuer());
    for c in claims.chars() {
        let start = text.len();
        if c.is_ascii() && !c.is_ascii_control() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(text, "\\u{unit:04x}"); // writing to a String cannot fail
            }
        }
        if text.len() > max {
            text.truncate(start);
            break;
        }
    }
    text
}

/// What a credential is given, in short. Backends that extend put it into their [`super::Plan::object`]: a
/// lease is extended only while its grant comes to the same.
pub(super) fn digest(rights: &serde_json::Value) -> String {
    hex(&Sha256::digest(rights.to_string())[..16])
}

/// Random bytes.
///
/// # Errors
/// When the system has none.
pub(super) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, MintError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|_| MintError::Unavailable("the system has no randomness".to_owned()))?;
    Ok(bytes)
}

/// A password that nobody guesses: 256 random bits in letters, digits, `-` and `_`.
///
/// # Errors
/// When the system has no randomness.
pub(super) fn password() -> Result<Secret, MintError> {
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(*random::<32>()?)))
}
