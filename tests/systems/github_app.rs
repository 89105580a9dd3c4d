//! Every request that the `github_app` backend sends is one that GitHub's own OpenAPI description allows.

use crate::world::{issuer, setup, token};
use jobpass_exchanger::demo::Ci;
use jobpass_tests::{
    github_api::GitHubApi,
    http::{client, now},
    ports,
    program::{self, Program},
};
use serde_json::json;

const SEALING: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// Serves the description, which `tests/run` cut to the endpoints that matter.
async fn description() -> (Program, String) {
    let port = ports::free();
    let mut command = program::installed("prism");
    command
        .args(["mock", "--errors", "--port", &port.to_string()])
        .arg(program::bin().with_file_name("github-api.json"));
    let url = format!("http://127.0.0.1:{port}");
    let listens = async || client().get(&url).send().await.is_ok();
    (Program::start(command).ready(listens).await, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn githubs_own_description_allows_what_is_sent() {
    let (_prism, validator) = description().await;
    // That it looks: a level that there is not, a body that is none, and nobody.
    let create = format!("{validator}/app/installations/1/access_tokens");
    for (bearer, body, expected) in [
        (Some("x"), json!({ "permissions": { "contents": "read" }, "repositories": ["api"] }), true),
        (Some("x"), json!({ "permissions": { "contents": "root" } }), false),
        (Some("x"), json!({ "repository_ids": ["one"] }), false),
        (None, json!({}), false),
    ] {
        let request = client().post(&create).header("accept", "application/vnd.github+json").json(&body);
        let request = if let Some(bearer) = bearer { request.bearer_auth(bearer) } else { request };
        let answer = request.send().await.expect("prism answers");
        assert_eq!(answer.status().is_success(), expected, "{body}: {}", answer.status());
    }

    let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
    let api = GitHubApi::start(now, Some(validator)).await;
    let setup = setup(&github, &gitlab).grant("github.yaml").sealing(SEALING);
    let private_key = setup.secret("app.pem", &api.install("Iv1.a", 9));
    let apps = json!([{ "client_id": "Iv1.a", "installation_id": 1, "private_key": private_key }]);
    let backend = json!({ "github_app": { "api_url": api.url, "apps": apps, "insecure_http": true } });
    let server = setup.backend("acme-org", backend).start().await;

    let answer = server.exchange("github", &token(&github, &server), &[]).await;
    assert_eq!(answer.status, 200, "{}: {:?}", answer.body, api.violations());
    let text = answer.body["access_token"].as_str().expect("a token");
    let uses = async || {
        let request = client().get(format!("{}/installation/repositories", api.url)).bearer_auth(text);
        request.send().await.expect("it answers").status().as_u16()
    };
    assert_eq!(uses().await, 200);
    let handle = answer.body["refresh_token"].as_str().expect("a handle");
    for _ in 0..2 {
        let told = server.post("/revoke", &[("token", handle)]).await;
        assert_eq!((told.status, &told.body["state"]), (200, &json!("ended")), "{:?}", api.violations());
        assert_eq!(uses().await, 401);
    }
    assert_eq!(api.violations(), [""; 0]);
    assert_eq!(server.lease_states(), ["ended: revoked"]);
}
