//! Footguns: a grant that has one, which is found, and its repaired twin, which is clean.

use crate::common::issuer;
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
    // patterns and values that say nothing
    ("gitlab", "project_id: \"4242\"", "project_id: { glob: \"*\" }", "matches-anything"),
    ("gitlab", "project_id: \"4242\"", "project_id: { regex: \"[0-9]+\" }", "unbounded"),
    ("github", "environment: production", "environment: { regex: \"[^/]+\" }", "matches-anything"),
    (
        "kubernetes",
        "serviceaccount_uid: 00000053-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "serviceaccount_uid: { glob: \"*\" }",
        "mutable-name-without-id",
    ),
    (
        "terraform",
        "terraform_workspace_id: ws-mbsd5E3Ktt5Rg2Xm",
        "terraform_workspace_id: { glob: \"ws*\" }",
        "open-end",
    ),
    ("gitlab", "project_id: \"4242\"", "project_id: \"4242\"\n      pipeline_id: \"1579912345\"", "one-run-only"),
    (
        "circleci",
        "oidc.circleci.com/ssh-rerun: false",
        "oidc.circleci.com/ssh-rerun: false\n      oidc.circleci.com/workflow-id: 00000016-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "one-run-only",
    ),
    ("buildkite", "build_branch: main", "build_branch: main\n      build_number: 418", "one-run-only"),
    (
        "kubernetes",
        "namespace: ci",
        "namespace: ci\n      pod_uid: 00000052-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "one-run-only",
    ),
    ("kubernetes", "serviceaccount_name: deployer", "serviceaccount_name: default", "catch-all-value"),
    (
        "google",
        "sub: \"112010400000000710080\"",
        "sub: \"112010400000000710080\"\n      email: 739419398126-compute@developer.gserviceaccount.com",
        "catch-all-value",
    ),
    ("buildkite", "build_branch: main", "build_branch: main\n      \"agent_tag:queue\": deploy", "weak-claim"),
    ("semaphore", "ref: refs/heads/main", "sub127: org:acme:project:x\n      ref: refs/heads/main", "weak-claim"),
    (
        "jenkins",
        "sub: https://jenkins.acme.example/job/api/job/main/",
        "sub: https://jenkins.acme.example/job/api/job/main/\n      BRANCH_NAME: main",
        "weak-claim",
    ),
    // values that no token has
    ("github", "ref: refs/heads/main", "ref: main\n      ref_type: branch", "impossible-value"),
    ("github", "ref: refs/heads/main", "ref: refs/head/main", "impossible-value"),
    ("gitlab", "ref: main", "ref: refs/heads/main", "impossible-value"),
    ("buildkite", "build_branch: main", "build_branch: refs/heads/main", "impossible-value"),
    ("bitbucket", "branchName: main", "branchName: refs/heads/main", "impossible-value"),
    ("azure-devops", "rpo_ref: refs/heads/main", "rpo_ref: main", "impossible-value"),
    ("circleci", "vcs-ref: refs/heads/main", "vcs-ref: main", "impossible-value"),
    ("circleci", "vcs-origin: github.com/acme/api", "vcs-origin: https://github.com/acme/api", "impossible-value"),
    (
        "bitbucket",
        "repositoryUuid: \"{00000022-1a2b-4c3d-8e4f-5a6b7c8d9e0f}\"",
        "repositoryUuid: 00000022-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "impossible-value",
    ),
    (
        "terraform",
        "terraform_workspace_id: ws-mbsd5E3Ktt5Rg2Xm",
        "terraform_workspace_id: api-prod",
        "impossible-value",
    ),
    (
        "jenkins",
        "sub: https://jenkins.acme.example/job/api/job/main/",
        "sub: https://jenkins.acme.example/job/api/job/main",
        "impossible-value",
    ),
    ("github", "repository_id: \"772002\"", "repository_id: \"0772002\"", "impossible-value"),
    (
        "github",
        "repository_id: \"772002\"",
        "repository_id: \"772002\"\n      workflow_ref: acme/api/.github/workflows/deploy.yml@main",
        "impossible-value",
    ),
    (
        "gitlab",
        "project_id: \"4242\"",
        "project_id: \"4242\"\n      sub: project_path:acme/api:ref:main",
        "impossible-value",
    ),
    ("spiffe", "sub: spiffe://acme.example/ci/deployer", "sub: acme.example/ci/deployer", "impossible-value"),
    ("gitlab", "pipeline_source: push", "pipeline_source: merge_request", "impossible-value"),
    ("github", "event_name: push", "event_name: workflow_call", "impossible-value"),
    // which code, said so that any code fits
    (
        "github",
        "ref: refs/heads/main\n      event_name: push\n      environment: production",
        "workflow_path: .github/workflows/deploy.yml\n      event_name: push",
        "no-ref-or-environment",
    ),
    (
        "github",
        "ref: refs/heads/main\n      event_name: push\n      environment: production",
        "workflow_ref: { glob: \"acme/api/.github/workflows/deploy.yml@refs/heads/*\" }\n      event_name: push",
        "no-ref-or-environment",
    ),
    (
        "github",
        "ref: refs/heads/main\n      event_name: push\n      environment: production",
        "sub: { glob: \"repo:acme/api:ref:refs/heads/*\" }\n      event_name: push",
        "no-ref-or-environment",
    ),
    (
        "gitlab",
        "ref: main\n      ref_type: branch\n      pipeline_source: push\n      environment: production\n      environment_protected: \"true\"\n",
        "pipeline_source: push\n      environment: production\n",
        "no-ref-or-environment",
    ),
    (
        "gitlab",
        "ref: main\n      ref_type: branch\n      pipeline_source: push\n      environment: production\n      environment_protected: \"true\"\n",
        "ci_config_path: gitlab.com/acme/api//.gitlab-ci.yml\n      pipeline_source: push\n",
        "no-ref-or-environment",
    ),
    (
        "github",
        "    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      ref: refs/heads/main\n      event_name: push\n      environment: production",
        "    when: claims.ref != \"refs/heads/dev\"\n    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      event_name: push",
        "no-ref-or-environment",
    ),
    (
        "github",
        "    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      ref: refs/heads/main\n      event_name: push\n      environment: production",
        "    when: claims.ref == \"refs/heads/main\" || claims.actor_id == \"583231\"\n    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      event_name: push",
        "no-ref-or-environment",
    ),
    (
        "github",
        "    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      ref: refs/heads/main\n      event_name: push\n      environment: production",
        "    when: has(claims.environment)\n    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      event_name: push",
        "no-ref-or-environment",
    ),
    ("github", "    match:", "    when: claims.run_attempt == \"1\" || true\n    match:", "idle-condition"),
    (
        "gitlab",
        "    match:",
        "    when: claims.ref == \"main\" || claims.ref != \"main\"\n    match:",
        "idle-condition",
    ),
    (
        "github",
        "ref: refs/heads/main\n      event_name: push\n      environment: production",
        "ref: { regex: \"refs/heads/[a-z]+\" }\n      event_name: push",
        "any-ref",
    ),
    ("github", "ref: refs/heads/main", "ref: refs/pull/57/merge", "pull-request-ref"),
    ("github", "ref: refs/heads/main", "sub: repo:acme/api:pull_request", "review-event"),
    ("github", "ref: refs/heads/main", "sub: { glob: \"repo:acme/api:*\" }", "review-event"),
    (
        "gitlab",
        "ref_type: branch",
        "ref_type: branch\n      ref_protected: [\"true\", \"false\"]",
        "asks-for-unprotected",
    ),
    ("gitlab", "environment_protected: \"true\"", "environment_protected: \"false\"", "asks-for-unprotected"),
    ("terraform", "terraform_run_phase: apply", "terraform_run_phase: [plan, apply]", "phases-together"),
    (
        "terraform",
        "terraform_run_phase: apply",
        "sub: { glob: \"organization:acme:project:platform:workspace:api-prod:run_phase:*\" }",
        "phases-together",
    ),
    ("github", "event_name: push", "event_name: [push, gollum]", "dangerous-event"),
    (
        "github",
        "    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      ref: refs/heads/main\n      event_name: push\n      environment: production",
        "    when: claims.ref.startsWith(\"refs/heads/\") && size(claims.sha) == 40\n    match:\n      repository_owner_id: \"1001\"\n      repository_id: \"772002\"\n      event_name: push",
        "no-ref-or-environment",
    ),
    (
        "circleci",
        "    match:",
        "    when: claims[\"oidc.circleci.com/vcs-ref\"].endsWith(\"/main\")\n    match:",
        "open-condition",
    ),
    ("bitbucket", "branchName: main", "branchName: { glob: \"*main\" }", "open-end"),
    ("kubernetes", "namespace: ci", "namespace: default", "catch-all-value"),
    // whose job, said so that somebody else's fits
    (
        "circleci",
        "vcs-origin: github.com/acme/api",
        "vcs-origin: { glob: \"github.com/*/api\" }",
        "wildcard-before-tenant",
    ),
    (
        "gitlab",
        "project_id: \"4242\"",
        "project_id: \"4242\"\n      ci_config_ref_uri: { glob: \"gitlab.com/*/api//.gitlab-ci.yml@refs/heads/main\" }",
        "wildcard-before-tenant",
    ),
    (
        "kubernetes",
        "namespace: ci\n      serviceaccount_name: deployer\n      serviceaccount_uid: 00000053-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "sub: { glob: \"system:serviceaccount:*:deployer\" }",
        "wildcard-before-tenant",
    ),
    (
        "kubernetes",
        "namespace: ci\n      serviceaccount_name: deployer\n      serviceaccount_uid: 00000053-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "sub: system:serviceaccount:ci:default",
        "catch-all-value",
    ),
    (
        "spiffe",
        "sub: spiffe://acme.example/ci/deployer",
        "sub: { glob: \"spiffe://acme.example/*\" }",
        "wildcard-before-tenant",
    ),
    (
        "spiffe",
        "sub: spiffe://acme.example/ci/deployer",
        "sub: { glob: \"spiffe://acme.example/ns/*/sa/deployer\" }",
        "wildcard-before-tenant",
    ),
    (
        "jenkins",
        "sub: https://jenkins.acme.example/job/api/job/main/",
        "sub: { glob: \"https://jenkins.acme.example/job/*/\" }",
        "wildcard-before-tenant",
    ),
    ("azure-devops", "def_id: \"17\"", "sub: { glob: \"sc://acme/*/deploy-prod\" }", "wildcard-before-tenant"),
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
    let mut missed = Vec::new();
    for (ci, from, to, expected) in FOOTGUNS {
        let found = codes(&bad(ci, from, to), &[]);
        if !found.contains(expected) {
            missed.push(format!("{ci}: {to:?}: expected {expected}, found {found:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Well-written grants of other kinds: CI, what is replaced in its clean grant, and by what.
const GOOD: &[(&str, &str, &str)] = &[
    ("github", "ref: refs/heads/main", "ref: { glob: \"refs/tags/v*\" }\n      ref_type: tag"),
    ("github", "      ref: refs/heads/main\n", ""),
    ("github", "ref: refs/heads/main", "ref: { glob: \"refs/heads/release/*\" }"),
    ("github", "event_name: push", "event_name: [push, workflow_dispatch, schedule, release, merge_group]"),
    ("github", "ref: refs/heads/main", "workflow_ref: { glob: \"acme/api/.github/workflows/*.yml@refs/heads/main\" }"),
    (
        "github",
        "ref: refs/heads/main",
        "workflow_path: .github/workflows/deploy.yml\n      workflow_at: refs/heads/main",
    ),
    (
        "github",
        "ref: refs/heads/main",
        "job_workflow_ref: acme/ci/.github/workflows/deploy.yml@refs/tags/v1.2.0\n      ref: refs/heads/main",
    ),
    ("github", "ref: refs/heads/main", "sub: repo:acme@1001/api@772002:environment:production"),
    ("github", "    match:", "    when: claims.run_attempt == \"1\" || claims.actor_id == \"583231\"\n    match:"),
    (
        "gitlab",
        "ref: main\n      ref_type: branch",
        "ref: { regex: 'v[0-9]+\\.[0-9]+\\.[0-9]+' }\n      ref_type: tag\n      ref_protected: \"true\"",
    ),
    ("gitlab", "pipeline_source: push", "pipeline_source: [push, web, schedule, pipeline]"),
    ("gitlab", "ref: main", "ci_config_ref_uri: gitlab.com/acme/api//.gitlab-ci.yml@refs/heads/main\n      ref: main"),
    ("circleci", "vcs-ref: refs/heads/main", "vcs-ref: { glob: \"refs/heads/release/*\" }"),
    (
        "buildkite",
        "build_branch: main",
        "build_branch: main\n      build_source: [webhook, schedule]\n      cluster_id: 00000006-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
    ),
    (
        "bitbucket",
        "branchName: main",
        "deploymentEnvironmentUuid: \"{00000025-1a2b-4c3d-8e4f-5a6b7c8d9e0f}\"\n      branchName: main",
    ),
    (
        "azure-devops",
        "def_id: \"17\"",
        "sub: sc://acme/platform/deploy-prod\n      rpo_id: 00000033-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
    ),
    ("terraform", "terraform_run_phase: apply", "terraform_run_phase: plan"),
    (
        "terraform",
        "terraform_run_phase: apply",
        "terraform_run_phase: apply\n      terraform_workspace_name: api-prod\n      terraform_project_id: prj-vegSA59s1XPwMr2t",
    ),
    ("codefresh", "scm_ref: main", "scm_repo_url: https://github.com/acme/api\n      scm_ref: main"),
    (
        "semaphore",
        "ref: refs/heads/main\n      ref_type: branch",
        "ref: { glob: \"refs/tags/v*\" }\n      ref_type: tag",
    ),
    ("forgejo", "event_name: push", "event_name: [push, schedule]"),
    (
        "kubernetes",
        "namespace: ci\n",
        "namespace: ci\n      node_name: { regex: 'ci-[0-9]+' }\n      node_uid: 00000051-1a2b-4c3d-8e4f-5a6b7c8d9e0f\n",
    ),
    ("kubernetes", "namespace: ci\n      serviceaccount_name: deployer", "sub: system:serviceaccount:ci:deployer"),
    ("spiffe", "sub: spiffe://acme.example/ci/deployer", "sub: { glob: \"spiffe://acme.example/ns/ci/sa/*\" }"),
    (
        "jenkins",
        "sub: https://jenkins.acme.example/job/api/job/main/",
        "sub: { glob: \"https://jenkins.acme.example/job/api/job/release-*/\" }",
    ),
    (
        "google",
        "sub: \"112010400000000710080\"",
        "sub: \"112010400000000710080\"\n      email: deployer@acme-ci.iam.gserviceaccount.com\n      email_verified: true",
    ),
];

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
