//! The backend `fixed` before secrets that lie in AWS Secrets Manager (moto, which checks signatures and policies
//! once it is told to) and in OpenBao.

use crate::world::{grant, issuer, setup, token};
use jobpass_exchanger::demo::Ci;
use jobpass_tests::{
    http::client,
    moto::Moto,
    openbao::OpenBao,
    program::{self, Finished, Program},
};
use serde_json::{Value, json};

const AUDIENCE: &str = "bao.acme.example";
const SECRET: &str = "legacy-key-of-the-erp";

/// The `aws` CLI with this key.
async fn aws_as(moto: &Moto, (id, secret): (&str, &str), arguments: &[&str]) -> Finished {
    let mut aws = program::installed("aws");
    aws.args(["--endpoint-url", &moto.url, "--region", "eu-central-1", "--output", "json"]).args(arguments);
    aws.env_clear().env("PATH", program::path());
    aws.envs([("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]);
    Program::run(aws).await
}

/// What it answers an administrator.
async fn aws(moto: &Moto, arguments: &[&str]) -> Value {
    let done = aws_as(moto, ("admin", "admin"), arguments).await;
    serde_json::from_str(&done.expect_success()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_aws_and_openbao_reach_one_workload() {
    let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
    let (moto, bao) = (Moto::start().await, OpenBao::start().await);
    let document = json!({ "username": "erp", "key": SECRET }).to_string();
    aws(&moto, &["secretsmanager", "create-secret", "--name", "erp", "--secret-string", &document]).await;
    aws(&moto, &["iam", "create-user", "--user-name", "jobpass"]).await;
    // moto knows of no resource but `*`.
    let allowed = json!({ "Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "*" });
    let policy = json!({ "Version": "2012-10-17", "Statement": [allowed] });
    let policy = policy.to_string();
    let put =
        ["iam", "put-user-policy", "--user-name", "jobpass", "--policy-name", "read", "--policy-document", &policy];
    aws(&moto, &put).await;
    let key = aws(&moto, &["iam", "create-access-key", "--user-name", "jobpass"]).await;
    let [id, secret] = ["AccessKeyId", "SecretAccessKey"].map(|name| key["AccessKey"][name].as_str().unwrap());
    // From now on it checks who asks, and whether they may.
    let strict =
        client().post(format!("{}/moto-api/reset-auth", moto.url)).body("0").header("content-type", "text/plain");
    assert!(strict.send().await.unwrap().status().is_success());

    let read = ["secretsmanager", "get-secret-value", "--secret-id", "erp"];
    assert!(!aws_as(&moto, (id, "wrong"), &read).await.status.success(), "signatures count");

    let secrets_manager = |id: &str| {
        json!({ "aws_secrets_manager": {
            "region": "eu-central-1", "secret_id": id, "endpoint_url": moto.url, "insecure_http": true,
        } })
    };
    let kv = json!({ "vault_kv": {
        "server": { "address": bao.url(), "audience": AUDIENCE, "token_lifetime": "1h", "insecure_http": true },
        "role": "legacy", "path": "ci/erp",
    } });
    let backend = |grant: &str, source: &Value| json!({ "fixed": { "grant": grant, "owner": "erp@acme.example", "rotate_every": "1ms", "source": source } });
    let leaked = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let server = setup(&github, &gitlab)
        .environment("AWS_ACCESS_KEY_ID", leaked(id))
        .environment("AWS_SECRET_ACCESS_KEY", leaked(secret))
        .backend("erp-aws", backend("erp-aws", &secrets_manager("erp")))
        .backend("erp-others", backend("erp-others", &secrets_manager("nothing")))
        .backend("erp-bao", backend("erp-bao", &kv))
        .grant_text("erp-aws", &grant("erp-aws", "erp-aws", &json!({ "as": "fields" }), "5m"))
        .grant_text("erp-others", &grant("erp-others", "erp-others", &json!({ "as": "bearer" }), "5m"))
        .grant_text("erp-bao", &grant("erp-bao", "erp-bao", &json!({ "as": "bearer", "field": "key" }), "5m"))
        .start()
        .await;
    for secret in [SECRET, secret] {
        server.keep_quiet(secret);
    }
    bao.trust(&server.url).await;
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE], "bound_claims": { "grant": "erp-bao" },
        "token_policies": ["ci"], "token_ttl": "1m", "token_type": "service",
    });
    bao.admin("auth/jwt/role/legacy", role).await;
    bao.admin("secret/data/ci/erp", json!({ "data": { "key": SECRET } })).await;

    for (grant, status, field) in
        [("erp-aws", 200, "/credential/key"), ("erp-others", 502, "/none"), ("erp-bao", 200, "/credential/token")]
    {
        let answer = server.exchange(grant, &token(&github, &server), &[]).await;
        assert_eq!(answer.status, status, "{grant}: {}", answer.body);
        if status == 200 {
            assert_eq!(answer.body.pointer(field), Some(&json!(SECRET)), "{grant}");
            assert_eq!(answer.body["revocable"], false, "{grant}");
            let told = server.post("/revoke", &[("token", answer.body["refresh_token"].as_str().unwrap())]).await;
            assert_eq!(told.body["state"], "outliving", "{grant}");
        }
    }
    // Each source said when its version was made, which is longer ago than it may be.
    let log = server.log();
    let source = format!("vault-kv:{}/secret/ci/erp", bao.url());
    for source in ["aws-secrets-manager:eu-central-1:erp", &source] {
        let told = log.lines().any(|line| line.contains(source) && line.contains("erp@acme.example has to rotate it"));
        assert!(told, "{source}: {log}");
    }
}
