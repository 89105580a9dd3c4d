//! AWS sessions through the front door, in a small account that is as strict as AWS says it is.

use jobpass_tests::{
    aws::{ACCESS_KEY, Aws, ROLE},
    world::{Answer, NOON, Setting, World, WorldClock, grant, session},
};
use reqwest::Method;
use serde_json::json;
use std::{
    env,
    process::{Command, Stdio},
    time::Duration,
};

async fn start(early_revocation: bool) -> (World, Aws) {
    let clock = WorldClock::default();
    let aws = Aws::start(clock.seconds()).await;
    let mut backend = json!({ "region": "eu-central-1", "endpoint_url": aws.url });
    if early_revocation {
        backend["early_revocation"] = json!({ "endpoint_url": aws.url, "insecure_http": true });
    }
    let policy = "session_policy: { Version: \"2012-10-17\", Statement: [{ Effect: Allow, Action: \"s3:PutObject\", \
                  Resource: \"arn:aws:s3:::releases/*\" }] }";
    let sub = "sub: \"{{ claims.repository_id }}\"";
    let grants = [
        ("release", format!("role_arn: {ROLE}\n  {sub}\n  {policy}")),
        ("unbound", format!("role_arn: {ROLE}\n  {policy}")),
    ];
    let grants = grants.map(|(name, spec)| (format!("{name}.yaml"), grant(name, "aws", &spec)));
    let backends = format!("  aws: {}\n", json!({ "aws_sts": backend }));
    let world = World::of(Setting { grants: grants.into(), backends, ..Setting::default() }).await;
    clock.is(&world);
    aws.trust("grant:release:772002");
    (world, aws)
}

/// The status, and AWS's code, of a request with a session.
async fn ask(world: &World, aws: &Aws, session: &Answer, method: Method, path: &str) -> (u16, String) {
    let request = world.client.request(method, format!("{}/{path}", aws.url));
    let request = request.header("x-amz-security-token", session.text_at("/credential/session_token"));
    let answer = request.send().await.expect("AWS answers");
    let (status, text) = (answer.status().as_u16(), answer.text().await.expect("a text"));
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once('<')).map_or("", |(code, _)| code);
    (status, code.to_owned())
}

async fn puts(world: &World, aws: &Aws, session: &Answer) -> (u16, String) {
    ask(world, aws, session, Method::PUT, "releases/x").await
}

fn refused(code: &str) -> (u16, String) {
    (403, code.to_owned())
}

fn done() -> (u16, String) {
    (200, String::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_what_its_policy_says_until_it_expires() {
    let (world, aws) = start(false).await;
    let held = world.issue("release").await;
    assert_eq!((&held.body["revocable"], &held.body["expires_in"]), (&json!(false), &json!(900)));
    assert_eq!(puts(&world, &aws, &held).await, done());
    for (method, path) in [(Method::GET, "releases/x"), (Method::PUT, "others/x")] {
        assert_eq!(ask(&world, &aws, &held, method, path).await, refused("AccessDenied"), "{path}");
    }
    for _ in 0..2 {
        let told = world.revoke(&held.handle()).await;
        assert_eq!(told.body, json!({ "state": "outliving", "until": NOON + 900 }));
    }
    world.advance(Duration::from_secs(899));
    assert_eq!(puts(&world, &aws, &held).await, done(), "before its end");
    world.advance(Duration::from_secs(1));
    assert_eq!(puts(&world, &aws, &held).await, refused("ExpiredToken"), "after its end");
    let lease = held.text_at("/lease_id");
    world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;

    world.exchange(&world.token(), "unbound", &[("session", &session())]).await.refused(502, "server_error");
    let reason = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
    world.until(reason, async || world.audit().iter().any(|line| line.to_string().contains(reason))).await;
    world.exchange(&world.token(), "release", &[("ttl", "60")]).await.refused(400, "invalid_request");
    world.close().await;
}

/// The server finds its own identity in the environment, which a test cannot change: this one runs itself again.
#[test]
fn a_session_is_denied_everything_when_it_is_taken_back() {
    if env::var_os("AWS_ACCESS_KEY_ID").is_none_or(|key| key != ACCESS_KEY) {
        let mut again = Command::new(env::current_exe().expect("a test knows its own path"));
        again.args(["--exact", "aws::a_session_is_denied_everything_when_it_is_taken_back"]);
        again.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", "secret").stdin(Stdio::null());
        let output = again.output().expect("it runs");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(taken_back());
}

async fn taken_back() {
    let (world, aws) = start(true).await;
    let state = async |held: &Answer| world.state_of(&held.text_at("/lease_id")).await;
    let (held, other) = (world.issue("release").await, world.issue("release").await);
    assert_eq!((&held.body["revocable"], &held.body["expires_in"]), (&json!(true), &json!(900)));
    assert_eq!((puts(&world, &aws, &held).await, aws.policies().len()), (done(), 0));
    for _ in 0..2 {
        assert_eq!(world.revoke(&held.handle()).await.body["state"], "revoking");
        assert_eq!(puts(&world, &aws, &held).await, refused("AccessDenied"));
        assert_eq!(aws.policies(), [format!("jobpass_{}", held.text_at("/lease_id").replace('-', ""))]);
    }
    assert_eq!(puts(&world, &aws, &other).await, done(), "this one session, and no other");

    // IAM is away for a moment.
    aws.fail(1);
    assert_eq!(world.revoke(&other.handle()).await.body["state"], "revoking");
    assert_eq!(puts(&world, &aws, &other).await, done(), "the state says that it is not done");
    world.advance(Duration::from_secs(2));
    world.until("it is denied", async || puts(&world, &aws, &other).await == refused("AccessDenied")).await;

    // What denies goes when there is nothing left to deny.
    world.advance(Duration::from_secs(900));
    assert_eq!(puts(&world, &aws, &held).await, refused("ExpiredToken"));
    assert_eq!(aws.policies().len(), 2);
    world.advance(Duration::from_secs(12));
    world.until("the policies are gone", async || aws.policies().is_empty()).await;
    for lease in [&held, &other] {
        world.until("it is ended", async || state(lease).await["how"] == "revoked").await;
    }

    let left = world.issue("release").await;
    world.advance(Duration::from_secs(900));
    world.until("it ended by itself", async || state(&left).await["how"] == "expired").await;
    assert_eq!(aws.policies(), [""; 0]);
    world.close().await;
}
