//! Decisions: what is permitted, what is denied, and what the caller is told.

use crate::common::{DEPLOY, claims, compile_texts};
use jobpass_policy::{Decision, DenialKind, Freezes, Request, cases, decide};
use jobpass_protocol::{GrantName, IssuerName};
use serde_json::json;
use std::collections::BTreeMap;

fn name(text: &str) -> IssuerName {
    IssuerName::parse(text).expect("a name")
}

#[test]
fn claims_decide() {
    let set = compile_texts(&[DEPLOY]).set;
    for (fixture, issuer, changes, expected) in [
        ("github/environment", "github", json!({}), None),
        ("github/environment", "github", json!({ "event_name": "push" }), None),
        ("github/environment", "github", json!({ "repository_owner_id": 1001 }), None),
        ("github/environment", "github", json!({ "environment": "Production" }), Some("environment")),
        ("github/environment", "github", json!({ "environment": null }), Some("environment")),
        ("github/environment", "github", json!({ "environment": ["production"] }), Some("environment")),
        ("github/environment", "github", json!({ "ref": "refs/heads/main-evil" }), Some("ref")),
        ("github/environment", "github", json!({ "repository_id": "7720020" }), Some("repository_id")),
        (
            "github/environment",
            "github",
            json!({ "workflow_ref": "acme/api/.github/workflows/a/b.yml@refs/heads/main" }),
            Some("workflow_ref"),
        ),
        ("github/environment", "gitlab", json!({}), Some("")),
        ("gitlab/branch", "github", json!({}), Some("")),
    ] {
        let claims = claims(fixture, changes.clone());
        let request = Request {
            grant: "deploy-prod",
            issuer: &name(issuer),
            claims: &claims,
            scope: None,
            ttl: None,
            at: 0,
            freezes: &Freezes::NONE,
        };
        match (decide(&set, &request), expected) {
            (Decision::Permit(permit), None) => assert_eq!(permit.rule().as_str(), "main-to-production"),
            (Decision::Denial(denial), Some(claim)) => {
                assert_eq!(denial.kind, DenialKind::NoRule);
                let trace = denial.trace();
                let failed: Vec<_> = trace.rules[0].failed().map(|check| check.claim.as_str()).collect();
                assert_eq!(failed.join(" "), claim, "{changes}");
                assert_eq!(trace.rules[0].issuer_matches, !claim.is_empty(), "{changes}");
            }
            (decision, _) => panic!("{changes}: {decision:?}"),
        }
    }
}

#[test]
fn a_permit_is_never_more_than_was_asked_for_and_written() {
    let set = compile_texts(&[DEPLOY]).set;
    let claims = claims("github/environment", json!({}));
    for (ttl, scope, expected_ttl, expected_scope) in [
        (None, None, 900, Ok(vec!["read", "write"])),
        (Some(60), Some(vec!["read"]), 60, Ok(vec!["read"])),
        (Some(100_000), Some(vec![]), 900, Ok(vec![])),
        (Some(0), Some(vec!["read", "admin"]), 1, Err(vec!["admin"])),
    ] {
        let scope: Option<Vec<String>> = scope.map(|scopes| scopes.into_iter().map(str::to_owned).collect());
        let request = Request {
            grant: "deploy-prod",
            issuer: &name("github"),
            claims: &claims,
            scope: scope.as_deref(),
            ttl,
            at: 0,
            freezes: &Freezes::NONE,
        };
        match (decide(&set, &request), expected_scope) {
            (Decision::Permit(permit), Ok(scopes)) => {
                assert_eq!((permit.ttl(), permit.max_lifetime()), (expected_ttl, 3600));
                assert_eq!(permit.scope(), scopes);
            }
            (Decision::Denial(denial), Err(beyond)) => {
                let beyond = beyond.into_iter().map(str::to_owned).collect();
                assert_eq!(denial.kind, DenialKind::Scope { beyond });
                assert_eq!(denial.disclosed(), ["the grant has no scope admin"]);
                let recorded = serde_json::to_string(&denial.trace()).expect("JSON");
                assert!(recorded.contains("scope") && !recorded.contains("admin"), "a caller's words: {recorded}");
            }
            (decision, _) => panic!("{decision:?}"),
        }
    }
}

#[test]
fn a_freeze_beats_any_policy() {
    let set = compile_texts(&[DEPLOY]).set;
    let claims = claims("github/environment", json!({}));
    let grant = |name| GrantName::parse(name).expect("a name");
    let by_grant = |name| BTreeMap::from([(grant(name), "incident 7".to_owned())]);
    for (freezes, frozen) in [
        (Freezes { all: Some("incident 7".to_owned()), ..Freezes::NONE }, true),
        (Freezes { issuers: BTreeMap::from([(name("github"), "incident 7".to_owned())]), ..Freezes::NONE }, true),
        (Freezes { issuers: BTreeMap::from([(name("gitlab"), "incident 7".to_owned())]), ..Freezes::NONE }, false),
        (Freezes { grants: by_grant("deploy-prod"), ..Freezes::NONE }, true),
        (Freezes { grants: by_grant("deploy-test"), ..Freezes::NONE }, false),
    ] {
        let request = Request {
            grant: "deploy-prod",
            issuer: &name("github"),
            claims: &claims,
            scope: None,
            ttl: None,
            at: 0,
            freezes: &freezes,
        };
        match decide(&set, &request) {
            Decision::Permit(_) => assert!(!frozen, "{freezes:?}"),
            Decision::Denial(denial) => {
                assert!(frozen, "{freezes:?}");
                assert_eq!(denial.disclosed(), ["an admin has frozen it"]);
            }
        }
    }
}

#[test]
fn only_the_own_tenant_is_told() {
    for (disclose, grant, owner, told) in [
        ("tenant", "deploy-prod", "1001", true),
        ("tenant", "deploy-prod", "1002", false),
        ("none", "deploy-prod", "1001", false),
        ("full", "deploy-prod", "1002", true),
        ("full", "deploy-pord", "1001", false),
    ] {
        let text = format!("{DEPLOY}\ndisclose: {disclose}\n");
        let set = compile_texts(&[&text]).set;
        let claims = claims("github/push", json!({ "repository_owner_id": owner }));
        let request = Request {
            grant,
            issuer: &name("github"),
            claims: &claims,
            scope: None,
            ttl: None,
            at: 0,
            freezes: &Freezes::NONE,
        };
        let Decision::Denial(denial) = decide(&set, &request) else { panic!("a denial") };
        let lines = denial.disclosed();
        assert_eq!(!lines.is_empty(), told, "{disclose} {grant} {owner}");
        assert_eq!(
            lines.iter().any(|line| line.contains("`environment` is absent, wanted production")),
            told,
            "{lines:?}"
        );
    }
}

#[test]
fn cases_are_run() {
    let report = cases::run(&compile_texts(&[DEPLOY]).set);
    assert_eq!(report.results.len(), 4);
    assert!(report.passed(), "{:?}", report.results);

    for (from, to, expected) in [
        ("{ from: gitlab/branch }\n    expect: deny", "{ from: gitlab/branch }\n    expect: permit", "case-failed"),
        ("[repository_owner_id]", "[ref]", "case-failed"),
        ("{ main-to-production: [repository_owner_id]", "{ main: [repository_owner_id]", "unknown-rule"),
        ("from: gitlab/branch", "from: gitlab/brunch", "unknown-fixture"),
        ("repository_owner_id: \"1002\"", "repository_ownerid: \"1002\"", "unknown-claim"),
        ("repository_owner_id: \"1002\"", "repository_owner_id: ~", "case-claims"),
        ("repository_owner_id: \"1002\"", "sub_owner: \"1002\"", "derived-claim"),
        ("rule: main-to-production", "because: { main-to-production: [ref] }", "case-reason"),
        ("{ from: gitlab/branch }", "{ from: gitlab/branch }\n    issuer: gitlab", "case-issuer"),
    ] {
        assert!(DEPLOY.contains(from), "{from}");
        let text = DEPLOY.replacen(from, to, 1);
        let compiled = compile_texts(&[&text]);
        assert!(compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
        let report = cases::run(&compiled.set);
        let failed: Vec<_> = report.results.iter().filter_map(|r| r.failure.as_ref()).map(|d| d.code).collect();
        assert_eq!(failed, [expected], "{to}: {:?}", report.results);
    }
}
