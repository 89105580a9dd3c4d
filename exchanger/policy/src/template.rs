//! Text with claims in it: `repo-{{ claims.repository_id }}` and `{{ claims.repository | sha256 }}`.
//!
//! Nothing is ever escaped. A value with a character that its field does not allow is refused, and
//! so is a template in which two claims could run into each other.

use crate::{claims::Claims, grant::GrantContext, issuer::Kind, source::did_you_mean};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// What a field of a credential spec allows.
#[derive(Clone, Copy)]
pub struct FieldRules {
    /// Whether the field decides what the credential can do: such a field takes only claims that
    /// are ids which the platform never reuses, or that every rule pins to listed values.
    pub authority: bool,
    /// The characters that a value may have.
    pub allowed: fn(char) -> bool,
    /// The longest value, in bytes.
    pub max_len: usize,
    /// The allowed characters in words.
    pub expected: &'static str,
}

/// Why a text is no template for its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Something between the braces that is not a claim.
    #[error(
        "`{{{{{0}}}}}` is not a claim: only `{{{{ claims.NAME }}}}` and `{{{{ claims.NAME | sha256 }}}}` are understood"
    )]
    Syntax(String),
    /// A brace pair that is not closed.
    #[error("`{{{{` without `}}}}`")]
    Unclosed,
    /// A claim that the tokens of some rule's issuer do not have.
    #[error("rule {rule}: {profile} tokens have no claim `{claim}`{}", hint(.nearest))]
    UnknownClaim {
        /// The claim.
        claim: String,
        /// The rule.
        rule: String,
        /// The profile of its issuer.
        profile: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A claim that is a list or an object.
    #[error("`{0}` is not a single value")]
    NotScalar(String),
    /// A claim that somebody else could come to have the same value of.
    #[error("`{claim}` decides here what the credential can do, but it is {class}")]
    Authority {
        /// The claim.
        claim: String,
        /// Its class in words.
        class: &'static str,
    },
    /// Two claims that could run into each other.
    #[error("`{0}` and `{1}` have nothing between them that neither can contain")]
    Ambiguous(String, String),
    /// Fixed text that the field does not allow.
    #[error("the character {found:?} is not allowed here: expected {expected}")]
    Character {
        /// The character.
        found: char,
        /// The allowed ones in words.
        expected: &'static str,
    },
    /// Fixed text that is too long.
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

impl TemplateError {
    /// How to repair it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Syntax(_) | Self::Unclosed => "write {{ claims.repository_id }}".to_owned(),
            Self::UnknownClaim { .. } => "every rule's issuer must have the claim".to_owned(),
            Self::NotScalar(_) => "use a claim that is text or a number".to_owned(),
            Self::Authority { claim, .. } => {
                format!("use the platform's id instead, or pin `{claim}` to listed values in every rule")
            }
            Self::Ambiguous(..) => "put a character such as `:` between them".to_owned(),
            Self::Character { expected, .. } => format!("write {expected}"),
            Self::TooLong(max) => format!("shorten it to {max} bytes"),
        }
    }
}

/// Why a template has no text for these claims. Names the claim, never its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The token does not have the claim, or not as a single value.
    #[error("the token has no usable `{0}`")]
    Absent(String),
    /// The value has a character that the field does not allow.
    #[error("the token's `{claim}` has the character {found:?}: expected {expected}")]
    Character {
        /// The claim.
        claim: String,
        /// The character.
        found: char,
        /// The allowed ones in words.
        expected: &'static str,
    },
    /// The value is empty, so that the text would lack a part.
    #[error("the token's `{0}` is empty")]
    Empty(String),
    /// The whole text is too long for the field.
    #[error("the text is longer than {0} bytes")]
    TooLong(usize),
}

/// A text with claims in it, checked against its field.
///
/// INVARIANT: its fixed text is allowed by the field, and no two claims can run into each other.
#[derive(Clone)]
pub struct Template {
    parts: Vec<Part>,
    field: FieldRules,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("parts", &self.parts).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Fixed(String),
    Claim { name: String, sha256: bool },
}

impl Template {
    /// Compiles a template for a field of a grant's credential spec.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn compile(text: &str, grant: &GrantContext<'_>, field: &FieldRules) -> Result<Self, TemplateError> {
        let parts = split(text)?;
        let mut fixed_len = 0;
        for part in &parts {
            match part {
                Part::Fixed(text) => {
                    fixed_len += text.len();
                    if let Some(found) = text.chars().find(|c| !(field.allowed)(*c)) {
                        return Err(TemplateError::Character { found, expected: field.expected });
                    }
                }
                Part::Claim { name, .. } => check_claim(name, grant, field)?,
            }
        }
        if fixed_len > field.max_len {
            return Err(TemplateError::TooLong(field.max_len));
        }
        check_delimiters(&parts, grant, field)?;
        Ok(Self { parts, field: *field })
    }

    /// The text for the claims of one token.
    ///
    /// # Errors
    /// See [`RenderError`].
    pub fn render(&self, claims: &Claims) -> Result<String, RenderError> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Fixed(text) => out.push_str(text),
                Part::Claim { name, sha256 } => {
                    let value = claims.text(name).ok_or_else(|| RenderError::Absent(name.clone()))?;
                    if *sha256 {
                        push_sha256(&mut out, &value);
                        continue;
                    }
                    if value.is_empty() {
                        return Err(RenderError::Empty(name.clone()));
                    }
                    if let Some(found) = value.chars().find(|c| !(self.field.allowed)(*c)) {
                        let expected = self.field.expected;
                        return Err(RenderError::Character { claim: name.clone(), found, expected });
                    }
                    out.push_str(&value);
                }
            }
        }
        if out.len() > self.field.max_len { Err(RenderError::TooLong(self.field.max_len)) } else { Ok(out) }
    }

    /// The claims in it.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Claim { name, .. } => Some(name.as_str()),
            Part::Fixed(_) => None,
        })
    }

    /// The fixed text before the first claim.
    #[must_use]
    pub fn fixed_prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Fixed(text)) => text,
            _ => "",
        }
    }
}

fn push_sha256(out: &mut String, value: &str) {
    for byte in Sha256::digest(value.as_bytes()) {
        let _ = write!(out, "{byte:02x}"); // writing to a String cannot fail
    }
}

fn split(text: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((fixed, after)) = rest.split_once("{{") {
        let (inner, after) = after.split_once("}}").ok_or(TemplateError::Unclosed)?;
        if !fixed.is_empty() {
            parts.push(Part::Fixed(fixed.to_owned()));
        }
        let (name, filter) = match inner.split_once('|') {
            Some((name, filter)) => (name.trim(), Some(filter.trim())),
            None => (inner.trim(), None),
        };
        let name = name.strip_prefix("claims.").filter(|name| !name.is_empty() && !name.contains(char::is_whitespace));
        match (name, filter) {
            (Some(name), None | Some("sha256")) => {
                parts.push(Part::Claim { name: name.to_owned(), sha256: filter.is_some() });
            }
            _ => return Err(TemplateError::Syntax(inner.to_owned())),
        }
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Fixed(rest.to_owned()));
    }
    Ok(parts)
}

fn check_claim(name: &str, grant: &GrantContext<'_>, field: &FieldRules) -> Result<(), TemplateError> {
    for rule in grant.rules() {
        let Some(claim) = rule.profile.claim(name) else {
            let known = rule.profile.claims().map(|claim| &*claim.name);
            return Err(TemplateError::UnknownClaim {
                claim: name.to_owned(),
                rule: rule.name.to_string(),
                profile: rule.profile.title().to_owned(),
                nearest: did_you_mean(name, known).map(str::to_owned),
            });
        };
        if matches!(claim.kind, Kind::List | Kind::Json) {
            return Err(TemplateError::NotScalar(name.to_owned()));
        }
        if field.authority && !grant.carries_authority(name) {
            return Err(TemplateError::Authority { claim: name.to_owned(), class: claim.class.words() });
        }
    }
    Ok(())
}

/// Between each two claims there must be a character that neither value can contain; otherwise
/// `a` + `-` + `b-c` and `a-b` + `-` + `c` would be the same text.
fn check_delimiters(parts: &[Part], grant: &GrantContext<'_>, field: &FieldRules) -> Result<(), TemplateError> {
    let mut before: Option<(&Part, &str)> = None;
    let mut between = String::new();
    for part in parts {
        match part {
            Part::Fixed(text) => between.push_str(text),
            Part::Claim { name, .. } => {
                if let Some((left, left_name)) = before {
                    let apart = |c: char| !may_hold(left, c, grant, field) && !may_hold(part, c, grant, field);
                    if !between.chars().any(apart) {
                        return Err(TemplateError::Ambiguous(left_name.to_owned(), name.clone()));
                    }
                }
                before = Some((part, name));
                between.clear();
            }
        }
    }
    Ok(())
}

fn may_hold(part: &Part, c: char, grant: &GrantContext<'_>, field: &FieldRules) -> bool {
    match part {
        Part::Fixed(_) => false,
        Part::Claim { sha256: true, .. } => c.is_ascii_digit() || ('a'..='f').contains(&c),
        Part::Claim { name, .. } => {
            (field.allowed)(c)
                && grant.rules().iter().any(|rule| match rule.pinned(name) {
                    Some(values) => values.iter().any(|value| value.contains(c)),
                    None => rule.profile.claim(name).is_none_or(|claim| claim.may_hold(c)),
                })
        }
    }
}
