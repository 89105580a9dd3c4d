//! What a job receives, in one shape for every backend.
//!
//! A credential is a type and named fields. The shapes below are all that the two programs agree
//! on: a backend that returns an existing shape needs no change in the job's CLI, and the CLI treats
//! every field that it does not know to be public as a secret.

use crate::secret::Secret;
use serde::de::{Deserialize, Deserializer, Error as _};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Fields that may be shown: everything else in a credential is masked and redacted.
const PUBLIC_FIELDS: &[&str] = &[
    "type",
    "host",
    "port",
    "database",
    "username",
    "sslmode",
    "expiration",
    "access_key_id",
    "region",
    "url",
    "service_account",
    "tenant",
    "client_id",
    "namespace",
    "ca",
    "certificate",
    "vhost",
];

/// One named field of a credential.
#[derive(Clone, Debug)]
pub struct Field {
    /// The field's name, `snake_case`.
    pub name: String,
    /// Its value; held as a secret even where it is public, so that `Debug` stays silent.
    pub value: Secret,
}

impl Field {
    /// Whether the value must never be shown.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        !PUBLIC_FIELDS.contains(&self.name.as_str())
    }
}

/// What the job receives.
///
/// INVARIANT: field names are unique, and none is `type`.
#[derive(Clone, Debug)]
pub struct Credential {
    kind: String,
    fields: Vec<Field>,
}

impl Credential {
    fn of(kind: &str, fields: impl IntoIterator<Item = (&'static str, Secret)>) -> Self {
        let fields = fields.into_iter().map(|(name, value)| Field { name: name.to_owned(), value }).collect();
        Self { kind: kind.to_owned(), fields }
    }

    /// A signed JSON Web Token that jobpass issued.
    #[must_use]
    pub fn jwt(token: Secret) -> Self {
        Self::of("jwt", [("token", token)])
    }

    /// A bearer token of another system.
    #[must_use]
    pub fn bearer(token: Secret) -> Self {
        Self::of("bearer", [("token", token)])
    }

    /// The key of an HTTP API at `url`.
    #[must_use]
    pub fn api_key(url: &str, key: Secret) -> Self {
        Self::of("api_key", [("url", url.into()), ("key", key)])
    }

    /// An AWS session, in the names of AWS's own `credential_process` document; `expiration` is RFC 3339.
    #[must_use]
    pub fn aws_session(
        access_key_id: &str,
        secret_access_key: Secret,
        session_token: Secret,
        expiration: &str,
    ) -> Self {
        Self::of(
            "aws_session",
            [
                ("access_key_id", access_key_id.into()),
                ("secret_access_key", secret_access_key),
                ("session_token", session_token),
                ("expiration", expiration.into()),
            ],
        )
    }

    /// An access token of a Google Cloud service account; `expiration` is RFC 3339.
    #[must_use]
    pub fn gcp_token(service_account: &str, token: Secret, expiration: &str) -> Self {
        let fields = [("token", token), ("service_account", service_account.into()), ("expiration", expiration.into())];
        Self::of("gcp_token", fields)
    }

    /// An access token of a Microsoft Entra client; `expiration` is RFC 3339.
    #[must_use]
    pub fn azure_token(tenant: &str, client_id: &str, token: Secret, expiration: &str) -> Self {
        Self::of(
            "azure_token",
            [
                ("token", token),
                ("tenant", tenant.into()),
                ("client_id", client_id.into()),
                ("expiration", expiration.into()),
            ],
        )
    }

    /// A service account's token for the Kubernetes API server at `url`, alone and as a kubeconfig; `ca` is PEM,
    /// `expiration` RFC 3339.
    #[must_use]
    pub fn kubernetes(
        url: &str,
        ca: Option<&str>,
        namespace: &str,
        token: Secret,
        kubeconfig: Secret,
        expiration: &str,
    ) -> Self {
        let fields = [("url", url.into()), ("namespace", namespace.into()), ("token", token)];
        let ca = ca.map(|ca| ("ca", ca.into()));
        Self::of(
            "kubernetes",
            fields.into_iter().chain(ca).chain([("kubeconfig", kubeconfig), ("expiration", expiration.into())]),
        )
    }

    /// An OpenSSH user certificate over the job's own key, as a line of a `-cert.pub` file. It is of no use
    /// without that key's private half, which only the job has.
    #[must_use]
    pub fn ssh_certificate(certificate: &str) -> Self {
        Self::of("ssh_certificate", [("certificate", certificate.into())])
    }

    /// The credential that the job has already, with a later expiry.
    #[must_use]
    pub fn unchanged() -> Self {
        Self::of("unchanged", [])
    }

    /// A login to a database server.
    #[must_use]
    pub fn postgres(host: &str, port: u16, database: &str, username: &str, password: Secret, sslmode: &str) -> Self {
        Self::of(
            "postgres",
            [
                ("host", host.into()),
                ("port", Secret::new(port.to_string())),
                ("database", database.into()),
                ("username", username.into()),
                ("password", password),
                ("sslmode", sslmode.into()),
            ],
        )
    }

    /// A user of a server: `kind` says of which, `place` where in it (a database, a virtual host).
    #[must_use]
    pub fn login(
        kind: &str,
        host: &str,
        port: u16,
        place: Option<(&'static str, &str)>,
        username: &str,
        password: Secret,
    ) -> Self {
        let mut fields = vec![("host", host.into()), ("port", Secret::new(port.to_string()))];
        fields.extend(place.map(|(name, value)| (name, value.into())));
        fields.extend([("username", username.into()), ("password", password)]);
        Self::of(kind, fields)
    }

    /// A client certificate over the job's own key in PEM, with its authority's behind it. It is of no use
    /// without that key's private half, which only the job has.
    #[must_use]
    pub fn x509_certificate(chain: &str) -> Self {
        Self::of("x509_certificate", [("certificate", chain.into())])
    }

    /// The same with the private half of the key that it certifies, where the job made that.
    #[must_use]
    pub fn with_private_key(mut self, key: Secret) -> Self {
        self.fields.retain(|field| field.name != "private_key");
        self.fields.push(Field { name: "private_key".to_owned(), value: key });
        self
    }

    /// A bearer token for one container registry, `host` or `host:port`.
    #[must_use]
    pub fn oci_registry(registry: &str, token: Secret) -> Self {
        Self::of("oci_registry", [("host", registry.into()), ("token", token)])
    }

    /// A dynamic secret as Vault or OpenBao gave it: its own names, in its own order. All of it is secret but
    /// what is public everywhere.
    #[must_use]
    pub fn vault_secret(fields: impl IntoIterator<Item = (String, Secret)>) -> Self {
        Self::named("vault_secret", fields)
    }

    /// A secret that somebody else made, with the names that it has there.
    #[must_use]
    pub fn fixed_secret(fields: impl IntoIterator<Item = (String, Secret)>) -> Self {
        Self::named("fixed_secret", fields)
    }

    fn named(kind: &str, fields: impl IntoIterator<Item = (String, Secret)>) -> Self {
        let fields = fields.into_iter().filter(|(name, _)| name != "type");
        Self { kind: kind.to_owned(), fields: fields.map(|(name, value)| Field { name, value }).collect() }
    }

    /// The credential's type, such as `postgres`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The fields, in the order of the wire.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// One field by its name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Secret> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.value)
    }

    /// Whether a field of this name must never be shown.
    #[must_use]
    pub fn is_secret(&self, name: &str) -> bool {
        !PUBLIC_FIELDS.contains(&name)
    }

    /// Whether the whole credential is one bearer token (RFC 8693 §2.2.1 `token_type`).
    #[must_use]
    pub fn bearer_token(&self) -> Option<&Secret> {
        match self.kind.as_str() {
            "jwt" | "bearer" | "gcp_token" | "azure_token" => self.field("token"),
            _ => None,
        }
    }

    /// RFC 8693 §3 token type identifier; our own URN for what the RFC has no word for.
    #[must_use]
    pub fn issued_token_type(&self) -> String {
        match self.kind.as_str() {
            "jwt" => "urn:ietf:params:oauth:token-type:jwt".to_owned(),
            "bearer" | "gcp_token" | "azure_token" => "urn:ietf:params:oauth:token-type:access_token".to_owned(),
            other => format!("urn:jobpass:params:oauth:token-type:{other}"),
        }
    }

    /// The compact JSON object, as it stands in an answer. One of the few places where a secret
    /// leaves its type on purpose.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(128));
        out.push_str("{\"type\":");
        push_json_string(&mut out, &self.kind);
        for field in &self.fields {
            out.push(',');
            push_json_string(&mut out, &field.name);
            out.push(':');
            push_json_string(&mut out, field.value.expose());
        }
        out.push('}');
        out
    }
}

/// Appends a text as a JSON string (RFC 8259 §7).
pub(crate) fn push_json_string(out: &mut String, text: &str) {
    let is_special = |b: u8| b < b' ' || b == b'"' || b == b'\\';
    let mut rest = text;
    out.push('"');
    // Credentials are long and plain: what needs no escape is copied whole.
    while let Some((plain, special)) = first(rest, is_special).and_then(|at| rest.split_at_checked(at)) {
        out.push_str(plain);
        let mut chars = special.chars();
        match chars.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            control => {
                use std::fmt::Write as _;
                let _ = write!(out, "\\u{:04x}", control.map_or(0, u32::from));
            }
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

/// Where the first such byte is. Many are looked at together, which a processor does at once.
fn first(text: &str, is_it: impl Fn(u8) -> bool) -> Option<usize> {
    let chunks = text.as_bytes().chunks(64);
    let mut found = chunks.enumerate().filter(|(_, chunk)| chunk.iter().fold(false, |any, b| any | is_it(*b)));
    found.find_map(|(at, chunk)| Some(at * 64 + chunk.iter().position(|b| is_it(*b))?))
}

impl<'de> Deserialize<'de> for Credential {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Order is of no meaning to a receiver, so a sorted map is enough.
        let mut map = BTreeMap::<String, String>::deserialize(deserializer)?;
        let kind = map.remove("type").ok_or_else(|| D::Error::missing_field("type"))?;
        let fields = map.into_iter().map(|(name, value)| Field { name, value: Secret::new(value) }).collect();
        Ok(Self { kind, fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_back_whole() {
        let hard = "a\"b\\c\nd\u{1}é";
        let sent = Credential::postgres("db.example", 5432, "app", "jobpass_1", hard.into(), "require");
        let got: Credential = serde_json::from_str(&sent.to_json()).expect("own JSON parses");
        assert_eq!(got.kind(), "postgres");
        assert_eq!(got.field("password").map(Secret::expose), Some(hard));
        assert_eq!(got.fields().iter().filter(|f| f.is_secret()).count(), 1);
    }
}
