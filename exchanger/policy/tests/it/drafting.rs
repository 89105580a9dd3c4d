//! First grants: for every CI, from what its tokens say.

use crate::common::issuer;
use jobpass_policy::{
    AnyCredential, Claims, Issuer, Profile, Source,
    cases::Suite,
    compile,
    draft::{Draft, answer},
    fixtures::FIXTURES,
    lint::lint,
};
use std::collections::BTreeMap;

const AT: i64 = 1_795_300_000; // 2026-11-21

/// The grant that comes of a fixture's token, or the codes of what keeps it from being one.
fn written(issuer: &Issuer, payload: &str) -> Result<String, Vec<&'static str>> {
    let claims = Claims::parse(&issuer.profile, payload.as_bytes()).expect("claims");
    let asked = issuer.profile.first().iter().filter(|ask| !ask.absent);
    let answers: BTreeMap<_, _> = asked.filter_map(|ask| Some((ask.claim.clone(), answer(ask, &claims)?))).collect();
    let draft = Draft {
        grant: "deploy-prod",
        owner: "team-platform@acme.example",
        review_by: "2027-11-21",
        description: "Deploys the API: to production.",
        backend: "aws-prod",
        ttl: "15m",
        issuer,
        answers: &answers,
    };
    draft.write(AT).map_err(|found| found.iter().map(|diagnostic| diagnostic.code).collect())
}

#[test]
fn every_ci_s_first_grant_is_clean_and_tested_line_by_line() {
    for profile in Profile::all() {
        let issuer = issuer(profile.name());
        let prefix = format!("{}/", profile.name());
        let (name, payload) = FIXTURES.iter().find(|(name, _)| name.starts_with(&prefix)).expect("a fixture");
        let text = written(&issuer, payload).unwrap_or_else(|codes| panic!("{name}: {codes:?}"));
        let source = Source { path: "deploy-prod.yaml".to_owned(), text: text.clone() };
        let compiled = compile(&[source], &[issuer], &AnyCredential);
        let found = lint(&compiled, AT);
        let expected: &[&str] = if profile.name() == "codefresh" { &["ref-type-unknown"] } else { &[] };
        assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), expected, "{name}:\n{text}");
        let suite = Suite::new(&compiled.set);
        assert!(suite.run().passed(), "{name}:\n{text}");
        let unnoticed = suite.mutants();
        assert!(unnoticed.is_empty(), "{name}: {unnoticed:?}\n{text}");
        assert!(suite.coverage().missed.is_empty(), "{name}:\n{text}");
    }
}

#[test]
fn of_a_job_that_should_get_nothing_no_grant_is_made() {
    for (name, code) in [
        ("github/pull_request", "review-event"),
        ("gitlab/merge_request", "review-event"),
        ("circleci/ssh_rerun", "refused-value"),
        ("semaphore/debug", "refused-value"),
        ("semaphore/pull_request", "review-event"),
        ("forgejo/pull_request", "review-event"),
    ] {
        let (_, payload) = FIXTURES.iter().find(|(known, _)| *known == name).expect("a fixture");
        let issuer = issuer(name.split('/').next().expect("a profile"));
        let codes = written(&issuer, payload).expect_err(name);
        assert!(codes.contains(&code), "{name}: {codes:?}");
    }
}
