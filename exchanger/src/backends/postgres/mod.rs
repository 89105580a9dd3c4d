//! `postgres`: a login role for each lease, member of the grant's roles, gone with the lease.
//!
//! The server never sees a password: we send it a SCRAM-SHA-256 verifier (RFC 5802, RFC 7677). One
//! transaction makes the role, and fails when it comes too late. Taking it back shuts the role out first,
//! ends its sessions (they would outlive both its expiry and its removal), hands over its data and drops what
//! else it owns in every database of the cluster, and then drops it.

mod pool;
mod removal;
mod rights;
mod scram;
mod sql;
#[cfg(test)]
mod tests;
mod turns;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, registry::BuildContext, spec,
    spec::SpecReader,
};
use crate::{
    clock::{Clock, Timestamp},
    config::{SecretRef, Span},
    leases::{Lease, Revocability, State},
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::Credential;
use pool::{Link, Pool, Server, Tls};
pub use rights::{Privilege, PrivilegesFile};
use rights::{Rights, Statements};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use sql::{Identifier, NewRole};
use std::{
    fmt::Write as _,
    num::NonZeroU32,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, Semaphore},
    time::{Instant, timeout},
};
use tokio_postgres::{
    Client, SimpleQueryMessage,
    config::SslMode,
    error::{DbError, Severity, SqlState},
};
use turns::Turns;
use zeroize::Zeroizing;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The server's host name or address, or the directory of its Unix socket.
    pub host: String,
    /// Its port. Default 5432.
    pub port: Option<u16>,
    /// The database that we connect to, and that jobs get unless their grant names another.
    pub database: String,
    /// The role that makes and drops roles: `CREATEROLE`, and admin option on the roles that grants hand out.
    pub user: String,
    /// Its password, by reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub password: Option<SecretRef>,
    /// How the connection is protected. Default: `disable` for loopback and Unix sockets, else `verify-full`.
    pub sslmode: Option<Protection>,
    /// The server's own certificate authority, PEM. Default: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The roles that grants may hand out. Default: any that our own role may grant.
    pub roles: Option<Vec<String>>,
    /// Whether grants may have `statements` run with our role's rights. Default: no.
    #[serde(default)]
    pub statements: bool,
    /// Who gets the data that a dropped role owned: its schemas, tables, sequences, large objects, enumerations
    /// and composite types. What else it owned is dropped. Default: all of it is.
    pub reassign_owned_to: Option<String>,
    /// Where jobs find the server, if not where we do.
    #[serde(default)]
    pub advertise: Advertise,
    /// How many connections we keep at most. Default 8.
    pub max_connections: Option<u16>,
    /// How often the password is hashed. Default 4096, the least that some drivers accept (pgjdbc). PostgreSQL
    /// hashes as often to make a role; the passwords are random, so that 1 protects them as well.
    pub scram_iterations: Option<NonZeroU32>,
    /// How long a creation may take. Default `5s`.
    pub deadline: Option<Span>,
    /// How long after the deadline one may still be on its way inside the server. Default `15s`.
    pub settle: Option<Span>,
}

/// How a connection is protected, in libpq's words. Nothing between: a connection that is encrypted
/// without knowing to whom protects from nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Not at all.
    Disable,
    /// By TLS, with the server's certificate checked for its host name.
    VerifyFull,
}

/// Where jobs find the server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Its host.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// libpq's `sslmode` for them. Default: `require` where our own connection uses TLS, else `prefer`.
    pub sslmode: Option<String>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The roles whose member the login becomes, as templates over stable claims.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Rights on schemas, in this and other databases of the cluster.
    #[serde(default)]
    pub privileges: Vec<PrivilegesFile>,
    /// SQL statements that are run in the transaction that makes the login, with `{{ role }}` for its name,
    /// `{{ claims.NAME }}` for a claim as a string constant and `{{ claims.NAME | identifier }}` for one as a name.
    #[serde(default)]
    pub statements: Vec<String>,
    /// The database that the job is told. Default: the backend's.
    pub database: Option<String>,
    /// How many connections it may have at once. Default 5.
    pub connection_limit: Option<u16>,
}

const PORT: u16 = 5432;
const MAX_CONNECTIONS: u16 = 8;
const CONNECTION_LIMIT: u16 = 5;
const DEADLINE: Duration = Duration::from_secs(5);
/// Longer than the statement timeout that each connection is given.
const SETTLE: Duration = Duration::from_secs(15);
/// One step of taking a role back.
const STEP: Duration = Duration::from_secs(15);
/// The longest comment on a role, in bytes.
const MAX_COMMENT: usize = 2000;

const ROLE: FieldRules = FieldRules {
    authority: true,
    allowed: |c| !c.is_control(),
    max_len: 63,
    expected: "a role's name without control characters",
};

/// A backend that makes login roles.
pub struct Postgres {
    identity: String,
    pool: Pool,
    turns: Turns,
    /// Objects are removed for so many roles at once: others' sessions may hold that up, and must not take all
    /// connections.
    removals: Semaphore,
    clock: Arc<dyn Clock>,
    roles: Option<Vec<String>>,
    may_run_statements: bool,
    heir: Option<Identifier>,
    job_host: String,
    job_port: u16,
    job_sslmode: String,
    database: String,
    scram_iterations: NonZeroU32,
    deadline: Duration,
    settle: Duration,
}

struct Compiled {
    roles: Vec<Template>,
    rights: Rights,
    database: String,
    connection_limit: u16,
}

struct Rendered {
    roles: Vec<Identifier>,
    statements: Statements,
    /// What the statements are but for the role's name: those who have it in common wait for each other.
    rights: String,
    database: String,
    connection_limit: u16,
    comment: String,
}

impl Postgres {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let port = file.port.unwrap_or(PORT);
        let local = file.host.starts_with('/') || super::is_loopback(&file.host);
        let protection = file.sslmode.unwrap_or(if local { Protection::Disable } else { Protection::VerifyFull });
        if protection == Protection::Disable && file.ca_file.is_some() {
            return Err("ca_file: it is of no use with `sslmode: disable`".to_owned());
        }
        let heir = file.reassign_owned_to.as_deref().map(Identifier::parse).transpose();
        let heir = heir.map_err(|error| format!("reassign_owned_to: {error}"))?;
        for role in file.roles.iter().flatten() {
            Identifier::parse(role).map_err(|error| format!("roles: {error}"))?;
        }
        let mut config = tokio_postgres::Config::new();
        config
            .host(&file.host)
            .port(port)
            .user(&file.user)
            .dbname(&file.database)
            .application_name("jobpass")
            .connect_timeout(DEADLINE)
            .keepalives_idle(Duration::from_secs(30));
        let tls = (protection == Protection::VerifyFull).then(|| {
            config.ssl_mode(SslMode::Require);
            Tls { ca_file: file.ca_file.map(|path| context.path(&path)), connector: OnceLock::new() }
        });
        if tls.is_none() {
            config.ssl_mode(SslMode::Disable);
        }
        let sslmode = if tls.is_some() { "require" } else { "prefer" };
        let server =
            Server { config, password: file.password.map(|p| context.secret(p)), env: context.env.clone(), tls };
        let connections = file.max_connections.unwrap_or(MAX_CONNECTIONS).max(1);
        Ok(Self {
            identity: format!("postgres://{}:{port}", file.host),
            pool: Pool::new(server, Arc::clone(&context.clock), connections.into()),
            turns: Turns::default(),
            removals: Semaphore::new(usize::from(connections).div_ceil(4)),
            clock: Arc::clone(&context.clock),
            roles: file.roles,
            may_run_statements: file.statements,
            heir,
            job_host: file.advertise.host.unwrap_or(file.host),
            job_port: file.advertise.port.unwrap_or(port),
            job_sslmode: file.advertise.sslmode.unwrap_or_else(|| sslmode.to_owned()),
            database: file.database,
            scram_iterations: file.scram_iterations.unwrap_or(scram::ITERATIONS),
            deadline: file.deadline.map_or(DEADLINE, |span| span.0),
            settle: file.settle.map_or(SETTLE, |span| span.0),
        })
    }

    async fn make(&self, pending: &PendingLease, order: &Order, rendered: &Rendered) -> Result<Minted, MintError> {
        let State::Pending { mint_by, .. } = *pending.lease().state() else {
            return Err(MintError::Unavailable("the lease is not pending any more".to_owned()));
        };
        let name = Identifier::parse(&pending.remote_name()).map_err(|error| spec::unfit("lease", &error))?;
        let password = spec::password()?;
        let verifier = Zeroizing::new(scram::verifier(password.expose(), &*spec::random()?, self.scram_iterations));
        // Each step may take half of the time that is left: what is held up ends here, with a certain outcome.
        let until = Instant::now() + self.deadline;
        let patience = || until.saturating_duration_since(Instant::now()) / 2;
        let Statements { home, elsewhere } = &rendered.statements;
        // Before a connection is taken, so that those who are held up by one session do not take them all.
        let turn = if home.is_empty() { None } else { Some(self.turn(&rendered.rights, patience()).await?) };
        let link = self.pool.take(patience()).await;
        let mut link = link.map_err(|error| MintError::Unavailable(error.to_string()))?;
        let statements = Zeroizing::new(
            NewRole {
                name: &name,
                member_of: &rendered.roles,
                more: home,
                verifier: &verifier,
                connection_limit: rendered.connection_limit,
                valid_until: link.by_server(order.expires_at),
                comment: &rendered.comment,
                patience: patience(),
                not_after: link.by_server(mint_by),
            }
            .statements(),
        );
        match turns::transact(&link.client, &statements).await {
            Ok(answer) => {
                link.learn_time(&answer, self.clock.now());
                self.pool.give_back(link);
                drop(turn);
                for (database, statements) in elsewhere {
                    if let Err(refused) = self.make_in(database, statements, &rendered.rights, patience()).await {
                        // Certainly nothing is left of it, or nobody knows.
                        return Err(match self.take_back(&name).await {
                            Ok(_) => MintError::Refused(refused.0),
                            Err(_) => MintError::Unclear(refused.0),
                        });
                    }
                }
                let credential = Credential::postgres(
                    &self.job_host,
                    self.job_port,
                    &rendered.database,
                    name.as_str(),
                    password,
                    &self.job_sslmode,
                );
                Ok(Minted { credential, expires_at: order.expires_at })
            }
            Err(error) => {
                let outcome = classify(&error);
                if outcome.made_nothing() {
                    self.pool.give_back(link);
                }
                Err(outcome)
            }
        }
    }

    async fn link(&self) -> Result<Link, RemoteError> {
        self.pool.take(STEP).await.map_err(|error| RemoteError(error.to_string()))
    }

    /// Gives a new role its rights in another database of the cluster.
    async fn make_in(
        &self,
        database: &str,
        statements: &[String],
        rights: &str,
        patience: Duration,
    ) -> Result<(), RemoteError> {
        let client = self.connect(database).await?;
        let _turn = self.turn(rights, patience).await.map_err(|error| RemoteError(error.to_string()))?;
        run(&client, &format!("{}; {}", sql::lock_timeout(patience), statements.join("; "))).await?;
        Ok(())
    }

    /// The turn of those who make the same rights.
    async fn turn(&self, rights: &str, within: Duration) -> Result<OwnedMutexGuard<()>, MintError> {
        let late = "others of the same rights are held up inside PostgreSQL: look into its pg_locks";
        let turn = timeout(within, self.turns.of(rights).lock_owned()).await;
        turn.map_err(|_| MintError::Refused(late.to_owned()))
    }

    /// Connects to another database of the cluster.
    async fn connect(&self, database: &str) -> Result<Client, RemoteError> {
        let connected = timeout(STEP, self.pool.server.connect(Some(database))).await;
        connected
            .map_err(|_| RemoteError(format!("no connection to database {database} in time")))?
            .map_err(|error| RemoteError(format!("database {database}: {error}")))
    }
}

/// Why a step of taking back failed.
enum Trouble {
    Server(SqlState, String),
    Connection(String),
    Deadline,
}

impl From<&tokio_postgres::Error> for Trouble {
    fn from(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Server(refusal.code().clone(), describe(error)),
            None => Self::Connection(describe(error)),
        }
    }
}

impl From<Trouble> for RemoteError {
    fn from(trouble: Trouble) -> Self {
        Self(match trouble {
            Trouble::Server(_, text) | Trouble::Connection(text) => text,
            Trouble::Deadline => "PostgreSQL did not answer in time".to_owned(),
        })
    }
}

async fn run(client: &Client, statements: &str) -> Result<Vec<SimpleQueryMessage>, Trouble> {
    let answer = timeout(STEP, turns::transact(client, statements)).await;
    answer.map_err(|_| Trouble::Deadline)?.map_err(|error| Trouble::from(&error))
}

/// What an error of the creating transaction says about its outcome.
fn classify(error: &tokio_postgres::Error) -> MintError {
    let text = describe(error);
    let Some(refusal) = error.as_db_error() else {
        return MintError::OutcomeUnknown(text);
    };
    // A session that the server ends may have been ended after its commit.
    if !matches!(refusal.parsed_severity(), Some(Severity::Error)) {
        return MintError::OutcomeUnknown(text);
    }
    match refusal.code() {
        // Our own check of the time, and the timeouts.
        &SqlState::DIVISION_BY_ZERO => MintError::Unavailable("PostgreSQL came to it too late".to_owned()),
        &SqlState::QUERY_CANCELED => MintError::Unavailable(text),
        // Somebody made the role before: an earlier try of ours.
        &SqlState::DUPLICATE_OBJECT | &SqlState::UNIQUE_VIOLATION => MintError::Unclear(text),
        // Class 53, insufficient resources.
        code if code.code().starts_with("53") => MintError::Unavailable(text),
        _ => MintError::Refused(text),
    }
}

/// The server's code and message, or what happened to the connection. The statement is never in it.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(refusal) = error.as_db_error() {
        return format!("{} (SQLSTATE {}){}", refusal.message(), refusal.code().code(), cure(refusal));
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}"); // writing to a String cannot fail
        source = cause.source();
    }
    text
}

fn cure(refusal: &DbError) -> &'static str {
    match refusal.code() {
        &SqlState::INSUFFICIENT_PRIVILEGE => {
            ": give the backend's role CREATEROLE, and the granted roles WITH ADMIN OPTION (docs/backends/postgres.md)"
        }
        _ => "",
    }
}

impl Describe for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        if file.roles.is_empty() && file.privileges.is_empty() && file.statements.is_empty() {
            reader.refuse(
                &["roles"],
                "a login without roles can do nothing",
                "name at least one role, or `privileges`",
            );
        }
        if !self.may_run_statements && !file.statements.is_empty() {
            let cure = "use `privileges`, or set `statements: true` in the backend's config";
            reader.refuse(&["statements"], "the backend's config does not let grants run statements", cure);
        }
        let mut roles = Vec::with_capacity(file.roles.len());
        for (index, text) in file.roles.iter().enumerate() {
            let at = index.to_string();
            let path = ["roles", at.as_str()];
            let Some(template) = reader.template(&path, text, &ROLE) else { continue };
            let fixed = template.claims().next().is_none();
            if fixed && let Err(why) = self.may_hand_out(text) {
                reader.refuse(&path, why, "choose one of the roles in the backend's config, or add it there");
            }
            roles.push(template);
        }
        if file.connection_limit == Some(0) {
            reader.refuse(&["connection_limit"], "nobody could log in", "allow at least one connection");
        }
        let rights = Rights::read(&mut reader, &file.privileges, &file.statements);
        reader.finish(Some(Compiled {
            roles,
            rights,
            database: file.database.unwrap_or_else(|| self.database.clone()),
            connection_limit: file.connection_limit.unwrap_or(CONNECTION_LIMIT),
        }))
    }

    fn preflight(&self) -> Result<(), String> {
        if let Some(password) = &self.pool.server.password {
            password.read(&self.pool.server.env).map_err(|error| format!("password: {error}"))?;
        }
        match &self.pool.server.tls {
            Some(tls) => tls.connector().map(|_| ()).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

impl Postgres {
    fn may_hand_out(&self, role: &str) -> Result<Identifier, String> {
        match &self.roles {
            Some(roles) if !roles.iter().any(|known| known == role) => {
                Err("this role is not among those that grants may hand out".to_owned())
            }
            // PostgreSQL's own roles stand for rights over the whole server.
            None if role.starts_with("pg_") => {
                Err("PostgreSQL's predefined roles have to be listed in the backend's `roles`".to_owned())
            }
            _ => Identifier::parse(role).map_err(|error| error.to_string()),
        }
    }
}

impl RemoteBackend for Postgres {
    fn revocability(&self) -> Revocability {
        Revocability::ByName
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        self.settle
    }

    fn extends(&self) -> bool {
        true
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let compiled: &Compiled = spec::of(permit)?;
        let mut roles = Vec::with_capacity(compiled.roles.len());
        for (index, template) in compiled.roles.iter().enumerate() {
            let field = format!("credential.roles.{index}");
            let role = spec::render(&field, template, permit)?;
            roles.push(self.may_hand_out(&role).map_err(|why| spec::unfit(&field, &why))?);
        }
        let name = order.lease.remote_name();
        let role = Identifier::parse(&name).map_err(|error| spec::unfit("lease", &error))?;
        let statements = compiled.rights.render(permit, &role, &self.database, &compiled.database)?;
        let rights = statements.without(&name);
        let rendered = Rendered {
            roles,
            statements,
            rights,
            database: compiled.database.clone(),
            connection_limit: compiled.connection_limit,
            comment: spec::stamp(permit, order, MAX_COMMENT),
        };
        let worst_expiry = order.expires_at.max(order.at + self.deadline + self.settle);
        let (roles, statements): (Vec<_>, _) =
            (rendered.roles.iter().map(Identifier::as_str).collect(), &rendered.rights);
        let rights = spec::digest(&json!([roles, statements, rendered.database, rendered.connection_limit]));
        let object = json!({ "role": name, "rights": rights });
        Ok(Plan { object, rendered: Arc::new(rendered), worst_expiry })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move { self.make(pending, order, spec::rendered(rendered)?).await })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let name = lease.id().remote_name();
            let role = Identifier::parse(&name).map_err(|error| RemoteError(error.to_string()))?;
            self.take_back(&role).await
        })
    }

    fn extend<'a>(&'a self, lease: &'a Lease, until: Timestamp) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let name = lease.id().remote_name();
            let role = Identifier::parse(&name).map_err(|error| RemoteError(error.to_string()))?;
            let link = self.link().await?;
            run(&link.client, &sql::extend(&role, link.by_server(until))).await?;
            self.pool.give_back(link);
            Ok(())
        })
    }
}
