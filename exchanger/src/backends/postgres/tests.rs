use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, order},
};

const CONFIG: &str = "
db:
  postgres:
    host: db.example
    database: app
    user: jobpass
    password: env:SECRET
    roles: [app_deploy, \"Répo 772002\", \"q\\\"uo'te\"]
";

fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<(Plan, Arc<Rendered>), String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Remote(backend) = bench.backend() else { panic!("postgres is remote") };
    let plan = backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())?;
    let rendered = Arc::clone(&plan.rendered).downcast().expect("ours");
    Ok((plan, rendered))
}

#[test]
fn specs() {
    let bench = Bench::new(CONFIG);
    let (plan_made, rendered) = plan(&bench, "roles: [\"Répo {{ claims.repository_id }}\"]", &[]).expect("planned");
    assert_eq!(rendered.roles, [Identifier::parse("Répo 772002").expect("a name")]);
    assert_eq!(rendered.connection_limit, CONNECTION_LIMIT);
    assert_eq!(plan_made.object["role"], "jobpass_01990000000070008000000000000001");
    for (credential, refusal) in [
        ("roles: []", "can do nothing"),
        ("roles: [postgres]", "not among those that grants may hand out"),
        ("roles: [\"{{ claims.repository_owner_id }}\"]", "credential.roles.0: this role is not among"),
        ("roles: [\"{{ claims.actor }}\"]", "decides here what the credential can do"),
        ("roles: [app_deploy]\nconnection_limit: 0", "nobody could log in"),
        ("role: app_deploy", "role"),
    ] {
        let error = plan(&bench, credential, &[]).err().unwrap_or_else(|| panic!("{credential}: planned"));
        assert!(error.contains(refusal), "{credential}: {error}");
    }
    let open = Bench::new("db: { postgres: { host: db.example, database: app, user: jobpass } }");
    assert!(plan(&open, "roles: [anything]", &[]).is_ok());
    let error = plan(&open, "roles: [pg_read_server_files]", &[]).err().expect("refused");
    assert!(error.contains("predefined"), "{error}");
}

#[test]
fn comments_are_ascii_and_bounded() {
    let bench = Bench::new(CONFIG);
    let long = "я".repeat(300);
    for actor in ["o'cto\\cat\"; DROP ROLE x; --", "окто\u{1F419}", "a\0b\nc", long.as_str()] {
        let (_, rendered) = plan(&bench, "roles: [app_deploy]", &[("actor", actor)]).expect("planned");
        assert!(rendered.comment.bytes().all(|b| (0x20..0x7f).contains(&b)), "{}", rendered.comment);
        assert!(rendered.comment.len() <= MAX_COMMENT);
        assert!(rendered.comment.starts_with("jobpass lease 01990000-0000-7000-8000-000000000001 grant deploy-prod"));
        assert_eq!(rendered.comment.contains("772002"), actor != long, "{}", rendered.comment);
    }
}

#[test]
fn configs() {
    for (from, to, refusal) in [
        ("app_deploy", "\"\"", "roles: expected a name"),
        ("user: jobpass", "user: jobpass\n    sslmode: disable\n    ca_file: ca.pem", "ca_file"),
        ("user: jobpass", "user: jobpass\n    reassign_owned_to: \"\"", "reassign_owned_to"),
    ] {
        let error = Bench::new(&CONFIG.replacen(from, to, 1)).backends.err().unwrap_or_else(|| panic!("{to}: built"));
        assert!(error.contains(refusal), "{to}: {error}");
    }
    for (from, to, refusal) in [
        ("env:SECRET", "env:ABSENT", "password: the secret env:ABSENT is not there"),
        ("user: jobpass", "user: jobpass\n    ca_file: absent.pem", "/nowhere/absent.pem"),
    ] {
        let bench = Bench::new(&CONFIG.replacen(from, to, 1));
        let error = bench.backend().describe().preflight().expect_err(to);
        assert!(error.contains(refusal), "{to}: {error}");
    }
}

const RIGHTS: &str = "privileges:\n  - { schema: \"s_{{ claims.repository_id }}\", allow: [select, sequences] }\n  \
                      - { database: reports, schema: 'wei\"rd', tables: [t, \"r{{ claims.repository_id }}\"], allow: [insert, create] }\n\
                      statements: [\"ALTER ROLE {{ role }} SET app.run = {{ claims.run_id }}\", \
                      \"GRANT {{ claims.repository_id | identifier }} TO {{ role }}\"]";

fn free() -> Bench {
    Bench::new(&CONFIG.replacen("user: jobpass", "user: jobpass\n    statements: true", 1))
}

#[test]
fn rights() {
    let (_, rendered) = plan(&free(), RIGHTS, &[("run_id", "1")]).expect("planned");
    let role = "\"jobpass_01990000000070008000000000000001\"";
    let expected = [
        format!("GRANT USAGE ON SCHEMA \"s_772002\" TO {role}"),
        format!("GRANT SELECT ON ALL TABLES IN SCHEMA \"s_772002\" TO {role}"),
        format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA \"s_772002\" TO {role}"),
        format!("ALTER ROLE {role} SET app.run = '1'"),
        format!("GRANT \"772002\" TO {role}"),
    ];
    assert_eq!(rendered.statements.home, expected);
    let expected = [
        format!("GRANT USAGE ON SCHEMA \"wei\"\"rd\" TO {role}"),
        format!("GRANT INSERT ON \"wei\"\"rd\".\"t\", \"wei\"\"rd\".\"r772002\" TO {role}"),
        format!("GRANT CREATE ON SCHEMA \"wei\"\"rd\" TO {role}"),
    ];
    assert_eq!(rendered.statements.elsewhere.get("reports").map(Vec::as_slice), Some(&expected[..]));
    for (spec, refusal) in [
        ("privileges: [{ schema: s, allow: [] }]", "nothing is allowed"),
        ("privileges: [{ schema: s, allow: [all] }]", "all"),
        ("privileges: [{ schema: s, tables: [t], allow: [create] }]", "nothing is allowed on tables"),
        ("privileges: [{ schema: s, tables: [], allow: [select] }]", "nothing is allowed on tables"),
        ("privileges: [{ database: \"\", schema: s, allow: [select] }]", "a database's name"),
        ("privileges: [{ schema: \"{{ claims.actor }}\", allow: [select] }]", "decides here"),
        ("statements: [\"COMMIT\"]", "none of those that may be run"),
        ("statements: [\"DROP TABLE x\"]", "none of those that may be run"),
        ("statements: [\"GRANT a TO b; COMMIT\"]", "may not stand in a statement"),
        ("statements: [\"SELECT '{{ claims.run_id }}'\"]", "may not stand in a statement"),
        ("statements: [\"SELECT $${{ claims.run_id }}$$\"]", "may not stand in a statement"),
        ("statements: [\"SELECT 1 -- {{ claims.run_id }}\"]", "may not stand in a statement"),
        ("statements: [\"SELECT /* {{ claims.run_id }} */ 1\"]", "may not stand in a statement"),
        ("statements: [\"SELECT {{ claims.run_id\"]", "without"),
        ("statements: [\"SELECT {{ claims.actor }}\"]", "decides here"),
        ("statements: [\"SELECT {{ lease }}\"]", "is not a claim"),
    ] {
        let error = plan(&free(), spec, &[]).err().unwrap_or_else(|| panic!("{spec}: planned"));
        assert!(error.contains(refusal), "{spec}: {error}");
    }
    let error = plan(&Bench::new(CONFIG), "statements: [\"SELECT 1\"]", &[]).err().expect("refused");
    assert!(error.contains("statements: true"), "{error}");
}

#[test]
fn hostile_claims_are_quoted_or_refused() {
    for (field, claim) in [
        ("privileges.0.schema", "privileges: [{ schema: \"{{ claims.run_id }}\", allow: [select] }]"),
        ("privileges.0.tables.0", "privileges: [{ schema: s, tables: [\"{{ claims.run_id }}\"], allow: [select] }]"),
        ("statements.0", "statements: [\"SELECT {{ claims.run_id }}\"]"),
        ("statements.0", "statements: [\"GRANT {{ claims.run_id | identifier }} TO {{ role }}\"]"),
    ] {
        for hostile in HOSTILE {
            match plan(&free(), claim, &[("run_id", hostile)]) {
                Err(error) => assert!(error.contains(&format!("credential.{field}")), "{field} {hostile:?}: {error}"),
                Ok((_, rendered)) => {
                    let name = Identifier::parse(hostile).map_or_else(|_| String::new(), |name| name.to_string());
                    let text = rendered.statements.home.join("; ");
                    let quoted =
                        text.contains(sql::literal(hostile).trim()) || (!name.is_empty() && text.contains(&name));
                    assert!(quoted, "{hostile:?}: {text}");
                }
            }
        }
    }
}
