//! A JSON Web Signature in compact form (RFC 7515 §7.1), taken apart but **not verified**.
//!
//! Nothing here may be believed. The parser is strict where RFC 8725 asks for it, so that the
//! verifier and every later reader see the same bytes the same way: canonical base64url without
//! padding, JSON objects, no duplicated members, no unknown header that changes the meaning.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::{borrow::Cow, fmt};

/// The largest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How deep JSON may nest in a token: real CI tokens nest 3 levels (Kubernetes).
pub const MAX_JSON_DEPTH: usize = 16;

/// Why a text is not a token that may go on to verification. Never holds a part of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Not three parts joined by dots.
    #[error("the token is not a signed JWT: expected three base64url parts joined by dots")]
    NotCompact,
    /// A part is not canonical base64url without padding (RFC 7515 §2).
    #[error("the token's {0} is not base64url without padding")]
    Base64(&'static str),
    /// A part is not the JSON object that it must be, or nests too deep, or repeats a member.
    #[error("the token's {0} is not a JSON object with unique members, at most {MAX_JSON_DEPTH} levels deep")]
    Json(&'static str),
    /// The header asks for something that must be understood, and is not (RFC 7515 §4.1.11).
    #[error("the token's header has `crit`, which is not supported")]
    Critical,
    /// The header carries or points to its own key (RFC 8725 §3.10): `jku`, `jwk`, `x5u`.
    #[error("the token's header has `{0}`: keys come from the issuer's configuration only")]
    KeyInHeader(&'static str),
    /// The header says that the payload is not what it seems: `b64` (RFC 7797), `zip` or `enc`.
    #[error("the token's header has `{0}`, which is not supported")]
    Encoding(&'static str),
    /// `alg` is missing or is not a string.
    #[error("the token's header has no `alg`")]
    NoAlgorithm,
}

/// The header's members that verification reads (RFC 7515 §4.1).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// `alg`, as written.
    pub algorithm: String,
    /// `kid`: which key the token claims to be signed with.
    pub key_id: Option<String>,
    /// `typ`, as written.
    pub token_type: Option<String>,
}

/// A token taken apart: decoded, and not verified.
pub struct CompactJwt<'a> {
    /// Its header.
    pub header: Header,
    signing_input: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl fmt::Debug for CompactJwt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompactJwt").field("header", &self.header).finish_non_exhaustive()
    }
}

impl<'a> CompactJwt<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// One variant per reason; see [`JwtError`].
    pub fn parse(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLong);
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(JwtError::NotCompact)?;
        let (header, payload) = signing_input.split_once('.').ok_or(JwtError::NotCompact)?;
        if payload.contains('.') || header.is_empty() || payload.is_empty() {
            return Err(JwtError::NotCompact);
        }
        let header = parse_header(&decode(header, "header")?)?;
        let payload = decode(payload, "payload")?;
        let signature = decode(signature, "signature")?;
        Ok(Self { header, signing_input, payload, signature })
    }

    /// What was signed: header and payload as they were sent.
    #[must_use]
    pub fn signing_input(&self) -> &'a str {
        self.signing_input
    }

    /// The payload's JSON text, unverified.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The signature's bytes.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// `iss` as the payload says it, unverified: good for looking up an issuer, and for nothing else.
    /// Only this member is read; who believes the payload parses all of it strictly.
    ///
    /// # Errors
    /// When the payload is not an object, or has it twice; `Ok(None)` when `iss` is not a string.
    pub fn unverified_issuer(&self) -> Result<Option<Cow<'_, str>>, JwtError> {
        Ok(self.unverified_claim("iss")?.and_then(|value| match value {
            Scalar::Text(text) => Some(text),
            _ => None,
        }))
    }

    /// `exp` as the payload says it, unverified, in epoch seconds: lets a client see that its token
    /// is too old to be sent.
    ///
    /// # Errors
    /// When the payload is not an object, or has it twice.
    pub fn unverified_expiry(&self) -> Result<Option<i64>, JwtError> {
        Ok(self.unverified_claim("exp")?.and_then(|value| match value {
            Scalar::Integer(number) => Some(number),
            _ => None,
        }))
    }

    fn unverified_claim(&self, name: &'static str) -> Result<Option<Scalar<'_>>, JwtError> {
        let mut json = serde_json::Deserializer::from_slice(&self.payload);
        let found = Member(name).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
        found.map_err(|_| JwtError::Json("payload"))
    }
}

fn decode(part: &str, what: &'static str) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Base64(what))
}

fn parse_header(bytes: &[u8]) -> Result<Header, JwtError> {
    let mut header = Header::default();
    let mut refusal = None;
    each_member(bytes, |member, value| {
        match (member, value) {
            ("alg", Scalar::Text(text)) => header.algorithm = text.into_owned(),
            ("kid", Scalar::Text(text)) => header.key_id = Some(text.into_owned()),
            ("typ", Scalar::Text(text)) => header.token_type = Some(text.into_owned()),
            ("alg" | "kid" | "typ", _) => return Err(()),
            ("crit", _) => refusal = Some(JwtError::Critical),
            ("jku", _) => refusal = Some(JwtError::KeyInHeader("jku")),
            ("jwk", _) => refusal = Some(JwtError::KeyInHeader("jwk")),
            ("x5u", _) => refusal = Some(JwtError::KeyInHeader("x5u")),
            ("b64", _) => refusal = Some(JwtError::Encoding("b64")),
            ("zip", _) => refusal = Some(JwtError::Encoding("zip")),
            ("enc", _) => refusal = Some(JwtError::Encoding("enc")),
            // `x5c`, `x5t`, `cty` and whatever an issuer adds mean nothing here.
            _ => {}
        }
        Ok(())
    })
    .map_err(|_| JwtError::Json("header"))?;
    match refusal {
        Some(error) => Err(error),
        None if header.algorithm.is_empty() => Err(JwtError::NoAlgorithm),
        None => Ok(header),
    }
}

/// A member's value, as far as this module looks at it.
enum Scalar<'a> {
    Text(Cow<'a, str>),
    Integer(i64),
    Other,
}

/// Calls `visit` for each top-level member of a JSON object; refuses duplicates (at any level),
/// trailing bytes and too deep nesting.
fn each_member<'a>(
    bytes: &'a [u8],
    visit: impl FnMut(&str, Scalar<'a>) -> Result<(), ()>,
) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    TopLevel(visit).deserialize(&mut json)?;
    json.end()
}

/// One top-level member of an object; the others are passed over.
struct Member(&'static str);

impl<'de> DeserializeSeed<'de> for Member {
    type Value = Option<Scalar<'de>>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member {
    type Value = Option<Scalar<'de>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Text(member)) = map.next_key()? {
            if member != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value_seed(Strict { depth: 1 })?).is_some() {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        Ok(found)
    }
}

struct TopLevel<F>(F);

impl<'de, F: FnMut(&str, Scalar<'de>) -> Result<(), ()>> DeserializeSeed<'de> for TopLevel<F> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, Scalar<'de>) -> Result<(), ()>> Visitor<'de> for TopLevel<F> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen: Vec<Cow<'de, str>> = Vec::with_capacity(32);
        while let Some(Text(member)) = map.next_key()? {
            let value = map.next_value_seed(Strict { depth: 1 })?;
            if seen.contains(&member) {
                return Err(A::Error::custom("duplicate member"));
            }
            (self.0)(&member, value).map_err(|()| A::Error::custom("wrong type"))?;
            seen.push(member);
        }
        Ok(())
    }
}

/// A string, borrowed from the input where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Any JSON value, walked through for its rules and mostly thrown away.
struct Strict {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Scalar<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Scalar<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Integer(number))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
        Ok(i64::try_from(number).map_or(Scalar::Other, Scalar::Integer))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }
    fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
        let depth = self.deeper()?;
        while seq.next_element_seed(Strict { depth })?.is_some() {}
        Ok(Scalar::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
        let depth = self.deeper()?;
        let mut seen: Vec<Cow<'de, str>> = Vec::new();
        while let Some(Text(member)) = map.next_key()? {
            if seen.contains(&member) {
                return Err(A::Error::custom("duplicate member"));
            }
            seen.push(member);
            map.next_value_seed(Strict { depth })?;
        }
        Ok(Scalar::Other)
    }
}

impl Strict {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.depth >= MAX_JSON_DEPTH { Err(E::custom("too deep")) } else { Ok(self.depth + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!(
            "{}.{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload),
            URL_SAFE_NO_PAD.encode("sig")
        )
    }

    #[test]
    fn headers() {
        let nested = format!(r#"{{"alg":"RS256","x":{}1{}}}"#, "[".repeat(40), "]".repeat(40));
        for (header, expected) in [
            (r#"{"alg":"RS256","kid":"k","typ":"JWT","x5t":"z"}"#, None),
            (r#"{"alg":"none"}"#, None), // the verifier knows no such algorithm
            (r#"{"typ":"JWT"}"#, Some(JwtError::NoAlgorithm)),
            (r#"{"alg":7}"#, Some(JwtError::Json("header"))),
            (r#"{"alg":"RS256","alg":"none"}"#, Some(JwtError::Json("header"))),
            (r#"{"alg":"RS256","x":{"a":1,"a":2}}"#, Some(JwtError::Json("header"))),
            (r#"{"alg":"RS256"} x"#, Some(JwtError::Json("header"))),
            (r#"["RS256"]"#, Some(JwtError::Json("header"))),
            (&nested, Some(JwtError::Json("header"))),
            (r#"{"alg":"RS256","crit":[]}"#, Some(JwtError::Critical)),
            (r#"{"alg":"RS256","jku":"https://evil.example"}"#, Some(JwtError::KeyInHeader("jku"))),
            (r#"{"alg":"RS256","jwk":{}}"#, Some(JwtError::KeyInHeader("jwk"))),
            (r#"{"alg":"RS256","x5u":""}"#, Some(JwtError::KeyInHeader("x5u"))),
            (r#"{"alg":"RS256","b64":false}"#, Some(JwtError::Encoding("b64"))),
            (r#"{"alg":"RS256","zip":"DEF"}"#, Some(JwtError::Encoding("zip"))),
        ] {
            assert_eq!(CompactJwt::parse(&token(header, "{}")).err(), expected, "{header}");
        }
    }

    #[test]
    fn shapes() {
        let long = "a".repeat(MAX_TOKEN_BYTES + 1);
        for (text, expected) in [
            ("", JwtError::NotCompact),
            ("a.b", JwtError::NotCompact),
            ("a.b.c.d", JwtError::NotCompact),
            ("..", JwtError::NotCompact),
            ("e30=.e30.e30", JwtError::Base64("header")),
            ("e30.e3+.e30", JwtError::NoAlgorithm),
            (long.as_str(), JwtError::TooLong),
        ] {
            assert_eq!(CompactJwt::parse(text).err(), Some(expected), "{text:.20}");
        }
    }

    #[test]
    fn the_issuer_is_read_once() {
        for (payload, expected) in [
            (r#"{"iss":"https://a.example","exp":7}"#, Ok(Some("https://a.example"))),
            (r#"{"iss":["https://a.example"]}"#, Ok(None)),
            (r#"{"sub":"x"}"#, Ok(None)),
            (r#"{"iss":"https://a.example","iss":"https://b.example"}"#, Err(JwtError::Json("payload"))),
            (r#"{"\u0069ss":"https://a.example","iss":"https://b.example"}"#, Err(JwtError::Json("payload"))),
            ("null", Err(JwtError::Json("payload"))),
        ] {
            let token = token(r#"{"alg":"RS256"}"#, payload);
            let jwt = CompactJwt::parse(&token).expect("the header is fine");
            assert_eq!(jwt.unverified_issuer(), expected.map(|o| o.map(Cow::Borrowed)), "{payload}");
        }
    }
}
