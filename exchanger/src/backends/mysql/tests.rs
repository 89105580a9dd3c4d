use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, order},
};

const CONFIG: &str = "shop: { mysql: { host: db.example, user: jobpass, password: env:SECRET } }";

fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Arc<Rendered>, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Remote(backend) = bench.backend() else { panic!("mysql is remote") };
    let plan = backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())?;
    let user = plan.object["user"].as_str().expect("a name");
    assert!(user == "jobpass_AZkAAAAAcACAAAAAAAAAAQ" && user.len() <= 32, "{user}");
    Ok(plan.rendered.downcast().expect("ours"))
}

fn grants(rendered: &Rendered) -> Vec<String> {
    let account = Account { name: "u".to_owned(), host: "%".to_owned() };
    rendered.privileges.iter().map(|privileges| privileges.grant(&account)).collect()
}

#[test]
fn specs() {
    let bench = Bench::new(CONFIG);
    let credential = "privileges:\n  - { database: \"shop_{{ claims.repository_id }}\", allow: [select, create_temporary_tables] }\n  \
                      - { database: app, table: deploys_1, allow: [insert] }";
    let rendered = plan(&bench, credential, &[]).expect("planned");
    assert_eq!(
        grants(&rendered),
        [
            "GRANT SELECT, CREATE TEMPORARY TABLES ON `shop\\_772002`.* TO 'u'@'%'",
            "GRANT INSERT ON `app`.`deploys_1` TO 'u'@'%'"
        ]
    );
    assert_eq!((rendered.database.as_str(), rendered.connection_limit), ("shop_772002", CONNECTION_LIMIT));
    assert!(rendered.comment.starts_with("jobpass lease ") && rendered.comment.len() <= MAX_COMMENT);
    for (credential, refusal) in [
        ("privileges: []", "can do nothing"),
        ("privileges: [{ database: app, allow: [] }]", "nothing is allowed"),
        ("privileges: [{ database: app, allow: [all] }]", "all"),
        ("privileges: [{ database: app, allow: [grant_option] }]", "grant_option"),
        ("privileges: [{ database: mysql, allow: [select] }]", "the server's own databases"),
        ("privileges: [{ database: MySQL, allow: [select] }]", "the server's own databases"),
        ("privileges: [{ database: \"\", allow: [select] }]", "expected a name"),
        ("privileges: [{ database: \"{{ claims.actor }}\", allow: [select] }]", "decides here"),
        ("privileges: [{ database: app, allow: [select] }]\nconnection_limit: 0", "no limit at all"),
    ] {
        let error = plan(&bench, credential, &[]).err().expect(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
    let listed = Bench::new(&CONFIG.replace("env:SECRET", "env:SECRET, databases: [app]"));
    for (database, refusal) in
        [("shop", "not among those"), ("{{ claims.repository_id }}", "credential.privileges.0.database")]
    {
        let credential = format!("privileges: [{{ database: \"{database}\", allow: [select] }}]");
        let error = plan(&listed, &credential, &[]).err().expect("refused");
        assert!(error.contains(refusal), "{error}");
    }
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let bench = Bench::new(CONFIG);
    for (field, credential) in [
        ("database", "privileges: [{ database: \"d{{ claims.repository_id }}\", allow: [select] }]"),
        ("table", "privileges: [{ database: app, table: \"d{{ claims.repository_id }}\", allow: [select] }]"),
    ] {
        for hostile in HOSTILE {
            match plan(&bench, credential, &[("repository_id", hostile)]) {
                Ok(rendered) => {
                    let [Privileges { database, table, .. }] = rendered.privileges.as_slice() else { panic!("one") };
                    let name = table.as_ref().unwrap_or(database);
                    assert_eq!(Ok(name), Identifier::parse(&format!("d{hostile}")).as_ref());
                }
                Err(error) => {
                    assert!(error.contains(&format!("credential.privileges.0.{field}")), "{hostile:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn configs() {
    for (more, refusal) in [("tls: false, ca_file: ca.pem", "ca_file"), ("job_hosts: \"%' OR\"", "job_hosts")] {
        let error = Bench::new(&CONFIG.replace("env:SECRET", &format!("env:SECRET, {more}"))).backends.err();
        assert!(error.as_ref().is_some_and(|error| error.contains(refusal)), "{error:?}");
    }
    for (to, refusal) in [
        ("env:ABSENT", "password: the secret env:ABSENT is not there"),
        ("env:SECRET, ca_file: absent.pem", "ca_file: /nowhere/absent.pem"),
    ] {
        let bench = Bench::new(&CONFIG.replace("env:SECRET", to));
        let error = bench.backend().describe().preflight().expect_err(to);
        assert!(error.contains(refusal), "{to}: {error}");
    }
}
