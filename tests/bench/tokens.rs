//! Tokens like GitHub's, made as fast as the machine signs: 33 claims, 2 kB, of jobs in 500 repositories.

use anyhow::{Result, anyhow};
use aws_lc_rs::{
    encoding::AsDer as _,
    rand::{self, SystemRandom},
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jobpass_tests::http::now;
use serde_json::{Value, json};
use std::thread;

/// The issuer of the tokens.
pub(crate) const ISSUER: &str = "https://token.actions.githubusercontent.com";
/// The owner of all repositories: the tenant.
pub(crate) const TENANT: &str = "65";
/// How many repositories there are.
pub(crate) const REPOSITORIES: usize = 500;
const KEY_ID: &str = "38826b17-6a30-5f9b-b169-8beb8202f723";
const LIFETIME: i64 = 3 * 3600;

/// A signed token.
pub(crate) type Token = String;

/// The issuer's key, and what it signs.
pub(crate) struct Forge(KeyPair);

impl Forge {
    /// A new RSA-2048 key.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(KeyPair::generate(KeySize::Rsa2048)?))
    }

    /// The public key as PKCS #1, DER.
    pub(crate) fn public_key_pkcs1(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// The public key as SPKI, PEM.
    pub(crate) fn public_key_pem(&self) -> Result<String> {
        let der = self.0.public_key().as_der()?;
        Ok(format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref())))
    }

    /// The key set that the issuer publishes.
    pub(crate) fn jwks(&self) -> Value {
        let key = self.0.public_key();
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (n, e) = (key.modulus(), key.exponent());
        json!({ "keys": [{
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": KEY_ID,
            "n": number(n.big_endian_without_leading_zero()), "e": number(e.big_endian_without_leading_zero()),
        }] })
    }

    /// Fresh tokens for one audience, made on all cores.
    pub(crate) fn mint(&self, count: usize, audience: &str) -> Result<Vec<Token>> {
        let at = now();
        let threads = thread::available_parallelism()?.get();
        let mint = |first: usize| (first..count).step_by(threads).map(|n| self.token(n, at, audience)).collect();
        let parts: Result<Vec<Vec<Token>>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|first| scope.spawn(move || mint(first))).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Result<_>>| {
                worker.join().map_err(|_| anyhow!("a thread that signs died"))?
            };
            workers.into_iter().map(join).collect()
        });
        Ok(parts?.into_iter().flatten().collect())
    }

    fn token(&self, n: usize, at: i64, audience: &str) -> Result<Token> {
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5t": "ykNaY4qM_ta4k2TgZOCEYLkcYlA", "kid": KEY_ID });
        let mut token = encode(&header);
        token.push('.');
        token.push_str(&encode(&claims(n, at, audience)?));
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }
}

/// 128 random bits in hex: a session secret, or a request id.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)?;
    Ok(uuid::Uuid::from_bytes(bytes).simple().to_string())
}

fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

fn claims(n: usize, at: i64, audience: &str) -> Result<Value> {
    let mut id = [0; 16];
    rand::fill(&mut id)?;
    let id = uuid::Builder::from_random_bytes(id).into_uuid();
    let repository_number = n % REPOSITORIES;
    let repository = format!("octo-org/app-{repository_number:04}");
    let workflow = format!("{repository}/.github/workflows/deploy.yml@refs/heads/main");
    let commit = format!("{}01234567", id.simple());
    Ok(json!({
        "jti": id,
        "iss": ISSUER,
        "aud": audience,
        "sub": format!("repo:{repository}:environment:production"),
        "iat": at - 5,
        "nbf": at - 305,
        "exp": at + LIFETIME,
        "repository": repository,
        "repository_id": (74_000_000 + repository_number).to_string(),
        "repository_owner": "octo-org",
        "repository_owner_id": TENANT,
        "repository_visibility": "private",
        "enterprise": "octo-enterprise",
        "enterprise_id": "7",
        "actor": format!("dev-{}", n % 211),
        "actor_id": (12_000 + n % 211).to_string(),
        "event_name": "push",
        "ref": "refs/heads/main",
        "ref_type": "branch",
        "ref_protected": "true",
        "head_ref": "",
        "base_ref": "",
        "sha": commit,
        "environment": "production",
        "environment_node_id": format!("EN_kwDOBGk{repository_number:04}"),
        "workflow": "Deploy",
        "workflow_ref": workflow,
        "workflow_sha": commit,
        "job_workflow_ref": workflow,
        "job_workflow_sha": commit,
        "run_id": (9_100_000_000_usize + n).to_string(),
        "run_number": (n % 997 + 1).to_string(),
        "run_attempt": "1",
        "check_run_id": (38_000_000_000_usize + n).to_string(),
        "runner_environment": "github-hosted",
    }))
}
