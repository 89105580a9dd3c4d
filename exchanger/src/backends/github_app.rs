//! `github_app`: installation access tokens of GitHub Apps, narrowed to repositories and permissions.
//!
//! A token can only be deleted with itself, so the lease keeps it sealed. GitHub gives every token an hour;
//! one whose answer was lost lives as long. Several Apps on one account share the work: the one with the most
//! requests left is asked, and one that is limited is left alone until GitHub says otherwise. Rules are those
//! of GitHub's REST reference ("Create an installation access token for an app", "Revoke an installation
//! access token", version 2022-11-28), "Generating a JSON Web Token for a GitHub App" and "Rate limits for
//! the REST API".

use super::{
    Describe, MintError, Minted, Order, Plan, RemoteBackend, RemoteError, Revoked, Spec,
    registry::BuildContext,
    spec::{self, SpecReader},
    upstream::{self, Upstream},
};
use crate::{
    clock::{Clock, Timestamp},
    config::{Env, SecretRef, Span},
    leases::{Lease, Revocability},
    outbound::Fetched,
    sealing::Sealing,
    store::PendingLease,
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use ipnet::IpNet;
use jobpass_policy::{CredentialSource, Diagnostic, FieldRules, GrantContext, Permit, Template};
use jobpass_protocol::{Credential, Secret};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use url::Url;

/// The backend in the server's config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The API's address. Default `https://api.github.com`; `https://HOST/api/v3` for GitHub Enterprise Server.
    pub api_url: Option<String>,
    /// One App or several, all installed on the same account with the same permissions.
    pub apps: Vec<AppFile>,
    /// How long a request may take. Default `10s`.
    pub deadline: Option<Span>,
    /// Private networks in which the API may lie (CIDR).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_networks: Vec<IpNet>,
    /// Its own certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Accepts http on loopback. For trying things out.
    #[serde(default)]
    pub insecure_http: bool,
}

/// One App and its installation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AppFile {
    /// The App's client id (or, on older servers, its app id).
    pub client_id: String,
    /// The installation on the account.
    pub installation_id: u64,
    /// The App's private key (PEM), by reference: `file:/path`, `env:NAME` or `credential:NAME`.
    pub private_key: SecretRef,
}

/// A grant's `credential:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The repositories, by name without their owner, as templates.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// The repositories by id, as templates over stable claims.
    #[serde(default)]
    pub repository_ids: Vec<String>,
    /// What the token may do in them, as GitHub names it: `contents: read`.
    pub permissions: BTreeMap<String, Level>,
}

/// How far a permission goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
    /// Administration.
    Admin,
}

/// GitHub gives every token an hour.
const LIFETIME: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(30);
/// How long a limited App is left alone when GitHub does not say ("wait for at least one minute").
const LIMITED: Duration = Duration::from_secs(60);
/// GitHub takes an App's JWT for ten minutes at most, and advises to date it back by one.
const JWT_LIFETIME: Duration = Duration::from_secs(540);
const JWT_BACKDATED: Duration = Duration::from_secs(60);
/// An App's JWT is made anew when it has less than this left.
const JWT_REST: Duration = Duration::from_secs(120);
/// GitHub takes so many repositories in one request.
const MAX_REPOSITORIES: usize = 500;

const NAME: FieldRules = FieldRules {
    authority: true,
    allowed: |c| c.is_ascii_alphanumeric() || "._-".contains(c),
    max_len: 100,
    expected: "a repository's name without its owner: letters, digits and ._-",
};
const ID: FieldRules =
    FieldRules { authority: true, allowed: |c| c.is_ascii_digit(), max_len: 18, expected: "a repository's number" };

/// A backend that asks GitHub.
pub struct GitHubApp {
    identity: String,
    revoke_url: Url,
    upstream: Upstream,
    apps: Vec<App>,
    /// Apps with as much left take turns.
    turn: AtomicUsize,
    clock: Arc<dyn Clock>,
    env: Env,
    sealing: Arc<Sealing>,
    deadline: Duration,
}

struct App {
    client_id: String,
    url: Url,
    private_key: SecretRef,
    jwt: Mutex<Option<(Timestamp, HeaderValue)>>,
    budget: Mutex<Budget>,
}

/// What GitHub last said of an App's rate limit.
#[derive(Clone, Copy, Debug)]
struct Budget {
    /// Requests that are left until `reset`.
    remaining: u64,
    reset: Timestamp,
    /// Not to be asked before then.
    rests_until: Timestamp,
}

struct Compiled {
    repositories: Vec<Template>,
    repository_ids: Vec<Template>,
    permissions: BTreeMap<String, Level>,
}

struct Rendered {
    body: Value,
    permissions: BTreeMap<String, Level>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(deserialize_with = "spec::secret")]
    token: Secret,
    #[serde(deserialize_with = "spec::instant")]
    expires_at: Timestamp,
    #[serde(default)]
    repository_selection: Option<String>,
    #[serde(default)]
    permissions: BTreeMap<String, Level>,
}

#[derive(Serialize)]
struct AppClaims<'a> {
    iss: &'a str,
    iat: i64,
    exp: i64,
}

impl GitHubApp {
    /// Builds the backend.
    ///
    /// # Errors
    /// When the config cannot be right; the text names the field.
    pub fn build(file: File, context: &BuildContext) -> Result<Self, String> {
        let identity = file.api_url.as_deref().unwrap_or("https://api.github.com").trim_end_matches('/').to_owned();
        let url = |path: &str| Url::parse(&format!("{identity}{path}")).map_err(|error| format!("api_url: {error}"));
        if url("")?.query().is_some() || url("")?.fragment().is_some() || !url("")?.username().is_empty() {
            return Err("api_url: expected https://host/path, without query or user".to_owned());
        }
        if file.apps.is_empty() {
            return Err("apps: name at least one App".to_owned());
        }
        let mut apps = Vec::with_capacity(file.apps.len());
        for app in file.apps {
            if app.client_id.is_empty()
                || !app.client_id.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
            {
                return Err("apps.client_id: expected an App's client id, such as Iv23liABC".to_owned());
            }
            let start = Timestamp::from_secs(0);
            apps.push(App {
                client_id: app.client_id,
                url: url(&format!("/app/installations/{}/access_tokens", app.installation_id))?,
                private_key: context.secret(app.private_key),
                jwt: Mutex::new(None),
                budget: Mutex::new(Budget { remaining: 0, reset: start, rests_until: start }),
            });
        }
        let deadline = file.deadline.map_or(DEADLINE, |span| span.0);
        let options = context.outbound(file.allow_networks, file.ca_file, file.insecure_http, deadline);
        Ok(Self {
            revoke_url: url("/installation/token")?,
            identity,
            upstream: Upstream::new("GitHub", options, context),
            apps,
            turn: AtomicUsize::new(0),
            clock: Arc::clone(&context.clock),
            env: context.env.clone(),
            sealing: Arc::clone(&context.sealing),
            deadline,
        })
    }

    /// The Apps that may be asked now, the one with the most left first.
    fn by_budget(&self, now: Timestamp) -> Vec<&App> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.apps.len();
        let mut apps: Vec<(u64, &App)> = (0..self.apps.len())
            .filter_map(|n| {
                let app = &self.apps[(first + n) % self.apps.len()];
                lock(&app.budget).left(now).map(|left| (left, app))
            })
            .collect();
        apps.sort_by_key(|(left, _)| Reverse(*left));
        apps.into_iter().map(|(_, app)| app).collect()
    }

    /// When the first of the Apps may be asked again.
    fn rest(&self, now: Timestamp) -> Duration {
        let rests = self.apps.iter().map(|app| lock(&app.budget).until().since(now));
        rests.min().unwrap_or(LIMITED).max(Duration::from_secs(1))
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        authorization: HeaderValue,
        body: Vec<u8>,
    ) -> Result<Fetched, Unsent> {
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::ACCEPT, "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, authorization)
            .body(body)
            .map_err(|error| Unsent(MintError::Unavailable(error.to_string())))?;
        self.upstream.send(request).await.map_err(|error| Unsent(upstream::unanswered(&error)))
    }

    fn read(
        &self,
        answer: &Fetched,
        pending: &PendingLease,
        order: &Order,
        asked: &Rendered,
    ) -> Result<Minted, MintError> {
        let unknown = |why: &str| MintError::Unclear(why.to_owned());
        let answer: Answer =
            serde_json::from_slice(&answer.body).map_err(|_| unknown("GitHub's answer has no token"))?;
        self.sealing.keep(pending, &answer.token).map_err(|error| unknown(&error.to_string()))?;
        // What is kept is taken back: a token that can do more never reaches the job.
        if answer.repository_selection.as_deref() == Some("all") {
            return Err(unknown("GitHub made a token for all repositories"));
        }
        let allowed = |(name, level): (&String, &Level)| {
            *level <= asked.permissions.get(name).copied().unwrap_or(Level::Read)
                && (name == "metadata" || asked.permissions.contains_key(name))
        };
        if !answer.permissions.iter().all(allowed) {
            return Err(unknown("GitHub made a token with more permissions than were asked for"));
        }
        // It lives an hour; when the lease is over before, it is deleted.
        Ok(Minted { credential: Credential::bearer(answer.token), expires_at: answer.expires_at.min(order.expires_at) })
    }
}

/// Why there is no answer, in a mint's words.
struct Unsent(MintError);

impl App {
    /// `Authorization` for the App itself.
    fn authorization(&self, env: &Env, now: Timestamp) -> Result<HeaderValue, String> {
        let mut jwt = lock(&self.jwt);
        if let Some((expires_at, value)) = &*jwt
            && now + JWT_REST < *expires_at
        {
            return Ok(value.clone());
        }
        let key = self.key(env)?;
        let expires_at = now + JWT_LIFETIME;
        let claims = AppClaims { iss: &self.client_id, iat: (now - JWT_BACKDATED).secs(), exp: expires_at.secs() };
        let text = jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &key);
        let text = text.map_err(|_| format!("apps.private_key: {} does not sign", self.private_key))?;
        let value = upstream::bearer(&Secret::new(text)).map_err(|error| error.to_string())?;
        *jwt = Some((expires_at, value.clone()));
        Ok(value)
    }

    fn key(&self, env: &Env) -> Result<EncodingKey, String> {
        let pem = self.private_key.read(env).map_err(|error| format!("apps.private_key: {error}"))?;
        EncodingKey::from_rsa_pem(pem.expose().as_bytes())
            .map_err(|_| format!("apps.private_key: {} is not an RSA key in PEM, as GitHub gives it", self.private_key))
    }

    /// Notes what an answer says of the App's limit; whether the answer itself is that refusal.
    fn limited(&self, answer: &Fetched, now: Timestamp) -> bool {
        let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
        let mut budget = lock(&self.budget);
        if let (Some(remaining), Some(reset)) = (number("x-ratelimit-remaining"), number("x-ratelimit-reset")) {
            budget.remaining = remaining;
            budget.reset = Timestamp::from_secs(i64::try_from(reset).unwrap_or(i64::MAX / 1000));
        }
        let retry_after = answer.retry_after(now);
        let limited = match answer.status {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::FORBIDDEN => retry_after.is_some() || number("x-ratelimit-remaining") == Some(0),
            _ => false,
        };
        if limited {
            let known = budget.remaining == 0 && budget.reset > now;
            let rest = retry_after.unwrap_or(if known { Duration::ZERO } else { LIMITED });
            budget.rests_until = budget.rests_until.max(now + rest);
        }
        limited
    }
}

impl Budget {
    /// How many requests are left; `None`: none now.
    fn left(self, now: Timestamp) -> Option<u64> {
        let left = if now >= self.reset { u64::MAX } else { self.remaining };
        (now >= self.rests_until && left > 0).then_some(left)
    }

    /// When it may be asked again, if not now.
    fn until(self) -> Timestamp {
        if self.remaining == 0 { self.reset.max(self.rests_until) } else { self.rests_until }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Describe for GitHubApp {
    fn kind(&self) -> &'static str {
        "github_app"
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
        let mut templates = |field: &str, texts: &[String], rules: &FieldRules| -> Vec<Template> {
            let each = texts.iter().enumerate();
            each.filter_map(|(n, text)| reader.template(&[field, &n.to_string()], text, rules)).collect()
        };
        let repositories = templates("repositories", &file.repositories, &NAME);
        let repository_ids = templates("repository_ids", &file.repository_ids, &ID);
        match file.repositories.len() + file.repository_ids.len() {
            0 => reader.refuse(
                &["repositories"],
                "no repository is named: the token would reach every one of the installation",
                "name them in `repositories`, or in `repository_ids` as \"{{ claims.repository_id }}\"",
            ),
            1..=MAX_REPOSITORIES => {}
            _ => reader.refuse(&["repositories"], "GitHub takes at most 500 repositories", "name fewer"),
        }
        if file.permissions.is_empty() {
            let message = "no permission is named: the token would have every one of the installation";
            reader.refuse(&["permissions"], message, "for example `permissions: { contents: read }`");
        }
        for name in file.permissions.keys() {
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                let help =
                    "names are those of GitHub's \"Permissions required for GitHub Apps\", such as pull_requests";
                reader.refuse(&["permissions", name], "this is not a permission's name", help);
            }
        }
        if u64::from(grant.ttl()) > LIFETIME.as_secs() {
            reader.refuse(
                &[],
                "GitHub's tokens live an hour, and the grant's `ttl` is longer",
                "make `ttl` 1h at most",
            );
        }
        reader.finish(Some(Compiled { repositories, repository_ids, permissions: file.permissions }))
    }

    fn preflight(&self) -> Result<(), String> {
        self.upstream.client().map_err(|error| error.to_string())?;
        self.apps.iter().try_for_each(|app| app.key(&self.env).map(drop))
    }
}

impl RemoteBackend for GitHubApp {
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
        let mut body = json!({ "permissions": spec.permissions });
        let render = |field: &str, templates: &[Template]| -> Result<Vec<String>, MintError> {
            templates.iter().map(|template| spec::render(&format!("credential.{field}"), template, permit)).collect()
        };
        if !spec.repositories.is_empty() {
            body["repositories"] = render("repositories", &spec.repositories)?.into();
        }
        if !spec.repository_ids.is_empty() {
            let ids = render("repository_ids", &spec.repository_ids)?;
            let ids = ids.iter().map(|id| id.parse::<u64>());
            let ids: Vec<u64> =
                ids.collect::<Result<_, _>>().map_err(|error| spec::unfit("credential.repository_ids", &error))?;
            body["repository_ids"] = ids.into();
        }
        let permissions = spec.permissions.clone();
        Ok(Plan {
            object: body.clone(),
            rendered: Arc::new(Rendered { body, permissions }),
            worst_expiry: order.at + self.deadline + SETTLE + LIFETIME,
        })
    }

    fn mint<'a>(
        &'a self,
        pending: &'a PendingLease,
        order: &'a Order,
        rendered: &'a Spec,
    ) -> BoxFuture<'a, Result<Minted, MintError>> {
        Box::pin(async move {
            let asked: &Rendered = spec::rendered(rendered)?;
            let now = self.clock.now();
            for app in self.by_budget(now) {
                let authorization = app.authorization(&self.env, now).map_err(MintError::Refused)?;
                let body = asked.body.to_string().into_bytes();
                let answer = self.send(Method::POST, &app.url, authorization, body).await.map_err(|unsent| unsent.0)?;
                // A limit is a refusal: nothing was made, and another App may be asked.
                if app.limited(&answer, now) {
                    tracing::warn!(app = app.client_id, "GitHub limits this App");
                    continue;
                }
                self.upstream.made(&answer)?;
                return self.read(&answer, pending, order, asked);
            }
            let message = "GitHub limits every App of this backend: add another one".to_owned();
            Err(MintError::Throttled { message, retry_after: self.rest(now) })
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Revoked, RemoteError>> {
        Box::pin(async move {
            let failed = |error: &dyn std::fmt::Display| RemoteError(error.to_string());
            let token = self.sealing.open(lease).map_err(|error| failed(&error))?;
            let authorization = upstream::bearer(&token).map_err(|error| failed(&error))?;
            let sent = self.send(Method::DELETE, &self.revoke_url, authorization, Vec::new()).await;
            match sent.map_err(|unsent| failed(&unsent.0))?.status {
                StatusCode::NO_CONTENT => Ok(Revoked::Gone),
                // The token itself is not valid any more.
                StatusCode::UNAUTHORIZED => Ok(Revoked::NotFound),
                status => Err(RemoteError(format!("GitHub answered {} to the deletion", status.as_u16()))),
            }
        })
    }
}

#[cfg(test)]
mod tests;
