use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, NOW, order},
};
use serde_json::json;

const CONFIG: &str = r#"
saas:
  http:
    base_url: https://api.example/v1/
    headers: { Authorization: { prefix: "Bearer ", secret: "env:SECRET" }, X-Tenant: { value: acme } }
    parameters: { project: {}, note: { authority: false, max_length: 300 } }
    create:
      path: "/projects/{{ parameters.project }}/keys"
      body:
        name: "{{ lease.name }}"
        note: "by jobpass: {{ parameters.note }}"
        expires: ["{{ lease.expires_at_unix }}", "{{ lease.expires_at }}", "at {{ lease.expires_at_unix }}"]
        fixed: { a: 1, b: null }
      secret: /data/key
      expires_at: /data/expires
    delete: { path: "/projects/{{ parameters.project }}/keys/{{ lease.name }}" }
"#;
const CREDENTIAL: &str = "parameters: { project: \"p-{{ claims.repository_id }}\", note: \"{{ claims.actor }}\" }";

fn http(bench: &Bench) -> Arc<dyn RemoteBackend> {
    match bench.backend() {
        Backend::Remote(backend) => Arc::clone(backend),
        Backend::Local(_) => panic!("http is remote"),
    }
}

fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    http(bench).plan(&permit, &order(&permit)).map_err(|error| error.to_string())
}

#[test]
fn requests_carry_the_lease_and_the_parameters() {
    let bench = Bench::new(CONFIG);
    let plan = plan(&bench, CREDENTIAL, &[]).expect("planned");
    let Planned { create, .. } = plan.rendered.downcast_ref().expect("ours");
    assert_eq!(create.url.as_str(), "https://api.example/v1/projects/p-772002/keys");
    let expires = NOW.secs() + 900;
    assert_eq!(
        create.body,
        Some(json!({
            "name": "jobpass_01990000000070008000000000000001",
            "note": "by jobpass: octocat",
            "expires": [expires, Timestamp::from_secs(expires).to_string(), format!("at {expires}")],
            "fixed": { "a": 1, "b": null },
        }))
    );
    let url = "https://api.example/v1/projects/p-772002/keys/jobpass_01990000000070008000000000000001";
    assert_eq!(plan.object, json!({ "url": url, "body": null }));
    assert_eq!(plan.worst_expiry.secs(), expires);
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let bench = Bench::new(CONFIG);
    for (actor, carried) in [
        (r#"o'cto"cat\"#, true),
        (r#"", "admin": true, "x": ""#, true),
        ("{{ lease.id }}", true),
        ("*/../окто", true),
        (&"x".repeat(300), true),
        (&"x".repeat(301), false),
        ("a\0b", false),
        ("a\r\nX-Admin: 1", false),
    ] {
        match plan(&bench, CREDENTIAL, &[("actor", actor)]) {
            Ok(plan) => {
                let Planned { create, .. } = plan.rendered.downcast_ref().expect("ours");
                let body = create.body.as_ref().expect("a body");
                assert!(carried && body["note"] == format!("by jobpass: {actor}"), "{actor:?}");
                assert_eq!(body.as_object().map(serde_json::Map::len), Some(4), "{actor:?}");
            }
            Err(error) => assert!(!carried && error.contains("credential.parameters.note"), "{actor:?}: {error}"),
        }
    }
}

#[test]
fn path_segments_stay_segments() {
    let bench = Bench::new(&CONFIG.replace("project: {}", "project: { authority: false }"));
    let credential = "parameters: { project: \"{{ claims.ref }}\", note: x }";
    for (text, expected) in [
        ("refs/heads/main", Some("refs%2Fheads%2Fmain")),
        ("../admin", Some("..%2Fadmin")),
        ("a?b#c", Some("a%3Fb%23c")),
        ("%2e%2e", Some("%252e%252e")),
        ("..", None),
        (".", None),
    ] {
        let planned = plan(&bench, credential, &[("ref", text)]);
        let url = planned
            .as_ref()
            .ok()
            .and_then(|plan| plan.rendered.downcast_ref::<Planned>())
            .map(|p| p.create.url.as_str());
        let expected = expected.map(|segment| format!("https://api.example/v1/projects/{segment}/keys"));
        assert_eq!(url, expected.as_deref(), "{text}");
    }
}

#[test]
fn specs() {
    let bench = Bench::new(CONFIG);
    for (credential, refusal) in [
        ("parameters: { note: x }", "the parameter `project` is missing"),
        ("parameters: { note: x, project: y, z: z }", "there is no parameter `z`"),
        ("parameters: { note: x, project: \"{{ claims.actor }}\" }", "decides here what the credential can do"),
        ("params: {}", "params"),
    ] {
        let error = bench.permit(credential, "15m", &[]).expect_err(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
}

#[test]
fn configs() {
    for (from, to, refusal) in [
        ("https://api.example/v1/", "api.example", "base_url"),
        ("https://api.example/v1/", "https://u:p@api.example", "base_url"),
        ("{ prefix: \"Bearer \", secret: \"env:SECRET\" }", "{}", "headers.Authorization"),
        ("X-Tenant", "X Tenant", "headers: `X Tenant`"),
        ("parameters.note }}", "parameters.nope }}", "create.body: there is no parameter `nope`"),
        ("name: \"{{ lease.name }}\"", "name: key", "create: name the key"),
        ("keys/{{ lease.name }}", "keys/x", "delete: delete by"),
        ("keys/{{ lease.name }}", "keys/{{ answer.id }}", "create.id: say where"),
        ("name: \"{{ lease.name }}\"", "name: \"{{ answer.id }}\"", "create: there is no answer yet"),
        ("/data/key", "data.key", "create.secret: a JSON pointer"),
        ("path: \"/projects/{{ parameters.project }}/keys\"", "path: \"/keys?x=1\"", "create.path"),
    ] {
        assert!(CONFIG.contains(from), "{from}");
        let error = Bench::new(&CONFIG.replacen(from, to, 1)).backends.err().unwrap_or_else(|| panic!("{to}: built"));
        assert!(error.contains(refusal), "{to}: {error}");
    }
    // By what the answer said: then a key whose answer was lost has to end by itself.
    let by_answer = CONFIG.replace("keys/{{ lease.name }}", "keys/{{ answer.secret }}");
    let bench = Bench::new(&by_answer);
    assert_eq!(http(&bench).revocability(), Revocability::ByToken);
    let lives = "\"{{ lease.expires_at_unix }}\", \"{{ lease.expires_at }}\", \"at {{ lease.expires_at_unix }}\"";
    let endless = by_answer.replace(lives, "");
    let error = Bench::new(&endless).backends.err().expect("refused");
    assert!(error.contains("create.lifetime"), "{error}");
    let bench = Bench::new(&endless.replace("secret: /data/key", "secret: /data/key\n      lifetime: 90d"));
    let plan = plan(&bench, CREDENTIAL, &[]).expect("planned");
    assert_eq!(plan.worst_expiry, NOW + DEADLINE + SETTLE + Duration::from_secs(90 * 86_400));
    assert_eq!(plan.object, Value::Null, "nothing is known before the answer");

    let bench = Bench::new(CONFIG);
    assert_eq!(bench.backend().describe().preflight(), Ok(()));
    let bench = Bench::new(&CONFIG.replace("env:SECRET", "env:ABSENT"));
    let error = bench.backend().describe().preflight().expect_err("no secret");
    assert!(error.contains("headers.authorization") && error.contains("env:ABSENT"), "{error}");
}

#[test]
fn answers() {
    let bench = Bench::new(CONFIG);
    let permit = bench.permit(CREDENTIAL, "15m", &[]).expect("a permit");
    let order = order(&permit);
    let file: BTreeMap<String, BTreeMap<String, File>> = serde_saphyr::from_str(CONFIG).expect("a config");
    let http = Http::build(file["saas"]["http"].clone(), &bench.context).expect("built");
    let fetched =
        |body: &str| Fetched { status: http::StatusCode::CREATED, headers: http::HeaderMap::new(), body: body.into() };
    for (body, expires_after) in [
        (r#"{"data":{"key":"k","expires":1795300100}}"#, Some(90)),
        (r#"{"data":{"key":"k","expires":"2026-11-22T00:00:00Z"}}"#, Some(1_795_305_600 - NOW.secs())),
        (r#"{"data":{"key":"k","expires":1999999999}}"#, Some(900)),
        (r#"{"data":{"key":"k"}}"#, None),
        (r#"{"data":{"key":"","expires":1}}"#, None),
        (r#"{"data":{"key":7,"expires":1}}"#, None),
        ("<html>", None),
    ] {
        match http.read_answer(&fetched(body), &order) {
            Ok((minted, _)) => {
                assert_eq!(minted.credential.field("key").map(Secret::expose), Some("k"));
                let wanted = expires_after.map(|after: i64| after.min(900));
                assert_eq!(Some(minted.expires_at.secs() - NOW.secs()), wanted, "{body}");
            }
            Err(MintError::Unclear(why)) => assert!(expires_after.is_none(), "{body}: {why}"),
            Err(other) => panic!("{body}: {other}"),
        }
    }
}
