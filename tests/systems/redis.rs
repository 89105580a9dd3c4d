//! What the `redis` backend makes of categories, command by command of a real Redis.

use crate::world::{grant, issuer, token};
use jobpass_exchanger::demo::Ci;
use jobpass_tests::{
    program::Program,
    redis::{ADMIN, ADMIN_PASSWORD, Redis},
    server::Setup,
};
use serde_json::{Value, json};

/// What touches no key and no channel, and tells nothing and changes nothing of others.
const HARMLESS: &str = "asking auth command command|count command|docs command|getkeys command|getkeysandflags \
    command|help command|info command|list config|help discard echo exec hello latency|help lolwut \
    module|help multi object|help ping punsubscribe quit readonly readwrite reset select slowlog|help sunsubscribe \
    time unsubscribe unwatch wait xgroup|help xinfo|help";

async fn admin(redis: &Redis, command: &[&str]) -> Value {
    let line = ["--json"].iter().chain(command).copied().collect::<Vec<_>>();
    let mut done = Program::run(redis.client(ADMIN, ADMIN_PASSWORD, &line)).await;
    done.log.truncate(done.log.trim_end().len());
    serde_json::from_str(&done.log).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", done.log))
}

/// Commands and subcommands that name no key, with the least number of words that they take.
fn without_keys(info: &Value, found: &mut Vec<(String, i64)>) {
    for command in info.as_array().expect("a list").iter().filter(|command| !command.is_null()) {
        let empty = |at: usize| command[at].as_array().is_none_or(Vec::is_empty);
        // 8: where its keys stand; 9: its subcommands.
        if empty(9) && empty(8) {
            let name = command[0].as_str().expect("a name").to_owned();
            found.push((name, command[1].as_i64().expect("an arity").abs()));
        }
        if !empty(9) {
            without_keys(&command[9], found);
        }
    }
}

#[tokio::test]
async fn a_category_gives_what_keys_and_channels_restrain() {
    let redis = Redis::start(
        "user jobpass on >jobpasspw resetkeys resetchannels -@all +ping +acl|setuser +acl|deluser +acl|save",
    )
    .await;
    let categories = admin(&redis, &["ACL", "CAT"]).await;
    let categories = categories.as_array().expect("a list").iter().filter_map(Value::as_str);
    let given: Vec<String> =
        categories.filter(|name| !["admin", "dangerous"].contains(name)).map(|name| format!("@{name}")).collect();
    let github = issuer(Ci::GitHub).await;
    let setup = Setup::new().issuer("github", github.url(), &["1001"]);
    let backend = json!({ "redis": {
        "host": "127.0.0.1", "port": redis.port, "user": "jobpass", "password": setup.secret("password", "jobpasspw"),
        "tls": true, "ca_file": redis.ca_file(),
    } });
    let credential = json!({ "keys": ["ci:*"], "commands": given });
    let grant = grant("it", "cache", &credential, "15m");
    let server = setup.backend("cache", backend).grant_text("it", &grant).start().await;
    let answer = server.exchange("it", &token(&github, &server), &[]).await;
    let user = answer.body["credential"]["username"].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned();

    let mut commands = Vec::new();
    without_keys(&admin(&redis, &["COMMAND"]).await, &mut commands);
    assert!(commands.len() > 100, "{commands:?}");
    let mut allowed = Vec::new();
    for (name, words) in commands {
        let mut line = vec!["ACL", "DRYRUN", &user];
        line.extend(name.split('|'));
        line.resize(3 + usize::try_from(words).expect("a few"), "0");
        let said = admin(&redis, &line).await.to_string();
        if !said.contains("has no permissions") {
            allowed.push(format!("{name}: {said}"));
        }
    }
    let harmless: Vec<&str> = HARMLESS.split_whitespace().collect();
    allowed.retain(|told| !harmless.iter().any(|name| told.starts_with(&format!("{name}:"))));
    assert_eq!(allowed, [""; 0], "commands that no key and no channel restrains");
}
