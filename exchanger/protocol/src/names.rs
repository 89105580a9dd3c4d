//! Names and identifiers, each valid by construction.

use crate::secret::Secret;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, Serializer};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};
use uuid::Uuid;

/// Why a text is not a name of the wanted kind. Never holds the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {expected}")]
pub struct NameError {
    what: &'static str,
    expected: &'static str,
}

const NAME_RULE: &str = "1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end";

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// INVARIANT: 1 to 63 characters of `[a-z0-9-]`, with no `-` at either end.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// When the text breaks the invariant.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                if is_name(text) { Ok(Self(text.into())) } else { Err(NameError { what: $what, expected: NAME_RULE }) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name!(
    /// What a job asks for: the name of a grant.
    GrantName, "a grant's name"
);
name!(
    /// The short name that the server's config gives to an issuer.
    IssuerName, "an issuer's name"
);
name!(
    /// The name that the server's config gives to a backend.
    BackendName, "a backend's name"
);
name!(
    /// The name of a rule, unique within its grant.
    RuleName, "a rule's name"
);

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(Uuid);

        impl $type {
            /// Wraps a UUID, which the caller made as version 7 (its keys then grow with time).
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The 16 bytes, as stored.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Uuid::try_parse(text).map(Self).map_err(|_| NameError { what: $what, expected: "a UUID" })
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// Names one lease; a UUID version 7.
    LeaseId, "a lease id"
);
id!(
    /// Names one decision of the policy, in answers and in the audit log; a UUID version 7.
    DecisionId, "a decision id"
);

impl LeaseId {
    /// The name that a remote object of this lease carries, derived from the id alone:
    /// `jobpass_` and 32 hex digits. Fits every system's identifier rules that we know of.
    #[must_use]
    pub fn remote_name(self) -> String {
        format!("jobpass_{}", self.0.simple())
    }
}

/// The secret that binds a token to its holder (`session` in the form).
///
/// INVARIANT: at least 128 random bits as far as its spelling can tell: 32 to 128 hex digits, or
/// 22 to 128 characters of base64url.
#[derive(Clone, Debug)]
pub struct SessionSecret(Secret);

impl SessionSecret {
    /// Parses a session secret.
    ///
    /// # Errors
    /// When the text breaks the invariant.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let base64url = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let hex = text.bytes().all(|b| b.is_ascii_hexdigit());
        let least = if hex { 32 } else { 22 };
        if base64url && (least..=128).contains(&text.len()) {
            Ok(Self(Secret::from(text)))
        } else {
            Err(NameError {
                what: "session",
                expected: "at least 128 random bits as 32 to 128 hex digits or 22 to 128 base64url characters",
            })
        }
    }

    /// Encodes 32 random bytes as a session secret.
    #[must_use]
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// The client's own name for one request (`request_id`): the same id again in the same session says
/// that the answer to the first request was lost.
///
/// INVARIANT: 1 to 64 characters of `[A-Za-z0-9_-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// Parses a request id.
    ///
    /// # Errors
    /// When the text breaks the invariant.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let fits =
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError { what: "request_id", expected: "1 to 64 characters of A-Z, a-z, 0-9, '-' and '_'" })
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The secret with which a job renews or revokes its lease (`refresh_token` on the wire).
///
/// It holds the lease's id, so that the store needs no index over handles:
/// `jph_<32 hex digits of the lease id>_<43 base64url characters, 256 random bits>`.
/// The prefix lets secret scanners find a leaked one.
#[derive(Clone, Debug)]
pub struct LeaseHandle {
    lease: LeaseId,
    text: Secret,
}

const HANDLE_PREFIX: &str = "jph_";

impl LeaseHandle {
    /// Makes the handle of a lease from 32 random bytes.
    #[must_use]
    pub fn from_random(lease: LeaseId, bytes: &[u8; 32]) -> Self {
        let text = format!("{HANDLE_PREFIX}{}_{}", lease.uuid().simple(), URL_SAFE_NO_PAD.encode(bytes));
        Self { lease, text: Secret::new(text) }
    }

    /// Parses a handle that a client sent. Says nothing about whether it is a valid one.
    ///
    /// # Errors
    /// When the text is not shaped like a handle.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let error = NameError { what: "a lease handle", expected: "the `refresh_token` of an answer, unchanged" };
        let (id, random) = text.strip_prefix(HANDLE_PREFIX).and_then(|t| t.split_once('_')).ok_or(error)?;
        let canonical = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let random_fits =
            random.len() == 43 && random.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !(canonical && random_fits) {
            return Err(error);
        }
        let lease = LeaseId::from_uuid(Uuid::try_parse(id).map_err(|_| error)?);
        Ok(Self { lease, text: Secret::from(text) })
    }

    /// The lease that this handle claims to be for.
    #[must_use]
    pub const fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, valid) in [
            ("deploy-prod", true),
            ("a", true),
            ("7", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("Deploy", false),
            ("a_b", false),
            ("a/b", false),
            ("é", false),
            (&"x".repeat(63), true),
            (&"x".repeat(64), false),
        ] {
            assert_eq!(GrantName::parse(text).is_ok(), valid, "{text:?}");
        }
    }

    #[test]
    fn session_secrets_hold_128_bits() {
        for (text, valid) in [
            ("0123456789abcdef0123456789abcdef", true),
            ("0123456789abcdef0123456789abcde", false),
            ("AbCdEfGhIjKlMnOpQrStUv", true),
            ("AbCdEfGhIjKlMnOpQrStU", false),
            ("AbCdEfGhIjKlMnOpQrStUv=", false),
            (&"z".repeat(128), true),
            (&"z".repeat(129), false),
        ] {
            assert_eq!(SessionSecret::parse(text).is_ok(), valid, "{text:?}");
        }
    }

    #[test]
    fn a_handle_holds_its_lease() {
        let lease = LeaseId::from_uuid(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001));
        let handle = LeaseHandle::from_random(lease, &[7; 32]);
        let parsed = LeaseHandle::parse(handle.expose()).expect("own handles parse");
        assert_eq!(parsed.lease(), lease);
        assert!(!format!("{handle:?}").contains("BwcH"), "the random part has no voice");
        for bad in ["", "jph_", "jph_xx_yy", &handle.expose().to_uppercase(), &format!("{}=", handle.expose())] {
            assert!(LeaseHandle::parse(bad).is_err(), "{bad:?}");
        }
    }
}
