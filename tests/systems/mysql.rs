//! The `mysql` backend where its server does not let a user be dropped.

use jobpass_tests::{
    mariadb::Mariadb,
    program::Program,
    world::{Setting, World, grant},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_cannot_be_dropped_is_locked_and_has_no_sessions() {
    let mariadb = Mariadb::start().await;
    mariadb
        .admin(
            "CREATE TABLE deploys (n int); CREATE USER jobpass@'127.0.0.1' IDENTIFIED BY 'jobpasspw'; \
             GRANT CREATE USER, PROCESS, CONNECTION ADMIN ON *.* TO jobpass@'127.0.0.1'; \
             GRANT SELECT ON app.deploys TO jobpass@'127.0.0.1' WITH GRANT OPTION",
        )
        .await;
    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    std::fs::write(&password, "jobpasspw").expect("writable");
    let backends = format!(
        "  shop:\n    mysql: {{ host: 127.0.0.1, port: {}, user: jobpass, password: \"file:{}\" }}\n",
        mariadb.port,
        password.display()
    );
    let spec = "privileges: [{ database: app, table: deploys, allow: [select] }]";
    let grants = vec![("shop.yaml".to_owned(), grant("shop", "shop", spec))];
    let world = World::of(Setting { grants, backends, ..Setting::default() }).await;

    let answer = world.issue("shop").await;
    let (user, password) = (answer.text_at("/credential/username"), answer.text_at("/credential/password"));
    let log_in = async |statement: &str| Program::run(mariadb.client(&user, &password, "app", statement)).await;
    assert!(log_in("SELECT * FROM deploys").await.status.success());
    let sessions = format!("SELECT count(*) FROM information_schema.processlist WHERE user = '{user}'");
    let count = async || mariadb.admin(&sessions).await.trim().to_owned();
    let held = Program::start(mariadb.client(&user, &password, "app", "SELECT SLEEP(600)"));
    let held = held.ready(async || count().await == "1").await;

    // Whoever may change the server's own tables may change users, and not drop them.
    mariadb
        .admin(
            "REVOKE CREATE USER ON *.* FROM jobpass@'127.0.0.1'; GRANT UPDATE ON mysql.* TO jobpass@'127.0.0.1'; \
             KILL USER jobpass",
        )
        .await;
    let told = world.revoke(&answer.handle()).await.granted();
    assert_eq!(told.body["state"], "revoking", "{}", told.text);
    held.finish().await;
    let rights = async || mariadb.admin(&format!("SHOW GRANTS FOR '{user}'@'%'")).await;
    world.until("its rights are gone", async || rights().await.lines().count() == 1).await;
    assert!(rights().await.starts_with("GRANT USAGE ON *.*"), "{}", rights().await);
    assert_eq!(count().await, "0");
    let refused = log_in("SELECT * FROM deploys").await;
    assert!(!refused.status.success() && refused.log.contains("locked"), "{}", refused.log);
    assert_eq!(world.state_of(&answer.text_at("/lease_id")).await["state"], "revoking");

    mariadb.admin("GRANT CREATE USER ON *.* TO jobpass@'127.0.0.1'; KILL USER jobpass").await;
    world.advance(std::time::Duration::from_secs(600));
    world.until("it is dropped", async || mariadb.leased_users().await.is_empty()).await;
    world.until("its lease ended", async || world.leases().await[0].state.name() == "ended").await;
    world.close().await;
}
