//! The lint rules: what they are called, how bad it is, why it matters and what to do.

use crate::source::Severity;

/// A lint rule.
#[derive(Clone, Copy, Debug)]
pub struct LintRule {
    /// Its id, also the heading of its section in `docs/lint.md`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Why it matters.
    pub reason: &'static str,
    /// What to do.
    pub fix: &'static str,
}

const fn warning(id: &'static str, reason: &'static str, fix: &'static str) -> LintRule {
    LintRule { id, severity: Severity::Warning, reason, fix }
}

const fn info(id: &'static str, reason: &'static str, fix: &'static str) -> LintRule {
    LintRule { id, severity: Severity::Info, reason, fix }
}

const fn error(id: &'static str, reason: &'static str, fix: &'static str) -> LintRule {
    LintRule { id, severity: Severity::Error, reason, fix }
}

/// Every lint rule.
pub const RULES: &[LintRule] = &[
    // whose job
    warning(
        "tenant-by-config-only",
        "the rule itself accepts every tenant of a shared issuer; only the server's `tenants:` keeps strangers out",
        "pin the tenant's id in the rule too",
    ),
    warning(
        "wildcard-before-tenant",
        "the pattern is open before it has named an owner, so somebody else's job can match it",
        "write the owner out, or better: pin the id",
    ),
    warning(
        "mutable-name-without-id",
        "a name can be given up, and registered again by somebody else",
        "pin the id beside the name",
    ),
    warning(
        "sub-without-id",
        "`sub` is a text in a format that others may choose, made of names that can change hands",
        "pin the ids that the token has beside it",
    ),
    warning("unbounded", "a claim that says which job it is, is not matched", "match one of the claims named"),
    warning(
        "mixed-case",
        "the platform takes this name in any case, and the token has it as it was registered",
        "pin the id, or check the spelling against a real token",
    ),
    info(
        "person-instead-of-code",
        "who started a job says nothing about which code runs in it",
        "bound the code as well: branch, environment or workflow",
    ),
    // which code
    warning(
        "no-ref-or-environment",
        "nothing bounds which code runs: whoever can push a branch gets the credential",
        "match the branch, tag or environment",
    ),
    warning(
        "any-ref",
        "every branch or tag matches, so whoever can push one gets the credential",
        "list the branches, or match a protected environment",
    ),
    warning("ref-without-type", "a branch and a tag can have the same name", "match the type of the ref as well"),
    info(
        "ref-type-unknown",
        "the token does not say whether this is a branch or a tag",
        "keep tags of that name from being pushed",
    ),
    warning(
        "pull-request-ref",
        "the pattern matches the refs of pull requests, whose code nobody has approved",
        "match refs/heads/ or refs/tags/ only",
    ),
    warning(
        "pull-request-claim",
        "the claim is set by whoever opens a pull request",
        "match `ref` and the event instead",
    ),
    error(
        "dangerous-event",
        "the event runs with the repository's rights on input of strangers",
        "list the events that deploy, such as push",
    ),
    warning(
        "review-event",
        "the event runs code that nobody has approved yet",
        "list the events that deploy, such as push",
    ),
    warning(
        "event-not-named",
        "every kind of event is accepted, also pull requests and those that come to exist later",
        "list the events that deploy, such as push",
    ),
    warning(
        "fork-merge-request",
        "when a fork's merge request runs in the parent project, the project's claims are the fork's",
        "pin `job_project_id` as well, or leave merge requests out",
    ),
    warning(
        "reusable-workflow-unpinned",
        "the reusable workflow is accepted at refs that can be moved",
        "name one protected ref, or match the commit",
    ),
    warning(
        "reusable-workflow-without-caller",
        "anybody can call a reusable workflow",
        "pin the id of the calling repository or its owner",
    ),
    warning(
        "free-text-claim",
        "the claim is free text of the pipeline's author",
        "match the file that defines the pipeline",
    ),
    // where it runs
    warning(
        "runner-not-named",
        "what goes to production may come from a self-hosted machine, which earlier jobs may have prepared",
        "match the platform's own runners",
    ),
    warning(
        "self-hosted-production",
        "the rule accepts self-hosted machines for production",
        "match the platform's own runners",
    ),
    info("environment-unprotected", "an environment's name alone protects nothing", "match its protection as well"),
    error(
        "refused-value",
        "the value marks a debugging session or another job that must get nothing",
        "leave the value out",
    ),
    warning(
        "catch-all-value",
        "the value is what everything has for which nobody chose another",
        "make one for this job, and name that",
    ),
    warning(
        "phases-together",
        "one phase runs what nobody has approved, and gets what the other gets",
        "write a grant for each",
    ),
    warning("asks-for-unprotected", "the rule accepts what nothing protects", "match \"true\" only"),
    // patterns
    warning(
        "matches-anything",
        "the pattern matches every value, and so bounds nothing",
        "take it away, or name values",
    ),
    warning(
        "regex-top-level-alternation",
        "`a|b` is easily taken for a part of its neighbours",
        "list the alternatives: [a, { regex: b }]",
    ),
    warning(
        "regex-wildcard",
        "`.*` also matches separators, and so things of another kind",
        "say which characters: [^/]+",
    ),
    warning("regex-any-character", "an unescaped `.` matches any character", "write `\\.` for a dot"),
    warning(
        "regex-case-insensitive",
        "upper and lower case are told apart by the platform where it matters",
        "write the value as the platform has it",
    ),
    warning(
        "open-end",
        "the pattern begins or ends in the middle of a name: `main*` matches `main-of-somebody-else`",
        "end the fixed part with a separator, or list the values",
    ),
    warning(
        "open-condition",
        "a part of a value is compared that does not end at a separator, or may be anywhere",
        "compare the whole value, or end at a separator",
    ),
    info(
        "negative-condition",
        "what is excluded is known today; what it lets in comes tomorrow",
        "say what is allowed",
    ),
    warning("idle-condition", "a part of the condition is the same whatever the token says", "take that part away"),
    warning("pattern-is-exact", "the pattern has nothing open in it", "write the value itself"),
    // values
    warning("impossible-value", "no token has this value", "see what the claim's values are"),
    warning("one-run-only", "the value is of a single run: no other job will have it", "match what all runs share"),
    warning("weak-claim", "the claim shows little", "match a claim that the platform asserts"),
    warning(
        "never-absent",
        "every token of this issuer has the claim, so the rule never matches",
        "take the line or the rule away",
    ),
    warning("contradiction", "the lines of the rule exclude each other", "repair one of them"),
    warning(
        "empty-value",
        "an empty text is what a token has when nothing was chosen",
        "write { absent: true }, or the value that you mean",
    ),
    warning(
        "odd-characters",
        "the value has white space at an end, or characters that are easily taken for others",
        "write it again by hand",
    ),
    error("placeholder", "the value is a placeholder", "write the real value"),
    warning(
        "shadowed-rule",
        "another rule already permits everything that this one does",
        "take it away, or narrow the other",
    ),
    // the grant
    warning("ttl-too-long", "a credential that lives long is worth stealing", "one hour at most: renew instead"),
    warning(
        "lifetime-too-long",
        "a credential that is renewed for longer than a day is a standing one",
        "bound `max_lifetime` by how long the job takes",
    ),
    warning("review-missing", "nobody will look at the grant again", "write `review_by:` with a day in the next year"),
    warning("review-past", "the day of the review has passed", "look at the grant, then set a new day"),
    info("review-far", "the review is more than two years off", "review once a year"),
    warning(
        "description-missing",
        "nobody can tell whether the grant is still needed",
        "say in a sentence what it is for",
    ),
    warning("owner-unreachable", "the owner is not an address", "write a team's address"),
    warning(
        "disclose-full",
        "strangers on a shared issuer learn what the grant's rules are",
        "write `disclose: tenant`",
    ),
    info("no-tests", "nothing shows that the grant denies what it must", "write `tests:` with a permit and a denial"),
    warning("unknown-allow", "there is no lint rule of that id", "see docs/lint.md"),
    info("unused-allow", "nothing was found that this silences", "take it away"),
];

/// The lint rule of this id.
#[must_use]
pub fn rule(id: &str) -> Option<&'static LintRule> {
    RULES.iter().find(|rule| rule.id == id)
}
