//! The document that AWS's SDKs read from a `credential_process`
//! (AWS SDKs and Tools Reference Guide, "Process credential provider").

use super::{DeliverError, Given};
use jobpass_protocol::Secret;
use zeroize::Zeroizing;

/// The document, in one line.
///
/// # Errors
/// When the credential is no AWS session.
pub(crate) fn credential_process(given: &Given) -> Result<Zeroizing<String>, DeliverError> {
    let field = |name: &str| given.credential.field(name).map(Secret::expose);
    let (Some(key), Some(secret), Some(token), Some(expiration)) =
        (field("access_key_id"), field("secret_access_key"), field("session_token"), field("expiration"))
    else {
        return Err(given.wrong_kind("AWS tools need one of type `aws_session`"));
    };
    let text = |text: &str| Zeroizing::new(serde_json::Value::from(text).to_string());
    Ok(Zeroizing::new(format!(
        r#"{{"Version":1,"AccessKeyId":{},"SecretAccessKey":{},"SessionToken":{},"Expiration":{}}}"#,
        *text(key),
        *text(secret),
        *text(token),
        *text(expiration)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobpass_protocol::Credential;

    #[test]
    fn the_document_is_what_aws_describes() {
        let given = |credential| Given { grant: "aws".parse().expect("name"), credential };
        let session = Credential::aws_session("ASIA", "s\"1".into(), "t".into(), "2026-01-01T00:00:00Z");
        let document = credential_process(&given(session)).expect("document");
        assert_eq!(
            *document,
            r#"{"Version":1,"AccessKeyId":"ASIA","SecretAccessKey":"s\"1","SessionToken":"t","Expiration":"2026-01-01T00:00:00Z"}"#
        );
        let error = credential_process(&given(Credential::jwt("a.b.c".into()))).expect_err("no session");
        assert!(error.to_string().contains("type `jwt`"), "{error}");
    }
}
