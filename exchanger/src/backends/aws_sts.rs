//! `aws_sts`: AWS sessions, by `AssumeRoleWithWebIdentity` with a token that we sign (keyless), or by
//! `AssumeRole` with the server's own AWS identity.
//!
//! AWS cannot take a session back, so its leases outlive their jobs and say so; where the config wants it, the
//! session is denied everything until it ends. Limits are those of
//! the STS API reference (`AssumeRole`, `AssumeRoleWithWebIdentity`) and of the IAM user guide, "IAM
//! and STS quotas"; they are checked when a grant is loaded, where AWS would refuse every job.

mod denial;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec, presented,
    presented::{Presented, Presenter},
    registry::BuildContext,
    spec::{self, SpecReader},
    upstream,
};
use crate::{
    clock::{Clock, Timestamp},
    leases::{Ending, Lease, Revocability, State},
    signing::Algorithm,
    store::PendingLease,
};
use aws_sdk_sts::{
    Client,
    config::{BehaviorVersion, Region, http::HttpResponse, retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
    types::{Credentials, PolicyDescriptorType, Tag},
};
use denial::{Denial, DenialFile, Session};
use futures_util::future::BoxFuture;
use http::StatusCode;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, GrantName, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::OnceCell;

/// STS gives no session shorter than this, in seconds.
const MIN_SECONDS: u32 = 900;
/// A role's `MaxSessionDuration` is never longer, in seconds.
const MAX_SECONDS: u32 = 43_200;
/// Tags of one session.
const MAX_TAGS: usize = 50;
/// Managed policies of one session.
const MAX_POLICY_ARNS: usize = 10;
/// Characters of a session policy.
const MAX_POLICY_CHARS: usize = 2048;
/// How long STS may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Error codes by which AWS says that it is asked too often, with a status that other refusals have too.
const THROTTLES: &[&str] = &["Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded"];
/// What STS wants in `aud` unless the IAM identity provider says otherwise.
const DEFAULT_AUDIENCE: &str = "sts.amazonaws.com";

/// How the server asks STS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `AssumeRoleWithWebIdentity` with a token that jobpass signs: there is no AWS key anywhere.
    #[default]
    WebIdentity,
    /// `AssumeRole` with the server's own AWS identity, found where AWS's tools find theirs.
    AssumeRole,
}

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// How the server asks. Default `web_identity`.
    #[serde(default)]
    pub mode: Mode,
    /// The region whose STS endpoint is asked.
    pub region: String,
    /// The accounts whose roles grants may name. Default: any.
    #[serde(default)]
    pub accounts: Vec<String>,
    /// The audience of the token that is presented. Default `sts.amazonaws.com`. For `web_identity`.
    pub audience: Option<String>,
    /// What the presented token is signed with: RS256 or ES256. Default: the first such signing key.
    pub algorithm: Option<Algorithm>,
    /// Another endpoint, such as a VPC endpoint's.
    pub endpoint_url: Option<String>,
    /// Denies a session everything when its lease ends before it, by an inline policy on its role. Default: it is
    /// left to end by itself.
    pub early_revocation: Option<DenialFile>,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The role to assume.
    pub role_arn: String,
    /// What follows `grant:<name>:` in the presented token's `sub`, over stable claims. For `web_identity`.
    pub sub: Option<String>,
    /// Session tags, as templates.
    #[serde(default)]
    pub session_tags: BTreeMap<String, String>,
    /// `SourceIdentity`, a template.
    pub source_identity: Option<String>,
    /// An inline session policy: it narrows what the role may do, and never widens it.
    pub session_policy: Option<BTreeMap<String, serde_json::Value>>,
    /// Managed session policies.
    #[serde(default)]
    pub policy_arns: Vec<String>,
}

const TAG_VALUE: FieldRules =
    FieldRules { authority: false, allowed: tag_char, max_len: 256, expected: "letters, digits, spaces and _.:/=+-@" };

const SOURCE_IDENTITY: FieldRules =
    FieldRules { authority: false, allowed: name_char, max_len: 64, expected: "letters, digits and _+=,.@-" };

/// `[\p{L}\p{Z}\p{N}_.:/=+\-@]`
fn tag_char(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}

/// `[\w+=,.@-]`
fn name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

/// A backend that asks AWS STS.
pub struct AwsSts {
    mode: Mode,
    region: String,
    accounts: Vec<String>,
    /// For `web_identity`.
    presenter: Option<Presenter>,
    endpoint_url: Option<String>,
    denial: Option<Denial>,
    clock: Arc<dyn Clock>,
    identity: String,
    client: OnceCell<Client>,
}

struct Compiled {
    role_arn: String,
    subject: Option<Template>,
    tags: Vec<(String, Template)>,
    source_identity: Option<Template>,
    policy: Option<String>,
    policy_arns: Vec<String>,
}

/// What one request says.
struct Rendered {
    grant: GrantName,
    role_arn: String,
    subject: String,
    tags: Vec<(String, String)>,
    source_identity: Option<String>,
    policy: Option<String>,
    policy_arns: Vec<String>,
    seconds: u32,
}

impl File {
    /// The audience that the backend presents to AWS.
    #[must_use]
    pub fn presents(&self) -> Option<&str> {
        (self.mode == Mode::WebIdentity).then(|| self.audience.as_deref().unwrap_or(DEFAULT_AUDIENCE))
    }
}

impl AwsSts {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let presenter = file.presents().map(|audience| {
            let takes = [Algorithm::Es256, Algorithm::Rs256];
            Presenter::build(context, audience.to_owned(), file.algorithm, &takes)
        });
        if let Some(account) = file.accounts.iter().find(|account| !is_account(account)) {
            return Err(format!("accounts: `{account}` is not an account id of 12 digits"));
        }
        let denial = file.early_revocation.map(|file| Denial::build(file, context));
        Ok(Self {
            identity: file.endpoint_url.clone().unwrap_or_else(|| format!("sts.{}", file.region)),
            presenter: presenter.transpose()?,
            mode: file.mode,
            region: file.region,
            accounts: file.accounts,
            endpoint_url: file.endpoint_url,
            denial: denial.transpose().map_err(|why| format!("early_revocation.{why}"))?,
            clock: Arc::clone(&context.clock),
            client: OnceCell::new(),
        })
    }

    /// Made when it is first needed: finding the server's own identity may ask the machine's metadata.
    async fn client(&self) -> &Client {
        self.client
            .get_or_init(|| async {
                let timeouts = TimeoutConfig::builder().operation_timeout(DEADLINE).build();
                let mut config = match self.mode {
                    Mode::WebIdentity => {
                        aws_sdk_sts::config::Builder::new().behavior_version(BehaviorVersion::latest())
                    }
                    Mode::AssumeRole => {
                        let loaded = aws_config::defaults(BehaviorVersion::latest());
                        let region = Region::new(self.region.clone());
                        aws_sdk_sts::config::Builder::from(&loaded.region(region).load().await)
                    }
                };
                config = config
                    .region(Region::new(self.region.clone()))
                    .timeout_config(timeouts)
                    // A second request could make a second session: the job asks again, with a new lease.
                    .retry_config(RetryConfig::disabled());
                if let Some(url) = &self.endpoint_url {
                    config = config.endpoint_url(url);
                }
                Client::from_conf(config.build())
            })
            .await
    }

    /// The token that proves to AWS that it is us.
    fn presented(&self, rendered: &Rendered, order: &Order) -> Result<Secret, MintError> {
        let presenter =
            self.presenter.as_ref().ok_or_else(|| spec::unfit("mode", &"no token is presented in this mode"))?;
        let tags: BTreeMap<&str, [&str; 1]> =
            rendered.tags.iter().map(|(key, value)| (key.as_str(), [value.as_str()])).collect();
        let more = SessionClaims {
            tags: (!tags.is_empty()).then_some(PrincipalTags { principal_tags: tags }),
            source_identity: rendered.source_identity.as_deref(),
        };
        presenter.sign(order, Presented { grant: &rendered.grant, subject: &rendered.subject, more })
    }

    async fn ask(&self, order: &Order, rendered: &Rendered, name: &str) -> Result<Option<Credentials>, MintError> {
        let client = self.client().await;
        let seconds = i32::try_from(rendered.seconds).unwrap_or(i32::MAX);
        let policies = |arns: &[String]| -> Option<Vec<PolicyDescriptorType>> {
            let all = arns.iter().map(|arn| PolicyDescriptorType::builder().arn(arn).build());
            (!arns.is_empty()).then(|| all.collect())
        };
        match self.mode {
            Mode::WebIdentity => {
                let token = self.presented(rendered, order)?;
                let request = client
                    .assume_role_with_web_identity()
                    .role_arn(&rendered.role_arn)
                    .role_session_name(name)
                    .web_identity_token(token.expose())
                    .duration_seconds(seconds)
                    .set_policy(rendered.policy.clone())
                    .set_policy_arns(policies(&rendered.policy_arns));
                Ok(request.send().await.map_err(|error| refused(&error))?.credentials)
            }
            Mode::AssumeRole => {
                let tags: Result<Vec<Tag>, _> =
                    rendered.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
                let tags = tags.map_err(|error| MintError::Refused(error.to_string()))?;
                let request = client
                    .assume_role()
                    .role_arn(&rendered.role_arn)
                    .role_session_name(name)
                    .duration_seconds(seconds)
                    .set_policy(rendered.policy.clone())
                    .set_policy_arns(policies(&rendered.policy_arns))
                    .set_tags((!tags.is_empty()).then_some(tags))
                    .set_source_identity(rendered.source_identity.clone());
                Ok(request.send().await.map_err(|error| refused(&error))?.credentials)
            }
        }
    }
}

/// AWS's own claims of the presented token (IAM user guide, "Pass session tags in AWS STS").
#[derive(Serialize)]
struct SessionClaims<'a> {
    #[serde(rename = "https://aws.amazon.com/tags", skip_serializing_if = "Option::is_none")]
    tags: Option<PrincipalTags<'a>>,
    #[serde(rename = "https://aws.amazon.com/source_identity", skip_serializing_if = "Option::is_none")]
    source_identity: Option<&'a str>,
}

#[derive(Serialize)]
struct PrincipalTags<'a> {
    principal_tags: BTreeMap<&'a str, [&'a str; 1]>,
}

/// What STS refused made nothing. Everything else may have made a session, also what the SDK calls an error of
/// the service: a failure of the server, and an answer that it cannot read.
fn refused<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> MintError {
    match error {
        SdkError::ConstructionFailure(_) => MintError::Refused("the request to STS could not be built".to_owned()),
        SdkError::ServiceError(refusal) => {
            let (answer, error) = (refusal.raw(), refusal.err());
            let (code, message) = (error.code().unwrap_or("unknown"), error.message().unwrap_or_default());
            let status = match StatusCode::from_u16(answer.status().as_u16()) {
                _ if THROTTLES.contains(&code) => StatusCode::TOO_MANY_REQUESTS,
                status => status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            };
            let rest = answer.headers().get("retry-after").and_then(|seconds| seconds.parse().ok());
            upstream::not_made("STS", status, rest.map(Duration::from_secs), &format!(" ({code}: {message})"))
        }
        SdkError::DispatchFailure(failure) if failure.is_user() => {
            MintError::Unavailable("STS could not be asked: the connection could not be made".to_owned())
        }
        SdkError::ResponseError(_) => MintError::Unclear("STS answered what cannot be read".to_owned()),
        _ => MintError::OutcomeUnknown("STS did not answer as it should".to_owned()),
    }
}

impl Describe for AwsSts {
    fn kind(&self) -> &'static str {
        "aws_sts"
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
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&grant.ttl()) {
            let message = format!(
                "an AWS session lives {MIN_SECONDS} to {MAX_SECONDS} seconds, and this grant's `ttl` is {}",
                grant.ttl()
            );
            reader.refuse(&[], message, "set `ttl` to 15m or more, and not beyond the role's MaxSessionDuration");
        }
        match account_of(&file.role_arn) {
            None => reader.refuse(
                &["role_arn"],
                "this is not a role's ARN",
                "for example arn:aws:iam::123456789012:role/deploy",
            ),
            Some(account) if !self.accounts.is_empty() && !self.accounts.iter().any(|known| known == account) => {
                let help = format!("the backend's accounts are: {}", self.accounts.join(", "));
                reader.refuse(&["role_arn"], "the role is in none of the backend's accounts", help);
            }
            Some(_) => {}
        }
        if file.sub.is_some() && self.mode == Mode::AssumeRole {
            reader.refuse(&["sub"], "no token is presented in mode assume_role", "take it away");
        }
        if file.session_tags.len() > MAX_TAGS {
            reader.refuse(&["session_tags"], format!("a session has {MAX_TAGS} tags at most"), "take some away");
        }
        for key in file.session_tags.keys() {
            let fits = (1..=128).contains(&key.chars().count()) && key.chars().all(tag_char);
            if !fits || key.to_ascii_lowercase().starts_with("aws:") {
                let help = "use 1 to 128 letters, digits, spaces and _.:/=+-@, and do not begin with aws:";
                reader.refuse(&["session_tags", key], "this is not a tag key", help);
            }
        }
        if file.policy_arns.len() > MAX_POLICY_ARNS {
            reader.refuse(
                &["policy_arns"],
                format!("a session has {MAX_POLICY_ARNS} managed policies at most"),
                "take some away",
            );
        }
        let policy = file.session_policy.map(|policy| serde_json::Value::from_iter(policy).to_string());
        if policy.as_ref().is_some_and(|policy| policy.chars().count() > MAX_POLICY_CHARS) {
            let message = format!("a session policy has {MAX_POLICY_CHARS} characters at most");
            reader.refuse(&["session_policy"], message, "use `policy_arns` for what is long");
        }
        let subject = file.sub.as_ref().map(|text| reader.template(&["sub"], text, &presented::SUBJECT));
        let source = file.source_identity.as_ref();
        let source_identity = source.map(|text| reader.template(&["source_identity"], text, &SOURCE_IDENTITY));
        let tags = reader.templates("session_tags", &file.session_tags, &TAG_VALUE);
        reader.finish(Some(Compiled {
            role_arn: file.role_arn,
            subject: subject.flatten(),
            tags,
            source_identity: source_identity.flatten(),
            policy,
            policy_arns: file.policy_arns,
        }))
    }
}

impl RemoteBackend for AwsSts {
    fn revocability(&self) -> Revocability {
        if self.denial.is_some() { Revocability::ByName } else { Revocability::None }
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn settle(&self) -> Duration {
        Duration::ZERO
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let seconds = u32::try_from(order.expires_at.since(order.at).as_secs()).unwrap_or(u32::MAX);
        if seconds < MIN_SECONDS {
            return Err(spec::unfit("ttl", &format!("an AWS session lives {MIN_SECONDS} seconds at least")));
        }
        let grant = permit.grant().name().clone();
        let tag = |(key, template): &(String, Template)| {
            spec::render(&format!("credential.session_tags.{key}"), template, permit).map(|value| (key.clone(), value))
        };
        let source = spec.source_identity.as_ref();
        let source_identity = source.map(|t| spec::render("credential.source_identity", t, permit)).transpose()?;
        if source_identity.as_ref().is_some_and(|text| text.len() < 2) {
            return Err(spec::unfit("credential.source_identity", &"AWS wants two characters at least"));
        }
        let rendered = Rendered {
            grant,
            role_arn: spec.role_arn.clone(),
            subject: presented::subject(spec.subject.as_ref(), permit)?,
            tags: spec.tags.iter().map(tag).collect::<Result<_, _>>()?,
            source_identity,
            policy: spec.policy.clone(),
            policy_arns: spec.policy_arns.clone(),
            seconds,
        };
        // STS counts from when it acts, which is before the deadline.
        let worst_expiry = order.expires_at + DEADLINE;
        let session = Session { role_arn: rendered.role_arn.clone(), until: worst_expiry.secs() + 1 };
        Ok(Plan {
            object: serde_json::to_value(session).unwrap_or_default(),
            rendered: Arc::new(rendered),
            worst_expiry,
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
            let credentials = self.ask(order, rendered, &pending.remote_name()).await?;
            let credentials =
                credentials.ok_or_else(|| MintError::Unclear("STS answered without credentials".to_owned()))?;
            let expires_at = SystemTime::try_from(*credentials.expiration())
                .ok()
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
                .and_then(|since| i64::try_from(since.as_secs()).ok())
                .map(Timestamp::from_secs)
                .ok_or_else(|| MintError::Unclear("STS answered with an expiry that is none".to_owned()))?;
            let credential = Credential::aws_session(
                credentials.access_key_id(),
                credentials.secret_access_key().into(),
                credentials.session_token().into(),
                &expires_at.to_string(),
            );
            Ok(Minted { credential, expires_at })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            if let State::Revoking { because: Ending::Expired, .. } = lease.state() {
                return Ok(Revoked::Gone); // STS said when it ends, and that is over
            }
            let denial = self.denial.as_ref();
            let denial = denial.ok_or_else(|| RemoteError("put `early_revocation` back into the config".to_owned()))?;
            let session = Session::of(lease);
            let session =
                session.ok_or_else(|| RemoteError("the lease does not say which session it is".to_owned()))?;
            if self.clock.now() < session.until() {
                denial.put(lease, &session).await.map_err(RemoteError)?;
                Ok(Revoked::Barred(session.until()))
            } else {
                denial.remove(lease, &session).await.map_err(RemoteError)?;
                Ok(Revoked::Gone)
            }
        })
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// The account in a role's ARN: `arn:<partition>:iam::<account>:role/<path and name>`.
fn account_of(arn: &str) -> Option<&str> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts[..] else { return None };
    let name = resource.strip_prefix("role/")?;
    let named =
        (1..=512).contains(&name.len()) && !name.ends_with('/') && name.chars().all(|c| name_char(c) || c == '/');
    (partition.starts_with("aws") && is_account(account) && named).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, order},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    const CONFIG: &str = "aws: { aws_sts: { region: eu-central-1, accounts: [\"123456789012\"] } }";
    const ROLE: &str = "role_arn: arn:aws:iam::123456789012:role/deploy-api";

    #[test]
    fn what_aws_would_refuse_from_every_job_does_not_load() {
        let bench = Bench::new(CONFIG);
        let long = format!("{ROLE}\nsession_policy: {{ Statement: \"{}\" }}", "x".repeat(2048));
        for (credential, ttl, expected) in [
            (ROLE, "15m", None),
            (ROLE, "899s", Some("900 to 43200 seconds")),
            (ROLE, "13h", Some("900 to 43200 seconds")),
            ("role_arn: deploy-api", "15m", Some("not a role's ARN")),
            ("role_arn: arn:aws:iam::999999999999:role/x", "15m", Some("none of the backend's accounts")),
            (&format!("{ROLE}\nsession_tags: {{ \"aws:x\": y }}"), "15m", Some("not a tag key")),
            (&format!("{ROLE}\nsession_tags: {{ \"a*b\": y }}"), "15m", Some("not a tag key")),
            (&format!("{ROLE}\nsub: \"{{{{ claims.actor }}}}\""), "15m", Some("actor")),
            (&long, "15m", Some("2048 characters at most")),
        ] {
            let got = bench.permit(credential, ttl, &[]).map(|_| ());
            match expected {
                None => assert_eq!(got, Ok(()), "{credential}"),
                Some(text) => assert!(got.as_ref().is_err_and(|error| error.contains(text)), "{credential}: {got:?}"),
            }
        }
    }

    #[test]
    fn the_presented_token_says_who_asks() {
        let bench = Bench::new(CONFIG);
        let credential = format!(
            "{ROLE}\nsub: \"repository_id:{{{{ claims.repository_id }}}}\"\nsource_identity: \"run-{{{{ claims.run_id }}}}\"\n\
             session_tags: {{ repository: \"{{{{ claims.repository }}}}\" }}"
        );
        let permit = bench.permit(
            &credential,
            "15m",
            &[("repository_id", "772002"), ("repository", "acme/api"), ("run_id", "7")],
        );
        let permit = permit.expect("a permit");
        let order = order(&permit);
        let backend =
            AwsSts::build(serde_saphyr::from_str("{ region: eu-central-1 }").expect("config"), &bench.context)
                .expect("built");
        let plan = backend.plan(&permit, &order).expect("a plan");
        let rendered: &Rendered = spec::rendered(&plan.rendered).expect("ours");
        let token = backend.presented(rendered, &order).expect("signed");
        let payload = token.expose().split('.').nth(1).expect("a payload");
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64url")).expect("JSON");
        assert_eq!(claims["aud"], "sts.amazonaws.com");
        assert_eq!(claims["sub"], "grant:deploy-prod:repository_id:772002");
        assert_eq!(claims["https://aws.amazon.com/tags"], json!({ "principal_tags": { "repository": ["acme/api"] } }));
        assert_eq!(claims["https://aws.amazon.com/source_identity"], "run-7");
        assert!(bench.context.keys.verify_own(token.expose()).is_none(), "it revokes nothing");
    }

    #[test]
    fn no_job_gets_a_token_that_could_pass_for_ours() {
        let config = format!("{CONFIG}\noidc: {{ signed_jwt: {{ audiences: [sts.amazonaws.com] }} }}");
        let bench = Bench::new(&config);
        assert!(bench.backends.as_ref().is_err_and(|error| error.contains("presents to a cloud")));
    }

    #[test]
    fn a_session_is_not_cut_short_by_asking_for_less() {
        let bench = Bench::new(CONFIG);
        let permit = bench.permit(ROLE, "15m", &[]).expect("a permit");
        let short = Order { expires_at: order(&permit).at + Duration::from_secs(60), ..order(&permit) };
        let Backend::Remote(backend) = bench.backend() else { panic!("remote") };
        assert!(matches!(backend.plan(&permit, &short), Err(MintError::Unfit { field, .. }) if field == "ttl"));
    }
}
