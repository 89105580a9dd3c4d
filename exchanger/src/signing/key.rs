//! One private key: made, kept as PKCS #8, published as a JWK, and used to sign.
//!
//! It is parsed once and held. Its private half leaves this module only as the text of its own file.

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD, write::EncoderStringWriter};
use jobpass_protocol::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// A JWS algorithm that we sign with (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256: small, fast, and read by every large cloud.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// RSASSA-PKCS1-v1_5 with SHA-256, for readers that know nothing else. Signing costs about 30 times more.
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    /// The name as it stands in a header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Rs256 => "RS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An algorithm and, where it has a choice, the size of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum KeyType {
    /// A P-256 key for ES256.
    #[serde(rename = "ES256")]
    Es256,
    /// An Ed25519 key for EdDSA.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// A 2048-bit RSA key for RS256.
    #[serde(rename = "RS256-2048", alias = "RS256")]
    Rs256Bits2048,
    /// A 3072-bit RSA key for RS256.
    #[serde(rename = "RS256-3072")]
    Rs256Bits3072,
}

impl KeyType {
    /// What a key of this type signs with.
    #[must_use]
    pub const fn algorithm(self) -> Algorithm {
        match self {
            Self::Es256 => Algorithm::Es256,
            Self::EdDsa => Algorithm::EdDsa,
            Self::Rs256Bits2048 | Self::Rs256Bits3072 => Algorithm::Rs256,
        }
    }
}

/// Cryptography refused: a key that does not parse, or no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key cannot be used")]
pub struct Unusable;

enum Pair {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(RsaKeyPair),
}

/// A private key with what is derived from it.
///
/// INVARIANT: `id` is the RFC 7638 thumbprint of the public key.
pub struct SigningKey {
    pair: Pair,
    kind: KeyType,
    id: String,
    jwk: String,
    header: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kind", &self.kind).field("id", &self.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a new key; returns it with its PKCS #8 form in base64.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(kind: KeyType) -> Result<(Self, Secret), Unusable> {
        let rsa = |size| {
            let pair = RsaKeyPair::generate(size).map_err(|_| Unusable)?;
            Ok::<_, Unusable>(pair.as_der().map_err(|_| Unusable)?.as_ref().to_vec())
        };
        let pkcs8 = Zeroizing::new(match kind {
            KeyType::Es256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| Unusable)?
                .as_ref()
                .to_vec(),
            KeyType::EdDsa => {
                Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| Unusable)?.as_ref().to_vec()
            }
            KeyType::Rs256Bits2048 => rsa(KeySize::Rsa2048)?,
            KeyType::Rs256Bits3072 => rsa(KeySize::Rsa3072)?,
        });
        let text = Secret::new(base64::engine::general_purpose::STANDARD.encode(&*pkcs8));
        Ok((Self::from_pkcs8(kind, &pkcs8)?, text))
    }

    /// Reads a key back from base64 of its PKCS #8 form.
    ///
    /// # Errors
    /// When the text is not a key of that type.
    pub fn parse(kind: KeyType, text: &Secret) -> Result<Self, Unusable> {
        let pkcs8 = base64::engine::general_purpose::STANDARD.decode(text.expose()).map_err(|_| Unusable)?;
        Self::from_pkcs8(kind, &Zeroizing::new(pkcs8))
    }

    fn from_pkcs8(kind: KeyType, pkcs8: &[u8]) -> Result<Self, Unusable> {
        let pair = match kind {
            KeyType::Es256 => {
                Pair::Es256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map_err(|_| Unusable)?)
            }
            KeyType::EdDsa => Pair::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| Unusable)?),
            KeyType::Rs256Bits2048 | KeyType::Rs256Bits3072 => {
                Pair::Rs256(RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| Unusable)?)
            }
        };
        // RFC 7638 §3.2: the required members, in the order of their names.
        let members = match &pair {
            Pair::Es256(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).ok_or(Unusable)?.split_at_checked(32).ok_or(Unusable)?;
                let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
                format!(r#""crv":"P-256","kty":"EC","x":"{x}","y":"{y}""#)
            }
            Pair::EdDsa(pair) => {
                let x = URL_SAFE_NO_PAD.encode(pair.public_key());
                format!(r#""crv":"Ed25519","kty":"OKP","x":"{x}""#)
            }
            Pair::Rs256(pair) => {
                let bits = if kind == KeyType::Rs256Bits2048 { 2048 } else { 3072 };
                if pair.public_modulus_len() * 8 != bits {
                    return Err(Unusable);
                }
                let public = pair.public_key();
                let e = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
                let n = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
                format!(r#""e":"{e}","kty":"RSA","n":"{n}""#)
            }
        };
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{{{members}}}")));
        let algorithm = kind.algorithm();
        let jwk = format!(r#"{{"alg":"{algorithm}","kid":"{id}","use":"sig",{members}}}"#);
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{algorithm}","kid":"{id}","typ":"JWT"}}"#));
        Ok(Self { pair, kind, id, jwk, header })
    }

    /// The key's type.
    #[must_use]
    pub const fn kind(&self) -> KeyType {
        self.kind
    }

    /// `kid`: the RFC 7638 thumbprint of the public key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key as a JSON Web Key (RFC 7517 §4), with `use`, `alg` and `kid`.
    #[must_use]
    pub fn jwk(&self) -> &str {
        &self.jwk
    }

    /// Signs claims as a JWT in compact form (RFC 7515 §3.1) with the header `typ: JWT`.
    ///
    /// # Errors
    /// When the claims do not serialise, or cryptography refuses.
    pub fn sign_jwt(&self, claims: &impl Serialize) -> Result<Secret, Unusable> {
        // Large enough for the claims that we write, so that the text is allocated once.
        let mut token = String::with_capacity(1024);
        token.push_str(&self.header);
        token.push('.');
        let mut payload = EncoderStringWriter::from_consumer(&mut token, &URL_SAFE_NO_PAD);
        serde_json::to_writer(&mut payload, claims).map_err(|_| Unusable)?;
        payload.into_inner();
        self.with_signature(token.as_bytes(), |signature| URL_SAFE_NO_PAD.encode(signature)).map(|signature| {
            token.push('.');
            token.push_str(&signature);
            Secret::new(token)
        })
    }

    /// Signs a message.
    ///
    /// # Errors
    /// When cryptography refuses.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unusable> {
        self.with_signature(message, <[u8]>::to_vec)
    }

    /// Whether this key made the signature.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let (algorithm, key): (&'static dyn VerificationAlgorithm, &[u8]) = match &self.pair {
            Pair::Es256(pair) => (&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref()),
            Pair::EdDsa(pair) => (&ED25519, pair.public_key().as_ref()),
            Pair::Rs256(pair) => (&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref()),
        };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
    }

    fn with_signature<T>(&self, message: &[u8], then: impl FnOnce(&[u8]) -> T) -> Result<T, Unusable> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Es256(pair) => Ok(then(pair.sign(&random, message).map_err(|_| Unusable)?.as_ref())),
            Pair::EdDsa(pair) => Ok(then(pair.try_sign(message).map_err(|_| Unusable)?.as_ref())),
            Pair::Rs256(pair) => {
                let mut buffer = [0; 384];
                let signature = buffer.get_mut(..pair.public_modulus_len()).ok_or(Unusable)?;
                pair.sign(&RSA_PKCS1_SHA256, &random, message, signature).map_err(|_| Unusable)?;
                Ok(then(signature))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_thumbprint_of_rfc_8037() {
        // RFC 8037 appendices A.1 and A.3.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let pkcs8 = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed").to_pkcs8v1().expect("PKCS #8");
        let key = SigningKey::from_pkcs8(KeyType::EdDsa, pkcs8.as_ref()).expect("a key");
        assert_eq!(key.id(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        assert!(key.jwk().contains("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"), "{}", key.jwk());
    }

    #[test]
    fn every_type_survives_its_file_and_is_believed_by_others() {
        for kind in [KeyType::Es256, KeyType::EdDsa, KeyType::Rs256Bits2048, KeyType::Rs256Bits3072] {
            let (key, text) = SigningKey::generate(kind).expect("a key");
            let again = SigningKey::parse(kind, &text).expect("own files parse");
            assert_eq!(again.id(), key.id());
            let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_str(key.jwk()).expect("a JWK");
            let claims =
                serde_json::json!({"iss": "https://x.example", "aud": "a", "exp": 4_000_000_000_u64, "né": "ü\""});
            let token = again.sign_jwt(&claims).expect("signs");
            let algorithm = kind.algorithm().as_str().parse().expect("an algorithm");
            let mut validation = jsonwebtoken::Validation::new(algorithm);
            validation.set_audience(&["a"]);
            let decoding = jsonwebtoken::DecodingKey::from_jwk(&jwk).expect("a public key");
            let read = jsonwebtoken::decode::<serde_json::Value>(token.expose(), &decoding, &validation)
                .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            assert_eq!(read.claims, claims);
            assert_eq!(read.header.kid.as_deref(), Some(key.id()));
            let signature = key.sign(b"message").expect("signs");
            assert!(again.verifies(b"message", &signature));
            assert!(!again.verifies(b"massage", &signature));
            let other = if kind == KeyType::Rs256Bits2048 { KeyType::Rs256Bits3072 } else { KeyType::Rs256Bits2048 };
            assert!(SigningKey::parse(other, &text).is_err(), "{kind:?} is not {other:?}");
        }
    }
}
