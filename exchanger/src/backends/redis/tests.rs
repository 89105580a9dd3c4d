use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, order},
};

const CONFIG: &str = "cache: { redis: { host: cache.example, user: jobpass, password: env:SECRET } }";

fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Remote(backend) = bench.backend() else { panic!("redis is remote") };
    let plan = backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())?;
    assert_eq!(plan.object["user"], "jobpass_01990000000070008000000000000001");
    Ok(spec::rendered::<Rendered>(&plan.rendered).expect("ours").0.clone())
}

#[test]
fn specs() {
    let bench = Bench::new(CONFIG);
    let credential = "keys: [\"ci:{{ claims.repository_id }}:*\", \"lock:{{ claims.repository_id }}\"]\nread_keys: [\"*\"]\n\
                      channels: [\"ci:*\"]\ncommands: [\"@read\", set, -keys]";
    let rules = plan(&bench, credential, &[]).expect("planned");
    let expected = "~ci:772002:* ~lock:772002 %R~* &ci:* +@read -@dangerous -@admin -acl -client -cluster -dbsize \
                    -function -memory -pubsub -randomkey -scan -script +set -keys";
    assert_eq!(rules.join(" "), expected);
    for (credential, refusal) in [
        ("commands: []", "can do nothing"),
        ("commands: [GET]", "expected a command"),
        ("commands: [\"get >x\"]", "expected a command"),
        ("commands: [\"+get\"]", "expected a command"),
        ("commands: [\"@all\"]", "reach beyond data"),
        ("commands: [\"acl|setuser\"]", "reach beyond data"),
        ("commands: [config]", "reach beyond data"),
        ("commands: [scan]", "reach beyond data"),
        ("commands: [keys]", "reach beyond data"),
        ("commands: [info]", "reach beyond data"),
        ("commands: [\"client|tracking\"]", "reach beyond data"),
        ("keys: [\"a*b\"]\ncommands: [get]", "'*' is not allowed"),
        ("keys: [\"a?\"]\ncommands: [get]", "'?' is not allowed"),
        ("keys: [\"a b\"]\ncommands: [get]", "' ' is not allowed"),
        ("keys: [\"\"]\ncommands: [get]", "names nothing"),
        ("keys: [\"ci*\"]\ncommands: [get]", "could go on in another name"),
        ("keys: [\"{{ claims.repository_id }}*\"]\ncommands: [get]", "the beginning of another one"),
        ("keys: [\"{{ claims.actor }}\"]\ncommands: [get]", "decides here"),
        ("key: [a]\ncommands: [get]", "key"),
    ] {
        let error = plan(&bench, credential, &[]).expect_err(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
    let listed = Bench::new(&CONFIG.replace("env:SECRET", "env:SECRET, commands: [get, client]"));
    assert!(plan(&listed, "commands: [get, \"client|id\", -set]", &[]).is_ok());
    let error = plan(&listed, "commands: [set]", &[]).expect_err("refused");
    assert!(error.contains("not among those"), "{error}");
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let bench = Bench::new(CONFIG);
    for (field, prefix) in [("keys", "~"), ("read_keys", "%R~"), ("channels", "&")] {
        for hostile in HOSTILE {
            let credential = format!("{field}: [\"k:{{{{ claims.repository_id }}}}:*\"]\ncommands: [get]");
            match plan(&bench, &credential, &[("repository_id", hostile)]) {
                Ok(rules) => {
                    assert_eq!(rules, [format!("{prefix}k:{hostile}:*"), "+get".to_owned()]);
                    assert!(hostile.chars().all(NAME.allowed), "{hostile:?}");
                }
                Err(error) => assert!(error.contains(&format!("credential.{field}.0")), "{hostile:?}: {error}"),
            }
        }
    }
}

#[test]
fn configs() {
    for (more, refusal) in [("tls: false, ca_file: ca.pem", "ca_file"), ("commands: [\"a b\"]", "commands: `a b`")] {
        let error = Bench::new(&CONFIG.replace("env:SECRET", &format!("env:SECRET, {more}"))).backends.err();
        assert!(error.as_ref().is_some_and(|error| error.contains(refusal)), "{error:?}");
    }
    for (from, to, refusal) in [
        ("env:SECRET", "env:ABSENT", "password: the secret env:ABSENT is not there"),
        ("env:SECRET", "env:SECRET, ca_file: absent.pem", "ca_file: /nowhere/absent.pem"),
    ] {
        let bench = Bench::new(&CONFIG.replace(from, to));
        let error = bench.backend().describe().preflight().expect_err(to);
        assert!(error.contains(refusal), "{to}: {error}");
    }
}
