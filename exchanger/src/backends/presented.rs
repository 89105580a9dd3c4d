//! The tokens by which the server itself proves to another system that it is jobpass, at work for one grant.
//!
//! Such a token never reaches a job, and can never pass for a job's own: its `jti` is no lease id, and no
//! job can get a token for its audience (see `registry`).

use super::{MintError, Order, registry::BuildContext, spec};
use crate::signing::{Algorithm, Keys};
use jobpass_policy::{FieldRules, Permit, Template};
use jobpass_protocol::{GrantName, Secret};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// A client's assertion in a form (RFC 7523 §2.2).
pub(super) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How long a presented token lives.
const LIFETIME: Duration = Duration::from_secs(300);

/// What follows `grant:<name>:` in `sub`. OpenID Connect Core §2 gives the whole 255 characters, of which the
/// grant's part takes up to 70.
pub(super) const SUBJECT: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "-._~:/@+=,".contains(c),
    max_len: 180,
    expected: "letters, digits and -._~:/@+=,",
};

/// `grant:<name>`, and what the grant's template adds: no grant can speak for another one.
///
/// # Errors
/// When the claims do not fit the template.
pub(super) fn subject(template: Option<&Template>, permit: &Permit) -> Result<String, MintError> {
    let mut subject = format!("grant:{}", permit.grant().name());
    if let Some(template) = template {
        subject.push(':');
        subject.push_str(&spec::render("credential.sub", template, permit)?);
    }
    Ok(subject)
}

/// Signs what is presented to one audience.
pub(super) struct Presenter {
    issuer: String,
    audience: String,
    algorithm: Algorithm,
    keys: Arc<Keys>,
}

/// What one token says besides who issued it and for whom.
#[derive(Clone, Copy)]
pub(super) struct Presented<'a, M> {
    pub(super) grant: &'a GrantName,
    pub(super) subject: &'a str,
    /// More claims.
    pub(super) more: M,
}

#[derive(Serialize)]
struct Payload<'a, M> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    grant: &'a GrantName,
    #[serde(flatten)]
    more: M,
}

impl Presenter {
    /// Tokens of our issuer for `audience`, signed with `wanted` or the first of our keys that the other side `takes`.
    ///
    /// # Errors
    /// When there is no such key.
    pub(super) fn build(
        context: &BuildContext,
        audience: String,
        wanted: Option<Algorithm>,
        takes: &[Algorithm],
    ) -> Result<Self, String> {
        let names = takes.iter().map(|algorithm| algorithm.as_str()).collect::<Vec<_>>().join(" or ");
        if let Some(wanted) = wanted.filter(|wanted| !takes.contains(wanted)) {
            return Err(format!("algorithm: the other side takes {names}, not {wanted}"));
        }
        let mut kept = context.keys.algorithms().filter(|kept| takes.contains(kept));
        let algorithm = kept.find(|kept| wanted.is_none_or(|wanted| wanted == *kept));
        let algorithm = algorithm
            .ok_or_else(|| format!("algorithm: there is no such key; add {names} to the config's signing keys"))?;
        Ok(Self { issuer: context.public_url.clone(), audience, algorithm, keys: Arc::clone(&context.keys) })
    }

    /// Names another issuer than us: a client that speaks for itself (RFC 7523 §3 has `iss` and `sub` be its id).
    pub(super) fn issued_by(self, issuer: String) -> Self {
        Self { issuer, ..self }
    }

    /// Signs a token for one order.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub(super) fn sign(&self, order: &Order, said: Presented<'_, impl Serialize>) -> Result<Secret, MintError> {
        let expires_at = order.at + LIFETIME;
        // Each is taken once (RFC 7523 §3), and one lease may need several.
        let number = getrandom::u64().map_err(|error| MintError::Unavailable(error.to_string()))?;
        let payload = Payload {
            iss: &self.issuer,
            sub: said.subject,
            aud: &self.audience,
            iat: order.at.secs(),
            nbf: order.at.secs(),
            exp: expires_at.secs(),
            jti: format!("presented-{}-{number:016x}", order.lease),
            grant: said.grant,
            more: said.more,
        };
        self.keys.sign_jwt(self.algorithm, expires_at, &payload).map_err(|error| MintError::Refused(error.to_string()))
    }
}
