//! `gcp`: access tokens of a Google Cloud service account, without a service account key anywhere.
//!
//! A token that we sign is traded at Google's Security Token Service for a federated one (workload
//! identity federation), which may impersonate the service account; an access boundary narrows what
//! comes of that. Google cannot take an access token back, so its leases outlive their jobs and say so.
//! Rules are those of Google Cloud's IAM documentation: "Workload Identity Federation with other
//! identity providers", "Create short-lived credentials for a service account", "Credential Access
//! Boundaries overview"; they are checked when a grant is loaded.

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, presented,
    presented::{Presented, Presenter},
    registry::BuildContext,
    spec::{self, SpecReader},
    upstream::{Upstream, bearer},
};
use crate::{
    clock::Timestamp,
    config::Span,
    leases::{Lease, Revocability},
    signing::Algorithm,
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, GrantName, Secret};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;

/// An access token lives no longer, unless an organisation policy allows the service account more.
const HOUR: Duration = Duration::from_secs(3600);
/// The longest that such a policy can allow.
const MAX_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// `google.subject` has 127 bytes at most.
const MAX_SUBJECT: usize = 127;
/// Rules of one access boundary.
const MAX_RULES: usize = 10;
/// How long one request may take; a mint is three of them at most.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(15);
/// What a federated token needs to impersonate with, and what Google's tools ask for.
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The provider that trusts us: `projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
    pub provider: String,
    /// The audience of the token that is presented, where the provider lists its own. Default: `https:` and the
    /// provider's full name.
    pub audience: Option<String>,
    /// The projects whose service accounts grants may name, by id. Default: any.
    #[serde(default)]
    pub projects: Vec<String>,
    /// The longest life of a token. Default `1h`; Google allows more, up to `12h`, only by organisation policy.
    pub longest: Option<Span>,
    /// What the presented token is signed with: ES256 or RS256. Default: the first such signing key.
    pub algorithm: Option<Algorithm>,
    /// Another address of the Security Token Service. Default `https://sts.googleapis.com`.
    pub sts_url: Option<String>,
    /// Another address of the service account credentials API. Default `https://iamcredentials.googleapis.com`.
    pub iam_url: Option<String>,
    /// Private networks in which these addresses may lie (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Their own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The service account's e-mail address, a template over stable claims.
    pub service_account: String,
    /// The OAuth scopes of the token. Default: `https://www.googleapis.com/auth/cloud-platform`.
    pub scopes: Option<Vec<String>>,
    /// What follows `grant:<name>:` in the presented token's `sub`, over stable claims.
    pub sub: Option<String>,
    /// What the token may reach, of all that the service account may. Google has this for Cloud Storage only.
    #[serde(default)]
    pub boundary: Vec<BoundaryFile>,
}

/// One rule of an access boundary.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BoundaryFile {
    /// The bucket, a template over stable claims.
    pub bucket: String,
    /// What the token may do at most there: roles such as `roles/storage.objectCreator`.
    pub roles: Vec<String>,
    /// Only objects whose names begin so; a template over stable claims.
    pub prefix: Option<String>,
}

/// Google's rules for service account ids and domains.
const SERVICE_ACCOUNT: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.@:".contains(c),
    max_len: 160,
    expected: "lower-case letters, digits and -.@",
};

/// Cloud Storage documentation, "Bucket naming guidelines".
const BUCKET: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c),
    max_len: 222,
    expected: "lower-case letters, digits and -_.",
};

/// Stands in a CEL string literal: nothing that could end it, or mean something in it.
const PREFIX: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "-._~/@+=,:".contains(c),
    max_len: 512,
    expected: "letters, digits and -._~/@+=,:",
};

/// A backend that asks Google.
pub struct Gcp {
    identity: String,
    projects: Vec<String>,
    longest: Duration,
    presenter: Presenter,
    sts: Url,
    iam: Url,
    upstream: Upstream,
}

struct Compiled {
    service_account: Template,
    scopes: Vec<String>,
    subject: Option<Template>,
    boundary: Vec<Boundary>,
}

struct Boundary {
    bucket: Template,
    roles: Vec<String>,
    prefix: Option<Template>,
}

/// What the requests say.
struct Rendered {
    grant: GrantName,
    subject: String,
    service_account: String,
    scopes: Vec<String>,
    boundary: Option<String>,
    seconds: u64,
}

impl File {
    /// The audiences that Google takes for this provider: with none of its own, its full name, with and without
    /// `https:`.
    pub(super) fn presents(&self) -> Vec<String> {
        match &self.audience {
            Some(audience) => vec![audience.clone()],
            None => vec![format!("https:{}", full_name(&self.provider)), full_name(&self.provider)],
        }
    }
}

fn full_name(provider: &str) -> String {
    format!("//iam.googleapis.com/{provider}")
}

impl Gcp {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let parts: Vec<&str> = file.provider.split('/').collect();
        let ["projects", number, "locations", "global", "workloadIdentityPools", pool, "providers", provider] =
            parts[..]
        else {
            return Err(
                "provider: expected projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER"
                    .to_owned(),
            );
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) || pool.is_empty() || provider.is_empty() {
            return Err("provider: name the project by its number, as in projects/123456789012/…".to_owned());
        }
        let longest = file.longest.map_or(HOUR, |span| span.0);
        if longest > MAX_LIFETIME || longest.is_zero() {
            return Err("longest: Google's access tokens live 12h at most".to_owned());
        }
        let takes = [Algorithm::Es256, Algorithm::Rs256];
        let audience = file.presents().swap_remove(0);
        let url = |field: &str, text: Option<&String>, default: &str, path: &str| {
            let text = text.map_or(default, |text| text.trim_end_matches('/'));
            Url::parse(&format!("{text}{path}")).map_err(|error| format!("{field}: {error}"))
        };
        Ok(Self {
            identity: full_name(&file.provider),
            longest,
            presenter: Presenter::build(context, audience, file.algorithm, &takes)?,
            sts: url("sts_url", file.sts_url.as_ref(), "https://sts.googleapis.com", "/v1/token")?,
            iam: url(
                "iam_url",
                file.iam_url.as_ref(),
                "https://iamcredentials.googleapis.com",
                "/v1/projects/-/serviceAccounts/",
            )?,
            projects: file.projects,
            upstream: Upstream::new(
                "Google",
                context.outbound(file.allow_networks, file.ca_file, file.insecure_http, REQUEST_DEADLINE),
                context,
            ),
        })
    }

    /// Our token for a federated one. That never leaves this process and is no credential of any job, so
    /// whatever becomes of this request, nothing was made.
    async fn federate(&self, order: &Order, rendered: &Rendered) -> Result<Secret, MintError> {
        let presented = Presented { grant: &rendered.grant, subject: &rendered.subject, more: () };
        let presented = self.presenter.sign(order, presented)?;
        let form = [
            ("grant_type", TOKEN_EXCHANGE),
            ("audience", &self.identity),
            ("scope", CLOUD_PLATFORM),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token_type", JWT),
            ("subject_token", presented.expose()),
        ];
        let answer = self.upstream.post_form(&self.sts, None, &form).await;
        let answer: Exchanged = answer.map_err(MintError::after_reading)?;
        Ok(answer.access_token)
    }

    async fn impersonate(&self, federated: &Secret, rendered: &Rendered) -> Result<Impersonated, MintError> {
        let mut url = self.iam.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(&format!("{}:generateAccessToken", rendered.service_account));
        }
        let body = json!({ "scope": rendered.scopes, "lifetime": format!("{}s", rendered.seconds) });
        self.upstream.post_json(&url, Some(bearer(federated)?), &body).await
    }

    async fn narrow(&self, token: &Secret, boundary: &str) -> Result<Secret, MintError> {
        let form = [
            ("grant_type", TOKEN_EXCHANGE),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token_type", ACCESS_TOKEN),
            ("subject_token", token.expose()),
            ("options", boundary),
        ];
        let answer: Exchanged = self.upstream.post_form(&self.sts, None, &form).await?;
        Ok(answer.access_token)
    }
}

#[derive(Deserialize)]
struct Exchanged {
    #[serde(deserialize_with = "spec::secret")]
    access_token: Secret,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    #[serde(deserialize_with = "spec::secret")]
    access_token: Secret,
    #[serde(deserialize_with = "spec::instant")]
    expire_time: Timestamp,
}

impl Describe for Gcp {
    fn kind(&self) -> &'static str {
        "gcp"
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
        let longest = self.longest.as_secs();
        if u64::from(grant.ttl()) > longest {
            let message = format!(
                "a token of this backend lives {longest} seconds at most, and this grant's `ttl` is {}",
                grant.ttl()
            );
            reader.refuse(&[], message, "lower the grant's `ttl`");
        }
        let domain = file.service_account.split_once('@').map(|(_, domain)| domain);
        match domain.and_then(|domain| domain.strip_suffix(".iam.gserviceaccount.com")) {
            Some(project) if !self.projects.is_empty() && !self.projects.iter().any(|known| known == project) => {
                let help = format!("the backend's projects are: {}", self.projects.join(", "));
                reader.refuse(&["service_account"], "the service account is in none of the backend's projects", help);
            }
            Some(project) if !project.is_empty() && !project.contains(['@', '{', '}']) => {}
            _ => reader.refuse(
                &["service_account"],
                "this is not a service account's address",
                "for example deploy@acme-prod.iam.gserviceaccount.com; claims may stand before the @ only",
            ),
        }
        let scopes = file.scopes.unwrap_or_else(|| vec![CLOUD_PLATFORM.to_owned()]);
        if scopes.is_empty() || !scopes.iter().all(|scope| scope.starts_with("https://www.googleapis.com/auth/")) {
            let help = format!("for example {CLOUD_PLATFORM}");
            reader.refuse(&["scopes"], "expected at least one of Google's OAuth scopes, and nothing else", help);
        }
        if file.boundary.len() > MAX_RULES {
            let message = format!("an access boundary has {MAX_RULES} rules at most");
            reader.refuse(&["boundary"], message, "take some away");
        }
        let room = MAX_SUBJECT.saturating_sub("grant::".len() + grant.name().as_str().len());
        let rules = FieldRules { max_len: room, ..presented::SUBJECT };
        let subject = file.sub.as_ref().map(|text| reader.template(&["sub"], text, &rules));
        let mut boundary = Vec::with_capacity(file.boundary.len());
        for (index, rule) in file.boundary.into_iter().enumerate() {
            let index = index.to_string();
            if rule.roles.is_empty() || !rule.roles.iter().all(|role| is_role(role)) {
                let help = "for example roles/storage.objectCreator, or projects/acme-prod/roles/uploader";
                reader.refuse(&["boundary", &index, "roles"], "expected at least one role, and nothing else", help);
            }
            let bucket = reader.template(&["boundary", &index, "bucket"], &rule.bucket, &BUCKET);
            let prefix = rule.prefix.map(|text| reader.template(&["boundary", &index, "prefix"], &text, &PREFIX));
            boundary.extend(bucket.map(|bucket| Boundary { bucket, roles: rule.roles, prefix: prefix.flatten() }));
        }
        let service_account = reader.template(&["service_account"], &file.service_account, &SERVICE_ACCOUNT);
        reader.finish(service_account.map(|service_account| Compiled {
            service_account,
            scopes,
            subject: subject.flatten(),
            boundary,
        }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.upstream.client().map(|_| ()).map_err(|error| error.to_string())
    }
}

/// A predefined role, or one of a project's or an organisation's own.
fn is_role(role: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    role.chars().all(plain)
        && ["roles/", "projects/", "organizations/"].iter().any(|prefix| role.starts_with(prefix))
        && role.rsplit("roles/").next().is_some_and(|name| !name.is_empty())
}

impl RemoteBackend for Gcp {
    fn revocability(&self) -> Revocability {
        Revocability::None
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn settle(&self) -> Duration {
        Duration::ZERO
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let mut rules = Vec::with_capacity(spec.boundary.len());
        for (index, rule) in spec.boundary.iter().enumerate() {
            let field = |name: &str| format!("credential.boundary.{index}.{name}");
            let bucket = spec::render(&field("bucket"), &rule.bucket, permit)?;
            let prefix = rule.prefix.as_ref().map(|t| spec::render(&field("prefix"), t, permit)).transpose()?;
            rules.push(boundary_rule(&bucket, &rule.roles, prefix.as_deref()));
        }
        let rendered = Rendered {
            grant: permit.grant().name().clone(),
            subject: presented::subject(spec.subject.as_ref(), permit)?,
            service_account: spec::render("credential.service_account", &spec.service_account, permit)?,
            scopes: spec.scopes.clone(),
            boundary: (!rules.is_empty())
                .then(|| json!({ "accessBoundary": { "accessBoundaryRules": rules } }).to_string()),
            seconds: order.expires_at.since(order.at).as_secs(),
        };
        Ok(Plan {
            object: json!({ "service_account": rendered.service_account }),
            rendered: Arc::new(rendered),
            // Google counts from when it acts, which is before the deadline.
            worst_expiry: order.expires_at + DEADLINE,
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
            let federated = self.federate(order, rendered).await?;
            let Impersonated { mut access_token, expire_time: expires_at } =
                self.impersonate(&federated, rendered).await?;
            if let Some(boundary) = &rendered.boundary {
                // What came before is in no hands but ours; still, it exists.
                access_token = self.narrow(&access_token, boundary).await.map_err(MintError::after_making)?;
            }
            let credential = Credential::gcp_token(&rendered.service_account, access_token, &expires_at.to_string());
            Ok(Minted { credential, expires_at })
        })
    }

    fn revoke<'a>(&'a self, _: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async { Err(RemoteError("Google cannot take an access token back".to_owned())) })
    }
}

/// One rule, with the condition that Google's documentation gives for a prefix: it holds for objects by their
/// names, and for listings by the prefix that they ask for.
fn boundary_rule(bucket: &str, roles: &[String], prefix: Option<&str>) -> Value {
    let permissions: Vec<String> = roles.iter().map(|role| format!("inRole:{role}")).collect();
    let mut rule = json!({
        "availableResource": format!("//storage.googleapis.com/projects/_/buckets/{bucket}"),
        "availablePermissions": permissions,
    });
    if let Some(prefix) = prefix {
        rule["availabilityCondition"] = json!({ "title": "prefix", "expression": format!(
            "resource.name.startsWith('projects/_/buckets/{bucket}/objects/{prefix}') || \
             api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('{prefix}')"
        ) });
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, order},
    };

    const CONFIG: &str = "google: { gcp: { projects: [acme-prod], provider: \
        projects/123456789012/locations/global/workloadIdentityPools/ci/providers/jobpass } }";
    const ACCOUNT: &str = "service_account: deploy@acme-prod.iam.gserviceaccount.com";

    fn plan(credential: &str, ttl: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
        let bench = Bench::new(CONFIG);
        let permit = bench.permit(credential, ttl, replaced)?;
        let Backend::Remote(backend) = bench.backend() else { panic!("gcp is remote") };
        backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_google_would_refuse_from_every_job_does_not_load() {
        let more = |text: &str| format!("{ACCOUNT}\n{text}");
        let rules = more(&format!("boundary: [{}]", "{ bucket: b, roles: [roles/x] }, ".repeat(11)));
        for (credential, ttl, expected) in [
            (ACCOUNT.to_owned(), "1h", None),
            (ACCOUNT.to_owned(), "61m", Some("3600 seconds at most")),
            ("service_account: deploy".to_owned(), "15m", Some("not a service account's address")),
            ("service_account: deploy@evil.example".to_owned(), "15m", Some("not a service account's address")),
            (ACCOUNT.replace("prod", "test"), "15m", Some("none of the backend's projects")),
            (ACCOUNT.replace("deploy", "\"{{ claims.actor }}").replace(".com", ".com\""), "15m", Some("actor")),
            (ACCOUNT.replace("deploy", "a:b/c"), "15m", Some("'/' is not allowed")),
            (more("scopes: []"), "15m", Some("at least one of Google's OAuth scopes")),
            (more("scopes: [openid]"), "15m", Some("at least one of Google's OAuth scopes")),
            (more("scope: [x]"), "15m", Some("scope")),
            (rules, "15m", Some("10 rules at most")),
            (more("boundary: [{ bucket: b, roles: [owner] }]"), "15m", Some("at least one role")),
            (more("boundary: [{ bucket: B, roles: [roles/x] }]"), "15m", Some("'B' is not allowed")),
            (more("boundary: [{ bucket: b, roles: [roles/x], prefix: \"a'b\" }]"), "15m", Some("is not allowed")),
            (more(&format!("sub: {}", "x".repeat(120))), "15m", Some("longer than")),
        ] {
            let got = plan(&credential, ttl, &[]).map(|_| ());
            match expected {
                None => assert_eq!(got, Ok(()), "{credential}"),
                Some(text) => assert!(got.as_ref().is_err_and(|e| e.contains(text)), "{credential}: {got:?}"),
            }
        }
    }

    #[test]
    fn claims_end_up_where_they_were_meant_or_nowhere() {
        let credential = format!(
            "{ACCOUNT}\nsub: \"{{{{ claims.repository_id }}}}\"\n\
             boundary: [{{ bucket: acme, roles: [roles/storage.objectViewer], prefix: \"r/{{{{ claims.repository_id }}}}/\" }}]"
        );
        let good = plan(&credential, "15m", &[]).expect("planned");
        let rendered: &Rendered = good.rendered.downcast_ref().expect("ours");
        assert_eq!(rendered.subject, "grant:deploy-prod:772002");
        let rule: Value = serde_json::from_str(rendered.boundary.as_deref().expect("a boundary")).expect("JSON");
        let rule = &rule["accessBoundary"]["accessBoundaryRules"][0];
        assert_eq!(rule["availablePermissions"], json!(["inRole:roles/storage.objectViewer"]));
        let condition = rule["availabilityCondition"]["expression"].as_str().expect("a condition");
        assert!(condition.starts_with("resource.name.startsWith('projects/_/buckets/acme/objects/r/772002/') ||"));
        for hostile in ["') || true || ('", "a\\", "a\"b", "a*b", "a\nb", "a\0b", "а", "", &"9".repeat(300)] {
            let refused = plan(&credential, "15m", &[("repository_id", hostile)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.")), "{hostile:?}");
        }
    }

    #[test]
    fn configs() {
        let provider = "projects/1/locations/global/workloadIdentityPools/ci/providers/jobpass";
        for (config, refusal) in [
            ("gcp: { provider: ci }".to_owned(), "provider: expected projects/"),
            (format!("gcp: {{ provider: {} }}", provider.replace('1', "acme")), "by its number"),
            (format!("gcp: {{ provider: {provider}, longest: 13h }}"), "12h at most"),
            (format!("gcp: {{ provider: {provider}, algorithm: EdDSA }}"), "takes ES256 or RS256"),
            (
                format!(
                    "gcp: {{ provider: {provider} }} }}\nb: {{ signed_jwt: {{ audiences: [//iam.googleapis.com/{provider}] }}"
                ),
                "presents to a cloud",
            ),
        ] {
            let error = Bench::new(&format!("a: {{ {config} }}")).backends.err().expect("refused");
            assert!(error.contains(refusal), "{config}: {error}");
        }
    }
}
