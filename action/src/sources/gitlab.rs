//! GitLab CI: the token is made before the job starts (`id_tokens:`) and there is no other one.

use super::{Source, SourceError, check_given};
use crate::{env::Env, mask::Masking, outbound::Outbound};
use jobpass_protocol::Secret;
use std::path::PathBuf;

struct GitLab(Env);

pub(super) fn detect(env: &Env) -> Option<Box<dyn Source>> {
    // Runners that imitate GitLab set GITLAB_CI to `false`, but give the job its server and id.
    let here = env.is_true("GITLAB_CI") || (env.text("CI_SERVER_URL").is_some() && env.text("CI_JOB_ID").is_some());
    here.then(|| Box::new(GitLab(env.clone())) as Box<dyn Source>)
}

impl Source for GitLab {
    fn name(&self) -> &'static str {
        "GitLab CI"
    }

    fn job_key(&self) -> String {
        ["CI_SERVER_URL", "CI_PROJECT_ID", "CI_PIPELINE_ID", "CI_JOB_ID"]
            .map(|name| self.0.text(name).unwrap_or_default())
            .join("\n")
    }

    fn masking(&self) -> Masking {
        Masking::None
    }

    fn workspace(&self) -> Option<PathBuf> {
        self.0.path("CI_PROJECT_DIR")
    }

    fn gives_fresh_tokens(&self) -> bool {
        false
    }

    fn token(&self, _: &Outbound, audience: &str) -> Result<Secret, SourceError> {
        let token = self.0.text("JOBPASS_ID_TOKEN");
        let token = token.ok_or_else(|| SourceError::GitLabIdTokens { audience: audience.to_owned() })?;
        check_given(token, audience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    #[test]
    fn tokens_and_cures() {
        let jwt = |claims: &str| {
            let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
            format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(claims), part("signature"))
        };
        for (token, expected) in [
            (jwt(r#"{"aud":"https://jobpass.example"}"#), None),
            (jwt(r#"{"aud":["https://jobpass.example"]}"#), None),
            (jwt(r#"{"aud":"https://other.example"}"#), Some("is for https://other.example, not")),
            (jwt(r#"{"aud":["https://jobpass.example","x"]}"#), Some("is for https://jobpass.example and x, not")),
            (jwt("{}"), Some("is for no audience, not")),
            ("$JOBPASS_ID_TOKEN".to_owned(), Some("never expanded")),
            (String::new(), Some("aud: https://jobpass.example")),
        ] {
            let env = Env::from([("GITLAB_CI", "true"), ("JOBPASS_ID_TOKEN", &token)]);
            let source = detect(&env).expect("this is GitLab");
            let found = source.token(&Outbound::new(&env), "https://jobpass.example").err().map(|e| e.to_string());
            match (expected, found) {
                (None, found) => assert_eq!(found, None),
                (Some(part), found) => assert!(found.as_deref().unwrap_or_default().contains(part), "{found:?}"),
            }
        }
    }

    #[test]
    fn imitations_are_found_too() {
        for (env, here) in [
            (Env::from([("GITLAB_CI", "false"), ("CI_SERVER_URL", "https://gitlab.com"), ("CI_JOB_ID", "7")]), true),
            (Env::from([("GITLAB_CI", "false"), ("CI", "true")]), false),
            (Env::default(), false),
        ] {
            assert_eq!(detect(&env).is_some(), here);
        }
    }
}
