//! What Cargo cannot forbid: which room may know what.

use jobpass_tests::program::root;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// A word, the rooms of the server that may use it, and why nobody else may.
const RULES: &[(&str, &[&str], &str)] = &[
    ("axum", &["http", "demo"], "lower rooms do not know HTTP servers"),
    (
        "StatusCode",
        &["http", "demo", "outbound.rs", "backends", "token"],
        "only who answers or asks over HTTP knows status codes",
    ),
    ("crate::http", &["http", "app.rs", "admin.rs", "cli.rs"], "arrows point away from http"),
    ("crate::exchange::", &["http", "app.rs", "exchange.rs", "policies.rs"], "nothing below calls the pipeline"),
    ("rusqlite", &["store"], "only the store knows what it stores in"),
    (
        "crate::demo",
        &["demo", "cli.rs", "token", "backends", "leases"],
        "the demo's upstreams are not parts of the server",
    ),
];

#[test]
fn rooms_know_only_what_they_may() {
    let server = root().join("exchanger/src");
    let mut broken = Vec::new();
    for path in sources(&server) {
        let room = path.strip_prefix(&server).expect("below it");
        let first = room.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        // Tests inside a room may use the demo's upstreams.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (word, rooms, why) in RULES {
            let used = code.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| line.contains(word));
            if used && !rooms.contains(&first.as_str()) {
                broken.push(format!("{} names `{word}`: {why}", room.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_cli_does_not_link_the_server() {
    let manifest = fs::read_to_string(root().join("action/Cargo.toml")).expect("readable");
    assert!(!manifest.contains("jobpass-exchanger") && !manifest.contains("jobpass-policy"));
    let policy = fs::read_to_string(root().join("exchanger/policy/Cargo.toml")).expect("readable");
    let dependencies = policy.split("[dev-dependencies]").next().unwrap_or_default();
    for io in ["tokio", "reqwest", "rusqlite", "rustix"] {
        assert!(!dependencies.contains(io), "policy decides without I/O, and so without {io}");
    }
}
