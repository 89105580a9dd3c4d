//! Config: files and the environment are read here and nowhere else.

pub mod env;
pub mod secret_ref;

pub use env::Env;
pub use secret_ref::{SecretError, SecretRef};
