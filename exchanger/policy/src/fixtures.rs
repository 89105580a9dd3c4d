//! Tokens' payloads as each CI sends them, for tests of policies.

/// The fixtures by name: `github/pull_request`. The part before the slash is the profile.
pub const FIXTURES: &[(&str, &str)] = &[
    ("github/push", include_str!("../fixtures/github/push.json")),
    ("github/pull_request", include_str!("../fixtures/github/pull_request.json")),
    ("github/environment", include_str!("../fixtures/github/environment.json")),
    ("github/tag", include_str!("../fixtures/github/tag.json")),
    ("gitlab/branch", include_str!("../fixtures/gitlab/branch.json")),
    ("gitlab/merge_request", include_str!("../fixtures/gitlab/merge_request.json")),
    ("buildkite/branch", include_str!("../fixtures/buildkite/branch.json")),
    ("buildkite/pull_request", include_str!("../fixtures/buildkite/pull_request.json")),
    ("buildkite/tag", include_str!("../fixtures/buildkite/tag.json")),
    ("circleci/branch", include_str!("../fixtures/circleci/branch.json")),
    ("circleci/fork", include_str!("../fixtures/circleci/fork.json")),
    ("circleci/ssh_rerun", include_str!("../fixtures/circleci/ssh_rerun.json")),
    ("bitbucket/deployment", include_str!("../fixtures/bitbucket/deployment.json")),
    ("bitbucket/branch", include_str!("../fixtures/bitbucket/branch.json")),
    ("azure-devops/pipeline", include_str!("../fixtures/azure-devops/pipeline.json")),
    ("terraform/apply", include_str!("../fixtures/terraform/apply.json")),
    ("terraform/plan", include_str!("../fixtures/terraform/plan.json")),
    ("jenkins/build", include_str!("../fixtures/jenkins/build.json")),
    ("codefresh/branch", include_str!("../fixtures/codefresh/branch.json")),
    ("codefresh/pull_request", include_str!("../fixtures/codefresh/pull_request.json")),
    ("semaphore/branch", include_str!("../fixtures/semaphore/branch.json")),
    ("semaphore/pull_request", include_str!("../fixtures/semaphore/pull_request.json")),
    ("semaphore/debug", include_str!("../fixtures/semaphore/debug.json")),
    ("forgejo/push", include_str!("../fixtures/forgejo/push.json")),
    ("forgejo/pull_request", include_str!("../fixtures/forgejo/pull_request.json")),
    ("kubernetes/pod", include_str!("../fixtures/kubernetes/pod.json")),
    ("kubernetes/job", include_str!("../fixtures/kubernetes/job.json")),
    ("spiffe/workload", include_str!("../fixtures/spiffe/workload.json")),
    ("google/instance", include_str!("../fixtures/google/instance.json")),
    ("google/cloud_build", include_str!("../fixtures/google/cloud_build.json")),
];

/// The payload of a fixture.
#[must_use]
pub fn fixture(name: &str) -> Option<&'static str> {
    FIXTURES.iter().find(|(known, _)| *known == name).map(|(_, payload)| *payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{claims::Claims, issuer::Profile};

    #[test]
    fn every_fixture_is_a_token_that_its_profile_knows_all_of() {
        for (name, payload) in FIXTURES {
            let profile = Profile::named(name.split('/').next().expect("a profile")).expect("a profile");
            let claims = Claims::parse(&profile, payload.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(claims.unknown().collect::<Vec<_>>(), [""; 0], "{name}");
            let registered = claims.registered();
            assert!(profile.url_matches(&registered.iss), "{name}: {}", registered.iss);
            assert!(
                registered.exp - registered.iat <= i64::try_from(profile.max_lifetime()).expect("seconds"),
                "{name}"
            );
            assert_eq!(registered.jti.is_some(), profile.has_jti(), "{name}");
            assert!(profile.name() == "forgejo" || claims.get("sub").is_some(), "{name}: a subject of a known shape");
        }
    }

    #[test]
    fn every_profile_has_a_fixture() {
        for profile in Profile::all() {
            let prefix = format!("{}/", profile.name());
            assert!(FIXTURES.iter().any(|(name, _)| name.starts_with(&prefix)), "{prefix}");
        }
    }
}
