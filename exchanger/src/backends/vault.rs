//! `vault`: tokens and dynamic secrets of HashiCorp Vault and OpenBao, without a token of our own there.
//!
//! A token that we sign logs in at a `jwt` auth method. The job gets the token that this gives, or the one
//! dynamic secret that was read with it. Taking back revokes the secret's lease first, and waits for that,
//! then the token by itself; both take the token, which the lease keeps sealed. Rules are those of the two
//! projects' API documentation: "JWT/OIDC auth method", "auth/token/revoke-self", "sys/leases/revoke".

pub(super) mod kv;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, presented,
    presented::{Presented, Presenter},
    registry::BuildContext,
    spec::{self, SpecReader},
    upstream::{self, Upstream},
};
use crate::{
    clock::{Clock, Timestamp},
    config::Span,
    leases::{Lease, Revocability},
    outbound::Fetched,
    sealing::Sealing,
    signing::Algorithm,
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, GrantName, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The server's address, such as `https://bao.acme.example:8200`.
    pub address: String,
    /// The `bound_audiences` of its roles: what the token that is presented is for.
    pub audience: String,
    /// Where the `jwt` auth method is mounted. Default `jwt`.
    pub auth_mount: Option<String>,
    /// The namespace of all requests.
    pub namespace: Option<String>,
    /// The roles that grants may name. Default: any.
    #[serde(default)]
    pub roles: Vec<String>,
    /// What the presented token is signed with. Default: the first of the server's keys.
    pub algorithm: Option<Algorithm>,
    /// No token of a role lives longer, renewals included. Default `768h`, the longest that these servers give
    /// unless told otherwise.
    pub token_lifetime: Option<Span>,
    /// How long a mint may take. Default `10s`.
    pub deadline: Option<Span>,
    /// Private networks in which the server may lie (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Its own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The role of the auth method, as a template over stable claims.
    pub role: String,
    /// What follows `grant:<name>:` in the presented token's `sub`, over stable claims.
    pub sub: Option<String>,
    /// The dynamic secret to read, such as `database/creds/app`, instead of handing out the token.
    pub read: Option<String>,
}

impl File {
    /// The audience that the backend presents.
    pub(super) fn presents(&self) -> &str {
        &self.audience
    }
}

const TOKEN_LIFETIME: Duration = Duration::from_secs(768 * 3600);
const DEADLINE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(30);

const ROLE: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "._-".contains(c),
    max_len: 128,
    expected: "a role's name: letters, digits and ._-",
};
const PATH: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "._-/".contains(c),
    max_len: 256,
    expected: "a path: letters, digits and ._-/",
};

/// A backend that asks Vault or OpenBao.
pub struct Vault {
    identity: String,
    auth_mount: String,
    namespace: Option<HeaderValue>,
    roles: Vec<String>,
    presenter: Presenter,
    upstream: Upstream,
    longest: Duration,
    deadline: Duration,
    clock: Arc<dyn Clock>,
    sealing: Arc<Sealing>,
}

struct Compiled {
    role: Template,
    subject: Option<Template>,
    read: Option<Template>,
}

struct Rendered {
    grant: GrantName,
    role: String,
    subject: String,
    read: Option<String>,
}

#[derive(Deserialize)]
struct Login {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(deserialize_with = "spec::secret")]
    client_token: Secret,
    token_type: String,
    policies: Vec<String>,
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    data: Option<Map<String, Value>>,
}

/// What the lease keeps.
#[derive(Serialize, Deserialize)]
struct Kept {
    token: String,
    /// When the token is gone by itself unless somebody renews it, in epoch seconds.
    expires: i64,
    /// Whether whoever has it may renew it.
    renewable: bool,
    /// The dynamic secret's lease.
    lease_id: Option<String>,
}

impl Vault {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let address = Url::parse(&file.address).map_err(|error| format!("address: {error}"))?;
        if address.cannot_be_a_base()
            || address.path() != "/"
            || address.query().is_some()
            || !address.username().is_empty()
        {
            return Err("address: expected https://host:port, without path, query or user".to_owned());
        }
        let auth_mount = file.auth_mount.as_deref().unwrap_or("jwt").trim_matches('/').to_owned();
        if !is_path(&auth_mount) {
            return Err("auth_mount: expected the path of the `jwt` auth method, such as jwt".to_owned());
        }
        let namespace = file.namespace.as_ref().map(HeaderValue::try_from).transpose();
        let takes = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256];
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline);
        Ok(Self {
            identity: address.as_str().trim_end_matches('/').to_owned(),
            auth_mount,
            namespace: namespace.map_err(|_| "namespace: expected a namespace's path".to_owned())?,
            roles: file.roles,
            presenter: Presenter::build(context, file.audience, file.algorithm, &takes)?,
            upstream: Upstream::new("the vault", options, context),
            longest: file.token_lifetime.map_or(TOKEN_LIFETIME, |span| span.0),
            deadline,
            clock: Arc::clone(&context.clock),
            sealing: Arc::clone(&context.sealing),
        })
    }

    /// Sends a request; `Err` says in a mint's words why there is no answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&Secret>,
        body: Option<Value>,
    ) -> Result<Fetched, MintError> {
        let mut request = Request::new(body.map_or_else(Vec::new, |body| body.to_string().into_bytes()));
        *request.method_mut() = method;
        let uri = format!("{}/v1/{path}", self.identity).parse();
        *request.uri_mut() = uri.map_err(|_| MintError::Refused("the path is no path".to_owned()))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        headers.extend(
            self.namespace.clone().map(|namespace| (header::HeaderName::from_static("x-vault-namespace"), namespace)),
        );
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, upstream::bearer(token)?);
        }
        self.upstream.send(request).await.map_err(|error| upstream::unanswered(&error))
    }

    fn keep(&self, pending: &PendingLease, kept: &Kept) -> Result<(), MintError> {
        let text = serde_json::to_string(kept).map_err(|error| MintError::Unclear(error.to_string()))?;
        let sealed = self.sealing.keep(pending, &Secret::new(text));
        sealed.map_err(|error| MintError::Unclear(error.to_string()))
    }

    async fn login(&self, order: &Order, rendered: &Rendered) -> Result<Auth, MintError> {
        let said = Presented { grant: &rendered.grant, subject: &rendered.subject, more: () };
        let jwt = self.presenter.sign(order, said)?;
        let body = json!({ "role": rendered.role, "jwt": jwt.expose() });
        let path = format!("auth/{}/login", self.auth_mount);
        let answer = self.send(Method::POST, &path, None, Some(body)).await?;
        self.upstream.made(&answer).map_err(|error| told(error, &answer))?;
        let unclear = MintError::Unclear;
        let login: Login =
            serde_json::from_slice(&answer.body).map_err(|_| unclear("the login gave no token".to_owned()))?;
        let (auth, role) = (login.auth, &rendered.role);
        if auth.token_type != "service" {
            return Err(unclear(format!(
                "the role {role} gives tokens that cannot be revoked: set its token_type to service"
            )));
        }
        if !auth.policies.iter().any(|policy| policy == "default") {
            return Err(unclear(format!(
                "the role {role} gives tokens without the policy `default`, which lets them revoke themselves"
            )));
        }
        if !(1..=self.longest.as_secs()).contains(&auth.lease_duration) {
            let why = format!(
                "the role {role} gives tokens for {} s: give it a token_ttl, or raise token_lifetime",
                auth.lease_duration
            );
            return Err(unclear(why));
        }
        Ok(auth)
    }
}

/// Whether it is a path without empty or dotted segments.
fn is_path(path: &str) -> bool {
    let segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(PATH.allowed);
    path.split('/').all(segment)
}

/// A refusal with what these servers say of it: `{"errors": […]}`.
fn told(error: MintError, answer: &Fetched) -> MintError {
    match error {
        MintError::Refused(text) => MintError::Refused(format!("{text} ({})", errors(answer))),
        other => other,
    }
}

fn errors(answer: &Fetched) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let errors = body["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let text = errors.collect::<Vec<_>>().join("; ");
    text.split_whitespace().filter(|word| word.len() <= 64).collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

impl Describe for Vault {
    fn kind(&self) -> &'static str {
        "vault"
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
        let role = reader.template(&["role"], &file.role, &ROLE);
        let fixed = role.as_ref().is_some_and(|role| role.claims().next().is_none());
        if fixed && !self.roles.is_empty() && !self.roles.contains(&file.role) {
            let help = format!("the backend's roles are: {}", self.roles.join(", "));
            reader.refuse(&["role"], "the role is none of the backend's", help);
        }
        let subject = file.sub.as_ref().and_then(|text| reader.template(&["sub"], text, &presented::SUBJECT));
        let read = file.read.as_ref().and_then(|text| reader.template(&["read"], text, &PATH));
        reader.finish(role.map(|role| Compiled { role, subject, read }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.upstream.client().map(drop).map_err(|error| error.to_string())
    }
}

impl RemoteBackend for Vault {
    fn revocability(&self) -> Revocability {
        Revocability::ByToken
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        SETTLE
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let role = spec::render("credential.role", &spec.role, permit)?;
        if !is_path(&role) {
            return Err(spec::unfit("credential.role", &"no role can be named . or .."));
        }
        if !self.roles.is_empty() && !self.roles.contains(&role) {
            return Err(spec::unfit("credential.role", &"the role is none of the backend's"));
        }
        let read = spec.read.as_ref().map(|read| spec::render("credential.read", read, permit)).transpose()?;
        if read.as_ref().is_some_and(|path| !is_path(path)) {
            return Err(spec::unfit("credential.read", &"a segment of the path would be empty, . or .."));
        }
        Ok(Plan {
            object: json!({ "role": role, "read": read }),
            rendered: Arc::new(Rendered {
                grant: permit.grant().name().clone(),
                role,
                subject: presented::subject(spec.subject.as_ref(), permit)?,
                read,
            }),
            worst_expiry: order.at + self.deadline + SETTLE + self.longest,
        })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let rendered: &Rendered = spec::rendered(rendered)?;
            let auth = self.login(order, rendered).await?;
            // It was made before now, so it ends before then.
            let ends = self.clock.now() + Duration::from_secs(auth.lease_duration);
            let token = auth.client_token.expose().to_owned();
            let mut kept = Kept { token, expires: ends.secs(), renewable: auth.renewable, lease_id: None };
            self.keep(pending, &kept)?;
            let expires_at = ends.min(order.expires_at);
            let Some(path) = &rendered.read else {
                return Ok(Minted { credential: Credential::api_key(&self.identity, auth.client_token), expires_at });
            };
            // From here on something is there to be taken back: no failure may pass for "nothing was made".
            let answer = self.send(Method::GET, path, Some(&auth.client_token), None).await;
            let answer = answer.map_err(MintError::after_making)?;
            self.upstream.made(&answer).map_err(|error| told(error, &answer))?;
            let unclear = |why: &str| MintError::Unclear(why.to_owned());
            let read: Read = serde_json::from_slice(&answer.body).map_err(|_| unclear("what was read is not JSON"))?;
            if read.lease_id.is_empty() {
                return Err(unclear("what was read has no lease: it is a static secret, and would outlive the job"));
            }
            kept.lease_id = Some(read.lease_id);
            self.keep(pending, &kept)?;
            let fields = read.data.unwrap_or_default().into_iter().map(|(name, value)| match value {
                Value::String(text) => (name, Secret::new(text)),
                other => (name, Secret::new(other.to_string())),
            });
            let expires_at = expires_at.min(self.clock.now() + Duration::from_secs(read.lease_duration));
            Ok(Minted { credential: Credential::vault_secret(fields), expires_at })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let failed = |error: &dyn std::fmt::Display| RemoteError(error.to_string());
            let text = self.sealing.open(lease).map_err(|error| failed(&error))?;
            let kept: Kept =
                serde_json::from_str(text.expose()).map_err(|_| failed(&"the lease does not say what to revoke"))?;
            let now = self.clock.now();
            // The job may have renewed a token for as long as we could not ask.
            if !kept.renewable && Timestamp::from_secs(kept.expires) + SETTLE < now {
                return Ok(Revoked::NotFound);
            }
            let outlived = lease.opened_at() + self.deadline + SETTLE + self.longest < now;
            let is_gone = |answer: &Fetched| is_invalid(answer, outlived);
            let token = Secret::new(kept.token);
            if let Some(id) = &kept.lease_id {
                let body = json!({ "lease_id": id, "sync": true });
                let answer = self.send(Method::PUT, "sys/leases/revoke", Some(&token), Some(body)).await;
                let answer = answer.map_err(|error| failed(&error))?;
                if is_gone(&answer) {
                    return Ok(Revoked::NotFound);
                }
                // A lease that is not there any more is a bad request to some versions.
                let gone = answer.status == StatusCode::BAD_REQUEST && errors(&answer).contains("invalid lease");
                if !answer.status.is_success() && !gone {
                    let why =
                        format!("the secret's lease is not revoked: {} {}", answer.status.as_u16(), errors(&answer));
                    return Err(RemoteError(why));
                }
            }
            let answer = self.send(Method::POST, "auth/token/revoke-self", Some(&token), None).await;
            let answer = answer.map_err(|error| failed(&error))?;
            if answer.status.is_success() {
                Ok(Revoked::Gone)
            } else if is_gone(&answer) {
                Ok(Revoked::NotFound)
            } else {
                Err(RemoteError(format!("the token is not revoked: {} {}", answer.status.as_u16(), errors(&answer))))
            }
        })
    }
}

/// Whether the token is not valid any more. A policy that forbids looks like that but for the words, which older
/// servers do not say: there it is certain once no token can be alive.
fn is_invalid(answer: &Fetched, outlived: bool) -> bool {
    answer.status == StatusCode::FORBIDDEN && (outlived || errors(answer).contains("invalid token"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, order},
    };

    const CONFIG: &str =
        "bao: { vault: { address: https://bao.example:8200, audience: bao.example, roles: [ci, \"772002\"] } }";
    const SPEC: &str =
        "role: ci\nread: \"database/creds/r{{ claims.repository_id }}\"\nsub: \"{{ claims.repository_id }}\"";

    fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
        let permit = bench.permit(credential, "15m", replaced)?;
        let Backend::Remote(backend) = bench.backend() else { panic!("vault is remote") };
        backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
    }

    #[test]
    fn specs() {
        let bench = Bench::new(CONFIG);
        for (credential, expected) in [
            (SPEC, Ok(json!({ "role": "ci", "read": "database/creds/r772002" }))),
            ("role: ci", Ok(json!({ "role": "ci", "read": null }))),
            ("role: \"{{ claims.repository_id }}\"", Ok(json!({ "role": "772002", "read": null }))),
            ("role: \"x{{ claims.repository_id }}\"", Err("credential.role: the role is none")),
            ("role: other", Err("the role is none of the backend's")),
            ("role: \"{{ claims.actor }}\"", Err("actor")),
            ("role: ci\nread: ../sys/raw", Err("credential.read")),
            ("role: ci\nread: database//creds", Err("credential.read")),
            ("role: ci\nread: \"a?b\"", Err("a path")),
            ("role: ci\npath: x", Err("path")),
            ("read: x", Err("role")),
        ] {
            match (plan(&bench, credential, &[]), expected) {
                (Ok(plan), Ok(object)) => assert_eq!(plan.object, object, "{credential}"),
                (Err(error), Err(text)) => assert!(error.contains(text), "{credential}: {error}"),
                (plan, _) => panic!("{credential}: {:?}", plan.map(|plan| plan.object)),
            }
        }
    }

    #[test]
    fn hostile_claims_are_refused() {
        let bench = Bench::new(CONFIG);
        let long = "9".repeat(300);
        for hostile in ["a'b", "a\"b", "a\\b", "a*b", "a?b", "a#b", "a%2e", "a b", "a\nb", "a\0b", "а", "", &long] {
            let refused = plan(&bench, SPEC, &[("repository_id", hostile)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.")), "{hostile:?}");
        }
        let any = Bench::new("bao: { vault: { address: https://bao.example:8200, audience: bao.example } }");
        for dots in [".", ".."] {
            let refused = plan(&any, "role: \"{{ claims.repository_id }}\"", &[("repository_id", dots)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.role")), "{dots:?}");
        }
        for dots in ["..", "/..", "/../sys", "./."] {
            let read = "role: ci\nread: \"{{ claims.repository_id }}/x\"";
            let refused = plan(&bench, read, &[("repository_id", dots)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.read")), "{dots:?}");
        }
    }

    #[test]
    fn configs() {
        for (config, refusal) in [
            ("address: bao.example, audience: a", "address"),
            ("address: https://bao.example/v1, audience: a", "address: expected"),
            ("address: https://bao.example, audience: a, auth_mount: ../x", "auth_mount"),
            ("address: https://bao.example, audience: a, algorithm: RS256", "algorithm"),
        ] {
            let error = Bench::new(&format!("a: {{ vault: {{ {config} }} }}")).backends.err().expect("refused");
            assert!(error.contains(refusal), "{config}: {error}");
        }
        let both = format!("{}\nb: {{ signed_jwt: {{ audiences: [bao.example] }} }}", CONFIG);
        assert!(Bench::new(&both).backends.is_err(), "no job gets a token for what the backend presents");
    }
}
