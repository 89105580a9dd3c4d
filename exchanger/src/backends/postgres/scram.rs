//! The verifier that PostgreSQL keeps instead of a password: SCRAM-SHA-256 (RFC 5802 §3, RFC 7677).

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// PostgreSQL's own default, and the least that RFC 7677 §4 asks for: people's passwords can be guessed.
pub(super) const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

/// The verifier of a password in ASCII, which SASLprep (RFC 4013) leaves as it is.
pub(super) fn verifier(password: &str, salt: &[u8; 16], iterations: NonZeroU32) -> String {
    let mut salted = Zeroizing::new([0; digest::SHA256_OUTPUT_LEN]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut *salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
    let stored = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server = hmac::sign(&key, b"Server Key");
    let [salt, stored, server] = [&salt[..], stored.as_ref(), server.as_ref()].map(|bytes| STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_that_rfc_7677_computes_with() {
        // RFC 7677 §3: user, pencil. The server's final message proves ServerKey, and the client's StoredKey.
        let salt: [u8; 16] = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64").try_into().expect("16 bytes");
        let text = verifier("pencil", &salt, ITERATIONS);
        let (stored, server) = text.rsplit_once('$').and_then(|(_, keys)| keys.split_once(':')).expect("two keys");
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let message =
            format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}");
        let keyed = |key: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message.as_bytes());
        let signature = keyed(&STANDARD.decode(server).expect("base64"));
        assert_eq!(STANDARD.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let proof = STANDARD.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").expect("base64");
        let signature = keyed(&STANDARD.decode(stored).expect("base64"));
        let client_key: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        assert_eq!(STANDARD.encode(digest::digest(&digest::SHA256, &client_key)), stored);
    }
}
