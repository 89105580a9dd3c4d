//! The server's protocol as a job speaks it: exchange, renew, revoke, and when to ask again.
//!
//! Asks again only where that can succeed (network, 429, 5xx) and within one deadline; while an
//! attempt's outcome is unknown it repeats the same token and `request_id`, so that the server can
//! replace a credential whose answer was lost. A denial is final. Never follows a redirect.

use crate::{
    outbound::{Answer, Endpoint, Outbound, OutboundError, Peer},
    sources::{JobToken, SourceError},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobpass_protocol::{
    ErrorBody, GrantName, LeaseHandle, RevokeResponse, SessionSecret, TokenResponse,
    exchange::{GRANT_TYPE_EXCHANGE, GRANT_TYPE_REFRESH, TOKEN_TYPE_ID_TOKEN},
};
use std::{
    fmt,
    time::{Duration, Instant},
};
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The server's public URL: also the audience that its tokens must name, character by character.
#[derive(Clone)]
pub(crate) struct ServerUrl {
    text: String,
    token: Endpoint,
    revoke: Endpoint,
}

impl ServerUrl {
    /// Parses the URL, less a trailing slash.
    ///
    /// # Errors
    /// When a secret may not be sent there; one clause that follows the setting's name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('/').to_owned();
        if Endpoint::parse(&text)?.has_query() || text.contains('#') {
            return Err("must not have a query or a fragment".to_owned());
        }
        let (token, revoke) = (Endpoint::parse(&format!("{text}/token"))?, Endpoint::parse(&format!("{text}/revoke"))?);
        Ok(Self { text, token, revoke })
    }

    /// The URL as a token's audience.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Why the server gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The server's no. Asking again cannot help.
    #[error("{0}")]
    Refused(Refusal),
    /// Nothing usable came before the deadline.
    #[error(
        "{server} gave no answer within {}s ({attempts} attempts); the last one: {last}\n  \
         check that JOBPASS_URL is right and that the job can reach it", within.as_secs()
    )]
    Unavailable { server: String, attempts: u32, within: Duration, last: String },
    /// The server asks to wait for longer than we may.
    #[error("{server} asks to come back in {}s, which is after this command's deadline: {last}", wait.as_secs())]
    Later { server: String, wait: Duration, last: String },
    /// This machine or the other side is not set up for the request.
    #[error("{server}: {problem}")]
    Setup { server: String, problem: String },
    /// Something else listens there.
    #[error(
        "{server} answered {status} with {what}: that is not a jobpass server\n  \
         JOBPASS_URL must be the server's public_url, exactly"
    )]
    NotJobpass { server: String, status: u16, what: String },
    /// jobpass never sends a token to where a redirect points.
    #[error("{server} redirects{to}, and jobpass never follows: set JOBPASS_URL to the server's public_url itself")]
    Redirect { server: String, to: String },
    /// No token to ask with.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A signal asked this program to stop.
    #[error("stopped by a signal")]
    Interrupted(i32),
}

/// The server's answer to a request that it will not grant.
#[derive(Debug)]
pub(crate) struct Refusal {
    asked: String,
    body: ErrorBody,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = serde_json::to_value(self.body.error).unwrap_or_default();
        write!(
            f,
            "{} is refused ({}): {}",
            self.asked,
            code.as_str().unwrap_or_default(),
            self.body.error_description
        )?;
        for reason in &self.body.reasons {
            write!(f, "\n  {reason}")?;
        }
        if let Some(id) = &self.body.decision_id {
            write!(f, "\n  decision_id: {id}")?;
        }
        Ok(())
    }
}

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) grant: GrantName,
    pub(crate) ttl: Option<u32>,
    pub(crate) scope: Option<String>,
    /// A public key to be certified, where the grant is for such.
    pub(crate) public_key: Option<String>,
    /// A request to certify a key (PKCS #10, PEM), likewise.
    pub(crate) csr: Option<String>,
}

/// Waits, unless a signal arrives first: then it says which.
pub(crate) type Pause<'a> = &'a dyn Fn(Duration) -> Option<i32>;

/// One server, and how long to try.
pub(crate) struct Client<'a> {
    pub(crate) outbound: &'a Outbound,
    pub(crate) url: &'a ServerUrl,
    pub(crate) deadline: Duration,
    pub(crate) pause: Pause<'a>,
}

impl Client<'_> {
    /// RFC 8693: the job's token for a credential.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) fn exchange(
        &self,
        token: &mut JobToken<'_>,
        session: &SessionSecret,
        ask: &Ask,
    ) -> Result<TokenResponse, ClientError> {
        let request_id = random_id();
        let asked = format!("grant `{}`", ask.grant);
        let body = self.ask_until_answered(&self.url.token, &asked, || {
            let mut form = form();
            form.append_pair("grant_type", GRANT_TYPE_EXCHANGE)
                .append_pair("subject_token", token.current(self.outbound, self.url.as_str())?.expose())
                .append_pair("subject_token_type", TOKEN_TYPE_ID_TOKEN)
                .append_pair("audience", ask.grant.as_str())
                .append_pair("session", session.expose())
                .append_pair("request_id", &request_id);
            if let Some(ttl) = ask.ttl {
                form.append_pair("ttl", &ttl.to_string());
            }
            for (name, value) in [("scope", &ask.scope), ("public_key", &ask.public_key), ("csr", &ask.csr)] {
                if let Some(value) = value {
                    form.append_pair(name, value);
                }
            }
            Ok(Zeroizing::new(form.finish()))
        })?;
        TokenResponse::parse(&body)
            .map_err(|_| self.not_jobpass(&self.url.token, 200, "an answer without a credential"))
    }

    /// RFC 6749 §6: a longer life for a lease.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) fn renew(&self, handle: &LeaseHandle, ttl: Option<u32>) -> Result<Renewed, ClientError> {
        let request_id = random_id();
        let body = self.ask_until_answered(&self.url.token, "the renewal", || {
            let mut form = form();
            form.append_pair("grant_type", GRANT_TYPE_REFRESH)
                .append_pair("refresh_token", handle.expose())
                .append_pair("request_id", &request_id);
            if let Some(ttl) = ttl {
                form.append_pair("ttl", &ttl.to_string());
            }
            Ok(Zeroizing::new(form.finish()))
        })?;
        Renewed::parse(&body).ok_or_else(|| self.not_jobpass(&self.url.token, 200, "an answer without a lease"))
    }

    /// RFC 7009: gives a lease back. The answer says whether its credential is gone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) fn revoke(&self, handle: &LeaseHandle) -> Result<RevokeResponse, ClientError> {
        let body = self.ask_until_answered(&self.url.revoke, "the revocation", || {
            Ok(Zeroizing::new(form().append_pair("token", handle.expose()).finish()))
        })?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(RevokeResponse::default());
        }
        serde_json::from_slice(&body).map_err(|_| self.not_jobpass(&self.url.revoke, 200, "an answer without a state"))
    }

    /// Posts a form until the answer is final; `form` is made anew for each attempt, because its token may have expired.
    fn ask_until_answered(
        &self,
        endpoint: &Endpoint,
        asked: &str,
        mut form: impl FnMut() -> Result<Zeroizing<String>, ClientError>,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let start = Instant::now();
        let server = endpoint.shown();
        let mut pause = FIRST_PAUSE;
        for attempts in 1.. {
            let left = self.deadline.saturating_sub(start.elapsed());
            let timeout = left.clamp(Duration::from_secs(1), ATTEMPT_TIMEOUT);
            let (last, wanted) = match self.outbound.post_form(endpoint, &form()?, Peer::Server, timeout) {
                Err(OutboundError::Setup(problem)) => return Err(ClientError::Setup { server, problem }),
                Err(OutboundError::Network(problem)) => (problem, None),
                Ok(answer) if answer.status == 429 || answer.status >= 500 => {
                    (status_line(&answer), answer.retry_after)
                }
                Ok(answer) => return self.judge(endpoint, asked, answer),
            };
            // Half of the pause is jitter: jobs that failed together must not come back together.
            let wait = wanted.unwrap_or_else(|| pause / 2 + pause.mul_f64(f64::from(random::<1>()[0]) / 512.0));
            if start.elapsed() + wait >= self.deadline {
                return Err(match wanted {
                    Some(wait) => ClientError::Later { server, wait, last },
                    None => ClientError::Unavailable { server, attempts, within: self.deadline, last },
                });
            }
            if let Some(signal) = (self.pause)(wait) {
                return Err(ClientError::Interrupted(signal));
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("the loop ends by its deadline")
    }

    fn judge(&self, endpoint: &Endpoint, asked: &str, answer: Answer) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        match answer.status {
            200 => Ok(answer.body),
            300..400 => {
                let to = answer.location.map(|to| format!(" to {}", to.split('?').next().unwrap_or_default()));
                Err(ClientError::Redirect { server: endpoint.shown(), to: to.unwrap_or_default() })
            }
            status => match serde_json::from_slice(&answer.body) {
                Ok(body) => Err(ClientError::Refused(Refusal { asked: asked.to_owned(), body })),
                Err(_) => {
                    let what = answer.content_type.split(';').next().filter(|t| !t.is_empty()).unwrap_or("no body");
                    Err(self.not_jobpass(endpoint, status, what))
                }
            },
        }
    }

    fn not_jobpass(&self, endpoint: &Endpoint, status: u16, what: &str) -> ClientError {
        ClientError::NotJobpass { server: endpoint.shown(), status, what: what.to_owned() }
    }
}

/// The answer to a renewal. Where the system itself was told of the longer life, the job's credential
/// stays as it is and the answer need not repeat it.
pub(crate) struct Renewed {
    pub(crate) expires_in: u64,
    pub(crate) handle: LeaseHandle,
}

impl Renewed {
    fn parse(body: &[u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Wire<'a> {
            expires_in: u64,
            refresh_token: &'a str,
        }
        let wire: Wire<'_> = serde_json::from_slice(body).ok()?;
        Some(Self { expires_in: wire.expires_in, handle: LeaseHandle::parse(wire.refresh_token).ok()? })
    }
}

fn form() -> Serializer<'static, String> {
    // Room for a whole token, so that growing leaves no copies of it behind.
    Serializer::new(String::with_capacity(24 * 1024))
}

fn status_line(answer: &Answer) -> String {
    match serde_json::from_slice::<ErrorBody>(&answer.body) {
        Ok(body) => format!("{} ({})", answer.status, body.error_description),
        Err(_) => format!("status {}", answer.status),
    }
}

fn random_id() -> String {
    URL_SAFE_NO_PAD.encode(random::<16>())
}

/// Bytes of the system's random source.
#[expect(clippy::expect_used, reason = "without randomness nothing here may go on")]
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    bytes
}
