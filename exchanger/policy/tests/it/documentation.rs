//! The examples in the documentation do what it says.

use crate::common::issuer;
use jobpass_policy::{AnyCredential, Source, cases, compile, lint};

const AT: i64 = 1_795_300_000; // 2026-11-21

#[test]
fn examples_compile_lint_clean_and_pass_their_tests() {
    let text = include_str!("../../../../docs/policies.md");
    let blocks: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let issuers = [issuer("github"), issuer("gitlab")];
    let mut cases_run = 0;
    for (n, block) in blocks.iter().enumerate() {
        let path = match block.lines().next() {
            Some("# guards.yaml") => "guards.yaml".to_owned(),
            Some("# scope.yaml") => "scope.yaml".to_owned(),
            _ => format!("{n}.yaml"),
        };
        let compiled = compile(&[Source { path, text: (*block).to_owned() }], &issuers, &AnyCredential);
        let found = lint::lint(&compiled, AT);
        assert!(found.is_empty(), "{block}\n{found:?}");
        let report = cases::run(&compiled.set);
        assert!(report.passed(), "{:?}", report.results);
        cases_run += report.results.len();
    }
    assert_eq!((blocks.len(), cases_run), (6, 9));
}
