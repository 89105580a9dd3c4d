//! Why a token is refused: one variant per reason, and never a byte of the token in its text.

use jobpass_policy::ClaimsError;
use jobpass_protocol::jwt::JwtError;
use std::{sync::Arc, time::Duration};

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not a signed JWT.
    #[error(transparent)]
    Malformed(#[from] JwtError),
    /// It has no `iss` that is a text.
    #[error("the token has no `iss` that is a string")]
    NoIssuer,
    /// Its `iss` is not configured, letter by letter.
    #[error("the token's issuer is not one that this server trusts")]
    UnknownIssuer,
    /// Its `alg` is not one that this issuer uses.
    #[error("the token's `alg` is not one that its issuer uses")]
    Algorithm,
    /// Its `typ` is not what this issuer's identity tokens have.
    #[error("the token's `typ` is not that of its issuer's identity tokens")]
    TokenType,
    /// It does not say which of the issuer's keys signed it.
    #[error("the token has no `kid`, and its issuer has several keys")]
    NoKeyId,
    /// Its issuer has no such key.
    #[error("the token's issuer has no usable key with its `kid`")]
    UnknownKey,
    /// The key is of another kind than `alg` says, or is not for that algorithm.
    #[error("the token's `alg` does not fit the key that its `kid` names")]
    KeyMismatch,
    /// The key is listed in the issuer's `distrusted_keys`.
    #[error("the token was signed with a key that is no longer trusted")]
    DistrustedKey,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// A claim is missing or has the wrong type, or the payload is not a JSON object with unique members.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// Two readers of the payload would see two issuers.
    #[error("the token's `iss` is ambiguous")]
    AmbiguousIssuer,
    /// `aud` is another one than this server's.
    #[error("the token is for another audience: ask for one whose `aud` is {0}")]
    Audience(Arc<str>),
    /// `aud` names others besides this server, who could present the token here.
    #[error("the token has several audiences: ask for one whose `aud` is {0} alone")]
    SeveralAudiences(Arc<str>),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is still to come.
    #[error("the token is not valid yet: compare the clocks of this server and its issuer")]
    NotYetValid,
    /// `iat` is still to come.
    #[error("the token was issued in the future: compare the clocks of this server and its issuer")]
    IssuedInFuture,
    /// `exp` - `iat` is longer than this issuer's tokens live.
    #[error("the token lives longer than the {0} s that its issuer's tokens may")]
    LivesTooLong(u64),
    /// It was issued too long ago, whatever its `exp` says.
    #[error("the token is older than the {0} s that are accepted: get a fresh one")]
    TooOld(u64),
    /// It has no `jti`, or an empty one, and its issuer's tokens have one.
    #[error("the token has no `jti`")]
    NoTokenId,
    /// It belongs to a tenant that is not among the issuer's `tenants`.
    #[error("the token's tenant is not one of those that this server serves")]
    ForeignTenant,
    /// The issuer's keys cannot be had, so nothing can be said about the token.
    #[error("the keys of the token's issuer cannot be had at the moment")]
    KeysUnavailable {
        /// When it makes sense to try again.
        retry_after: Duration,
    },
}

/// What a refusal means to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What came is not a token.
    Malformed,
    /// It is a token, and it is not believed.
    Untrusted,
    /// It is believed, and it belongs to a stranger: a constant answer, a counter, and nothing on disk.
    ForeignTenant,
    /// It could not be checked.
    KeysUnavailable {
        /// When it makes sense to try again.
        retry_after: Duration,
    },
}

impl TokenError {
    /// What the refusal means to the caller.
    #[must_use]
    pub const fn refusal(&self) -> Refusal {
        match self {
            Self::Malformed(_) | Self::NoIssuer | Self::Claims(_) | Self::AmbiguousIssuer | Self::NoTokenId => {
                Refusal::Malformed
            }
            Self::UnknownIssuer
            | Self::Algorithm
            | Self::TokenType
            | Self::NoKeyId
            | Self::UnknownKey
            | Self::KeyMismatch
            | Self::DistrustedKey
            | Self::BadSignature
            | Self::Audience(_)
            | Self::SeveralAudiences(_)
            | Self::Expired
            | Self::NotYetValid
            | Self::IssuedInFuture
            | Self::LivesTooLong(_)
            | Self::TooOld(_) => Refusal::Untrusted,
            Self::ForeignTenant => Refusal::ForeignTenant,
            Self::KeysUnavailable { retry_after } => Refusal::KeysUnavailable { retry_after: *retry_after },
        }
    }

    /// A constant code for counters and logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NoIssuer => "no_issuer",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Algorithm => "algorithm",
            Self::TokenType => "token_type",
            Self::NoKeyId => "no_key_id",
            Self::UnknownKey => "unknown_key",
            Self::KeyMismatch => "key_mismatch",
            Self::DistrustedKey => "distrusted_key",
            Self::BadSignature => "bad_signature",
            Self::Claims(_) => "claims",
            Self::AmbiguousIssuer => "ambiguous_issuer",
            Self::Audience(_) => "audience",
            Self::SeveralAudiences(_) => "several_audiences",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuedInFuture => "issued_in_future",
            Self::LivesTooLong(_) => "lives_too_long",
            Self::TooOld(_) => "too_old",
            Self::NoTokenId => "no_token_id",
            Self::ForeignTenant => "foreign_tenant",
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }
}
