//! `oauth2_client_credentials` and `token_exchange`: access tokens of another authorization server.
//!
//! The first asks as a client of that server (RFC 6749 §4.4), with a key of ours (`private_key_jwt`,
//! RFC 7523) or a client secret. The second trades a token that we sign (RFC 8693). The server alone says
//! how long its tokens live. Where it offers revocation (RFC 7009), the lease keeps the token sealed for that;
//! elsewhere tokens end by themselves.

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, presented,
    presented::{Presented, Presenter},
    registry::BuildContext,
    spec::{self, SpecReader},
    token_endpoint::{DEADLINE, TokenEndpoint},
    upstream::Upstream,
};
use crate::{
    config::{Env, SecretRef, Span},
    leases::{Lease, Revocability},
    outbound::OutboundOptions,
    sealing::Sealing,
    signing::Algorithm,
    store::PendingLease,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode};
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, GrantName, Secret};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// What we sign with and authorization servers read.
const ALGORITHMS: &[Algorithm] = &[Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256];

/// The backend `oauth2_client_credentials` in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCredentialsFile {
    /// The server's token endpoint.
    pub token_url: String,
    /// Who jobpass is there.
    pub client: ClientFile,
    /// The longest life of a token there.
    pub token_lifetime: Span,
    /// The server's revocation endpoint (RFC 7009). With one, tokens are taken back.
    pub revocation_url: Option<String>,
    /// Private networks in which the server may live (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Its own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// The backend `token_exchange` in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenExchangeFile {
    /// The server's token endpoint.
    pub token_url: String,
    /// The audience of the subject token that is presented.
    pub audience: String,
    /// What the subject token is signed with. Default: the first signing key.
    pub algorithm: Option<Algorithm>,
    /// Who jobpass is there, where the server wants a client.
    pub client: Option<ClientFile>,
    /// The longest life of a token there.
    pub token_lifetime: Span,
    /// The server's revocation endpoint (RFC 7009). With one, tokens are taken back.
    pub revocation_url: Option<String>,
    /// Private networks in which the server may live (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Its own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// A client of the other server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// Its id.
    pub id: String,
    /// Its secret (`client_secret_basic`). Without one jobpass signs for itself (`private_key_jwt`).
    pub secret: Option<SecretRef>,
    /// The audience of what it signs. Default: the token endpoint.
    pub audience: Option<String>,
    /// What it signs with. Default: the first signing key.
    pub algorithm: Option<Algorithm>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The scopes to ask for, as templates over stable claims.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The resource to ask for (RFC 8707).
    pub resource: Option<String>,
    /// The audience to ask for: RFC 8693's, and what some servers understand in the place of `resource`.
    pub audience: Option<String>,
    /// What follows `grant:<name>:` in the subject token's `sub`, over stable claims. For `token_exchange`.
    pub sub: Option<String>,
}

/// RFC 6749 §3.3 `scope-token`.
const SCOPE: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'),
    max_len: 256,
    expected: "ASCII without spaces, \" and \\",
};

/// A backend that asks another authorization server.
pub struct OAuth2 {
    kind: &'static str,
    client: Option<Client>,
    /// Signs subject tokens; none where the client asks for itself.
    subject: Option<Presenter>,
    endpoint: TokenEndpoint,
    revocation: Option<Url>,
    sealing: Arc<Sealing>,
}

struct Client {
    id: String,
    proof: Proof,
}

enum Proof {
    Secret(SecretRef, Env),
    Key(Presenter),
}

struct Compiled {
    scopes: Vec<Template>,
    resource: Option<String>,
    audience: Option<String>,
    subject: Option<Template>,
}

struct Rendered {
    grant: GrantName,
    scope: String,
    resource: Option<String>,
    audience: Option<String>,
    subject: String,
}

impl ClientFile {
    fn presents(&self, token_url: &str) -> Option<String> {
        let audience = self.audience.as_deref().unwrap_or(token_url);
        self.secret.is_none().then(|| audience.to_owned())
    }
}

impl ClientCredentialsFile {
    /// The audience of what the client signs.
    pub(super) fn presents(&self) -> Vec<String> {
        self.client.presents(&self.token_url).into_iter().collect()
    }
}

impl TokenExchangeFile {
    /// The audiences of the subject token and of what the client signs.
    pub(super) fn presents(&self) -> Vec<String> {
        let client = self.client.as_ref().and_then(|client| client.presents(&self.token_url));
        [self.audience.clone()].into_iter().chain(client).collect()
    }
}

impl OAuth2 {
    /// Builds the backend `oauth2_client_credentials`.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn client_credentials(file: ClientCredentialsFile, context: &BuildContext) -> Result<Self, String> {
        let client = Some(Client::build(file.client, &file.token_url, context)?);
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, DEADLINE);
        let endpoint = endpoint(&file.token_url, file.token_lifetime.0, options, context)?;
        Self::build("oauth2_client_credentials", client, None, endpoint, file.revocation_url, context)
    }

    /// Builds the backend `token_exchange`.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn token_exchange(file: TokenExchangeFile, context: &BuildContext) -> Result<Self, String> {
        let client = file.client.map(|client| Client::build(client, &file.token_url, context)).transpose()?;
        let subject = Some(Presenter::build(context, file.audience, file.algorithm, ALGORITHMS)?);
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, DEADLINE);
        let endpoint = endpoint(&file.token_url, file.token_lifetime.0, options, context)?;
        Self::build("token_exchange", client, subject, endpoint, file.revocation_url, context)
    }

    fn build(
        kind: &'static str,
        client: Option<Client>,
        subject: Option<Presenter>,
        endpoint: TokenEndpoint,
        revocation: Option<String>,
        context: &BuildContext,
    ) -> Result<Self, String> {
        let revocation = revocation.map(|url| Url::parse(&url).map_err(|error| format!("revocation_url: {error}")));
        let sealing = Arc::clone(&context.sealing);
        Ok(Self { kind, client, subject, endpoint, revocation: revocation.transpose()?, sealing })
    }
}

fn endpoint(
    url: &str,
    longest: Duration,
    options: OutboundOptions,
    context: &BuildContext,
) -> Result<TokenEndpoint, String> {
    let url = Url::parse(url).map_err(|error| format!("token_url: {error}"))?;
    if longest.is_zero() {
        return Err("token_lifetime: say how long a token of that server lives at most".to_owned());
    }
    let upstream = Upstream::new("the authorization server", options, context);
    Ok(TokenEndpoint { url, upstream, longest, clock: Arc::clone(&context.clock) })
}

impl Client {
    fn build(file: ClientFile, token_url: &str, context: &BuildContext) -> Result<Self, String> {
        let audience = file.presents(token_url);
        let proof = match (file.secret, audience) {
            (Some(secret), _) => Proof::Secret(context.secret(secret), context.env.clone()),
            (None, audience) => {
                let audience = audience.unwrap_or_default();
                let presenter = Presenter::build(context, audience, file.algorithm, ALGORITHMS);
                let presenter = presenter.map_err(|error| format!("client.{error}"))?;
                Proof::Key(presenter.issued_by(file.id.clone()))
            }
        };
        Ok(Self { id: file.id, proof })
    }

    /// See [`OAuth2::prove`].
    fn prove(&self, order: &Order, grant: &GrantName) -> Result<Proven<'_>, MintError> {
        match &self.proof {
            Proof::Secret(secret, env) => {
                let authorization = self.basic(secret, env).map_err(MintError::Unavailable)?;
                Ok(Proven { authorization: Some(authorization), assertion: None })
            }
            Proof::Key(presenter) => {
                let assertion = presenter.sign(order, Presented { grant, subject: &self.id, more: () })?;
                Ok(Proven { authorization: None, assertion: Some((&self.id, assertion)) })
            }
        }
    }

    /// RFC 6749 §2.3.1: id and secret as forms have them, then as HTTP Basic.
    fn basic(&self, secret: &SecretRef, env: &Env) -> Result<HeaderValue, String> {
        let secret = secret.read(env).map_err(|error| format!("client.secret: {error}"))?;
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = Zeroizing::new(format!("{}:{}", encoded(&self.id), *Zeroizing::new(encoded(secret.expose()))));
        let text = Zeroizing::new(format!("Basic {}", *Zeroizing::new(STANDARD.encode(pair.as_bytes()))));
        let mut value = HeaderValue::try_from(&*text).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How one request proves which client it is from.
#[derive(Default)]
struct Proven<'a> {
    authorization: Option<HeaderValue>,
    assertion: Option<(&'a str, Secret)>,
}

impl Proven<'_> {
    /// What it puts into the form.
    fn form(&self) -> impl Iterator<Item = (&str, &str)> {
        self.assertion.iter().flat_map(|(id, assertion)| {
            [
                ("client_id", *id),
                ("client_assertion_type", presented::ASSERTION_TYPE),
                ("client_assertion", assertion.expose()),
            ]
        })
    }
}

impl OAuth2 {
    /// The client's proof for one request; none where there is no client.
    fn prove(&self, order: &Order, grant: &GrantName) -> Result<Proven<'_>, MintError> {
        self.client.as_ref().map_or_else(|| Ok(Proven::default()), |client| client.prove(order, grant))
    }
}

impl Describe for OAuth2 {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn identity(&self) -> &str {
        self.endpoint.url.as_str()
    }

    fn compile_spec(
        &self,
        credential: &CredentialSource<'_>,
        grant: &GrantContext<'_>,
    ) -> Result<Spec, Vec<Diagnostic>> {
        let file: SpecFile = credential.parse().map_err(|error| vec![error])?;
        let mut reader = SpecReader::new(credential, grant);
        if self.revocation.is_none() {
            self.endpoint.check_ttl(&mut reader, grant);
        }
        let mut scopes = Vec::with_capacity(file.scopes.len());
        for (index, scope) in file.scopes.iter().enumerate() {
            if scope.is_empty() {
                reader.refuse(&["scopes", &index.to_string()], "this scope is empty", "take it away");
            }
            scopes.extend(reader.template(&["scopes", &index.to_string()], scope, &SCOPE));
        }
        if file.resource.as_ref().is_some_and(|resource| Url::parse(resource).is_err() || resource.contains('#')) {
            reader.refuse(
                &["resource"],
                "expected an absolute URI without a fragment",
                "for example https://api.example",
            );
        }
        if file.sub.is_some() && self.subject.is_none() {
            reader.refuse(&["sub"], "no subject token is presented by client credentials", "take it away");
        }
        let subject = file.sub.as_ref().map(|text| reader.template(&["sub"], text, &presented::SUBJECT));
        let (resource, audience) = (file.resource, file.audience);
        reader.finish(Some(Compiled { scopes, resource, audience, subject: subject.flatten() }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.endpoint.upstream.client().map_err(|error| error.to_string())?;
        match &self.client {
            Some(client @ Client { proof: Proof::Secret(secret, env), .. }) => client.basic(secret, env).map(|_| ()),
            _ => Ok(()),
        }
    }
}

impl RemoteBackend for OAuth2 {
    fn revocability(&self) -> Revocability {
        if self.revocation.is_some() { Revocability::ByToken } else { Revocability::None }
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn settle(&self) -> Duration {
        Duration::ZERO
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        if self.revocation.is_none() {
            self.endpoint.check_order(order)?;
        }
        let mut scopes = Vec::with_capacity(spec.scopes.len());
        for (index, scope) in spec.scopes.iter().enumerate() {
            scopes.push(spec::render(&format!("credential.scopes.{index}"), scope, permit)?);
        }
        let rendered = Rendered {
            grant: permit.grant().name().clone(),
            scope: scopes.join(" "),
            resource: spec.resource.clone(),
            audience: spec.audience.clone(),
            subject: presented::subject(spec.subject.as_ref(), permit)?,
        };
        Ok(Plan {
            object: serde_json::json!({ "scope": rendered.scope }),
            rendered: Arc::new(rendered),
            worst_expiry: self.endpoint.worst_expiry(order),
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
            let said = Presented { grant: &rendered.grant, subject: &rendered.subject, more: () };
            let subject = self.subject.as_ref().map(|presenter| presenter.sign(order, said)).transpose()?;
            let proof = self.prove(order, &rendered.grant)?;
            let mut form = match &subject {
                None => vec![("grant_type", "client_credentials")],
                Some(token) => vec![
                    ("grant_type", TOKEN_EXCHANGE),
                    ("subject_token", token.expose()),
                    ("subject_token_type", JWT),
                    ("requested_token_type", ACCESS_TOKEN),
                ],
            };
            form.extend(proof.form());
            let scope = (!rendered.scope.is_empty()).then_some(&rendered.scope);
            let wanted =
                [("scope", scope), ("resource", rendered.resource.as_ref()), ("audience", rendered.audience.as_ref())];
            form.extend(wanted.into_iter().filter_map(|(name, value)| Some((name, value?.as_str()))));
            let (token, told) = self.endpoint.ask(proof.authorization.clone(), &form).await?;
            if self.revocation.is_none() {
                return Ok(Minted { credential: Credential::bearer(token), expires_at: told });
            }
            let kept = self.sealing.keep(pending, &token);
            kept.map_err(|error| MintError::Unclear(error.to_string()))?;
            // One that lives longer is taken back when the lease is over.
            Ok(Minted { credential: Credential::bearer(token), expires_at: told.min(order.expires_at) })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let failed = |error: &dyn std::fmt::Display| RemoteError(error.to_string());
            let url = self.revocation.as_ref().ok_or_else(|| failed(&"no `revocation_url` is configured"))?;
            let token = self.sealing.open(lease).map_err(|error| failed(&error))?;
            let now = self.endpoint.clock.now();
            let order = Order { lease: lease.id(), at: now, expires_at: now, public_key: None, csr: None };
            let proof = self.prove(&order, &lease.subject().grant).map_err(|error| failed(&error))?;
            let mut form = vec![("token", token.expose()), ("token_type_hint", "access_token")];
            form.extend(proof.form());
            let answer = self.endpoint.upstream.send_form(url, proof.authorization.clone(), &form).await;
            match answer.map_err(|error| failed(&error))?.status {
                // RFC 7009 §2.2: also for a token that is none any more.
                StatusCode::OK => Ok(Revoked::Gone),
                status => {
                    Err(failed(&format!("the authorization server answered {} to the revocation", status.as_u16())))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, order},
    };

    const CLIENT: &str = "partner: { oauth2_client_credentials: { token_url: https://login.example/token, \
                          client: { id: acme, secret: \"env:SECRET\" }, token_lifetime: 10m } }";
    const EXCHANGE: &str = "partner: { token_exchange: { token_url: https://login.example/token, \
                            audience: https://login.example, token_lifetime: 10m } }";

    fn plan(config: &str, credential: &str, ttl: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
        let bench = Bench::new(config);
        let permit = bench.permit(credential, ttl, replaced)?;
        let Backend::Remote(backend) = bench.backend() else { panic!("it is remote") };
        backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
    }

    #[test]
    fn specs() {
        for (config, credential, ttl, expected) in [
            (CLIENT, "scopes: [deploy:read, \"repo:{{ claims.repository_id }}\"]", "10m", None),
            (CLIENT, "resource: https://api.example", "10m", None),
            (EXCHANGE, "sub: \"{{ claims.repository_id }}\"", "10m", None),
            (CLIENT, "scopes: []", "9m", Some("lives up to 600 seconds")),
            (CLIENT, "scopes: [a b]", "10m", Some("' ' is not allowed")),
            (CLIENT, "scopes: [\"\"]", "10m", Some("this scope is empty")),
            (CLIENT, "scopes: [\"{{ claims.actor }}\"]", "10m", Some("actor")),
            (CLIENT, "resource: api", "10m", Some("absolute URI")),
            (CLIENT, "resource: \"https://api.example/#x\"", "10m", Some("without a fragment")),
            (CLIENT, "sub: x", "10m", Some("no subject token")),
            (EXCHANGE, "sub: \"{{ claims.actor }}\"", "10m", Some("actor")),
            (EXCHANGE, "scope: [x]", "10m", Some("scope")),
        ] {
            let got = plan(config, credential, ttl, &[]).map(|_| ());
            match expected {
                None => assert_eq!(got, Ok(()), "{credential}"),
                Some(text) => assert!(got.as_ref().is_err_and(|e| e.contains(text)), "{credential}: {got:?}"),
            }
        }
    }

    #[test]
    fn claims_end_up_where_they_were_meant_or_nowhere() {
        for (config, field) in
            [(CLIENT, "scopes: [\"r:{{ claims.repository_id }}\"]"), (EXCHANGE, "sub: \"{{ claims.repository_id }}\"")]
        {
            let good = plan(config, field, "10m", &[]).expect("planned");
            let rendered: &Rendered = good.rendered.downcast_ref().expect("ours");
            let subject = if config == EXCHANGE { "grant:deploy-prod:772002" } else { "grant:deploy-prod" };
            assert_eq!(
                (&*rendered.scope, &*rendered.subject),
                (if config == CLIENT { "r:772002" } else { "" }, subject)
            );
            for hostile in ["a b", "a\"b", "a\\b", "a\nb", "a\0b", "а", "", &"9".repeat(300)] {
                let refused = plan(config, field, "10m", &[("repository_id", hostile)]).err();
                assert!(refused.is_some_and(|error| error.starts_with("credential.s")), "{field}: {hostile:?}");
            }
        }
    }

    #[test]
    fn configs() {
        for (config, refusal) in [
            (CLIENT.replace("https://login.example/token", "login"), "token_url:"),
            (CLIENT.replace("10m", "0s"), "token_lifetime:"),
            (CLIENT.replace("secret: \"env:SECRET\"", "algorithm: RS256"), "client.algorithm:"),
            (
                format!("{EXCHANGE}\nx: {{ signed_jwt: {{ audiences: [https://login.example] }} }}"),
                "presents to a cloud",
            ),
        ] {
            let error = Bench::new(&config).backends.err().expect("refused");
            assert!(error.contains(refusal), "{config}: {error}");
        }
        let missing = Bench::new(&CLIENT.replace("env:SECRET", "env:MISSING"));
        let error = missing.backends.expect("built").preflight().expect_err("no secret").to_string();
        assert!(error.contains("client.secret: the secret env:MISSING is not there"), "{error}");
    }
}
