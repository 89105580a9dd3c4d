//! Where a job's identity comes from: one file per CI, one line in [`find`].
//!
//! A CI that is not the one we run in is `None`; one that we run in but that gives no token is an
//! error that names its cure. Tokens are never written anywhere from here.

mod github;
mod gitlab;
mod variable;

use crate::{
    env::{Env, now},
    mask::Masking,
    outbound::Outbound,
};
use jobpass_protocol::{CompactJwt, Secret};
use std::path::PathBuf;

/// Clock difference and travel time that we allow for when we judge our own token's expiry, in seconds.
const EXPIRY_MARGIN: i64 = 5;

/// A CI that this program runs in.
pub(crate) trait Source: Send + Sync {
    /// What messages call it.
    fn name(&self) -> &'static str;
    /// What tells this job from every other on this machine; constant over the job's steps.
    fn job_key(&self) -> String;
    /// How its log learns what to hide.
    fn masking(&self) -> Masking;
    /// Where the job's files lie, which artifacts and images are made of.
    fn workspace(&self) -> Option<PathBuf>;
    /// Whether a job can have any number of tokens.
    fn gives_fresh_tokens(&self) -> bool;
    /// A token for an audience.
    ///
    /// # Errors
    /// Why the CI gives none, and what to change.
    fn token(&self, outbound: &Outbound, audience: &str) -> Result<Secret, SourceError>;
}

/// The CI that this program runs in.
pub(crate) fn find(env: &Env) -> Option<Box<dyn Source>> {
    github::detect(env).or_else(|| gitlab::detect(env)).or_else(|| variable::detect(env))
}

/// Why there is no token to ask with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// None of the CIs that we know.
    #[error(
        "no CI token: this is neither GitHub Actions nor GitLab CI\n  \
         elsewhere, put a token whose audience is the server's public_url into JOBPASS_ID_TOKEN"
    )]
    NoCi,
    /// The command that `jobpass exec` runs has no token of its own.
    #[error(
        "inside `jobpass exec` there is no CI token: it is kept from the command on purpose\n  \
         give the outer `jobpass exec` every --grant that the command needs"
    )]
    InsideExec,
    /// GitHub gives the job no right to a token.
    #[error(
        "GitHub gives this job no id token\n  add this to the job (and, in a reusable workflow, to the job that calls it):\n    \
         permissions:\n      id-token: write\n      contents: read"
    )]
    GitHubPermission,
    /// GitHub gives no token to pull requests from forks, whatever the permissions say.
    #[error(
        "GitHub gives no id token to a pull request from a fork ({head})\n  run this step for your own branches only:\n    \
         if: github.event.pull_request.head.repo.full_name == github.repository"
    )]
    GitHubFork { head: String },
    /// GitHub's token endpoint did not answer with a token.
    #[error("GitHub's token endpoint gave no token: {problem}")]
    GitHubEndpoint { problem: String },
    /// The GitLab job declares no token.
    #[error(
        "this job has no JOBPASS_ID_TOKEN\n  add this to the job in .gitlab-ci.yml:\n    \
         id_tokens:\n      JOBPASS_ID_TOKEN:\n        aud: {audience}"
    )]
    GitLabIdTokens { audience: String },
    /// The token at hand is for somebody else.
    #[error(
        "the token in JOBPASS_ID_TOKEN is for {found}, not for this server\n  its audience must be exactly {audience}"
    )]
    WrongAudience { found: String, audience: String },
    /// The variable holds something else.
    #[error("JOBPASS_ID_TOKEN does not hold a signed token (JWT)\n  is it a variable that was never expanded?")]
    NotAToken,
    /// The only token is too old.
    #[error(
        "the job's token expired {ago}s ago, and {ci} gives no other one to a running job\n  \
         ask for what the job needs before it expires (GitLab: the job's timeout sets the token's life)"
    )]
    Expired { ago: i64, ci: &'static str },
}

/// The job's token: fetched once, and again only when it has expired.
pub(crate) struct JobToken<'a> {
    source: &'a dyn Source,
    on_fetch: &'a dyn Fn(&Secret),
    current: Option<Secret>,
}

impl<'a> JobToken<'a> {
    /// Fetches nothing yet. `on_fetch` sees every token before anyone else (to mask it).
    pub(crate) fn new(source: &'a dyn Source, on_fetch: &'a dyn Fn(&Secret)) -> Self {
        Self { source, on_fetch, current: None }
    }

    /// The token to send now.
    ///
    /// # Errors
    /// When there is none, or none that is still good.
    pub(crate) fn current(&mut self, outbound: &Outbound, audience: &str) -> Result<&Secret, SourceError> {
        let age = self.current.as_ref().and_then(|token| expired_for(token, now()));
        if let (Some(ago), false) = (age, self.source.gives_fresh_tokens()) {
            return Err(SourceError::Expired { ago, ci: self.source.name() });
        }
        if self.current.is_none() || age.is_some() {
            let token = self.source.token(outbound, audience)?;
            (self.on_fetch)(&token);
            if let (Some(ago), false) = (expired_for(&token, now()), self.source.gives_fresh_tokens()) {
                return Err(SourceError::Expired { ago, ci: self.source.name() });
            }
            self.current = Some(token);
        }
        self.current.as_ref().ok_or(SourceError::NotAToken)
    }
}

/// For how many seconds a token has been expired, margin included; `None` while it is good or cannot be read.
fn expired_for(token: &Secret, now: i64) -> Option<i64> {
    let expiry = CompactJwt::parse(token.expose()).ok()?.unverified_expiry().ok()??;
    (now + EXPIRY_MARGIN >= expiry).then(|| now - expiry)
}

/// Checks a token that was made before this program ran: is it one, and is it for this server?
fn check_given(token: &str, audience: &str) -> Result<Secret, SourceError> {
    #[derive(serde::Deserialize)]
    struct Audience {
        aud: Option<serde_json::Value>,
    }
    let token = token.trim();
    let parsed = CompactJwt::parse(token).map_err(|_| SourceError::NotAToken)?;
    let claims: Audience = serde_json::from_slice(parsed.payload()).map_err(|_| SourceError::NotAToken)?;
    let found: Vec<String> = match claims.aud {
        Some(serde_json::Value::String(one)) => vec![one],
        Some(serde_json::Value::Array(many)) => many.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    if found.as_slice() == [audience] {
        return Ok(Secret::from(token));
    }
    let found = if found.is_empty() { "no audience".to_owned() } else { found.join(" and ") };
    Err(SourceError::WrongAudience { found, audience: audience.to_owned() })
}
