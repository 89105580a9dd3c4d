//! The certificate authority's key: read once, and used to sign. The `ssh-key` crate knows OpenSSH's
//! formats; all signatures are made by aws-lc-rs.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA512, RsaKeyPair,
    },
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use ssh_key::{
    Algorithm, EcdsaCurve, HashAlg, Mpint, PrivateKey, PublicKey, Signature,
    private::{EcdsaKeypair, KeypairData},
    public::{EcdsaPublicKey, Ed25519PublicKey, KeyData, RsaPublicKey},
};

/// The least that `RequiredRSASize` of a careful sshd takes.
const MIN_RSA_BITS: usize = 2048;

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair, EcdsaCurve),
    Rsa(RsaKeyPair),
}

/// A certificate authority.
pub(super) struct Authority {
    pair: Pair,
    public: KeyData,
}

/// The text is no key that can sign. Never holds the text.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Neither OpenSSH's format nor PEM.
    #[error("expected an OpenSSH or PKCS #8 private key without a passphrase")]
    Format,
    /// An RSA key in a format that aws-lc-rs does not read.
    #[error("an RSA key has to be in PKCS #8: convert it with `ssh-keygen -p -m PKCS8 -f FILE`")]
    RsaFormat,
    /// A key of another kind.
    #[error("expected an Ed25519, ECDSA (P-256, P-384) or RSA key of 2048 bits and more")]
    Kind,
}

impl Authority {
    /// Reads a private key: OpenSSH's format or PKCS #8, for RSA PKCS #8 or PKCS #1.
    pub(super) fn parse(text: &str) -> Result<Self, Unusable> {
        let pair = if text.contains("BEGIN OPENSSH PRIVATE KEY") { from_openssh(text)? } else { from_pem(text)? };
        let public = pair.public().ok_or(Unusable::Kind)?;
        Ok(Self { pair, public })
    }

    /// The public half, as a line for `TrustedUserCAKeys`.
    pub(super) fn public_line(&self) -> String {
        let line = PublicKey::new(self.public.clone(), "jobpass").to_openssh();
        line.map(|line| line + "\n").unwrap_or_default() // what was parsed can be written
    }
}

fn from_openssh(text: &str) -> Result<Pair, Unusable> {
    let key = PrivateKey::from_openssh(text).map_err(|_| Unusable::Format)?;
    let ecdsa = |curve, private: &[u8], public: &[u8]| {
        let algorithm = signing(curve).ok_or(Unusable::Kind)?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, private, public);
        pair.map(|pair| Pair::Ecdsa(pair, curve)).map_err(|_| Unusable::Format)
    };
    match key.key_data() {
        KeypairData::Ed25519(pair) => {
            let pair = Ed25519KeyPair::from_seed_and_public_key(&pair.private.to_bytes(), pair.public.as_ref());
            pair.map(Pair::Ed25519).map_err(|_| Unusable::Format)
        }
        KeypairData::Ecdsa(EcdsaKeypair::NistP256 { public, private }) => {
            ecdsa(EcdsaCurve::NistP256, private.as_ref(), public.as_bytes())
        }
        KeypairData::Ecdsa(EcdsaKeypair::NistP384 { public, private }) => {
            ecdsa(EcdsaCurve::NistP384, private.as_ref(), public.as_bytes())
        }
        KeypairData::Rsa(_) => Err(Unusable::RsaFormat),
        KeypairData::Encrypted(_) => Err(Unusable::Format),
        _ => Err(Unusable::Kind),
    }
}

fn from_pem(text: &str) -> Result<Pair, Unusable> {
    let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| Unusable::Format)?;
    let der = der.secret_der();
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(Pair::Ed25519(pair));
    }
    for curve in [EcdsaCurve::NistP256, EcdsaCurve::NistP384] {
        if let Some(algorithm) = signing(curve)
            && let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm, der)
        {
            return Ok(Pair::Ecdsa(pair, curve));
        }
    }
    let pair = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)).map_err(|_| Unusable::Kind)?;
    if pair.public_modulus_len() * 8 < MIN_RSA_BITS { Err(Unusable::Kind) } else { Ok(Pair::Rsa(pair)) }
}

const fn signing(curve: EcdsaCurve) -> Option<&'static aws_lc_rs::signature::EcdsaSigningAlgorithm> {
    match curve {
        EcdsaCurve::NistP256 => Some(&ECDSA_P256_SHA256_FIXED_SIGNING),
        EcdsaCurve::NistP384 => Some(&ECDSA_P384_SHA384_FIXED_SIGNING),
        EcdsaCurve::NistP521 => None,
    }
}

impl Pair {
    fn public(&self) -> Option<KeyData> {
        Some(match self {
            Self::Ed25519(pair) => KeyData::Ed25519(Ed25519PublicKey::try_from(pair.public_key().as_ref()).ok()?),
            Self::Ecdsa(pair, _) => KeyData::Ecdsa(EcdsaPublicKey::from_sec1_bytes(pair.public_key().as_ref()).ok()?),
            Self::Rsa(pair) => KeyData::Rsa(RsaPublicKey {
                e: Mpint::from_positive_bytes(pair.public_key().exponent().big_endian_without_leading_zero()).ok()?,
                n: Mpint::from_positive_bytes(pair.public_key().modulus().big_endian_without_leading_zero()).ok()?,
            }),
        })
    }

    /// RFC 8709 §6 (Ed25519), RFC 5656 §3.1.2 (ECDSA), RFC 8332 §3 (`rsa-sha2-512`).
    fn sign(&self, message: &[u8]) -> Option<Signature> {
        let random = SystemRandom::new();
        let (algorithm, bytes) = match self {
            Self::Ed25519(pair) => (Algorithm::Ed25519, pair.sign(message).as_ref().to_vec()),
            Self::Ecdsa(pair, curve) => {
                let fixed = pair.sign(&random, message).ok()?;
                let (r, s) = fixed.as_ref().split_at_checked(fixed.as_ref().len() / 2)?;
                let mut bytes = Vec::new();
                for half in [r, s] {
                    super::put_string(&mut bytes, Mpint::from_positive_bytes(half).ok()?.as_bytes());
                }
                (Algorithm::Ecdsa { curve: *curve }, bytes)
            }
            Self::Rsa(pair) => {
                let mut bytes = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA512, &random, message, &mut bytes).ok()?;
                (Algorithm::Rsa { hash: Some(HashAlg::Sha512) }, bytes)
            }
        };
        Signature::new(algorithm, bytes).ok()
    }
}

impl signature::Signer<Signature> for Authority {
    fn try_sign(&self, message: &[u8]) -> Result<Signature, signature::Error> {
        self.pair.sign(message).ok_or_else(signature::Error::new)
    }
}

impl From<&Authority> for KeyData {
    fn from(authority: &Authority) -> Self {
        authority.public.clone()
    }
}
