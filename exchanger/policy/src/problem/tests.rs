//! Every diagnostic as it is shown, each with the input that provokes it. The kinds are iterated, so that
//! none can be without one.

use super::*;
use crate::{
    AnyCredential, Claims, ClaimsError, CredentialSource, Diagnostic, FieldRules, GrantContext, Issuer, Profile,
    RenderError, Source, SpecCompiler, Template, TemplateError,
    cases::Suite,
    compile,
    condition::Condition,
    fixtures::fixture,
    pattern::{Glob, Matcher, WholeRegex},
    source::MAX_SOURCE_BYTES,
};
use jobpass_protocol::{BackendName, IssuerName};
use std::{any::Any, fmt::Write as _, sync::Arc};

const GRANT: &str = r#"grant: deploy
owner: team@acme.example
review_by: 2027-06-30
backend: aws
credential: { role: admin }
ttl: 15m
rules:
  - name: main
    issuer: github
    match:
      repository_owner_id: "1001"
      environment: production
tests:
  - name: a test
    claims: { from: github/environment }
    expect: permit
"#;

/// The code, what is replaced in the grant, by what, and a file beside it.
type Mistake = (&'static str, &'static str, &'static str, Option<(&'static str, &'static str)>);

const PROBLEMS: &[Mistake] = &[
    ("name", "grant: deploy", "grant: De_ploy", None),
    ("duplicate-grant", "", "", Some(("again.yaml", GRANT))),
    ("owner", "owner: team@acme.example", "owner: \" \"", None),
    ("duration", "ttl: 15m", "ttl: 15 minutes", None),
    ("max-lifetime", "ttl: 15m", "ttl: 15m\nmax_lifetime: 5m", None),
    ("date", "review_by: 2027-06-30", "review_by: 2027-06-31", None),
    ("scope", "ttl: 15m", "ttl: 15m\nscopes: [read all]", None),
    ("duplicate", "ttl: 15m", "ttl: 15m\nscopes: [read, read]", None),
    (
        "no-rules",
        "rules:\n  - name: main\n    issuer: github\n    match:\n      repository_owner_id: \"1001\"\n      environment: production\n",
        "rules: []\n",
        None,
    ),
    (
        "empty-rule",
        "    match:\n      repository_owner_id: \"1001\"\n      environment: production\n",
        "    match: {}\n",
        None,
    ),
    ("unknown-issuer", "issuer: github", "issuer: githab", None),
    ("unknown-claim", "environment: production", "enviroment: production", None),
    ("pattern", "environment: production", "environment: { glob: \"prod?\" }", None),
    ("unknown-operator", "environment: production", "environment: { regexp: prod }", None),
    ("operator-count", "environment: production", "environment: { glob: a*, regex: b }", None),
    ("null", "environment: production", "environment: ~", None),
    ("empty-list", "environment: production", "environment: []", None),
    ("operand", "environment: production", "environment: { glob: [a, b] }", None),
    ("tenant-pin", "      repository_owner_id: \"1001\"\n", "", None),
    ("unknown-fixture", "github/environment", "github/enviroment", None),
    (
        "case-issuer",
        "    claims: { from: github/environment }",
        "    issuer: gitlab\n    claims: { from: github/environment }",
        None,
    ),
    ("derived-claim", "{ from: github/environment }", "{ from: github/environment, workflow_path: x }", None),
    ("case-claims", "{ from: github/environment }", "{ ref: refs/heads/main }", None),
    ("unknown-rule", "expect: permit", "expect: permit\n    rule: mian", None),
    ("unknown-grant", "", "", Some(("x.cases.yaml", "grant: depoly\ntests: []\n"))),
    ("case-reason", "expect: permit", "expect: permit\n    because: { main: [environment] }", None),
    ("condition", "    match:", "    when: claims.run_attempt == 1\n    match:", None),
    (
        "moment",
        "",
        "",
        Some((
            "guards.yaml",
            "closed:\n  - { name: x, weekly: { days: [Funday], from: \"00:00\", until: \"24:00\" } }\n",
        )),
    ),
    ("window", "", "", Some(("guards.yaml", "closed:\n  - { name: x, from: 2026-12-24T00:00:00Z }\n"))),
    ("second-guards", "", "", Some(("team/guards.yaml", "deny_overdue_review: true\n"))),
    ("guard-issuer", "", "", Some(("guards.yaml", "issuers: [gitlab]\n"))),
    ("guard-pin", "", "", Some(("guards.yaml", "require:\n  - { issuer: github, pin: [repository_id] }\n"))),
    ("ceiling", "", "", Some(("guards.yaml", "ceilings:\n  - { ttl: 10m }\n"))),
    ("out-of-scope", "", "", Some(("scope.yaml", "owner: team@acme.example\nbackends: [pg]\n"))),
    ("allow-reason", "ttl: 15m", "ttl: 15m\nallow: [{ lint: no-tests, reason: \"\" }]", None),
];

/// What is said elsewhere than in [`Problem`].
const OTHERS: &[Mistake] = &[
    ("syntax", "backend: aws", "backed: aws", None),
    ("syntax", "backend: aws", " backend: aws", None),
    ("syntax", "backend: aws", "\tbackend: aws", None),
    ("syntax", "backend: aws", "backend aws", None),
    ("syntax", "backend: aws", "backend: \"aws", None),
    ("syntax", "backend: aws", "backend: [aws", None),
    ("syntax", "backend: aws", "backend: *aws", None),
    ("syntax", "backend: aws", "backend: aws: eu", None),
    ("syntax", "backend: aws", "backend:", None),
    ("syntax", "backend: aws", "backend: [aws]", None),
    ("syntax", "ttl: 15m", "ttl: 15m\nttl: 15m", None),
    ("syntax", "ttl: 15m", "ttl: 15m\nscopes: read", None),
    (
        "syntax",
        "match:\n      repository_owner_id: \"1001\"\n      environment",
        "match: 1001\n      # environment",
        None,
    ),
    ("too-long", "", "", Some(("long.yaml", ""))),
    ("case-failed", "github/environment", "github/push", None),
    ("case-failed", "expect: permit", "expect: deny", None),
    (
        "case-failed",
        "claims: { from: github/environment }\n    expect: permit",
        "claims: { from: github/push }\n    expect: deny\n    because: { main: [repository_owner_id] }",
        None,
    ),
    ("credential", "role: admin", "role: nobody", None),
    ("unknown-backend", "backend: aws", "backend: asw", None),
];

/// Knows one backend with one role.
struct OneRole;

impl SpecCompiler for OneRole {
    fn compile(
        &self,
        backend: &BackendName,
        credential: &CredentialSource<'_>,
        _: &GrantContext<'_>,
    ) -> Result<Arc<dyn Any + Send + Sync>, Vec<Diagnostic>> {
        let spec = credential.parse::<std::collections::BTreeMap<String, String>>().map_err(|error| vec![error])?;
        match (backend.as_str(), spec.get("role").map(String::as_str)) {
            ("aws", Some("admin")) => Ok(Arc::new(())),
            ("aws", _) => Err(vec![credential.diagnostic(&["role"], "there is no such role", "name another")]),
            _ => Err(vec![credential.backend_diagnostic("there is no such backend", "see the config")]),
        }
    }
}

fn issuers() -> Vec<Issuer> {
    ["github", "gitlab"].iter().filter_map(|name| Issuer::assumed(&IssuerName::parse(name).ok()?)).collect()
}

/// What is said of a grant, at the place that is asked for.
fn said(code: &str, from: &str, to: &str, beside: Option<(&str, &str)>) -> String {
    assert!(GRANT.contains(from), "{code}: {from}");
    let mut sources = vec![Source { path: "deploy.yaml".to_owned(), text: GRANT.replacen(from, to, 1) }];
    sources.extend(beside.map(|(path, text)| Source {
        path: path.to_owned(),
        text: if code == "too-long" { "#".repeat(MAX_SOURCE_BYTES + 1) } else { text.to_owned() },
    }));
    if code == "second-guards" {
        sources.push(Source { path: "guards.yaml".to_owned(), text: "deny_overdue_review: true\n".to_owned() });
    }
    let compiled = compile(&sources, &issuers(), &OneRole);
    let mut found = compiled.diagnostics.clone();
    let mut suite = Suite::new(&compiled.set);
    found.extend(suite.add(&sources));
    found.extend(suite.run().results.into_iter().filter_map(|result| result.failure));
    let found = found.iter().find(|diagnostic| diagnostic.code == code);
    found.unwrap_or_else(|| panic!("{code} is not provoked: {:?}", compiled.diagnostics)).render(false)
}

#[test]
fn every_problem_is_shown() {
    let mut out = String::new();
    for code in Problem::CODES {
        assert!(PROBLEMS.iter().any(|(known, ..)| known == code), "nothing provokes {code}");
    }
    for (code, from, to, beside) in PROBLEMS.iter().chain(OTHERS) {
        let _ = writeln!(out, "{}", said(code, from, to, *beside));
    }
    insta::assert_snapshot!("problems", out);
}

impl ConditionError {
    kinds! { kind, KINDS:
        TooLarge => "too large", Syntax => "syntax", Function => "function", Variable => "variable",
        UnknownClaim => "unknown claim", Types => "types", NotBool => "not bool", NoClaim => "no claim",
    }
}

impl PatternError {
    kinds! { kind, KINDS:
        NotScalar => "not scalar", WrongType => "wrong type", NotText => "not text", NotList => "not list",
        GlobCharacter => "glob character", Regex => "regex", TooLong => "too long",
    }
}

impl TemplateError {
    kinds! { kind, KINDS:
        Syntax => "syntax", Unclosed => "unclosed", UnknownClaim => "unknown claim", NotScalar => "not scalar",
        Authority => "authority", Ambiguous => "ambiguous", Character => "character", TooLong => "too long",
    }
}

impl RenderError {
    kinds! { kind, KINDS:
        Absent => "absent", Character => "character", Empty => "empty", TooLong => "too long",
    }
}

impl ClaimsError {
    kinds! { kind, KINDS: Json => "json", Missing => "missing", Type => "type" }
}

/// Shows each error under its kind's name; every kind has to be there.
fn show(out: &mut String, what: &str, kinds: &[&str], found: &[(&'static str, String, String)]) {
    for kind in kinds {
        assert!(found.iter().any(|(known, ..)| known == kind), "nothing provokes {what}: {kind}");
    }
    for (kind, message, help) in found {
        let _ = writeln!(out, "{what}, {kind}: {message}\n  {help}");
    }
}

#[test]
fn every_error_within_is_shown() {
    let profile = |name: &str| Profile::named(name).expect("a profile");
    let (github, gitlab) = (profile("github"), profile("gitlab"));
    let mut out = String::new();

    let long = "x".repeat(5000);
    let found: Vec<_> = [
        &*long,
        "claims.ref == ",
        "claims.ref.matches(\"x\")",
        "now == 1",
        "claims.reff == \"x\"",
        "claims.ref == 1",
        "claims.ref",
        "1 == 1",
    ]
    .iter()
    .map(|source| {
        let (error, _) = Condition::compile(source, &github).expect_err(source);
        (error.kind(), error.to_string(), error.help())
    })
    .collect();
    show(&mut out, "condition", ConditionError::KINDS, &found);

    let claim = |name: &str| gitlab.claim(name).expect("a claim");
    let any_of = |name: &str, value: &str| Matcher::any_of(claim(name), &[value.to_owned()], Vec::new());
    let found: Vec<_> = [
        any_of("groups_direct", "acme").err(),
        any_of("runner_id", "seven").err(),
        Glob::parse("7*", claim("runner_id")).err().or_else(|| {
            let glob = Glob::parse("7*", claim("ref")).ok().map(crate::pattern::Pattern::Glob);
            Matcher::any_of(claim("runner_id"), &[], glob.into_iter().collect()).err()
        }),
        Matcher::contains(claim("ref"), "acme").err(),
        Glob::parse("release-[0-9]", claim("ref")).err(),
        WholeRegex::parse("a)|(b").err(),
        WholeRegex::parse(&"a".repeat(5000)).err(),
    ]
    .into_iter()
    .map(|error| error.expect("refused"))
    .map(|error| (error.kind(), error.to_string(), error.help()))
    .collect();
    show(&mut out, "pattern", PatternError::KINDS, &found);

    let sources = [Source { path: "deploy.yaml".to_owned(), text: GRANT.to_owned() }];
    let compiled = compile(&sources, &issuers(), &AnyCredential);
    let grant = compiled.set.grant("deploy").expect("the grant");
    let context = GrantContext { name: &grant.name, ttl: 900, max_lifetime: 900, scopes: &[], rules: &grant.rules };
    let plain = FieldRules {
        authority: false,
        allowed: |c| c.is_ascii_alphanumeric() || "-/".contains(c),
        max_len: 40,
        expected: "letters, digits, - and /",
    };
    let authority = FieldRules { authority: true, ..plain };
    let found: Vec<_> = [
        ("{{ ref }}", &plain),
        ("{{ claims.ref", &plain),
        ("{{ claims.reff }}", &plain),
        ("{{ claims.ref }}{{ claims.actor }}", &plain),
        ("{{ claims.ref }}", &authority),
        ("a b", &plain),
        (&"a".repeat(41), &plain),
    ]
    .iter()
    .map(|(text, field)| Template::compile(text, &context, field).expect_err(text))
    .chain([TemplateError::NotScalar("groups_direct".to_owned())])
    .map(|error| (error.kind(), error.to_string(), error.help()))
    .collect();
    show(&mut out, "template", TemplateError::KINDS, &found);

    let rendered = |text: &str, from: &str, changes: serde_json::Value| {
        let mut payload: serde_json::Value = serde_json::from_str(fixture(from).expect("a fixture")).expect("JSON");
        for (claim, value) in changes.as_object().expect("an object") {
            payload[claim] = value.clone();
        }
        let claims = Claims::parse(&github, payload.to_string().as_bytes()).expect("claims");
        Template::compile(text, &context, &plain).expect(text).render(&claims).expect_err(text)
    };
    let found: Vec<_> = [
        rendered("{{ claims.environment }}", "github/push", serde_json::json!({})),
        rendered("{{ claims.workflow }}", "github/push", serde_json::json!({ "workflow": "a b" })),
        rendered("{{ claims.head_ref }}", "github/push", serde_json::json!({})),
        rendered("{{ claims.workflow }}", "github/push", serde_json::json!({ "workflow": "a".repeat(41) })),
    ]
    .iter()
    .map(|error| (error.kind(), error.to_string(), String::new()))
    .collect();
    show(&mut out, "credential", RenderError::KINDS, &found);

    let found: Vec<_> = ["[]", "{}", "{\"iss\":1}"]
        .iter()
        .map(|payload| Claims::parse(&github, payload.as_bytes()).map(|_| ()).expect_err(payload))
        .map(|error| (error.kind(), error.to_string(), String::new()))
        .collect();
    show(&mut out, "claims", ClaimsError::KINDS, &found);
    insta::assert_snapshot!("errors", out);
}
