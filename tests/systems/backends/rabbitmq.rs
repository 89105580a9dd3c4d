//! RabbitMQ and `amqp-tools`, RabbitMQ's own client in C.

use super::System;
use jobpass_tests::{
    program::Program,
    rabbitmq::{ADMIN, ADMIN_PASSWORD, Rabbitmq},
    server::Setup,
};
use serde_json::{Value, json};

pub(super) struct Broker(Rabbitmq);

impl Broker {
    async fn run(&self, credential: &Value, name: &str, arguments: &[&str]) -> Result<(), String> {
        let text = |field: &str| credential[field].as_str().expect("a text");
        let mut client = self.0.client(name, text("username"), text("password"));
        client.args(arguments);
        let done = Program::run(client).await;
        if done.status.success() { Ok(()) } else { Err(done.log) }
    }
}

impl System for Broker {
    async fn start() -> Self {
        let broker = Rabbitmq::start().await;
        let mut declare = broker.client("amqp-declare-queue", ADMIN, ADMIN_PASSWORD);
        declare.args(["--queue", "salaries"]);
        Program::run(declare).await.expect_success();
        Self(broker)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let password = setup.secret("rabbitmq-password", ADMIN_PASSWORD);
        json!({ "rabbitmq": {
            "management_url": self.0.management_url, "user": ADMIN, "password": password, "insecure_http": true,
            "vhosts": ["ci"], "advertise": { "host": "127.0.0.1", "port": self.0.port }, "settle": "1s",
        } })
    }

    fn credential(&self) -> Value {
        json!({
            "vhost": "ci", "configure": ["r{{ claims.repository_id }}-*"], "read": ["r{{ claims.repository_id }}-*"],
            "write": ["r{{ claims.repository_id }}-*", "amq.default"],
        })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.run(credential, "amqp-declare-queue", &["--queue", "r772002-deploys"]).await?;
        self.run(credential, "amqp-publish", &["--routing-key", "r772002-deploys", "--body", "deployed"]).await?;
        self.run(credential, "amqp-get", &["--queue", "r772002-deploys"]).await
    }

    async fn overstepped(&self, credential: &Value) -> Vec<(&'static str, Result<(), String>)> {
        vec![
            ("another queue", self.run(credential, "amqp-declare-queue", &["--queue", "r77-x"]).await),
            ("a name that begins alike", self.run(credential, "amqp-declare-queue", &["--queue", "r7720021-x"]).await),
            ("another's messages", self.run(credential, "amqp-get", &["--queue", "salaries"]).await),
            (
                "another virtual host",
                self.run(credential, "amqp-get", &["--vhost=/", "--queue", "r772002-deploys"]).await,
            ),
        ]
    }

    async fn hold(&self, credential: &Value) -> Option<Program> {
        let text = |field: &str| credential[field].as_str().expect("a text");
        let mut consume = self.0.client("amqp-consume", text("username"), text("password"));
        consume.args(["--queue", "r772002-deploys", "cat"]);
        let consumed = async || !self.0.ask("queues/ci/r772002-deploys").await["consumer_details"][0].is_null();
        Some(Program::start(consume).ready(consumed).await)
    }

    async fn left(&self) -> Vec<String> {
        self.0.leased_users().await
    }
}
