//! The `github_app` backend through the front door, against GitHub's API as its reference describes it.

use jobpass_exchanger::clock::Clock as _;
use jobpass_tests::{
    github_api::GitHubApi,
    http::client,
    world::{World, grant, session},
};
use reqwest::Method;
use serde_json::json;
use std::{fs, time::Duration};
use tempfile::TempDir;

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// A world with the grant `gh`, and two Apps with so many requests left.
async fn start(requests: [u32; 2], credential: &str) -> (World, GitHubApi, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("writable");
        format!("file:{}", path.display())
    };
    let mut world = World::start().await;
    let clock = world.clock.clone();
    let github = GitHubApi::start(move || clock.now().secs(), None).await;
    let apps = ["Iv1.a", "Iv1.b"].iter().zip(requests).zip(1..).map(|((client_id, requests), installation_id)| {
        json!({ "client_id": client_id, "installation_id": installation_id,
                "private_key": file(client_id, &github.install(client_id, requests)) })
    });
    let backend = json!({ "api_url": github.url, "apps": apps.collect::<Vec<_>>(), "insecure_http": true });
    world.stop_server().await;
    let mut config = fs::read_to_string(world.config_path()).expect("a config");
    config.push_str(&format!("  gh:\n    github_app: {backend}\nsealing: {{ keys: \"{}\" }}\n", file("sealing", KEY)));
    fs::write(world.config_path(), config).expect("writable");
    fs::write(world.grants().join("gh.yaml"), grant("gh", "gh", credential)).expect("writable");
    world.start_server().await.expect("it starts");
    (world, github, directory)
}

const READ: &str = "repository_ids: [\"{{ claims.repository_id }}\"]\n  permissions: { contents: read }";

/// What GitHub answers to a request with this token.
async fn status(github: &GitHubApi, method: Method, path: &str, token: &str) -> u16 {
    let request = client().request(method, format!("{}{path}", github.url)).bearer_auth(token);
    request.send().await.expect("GitHub answers").status().as_u16()
}

async fn over(world: &World) {
    world.until("every lease ended", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_repository_that_reads() {
    let (world, github, _files) = start([9, 9], READ).await;
    let held = world.issue("gh").await;
    assert_eq!((&held.body["token_type"], &held.body["revocable"]), (&json!("Bearer"), &json!(true)));
    assert_eq!(held.body["expires_in"], 900, "the lease is shorter than GitHub's hour");
    let token = held.text_at("/access_token");
    for (method, path, expected) in [
        (Method::GET, "/installation/repositories", 200),
        (Method::GET, "/repos/acme/api/contents/README.md", 200),
        (Method::PUT, "/repos/acme/api/contents/README.md", 403),
        (Method::GET, "/repos/acme/web/contents/README.md", 404),
    ] {
        assert_eq!(status(&github, method.clone(), path, &token).await, expected, "{method} {path}");
    }
    let stored = fs::read(world.state().join("jobpass.db-wal")).expect("the log");
    assert!(!stored.windows(token.len()).any(|window| window == token.as_bytes()), "the token is on disk");
    for _ in 0..2 {
        assert_eq!(world.revoke(&held.handle()).await.granted().body["state"], "ended");
        assert_eq!(status(&github, Method::GET, "/installation/repositories", &token).await, 401);
    }
    // What the job took back itself, or nobody did.
    let own = world.issue("gh").await;
    assert_eq!(status(&github, Method::DELETE, "/installation/token", &own.text_at("/access_token")).await, 204);
    assert_eq!(world.revoke(&own.handle()).await.granted().body["state"], "ended");
    world.issue("gh").await;
    assert_eq!(github.live(), 1);
    world.advance(Duration::from_secs(16 * 60));
    world.until("it is deleted before its hour is over", async || github.live() == 0).await;
    over(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_share_the_work_and_a_limited_one_is_left_alone() {
    let (world, github, _files) = start([2, 3], READ).await;
    for _ in 0..5 {
        world.issue("gh").await;
    }
    let by = |asked: &[String], app: &str| asked.iter().filter(|name| *name == app).count();
    assert_eq!((by(&github.asked(), "Iv1.a"), by(&github.asked(), "Iv1.b")), (2, 3));
    let refused = world.exchange(&world.token(), "gh", &[]).await.refused(503, "temporarily_unavailable");
    assert!(refused.retry_after.is_some_and(|after| after.parse::<u64>().is_ok_and(|s| s > 60)));
    assert_eq!(github.asked().len(), 5, "and GitHub is not asked");
    world.advance(Duration::from_secs(3600));
    over(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_github_does_not_give_the_job_does_not_get() {
    for (credential, reason) in [
        ("repositories: [api]\n  permissions: { issues: write }", "not granted to this installation"),
        ("repositories: [api]\n  permissions: { administration: read }", "not granted to this installation"),
        ("repositories: [nobody]\n  permissions: { contents: read }", "does not exist"),
    ] {
        let (world, github, _files) = start([9, 9], credential).await;
        world.exchange(&world.token(), "gh", &[]).await.refused(502, "server_error");
        let told = async || world.audit().iter().any(|line| line.to_string().contains(reason));
        world.until(reason, told).await;
        assert_eq!(github.live(), 0);
        over(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_was_asked_for_is_taken_back() {
    let (world, github, _files) = start([9, 9], "repositories: [api]\n  permissions: { issues: read }").await;
    github.give_more();
    world.exchange(&world.token(), "gh", &[]).await.refused(502, "server_error");
    world.until("it is deleted", async || github.asked().len() == 1 && github.live() == 0).await;
    over(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_outlives_its_lease_and_is_said_to() {
    let (world, github, _files) = start([9, 9], READ).await;
    github.lose_answers(1);
    world.exchange(&world.token(), "gh", &[("session", &session())]).await.refused(502, "server_error");
    assert_eq!((github.asked().len(), github.live()), (1, 1), "it is not asked again");
    let lease = world.leases().await[0].id.to_string();
    let state = world.state_of(&lease).await;
    assert_eq!((&state["state"], &state["why"]), (&json!("outliving"), &json!("outcome_unknown")));
    world.advance(Duration::from_secs(3599));
    assert_eq!((world.state_of(&lease).await["state"].as_str(), github.live()), (Some("outliving"), 1));
    world.advance(Duration::from_secs(120));
    over(&world).await;
    assert_eq!(github.live(), 0, "it expired");
    world.close().await;
}
