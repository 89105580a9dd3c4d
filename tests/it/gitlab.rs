//! The `gitlab` backend through the front door, against GitLab's API as its reference describes it.

use jobpass_exchanger::clock::Clock as _;
use jobpass_tests::{
    gitlab_api::{ADMIN_TOKEN, GitLabApi},
    http::client,
    world::{World, grant},
};
use reqwest::Method;
use serde_json::json;
use std::{fs, time::Duration};

const PROJECT: &str = "project: \"{{ claims.repository_id }}\"\n  scopes: [read_repository]\n  access_level: reporter";
const GROUP: &str = "group: acme/team\n  scopes: [read_repository, write_repository]\n  access_level: developer";
const OWNER: &str = "group: acme/team\n  scopes: [api]\n  access_level: owner";
const ELSEWHERE: &str = "project: acme/other\n  scopes: [api]\n  access_level: guest";

/// A world with the grants `project`, `group`, `owner` and `elsewhere`.
async fn start() -> (World, GitLabApi) {
    let mut world = World::start().await;
    let clock = world.clock.clone();
    let gitlab = GitLabApi::start(move || clock.now().secs()).await;
    world.keep_secret(ADMIN_TOKEN);
    world.stop_server().await;
    fs::write(world.config_path().with_file_name("gitlab-token"), ADMIN_TOKEN).expect("writable");
    let backend = json!({ "url": gitlab.url, "token": "file:gitlab-token", "insecure_http": true });
    let mut config = fs::read_to_string(world.config_path()).expect("a config");
    config.push_str(&format!("  gl:\n    gitlab: {backend}\n"));
    fs::write(world.config_path(), config).expect("writable");
    for (name, credential) in [("project", PROJECT), ("group", GROUP), ("owner", OWNER), ("elsewhere", ELSEWHERE)] {
        fs::write(world.grants().join(format!("{name}.yaml")), grant(name, "gl", credential)).expect("writable");
    }
    world.start_server().await.expect("it starts");
    (world, gitlab)
}

async fn status(gitlab: &GitLabApi, method: Method, place: &str, token: &str) -> u16 {
    let request = client().request(method, format!("{}/api/v4/{place}/files", gitlab.url)).bearer_auth(token);
    request.send().await.expect("GitLab answers").status().as_u16()
}

async fn over(world: &World) {
    world.until("every lease ended", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_project_and_of_a_group() {
    let (world, gitlab) = start().await;
    gitlab.crowd();
    let others = gitlab.live().len();
    for (grant, own, writes) in [("project", "projects/772002", 403), ("group", "groups/acme%2Fteam", 200)] {
        let held = world.issue(grant).await;
        assert_eq!((&held.body["token_type"], &held.body["expires_in"]), (&json!("Bearer"), &json!(900)));
        let (token, lease) = (held.text_at("/access_token"), held.text_at("/lease_id"));
        assert!(gitlab.live().contains(&format!("jobpass_{}", lease.replace('-', ""))), "it is named after its lease");
        let other = if grant == "project" { "groups/acme%2Fteam" } else { "projects/772002" };
        for (method, place, expected) in
            [(Method::GET, own, 200), (Method::PUT, own, writes), (Method::GET, other, 404)]
        {
            assert_eq!(status(&gitlab, method.clone(), place, &token).await, expected, "{grant}: {method} {place}");
        }
        for _ in 0..2 {
            assert_eq!(world.revoke(&held.handle()).await.granted().body["state"], "ended");
            assert_eq!(status(&gitlab, Method::GET, own, &token).await, 401);
        }
        // Long before the midnight at which GitLab would end it.
        world.issue(grant).await;
        world.advance(Duration::from_secs(16 * 60));
        world.until("it is revoked", async || gitlab.live().len() == others).await;
    }
    over(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gitlab_does_not_give_the_job_does_not_get() {
    let (world, gitlab) = start().await;
    for (grant, reason) in [("owner", "greater than the access level"), ("elsewhere", "404 Not Found")] {
        world.exchange(&world.token(), grant, &[]).await.refused(502, "server_error");
        world.until(reason, async || world.audit().iter().any(|line| line.to_string().contains(reason))).await;
    }
    assert_eq!(gitlab.live(), [""; 0]);
    over(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_is_found_by_its_name() {
    let (world, gitlab) = start().await;
    gitlab.lose_answers(1);
    world.exchange(&world.token(), "project", &[]).await.refused(502, "server_error");
    assert_eq!(gitlab.live().len(), 1, "it is not made twice");
    world.advance(Duration::from_secs(60));
    world.until("it is revoked", async || gitlab.live().is_empty()).await;
    over(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_rotates_itself_is_taken_back() {
    let (world, gitlab) = start().await;
    for (rotations, state) in [(2, "ended"), (u32::MAX, "revoking")] {
        let held = world.issue("group").await;
        gitlab.rotate_meanwhile(rotations);
        assert_eq!(world.revoke(&held.handle()).await.granted().body["state"], state, "{rotations}");
        assert_eq!(gitlab.live().is_empty(), state == "ended", "{rotations}");
    }
    gitlab.rotate_meanwhile(0);
    world.advance(Duration::from_secs(60));
    world.until("it is revoked", async || gitlab.live().is_empty()).await;
    over(&world).await;
    world.close().await;
}
