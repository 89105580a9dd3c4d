//! Forms and bearer tokens as a strict upstream reads them.

use axum::http::HeaderMap;
use std::collections::BTreeMap;

/// A form, every field once.
///
/// # Errors
/// When a field is given twice, or the body is said to be something else.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(format!("the body is {kind}, not a form"));
    }
    let mut form = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(body) {
        if form.insert(name.clone().into_owned(), value.into_owned()).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(form)
}

/// Takes a field out of a form.
///
/// # Errors
/// When it is missing.
pub fn take(form: &mut BTreeMap<String, String>, name: &str) -> Result<String, String> {
    form.remove(name).filter(|value| !value.is_empty()).ok_or_else(|| format!("{name} is missing"))
}

/// The bearer token of a request (RFC 6750 §2.1).
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")
}
