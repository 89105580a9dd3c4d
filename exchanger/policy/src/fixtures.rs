//! Tokens' payloads as each CI sends them, for tests of policies.

/// The fixtures by name: `github/pull_request`. The part before the slash is the profile.
pub const FIXTURES: &[(&str, &str)] = &[
    ("github/push", include_str!("../fixtures/github/push.json")),
    ("github/pull_request", include_str!("../fixtures/github/pull_request.json")),
    ("github/environment", include_str!("../fixtures/github/environment.json")),
    ("github/tag", include_str!("../fixtures/github/tag.json")),
    ("gitlab/branch", include_str!("../fixtures/gitlab/branch.json")),
    ("gitlab/merge_request", include_str!("../fixtures/gitlab/merge_request.json")),
];

/// The payload of a fixture.
#[must_use]
pub fn fixture(name: &str) -> Option<&'static str> {
    FIXTURES.iter().find(|(known, _)| *known == name).map(|(_, payload)| *payload)
}
