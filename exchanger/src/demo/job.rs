//! The claims of a job, in the shape of each CI: names, types and defaults as the real ones send them.

use serde_json::{Map, Value, json};

/// Whose tokens the issuer imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ci {
    /// GitHub Actions: the job asks for a token, for any audience, as often as it wants.
    GitHub,
    /// GitLab CI: the token is put into a variable once, at the start of the job.
    GitLab,
}

impl Ci {
    /// Where the issuer publishes its keys.
    pub(super) const fn jwks_path(self) -> &'static str {
        match self {
            Self::GitHub => "/.well-known/jwks",
            Self::GitLab => "/oauth/discovery/keys",
        }
    }

    /// Seconds that a token lives: GitHub's documented sample, and GitLab's where a job has no timeout.
    pub(super) const fn lifetime(self) -> i64 {
        300
    }

    /// How far `nbf` lies before `iat`, in seconds.
    pub(super) const fn backdating(self) -> i64 {
        match self {
            Self::GitHub => 600,
            Self::GitLab => 5,
        }
    }

    /// The claims of a job that was started by a push to the default branch, without the registered
    /// ones that depend on the moment, and without `sub`.
    pub(super) fn claims(self) -> Map<String, Value> {
        let claims = match self {
            Self::GitHub => json!({
                "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "base_ref": "", "head_ref": "",
                "sha": "8f3c1d5b0e6a4f7c9b2d1e0f3a5c7b9d8e6f4a2c",
                "repository": "acme/api", "repository_id": "772002", "repository_visibility": "private",
                "repository_owner": "acme", "repository_owner_id": "1001",
                "enterprise": "acme-corp", "enterprise_id": "31",
                "actor": "octocat", "actor_id": "583231", "event_name": "push",
                "workflow": "deploy",
                "workflow_ref": "acme/api/.github/workflows/deploy.yml@refs/heads/main",
                "workflow_sha": "8f3c1d5b0e6a4f7c9b2d1e0f3a5c7b9d8e6f4a2c",
                "job_workflow_ref": "acme/api/.github/workflows/deploy.yml@refs/heads/main",
                "job_workflow_sha": "8f3c1d5b0e6a4f7c9b2d1e0f3a5c7b9d8e6f4a2c",
                "run_id": "15410912345", "run_number": "212", "run_attempt": "1", "check_run_id": "43381227001",
                "runner_environment": "github-hosted",
            }),
            Self::GitLab => json!({
                "namespace_id": "1001", "namespace_path": "acme", "project_id": "772002", "project_path": "acme/api",
                "project_visibility": "private",
                "job_project_id": "772002", "job_project_path": "acme/api",
                "job_namespace_id": "1001", "job_namespace_path": "acme",
                "user_id": "17", "user_login": "jo", "user_email": "jo@acme.example", "user_access_level": "maintainer",
                "pipeline_id": "905512", "pipeline_source": "push", "job_id": "7712803",
                "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
                "groups_direct": ["acme", "acme/platform"],
                "runner_id": 44, "runner_environment": "gitlab-hosted",
                "sha": "8f3c1d5b0e6a4f7c9b2d1e0f3a5c7b9d8e6f4a2c",
                "ci_config_ref_uri": "gitlab.example/acme/api//.gitlab-ci.yml@refs/heads/main",
                "ci_config_sha": "8f3c1d5b0e6a4f7c9b2d1e0f3a5c7b9d8e6f4a2c",
            }),
        };
        match claims {
            Value::Object(claims) => claims,
            _ => Map::new(),
        }
    }

    /// `sub`, composed from the other claims by the platform's default format.
    pub(super) fn subject(self, claims: &Map<String, Value>) -> String {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
        match self {
            Self::GitHub => {
                let context = match (text("environment"), text("event_name")) {
                    ("", "pull_request") => "pull_request".to_owned(),
                    ("", _) => format!("ref:{}", text("ref")),
                    (environment, _) => format!("environment:{}", environment.replace(':', "%3A")),
                };
                format!("repo:{}:{context}", text("repository"))
            }
            Self::GitLab => {
                format!("project_path:{}:ref_type:{}:ref:{}", text("project_path"), text("ref_type"), text("ref"))
            }
        }
    }
}
