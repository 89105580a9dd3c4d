//! AWS: real moto behind a front that is as strict as STS, and the real `aws` CLI.

use crate::world::{as_job, issuer, setup, token};
use jobpass_exchanger::demo::{
    Algorithm, Ci,
    issuer::{Issuer, Rotation, Token},
};
use jobpass_tests::{
    http::{client, now},
    moto::Moto,
    ports,
    program::{self, Program, built},
    server::Server,
    sts::{Accepted, Sts},
};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const ROLE: &str = "arn:aws:iam::123456789012:role/deploy-api";

/// A job on GitHub, with AWS's tools set up to ask jobpass for their credentials.
struct Job {
    front: Sts,
    server: Server,
    github: Issuer,
    home: TempDir,
    _gitlab: Issuer,
    _moto: Moto,
}

impl Job {
    async fn start() -> Self {
        let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
        let moto = Moto::start().await;
        let front = Sts::before(&moto).await;
        let backend =
            |mode: &str| json!({ "aws_sts": { "mode": mode, "region": "eu-central-1", "endpoint_url": front.url } });
        let setup = setup(&github, &gitlab)
            .backend("aws-keyless", backend("web_identity"))
            .backend("aws-signed", backend("assume_role"))
            .environment("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .environment("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
            .grant("deploy-keyless.yaml")
            .grant("deploy-signed.yaml");
        let server = setup.start().await;
        server.keep_quiet("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let home = tempfile::tempdir().unwrap();
        let jobpass = built("jobpass");
        let profiles = ["keyless", "signed"].map(|name| {
            format!(
                "[profile {name}]\nregion = eu-central-1\nendpoint_url = {}\n\
                 credential_process = {} aws-credential-process --grant deploy-{name}\n",
                moto.url,
                jobpass.display()
            )
        });
        fs::write(home.path().join("config"), profiles.concat()).unwrap();
        Self { front, server, github, home, _gitlab: gitlab, _moto: moto }
    }

    /// Runs a program as a step of the job would; answers what it wrote.
    async fn step(&self, mut command: std::process::Command) -> String {
        as_job(&mut command, &self.github, &self.server, self.home.path());
        command.env("AWS_CONFIG_FILE", self.home.path().join("config"));
        Program::run(command).await.expect_success()
    }

    async fn aws(&self, profile: &str, arguments: &[&str]) -> String {
        let mut aws = program::installed("aws");
        aws.args(["--profile", profile, "--output", "json"]).args(arguments);
        self.step(aws).await
    }
}

/// What STS was told of the job: session tags and source identity, in the request or in the token.
fn told(accepted: &Accepted) -> Value {
    let parameter = |name: &str| accepted.parameters.get(name).cloned().unwrap_or_default();
    if accepted.claims.is_empty() {
        let tags = (1..=2).map(|n| {
            (parameter(&format!("Tags.member.{n}.Key")), json!([parameter(&format!("Tags.member.{n}.Value"))]))
        });
        json!({ "tags": tags.collect::<serde_json::Map<_, _>>(), "source": parameter("SourceIdentity") })
    } else {
        let claim = |name: &str| accepted.claims.get(name).cloned().unwrap_or_default();
        let tags = &claim("https://aws.amazon.com/tags")["principal_tags"];
        json!({ "tags": tags, "source": claim("https://aws.amazon.com/source_identity") })
    }
}

#[tokio::test]
async fn the_real_aws_cli_gets_its_credentials_from_jobpass() {
    let job = Job::start().await;
    for (profile, signed_by) in [("keyless", None), ("signed", Some("AKIAIOSFODNN7EXAMPLE"))] {
        let before = job.front.accepted().len();
        let identity: String = job.aws(profile, &["sts", "get-caller-identity", "--query", "Arn"]).await;
        job.aws(profile, &["s3", "mb", &format!("s3://reports-{profile}")]).await;
        let listing = job.aws(profile, &["s3", "ls"]).await;
        assert!(listing.contains(&format!("reports-{profile}")), "{listing}");

        assert_eq!(job.front.refused(), [""; 0]);
        let accepted = &job.front.accepted()[before..];
        assert_eq!(accepted.len(), 3, "one session for each run of the CLI");
        let leases = job.server.leases();
        for request in accepted {
            let session = request.parameters["RoleSessionName"].as_str();
            assert!(leases.iter().any(|lease| lease["remote_name"] == session), "{session} is no lease's name");
            assert_eq!(request.parameters["RoleArn"], ROLE);
            assert_eq!(request.parameters["DurationSeconds"], "1800");
            assert_eq!(request.access_key.as_deref(), signed_by);
            let expected =
                json!({ "tags": { "repository": ["acme/api"], "run": ["15410912345"] }, "source": "772002" });
            assert_eq!(told(request), expected);
        }
        let session = &accepted[0].parameters["RoleSessionName"];
        assert!(identity.contains(&format!(":assumed-role/deploy-api/{session}")), "{identity}");
    }
    let mut revoke = std::process::Command::new(built("jobpass"));
    revoke.arg("revoke");
    let told = job.step(revoke).await;
    assert_eq!(told.matches("cannot be taken back").count(), 6, "{told}");
    assert_eq!(job.server.lease_states(), ["outliving"; 6]);
}

/// IAM's own request and answer shapes, with a session that is taken back.
#[tokio::test]
async fn a_denial_is_put_on_the_role() {
    let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
    let moto = Moto::start().await;
    let front = Sts::before(&moto).await;
    let aws = async |arguments: &[&str]| {
        let mut aws = program::installed("aws");
        aws.args(["--endpoint-url", &moto.url, "--region", "us-east-1", "--output", "json", "iam"]).args(arguments);
        aws.env_clear().env("PATH", program::path());
        aws.envs([("AWS_ACCESS_KEY_ID", "admin"), ("AWS_SECRET_ACCESS_KEY", "admin")]);
        let said = Program::run(aws).await.expect_success();
        serde_json::from_str::<Value>(&said).unwrap_or_default()
    };
    aws(&["create-role", "--role-name", "deploy-api", "--assume-role-policy-document", "{}"]).await;
    let denial = json!({ "endpoint_url": moto.url, "insecure_http": true });
    let backend =
        json!({ "aws_sts": { "region": "eu-central-1", "endpoint_url": front.url, "early_revocation": denial } });
    let server = setup(&github, &gitlab)
        .backend("aws-keyless", backend)
        .environment("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .environment("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
        .grant("deploy-keyless.yaml")
        .start()
        .await;
    let answer = server.exchange("deploy-keyless", &token(&github, &server), &[]).await;
    assert_eq!((answer.status, &answer.body["revocable"]), (200, &json!(true)), "{}", answer.body);
    let told = server.post("/revoke", &[("token", answer.body["refresh_token"].as_str().unwrap())]).await;
    assert_eq!(told.body["state"], "revoking");
    let name = server.leases()[0]["remote_name"].as_str().unwrap().to_owned();
    let policy = aws(&["get-role-policy", "--role-name", "deploy-api", "--policy-name", &name]).await;
    let statement = json!({
        "Effect": "Deny", "Action": "*", "Resource": "*",
        "Condition": { "StringLike": { "aws:userid": format!("*:{name}") } },
    });
    assert_eq!(policy["PolicyDocument"]["Statement"], json!([statement]), "{policy}");
}

/// The front itself: what AWS refuses, it refuses, so that a request that it lets through says something.
#[tokio::test]
async fn the_front_is_as_strict_as_sts() {
    let moto = Moto::start().await;
    let front = Sts::before(&moto).await;
    let issuer = Issuer::start(ports::ANY, Ci::GitHub, now).await.unwrap();
    issuer.rotate(Rotation::Add, Algorithm::EdDsa).unwrap();
    issuer.rotate(Rotation::Add, Algorithm::Es256).unwrap();
    let web = Token::for_audience("sts.amazonaws.com");
    let good = issuer.mint(&web).unwrap();
    let keyless = |changes: &[(&str, &str)]| {
        let mut form = vec![
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", ROLE),
            ("RoleSessionName", "jobpass_0192"),
            ("DurationSeconds", "900"),
            ("WebIdentityToken", &good),
        ];
        form.retain(|(name, _)| changes.iter().all(|(changed, _)| name != changed));
        form.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
        let form: Vec<(String, String)> = form.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        client().post(&front.url).form(&form).send()
    };

    let answer = keyless(&[]).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("<SessionToken>"), "moto answers through the front");
    assert_eq!(front.accepted()[0].claims["repository"], "acme/api");

    let minted = |token: &Token| issuer.mint(token).unwrap();
    let long = "x".repeat(65);
    for (name, value, code) in [
        ("DurationSeconds", "899", "ValidationError"),
        ("DurationSeconds", "3601", "ValidationError"),
        ("RoleSessionName", "", "ValidationError"),
        ("RoleSessionName", "a b", "ValidationError"),
        ("RoleSessionName", long.as_str(), "ValidationError"),
        ("RoleArn", "deploy-api", "ValidationError"),
        ("Policy", "{}", "MalformedPolicyDocument"),
        ("Tags.member.1.Key", "a", "ValidationError"), // session tags travel in the token here
        ("Action", "AssumeRole", "MissingAuthenticationToken"),
        ("Action", "GetFederationToken", "InvalidAction"),
        ("WebIdentityToken", "garbage", "InvalidIdentityToken"),
        ("WebIdentityToken", &format!("{good}\n"), "InvalidIdentityToken"),
        ("WebIdentityToken", &format!("{}AAAA", &good[..good.len() - 4]), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&Token::for_audience("another")), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&web.clone().aged(600)), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&web.clone().claim("sub", serde_json::Value::Null)), "InvalidIdentityToken"),
        ("WebIdentityToken", &minted(&web.clone().signed_with(Algorithm::EdDsa)), "InvalidIdentityToken"),
    ] {
        let answer = keyless(&[(name, value)]).await.unwrap();
        assert_eq!(answer.status(), 400, "{name}={value}");
        let body = answer.text().await.unwrap();
        assert!(body.contains(&format!("<Code>{code}</Code>")), "{name}={value}: {body}");
    }
    assert_eq!(front.accepted().len(), 1);
}
