//! `get`, `env`, `aws-credential-process` and `revoke`.

use crate::{
    Ci, Job,
    fake::{KEY, PASSWORD, Reply, Seen},
};
use std::{fs, os::unix::fs::PermissionsExt as _};

#[test]
fn files() {
    for (args, contents) in [
        (&["--grant", "db", "--field", "password"][..], PASSWORD),
        (&["--grant", "api", "--format", "token"], "bearer-token-of-the-api"),
        (&["--grant", "api", "--format", "json"], "{\"type\":\"bearer\",\"token\":\"bearer-token-of-the-api\"}\n"),
        (&["--grant", "api", "--format", "env"], "JOBPASS_TOKEN='bearer-token-of-the-api'\n"),
    ] {
        let job = Job::new(Ci::GitLab);
        let ended = job.run(&[&["get", "--to", "secret"], args].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
        let file = job.path().join("secret");
        assert_eq!(fs::read_to_string(&file).expect("file"), contents);
        assert_eq!(fs::metadata(&file).expect("file").permissions().mode() & 0o777, 0o600);
        assert!(!ended.stderr.contains("workspace"), "{}", ended.stderr);
        let ended = job.run(&["revoke", "--json"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains(r#""state":"ended""#), "{}", ended.stdout);
        assert!(!file.exists(), "what it holds is worth nothing now");
        assert_eq!(job.run(&["revoke"]).code, Some(0), "again is no error");
        assert!(job.fake.story().ends_with(" revoke"), "{}", job.fake.story());
    }
}

#[test]
fn a_credential_that_cannot_be_handed_over_is_given_back() {
    for args in [
        &["get", "--grant", "db", "--format", "token", "--to", "x"][..],
        &["get", "--grant", "db", "--field", "nothing", "--to", "x"],
        &["get", "--grant", "db", "--to", "missing/x"],
        &["get", "--grant", "db", "--to", "."],
        &["aws-credential-process", "--grant", "db"],
    ] {
        let job = Job::new(Ci::GitLab);
        let ended = job.run(args);
        assert_eq!((ended.code, job.fake.story().as_str()), (Some(1), "db revoke"), "{args:?}: {}", ended.stderr);
        assert!(!(ended.stdout + &ended.stderr).contains(PASSWORD), "{args:?}");
    }
}

#[test]
fn the_workspace_is_a_bad_place_for_a_secret() {
    let job = Job::new(Ci::GitLab);
    fs::create_dir(job.path().join("workspace")).expect("workspace");
    let ended = job.run(&["get", "--grant", "db", "--to", "workspace/secret"]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.contains("lies in the job's workspace"), "{}", ended.stderr);
}

#[test]
fn standard_output_is_for_where_logs_are_masked() {
    let job = Job::new(Ci::GitLab);
    let ended = job.run(&["get", "--grant", "api", "--stdout", "--format", "token"]);
    assert_eq!((ended.code, ended.stdout.as_str(), job.fake.story().as_str()), (Some(1), "", ""));
    assert!(ended.stderr.contains("--unmasked"), "{}", ended.stderr);
    let ended = job.run(&["get", "--grant", "api", "--stdout", "--format", "token", "--unmasked"]);
    assert_eq!(ended.stdout, "bearer-token-of-the-api");
    let job = Job::new(Ci::GitHub);
    let ended = job.run(&["get", "--grant", "api", "--stdout", "--format", "token"]);
    assert_eq!(ended.stdout, "bearer-token-of-the-api");
    assert!(ended.stderr.contains("::add-mask::bearer-token-of-the-api\n"), "{}", ended.stderr);
}

#[test]
fn github_hides_before_it_is_told_anything() {
    let job = Job::new(Ci::GitHub);
    let file = job.path().join("github_env");
    fs::write(&file, "").expect("file");
    let mut command = job.command(&["env", "--grant", "db", "--grant", "key", "--env", "DB_PASS=password", "--json"]);
    let ended = crate::Ended::from(command.env("GITHUB_ENV", &file).output().expect("jobpass runs"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let masks = lines.iter().take_while(|line| line.starts_with("::add-mask::")).count();
    assert!(lines[masks..].iter().all(|line| line.starts_with("jobpass: ")), "{}", ended.stderr);
    for secret in ["first-line-of-key", "second-line-of-key", PASSWORD] {
        assert!(lines[..masks].contains(&format!("::add-mask::{secret}").as_str()), "{secret}");
    }
    let all = ended.stderr.clone();
    assert!(lines[..masks].contains(&"::add-mask::first-line-of-key%0Asecond-line-of-key%0A"), "{}", ended.stderr);
    // Nothing but the mask commands holds a secret.
    assert!(!lines[masks..].iter().any(|line| line.contains("line-of-key") || line.contains(PASSWORD)));
    let text = fs::read_to_string(&file).expect("file");
    let after =
        |name: &str| text.split_once(&format!("{name}<<")).and_then(|(_, rest)| rest.split_once('\n')).map(|(_, v)| v);
    assert!(after("DB_PASS").is_some_and(|value| value.starts_with(PASSWORD)), "{text}");
    assert!(after("JOBPASS_TOKEN").is_some_and(|value| value.starts_with(KEY)), "{text}");
    assert!(after("PGUSER").is_some_and(|value| value.starts_with("jobpass_1\n")), "{text}");
    assert!(ended.stdout.contains(r#""PGUSER""#) && !ended.stdout.contains(PASSWORD), "{}", ended.stdout);
    let sessions = || fs::read_dir(job.path()).expect("list").flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!(sessions(), 1);
    let ended = job.run(&["revoke"]);
    assert_eq!((ended.code, job.fake.story().as_str()), (Some(0), "db key revoke revoke"), "{}", ended.stderr);
    // What the job is not given, no mask tells either.
    for (secret, handed_over) in job.fake.secrets() {
        assert_eq!(all.contains(&format!("::add-mask::{secret}\n")), handed_over, "{secret}");
        assert!(handed_over || !all.contains(&secret), "{secret}");
    }
    let left = fs::read_dir(job.path().join(format!("jobpass-{}", rustix::process::geteuid().as_raw())));
    assert_eq!(left.expect("list").count(), 0, "a job that can have fresh tokens leaves no session behind");
}

#[test]
fn outputs_are_named_like_the_fields() {
    let job = Job::new(Ci::GitHub);
    let file = job.path().join("github_output");
    fs::write(&file, "").expect("file");
    let mut command = job.command(&["env", "--grant", "db", "--output"]);
    let ended = crate::Ended::from(command.env("GITHUB_OUTPUT", &file).output().expect("jobpass runs"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(fs::read_to_string(&file).expect("file").contains("\npassword<<jobpass_"));
    let job = Job::new(Ci::GitLab);
    let ended = job.run(&["env", "--grant", "db"]);
    assert!(ended.stderr.contains("only GitHub Actions hands variables"), "{}", ended.stderr);
    assert_eq!((ended.code, job.fake.story().as_str()), (Some(1), ""));
}

#[test]
fn aws_tools_get_their_document() {
    let job = Job::new(Ci::GitHub);
    let ended = job.run(&["aws-credential-process", "--grant", "aws", "--ttl", "15m"]);
    assert_eq!(
        ended.stdout,
        r#"{"Version":1,"AccessKeyId":"ASIA1","SecretAccessKey":"aws-secret","SessionToken":"aws-token","Expiration":"2026-01-01T00:00:00Z"}"#
    );
    assert!(matches!(&job.fake.seen()[1], Seen::Exchange { ttl: Some(900), .. }));
}

#[test]
fn what_outlives_its_lease_is_told_with_the_time_that_is_left() {
    let job = Job::new(Ci::GitLab);
    job.run(&["get", "--grant", "aws", "--to", "secret"]);
    job.fake.script(&[Reply::Status(200, "", r#"{"state":"outliving","until":4102444800}"#)]);
    let ended = job.run(&["revoke", "--json"]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.contains(r#""state":"outliving","until":4102444800"#), "{}", ended.stdout);
    assert_eq!(
        ended.stderr.matches("cannot be taken back: it stays valid for another ").count(),
        1,
        "{}",
        ended.stderr
    );
}

#[test]
fn a_handle_can_be_handed_on() {
    let job = Job::new(Ci::GitHub);
    let ended = job.run(&["get", "--grant", "db", "--to", "secret", "--handle-to", "handle"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let handle = fs::read_to_string(job.path().join("handle")).expect("file");
    assert!(ended.stderr.contains(&format!("::add-mask::{handle}\n")), "{}", ended.stderr);
    assert_eq!(job.run(&["revoke", "--json"]).stdout, "[]\n", "this job no longer answers for it");
    assert_eq!(job.fake.story(), "db");
    let ended = job.run(&["revoke", "--handle-file", "handle", "--json"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "[{\"state\":\"ended\"}]\n"), "{}", ended.stderr);
    assert_eq!(job.fake.story(), "db revoke");
}

#[test]
fn what_needs_no_job() {
    let job = Job::new(Ci::GitLab);
    let version = env!("CARGO_PKG_VERSION");
    for (args, part) in [
        (&["version"][..], format!("jobpass {version}\n")),
        (&["version", "--json"], format!("{{\"version\":\"{version}\"}}\n")),
        (&["completions", "bash"], "aws-credential-process".to_owned()),
    ] {
        let ended = job.run(args);
        assert!(ended.code == Some(0) && ended.stdout.contains(&part), "{args:?}: {ended:?}");
    }
}
