//! What holds for every policy, tried on generated ones.

use crate::common::{DEPLOY, claims, issuer};
use jobpass_policy::{AnyCredential, Decision, Freezes, PolicySet, Request, Source, compile, decide};
use jobpass_protocol::IssuerName;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

const HEAD: &str = "grant: g\nowner: a@b\nbackend: x\nttl: 5m\nrules:\n";

fn set(files: &[(&str, &str)]) -> PolicySet {
    let sources: Vec<_> =
        files.iter().map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() }).collect();
    let compiled = compile(&sources, &[issuer("github")], &AnyCredential);
    assert!(compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
    compiled.set
}

/// The rule that permits, if one does.
fn permits(set: &PolicySet, grant: &str, changes: Value) -> Option<String> {
    let claims = claims("github/environment", changes);
    let issuer = IssuerName::parse("github").expect("a name");
    let request =
        Request { grant, issuer: &issuer, claims: &claims, scope: None, ttl: None, at: 0, freezes: &Freezes::NONE };
    match decide(set, &request) {
        Decision::Permit(permit) => Some(permit.rule().to_string()),
        Decision::Denial(_) => None,
    }
}

fn rule(name: &str, lines: &[(&str, Value)]) -> String {
    let lines: String = lines.iter().map(|(claim, wanted)| format!("      {claim}: {wanted}\n")).collect();
    format!("  - name: {name}\n    issuer: github\n    match:\n      repository_owner_id: \"1001\"\n{lines}")
}

fn value() -> impl Strategy<Value = String> {
    "[ab/.|]{0,6}"
}

fn matcher() -> impl Strategy<Value = Value> {
    let text = value().prop_map(|text| json!(text));
    let list = prop::collection::vec(value(), 1..4).prop_map(|texts| json!(texts));
    let glob = "[ab/]{0,2}[*]?[ab/]{0,2}".prop_map(|glob| json!({ "glob": glob }));
    let regex =
        select(vec!["a|b", "a+", "[ab]*", "a/.*", "(a|b/)+", "\\.", "a?b?"]).prop_map(|r| json!({ "regex": r }));
    prop_oneof![text, list, glob, regex, Just(json!({ "absent": true }))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_pattern_never_matches_a_proper_part(
        matcher in matcher(), value in value(), before in "[xy\n]{0,2}", after in "[xy\n]{0,2}"
    ) {
        prop_assume!(!(before.is_empty() && after.is_empty()));
        // A wildcard may well match the longer value too; what is fixed must not be found inside it.
        let fixed = !["*", "+", "."].iter().any(|open| matcher.to_string().contains(open));
        let set = set(&[("g.yaml", &format!("{HEAD}{}", rule("r", &[("ref", matcher)])))]);
        if fixed && permits(&set, "g", json!({ "ref": value })).is_some() {
            let longer = format!("{before}{value}{after}");
            prop_assert_eq!(permits(&set, "g", json!({ "ref": longer })), None);
        }
    }

    #[test]
    fn the_order_of_rules_does_not_matter(
        rules in prop::collection::vec((matcher(), matcher()), 1..5), seed in any::<u64>(), a in value(), b in value()
    ) {
        let mut texts: Vec<_> = (rules.into_iter().enumerate())
            .map(|(n, (one, other))| rule(&format!("r{n}"), &[("ref", one), ("environment", other)]))
            .collect();
        let written = set(&[("g.yaml", &format!("{HEAD}{}", texts.concat()))]);
        let turn = usize::try_from(seed % 7).unwrap_or(0) % texts.len();
        texts.rotate_left(turn);
        texts.reverse();
        let turned = set(&[("g.yaml", &format!("{HEAD}{}", texts.concat()))]);
        let changes = json!({ "ref": a, "environment": b });
        prop_assert_eq!(permits(&written, "g", changes.clone()), permits(&turned, "g", changes));
    }

    #[test]
    fn a_guard_never_permits_more(line in matcher(), guard in matcher(), a in value(), b in value()) {
        let grant = format!("{HEAD}{}", rule("r", &[("ref", line)]));
        let guards = format!("forbid:\n  - name: f\n    issuer: github\n    match:\n      environment: {guard}\n");
        let changes = json!({ "ref": a, "environment": b });
        let guarded = permits(&set(&[("g.yaml", &grant), ("guards.yaml", &guards)]), "g", changes.clone());
        if guarded.is_some() {
            prop_assert_eq!(guarded, permits(&set(&[("g.yaml", &grant)]), "g", changes));
        }
    }

    #[test]
    fn no_file_makes_the_compiler_panic(text in "[a-z:\\-{}\\[\\]\"'&*|>#\n ]{0,80}", cut in 0..DEPLOY.len()) {
        let source = |text: String| [Source { path: "g.yaml".to_owned(), text }];
        let _ = compile(&source(text.clone()), &[issuer("github")], &AnyCredential);
        let (head, tail) = DEPLOY.split_at(cut);
        let compiled = compile(&source(format!("{head}{text}{tail}")), &[issuer("github")], &AnyCredential);
        for diagnostic in &compiled.diagnostics {
            prop_assert_ne!(diagnostic.render(false), "");
        }
    }
}
