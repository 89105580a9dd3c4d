//! A grant file, and what may lie beside it (guards, a scope, cases): loaded, its templates filled in, decided
//! on for a job of each CI, its own tests run. Guards and scopes never permit more than there is without.

#![no_main]

use jobpass_policy::{
    AnyCredential, Claims, CredentialSource, Decision, Diagnostic, FieldRules, Freezes, GrantContext, Issuer, Profile,
    Request, Severity, Source, SpecCompiler, Template, cases::Suite, compile, decide, fixtures::FIXTURES,
    lint::lint,
};
use jobpass_protocol::{BackendName, IssuerName};
use libfuzzer_sys::fuzz_target;
use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

struct Job {
    issuer: IssuerName,
    claims: Arc<Claims>,
}

static ISSUERS: LazyLock<Vec<Issuer>> =
    LazyLock::new(|| ["github", "gitlab"].iter().filter_map(|name| Issuer::assumed(&name.parse().ok()?)).collect());

static JOBS: LazyLock<Vec<Job>> = LazyLock::new(|| {
    let job = |(name, payload): &(&str, &str)| {
        let profile = name.split('/').next()?;
        let claims = Claims::parse(&Profile::named(profile)?, payload.as_bytes()).ok()?;
        Some(Job { issuer: profile.parse().ok()?, claims: Arc::new(claims) })
    };
    FIXTURES.iter().filter_map(job).collect()
});

/// Takes a credential spec of named templates.
struct Templates;

const FIELD: FieldRules =
    FieldRules { authority: true, allowed: |c| c.is_ascii_alphanumeric() || "/:._-".contains(c), max_len: 256, expected: "" };

impl SpecCompiler for Templates {
    fn compile(
        &self,
        _: &BackendName,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Arc<dyn Any + Send + Sync>, Vec<Diagnostic>> {
        let fields: BTreeMap<String, String> = credential.parse().map_err(|error| vec![error])?;
        let mut templates = Vec::new();
        for (name, text) in fields {
            let template = Template::compile(&text, grant, &FIELD)
                .map_err(|error| vec![credential.diagnostic(&[&name], error.to_string(), error.help())])?;
            templates.push(template);
        }
        Ok(Arc::new(templates))
    }
}

/// The files in an input: a grant, and more after lines that begin with `%` and say which.
fn files(text: &str) -> Vec<Source> {
    let file = |(n, text): (usize, &str)| {
        let (path, text) = match (n, text.chars().next()) {
            (0, _) => ("team/grant.yaml", Some(text)),
            (_, Some('g')) => ("guards.yaml", text.get(1..)),
            (_, Some('s')) => ("team/scope.yaml", text.get(1..)),
            (_, Some('c')) => ("team/grant.cases.yaml", text.get(1..)),
            _ => return None,
        };
        Some(Source { path: path.to_owned(), text: text?.to_owned() })
    };
    text.split("\n%").enumerate().filter_map(file).collect()
}

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let sources = files(text);
    let alone = compile(&sources[..1], &ISSUERS, &AnyCredential).set;
    for specs in [&AnyCredential as &dyn SpecCompiler, &Templates] {
        let compiled = compile(&sources, &ISSUERS, specs);
        let mut suite = Suite::new(&compiled.set);
        let cases = suite.add(&sources);
        for diagnostic in compiled.diagnostics.iter().chain(&cases) {
            let (line, column) = diagnostic.position();
            assert!(line >= 1 && column >= 1 && line <= text.lines().count() + 1);
            let _ = diagnostic.render(false);
        }
        if compiled.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
            assert_eq!(compiled.set.grants().count(), 0, "a grant with an error is not loaded");
        }
        for grant in compiled.set.grants() {
            assert!(grant.ttl() > 0 && grant.ttl() <= grant.max_lifetime());
            for Job { issuer, claims } in JOBS.iter() {
                let freezes = Freezes::default();
                let name = grant.name().as_str();
                let request =
                    Request { grant: name, issuer, claims, scope: None, ttl: Some(60), at: 1_790_000_000, freezes: &freezes };
                if let Decision::Permit(permit) = decide(&compiled.set, &request) {
                    assert!(permit.ttl() <= 60 && permit.ttl() <= grant.ttl());
                    assert!(grant.rules().iter().any(|rule| rule.name() == permit.rule() && rule.issuer() == issuer));
                    assert!(matches!(decide(&alone, &request), Decision::Permit(_)), "guards and scopes only deny");
                }
                for template in grant.spec::<Vec<Template>>().into_iter().flatten() {
                    if let Ok(text) = template.render(claims) {
                        assert!(text.len() <= FIELD.max_len && text.chars().all(FIELD.allowed));
                    }
                }
            }
        }
        let _ = suite.run().junit();
        let _ = lint(&compiled, 1_790_000_000);
    }
});
