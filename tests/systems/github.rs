//! A workflow under real act: `uses: ./action` gets a login of a real PostgreSQL, a later step uses it,
//! and the end of the job gives it back, however the job ended.

use crate::world::World;
use jobpass_tests::{
    act,
    program::{Finished, built},
    repository::Repository,
};
use std::fs;

/// Runs a job of the workflow; answers how it ended, and the secrets that it held.
async fn run(world: &World, job: &str) -> (Finished, Vec<String>) {
    let repository = Repository::of(&[
        ("tests/systems/fixtures/github-workflow.yml", ".github/workflows/deploy.yml"),
        ("tests/systems/fixtures/tell.sh", "tell.sh"),
        ("action/action.yml", "action/action.yml"),
        ("action/dist", "action/dist"),
    ])
    .await;
    let private = tempfile::tempdir().unwrap();
    let secrets = private.path().join("secrets");
    let binary = private.path().join("jobpass");
    fs::copy(built("jobpass"), &binary).unwrap();
    let environment = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", world.github.request_url()),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", world.github.request_token().expose().to_owned()),
        ("JOBPASS_BINARY", binary.to_str().unwrap().to_owned()),
        ("JOBPASS_URL", world.server.url.clone()),
        ("SECRETS_FILE", secrets.to_str().unwrap().to_owned()),
        ("XDG_RUNTIME_DIR", private.path().to_str().unwrap().to_owned()),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let finished = act::run(&repository, job, &environment).await;
    let secrets: Vec<_> = fs::read_to_string(secrets).unwrap_or_default().lines().map(str::to_owned).collect();
    secrets.iter().for_each(|secret| world.server.keep_quiet(secret));
    (finished, secrets)
}

#[tokio::test]
async fn a_later_step_uses_the_login_and_the_log_shows_stars() {
    let world = World::build().await;
    let (finished, secrets) = run(&world, "deploy").await;
    let log = finished.expect_success();
    assert_eq!(secrets.len(), 1, "{log}");
    assert!(log.contains("logged in as jobpass_"), "{log}");
    for told in ["plain: ***", "in JSON: {\"password\":\"***\"}", "to stderr: ***"] {
        assert!(log.contains(told), "{told} in:\n{log}");
    }
    assert!(!log.contains(&secrets[0]), "the password is in the job's log:\n{log}");
    world.assert_over(&["ended: revoked"]).await;
}

#[tokio::test]
async fn a_failing_job_gives_its_credential_back_too() {
    let world = World::build().await;
    let (finished, secrets) = run(&world, "failing").await;
    assert!(!finished.status.success() && finished.log.contains("exit status 3"), "{}", finished.log);
    assert_eq!(secrets.len(), 1, "the login worked before the job failed:\n{}", finished.log);
    world.assert_over(&["ended: revoked"]).await;
}

#[tokio::test]
async fn a_denied_grant_gives_the_others_back() {
    let world = World::build().await;
    let (finished, _) = run(&world, "denied").await;
    assert!(!finished.status.success() && finished.log.contains("no-such-grant"), "{}", finished.log);
    assert!(!finished.log.contains("password"), "the job went on:\n{}", finished.log);
    world.assert_over(&["ended: revoked"]).await;
}

/// The post step holds the means to give back; it must not hand them to a program that it does not know.
#[tokio::test]
async fn another_program_in_the_place_of_jobpass_is_not_run() {
    let world = World::build().await;
    let (finished, _) = run(&world, "tampering").await;
    assert!(finished.log.contains("is not the program that this job began with"), "{}", finished.log);
    assert!(!finished.log.contains("the other program ran\n"), "{}", finished.log);
    assert_eq!(world.server.lease_states(), ["active"]);
}
