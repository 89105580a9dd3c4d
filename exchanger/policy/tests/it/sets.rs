//! Properties: what the tools say of policies is what `decide` does.

use crate::common::{claims, issuer};
use jobpass_policy::{
    AnyCredential, Claims, Decision, Freezes, PolicySet, Request, Source, compile,
    diff::diff,
    reach::{Reach, who_can},
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use std::sync::Arc;

/// The moment of all decisions.
const NOW: i64 = 1_795_300_000;

/// Claims, what rules may want of them, and what tokens may say. A token that says nothing says null.
const CLAIMS: &[(&str, &[&str], &[&str])] = &[
    ("repository_owner_id", &["'1001'", "['1001', '1002']"], &["1001", "1002", "1003"]),
    (
        "ref",
        &[
            "refs/heads/main",
            "[refs/heads/main, refs/tags/v1]",
            "{ glob: 'refs/heads/*' }",
            "{ glob: 'refs/*/release-*' }",
            "[refs/tags/v1, { glob: 'refs/heads/r*' }]",
            "{ regex: 'refs/heads/.*' }",
            "{ regex: 'refs/(heads|tags)/[a-z0-9-]+' }",
            "{ regex: '.*main|.*dev' }",
        ],
        &["refs/heads/main", "refs/heads/release-1", "refs/heads/a/b", "refs/tags/v1", "refs/heads/", "main", ""],
    ),
    (
        "environment",
        &["production", "[production, staging]", "{ absent: true }", "{ regex: 'prod.*' }", "{ glob: '*' }"],
        &["production", "staging", "prod-eu", "a/b", "null", "{}"],
    ),
    ("event_name", &["push", "[push, workflow_dispatch]"], &["push", "workflow_dispatch", "pull_request"]),
    ("ref_protected", &["'true'", "true"], &["true", "false", "null"]),
    ("workflow_path", &[".github/workflows/ci.yml", "{ glob: '.github/workflows/*.yml' }", "{ absent: true }"], &[]),
    ("sub_repository_id", &["'772002'", "{ regex: '7[0-9]+' }"], &[]),
    (
        "workflow_ref",
        &["{ glob: 'acme/*/.github/workflows/*.yml@refs/heads/main' }"],
        &[
            "acme/api/.github/workflows/ci.yml@refs/heads/main",
            "acme/api/.github/workflows/x.yml@refs/tags/v1",
            "null",
            "odd",
        ],
    ),
    (
        "sub",
        &["{ glob: 'repo:*/*:ref:refs/heads/main' }"],
        &["repo:acme@1001/api@772002:ref:x", "repo:acme/api:ref:x", "?"],
    ),
];

const CONDITIONS: &[&str] = &[
    "claims.actor == \"octocat\"",
    "claims.actor in [\"octocat\", \"mona\"] && claims.run_attempt == \"1\"",
    "claims.ref.startsWith(\"refs/heads/\")",
    "!has(claims.environment) || claims.environment == \"production\"",
];

fn lines() -> impl Strategy<Value = String> {
    let claim = |(name, wanted, _): &(&'static str, &'static [&'static str], _)| {
        let name = *name;
        prop::option::weighted(0.4, select(*wanted)).prop_map(move |wanted| match wanted {
            Some(wanted) => format!("      {name}: {wanted}\n"),
            None if name == "repository_owner_id" => format!("      {name}: '1001'\n"),
            None => String::new(),
        })
    };
    CLAIMS.iter().map(claim).collect::<Vec<_>>().prop_map(|lines| lines.concat())
}

fn rule() -> impl Strategy<Value = String> {
    (lines(), prop::option::weighted(0.3, select(CONDITIONS)), prop::bool::weighted(0.1)).prop_map(
        |(lines, when, shadow)| {
            let when = when.map(|when| format!("    when: '{when}'\n")).unwrap_or_default();
            let mode = if shadow { "    mode: shadow\n" } else { "" };
            format!("    issuer: github\n    match:\n{lines}{when}{mode}")
        },
    )
}

/// The rules of a grant, and what guards forbid.
#[derive(Clone, Debug)]
struct Policy {
    rules: Vec<String>,
    forbid: Vec<String>,
}

fn policy() -> impl Strategy<Value = Policy> {
    (prop::collection::vec(rule(), 1..4), prop::collection::vec(rule(), 0..2)).prop_map(|(rules, forbid)| {
        let forbid = forbid.into_iter().map(|rule| rule.replace("    mode: shadow\n", "")).collect();
        Policy { rules, forbid }
    })
}

impl Policy {
    fn compile(&self) -> PolicySet {
        let list = |items: &[String]| -> String {
            items.iter().enumerate().map(|(n, item)| format!("  - name: r{n}-{}\n{item}", item.len())).collect()
        };
        let grant =
            "grant: deploy\nowner: team@acme.example\nbackend: any\nttl: 5m\nrules:\n".to_owned() + &list(&self.rules);
        let mut sources = vec![Source { path: "deploy.yaml".into(), text: grant }];
        if !self.forbid.is_empty() {
            let text = format!("forbid:\n{}", list(&self.forbid));
            sources.push(Source { path: "guards.yaml".into(), text });
        }
        let compiled = compile(&sources, &[issuer("github")], &AnyCredential);
        assert!(!compiled.has_errors(), "{:?}", compiled.diagnostics);
        compiled.set
    }
}

fn token() -> impl Strategy<Value = Arc<Claims>> {
    let value = |(_, _, values): &(_, _, &'static [&'static str])| prop::option::weighted(0.7, select(values.to_vec()));
    let values = CLAIMS.iter().filter(|claim| !claim.2.is_empty()).map(value).collect::<Vec<_>>();
    (values, select(vec!["github/push", "github/environment"]), select(vec!["octocat", "mona", "eve"])).prop_map(
        |(values, fixture, actor)| {
            let mut changes = json!({ "actor": actor });
            for ((name, ..), value) in CLAIMS.iter().filter(|claim| !claim.2.is_empty()).zip(values) {
                match value {
                    None => {}
                    Some("null") => changes[*name] = Value::Null,
                    Some("{}") => changes[*name] = json!({}),
                    Some(text) => changes[*name] = text.into(),
                }
            }
            claims(fixture, changes)
        },
    )
}

fn permits(set: &PolicySet, claims: &Arc<Claims>) -> bool {
    let issuer = &issuer("github").name;
    let request = Request { grant: "deploy", issuer, claims, scope: None, ttl: None, at: NOW, freezes: &Freezes::NONE };
    matches!(jobpass_policy::decide(set, &request), Decision::Permit(_))
}

fn reach(set: &PolicySet) -> Reach {
    who_can(set, set.grant("deploy").expect("the grant"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reachable_set_is_what_is_permitted(policy in policy(), tokens in prop::collection::vec(token(), 48)) {
        let (set, issuer) = (policy.compile(), issuer("github").name);
        let reach = reach(&set);
        for claims in &tokens {
            match reach.contains(&issuer, claims) {
                Some(inside) => prop_assert_eq!(inside, permits(&set, claims), "{}", claims.to_stored()),
                None => prop_assert!(reach.rules.iter().chain(&reach.forbidden).any(|set| !set.conditions.is_empty())),
            }
        }
    }

    #[test]
    fn a_set_within_another_is_listed_after_it_and_adds_nothing(policy in policy(), tokens in prop::collection::vec(token(), 16)) {
        let set = Policy { forbid: Vec::new(), ..policy }.compile();
        let reach = reach(&set);
        for (place, inner) in reach.rules.iter().enumerate() {
            for (other, outer) in reach.rules.iter().enumerate().filter(|(_, outer)| inner.within.contains(&outer.rule)) {
                prop_assert!(other < place || outer.within.contains(&inner.rule));
                for claims in tokens.iter().filter(|claims| inner.contains(&inner.issuer, claims) == Some(true)) {
                    prop_assert_ne!(outer.contains(&inner.issuer, claims), Some(false));
                }
            }
        }
    }

    #[test]
    fn the_order_of_rules_is_nothing(policy in policy(), tokens in prop::collection::vec(token(), 8)) {
        let mut turned = policy.clone();
        turned.rules.reverse();
        let (set, turned) = (policy.compile(), turned.compile());
        prop_assert!(diff(&set, &turned).is_empty());
        for claims in &tokens {
            prop_assert_eq!(permits(&set, claims), permits(&turned, claims));
        }
    }

    #[test]
    fn a_set_does_not_differ_from_itself(policy in policy()) {
        let set = policy.compile();
        let differences = diff(&set, &set);
        prop_assert!(differences.is_empty(), "{}", differences);
    }

    #[test]
    fn counterexamples_flip_and_no_difference_is_missed(
        (old, new) in (policy(), policy()),
        tokens in prop::collection::vec(token(), 16),
    ) {
        let (old, new) = (old.compile(), new.compile());
        let differences = diff(&old, &new);
        let profile = issuer("github").profile;
        for grant in &differences.grants {
            for (change, after) in grant.permitted.iter().map(|c| (c, true)).chain(grant.denied.iter().map(|c| (c, false))) {
                let payload = Value::Object(change.payload.clone()).to_string();
                let claims = Arc::new(Claims::parse(&profile, payload.as_bytes()).expect("claims"));
                prop_assert_eq!((permits(&old, &claims), permits(&new, &claims)), (!after, after));
            }
        }
        for claims in &tokens {
            let (before, after) = (permits(&old, claims), permits(&new, claims));
            let said = |grant: &jobpass_policy::diff::GrantDiff| {
                !grant.may_differ.is_empty() || !(if after { &grant.permitted } else { &grant.denied }).is_empty()
            };
            prop_assert!(before == after || differences.grants.iter().any(said), "{}\n{}", differences, claims.to_stored());
        }
    }

    /// What a glob or a regex matches is said by somebody else here: a walk over all ways to match.
    #[test]
    fn patterns_match_whole_values(
        (first, more, last) in ("[a-c/]{0,3}", prop::collection::vec("[a-c/]{1,3}", 0..3), prop::option::of("[a-c/]{0,3}")),
        words in prop::collection::vec("[a-c/]{0,3}", 1..4),
        value in "[a-c/]{0,8}",
    ) {
        let parts: Vec<String> = std::iter::once(first).chain(more).chain(last).collect();
        let glob = |pattern: &str| format!("    issuer: github\n    match: {{ repository_owner_id: '1001', ref: {{ {pattern} }} }}\n");
        let token = claims("github/push", json!({ "ref": value }));
        let permits = |rule: String| permits(&Policy { rules: vec![rule], forbid: Vec::new() }.compile(), &token);
        prop_assert_eq!(permits(glob(&format!("glob: '{}'", parts.join("*")))), fits(&parts, &value));
        prop_assert_eq!(permits(glob(&format!("regex: '{}'", words.join("|")))), words.contains(&value));
    }
}

fn fits(parts: &[String], value: &str) -> bool {
    let Some((first, rest)) = parts.split_first() else { return false };
    let Some(left) = value.strip_prefix(first.as_str()) else { return false };
    if rest.is_empty() {
        return left.is_empty();
    }
    let reach = left.find('/').unwrap_or(left.len());
    (0..=reach).any(|star| fits(rest, &left[star..]))
}
