//! The document that Google's client libraries read from an executable-sourced credential
//! (google-auth, "Executable-sourced credentials"): a token of ours, which they trade for Google's own.

use super::{DeliverError, Given};
use crate::env::now;
use jobpass_protocol::Secret;
use zeroize::Zeroizing;

/// The document, in one line.
///
/// # Errors
/// When the credential is no token that jobpass signed.
pub(crate) fn executable_response(given: &Given, lives: u64) -> Result<Zeroizing<String>, DeliverError> {
    let Some(token) = given.credential.field("token").filter(|_| given.credential.kind() == "jwt").map(Secret::expose)
    else {
        return Err(given.wrong_kind("Google's libraries need a `jwt` of a `signed_jwt` backend"));
    };
    let document = serde_json::json!({
        "version": 1,
        "success": true,
        "token_type": "urn:ietf:params:oauth:token-type:jwt",
        "id_token": token,
        "expiration_time": now().saturating_add_unsigned(lives),
    });
    Ok(Zeroizing::new(document.to_string()))
}
