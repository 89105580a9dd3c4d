//! The form bodies that strangers post to `/token` and `/revoke`.

#![no_main]

use jobpass_protocol::{RevokeRequest, TokenRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let answer = match TokenRequest::parse(body) {
        Ok(TokenRequest::Exchange(request)) => {
            assert!(!request.subject_token.is_empty() && request.ttl != Some(0));
            let mut scopes = request.scope.iter().flatten();
            assert!(scopes.all(|scope| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic())));
            let shown = format!("{request:?}");
            // Not that the text is nowhere: a client may send the same text as its grant, too.
            assert!(shown.starts_with("ExchangeRequest { subject_token: [secret], grant: "));
            shown
        }
        Ok(TokenRequest::Renew(request)) => format!("{request:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    // What is said about a body goes into answers and logs: it is short and on one line.
    assert!(answer.len() < 3 * body.len() + 4096 && !answer.contains('\n'));
    if let Ok(request) = RevokeRequest::parse(body) {
        assert!(!request.token.is_empty());
        assert_eq!(format!("{request:?}"), "RevokeRequest { token: [secret] }");
    }
});
