//! What is wrong with a YAML text, in the words of whoever wrote it.

use crate::source::did_you_mean;
use serde_saphyr::{Error, MessageFormatter as _, UserMessageFormatter};

/// What is wrong, and how to repair it where that can be said.
#[must_use]
pub fn explain(error: &Error) -> (String, Option<String>) {
    let say = |what: &str, cure: &str| (what.to_owned(), Some(cure.to_owned()));
    let told = || UserMessageFormatter.format_message(error).into_owned();
    let meant = |name: &str, known: &[&'static str]| {
        did_you_mean(name, known.iter().copied()).map(|meant| format!("did you mean `{meant}`?"))
    };
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => explain(error),
        Error::Unexpected { expected: "sequence start", .. } => {
            say("a list belongs here", "write `[one, another]`, or each on a line of its own behind a `-`")
        }
        Error::Unexpected { expected: "mapping start", .. } => {
            say("a mapping belongs here", "write `name: value`, each on a line of its own and all indented equally")
        }
        Error::Unexpected { expected: "string scalar", .. } => say("a text belongs here", "write one value"),
        Error::NullIntoString { .. } => say("there is no value here", "write one, or leave the key out"),
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a key");
            (format!("`{key}` is written twice"), Some("keep one of them".to_owned()))
        }
        Error::UnknownAnchor { .. } => say("there is no such anchor", "put a text that begins with `*` into quotes"),
        Error::SerdeUnknownField { field, expected, .. } => (told(), meant(field, expected)),
        Error::SerdeUnknownVariant { variant, expected, .. } => (told(), meant(variant, expected)),
        // Only the parser itself knows no byte of the text.
        _ if error.location().is_some_and(|at| at.span().byte_offset().is_none()) => {
            (told(), Some("look at the indentation, quotes and brackets of this line and the one above".to_owned()))
        }
        _ => (told(), None),
    }
}
