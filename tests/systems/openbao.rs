//! A token that we sign logs in to a real OpenBao, which knows nothing of us but our issuer's URL.

use crate::world::{VAULT_AUDIENCE, issuer, setup, token};
use jobpass_exchanger::demo::Ci;
use jobpass_tests::openbao::OpenBao;
use serde_json::json;

#[tokio::test]
async fn a_signed_jwt_logs_in_through_our_discovery() {
    let (github, gitlab) = (issuer(Ci::GitHub).await, issuer(Ci::GitLab).await);
    let server = setup(&github, &gitlab).start().await;
    let bao = OpenBao::start().await;
    bao.trust(&server.url).await;
    bao.role("ci", VAULT_AUDIENCE, json!({ "repository_id": "772002" })).await;
    bao.role("another-audience", "vault.acme.example", json!({})).await;
    bao.role("another-repository", VAULT_AUDIENCE, json!({ "repository_id": "772003" })).await;

    let token = token(&github, &server);
    let answer = server.exchange("vault", &token, &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let jwt = answer.body["access_token"].as_str().unwrap();

    let login = bao.login("ci", jwt).await.unwrap();
    assert_eq!(login["policies"], json!(["ci", "default"]));
    for (role, complaint) in [("another-audience", "audience"), ("another-repository", "repository_id")] {
        let refusal = bao.login(role, jwt).await.unwrap_err();
        assert!(refusal.contains(complaint), "{role}: {refusal}");
    }
    let refusal = bao.login("ci", &token).await.unwrap_err();
    assert!(refusal.contains("error validating token"), "the CI's own token opens nothing: {refusal}");
}
