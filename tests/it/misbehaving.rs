//! Every remote backend before a server that misbehaves: each exchange is refused within a bound and without a
//! secret, its lease says what is known of it and ends no sooner than that is certain, and other backends go on.

use futures_util::future::join_all;
use jobpass_tests::{
    chaos::{Chaos, Fault, RETRY_AFTER},
    entra::TENANT,
    github_api::GitHubApi,
    google::PROVIDER,
    http::now,
    world::{Answer, Setting, World, grant},
};
use serde_json::{Value, json};
use std::{fs, sync::atomic::Ordering, time::Duration};
use tempfile::TempDir;
use tokio::time::Instant;

/// The longest deadline that no config shortens, twice the pauses, and a busy machine.
const BOUND: Duration = Duration::from_secs(20);
/// What an exchange at another backend may take meanwhile.
const AT_ONCE: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3600);

/// What was decided about a lease whose mint may have come to something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// It can be looked for by its name.
    Revoking,
    /// Nothing takes it back: it is told of until it is gone.
    Outliving,
    /// What the first request makes is no credential.
    MadeNothing,
}

/// What the backend speaks, and what becomes of it there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Http(Lost),
    /// Without a login nothing is made.
    Database,
    /// The same, but the connection's deadline is that of the mint.
    Redis,
}
use Lost::{MadeNothing, Outliving, Revoking};

struct Row {
    name: &'static str,
    over: Over,
    backend: Value,
    credential: &'static str,
}

/// What jobpass itself proves itself with there.
fn own_secret(name: &str) -> String {
    format!("{}-of-jobpass-itself", dashed(name))
}

/// As grants and backends are named.
fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

fn rows(chaos: &Chaos, secret: &dyn Fn(&str) -> String) -> Vec<Row> {
    let url = &chaos.url;
    let quick = |mut backend: Value| {
        backend["deadline"] = json!("1s");
        backend
    };
    let brief = |backend: Value| {
        let mut backend = quick(backend);
        backend["settle"] = json!("1s");
        backend
    };
    let login = |name: &str, port: u16| json!({ "host": "127.0.0.1", "port": port, "user": "jobpass", "password": secret(name) });
    let mut postgres = login("postgres", chaos.client_first);
    postgres["database"] = json!("app");
    let token = format!("{url}/token");
    let row = |name, over, backend, credential| Row { name, over, backend, credential };
    let http = |name, lost, backend, credential| row(name, Over::Http(lost), backend, credential);
    vec![
        row(
            "mysql",
            Over::Database,
            brief(login("mysql", chaos.server_first)),
            "privileges: [{ database: app, allow: [select] }]",
        ),
        row("postgres", Over::Database, brief(postgres), "roles: [app]"),
        row("redis", Over::Redis, brief(login("redis", chaos.client_first)), "{ keys: [\"ci:*\"], commands: [get] }"),
        http(
            "rabbitmq",
            Revoking,
            brief(json!({
                "management_url": url, "user": "jobpass", "password": secret("rabbitmq"), "insecure_http": true,
                "advertise": { "host": "127.0.0.1" },
            })),
            "{ vhost: ci, read: [x] }",
        ),
        http(
            "kubernetes",
            Revoking,
            json!({ "server": url, "token": secret("kubernetes"), "bound": true, "insecure_http": true }),
            "{ namespace: prod, service_account: deploy }",
        ),
        http(
            "gitlab",
            Revoking,
            brief(json!({ "url": url, "token": secret("gitlab"), "insecure_http": true })),
            "{ project: acme/api, scopes: [api], access_level: guest }",
        ),
        http(
            "http",
            Revoking,
            brief(json!({
                "base_url": url, "insecure_http": true, "headers": { "X-Key": { "secret": secret("http") } },
                "create": { "path": "/keys", "body": { "name": "{{ lease.name }}" }, "secret": "/key" },
                "delete": { "path": "/keys/{{ lease.name }}" },
            })),
            "{}",
        ),
        http(
            "aws_sts",
            Outliving,
            json!({ "region": "eu-central-1", "endpoint_url": url }),
            "role_arn: arn:aws:iam::123456789012:role/deploy",
        ),
        http(
            "gcp",
            MadeNothing,
            json!({ "provider": PROVIDER, "sts_url": url, "iam_url": url, "insecure_http": true }),
            "service_account: deploy@acme-prod.iam.gserviceaccount.com",
        ),
        http(
            "azure",
            Outliving,
            json!({ "tenant": TENANT, "authority": url, "insecure_http": true, "token_lifetime": "10m" }),
            "{ client_id: 00000000-0000-4000-8000-000000000001, scope: https://management.example/.default }",
        ),
        http(
            "oauth2_client_credentials",
            Outliving,
            json!({
                "token_url": token, "token_lifetime": "10m", "insecure_http": true,
                "client": { "id": "acme", "secret": secret("oauth2_client_credentials") },
            }),
            "scopes: [read]",
        ),
        http(
            "token_exchange",
            Outliving,
            json!({ "token_url": token, "audience": url, "token_lifetime": "10m", "insecure_http": true }),
            "scopes: [read]",
        ),
        http(
            "vault",
            Outliving,
            quick(json!({ "address": url, "audience": "bao.example", "token_lifetime": "1h", "insecure_http": true })),
            "role: ci",
        ),
        http(
            "github_app",
            Outliving,
            quick(json!({
                "api_url": url, "insecure_http": true,
                "apps": [{ "client_id": "Iv1.a", "installation_id": 1, "private_key": secret("github_app") }],
            })),
            "{ repositories: [api], permissions: { contents: read } }",
        ),
    ]
}

/// A world with all of them, and the texts that nobody may read.
async fn start(chaos: &Chaos) -> (World, Vec<Row>, Vec<String>, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("writable");
        format!("file:{}", path.display())
    };
    let pem = GitHubApi::start(now, None).await.install("Iv1.a", 1);
    let rows =
        rows(chaos, &|name| file(name, if name == "github_app" { pem.clone() } else { own_secret(name) }.as_str()));
    let mut secrets: Vec<String> = rows.iter().map(|row| own_secret(row.name)).collect();
    secrets.extend(pem.lines().skip(1).take(1).map(str::to_owned));
    let backends = rows.iter().map(|row| {
        let block = json!({ row.name: row.backend, "limits": { "failures": 1000, "revoke_deadline": "1s" } });
        format!("  {}: {block}\n", dashed(row.name))
    });
    let grants = rows.iter().map(|row| {
        let name = dashed(row.name);
        (format!("{name}.yaml"), grant(&name, &name, row.credential))
    });
    let setting = Setting { backends: backends.collect(), grants: grants.collect(), ..Setting::default() };
    let config = format!(
        "signing: {{ keys: [ES256, RS256] }}\nlimits: {{ exchanges_per_minute: 0 }}\nsealing: {{ keys: \"{}\" }}\n",
        file("sealing", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
    );
    let grants = [setting.grants, Setting::default().grants].concat();
    let world = World::of(Setting { grants, config, ..setting }).await;
    secrets.iter().for_each(|secret| world.keep_secret(secret));
    (world, rows, secrets, directory)
}

/// The status, whether it says when to come back, and where the lease may stand after that.
fn expected(row: &Row, fault: Fault) -> (u16, bool, &'static [&'static str]) {
    match (fault, row.over) {
        (Fault::Status(429), _) => (503, true, &["ended"]),
        (_, Over::Http(Revoking)) => (502, false, &["revoking"]),
        (_, Over::Http(Outliving)) => (502, false, &["outliving"]),
        (Fault::Silent, Over::Redis) => (502, false, &["ended", "revoking"]),
        (_, Over::Http(MadeNothing) | Over::Database | Over::Redis) => (502, false, &["ended"]),
    }
}

/// Asks for all of these at once; the answers, each with how long it took.
async fn ask<'a>(world: &World, rows: impl Iterator<Item = &'a Row>) -> Vec<(&'a Row, Answer, Duration)> {
    let asked = rows.map(|row| async move {
        let start = Instant::now();
        let answer = world.exchange(&world.token(), &dashed(row.name), &[]).await;
        (row, answer, start.elapsed())
    });
    join_all(asked).await
}

/// Fails unless it is a whole error by RFC 6749 §5.2 with nothing in it that nobody may read.
fn clear(what: &str, answer: &Answer, secrets: &[String]) {
    let body = answer.body.as_object().unwrap_or_else(|| panic!("{what}: {}", answer.text));
    let told = |name: &str| body.get(name).and_then(Value::as_str).is_some_and(|text| text.len() > 10);
    assert!(told("error") && told("error_description") && told("decision_id") && body.len() == 3, "{what}: {body:?}");
    for secret in secrets {
        assert!(!answer.text.contains(secret.as_str()), "{what}: {}", answer.text);
    }
}

async fn states(world: &World) -> Vec<(String, String)> {
    let leases = world.leases().await.into_iter();
    let told = leases.map(|lease| serde_json::to_value(lease).expect("JSON"));
    told.map(|lease| {
        [&lease["backend"], &lease["state"]["state"]].map(|v| v.as_str().unwrap_or_default().to_owned()).into()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backend_stays_bounded_and_clear() {
    let chaos = Chaos::start().await;
    let (world, rows, mut secrets, _files) = start(&chaos).await;
    let over_http = |row: &&Row| matches!(row.over, Over::Http(_));
    let mut wrong = Vec::new();
    // The last one has them left alone.
    for fault in [Fault::Silent, Fault::Garbage, Fault::Cut, Fault::Status(500), Fault::Status(200), Fault::Status(429)]
    {
        chaos.misbehave(fault);
        let (known, heard) = (world.leases().await, chaos.requests().len());
        // To the management API's clients a 200 says everything.
        let asked = |row: &&Row| match fault {
            Fault::Status(status) => over_http(row) && (row.name, status) != ("rabbitmq", 200),
            _ => true,
        };
        let others = async {
            for _ in 0..5 {
                let start = Instant::now();
                world.issue("id").await;
                assert!(start.elapsed() < AT_ONCE, "{fault:?}: another backend waits for those that are sick");
            }
        };
        let (answers, ()) = tokio::join!(ask(&world, rows.iter().filter(asked)), others);
        // What was presented to the others is as secret as what they would have given for it.
        let sent = chaos.requests().split_off(heard).join("\n");
        let jwts = sent.split(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
        let jwts: Vec<_> = jwts.filter(|word| word.starts_with("eyJ")).map(str::to_owned).collect();
        assert!(jwts.len() >= 6, "{fault:?}: {} tokens were presented", jwts.len());
        jwts.iter().for_each(|jwt| world.keep_secret(jwt));
        secrets.extend(jwts);
        let known = |lease: &jobpass_exchanger::http::admin::LeaseView| known.iter().any(|known| known.id == lease.id);
        let fresh: Vec<_> = world.leases().await.into_iter().filter(|lease| !known(lease)).collect();
        for (row, answer, took) in answers {
            let what = format!("{} {fault:?}", row.name);
            let (status, comes_back, stands) = expected(row, fault);
            assert!(took < BOUND, "{what}: {took:?}");
            clear(&what, &answer, &secrets);
            let retry = comes_back.then(|| RETRY_AFTER.to_string());
            let mine = fresh.iter().filter(|lease| lease.backend == dashed(row.name));
            let mine: Vec<_> = mine.map(|lease| lease.state.name()).collect();
            let told = (answer.status, &answer.retry_after);
            if told != (status, &retry) || mine.len() != 1 || !stands.contains(&mine[0]) {
                wrong.push(format!("{what}: {told:?} and {mine:?}, not {:?} and {stands:?}", (status, retry)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // They asked to be left alone, and are.
    let heard = chaos.requests().len();
    for (row, answer, took) in ask(&world, rows.iter().filter(over_http)).await {
        assert!(answer.status == 503 && took < AT_ONCE, "{}: {} {took:?}", row.name, answer.text);
        let retry = answer.retry_after.as_ref().and_then(|after| after.parse().ok()).unwrap_or(0);
        assert!((1..=RETRY_AFTER + 1).contains(&retry), "{}: {retry}", row.name);
        clear(row.name, &answer, &secrets);
    }
    assert_eq!(chaos.requests().len(), heard, "one that asked to be left alone was asked");

    // While nothing can be taken back, nothing passes for taken back; what ends by itself does.
    let open = states(&world).await.iter().filter(|(_, state)| state == "revoking").count();
    assert!(open >= 4 * 5 - 1, "{open}");
    chaos.misbehave(Fault::Cut);
    world.advance(2 * HOUR);
    let failed = || world.app().reaper.counters().failed.load(Ordering::Relaxed);
    world.until("each was tried", async || failed() >= open as u64).await;
    let over = async |which: &str| states(&world).await.iter().all(|(_, state)| state == "ended" || state == which);
    world.until("only those are open that are looked for by name", async || over("revoking").await).await;
    assert_eq!(states(&world).await.iter().filter(|(_, state)| state == "revoking").count(), open);

    // It is well again, and holds nothing: that is certain from the worst expiry on.
    chaos.misbehave(Fault::Empty);
    world.advance(26 * HOUR);
    world.until("every lease ended", async || over("ended").await).await;
    world.close().await;
}
