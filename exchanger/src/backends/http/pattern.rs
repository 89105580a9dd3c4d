//! Text of the server's config with places for what one lease brings: `{{ lease.name }}`,
//! `{{ lease.id }}`, `{{ lease.expires_at }}` (RFC 3339), `{{ lease.expires_at_unix }}` (seconds),
//! `{{ parameters.NAME }}` and, in a deletion, `{{ answer.id }}` and `{{ answer.secret }}`. Values are put in by structure, as JSON strings and URL path segments, and
//! so cannot change the shape of a request.

use crate::clock::Timestamp;
use jobpass_protocol::{LeaseId, Secret};
use serde_json::Value;
use std::collections::BTreeMap;

/// What one lease brings.
pub(super) struct Values<'a> {
    pub(super) lease: LeaseId,
    pub(super) expires_at: Timestamp,
    pub(super) parameters: &'a BTreeMap<String, String>,
    pub(super) answer: Option<&'a Answer>,
}

/// What the API said when it made the key.
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) secret: Secret,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Fixed(String),
    LeaseName,
    LeaseId,
    ExpiresAt,
    ExpiresAtUnix,
    Parameter(String),
    AnswerId,
    AnswerSecret,
}

/// A text with places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Part>);

impl Pattern {
    /// Reads a pattern that may name these parameters.
    pub(super) fn parse(text: &str, parameters: &[&str]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((fixed, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or("`{{` without `}}`")?;
            if !fixed.is_empty() {
                parts.push(Part::Fixed(fixed.to_owned()));
            }
            parts.push(match name.trim() {
                "lease.name" => Part::LeaseName,
                "lease.id" => Part::LeaseId,
                "lease.expires_at" => Part::ExpiresAt,
                "lease.expires_at_unix" => Part::ExpiresAtUnix,
                "answer.id" => Part::AnswerId,
                "answer.secret" => Part::AnswerSecret,
                other => match other.strip_prefix("parameters.") {
                    Some(name) if parameters.contains(&name) => Part::Parameter(name.to_owned()),
                    Some(name) => return Err(format!("there is no parameter `{name}`; declare it in `parameters`")),
                    None => {
                        return Err(format!(
                            "`{other}` is not known; use lease.name, lease.id, lease.expires_at, \
                             lease.expires_at_unix, parameters.NAME or, in a deletion, answer.id or answer.secret"
                        ));
                    }
                },
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Fixed(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Whether the lease's name or id is in it.
    pub(super) fn names_lease(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::LeaseName | Part::LeaseId))
    }

    fn tells_expiry(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::ExpiresAt | Part::ExpiresAtUnix))
    }

    /// Whether it can only be filled once the key is made.
    pub(super) fn needs_answer(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::AnswerId | Part::AnswerSecret))
    }

    /// Whether the key's id is in it.
    pub(super) fn needs_id(&self) -> bool {
        self.0.contains(&Part::AnswerId)
    }

    pub(super) fn render(&self, values: &Values<'_>) -> String {
        self.0.iter().map(|part| part.render(values)).collect()
    }
}

impl Part {
    fn render(&self, values: &Values<'_>) -> String {
        match self {
            Self::Fixed(text) => text.clone(),
            Self::LeaseName => values.lease.remote_name(),
            Self::LeaseId => values.lease.to_string(),
            Self::ExpiresAt => values.expires_at.to_string(),
            Self::ExpiresAtUnix => values.expires_at.secs().to_string(),
            Self::Parameter(name) => values.parameters.get(name).cloned().unwrap_or_default(),
            Self::AnswerId => values.answer.map_or_else(String::new, |answer| answer.id.clone()),
            Self::AnswerSecret => values.answer.map_or_else(String::new, |answer| answer.secret.expose().to_owned()),
        }
    }
}

/// A JSON document with places in its strings.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Fixed(Value),
    Text(Pattern),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Body {
    pub(super) fn parse(value: &Value, parameters: &[&str]) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => Self::Text(Pattern::parse(text, parameters)?),
            Value::Array(items) => {
                Self::List(items.iter().map(|item| Self::parse(item, parameters)).collect::<Result<_, _>>()?)
            }
            Value::Object(members) => Self::Map(
                members
                    .iter()
                    .map(|(name, member)| Ok((name.clone(), Self::parse(member, parameters)?)))
                    .collect::<Result<_, String>>()?,
            ),
            other => Self::Fixed(other.clone()),
        })
    }

    pub(super) fn any(&self, test: fn(&Pattern) -> bool) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Text(pattern) => test(pattern),
            Self::List(items) => items.iter().any(|item| item.any(test)),
            Self::Map(members) => members.iter().any(|(_, member)| member.any(test)),
        }
    }

    pub(super) fn tells_expiry(&self) -> bool {
        self.any(Pattern::tells_expiry)
    }

    /// The document for one lease. A string that is nothing but `{{ lease.expires_at_unix }}` becomes a number.
    pub(super) fn render(&self, values: &Values<'_>) -> Value {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Text(Pattern(parts)) if parts == &[Part::ExpiresAtUnix] => values.expires_at.secs().into(),
            Self::Text(pattern) => pattern.render(values).into(),
            Self::List(items) => items.iter().map(|item| item.render(values)).collect(),
            Self::Map(members) => members.iter().map(|(name, member)| (name.clone(), member.render(values))).collect(),
        }
    }
}
