//! From a text that a stranger sent to a [`VerifiedToken`].
//!
//! Before the signature is checked only `iss`, `alg`, `kid` and `typ` are read, and `iss` only to find
//! the issuer in the config: a token of any other issuer costs no request to anybody. What is believed
//! afterwards is parsed from the very bytes that the signature covers. It must never log or return a
//! part of a token.

mod discovery;
mod error;
pub mod issuer;
mod jwks;
mod keys;

pub use error::{Refusal, TokenError};
pub use jwks::Algorithm;
pub use keys::KeyStatus;
pub(crate) use keys::check_file as check_key_file;

use crate::{
    clock::{Clock, Timestamp},
    leases::TokenKey,
};
use issuer::{IssuerError, Trust, TrustedIssuer};
use jobpass_policy::{Claims, Issuer};
use jobpass_protocol::{CompactJwt, IssuerName};
use keys::Keys;
use sha2::{Digest as _, Sha256};
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};
use url::Url;

/// How far our clock and an issuer's may be apart.
///
/// SECURITY INVARIANT: a token is accepted until `exp` + this, so the row that says that it was used has
/// to be kept for longer: [`keep_until`] builds on this same constant.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// Until when to remember that a token was used: an hour after the last moment at which it works.
#[must_use]
pub fn keep_until(token: TokenKey) -> Timestamp {
    Timestamp::from_secs(token.expires) + LEEWAY + Duration::from_secs(3600)
}

/// Why the issuers cannot be trusted together.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// One cannot be trusted as the config describes it.
    #[error("issuer `{name}`: {why}")]
    Issuer {
        /// The issuer.
        name: IssuerName,
        /// What is wrong.
        why: IssuerError,
    },
    /// The issuer is this server.
    #[error("issuer `{0}`: its URL is this server's own; what this server signs is no subject token")]
    OurOwn(IssuerName),
    /// Two issuers with one name.
    #[error("two issuers are named `{0}`")]
    SameName(IssuerName),
    /// Two issuers whose URLs are the same, or differ only in a slash at the end.
    #[error("issuers `{0}` and `{1}` have the same URL")]
    SameUrl(IssuerName, IssuerName),
}

/// Checks tokens of the configured issuers.
#[derive(Debug)]
pub struct Verifier {
    audience: Arc<str>,
    issuers: HashMap<String, Arc<Keys>>,
    clock: Arc<dyn Clock>,
}

impl Verifier {
    /// A verifier for tokens whose audience is `audience`, this server's `public_url`.
    ///
    /// # Errors
    /// See [`VerifierError`].
    pub fn new(audience: String, issuers: Vec<TrustedIssuer>, clock: Arc<dyn Clock>) -> Result<Self, VerifierError> {
        let own = Url::parse(&audience).ok();
        let mut checked: HashMap<String, Arc<Keys>> = HashMap::with_capacity(issuers.len());
        for issuer in issuers {
            let name = issuer.policy.name.clone();
            let trust = Trust::new(issuer).map_err(|why| VerifierError::Issuer { name: name.clone(), why })?;
            if own.as_ref().is_some_and(|own| without_slash(own) == without_slash(&trust.url)) {
                return Err(VerifierError::OurOwn(name));
            }
            for other in checked.values().map(|keys| keys.of()) {
                if other.policy.name == name {
                    return Err(VerifierError::SameName(name));
                }
                if without_slash(&other.url) == without_slash(&trust.url) {
                    return Err(VerifierError::SameUrl(other.policy.name.clone(), name));
                }
            }
            checked.insert(trust.policy.url.clone(), Arc::new(Keys::new(trust, Arc::clone(&clock))));
        }
        Ok(Self { audience: audience.into(), issuers: checked, clock })
    }

    /// Verifies a token.
    ///
    /// # Errors
    /// One variant per reason; see [`TokenError`].
    pub async fn verify(&self, token: &str) -> Result<VerifiedToken, TokenError> {
        let jwt = CompactJwt::parse(token)?;
        let iss = jwt.unverified_issuer()?.ok_or(TokenError::NoIssuer)?;
        let keys = self.issuers.get(&*iss).ok_or(TokenError::UnknownIssuer)?;
        let key_id = verify_signature(&jwt, keys).await?;
        let trust = keys.of();
        if !trust.vouches(&iss, &key_id) {
            return Err(TokenError::DistrustedKey);
        }
        let claims = Claims::parse(trust.profile(), jwt.payload())?;
        self.check(&claims, &trust.policy)?;
        let key = token_key(&claims, &trust.policy, jwt.signing_input())?;
        Ok(VerifiedToken { keys: Arc::clone(keys), claims, key, key_id })
    }

    /// The issuer of this name.
    #[must_use]
    pub fn issuer(&self, name: &IssuerName) -> Option<&Trust> {
        self.issuers.values().map(|keys| keys.of()).find(|trust| trust.policy.name == *name)
    }

    /// The names of all issuers.
    pub fn issuers(&self) -> impl Iterator<Item = &IssuerName> {
        self.issuers.values().map(|keys| &keys.of().policy.name)
    }

    /// How the fetches of each issuer's keys went.
    pub fn key_status(&self) -> impl Iterator<Item = (&IssuerName, KeyStatus)> {
        self.issuers.values().map(|keys| (&keys.of().policy.name, keys.status()))
    }

    /// The rules for what a token with a good signature says (RFC 7519 §4.1, RFC 8725 §3).
    fn check(&self, claims: &Claims, issuer: &Issuer) -> Result<(), TokenError> {
        let registered = claims.registered();
        let profile = &issuer.profile;
        let leeway = LEEWAY.as_secs().cast_signed();
        let now = self.clock.now().secs();
        // The lookup read the payload by itself; this one is what policy and audit will see.
        if registered.iss != issuer.url {
            return Err(TokenError::AmbiguousIssuer);
        }
        match registered.aud.as_slice() {
            [only] if **only == *self.audience => {}
            several if several.iter().any(|one| **one == *self.audience) => {
                return Err(TokenError::SeveralAudiences(Arc::clone(&self.audience)));
            }
            _ => return Err(TokenError::Audience(Arc::clone(&self.audience))),
        }
        if registered.exp.saturating_add(leeway) <= now {
            return Err(TokenError::Expired);
        }
        if registered.nbf.is_some_and(|nbf| nbf > now.saturating_add(leeway)) {
            return Err(TokenError::NotYetValid);
        }
        if registered.iat > now.saturating_add(leeway) {
            return Err(TokenError::IssuedInFuture);
        }
        if exceeds(registered.exp, registered.iat, profile.max_lifetime()) {
            return Err(TokenError::LivesTooLong(profile.max_lifetime()));
        }
        if exceeds(now, registered.iat, profile.max_age()) {
            return Err(TokenError::TooOld(profile.max_age()));
        }
        if !issuer.admits(claims) {
            return Err(TokenError::ForeignTenant);
        }
        Ok(())
    }
}

/// A token whose signature, issuer, audience, times and tenant are right.
///
/// INVARIANT: made by [`Verifier::verify`] only.
pub struct VerifiedToken {
    keys: Arc<Keys>,
    claims: Claims,
    key: TokenKey,
    key_id: Arc<str>,
}

impl VerifiedToken {
    /// Who vouches for the job.
    #[must_use]
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.keys.of().policy
    }

    /// What the token says about the job.
    #[must_use]
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The same, for good.
    #[must_use]
    pub fn into_claims(self) -> Claims {
        self.claims
    }

    /// What the token is remembered by once it was used.
    #[must_use]
    pub const fn key(&self) -> TokenKey {
        self.key
    }

    /// The issuer's key that signed it: its `kid`, or a fingerprint where it has none.
    #[must_use]
    pub fn key_id(&self) -> &Arc<str> {
        &self.key_id
    }

    /// The token's `exp`.
    #[must_use]
    pub const fn expires_at(&self) -> Timestamp {
        Timestamp::from_secs(self.key.expires)
    }
}

impl fmt::Debug for VerifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedToken")
            .field("issuer", &self.issuer().name)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// Checks header and signature; answers with the name of the key.
async fn verify_signature(jwt: &CompactJwt<'_>, keys: &Arc<Keys>) -> Result<Arc<str>, TokenError> {
    let Trust { policy, algorithms, .. } = keys.of();
    let algorithm = Algorithm::named(&jwt.header.algorithm).filter(|algorithm| algorithms.contains(algorithm));
    let algorithm = algorithm.ok_or(TokenError::Algorithm)?;
    if !is_token_type(jwt.header.token_type.as_deref(), policy.profile.token_types()) {
        return Err(TokenError::TokenType);
    }
    let current = keys.current().await?;
    match current.keys.verify(jwt, algorithm) {
        Ok(key_id) => Ok(Arc::clone(key_id)),
        // The issuer may have changed its keys since they were fetched, even a key under the same `kid`.
        Err(error) => match keys.newer(&current).await {
            Some(newer) => newer.keys.verify(jwt, algorithm).cloned(),
            None => Err(error),
        },
    }
}

/// Whether `typ` is one of those (RFC 7515 §4.1.9: without case, and `application/` may be left out).
fn is_token_type(typ: Option<&str>, accepted: &[String]) -> bool {
    let typ = typ.unwrap_or_default();
    let short = match typ.split_at_checked("application/".len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
        _ => typ,
    };
    accepted.iter().any(|one| one.eq_ignore_ascii_case(short))
}

/// Whether there are more than `max` seconds from `earlier` to `later`.
fn exceeds(later: i64, earlier: i64, max: u64) -> bool {
    u64::try_from(later.saturating_sub(earlier)).is_ok_and(|seconds| seconds > max)
}

/// What the token is remembered by: issuer and `jti`, or what was signed where the issuer has no `jti`.
/// Never the signature: an ECDSA signature has a second valid form.
fn token_key(claims: &Claims, issuer: &Issuer, signing_input: &str) -> Result<TokenKey, TokenError> {
    let registered = claims.registered();
    let unique = match registered.jti.as_deref() {
        _ if !issuer.profile.has_jti() => signing_input,
        Some(jti) if !jti.is_empty() => jti,
        _ => return Err(TokenError::NoTokenId),
    };
    let mut hash = Sha256::new();
    for part in [&issuer.url, unique] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Ok(TokenKey { expires: registered.exp, hash: hash.finalize().into() })
}

/// A URL as it is compared to find confusable ones.
pub(crate) fn without_slash(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests;
