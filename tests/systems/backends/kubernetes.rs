//! Secrets that tokens are bound to, at a strict fake of the API server: there is no real one for a test's machine.

use super::{System, Try};
use jobpass_tests::{
    http::{client, now},
    kubernetes::{ADMIN, Kubernetes},
    server::Setup,
};
use serde_json::{Value, json};

pub(super) struct Cluster(Kubernetes);

impl Cluster {
    pub(super) fn secrets(&self) -> Vec<Value> {
        self.0.secrets()
    }

    async fn pods(&self, credential: &Value, namespace: &str) -> Result<(), String> {
        let url = format!("{}/api/v1/namespaces/{namespace}/pods", self.0.url);
        let token = credential["token"].as_str().expect("a token");
        let answer = client().get(url).bearer_auth(token).send().await.expect("it answers");
        if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
    }
}

impl System for Cluster {
    const GONE: [&str; 2] = ["401 Unauthorized"; 2];

    /// No token lives shorter.
    const TTL: &str = "10m";

    async fn start() -> Self {
        Self(Kubernetes::start(now).await)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let token = setup.secret("cluster-token", ADMIN);
        json!({ "kubernetes": { "server": self.0.url, "token": token, "bound": true, "insecure_http": true } })
    }

    fn credential(&self) -> Value {
        json!({ "namespace": "prod", "service_account": "deploy" })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.pods(credential, "prod").await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        vec![("another namespace", "403 Forbidden", self.pods(credential, "kube-system").await)]
    }

    fn named(remote_name: &str) -> String {
        remote_name.replace('_', "-")
    }

    async fn left(&self) -> Vec<String> {
        tokio::task::yield_now().await; // as the others do, who ask over the network
        let secrets = self.0.secrets();
        secrets.iter().map(|secret| secret["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    }
}
