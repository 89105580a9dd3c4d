//! Tests of policies are run, counted, and shown to notice what they should.

use crate::common::{DEPLOY, compile_texts};
use jobpass_policy::{Source, cases::Suite, schema::schemas};

const MORE: &str = "
grant: deploy-prod
tests:
  - name: a branch
    claims: { from: github/environment, ref: refs/heads/x, ref_type: tag }
    expect: deny
    because: { main-to-production: [ref, ref_type] }
  - name: another repository
    claims: { from: github/environment, repository_id: 5 }
    expect: deny
  - name: an own machine
    claims: { from: github/environment, runner_environment: self-hosted }
    expect: deny
  - name: another workflow
    claims: { from: github/environment, workflow_ref: acme/api/.github/workflows/x.sh@refs/heads/main }
    expect: deny
";

fn cases_file(text: &str) -> [Source; 1] {
    [Source { path: "deploy.cases.yaml".to_owned(), text: text.to_owned() }]
}

#[test]
fn cases_may_lie_in_a_file_of_their_own() {
    let set = compile_texts(&[DEPLOY]).set;
    let mut suite = Suite::new(&set);
    assert!(suite.add(&cases_file(MORE)).is_empty());
    let report = suite.run();
    assert_eq!(report.results.len(), 8);
    assert!(report.passed(), "{:?}", report.results);
    for (from, to, expected) in
        [("grant: deploy-prod", "grant: deploy-pord", "unknown-grant"), ("tests:", "test:", "syntax")]
    {
        let found = suite.add(&cases_file(&MORE.replacen(from, to, 1)));
        assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn what_no_case_exercises_is_listed() {
    let set = compile_texts(&[DEPLOY]).set;
    let mut suite = Suite::new(&set);
    let missed = |suite: &Suite<'_>| suite.coverage().missed.into_iter().map(|missed| missed.what).collect::<Vec<_>>();
    assert_eq!(suite.coverage().all, 9);
    assert_eq!(
        missed(&suite),
        ["`repository_id` fails in no case", "`ref_type` fails in no case", "`runner_environment` fails in no case",]
    );
    assert!(suite.add(&cases_file(MORE)).is_empty());
    assert_eq!(missed(&suite), [""; 0]);
}

#[test]
fn changes_that_no_case_notices_are_listed() {
    let set = compile_texts(&[DEPLOY]).set;
    let mut suite = Suite::new(&set);
    let survivors = |suite: &Suite<'_>| suite.mutants().into_iter().map(|missed| missed.what).collect::<Vec<_>>();
    let before = survivors(&suite);
    assert!(before.contains(&"without `repository_id`".to_owned()), "{before:?}");
    assert!(!before.contains(&"without `repository_owner_id`".to_owned()), "{before:?}");
    assert!(suite.add(&cases_file(MORE)).is_empty());
    let after = survivors(&suite);
    assert_eq!(after, [""; 0]);
}

#[test]
fn results_are_written_for_junit() {
    let text = DEPLOY.replacen("a GitLab job gets nothing", "a \\\"GitLab\\\" <job>", 1).replacen(
        "    claims: { from: gitlab/branch }\n    expect: deny",
        "    claims: { from: gitlab/branch }\n    expect: permit",
        1,
    );
    let text = text.replacen("name: a \\\"GitLab\\\" <job>", "name: \"a \\\"GitLab\\\" <job>\"", 1);
    let set = compile_texts(&[&text]).set;
    let xml = Suite::new(&set).run().junit();
    assert!(xml.contains("<testsuite name=\"deploy-prod\" tests=\"4\" failures=\"1\">"), "{xml}");
    assert!(xml.contains("name=\"a &quot;GitLab&quot; &lt;job&gt;\">"), "{xml}");
    assert!(xml.contains("<failure message="), "{xml}");
}

#[test]
fn schemas_are_current() {
    for (name, schema) in schemas() {
        let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
        let kept = match name {
            "guards" => include_str!("../../../../docs/schemas/guards.json"),
            "scope" => include_str!("../../../../docs/schemas/scope.json"),
            "cases" => include_str!("../../../../docs/schemas/cases.json"),
            other => panic!("no schema is kept for {other}"),
        };
        assert!(kept == text, "docs/schemas/{name}.json is old: write it with `policy schema {name}`");
    }
}
