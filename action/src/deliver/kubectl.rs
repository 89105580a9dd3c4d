//! The document that Kubernetes clients read from an exec plugin
//! (Kubernetes documentation, "client.authentication.k8s.io/v1").

use super::{DeliverError, Given};
use anyhow::bail;
use jobpass_protocol::Secret;
use zeroize::Zeroizing;

const VERSIONS: &[&str] = &["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The version that the client speaks, by what it says in `KUBERNETES_EXEC_INFO`; v1 where it says nothing.
///
/// # Errors
/// When it is none of ours.
pub(crate) fn wanted_version(info: Option<&str>) -> anyhow::Result<&'static str> {
    let Some(info) = info else { return Ok(VERSIONS[0]) };
    let info: serde_json::Value = serde_json::from_str(info).unwrap_or_default();
    match VERSIONS.iter().find(|version| info["apiVersion"] == **version) {
        Some(version) => Ok(version),
        None => bail!("KUBERNETES_EXEC_INFO names no version that jobpass knows: set `apiVersion: {}`", VERSIONS[0]),
    }
}

/// The document, in one line.
///
/// # Errors
/// When the credential is no token of a cluster.
pub(crate) fn exec_credential(given: &Given, version: &str) -> Result<Zeroizing<String>, DeliverError> {
    let field = |name: &str| given.credential.field(name).map(Secret::expose);
    let (Some(token), Some(until)) =
        (given.credential.bearer_token().map(Secret::expose).or(field("token")), field("expiration"))
    else {
        return Err(given.wrong_kind("Kubernetes clients need one with `token` and `expiration`, such as `kubernetes`"));
    };
    let status = serde_json::json!({ "expirationTimestamp": until, "token": token });
    let document = serde_json::json!({ "apiVersion": version, "kind": "ExecCredential", "status": status });
    Ok(Zeroizing::new(document.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobpass_protocol::Credential;

    #[test]
    fn the_document_is_what_kubernetes_describes() {
        let given = |credential| Given { grant: "k8s".parse().expect("name"), credential };
        let token = Credential::kubernetes(
            "https://k8s.example",
            None,
            "prod",
            "t".into(),
            "{}".into(),
            "2026-01-01T00:00:00Z",
        );
        let version = wanted_version(Some(r#"{"apiVersion":"client.authentication.k8s.io/v1beta1"}"#)).expect("known");
        assert_eq!(
            *exec_credential(&given(token), version).expect("document"),
            r#"{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{"expirationTimestamp":"2026-01-01T00:00:00Z","token":"t"}}"#
        );
        assert!(exec_credential(&given(Credential::jwt("a.b.c".into())), version).is_err());
        assert_eq!(wanted_version(None).expect("the newest"), VERSIONS[0]);
        assert!(wanted_version(Some("{}")).is_err());
    }
}
