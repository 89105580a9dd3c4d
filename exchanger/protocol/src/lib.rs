//! All that crosses the wire between a CI job and `jobpass-exchanger`.
//!
//! Both programs link this crate, so a name, a limit or a field is written once. It does no I/O
//! and knows neither HTTP nor a clock.

pub mod credential;
pub mod error;
pub mod exchange;
pub mod jwt;
pub mod names;
pub mod secret;

pub use credential::{Credential, Field};
pub use error::{ErrorBody, ErrorCode};
pub use exchange::{
    ExchangeRequest, FormError, LeaseState, RenewRequest, RevokeRequest, RevokeResponse, TokenRequest, TokenResponse,
};
pub use jwt::CompactJwt;
pub use names::{
    BackendName, DecisionId, GrantName, IssuerName, LeaseHandle, LeaseId, NameError, RequestId, RuleName, SessionSecret,
};
pub use secret::Secret;
