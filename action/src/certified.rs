//! A key pair that is made in the job to be certified: the request (PKCS #10, RFC 2986) goes out, the private half
//! never does.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jobpass_protocol::Secret;
use ring::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use zeroize::Zeroizing;

// ASN.1 tags (X.690 §8).
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const CONTEXT_0: u8 = 0xa0;

/// RFC 5480 §2.1.1: id-ecPublicKey.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// RFC 5480 §2.1.1.1: secp256r1.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// RFC 5758 §3.2: ecdsa-with-SHA256.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// A key pair on P-256, for one credential.
pub(crate) struct Key {
    /// PKCS #8, PEM.
    pub(crate) private: Secret,
    /// What asks to certify it, PEM. It names nobody: names come from the grant.
    pub(crate) request: String,
}

impl Key {
    /// Makes one.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn generate() -> Result<Self, Unspecified> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let private = EcdsaKeyPair::generate_pkcs8(algorithm, &random)?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref(), &random).map_err(|_| Unspecified)?;
        let kind = der(SEQUENCE, &[&der(OID, &[EC_PUBLIC_KEY]), &der(OID, &[P256])]);
        let public = der(SEQUENCE, &[&kind, &der(BIT_STRING, &[&[0], pair.public_key().as_ref()])]);
        let (version, nobody) = (der(INTEGER, &[&[0]]), der(SEQUENCE, &[]));
        let info = der(SEQUENCE, &[&version, &nobody, &public, &der(CONTEXT_0, &[])]);
        let signature = pair.sign(&random, &info)?;
        let how = der(SEQUENCE, &[&der(OID, &[ECDSA_WITH_SHA256])]);
        let request = der(SEQUENCE, &[&info, &how, &der(BIT_STRING, &[&[0], signature.as_ref()])]);
        Ok(Self {
            private: Secret::new(pem("PRIVATE KEY", private.as_ref()).to_string()),
            request: pem("CERTIFICATE REQUEST", &request).to_string(),
        })
    }
}

/// X.690 §8.1.3: a length below 128 is one octet, a longer one is counted in those that follow.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut encoded = vec![tag];
    match length {
        [] => encoded.push(0),
        [short] if *short < 0x80 => encoded.push(*short),
        long => encoded.extend([&[0x80 | u8::try_from(long.len()).unwrap_or(8)], long].concat()),
    }
    encoded.extend(content);
    encoded
}

/// RFC 7468 §3.
fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * der.len() + 128));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    let base64 = Zeroizing::new(STANDARD.encode(der));
    for (index, c) in base64.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    for part in ["\n-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateSigningRequestParams, KeyPair, PublicKeyData as _};

    #[test]
    fn others_read_the_request_and_the_key() {
        let key = Key::generate().expect("a key");
        let request = CertificateSigningRequestParams::from_pem(&key.request).expect("signed by its own key");
        let private = KeyPair::from_pem(key.private.expose()).expect("PKCS #8");
        assert_eq!(request.public_key.der_bytes(), private.der_bytes());
        assert!(request.params.distinguished_name.iter().next().is_none());
        assert_ne!(Key::generate().expect("a key").private.expose(), key.private.expose());
    }

    #[test]
    fn lengths() {
        for (length, head) in [(0, &[2, 0][..]), (127, &[2, 127]), (128, &[2, 0x81, 128]), (256, &[2, 0x82, 1, 0])] {
            assert!(der(INTEGER, &[&vec![0; length]]).starts_with(head), "{length}");
        }
    }
}
