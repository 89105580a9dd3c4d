//! Redis over TLS and `redis-cli`, with a user for jobpass that may do no more than its page says.

use super::System;
use jobpass_tests::{program::Program, redis::Redis, server::Setup};
use serde_json::{Value, json};

const USER: &str = "user jobpass on >jobpasspw resetkeys resetchannels -@all +ping +acl|setuser +acl|deluser +acl|save";

pub(super) struct Cache(Redis);

fn login(credential: &Value) -> (&str, &str) {
    let text = |field: &str| credential[field].as_str().expect("a text");
    (text("username"), text("password"))
}

impl Cache {
    async fn run(&self, credential: &Value, command: &[&str]) -> Result<(), String> {
        let (user, password) = login(credential);
        let done = Program::run(self.0.client(user, password, command)).await;
        if done.status.success() { Ok(()) } else { Err(done.log) }
    }
}

impl System for Cache {
    async fn start() -> Self {
        let redis = Redis::start(USER).await;
        redis.admin(&["SET", "salaries", "1"]).await;
        Self(redis)
    }

    fn backend(&self, setup: &Setup) -> Value {
        let password = setup.secret("redis-password", "jobpasspw");
        json!({ "redis": {
            "host": "127.0.0.1", "port": self.0.port, "user": "jobpass", "password": password, "settle": "1s",
            "tls": true, "ca_file": self.0.ca_file(),
        } })
    }

    fn credential(&self) -> Value {
        json!({
            "keys": ["ci:{{ claims.repository_id }}:*"], "read_keys": ["public"], "channels": ["ci:events"],
            "commands": ["@read", "set", "blpop", "publish", "-keys"],
        })
    }

    async fn used(&self, credential: &Value) -> Result<(), String> {
        self.run(credential, &["SET", "ci:772002:deploys", "1"]).await?;
        self.run(credential, &["PUBLISH", "ci:events", "deployed"]).await?;
        self.run(credential, &["GET", "public"]).await
    }

    fn steps(&self) -> Vec<(&'static [&'static str], String)> {
        let at = format!("-h 127.0.0.1 -p {} --tls --cacert {}", self.0.port, self.0.ca_file().display());
        let redis = format!("redis-cli -e {at} --user \"$JOBPASS_REDIS_USERNAME\"");
        vec![(&["--env", "REDISCLI_AUTH=password"], format!("{redis} SET ci:772002:deploys 1; ! {redis} GET salaries"))]
    }

    async fn overstepped(&self, credential: &Value) -> Vec<(&'static str, Result<(), String>)> {
        let mut tries = Vec::new();
        for (what, command) in [
            ("another's key", &["GET", "ci:77:x"][..]),
            ("a key that the beginning is like", &["GET", "ci:7720021:x"]),
            ("another key", &["GET", "salaries"]),
            ("to write what may be read", &["SET", "public", "1"]),
            ("another channel", &["PUBLISH", "other", "x"]),
            ("another command", &["DEL", "ci:772002:deploys"]),
            ("a command that was taken away", &["KEYS", "*"]),
            ("how many keys there are", &["DBSIZE"]),
            ("any key", &["RANDOMKEY"]),
            ("all keys", &["SCAN", "0"]),
            ("users", &["ACL", "SETUSER", "mine", "on"]),
        ] {
            tries.push((what, self.run(credential, command).await));
        }
        tries
    }

    async fn hold(&self, credential: &Value) -> Option<Program> {
        let (user, password) = login(credential);
        let held = Program::start(self.0.client(user, password, &["BLPOP", "ci:772002:never", "0"]));
        let connected = async || self.0.admin(&["CLIENT", "LIST"]).await.contains(&format!("user={user}"));
        Some(held.ready(connected).await)
    }

    async fn left(&self) -> Vec<String> {
        let mut users = self.0.leased_users().await;
        let file = self.0.acl_file();
        users.extend(file.split(' ').filter(|word| word.starts_with("jobpass_")).map(str::to_owned));
        users.sort();
        users.dedup();
        // Somebody saves the users while ours are among them: they must not come back.
        self.0.admin(&["ACL", "SAVE"]).await;
        users
    }
}
