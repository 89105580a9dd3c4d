//! Taking a session's rights away before it ends: an inline policy on its role that denies this one session
//! everything (IAM user guide, "Revoke IAM role temporary security credentials"), and that goes when the session
//! has ended. The session is told apart by its name, which is the lease's (`aws:userid` is `role-id:session-name`).

use crate::{
    backends::{
        aws_identity::AwsIdentity,
        registry::BuildContext,
        upstream::{self, Upstream},
    },
    clock::Timestamp,
    leases::Lease,
};
use http::{HeaderValue, Request, header};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::{Url, form_urlencoded::Serializer};

/// How sessions are taken back.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DenialFile {
    /// IAM's endpoint. Default `https://iam.amazonaws.com`.
    pub endpoint_url: Option<String>,
    /// The region that its requests are signed for. Default `us-east-1`, as for all of the partition `aws`.
    pub region: Option<String>,
    /// Private networks in which the endpoint may lie (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// What a lease remembers of its session.
#[derive(Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) role_arn: String,
    /// The session has certainly ended by then, in epoch seconds.
    pub(super) until: i64,
}

/// IAM, as far as this needs it.
pub(super) struct Denial {
    url: Url,
    upstream: Upstream,
    identity: AwsIdentity,
}

impl Denial {
    pub(super) fn build(file: DenialFile, context: &BuildContext) -> Result<Self, String> {
        let url = Url::parse(file.endpoint_url.as_deref().unwrap_or("https://iam.amazonaws.com"));
        let options = context.outbound(file.allow_networks, None, file.insecure_http, super::DEADLINE);
        Ok(Self {
            url: url.map_err(|error| format!("endpoint_url: {error}"))?,
            upstream: Upstream::new("IAM", options, context),
            identity: AwsIdentity::new("iam", file.region.as_deref().unwrap_or("us-east-1"), context),
        })
    }

    /// Denies a lease's session everything.
    pub(super) async fn put(&self, lease: &Lease, session: &Session) -> Result<(), String> {
        let name = lease.id().remote_name();
        let of = json!({ "StringLike": { "aws:userid": format!("*:{name}") } });
        let statement = json!({ "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": of });
        let policy = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
        self.call("PutRolePolicy", &name, session, Some(&policy)).await
    }

    /// Takes the denial away; that there is none is as good.
    pub(super) async fn remove(&self, lease: &Lease, session: &Session) -> Result<(), String> {
        self.call("DeleteRolePolicy", &lease.id().remote_name(), session, None).await
    }

    /// IAM API reference, `PutRolePolicy` and `DeleteRolePolicy`.
    async fn call(&self, action: &str, name: &str, session: &Session, policy: Option<&str>) -> Result<(), String> {
        let role = session.role_arn.rsplit('/').next().unwrap_or_default();
        let fields = [("Action", action), ("Version", "2010-05-08"), ("RoleName", role), ("PolicyName", name)];
        let document = policy.map(|policy| ("PolicyDocument", policy));
        let form = Serializer::new(String::new()).extend_pairs(fields.into_iter().chain(document)).finish();
        let mut request = Request::new(form.into_bytes());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.url.as_str().parse().map_err(|_| "the endpoint is no address".to_owned())?;
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        self.identity.sign(&mut request).await.map_err(|error| error.to_string())?;
        let answer = self.upstream.send(request).await;
        let answer = answer.map_err(|error| upstream::unanswered(&error).to_string())?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status.is_success() || (policy.is_none() && text.contains("<Code>NoSuchEntity</Code>")) {
            return Ok(());
        }
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        let code: String =
            code.map_or("", |(code, _)| code).chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        Err(format!("IAM answered {} {code} to {action}", answer.status.as_u16()))
    }
}

impl Session {
    pub(super) fn of(lease: &Lease) -> Option<Self> {
        Self::deserialize(&lease.placement().object).ok()
    }

    pub(super) fn until(&self) -> Timestamp {
        Timestamp::from_secs(self.until)
    }
}
