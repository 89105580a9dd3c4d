//! `kubernetes`: tokens of a cluster's service accounts, by the TokenRequest API.
//!
//! Where it is configured, each token is bound to a Secret that is made for its lease and named after it:
//! the API server takes the token for as long as that Secret is there, so that deleting it takes the token
//! back whatever became of the answer. Else a token ends by itself. Rules are those of the Kubernetes API
//! reference ("TokenRequest v1", "Secret v1") and of "Managing Service Accounts".

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec,
    registry::BuildContext,
    spec::{self, SpecReader},
    upstream::{Upstream, bearer},
};
use crate::{
    clock::Timestamp,
    config::{Env, SecretRef},
    leases::{Lease, Revocability},
    outbound::OutboundOptions,
    store::PendingLease,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, header};
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, LeaseId, Secret};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use url::Url;

/// The API server gives no token for less, in seconds.
const MIN_SECONDS: u32 = 600;
/// How long one request may take; a mint is two of them at most.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(10);
/// How long after the deadline a creation may still be on its way: the API server's own request timeout is 60 s,
/// and what it has not begun by then it drops.
const SETTLE: Duration = Duration::from_secs(60);
/// Where a pod finds the API server and its own identity.
const IN_CLUSTER: &str = "https://kubernetes.default.svc";
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The API server's address. Default: where a pod finds it.
    pub server: Option<String>,
    /// Its certificate authority, PEM; jobs get it too. Default, with `server`'s: the pod's.
    pub ca_file: Option<PathBuf>,
    /// jobpass's own token there. Default, with `server`'s: the pod's. Read anew for every request.
    pub token: Option<SecretRef>,
    /// The address that jobs use, where that is another one.
    pub public_server: Option<String>,
    /// Binds each token to a Secret of its own, so that it can be taken back.
    #[serde(default)]
    pub bound: bool,
    /// The namespaces whose service accounts grants may name. Default: any.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Private networks in which the API server may live (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The service account's namespace.
    pub namespace: String,
    /// The service account's name, a template over stable claims.
    pub service_account: String,
    /// Who the token is for. Default: the API server itself.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Annotations `jobpass/NAME` of the Secret, as templates. For `bound`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// RFC 1123 subdomain, as Kubernetes names service accounts.
const NAME: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c),
    max_len: 253,
    expected: "lower-case letters, digits and -.",
};

const ANNOTATION: FieldRules =
    FieldRules { authority: false, allowed: |c| !c.is_control(), max_len: 1024, expected: "no control characters" };

/// A backend that asks an API server.
pub struct Kubernetes {
    identity: String,
    base: Url,
    public_server: String,
    ca_file: Option<PathBuf>,
    token: SecretRef,
    env: Env,
    bound: bool,
    namespaces: Vec<String>,
    upstream: Upstream,
}

struct Compiled {
    namespace: String,
    service_account: Template,
    audiences: Vec<String>,
    annotations: Vec<(String, Template)>,
}

struct Rendered {
    namespace: String,
    service_account: String,
    audiences: Vec<String>,
    seconds: u64,
    /// The Secret to make first.
    secret: Option<Value>,
}

impl Kubernetes {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let (server, ca_file, token) = match (file.server, file.token) {
            (Some(server), Some(token)) => (server, file.ca_file, token),
            (Some(_), None) => {
                return Err("token: a cluster that is named by `server` needs jobpass's own token".to_owned());
            }
            (None, token) => {
                let mounted = |name: &str| PathBuf::from(format!("{MOUNT}/{name}"));
                let token = token.unwrap_or_else(|| SecretRef::File(mounted("token")));
                (IN_CLUSTER.to_owned(), Some(file.ca_file.unwrap_or_else(|| mounted("ca.crt"))), token)
            }
        };
        let base = Url::parse(server.trim_end_matches('/')).map_err(|error| format!("server: {error}"))?;
        if base.cannot_be_a_base() || base.query().is_some() || !base.username().is_empty() {
            return Err("server: expected https://host, without query or user".to_owned());
        }
        let ca_file = ca_file.map(|path| context.path(&path));
        let options = OutboundOptions {
            allow_networks: file.allow_networks,
            ca_file: ca_file.clone(),
            insecure_http: file.insecure_http,
            deadline: REQUEST_DEADLINE,
            ..OutboundOptions::default()
        };
        Ok(Self {
            identity: base.to_string(),
            public_server: file.public_server.unwrap_or(server),
            base,
            ca_file,
            token: context.secret(token),
            env: context.env.clone(),
            bound: file.bound,
            namespaces: file.namespaces,
            upstream: Upstream::new("the API server", options, context),
        })
    }

    /// `/api/v1/namespaces/NAMESPACE/…`
    fn url(&self, namespace: &str, rest: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1", "namespaces", namespace]).extend(rest);
        }
        url
    }

    fn authorization(&self) -> Result<HeaderValue, MintError> {
        let token = self.token.read(&self.env).map_err(|error| MintError::Unavailable(format!("token: {error}")))?;
        bearer(&token)
    }

    fn ca(&self) -> Result<Option<String>, String> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| format!("ca_file: {}: {error}", path.display()))
        };
        self.ca_file.as_ref().map(read).transpose()
    }

    async fn request_token(&self, rendered: &Rendered, secret: Option<Made>) -> Result<TokenStatus, MintError> {
        let mut body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "audiences": rendered.audiences, "expirationSeconds": rendered.seconds },
        });
        if let Some(Made { metadata: Metadata { name, uid } }) = secret {
            body["spec"]["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": "Secret", "name": name, "uid": uid });
        }
        let url = self.url(&rendered.namespace, &["serviceaccounts", &rendered.service_account, "token"]);
        let answer: TokenAnswer = self.upstream.post_json(&url, Some(self.authorization()?), &body).await?;
        Ok(answer.status)
    }

    /// Deletes a lease's Secret, and with it the token that is bound to it.
    async fn delete(&self, namespace: &str, lease: LeaseId) -> Result<Revoked, RemoteError> {
        let url = self.url(namespace, &["secrets", &secret_name(lease)]);
        let authorization = self.authorization().map_err(|error| RemoteError(error.to_string()))?;
        let request = Request::delete(url.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, authorization)
            .body(Vec::new())
            .map_err(|error| RemoteError(error.to_string()))?;
        let answer = self.upstream.send(request).await.map_err(|error| RemoteError(error.to_string()))?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(Revoked::NotFound),
            status if status.is_success() => Ok(Revoked::Gone),
            status => Err(RemoteError(format!("the API server answered {} to the deletion", status.as_u16()))),
        }
    }
}

#[derive(Deserialize)]
struct Made {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    uid: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    #[serde(deserialize_with = "spec::secret")]
    token: Secret,
    #[serde(deserialize_with = "spec::instant")]
    expiration_timestamp: Timestamp,
}

/// The lease's remote name, as Kubernetes lets things be named.
fn secret_name(lease: LeaseId) -> String {
    lease.remote_name().replace('_', "-")
}

/// RFC 1123 label.
fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('-') && !text.ends_with('-')
}

impl Describe for Kubernetes {
    fn kind(&self) -> &'static str {
        "kubernetes"
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        if grant.ttl() < MIN_SECONDS {
            let message = format!(
                "a service account's token lives {MIN_SECONDS} seconds at least, and this grant's `ttl` is {}",
                grant.ttl()
            );
            reader.refuse(&[], message, "set `ttl` to 10m or more");
        }
        if !is_label(&file.namespace) {
            let help = "a namespace is 1 to 63 of a-z, 0-9 and -";
            reader.refuse(&["namespace"], "this is not a namespace's name", help);
        } else if !self.namespaces.is_empty() && !self.namespaces.contains(&file.namespace) {
            let help = format!("the backend's namespaces are: {}", self.namespaces.join(", "));
            reader.refuse(&["namespace"], "this is none of the backend's namespaces", help);
        }
        if !file.annotations.is_empty() && !self.bound {
            let message = "there is no Secret to annotate: this backend is not `bound`";
            reader.refuse(&["annotations"], message, "take them away, or set `bound: true` in the backend's config");
        }
        for name in file.annotations.keys().filter(|name| !is_label(name)) {
            reader.refuse(&["annotations", name], "this is not an annotation's name", "use a-z, 0-9 and -");
        }
        let annotations = reader.templates("annotations", &file.annotations, &ANNOTATION);
        let service_account = reader.template(&["service_account"], &file.service_account, &NAME);
        reader.finish(service_account.map(|service_account| Compiled {
            namespace: file.namespace,
            service_account,
            audiences: file.audiences,
            annotations,
        }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.upstream.client().map_err(|error| error.to_string())?;
        self.ca()?;
        self.authorization().map(|_| ()).map_err(|error| error.to_string())
    }
}

impl RemoteBackend for Kubernetes {
    fn revocability(&self) -> Revocability {
        if self.bound { Revocability::ByName } else { Revocability::None }
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn settle(&self) -> Duration {
        if self.bound { SETTLE } else { Duration::ZERO }
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let seconds = order.expires_at.since(order.at).as_secs();
        if seconds < u64::from(MIN_SECONDS) {
            let why = format!("a service account's token lives {MIN_SECONDS} seconds at least");
            return Err(spec::unfit("ttl", &why));
        }
        let service_account = spec::render("credential.service_account", &spec.service_account, permit)?;
        if !service_account.split('.').all(is_label) {
            return Err(spec::unfit("credential.service_account", &"this is not a service account's name"));
        }
        let mut annotations = BTreeMap::new();
        for (name, template) in &spec.annotations {
            let value = spec::render(&format!("credential.annotations.{name}"), template, permit)?;
            annotations.insert(format!("jobpass/{name}"), value);
        }
        annotations.insert("jobpass/lease".to_owned(), order.lease.to_string());
        annotations.insert("jobpass/grant".to_owned(), permit.grant().name().to_string());
        let name = secret_name(order.lease);
        let object = json!({ "namespace": spec.namespace, "secret": self.bound.then_some(&name) });
        let secret = self.bound.then(|| {
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "Opaque",
                "immutable": true,
                "metadata": {
                    "name": name,
                    "labels": { "app.kubernetes.io/managed-by": "jobpass" },
                    "annotations": annotations,
                },
            })
        });
        let (namespace, audiences) = (spec.namespace.clone(), spec.audiences.clone());
        Ok(Plan {
            object,
            rendered: Arc::new(Rendered { namespace, service_account, audiences, seconds, secret }),
            // The API server counts from when it acts, which is before the deadline or within the settle time.
            worst_expiry: order.expires_at + DEADLINE + self.settle(),
        })
    }

    fn mint<'a>(
        &'a self,
        _: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let rendered: &Rendered = spec::rendered(rendered)?;
            let ca = self.ca().map_err(MintError::Unavailable)?;
            let status = match &rendered.secret {
                None => self.request_token(rendered, None).await?,
                Some(secret) => {
                    let url = self.url(&rendered.namespace, &["secrets"]);
                    let made: Made = self.upstream.post_json(&url, Some(self.authorization()?), secret).await?;
                    match self.request_token(rendered, Some(made)).await {
                        // The Secret is there. Certainly nothing is left of it, or nobody knows.
                        Err(error) if error.made_nothing() => {
                            let gone = self.delete(&rendered.namespace, order.lease).await;
                            return Err(if gone.is_ok() { error } else { error.after_making() });
                        }
                        asked => asked?,
                    }
                }
            };
            let told = status.expiration_timestamp;
            // A token that lives longer is taken back when the lease is over, where it can be.
            let expires_at = if self.bound { told.min(order.expires_at) } else { told };
            let namespace = &rendered.namespace;
            let kubeconfig = kubeconfig(&self.public_server, ca.as_deref(), namespace, &status.token);
            let credential = Credential::kubernetes(
                &self.public_server,
                ca.as_deref(),
                namespace,
                status.token,
                kubeconfig,
                &expires_at.to_string(),
            );
            Ok(Minted { credential, expires_at })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let namespace = lease.placement().object["namespace"].as_str();
            let namespace = namespace.ok_or_else(|| RemoteError("the lease names no namespace".to_owned()))?;
            self.delete(namespace, lease.id()).await
        })
    }
}

/// A kubeconfig (Kubernetes API reference, "kubeconfig v1") as JSON, which is YAML too.
fn kubeconfig(server: &str, ca: Option<&str>, namespace: &str, token: &Secret) -> Secret {
    let mut cluster = json!({ "server": server });
    if let Some(ca) = ca {
        cluster["certificate-authority-data"] = STANDARD.encode(ca).into();
    }
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "jobpass", "cluster": cluster }],
        "users": [{ "name": "jobpass", "user": { "token": token.expose() } }],
        "contexts": [{ "name": "jobpass", "context": { "cluster": "jobpass", "user": "jobpass", "namespace": namespace } }],
        "current-context": "jobpass",
    });
    Secret::new(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, order},
    };

    const CONFIG: &str = "cluster: { kubernetes: { server: https://k8s.example, token: \"env:SECRET\", bound: true, \
                          namespaces: [prod] } }";
    const SPEC: &str = "namespace: prod\nservice_account: deploy";

    fn plan(config: &str, credential: &str, ttl: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
        let bench = Bench::new(config);
        let permit = bench.permit(credential, ttl, replaced)?;
        let Backend::Remote(backend) = bench.backend() else { panic!("kubernetes is remote") };
        backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_api_server_would_refuse_from_every_job_does_not_load() {
        let unbound = CONFIG.replace("bound: true, ", "");
        for (config, credential, ttl, expected) in [
            (CONFIG, SPEC.to_owned(), "10m", None),
            (CONFIG, SPEC.to_owned(), "599s", Some("600 seconds at least")),
            (CONFIG, SPEC.replace("prod", "test"), "10m", Some("none of the backend's namespaces")),
            (CONFIG, SPEC.replace("prod", "../prod"), "10m", Some("not a namespace's name")),
            (CONFIG, SPEC.replace("deploy", "a/token"), "10m", Some("'/' is not allowed")),
            (CONFIG, SPEC.replace("deploy", "-deploy"), "10m", Some("not a service account's name")),
            (CONFIG, SPEC.replace("deploy", "\"{{ claims.actor }}\""), "10m", Some("actor")),
            (CONFIG, format!("{SPEC}\nannotations: {{ a_b: x }}"), "10m", Some("not an annotation's name")),
            (&unbound, format!("{SPEC}\nannotations: {{ run: x }}"), "10m", Some("no Secret to annotate")),
            (CONFIG, format!("{SPEC}\nroles: [x]"), "10m", Some("roles")),
        ] {
            let got = plan(config, &credential, ttl, &[]).map(|_| ());
            match expected {
                None => assert_eq!(got, Ok(()), "{credential}"),
                Some(text) => assert!(got.as_ref().is_err_and(|e| e.contains(text)), "{credential}: {got:?}"),
            }
        }
    }

    #[test]
    fn hostile_claims_are_carried_or_refused() {
        let credential = "namespace: prod\nservice_account: \"r-{{ claims.repository_id }}\"\nannotations: { actor: \"{{ claims.actor }}\" }";
        let good = plan(CONFIG, credential, "10m", &[]).expect("planned");
        assert_eq!(good.object, json!({ "namespace": "prod", "secret": "jobpass-01990000000070008000000000000001" }));
        let long = "x".repeat(300);
        for (hostile, carried) in
            [(r#"o'c"\*/кот"#, true), (&*long, true), ("a\nb", false), ("a\0b", false), (&"x".repeat(1025), false)]
        {
            match plan(CONFIG, credential, "10m", &[("actor", hostile)]) {
                Ok(plan) => {
                    let rendered: &Rendered = plan.rendered.downcast_ref().expect("ours");
                    let secret = rendered.secret.as_ref().expect("bound");
                    assert!(carried && secret["metadata"]["annotations"]["jobpass/actor"] == hostile, "{hostile:?}");
                }
                Err(error) => assert!(!carried && error.starts_with("credential.annotations"), "{hostile:?}: {error}"),
            }
        }
        for hostile in ["a'b", "a\"b", "a\\b", "a*b", "a/b", "a\nb", "a\0b", "а", "..", "", &long] {
            let refused = plan(CONFIG, credential, "10m", &[("repository_id", hostile)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.service_account")), "{hostile:?}");
        }
    }

    #[test]
    fn configs() {
        for (config, refusal) in [
            ("{ server: https://k8s.example }", "token: a cluster"),
            ("{ server: k8s.example, token: \"env:X\" }", "server:"),
            ("{ server: \"https://k8s.example?x\", token: \"env:X\" }", "without query"),
        ] {
            let error = Bench::new(&format!("a: {{ kubernetes: {config} }}")).backends.err().expect("refused");
            assert!(error.contains(refusal), "{config}: {error}");
        }
        assert!(Bench::new("a: { kubernetes: {} }").backends.is_ok(), "in a pod nothing has to be said");
    }
}
