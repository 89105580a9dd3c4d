//! A job under real gitlab-ci-local: one id token, two credentials of a real PostgreSQL, and nothing
//! of them in a log that nobody but jobpass masks.

use crate::world::World;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use jobpass_tests::{gitlab, program::Finished, repository::Repository};
use std::fs;

/// Runs a job with one id token; answers how it ended, and the secrets that it held.
async fn run(world: &World, token: &str, job: &str) -> (Finished, Vec<String>) {
    let repository = Repository::of(&[
        ("tests/systems/fixtures/gitlab-ci.yml", ".gitlab-ci.yml"),
        ("tests/systems/fixtures/tell.sh", "tell.sh"),
    ])
    .await;
    let private = tempfile::tempdir().unwrap();
    let secrets = private.path().join("secrets");
    let variables = [
        ("JOBPASS_URL", world.server.url.as_str()),
        ("JOBPASS_ID_TOKEN", token),
        ("SECRETS_FILE", secrets.to_str().unwrap()),
        ("XDG_RUNTIME_DIR", private.path().to_str().unwrap()),
    ];
    let finished = gitlab::run(&repository, job, &variables).await;
    let secrets: Vec<_> = fs::read_to_string(secrets).unwrap_or_default().lines().map(str::to_owned).collect();
    secrets.iter().for_each(|secret| world.server.keep_quiet(secret));
    (finished, secrets)
}

/// The texts under which a reader of the log would find a secret.
fn spellings(secret: &str) -> Vec<String> {
    let hex = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    // What of a base64 text depends on the secret alone, wherever in a longer text the secret begins.
    let base64 = (0..3).map(|before| {
        let text = STANDARD_NO_PAD.encode("x".repeat(before) + secret);
        let whole_groups = secret.len().saturating_sub(3) / 3 * 4;
        text[4..][..whole_groups].to_owned()
    });
    let url = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    [secret.to_owned(), hex, url].into_iter().chain(base64).collect()
}

#[tokio::test]
async fn two_credentials_for_one_token_and_neither_in_the_log() {
    let world = World::build().await;
    let token = world.token(&world.gitlab);
    let (finished, secrets) = run(&world, &token, "deploy").await;
    let log = finished.expect_success();
    assert_eq!(secrets.len(), 2, "{log}");
    assert_ne!(secrets[0], secrets[1]);
    assert_eq!(log.matches("logged in as jobpass_").count(), 2, "{log}");
    for told in ["plain", "base64", "hex", "URL-encoded", "to stderr", "split across writes"] {
        assert_eq!(log.matches(&format!("{told}: ***")).count(), 2, "{told} in:\n{log}");
    }
    for spelling in secrets.iter().chain([&token]).flat_map(|secret| spellings(secret)) {
        assert!(!log.contains(&spelling), "{spelling} is in the job's log:\n{log}");
    }
    world.assert_over(&["ended: revoked"; 2]).await;
}

#[tokio::test]
async fn a_failing_command_gives_its_credential_back_too() {
    let world = World::build().await;
    let (finished, secrets) = run(&world, &world.token(&world.gitlab), "failing").await;
    assert!(!finished.status.success(), "{}", finished.log);
    assert!(finished.log.contains("FAIL 7"), "the command's exit code is the job's:\n{}", finished.log);
    assert_eq!(secrets.len(), 1, "{}", finished.log);
    assert!(!finished.log.contains(&secrets[0]), "{}", finished.log);
    world.assert_over(&["ended: revoked"]).await;
}

#[tokio::test]
async fn a_stolen_token_opens_nothing() {
    let world = World::build().await;
    let token = world.token(&world.gitlab);
    run(&world, &token, "deploy").await.0.expect_success();
    for grant in ["db", "report", "no-such-grant"] {
        for session in [&[("session", "0123456789abcdef0123456789abcdef")][..], &[]] {
            let answer = world.server.exchange(grant, &token, session).await;
            assert_eq!((answer.status, answer.body["error"].as_str()), (400, Some("invalid_target")), "{grant}");
        }
    }
    world.assert_over(&["ended: revoked"; 2]).await;
}
