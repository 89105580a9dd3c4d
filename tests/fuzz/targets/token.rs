//! The text of a subject token, and its payload under every issuer profile.
//!
//! An input is a header and a payload in plain text, divided by a line break; what has none is a
//! compact token as it is. The fuzzer need not learn base64 that way.

#![no_main]

use jobpass_policy::{Claims, Profile};
use jobpass_protocol::CompactJwt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.split_once('\n') {
        None => token(text),
        Some((header, payload)) => token(&format!("{}.{}.c2ln", base64url(header), base64url(payload))),
    }
});

fn token(text: &str) {
    let Ok(jwt) = CompactJwt::parse(text) else { return };
    assert_eq!(text.rsplit_once('.').map(|(input, _)| input), Some(jwt.signing_input()));
    let issuer = jwt.unverified_issuer();
    for profile in Profile::all() {
        let Ok(claims) = Claims::parse(profile, jwt.payload()) else { continue };
        // Whoever looks up the issuer and whoever decides must read the same `iss`.
        assert_eq!(issuer.as_ref().ok().and_then(Option::as_deref), Some(&*claims.registered().iss));
        for known in profile.claims() {
            let _ = claims.text(&known.name);
        }
        let stored = claims.to_stored();
        let again = Claims::from_stored(profile, &stored).expect("what was kept can be read again");
        assert_eq!(again.registered(), claims.registered());
        assert_eq!(again.to_stored(), stored);
    }
}

fn base64url(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    text.as_bytes()
        .chunks(3)
        .flat_map(|chunk| {
            let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
            (0..=chunk.len()).map(move |sextet| char::from(ALPHABET[bits >> (18 - 6 * sextet) & 63]))
        })
        .collect()
}
