//! What docker and its like read from a credential helper (docker-credential-helpers, README): a helper gets no
//! arguments of ours, so [`GRANTS`] says which grant is for which registry.

use super::{DeliverError, Given};
use anyhow::Context as _;
use jobpass_protocol::GrantName;
use serde_json::json;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// `HOST=GRANT`, several with spaces between them.
pub(crate) const GRANTS: &str = "JOBPASS_DOCKER_GRANTS";

/// Which grant is for which registry.
#[derive(Debug)]
pub(crate) struct Grants(BTreeMap<String, GrantName>);

impl Grants {
    /// Reads the variable.
    ///
    /// # Errors
    /// When a word of it is not `HOST=GRANT`.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let pair = |word: &str| {
            let (host, grant) = word.split_once('=').filter(|(host, _)| !host.is_empty())?;
            Some((host.to_owned(), grant.parse().ok()?))
        };
        let pairs = text.split_ascii_whitespace().map(|word| {
            pair(word)
                .with_context(|| format!("{GRANTS}: `{word}` is not HOST=GRANT, as in registry.example=push-image"))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// The grant for a server, which docker names by its host or by a URL.
    pub(crate) fn of(&self, server: &str) -> Option<&GrantName> {
        let host = server.split_once("://").map_or(server, |(_, rest)| rest);
        self.0.get(host.split('/').next().unwrap_or_default())
    }

    /// All servers, with the user's name that an answer will have.
    pub(crate) fn list(&self) -> String {
        serde_json::Value::from_iter(self.0.keys().map(|host| (host.clone(), "jobpass"))).to_string()
    }
}

/// The answer, in one line.
///
/// # Errors
/// When the credential has nothing that can be a password.
pub(crate) fn answer(given: &Given, server: &str) -> Result<Zeroizing<String>, DeliverError> {
    // Artifact Registry documentation, "Access token".
    let default = if given.credential.kind() == "gcp_token" { "oauth2accesstoken" } else { "jobpass" };
    let (username, secret) = given.login(default)?;
    Ok(Zeroizing::new(json!({ "ServerURL": server, "Username": username, "Secret": secret }).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants() {
        let grants = Grants::parse("registry.example=push-image  other.example:5000=pull").expect("grants");
        for (server, grant) in [
            ("registry.example", Some("push-image")),
            ("https://registry.example/v2/", Some("push-image")),
            ("other.example:5000", Some("pull")),
            ("other.example", None),
            ("registry.example.evil", None),
            ("", None),
        ] {
            assert_eq!(grants.of(server).map(GrantName::as_str), grant, "{server}");
        }
        assert_eq!(grants.list(), r#"{"other.example:5000":"jobpass","registry.example":"jobpass"}"#);
        for bad in ["registry.example", "=x", "a=B!"] {
            assert!(Grants::parse(bad).is_err(), "{bad}");
        }
    }
}
