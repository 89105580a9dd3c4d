//! The `postgres` backend through the front door, against a real PostgreSQL, as an admin who is no superuser.

use jobpass_tests::{
    postgres::Postgres,
    world::{Answer, Setting, World, grant, session},
};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

const WEIRD: &str = r#"we"ird '\ роль; DROP ROLE app; --"#;

/// A world whose backends `db` and `heir` are one PostgreSQL; `more` is config of both.
async fn start(more: &str) -> (World, Postgres, TempDir) {
    start_at(Postgres::start().await, more).await
}

async fn start_at(postgres: Postgres, more: &str) -> (World, Postgres, TempDir) {
    let weird = WEIRD.replace('"', "\"\"");
    let setup = format!(
        "CREATE ROLE app; CREATE ROLE \"{weird}\"; CREATE ROLE heir; CREATE ROLE forbidden; \
         CREATE ROLE jobpass LOGIN CREATEROLE PASSWORD 'adminpw'; GRANT heir TO jobpass; \
         GRANT app, \"{weird}\" TO jobpass WITH ADMIN OPTION; \
         GRANT CREATE ON SCHEMA public TO app, heir; CREATE TABLE deploys (n int); GRANT SELECT, INSERT ON deploys TO app"
    );
    let admin = postgres.admin().await;
    admin.batch_execute(&setup).await.expect("the superuser may");
    admin.batch_execute("CREATE DATABASE other").await.expect("the superuser may");
    let other = connect(postgres.port, "other", "admin", "adminpw").await.expect("the superuser logs in");
    other.batch_execute("GRANT CREATE ON SCHEMA public TO app").await.expect("the superuser may");

    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    std::fs::write(&password, "adminpw\n").expect("writes");
    let backend = |name: &str, more: &str| {
        format!(
            "  {name}:\n    postgres: {{ host: 127.0.0.1, port: {}, database: postgres, user: jobpass, \
             password: \"file:{}\"{more} }}\n",
            postgres.port,
            password.display()
        )
    };
    let weird = WEIRD.replace('\\', "\\\\").replace('"', "\\\"");
    let grants = [
        ("db", "db", "roles: [app]".to_owned()),
        ("heir", "heir", "roles: [app]".to_owned()),
        ("weird", "db", format!("roles: [\"{weird}\"]")),
        ("forbidden", "db", "roles: [forbidden]".to_owned()),
    ];
    let grants = grants.map(|(name, backend, spec)| (format!("{name}.yaml"), grant(name, backend, &spec)));
    let backends =
        backend("db", more) + &backend("heir", &format!(", reassign_owned_to: heir, scram_iterations: 1{more}"));
    let world = World::of(Setting { grants: grants.into(), backends, ..Setting::default() }).await;
    (world, postgres, secrets)
}

async fn connect(port: u16, database: &str, user: &str, password: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).dbname(database).user(user).password(password);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Logs in as a job would.
async fn login(answer: &Answer, database: &str) -> Result<Client, tokio_postgres::Error> {
    let port = answer.text_at("/credential/port").parse().expect("a port");
    connect(port, database, &answer.text_at("/credential/username"), &answer.text_at("/credential/password")).await
}

async fn count(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.expect("the query is right").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_does_what_its_role_may_and_is_gone_after() {
    let (world, postgres, _secrets) = start("").await;
    let admin = postgres.admin().await;
    for (name, kept) in [("db", false), ("heir", true)] {
        let answer = world.issue(name).await;
        assert_eq!(answer.text_at("/credential/sslmode"), "prefer");
        let role = answer.text_at("/credential/username");
        let comment = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1";
        let comment: String = admin.query_one(comment, &[&role]).await.expect("the role is there").get(0);
        assert!(comment.contains(&answer.text_at("/lease_id")) && comment.contains("772002"), "{comment}");
        let verifier = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let verifier: String = admin.query_one(verifier, &[&role]).await.expect("the role is there").get(0);
        let iterations = if kept { 1 } else { 4096 };
        assert!(verifier.starts_with(&format!("SCRAM-SHA-256${iterations}:")), "{verifier}");

        let job = login(&answer, "postgres").await.expect("the job logs in");
        job.batch_execute("INSERT INTO deploys VALUES (1); CREATE TABLE mine (n int)").await.expect("the role may");
        for forbidden in ["CREATE ROLE x", "SET ROLE heir", "DELETE FROM deploys", "COPY (SELECT 1) TO '/tmp/x'"] {
            let refused = job.batch_execute(forbidden).await.expect_err(forbidden);
            assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{forbidden}: {refused}");
        }
        let elsewhere = login(&answer, "other").await.expect("the job logs in elsewhere");
        elsewhere.batch_execute("CREATE TABLE elsewhere (n int)").await.expect("the role may");
        drop(elsewhere);

        // Its own session is open, it owns tables in two databases, and only one backend has an heir.
        world.revoke(&answer.handle()).await.granted();
        let lease = answer.text_at("/lease_id");
        world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;
        assert!(!postgres.has_role(&role).await);
        assert!(job.query("SELECT 1", &[]).await.is_err(), "an open session outlived its role");
        assert!(login(&answer, "postgres").await.is_err());
        let owned = "SELECT count(*) FROM pg_class WHERE relname IN ('mine', 'elsewhere')";
        assert_eq!(count(&admin, owned).await, i64::from(kept), "{name}");
        assert_eq!(world.revoke(&answer.handle()).await.body["state"], "ended", "revocation is idempotent");
        admin.batch_execute("DROP TABLE IF EXISTS mine").await.expect("the superuser may");
        let other = connect(postgres.port, "other", "admin", "adminpw").await.expect("the superuser logs in");
        assert_eq!(count(&other, owned).await, i64::from(kept), "{name}");
        other.batch_execute("DROP TABLE IF EXISTS elsewhere").await.expect("the superuser may");
    }
    assert_eq!(count(&admin, "SELECT count(*) FROM deploys").await, 2, "what the jobs did stays");
    world.close().await;
}

/// What is the heir's here, and all that hangs on it.
const HEIRLOOMS: &str = "
    WITH mine AS (SELECT classid, objid FROM pg_shdepend WHERE refobjid = 'heir'::regrole AND deptype = 'o'
        AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())),
    things AS (SELECT classid, objid FROM mine
        UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid IN (SELECT objid FROM mine)
        UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid IN (SELECT objid FROM mine)
        UNION ALL SELECT 'pg_trigger'::regclass, oid FROM pg_trigger WHERE tgrelid IN (SELECT objid FROM mine)
        UNION ALL SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite WHERE ev_class IN (SELECT objid FROM mine)
        UNION ALL SELECT 'pg_policy'::regclass, oid FROM pg_policy WHERE polrelid IN (SELECT objid FROM mine)
        UNION ALL SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid IN (SELECT objid FROM mine)
        UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast WHERE oid >= 16384)
    SELECT type || ' ' || identity AS thing FROM things, pg_identify_object(classid, objid, 0)
    UNION SELECT privilege_type || ' for PUBLIC on ' || relname FROM pg_class, aclexplode(relacl) WHERE grantee = 0
        AND oid IN (SELECT objid FROM mine)
    UNION SELECT privilege_type || ' for PUBLIC on ' || nspname FROM pg_namespace, aclexplode(nspacl) WHERE grantee = 0
        AND oid IN (SELECT objid FROM mine) ORDER BY thing";

/// What a job leaves to the heir is data: nothing of it runs, with the heir's rights or with those of its users.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_leaves_behind_does_not_run() {
    let (world, postgres, _secrets) = start("").await;
    let admin = postgres.admin().await;
    let setup = "CREATE SCHEMA prod AUTHORIZATION heir; CREATE TABLE prod.cards (n text); \
         ALTER TABLE prod.cards OWNER TO heir; INSERT INTO prod.cards VALUES ('4111'); GRANT USAGE ON SCHEMA prod TO app; CREATE SCHEMA ci; \
         GRANT USAGE, CREATE ON SCHEMA ci TO app; GRANT CREATE ON DATABASE postgres TO jobpass WITH GRANT OPTION; \
         SET SESSION AUTHORIZATION jobpass; GRANT CREATE ON DATABASE postgres TO app; RESET SESSION AUTHORIZATION";
    admin.batch_execute(setup).await.expect("the superuser may");
    let (first, second) = (world.issue("heir").await, world.issue("heir").await);
    let other = login(&second, "postgres").await.expect("the job logs in");
    // What the other job makes lives on while the first one's passes on.
    for statement in [
        "CREATE FUNCTION ci.theirs(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n'",
        "CREATE FUNCTION ci.on_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
        "CREATE DOMAIN ci.theirs_too AS int CHECK (ci.theirs(VALUE) > 0)",
    ] {
        other.batch_execute(statement).await.expect(statement);
    }
    let job = login(&first, "postgres").await.expect("the job logs in");
    for statement in [
        "CREATE VIEW ci.peek AS SELECT * FROM prod.cards; GRANT SELECT ON ci.peek TO PUBLIC",
        "CREATE FUNCTION ci.doit(q text) RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER \
         AS 'BEGIN RETURN QUERY EXECUTE q; END'",
        "CREATE PROCEDURE ci.proc() LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "CREATE AGGREGATE ci.total(int) (SFUNC = int4pl, STYPE = int)",
        "CREATE MATERIALIZED VIEW ci.kept AS SELECT 1 AS one",
        "CREATE OPERATOR ci.@@+ (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)",
        "CREATE DOMAIN ci.positive AS int CHECK (VALUE > 0)",
        "CREATE TYPE ci.span AS RANGE (SUBTYPE = int)",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        // Data, with all that a table may have of its own.
        "CREATE SCHEMA \"it's \"\"mine\"; GRANT USAGE, CREATE ON SCHEMA \"it's \"\"mine\" TO PUBLIC",
        "CREATE TYPE ci.mood AS ENUM ('good', 'bad'); CREATE TYPE ci.pair AS (a int, b text)",
        "CREATE CAST (ci.pair AS text) WITH INOUT AS IMPLICIT",
        "CREATE TABLE \"it's \"\"mine\".\"t \"\"'\" (id serial PRIMARY KEY, n int DEFAULT 7 CHECK (n > 0), \
         at timestamptz DEFAULT now() + '1 day', u uuid DEFAULT gen_random_uuid(), m ci.mood, p ci.pair, \
         twice int GENERATED ALWAYS AS (n * 2) STORED); INSERT INTO \"it's \"\"mine\".\"t \"\"'\" DEFAULT VALUES",
        "CREATE SEQUENCE ci.numbers; SELECT lo_create(4242)",
        // And all that would run when others use it.
        "CREATE TABLE ci.runs (id int CONSTRAINT good CHECK (id > 0) CONSTRAINT bad CHECK (ci.theirs(id) > 0), \
         a int DEFAULT ci.theirs(1), b xml DEFAULT query_to_xml('SELECT * FROM prod.cards', true, true, ''), \
         c text DEFAULT pg_read_file('secret'), d int GENERATED ALWAYS AS (ci.theirs(id)) STORED, e ci.positive)",
        "INSERT INTO ci.runs (id, b, c) VALUES (1, '<a/>', 'c'); CREATE STATISTICS ci.counted ON id, a FROM ci.runs",
        "CREATE INDEX plain ON ci.runs (lower(c)); CREATE INDEX evil ON ci.runs (ci.theirs(id)); \
         CREATE INDEX worse ON ci.runs (id) WHERE ci.theirs(id) > 1",
        "CREATE TRIGGER t BEFORE INSERT ON ci.runs FOR EACH ROW EXECUTE FUNCTION ci.on_row(); \
         CREATE CONSTRAINT TRIGGER c AFTER INSERT ON ci.runs FOR EACH ROW EXECUTE FUNCTION ci.on_row()",
        "CREATE RULE r AS ON DELETE TO ci.runs DO ALSO SELECT ci.theirs(1); CREATE POLICY p ON ci.runs USING (true)",
        "GRANT SELECT, TRIGGER ON ci.runs TO PUBLIC",
        "CREATE TABLE ci.typed (n ci.theirs_too); CREATE TABLE ci.split (id int) PARTITION BY RANGE ((ci.theirs(id)))",
    ] {
        job.batch_execute(statement).await.expect(statement);
    }
    world.revoke(&first.handle()).await.granted();
    let lease = first.text_at("/lease_id");
    world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;

    for (statement, code) in [
        ("SELECT * FROM prod.cards", "42501"),
        ("SELECT * FROM ci.peek", "42P01"),
        ("SELECT ci.doit('SELECT n FROM prod.cards')", "42883"),
        ("CREATE TRIGGER again BEFORE INSERT ON ci.runs FOR EACH ROW EXECUTE FUNCTION ci.on_row()", "42501"),
        ("CREATE FUNCTION \"it's \"\"mine\".f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "42501"),
    ] {
        let refused = other.batch_execute(statement).await.expect_err(statement);
        assert_eq!(refused.code().map(|code| code.code()), Some(code), "{statement}: {refused}");
    }
    let left = admin.query(HEIRLOOMS, &[]).await.expect("the query is right");
    let left: Vec<String> = left.iter().map(|row| row.get(0)).collect();
    let table = r#""it's ""mine"."t ""'""#;
    let expected = [
        "SELECT for PUBLIC on runs",
        r#"SELECT for PUBLIC on t "'"#,
        r#"USAGE for PUBLIC on it's "mine"#,
        r#"default value for "it's ""mine"."t ""'".at"#,
        r#"default value for "it's ""mine"."t ""'".id"#,
        r#"default value for "it's ""mine"."t ""'".n"#,
        r#"default value for "it's ""mine"."t ""'".twice"#,
        r#"default value for "it's ""mine"."t ""'".u"#,
        r#"index "it's ""mine"."t ""'_pkey""#,
        "index ci.plain",
        "large object 4242",
        r#"schema "it's ""mine""#,
        "schema prod",
        r#"sequence "it's ""mine"."t ""'_id_seq""#,
        "sequence ci.numbers",
        r#"table "it's ""mine"."t ""'""#,
        "table ci.runs",
        r#"table constraint "t ""'_n_check" on "it's ""mine"."t ""'""#,
        r#"table constraint "t ""'_pkey" on "it's ""mine"."t ""'""#,
        "table constraint good on ci.runs",
        "table prod.cards",
        "type ci.mood",
        "type ci.pair",
    ];
    assert_eq!(left, expected);
    let kept = format!("SELECT count(*) FROM {table} WHERE n = 7 AND twice = 14 AND at > now() AND u IS NOT NULL");
    assert_eq!(count(&admin, &kept).await, 1);
    assert_eq!(count(&admin, "SELECT count(*) FROM ci.runs WHERE id = 1 AND a = 1 AND d = 1 AND c = 'c'").await, 1);
    world.close().await;
}

/// While somebody is in the way of a removal, what the role made does not go on with the role's rights.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_removed_yet_can_do_nothing() {
    let (world, postgres, _secrets) = start("").await;
    let (first, second) = (world.issue("db").await, world.issue("weird").await);
    let job = login(&first, "postgres").await.expect("the job logs in");
    let made = "CREATE TABLE mine (n int); GRANT SELECT ON mine TO PUBLIC; CREATE FUNCTION doit() RETURNS bigint \
         LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.deploys'";
    job.batch_execute(made).await.expect("the role may");
    let other = login(&second, "postgres").await.expect("the job logs in");
    assert_eq!(count(&other, "SELECT doit()").await, 0);
    other.batch_execute("BEGIN; SELECT * FROM mine").await.expect("it may");
    assert_eq!(world.revoke(&first.handle()).await.granted().body["state"], "revoking", "somebody reads what it owns");
    let refused = other.query("SELECT doit()", &[]).await.expect_err("the function has no rights left");
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{refused}");
    drop(other);
    world.advance(Duration::from_secs(60));
    let lease = first.text_at("/lease_id");
    world.until("the lease is ended", async || world.state_of(&lease).await["state"] == "ended").await;
    assert!(!postgres.has_role(&first.text_at("/credential/username")).await);
    world.close().await;
}

/// What a job prepared (two-phase commit) outlives its sessions, and holds what it locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_no_way_to_stay() {
    let (world, postgres, _secrets) = start_at(Postgres::start_with(&["max_prepared_transactions=5"]).await, "").await;
    let answer = world.issue("db").await;
    for (database, statements) in [
        ("postgres", "BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'x'; PREPARE TRANSACTION 'keep ''me'"),
        ("other", "BEGIN; CREATE TABLE elsewhere (n int); PREPARE TRANSACTION 'me \\ too'"),
    ] {
        let job = login(&answer, database).await.expect("the job logs in");
        job.batch_execute(statements).await.expect(statements);
    }
    assert_eq!(world.revoke(&answer.handle()).await.granted().body["state"], "ended");
    assert_eq!(postgres.leased_roles().await, [""; 0]);
    assert_eq!(count(&postgres.admin().await, "SELECT count(*) FROM pg_prepared_xacts").await, 0);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_login_is_the_same_login_and_expires_with_its_lease() {
    let (world, postgres, _secrets) = start("").await;
    let answer = world.issue("db").await;
    let until =
        "SELECT extract(epoch FROM rolvaliduntil - now())::bigint FROM pg_roles WHERE rolname LIKE 'jobpass\\_%'";
    let admin = postgres.admin().await;
    let first = count(&admin, until).await;
    assert!((880..=900).contains(&first), "{first}");
    // As it is after ten minutes; the server's clock is not turned with ours.
    let role = postgres.leased_roles().await.remove(0);
    let earlier = format!("UPDATE pg_authid SET rolvaliduntil = now() + '300 s' WHERE rolname = '{role}'");
    admin.batch_execute(&earlier).await.expect("the superuser may");
    world.advance(Duration::from_secs(600));
    let renewed = world.renew(&answer.handle(), &[]).await.granted();
    assert_eq!(renewed.text_at("/lease_id"), answer.text_at("/lease_id"));
    assert!(count(&admin, until).await > 800, "the role lives longer");
    login(&answer, "postgres").await.expect("the first password works on");
    world.advance(Duration::from_secs(16 * 60));
    world.until("the role is gone", async || postgres.leased_roles().await.is_empty()).await;
    world.until("the lease is ended", async || world.leases().await[0].state.name() == "ended").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_carried_whole_and_refusals_are_plain() {
    let (world, postgres, _secrets) = start("").await;
    let answer = world.issue("weird").await;
    let job = login(&answer, "postgres").await.expect("the job logs in");
    let member = job.query_one("SELECT pg_has_role($1, 'USAGE')", &[&WEIRD]).await.expect("the role is there");
    assert!(member.get::<_, bool>(0));
    assert!(postgres.has_role("app").await);
    world.revoke(&answer.handle()).await.granted();

    // On PostgreSQL 15 CREATEROLE hands out any role, so what is missing there is refused by name only.
    postgres.admin().await.batch_execute("DROP ROLE forbidden").await.expect("the superuser may");
    world.exchange(&world.token(), "forbidden", &[("session", &session())]).await.refused(502, "server_error");
    let missing = "role \"forbidden\" does not exist";
    let told =
        || world.audit().iter().any(|entry| entry["entry"]["reason"].as_str().is_some_and(|why| why.contains(missing)));
    world.until("the audit log says why", async || told()).await;
    world.until("no role is left", async || postgres.leased_roles().await.is_empty()).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_leave_nothing() {
    let (world, postgres, _secrets) = start(", deadline: 30s").await;
    let jobs = (0..60).map(|_| async {
        let answer = world.issue("db").await;
        login(&answer, "postgres").await.expect("the job logs in");
        world.revoke(&answer.handle()).await.granted();
    });
    futures_util::future::join_all(jobs).await;
    world.until("no role is left", async || postgres.leased_roles().await.is_empty()).await;
    world.until("all is ended", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_held_up_comes_to_nothing() {
    let (world, postgres, _secrets) = start(", deadline: 1s, max_connections: 1").await;
    world.revoke(&world.issue("db").await.handle()).await.granted();
    let admin = postgres.admin().await;
    let ours = admin.query_one("SELECT pid FROM pg_stat_activity WHERE usename = 'jobpass'", &[]).await;
    let ours = Pid::from_raw(ours.expect("one connection is kept").get(0)).expect("a process");
    kill_process(ours, Signal::STOP).expect("it is ours to stop");
    world.exchange(&world.token(), "db", &[("session", &session())]).await.refused(502, "server_error");
    kill_process(ours, Signal::CONT).expect("it is ours to wake");
    let came = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'jobpass' AND query LIKE '%CREATE ROLE%' AND state = 'active'";
    world.until("the creation is over", async || count(&admin, came).await == 0).await;
    assert_eq!(postgres.leased_roles().await, [""; 0]);
    world.advance(Duration::from_secs(16 * 60));
    world.until("all is ended", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
    world.close().await;
}

/// Whatever a job's session holds on to is in nobody's way but of those who change the very same rights.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_holds_stops_nobody_else() {
    let postgres = Postgres::start().await;
    let setup = "CREATE ROLE app; CREATE ROLE jobpass LOGIN CREATEROLE PASSWORD 'adminpw'; CREATE ROLE crew; \
         GRANT app, crew TO jobpass WITH ADMIN OPTION; GRANT CREATE ON SCHEMA public TO app; \
         CREATE SCHEMA work; CREATE SCHEMA theirs AUTHORIZATION crew; CREATE TABLE work.runs (n int); \
         GRANT USAGE ON SCHEMA work TO crew; GRANT USAGE, CREATE ON SCHEMA work, theirs TO jobpass WITH GRANT OPTION; \
         GRANT SELECT ON work.runs TO jobpass WITH GRANT OPTION";
    let admin = postgres.admin().await;
    admin.batch_execute(setup).await.expect("the superuser may");
    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    std::fs::write(&password, "adminpw\n").expect("writes");
    let backends = format!(
        "  db:\n    postgres: {{ host: 127.0.0.1, port: {}, database: postgres, user: jobpass, password: \"file:{}\", \
         max_connections: 3, deadline: 2s }}\n    limits: {{ concurrency: 8, failures: 1, rest: 1h }}\n",
        postgres.port,
        password.display()
    );
    let grants = [
        ("holder", "roles: [app, crew]\n  connection_limit: 9"),
        ("work", "privileges: [{ schema: work, allow: [select, create] }]"),
        ("theirs", "privileges: [{ schema: theirs, allow: [create] }]"),
    ];
    let grants = grants.map(|(name, spec)| (format!("{name}.yaml"), grant(name, "db", spec)));
    let world = World::of(Setting { grants: grants.into(), backends, ..Setting::default() }).await;

    let holder = world.issue("holder").await;
    let sessions = [
        // Any lock that anybody can take by its number, for the session and for a transaction.
        "SELECT count(pg_advisory_lock(n)) FROM unnest(ARRAY[0, 1, 7742830917420463]) AS n",
        "BEGIN; SELECT pg_advisory_xact_lock(2)",
        // Rows and tables of its own, and of what it is a member of.
        "BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'mine'",
        "BEGIN; CREATE TABLE mine (n int); LOCK TABLE mine IN ACCESS EXCLUSIVE MODE",
        "BEGIN; GRANT USAGE ON SCHEMA theirs TO PUBLIC",
    ];
    let mut held = Vec::new();
    for statements in sessions {
        let session = login(&holder, "postgres").await.expect("the job logs in");
        session.batch_execute(statements).await.expect(statements);
        held.push(session);
    }
    let go_on = async |what: &str| {
        let answer = world.issue("work").await;
        let job = login(&answer, "postgres").await.expect("the job logs in");
        job.batch_execute("SELECT * FROM work.runs; CREATE TABLE work.made (n int)").await.expect("it may");
        world.revoke(&answer.handle()).await.granted();
        let lease = answer.text_at("/lease_id");
        let ended = async || {
            world.advance(Duration::from_millis(100)); // until it is tried again
            world.state_of(&lease).await["state"] == "ended"
        };
        world.until(what, ended).await;
    };
    go_on("sessions hold locks").await;
    // Those who need what is held fail, and neither take all connections nor rest the backend.
    let (token, mine) = (world.token(), session());
    let mine = [("session", mine.as_str())];
    let stuck = (0..6).map(|_| world.exchange(&token, "theirs", &mine));
    let (stuck, ()) = tokio::join!(futures_util::future::join_all(stuck), go_on("others are held up"));
    for answer in stuck {
        answer.refused(502, "server_error");
    }
    go_on("others were held up").await;
    // Nor does it help to be in the way of the removal of others' objects.
    let reads = login(&holder, "postgres").await.expect("the job logs in");
    let mut kept = Vec::new();
    for table in 0..6 {
        let answer = world.issue("work").await;
        let job = login(&answer, "postgres").await.expect("the job logs in");
        let table = format!("work.kept_{table}");
        job.batch_execute(&format!("CREATE TABLE {table} (n int); GRANT SELECT ON {table} TO crew"))
            .await
            .expect("it may");
        reads.batch_execute(&format!("BEGIN; SELECT * FROM {table}")).await.expect("it may");
        kept.push(answer.handle());
    }
    let stuck = kept.iter().map(|handle| world.revoke(handle));
    let (stuck, ()) = tokio::join!(futures_util::future::join_all(stuck), go_on("removals are held up"));
    for told in stuck {
        assert_eq!(told.granted().body["state"], "revoking", "somebody reads what it owned");
    }
    let told = world.revoke(&holder.handle()).await.granted();
    assert_eq!(told.body["state"], "ended", "what it held is no way to stay: {}", told.text);
    world.issue("theirs").await;
    world.advance(Duration::from_secs(16 * 60));
    world.until("all is ended", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
    assert_eq!(postgres.leased_roles().await, [""; 0]);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_makes_nothing() {
    let (world, postgres, _secrets) = start("").await;
    world.revoke(&world.issue("db").await.handle()).await.granted();
    drop(postgres);
    world.exchange(&world.token(), "db", &[("session", &session())]).await.refused(502, "server_error");
    world.until("all is ended", async || world.leases().await.iter().all(|l| l.state.name() == "ended")).await;
    world.close().await;
}

/// Claims that mean something to SQL, and what becomes of them in a statement, as PostgreSQL itself tells.
#[tokio::test(flavor = "multi_thread")]
async fn claims_in_statements_arrive_as_they_are() {
    let postgres = Postgres::start().await;
    let admin = postgres.admin().await;
    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    std::fs::write(&password, "adminpw\n").expect("writes");
    let backends = format!(
        "  db:\n    postgres: {{ host: 127.0.0.1, port: {}, database: postgres, user: admin, statements: true, \
         password: \"file:{}\" }}\n",
        postgres.port,
        password.display()
    );
    let spec = "statements: [\"COMMENT ON ROLE {{ role }} IS {{ claims.run_id }}\", \
                \"GRANT {{ claims.run_id | identifier }} TO {{ role }}\"]";
    let grants = vec![("db.yaml".to_owned(), grant("db", "db", spec))];
    let world = World::of(Setting { grants, backends, ..Setting::default() }).await;
    let mut carried = 0;
    for value in [
        "'",
        "''",
        "\"",
        "\\",
        "\\'",
        "';--",
        "'; DROP ROLE admin; --",
        "\"; DROP ROLE admin; --",
        "*",
        "%",
        "a/b",
        " a",
        "$$",
        "$(id)",
        "{{ role }}",
        "роль",
        "\u{1f419}",
        "\u{202e}",
        "a\0b",
        "a\nb",
        &"x".repeat(63),
        &"x".repeat(300),
    ] {
        let refused = value.chars().any(char::is_control) || value.len() > 63;
        if !refused {
            let role = format!("CREATE ROLE \"{}\"", value.replace('"', "\"\""));
            admin.batch_execute(&role).await.expect("the superuser may");
        }
        let token = world.token_with(|token| token.claim("run_id", value));
        let answer = world.exchange(&token, "db", &[("session", &session())]).await;
        if refused {
            let answer = answer.refused(400, "invalid_request");
            assert!(answer.text.contains("credential.statements.1") || answer.text.contains("credential.statements.0"));
            continue;
        }
        let role = answer.granted().text_at("/credential/username");
        let told = "SELECT shobj_description(oid, 'pg_authid'), pg_has_role(rolname, $2, 'MEMBER') FROM pg_roles WHERE rolname = $1";
        let told = admin.query_one(told, &[&role, &value]).await.expect("the role is there");
        assert_eq!((told.get::<_, &str>(0), told.get::<_, bool>(1)), (value, true));
        carried += 1;
    }
    assert_eq!(carried, 19);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_authority_is_not_believed() {
    let (postgres, other) = (Postgres::start_tls().await, Postgres::start_tls().await);
    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    std::fs::write(&password, "adminpw\n").expect("writes");
    let backend = |name: &str, ca: &Postgres, host: &str| {
        format!(
            "  {name}:\n    postgres: {{ host: {host}, port: {}, database: postgres, user: admin, sslmode: verify-full, \
             ca_file: \"{}\", password: \"file:{}\" }}\n",
            postgres.port,
            ca.ca_file().display(),
            password.display()
        )
    };
    let backends = backend("right", &postgres, "127.0.0.1")
        + &backend("wrong-ca", &other, "127.0.0.1")
        + &backend("wrong-name", &postgres, "localhost");
    let grants =
        ["right", "wrong-ca", "wrong-name"].map(|name| (format!("{name}.yaml"), grant(name, name, "roles: [app]")));
    postgres.admin().await.batch_execute("CREATE ROLE app").await.expect("the superuser may");
    let world = World::of(Setting { grants: grants.into(), backends, ..Setting::default() }).await;
    assert_eq!(world.issue("right").await.text_at("/credential/sslmode"), "require");
    for name in ["wrong-ca", "wrong-name"] {
        world.exchange(&world.token(), name, &[("session", &session())]).await.refused(502, "server_error");
    }
    world.close().await;
}
