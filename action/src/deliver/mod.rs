//! Ways of handing a credential over: one file per way. Nothing here decides who gets what.

pub(crate) mod aws;
pub(crate) mod directory;
pub(crate) mod docker;
pub(crate) mod documents;
pub(crate) mod file;
pub(crate) mod git;
pub(crate) mod github;
pub(crate) mod google;
pub(crate) mod kubectl;

use documents::field_or_document;
use jobpass_protocol::{Credential, GrantName, Secret};
use std::{fmt, path::Path, str::FromStr};

/// Why a credential cannot be handed over as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    /// Two values for one variable.
    #[error(
        "grants `{first}` and `{second}` both set {variable}\n  \
         rename one of them: --env NEW_NAME={second}.{field}"
    )]
    Collision { variable: String, field: String, first: GrantName, second: GrantName },
    /// A name for a field that no credential has.
    #[error("{rename}: no credential here has that field; there are {fields}")]
    NoField { rename: String, fields: String },
    /// A name for a field that several credentials have.
    #[error("{rename}: several grants have that field; write GRANT.{field}, such as {example}.{field}")]
    Ambiguous { rename: String, field: String, example: GrantName },
    /// The credential is of another kind.
    #[error("grant `{grant}` gives a credential of type `{kind}`, but {wanted}")]
    Kind { grant: GrantName, kind: String, wanted: &'static str },
    /// No environment takes this value.
    #[error("`{field}` of grant `{grant}` holds a NUL byte")]
    Nul { field: String, grant: GrantName },
    /// The file cannot be written.
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
}

/// One credential, and the grant that it came from.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) grant: GrantName,
    pub(crate) credential: Credential,
}

impl Given {
    /// Says that the credential is of no use here.
    fn wrong_kind(&self, wanted: &'static str) -> DeliverError {
        DeliverError::Kind { grant: self.grant.clone(), kind: self.credential.kind().to_owned(), wanted }
    }

    /// What stands for user and password; `username` where the credential names no user.
    fn login<'a>(&'a self, username: &'a str) -> Result<(&'a str, &'a str), DeliverError> {
        let field = |name: &str| self.credential.field(name).map(Secret::expose);
        let secret = ["password", "token", "key"].into_iter().find_map(field);
        let secret = secret.ok_or_else(|| self.wrong_kind("a password, a token or a key is needed"))?;
        Ok((field("username").unwrap_or(username), secret))
    }
}

/// A name with a value for it.
#[derive(Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: Secret,
    grant: GrantName,
}

impl Variable {
    /// A further variable of the credential of one grant.
    pub(crate) fn of(given: &Given, name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.into(), grant: given.grant.clone() }
    }

    /// Whether it is of the credential of this grant.
    pub(crate) fn is_of(&self, given: &Given) -> bool {
        self.grant == given.grant
    }

    /// Names the file that its value was written to.
    pub(crate) fn at(&self, path: &Path) -> Self {
        let value = Secret::new(path.to_string_lossy().into_owned());
        Self { name: self.name.clone(), value, grant: self.grant.clone() }
    }
}

/// `NAME=field` or `NAME=grant.field`: under which name a field is handed over, instead of its default one.
///
/// INVARIANT: the name is one that every shell takes, `[A-Za-z_][A-Za-z0-9_]*`.
#[derive(Clone, Debug)]
pub(crate) struct Rename {
    name: String,
    grant: Option<String>,
    field: String,
}

impl FromStr for Rename {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, source) = text.split_once('=').ok_or("must be NAME=field or NAME=grant.field")?;
        let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(letters) || name.as_bytes()[0].is_ascii_digit() {
            return Err("the name must be of letters, digits and _, and not begin with a digit");
        }
        let (grant, field) = match source.split_once('.') {
            Some((grant, field)) => (Some(grant.to_owned()), field),
            None => (None, source),
        };
        if field.is_empty() {
            return Err("the field's name is missing, as in PASSWORD=password");
        }
        Ok(Self { name: name.to_owned(), grant, field: field.to_owned() })
    }
}

impl fmt::Display for Rename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grant = self.grant.as_ref().map(|grant| format!("{grant}.")).unwrap_or_default();
        write!(f, "{}={grant}{}", self.name, self.field)
    }
}

impl Rename {
    /// The field's name.
    pub(crate) fn field(&self) -> &str {
        &self.field
    }

    /// Whether it hands this field over under this name.
    pub(crate) fn is(&self, name: &str, field: &str) -> bool {
        self.name == name && self.field == field
    }

    fn is_for(&self, grant: &GrantName, field: &str) -> bool {
        self.field == field && self.grant.as_deref().is_none_or(|wanted| wanted == grant.as_str())
    }
}

/// How a way of delivery names a field by default.
pub(crate) type DefaultNames<'a> = &'a dyn Fn(&Given, &str) -> Vec<String>;

/// The one credential that a name is for.
fn holder<'g>(given: &'g [Given], rename: &Rename, documents: bool) -> Result<&'g Given, DeliverError> {
    let has = |g: &&Given| {
        let name = rename.field.as_str();
        rename.is_for(&g.grant, name)
            && (g.credential.field(name).is_some() || documents && field_or_document(&g.credential, name).is_some())
    };
    match given.iter().filter(has).collect::<Vec<_>>().as_slice() {
        [one] => Ok(one),
        [] => {
            let documents = |g: &Given| if documents { documents::names(g.credential.kind()) } else { &[] };
            let names = given.iter().flat_map(|g| {
                let fields = g.credential.fields().iter().map(|f| f.name.as_str());
                fields.chain(documents(g).iter().copied())
            });
            let fields = names.collect::<Vec<_>>().join(", ");
            Err(DeliverError::NoField { rename: rename.to_string(), fields })
        }
        [first, ..] => {
            let (field, example) = (rename.field.clone(), first.grant.clone());
            Err(DeliverError::Ambiguous { rename: rename.to_string(), field, example })
        }
    }
}

/// What several credentials put into files: the variables that are to name the files, with the files' contents. As
/// asked, and where tools read a credential of a kind from nowhere else.
///
/// # Errors
/// When a name fits no field or more than one, or two files have one name.
pub(crate) fn files(given: &[Given], wanted: &[Rename]) -> Result<Vec<Variable>, DeliverError> {
    let mut all: Vec<Variable> = Vec::new();
    let mut add = |name: &str, given: &Given, field: &str| {
        let Some(value) = field_or_document(&given.credential, field) else { return Ok(()) };
        push(&mut all, Variable { name: name.to_owned(), value, grant: given.grant.clone() }, field)
    };
    for rename in wanted {
        add(&rename.name, holder(given, rename, true)?, &rename.field)?;
    }
    for given in given {
        let always: &[(&str, &str)] = match given.credential.kind() {
            "kubernetes" => &[("KUBECONFIG", "kubeconfig")],
            "x509_certificate" => &[("JOBPASS_CERTIFICATE", "certificate"), ("JOBPASS_PRIVATE_KEY", "private_key")],
            _ => &[],
        };
        let asked = |field: &str| wanted.iter().any(|rename| rename.is_for(&given.grant, field));
        for (name, field) in always.iter().filter(|(_, field)| !asked(field) && !asked("pem")) {
            add(name, given, field)?;
        }
    }
    Ok(all)
}

/// Adds a variable, unless another grant set it.
///
/// # Errors
/// [`DeliverError::Collision`]
pub(crate) fn push(all: &mut Vec<Variable>, variable: Variable, field: &str) -> Result<(), DeliverError> {
    if let Some(other) = all.iter().find(|other| other.name == variable.name) {
        return Err(DeliverError::Collision {
            variable: variable.name,
            field: field.to_owned(),
            first: other.grant.clone(),
            second: variable.grant,
        });
    }
    all.push(variable);
    Ok(())
}

/// All variables of several credentials.
///
/// # Errors
/// When two of them have one name, or a rename fits no field or more than one.
pub(crate) fn variables(
    given: &[Given],
    renames: &[Rename],
    defaults: DefaultNames<'_>,
) -> Result<Vec<Variable>, DeliverError> {
    for rename in renames {
        holder(given, rename, false)?;
    }
    let mut all: Vec<Variable> = Vec::new();
    for one in given {
        let Given { grant, credential } = one;
        for field in credential.fields() {
            let renamed: Vec<String> =
                renames.iter().filter(|r| r.is_for(grant, &field.name)).map(|r| r.name.clone()).collect();
            let names = if renamed.is_empty() { defaults(one, &field.name) } else { renamed };
            for name in names {
                if field.value.expose().contains('\0') {
                    return Err(DeliverError::Nul { field: field.name.clone(), grant: grant.clone() });
                }
                let variable = Variable { name, value: field.value.clone(), grant: grant.clone() };
                push(&mut all, variable, &field.name)?;
            }
        }
    }
    Ok(all)
}

/// The environment variables that the tools of each kind read.
pub(crate) fn environment_names(given: &Given, field: &str) -> Vec<String> {
    let kind = given.credential.kind();
    let names: &[&str] = match (kind, field) {
        // botocore, configuration from environment variables.
        ("aws_session", "access_key_id") => &["AWS_ACCESS_KEY_ID"],
        ("aws_session", "secret_access_key") => &["AWS_SECRET_ACCESS_KEY"],
        ("aws_session", "session_token") => &["AWS_SESSION_TOKEN"],
        ("aws_session", "expiration") => &["AWS_CREDENTIAL_EXPIRATION"],
        ("aws_session", "region") => &["AWS_REGION", "AWS_DEFAULT_REGION"],
        // PostgreSQL documentation, libpq, environment variables.
        ("postgres", "host") => &["PGHOST"],
        ("postgres", "port") => &["PGPORT"],
        ("postgres", "database") => &["PGDATABASE"],
        ("postgres", "username") => &["PGUSER"],
        ("postgres", "password") => &["PGPASSWORD"],
        ("postgres", "sslmode") => &["PGSSLMODE"],
        ("jwt" | "bearer", "token") => &["JOBPASS_TOKEN"],
        // Google Cloud SDK (`auth/access_token`); Terraform's Google provider.
        ("gcp_token", "token") => &["CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN"],
        ("azure_token", "token") => &["AZURE_ACCESS_TOKEN"],
        // azure-identity, configuration of service principals.
        ("azure_token", "tenant") => &["AZURE_TENANT_ID"],
        ("azure_token", "client_id") => &["AZURE_CLIENT_ID"],
        // Whole documents are of use in files only.
        ("kubernetes", "kubeconfig" | "ca") | ("x509_certificate", _) => &[],
        ("api_key", "url") => &["JOBPASS_API_URL"],
        ("api_key", "key") => &["JOBPASS_API_KEY"],
        _ => return vec![shouted(&format!("JOBPASS_{kind}_{field}"))],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn shouted(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// `NAME='value'` lines that a POSIX shell reads.
pub(crate) fn shell_lines(variables: &[Variable]) -> String {
    variables.iter().map(|v| format!("{}='{}'\n", v.name, v.value.expose().replace('\'', "'\\''"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres(grant: &str) -> Given {
        let credential = Credential::postgres("db.example", 5432, "app", "jobpass_1", "pass'word".into(), "require");
        Given { grant: grant.parse().expect("name"), credential }
    }

    fn check(given: &[Given], renames: &[&str]) -> Result<Vec<String>, String> {
        let renames: Vec<Rename> = renames.iter().map(|text| text.parse().expect("rename")).collect();
        match variables(given, &renames, &environment_names) {
            Ok(all) => Ok(all.iter().map(|v| format!("{}={}", v.name, v.value.expose())).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn names() {
        let jwt =
            |grant: &str| Given { grant: grant.parse().expect("name"), credential: Credential::jwt("a.b.c".into()) };
        let custom = || {
            let json = r#"{"type":"ssh-cert","key_id":"k"}"#;
            Given { grant: "ssh".parse().expect("name"), credential: serde_json::from_str(json).expect("credential") }
        };
        for (given, renames, expected) in [
            (
                vec![postgres("db")],
                &[][..],
                Ok(&[
                    "PGHOST=db.example",
                    "PGPORT=5432",
                    "PGDATABASE=app",
                    "PGUSER=jobpass_1",
                    "PGPASSWORD=pass'word",
                    "PGSSLMODE=require",
                ][..]),
            ),
            (
                vec![postgres("db"), jwt("api")],
                &["DB_PASS=password", "DB_PASS_2=db.password", "T=api.token"],
                Ok(&[
                    "PGHOST=db.example",
                    "PGPORT=5432",
                    "PGDATABASE=app",
                    "PGUSER=jobpass_1",
                    "DB_PASS=pass'word",
                    "DB_PASS_2=pass'word",
                    "PGSSLMODE=require",
                    "T=a.b.c",
                ]),
            ),
            (vec![custom()], &[], Ok(&["JOBPASS_SSH_CERT_KEY_ID=k"])),
            (vec![jwt("one"), jwt("two")], &["OTHER=two.token"], Ok(&["JOBPASS_TOKEN=a.b.c", "OTHER=a.b.c"])),
            (
                vec![jwt("one"), jwt("two")],
                &[],
                Err("`one` and `two` both set JOBPASS_TOKEN\n  rename one of them: --env NEW_NAME=two.token"),
            ),
            (vec![jwt("one"), jwt("two")], &["X=token"], Err("write GRANT.token, such as one.token")),
            (vec![jwt("one")], &["X=password"], Err("no credential here has that field; there are token")),
            (vec![jwt("one")], &["X=two.token"], Err("X=two.token: no credential")),
        ] {
            match (check(&given, renames), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
        for bad in ["password", "=password", "1X=password", "A-B=password", "X=", "X=grant.", "A B=c"] {
            assert!(bad.parse::<Rename>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shells_read_the_lines_back() {
        let lines = shell_lines(&variables(&[postgres("db")], &[], &environment_names).expect("variables"));
        let script = format!("{lines}printf %s \"$PGPASSWORD\"");
        let shell = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&shell.stdout), "pass'word");
    }
}
