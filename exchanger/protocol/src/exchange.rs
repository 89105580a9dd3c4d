//! The requests and answers of `POST /token` (RFC 8693, RFC 6749 §6) and `POST /revoke` (RFC 7009).

use crate::{
    credential::{Credential, push_json_string},
    names::{LeaseHandle, LeaseId, NameError, RequestId, SessionSecret},
    secret::Secret,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use zeroize::Zeroizing;

/// `grant_type` of a token exchange (RFC 8693 §2.1).
pub const GRANT_TYPE_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// `grant_type` of a renewal (RFC 6749 §6).
pub const GRANT_TYPE_REFRESH: &str = "refresh_token";
/// `subject_token_type` of a JWT (RFC 8693 §3).
pub const TOKEN_TYPE_JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// `subject_token_type` of an OpenID Connect ID token (RFC 8693 §3).
pub const TOKEN_TYPE_ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// The largest form that is read, in bytes.
pub const MAX_FORM_BYTES: usize = 64 * 1024;

const MAX_AUDIENCE_BYTES: usize = 256;
const MAX_SCOPE_BYTES: usize = 2048;
const MAX_PARAMETERS: usize = 64;

/// Why a form is refused. Never holds a value of the form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// A parameter that the request needs is absent or empty.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// RFC 6749 §3.2: parameters must not be repeated.
    #[error("`{0}` is given more than once")]
    Duplicated(String),
    /// A parameter that jobpass refuses to act on rather than to ignore.
    #[error("`{0}` is not supported")]
    Unsupported(&'static str),
    /// A parameter's value is not of its form.
    #[error("`{name}` must be {expected}")]
    Invalid {
        /// The parameter.
        name: &'static str,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// `grant_type` is neither a token exchange nor a renewal.
    #[error("`grant_type` must be `{GRANT_TYPE_EXCHANGE}` or `{GRANT_TYPE_REFRESH}`")]
    GrantType,
    /// `refresh_token` or `token` is not a lease handle.
    #[error("{0}")]
    Handle(NameError),
    /// A name in the form is malformed.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The form is larger than [`MAX_FORM_BYTES`] or has too many parameters.
    #[error("the form is too large: at most {MAX_FORM_BYTES} bytes and {MAX_PARAMETERS} parameters")]
    TooLarge,
}

/// What a client may post to `/token`.
#[derive(Debug)]
pub enum TokenRequest {
    /// A token for a credential.
    Exchange(Box<ExchangeRequest>),
    /// A lease handle for a longer life.
    Renew(RenewRequest),
}

/// RFC 8693 §2.1, with our extensions.
#[derive(Debug)]
pub struct ExchangeRequest {
    /// The token that the CI provider signed for the job.
    pub subject_token: Secret,
    /// The name of the grant that is asked for (`audience`); checked by the policy, so that a name
    /// that cannot exist is refused like one that does not.
    pub grant: String,
    /// The scope to narrow the grant to.
    pub scope: Option<Vec<String>>,
    /// The wanted token type (`requested_token_type`).
    pub requested_token_type: Option<String>,
    /// The wanted lifetime, in seconds.
    pub ttl: Option<u32>,
    /// Binds the token to its holder.
    pub session: Option<SessionSecret>,
    /// Names this request, so that a lost answer can be asked for again.
    pub request_id: Option<RequestId>,
    /// An SSH public key to be certified.
    pub public_key: Option<String>,
    /// A PKCS #10 certificate request (PEM) to be certified.
    pub csr: Option<String>,
}

/// RFC 6749 §6: a renewal of a lease.
#[derive(Debug)]
pub struct RenewRequest {
    /// The lease's handle.
    pub handle: LeaseHandle,
    /// The wanted lifetime, in seconds.
    pub ttl: Option<u32>,
    /// Names this request, so that a lost answer can be asked for again.
    pub request_id: Option<RequestId>,
}

impl TokenRequest {
    /// Parses a form body (`application/x-www-form-urlencoded`).
    ///
    /// # Errors
    /// One variant per reason; see [`FormError`].
    pub fn parse(body: &[u8]) -> Result<Self, FormError> {
        let mut form = Form::parse(body)?;
        match form.take("grant_type").as_deref() {
            None => Err(FormError::Missing("grant_type")),
            Some(GRANT_TYPE_EXCHANGE) => form.exchange().map(|request| Self::Exchange(Box::new(request))),
            Some(GRANT_TYPE_REFRESH) => form.renewal().map(Self::Renew),
            Some(_) => Err(FormError::GrantType),
        }
    }
}

/// RFC 7009 §2.1.
#[derive(Debug)]
pub struct RevokeRequest {
    /// A lease handle, or an access token that carries its lease id.
    pub token: Secret,
}

impl RevokeRequest {
    /// Parses a form body. `token_type_hint` is ignored, as RFC 7009 §2.1 allows.
    ///
    /// # Errors
    /// When `token` is missing or a parameter is repeated.
    pub fn parse(body: &[u8]) -> Result<Self, FormError> {
        let mut form = Form::parse(body)?;
        form.secret("token").map(|token| Self { token }).ok_or(FormError::Missing("token"))
    }
}

/// Names and values, borrowed from the body where nothing is encoded: a token is most of a form.
struct Form<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Form<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, FormError> {
        if body.len() > MAX_FORM_BYTES {
            return Err(FormError::TooLarge);
        }
        let mut seen: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::with_capacity(8);
        let ends = memchr::memchr_iter(b'&', body).chain([body.len()]);
        let pairs = ends.scan(0, |start, end| Some(&body[std::mem::replace(start, end + 1)..end]));
        for (name, value) in pairs.filter_map(parameter) {
            if seen.len() == MAX_PARAMETERS {
                return Err(FormError::TooLarge);
            }
            if seen.iter().any(|(other, _)| *other == name) {
                let shown: String = name.chars().filter(char::is_ascii_graphic).take(32).collect();
                return Err(FormError::Duplicated(shown));
            }
            seen.push((name, value));
        }
        Ok(Self(seen))
    }

    /// A parameter's value; one without a value counts as absent (RFC 6749 §3.2).
    fn take(&mut self, name: &str) -> Option<Cow<'a, str>> {
        let (_, value) = self.0.iter_mut().find(|(other, _)| other == name)?;
        let value = std::mem::take(value);
        (!value.is_empty()).then_some(value)
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.take(name).map(Cow::into_owned)
    }

    fn secret(&mut self, name: &str) -> Option<Secret> {
        self.take(name).map(|value| Secret::new(value.into_owned()))
    }

    fn ttl(&mut self) -> Result<Option<u32>, FormError> {
        let error = FormError::Invalid { name: "ttl", expected: "a whole number of seconds, 1 or more" };
        match self.take("ttl") {
            None => Ok(None),
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => match text.parse() {
                Ok(0) | Err(_) => Err(error),
                Ok(seconds) => Ok(Some(seconds)),
            },
            Some(_) => Err(error),
        }
    }

    fn request_id(&mut self) -> Result<Option<RequestId>, FormError> {
        Ok(self.take("request_id").map(|text| RequestId::parse(&text)).transpose()?)
    }

    fn exchange(mut self) -> Result<ExchangeRequest, FormError> {
        for name in ["resource", "actor_token", "actor_token_type"] {
            if self.take(name).is_some() {
                return Err(FormError::Unsupported(name));
            }
        }
        let subject_token = self.secret("subject_token").ok_or(FormError::Missing("subject_token"))?;
        match self.take("subject_token_type").as_deref() {
            None => return Err(FormError::Missing("subject_token_type")),
            Some(TOKEN_TYPE_JWT | TOKEN_TYPE_ID_TOKEN) => {}
            Some(_) => {
                return Err(FormError::Invalid {
                    name: "subject_token_type",
                    expected: "urn:ietf:params:oauth:token-type:jwt or urn:ietf:params:oauth:token-type:id_token",
                });
            }
        }
        let grant = self.text("audience").ok_or(FormError::Missing("audience"))?;
        if grant.len() > MAX_AUDIENCE_BYTES {
            return Err(FormError::Invalid { name: "audience", expected: "the name of a grant" });
        }
        Ok(ExchangeRequest {
            subject_token,
            grant,
            scope: self.scope()?,
            requested_token_type: self.text("requested_token_type"),
            ttl: self.ttl()?,
            session: self.secret("session").map(|text| SessionSecret::parse(text.expose())).transpose()?,
            request_id: self.request_id()?,
            public_key: self.text("public_key"),
            csr: self.text("csr"),
        })
    }

    /// RFC 6749 §3.3: tokens of `%x21 / %x23-5B / %x5D-7E`, separated by spaces.
    fn scope(&mut self) -> Result<Option<Vec<String>>, FormError> {
        let Some(text) = self.take("scope") else { return Ok(None) };
        let allowed = |b: u8| b == b' ' || (0x21..=0x7e).contains(&b) && b != b'"' && b != b'\\';
        if text.len() > MAX_SCOPE_BYTES || !text.bytes().all(allowed) {
            return Err(FormError::Invalid { name: "scope", expected: "scope names separated by spaces" });
        }
        let mut scopes: Vec<String> = text.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        scopes.sort_unstable();
        scopes.dedup();
        Ok((!scopes.is_empty()).then_some(scopes))
    }

    fn renewal(mut self) -> Result<RenewRequest, FormError> {
        if self.take("scope").is_some() {
            return Err(FormError::Unsupported("scope"));
        }
        let handle = self.secret("refresh_token").ok_or(FormError::Missing("refresh_token"))?;
        Ok(RenewRequest {
            handle: LeaseHandle::parse(handle.expose()).map_err(FormError::Handle)?,
            ttl: self.ttl()?,
            request_id: self.request_id()?,
        })
    }
}

/// One name and value of a form: only what is encoded is decoded.
fn parameter(pair: &[u8]) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
    match std::str::from_utf8(pair) {
        Ok(plain) if !plain.is_empty() && memchr::memchr2(b'%', b'+', pair).is_none() => {
            let (name, value) = plain.split_once('=').unwrap_or((plain, ""));
            Some((name.into(), value.into()))
        }
        _ => url::form_urlencoded::parse(pair).next(),
    }
}

/// A successful answer of `POST /token` (RFC 8693 §2.2.1).
#[derive(Debug)]
pub struct TokenResponse {
    /// What the job receives.
    pub credential: Credential,
    /// Seconds until the credential expires.
    pub expires_in: u64,
    /// The scope that was granted, if the grant has scopes.
    pub scope: Vec<String>,
    /// The lease handle (`refresh_token`).
    pub handle: LeaseHandle,
    /// The lease.
    pub lease_id: LeaseId,
    /// Whether the credential can be taken back before it expires.
    pub revocable: bool,
}

impl TokenResponse {
    /// The JSON body. It holds the credential, and so is zeroised by its owner.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<String> {
        use std::fmt::Write as _;
        let credential = self.credential.to_json();
        let bearer = self.credential.bearer_token();
        let mut out = Zeroizing::new(String::with_capacity(credential.len() * 2 + 512));
        out.push_str("{\"access_token\":");
        push_json_string(&mut out, bearer.map_or(credential.as_str(), Secret::expose));
        out.push_str(",\"issued_token_type\":");
        push_json_string(&mut out, &self.credential.issued_token_type());
        out.push_str(if bearer.is_some() { ",\"token_type\":\"Bearer\"" } else { ",\"token_type\":\"N_A\"" });
        let _ = write!(out, ",\"expires_in\":{}", self.expires_in);
        if !self.scope.is_empty() {
            out.push_str(",\"scope\":");
            push_json_string(&mut out, &self.scope.join(" "));
        }
        out.push_str(",\"refresh_token\":");
        push_json_string(&mut out, self.handle.expose());
        let _ = write!(out, ",\"lease_id\":\"{}\",\"revocable\":{},\"credential\":", self.lease_id, self.revocable);
        out.push_str(&credential);
        out.push('}');
        out
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When the body is not such an answer. The error never holds a part of it.
    pub fn parse(body: &[u8]) -> Result<Self, NotAnAnswer> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            expires_in: u64,
            #[serde(default)]
            scope: String,
            refresh_token: &'a str,
            lease_id: LeaseId,
            #[serde(default)]
            revocable: bool,
            credential: Credential,
        }
        let wire: Wire<'_> = serde_json::from_slice(body).map_err(|_| NotAnAnswer)?;
        Ok(Self {
            credential: wire.credential,
            expires_in: wire.expires_in,
            scope: wire.scope.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            handle: LeaseHandle::parse(wire.refresh_token).map_err(|_| NotAnAnswer)?,
            lease_id: wire.lease_id,
            revocable: wire.revocable,
        })
    }
}

/// The body is not an answer of a jobpass server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not one of a jobpass server")]
pub struct NotAnAnswer;

/// Where a lease stands, as its holder is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// The credential is certainly gone.
    Ended,
    /// The credential is being taken back.
    Revoking,
    /// The credential cannot be taken back; it ends by itself.
    Outliving,
}

/// The answer of `POST /revoke`: empty to a stranger (RFC 7009 §2.2), told to the holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeResponse {
    /// Where the lease stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<LeaseState>,
    /// Until when the credential may outlive its lease, in epoch seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c\
                        &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt&audience=deploy-prod";

    #[test]
    fn forms() {
        let missing = FormError::Missing;
        for (form, expected) in [
            (BASE.to_owned(), None),
            (format!("{BASE}&unknown=1&ttl="), None),
            (format!("{BASE}&audience=other"), Some(FormError::Duplicated("audience".into()))),
            (format!("{BASE}&unknown=1&unknown=2"), Some(FormError::Duplicated("unknown".into()))),
            (format!("{BASE}&%61udience=other"), Some(FormError::Duplicated("audience".into()))),
            (format!("{BASE}&&a+b=%26&=&x=1=2&y"), None),
            (format!("{BASE}&resource=https%3A%2F%2Fx"), Some(FormError::Unsupported("resource"))),
            (format!("{BASE}&actor_token=x"), Some(FormError::Unsupported("actor_token"))),
            (
                format!("{BASE}&ttl=-1"),
                Some(FormError::Invalid { name: "ttl", expected: "a whole number of seconds, 1 or more" }),
            ),
            (String::new(), Some(missing("grant_type"))),
            ("grant_type=password".into(), Some(FormError::GrantType)),
            (BASE.replace("a.b.c", ""), Some(missing("subject_token"))),
            (BASE.replace("deploy-prod", ""), Some(missing("audience"))),
            ("grant_type=refresh_token".into(), Some(missing("refresh_token"))),
            ((0..70).map(|i| format!("p{i}=x")).collect::<Vec<_>>().join("&"), Some(FormError::TooLarge)),
        ] {
            assert_eq!(TokenRequest::parse(form.as_bytes()).err(), expected, "{form}");
        }
    }

    #[test]
    fn answers_are_read_back_whole() {
        let lease_id = LeaseId::from_uuid(uuid::Uuid::nil());
        let sent = TokenResponse {
            credential: Credential::jwt("a.b.c".into()),
            expires_in: 300,
            scope: vec!["read".into(), "write".into()],
            handle: LeaseHandle::from_random(lease_id, &[1; 32]),
            lease_id,
            revocable: false,
        };
        let json: serde_json::Value = serde_json::from_str(&sent.to_json()).expect("JSON");
        assert_eq!(json["access_token"], "a.b.c");
        assert_eq!(json["token_type"], "Bearer");
        assert_eq!(json["scope"], "read write");
        let got = TokenResponse::parse(sent.to_json().as_bytes()).expect("own answers parse");
        assert_eq!(got.handle.expose(), sent.handle.expose());
        assert_eq!(got.credential.bearer_token().map(Secret::expose), Some("a.b.c"));
    }
}
