//! What `explain`, `who-can`, `what-can`, `diff`, `replay` and `usage` say.

use crate::common::{DEPLOY, claims, compile_texts, issuer};
use jobpass_policy::{
    AnyCredential, Freezes, PolicySet, Record, Request, Source, compile,
    diff::diff,
    explain::{Explanation, explain},
    fixtures::FIXTURES,
    reach::{what_can, who_can},
    replay::replay,
    usage::usage,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is said of everything below, checked as texts: they are for people.
#[track_caller]
fn check(said: &str, expected: &[&str]) {
    for expected in expected {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
}

fn set(text: &str) -> PolicySet {
    let compiled = compile_texts(&[text]);
    assert!(!compiled.has_errors(), "{:?}", compiled.diagnostics);
    compiled.set
}

fn grant(rules: &str) -> String {
    format!("grant: deploy\nowner: team@acme.example\nbackend: any\nttl: 15m\nrules:\n{rules}")
}

fn explained(set: &PolicySet, fixture: &str, changes: Value) -> Explanation {
    let (claims, issuer) = (claims(fixture, changes), issuer("github").name);
    let grant = set.grants().next().expect("a grant").name().as_str();
    let request =
        Request { grant, issuer: &issuer, claims: &claims, scope: None, ttl: None, at: 0, freezes: &Freezes::NONE };
    explain(set, &request)
}

#[test]
fn values_steer_no_terminal() {
    let rule =
        "  - { name: r, issuer: github, match: { repository_owner_id: '1001', environment: \"x\\e[2K\\nrule y\" } }";
    let set = set(&grant(rule));
    let said = who_can(&set, set.grants().next().expect("a grant")).to_string();
    check(&said, &[r"in environment x\u{1b}[2K\nrule y"]);
}

#[test]
fn too_large_a_question_is_said_to_be_one() {
    let rules = |letter: char| {
        let rule = |n: usize| {
            format!(
                "  - {{ name: r{n}, issuer: github, match: {{ repository_owner_id: '1001', ref: {{ regex: '.*{letter}.{{{n}}}x.*' \
                 }}, environment: {{ regex: '.*{n}.{{{n}}}.*' }} }} }}\n"
            )
        };
        set(&grant(&(0..10).map(rule).collect::<String>()))
    };
    check(&diff(&rules('a'), &rules('b')).to_string(), &["? may differ: rule r9"]);
}

#[test]
fn sets_are_said_in_words() {
    for (rule, expected) in [
        (
            "  - { name: r, issuer: github, match: { repository_owner_id: '1001', repository_id: '772002', ref: refs/heads/main, \
             ref_type: branch, environment: production, event_name: [push, workflow_dispatch] } }",
            "any workflow on branch main of repository 772002 of owner 1001 in environment production, \
             on push or workflow_dispatch, not pull_request\n",
        ),
        (
            "  - { name: r, issuer: github, match: { repository_owner_id: '1001' } }",
            "any workflow of owner 1001, on any event, also pull_request, pull_request_target",
        ),
        (
            "  - { name: r, issuer: github, match: { repository_owner_id: '1001', ref: { glob: refs/tags/v* }, event_name: push, \
             environment: { absent: true }, actor: { regex: 'o.*' } } }",
            "any workflow on tag v* of owner 1001 without environment started by /o.*/, on push",
        ),
        (
            "  - { name: r, issuer: github, match: { repository_owner_id: '1001', event_name: push }, \
             when: 'claims.ref == \"refs/heads/main\" && claims.run_attempt in [\"1\", \"2\"]' }",
            "any workflow on branch main of owner 1001 with run_attempt 1 or 2, on push",
        ),
        (
            "  - { name: r, issuer: github, match: { repository_owner_id: '1001', event_name: push }, \
             when: 'claims.ref.startsWith(\"refs/\")' }",
            "any workflow of owner 1001, on push, not pull_request, and only if `claims.ref.startsWith(\"refs/\")`",
        ),
        (
            "  - { name: r, issuer: gitlab, match: { namespace_id: '1001', ref: main, ref_type: branch, pipeline_source: push, \
             groups_direct: { contains: acme/ops } } }",
            "any job on branch main of namespace 1001 with acme/ops among groups_direct, on push",
        ),
    ] {
        let set = set(&grant(rule));
        check(&who_can(&set, set.grant("deploy").expect("the grant")).to_string(), &[expected]);
    }
}

#[test]
fn who_can_is_sorted_and_knows_what_is_within_what() {
    let set = set(&grant(
        "  - { name: a, issuer: github, match: { repository_owner_id: '1001', ref: refs/heads/main } }
  - { name: b, issuer: github, match: { repository_owner_id: '1001' } }
  - { name: c, issuer: github, match: { repository_owner_id: '1001', ref: { glob: refs/heads/* } } }
  - { name: d, issuer: github, match: { repository_owner_id: '1001', ref: refs/heads/x }, when: 'claims.ref == \"y\"' }\n",
    ));
    let reach = who_can(&set, set.grant("deploy").expect("the grant"));
    let order: Vec<_> = reach.rules.iter().map(|rule| rule.rule.as_str()).collect();
    assert_eq!(order, ["b", "c", "a", "d"]);
    let within: Vec<_> = reach.rules.iter().map(|rule| rule.within.len()).collect();
    assert_eq!(within, [0, 1, 2, 0]);
    assert!(reach.rules[3].empty);
}

#[test]
fn what_a_job_can_have() {
    let set = set(DEPLOY);
    let given = |claims: Value| serde_json::from_value::<BTreeMap<String, Value>>(claims).expect("claims");
    for (claims, expected) in [
        (
            json!({ "repository_id": 772002, "repository_owner_id": "1001" }),
            Some("if on branch main in environment production"),
        ),
        (json!({ "repository_id": "772003" }), None),
        (json!({ "project_id": "1" }), Some("no issuer")),
    ] {
        let said = match what_can(&set, None, &given(claims)) {
            Ok(found) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            Err(error) => error.to_string(),
        };
        match expected {
            Some(expected) => check(&said, &[expected]),
            None => assert_eq!(said, ""),
        }
    }
    let all = claims("github/environment", json!({}));
    let found = what_can(&set, None, &given(serde_json::from_str(&all.to_stored()).expect("JSON"))).expect("an answer");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].needs, None);
}

#[test]
fn explanations() {
    let set = set(DEPLOY);
    let denied = explained(&set, "github/environment", json!({ "event_name": "pull_request", "ref": "refs/heads/x" }));
    let said = denied.to_string();
    check(
        &said,
        &["denied: deploy-prod", "2 of", "FAIL event_name", "push or workflow_dispatch", "ref = refs/heads/main"],
    );
    let change = denied.change.expect("a change");
    assert_eq!(change.claims.keys().collect::<Vec<_>>(), ["event_name", "ref"]);
    let permitted = explained(&set, "github/environment", serde_json::to_value(&change.claims).expect("JSON"));
    assert!(permitted.permitted, "{permitted}");

    let stored = serde_json::to_value(&denied.trace).expect("JSON");
    for stored in [stored.clone(), json!({ "trace": stored }), json!({ "seq": 1, "entry": { "trace": stored } })] {
        let again = Explanation::of_stored(&stored).expect("a trace");
        assert_eq!(again.trace, denied.trace);
        assert_eq!(again.reason, denied.reason);
    }
}

#[test]
fn differences() {
    let rule = "  - { name: r, issuer: github, match: { repository_owner_id: '1001', LINE }WHEN }\n";
    let rule = |line: &str, when: &str| grant(&rule.replace("LINE", line).replace("WHEN", when));
    for (old, new, expected) in [
        (
            rule("event_name: push", ""),
            rule("event_name: [push, workflow_dispatch]", ""),
            vec!["+ becomes permitted", "event_name = workflow_dispatch", "wanted push"],
        ),
        (
            rule("ref: { glob: refs/heads/* }", ""),
            rule("ref: { regex: 'refs/heads/[^/]+' }", ""),
            vec!["- becomes denied", "ref = refs/heads/\n"],
        ),
        (rule("ref: { glob: refs/heads/* }", ""), rule("ref: { regex: 'refs/heads/[^/]*' }", ""), vec![]),
        (
            rule("environment: production", ""),
            rule("environment: { regex: '(?s).*' }", ""),
            vec!["+ becomes permitted"],
        ),
        (
            rule("environment: { regex: '(?s).*' }", ""),
            rule("event_name: push", ""),
            vec!["+ becomes permitted", "environment = (absent)", "- becomes denied"],
        ),
        (
            rule("ref: main", ""),
            rule("ref: main", ", when: 'claims.actor == \"mona\"'"),
            vec!["- becomes denied", "actor = "],
        ),
        (
            rule("ref: main", ", when: 'claims.actor.startsWith(\"m\")'"),
            rule("ref: main", ", when: 'claims.actor.startsWith(\"o\")'"),
            vec!["+ becomes permitted", "actor = octocat", "? may differ"],
        ),
        (rule("ref: { regex: '\\bmain\\b' }", ""), rule("ref: main", ""), vec!["? may differ"]),
        (
            rule("ref: main", ""),
            rule("ref: main", "").replace("15m", "1h").replace("backend: any", "backend: any\ncredential: { role: b }"),
            vec!["~ ttl: 900 s -> 3600 s", "~ credential:  -> { role: b }"],
        ),
        (
            rule("sub_repository_id: '7'", ""),
            rule("sub_repository_id: { regex: '[78]' }", ""),
            vec!["sub_repository_id = 8"],
        ),
        // Nobody escaped the dot.
        (
            rule("workflow_path: a.yml", ""),
            rule("workflow_path: { regex: 'a.yml|b.yml' }", ""),
            vec!["workflow_path = aayml"],
        ),
    ] {
        let said = diff(&set(&old), &set(&new)).to_string();
        if expected.is_empty() {
            assert_eq!(said, "");
        }
        check(&said, &expected);
    }
    let guard = "forbid:\n  - { name: no-forks, issuer: github, match: { event_name: pull_request } }\n";
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let open = rule("ref: main", "");
    let guarded =
        compile(&[source("a.yaml", &open), source("guards.yaml", guard)], &[issuer("github")], &AnyCredential);
    let said = diff(&set(&open), &guarded.set).to_string();
    check(&said, &["- becomes denied", "event_name = pull_request", "a guard denies: no-forks"]);
    check(&diff(&guarded.set, &set(&open)).to_string(), &["+ becomes permitted", "event_name = pull_request"]);
}

/// For every CI: a rule that pins all that a real token says, and the same rule without one line, differ
/// by a token that can be made.
#[test]
fn every_line_of_every_ci_has_a_counterexample() {
    for (fixture, _) in FIXTURES {
        let issuer = issuer(fixture.split('/').next().expect("a profile"));
        let (token, profile) = (claims(fixture, json!({})), &issuer.profile);
        let said = |derived: bool| {
            let names = profile.claims().map(|claim| &*claim.name);
            let names = names.filter(move |name| {
                profile.derived_from(name).is_some() == derived || Some(*name) == profile.tenant_claim()
            });
            names.filter_map(|name| Some((name, token.text(name)?.into_owned()))).collect::<Vec<_>>()
        };
        for lines in [said(false), said(true)] {
            let compiled = |without: &str| {
                let lines = lines.iter().filter(|(name, _)| *name != without);
                let lines: Vec<_> = lines.map(|(name, value)| format!("'{name}': {}", json!(value))).collect();
                let rule = format!("  - {{ name: r, issuer: {}, match: {{ {} }} }}\n", issuer.name, lines.join(", "));
                let source = Source { path: "deploy.yaml".into(), text: grant(&rule) };
                let compiled = compile(&[source], std::slice::from_ref(&issuer), &AnyCredential);
                (!compiled.has_errors()).then_some(compiled.set)
            };
            let Some(all) = compiled("") else { continue };
            for (name, _) in &lines {
                // Without its tenant no rule compiles.
                let Some(fewer) = compiled(name) else { continue };
                let differences = diff(&all, &fewer);
                let permitted: usize = differences.grants.iter().map(|grant| grant.permitted.len()).sum();
                assert_eq!(permitted, 1, "{fixture} without {name}: {differences}");
            }
        }
    }
}

fn record(at: &str, event: &str, more: Value) -> Record {
    let mut entry = json!({ "at": at, "event": event, "grant": "deploy", "issuer": "github" });
    for (key, value) in more.as_object().expect("an object") {
        entry[key] = value.clone();
    }
    let line = json!({ "seq": 1, "prev": "", "hash": "", "entry": entry }).to_string();
    assert!(Record::parse(&entry.to_string()).is_ok(), "an entry alone");
    let head = json!({ "head": { "seq": 1, "hash": "", "at": at, "kid": "", "signature": "" } }).to_string();
    assert!(matches!(Record::parse(&head), Ok(None)), "a signed head");
    assert!(Record::parse("{}").is_err(), "anything else");
    Record::parse(&line).expect("a line of the log").expect("an entry")
}

#[test]
fn replays() {
    let recorded = |fixture: &str| serde_json::to_value(claims(fixture, json!({})).recorded()).expect("JSON");
    let permitted =
        record("2026-11-20T10:00:00Z", "permitted", json!({ "rule": "r", "claims": recorded("github/push") }));
    let denied = record(
        "2026-11-20T11:00:00Z",
        "denied",
        json!({ "claims": recorded("github/pull_request"), "trace": { "grant": "deploy", "rules": [] }, "count": 3 }),
    );
    let spent = record("2026-11-20T11:00:00Z", "denied", json!({ "reason": "token_spent" }));
    let records = [permitted, denied, spent];
    for (rule, expected) in [
        ("event_name: push", vec!["4 decisions: 4 the same"]),
        ("event_name: [push, pull_request]", vec!["was denied, is permitted by r", "1 the same, 3 changed"]),
        ("event_name: schedule", vec!["was permitted by r, is denied: rule r: `event_name` is push, wanted schedule"]),
        ("issuer_scope: x", vec!["undecidable: claim issuer_scope not recorded", "4 undecidable"]),
        ("issuer_scope: x, event_name: schedule", vec!["3 the same, 1 changed, 0 undecidable"]),
    ] {
        let rule = format!("  - {{ name: r, issuer: github, match: {{ repository_owner_id: '1001', {rule} }} }}\n");
        check(&replay(&set(&grant(&rule)), &[issuer("github")], &records).to_string(), &expected);
    }
    check(
        &replay(&set(&grant("  - { name: r, issuer: gitlab, match: { namespace_id: '1' } }")), &[], &records)
            .to_string(),
        &["there is no issuer github"],
    );
}

#[test]
fn usages() {
    let set = set(&grant(
        "  - { name: r, issuer: github, match: { repository_owner_id: '1001', ref: { glob: refs/heads/* } } }
  - { name: s, issuer: github, match: { repository_owner_id: '1001', event_name: schedule } }\n",
    ));
    let mut records = Vec::new();
    for (n, environment) in ["production", "staging", "production"].iter().enumerate() {
        let claims = json!({ "repository_owner_id": "1001", "ref": "refs/heads/main", "repository": "acme/api", "environment": environment });
        let lease = json!({ "rule": "r", "lease_id": format!("l{n}"), "claims": claims });
        records.push(record("2026-11-20T10:00:00Z", "permitted", lease));
        records.push(record("2026-11-20T10:01:30Z", "revoking", json!({ "lease_id": format!("l{n}") })));
        records.push(record("2026-11-20T10:01:31Z", "ended", json!({ "lease_id": format!("l{n}") })));
    }
    let now = records[0].at() + 3600;
    let said = usage(&set, &records, now, 30).to_string();
    check(
        &said,
        &[
            "rule s of deploy: never used",
            "rule r of deploy: all 3 uses had ref: refs/heads/main; it could ask for that",
            "grant deploy: its TTL is 900 s, and the longest of 3 leases was used for 90 s",
        ],
    );
    check(&usage(&set, &records, now + 31 * 86400, 30).to_string(), &["grant deploy: unused for more than 30 days"]);
    // Nobody gave this one back: it was there until its end, for all that the log says.
    records.push(record("2026-11-20T10:00:00Z", "issued", json!({ "rule": "r", "lease_id": "l3", "claims": {} })));
    let said = usage(&set, &records, now, 30).to_string();
    assert!(!said.contains("TTL"), "{said}");
}

#[test]
fn what_is_issued_at_once_is_a_use_and_one_decision_is_one_use() {
    let set = set(&grant("  - { name: r, issuer: github, match: { repository_owner_id: '1001' } }\n"));
    let claims = json!({ "repository_owner_id": "1001", "event_name": "push" });
    let entry = |event, id: &str| {
        let more = json!({ "rule": "r", "issuer": "github", "decision_id": id, "lease_id": id, "claims": claims });
        record("2026-11-20T10:00:00Z", event, more)
    };
    let records = [entry("issued", "d1"), entry("permitted", "d2"), entry("issued", "d2"), entry("renewed", "d3")];
    let said = usage(&set, &records, records[0].at() + 60, 30).to_string();
    check(&said, &["all 3 uses had event_name: push"]);
    assert_eq!(replay(&set, &[issuer("github")], &records).decisions, 3);
}

#[test]
fn a_rule_that_is_tried_out_is_used_by_what_it_would_permit() {
    let set = set(&grant("  - { name: r, issuer: github, mode: shadow, match: { repository_owner_id: '1001' } }\n"));
    let more = json!({ "reason": "shadow", "trace": explained(&set, "github/push", json!({})).trace });
    let records = [record("2026-11-20T10:00:00Z", "denied", more)];
    check(&usage(&set, &records, records[0].at() + 60, 30).to_string(), &["everything is used as it is"]);
}
