//! A real Redis, with its users in an ACL file.

use crate::{
    ports,
    program::{self, Finished, Program},
};
use std::fs;
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
        let acl = directory.path().join("users.acl");
        fs::write(&acl, format!("user default off\nuser {ADMIN} on >{ADMIN_PASSWORD} ~* &* +@all\n{users}\n"))
            .expect("the directory is ours");
        program::give_to("redis", &acl);
        let port = ports::free();
        let mut server = program::system_as("redis", "redis-server");
        server.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--daemonize", "no"]);
        server.arg("--dir").arg(directory.path()).arg("--aclfile").arg(&acl);
        let answers = async || cli(port, ADMIN, ADMIN_PASSWORD, &["PING"]).await.log.contains("PONG");
        let program = Program::start(server).ready(answers).await;
        Self { port, directory, _program: program }
    }

    /// Runs a command as the admin.
    pub async fn admin(&self, command: &[&str]) -> String {
        cli(self.port, ADMIN, ADMIN_PASSWORD, command).await.log
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
}

/// Runs a command with `redis-cli`.
pub async fn cli(port: u16, user: &str, password: &str, command: &[&str]) -> Finished {
    Program::run(client(port, user, password, command)).await
}

/// The same, to be run by the caller.
#[must_use]
pub fn client(port: u16, user: &str, password: &str, command: &[&str]) -> std::process::Command {
    let mut client = program::system("redis-cli");
    client.args(["-e", "-h", "127.0.0.1", "-p", &port.to_string(), "--user", user, "--no-auth-warning"]).args(command);
    client.env("REDISCLI_AUTH", password);
    client
}
