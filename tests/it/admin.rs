//! The admin's commands, over their socket.

use jobpass_exchanger::{
    admin::Admin,
    http::admin::{FreezeRequest, Selection},
};
use jobpass_tests::{
    program::built,
    world::{World, session},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    process::{Command, Output},
    time::Duration,
};

/// More than are read at once.
const MANY: usize = 2300;

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_the_oldest_lease() {
    let mut world = World::start().await;
    world.issue("id").await;
    world.stop_server().await; // nobody else writes while it runs
    let store = Connection::open(world.state().join("jobpass.db")).expect("the store");
    store.busy_timeout(Duration::from_secs(30)).expect("it waits");
    let columns: String = store
        .query_row(
            "SELECT group_concat('\"' || name || '\"') FROM pragma_table_info('leases') WHERE cid > 0",
            [],
            |row| row.get(0),
        )
        .expect("reads");
    let copies = format!(
        "WITH RECURSIVE turn(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM turn WHERE n < {MANY}) \
         INSERT INTO leases (id, {columns}) SELECT randomblob(16), {columns} FROM leases, turn"
    );
    assert_eq!(store.execute(&copies, []).expect("writes"), MANY - 1);
    world.start_server().await.expect("starts again");

    let admin = Admin::of(&world.state()).expect("a client");
    let all = Selection { all: true, ..Selection::default() };
    let listed = admin.leases(&Selection { limit: Some(MANY - 1), ..all.clone() }).await.expect("leases");
    assert!(listed.leases.len() == MANY - 1 && listed.left_out.is_some(), "it says that there are more");
    let listed = admin.leases(&Selection { limit: Some(MANY), ..all.clone() }).await.expect("leases");
    assert!(listed.leases.len() == MANY && listed.left_out.is_none());

    let revoked = admin.revoke(&all).await.expect("revokes");
    assert!(revoked.left_out.is_none() && revoked.unrecorded.is_none());
    assert_eq!(revoked.leases.iter().filter(|lease| lease.state.name() == "outliving").count(), MANY);
    let active = store.query_row("SELECT count(*) FROM leases WHERE state < 2", [], |row| row.get::<_, usize>(0));
    assert_eq!(active.expect("reads"), 0);
    world.close().await;
}

/// What a command of the real program said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The ids in a listing.
    fn ids(&self) -> Vec<String> {
        let listed = self.json();
        let ids =
            listed.as_array().expect("a list").iter().map(|lease| lease["id"].as_str().expect("an id").to_owned());
        ids.collect()
    }
}

/// Runs a command of the real program against the world's server.
async fn admin(world: &World, arguments: &[&str]) -> Said {
    let (arguments, state) = (arguments.iter().map(|&one| one.to_owned()).collect::<Vec<_>>(), world.state());
    let run = move || Command::new(built("jobpass-exchanger")).args(arguments).arg("--state-dir").arg(state).output();
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.expect("no panic").expect("it runs");
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    Said { code: status.code(), out, err }
}

/// A lease of that run of the job.
async fn lease_of(world: &World, grant: &str, run: &str) -> String {
    let token = world.token_with(|token| token.claim("run_id", run));
    world.exchange(&token, grant, &[("session", &session())]).await.granted().text_at("/lease_id")
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_taken_back_as_they_are_named() {
    let world = World::start().await;
    let mut leases = Vec::new();
    for (grant, run) in [("ledger", "1"), ("ledger", "2"), ("ledger", "3"), ("id", "4")] {
        leases.push(lease_of(&world, grant, run).await);
    }
    let shown = admin(&world, &["leases", "show", &leases[1]]).await.json();
    assert_eq!(shown.as_array().map(Vec::len), Some(1), "{shown}");
    let [of, claims] = [&shown[0], &shown[0]["claims"]];
    for (field, expected) in [("id", leases[1].as_str()), ("grant", "ledger"), ("rule", "main"), ("issuer", "ci")] {
        assert_eq!(of[field], expected, "{shown}");
    }
    assert_eq!((&claims["run_id"], &of["state"]["state"]), (&json!("2"), &json!("active")), "{shown}");

    for (what, which, state) in [
        (&["--claim", "run_id=1"][..], 0, "ended"),
        (&[&leases[1]], 1, "ended"),
        (&["--grant", "ledger", "--claim", "repository_id=772002"], 2, "ended"),
        (&["--issuer", "ci"], 3, "outliving"),
    ] {
        let (before, keys) = (serde_json::to_value(world.leases().await).expect("JSON"), world.ledger.keys().len());
        let revoke = [&["leases", "revoke", "--json"], what].concat();
        let dry = admin(&world, &[&revoke[..], &["--dry-run"]].concat()).await;
        assert_eq!((dry.ids(), dry.err.as_str()), (vec![leases[which].clone()], ""), "{what:?}");
        let after = serde_json::to_value(world.leases().await).expect("JSON");
        assert_eq!((after, world.ledger.keys().len()), (before, keys), "{what:?}: a dry run changes nothing");

        let said = admin(&world, &revoke).await;
        assert_eq!((said.ids(), said.err.as_str()), (vec![leases[which].clone()], ""), "{what:?}");
        assert_eq!(said.json()[0]["state"]["state"], state, "{what:?}");
        assert_eq!(world.state_of(&leases[which]).await["state"], state, "{what:?}");
        assert_eq!(world.ledger.keys().len(), keys - usize::from(state == "ended"), "{what:?}");
    }
    for (arguments, cause) in [
        (&["leases", "revoke"][..], "error: say which leases: "),
        (&["leases", "revoke", "--claim", "run_id"], "write it as NAME=VALUE"),
        (&["leases", "show", "01234567-89ab-7def-8123-456789abcdef"], "error: there is no lease 01234567-"),
    ] {
        let said = admin(&world, arguments).await;
        assert!(said.code != Some(0) && said.out.is_empty() && said.err.contains(cause), "{said:?}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_nothing_is_told_beside_the_answer() {
    let world = World::start().await;
    lease_of(&world, "ledger", "7").await;
    for (arguments, out, note) in [
        (&["leases", "revoke", "--json", "--claim", "run_id=8"][..], "[]\n", "no live lease fits what was said\n"),
        (
            &["leases", "revoke", "--json", "--grant", "legder"],
            "[]\n",
            "no live lease fits what was said: there is no grant legder; did you mean ledger?\n",
        ),
        (
            &["leases", "revoke", "--json", "--dry-run", "--issuer", "github"],
            "[]\n",
            "no live lease fits what was said: there is no issuer github\n",
        ),
        (&["leases", "revoke", "--json", "--grant", "id"], "[]\n", "no live lease fits what was said\n"),
        (&["leases", "list", "--json", "--grant", "legder"], "[]\n", ""),
        (
            &["freeze", "--grant", "legder", "--reason", "incident 7"],
            "grant legder: incident 7\n",
            "it is frozen as it was said, but there is no grant legder; did you mean ledger?\n",
        ),
        (&["thaw", "--grant", "legder"], "nothing is frozen\n", ""),
        (
            &["freeze", "--issuer", "cl", "--reason", "incident 7"],
            "issuer cl: incident 7\n",
            "it is frozen as it was said, but there is no issuer cl; did you mean ci?\n",
        ),
        (&["thaw", "--issuer", "cl"], "nothing is frozen\n", ""),
        (&["freeze", "--grant", "ledger", "--reason", "incident 7"], "grant ledger: incident 7\n", ""),
    ] {
        let said = admin(&world, arguments).await;
        let expected = if note.is_empty() { String::new() } else { format!("note: {note}") };
        assert_eq!((said.code, said.out.as_str(), said.err), (Some(0), out, expected), "{arguments:?}");
    }
    world.exchange(&world.token(), "ledger", &[("session", &session())]).await.refused(400, "invalid_target");
    assert_eq!(world.ledger.keys().len(), 1, "nothing was taken back");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_without_a_reason_is_refused() {
    let world = World::start().await;
    for reason in ["", " \t"] {
        let said = admin(&world, &["freeze", "--reason", reason]).await;
        assert!(said.code == Some(1) && said.err.contains("a freeze needs a --reason"), "{said:?}");
        let request = FreezeRequest { issuer: None, grant: None, reason: Some(reason.to_owned()) };
        let refused = Admin::of(&world.state()).expect("a client").freeze(&request).await.expect_err("refused");
        assert!(refused.to_string().contains("a freeze needs a --reason"), "{refused}");
    }
    world.issue("id").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_are_rotated() {
    let world = World::start().await;
    let kids = |keys: &Value, standing: &str| -> BTreeSet<String> {
        let keys = keys.as_array().expect("a list").iter().filter(|key| key["standing"] == standing);
        keys.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
    };
    let published = async || {
        let answer = world.client.get(format!("{}/.well-known/jwks.json", world.url)).send().await.expect("answers");
        let set: Value = answer.json().await.expect("JSON");
        set["keys"].as_array().expect("keys").iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
    };
    let signs = async || {
        let token = world.issue("id").await.text_at("/access_token");
        jsonwebtoken::decode_header(token).expect("a header").kid.expect("a kid")
    };
    let first = signs().await;
    let keys = admin(&world, &["keys", "list"]).await.json();
    assert_eq!(kids(&keys, "active"), BTreeSet::from([first.clone()]));

    let keys = admin(&world, &["keys", "rotate"]).await.json();
    let next = kids(&keys, "next");
    assert_eq!((next.len(), kids(&keys, "active")), (1, BTreeSet::from([first.clone()])), "{keys}");
    assert_eq!((published().await, signs().await), (&next | &BTreeSet::from([first.clone()]), first.clone()));
    world.advance(Duration::from_secs(601));
    assert!(next.contains(&signs().await), "it signs once everybody can know it");
    let keys = admin(&world, &["keys", "list"]).await.json();
    assert_eq!((kids(&keys, "active"), kids(&keys, "retired")), (next.clone(), BTreeSet::from([first])), "{keys}");

    let keys = admin(&world, &["keys", "rotate", "--at-once"]).await.json();
    let now = kids(&keys, "active");
    assert!(keys.as_array().map(Vec::len) == Some(1) && now.is_disjoint(&next), "{keys}");
    assert_eq!((published().await, BTreeSet::from([signs().await])), (now.clone(), now));

    let told = || {
        let audit = world.audit().into_iter().filter(|line| line["entry"]["event"] == "keys");
        audit.map(|line| line["entry"]["reason"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let expected = ["rotated with overlap", "rotated at once: older tokens are refused"];
    world.until("the audit log tells", async || told() == expected).await;
    world.close().await;
}
