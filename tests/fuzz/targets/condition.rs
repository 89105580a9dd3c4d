//! A `when:` condition: compiled for tokens of two CIs, evaluated on a job of each fixture, explained, and
//! compared with itself. None may take long, and the trace must say what was decided.

#![no_main]

use jobpass_policy::{
    AnyCredential, Claims, Decision, Freezes, Issuer, Profile, Request, Source, compile, decide, diff::diff,
    explain::explain, fixtures::FIXTURES, lint::lint, reach::who_can,
};
use jobpass_protocol::IssuerName;
use libfuzzer_sys::fuzz_target;
use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

/// A hundred times what one may take, with every check and counter of this build, on a machine that is busy.
const FAR_TOO_LONG: Duration = Duration::from_millis(100);

static ISSUERS: LazyLock<Vec<Issuer>> =
    LazyLock::new(|| ["github", "gitlab"].iter().filter_map(|name| Issuer::assumed(&name.parse().ok()?)).collect());

static JOBS: LazyLock<Vec<(IssuerName, Arc<Claims>)>> = LazyLock::new(|| {
    let job = |(name, payload): &(&str, &str)| {
        let profile = name.split('/').next()?;
        let claims = Claims::parse(&Profile::named(profile)?, payload.as_bytes()).ok()?;
        Some((profile.parse().ok()?, Arc::new(claims)))
    };
    FIXTURES.iter().filter_map(job).collect()
});

/// A text as YAML in double quotes.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() || u32::from(c) > 0x7e => out += &format!("\\U{:08x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

fuzz_target!(|input: &[u8]| {
    let Ok(condition) = std::str::from_utf8(input) else { return };
    for (issuer, pin) in [("github", "repository_owner_id: \"1001\""), ("gitlab", "namespace_id: \"9001\"")] {
        let text = format!(
            "grant: g\nowner: o@acme.example\nbackend: b\nttl: 15m\nrules:\n  - name: r\n    issuer: {issuer}\n    \
             match: {{ {pin} }}\n    when: {}\n",
            quoted(condition)
        );
        let compiled = compile(&[Source { path: "g.yaml".to_owned(), text }], &ISSUERS, &AnyCredential);
        for diagnostic in &compiled.diagnostics {
            assert_eq!(diagnostic.code, "condition", "{diagnostic}");
            let _ = diagnostic.render(false);
        }
        let Some(grant) = compiled.set.grant("g") else {
            assert!(compiled.has_errors());
            continue;
        };
        for (issuer, claims) in JOBS.iter() {
            let freezes = &Freezes::NONE;
            let request = Request { grant: "g", issuer, claims, scope: None, ttl: None, at: 1_790_000_000, freezes };
            let timed = || {
                let started = Instant::now();
                let decision = decide(&compiled.set, &request);
                (started.elapsed(), decision)
            };
            let (mut took, decision) = timed();
            for _ in 0..3 {
                took = if took > FAR_TOO_LONG { timed().0 } else { took };
            }
            assert!(took < FAR_TOO_LONG, "{took:?}");
            let permitted = match &decision {
                Decision::Permit(_) => true,
                Decision::Denial(denial) => {
                    assert!(!denial.trace().rules.iter().any(|rule| rule.matches()));
                    false
                }
            };
            if condition.len() < 100 && claims.profile().name() == "github" {
                let explanation = explain(&compiled.set, &request);
                assert_eq!(explanation.permitted, permitted);
                let _ = explanation.to_string();
            }
        }
        let _ = lint(&compiled, 1_790_000_000);
        let _ = who_can(&compiled.set, grant).to_string();
        assert!(diff(&compiled.set, &compiled.set).is_empty());
    }
});
