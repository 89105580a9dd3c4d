//! A real RabbitMQ of its own, with the management API.

use crate::{
    http::client,
    ports,
    program::{self, Program},
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};
use tempfile::TempDir;

/// The administrator.
pub const ADMIN: &str = "admin";
/// Its password.
pub const ADMIN_PASSWORD: &str = "adminpw";

/// A running broker with the virtual host `ci` and no queue; ended and removed on drop.
pub struct Rabbitmq {
    /// Where it speaks AMQP on 127.0.0.1.
    pub port: u16,
    /// Its management API.
    pub management_url: String,
    _broker: Program,
    _names: Program,
    _directory: TempDir,
}

impl Rabbitmq {
    /// Starts it: ten seconds and more.
    pub async fn start() -> Self {
        let directory = program::data_directory("rabbitmq");
        let [port, management, names, distribution] = [(); 4].map(|()| ports::free());
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
             default_user = {ADMIN}\ndefault_pass = {ADMIN_PASSWORD}\ndefault_vhost = ci\n\
             management_agent.disable_metrics_collector = false\n"
        );
        for (name, text) in [("rabbitmq.conf", config.as_str()), ("enabled_plugins", "[rabbitmq_management].\n")] {
            fs::write(directory.path().join(name), text).expect("the directory is ours");
            program::give_to("rabbitmq", &directory.path().join(name));
        }
        // Started here, because the broker would leave it behind as a daemon.
        let mut epmd = program::system_as("rabbitmq", "epmd");
        epmd.args(["-port", &names.to_string(), "-address", "127.0.0.1"]);
        let names_program = Program::start(epmd);

        let home = directory.path();
        let mut broker = program::system_as("rabbitmq", "/usr/lib/rabbitmq/bin/rabbitmq-server");
        set(&mut broker, home, names, distribution);
        let url = format!("http://127.0.0.1:{management}");
        let answers = async || {
            let answer =
                client().get(format!("{url}/api/overview")).basic_auth(ADMIN, Some(ADMIN_PASSWORD)).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        let broker = Program::start(broker).ready(answers).await;
        Self { port, management_url: url, _broker: broker, _names: names_program, _directory: directory }
    }

    /// Asks the management API as the administrator.
    pub async fn ask(&self, path: &str) -> Value {
        let request = client().get(format!("{}/api/{path}", self.management_url));
        let answer = request.basic_auth(ADMIN, Some(ADMIN_PASSWORD)).send().await.expect("RabbitMQ answers");
        answer.json().await.expect("RabbitMQ answers in JSON")
    }

    /// Writes by the management API as the administrator.
    pub async fn put(&self, path: &str, body: Value) {
        let request = client().put(format!("{}/api/{path}", self.management_url)).json(&body);
        let answer = request.basic_auth(ADMIN, Some(ADMIN_PASSWORD)).send().await.expect("RabbitMQ answers");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
    }

    /// The names of the users that leases made.
    pub async fn leased_users(&self) -> Vec<String> {
        let users = self.ask("users").await;
        let names = users.as_array().expect("a list").iter().filter_map(|user| user["name"].as_str());
        names.filter(|name| name.starts_with("jobpass_")).map(str::to_owned).collect()
    }

    /// A command of `amqp-tools`, such as `amqp-publish`, as a user.
    #[must_use]
    pub fn client(&self, name: &str, user: &str, password: &str) -> Command {
        let mut client = program::system(name);
        client.args(["--server=127.0.0.1", &format!("--port={}", self.port), "--vhost=ci"]);
        client.args([format!("--username={user}"), format!("--password={password}")]);
        client
    }
}

fn set(broker: &mut Command, home: &Path, names: u16, distribution: u16) {
    for (name, path) in [
        ("HOME", ""),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_LOG_BASE", "log"),
    ] {
        broker.env(name, home.join(path));
    }
    broker.env("RABBITMQ_NODENAME", format!("jobpass{names}@localhost"));
    broker.env("RABBITMQ_DIST_PORT", distribution.to_string()).env("ERL_EPMD_PORT", names.to_string());
    broker.env("ERL_EPMD_ADDRESS", "127.0.0.1");
    let loopback = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1";
    broker.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", loopback);
}
