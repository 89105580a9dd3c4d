//! `mysql`: a user for each lease, with the grant's privileges, gone with the lease. Proven on MariaDB.
//!
//! These servers know no transactions for users: a user is made without a right, then given its
//! rights one by one, and dropped again if one of them is refused. They have no expiry either: the
//! reaper locks the user, ends its sessions, which would outlive it, and drops it.

mod link;
mod sql;
#[cfg(test)]
mod tests;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, registry::BuildContext, spec,
    spec::SpecReader,
};
use crate::{
    clock::Timestamp,
    config::{SecretRef, Span},
    leases::{Lease, Revocability},
    store::PendingLease,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, LeaseId};
use link::{Link, Pool, Trouble};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use sql::{Account, Identifier, Privileges};
use std::{path::PathBuf, sync::Arc, time::Duration};
use zeroize::Zeroizing;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The server's host name or address.
    pub host: String,
    /// Its port. Default 3306.
    pub port: Option<u16>,
    /// The user that makes and drops users.
    pub user: String,
    /// Its password, by reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub password: Option<SecretRef>,
    /// Whether the connection uses TLS, with the server's certificate checked. Default: unless it is
    /// loopback. Jobs then have to use it too.
    pub tls: Option<bool>,
    /// The server's own certificate authority, PEM. Default: the public ones.
    pub ca_file: Option<PathBuf>,
    /// Where jobs may come from, as the host of their users: an address, a name, or a pattern with `%`. Default `%`.
    pub job_hosts: Option<String>,
    /// The databases that grants may name. Default: all but the server's own.
    pub databases: Option<Vec<String>>,
    /// Where jobs find the server, if not where we do.
    #[serde(default)]
    pub advertise: Advertise,
    /// How many connections we keep at most. Default 8.
    pub max_connections: Option<u16>,
    /// How long a creation may take. Default `5s`.
    pub deadline: Option<Span>,
    /// How long after the deadline one may still be on its way inside the server. Default `15s`.
    pub settle: Option<Span>,
}

/// Where jobs find the server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Its host.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// What the job may do, and where.
    pub privileges: Vec<PrivilegesFile>,
    /// How many connections it may have at once. Default 5.
    pub connection_limit: Option<u16>,
}

/// What the job may do in one database or table.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivilegesFile {
    /// The database, a template over stable claims. The first one is what the job is told.
    pub database: String,
    /// The table, a template over stable claims. Default: all of the database.
    pub table: Option<String>,
    /// What may be done there.
    pub allow: Vec<Privilege>,
}

macro_rules! privileges {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What may be done in a database. None of them reaches beyond it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Privilege { $($(#[$doc])* $name,)* }
        impl Privilege {
            /// As it stands in a `GRANT`.
            const fn as_sql(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}
privileges! {
    /// Read rows.
    Select = "SELECT",
    /// Add rows.
    Insert = "INSERT",
    /// Change rows.
    Update = "UPDATE",
    /// Delete rows.
    Delete = "DELETE",
    /// Make tables.
    Create = "CREATE",
    /// Drop tables.
    Drop = "DROP",
    /// Change tables.
    Alter = "ALTER",
    /// Make and drop indexes.
    Index = "INDEX",
    /// Refer to a table.
    References = "REFERENCES",
    /// Make temporary tables.
    CreateTemporaryTables = "CREATE TEMPORARY TABLES",
    /// Lock tables.
    LockTables = "LOCK TABLES",
    /// Make views.
    CreateView = "CREATE VIEW",
    /// Look at views' definitions.
    ShowView = "SHOW VIEW",
    /// Run routines.
    Execute = "EXECUTE",
}

const PORT: u16 = 3306;
const MAX_CONNECTIONS: u16 = 8;
const CONNECTION_LIMIT: u16 = 5;
const DEADLINE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(15);
/// One step of taking a user back.
const STEP: Duration = Duration::from_secs(15);
/// How often sessions that turn up meanwhile are ended before it is tried again later.
const ROUNDS: usize = 5;
/// ER_CANNOT_USER: the account is there already, or is not there.
const CANNOT_USER: u16 = 1396;
/// ER_NO_SUCH_THREAD: the session ended by itself.
const NO_SUCH_THREAD: u16 = 1094;
/// MySQL allows 1024 characters; the column's JSON needs some of them.
const MAX_COMMENT: usize = 900;

const NAME: FieldRules = FieldRules {
    authority: true,
    allowed: |c| !c.is_control(),
    max_len: 192,
    expected: "a name without control characters",
};

/// A backend that makes users.
pub struct Mysql {
    identity: String,
    pool: Pool,
    tls: bool,
    job_hosts: String,
    databases: Option<Vec<String>>,
    job_host: String,
    job_port: u16,
    deadline: Duration,
    settle: Duration,
}

struct Compiled {
    privileges: Vec<(Template, Option<Template>, Vec<&'static str>)>,
    connection_limit: u16,
}

struct Rendered {
    database: String,
    privileges: Vec<Privileges>,
    connection_limit: u16,
    comment: String,
}

impl Mysql {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let port = file.port.unwrap_or(PORT);
        let tls = file.tls.unwrap_or_else(|| !super::is_loopback(&file.host));
        if !tls && file.ca_file.is_some() {
            return Err("ca_file: it is of no use with `tls: false`".to_owned());
        }
        let job_hosts = file.job_hosts.unwrap_or_else(|| "%".to_owned());
        let host = |c: char| c.is_ascii_alphanumeric() || "-._:/%".contains(c);
        if !(1..=60).contains(&job_hosts.len()) || !job_hosts.chars().all(host) {
            return Err("job_hosts: expected an address, a name or a pattern such as 10.20.% or 10.20.0.0/255.255.0.0"
                .to_owned());
        }
        let connections = file.max_connections.unwrap_or(MAX_CONNECTIONS).max(1);
        let server = link::Server {
            host: file.host.clone(),
            port,
            user: file.user,
            password: file.password.map(|reference| context.secret(reference)),
            env: context.env.clone(),
            tls: tls.then(|| file.ca_file.map(|path| context.path(&path))),
        };
        Ok(Self {
            identity: format!("mysql://{}:{port}", file.host),
            pool: Pool::new(server, connections.into()),
            tls,
            job_hosts,
            databases: file.databases,
            job_host: file.advertise.host.unwrap_or(file.host),
            job_port: file.advertise.port.unwrap_or(port),
            deadline: file.deadline.map_or(DEADLINE, |span| span.0),
            settle: file.settle.map_or(SETTLE, |span| span.0),
        })
    }

    fn may_name(&self, database: &str) -> Result<Identifier, String> {
        const OWN: &[&str] = &["mysql", "information_schema", "performance_schema", "sys"];
        match &self.databases {
            Some(known) if !known.iter().any(|name| name == database) => {
                Err("this database is not among those that grants may name".to_owned())
            }
            None if OWN.iter().any(|own| database.eq_ignore_ascii_case(own)) => {
                Err("the server's own databases stand for rights over the whole server".to_owned())
            }
            _ => Identifier::parse(database).map_err(|error| error.to_string()),
        }
    }

    async fn make(&self, account: &Account, order: &Order, rendered: &Rendered) -> Result<Minted, MintError> {
        let password = spec::password()?;
        // Half of the time: whoever has no connection by then ends here, with a certain outcome.
        let mut link = self.pool.take(self.deadline / 2).await?;
        // MariaDB has no place for a comment on a user; MySQL has (8.0.21).
        let version = link.column("SELECT VERSION()", self.deadline).await?;
        let mysql = !version.iter().any(|version| version.contains("MariaDB"));
        let comment = mysql.then_some(rendered.comment.as_str());
        let (limit, secret) = (rendered.connection_limit, password.expose());
        let create = Zeroizing::new(sql::create(account, secret, self.tls, limit, comment));
        match link.run(&create, self.deadline).await {
            // Somebody made it before: an earlier try of ours.
            Err(Trouble::Refused(CANNOT_USER, why)) => return Err(MintError::Unclear(why)),
            made => made?,
        }
        for privileges in &rendered.privileges {
            if let Err(trouble) = link.run(&privileges.grant(account), self.deadline).await {
                let Trouble::Refused(_, why) = trouble else { return Err(unknown(trouble)) };
                // Certainly nothing is left of it, or nobody knows.
                link.run(&format!("DROP USER {account}"), self.deadline).await.map_err(unknown)?;
                return Err(MintError::Refused(why));
            }
        }
        self.pool.give_back(link);
        let credential = Credential::login(
            "mysql",
            &self.job_host,
            self.job_port,
            Some(("database", &rendered.database)),
            &account.name,
            password,
        );
        Ok(Minted { credential, expires_at: order.expires_at })
    }

    async fn take_back(&self, account: &Account) -> Result<Revoked, RemoteError> {
        let mut link = self.pool.take(STEP).await?;
        // Nobody logs in any more, whatever may keep the user from being dropped.
        let locked = match link.run(&format!("ALTER USER {account} ACCOUNT LOCK"), STEP).await {
            Err(Trouble::Refused(CANNOT_USER, _)) => false,
            locked => locked.map(|()| true)?,
        };
        let mut found = self.end_sessions(&mut link, account).await? || locked;
        if locked {
            match link.run(&format!("DROP USER {account}"), STEP).await {
                Ok(()) | Err(Trouble::Refused(CANNOT_USER, _)) => {}
                Err(trouble) => {
                    // What it is the definer of runs with its rights, locked or not.
                    link.run(&format!("REVOKE ALL PRIVILEGES, GRANT OPTION FROM {account}"), STEP).await?;
                    self.pool.give_back(link);
                    let RemoteError(why) = trouble.into();
                    let cure = "the user is locked and has neither sessions nor rights, but is not dropped; does a view \
                                or a routine name it as its definer? See docs/backends/mysql.md";
                    return Err(RemoteError(format!("{why}: {cure}")));
                }
            }
            // A login that was on its way when the user was locked may have turned up.
            found |= self.end_sessions(&mut link, account).await?;
        }
        self.pool.give_back(link);
        Ok(if found { Revoked::Gone } else { Revoked::NotFound })
    }

    /// Ends the user's sessions, which would outlive it; says whether there were any.
    async fn end_sessions(&self, link: &mut Link, account: &Account) -> Result<bool, RemoteError> {
        for round in 0..ROUNDS {
            let sessions = self.sessions(link, account).await?;
            if sessions.is_empty() {
                return Ok(round > 0);
            }
            for session in sessions {
                match link.run(&format!("KILL {session}"), STEP).await {
                    Err(Trouble::Refused(NO_SUCH_THREAD, _)) => {}
                    killed => killed?,
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(RemoteError(format!("{} still has sessions", account.name)))
    }

    async fn sessions(&self, link: &mut Link, account: &Account) -> Result<Vec<u64>, RemoteError> {
        let user = sql::literal(&account.name);
        let query = format!("SELECT CAST(id AS CHAR) FROM information_schema.processlist WHERE user = {user}");
        let ids = link.column(&query, STEP).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    fn account(&self, lease: &Lease) -> Account {
        // Where users came from when this one was made: the config may say something else by now.
        let host = lease.placement().object["host"].as_str().unwrap_or(&self.job_hosts);
        Account { name: user_name(lease.id()), host: host.to_owned() }
    }
}

/// The lease's remote name in at most 32 characters, which is all that MySQL takes.
fn user_name(lease: LeaseId) -> String {
    format!("jobpass_{}", URL_SAFE_NO_PAD.encode(lease.uuid().as_bytes()))
}

impl From<Trouble> for MintError {
    /// Before anything was made.
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotSent(why) => Self::Unavailable(why),
            Trouble::Refused(_, why) => Self::Refused(why),
            Trouble::Unknown(why) => Self::OutcomeUnknown(why),
        }
    }
}

/// After something was made.
fn unknown(trouble: Trouble) -> MintError {
    MintError::from(trouble).after_making()
}

impl Describe for Mysql {
    fn kind(&self) -> &'static str {
        "mysql"
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
        if file.privileges.is_empty() {
            reader.refuse(&["privileges"], "a user without privileges can do nothing", "name at least one database");
        }
        if file.connection_limit == Some(0) {
            reader.refuse(&["connection_limit"], "0 would be no limit at all", "allow at least one connection");
        }
        let mut privileges = Vec::with_capacity(file.privileges.len());
        for (index, entry) in file.privileges.iter().enumerate() {
            let at = index.to_string();
            if entry.allow.is_empty() {
                reader.refuse(&["privileges", &at, "allow"], "nothing is allowed here", "name at least one privilege");
            }
            let path = ["privileges", at.as_str(), "database"];
            let database = reader.template(&path, &entry.database, &NAME);
            if database.as_ref().is_some_and(|template| template.claims().next().is_none())
                && let Err(why) = self.may_name(&entry.database)
            {
                reader.refuse(&path, why, "choose one of the databases in the backend's config, or add it there");
            }
            let path = ["privileges", at.as_str(), "table"];
            let table = entry.table.as_ref().map(|text| reader.template(&path, text, &NAME));
            let names = entry.allow.iter().map(|privilege| privilege.as_sql()).collect();
            privileges.extend(database.map(|database| (database, table.flatten(), names)));
        }
        let connection_limit = file.connection_limit.unwrap_or(CONNECTION_LIMIT);
        reader.finish(Some(Compiled { privileges, connection_limit }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.pool.options().map(|_| ())
    }
}

impl RemoteBackend for Mysql {
    fn revocability(&self) -> Revocability {
        Revocability::ByName
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        self.settle
    }

    /// A user has no expiry of its own: that of the lease is the only one.
    fn extends(&self) -> bool {
        true
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let compiled: &Compiled = spec::of(permit)?;
        let mut privileges = Vec::with_capacity(compiled.privileges.len());
        let mut told = None;
        for (index, (database, table, names)) in compiled.privileges.iter().enumerate() {
            let field = format!("credential.privileges.{index}.database");
            let name = spec::render(&field, database, permit)?;
            let database = self.may_name(&name).map_err(|why| spec::unfit(&field, &why))?;
            told.get_or_insert(name);
            let table = match table {
                None => None,
                Some(template) => {
                    let field = format!("credential.privileges.{index}.table");
                    let name = spec::render(&field, template, permit)?;
                    Some(Identifier::parse(&name).map_err(|error| spec::unfit(&field, &error))?)
                }
            };
            privileges.push(Privileges { names: names.clone(), database, table });
        }
        let rendered = Rendered {
            database: told.unwrap_or_default(),
            privileges,
            connection_limit: compiled.connection_limit,
            comment: spec::stamp(permit, order, MAX_COMMENT),
        };
        let worst_expiry = order.expires_at.max(order.at + self.deadline + self.settle);
        let rights: Vec<String> = rendered.privileges.iter().map(|privileges| privileges.grant(&"")).collect();
        let rights = spec::digest(&json!([rendered.database, rights, rendered.connection_limit]));
        let object = json!({ "user": user_name(order.lease), "host": self.job_hosts, "rights": rights });
        Ok(Plan { object, rendered: Arc::new(rendered), worst_expiry })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move { self.make(&self.account(pending.lease()), order, spec::rendered(rendered)?).await })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move { self.take_back(&self.account(lease)).await })
    }

    fn extend<'a>(&'a self, _lease: &'a Lease, _until: Timestamp) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
