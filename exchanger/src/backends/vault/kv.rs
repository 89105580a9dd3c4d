//! Reading a static secret (KV version 2) by the same login, for the backend `fixed`: this one never hands it out.

use super::{MintError, Order, Rendered, Vault, errors};
use crate::{backends::spec, clock::Timestamp};
use http::Method;
use jobpass_protocol::{GrantName, Secret};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The answer of `GET /v1/MOUNT/data/PATH` ("KV secrets engine version 2 API", Read secret version).
#[derive(Deserialize)]
struct Answer {
    data: Version,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    data: Option<Map<String, Value>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(deserialize_with = "spec::instant")]
    created_time: Timestamp,
}

impl Vault {
    /// Whether `path` is one that can be read.
    pub(in crate::backends) fn is_path(path: &str) -> bool {
        super::is_path(path) && path.chars().all(super::PATH.allowed)
    }

    /// The newest version's fields, and when it was written. The login's token revokes itself at once.
    ///
    /// # Errors
    /// When the server refuses or does not answer. Nothing was made that lasts.
    pub(in crate::backends) async fn read_static(
        &self,
        order: &Order,
        grant: &GrantName,
        role: &str,
        (mount, path): (&str, &str),
    ) -> Result<(Map<String, Value>, Timestamp), MintError> {
        let (grant, role, subject) = (grant.clone(), role.to_owned(), format!("grant:{grant}"));
        let auth = self.login(order, &Rendered { grant, role, subject, read: None }).await?;
        let token: &Secret = &auth.client_token;
        let answer = self.send(Method::GET, &format!("{mount}/data/{path}"), Some(token), None).await;
        if let Err(error) = self.send(Method::POST, "auth/token/revoke-self", Some(token), None).await {
            tracing::warn!(%error, "the token of a login did not revoke itself; it ends by itself");
        }
        let answer = answer?;
        if !answer.status.is_success() {
            let why = format!("the vault refused to read {path}: {} {}", answer.status.as_u16(), errors(&answer));
            return Err(MintError::Refused(why));
        }
        let read: Answer = serde_json::from_slice(&answer.body)
            .map_err(|_| MintError::Refused(format!("{mount} is not a KV engine of version 2")))?;
        let fields = read.data.data.ok_or_else(|| MintError::Refused(format!("{path} was deleted")))?;
        Ok((fields, read.data.metadata.created_time))
    }
}
