//! Policy files as written: YAML with the place of everything, unknown fields refused.
//!
//! Aliases, anchors and merge keys are refused outright: a policy says what it means where it means
//! it, and a file cannot grow when it is read.

use crate::{
    source::{Diagnostic, MAX_SOURCE_BYTES, Text},
    yaml,
};
use schemars::JsonSchema;
use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    Location, Spanned,
    options::{MergeKeyPolicy, NonFiniteFloatPolicy},
};
use std::{fmt, ops::Range};

/// A value and its place in the file.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub referenced: Location,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        Ok(Self { value, referenced })
    }
}

/// A grant file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantFile {
    /// The grant's name, which jobs ask for.
    pub grant: At<String>,
    /// Who answers for it.
    pub owner: At<String>,
    /// The day by which somebody has to look at it again.
    pub review_by: Option<At<String>>,
    /// What it is for, in a sentence.
    pub description: Option<At<String>>,
    /// The backend that makes the credential.
    pub backend: At<String>,
    /// What the credential is, in the backend's own terms.
    #[serde(default)]
    pub credential: Option<Tree>,
    /// How long a credential lives: `15m`.
    pub ttl: At<String>,
    /// How long renewals can keep it alive.
    pub max_lifetime: Option<At<String>>,
    /// The scopes that a job may choose from.
    #[serde(default)]
    pub scopes: Vec<At<String>>,
    /// Who is told why a request was denied.
    pub disclose: Option<At<Disclose>>,
    /// `shadow`: decided and audited, never issued.
    pub mode: Option<At<Mode>>,
    /// Lint rules that do not count here, each with the reason.
    #[serde(default)]
    pub allow: Vec<At<AllowFile>>,
    /// The ways to be entitled to it.
    pub rules: At<Vec<At<RuleFile>>>,
    /// What the policy must do, tried by `policy test`.
    #[serde(default)]
    pub tests: Vec<At<CaseFile>>,
}

/// Who is told why a request was denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Disclose {
    /// Nobody: unknown, denied and spent look the same.
    None,
    /// A job learns why the rules that pin its own tenant failed.
    #[default]
    Tenant,
    /// Every job learns everything.
    Full,
}

/// A rule.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// Its name, unique in the grant.
    pub name: At<String>,
    /// The issuer whose tokens it speaks of.
    pub issuer: At<String>,
    /// What the claims must be; every line must match.
    #[serde(default, rename = "match")]
    pub matches: Matches,
    /// A CEL condition that must hold as well.
    pub when: Option<At<String>>,
    /// `shadow`: decided and audited, never issued.
    pub mode: Option<At<Mode>>,
    /// Lint rules that do not count here, each with the reason.
    #[serde(default)]
    pub allow: Vec<At<AllowFile>>,
}

/// Whether what is permitted is issued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is.
    #[default]
    Enforce,
    /// It is decided and audited, never issued.
    Shadow,
}

/// A lint rule that does not count, and why.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowFile {
    /// The lint rule's id.
    pub lint: At<String>,
    /// Why it does not count here.
    pub reason: At<String>,
}

/// `guards.yaml`: what binds every grant.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardsFile {
    /// Who answers for them.
    pub owner: Option<At<String>>,
    /// Rules that deny.
    #[serde(default)]
    pub forbid: Vec<At<ForbidFile>>,
    /// Ceilings on how long credentials live.
    #[serde(default)]
    pub ceilings: Vec<At<CeilingFile>>,
    /// Claims that every rule of an issuer must pin to listed values.
    #[serde(default)]
    pub require: Vec<At<RequireFile>>,
    /// The only issuers that rules may name.
    pub issuers: Option<Vec<At<String>>>,
    /// Times in which nothing is issued.
    #[serde(default)]
    pub closed: Vec<At<ClosedFile>>,
    /// Whether a grant whose `review_by` has passed is denied.
    #[serde(default)]
    pub deny_overdue_review: bool,
}

/// Some of the grants; all, where neither list is there.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectFile {
    /// Globs over names of grants.
    #[serde(default)]
    pub grants: Vec<At<String>>,
    /// Names of backends.
    #[serde(default)]
    pub backends: Vec<At<String>>,
}

/// A rule that denies.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForbidFile {
    /// Its name.
    pub name: At<String>,
    /// The grants that it binds.
    #[serde(default)]
    pub on: SelectFile,
    /// The issuer whose tokens it speaks of.
    pub issuer: At<String>,
    /// What the claims are when it denies; every line must match.
    #[serde(default, rename = "match")]
    pub matches: Matches,
    /// A CEL condition that must hold as well; an error denies.
    pub when: Option<At<String>>,
}

/// The most that a grant can ask for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CeilingFile {
    /// The grants that it binds.
    #[serde(default)]
    pub on: SelectFile,
    /// The longest `ttl`.
    pub ttl: Option<At<String>>,
    /// The longest `max_lifetime`.
    pub max_lifetime: Option<At<String>>,
}

/// Claims that every rule of an issuer must pin.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequireFile {
    /// The issuer.
    pub issuer: At<String>,
    /// The claims.
    pub pin: Vec<At<String>>,
}

/// A time in which nothing is issued: from a moment until another, or every week.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClosedFile {
    /// Its name, which denials give as the reason.
    pub name: At<String>,
    /// The grants that it binds.
    #[serde(default)]
    pub on: SelectFile,
    /// The first moment: `2026-12-20T00:00:00Z`.
    pub from: Option<At<String>>,
    /// The first moment after it.
    pub until: Option<At<String>>,
    /// Every week.
    pub weekly: Option<WeeklyFile>,
}

/// Hours of days of the week, in UTC.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeeklyFile {
    /// `monday` to `sunday`.
    pub days: Vec<At<String>>,
    /// The first minute: `18:00`.
    pub from: At<String>,
    /// The first minute after it, at most `24:00`.
    pub until: At<String>,
}

/// `scope.yaml`: the ceiling of the grants in its directory and below.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScopeFile {
    /// The team that owns the directory.
    pub owner: At<String>,
    /// Globs over the names that its grants may have; any, if empty.
    #[serde(default)]
    pub names: Vec<At<String>>,
    /// The backends that they may use; any, if not given.
    pub backends: Option<Vec<At<String>>>,
    /// The issuers that they may trust; any, if not given.
    pub issuers: Option<Vec<At<String>>>,
    /// Per issuer and claim, the values of which every rule must list some (its repositories, say).
    #[serde(default)]
    pub claims: Table<Table<Vec<At<String>>>>,
    /// Per member of the credential spec, globs over the texts in it (its roles, say).
    #[serde(default)]
    pub credential: Table<Vec<At<String>>>,
    /// The longest `ttl`.
    pub max_ttl: Option<At<String>>,
    /// The longest `max_lifetime`.
    pub max_lifetime: Option<At<String>>,
}

/// A case: a token, and what the policy must say to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// What it shows.
    pub name: At<String>,
    /// The issuer of the token; the grant's only one with a profile that fits, if not given.
    pub issuer: Option<At<String>>,
    /// A fixture (`from`) and claims that differ from it; `null` takes a claim away.
    pub claims: At<Tree>,
    /// The scopes that the job asks for.
    pub scope: Option<Vec<String>>,
    /// When: `2026-12-24T18:00:00Z`; when the token was issued, if not given.
    pub at: Option<At<String>>,
    /// `permit` or `deny`: the grant as a whole.
    pub expect: At<Expect>,
    /// For a permit: the rule that gives it.
    pub rule: Option<At<String>>,
    /// For a denial: claims that must be among what fails, per rule.
    #[serde(default)]
    pub because: Reasons,
}

/// `*.cases.yaml`: tests of one grant, beside those in its own file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CasesFile {
    /// The grant.
    pub grant: At<String>,
    /// What the policy must do.
    pub tests: Vec<At<CaseFile>>,
}

/// What a case expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// The grant is given.
    Permit,
    /// The grant is not given.
    Deny,
}

/// A mapping in the order of the file, with the places of its keys.
#[derive(Debug)]
pub struct Table<V>(pub Vec<(At<String>, V)>);

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Rules and the claims that fail in them.
pub type Reasons = Table<Vec<At<String>>>;

/// The lines of a `match`.
pub type Matches = Table<At<Wanted>>;

/// What a claim has to be.
#[derive(Debug)]
pub enum Wanted {
    /// Exactly this text. `None` for a scalar that YAML reads as something else than text: its
    /// text is what the file says at its place.
    Scalar(Option<String>),
    /// Null, which is nothing that a claim can be.
    Null,
    /// Any of these.
    Any(Vec<At<Wanted>>),
    /// `{ glob: … }` and its like; how many entries there are is checked when it is compiled.
    Operators(Vec<(At<String>, At<Wanted>)>),
}

/// YAML of any form, with places.
#[derive(Debug)]
pub enum Tree {
    /// A scalar; see [`Wanted::Scalar`].
    Scalar(Option<String>),
    /// Null.
    Null,
    /// A sequence.
    List(Vec<At<Tree>>),
    /// A mapping.
    Map(Vec<(At<String>, At<Tree>)>),
}

impl Tree {
    /// All of it on one line, with the scalars as they are written.
    pub(crate) fn written(&self, file: &Text) -> String {
        let one = |value: &At<Self>| match &value.value {
            Self::Scalar(text) => scalar(file, value.referenced, text).to_owned(),
            tree => tree.written(file),
        };
        match self {
            Self::Null => "null".to_owned(),
            Self::Scalar(text) => text.clone().unwrap_or_default(),
            Self::List(items) => format!("[{}]", items.iter().map(one).collect::<Vec<_>>().join(", ")),
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{}: {}", key.value, one(value)));
                format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// The bytes that a value takes in its file.
pub(crate) fn range(location: Location) -> Option<Range<usize>> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let len = usize::try_from(span.byte_len()?).ok()?;
    Some(start..start + len)
}

/// The place of a value, at its first line: the span of a mapping or a block scalar reaches far.
pub(crate) fn place<T>(file: &Text, value: &At<T>) -> Option<Range<usize>> {
    let range = range(value.referenced)?;
    let text = file.text.get(range.clone())?;
    let first_line = text.lines().next().map_or(0, |line| line.trim_end().len());
    Some(range.start..range.start + first_line)
}

/// The text of a scalar, also where YAML would read it as a number or a boolean.
pub(crate) fn scalar<'a>(file: &'a Text, location: Location, text: &'a Option<String>) -> &'a str {
    match text {
        Some(text) => text,
        None => range(location).and_then(|range| file.text.get(range)).unwrap_or_default().trim(),
    }
}

/// Reads a file as a `T`.
///
/// # Errors
/// The first thing that is wrong with it.
pub(crate) fn parse<T: DeserializeOwned>(file: &Text) -> Result<T, Diagnostic> {
    if file.text.len() > MAX_SOURCE_BYTES {
        let message = format!("the file is longer than {MAX_SOURCE_BYTES} bytes");
        return Err(Diagnostic::new(file, None, "too-long", message).with_help("write one file per grant"));
    }
    serde_saphyr::from_str_with_options(&file.text, options()).map_err(|error| {
        let at = error.location().map(|at| range(at).unwrap_or_else(|| character(file, at)));
        let at = at.map(|range| {
            let start = range.start.min(file.text.len());
            start..range.end.clamp(start, file.text.len())
        });
        let (message, cure) = yaml::explain(&error);
        let diagnostic = Diagnostic::new(file, at, "syntax", message);
        match cure {
            Some(cure) => diagnostic.with_help(cure),
            None => diagnostic,
        }
    })
}

/// The character at a line and a column, both from 1.
fn character(file: &Text, at: Location) -> Range<usize> {
    let nth = |from_one: u64| usize::try_from(from_one).unwrap_or(usize::MAX).saturating_sub(1);
    let before: usize = file.text.split_inclusive('\n').take(nth(at.line())).map(str::len).sum();
    let line = file.text.get(before..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let (start, len) = line.char_indices().nth(nth(at.column())).map_or((line.len(), 0), |(n, c)| (n, c.len_utf8()));
    before + start..before + start + len
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_aliases: 0,
            max_anchors: 0,
            max_depth: 16,
            flow_nesting_limit: 16,
            max_documents: 1,
            max_nodes: 10_000,
            max_merge_keys: 0,
        },
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        reject_unsupported_tags: true,
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Table<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for TableVisitor<V> {
            type Value = Table<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<V>, A::Error> {
                entries(map).map(Table)
            }
        }
        deserializer.deserialize_map(TableVisitor(std::marker::PhantomData))
    }
}

fn entries<'de, V: Deserialize<'de>, A: MapAccess<'de>>(mut map: A) -> Result<Vec<(At<String>, V)>, A::Error> {
    let mut entries = Vec::new();
    while let Some(entry) = map.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

macro_rules! any_yaml {
    ($type:ident, $visitor:ident, $list:ident, $map:ident) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($visitor)
            }
        }
        struct $visitor;
        impl<'de> Visitor<'de> for $visitor {
            type Value = $type;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a scalar, a list or a mapping")
            }
            fn visit_str<E>(self, text: &str) -> Result<$type, E> {
                Ok($type::Scalar(Some(text.to_owned())))
            }
            fn visit_bool<E>(self, _: bool) -> Result<$type, E> {
                Ok($type::Scalar(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<$type, E> {
                Ok($type::Scalar(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<$type, E> {
                Ok($type::Scalar(None))
            }
            fn visit_i128<E>(self, _: i128) -> Result<$type, E> {
                Ok($type::Scalar(None))
            }
            fn visit_u128<E>(self, _: u128) -> Result<$type, E> {
                Ok($type::Scalar(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<$type, E> {
                Ok($type::Scalar(None))
            }
            fn visit_unit<E>(self) -> Result<$type, E> {
                Ok($type::Null)
            }
            fn visit_none<E>(self) -> Result<$type, E> {
                Ok($type::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$type, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok($type::$list(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
                entries(map).map($type::$map)
            }
        }
    };
}

any_yaml!(Wanted, WantedVisitor, Any, Operators);
any_yaml!(Tree, TreeVisitor, List, Map);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn text(text: &str) -> Text {
        Text::from(&Source { path: "grants/x.yaml".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn scalars_keep_their_text() {
        let file =
            text("a: 0755\nb: 1.10\nc: true   # yes\nd: 'x'\ne: 12e4567\nf: ~\ng: é 1_0\nh: [1.0, 0x10]\ni: 1001\n");
        let Tree::Map(entries) = parse::<Tree>(&file).expect("YAML") else { panic!("a mapping") };
        let read: Vec<String> = entries
            .iter()
            .map(|(_, value)| match &value.value {
                Tree::Scalar(text) => scalar(&file, value.referenced, text).to_owned(),
                Tree::Null => "null".to_owned(),
                Tree::List(items) => items
                    .iter()
                    .map(|item| match &item.value {
                        Tree::Scalar(text) => scalar(&file, item.referenced, text),
                        _ => "?",
                    })
                    .collect::<Vec<_>>()
                    .join("|"),
                Tree::Map(_) => "?".to_owned(),
            })
            .collect();
        assert_eq!(read, ["0755", "1.10", "true", "x", "12e4567", "null", "é 1_0", "1.0|0x10", "1001"]);
        assert_eq!(place(&file, &entries[2].0), Some(16..17), "keys have places");
    }

    #[test]
    fn bombs_are_refused_quickly() {
        let aliases = format!("a: &a [x]\nb: [{}]\n", "*a, ".repeat(60_000));
        let nesting = "[".repeat(100_000);
        let maps = "{a: ".repeat(50_000);
        let block = (0..5_000).map(|i| format!("{}a:\n", " ".repeat(i % 500))).collect::<String>();
        let huge = "x".repeat(1 << 20);
        let merge = "a: { <<: { b: c } }".to_owned();
        let many = "- x\n".repeat(60_000);
        for (name, bomb) in [
            ("aliases", aliases),
            ("nesting", nesting),
            ("maps", maps),
            ("block", block),
            ("huge", huge),
            ("merge", merge),
            ("many", many),
        ] {
            let started = std::time::Instant::now();
            assert!(parse::<Tree>(&text(&bomb)).is_err(), "{name}");
            // What grows without bound takes minutes; a busy machine takes some seconds.
            assert!(started.elapsed().as_secs() < 30, "{name} took {:?}", started.elapsed());
        }
    }
}
