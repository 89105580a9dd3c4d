//! A real Redis over TLS, with its users in an ACL file.

use crate::{
    ports,
    program::{self, Finished, Program},
    tls,
};
use std::{fs, path::PathBuf, process::Command};
use tempfile::TempDir;

/// The user that may do everything.
pub const ADMIN: &str = "admin";
/// Its password.
pub const ADMIN_PASSWORD: &str = "adminpw";

/// A running, empty server; ended and removed on drop.
pub struct Redis {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    directory: TempDir,
    _program: Program,
}

impl Redis {
    /// Starts it with these users besides the admin: under a second.
    pub async fn start(users: &str) -> Self {
        let directory = program::data_directory("redis");
        let path = |name: &str| directory.path().join(name);
        tls::certificates(directory.path()).await;
        let admin = format!("user default off\nuser {ADMIN} on >{ADMIN_PASSWORD} ~* &* +@all\n{users}\n");
        fs::write(path("users.acl"), admin).expect("the directory is ours");
        for file in ["users.acl", "server.key"] {
            program::give_to("redis", &path(file));
        }
        let port = ports::free();
        let mut server = program::system_as("redis", "redis-server");
        server.args([
            "--bind",
            "127.0.0.1",
            "--port",
            "0",
            "--tls-port",
            &port.to_string(),
            "--tls-auth-clients",
            "no",
        ]);
        server.args(["--save", "", "--daemonize", "no", "--dir"]).arg(directory.path());
        for (option, file) in [
            ("--aclfile", "users.acl"),
            ("--tls-cert-file", "server.pem"),
            ("--tls-key-file", "server.key"),
            ("--tls-ca-cert-file", "ca.pem"),
        ] {
            server.arg(option).arg(path(file));
        }
        let ca = path("ca.pem");
        let ping = || client(port, &ca, ADMIN, ADMIN_PASSWORD, &["PING"]);
        let answers = async || Program::run(ping()).await.log.contains("PONG");
        let program = Program::start(server).ready(answers).await;
        Self { port, directory, _program: program }
    }

    /// A command of `redis-cli`.
    #[must_use]
    pub fn client(&self, user: &str, password: &str, command: &[&str]) -> Command {
        client(self.port, &self.ca_file(), user, password, command)
    }

    /// Runs a command as the admin.
    pub async fn admin(&self, command: &[&str]) -> String {
        let Finished { log, .. } = Program::run(self.client(ADMIN, ADMIN_PASSWORD, command)).await;
        log
    }

    /// The names of the users that leases made.
    pub async fn leased_users(&self) -> Vec<String> {
        let users = self.admin(&["ACL", "USERS"]).await;
        users.lines().filter(|name| name.starts_with("jobpass_")).map(str::to_owned).collect()
    }

    /// The ACL file as it is now.
    #[must_use]
    pub fn acl_file(&self) -> String {
        fs::read_to_string(self.directory.path().join("users.acl")).expect("the file is there")
    }

    /// The certificate of the server's authority.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

fn client(port: u16, ca: &std::path::Path, user: &str, password: &str, command: &[&str]) -> Command {
    let mut client = program::system("redis-cli");
    client.args(["-e", "-h", "127.0.0.1", "-p", &port.to_string(), "--tls", "--cacert"]).arg(ca);
    client.args(["--user", user, "--no-auth-warning"]).args(command).env("REDISCLI_AUTH", password);
    client
}
