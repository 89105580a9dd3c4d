//! What an admin asks of policies on the command line, and of a running server about its decisions.

use jobpass_tests::{
    program::{built, root},
    world::{Setting, World},
};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

fn policy(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(built("jobpass-exchanger"));
    command.arg("policy").args(arguments).current_dir(directory).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_explained_by_its_id() {
    let mut setting = Setting::default();
    let guards = "forbid:\n  - { name: no-mallory, issuer: ci, match: { actor: mallory } }\n";
    setting.grants.push(("guards.yaml".to_owned(), guards.to_owned()));
    let world = World::of(setting).await;
    for _ in 0..30 {
        world.issue("id").await;
    }
    let mut guarded = Vec::new();
    for _ in 0..3 {
        let mallory = world.token_with(|token| token.claim("actor", "mallory"));
        guarded.push(world.exchange(&mallory, "id", &[]).await.text_at("/decision_id"));
    }
    let elsewhere = world.token_with(|token| token.claim("ref", "refs/heads/feature"));
    let denied = world.exchange(&elsewhere, "ledger", &[]).await.text_at("/decision_id");
    world.advance(std::time::Duration::from_secs(300));
    let issued = world.issue("id").await;
    let audit = world.app().store.audit(0, 1000).await.expect("the audit log");
    let entries = audit.iter().map(|line| serde_json::from_str::<Value>(&line.entry).expect("JSON"));
    let lease = issued.text_at("/lease_id");
    let issued = entries.filter(|entry| entry["lease_id"] == lease.as_str()).map(|e| e["decision_id"].clone()).next();
    let issued = issued.expect("an entry of the lease");

    let state = world.state().display().to_string();
    let config = world.config_path().display().to_string();
    let unknown = "01900000-0000-7000-8000-000000000000";
    let issued = issued.as_str().expect("a text");
    for (id, way, code, expected) in [
        (&*denied, ["--state-dir", &*state], 1, "FAIL ref"),
        (&denied, ["--config", &config], 1, "denied: ledger"),
        (&guarded[0], ["--state-dir", &state], 1, "a guard denies: no-mallory"),
        (&guarded[1], ["--state-dir", &state], 1, "a guard denies: no-mallory"),
        (issued, ["--state-dir", &state], 0, "permitted: id"),
        (unknown, ["--state-dir", &state], 2, "there is no decision"),
    ] {
        let said = tokio::task::block_in_place(|| policy(root(), &["explain", "--decision-id", id, way[0], way[1]]));
        let all = text(&said.stdout) + &text(&said.stderr);
        assert_eq!(said.status.code(), Some(code), "{all}");
        assert!(all.contains(expected), "{all}");
    }
    let said = tokio::task::block_in_place(|| {
        policy(root(), &["explain", "--decision-id", &denied, "--state-dir", &state, "--json"])
    });
    let said: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert_eq!(said["trace"]["grant"], "ledger");
    assert_eq!(said["permitted"], false);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_nobody_knows_is_reported_once() {
    let world = World::start().await;
    for _ in 0..3 {
        let token = world.token_with(|token| token.claim("moon_phase", "full"));
        world.exchange(&token, "id", &[]).await.granted();
    }
    let metrics = world.app().metrics.render();
    assert!(metrics.contains("jobpass_unknown_claims_total{issuer=\"ci\"} 1\n"), "{metrics}");
    world.close().await;
}

#[test]
fn a_first_grant_is_written_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let claims = root().join("exchanger/policy/fixtures/github/environment.json");
    let claims = claims.display().to_string();
    let from = ["--owner", "team@acme.example", "--backend", "aws", "--from-claims", &*claims];
    let init = |more: &[&str]| policy(directory.path(), &[&["init"], more].concat());
    let made =
        init(&[&["deploy-prod", "--claim", "event_name=push", "--output", "deploy-prod.yaml"], &from[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let file = directory.path().join("deploy-prod.yaml");
    let written = fs::read_to_string(&file).expect("the grant");
    assert!(written.contains("repository_id: \"772002\""), "{written}");
    assert!(written.contains("event_name: push"), "{written}");
    for command in ["lint", "test"] {
        let said = policy(directory.path(), &[command, "deploy-prod.yaml"]);
        assert!(said.status.success(), "{}{}", text(&said.stdout), text(&said.stderr));
    }
    for (arguments, code, expected) in [
        (&["other", "--output", "deploy-prod.yaml"][..], 2, "is left alone"),
        (&["other", "--claim", "event_name=pull_request"], 1, "nothing is written"),
        (&["other", "--claim", "even_name=push"], 2, "does not ask for `even_name`"),
        (&["other", "--issuer", "githab"], 2, "there is no issuer githab"),
    ] {
        let said = init(&[arguments, &from[..]].concat());
        assert_eq!(said.status.code(), Some(code), "{arguments:?}: {}", text(&said.stderr));
        assert!(text(&said.stderr).contains(expected), "{arguments:?}: {}", text(&said.stderr));
        assert!(said.stdout.is_empty(), "{arguments:?}");
    }
    let asked = init(&["x", "--issuer", "github"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(
        text(&asked.stderr).contains("--owner, --backend, --claim repository_owner_id=…"),
        "{}",
        text(&asked.stderr)
    );
    assert_eq!(fs::read_to_string(&file).expect("the grant"), written);
}

#[test]
fn a_first_grant_is_asked_for_on_a_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("a terminal of ours");
    unlockpt(&terminal).expect("a terminal of ours");
    let name = ptsname(&terminal, Vec::new()).expect("a name").into_string().expect("a name");
    let side = fs::File::options().read(true).write(true).open(name).expect("the other side");
    let mut command = Command::new(built("jobpass-exchanger"));
    command.args(["policy", "init", "deploy-web", "--issuer", "gitlab", "--backend", "aws"]);
    command.stdin(side.try_clone().expect("shared")).stderr(side).stdout(Stdio::piped());
    let asked = command.spawn().expect("the program runs");
    drop(command);
    // Owner, description, namespace, project (said only when asked again), ref, its type, source, environment.
    // The end of input, should there be one more question, ends it.
    let answers = "team@acme.example\n\n9001\n\n4242\nrelease\n\n\n\n\x04";
    let mut terminal = fs::File::from(terminal);
    terminal.write_all(answers.as_bytes()).expect("the answers");
    let said = asked.wait_with_output().expect("it ends");
    drop(terminal);
    let grant = text(&said.stdout);
    assert!(said.status.success(), "{grant}");
    for line in
        ["namespace_id: \"9001\"", "project_id: \"4242\"", "ref: release", "ref_type: branch", "pipeline_source: push"]
    {
        assert!(grant.contains(&format!("      {line}\n")), "{line}:\n{grant}");
    }
}

#[test]
fn each_server_s_policies_are_a_set() {
    let said = policy(root(), &["lint", "examples"]);
    assert!(said.status.success(), "{}{}", text(&said.stdout), text(&said.stderr));
    let said = policy(root(), &["test", "examples"]);
    assert!(said.status.success(), "{}{}", text(&said.stdout), text(&said.stderr));
}

#[test]
fn a_token_of_a_tenant_that_may_not_ask_is_explained() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("grants")).expect("made");
    let grant = "grant: x\nowner: team@acme.example\nbackend: id\nttl: 10m\n\
                 credential: { audience: https://cloud.example, sub: x }\n\
                 rules:\n  - { name: main, issuer: github, match: { ref: refs/heads/main } }\n";
    fs::write(directory.path().join("grants/x.yaml"), grant).expect("written");
    for (tenant, code, expected) in [("1001", 0, "permitted: x"), ("5551", 2, "(repository_owner_id 5551)")] {
        let config = format!(
            "public_url: https://jobpass.acme.example\nlisten: 127.0.0.1:0\nstate_dir: state\npolicies: [grants]\n\
             issuers: {{ github: {{ tenants: [\"{tenant}\"] }} }}\n\
             backends: {{ id: {{ signed_jwt: {{ audiences: [https://cloud.example] }} }} }}\n"
        );
        fs::write(directory.path().join("config.yaml"), config).expect("written");
        let said = policy(directory.path(), &["explain", "x", "--config", "config.yaml", "--fixture", "github/push"]);
        let told = text(&said.stdout) + &text(&said.stderr);
        assert_eq!(said.status.code(), Some(code), "{told}");
        assert!(told.contains(expected), "{told}");
        let said = policy(directory.path(), &["who-can", "x", "--config", "config.yaml"]);
        assert!(text(&said.stderr).contains(&format!("(repository_owner_id {tenant})")), "{said:?}");
    }
    let said = policy(directory.path(), &["who-can", "X", "--config", "config.yaml"]);
    assert!(text(&said.stderr).contains("there is no grant X; did you mean x?"), "{said:?}");
}

#[test]
fn a_misspelt_file_is_not_passed_over() {
    let good = fs::read_to_string(root().join("exchanger/policy/tests/it/lint/github.yaml")).expect("a grant");
    for (name, file, expected) in [
        ("misspelt.yaml", good.replace("grant:", "grnat:"), "`grnat`"),
        (
            "guard.yaml",
            "forbid:\n  - { name: n, issuer: github, match: { event_name: push } }\n".to_owned(),
            "`forbid`",
        ),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("good.yaml"), &good).expect("write");
        fs::write(directory.path().join(name), file).expect("write");
        fs::write(directory.path().join("docker-compose.yaml"), "services: {}\n").expect("write");
        let said = policy(directory.path(), &["lint"]);
        assert_eq!(said.status.code(), Some(1), "{name}: {}", text(&said.stdout));
        assert!(text(&said.stdout).contains(expected), "{name}: {}", text(&said.stdout));
        assert!(text(&said.stderr).contains("docker-compose.yaml is passed over"), "{}", text(&said.stderr));
    }
}
