//! GitHub Actions (github.com, GHE.com, GHES) and what speaks its protocol, such as Forgejo and act.
//!
//! The runner hands every step a URL and a bearer token for it; a GET with `audience` gives the
//! job's ID token (GitHub docs, "OpenID Connect reference", requesting the token).

use super::{Source, SourceError};
use crate::{
    env::Env,
    mask::Masking,
    outbound::{Answer, Endpoint, Outbound, OutboundError, Peer},
    talk::Talk,
};
use jobpass_protocol::Secret;
use std::{path::PathBuf, thread, time::Duration};
use url::form_urlencoded::byte_serialize;

const URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const BEARER: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

struct GitHub(Env);

pub(super) fn detect(env: &Env) -> Option<Box<dyn Source>> {
    (env.is_true("GITHUB_ACTIONS") || env.text(URL).is_some()).then(|| Box::new(GitHub(env.clone())) as Box<dyn Source>)
}

impl Source for GitHub {
    fn name(&self) -> &'static str {
        "GitHub Actions"
    }

    fn job_key(&self) -> String {
        // GITHUB_JOB is the same for every leg of a matrix; a runner (by name and directory) runs one job at a time.
        let parts = [
            "GITHUB_SERVER_URL",
            "GITHUB_REPOSITORY",
            "GITHUB_RUN_ID",
            "GITHUB_RUN_ATTEMPT",
            "GITHUB_JOB",
            "RUNNER_NAME",
            "RUNNER_TEMP",
            "GITHUB_WORKSPACE",
        ];
        parts.map(|name| self.0.text(name).unwrap_or_default()).join("\n")
    }

    fn masking(&self) -> Masking {
        if Talk::of(&self.0) == Talk::GitHub { Masking::GitHub } else { Masking::None }
    }

    fn workspace(&self) -> Option<PathBuf> {
        self.0.path("GITHUB_WORKSPACE")
    }

    fn gives_fresh_tokens(&self) -> bool {
        true
    }

    fn token(&self, outbound: &Outbound, audience: &str) -> Result<Secret, SourceError> {
        let (Some(url), Some(bearer)) = (self.0.text(URL), self.0.text(BEARER)) else {
            return Err(self.fork().map_or(SourceError::GitHubPermission, |head| SourceError::GitHubFork { head }));
        };
        let broken = |problem: String| SourceError::GitHubEndpoint { problem };
        let joint = if url.contains('?') { '&' } else { '?' };
        let encoded: String = byte_serialize(audience.as_bytes()).collect();
        let endpoint = Endpoint::parse(&format!("{url}{joint}audience={encoded}"))
            .map_err(|problem| broken(format!("{URL} {problem}")))?;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE * 2_u32.pow(attempt - 1));
            }
            match outbound.fetch(&endpoint, bearer, Peer::Ci, TIMEOUT) {
                Ok(answer) if answer.status == 200 => return read(&answer).map_err(broken),
                Ok(answer) if answer.status == 429 || answer.status >= 500 => {
                    last = format!("status {}", answer.status)
                }
                Ok(answer) => return Err(broken(format!("{endpoint} answered with status {}", answer.status))),
                Err(OutboundError::Setup(problem)) => return Err(broken(format!("{endpoint}: {problem}"))),
                Err(OutboundError::Network(problem)) => last = problem,
            }
        }
        Err(broken(format!("{endpoint}, {ATTEMPTS} attempts; the last one: {last}")))
    }
}

fn read(answer: &Answer) -> Result<Secret, String> {
    #[derive(serde::Deserialize)]
    struct Wire {
        value: String,
    }
    let wire: Wire = serde_json::from_slice(&answer.body).map_err(|_| "its answer has no `value`".to_owned())?;
    Ok(Secret::new(wire.value))
}

impl GitHub {
    /// The fork that a pull request comes from.
    fn fork(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Event {
            pull_request: PullRequest,
        }
        #[derive(serde::Deserialize)]
        struct PullRequest {
            head: Side,
            base: Side,
        }
        #[derive(serde::Deserialize)]
        struct Side {
            repo: Option<Repository>,
        }
        #[derive(serde::Deserialize)]
        struct Repository {
            full_name: String,
        }
        let event = std::fs::read(self.0.path("GITHUB_EVENT_PATH")?).ok()?;
        let Event { pull_request: PullRequest { head, base } } = serde_json::from_slice(&event).ok()?;
        let base = base.repo?.full_name;
        // A fork that was deleted since is `null`.
        let head = head.repo.map_or_else(|| "since deleted".to_owned(), |repo| repo.full_name);
        (head != base).then_some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_token_names_its_cure() {
        let event = |head: &str| {
            let file = tempfile::NamedTempFile::new().expect("temporary file");
            let json = format!(
                r#"{{"pull_request":{{"head":{{"repo":{head}}},"base":{{"repo":{{"full_name":"acme/api"}}}}}}}}"#
            );
            std::fs::write(file.path(), json).expect("write");
            file
        };
        for (head, cure) in [
            (r#"{"full_name":"mallory/api"}"#, "from a fork (mallory/api)"),
            ("null", "from a fork (since deleted)"),
            (r#"{"full_name":"acme/api"}"#, "id-token: write"),
        ] {
            let file = event(head);
            let path = file.path().to_str().expect("UTF-8");
            let env = Env::from([("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_PATH", path)]);
            let source = detect(&env).expect("this is GitHub");
            let error = source.token(&Outbound::new(&env), "https://jobpass.example").expect_err("no token");
            assert!(error.to_string().contains(cure), "{error}");
        }
        assert!(detect(&Env::from([("GITLAB_CI", "true")])).is_none());
    }
}
