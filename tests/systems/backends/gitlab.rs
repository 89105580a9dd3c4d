//! Access tokens of a project, at a strict imitation of GitLab's API.

use super::{System, Try};
use jobpass_tests::{
    gitlab_api::{ADMIN_TOKEN, GitLabApi},
    http::{client, now},
    server::Setup,
};
use reqwest::Method;
use serde_json::{Value, json};

pub(super) struct Project(GitLabApi);

impl Project {
    async fn files(&self, credential: &Value, method: Method, place: &str) -> Result<(), String> {
        let request = client().request(method, format!("{}/api/v4/{place}/files", self.0.url));
        let answer = request.bearer_auth(credential["token"].as_str().expect("a token")).send().await;
        let status = answer.expect("GitLab answers").status();
        if status.is_success() { Ok(()) } else { Err(status.to_string()) }
    }
}

impl System for Project {
    const GONE: [&str; 2] = ["401 Unauthorized"; 2];

    /// A token that nobody heard of may come until midnight.
    const TTL: &str = "10m";

    async fn start() -> Self {
        Self(GitLabApi::start(now).await)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let token = setup.secret("gitlab-token", ADMIN_TOKEN);
        json!({ "gitlab": { "url": self.0.url, "token": token, "settle": "1s", "insecure_http": true } })
    }

    fn credential(&self) -> Value {
        json!({ "project": "772002", "scopes": ["read_repository"], "access_level": "reporter" })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.files(credential, Method::GET, "projects/772002").await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        vec![
            ("to write", "403 Forbidden", self.files(credential, Method::PUT, "projects/772002").await),
            ("a group", "404 Not Found", self.files(credential, Method::GET, "groups/acme%2Fteam").await),
        ]
    }

    async fn left(&self) -> Vec<String> {
        tokio::task::yield_now().await; // as the others do, who ask over the network
        self.0.live()
    }
}
