//! What binds grants from outside: conditions, guards, scopes, shadow mode.

use crate::common::{DEPLOY, claims, issuer};
use jobpass_policy::{AnyCredential, Compiled, Decision, DenialKind, Freezes, Request, Source, compile, decide};
use jobpass_protocol::IssuerName;
use serde_json::{Value, json};

const AT: i64 = 1_795_331_200; // Sunday, 2026-11-22 07:06:40 UTC

fn compile_files(files: &[(&str, &str)]) -> Compiled {
    let sources: Vec<_> =
        files.iter().map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() }).collect();
    compile(&sources, &[issuer("github"), issuer("gitlab")], &AnyCredential)
}

/// `permit`, or the kind of denial in one word.
fn outcome(compiled: &Compiled, changes: Value) -> String {
    let claims = claims("github/environment", changes);
    let issuer = IssuerName::parse("github").expect("a name");
    let (grant, freezes) = ("deploy-prod", &Freezes::NONE);
    let request = Request { grant, issuer: &issuer, claims: &claims, scope: None, ttl: None, at: AT, freezes };
    match decide(&compiled.set, &request) {
        Decision::Permit(_) => "permit".to_owned(),
        Decision::Denial(denial) => match denial.kind {
            DenialKind::Guard { name } => format!("guard {name}"),
            DenialKind::Shadow { rule } => format!("shadow {rule}"),
            DenialKind::NoRule => "no rule".to_owned(),
            other => format!("{other:?}"),
        },
    }
}

#[test]
fn conditions_hold_or_deny() {
    for (when, changes, expected) in [
        (r#"claims.run_attempt == "1""#, json!({}), "permit"),
        (r#"claims.run_attempt == "1""#, json!({ "run_attempt": "2" }), "no rule"),
        (r#"claims.run_attempt == "1""#, json!({ "run_attempt": null }), "no rule"),
        (r#"claims.run_attempt != "2""#, json!({ "run_attempt": null }), "no rule"),
        (r#"!has(claims.head_ref) || claims.head_ref == """#, json!({}), "permit"),
        (r#"!has(claims.actor)"#, json!({ "actor": null }), "permit"),
        (r#"!has(claims.actor)"#, json!({ "actor": ["octocat"] }), "no rule"),
        (r#"claims.actor in ["octocat", "hubot"] && claims.ref.endsWith("/main")"#, json!({}), "permit"),
        (r#"size(claims.actor) > 20"#, json!({}), "no rule"),
    ] {
        let text = DEPLOY.replacen("tests:", &format!("    when: {}\ntests:", json!(when)), 1);
        let compiled = compile_files(&[("g.yaml", &text)]);
        assert!(compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
        assert_eq!(outcome(&compiled, changes.clone()), expected, "{when} {changes}");
    }
    for (when, place) in [
        (r#"when: 'claims.run_atempt == "1"'"#, "24:18"),
        (r#"when: claims.run_attempt == 1"#, "24:30"),
        (r#"when: claims.run_attempt == "#, "24:32"),
    ] {
        let text = DEPLOY.replacen("tests:", &format!("    {when}\ntests:"), 1);
        let compiled = compile_files(&[("g.yaml", &text)]);
        let [found] = compiled.diagnostics.as_slice() else { panic!("{:?}", compiled.diagnostics) };
        assert_eq!((found.code, format!("{}:{}", found.position().0, found.position().1)), ("condition", place.into()));
    }
}

#[test]
fn guards_deny_and_never_permit() {
    for (guards, changes, expected) in [
        ("forbid: [{ name: f, issuer: github, match: { actor: octocat } }]", json!({}), "guard f"),
        ("forbid: [{ name: f, issuer: github, match: { actor: hubot } }]", json!({}), "permit"),
        ("forbid: [{ name: f, issuer: gitlab, match: { ref: main } }]", json!({}), "permit"),
        ("forbid: [{ name: f, issuer: github, on: { grants: [\"deploy-*\"] } }]", json!({}), "guard f"),
        ("forbid: [{ name: f, issuer: github, on: { grants: [\"read-*\"] } }]", json!({}), "permit"),
        ("forbid: [{ name: f, issuer: github, on: { backends: [aws-prod] } }]", json!({}), "guard f"),
        // What cannot be evaluated denies.
        ("forbid: [{ name: f, issuer: github, match: { actor: hubot } }]", json!({ "actor": [1] }), "guard f"),
        ("forbid: [{ name: f, issuer: github, when: 'claims.actor == \"x\"' }]", json!({ "actor": null }), "guard f"),
        ("closed: [{ name: c, weekly: { days: [sunday], from: \"07:00\", until: \"24:00\" } }]", json!({}), "guard c"),
        ("closed: [{ name: c, weekly: { days: [sunday], from: \"08:00\", until: \"24:00\" } }]", json!({}), "permit"),
        ("closed: [{ name: c, weekly: { days: [monday], from: \"00:00\", until: \"24:00\" } }]", json!({}), "permit"),
        ("closed: [{ name: c, from: 2026-11-20T00:00:00Z, until: 2026-11-23T00:00:00Z }]", json!({}), "guard c"),
        ("closed: [{ name: c, from: 2026-11-20T00:00:00Z, until: 2026-11-22T00:00:00Z }]", json!({}), "permit"),
        ("deny_overdue_review: true", json!({}), "permit"),
        ("{}", json!({ "ref": "x" }), "no rule"),
    ] {
        let compiled = compile_files(&[("g.yaml", DEPLOY), ("guards.yaml", guards)]);
        assert!(compiled.diagnostics.is_empty(), "{guards}: {:?}", compiled.diagnostics);
        assert_eq!(outcome(&compiled, changes.clone()), expected, "{guards} {changes}");
    }
    let overdue = DEPLOY.replace("2027-06-30", "2026-11-21");
    let compiled = compile_files(&[("g.yaml", &overdue), ("guards.yaml", "deny_overdue_review: true")]);
    assert_eq!(outcome(&compiled, json!({})), "guard the grant was to be reviewed by 2026-11-21");
}

#[test]
fn guards_and_scopes_refuse_what_a_grant_may_not_say() {
    for (path, text, expected) in [
        ("guards.yaml", "ceilings: [{ ttl: 5m }]", Some("ceiling")),
        ("guards.yaml", "ceilings: [{ on: { backends: [other] }, ttl: 5m }]", None),
        ("guards.yaml", "issuers: [gitlab]", Some("guard-issuer")),
        ("guards.yaml", "require: [{ issuer: github, pin: [repository_id, environment] }]", None),
        ("guards.yaml", "require: [{ issuer: github, pin: [workflow_ref] }]", Some("guard-pin")),
        ("guards.yaml", "require: [{ issuer: github, pin: [workflow_rev] }]", Some("unknown-claim")),
        ("guards.yaml", "closed: [{ name: x }]", Some("window")),
        ("guards.yaml", "closed: [{ name: x, from: tomorrow, until: 2026-11-22T00:00:00Z }]", Some("moment")),
        ("guards.yaml", "forbids: []", Some("syntax")),
        ("team/scope.yaml", "owner: a", None),
        ("team/scope.yaml", "{ owner: a, max_ttl: 5m }", Some("ceiling")),
        ("other/scope.yaml", "{ owner: a, max_ttl: 5m }", None),
        ("tea/scope.yaml", "{ owner: a, max_ttl: 5m }", None),
        ("scope.yaml", "{ owner: a, max_lifetime: 5m }", Some("ceiling")),
        ("team/scope.yaml", "{ owner: a, names: [\"api-*\"] }", Some("out-of-scope")),
        ("team/scope.yaml", "{ owner: a, backends: [aws-dev] }", Some("out-of-scope")),
        ("team/scope.yaml", "{ owner: a, issuers: [gitlab] }", Some("out-of-scope")),
        ("team/scope.yaml", "{ owner: a, claims: { github: { repository_id: [772002, 5] } } }", None),
        ("team/scope.yaml", "{ owner: a, claims: { github: { repository_id: [5] } } }", Some("out-of-scope")),
        ("team/scope.yaml", "{ owner: a, claims: { github: { workflow_ref: [x] } } }", Some("out-of-scope")),
        ("team/scope.yaml", "{ owner: a, credential: { role_arn: [\"arn:aws:iam::123456789012:role/*\"] } }", None),
        (
            "team/scope.yaml",
            "{ owner: a, credential: { role_arn: [\"arn:aws:iam::9:role/*\"] } }",
            Some("out-of-scope"),
        ),
        ("team/scope.yaml", "{ owner: a, credential: { session_tags: [x] } }", Some("out-of-scope")),
    ] {
        let compiled = compile_files(&[("team/g.yaml", DEPLOY), (path, text)]);
        assert_eq!(compiled.diagnostics.first().map(|d| d.code), expected, "{text}: {:?}", compiled.diagnostics);
        assert_eq!(compiled.set.grants().count(), usize::from(expected.is_none()), "{text}");
    }
}

#[test]
fn shadows_are_never_issued() {
    let second =
        "  - name: another\n    issuer: github\n    match: { repository_owner_id: \"1001\" }\n    mode: shadow\ntests:";
    for (text, expected) in [
        (format!("mode: shadow\n{DEPLOY}"), "shadow main-to-production"),
        (format!("mode: enforce\n{DEPLOY}"), "permit"),
        (DEPLOY.replacen("tests:", second, 1), "permit"),
        (
            DEPLOY.replacen("tests:", second, 1).replacen("environment: production", "environment: x", 1),
            "shadow another",
        ),
    ] {
        let compiled = compile_files(&[("g.yaml", &text)]);
        assert!(compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
        assert_eq!(outcome(&compiled, json!({})), expected);
    }
}
