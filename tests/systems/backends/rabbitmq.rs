//! RabbitMQ and `amqp-tools`, RabbitMQ's own client in C.

use super::{System, Try};
use jobpass_tests::{
    program::Program,
    rabbitmq::{ADMIN, ADMIN_PASSWORD, Rabbitmq},
    server::Setup,
};
use serde_json::{Value, json};

/// jobpass's own user.
const USER: &str = "jobpass";
const PASSWORD: &str = "jobpasspw";

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
    const GONE: [&str; 2] = ["ACCESS_REFUSED - Login was refused"; 2];

    async fn start() -> Self {
        let broker = Rabbitmq::start().await;
        // jobpass's user has no permission anywhere, as its page says.
        let password = json!({ "password": PASSWORD, "tags": "administrator" });
        broker.put(&format!("users/{USER}"), password).await;
        broker.put("vhosts/other", json!({})).await;
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        broker.put(&format!("permissions/other/{ADMIN}"), all).await;
        for (vhost, queue) in [("ci", "salaries"), ("ci", "r7720021-x"), ("other", "r772002-deploys")] {
            let mut declare = broker.client("amqp-declare-queue", ADMIN, ADMIN_PASSWORD);
            declare.args([&format!("--vhost={vhost}"), "--queue", queue]);
            Program::run(declare).await.expect_success();
            let mut publish = broker.client("amqp-publish", ADMIN, ADMIN_PASSWORD);
            publish.args([&format!("--vhost={vhost}"), "--routing-key", queue, "--body", "of others"]);
            Program::run(publish).await.expect_success();
        }
        Self(broker)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let password = setup.secret("rabbitmq-password", PASSWORD);
        json!({ "rabbitmq": {
            "management_url": self.0.management_url, "user": USER, "password": password, "insecure_http": true,
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

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        let mut tries = Vec::new();
        for (what, says, name, arguments) in [
            (
                "another queue",
                "ACCESS_REFUSED - access to queue 'r77-x'",
                "amqp-declare-queue",
                &["--queue", "r77-x"][..],
            ),
            (
                "a name that begins alike",
                "ACCESS_REFUSED - access to queue 'r7720021-x'",
                "amqp-get",
                &["--queue", "r7720021-x"],
            ),
            ("another's messages", "ACCESS_REFUSED - access to queue 'salaries'", "amqp-get", &["--queue", "salaries"]),
            (
                "another virtual host",
                "NOT_ALLOWED - access to vhost 'other' refused",
                "amqp-get",
                &["--vhost=other", "--queue", "r772002-deploys"],
            ),
        ] {
            tries.push((what, says, self.run(credential, name, arguments).await));
        }
        tries
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
