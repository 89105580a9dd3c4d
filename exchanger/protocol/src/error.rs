//! Errors on the wire: RFC 6749 §5.2, RFC 8693 §2.2.2 and RFC 7009 §2.2.1.

use serde::{Deserialize, Serialize};

/// The registered error codes that jobpass answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request or its subject token is malformed, expired or not for us (RFC 6749 §5.2).
    InvalidRequest,
    /// The handle is unknown, spent or revoked (RFC 6749 §5.2).
    InvalidGrant,
    /// The scope goes beyond what the grant allows (RFC 6749 §5.2).
    InvalidScope,
    /// The grant is unknown, denied, or the token is spent (RFC 8693 §2.2.2).
    InvalidTarget,
    /// Neither a token exchange nor a renewal (RFC 6749 §5.2).
    UnsupportedGrantType,
    /// A backend failed (RFC 6749 §4.1.2.1, used here as other servers do).
    ServerError,
    /// The server cannot act now; `Retry-After` says when to come back (RFC 6749 §4.1.2.1).
    TemporarilyUnavailable,
}

/// The JSON body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The code, for programs.
    pub error: ErrorCode,
    /// What happened and what to do about it, for people. Never holds a secret.
    pub error_description: String,
    /// Under which id the server's operators find the whole story.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// Why each rule said no, as far as the grant's `disclose` tells this caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}
