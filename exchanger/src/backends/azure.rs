//! `azure`: access tokens of Microsoft Entra applications and managed identities, without a client secret.
//!
//! A token that we sign is the client's assertion (RFC 7523 §2.2) at Entra's v2.0 token endpoint. Entra
//! decides how long its tokens live and cannot take one back, so its leases outlive their jobs and say so.
//! Rules are those of the Microsoft identity platform's documentation: "OAuth 2.0 client credentials flow",
//! "Workload identity federation concepts" and "Configurable token lifetimes".

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, presented,
    presented::{Presented, Presenter},
    registry::BuildContext,
    spec::{self, SpecReader},
    token_endpoint::{DEADLINE, TokenEndpoint},
    upstream::Upstream,
};
use crate::{
    config::Span,
    leases::{Lease, Revocability},
    signing::Algorithm,
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, GrantName};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;
use uuid::Uuid;

/// Entra gives a token 60 to 90 minutes, by chance, unless a policy of the tenant says otherwise.
const TOKEN_LIFETIME: Duration = Duration::from_secs(90 * 60);
/// What such a policy can say.
const POLICY: std::ops::RangeInclusive<Duration> = Duration::from_secs(600)..=Duration::from_secs(86_400);
/// What a federated credential names unless it was made for another cloud.
const DEFAULT_AUDIENCE: &str = "api://AzureADTokenExchange";

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The tenant: its id, or one of its domains.
    pub tenant: String,
    /// The applications and managed identities that grants may name, by client id. Default: any.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub clients: Vec<Uuid>,
    /// Another cloud's authority. Default `https://login.microsoftonline.com`.
    pub authority: Option<String>,
    /// The audience of the token that is presented. Default `api://AzureADTokenExchange`.
    pub audience: Option<String>,
    /// The longest life of a token: `90m`, or what a token lifetime policy of the tenant says.
    pub token_lifetime: Option<Span>,
    /// Private networks in which the authority may lie (CIDR).
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
    /// The client id of the application or managed identity.
    #[schemars(with = "String")]
    pub client_id: Uuid,
    /// What the token is for: `https://management.azure.com/.default` and the like.
    pub scope: String,
    /// What follows `grant:<name>:` in the presented token's `sub`, over stable claims.
    pub sub: Option<String>,
}

impl File {
    /// The audience that the backend presents to Entra.
    pub(super) fn presents(&self) -> &str {
        self.audience.as_deref().unwrap_or(DEFAULT_AUDIENCE)
    }
}

/// A backend that asks Entra.
pub struct Azure {
    identity: String,
    tenant: String,
    clients: Vec<Uuid>,
    presenter: Presenter,
    endpoint: TokenEndpoint,
}

struct Compiled {
    client_id: Uuid,
    scope: String,
    subject: Option<Template>,
}

struct Rendered {
    grant: GrantName,
    client_id: String,
    scope: String,
    subject: String,
}

impl Azure {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        // `common` and the like name no tenant, and Entra takes none of them here.
        if !file.tenant.contains(['-', '.']) || file.tenant.starts_with('.') || !file.tenant.chars().all(plain) {
            return Err("tenant: expected the tenant's id or one of its domains".to_owned());
        }
        let longest = file.token_lifetime.map_or(TOKEN_LIFETIME, |span| span.0);
        if !POLICY.contains(&longest) {
            return Err("token_lifetime: Entra's tokens live 10m to 24h".to_owned());
        }
        // "Only issuers that provide tokens signed using the RS256 algorithm are supported."
        let presenter =
            Presenter::build(context, file.presents().to_owned(), Some(Algorithm::Rs256), &[Algorithm::Rs256])?;
        let authority = file.authority.as_deref().unwrap_or("https://login.microsoftonline.com").trim_end_matches('/');
        let identity = format!("{authority}/{}", file.tenant);
        let url =
            Url::parse(&format!("{identity}/oauth2/v2.0/token")).map_err(|error| format!("authority: {error}"))?;
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, DEADLINE);
        let upstream = Upstream::new("Entra", options, context);
        let endpoint = TokenEndpoint { url, upstream, longest, clock: Arc::clone(&context.clock) };
        Ok(Self { identity, tenant: file.tenant, clients: file.clients, presenter, endpoint })
    }
}

/// RFC 6749 §3.3, without what a URL cannot have.
fn is_scope(scope: &str) -> bool {
    let resource = scope.strip_suffix("/.default");
    resource.is_some_and(|resource| {
        !resource.is_empty() && resource.chars().all(|c| c.is_ascii_graphic() && !"\"\\{}".contains(c))
    })
}

impl Describe for Azure {
    fn kind(&self) -> &'static str {
        "azure"
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
        self.endpoint.check_ttl(&mut reader, grant);
        if !self.clients.is_empty() && !self.clients.contains(&file.client_id) {
            let known: Vec<String> = self.clients.iter().map(Uuid::to_string).collect();
            let help = format!("the backend's clients are: {}", known.join(", "));
            reader.refuse(&["client_id"], "the client is none of the backend's", help);
        }
        if !is_scope(&file.scope) {
            let help = "for example https://management.azure.com/.default";
            reader.refuse(&["scope"], "expected one resource with /.default: a client can ask for nothing less", help);
        }
        let subject = file.sub.as_ref().map(|text| reader.template(&["sub"], text, &presented::SUBJECT));
        let compiled = Compiled { client_id: file.client_id, scope: file.scope, subject: subject.flatten() };
        reader.finish(Some(compiled))
    }

    fn preflight(&self) -> Result<(), String> {
        self.endpoint.upstream.client().map(|_| ()).map_err(|error| error.to_string())
    }
}

impl RemoteBackend for Azure {
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
        self.endpoint.check_order(order)?;
        let rendered = Rendered {
            grant: permit.grant().name().clone(),
            client_id: spec.client_id.to_string(),
            scope: spec.scope.clone(),
            subject: presented::subject(spec.subject.as_ref(), permit)?,
        };
        Ok(Plan {
            object: serde_json::json!({ "client_id": rendered.client_id }),
            rendered: Arc::new(rendered),
            worst_expiry: self.endpoint.worst_expiry(order),
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
            let presented = Presented { grant: &rendered.grant, subject: &rendered.subject, more: () };
            let assertion = self.presenter.sign(order, presented)?;
            let form = [
                ("grant_type", "client_credentials"),
                ("client_id", &rendered.client_id),
                ("scope", &rendered.scope),
                ("client_assertion_type", presented::ASSERTION_TYPE),
                ("client_assertion", assertion.expose()),
            ];
            let (token, expires_at) = self.endpoint.ask(None, &form).await?;
            let credential = Credential::azure_token(&self.tenant, &rendered.client_id, token, &expires_at.to_string());
            Ok(Minted { credential, expires_at })
        })
    }

    fn revoke<'a>(&'a self, _: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async { Err(RemoteError("Entra cannot take an access token back".to_owned())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, order},
    };

    const CONFIG: &str = "entra: { azure: { tenant: acme.example, clients: [00000000-0000-4000-8000-000000000001] } }";
    const SPEC: &str = "client_id: 00000000-0000-4000-8000-000000000001\nscope: https://management.azure.com/.default";

    fn plan(bench: &Bench, credential: &str, ttl: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
        let permit = bench.permit(credential, ttl, replaced)?;
        let Backend::Remote(backend) = bench.backend() else { panic!("azure is remote") };
        backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_entra_would_refuse_from_every_job_does_not_load() {
        let bench = Bench::with_rsa(CONFIG);
        let other = |from: &str, to: &str| SPEC.replace(from, to);
        for (credential, ttl, expected) in [
            (SPEC.to_owned(), "90m", None),
            (SPEC.to_owned(), "89m", Some("lives up to 5400 seconds")),
            (other("0001", "0002"), "90m", Some("none of the backend's")),
            (other("00000000-", "x-"), "90m", Some("UUID")),
            (other("/.default", "/user_impersonation"), "90m", Some("/.default")),
            (other("https://management.azure.com", ""), "90m", Some("/.default")),
            (other("https://management.azure.com", "a b"), "90m", Some("/.default")),
            (format!("{SPEC}\nsub: \"{{{{ claims.actor }}}}\""), "90m", Some("actor")),
            (format!("{SPEC}\nresource: x"), "90m", Some("resource")),
        ] {
            let got = plan(&bench, &credential, ttl, &[]).map(|_| ());
            match expected {
                None => assert_eq!(got, Ok(()), "{credential}"),
                Some(text) => assert!(got.as_ref().is_err_and(|e| e.contains(text)), "{credential}: {got:?}"),
            }
        }
    }

    #[test]
    fn claims_end_up_in_the_subject_or_nowhere() {
        let bench = Bench::with_rsa(CONFIG);
        let credential = format!("{SPEC}\nsub: \"{{{{ claims.repository_id }}}}\"");
        let good = plan(&bench, &credential, "90m", &[]).expect("planned");
        let rendered: &Rendered = good.rendered.downcast_ref().expect("ours");
        assert_eq!(rendered.subject, "grant:deploy-prod:772002");
        for hostile in ["a'b", "a\"b", "a\\b", "a*b", "a\nb", "a\0b", "а", "", &"9".repeat(300)] {
            let refused = plan(&bench, &credential, "90m", &[("repository_id", hostile)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.sub")), "{hostile:?}");
        }
    }

    #[test]
    fn a_token_is_not_said_to_end_before_it_does() {
        let bench = Bench::with_rsa(CONFIG);
        let permit = bench.permit(SPEC, "90m", &[]).expect("a permit");
        let short = Order { expires_at: order(&permit).at + Duration::from_secs(600), ..order(&permit) };
        let Backend::Remote(backend) = bench.backend() else { panic!("remote") };
        assert!(matches!(backend.plan(&permit, &short), Err(MintError::Unfit { field, .. }) if field == "ttl"));
    }

    #[test]
    fn configs() {
        for (config, refusal) in [
            ("azure: { tenant: common }", "tenant: expected"),
            ("azure: { tenant: a/b.example }", "tenant: expected"),
            ("azure: { tenant: acme.example, token_lifetime: 9m }", "10m to 24h"),
            (
                "azure: { tenant: acme.example } }\nb: { signed_jwt: { audiences: [api://AzureADTokenExchange] }",
                "to a cloud",
            ),
        ] {
            let error = Bench::with_rsa(&format!("a: {{ {config} }}")).backends.err().expect("refused");
            assert!(error.contains(refusal), "{config}: {error}");
        }
        let error = Bench::new(CONFIG).backends.err().expect("refused");
        assert!(error.contains("add RS256"), "{error}");
    }
}
