//! What policy files can get wrong, and where it is said.

use crate::common::{DEPLOY, compile_texts, issuer};
use jobpass_policy::{AnyCredential, Issuer, Source, compile};

#[test]
fn the_example_compiles() {
    let compiled = compile_texts(&[DEPLOY]);
    assert!(compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
    let grant = compiled.set.grant("deploy-prod").expect("the grant");
    assert_eq!((grant.ttl(), grant.max_lifetime()), (900, 3600));
    assert_eq!(grant.rules().len(), 1);
    assert_eq!(compiled.set.digest().len(), 64);
}

#[test]
fn every_mistake_has_its_place() {
    let long = format!("regex: {}", "a".repeat(2000));
    for (from, to, expected) in [
        ("grant: deploy-prod", "grant: Deploy", "1:8 name"),
        ("owner: team-platform@acme.example\n", "", "syntax"),
        ("owner: team-platform@acme.example", "owner: \"\"", "2:8 owner"),
        ("owner:", "ower:", "2:1 syntax"),
        ("review_by: 2027-06-30", "review_by: 2027-02-30", "3:12 date"),
        ("ttl: 15m", "ttl: 900", "9:6 duration"),
        ("ttl: 15m", "ttl: 8d", "9:6 duration"),
        ("ttl: 15m", "ttl: 99999999999999999999h", "9:6 duration"),
        ("max_lifetime: 1h", "max_lifetime: 5m", "10:15 max-lifetime"),
        ("[read, write]", "[read, \"a b\"]", "11:16 scope"),
        ("[read, write]", "[read, read]", "11:16 duplicate"),
        ("issuer: github", "issuer: githab", "14:13 unknown-issuer"),
        ("repository_owner_id: \"1001\"", "repository_ownerid: \"1001\"", "16:7 unknown-claim"),
        ("repository_owner_id: \"1001\"", "repository_owner_id: { regex: \"1001\" }", "13:11 tenant-pin"),
        ("      repository_owner_id: \"1001\"\n", "", "13:11 tenant-pin"),
        ("environment: production", "environment: ~", "20:20 null"),
        ("environment: production", "environment: []", "20:20 empty-list"),
        ("environment: production", "environment: { globe: x }", "20:22 unknown-operator"),
        ("environment: production", "environment: { glob: x, regex: x }", "20:20 operator-count"),
        ("environment: production", "environment: {}", "20:20 operator-count"),
        ("environment: production", "environment: { glob: [x] }", "20:28 operand"),
        ("environment: production", "environment: { absent: false }", "20:30 operand"),
        ("environment: production", "environment: [x, { absent: true }]", "20:24 operand"),
        ("environment: production", "environment: { contains: x }", "20:32 pattern"),
        ("environment: production", "environment: { glob: \"a**\" }", "20:28 pattern"),
        ("environment: production", "environment: { regex: \"a)|(b\" }", "20:29 pattern"),
        ("environment: production", &format!("environment: {{ {long} }}"), "20:29 pattern"),
        ("environment: production", "environment: production\n      environment: x", "21:7 syntax"),
        ("name: main-to-production", "name: main_to_production", "13:11 name"),
        ("expect: permit", "expect: allow", "27:13 syntax"),
        ("  - name: main-to-production", "  - &a\n    name: main-to-production", "syntax"),
        ("owner: team-platform@acme.example", "owner: !env OWNER", "2:13 syntax"),
    ] {
        assert!(DEPLOY.contains(from), "{from}");
        let text = DEPLOY.replacen(from, to, 1);
        let compiled = compile_texts(&[&text]);
        let [found] = compiled.diagnostics.as_slice() else { panic!("{to}: {:?}", compiled.diagnostics) };
        let (line, column) = found.position();
        assert!(format!("{line}:{column} {}", found.code).ends_with(expected), "{to}: {found}");
        assert!(compiled.set.grants().next().is_none(), "{to}");
        assert!(found.render(false).contains(&found.message), "{to}");
    }
}

#[test]
fn a_shared_issuer_needs_a_tenant() {
    let text = DEPLOY.replace("      repository_owner_id: \"1001\"\n", "");
    let with = |tenants: &[&str], shared| Issuer {
        tenants: tenants.iter().map(|tenant| (*tenant).to_owned()).collect(),
        shared,
        ..issuer("github")
    };
    for (issuer, compiles) in [(with(&[], true), false), (with(&["1001"], true), true), (with(&[], false), true)] {
        let source = Source { path: "x.yaml".to_owned(), text: text.clone() };
        assert_eq!(!compile(&[source], &[issuer], &AnyCredential).has_errors(), compiles);
    }
}

#[test]
fn of_two_grants_with_one_name_neither_is_loaded() {
    let compiled = compile_texts(&[DEPLOY, DEPLOY]);
    assert_eq!(compiled.diagnostics.iter().map(|d| d.code).collect::<Vec<_>>(), ["duplicate-grant"; 2]);
    assert!(compiled.set.grants().next().is_none());
}

/// As large as a file may be, and larger.
#[test]
fn yaml_bombs_are_refused_quickly() {
    let repeated = |part: &dyn Fn(usize) -> String, bytes: usize| {
        let mut text = String::new();
        for n in 1.. {
            if text.len() >= bytes {
                break;
            }
            text += &part(n);
        }
        text.truncate(bytes);
        text
    };
    for bytes in [255_000, 1 << 20] {
        for (name, text) in [
            ("lists", "grant: ".to_owned() + &"[".repeat(bytes - 7)),
            ("maps", "grant: ".to_owned() + &"{a: ".repeat((bytes - 7) / 4)),
            ("indented", repeated(&|n| format!("{}a:\n", " ".repeat(n)), bytes)),
            ("dashes", "- ".repeat(bytes / 2)),
            ("keys", "? ".repeat(bytes / 2)),
            ("quotes", "grant: \"".to_owned() + &"\\\"".repeat((bytes - 8) / 2)),
            (
                "aliases",
                repeated(
                    &|n| match n {
                        1 => "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(),
                        n => format!("a{n}: &a{n} [{}]\n", format!("*a{}, ", n - 2 + usize::from(n > 2)).repeat(8)),
                    },
                    bytes,
                ),
            ),
            ("documents", "---\n".repeat(bytes / 4)),
            ("merges", "grant: x\n".to_owned() + &"<<: {}\n".repeat(bytes / 8)),
        ] {
            let started = std::time::Instant::now();
            let compiled = compile_texts(&[&text]);
            assert!(compiled.has_errors(), "{name}");
            // A hundredth of it is what it takes; a busy machine needs more.
            assert!(started.elapsed().as_secs() < 5, "{name}: {:?}", started.elapsed());
        }
    }
}
