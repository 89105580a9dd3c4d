//! The claims of a verified token, parsed once and strictly.
//!
//! Nothing here verifies anything. Duplicate members are refused at every level, so that no two
//! readers can see a token differently; a claim whose value has the wrong type is unusable, which
//! no matcher matches, not even `absent`.

mod json;

pub(crate) use json::canonical_int;

use crate::issuer::{Profile, Slot};
use arcstr::{ArcStr, Substr};
use json::{Node, Strict};
use serde::{Serialize, Serializer, de::DeserializeSeed, ser::SerializeMap};
use std::{
    borrow::{Borrow, Cow},
    fmt,
    sync::{Arc, OnceLock},
};

/// How deep a payload may nest; Kubernetes, the deepest that we know, nests three levels.
pub const MAX_DEPTH: usize = 16;

/// Why a payload is not one whose claims can be used. Never holds a claim's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Not a JSON object, or a member is there twice, or it nests deeper than [`MAX_DEPTH`].
    #[error("the token's payload is not a JSON object with unique members, at most {MAX_DEPTH} levels deep")]
    Json,
    /// A registered claim is not there.
    #[error("the token has no `{0}`")]
    Missing(String),
    /// A registered or required claim has the wrong type.
    #[error("the token's `{claim}` is not {expected}")]
    Type {
        /// The claim.
        claim: String,
        /// What it has to be, in words.
        expected: &'static str,
    },
}

/// The registered claims (RFC 7519 §4.1), typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// `iss`.
    pub iss: Substr,
    /// `sub`.
    pub sub: Option<Substr>,
    /// `aud`, one or more.
    pub aud: Vec<Substr>,
    /// Whether `aud` was a string, not a list.
    pub aud_is_single: bool,
    /// `exp` in epoch seconds.
    pub exp: i64,
    /// `nbf` in epoch seconds.
    pub nbf: Option<i64>,
    /// `iat` in epoch seconds.
    pub iat: i64,
    /// `jti`.
    pub jti: Option<Substr>,
}

/// A claim's value, normalised to the type that the profile gives it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text: a part of the payload where it is written there as it is.
    Text(Substr),
    /// A whole number.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A list of texts.
    List(Box<[Box<str>]>),
    /// Anything else.
    Json(serde_json::Value),
}

impl Value {
    /// The text of a scalar; `None` for lists and objects.
    #[must_use]
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Int(number) => Some(Cow::Owned(number.to_string())),
            Self::Bool(yes) => Some(Cow::Borrowed(if *yes { "true" } else { "false" })),
            Self::List(_) | Self::Json(_) => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Int(number) => write!(f, "{number}"),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::List(items) => write!(f, "[{}]", items.join(", ")),
            Self::Json(value) => write!(f, "{value}"),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Int(number) => serializer.serialize_i64(*number),
            Self::Bool(yes) => serializer.serialize_bool(*yes),
            Self::List(items) => items.serialize(serializer),
            Self::Json(value) => value.serialize(serializer),
        }
    }
}

/// What a token holds of one claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Held {
    /// Not there, or null.
    #[default]
    Absent,
    /// There, but of the wrong type or shape: matched by nothing.
    Unusable,
    /// A value.
    Is(Value),
}

impl Held {
    pub(crate) fn value(&self) -> Option<&Value> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Unusable => None,
        }
    }
}

static ABSENT: Held = Held::Absent;

/// A verified token's payload.
///
/// INVARIANT: made by [`Claims::parse`] only, so every value has the type that its profile gives it.
pub struct Claims {
    profile: Arc<Profile>,
    payload: ArcStr,
    registered: Registered,
    held: Vec<Held>,
    named: Vec<(Substr, Held)>,
    unknown: Vec<Substr>,
    /// Cut out of other claims when first asked for: most rules never do.
    derived: OnceLock<Vec<Held>>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("profile", &self.profile.name()).finish_non_exhaustive()
    }
}

impl Claims {
    /// Parses the payload of a token of this profile.
    ///
    /// # Errors
    /// See [`ClaimsError`].
    pub fn parse(profile: &Arc<Profile>, payload: &[u8]) -> Result<Self, ClaimsError> {
        let payload = ArcStr::from(std::str::from_utf8(payload).map_err(|_| ClaimsError::Json)?);
        let mut json = serde_json::Deserializer::from_str(&payload);
        let node = Strict { depth: 0 }.deserialize(&mut json).map_err(|_| ClaimsError::Json)?;
        json.end().map_err(|_| ClaimsError::Json)?;
        let Node::Object(members) = node else { return Err(ClaimsError::Json) };

        let text = |text: &str| payload.try_substr_from(text).unwrap_or_else(|| Substr::from(text));
        let mut draft = Draft::default();
        let mut held = Vec::new();
        held.resize_with(profile.first_derived(), Held::default);
        let (mut named, mut unknown) = (Vec::new(), Vec::new());
        for (member, node) in &members {
            let registered = draft.take(member, node, &text)?;
            match profile.readers(member) {
                Some(readers) => {
                    for reader in readers {
                        let place = held.get_mut(reader.slot as usize);
                        if let (Some(place), Some(claim)) = (place, profile.claim_at(reader.slot)) {
                            *place = node.at(&reader.path).map_or(Held::Absent, |node| node.held(claim.kind, &text));
                            if let Held::Is(Value::Text(text)) = &*place
                                && profile.misshapen(reader.slot, text)
                            {
                                *place = Held::Unusable;
                            }
                        }
                    }
                }
                None if registered => {}
                None => match profile.claim(member) {
                    Some(claim) => named.push((text(member), node.held(claim.kind, &text))),
                    None => unknown.push(text(member)),
                },
            }
        }
        let registered = draft.finish()?;
        let profile = Arc::clone(profile);
        let claims = Self { profile, registered, held, named, unknown, derived: OnceLock::new(), payload };
        claims.check_required()?;
        Ok(claims)
    }

    /// The profile that these claims were read by.
    #[must_use]
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// The registered claims.
    #[must_use]
    pub fn registered(&self) -> &Registered {
        &self.registered
    }

    /// A claim's value, where it is there and usable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.profile.slot(name).and_then(|slot| self.held(&slot).value())
    }

    /// The text of a claim that is a scalar.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get(name).and_then(Value::text)
    }

    /// Whose job it is, by the profile's tenant claim.
    #[must_use]
    pub fn tenant(&self) -> Option<Cow<'_, str>> {
        self.profile.tenant_claim().and_then(|claim| self.text(claim))
    }

    /// The claims that the audit log may keep, in a fixed order.
    #[must_use]
    pub const fn recorded(&self) -> Recorded<&Self> {
        Recorded(self)
    }

    /// The same, for later.
    #[must_use]
    pub const fn into_recorded(self: Arc<Self>) -> Recorded<Arc<Self>> {
        Recorded(self)
    }

    /// Members that the profile does not know: report them, never trust them.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(|name| &**name)
    }

    /// All claims as a text to keep with a lease, so that a renewal can decide again.
    #[must_use]
    pub fn to_stored(&self) -> ArcStr {
        ArcStr::clone(&self.payload)
    }

    /// The claims of a kept text.
    ///
    /// # Errors
    /// When the profile has changed so that the text no longer fits it, or the text is none of ours.
    pub fn from_stored(profile: &Arc<Profile>, text: &str) -> Result<Self, ClaimsError> {
        Self::parse(profile, text.as_bytes())
    }

    pub(crate) fn held(&self, slot: &Slot) -> &Held {
        match slot {
            Slot::Known(slot) => {
                let slot = *slot as usize;
                match slot.checked_sub(self.held.len()) {
                    None => self.held.get(slot),
                    Some(derived) => self.derived.get_or_init(|| self.derive()).get(derived),
                }
                .unwrap_or(&ABSENT)
            }
            Slot::Named(name) => {
                self.named.iter().find(|(known, _)| *known == **name).map_or(&ABSENT, |(_, held)| held)
            }
        }
    }

    fn derive(&self) -> Vec<Held> {
        let first = self.profile.first_derived();
        let mut derived = vec![Held::Absent; self.profile.slots() - first];
        for derivation in self.profile.derivations() {
            let Some(Held::Is(Value::Text(text))) = self.held.get(derivation.from as usize) else { continue };
            let Some(captures) = derivation.patterns.iter().find_map(|pattern| pattern.captures(text)) else {
                continue;
            };
            for (name, target) in &derivation.targets {
                let place = derived.get_mut(*target as usize - first);
                if let (Some(place), Some(part)) = (place, captures.name(name)) {
                    *place = Held::Is(Value::Text(text.substr_from(part.as_str())));
                }
            }
        }
        derived
    }

    fn check_required(&self) -> Result<(), ClaimsError> {
        if self.profile.has_jti() && self.registered.jti.is_none() {
            return Err(ClaimsError::Missing("jti".into()));
        }
        for name in self.profile.required_claims() {
            match self.profile.slot(name).map(|slot| (self.held(&slot), slot)) {
                Some((Held::Is(_), _)) => {}
                // A subject of unknown shape is a customised one: usable by nobody, but not malformed.
                Some((Held::Unusable, _)) if name == "sub" && self.registered.sub.is_some() => {}
                Some((Held::Unusable, _)) => {
                    let expected = self.profile.claim(name).map_or("text", |claim| claim.kind.words());
                    return Err(ClaimsError::Type { claim: name.clone(), expected });
                }
                Some((Held::Absent, _)) | None => return Err(ClaimsError::Missing(name.clone())),
            }
        }
        Ok(())
    }
}

/// The claims that the audit log may keep, and no way to the others: see [`Claims::recorded`].
#[derive(Clone, Copy, Debug)]
pub struct Recorded<C>(C);

impl<C: Borrow<Claims>> Serialize for Recorded<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let claims = self.0.borrow();
        for (slot, held) in claims.held.iter().enumerate() {
            let claim = u32::try_from(slot).ok().and_then(|slot| claims.profile.claim_at(slot));
            if let (Some(claim), Held::Is(value)) = (claim.filter(|claim| claim.recorded), held) {
                map.serialize_entry(&claim.name, value)?;
            }
        }
        for (name, held) in &claims.named {
            if let (Some(true), Held::Is(value)) = (claims.profile.claim(name).map(|claim| claim.recorded), held) {
                map.serialize_entry(&**name, value)?;
            }
        }
        map.end()
    }
}

/// The registered claims while they are collected.
#[derive(Default)]
struct Draft {
    iss: Option<Substr>,
    sub: Option<Substr>,
    aud: Option<(Vec<Substr>, bool)>,
    exp: Option<i64>,
    nbf: Option<i64>,
    iat: Option<i64>,
    jti: Option<Substr>,
}

impl Draft {
    /// Whether `member` is a registered claim; keeps it if so.
    fn take(&mut self, member: &str, node: &Node<'_>, keep: &impl Fn(&str) -> Substr) -> Result<bool, ClaimsError> {
        let wrong = |expected| ClaimsError::Type { claim: member.to_owned(), expected };
        let text = || match node {
            Node::Text(text) => Ok(Some(keep(text))),
            _ => Err(wrong("a string")),
        };
        let seconds = || match node {
            Node::Int(number) => Ok(Some(*number)),
            _ => Err(wrong("a whole number of seconds")),
        };
        match member {
            "iss" => self.iss = text()?,
            "sub" => self.sub = text()?,
            "jti" => self.jti = text()?,
            "exp" => self.exp = seconds()?,
            "nbf" => self.nbf = seconds()?,
            "iat" => self.iat = seconds()?,
            "aud" => {
                self.aud = Some(match node {
                    Node::Text(text) => (vec![keep(text)], true),
                    Node::Array(items) => {
                        let texts = items.iter().map(|item| match item {
                            Node::Text(text) => Ok(keep(text)),
                            _ => Err(wrong("a string or a list of strings")),
                        });
                        (texts.collect::<Result<_, _>>()?, false)
                    }
                    _ => return Err(wrong("a string or a list of strings")),
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<Registered, ClaimsError> {
        let missing = |claim: &str| ClaimsError::Missing(claim.to_owned());
        let (aud, aud_is_single) = self.aud.ok_or_else(|| missing("aud"))?;
        Ok(Registered {
            iss: self.iss.ok_or_else(|| missing("iss"))?,
            sub: self.sub,
            aud,
            aud_is_single,
            exp: self.exp.ok_or_else(|| missing("exp"))?,
            nbf: self.nbf,
            iat: self.iat.ok_or_else(|| missing("iat"))?,
            jti: self.jti,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(extra: &str) -> String {
        format!(
            r#"{{"iss":"https://token.actions.githubusercontent.com","aud":"https://jobpass.example","exp":2,"iat":1,"jti":"j",
            "sub":"repo:acme/api:ref:refs/heads/main","repository_id":"772002","repository_owner_id":1001,"event_name":"push"{extra}}}"#
        )
    }

    fn parse(text: &str) -> Result<Claims, ClaimsError> {
        Claims::parse(&Profile::named("github").expect("a profile"), text.as_bytes())
    }

    #[test]
    fn values_take_the_profile_s_type() {
        let claims = parse(&payload(
            r#","ref_protected":true,"run_id":42,"environment":null,"actor":["x"],"repo_property_team":"a","new":"x",
            "job_workflow_ref":"acme/ci/.github/workflows/deploy.yml@refs/tags/v1""#,
        ))
        .expect("claims");
        for (name, expected) in [
            ("repository_owner_id", Some("1001")),
            ("ref_protected", Some("true")),
            ("run_id", Some("42")),
            ("environment", None),
            ("actor", None),
            ("repo_property_team", Some("a")),
            ("repo_property_other", None),
            ("new", None),
            ("sub_repository_id", None),
            ("sub_context", Some("ref:refs/heads/main")),
            ("job_workflow_repository", Some("acme/ci")),
            ("job_workflow_path", Some(".github/workflows/deploy.yml")),
            ("job_workflow_at", Some("refs/tags/v1")),
            ("workflow_path", None),
        ] {
            assert_eq!(claims.text(name).as_deref(), expected, "{name}");
        }
        assert_eq!(claims.tenant().as_deref(), Some("1001"));
        assert_eq!(claims.unknown().collect::<Vec<_>>(), ["new"]);
        let recorded = serde_json::to_value(claims.recorded()).expect("JSON");
        assert_eq!(recorded["repository_owner_id"], "1001");
        assert!(recorded.get("new").is_none() && recorded.get("jti").is_none());
        let again = Claims::from_stored(claims.profile(), &claims.to_stored()).expect("stored claims");
        assert_eq!(serde_json::to_value(again.recorded()).expect("JSON"), recorded);
    }

    #[test]
    fn subjects() {
        for (sub, usable, owner_id) in [
            ("repo:acme/api:pull_request", true, None),
            ("repo:acme@1001/api@772002:environment:production", true, Some("1001")),
            ("repository_owner_id:1001:job_workflow_ref:x", false, None),
            ("repo:acme-1001/api@772002:ref:refs/heads/main", false, None),
            ("repo:acme@x/api@772002:ref:refs/heads/main", false, None),
        ] {
            let text = payload("").replace("repo:acme/api:ref:refs/heads/main", sub);
            let claims = parse(&text).expect("claims");
            assert_eq!(claims.get("sub").is_some(), usable, "{sub}");
            assert_eq!(claims.text("sub_owner_id").as_deref(), owner_id, "{sub}");
        }
    }

    #[test]
    fn however_many_members_each_is_there_once() {
        // More than there are marks, so that many share one.
        let names: Vec<String> = (0..300).map(|i| i.to_string()).collect();
        let members: String = names.iter().map(|name| format!(r#","{name}":1"#)).collect();
        assert_eq!(parse(&payload(&members)).expect("claims").unknown().collect::<Vec<_>>(), names);
        for name in names.iter().chain(&["jti".to_owned(), "event_name".to_owned()]) {
            let text = payload(&format!(r#"{members},"{name}":"y""#));
            assert_eq!(parse(&text).err(), Some(ClaimsError::Json), "{name}");
        }
    }

    #[test]
    fn texts_are_what_the_token_says() {
        for (written, read) in [
            (r#""""#, ""),
            (r#""acme/api""#, "acme/api"),
            (r#""a\"b""#, "a\"b"),
            (r#""\u0061cme""#, "acme"),
            (r#""\ud83d\ude00é""#, "😀é"),
            ("1001", "1001"),
            ("true", "true"),
        ] {
            let claims = parse(&payload(&format!(r#","workflow":{written}"#))).expect("claims");
            assert_eq!(claims.text("workflow").as_deref(), Some(read), "{written}");
        }
    }

    #[test]
    fn malformed_payloads_are_refused() {
        let deep = |n: usize| payload(&format!(r#","x":{}1{}"#, "[".repeat(n), "]".repeat(n)));
        for (name, text, expected) in [
            ("duplicate", payload(r#","sub":"repo:x/y:z""#), ClaimsError::Json),
            ("nested duplicate", payload(r#","x":{"a":1,"a":2}"#), ClaimsError::Json),
            ("escaped duplicate", payload(r#","s\u0075b":"x""#), ClaimsError::Json),
            ("too deep", deep(MAX_DEPTH), ClaimsError::Json),
            ("very deep", deep(10_000), ClaimsError::Json),
            ("list", "[]".into(), ClaimsError::Json),
            ("trailing", payload("") + "x", ClaimsError::Json),
            ("no aud", payload("").replace("\"aud\"", "\"aux\""), ClaimsError::Missing("aud".into())),
            ("no jti", payload("").replace("\"jti\"", "\"jtj\""), ClaimsError::Missing("jti".into())),
            ("no event", payload("").replace("event_name", "event"), ClaimsError::Missing("event_name".into())),
            (
                "iss list",
                payload("").replace("\"iss\":", "\"iss\":[],\"isz\":"),
                ClaimsError::Type { claim: "iss".into(), expected: "a string" },
            ),
            (
                "exp text",
                payload("").replace("\"exp\":2", "\"exp\":\"2\""),
                ClaimsError::Type { claim: "exp".into(), expected: "a whole number of seconds" },
            ),
            (
                "owner object",
                payload("").replace("1001", "{}"),
                ClaimsError::Type { claim: "repository_owner_id".into(), expected: "text" },
            ),
        ] {
            assert_eq!(parse(&text).err(), Some(expected), "{name}");
        }
        assert!(parse(&deep(MAX_DEPTH - 1)).is_ok(), "as deep as allowed");
    }
}
