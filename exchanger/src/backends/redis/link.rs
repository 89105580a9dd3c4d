//! One connection to a Redis server, shared by all, proven alive before it is relied on.

use crate::{
    backends::RemoteError,
    config::{Env, SecretRef},
};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo as _, RedisError,
    TlsCertificates, aio::MultiplexedConnection,
};
use std::{path::PathBuf, time::Duration};
use tokio::sync::Mutex;

/// How to reach the server, and as whom.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: Option<SecretRef>,
    pub(super) env: Env,
    /// The authority's file, if it is not the system's; `None`: no TLS.
    pub(super) tls: Option<Option<PathBuf>>,
    pub(super) deadline: Duration,
}

/// The connection, made when it is needed.
pub(super) struct Link {
    server: Server,
    open: Mutex<Option<MultiplexedConnection>>,
}

/// Why a command has no answer. Holds no secret.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was never sent.
    NotSent(String),
    /// The server refused it, and did nothing.
    Refused(String),
    /// It was sent, and nobody knows more.
    Unknown(String),
}

impl From<Trouble> for RemoteError {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::NotSent(why) | Trouble::Refused(why) | Trouble::Unknown(why)) = trouble;
        Self(why)
    }
}

impl Link {
    pub(super) fn new(server: Server) -> Self {
        Self { server, open: Mutex::default() }
    }

    /// A client with the password as it is now, so that a rotated one needs no restart.
    pub(super) fn client(&self) -> Result<Client, String> {
        let Server { host, port, user, password, env, tls, .. } = &self.server;
        let address = match tls {
            None => ConnectionAddr::Tcp(host.clone(), *port),
            Some(_) => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        };
        let info = address.into_connection_info().map_err(|error| describe(&error))?;
        let mut login = info.redis_settings().clone().set_username(user);
        if let Some(reference) = password {
            let password = reference.read(env).map_err(|error| format!("password: {error}"))?;
            login = login.set_password(password.expose());
        }
        let info = info.set_redis_settings(login);
        let root_cert = match tls {
            Some(Some(path)) => {
                Some(std::fs::read(path).map_err(|error| format!("ca_file: {}: {error}", path.display()))?)
            }
            _ => None,
        };
        let client = match tls {
            None => Client::open(info),
            Some(_) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert }),
        };
        client.map_err(|error| describe(&error))
    }

    /// Runs one command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Trouble> {
        let mut connection = self.connection().await.map_err(Trouble::NotSent)?;
        match tokio::time::timeout(self.server.deadline, command.query_async(&mut connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_answer(&error) => Err(Trouble::Refused(describe(&error))),
            Ok(Err(error)) => Err(self.lost(describe(&error)).await),
            Err(_) => Err(self.lost("Redis did not answer in time".to_owned()).await),
        }
    }

    async fn lost(&self, why: String) -> Trouble {
        *self.open.lock().await = None;
        Trouble::Unknown(why)
    }

    async fn connection(&self) -> Result<MultiplexedConnection, String> {
        let mut open = self.open.lock().await;
        // Half of the time is the command's: that it was not sent is certain then.
        let deadline = self.server.deadline / 2;
        if let Some(connection) = &mut *open {
            let ping = ::redis::cmd("PING");
            let alive = tokio::time::timeout(deadline, ping.query_async::<()>(connection)).await;
            if matches!(alive, Ok(Ok(()))) {
                return Ok(connection.clone());
            }
            *open = None;
        }
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(deadline)).set_response_timeout(None);
        let client = self.client()?;
        let made = tokio::time::timeout(deadline, client.get_multiplexed_async_connection_with_config(&config)).await;
        let made = made.map_err(|_| "no connection to Redis in time".to_owned())?;
        let connection = made.map_err(|error| format!("cannot connect to Redis: {}", describe(&error)))?;
        Ok(open.insert(connection).clone())
    }
}

/// Whether the server itself said so, rather than what happened to the connection.
fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed)
}

fn describe(error: &RedisError) -> String {
    let cure = match error.code() {
        Some("NOPERM") => ": jobpass's user needs +acl|setuser +acl|deluser +acl|save +ping (docs/backends/redis.md)",
        _ => "",
    };
    format!("{error}{cure}")
}
