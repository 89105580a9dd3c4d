//! What a grant's file shows to be unwise, though it compiles: one rule per known way to trust more
//! than was meant.
//!
//! Nothing here decides anything. The rules know no CI by name; what they know of one is in its
//! profile. A finding is silenced where it does not count, in the file, with a reason:
//! `allow: [{ lint: ID, reason: … }]` on the grant or the rule.

use crate::{
    claims::{Held, Value},
    compile::Compiled,
    document::Disclose,
    grant::{Check, Grant, Rule},
    guards::is_overdue,
    issuer::{Class, Profile},
    pattern::{Matcher, Pattern},
    source::{Diagnostic, Severity, did_you_mean},
};
use regex::Regex;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, LazyLock},
};

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
    // patterns
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
        "the pattern ends in the middle of a name: `main*` matches `main-of-somebody-else`",
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
    warning("pattern-is-exact", "the pattern has nothing open in it", "write the value itself"),
    // values
    warning("impossible-value", "no token has this value", "see what the claim's values are"),
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

/// Everything to be said about a compiled set: its own diagnostics and what linting finds, at `at`
/// (epoch seconds), in the order of files and places.
#[must_use]
pub fn lint(compiled: &Compiled, at: i64) -> Vec<Diagnostic> {
    let mut found = compiled.diagnostics.clone();
    for grant in compiled.set.grants() {
        found.extend(GrantLinter::new(grant).lint(at));
    }
    found.sort_by(|a, b| {
        let key = |d: &Diagnostic| (d.path().to_owned(), d.span().map_or(0, |span| span.start), d.code);
        key(a).cmp(&key(b))
    });
    found
}

/// The longest TTL that is not too long, in seconds.
const LONG_TTL: u32 = 3600;
/// The longest lifetime that is not too long, in seconds.
const LONG_LIFETIME: u32 = 24 * 3600;
const TWO_YEARS: i64 = 2 * 366 * 24 * 3600;

struct GrantLinter<'a> {
    grant: &'a Grant,
    found: Vec<Diagnostic>,
    /// Places of the `allow` entries that silenced something.
    used: RefCell<BTreeSet<usize>>,
}

impl<'a> GrantLinter<'a> {
    fn new(grant: &'a Grant) -> Self {
        Self { grant, found: Vec::new(), used: RefCell::default() }
    }

    fn lint(mut self, at: i64) -> Vec<Diagnostic> {
        self.grant_itself(at);
        for rule in &self.grant.rules {
            self.whose(rule);
            self.which_code(rule);
            self.where_it_runs(rule);
            for (check, place) in rule.checks.iter().zip(&rule.claims_at) {
                self.matcher(rule, check, place);
            }
            self.condition(rule);
            self.shadowed(rule);
        }
        self.allows();
        self.found
    }

    /// Reports a finding, unless it is allowed here.
    fn say(&mut self, id: &'static str, rule: Option<&Rule>, at: &Option<Range<usize>>, what: &str) {
        let allows = self.grant.allow.iter().chain(rule.iter().flat_map(|rule| &rule.allow));
        let mut silenced = false;
        for allow in allows.filter(|allow| allow.lint.value == id) {
            self.used.borrow_mut().extend(allow.at.as_ref().map(|at| at.start));
            silenced = true;
        }
        let Some(lint) = self::rule(id).filter(|_| !silenced) else { return };
        let subject = rule.map(|rule| format!("rule {}: ", rule.name)).unwrap_or_default();
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        let message = format!("{subject}{what}{}", lint.reason);
        let at = at.clone().or_else(|| rule.and_then(|rule| rule.at.clone())).or_else(|| self.grant.at.clone());
        let help = format!("{}; docs/lint.md#{id}", lint.fix);
        let diagnostic = Diagnostic::new(&self.grant.file, at, id, message).with_help(help);
        self.found.push(diagnostic.with_severity(lint.severity));
    }

    fn grant_itself(&mut self, at: i64) {
        let grant = self.grant;
        if grant.ttl > LONG_TTL {
            self.say("ttl-too-long", None, &grant.ttl_at, "");
        }
        if grant.max_lifetime > LONG_LIFETIME {
            self.say("lifetime-too-long", None, &grant.ttl_at, "");
        }
        match grant.review_by() {
            None => self.say("review-missing", None, &None, ""),
            Some(day) if is_overdue(day, at) => self.say("review-past", None, &None, day),
            Some(day) if !is_overdue(day, at.saturating_add(TWO_YEARS)) => self.say("review-far", None, &None, day),
            Some(_) => {}
        }
        if grant.description().is_none_or(|text| text.trim().is_empty()) {
            self.say("description-missing", None, &None, "");
        }
        if !grant.owner().contains('@') {
            self.say("owner-unreachable", None, &None, "");
        }
        if is_placeholder(grant.owner()) {
            self.say("placeholder", None, &None, "`owner`");
        }
        if grant.disclose == Disclose::Full && grant.rules.iter().any(|rule| rule.is_shared) {
            self.say("disclose-full", None, &None, "");
        }
        if grant.cases.is_empty() {
            self.say("no-tests", None, &None, "");
        }
    }

    fn whose(&mut self, rule: &Rule) {
        let profile = &rule.profile;
        if rule.is_shared && !profile.pins_tenant(|claim| rule.pins(claim)) {
            self.say("tenant-by-config-only", Some(rule), &None, "");
        }
        for demand in &profile.lint().demand {
            if !demand.any_of.iter().any(|claim| is_bound(rule, claim)) {
                let what = format!("none of {} is matched; {}", demand.any_of.join(", "), demand.because);
                self.say("unbounded", Some(rule), &None, &what);
            }
        }
        for (check, place) in rule.checks.iter().zip(&rule.claims_at) {
            let Some(claim) = profile.claim(&check.claim) else { continue };
            let source = profile.derived_from(&check.claim).unwrap_or(&check.claim);
            let is_subject = profile.subject() == Some(source);
            if let (Class::Name, Some(id), false) = (claim.class, &claim.id, matches!(check.matcher, Matcher::Absent)) {
                if !is_bound(rule, id) {
                    self.say(
                        "mutable-name-without-id",
                        Some(rule),
                        place,
                        &format!("`{}` without `{id}`", check.claim),
                    );
                }
            } else if is_subject
                && profile.claim(source).is_some_and(|claim| !matches!(claim.class, Class::Stable | Class::Asserted))
                && profile.has_unit_ids()
                && !rule.checks.iter().any(|other| profile.is_unit_id(&other.claim))
            {
                self.say("sub-without-id", Some(rule), place, &format!("`{}`", check.claim));
            }
            let has_owner = claim.class == Class::Name
                && (claim.id.as_deref() == profile.tenant_claim() || (claim.has_alphabet() && claim.may_hold('/')));
            if is_subject || has_owner || claim.separators.contains('@') {
                for prefix in patterns(&check.matcher).iter().map(fixed_prefix) {
                    if !names_an_owner(prefix, is_subject) {
                        self.say("wildcard-before-tenant", Some(rule), place, &format!("`{}`", check.claim));
                    }
                }
            }
        }
        let people = ["actor", "actor_id", "user_id", "user_login", "user_email", "initiator", "scm_user_name"];
        if let Some(check) = rule.checks.iter().find(|check| people.contains(&&*check.claim))
            && !profile.lint().code.iter().any(|claim| is_bound(rule, claim))
        {
            self.say("person-instead-of-code", Some(rule), &rule.place_of(check), &format!("`{}`", check.claim));
        }
    }

    fn which_code(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        if !facts.code.is_empty() && !facts.code.iter().any(|claim| is_bound(rule, claim)) {
            self.say("no-ref-or-environment", Some(rule), &None, "");
        }
        if let Some(event) = &facts.event {
            match checks_of(rule, event).next() {
                None if !is_bound(rule, event) => {
                    self.say("event-not-named", Some(rule), &None, &format!("`{event}` is not matched"));
                }
                None => {}
                Some(check) => {
                    let place = rule.place_of(check);
                    let accepts = |events: &[String]| {
                        events
                            .iter()
                            .find(|event| effective(rule, &check.claim).all(|c| accepts(&c.matcher, event)))
                            .cloned()
                    };
                    if let Some(event) = accepts(&facts.events_dangerous) {
                        self.say("dangerous-event", Some(rule), &place, &event);
                    }
                    if let Some(event) = accepts(&facts.events_review) {
                        self.say("review-event", Some(rule), &place, &event);
                    }
                }
            }
        }
        if let Some(fork) = &facts.fork {
            let reviews = match &facts.event {
                Some(event) => {
                    !is_bound(rule, event)
                        || effective(rule, event)
                            .all(|check| facts.events_review.iter().any(|event| accepts(&check.matcher, event)))
                }
                None => true,
            };
            if reviews && !is_bound(rule, &fork.claim) {
                self.say("fork-merge-request", Some(rule), &None, "");
            }
        }
        if let Some(reusable) = &facts.reusable {
            let derived = |check: &&Check| {
                *check.claim == *reusable.claim || profile.derived_from(&check.claim) == Some(&reusable.claim)
            };
            if let Some(check) = rule.checks.iter().find(derived) {
                let place = rule.place_of(check);
                let moves = |pattern: &Pattern| match pattern.text().rsplit_once('@') {
                    Some((_, at)) => at.contains('*') || at.contains(".+"),
                    None => true,
                };
                let at_is_named =
                    checks_of(rule, &format!("{}_at", reusable.claim.trim_end_matches("_ref"))).next().is_some()
                        || rule.checks.iter().any(|check| check.claim.ends_with("workflow_at"));
                let is_whole = *check.claim == *reusable.claim;
                let open = if is_whole { patterns(&check.matcher).iter().any(moves) } else { !at_is_named };
                if open && !is_bound(rule, &reusable.sha) {
                    self.say("reusable-workflow-unpinned", Some(rule), &place, "");
                }
                if !reusable.caller.iter().any(|claim| is_bound(rule, claim)) {
                    self.say("reusable-workflow-without-caller", Some(rule), &place, "");
                }
            }
        }
        if let Some(refs) = &facts.ref_type {
            for check in refs.claims.iter().flat_map(|claim| checks_of(rule, claim)) {
                let says = |text: &str| refs.unless_prefixed.iter().any(|prefix| text.starts_with(prefix.as_str()));
                let exact_is_clear = texts(&check.matcher).iter().all(|text| says(text));
                let patterns_are_clear = patterns(&check.matcher).iter().all(|pattern| says(fixed_prefix(pattern)));
                if exact_is_clear && patterns_are_clear {
                    continue;
                }
                let place = rule.place_of(check);
                match &refs.by {
                    Some(by) if is_bound(rule, by) => {}
                    Some(by) => {
                        self.say("ref-without-type", Some(rule), &place, &format!("`{}` without `{by}`", check.claim))
                    }
                    None => self.say("ref-type-unknown", Some(rule), &place, &format!("`{}`", check.claim)),
                }
            }
        }
    }

    fn where_it_runs(&mut self, rule: &Rule) {
        let profile = Arc::clone(&rule.profile);
        let facts = profile.lint();
        let is_production = |text: &str| text.to_lowercase().contains("prod");
        let environment = facts.environment.iter().flat_map(|claim| checks_of(rule, claim)).next();
        let production = is_production(self.grant.name.as_str())
            || environment.is_some_and(|check| texts(&check.matcher).iter().any(|text| is_production(text)));
        if let (Some(runner), Some(hosted), true) = (&facts.runner, &facts.runner_hosted, production) {
            match checks_of(rule, runner).next() {
                None if !is_bound(rule, runner) => {
                    self.say("runner-not-named", Some(rule), &None, &format!("`{runner}`"))
                }
                Some(check) if accepts(&check.matcher, "self-hosted") || !accepts(&check.matcher, hosted) => {
                    self.say("self-hosted-production", Some(rule), &rule.place_of(check), "");
                }
                _ => {}
            }
        }
        let protects = |check: &Check| accepts(&check.matcher, "true") && !accepts(&check.matcher, "false");
        if let (Some(check), Some(protected)) = (environment, &facts.environment_protected)
            && !effective(rule, protected).any(protects)
        {
            self.say("environment-unprotected", Some(rule), &rule.place_of(check), &format!("`{protected}`"));
        }
        for (claim, values) in &facts.refuse {
            for check in checks_of(rule, claim) {
                if let Some(value) = values.iter().find(|value| accepts(&check.matcher, value)) {
                    self.say("refused-value", Some(rule), &rule.place_of(check), &format!("`{claim}` {value}"));
                }
            }
        }
    }

    fn matcher(&mut self, rule: &Rule, check: &Check, at: &Option<Range<usize>>) {
        let profile = Arc::clone(&rule.profile);
        let Some(claim) = profile.claim(&check.claim) else { return };
        let name = format!("`{}`", check.claim);
        let facts = profile.lint();
        if matches!(check.matcher, Matcher::Absent)
            && profile.required_claims().iter().any(|required| **required == *check.claim)
        {
            self.say("never-absent", Some(rule), at, &name);
        }
        for value in texts(&check.matcher) {
            let impossible = (!claim.values.is_empty() && !claim.values.contains(&value))
                || value.chars().any(|c| !claim.may_hold(c));
            if value.is_empty() {
                self.say("empty-value", Some(rule), at, &name);
            } else if is_placeholder(&value) {
                self.say("placeholder", Some(rule), at, &format!("{name} {value}"));
            } else if value.trim() != value || !value.is_ascii() || value.chars().any(char::is_control) {
                self.say("odd-characters", Some(rule), at, &format!("{name} {value:?}"));
            } else if impossible {
                let nearest = did_you_mean(&value, claim.values.iter().map(String::as_str));
                let nearest = nearest.map(|value| format!(" (did you mean {value}?)")).unwrap_or_default();
                self.say("impossible-value", Some(rule), at, &format!("{name} {value}{nearest}"));
            } else if claim.fold_case
                && value.chars().any(|c| c.is_ascii_uppercase())
                && !claim.id.as_ref().is_some_and(|id| is_bound(rule, id))
            {
                self.say("mixed-case", Some(rule), at, &format!("{name} {value}"));
            }
        }
        if let Some(refs) =
            facts.ref_type.as_ref().filter(|refs| refs.claims.iter().any(|claim| **claim == *check.claim))
        {
            let types = refs.by.iter().flat_map(|by| effective(rule, by)).collect::<Vec<_>>();
            let all = texts(&check.matcher);
            let only = |prefix: &str| {
                !all.is_empty()
                    && all.iter().all(|text| text.starts_with(prefix))
                    && patterns(&check.matcher).is_empty()
            };
            for (prefix, kind) in [("refs/heads/", "branch"), ("refs/tags/", "tag")] {
                if only(prefix) && types.iter().any(|check| !accepts(&check.matcher, kind)) {
                    self.say("contradiction", Some(rule), at, &format!("{name} is a {kind}"));
                }
            }
        }
        if ["head_ref", "base_ref"].contains(&&*check.claim)
            && texts(&check.matcher).iter().any(|text| !text.is_empty())
        {
            self.say("pull-request-claim", Some(rule), at, &name);
        }
        if facts.free_text.iter().any(|free| **free == *check.claim) {
            self.say("free-text-claim", Some(rule), at, &name);
        }
        let is_code = facts.code.iter().any(|code| **code == *check.claim);
        for pattern in patterns(&check.matcher) {
            if is_code && ["refs/pull/1/merge", "refs/merge-requests/1/head"].iter().any(|text| pattern.is_match(text))
            {
                self.say("pull-request-ref", Some(rule), at, &name);
            }
            let environment = facts.environment.as_ref().is_some_and(|claim| is_bound(rule, claim));
            if is_code && !environment && matches_any_ref(pattern) {
                self.say("any-ref", Some(rule), at, &name);
            } else if ends_inside_a_name(pattern) {
                self.say("open-end", Some(rule), at, &format!("{name} {pattern}"));
            }
            if is_exact(pattern) {
                self.say("pattern-is-exact", Some(rule), at, &format!("{name} {pattern}"));
            }
            if let Pattern::Regex(regex) = pattern {
                let shape = RegexShape::of(regex.text());
                for (id, is_so) in [
                    ("regex-top-level-alternation", shape.alternation),
                    ("regex-wildcard", shape.wildcard),
                    ("regex-any-character", shape.any_character),
                    ("regex-case-insensitive", regex.text().contains("(?i")),
                ] {
                    if is_so {
                        self.say(id, Some(rule), at, &format!("{name} {pattern}"));
                    }
                }
            }
        }
    }

    fn condition(&mut self, rule: &Rule) {
        let Some(condition) = &rule.condition else { return };
        let source = condition.source();
        for call in CALL.captures_iter(source) {
            let (function, text) =
                (call.name("function").map_or("", |m| m.as_str()), call.name("text").map_or("", |m| m.as_str()));
            let is_separator = |c: char| "/:@-_.".contains(c);
            let closed = match function {
                "startsWith" => text.ends_with(|c| is_separator(c) && c != '-' && c != '_' && c != '.'),
                "endsWith" => text.starts_with(is_separator),
                _ => false,
            };
            if !closed {
                self.say("open-condition", Some(rule), &rule.when_at, &format!("{function}({text:?})"));
            }
        }
        if source.contains("!=") || NEGATION.is_match(source) {
            self.say("negative-condition", Some(rule), &rule.when_at, "");
        }
    }

    fn shadowed(&mut self, rule: &Rule) {
        let covers = |other: &Rule| {
            other.issuer == rule.issuer
                && other.mode == rule.mode
                && other.condition.is_none()
                && other
                    .checks
                    .iter()
                    .all(|wide| effective(rule, &wide.claim).any(|narrow| is_within(&narrow.matcher, &wide.matcher)))
        };
        let equal = |other: &Rule| {
            rule.condition.is_none()
                && rule
                    .checks
                    .iter()
                    .all(|wide| effective(other, &wide.claim).any(|narrow| is_within(&narrow.matcher, &wide.matcher)))
        };
        let by = self
            .grant
            .rules
            .iter()
            .find(|other| other.name != rule.name && covers(other) && (!equal(other) || other.name < rule.name));
        if let Some(other) = by {
            self.say("shadowed-rule", Some(rule), &None, &format!("by {}", other.name));
        }
    }

    fn allows(&mut self) {
        let rules = self.grant.rules.iter().flat_map(|rule| &rule.allow);
        let all: Vec<_> = self.grant.allow.iter().chain(rules).cloned().collect();
        for allow in all {
            let id = &allow.lint.value;
            if rule(id).is_none() {
                let nearest = did_you_mean(id, RULES.iter().map(|rule| rule.id));
                let nearest = nearest.map(|id| format!(" (did you mean {id}?)")).unwrap_or_default();
                self.say("unknown-allow", None, &allow.at, &format!("{id}{nearest}"));
            } else if allow.at.as_ref().is_some_and(|at| !self.used.borrow().contains(&at.start)) {
                self.say("unused-allow", None, &allow.at, id);
            }
        }
    }
}

static CALL: LazyLock<Regex> =
    LazyLock::new(|| compiled(r#"\.(?<function>startsWith|endsWith|contains)\(\s*["'](?<text>[^"']*)["']"#));
static NEGATION: LazyLock<Regex> = LazyLock::new(|| compiled(r"!\s*\(|!\s*claims|!\s*has\b"));
static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"\A(?:todo|tbd|fixme|xxx+|changeme|change-me|your-?.*|my-org|my-repo|example|<.*>|\.\.\.|…)\z|\$\{|\$\(|\{\{|<[a-z_-]+>",
    )
});

/// A fixed expression; one that were wrong would match nothing, and a test would miss it.
fn compiled(text: &str) -> Regex {
    #[expect(clippy::expect_used, reason = "the expressions are constants that every test run compiles")]
    Regex::new(text).expect("a constant expression")
}

fn is_placeholder(text: &str) -> bool {
    PLACEHOLDER.is_match(&text.to_lowercase())
}

fn checks_of<'r>(rule: &'r Rule, claim: &str) -> impl Iterator<Item = &'r Check> {
    let claim = claim.to_owned();
    rule.checks.iter().filter(move |check| *check.claim == *claim)
}

/// The lines on a claim, and what the condition amounts to on it.
fn effective<'r>(rule: &'r Rule, claim: &str) -> impl Iterator<Item = &'r Check> {
    let claim = claim.to_owned();
    let conjuncts = rule.condition.iter().filter_map(|condition| condition.conjuncts()).flatten();
    rule.checks.iter().chain(conjuncts).filter(move |check| *check.claim == *claim)
}

/// Whether the rule says anything about a claim, in a line, in its condition, or by way of a claim
/// that is cut out of it.
fn is_bound(rule: &Rule, claim: &str) -> bool {
    let is_it = |name: &str| name == claim || rule.profile.derived_from(name) == Some(claim);
    rule.checks.iter().any(|check| is_it(&check.claim))
        || rule.condition.as_ref().is_some_and(|condition| condition.reads().any(is_it))
}

fn accepts(matcher: &Matcher, text: &str) -> bool {
    matcher.is_match(&Held::Is(Value::Text(text.into())))
        || text.parse().is_ok_and(|truth| matcher.is_match(&Held::Is(Value::Bool(truth))))
}

fn texts(matcher: &Matcher) -> Vec<String> {
    match matcher {
        Matcher::Text { exact, .. } => exact.iter().map(ToString::to_string).collect(),
        Matcher::Contains(item) => vec![item.to_string()],
        Matcher::Int(_) | Matcher::Bool(_) | Matcher::Absent => Vec::new(),
    }
}

fn patterns(matcher: &Matcher) -> &[Pattern] {
    match matcher {
        Matcher::Text { patterns, .. } => patterns,
        Matcher::Int(_) | Matcher::Bool(_) | Matcher::Contains(_) | Matcher::Absent => &[],
    }
}

/// The text before anything open.
fn fixed_prefix(pattern: &Pattern) -> &str {
    let text = pattern.text();
    let end = match pattern {
        Pattern::Glob(_) => text.find('*'),
        Pattern::Regex(_) => text.find(|c| ".*+?[](){}|\\^$".contains(c)),
    };
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

/// Whether a fixed prefix goes past the owner: `acme/`, `repo:acme/`, `organization:acme:`.
fn names_an_owner(prefix: &str, is_subject: bool) -> bool {
    let prefix = prefix.replace("://", ":");
    let segments = prefix.split(['/', ':']).count() - 1;
    segments >= if is_subject { 2 } else { 1 }
}

/// Whether a pattern leaves the whole name of a branch or tag open.
fn matches_any_ref(pattern: &Pattern) -> bool {
    let probes = ["main", "some-branch-that-nobody-thought-of"];
    ["", "refs/heads/", "refs/tags/"]
        .iter()
        .any(|prefix| probes.iter().all(|name| pattern.is_match(&format!("{prefix}{name}"))))
}

/// Whether a pattern ends open right behind a letter or digit: `main*`, `main.*`.
fn ends_inside_a_name(pattern: &Pattern) -> bool {
    let text = pattern.text();
    let head = match pattern {
        Pattern::Glob(_) => text.strip_suffix('*'),
        Pattern::Regex(_) => {
            [".*", ".+", r"\S*", r"\S+", "[^/]*", "[^/]+"].iter().find_map(|open| text.strip_suffix(open))
        }
    };
    // One letter is no name: the tags of versions are `v*`.
    let named = |head: &str| head.rsplit('/').next().is_some_and(|last| last.len() > 1);
    head.is_some_and(|head| named(head) && head.ends_with(|c: char| c.is_alphanumeric()))
}

fn is_exact(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Glob(glob) => !glob.text().contains('*'),
        Pattern::Regex(regex) => !regex.text().contains(|c| ".*+?[](){}|\\^$".contains(c)),
    }
}

/// Whether everything that `narrow` matches is matched by `wide`, as far as it is easily seen.
fn is_within(narrow: &Matcher, wide: &Matcher) -> bool {
    match (narrow, wide) {
        (Matcher::Absent, Matcher::Absent) => true,
        (Matcher::Contains(a), Matcher::Contains(b)) => a == b,
        (Matcher::Text { exact, patterns }, Matcher::Text { patterns: wide_patterns, .. }) => {
            exact.iter().all(|text| accepts(wide, text))
                && patterns.iter().all(|p| wide_patterns.iter().any(|w| w.to_string() == p.to_string()))
        }
        (Matcher::Int(a), Matcher::Int(b)) => a.iter().all(|n| b.contains(n)),
        (Matcher::Bool(a), Matcher::Bool(b)) => a.iter().all(|n| b.contains(n)),
        _ => false,
    }
}

/// What of a regular expression's text is easily misread.
#[derive(Default)]
struct RegexShape {
    alternation: bool,
    wildcard: bool,
    any_character: bool,
}

impl RegexShape {
    fn of(text: &str) -> Self {
        let (mut shape, mut depth, mut in_class) = (Self::default(), 0_usize, false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' => drop(chars.next()),
                '[' if !in_class => in_class = true,
                ']' if in_class => in_class = false,
                _ if in_class => {}
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                '|' if depth == 0 => shape.alternation = true,
                '.' if matches!(chars.peek(), Some('*' | '+' | '{')) => shape.wildcard = true,
                '.' => shape.any_character = true,
                _ => {}
            }
        }
        shape
    }
}

/// Whether a profile's stable ids say which repository, project or pipeline it is.
impl Profile {
    fn has_unit_ids(&self) -> bool {
        self.claims().any(|claim| self.is_unit_id(&claim.name))
    }

    fn is_unit_id(&self, name: &str) -> bool {
        self.claims().any(|claim| claim.id.as_deref() == Some(name)) && self.tenant_claim() != Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let ids: BTreeSet<_> = RULES.iter().map(|rule| rule.id).collect();
        assert_eq!(ids.len(), RULES.len());
    }

    #[test]
    fn what_is_easily_misread() {
        for (text, alternation, wildcard, any_character) in [
            ("a|b", true, false, false),
            ("(a|b)", false, false, false),
            (r"a\|b", false, false, false),
            ("[|.]", false, false, false),
            ("a.*", false, true, false),
            (r"a\.b", false, false, false),
            ("a.b", false, false, true),
        ] {
            let shape = RegexShape::of(text);
            assert_eq!(
                (shape.alternation, shape.wildcard, shape.any_character),
                (alternation, wildcard, any_character),
                "{text}"
            );
        }
        for (text, expected) in [
            ("TODO", true),
            ("<owner-id>", true),
            ("${OWNER}", true),
            ("your-org", true),
            ("acme", false),
            ("1001", false),
        ] {
            assert_eq!(is_placeholder(text), expected, "{text}");
        }
    }
}
