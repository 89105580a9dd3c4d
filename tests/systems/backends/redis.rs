//! Redis over TLS and `redis-cli`, with a user for jobpass that may do no more than its page says.

use super::{System, Try};
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
    const GONE: [&str; 2] = ["WRONGPASS"; 2];

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

    async fn overstepped(&self, credential: &Value) -> Vec<Try> {
        let mut tries = Vec::new();
        const KEY: &str = "NOPERM this user has no permissions to access one of the keys";
        const COMMAND: &str = "NOPERM this user has no permissions to run the";
        for (what, says, command) in [
            ("another's key", KEY, &["GET", "ci:77:x"][..]),
            ("a key that the beginning is like", KEY, &["GET", "ci:7720021:x"]),
            ("another key", KEY, &["GET", "salaries"]),
            ("to write what may be read", KEY, &["SET", "public", "1"]),
            (
                "another channel",
                "NOPERM this user has no permissions to access one of the channels",
                &["PUBLISH", "other", "x"],
            ),
            ("another command", COMMAND, &["DEL", "ci:772002:deploys"]),
            ("a command that was taken away", COMMAND, &["KEYS", "*"]),
            ("how many keys there are", COMMAND, &["DBSIZE"]),
            ("any key", COMMAND, &["RANDOMKEY"]),
            ("all keys", COMMAND, &["SCAN", "0"]),
            ("users", COMMAND, &["ACL", "SETUSER", "mine", "on"]),
        ] {
            tries.push((what, says, self.run(credential, command).await));
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
