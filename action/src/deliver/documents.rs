//! The files that tools read a credential from, as text: made of a credential's fields, and named like one.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jobpass_protocol::{Credential, Secret};
use serde_json::json;
use zeroize::Zeroizing;

/// The section of `pgservice`, for `PGSERVICE`.
pub(crate) const PG_SERVICE: &str = "jobpass";

/// A field of the credential, or a document made of several.
pub(crate) fn field_or_document(credential: &Credential, name: &str) -> Option<Secret> {
    credential.field(name).cloned().or_else(|| document(credential, name))
}

/// The names of a credential's documents.
pub(crate) fn names(kind: &str) -> &'static [&'static str] {
    match kind {
        "postgres" => &["pgpass", "pgservice"],
        "mysql" => &["my_cnf"],
        "oci_registry" => &["docker_config"],
        "x509_certificate" => &["pem"],
        _ => &[],
    }
}

fn document(credential: &Credential, name: &str) -> Option<Secret> {
    if !names(credential.kind()).contains(&name) {
        return None;
    }
    let field = |name: &str| credential.field(name).map(Secret::expose);
    Some(match name {
        // PostgreSQL documentation, "The Password File".
        "pgpass" => {
            let fields = ["host", "port", "database", "username", "password"].map(|name| field(name).unwrap_or("*"));
            let escaped = fields.map(|text| Zeroizing::new(text.replace('\\', "\\\\").replace(':', "\\:")));
            secret(&[&escaped[0], ":", &escaped[1], ":", &escaped[2], ":", &escaped[3], ":", &escaped[4], "\n"])
        }
        // PostgreSQL documentation, "The Connection Service File".
        "pgservice" => {
            let names = [
                ("host", "host"),
                ("port", "port"),
                ("database", "dbname"),
                ("username", "user"),
                ("password", "password"),
                ("sslmode", "sslmode"),
            ];
            let lines = names.iter().filter_map(|(name, key)| Some([*key, "=", field(name)?, "\n"]));
            secret(&[&["[", PG_SERVICE, "]\n"][..], &lines.flatten().collect::<Vec<_>>()].concat())
        }
        // MariaDB documentation, "Configuring MariaDB with Option Files": values in quotes, with these escapes.
        "my_cnf" => {
            let names = [
                ("host", "host"),
                ("port", "port"),
                ("database", "database"),
                ("username", "user"),
                ("password", "password"),
            ];
            let mut text = Zeroizing::new(String::from("[client]\n"));
            for (name, key) in names {
                // `database` is an option of the client program alone.
                let Some(value) = field(name).filter(|_| name != "database") else { continue };
                let quoted = Zeroizing::new(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
                for part in [key, "=\"", &quoted, "\"\n"] {
                    text.push_str(part);
                }
            }
            if let Some(database) = field("database") {
                for part in ["[mysql]\ndatabase=\"", &database.replace('\\', "\\\\").replace('"', "\\\""), "\"\n"] {
                    text.push_str(part);
                }
            }
            Secret::new(text.to_string())
        }
        // Chain first, as `curl --cert` and HAProxy read it.
        "pem" => secret(&[field("certificate")?, field("private_key")?]),
        // Docker CLI, `cli/config/types.AuthConfig`: `registrytoken` is a bearer token for the registry itself. Who does
        // not read it (skopeo, podman) takes it to the registry's token server as a password.
        _ => {
            let token = field("token")?;
            let login = Zeroizing::new(format!("jobpass:{token}"));
            let auth = Zeroizing::new(STANDARD.encode(login.as_bytes()));
            let auths = json!({ field("host")?: { "registrytoken": token, "auth": *auth } });
            Secret::new(json!({ "auths": auths }).to_string())
        }
    })
}

fn secret(parts: &[&str]) -> Secret {
    Secret::new(parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let postgres = Credential::postgres("db.example", 5432, "app", "jobpass_1", "p:a\\s's\"#".into(), "require");
        let mysql = r#"{"type":"mysql","host":"db.example","port":"3306","database":"app","username":"u","password":"p\"a\\s"}"#;
        let mysql: Credential = serde_json::from_str(mysql).expect("a credential");
        let registry = r#"{"type":"oci_registry","host":"registry.example:5000","token":"a.b.c"}"#;
        let registry: Credential = serde_json::from_str(registry).expect("a credential");
        let certified = Credential::x509_certificate("chain\n").with_private_key("key\n".into());
        for (credential, name, expected) in [
            (&postgres, "pgpass", Some("db.example:5432:app:jobpass_1:p\\:a\\\\s's\"#\n")),
            (
                &postgres,
                "pgservice",
                Some(
                    "[jobpass]\nhost=db.example\nport=5432\ndbname=app\nuser=jobpass_1\npassword=p:a\\s's\"#\nsslmode=require\n",
                ),
            ),
            (
                &mysql,
                "my_cnf",
                Some(
                    "[client]\nhost=\"db.example\"\nport=\"3306\"\nuser=\"u\"\npassword=\"p\\\"a\\\\s\"\n[mysql]\ndatabase=\"app\"\n",
                ),
            ),
            (
                &registry,
                "docker_config",
                Some(r#"{"auths":{"registry.example:5000":{"auth":"am9icGFzczphLmIuYw==","registrytoken":"a.b.c"}}}"#),
            ),
            (&certified, "pem", Some("chain\nkey\n")),
            (&Credential::x509_certificate("chain\n"), "pem", None),
            (&postgres, "password", Some("p:a\\s's\"#")),
            (&postgres, "my_cnf", None),
            (&registry, "pgpass", None),
        ] {
            let found = field_or_document(credential, name);
            assert_eq!(found.as_ref().map(Secret::expose), expected, "{name}");
        }
    }
}
