//! A JSON Web Key Set (RFC 7517), made into keys that verify.
//!
//! Key by key: one that cannot be used is left out and reported, the others still work. Symmetric keys
//! do not exist here, and a key is used for nothing that it says it is not for. Keys are parsed once,
//! when the set is: building an RSA key costs about as much as the check itself.

use super::error::TokenError;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RsaParameters,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_protocol::CompactJwt;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// The shortest RSA modulus that is accepted, in bits (RFC 7518 §3.3).
const MIN_RSA_BITS: usize = 2048;

/// The longest one: the check's cost grows with its square.
const MAX_RSA_BITS: usize = 8192;

/// A signature algorithm (RFC 7518 §3.1, RFC 8037 §3.1) that an issuer may use. There is no symmetric
/// one, and no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// ECDSA with P-384 and SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// The algorithm of this name, exactly as registered.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// Why a key was left out of its set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("not a JWK that can be read: {0}")]
    Unreadable(String),
    #[error("a key for `use: {0}`, not for signatures")]
    Use(String),
    #[error("its `key_ops` have no `verify`")]
    Operations,
    #[error("no public key of a kind that is supported ({0})")]
    Kind(String),
    #[error("its `alg` {0} is not one of this issuer's for such a key")]
    Algorithm(String),
    #[error("its `{0}` is not base64url of the right length")]
    Member(&'static str),
    #[error("an RSA key of {0} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted")]
    RsaSize(usize),
    #[error("not a valid public key")]
    Invalid,
    #[error("another key of the set has the same `kid`")]
    Duplicate,
}

/// The keys that an issuer signs with at one time.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

/// One key.
#[derive(Debug)]
struct Key {
    kid: Option<String>,
    name: Arc<str>,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
}

impl KeySet {
    /// Reads a key set; hands what is wrong with each key that is left out to `skipped`, with its `kid`.
    ///
    /// Fails only when the text is no key set at all.
    pub(super) fn parse(
        text: &[u8],
        algorithms: &[Algorithm],
        mut skipped: impl FnMut(Option<&str>, KeyError),
    ) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Document<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let document: Document<'_> = serde_json::from_slice(text)?;
        let mut keys: Vec<Key> = Vec::with_capacity(document.keys.len());
        for raw in document.keys {
            let jwk = match serde_json::from_str::<Jwk>(raw.get()) {
                Ok(jwk) => jwk,
                Err(error) => {
                    skipped(None, KeyError::Unreadable(error.to_string()));
                    continue;
                }
            };
            match jwk.verifiers(algorithms) {
                Ok(_) if jwk.kid.is_some() && keys.iter().any(|key| key.kid == jwk.kid) => {
                    skipped(jwk.kid.as_deref(), KeyError::Duplicate);
                }
                Ok(verifiers) => keys.push(Key { name: name(&jwk, &verifiers), kid: jwk.kid, verifiers }),
                Err(error) => skipped(jwk.kid.as_deref(), error),
            }
        }
        Ok(Self { keys })
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Checks a token's signature; answers with the name of the key that made it.
    pub(super) fn verify(&self, jwt: &CompactJwt<'_>, algorithm: Algorithm) -> Result<&Arc<str>, TokenError> {
        let key = match (&jwt.header.key_id, self.keys.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|key| key.kid.as_ref() == Some(kid)).ok_or(TokenError::UnknownKey)?,
            (None, [only]) => only,
            (None, _) => return Err(TokenError::NoKeyId),
        };
        let verifier = key.verifiers.iter().find(|(of, _)| *of == algorithm);
        let (_, public) = verifier.ok_or(TokenError::KeyMismatch)?;
        public.verify_sig(jwt.signing_input().as_bytes(), jwt.signature()).map_err(|_| TokenError::BadSignature)?;
        Ok(&key.name)
    }
}

/// What leases and audit call a key: its `kid`, or a fingerprint where it has none.
fn name(jwk: &Jwk, verifiers: &[(Algorithm, ParsedPublicKey)]) -> Arc<str> {
    match (&jwk.kid, verifiers.first()) {
        (Some(kid), _) => kid.as_str().into(),
        (None, Some((_, key))) => format!("sha256:{}", URL_SAFE_NO_PAD.encode(Sha256::digest(key.as_ref()))).into(),
        (None, None) => "".into(),
    }
}

/// The members of a JWK that are looked at (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    /// The parsed key, once for each algorithm that it may be used with.
    fn verifiers(&self, allowed: &[Algorithm]) -> Result<Vec<(Algorithm, ParsedPublicKey)>, KeyError> {
        if let Some(usage) = self.usage.as_ref().filter(|usage| *usage != "sig") {
            return Err(KeyError::Use(usage.clone()));
        }
        if self.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
            return Err(KeyError::Operations);
        }
        let verifiers = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => self.rsa(allowed)?,
            ("EC", Some("P-256")) => self.ec(allowed, Algorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32)?,
            ("EC", Some("P-384")) => self.ec(allowed, Algorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48)?,
            ("OKP", Some("Ed25519")) if self.may_be(allowed, Algorithm::EdDsa) => {
                let key = ParsedPublicKey::new(&ED25519, decode("x", self.x.as_deref(), Some(32))?);
                vec![(Algorithm::EdDsa, key.map_err(|_| KeyError::Invalid)?)]
            }
            ("OKP", Some("Ed25519")) => Vec::new(),
            (kty, crv) => {
                return Err(KeyError::Kind([Some(kty), crv].into_iter().flatten().collect::<Vec<_>>().join(" ")));
            }
        };
        if verifiers.is_empty() {
            return Err(KeyError::Algorithm(self.alg.clone().unwrap_or_else(|| "(none)".to_owned())));
        }
        Ok(verifiers)
    }

    fn may_be(&self, allowed: &[Algorithm], algorithm: Algorithm) -> bool {
        allowed.contains(&algorithm) && self.alg.as_deref().is_none_or(|own| Algorithm::named(own) == Some(algorithm))
    }

    fn rsa(&self, allowed: &[Algorithm]) -> Result<Vec<(Algorithm, ParsedPublicKey)>, KeyError> {
        const PARAMETERS: [(Algorithm, &RsaParameters); 4] = [
            (Algorithm::Rs256, &RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::Rs384, &RSA_PKCS1_2048_8192_SHA384),
            (Algorithm::Rs512, &RSA_PKCS1_2048_8192_SHA512),
            (Algorithm::Ps256, &RSA_PSS_2048_8192_SHA256),
        ];
        let modulus = decode("n", self.n.as_deref(), None)?;
        let exponent = decode("e", self.e.as_deref(), None)?;
        let [n, e] = [&modulus, &exponent].map(|bytes| {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            bytes.get(zeros..).unwrap_or_default()
        });
        let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
            return Err(KeyError::RsaSize(bits));
        }
        // RFC 8017 §3.1: odd and at least 3. With 1 every message would be its own signature.
        let sound = match e {
            [only] => *only >= 3 && only % 2 == 1,
            [_, .., last] => e.len() <= 4 && last % 2 == 1,
            [] => false,
        };
        if !sound {
            return Err(KeyError::Invalid);
        }
        let components = RsaPublicKeyComponents { n, e };
        PARAMETERS
            .into_iter()
            .filter(|(algorithm, _)| self.may_be(allowed, *algorithm))
            .map(|(algorithm, parameters)| {
                let key = components.to_parsed_public_key(parameters);
                Ok((algorithm, key.map_err(|_| KeyError::Invalid)?))
            })
            .collect()
    }

    fn ec(
        &self,
        allowed: &[Algorithm],
        algorithm: Algorithm,
        verification: &'static dyn VerificationAlgorithm,
        size: usize,
    ) -> Result<Vec<(Algorithm, ParsedPublicKey)>, KeyError> {
        if !self.may_be(allowed, algorithm) {
            return Ok(Vec::new());
        }
        // An uncompressed point (SEC 1 §2.3.3).
        let mut point = vec![4];
        point.extend(decode("x", self.x.as_deref(), Some(size))?);
        point.extend(decode("y", self.y.as_deref(), Some(size))?);
        let key = ParsedPublicKey::new(verification, point).map_err(|_| KeyError::Invalid)?;
        Ok(vec![(algorithm, key)])
    }
}

fn decode(member: &'static str, text: Option<&str>, size: Option<usize>) -> Result<Vec<u8>, KeyError> {
    text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .filter(|bytes| size.is_none_or(|size| bytes.len() == size))
        .ok_or(KeyError::Member(member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{
        Algorithm as Signing, Ci,
        issuer::{Issuer, Rotation, Token},
    };
    use serde_json::{Value, json};

    const ALL: [(Algorithm, Signing); 7] = [
        (Algorithm::Rs256, Signing::Rs256),
        (Algorithm::Rs384, Signing::Rs384),
        (Algorithm::Rs512, Signing::Rs512),
        (Algorithm::Ps256, Signing::Ps256),
        (Algorithm::Es256, Signing::Es256),
        (Algorithm::Es384, Signing::Es384),
        (Algorithm::EdDsa, Signing::EdDsa),
    ];

    async fn issuer() -> Issuer {
        let loopback = "127.0.0.1:0".parse().expect("an address");
        Issuer::start(loopback, Ci::GitHub, || 1_790_000_000).await.expect("loopback")
    }

    fn parse(keys: Value, algorithms: &[Algorithm]) -> (KeySet, Vec<KeyError>) {
        let mut errors = Vec::new();
        let text = json!({ "keys": keys }).to_string();
        let set = KeySet::parse(text.as_bytes(), algorithms, |_, error| errors.push(error)).expect("a set");
        (set, errors)
    }

    #[tokio::test]
    async fn a_key_of_each_kind_in_one_set() {
        let issuer = issuer().await;
        let algorithms = ALL.map(|(algorithm, _)| algorithm);
        for (_, signing) in &ALL[1..] {
            issuer.rotate(Rotation::Add, *signing).expect("a key");
        }
        let (set, errors) = parse(issuer.jwks()["keys"].clone(), &algorithms);
        assert_eq!((set.len(), errors), (ALL.len(), Vec::new()));
        for (algorithm, signing) in ALL {
            assert_eq!(Algorithm::named(signing.name()), Some(algorithm));
            let token = issuer.mint(&Token::for_audience("x").signed_with(signing)).expect("a token");
            let jwt = CompactJwt::parse(&token).expect("well formed");
            assert_eq!(
                set.verify(&jwt, algorithm).expect("good").as_ref(),
                jwt.header.key_id.as_deref().expect("a kid")
            );
            for other in algorithms.into_iter().filter(|other| *other != algorithm) {
                // The key says which algorithm it is for, so no other one is even tried.
                assert_eq!(set.verify(&jwt, other), Err(TokenError::KeyMismatch), "{signing:?} as {other:?}");
            }
            let without = issuer.mint(&Token::for_audience("x").signed_with(signing).header("kid", Value::Null));
            let without = without.expect("a token");
            let jwt = CompactJwt::parse(&without).expect("well formed");
            assert_eq!(set.verify(&jwt, algorithm), Err(TokenError::NoKeyId));
        }
    }

    #[tokio::test]
    async fn keys_that_are_left_out() {
        let issuer = issuer().await;
        let good = issuer.jwks()["keys"][0].clone();
        issuer.rotate(Rotation::Replace, Signing::Es256).expect("a key");
        let ec = issuer.jwks()["keys"][0].clone();
        let with = |base: &Value, changes: Value| {
            let mut jwk = base.clone();
            for (name, value) in changes.as_object().expect("an object") {
                jwk[name] = value.clone();
            }
            jwk
        };
        let modulus = URL_SAFE_NO_PAD.decode(good["n"].as_str().expect("RSA")).expect("base64url");
        let short = URL_SAFE_NO_PAD.encode(&modulus[..128]);
        let led_by_zeros = URL_SAFE_NO_PAD.encode([&[0; 128], &modulus[..128]].concat());
        let huge = URL_SAFE_NO_PAD.encode(modulus.repeat(5));
        let secret = json!({ "kty": "oct", "kid": "s", "k": "c2VjcmV0" });
        for (name, jwk, expected) in [
            ("good", with(&good, json!({})), None),
            ("no alg, no use", with(&good, json!({ "alg": null, "use": null })), None),
            ("a broken certificate", with(&good, json!({ "x5c": 7, "x5t": [] })), None),
            ("verify among others", with(&good, json!({ "key_ops": ["verify", "wrapKey"] })), None),
            ("for encryption", with(&good, json!({ "use": "enc" })), Some(KeyError::Use("enc".into()))),
            ("for signing", with(&good, json!({ "key_ops": ["sign"] })), Some(KeyError::Operations)),
            ("RSA-OAEP", with(&good, json!({ "alg": "RSA-OAEP" })), Some(KeyError::Algorithm("RSA-OAEP".into()))),
            ("not allowed here", with(&good, json!({ "alg": "RS512" })), Some(KeyError::Algorithm("RS512".into()))),
            ("1024 bits", with(&good, json!({ "n": short })), Some(KeyError::RsaSize(1024))),
            ("1024 bits and zeros", with(&good, json!({ "n": led_by_zeros })), Some(KeyError::RsaSize(1024))),
            ("10240 bits", with(&good, json!({ "n": huge })), Some(KeyError::RsaSize(10240))),
            ("exponent 3", with(&good, json!({ "e": "Aw" })), None),
            ("exponent 4", with(&good, json!({ "e": "BA" })), Some(KeyError::Invalid)),
            ("exponent of 5 bytes", with(&good, json!({ "e": "AQAAAAE" })), Some(KeyError::Invalid)),
            ("exponent 1", with(&good, json!({ "e": "AQ" })), Some(KeyError::Invalid)),
            ("no modulus", with(&good, json!({ "n": null })), Some(KeyError::Member("n"))),
            ("padded modulus", with(&good, json!({ "n": "AQ==" })), Some(KeyError::Member("n"))),
            ("symmetric", secret, Some(KeyError::Kind("oct".into()))),
            ("unknown curve", with(&ec, json!({ "crv": "secp256k1" })), Some(KeyError::Kind("EC secp256k1".into()))),
            (
                "wrong curve",
                with(&ec, json!({ "crv": "P-384", "alg": null })),
                Some(KeyError::Algorithm("(none)".into())),
            ),
            ("not on the curve", with(&ec, json!({ "y": ec["x"] })), Some(KeyError::Invalid)),
            ("half a point", with(&ec, json!({ "y": "AQ" })), Some(KeyError::Member("y"))),
            ("RSA named EC", with(&good, json!({ "crv": "P-256" })), Some(KeyError::Kind("RSA P-256".into()))),
        ] {
            // Next to a good key, which always stays.
            let companion = with(&good, json!({ "kid": "companion" }));
            let (set, errors) = parse(json!([jwk, companion]), &[Algorithm::Rs256, Algorithm::Es256]);
            assert_eq!(errors, Vec::from_iter(expected.clone()), "{name}");
            assert_eq!(set.len(), if expected.is_some() { 1 } else { 2 }, "{name}");
        }
        let (set, errors) = parse(json!([good, "x", { "kid": 7, "kty": "RSA" }, good]), &[Algorithm::Rs256]);
        assert_eq!(set.len(), 1);
        assert!(matches!(errors.as_slice(), [KeyError::Unreadable(_), KeyError::Unreadable(_), KeyError::Duplicate]));
        for text in ["", "[]", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#] {
            assert!(KeySet::parse(text.as_bytes(), &[], |_, _| {}).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_key_without_a_name() {
        let issuer = issuer().await;
        let mut jwk = issuer.jwks()["keys"][0].clone();
        jwk["kid"] = Value::Null;
        let (set, _) = parse(json!([jwk]), &[Algorithm::Rs256]);
        let token = issuer.mint(&Token::for_audience("x").header("kid", Value::Null)).expect("a token");
        let name = set.verify(&CompactJwt::parse(&token).expect("well formed"), Algorithm::Rs256).expect("good");
        assert!(name.starts_with("sha256:") && name.len() == 7 + 43, "{name}");
    }
}
