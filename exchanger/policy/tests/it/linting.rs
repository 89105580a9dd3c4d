//! Footguns: a grant that has one, which is found, and its repaired twin, which is clean.

use crate::common::issuer;
use jobpass_policy::{AnyCredential, Compiled, Profile, Source, cases, compile, lint, lint::RULES, report};
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

/// CI, what is replaced in its clean grant, by what, and what is found then (among other things).
const FOOTGUNS: &[(&str, &str, &str, &str)] = &[
    ("github", "      repository_owner_id: \"1001\"\n", "", "tenant-pin"),
    ("gitlab", "      namespace_id: \"9001\"\n", "", "tenant-pin"),
    ("circleci", "org-id: ", "org-id: { regex: \".*\" } # ", "tenant-pin"),
    ("terraform", "      terraform_organization_id: org-GRNbCjYNpBB6NEBw\n", "", "tenant-pin"),
    ("google", "sub: \"112010400000000710080\"", "email: deployer@acme-ci.iam.gserviceaccount.com", "tenant-pin"),
    ("github", "repository_id: \"772002\"", "repository: { glob: \"*/api\" }", "wildcard-before-tenant"),
    ("github", "repository_id: \"772002\"", "sub: { glob: \"repo:*\" }", "wildcard-before-tenant"),
    ("gitlab", "project_id: \"4242\"", "project_path: { regex: \".*/api\" }", "wildcard-before-tenant"),
    (
        "terraform",
        "terraform_workspace_id: ws-mbsd5E3Ktt5Rg2Xm",
        "sub: { glob: \"organization:*:run_phase:apply\" }",
        "wildcard-before-tenant",
    ),
    ("github", "repository_id: \"772002\"", "repository: acme/api", "mutable-name-without-id"),
    ("gitlab", "project_id: \"4242\"", "project_path: acme/api", "mutable-name-without-id"),
    ("buildkite", "pipeline_id: 00000002-1a2b-4c3d-8e4f-5a6b7c8d9e0f", "pipeline_slug: api", "mutable-name-without-id"),
    (
        "terraform",
        "terraform_workspace_id: ws-mbsd5E3Ktt5Rg2Xm",
        "terraform_workspace_name: api-prod",
        "mutable-name-without-id",
    ),
    ("kubernetes", "      serviceaccount_uid: 00000053-1a2b-4c3d-8e4f-5a6b7c8d9e0f\n", "", "mutable-name-without-id"),
    (
        "kubernetes",
        "namespace: ci\n      serviceaccount_name: deployer\n      serviceaccount_uid: 00000053-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "sub: system:serviceaccount:ci:deployer",
        "mutable-name-without-id",
    ),
    ("github", "repository_id: \"772002\"", "sub: repo:acme/api:ref:refs/heads/main", "sub-without-id"),
    ("gitlab", "project_id: \"4242\"", "sub: project_path:acme/api:ref_type:branch:ref:main", "sub-without-id"),
    ("github", "      repository_id: \"772002\"\n", "", "unbounded"),
    ("gitlab", "      project_id: \"4242\"\n", "", "unbounded"),
    ("circleci", "      oidc.circleci.com/vcs-origin: github.com/acme/api\n", "", "unbounded"),
    ("circleci", "      oidc.circleci.com/ssh-rerun: false\n", "", "unbounded"),
    ("terraform", "      terraform_run_phase: apply\n", "", "unbounded"),
    ("semaphore", "      job_type: pipeline_job\n", "", "unbounded"),
    ("codefresh", "      scm_pull_request_target_branch: { absent: true }\n", "", "unbounded"),
    (
        "kubernetes",
        "      serviceaccount_name: deployer\n      serviceaccount_uid: 00000053-1a2b-4c3d-8e4f-5a6b7c8d9e0f\n",
        "",
        "unbounded",
    ),
    ("jenkins", "sub: https://jenkins.acme.example/job/api/job/main/", "build_number: 1", "unbounded"),
    ("github", "repository_id: \"772002\"", "repository: Acme/API", "mixed-case"),
    (
        "github",
        "      ref: refs/heads/main\n      event_name: push\n      environment: production",
        "      actor: octocat\n      event_name: push",
        "person-instead-of-code",
    ),
    (
        "github",
        "      ref: refs/heads/main\n      event_name: push\n      environment: production\n",
        "      event_name: push\n",
        "no-ref-or-environment",
    ),
    (
        "gitlab",
        "      ref: main\n      ref_type: branch\n      pipeline_source: push\n      environment: production\n      environment_protected: \"true\"\n",
        "      pipeline_source: push\n",
        "no-ref-or-environment",
    ),
    ("bitbucket", "      branchName: main\n", "", "no-ref-or-environment"),
    ("buildkite", "      build_branch: main\n      build_tag: { absent: true }\n", "", "no-ref-or-environment"),
    ("azure-devops", "      rpo_ref: refs/heads/main\n", "", "no-ref-or-environment"),
    (
        "github",
        "ref: refs/heads/main\n      event_name: push\n      environment: production",
        "ref: { glob: \"refs/heads/*\" }\n      event_name: push",
        "any-ref",
    ),
    ("circleci", "vcs-ref: refs/heads/main", "vcs-ref: { regex: \"refs/heads/.+\" }", "any-ref"),
    ("gitlab", "      ref_type: branch\n", "", "ref-without-type"),
    ("github", "ref: refs/heads/main", "ref: { glob: \"*/*/v1\" }", "ref-without-type"),
    ("buildkite", "      build_tag: { absent: true }\n", "", "ref-without-type"),
    ("codefresh", "scm_ref: main", "scm_ref: release", "ref-type-unknown"),
    ("github", "ref: refs/heads/main", "ref: { glob: \"refs/*/*/*\" }", "pull-request-ref"),
    ("github", "ref: refs/heads/main", "base_ref: main", "pull-request-claim"),
    ("github", "event_name: push", "event_name: [push, pull_request_target]", "dangerous-event"),
    ("github", "event_name: push", "event_name: { glob: \"*\" }", "dangerous-event"),
    ("forgejo", "event_name: push", "event_name: pull_request_target", "dangerous-event"),
    ("github", "event_name: push", "event_name: pull_request", "review-event"),
    ("gitlab", "pipeline_source: push", "pipeline_source: merge_request_event", "review-event"),
    ("semaphore", "ref_type: branch", "ref_type: [branch, pull-request]", "review-event"),
    ("github", "      event_name: push\n", "", "event-not-named"),
    ("gitlab", "      pipeline_source: push\n", "", "event-not-named"),
    ("gitlab", "pipeline_source: push", "pipeline_source: merge_request_event", "fork-merge-request"),
    ("gitlab", "      pipeline_source: push\n", "", "fork-merge-request"),
    (
        "github",
        "repository_id: \"772002\"",
        "repository_id: \"772002\"\n      job_workflow_ref: { glob: \"acme/ci/.github/workflows/deploy.yml@*\" }",
        "reusable-workflow-unpinned",
    ),
    (
        "github",
        "repository_id: \"772002\"",
        "repository_id: \"772002\"\n      job_workflow_path: .github/workflows/deploy.yml",
        "reusable-workflow-unpinned",
    ),
    ("github", "repository_id: \"772002\"", "repository_id: \"772002\"\n      workflow: deploy", "free-text-claim"),
    ("github", "      runner_environment: github-hosted\n", "", "runner-not-named"),
    ("gitlab", "      runner_environment: gitlab-hosted\n", "", "runner-not-named"),
    (
        "github",
        "runner_environment: github-hosted",
        "runner_environment: [github-hosted, self-hosted]",
        "self-hosted-production",
    ),
    ("gitlab", "      environment_protected: \"true\"\n", "", "environment-unprotected"),
    ("circleci", "ssh-rerun: false", "ssh-rerun: true", "refused-value"),
    ("semaphore", "job_type: pipeline_job", "job_type: [pipeline_job, debug_job]", "refused-value"),
    (
        "github",
        "ref: refs/heads/main",
        "ref: { regex: \"refs/heads/main|refs/heads/dev\" }",
        "regex-top-level-alternation",
    ),
    (
        "spiffe",
        "sub: spiffe://acme.example/ci/deployer",
        "sub: { regex: \"spiffe://acme\\\\.example/ci/.*\" }",
        "regex-wildcard",
    ),
    (
        "jenkins",
        "sub: https://jenkins.acme.example/job/api/job/main/",
        "sub: { regex: \"https://jenkins.acme.example/job/api/job/(main|dev)/\" }",
        "regex-any-character",
    ),
    ("github", "ref: refs/heads/main", "ref: { regex: \"(?i)refs/heads/main\" }", "regex-case-insensitive"),
    ("github", "ref: refs/heads/main", "ref: { glob: \"refs/heads/main*\" }", "open-end"),
    ("circleci", "vcs-ref: refs/heads/main", "vcs-ref: { regex: \"refs/heads/main.*\" }", "open-end"),
    ("github", "    match:", "    when: claims.ref.startsWith(\"refs/heads/main\")\n    match:", "open-condition"),
    ("gitlab", "    match:", "    when: claims.project_path.contains(\"acme\")\n    match:", "open-condition"),
    ("github", "    match:", "    when: claims.actor != \"dependabot[bot]\"\n    match:", "negative-condition"),
    ("github", "ref: refs/heads/main", "ref: { glob: refs/heads/main }", "pattern-is-exact"),
    ("github", "repository_id: \"772002\"", "repository_id: acme/api", "impossible-value"),
    ("github", "runner_environment: github-hosted", "runner_environment: github_hosted", "impossible-value"),
    ("gitlab", "ref_type: branch", "ref_type: branches", "impossible-value"),
    (
        "bitbucket",
        "repositoryUuid: \"{00000022-1a2b-4c3d-8e4f-5a6b7c8d9e0f}\"",
        "repositoryUuid: acme/api",
        "impossible-value",
    ),
    ("terraform", "terraform_run_phase: apply", "terraform_run_phase: Apply", "impossible-value"),
    ("github", "repository_id: \"772002\"", "repository_id: { absent: true }", "never-absent"),
    ("github", "ref: refs/heads/main", "ref: refs/heads/main\n      ref_type: tag", "contradiction"),
    ("github", "environment: production", "environment: \"\"", "empty-value"),
    ("github", "environment: production", "environment: \"production \"", "odd-characters"),
    ("gitlab", "ref: main", "ref: \"m\u{430}in\"", "odd-characters"),
    ("github", "environment: production", "environment: <environment>", "placeholder"),
    ("codefresh", "scm_ref: main", "scm_ref: \"${BRANCH}\"", "placeholder"),
    (
        "github",
        "tests:",
        "  - name: wider\n    issuer: github\n    match: { repository_owner_id: \"1001\" }\ntests:",
        "shadowed-rule",
    ),
    (
        "spiffe",
        "tests:",
        "  - name: wider\n    issuer: spiffe\n    match: { sub: { glob: \"spiffe://acme.example/ci/*\" } }\ntests:",
        "shadowed-rule",
    ),
    ("github", "ttl: 15m", "ttl: 12h", "ttl-too-long"),
    ("github", "ttl: 15m", "ttl: 15m\nmax_lifetime: 7d", "lifetime-too-long"),
    ("github", "review_by: 2027-06-30\n", "", "review-missing"),
    ("github", "review_by: 2027-06-30", "review_by: 2026-11-01", "review-past"),
    ("github", "review_by: 2027-06-30", "review_by: 2032-11-01", "review-far"),
    ("github", "description: Deploys the API.\n", "", "description-missing"),
    ("github", "owner: team-platform@acme.example", "owner: alice", "owner-unreachable"),
    ("github", "ttl: 15m", "ttl: 15m\ndisclose: full", "disclose-full"),
    ("github", "tests:", "tests: []", "no-tests"),
    ("github", "ttl: 15m", "ttl: 15m\nallow: [{ lint: no-test, reason: r }]", "unknown-allow"),
    ("github", "ttl: 15m", "ttl: 15m\nallow: [{ lint: no-tests, reason: r }]", "unused-allow"),
    ("github", "ttl: 15m", "ttl: 15m\nallow: [{ lint: no-tests, reason: \"\" }]", "allow-reason"),
    ("github", "owner: team-platform@acme.example\n", "", "syntax"),
    ("gitlab", "pipeline_source: push", "pipelin_source: push", "unknown-claim"),
];

/// A clean grant with something replaced. `tests: []` goes with all that comes after.
fn bad(ci: &str, from: &str, to: &str) -> String {
    let twin = clean(ci);
    assert!(twin.contains(from), "{ci}: {from}");
    let bad = twin.replacen(from, to, 1);
    bad.split_inclusive("tests: []").next().unwrap_or(&bad).to_owned()
}

#[test]
fn footguns_are_found() {
    for (ci, from, to, expected) in FOOTGUNS {
        let found = codes(&bad(ci, from, to), &[]);
        assert!(found.contains(expected), "{ci}: {to:?}: expected {expected}, found {found:?}");
    }
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
