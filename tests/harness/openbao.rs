//! A real OpenBao in its development mode, set up to take an issuer's JWTs.

use crate::{
    http, ports,
    program::{self, Finished, Program},
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

const ROOT_TOKEN: &str = "root";

/// A running OpenBao; ended on drop.
pub struct OpenBao {
    url: String,
    _program: Program,
    home: TempDir,
}

impl OpenBao {
    /// Starts it, unsealed and empty: under a second.
    pub async fn start() -> Self {
        let home = tempfile::tempdir().expect("the temporary directory is there");
        let address = format!("127.0.0.1:{}", ports::free());
        let url = format!("http://{address}");
        let mut command = program::installed("bao");
        command.args(["server", "-dev", "-dev-no-store-token"]).env("HOME", home.path());
        command.arg(format!("-dev-root-token-id={ROOT_TOKEN}")).arg(format!("-dev-listen-address={address}"));
        let unsealed = async || {
            let health = http::client().get(format!("{url}/v1/sys/health")).send().await;
            health.is_ok_and(|answer| answer.status().is_success())
        };
        let program = Program::start(command).ready(unsealed).await;
        Self { url, _program: program, home }
    }

    /// Trusts an issuer, found by its discovery document.
    pub async fn trust(&self, issuer: &str) {
        self.admin("sys/auth/jwt", json!({ "type": "jwt" })).await;
        self.admin("auth/jwt/config", json!({ "oidc_discovery_url": issuer, "bound_issuer": issuer })).await;
        self.admin(
            "sys/policies/acl/ci",
            json!({ "policy": r#"path "secret/data/ci/*" { capabilities = ["read"] }"# }),
        )
        .await;
    }

    /// Adds a role for that issuer's tokens for `audience` whose claims have the `bound` values.
    pub async fn role(&self, role: &str, audience: &str, bound: Value) {
        let config = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": [audience], "bound_claims": bound,
            "token_policies": ["ci"], "token_ttl": "5m", "token_type": "batch",
        });
        self.admin(&format!("auth/jwt/role/{role}"), config).await;
    }

    /// Logs in with a JWT.
    ///
    /// # Errors
    /// What OpenBao says when it refuses the token.
    pub async fn login(&self, role: &str, jwt: &str) -> Result<Value, String> {
        let body = json!({ "role": role, "jwt": jwt });
        let answer = http::client().post(format!("{}/v1/auth/jwt/login", self.url)).json(&body).send().await;
        let answer = answer.expect("OpenBao answers");
        let accepted = answer.status().is_success();
        let body: Value = answer.json().await.expect("OpenBao answers in JSON");
        if accepted { Ok(body["auth"].clone()) } else { Err(body["errors"].to_string()) }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A command of `bao` with a token.
    pub async fn cli(&self, token: &str, arguments: &[&str]) -> Finished {
        let mut command = program::installed("bao");
        command.args(arguments).env("HOME", self.home.path()).env("BAO_ADDR", &self.url).env("BAO_TOKEN", token);
        Program::run(command).await
    }

    /// What it answers to a token that reads a path.
    pub async fn read(&self, token: &str, path: &str) -> u16 {
        let request = http::client().get(format!("{}/v1/{path}", self.url)).bearer_auth(token);
        request.send().await.expect("OpenBao answers").status().as_u16()
    }

    /// Writes a path as its administrator.
    pub async fn admin(&self, path: &str, body: Value) {
        let request = http::client().request(Method::POST, format!("{}/v1/{path}", self.url));
        let answer = request.header("x-vault-token", ROOT_TOKEN).json(&body).send().await.expect("OpenBao answers");
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        assert!(status.is_success(), "{path}: {status} {text}");
    }
}
