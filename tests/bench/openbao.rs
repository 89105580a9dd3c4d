//! OpenBao as it is measured: one node with raft storage and a file audit device, which is its
//! durable form, set up in its favour: keys pinned, entities made beforehand, ES256.

use crate::{
    load::Connection,
    server::{self, Server},
    tokens::{Forge, ISSUER, REPOSITORIES, Token},
};
use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::{fs, net::SocketAddr, path::Path, process::Command, thread, time::Duration};

/// How a job gets its identity token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The default: a login with a stored token, then the identity token.
    Service,
    /// A login with a token that is not stored, then the identity token.
    Batch,
    /// The login in the identity token's own request.
    Inline,
}

impl Mode {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Service, Self::Batch, Self::Inline];

    /// What the report calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service => "OpenBao, default",
            Self::Batch => "OpenBao, batch tokens",
            Self::Inline => "OpenBao, inline",
        }
    }

    /// Whole exchanges, one for each token. Each kind of token has a mount and a role of its own:
    /// switching kinds would cost a write.
    pub(crate) fn exchanges(self, tokens: &[Token]) -> Vec<Exchange> {
        let make = |token: &Token| match self {
            Self::Service => Exchange::Two { login: login("jwt", token), then: "identity/oidc/token/jwt" },
            Self::Batch => Exchange::Two { login: login("jwt-batch", token), then: "identity/oidc/token/jwt-batch" },
            Self::Inline => Exchange::One(request("GET", "identity/oidc/token/jwt-batch", &inline(token), "")),
        };
        tokens.iter().map(make).collect()
    }
}

/// A login by a mount's role.
pub(crate) fn login(mount: &str, token: &Token) -> Vec<u8> {
    request("POST", &format!("auth/{mount}/login"), "", &json!({ "role": "ci", "jwt": token }).to_string())
}

/// The headers that log in within another request.
pub(crate) fn inline(token: &Token) -> String {
    let parameter = |key: &str, value: &str| URL_SAFE_NO_PAD.encode(json!({ "key": key, "value": value }).to_string());
    format!(
        "x-vault-inline-auth-path: auth/jwt-batch/login\r\nx-vault-inline-auth-parameter-role: {}\r\n\
         x-vault-inline-auth-parameter-jwt: {}\r\n",
        parameter("role", "ci"),
        parameter("jwt", token)
    )
}

/// One exchange's requests.
pub(crate) enum Exchange {
    /// A login, then a request with the token that it gave.
    Two { login: Vec<u8>, then: &'static str },
    /// One request.
    One(Vec<u8>),
}

/// A running OpenBao.
pub(crate) struct OpenBao(Server);

/// A connection with all rights.
pub(crate) struct Admin {
    connection: Connection,
    token: String,
}

impl OpenBao {
    /// Starts it, unseals it, sets it up, and as `more` says.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        forge: &Forge,
        audience: &str,
        more: &dyn Fn(&mut Admin) -> Result<()>,
    ) -> Result<Self> {
        let (address, cluster) = (server::free_address()?, server::free_address()?);
        fs::create_dir_all(directory.join("data"))?;
        let directory = directory.display();
        let config = format!(
            "storage \"raft\" {{\n path = \"{directory}/data\"\n node_id = \"one\"\n}}\n\
             listener \"tcp\" {{\n address = \"{address}\"\n tls_disable = true\n}}\n\
             audit \"file\" \"file\" {{\n options {{ file_path = \"{directory}/audit.log\" }}\n}}\n\
             api_addr = \"http://{address}\"\ncluster_addr = \"http://{cluster}\"\nlog_level = \"error\"\n"
        );
        let file = format!("{directory}/bao.hcl");
        fs::write(&file, config)?;
        let mut command = Command::new(program);
        command.args(["server", "-config", &file]);
        let log = format!("{directory}/log");
        let (server, _) = Server::start(command, address, Path::new(&log), &|connection| {
            Ok(connection.ask(&request("GET", "sys/health", "", ""))?.status == 501)
        })?;
        let mut admin = Admin { connection: Connection::to(address)?, token: String::new() };
        let made = admin.call("PUT", "sys/init", &json!({ "secret_shares": 1, "secret_threshold": 1 }))?;
        admin.token = text(&made, "/root_token")?;
        admin.call("PUT", "sys/unseal", &json!({ "key": text(&made, "/keys/0")? }))?;
        wait_until_active(address)?;
        set_up(&mut admin, forge, audience)?;
        more(&mut admin)?;
        let openbao = Self(server);
        openbao.first_logins(&forge.mint(REPOSITORIES, audience)?)?;
        Ok(openbao)
    }

    /// One login of each subject, so that no measured one pays for making an entity.
    fn first_logins(&self, tokens: &[Token]) -> Result<()> {
        let mut connection = Connection::to(self.0.address())?;
        for mode in [Mode::Service, Mode::Batch] {
            for exchange in mode.exchanges(tokens) {
                exchange.run(&mut connection)?;
            }
        }
        Ok(())
    }

    /// The running program.
    pub(crate) const fn server(&self) -> &Server {
        &self.0
    }
}

fn set_up(admin: &mut Admin, forge: &Forge, audience: &str) -> Result<()> {
    let policy = r#"path "identity/oidc/token/*" { capabilities = ["read"] }"#;
    admin.call("POST", "sys/policies/acl/ci", &json!({ "policy": policy }))?;
    for (mount, kind) in [("jwt", "service"), ("jwt-batch", "batch")] {
        admin.call("POST", &format!("sys/auth/{mount}"), &json!({ "type": "jwt" }))?;
        let keys = json!({ "jwt_validation_pubkeys": [forge.public_key_pem()?], "bound_issuer": ISSUER });
        admin.call("POST", &format!("auth/{mount}/config"), &keys)?;
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": [audience],
            "bound_claims_type": "glob",
            "bound_claims": { "repository": "octo-org/*", "ref": "refs/heads/main", "environment": "production" },
            "claim_mappings": { "repository": "repository" },
            "token_policies": ["ci"], "token_type": kind, "token_ttl": "10m", "token_max_ttl": "10m",
        });
        admin.call("POST", &format!("auth/{mount}/role/ci"), &role)?;
        let mounted = admin.call("GET", &format!("sys/auth/{mount}"), &Value::Null)?;
        let template = format!(
            "{{\"repository\":{{{{identity.entity.aliases.{}.metadata.repository}}}}}}",
            text(&mounted, "/data/accessor")?
        );
        let key = json!({ "allowed_client_ids": ["*"], "algorithm": "ES256" });
        admin.call("POST", &format!("identity/oidc/key/{mount}"), &key)?;
        let role = json!({ "key": mount, "ttl": "10m", "template": template });
        admin.call("POST", &format!("identity/oidc/role/{mount}"), &role)?;
    }
    Ok(())
}

impl Exchange {
    /// Gets one identity token.
    pub(crate) fn run(&self, connection: &mut Connection) -> Result<()> {
        match self {
            Self::One(whole) => granted(connection, whole).map(drop),
            Self::Two { login, then } => {
                let token = granted(connection, login)?;
                granted(connection, &request("GET", then, &format!("x-vault-token: {token}\r\n"), "")).map(drop)
            }
        }
    }
}

impl Admin {
    /// Sends a request that must succeed.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let header = format!("x-vault-token: {}\r\n", self.token);
        let answer = self.connection.ask(&request(method, path, &header, &body))?;
        let answered = String::from_utf8_lossy(answer.body);
        ensure!((200..300).contains(&answer.status), "{path}: {} {answered}", answer.status);
        Ok(serde_json::from_str(&answered).unwrap_or_default())
    }
}

/// Sends a request that must succeed; returns the `client_token` in the answer, if there is one.
pub(crate) fn granted(connection: &mut Connection, request: &[u8]) -> Result<String> {
    let answer = connection.ask(request)?;
    let body = String::from_utf8_lossy(answer.body);
    ensure!(answer.status == 200, "{}: {body}", answer.status);
    let token = body.split_once(r#""client_token":""#).and_then(|(_, rest)| rest.split_once('"'));
    Ok(token.map(|(token, _)| token.to_owned()).unwrap_or_default())
}

fn wait_until_active(address: SocketAddr) -> Result<()> {
    for _ in 0..1000 {
        if Connection::to(address)?.ask(&request("GET", "sys/health", "", ""))?.status == 200 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("it does not become active")
}

/// A whole request.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} /v1/{path} HTTP/1.1\r\nhost: openbao\r\n{headers}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn text(answer: &Value, pointer: &str) -> Result<String> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    Ok(text.with_context(|| format!("no {pointer} in OpenBao's answer"))?.to_owned())
}
