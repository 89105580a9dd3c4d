use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, NOW, order},
};

const CONFIG: &str = "gh: { github_app: { apps: [{ client_id: Iv1.a, installation_id: 7, private_key: env:SECRET }, \
                      { client_id: Iv1.b, installation_id: 8, private_key: env:SECRET }] } }";
const SPEC: &str = "repository_ids: [\"{{ claims.repository_id }}\"]\npermissions: { contents: read }";

fn plan(bench: &Bench, credential: &str, ttl: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
    let permit = bench.permit(credential, ttl, replaced)?;
    let Backend::Remote(backend) = bench.backend() else { panic!("github_app is remote") };
    backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
}

#[test]
fn specs() {
    let bench = Bench::new(CONFIG);
    for (credential, ttl, expected) in [
        (SPEC, "1h", Ok(json!({ "permissions": { "contents": "read" }, "repository_ids": [772_002] }))),
        (
            "repositories: [api, web.site]\npermissions: { pull_requests: write, contents: read }",
            "15m",
            Ok(
                json!({ "permissions": { "contents": "read", "pull_requests": "write" }, "repositories": ["api", "web.site"] }),
            ),
        ),
        (SPEC, "61m", Err("live an hour")),
        ("permissions: { contents: read }", "15m", Err("no repository is named")),
        ("repositories: [a]\npermissions: {}", "15m", Err("no permission is named")),
        ("repositories: [a]", "15m", Err("permissions")),
        ("repositories: [a]\npermissions: { contents: root }", "15m", Err("root")),
        ("repositories: [a]\npermissions: { Contents: read }", "15m", Err("not a permission's name")),
        ("repositories: [acme/api]\npermissions: { contents: read }", "15m", Err("without its owner")),
        ("repositories: [\"{{ claims.actor }}\"]\npermissions: { contents: read }", "15m", Err("actor")),
        ("repositories: [a]\npermissions: { contents: read }\nall: true", "15m", Err("all")),
    ] {
        match (plan(&bench, credential, ttl, &[]), expected) {
            (Ok(plan), Ok(body)) => assert_eq!(plan.object, body, "{credential}"),
            (Err(error), Err(text)) => assert!(error.contains(text), "{credential}: {error}"),
            (plan, _) => panic!("{credential}: {:?}", plan.map(|plan| plan.object)),
        }
    }
}

#[test]
fn hostile_claims_are_refused() {
    let bench = Bench::new(CONFIG);
    for hostile in ["1,2", "1 OR 1", "-1", "0x1", "1\"]", "1\\", "*", "../1", "1\n", "1\0", "१२", "", &"9".repeat(300)]
    {
        let refused = plan(&bench, SPEC, "15m", &[("repository_id", hostile)]).err();
        assert!(refused.is_some_and(|error| error.starts_with("credential.repository_ids")), "{hostile:?}");
    }
}

#[test]
fn configs() {
    for (config, refusal) in [
        ("apps: []", "apps: name at least one"),
        ("apps: [{ client_id: \"a b\", installation_id: 7, private_key: env:SECRET }]", "apps.client_id"),
        (
            "api_url: \"https://u@ghe.example/api\", apps: [{ client_id: a, installation_id: 7, private_key: env:SECRET }]",
            "api_url: expected",
        ),
    ] {
        let error = Bench::new(&format!("gh: {{ github_app: {{ {config} }} }}")).backends.err().expect("refused");
        assert!(error.contains(refusal), "{config}: {error}");
    }
    let error = Bench::new(CONFIG).backend().describe().preflight().expect_err("no key");
    assert!(error.contains("env:SECRET is not an RSA key") && !error.contains("hunter2"), "{error}");
}

#[test]
fn the_app_with_the_most_left_is_asked() {
    let bench = Bench::new(CONFIG);
    let file: BTreeMap<String, BTreeMap<String, File>> = serde_saphyr::from_str(CONFIG).expect("a config");
    let github = GitHubApp::build(file["gh"]["github_app"].clone(), &bench.context).expect("built");
    let answered = |app: usize, status: u16, headers: &[(&'static str, i64)]| {
        let headers = headers
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), value.to_string().parse().expect("a value")));
        let status = StatusCode::from_u16(status).expect("a status");
        github.apps[app].limited(&Fetched { status, headers: headers.collect(), body: Vec::new() }, NOW)
    };
    let asked = |at: Timestamp| github.by_budget(at).iter().map(|app| app.client_id.clone()).collect::<Vec<_>>();
    let (remaining, reset, later) = ("x-ratelimit-remaining", "x-ratelimit-reset", NOW + Duration::from_secs(600));
    assert_ne!(asked(NOW), asked(NOW), "they take turns");
    assert!(!answered(0, 201, &[(remaining, 10), (reset, later.secs())]));
    assert!(!answered(1, 201, &[(remaining, 90), (reset, later.secs())]));
    assert_eq!((asked(NOW), asked(NOW)), (vec!["Iv1.b".into(), "Iv1.a".into()], vec!["Iv1.b".into(), "Iv1.a".into()]));
    // A 403 is a limit only when it says so.
    assert!(!answered(1, 403, &[(remaining, 89), (reset, later.secs())]));
    assert!(answered(1, 403, &[(remaining, 0), (reset, later.secs())]));
    assert_eq!(asked(NOW), ["Iv1.a"]);
    assert!(answered(0, 403, &[("retry-after", 30)]));
    assert_eq!((asked(NOW).len(), github.rest(NOW)), (0, Duration::from_secs(30)));
    assert_eq!(asked(NOW + Duration::from_secs(30)), ["Iv1.a"]);
    assert_eq!(asked(later).len(), 2);
    assert!(answered(0, 429, &[]) && answered(1, 429, &[]));
    assert_eq!(github.rest(NOW), LIMITED);
}
