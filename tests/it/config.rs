//! A config that cannot be served is refused in the same words by `check-config` and by `serve`, and by nothing
//! that does not serve it.

use jobpass_tests::{program::built, world::World};
use std::{fs, path::Path, process::Command};

/// Runs a command of the real program with that config; its exit code, and what it said on standard error.
fn run(command: &[&str], config: &Path) -> (Option<i32>, String) {
    let said =
        Command::new(built("jobpass-exchanger")).args(command).arg("--config").arg(config).output().expect("it runs");
    (said.status.code(), String::from_utf8_lossy(&said.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_before() {
    let mut world = World::start().await;
    let config = world.config_path();
    let good = fs::read_to_string(&config).expect("a config");
    let issuer = good.lines().find(|line| line.starts_with("issuers:")).expect("issuers");
    let with = |more: &str| good.replace(issuer, &issuer.replacen("\"profile\"", &format!("{more}, \"profile\""), 1));
    let tls = format!("{good}tls: {{ certificate: nowhere.pem, key: nowhere.key }}\n");
    let cases = [
        ("tls", tls, "nowhere.pem,", "nowhere.pem cannot be used"),
        (
            "jwks_file",
            with("\"jwks_file\": \"audit.jsonl\""),
            "\"audit.jsonl",
            "audit.jsonl cannot be used: it is no key set",
        ),
        ("ca_file", with("\"ca_file\": \"nowhere.pem\""), "\"nowhere.pem", "cannot use the CA file"),
    ];
    for (what, text, ..) in &cases {
        fs::write(&config, text).expect("writes");
        assert_eq!(run(&["leases", "list"], &config), (Some(0), String::new()), "{what}");
        assert_eq!(run(&["policy", "lint"], &config).0, Some(0), "{what}");
    }
    world.stop_server().await;
    for (what, text, value, cause) in cases {
        fs::write(&config, &text).expect("writes");
        let (line, column) = (1..)
            .zip(text.lines())
            .find_map(|(n, line)| line.contains(what).then_some((n, line.find(value)? + 1)))
            .expect("it is in there");
        let (code, told) = run(&["check-config"], &config);
        assert_eq!(code, Some(1), "{what}: {told}");
        for expected in [cause, &format!("\n  --> {}:{line}:{column}\n", config.display()), "\n  = help: a "] {
            assert!(told.contains(expected), "{what}: {expected}\n{told}");
        }
        assert_eq!(run(&["serve"], &config), (Some(1), told), "{what}");
    }
    fs::write(&config, good).expect("writes");
    assert_eq!(run(&["check-config"], &config), (Some(0), String::new()));
    world.close().await;
}
