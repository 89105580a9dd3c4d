//! Credentials beside OpenBao's own: PostgreSQL roles, SSH certificates, X.509 certificates. Each exchange
//! of jobpass is one request and durable; OpenBao is asked in its best way: a login with a batch token and
//! a request for a role, or, where it can, both in one request.

use crate::{
    jobpass::{Backend, Jobpass},
    load::{self, Ask, Cell, Connection, Plan},
    openbao::{Admin, OpenBao, granted as bao_granted, inline, login, request},
    server::Server,
    tokens::Forge,
};
use anyhow::{Context as _, Result, ensure};
use jobpass_tests::{mtls::MutualTls, postgres::Postgres, program};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

const WARM_UP: Duration = Duration::from_millis(500);
/// Exchanges per second that there are tokens for.
const MOST_PER_SECOND: usize = 4_000;
/// Connections of both to PostgreSQL.
const POOL: usize = 16;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Role,
    QuickRole,
    RoleAndBack,
    QuickRoleAndBack,
    Ssh,
    X509,
}

impl Kind {
    const ALL: [(Self, &'static [usize]); 6] = [
        (Self::Role, &[1, 64]),
        (Self::QuickRole, &[1, 64]),
        (Self::RoleAndBack, &[1, 64]),
        (Self::QuickRoleAndBack, &[1, 64]),
        (Self::Ssh, &[16]),
        (Self::X509, &[16]),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Role => "PostgreSQL role",
            Self::QuickRole => "the same, scram_iterations: 1",
            Self::RoleAndBack => "PostgreSQL role, and taken back",
            Self::QuickRoleAndBack => "the same, scram_iterations: 1",
            Self::Ssh => "SSH certificate",
            Self::X509 => "X.509 certificate",
        }
    }

    const fn is_taken_back(self) -> bool {
        matches!(self, Self::RoleAndBack | Self::QuickRoleAndBack)
    }

    const fn grant(self) -> &'static str {
        match self {
            Self::Role | Self::RoleAndBack => "database",
            Self::QuickRole | Self::QuickRoleAndBack => "quick",
            Self::Ssh => "hosts",
            Self::X509 => "mesh",
        }
    }
}

struct World {
    jobpass: Jobpass,
    running: Server,
    openbao: OpenBao,
    forge: Forge,
    ssh_key: String,
    csr: String,
    // Ended with the rest.
    _postgres: Postgres,
    _authority: MutualTls,
}

/// Measures, and prints a table.
pub(crate) fn measure(exchanger: &Path, bao: &Path, directory: &Path, time: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let directory = tempfile::tempdir_in(directory)?;
    let world = runtime.block_on(set_up(exchanger, bao, directory.path()))?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:34}{:>6}{:>14}{:>14}{:>12}{:>14}{:>14}{:>12}{:>20}",
        "", "conn.", "jobpass /s", "OpenBao /s", "times", "jobpass CPU", "OpenBao CPU", "times", "PostgreSQL CPU"
    )?;
    for (kind, connections) in Kind::ALL {
        for connections in connections {
            let [ours, theirs] = world.cells(kind, *connections, time)?;
            // Nothing else runs: what neither the server nor the load used is PostgreSQL's.
            let beside = |cell: &Cell| cell.others * 1000.0 / cell.rate;
            writeln!(
                out,
                "{:34}{connections:6}{:14.0}{:14.0}{:12.2}{:11.3} ms{:11.3} ms{:12.2}{:8.2}, {:.2} ms",
                kind.name(),
                ours.rate,
                theirs.rate,
                ours.rate / theirs.rate,
                ours.cpu_ms,
                theirs.cpu_ms,
                theirs.cpu_ms / ours.cpu_ms,
                beside(&ours),
                beside(&theirs)
            )?;
        }
    }
    writeln!(
        out,
        "\nCPU: of the server alone, per credential. PostgreSQL CPU: what everything else used, beside jobpass and beside OpenBao."
    )?;
    writeln!(
        out,
        "goals: roles at 64 connections 4 times as many, at 1 as many; 1 ms of CPU each; certificates a tenth of the CPU."
    )?;
    Ok(())
}

async fn set_up(exchanger: &Path, bao: &Path, directory: &Path) -> Result<World> {
    // Durable, as it is anywhere else: OpenBao holds a lock until a role is committed.
    let postgres = Postgres::start_with(&["fsync=on"]).await;
    postgres.admin().await.batch_execute("CREATE ROLE app").await?;
    let authority = MutualTls::start().await;
    let (key, password) = (directory.join("ssh"), directory.join("password"));
    let made =
        program::system("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&key).status()?;
    ensure!(made.success(), "ssh-keygen made no key");
    fs::write(&password, jobpass_tests::postgres::ADMIN_PASSWORD)?;

    let mut database = postgres.backend(&format!("file:{}", password.display()));
    database["postgres"]["max_connections"] = POOL.into();
    let mut quick = database.clone();
    quick["postgres"]["scram_iterations"] = 1.into();
    let backends = [
        Backend { name: "database", config: database, credential: "{ roles: [app] }" },
        Backend { name: "quick", config: quick, credential: "{ roles: [app] }" },
        Backend {
            name: "hosts",
            config: json!({ "ssh": { "ca_key": format!("file:{}", key.display()), "principals": ["deploy"] } }),
            credential: "{ principals: [deploy] }",
        },
        Backend {
            name: "mesh",
            config: json!({ "x509": {
                "ca_certificate": authority.path("ca.pem"), "ca_key": format!("file:{}", authority.path("ca.key").display()),
                "trust_domain": "acme.example",
            } }),
            credential: "{ spiffe_id: \"spiffe://acme.example/ci/{{ claims.repository_id }}\" }",
        },
    ];
    let forge = Forge::new()?;
    let jobpass = Jobpass::prepare(exchanger, &directory.join("jobpass"), &forge, &backends)?;
    let (running, _) = jobpass.start(&forge)?;
    let port = postgres.port;
    let openbao = OpenBao::start(bao, &directory.join("openbao"), &forge, &jobpass.url, &|admin| engines(admin, port))?;
    let ssh_key = fs::read_to_string(key.with_extension("pub"))?.trim().to_owned();
    let csr = fs::read_to_string(authority.path("job.pem"))?;
    Ok(World { jobpass, running, openbao, forge, ssh_key, csr, _postgres: postgres, _authority: authority })
}

/// What OpenBao makes credentials with.
fn engines(admin: &mut Admin, port: u16) -> Result<()> {
    let paths = ["identity/oidc/token/*", "ssh/sign/ci", "pki/sign/ci", "database/creds/*", "sys/leases/revoke"];
    let allow = |path| format!("path \"{path}\" {{ capabilities = [\"read\", \"create\", \"update\"] }}\n");
    let policy: String = paths.into_iter().map(allow).collect();
    let url = format!("postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/postgres?sslmode=disable");
    for (path, body) in [
        ("sys/policies/acl/ci", json!({ "policy": policy })),
        ("sys/mounts/ssh", json!({ "type": "ssh" })),
        ("ssh/config/ca", json!({ "generate_signing_key": true, "key_type": "ed25519" })),
        (
            "ssh/roles/ci",
            json!({ "key_type": "ca", "allow_user_certificates": true, "allowed_users": "deploy", "ttl": "15m",
                "default_extensions": { "permit-pty": "" } }),
        ),
        ("sys/mounts/pki", json!({ "type": "pki" })),
        (
            "pki/root/generate/internal",
            json!({ "common_name": "root", "key_type": "ec", "key_bits": 256, "ttl": "87600h" }),
        ),
        (
            "pki/roles/ci",
            json!({ "allowed_domains": "deploy.example.test", "allow_subdomains": true, "key_type": "ec", "key_bits": 256,
                "ttl": "15m", "max_ttl": "15m", "no_store": true, "generate_lease": false, "use_csr_common_name": false, "use_csr_sans": false }),
        ),
        ("sys/mounts/database", json!({ "type": "database" })),
        (
            "database/config/pg",
            json!({ "plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "connection_url": url,
                "username": jobpass_tests::postgres::ADMIN, "password": jobpass_tests::postgres::ADMIN_PASSWORD,
                "max_open_connections": POOL, "max_idle_connections": POOL }),
        ),
        (
            "database/roles/ci",
            json!({ "db_name": "pg", "default_ttl": "15m", "max_ttl": "15m",
                "creation_statements": ["CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE app;"],
                "revocation_statements": ["DROP ROLE IF EXISTS \"{{name}}\";"] }),
        ),
    ] {
        admin.call("POST", path, &body).with_context(|| path.to_owned())?;
    }
    Ok(())
}

impl World {
    /// jobpass's cell and OpenBao's, one after the other.
    fn cells(&self, kind: Kind, connections: usize, time: Duration) -> Result<[Cell; 2]> {
        eprintln!("{}, {connections} connections", kind.name());
        let wanted = (MOST_PER_SECOND as f64 * (time + WARM_UP).as_secs_f64()) as usize;
        let tokens = self.forge.mint(wanted, &self.jobpass.url)?;
        let plan = Plan { connections, warm_up: WARM_UP, time, most: tokens.len() };
        let more: &[(&str, &str)] = match kind {
            Kind::Role | Kind::QuickRole | Kind::RoleAndBack | Kind::QuickRoleAndBack => &[],
            Kind::Ssh => &[("public_key", &self.ssh_key)],
            Kind::X509 => &[("csr", &self.csr)],
        };
        let requests: Vec<_> = tokens.iter().map(|token| self.jobpass.ask(token, kind.grant(), more)).collect();
        let ours: &Ask<'_> = &|connection, i| {
            let handle = answered(connection, &requests[i], "refresh_token")?;
            // An answer waits for a few seconds; then the rest is the reaper's, and counted no less.
            if kind.is_taken_back() {
                answered(connection, &self.jobpass.revoke(&handle), "state")?;
            }
            Ok(())
        };
        let ours = load::run(&self.running, &plan, ours)?;
        let logins: Vec<_> = tokens.iter().map(|token| login("jwt-batch", token)).collect();
        let (ssh, csr) = (
            json!({ "public_key": self.ssh_key, "valid_principals": "deploy" }).to_string(),
            json!({ "csr": self.csr, "common_name": "app.deploy.example.test" }).to_string(),
        );
        let theirs: &Ask<'_> = &|connection, i| match kind {
            Kind::Ssh => bao_granted(connection, &request("POST", "ssh/sign/ci", &inline(&tokens[i]), &ssh)).map(drop),
            Kind::X509 => bao_granted(connection, &request("POST", "pki/sign/ci", &inline(&tokens[i]), &csr)).map(drop),
            _ => {
                let token = format!("x-vault-token: {}\r\n", bao_granted(connection, &logins[i])?);
                let lease = answered(connection, &request("GET", "database/creds/ci", &token, ""), "lease_id")?;
                if kind.is_taken_back() {
                    let body = json!({ "lease_id": lease, "sync": true }).to_string();
                    let answer = connection.ask(&request("PUT", "sys/leases/revoke", &token, &body))?;
                    ensure!((200..300).contains(&answer.status), "{}", String::from_utf8_lossy(answer.body));
                }
                Ok(())
            }
        };
        let theirs = load::run(self.openbao.server(), &plan, theirs)?;
        Ok([ours, theirs])
    }
}

/// Sends a request that must succeed; returns a text of its answer.
fn answered(connection: &mut Connection, request: &[u8], name: &str) -> Result<String> {
    let began = Instant::now();
    let answer = connection.ask(request)?;
    let body = String::from_utf8_lossy(answer.body);
    ensure!(answer.status == 200, "{} after {:?}: {body}", answer.status, began.elapsed());
    let json: Value = serde_json::from_str(&body).or_else(|_| {
        // A chunked body still has its chunks' sizes around it.
        let (start, end) = (body.find('{').unwrap_or(0), body.rfind('}').map_or(body.len(), |end| end + 1));
        serde_json::from_str(&body[start..end])
    })?;
    Ok(json[name].as_str().unwrap_or_default().to_owned())
}
