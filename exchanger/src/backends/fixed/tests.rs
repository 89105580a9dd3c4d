use crate::backends::testing::{Bench, NOW};
use jobpass_policy::{Diagnostic, Issuer, Source, compile};
use jobpass_protocol::IssuerName;

const CONFIG: &str = "erp: { fixed: { grant: deploy-prod, owner: erp@acme.example, source: { secret: \"env:SECRET\" }, \
                      rotate_every: 90d, rotated_at: 2026-10-01 } }";

fn grant(name: &str, credential: &str, rules: &[&str]) -> String {
    let rules: Vec<String> = rules
        .iter()
        .enumerate()
        .map(|(n, claims)| format!("  - name: r{n}\n    issuer: github\n    match: {{ {claims} }}\n"))
        .collect();
    format!(
        "grant: {name}\nowner: a@acme.example\nbackend: erp\ncredential: {{ {credential} }}\nttl: 15m\nrules:\n{}",
        rules.concat()
    )
}

#[test]
fn one_workload_and_no_more() {
    let bench = Bench::new(CONFIG);
    let issuers = [Issuer::assumed(&IssuerName::parse("github").expect("a name")).expect("a profile")];
    let (owner, one) = ("repository_owner_id: \"1001\"", "repository_owner_id: \"1001\", repository_id: \"772002\"");
    let two = "repository_owner_id: \"1001\", repository_id: [\"772002\", \"772003\"]";
    let any = "repository_owner_id: \"1001\", repository_id: { glob: \"77*\" }";
    let named = "repository_owner_id: \"1001\", repository: acme/api";
    let bearer = "as: bearer";
    for (name, credential, rules, expected) in [
        ("deploy-prod", bearer, &[one][..], None),
        ("other", bearer, &[one], Some("for the grant `deploy-prod` alone")),
        ("deploy-prod", bearer, &[one, one], Some("2 rules entitle more than one workload")),
        ("deploy-prod", bearer, &[owner], Some("does not pin `repository_id`")),
        ("deploy-prod", bearer, &[two], Some("does not pin `repository_id`")),
        ("deploy-prod", bearer, &[any], Some("does not pin `repository_id`")),
        ("deploy-prod", bearer, &[named], Some("does not pin `repository_id`")),
        ("deploy-prod", "as: fields", &[one], None),
        ("deploy-prod", "as: fields, field: key", &[one], Some("`as: fields` gives all fields")),
        ("deploy-prod", "as: api_key, url: \"https://erp.example\"", &[one], None),
        ("deploy-prod", "as: api_key", &[one], Some("`url` belongs to")),
        ("deploy-prod", "as: bearer, url: \"https://erp.example\"", &[one], Some("`url` belongs to")),
        ("deploy-prod", "field: key", &[one], Some("as")),
    ] {
        let source = Source { path: "erp.yaml".to_owned(), text: grant(name, credential, rules) };
        let compiled = compile(&[source], &issuers, bench.backends.as_ref().expect("built"));
        let told: Vec<String> = compiled.diagnostics.iter().map(Diagnostic::to_string).collect();
        match expected {
            None => assert!(told.is_empty(), "{name} {credential} {rules:?}: {told:?}"),
            Some(text) => assert!(told.concat().contains(text), "{name} {credential} {rules:?}: {told:?}"),
        }
    }
}

#[test]
fn configs() {
    let secret = "source: { secret: \"env:SECRET\" }";
    let vault = "source: { vault_kv: { server: { address: \"https://bao.example\", audience: bao }, role: r";
    let every = "rotate_every: 90d";
    for (config, refusal) in [
        (format!("{secret}, {every}, rotated_at: 2026-10-01"), None),
        (format!("{secret}, {every}"), Some("rotated_at: a secret by reference")),
        (format!("{secret}, {every}, rotated_at: 2099-10-01"), Some("rotated_at: it is in the future")),
        (format!("{secret}, {every}, rotated_at: lately"), Some("rotated_at: expected a day")),
        (format!("{secret}, rotate_every: 0s, rotated_at: 2026-10-01"), Some("rotate_every: expected an interval")),
        (format!("{vault}, path: a/b }} }}, {every}"), None),
        (format!("{vault}, path: ../b }} }}, {every}"), Some("source.vault_kv.path: expected a path")),
        (
            format!("{secret}, {every}, rotated_at: 2026-10-01, rotate: {{ command: [rotate] }}"),
            Some("rotate.command: give"),
        ),
        (
            format!("{secret}, {every}, rotated_at: 2026-10-01, rotate: {{ command: [] }}"),
            Some("rotate.command: it is empty"),
        ),
    ] {
        let config = format!("erp: {{ fixed: {{ grant: g, owner: a@b.example, {config} }} }}");
        let built = Bench::new(&config).backends;
        match (built, refusal) {
            (Ok(_), None) => {}
            (Err(error), Some(text)) => assert!(error.contains(text), "{config}: {error}"),
            (built, _) => panic!("{config}: {:?}", built.err()),
        }
    }
    let no_owner = CONFIG.replace("erp@acme.example", "\" \"");
    assert!(Bench::new(&no_owner).backends.is_err_and(|error| error.contains("owner: say who")));
    let both = format!(
        "erp: {{ fixed: {{ grant: g, owner: o, {every}, {vault}, path: a }} }} }} }}\n\
         oidc: {{ signed_jwt: {{ audiences: [bao] }} }}"
    );
    assert!(Bench::new(&both).backends.is_err_and(|error| error.contains("presents")), "no job gets what we present");
    let gone = CONFIG.replace("env:SECRET", "env:NOBODY");
    assert!(Bench::new(&gone).backend().describe().preflight().is_err_and(|error| error.contains("NOBODY")));
}

#[test]
fn it_is_known_when_it_is_due() {
    for (rotated_at, overdue) in
        [("2026-10-01", false), ("2026-08-01", true), ("2026-08-23T22:26:00Z", true), ("2026-08-24", false)]
    {
        let bench = Bench::new(&CONFIG.replace("2026-10-01", rotated_at));
        let told = bench.backend().describe().rotation().and_then(|rotation| rotation.overdue(NOW));
        assert_eq!(told.is_some(), overdue, "{rotated_at}: {told:?}");
        assert!(told.is_none_or(|told| told.contains("erp@acme.example has to")), "{rotated_at}");
    }
}

#[test]
fn one_backend_has_a_secret() {
    let second =
        |secret| format!("{CONFIG}\nold: {}", CONFIG.trim_start_matches("erp: ").replace("env:SECRET", secret));
    assert!(Bench::new(&second("env:OTHER")).backends.is_ok());
    let error = Bench::new(&second("env:SECRET")).backends.err().unwrap_or_default();
    assert!(error.contains("backend `old`: source: the same secret is handed out by backend `erp`"), "{error}");
}
