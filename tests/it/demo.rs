//! The demo's upstreams do what the tests that stand on them believe.

use jobpass_exchanger::demo::{
    Algorithm, Ci,
    issuer::{Document, Fault as IssuerFault, Issuer, Requests, Rotation, Token},
    ledger::{Act, Answer, Fault, Ledger, On},
};
use jobpass_tests::{
    http::{client, now},
    ports::{ANY, free},
    program::{Program, built},
};
use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use reqwest::{Response, StatusCode};
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::{path::Path, process::Command, str::FromStr as _, time::Duration};

/// The demo, with its directory in `temporary`.
fn demo(arguments: &[&str], temporary: &Path) -> Command {
    let mut demo = Command::new(built("jobpass-exchanger"));
    demo.arg("demo").args(arguments).env("TMPDIR", temporary);
    demo
}

fn nothing_stays(directory: &Path) {
    assert_eq!(std::fs::read_dir(directory).expect("reads").count(), 0);
}

#[tokio::test]
async fn the_tour_goes_through_all_steps() {
    let (directory, port) = (tempfile::tempdir().expect("a directory"), free().to_string());
    for (arguments, told) in [(&["--once"][..], "server  http://127.0.0.1:"), (&["--once", "--port", &port], &port)] {
        let said = Program::run(demo(arguments, directory.path())).await.expect_success();
        for line in [
            told,
            "repository_id: 772002",
            "decision: permit, by rule main-branch",
            "GET /entries: 200",
            "4. A thief copied the token from a log.",
            "POST /token: 400 \"invalid_target\", decision \"",
            "POST /revoke: the lease is ended",
            "GET /entries with the same key: 401",
            "All of it is in the audit log",
        ] {
            assert!(said.contains(line), "{line}:\n{said}");
        }
        nothing_stays(directory.path());
    }
}

#[tokio::test]
async fn a_signal_ends_the_demo_and_nothing_stays() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let directory = tempfile::tempdir().expect("a directory");
        let port = free();
        let keys = format!("http://127.0.0.1:{port}/.well-known/jwks.json");
        let serves = async || client().get(&keys).send().await.is_ok();
        let running = Program::start(demo(&["--port", &port.to_string()], directory.path())).ready(serves).await;
        assert_eq!(std::fs::read_dir(directory.path()).expect("reads").count(), 1);
        running.stop_by(signal).await.expect_success();
        nothing_stays(directory.path());
    }
}

#[test]
fn what_keeps_the_demo_from_starting_is_told_and_nothing_stays() {
    let taken = std::net::TcpListener::bind(ANY).expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let (here, nowhere) = (directory.path(), directory.path().join("nowhere"));
    let is_taken = format!("port {port} is taken: choose another with --port");
    for (arguments, temporary, cause) in [
        (&["--port", &port][..], here, is_taken.as_str()),
        (&["--once", "--port", &port], here, &is_taken),
        (&["--once"], &nowhere, "nowhere: No such file or directory (os error 2); set TMPDIR"),
    ] {
        let said = demo(arguments, temporary).output().expect("runs");
        let told = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(1), "{told}");
        assert!(told.starts_with("error: the demo cannot start: ") && told.contains(cause), "{told}");
        assert_eq!(told.contains("--port"), cause == is_taken, "{told}");
        nothing_stays(here);
    }
}

async fn issuer(ci: Ci) -> Issuer {
    Issuer::start(ANY, ci, now).await.expect("the issuer starts")
}

async fn get(url: &str) -> Response {
    client().get(url).send().await.expect("the issuer answers")
}

/// Reads a token as any client of the issuer would: discovery, keys, signature.
async fn verify(issuer: &Issuer, token: &str) -> Result<Map<String, Value>, String> {
    let discovery: Value =
        get(&format!("{}/.well-known/openid-configuration", issuer.url())).await.json().await.unwrap();
    assert_eq!(discovery["issuer"], issuer.url());
    let keys: JwkSet = get(discovery["jwks_uri"].as_str().unwrap()).await.json().await.unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let key = keys.find(&header.kid.unwrap()).ok_or("no such kid")?;
    let mut rules = Validation::new(header.alg);
    rules.set_audience(&["https://jobpass.example"]);
    rules.set_issuer(&[issuer.url()]);
    jsonwebtoken::decode(token, &DecodingKey::from_jwk(key).unwrap(), &rules)
        .map(|token| token.claims)
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn every_algorithm_verifies_through_the_published_keys() {
    let issuer = issuer(Ci::GitHub).await;
    for algorithm in [
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::EdDsa,
    ] {
        issuer.rotate(Rotation::Add, algorithm).unwrap();
        let token = issuer.mint(&Token::for_audience("https://jobpass.example").signed_with(algorithm)).unwrap();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(header.alg, jsonwebtoken::Algorithm::from_str(algorithm.name()).unwrap());
        let claims = verify(&issuer, &token).await.unwrap();
        assert_eq!(claims["sub"], "repo:acme/api:ref:refs/heads/main");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(), 900);
    }
}

#[tokio::test]
async fn a_job_fetches_its_token_as_from_github() {
    let issuer = issuer(Ci::GitHub).await;
    let job = json!({ "environment": "production", "run_id": "7", "enterprise": null });
    issuer.describe_job(job.as_object().unwrap().clone());
    let url = format!("{}&audience=https%3A%2F%2Fjobpass.example", issuer.request_url());
    let ask = |secret: String| client().get(&url).header("authorization", format!("bearer {secret}")).send();

    assert_eq!(ask("stranger".to_owned()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let answer: Value = ask(issuer.request_token().expose().to_owned()).await.unwrap().json().await.unwrap();
    let claims = verify(&issuer, answer["value"].as_str().unwrap()).await.unwrap();
    assert_eq!(claims["sub"], "repo:acme/api:environment:production");
    assert_eq!(claims["run_id"], "7");
    assert!(!claims.contains_key("enterprise"), "null removes a claim");
    assert_eq!(issuer.requests(), Requests { discovery: 1, jwks: 1, token: 2 });
}

#[tokio::test]
async fn gitlab_tokens_look_like_gitlabs() {
    let issuer = issuer(Ci::GitLab).await;
    let token = issuer.mint(&Token::for_audience("https://jobpass.example").lasting(3600)).unwrap();
    let claims = verify(&issuer, &token).await.unwrap();
    assert_eq!(claims["sub"], "project_path:acme/api:ref_type:branch:ref:main");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(), 3605);
    assert_eq!(claims["runner_id"], 44);
}

#[tokio::test]
async fn keys_rotate() {
    let issuer = issuer(Ci::GitHub).await;
    let mint = || issuer.mint(&Token::for_audience("https://jobpass.example")).unwrap();
    for (rotation, old_verifies) in
        [(Rotation::Add, Ok(())), (Rotation::Replace, Err("no such kid")), (Rotation::Swap, Err("InvalidSignature"))]
    {
        let old = mint();
        issuer.rotate(rotation, Algorithm::Rs256).unwrap();
        let verdict = verify(&issuer, &old).await.map(|_| ());
        assert_eq!(verdict, old_verifies.map_err(str::to_owned), "{rotation:?}");
        verify(&issuer, &mint()).await.unwrap();
    }
}

#[tokio::test]
async fn documents_fail_as_told() {
    let issuer = issuer(Ci::GitHub).await;
    let url = format!("{}/.well-known/jwks", issuer.url());
    for (fault, status, begins) in [
        (IssuerFault::Status(503), 503, ""),
        (IssuerFault::Body("<html>".to_owned()), 200, "<html>"),
        (IssuerFault::Redirect("http://127.0.0.1:1/".to_owned()), 302, ""),
        (IssuerFault::Padded(100_000), 200, "   "),
    ] {
        issuer.fail(Document::Jwks, fault.clone());
        let answer = get(&url).await;
        assert_eq!(answer.status(), status, "{fault:?}");
        assert!(answer.text().await.unwrap().starts_with(begins), "{fault:?}");
    }
    issuer.fail(Document::Jwks, IssuerFault::Stall);
    let stalled = client().get(&url).timeout(Duration::from_millis(200)).send().await;
    assert!(stalled.unwrap_err().is_timeout());
    issuer.recover();
    assert_eq!(get(&url).await.json::<Value>().await.unwrap(), issuer.jwks());
}

struct Desk {
    ledger: Ledger,
}

impl Desk {
    async fn open() -> Self {
        Self { ledger: Ledger::start(ANY, now).await.expect("the ledger starts") }
    }

    async fn create(&self, name: &str) -> Result<Response, reqwest::Error> {
        let request =
            client().post(format!("{}/keys", self.ledger.url())).bearer_auth(self.ledger.admin_token().expose());
        request.json(&json!({ "name": name, "note": "run 7", "expires_at": now() + 60 })).send().await
    }

    async fn delete(&self, name: &str) -> Result<Response, reqwest::Error> {
        let request = client().delete(format!("{}/keys/{name}", self.ledger.url()));
        request.bearer_auth(self.ledger.admin_token().expose()).send().await
    }

    async fn read_with(&self, key: &str) -> StatusCode {
        let request = client().get(format!("{}/entries", self.ledger.url())).bearer_auth(key);
        request.send().await.expect("the ledger answers").status()
    }

    fn acts(&self) -> Vec<(Act, String)> {
        self.ledger.log().into_iter().map(|line| (line.act, line.name)).collect()
    }
}

#[tokio::test]
async fn a_key_works_until_it_is_deleted() {
    let desk = Desk::open().await;
    let made: Value = desk.create("a").await.unwrap().json().await.unwrap();
    let key = made["key"].as_str().unwrap();
    assert_eq!(desk.read_with(key).await, StatusCode::OK);
    assert_eq!(desk.read_with("ldg_guess").await, StatusCode::UNAUTHORIZED);
    for _ in 0..2 {
        assert_eq!(desk.delete("a").await.unwrap().status(), StatusCode::NO_CONTENT, "deleting is idempotent");
        assert_eq!(desk.read_with(key).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(desk.acts(), [(Act::Created, "a".to_owned()), (Act::Deleted, "a".to_owned())]);
    let stranger = client().get(format!("{}/keys", desk.ledger.url())).bearer_auth(key).send().await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED, "a key is no administrator");
}

#[tokio::test]
async fn a_key_ends_at_its_expiry() {
    let ledger = Ledger::start(ANY, || 1_000).await.unwrap();
    let post = client().post(format!("{}/keys", ledger.url())).bearer_auth(ledger.admin_token().expose());
    let made: Value =
        post.json(&json!({ "name": "a", "expires_at": 1_000 })).send().await.unwrap().json().await.unwrap();
    let desk = Desk { ledger };
    assert_eq!(desk.read_with(made["key"].as_str().unwrap()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(desk.ledger.keys().len(), 1, "an expired key stays until it is deleted");
}

#[tokio::test]
async fn the_ledger_misbehaves_as_told() {
    let desk = Desk::open().await;
    let create = Fault::on(On::Create);
    for (fault, acts, answer) in [
        (Fault { acts: 2, ..create }, 2, Some(201)),
        (Fault { acts: 0, ..create }, 0, Some(503)),
        (Fault { answer: Answer::Cut, ..create }, 1, None),
        (Fault { answer: Answer::Garbage, ..create }, 1, Some(200)),
        (Fault { answer: Answer::Status(429), acts: 0, ..create }, 0, Some(429)),
        (Fault { answer: Answer::Status(500), ..create }, 1, Some(500)),
        (Fault::on(On::Delete), 1, Some(201)),
    ] {
        let before = desk.ledger.keys().len();
        desk.ledger.misbehave(vec![fault]);
        let status = desk.create("a").await.map(|answer| answer.status().as_u16()).ok();
        assert_eq!(status, answer, "{fault:?}");
        assert_eq!(desk.ledger.keys().len() - before, acts, "{fault:?}");
    }
    assert!(desk.create("a").await.unwrap().status().is_success(), "a fault is used up");
}

#[tokio::test]
async fn a_late_act_happens_although_the_caller_left() {
    let desk = Desk::open().await;
    desk.ledger.misbehave(vec![Fault { late_ms: 300, ..Fault::on(On::Create) }]);
    let post = client().post(format!("{}/keys", desk.ledger.url())).bearer_auth(desk.ledger.admin_token().expose());
    let gone = post.json(&json!({ "name": "late" })).timeout(Duration::from_millis(100)).send().await;
    assert!(gone.unwrap_err().is_timeout());
    assert_eq!(desk.ledger.keys().len(), 0);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while desk.ledger.keys().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the act never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
