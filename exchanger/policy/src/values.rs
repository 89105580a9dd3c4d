//! The values of one claim that several matchers leave: whether there are any, and one of them.

use crate::{
    claims::{Held, Value},
    issuer::{Claim, Kind},
    language::{Found, Languages},
    pattern::{Matcher, Pattern},
};
use serde_json::{Value as Json, json};

/// A matcher, and whether it has to match or must not.
pub(crate) type Line<'a> = (&'a Matcher, bool);

/// A value as a token would hold it, if there is one; [`Json::Null`] is none at all.
#[derive(Debug, PartialEq)]
pub(crate) enum Choice {
    /// This one.
    Value(Json),
    /// No token can fulfil all lines.
    Impossible,
    /// Too large a question.
    Unknown,
}

/// What tokens can say of one claim.
#[derive(Debug)]
pub(crate) struct Domain<'a> {
    pub(crate) claim: &'a Claim,
    /// The values to try first, such as that of a real token.
    pub(crate) likely: Vec<Json>,
    /// What a usable value has to look like (a regular expression), where the profile says it.
    pub(crate) shape: Option<String>,
    /// A value that no matcher matches, if a token can have one.
    pub(crate) unusable: Option<Json>,
    /// Whether a token can be without it.
    pub(crate) optional: bool,
}

/// A value that fulfils all lines.
pub(crate) fn choose(domain: &Domain<'_>, lines: &[Line<'_>], languages: &mut Languages) -> Choice {
    let kind = domain.claim.kind;
    let fits = |value: &Json| {
        let held = held(kind, value);
        lines.iter().all(|(matcher, holds)| matcher.is_match(&held) == *holds)
    };
    let wanted = lines.iter().filter(|(_, holds)| *holds).map(|(matcher, _)| *matcher);
    let named = wanted.clone().flat_map(|matcher| named(matcher, domain));
    let listed = domain.claim.values.iter().map(|value| Json::from(value.as_str()));
    let listed = listed.filter(|_| kind == Kind::Text);
    let none = domain.optional.then_some(Json::Null);
    let first = none.clone().filter(|_| domain.likely.is_empty());
    let candidates = domain.likely.iter().cloned().chain(first).chain(named).chain(listed);
    if let Some(value) = candidates.chain(general(kind, lines)).find(|value| fits(value)) {
        return Choice::Value(value);
    }
    // What the lines name is all that can match, unless there are patterns (or nothing has to match).
    let open = wanted.clone().all(|matcher| matches!(matcher, Matcher::Text { patterns, .. } if !patterns.is_empty()));
    let found = if kind == Kind::Text && open { text(domain, lines, languages) } else { Found::Nothing };
    match found {
        Found::Text(text) => Choice::Value(text.into()),
        Found::Unknown => Choice::Unknown,
        Found::Nothing => none
            .into_iter()
            .chain(domain.unusable.clone())
            .find(|value| fits(value))
            .map_or(Choice::Impossible, Choice::Value),
    }
}

/// The regular expression of what a text matcher matches.
pub(crate) fn language(exact: &[Box<str>], patterns: &[Pattern]) -> String {
    let exact = exact.iter().map(|text| regex::escape(text));
    let patterns = patterns.iter().map(|pattern| match pattern {
        Pattern::Regex(regex) => regex.unnamed(),
        Pattern::Glob(glob) => {
            let star = format!("[^{}]*", regex::escape(glob.separators()));
            glob.text().split('*').map(regex::escape).collect::<Vec<_>>().join(&star)
        }
    });
    exact.chain(patterns).map(|part| format!("(?:{part})")).collect::<Vec<_>>().join("|")
}

/// The value as a decision sees it.
pub(crate) fn held(kind: Kind, value: &Json) -> Held {
    let value = match (kind, value) {
        (_, Json::Null) => return Held::Absent,
        (Kind::Text, Json::String(text)) => Some(Value::Text(text.as_str().into())),
        (Kind::Int, Json::Number(number)) => number.as_i64().map(Value::Int),
        (Kind::Bool, Json::Bool(yes)) => Some(Value::Bool(*yes)),
        (Kind::List, Json::Array(items)) => {
            Some(Value::List(items.iter().filter_map(|item| item.as_str().map(Box::from)).collect()))
        }
        (Kind::Json, value) => Some(Value::Json(value.clone())),
        _ => None,
    };
    value.map_or(Held::Unusable, Held::Is)
}

/// The values that a matcher names, and examples for its globs.
fn named(matcher: &Matcher, domain: &Domain<'_>) -> Vec<Json> {
    let usual = domain.likely.iter().find_map(Json::as_str).filter(|text| !text.contains('/'));
    match matcher {
        Matcher::Text { exact, patterns } => {
            let globs = patterns.iter().filter_map(|pattern| match pattern {
                Pattern::Glob(glob) => Some(glob.text().replace('*', usual.unwrap_or("example"))),
                Pattern::Regex(_) => None,
            });
            exact.iter().map(|text| text.to_string()).chain(globs).map(Json::from).collect()
        }
        Matcher::Int(numbers) => numbers.iter().map(|number| json!(number)).collect(),
        Matcher::Bool(truths) => truths.iter().map(|truth| json!(truth)).collect(),
        Matcher::Contains(_) | Matcher::Absent => Vec::new(),
    }
}

/// Values of a kind other than text, so many that one of them fulfils any lines that can be fulfilled.
fn general(kind: Kind, lines: &[Line<'_>]) -> Vec<Json> {
    match kind {
        Kind::Text => Vec::new(),
        Kind::Int => {
            let named =
                lines.iter().map(|(matcher, _)| if let Matcher::Int(numbers) = matcher { numbers.len() } else { 0 });
            (1..=named.sum::<usize>() + 1).map(|number| json!(number)).collect()
        }
        Kind::Bool => vec![json!(true), json!(false)],
        Kind::List => {
            let items = lines.iter().filter_map(|line| match line {
                (Matcher::Contains(item), true) => Some(Json::from(&**item)),
                _ => None,
            });
            vec![items.collect()]
        }
        Kind::Json => vec![json!({})],
    }
}

fn text(domain: &Domain<'_>, lines: &[Line<'_>], languages: &mut Languages) -> Found {
    let (mut inside, mut outside) = (Vec::from_iter(domain.shape.clone()), Vec::new());
    for (matcher, holds) in lines {
        if let Matcher::Text { exact, patterns } = matcher {
            let side = if *holds { &mut inside } else { &mut outside };
            side.push(language(exact, patterns));
        }
    }
    // Of the characters that the platform promises, if possible; a policy is not bound by the promise.
    if let Some(alphabet) = domain.claim.alphabet() {
        inside.push(format!("(?:{alphabet})+"));
        if let Found::Text(text) = languages.find(&inside, &outside) {
            return Found::Text(text);
        }
        inside.pop();
    }
    inside.push("(?s:.)+".to_owned());
    match languages.find(&inside, &outside) {
        Found::Nothing => {
            inside.pop();
            languages.find(&inside, &outside)
        }
        found => found,
    }
}
