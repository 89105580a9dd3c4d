//! Footguns: a grant that has one, which is found, and its repaired twin, which is clean.

mod changes;

use crate::common::issuer;
use changes::{FOOTGUNS, GOOD};
use jobpass_policy::{
    AnyCredential, Compiled, Issuer, Profile, Severity, Source, cases, compile, lint, lint::RULES, report,
};
use std::collections::BTreeSet;

const AT: i64 = 1_795_300_000; // 2026-11-21

fn clean(ci: &str) -> &'static str {
    match ci {
        "github" => include_str!("lint/github.yaml"),
        "gitlab" => include_str!("lint/gitlab.yaml"),
        "buildkite" => include_str!("lint/buildkite.yaml"),
        "circleci" => include_str!("lint/circleci.yaml"),
        "bitbucket" => include_str!("lint/bitbucket.yaml"),
        "azure-devops" => include_str!("lint/azure-devops.yaml"),
        "terraform" => include_str!("lint/terraform.yaml"),
        "jenkins" => include_str!("lint/jenkins.yaml"),
        "codefresh" => include_str!("lint/codefresh.yaml"),
        "semaphore" => include_str!("lint/semaphore.yaml"),
        "forgejo" => include_str!("lint/forgejo.yaml"),
        "kubernetes" => include_str!("lint/kubernetes.yaml"),
        "spiffe" => include_str!("lint/spiffe.yaml"),
        "google" => include_str!("lint/google.yaml"),
        other => panic!("no grant for {other}"),
    }
}

fn compiled(text: &str, tenants: &[&str]) -> Compiled {
    let mut issuers: Vec<_> = Profile::all().map(|profile| issuer(profile.name())).collect();
    for issuer in &mut issuers {
        issuer.tenants = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
    }
    compile(&[Source { path: "grants/x.yaml".to_owned(), text: text.to_owned() }], &issuers, &AnyCredential)
}

fn codes(text: &str, tenants: &[&str]) -> Vec<&'static str> {
    lint::lint(&compiled(text, tenants), AT).iter().map(|diagnostic| diagnostic.code).collect()
}

#[test]
fn repaired_twins_are_clean() {
    for profile in Profile::all() {
        let text = clean(profile.name());
        let expected: &[&str] = if profile.name() == "codefresh" { &["ref-type-unknown"] } else { &[] };
        let compiled = compiled(text, &[]);
        let found = lint::lint(&compiled, AT);
        assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), expected, "{}: {found:?}", profile.name());
        assert!(cases::run(&compiled.set).passed(), "{}", profile.name());
    }
}

/// A clean grant with something replaced. `tests: []` goes with all that comes after.
fn bad(ci: &str, from: &str, to: &str) -> String {
    let twin = clean(ci);
    assert!(twin.contains(from), "{ci}: {from}");
    let bad = twin.replacen(from, to, 1);
    bad.split_inclusive("tests: []").next().unwrap_or(&bad).to_owned()
}

#[test]
fn footguns_are_found() {
    let mut missed = Vec::new();
    for (ci, from, to, expected) in FOOTGUNS {
        let found = codes(&bad(ci, from, to), &[]);
        if !found.contains(expected) {
            missed.push(format!("{ci}: {to:?}: expected {expected}, found {found:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn well_written_grants_are_left_alone() {
    let mut said = Vec::new();
    for (ci, from, to) in GOOD {
        let mut found = lint::lint(&compiled(&bad(ci, from, to), &[]), AT);
        found.retain(|diagnostic| diagnostic.severity >= Severity::Warning);
        said.extend(found.iter().map(|diagnostic| format!("{ci}: {to:?}: {diagnostic}")));
    }
    assert!(said.is_empty(), "{}", said.join("\n"));
}

/// The grants of a file of rules, and what the file says is found in each.
fn grants_of<'a>(name: &'a str, rules: &'a str) -> impl Iterator<Item = (String, &'a str)> {
    rules.split("\n- ").skip(1).map(move |rule| {
        let (found, rule) = match rule.strip_prefix("find: ") {
            Some(rule) => rule.split_once("\n  ").expect("a rule follows"),
            None => ("", rule),
        };
        let rule = rule.replace('\n', "\n  ");
        let text = format!(
            "grant: {name}\nowner: team-platform@acme.example\nreview_by: 2027-06-30\ndescription: Deploys.\nbackend: \
             x\nttl: 15m\nrules:\n  - name: rule\n    {rule}\n"
        );
        (text, found)
    })
}

#[test]
fn permissive_rules_are_found_however_they_are_written() {
    let mut missed = Vec::new();
    for (text, expected) in grants_of("deploy-prod", include_str!("lint/permissive.yaml")) {
        let found = codes(&text, &[]);
        if !found.contains(&expected) {
            missed.push(format!("expected {expected}, found {found:?} in\n{text}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn sound_rules_are_left_alone_however_they_are_written() {
    let mut said = Vec::new();
    for (text, _) in grants_of("deploy", include_str!("lint/sound.yaml")) {
        let mut found = lint::lint(&compiled(&text, &[]), AT);
        found.retain(|diagnostic| diagnostic.severity >= Severity::Warning);
        said.extend(found.iter().map(|diagnostic| format!("{diagnostic} in\n{text}")));
    }
    assert!(said.is_empty(), "{}", said.join("\n"));
}

#[test]
fn what_two_rules_give_apart_is_together_in_their_grant() {
    let (one, two) = ("terraform_run_phase: apply", "terraform_run_phase: plan");
    let text = clean("terraform");
    let (rules, rest) = text.split_once("tests:").expect("tests");
    let (head, rule) = rules.split_once("rules:\n").expect("rules");
    let second = rule.replacen("name: ", "name: second-", 1).replacen(one, two, 1);
    assert!(codes(&format!("{head}rules:\n{rule}{second}tests:{rest}"), &[]).contains(&"phases-together"));
}

/// A self-managed GitLab has no machines but its own.
#[test]
fn machines_that_there_are_none_of_are_not_asked_for() {
    let text = clean("gitlab").replacen("      runner_environment: gitlab-hosted\n", "", 1);
    let mut gitlab = issuer("gitlab");
    let found = |gitlab: &Issuer| {
        let source = Source { path: "x.yaml".to_owned(), text: text.clone() };
        let compiled = compile(&[source], std::slice::from_ref(gitlab), &AnyCredential);
        lint::lint(&compiled, AT).iter().map(|diagnostic| diagnostic.code).collect::<Vec<_>>()
    };
    assert_eq!(found(&gitlab), ["runner-not-named"]);
    gitlab = issuer_at(&gitlab, "https://gitlab.acme.example");
    assert_eq!(found(&gitlab), [""; 0]);
}

fn issuer_at(issuer: &Issuer, url: &str) -> Issuer {
    Issuer { url: url.to_owned(), shared: issuer.profile.is_shared(url), ..issuer.clone() }
}

#[test]
fn findings_are_silenced_with_a_reason_only() {
    let bad = clean("github").replacen("ttl: 15m", "ttl: 12h", 1);
    let allow = "allow: [{ lint: ttl-too-long, reason: the database copy takes eleven hours }]\n";
    assert_eq!(codes(&bad, &[]), ["ttl-too-long"]);
    assert_eq!(codes(&format!("{allow}{bad}"), &[]), [""; 0]);
    let in_rule = clean("github").replacen("event_name: push", "event_name: pull_request", 1);
    let allow = "    allow: [{ lint: review-event, reason: previews only }]\n    match:";
    assert_eq!(codes(&in_rule, &[]), ["review-event"]);
    assert_eq!(codes(&in_rule.replacen("    match:", allow, 1), &[]), [""; 0]);
}

#[test]
fn a_tenant_may_be_pinned_by_the_configuration() {
    assert_eq!(codes(&bad_tenant(), &["1001"]), ["tenant-by-config-only"]);
}

fn bad_tenant() -> String {
    bad("github", "      repository_owner_id: \"1001\"\n", "")
}

fn bad_caller() -> String {
    bad(
        "github",
        "      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n",
        "      job_workflow_ref: acme/ci/.github/workflows/deploy.yml@refs/heads/main\n",
    )
}

#[test]
fn a_reusable_workflow_has_a_caller() {
    assert!(codes(&bad_caller(), &["1001"]).contains(&"reusable-workflow-without-caller"));
}

#[test]
fn every_rule_has_a_footgun_and_a_section_in_the_documentation() {
    let tried: BTreeSet<_> = (FOOTGUNS.iter().map(|footgun| footgun.3))
        .chain(["tenant-by-config-only", "reusable-workflow-without-caller"])
        .collect();
    let docs = include_str!("../../../../docs/lint.md");
    for rule in RULES {
        assert!(tried.contains(rule.id), "no footgun for {}", rule.id);
        assert!(docs.contains(&format!("\n## {}\n", rule.id)), "docs/lint.md has no section {}", rule.id);
    }
}

/// Every rule's finding as it is shown, by the first grant that has it.
#[test]
fn every_finding_is_shown() {
    let mut out = String::new();
    for rule in RULES {
        let bad = FOOTGUNS.iter().find(|footgun| footgun.3 == rule.id).map(|(ci, from, to, _)| bad(ci, from, to));
        let (bad, tenants) = match rule.id {
            "tenant-by-config-only" => (bad_tenant(), &["1001"][..]),
            "reusable-workflow-without-caller" => (bad_caller(), &["1001"][..]),
            id => (bad.unwrap_or_else(|| panic!("no footgun for {id}")), &[][..]),
        };
        let found = lint::lint(&compiled(&bad, tenants), AT);
        let found = found.iter().find(|diagnostic| diagnostic.code == rule.id);
        let found = found.unwrap_or_else(|| panic!("{} is not found", rule.id));
        out += &found.render(false);
        out += "\n";
    }
    insta::assert_snapshot!("findings", out);
}

#[test]
fn other_programs_read_the_findings() {
    let text = clean("github").replacen("event_name: push", "event_name: pull_request_target", 1);
    let found = lint::lint(&compiled(&text, &[]), AT);
    let annotations = report::github(&found);
    assert!(
        annotations.starts_with("::error file=grants/x.yaml,line=14,col=7,title=dangerous-event::rule main: "),
        "{annotations}"
    );
    assert_eq!(annotations.lines().count(), found.len());
    let sarif = report::sarif(&found);
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "dangerous-event");
    assert_eq!(sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"], 14);
}
