//! `http`: keys of any HTTP API that makes and deletes them, declared in the config.
//!
//! Where the API deletes by a name that the caller chooses, that is the lease's, so that the key can be
//! deleted whatever became of the answer that made it. Where it deletes by an id or by the key itself, the
//! whole deletion is kept sealed in the lease; when that answer was lost, the key lives until it expires.
//! An API cannot promise that a request which it has not answered will not be acted on later;
//! so after an unknown outcome a deletion says "not there now" and never "gone for good", and the
//! reaper deletes again until the key would have expired. A creation is never sent twice.

mod file;
mod pattern;
#[cfg(test)]
mod tests;

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec,
    registry::BuildContext,
    spec,
    spec::SpecReader,
    upstream::{self, Upstream},
};
use crate::{
    clock::{Clock, Timestamp},
    config::Env,
    leases::{Lease, Revocability, State},
    outbound::{Fetched, OutboundError},
    sealing::Sealing,
    store::PendingLease,
};
pub use file::{CreateFile, DeleteFile, File, HeaderFile, ParameterFile, Shape, SpecFile};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Request, header};
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, Secret};
use pattern::{Answer, Body, Pattern, Values};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use url::Url;
use zeroize::Zeroizing;

const DEADLINE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(30);

/// A backend that asks an HTTP API.
pub struct Http {
    base_url: Url,
    identity: String,
    headers: Headers,
    upstream: Upstream,
    env: Env,
    clock: Arc<dyn Clock>,
    parameters: BTreeMap<String, ParameterFile>,
    create: Call,
    secret: String,
    expires_at: Option<String>,
    id: Option<String>,
    lifetime: Option<Duration>,
    delete: Option<Call>,
    absent: Vec<u16>,
    sealing: Arc<Sealing>,
    shape: Shape,
    deadline: Duration,
    settle: Duration,
}

/// Headers of every request: how the server proves who it is.
pub(super) struct Headers(Vec<(HeaderName, HeaderFile)>);

impl Headers {
    /// Headers as they are meant.
    ///
    /// # Errors
    /// A name that is none, or a header that is neither a text nor a secret.
    pub(super) fn parse(headers: BTreeMap<String, HeaderFile>, context: &BuildContext) -> Result<Self, String> {
        let header = |(name, mut header): (String, HeaderFile)| {
            let parsed =
                HeaderName::try_from(&name).map_err(|_| format!("headers: `{name}` is not a header's name"))?;
            if header.value.is_some() == header.secret.is_some() {
                return Err(format!("headers.{name}: give either `value` or `secret`"));
            }
            header.secret = header.secret.map(|reference| context.secret(reference));
            Ok((parsed, header))
        };
        headers.into_iter().map(header).collect::<Result<_, _>>().map(Self)
    }

    /// Headers as they are sent.
    ///
    /// # Errors
    /// Names one whose secret cannot be had.
    pub(super) fn read(&self, env: &Env) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let header = |(name, file): &(HeaderName, HeaderFile)| {
            let text = match &file.secret {
                None => Zeroizing::new(file.value.clone().unwrap_or_default()),
                Some(reference) => {
                    let secret = reference.read(env).map_err(|error| format!("headers.{name}: {error}"))?;
                    Zeroizing::new(format!("{}{}", file.prefix, secret.expose()))
                }
            };
            let mut value =
                HeaderValue::try_from(&*text).map_err(|_| format!("headers.{name}: not a header's value"))?;
            value.set_sensitive(file.secret.is_some());
            Ok((name.clone(), value))
        };
        self.0.iter().map(header).collect()
    }
}

struct Call {
    method: Method,
    /// Path segments.
    path: Vec<Pattern>,
    headers: Vec<(HeaderName, Pattern)>,
    body: Option<Body>,
}

struct Compiled(Vec<(String, Template)>);

/// What a mint is given.
struct Planned {
    create: Rendered,
    parameters: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Rendered {
    url: Url,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    body: Option<Value>,
}

impl Http {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let base_url = Url::parse(file.base_url.trim_end_matches('/')).map_err(|error| format!("base_url: {error}"))?;
        if base_url.cannot_be_a_base() || base_url.query().is_some() || !base_url.username().is_empty() {
            return Err("base_url: expected https://host/path, without query or user".to_owned());
        }
        let headers = Headers::parse(file.headers, context)?;
        let names: Vec<&str> = file.parameters.keys().map(String::as_str).collect();
        let method = file.create.method.as_deref().unwrap_or("POST");
        let nothing = BTreeMap::new();
        let create = Call::parse("create", method, &file.create.path, &nothing, file.create.body.as_ref(), &names)?;
        let delete = match &file.delete {
            None => None,
            Some(delete) => {
                let method = delete.method.as_deref().unwrap_or("DELETE");
                Some(Call::parse("delete", method, &delete.path, &delete.headers, delete.body.as_ref(), &names)?)
            }
        };
        if create.any(Pattern::needs_answer) {
            return Err("create: there is no answer yet: `answer.id` and `answer.secret` are for `delete`".to_owned());
        }
        let ends = create.body.as_ref().is_some_and(Body::tells_expiry);
        match &delete {
            Some(delete) if delete.any(Pattern::needs_answer) => {
                if delete.any(Pattern::needs_id) && file.create.id.is_none() {
                    return Err("create.id: say where in the answer `answer.id` is, as in /data/id".to_owned());
                }
                if !ends && file.create.lifetime.is_none() {
                    return Err("create: a key whose answer was lost cannot be deleted and has to end by itself: put \
                                `{{ lease.expires_at }}` into create.body, or say in `create.lifetime` how long the API \
                                lets it live"
                        .to_owned());
                }
            }
            Some(delete) if !delete.any(Pattern::names_lease) => {
                return Err(
                    "delete: delete by `{{ lease.name }}`, or by `{{ answer.id }}` or `{{ answer.secret }}`".to_owned()
                );
            }
            Some(_) if !create.any(Pattern::names_lease) => {
                return Err("create: name the key `{{ lease.name }}`, so that it can be found again".to_owned());
            }
            None if !ends => {
                return Err(
                    "delete: without it keys have to end by themselves: put `{{ lease.expires_at }}` into create.body"
                        .to_owned(),
                );
            }
            _ => {}
        }
        for (field, pointer) in [
            ("secret", Some(&file.create.secret)),
            ("expires_at", file.create.expires_at.as_ref()),
            ("id", file.create.id.as_ref()),
        ] {
            if pointer.is_some_and(|pointer| !pointer.starts_with('/')) {
                return Err(format!("create.{field}: a JSON pointer begins with `/`, as in /data/key"));
            }
        }
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        Ok(Self {
            identity: base_url.to_string(),
            base_url,
            headers,
            upstream: Upstream::new(
                "the API",
                context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline),
                context,
            ),
            env: context.env.clone(),
            clock: Arc::clone(&context.clock),
            parameters: file.parameters,
            create,
            secret: file.create.secret,
            expires_at: file.create.expires_at,
            id: file.create.id,
            lifetime: file.create.lifetime.map(|span| span.0),
            sealing: Arc::clone(&context.sealing),
            delete,
            absent: file.delete.and_then(|delete| delete.absent).unwrap_or_else(|| vec![404, 410]),
            shape: file.credential,
            deadline,
            settle: file.settle.map_or(SETTLE, |span| span.0),
        })
    }

    async fn send(&self, method: &Method, rendered: &Rendered) -> Result<Fetched, Failure> {
        let Rendered { url, headers, body } = rendered;
        let body = body.as_ref().map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let empty = body.is_empty();
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = url.as_str().parse().map_err(|_| Failure::Setup("the path is no path".to_owned()))?;
        let sent = request.headers_mut();
        let json = HeaderValue::from_static("application/json");
        sent.insert(header::ACCEPT, json.clone());
        if !empty {
            sent.insert(header::CONTENT_TYPE, json);
        }
        sent.extend(self.headers.read(&self.env).map_err(Failure::Setup)?);
        for (name, value) in headers {
            let fail = |_| Failure::Setup(format!("delete.headers.{name}: not a header's value"));
            let mut value = HeaderValue::try_from(value).map_err(fail)?;
            value.set_sensitive(true);
            let name = HeaderName::try_from(name).map_err(|error| Failure::Setup(error.to_string()))?;
            sent.insert(name, value);
        }
        self.upstream.send(request).await.map_err(Failure::Outbound)
    }

    /// The call for one lease, with values as path segments.
    fn render(&self, field: &str, call: &Call, values: &Values<'_>) -> Result<Rendered, MintError> {
        let mut url = self.base_url.clone();
        {
            let mut path = url.path_segments_mut().map_err(|()| spec::unfit("base_url", &"it takes no path"))?;
            path.pop_if_empty();
            for segment in &call.path {
                let text = segment.render(values);
                if matches!(text.as_str(), "" | "." | "..") {
                    return Err(spec::unfit(
                        &format!("{field}.path"),
                        &"a segment of the path would be empty, . or ..",
                    ));
                }
                path.push(&text);
            }
        }
        let headers = call.headers.iter().map(|(name, value)| (name.to_string(), value.render(values))).collect();
        Ok(Rendered { url, headers, body: call.body.as_ref().map(|body| body.render(values)) })
    }

    /// Seals the deletion, where only the answer says what it is.
    fn keep(&self, delete: &Call, pending: &PendingLease, values: &Values<'_>) -> Result<(), String> {
        let rendered = self.render("delete", delete, values).map_err(|error| error.to_string())?;
        let text = serde_json::to_string(&rendered).map_err(|error| error.to_string())?;
        self.sealing.keep(pending, &Secret::new(text)).map_err(|error| error.to_string())
    }

    fn read_answer(&self, answer: &Fetched, order: &Order) -> Result<(Minted, Answer), MintError> {
        let unknown =
            |what: &str| MintError::Unclear(format!("the API answered {}, but {what}", answer.status.as_u16()));
        let document: Value = serde_json::from_slice(&answer.body).map_err(|_| unknown("its answer is not JSON"))?;
        let key = match document.pointer(&self.secret) {
            Some(Value::String(key)) if !key.is_empty() => Secret::from(key.as_str()),
            _ => return Err(unknown(&format!("there is no key at {}", self.secret))),
        };
        let told = self.expires_at.as_ref().map(|pointer| {
            let at = document.pointer(pointer).and_then(instant);
            at.ok_or_else(|| unknown(&format!("there is no time at {pointer}")))
        });
        // A key that lives longer is taken back when the lease is over, if it can be taken back.
        let expires_at = match told.transpose()? {
            Some(told) if self.delete.is_none() => told,
            told => told.map_or(order.expires_at, |told| told.min(order.expires_at)),
        };
        let id = match self.id.as_ref().map(|pointer| (pointer, document.pointer(pointer))) {
            None => String::new(),
            Some((_, Some(Value::String(id)))) if !id.is_empty() => id.clone(),
            Some((_, Some(Value::Number(id)))) => id.to_string(),
            Some((pointer, _)) => return Err(unknown(&format!("there is no id at {pointer}"))),
        };
        let credential = match self.shape {
            Shape::ApiKey => Credential::api_key(self.identity.trim_end_matches('/'), key.clone()),
            Shape::Bearer => Credential::bearer(key.clone()),
        };
        Ok((Minted { credential, expires_at }, Answer { id, secret: key }))
    }
}

impl Call {
    fn parse(
        field: &str,
        method: &str,
        path: &str,
        headers: &BTreeMap<String, String>,
        body: Option<&Value>,
        parameters: &[&str],
    ) -> Result<Self, String> {
        let method = Method::try_from(method).map_err(|_| format!("{field}.method: `{method}` is not a method"))?;
        let segments = path.strip_prefix('/').ok_or_else(|| format!("{field}.path: begin with `/`"))?;
        if path.contains(['?', '#']) {
            return Err(format!("{field}.path: a path only, without `?` and `#`"));
        }
        let path = segments
            .split('/')
            .map(|segment| Pattern::parse(segment, parameters).map_err(|error| format!("{field}.path: {error}")))
            .collect::<Result<_, _>>()?;
        let body = body.map(|body| Body::parse(body, parameters).map_err(|error| format!("{field}.body: {error}")));
        let header = |(name, value): (&String, &String)| {
            let parsed =
                HeaderName::try_from(name).map_err(|_| format!("{field}.headers: `{name}` is not a header's name"))?;
            let value =
                Pattern::parse(value, parameters).map_err(|error| format!("{field}.headers.{name}: {error}"))?;
            Ok::<_, String>((parsed, value))
        };
        let headers = headers.iter().map(header).collect::<Result<_, _>>()?;
        Ok(Self { method, path, headers, body: body.transpose()? })
    }

    fn any(&self, test: fn(&Pattern) -> bool) -> bool {
        self.path.iter().chain(self.headers.iter().map(|(_, value)| value)).any(test)
            || self.body.as_ref().is_some_and(|body| body.any(test))
    }
}

/// Why there is no answer. Holds nothing of the request but its host.
enum Failure {
    Setup(String),
    Outbound(OutboundError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setup(why) => f.write_str(why),
            Self::Outbound(error) => error.fmt(f),
        }
    }
}

/// RFC 3339, or seconds since the epoch.
fn instant(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => {
            let at: jiff::Timestamp = text.parse().ok()?;
            Some(Timestamp::from_millis(at.as_millisecond()))
        }
        other => other.as_i64().map(Timestamp::from_secs),
    }
}

impl Describe for Http {
    fn kind(&self) -> &'static str {
        "http"
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
        let mut compiled = Vec::with_capacity(self.parameters.len());
        for (name, parameter) in &self.parameters {
            let rules = FieldRules {
                authority: parameter.authority,
                allowed: |c| !c.is_control(),
                max_len: parameter.max_length,
                expected: "no control characters",
            };
            match file.parameters.get(name) {
                Some(text) => {
                    let template = reader.template(&["parameters", name], text, &rules);
                    compiled.extend(template.map(|template| (name.clone(), template)));
                }
                None => reader.refuse(&["parameters"], format!("the parameter `{name}` is missing"), "add it"),
            }
        }
        for name in file.parameters.keys().filter(|name| !self.parameters.contains_key(*name)) {
            let known: Vec<&str> = self.parameters.keys().map(String::as_str).collect();
            let help = format!("the backend's parameters are: {}", known.join(", "));
            reader.refuse(&["parameters", name], format!("there is no parameter `{name}`"), help);
        }
        reader.finish(Some(Compiled(compiled)))
    }

    fn preflight(&self) -> Result<(), String> {
        self.upstream.client().map_err(|error| error.to_string())?;
        self.headers.read(&self.env).map(drop)
    }
}

impl RemoteBackend for Http {
    fn revocability(&self) -> Revocability {
        match &self.delete {
            None => Revocability::None,
            Some(delete) if delete.any(Pattern::needs_answer) => Revocability::ByToken,
            Some(_) => Revocability::ByName,
        }
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        self.settle
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let Compiled(templates) = spec::of(permit)?;
        let mut parameters = BTreeMap::new();
        for (name, template) in templates {
            let value = spec::render(&format!("credential.parameters.{name}"), template, permit)?;
            parameters.insert(name.clone(), value);
        }
        let values = Values { lease: order.lease, expires_at: order.expires_at, parameters: &parameters, answer: None };
        let create = self.render("create", &self.create, &values)?;
        let object = match &self.delete {
            Some(delete) if self.revocability() == Revocability::ByName => {
                serde_json::to_value(self.render("delete", delete, &values)?).unwrap_or_default()
            }
            _ => Value::Null,
        };
        let made_by = order.at + self.deadline + self.settle;
        let worst_expiry = self.lifetime.map_or(order.expires_at.max(made_by), |lifetime| made_by + lifetime);
        Ok(Plan { object, rendered: Arc::new(Planned { create, parameters }), worst_expiry })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let Planned { create, parameters } = spec::rendered(rendered)?;
            if let State::Pending { mint_by, .. } = pending.lease().state()
                && *mint_by <= self.clock.now()
            {
                return Err(MintError::Unavailable("there is no time left to ask the API".to_owned()));
            }
            let answer = match self.send(&self.create.method, create).await {
                Ok(answer) => answer,
                Err(Failure::Setup(why)) => return Err(MintError::Unavailable(why)),
                Err(Failure::Outbound(error)) => return Err(upstream::unanswered(&error)),
            };
            self.upstream.made(&answer)?;
            let (minted, answer) = self.read_answer(&answer, order)?;
            if let Some(delete) = self.delete.as_ref().filter(|delete| delete.any(Pattern::needs_answer)) {
                let (lease, expires_at) = (order.lease, order.expires_at);
                let values = Values { lease, expires_at, parameters, answer: Some(&answer) };
                self.keep(delete, pending, &values).map_err(MintError::Unclear)?;
            }
            Ok(minted)
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let delete = self.delete.as_ref().ok_or_else(|| RemoteError("no `delete` is configured".to_owned()))?;
            let rendered: Option<Rendered> = match lease.placement().revocability {
                Revocability::ByToken => {
                    let text = self.sealing.open(lease).map_err(|error| RemoteError(error.to_string()))?;
                    serde_json::from_str(text.expose()).ok()
                }
                _ => Rendered::deserialize(&lease.placement().object).ok(),
            };
            // Only ever at this API, whatever the lease says.
            let rendered = rendered.filter(|r| r.url.as_str().starts_with(self.identity.trim_end_matches('/')));
            let rendered =
                rendered.ok_or_else(|| RemoteError("the lease does not say what to delete at this API".to_owned()))?;
            let answer =
                self.send(&delete.method, &rendered).await.map_err(|failure| RemoteError(failure.to_string()))?;
            let status = answer.status;
            if status.is_success() || self.absent.contains(&status.as_u16()) {
                Ok(Revoked::NotFound)
            } else {
                Err(RemoteError(format!("the API answered {} to the deletion", status.as_u16())))
            }
        })
    }
}
