//! `gitlab`: project and group access tokens of GitLab, named after their leases.
//!
//! GitLab counts a token's life in days: it ends at midnight UTC at the earliest. So it is revoked by the API
//! when its lease is over, found by its name whatever became of the answer that made it. Rules are those of
//! GitLab's REST reference, "Project access tokens" and "Group access tokens".

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec,
    registry::BuildContext,
    spec::{self, SpecReader},
    upstream::{self, Upstream},
};
use crate::{
    clock::Timestamp,
    config::{Env, SecretRef, Span},
    leases::{Lease, Revocability},
    outbound::Fetched,
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc, time::Duration};
use url::Url;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// GitLab's address. Default `https://gitlab.com`.
    pub url: Option<String>,
    /// An access token of the projects or groups above those that grants name, with the scope `api`, by
    /// reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub token: SecretRef,
    /// How long a request may take. Default `10s`.
    pub deadline: Option<Span>,
    /// How long after the deadline a creation may still be on its way inside GitLab. Default `30s`.
    pub settle: Option<Span>,
    /// Private networks in which GitLab may lie (CIDR).
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
    /// The project, by id or path, as a template over stable claims.
    pub project: Option<String>,
    /// Or the group.
    pub group: Option<String>,
    /// What the token may do, as GitLab names it: `read_repository`.
    pub scopes: Vec<String>,
    /// The role that it has there.
    pub access_level: Level,
}

/// GitLab's roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// 10.
    Guest,
    /// 15.
    Planner,
    /// 20.
    Reporter,
    /// 30.
    Developer,
    /// 40.
    Maintainer,
    /// 50.
    Owner,
}

impl Level {
    const fn number(self) -> u8 {
        match self {
            Self::Guest => 10,
            Self::Planner => 15,
            Self::Reporter => 20,
            Self::Developer => 30,
            Self::Maintainer => 40,
            Self::Owner => 50,
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(30);
const DAY: i64 = 86_400;
/// GitLab's largest page, and how many of them are looked through for a name.
const PAGE: usize = 100;
const MAX_PAGES: usize = 50;
/// How often tokens that turn up meanwhile are revoked before it is tried again later.
const ROUNDS: usize = 5;

const PLACE: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "._-/".contains(c),
    max_len: 255,
    expected: "an id, or a path: letters, digits and ._-/",
};

/// A backend that asks GitLab.
pub struct GitLab {
    url: Url,
    identity: String,
    token: SecretRef,
    env: Env,
    upstream: Upstream,
    deadline: Duration,
    settle: Duration,
}

struct Compiled {
    kind: Kind,
    place: Template,
    scopes: Vec<String>,
    level: Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Projects,
    Groups,
}

impl Kind {
    const fn segment(self) -> &'static str {
        match self {
            Self::Projects => "projects",
            Self::Groups => "groups",
        }
    }
}

/// Where the token is: what a lease stores.
#[derive(Clone, Serialize, Deserialize)]
struct Object {
    kind: Kind,
    place: String,
}

struct Rendered {
    object: Object,
    body: Value,
    ends: Timestamp,
}

#[derive(Deserialize)]
struct Made {
    #[serde(deserialize_with = "spec::secret")]
    token: Secret,
}

#[derive(Deserialize)]
struct Listed {
    id: u64,
    name: String,
    #[serde(default)]
    revoked: bool,
}

impl GitLab {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let url = Url::parse(file.url.as_deref().unwrap_or("https://gitlab.com").trim_end_matches('/'));
        let url = url.map_err(|error| format!("url: {error}"))?;
        if url.cannot_be_a_base() || url.query().is_some() || !url.username().is_empty() {
            return Err("url: expected https://host, without query or user".to_owned());
        }
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline);
        Ok(Self {
            identity: url.as_str().trim_end_matches('/').to_owned(),
            url,
            token: context.secret(file.token),
            env: context.env.clone(),
            upstream: Upstream::new("GitLab", options, context),
            deadline,
            settle: file.settle.map_or(SETTLE, |span| span.0),
        })
    }

    /// `PRIVATE-TOKEN`.
    fn authorization(&self) -> Result<HeaderValue, String> {
        let token = self.token.read(&self.env).map_err(|error| format!("token: {error}"))?;
        let mut value = HeaderValue::try_from(token.expose()).map_err(|_| "token: not a header's value".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The access tokens of a place, or one of them. A path becomes one segment.
    fn tokens(&self, object: &Object, id: Option<u64>) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v4", object.kind.segment(), &object.place, "access_tokens"]);
            path.extend(id.map(|id| id.to_string()));
        }
        url
    }

    async fn send(&self, method: Method, url: &Url, body: Vec<u8>) -> Result<Fetched, MintError> {
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .header("private-token", self.authorization().map_err(MintError::Refused)?)
            .body(body)
            .map_err(|error| MintError::Refused(error.to_string()))?;
        self.upstream.send(request).await.map_err(|error| upstream::unanswered(&error))
    }

    /// The ids of the tokens of a name that are not revoked.
    async fn find(&self, object: &Object, name: &str) -> Result<Vec<u64>, String> {
        let mut found = Vec::new();
        for page in 1..=MAX_PAGES {
            let mut url = self.tokens(object, None);
            // Older versions know neither filter; names are compared here in any case.
            url.query_pairs_mut()
                .append_pair("state", "active")
                .append_pair("search", name)
                .append_pair("per_page", &PAGE.to_string())
                .append_pair("page", &page.to_string());
            let answer = self.send(Method::GET, &url, Vec::new()).await.map_err(|error| error.to_string())?;
            if answer.status != StatusCode::OK {
                return Err(format!("GitLab answered {} to the list of tokens", answer.status.as_u16()));
            }
            let listed: Vec<Listed> =
                serde_json::from_slice(&answer.body).map_err(|_| "GitLab's list of tokens is none".to_owned())?;
            found.extend(listed.iter().filter(|token| token.name == name && !token.revoked).map(|token| token.id));
            if listed.len() < PAGE {
                return Ok(found);
            }
        }
        Err(format!("there are more than {} active tokens", PAGE * MAX_PAGES))
    }
}

/// A place's path has no empty or dotted segment.
fn is_place(place: &str) -> bool {
    place.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

impl Describe for GitLab {
    fn kind(&self) -> &'static str {
        "gitlab"
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
        let place = match (&file.project, &file.group) {
            (Some(text), None) => reader.template(&["project"], text, &PLACE).map(|place| (Kind::Projects, place)),
            (None, Some(text)) => reader.template(&["group"], text, &PLACE).map(|place| (Kind::Groups, place)),
            _ => {
                reader.refuse(
                    &["project"],
                    "the token is of one project or of one group",
                    "give either `project` or `group`",
                );
                None
            }
        };
        if file.scopes.is_empty() {
            reader.refuse(&["scopes"], "no scope is named", "for example `scopes: [read_repository]`");
        }
        for (index, scope) in file.scopes.iter().enumerate() {
            if scope.is_empty() || !scope.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                let help = "names are those of GitLab's \"Scopes\", such as read_repository or write_registry";
                reader.refuse(&["scopes", &index.to_string()], "this is not a scope's name", help);
            }
        }
        let (scopes, level) = (file.scopes, file.access_level);
        reader.finish(place.map(|(kind, place)| Compiled { kind, place, scopes, level }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.upstream.client().map_err(|error| error.to_string())?;
        self.authorization().map(drop)
    }
}

impl RemoteBackend for GitLab {
    fn revocability(&self) -> Revocability {
        Revocability::ByName
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn settle(&self) -> Duration {
        self.settle
    }

    fn plan(&self, permit: &Permit, order: &Order) -> Result<Plan, MintError> {
        let spec: &Compiled = spec::of(permit)?;
        let field = if spec.kind == Kind::Projects { "credential.project" } else { "credential.group" };
        let place = spec::render(field, &spec.place, permit)?;
        if !is_place(&place) {
            return Err(spec::unfit(field, &"a segment of the path would be empty, . or .."));
        }
        // The first midnight that is not before the lease's end.
        let ends = Timestamp::from_secs(
            (order.expires_at.secs() + DAY - 1).div_euclid(DAY).max(order.at.secs() / DAY + 1) * DAY,
        );
        let body = json!({
            "name": order.lease.remote_name(),
            "scopes": spec.scopes,
            "access_level": spec.level.number(),
            "expires_at": ends.to_string().get(..10),
        });
        let object = Object { kind: spec.kind, place };
        Ok(Plan {
            object: serde_json::to_value(&object).unwrap_or_default(),
            worst_expiry: ends.max(order.at + self.deadline + self.settle),
            rendered: Arc::new(Rendered { object, body, ends }),
        })
    }

    fn mint<'a>(
        &'a self,
        _: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let Rendered { object, body, ends } = spec::rendered(rendered)?;
            let url = self.tokens(object, None);
            let answer = self.send(Method::POST, &url, body.to_string().into_bytes()).await?;
            self.upstream.made(&answer)?;
            let made: Made = serde_json::from_slice(&answer.body)
                .map_err(|_| MintError::Unclear("GitLab's answer has no token".to_owned()))?;
            Ok(Minted { credential: Credential::bearer(made.token), expires_at: order.expires_at.min(*ends) })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let object = Object::deserialize(&lease.placement().object)
                .map_err(|_| RemoteError("the lease does not say where its token is".to_owned()))?;
            // A creation that was not answered may still land: what is found now need not be all.
            let mut revoked = Revoked::NotFound;
            // A job may rotate its token meanwhile (`self/rotate`): the next one has another id, and the same name.
            for _ in 0..ROUNDS {
                let ids = self.find(&object, &lease.id().remote_name()).await.map_err(RemoteError)?;
                if ids.is_empty() {
                    return Ok(revoked);
                }
                revoked = Revoked::Gone;
                for id in ids {
                    let answer = self.send(Method::DELETE, &self.tokens(&object, Some(id)), Vec::new()).await;
                    let status = answer.map_err(|error| RemoteError(error.to_string()))?.status;
                    if !status.is_success() && status != StatusCode::NOT_FOUND {
                        return Err(RemoteError(format!("GitLab answered {} to the revocation", status.as_u16())));
                    }
                }
            }
            Err(RemoteError("tokens of the lease's name keep turning up: does the job rotate its own?".to_owned()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{
        Backend,
        testing::{Bench, NOW, order},
    };

    const CONFIG: &str = "gl: { gitlab: { url: https://gitlab.example/sub, token: env:SECRET } }";
    const SPEC: &str = "project: \"{{ claims.repository_id }}\"\nscopes: [read_repository]\naccess_level: reporter";

    fn plan(bench: &Bench, credential: &str, replaced: &[(&str, &str)]) -> Result<Plan, String> {
        let permit = bench.permit(credential, "15m", replaced)?;
        let Backend::Remote(backend) = bench.backend() else { panic!("gitlab is remote") };
        backend.plan(&permit, &order(&permit)).map_err(|error| error.to_string())
    }

    #[test]
    fn specs() {
        let bench = Bench::new(CONFIG);
        let with = |from: &str, to: &str| SPEC.replace(from, to);
        for (credential, expected) in [
            (SPEC.to_owned(), Ok(json!({ "kind": "projects", "place": "772002" }))),
            (
                with("project: \"{{ claims.repository_id }}\"", "group: acme/team"),
                Ok(json!({ "kind": "groups", "place": "acme/team" })),
            ),
            (format!("{SPEC}\ngroup: acme"), Err("one project or of one group")),
            (with("project: \"{{ claims.repository_id }}\"\n", ""), Err("one project or of one group")),
            (with("repository_id", "actor"), Err("actor")),
            (with("[read_repository]", "[]"), Err("no scope")),
            (with("read_repository", "API"), Err("not a scope's name")),
            (with("reporter", "root"), Err("root")),
            (with("project: \"{{ claims.repository_id }}\"", "project: ../x"), Err("credential.project")),
            (format!("{SPEC}\nname: x"), Err("name")),
        ] {
            match (plan(&bench, &credential, &[]), expected) {
                (Ok(plan), Ok(object)) => assert_eq!(plan.object, object, "{credential}"),
                (Err(error), Err(text)) => assert!(error.contains(text), "{credential}: {error}"),
                (plan, _) => panic!("{credential}: {:?}", plan.map(|plan| plan.object)),
            }
        }
    }

    #[test]
    fn a_token_is_named_after_its_lease_and_ends_at_the_next_midnight() {
        let plan = plan(&Bench::new(CONFIG), SPEC, &[]).expect("planned");
        let Rendered { body, ends, .. } = plan.rendered.downcast_ref().expect("ours");
        let expected = json!({
            "name": "jobpass_01990000000070008000000000000001", "scopes": ["read_repository"], "access_level": 20,
            "expires_at": "2026-11-22",
        });
        assert_eq!(*body, expected, "at {NOW}");
        assert_eq!((ends.secs() % DAY, plan.worst_expiry), (0, *ends));
        assert!(*ends > NOW && ends.since(NOW) <= Duration::from_secs(86_400));
    }

    #[test]
    fn hostile_claims_are_refused() {
        let bench = Bench::new(CONFIG);
        let long = "9".repeat(300);
        for hostile in [
            "a'b", "a\"b", "a\\b", "a*b", "a?b", "a#b", "a%2f", "a b", "a\nb", "a\0b", "а", "", "..", "a/../b", "a//b",
            &long,
        ] {
            let refused = plan(&bench, SPEC, &[("repository_id", hostile)]).err();
            assert!(refused.is_some_and(|error| error.starts_with("credential.project")), "{hostile:?}");
        }
    }

    #[test]
    fn configs() {
        let file: std::collections::BTreeMap<String, std::collections::BTreeMap<String, File>> =
            serde_saphyr::from_str(CONFIG).expect("a config");
        let bench = Bench::new(CONFIG);
        let gitlab = GitLab::build(file["gl"]["gitlab"].clone(), &bench.context).expect("built");
        let object = Object { kind: Kind::Groups, place: "acme/team".to_owned() };
        let url = "https://gitlab.example/sub/api/v4/groups/acme%2Fteam/access_tokens/7";
        assert_eq!(gitlab.tokens(&object, Some(7)).as_str(), url);
        let error = Bench::new(&CONFIG.replace("https://", "https://u@")).backends.err().expect("refused");
        assert!(error.contains("url: expected"), "{error}");
        let error = Bench::new(&CONFIG.replace("SECRET", "ABSENT")).backend().describe().preflight().expect_err("none");
        assert!(error.contains("env:ABSENT"), "{error}");
    }
}
