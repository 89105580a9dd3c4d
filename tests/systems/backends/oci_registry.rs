//! distribution's registry and `skopeo`.

use super::{System, Try};
use jobpass_tests::{
    registry::{ISSUER, Registry, SERVICE},
    server::Setup,
};
use serde_json::{Value, json};
use std::fs;

pub(super) struct Images(Registry);

fn token(credential: &Value) -> &str {
    credential["token"].as_str().expect("a token")
}

impl System for Images {
    const GONE: [&str; 2] = ["unauthorized"; 2];

    /// The registry adds a minute to each token's life, so that jobpass takes one from it.
    const SHORTEST: i64 = 66;

    async fn start() -> Self {
        let registry = Registry::start().await;
        // A token for these can do all that the job's is refused.
        for repository in ["base/debian", "ci/772003/app"] {
            let token = registry.token(repository, &["pull", "push", "delete"]);
            registry.push(&token, repository).await.expect("the token allows it");
            registry.pull(&token, repository).await.expect("the token allows it");
        }
        Self(registry)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let key = fs::read_to_string(self.0.path("signer.key")).expect("the file is there");
        json!({ "oci_registry": {
            "registry": self.0.host(), "service": SERVICE, "issuer": ISSUER, "key": setup.secret("signer", &key),
            "certificate": self.0.path("signer.pem"),
        } })
    }

    fn credential(&self) -> Value {
        json!({ "access": [{ "repository": "ci/{{ claims.repository_id }}/app", "actions": ["pull", "push"] }] })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.0.push(token(credential), "ci/772002/app").await?;
        self.0.pull(token(credential), "ci/772002/app").await
    }

    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        let token = "--registry-token \"$JOBPASS_OCI_REGISTRY_TOKEN\"";
        let inspect = format!("skopeo --insecure-policy inspect --tls-verify=false {token}");
        let (ours, other) = (self.0.host(), "base/debian");
        vec![(
            &[],
            format!(
                "{inspect} docker://{ours}/ci/772002/app:latest > /dev/null; ! {inspect} docker://{ours}/{other}:latest"
            ),
        )]
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        vec![
            (
                "to push elsewhere",
                "denied: requested access to the resource is denied",
                self.0.push(token(credential), "ci/772003/app").await,
            ),
            (
                "to pull elsewhere",
                "denied: requested access to the resource is denied",
                self.0.pull(token(credential), "base/debian").await,
            ),
            ("to delete", "authentication required", self.0.delete(token(credential), "ci/772002/app").await),
        ]
    }
}
