use super::*;
use crate::backends::{
    Backend,
    testing::{Bench, HOSTILE, order},
};

const CONFIG: &str = "broker: { rabbitmq: { management_url: \"https://rabbit.example:15671\", user: jobpass, \
                      password: env:SECRET, advertise: { host: rabbit.example } } }";

fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Arc<Rendered>, String> {
    let permit = bench.permit(credential, "15m", replaced)?;
    let Backend::Remote(backend) = bench.backend() else { panic!("rabbitmq is remote") };
    let plan = backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())?;
    assert_eq!(plan.object["user"], "jobpass_01990000000070008000000000000001");
    Ok(plan.rendered.downcast().expect("ours"))
}

#[test]
fn specs() {
    let bench = Bench::new(CONFIG);
    let credential = "vhost: /\nconfigure: [\"ci-{{ claims.repository_id }}-*\"]\nwrite: [amq.default, \"ci-{{ claims.repository_id }}-*\"]\n\
                      tags: [management]";
    let rendered = plan(&bench, credential, &[]).expect("planned");
    let expected = json!({
        "configure": r"\A(?:ci\-772002\-.*)\z", "write": r"\A(?:amq\.default|ci\-772002\-.*)\z", "read": "^$",
    });
    assert_eq!((rendered.vhost.as_str(), &rendered.permissions), ("/", &expected));
    let tags = "jobpass,lease:01990000-0000-7000-8000-000000000001,grant:deploy-prod,issuer:github,management";
    assert_eq!(rendered.tags, tags);
    for (credential, refusal) in [
        ("vhost: /", "can do nothing"),
        ("vhost: \"..\"\nread: [a]", "expected a virtual host"),
        ("vhost: \"{{ claims.actor }}\"\nread: [a]", "decides here"),
        ("vhost: /\nread: [\"a.*b\"]", "'*' is not allowed"),
        ("vhost: /\nread: [\"ci*\"]", "could go on in another name"),
        ("vhost: /\nread: [a]\ntags: [administrator]", "administrator"),
        ("vhost: /\nread: [a]\nconnection_limit: 0", "nobody could connect"),
    ] {
        let error = plan(&bench, credential, &[]).err().expect(credential);
        assert!(error.contains(refusal), "{credential}: {error}");
    }
    let listed = Bench::new(&CONFIG.replace("env:SECRET", "env:SECRET, vhosts: [ci]"));
    for (vhost, refusal) in [("/", "not among those"), ("{{ claims.repository_id }}", "credential.vhost")] {
        let error = plan(&listed, &format!("vhost: \"{vhost}\"\nread: [a]"), &[]).err().expect("refused");
        assert!(error.contains(refusal), "{error}");
    }
}

#[test]
fn hostile_claims_are_carried_or_refused() {
    let bench = Bench::new(CONFIG);
    for hostile in HOSTILE {
        for field in ["configure", "write", "read"] {
            let credential = format!("vhost: /\n{field}: [\"q-{{{{ claims.repository_id }}}}-*\"]");
            match plan(&bench, &credential, &[("repository_id", hostile)]) {
                Ok(rendered) => {
                    let expression = rendered.permissions[field].as_str().expect("a text");
                    let expression = regex_lite(expression);
                    assert_eq!(expression, format!("q-{hostile}-"), "{hostile:?}");
                }
                Err(error) => assert!(error.contains(&format!("credential.{field}.0")), "{hostile:?}: {error}"),
            }
        }
        match plan(&bench, "vhost: \"v{{ claims.repository_id }}\"\nread: [a]", &[("repository_id", hostile)]) {
            Ok(rendered) => assert_eq!(rendered.vhost, format!("v{hostile}")),
            Err(error) => assert!(error.contains("credential.vhost"), "{hostile:?}: {error}"),
        }
    }
}

/// The text that an expression of one beginning stands for, if nothing in it is left unquoted.
fn regex_lite(expression: &str) -> String {
    let quoted = expression.strip_prefix("\\A(?:").and_then(|rest| rest.strip_suffix(".*)\\z")).expect("our form");
    let (mut text, mut chars) = (String::new(), quoted.chars());
    while let Some(c) = chars.next() {
        let meant = if c == '\\' { chars.next().expect("something is quoted") } else { c };
        assert!(c == '\\' || c.is_ascii_alphanumeric(), "{c} is not quoted in {expression}");
        text.push(meant);
    }
    text
}

#[test]
fn hashes_are_rabbitmqs() {
    // RabbitMQ's documentation, "Credentials and Passwords": salt 908DC60A and the password test12.
    let hash = password_hash([0x90, 0x8d, 0xc6, 0x0a], "test12");
    assert_eq!(hash, "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
}

#[test]
fn configs() {
    let error = Bench::new(&CONFIG.replace("https://", "https://me@")).backends.err().expect("refused");
    assert!(error.contains("management_url"), "{error}");
    for (to, refusal) in [
        ("env:ABSENT", "password: the secret env:ABSENT is not there"),
        ("env:SECRET, ca_file: absent.pem", "/nowhere/absent.pem"),
    ] {
        let bench = Bench::new(&CONFIG.replace("env:SECRET", to));
        let error = bench.backend().describe().preflight().expect_err(to);
        assert!(error.contains(refusal), "{to}: {error}");
    }
}
