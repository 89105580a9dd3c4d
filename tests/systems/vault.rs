//! The `vault` backend through the front door, against a real OpenBao, whose database engine makes roles in a
//! real PostgreSQL.

use crate::world::{as_job, issuer, setup, token};
use jobpass_exchanger::demo::Ci;
use jobpass_tests::{
    openbao::OpenBao,
    postgres::{ADMIN, ADMIN_PASSWORD, Postgres},
    program::{self, Program},
    server::Answer,
};
use serde_json::json;
use std::{
    process::Command,
    time::{Duration, Instant},
};
use tokio_postgres::NoTls;

const AUDIENCE: &str = "bao.acme.example";
const SEALING: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

const POLICY: &str = r#"path "secret/data/ci/*" { capabilities = ["read"] }
path "database/creds/app" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }"#;

fn text<'a>(answer: &'a Answer, pointer: &str) -> &'a str {
    answer
        .body
        .pointer(pointer)
        .and_then(|value| value.as_str())
        .unwrap_or_else(|| panic!("no {pointer}: {}", answer.body))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_dynamic_secrets_are_gone_with_their_leases() {
    let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
    let (bao, postgres) = (OpenBao::start().await, Postgres::start().await);
    let grants = ["bao-token.yaml", "bao-database.yaml", "bao-static.yaml", "bao-batch.yaml"];
    let setup = grants.into_iter().fold(setup(&github, &gitlab), |setup, grant| setup.grant(grant)).sealing(SEALING);
    let backend = json!({ "address": bao.url(), "audience": AUDIENCE, "token_lifetime": "1h", "insecure_http": true });
    let server = setup.backend("bao", json!({ "vault": backend })).start().await;

    bao.trust(&server.url).await;
    bao.admin("sys/policies/acl/service", json!({ "policy": POLICY })).await;
    for kind in ["service", "batch"] {
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE], "bound_claims": { "grant": format!("bao-*") },
            "bound_claims_type": "glob", "token_policies": ["service"], "token_ttl": "20m", "token_type": kind,
        });
        bao.admin(&format!("auth/jwt/role/{kind}"), role).await;
    }
    bao.admin("secret/data/ci/static", json!({ "data": { "key": "for ever" } })).await;
    bao.admin("secret/data/other", json!({ "data": { "key": "of others" } })).await;
    postgres.admin().await.batch_execute("CREATE TABLE deploys (n int)").await.expect("the superuser may");
    bao.admin("sys/mounts/database", json!({ "type": "database" })).await;
    let url =
        format!("postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/postgres?sslmode=disable", postgres.port);
    let database = json!({
        "plugin_name": "postgresql-database-plugin", "allowed_roles": ["app"], "connection_url": url,
        "username": ADMIN, "password": ADMIN_PASSWORD,
    });
    bao.admin("database/config/main", database).await;
    let made = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT SELECT ON deploys TO \"{{name}}\"";
    bao.admin("database/roles/app", json!({ "db_name": "main", "creation_statements": [made], "default_ttl": "10m" }))
        .await;

    let ask = async |grant: &str, more: &[(&str, &str)]| server.exchange(grant, &token(&github, &server), more).await;
    let give_back = async |answer: &Answer| {
        let told = server.post("/revoke", &[("token", text(answer, "/refresh_token"))]).await;
        assert_eq!((told.status, &told.body["state"]), (200, &json!("ended")), "{}", told.body);
    };

    // A token, used as far as its policy goes.
    let held = ask("bao-token", &[]).await;
    assert_eq!((held.status, &held.body["revocable"]), (200, &json!(true)), "{}", held.body);
    let key = text(&held, "/credential/key");
    server.keep_quiet(key);
    assert_eq!(text(&held, "/credential/url"), bao.url());
    let read = async |key: &str, path: &str| bao.cli(key, &["read", "-format=json", path]).await;
    let told = read(key, "secret/data/ci/static").await.expect_success();
    assert!(told.contains("for ever"), "{told}");
    let refused = async |key: &str, arguments: &[&str], says: &str| {
        let told = bao.cli(key, arguments).await;
        assert!(!told.status.success() && told.log.contains("Code: 403"), "{arguments:?}: {}", told.log);
        assert!(told.log.contains(says), "{arguments:?}: {}", told.log);
    };
    for arguments in [
        &["read", "secret/data/other"][..],
        &["write", "secret/metadata/ci/static", "max_versions=1"],
        &["delete", "secret/data/ci/static"],
        &["token", "create"],
        &["list", "sys/policies/acl"],
    ] {
        refused(key, arguments, "permission denied").await;
    }
    // This is what every token may that there is.
    bao.cli(key, &["token", "lookup"]).await.expect_success();
    for _ in 0..2 {
        give_back(&held).await;
        for arguments in [["read", "secret/data/ci/static"], ["token", "lookup"]] {
            refused(key, &arguments, "permission denied").await;
        }
    }
    let script = "bao read -field=data secret/data/ci/static; ! bao read secret/data/other";
    let mut step = Command::new(program::built("jobpass"));
    let home = tempfile::tempdir().expect("the temporary directory is there");
    as_job(&mut step, &github, &server, home.path());
    step.args([
        "exec",
        "--grant",
        "bao-token",
        "--env",
        "BAO_ADDR=url",
        "--env",
        "BAO_TOKEN=key",
        "--",
        "sh",
        "-euc",
        script,
    ]);
    let told = Program::run(step).await.expect_success();
    assert!(told.contains("for ever") && told.contains("permission denied"), "{told}");

    // A database login, which dies with its lease, given back or not.
    let login = async |answer: &Answer| {
        let (user, password) = (text(answer, "/credential/username"), text(answer, "/credential/password"));
        server.keep_quiet(password);
        let to = format!("host=127.0.0.1 port={} dbname=postgres user={user} password={password}", postgres.port);
        let (client, connection) = tokio_postgres::connect(&to, NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let held = ask("bao-database", &[]).await;
    assert_eq!((held.status, text(&held, "/credential/type")), (200, "vault_secret"), "{}", held.body);
    let client = login(&held).await.expect("it logs in");
    client.batch_execute("SELECT * FROM deploys").await.expect("it may");
    client.batch_execute("DELETE FROM deploys").await.expect_err("it may not");
    drop(client);
    for _ in 0..2 {
        give_back(&held).await;
        assert!(!postgres.has_role(text(&held, "/credential/username")).await, "revocation waits for the database");
        assert!(login(&held).await.is_err());
    }
    let held = ask("bao-database", &[("ttl", "3")]).await;
    assert_eq!((held.status, &held.body["expires_in"]), (200, &json!(3)), "{}", held.body);
    let start = Instant::now();
    while postgres.has_role(text(&held, "/credential/username")).await {
        assert!(start.elapsed() < Duration::from_secs(20), "the reaper does not take it back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(1), "not before its time");

    let held = ask("bao-token", &[("ttl", "3")]).await;
    let key = text(&held, "/credential/key");
    server.keep_quiet(key);
    assert_eq!(bao.read(key, "secret/data/ci/static").await, 200);
    let start = Instant::now();
    while bao.read(key, "secret/data/ci/static").await != 403 {
        assert!(start.elapsed() < Duration::from_secs(20), "the reaper does not take it back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // What would outlive the job is not handed out; what cannot be taken back is said to be there.
    assert_eq!(ask("bao-static", &[]).await.status, 502);
    assert_eq!(ask("bao-batch", &[]).await.status, 502);
    let start = Instant::now();
    let expected = [
        "outliving",
        "ended: abandoned",
        "ended: expired",
        "ended: expired",
        "ended: revoked",
        "ended: revoked",
        "ended: revoked",
    ];
    while server.lease_states() != expected {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", server.lease_states());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(server.leases()[0]["state"]["why"] == "outcome_unknown");
}
