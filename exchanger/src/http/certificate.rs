//! The certificate that is served, and the key that must be its own. It must never put anything of a key into
//! an error.

use rustls::{
    Error, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A certificate chain and its key on disk.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM, leaf first.
    pub chain: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// On account of the chain.
    #[error("{path} cannot be used: {why}")]
    Chain {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// On account of the key.
    #[error("{path} cannot be used: {why}")]
    Key {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Certificate {
    /// Reads both, and checks that they belong together.
    ///
    /// # Errors
    /// Says which of them it is.
    pub fn open(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let Self { chain, key } = self;
        let of_chain = |why: String| CertificateError::Chain { path: chain.clone(), why };
        let of_key = |why: String| CertificateError::Key { path: key.clone(), why };
        let leaf_first = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| of_chain(unread(&error, "certificate")))?;
        if leaf_first.is_empty() {
            return Err(of_chain(unread(&pem::Error::NoItemsFound, "certificate")));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| of_key(unread(&error, "private key")))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(leaf_first, private))
            .map_err(|error| match error {
                Error::InvalidCertificate(_) => of_chain(error.to_string()),
                Error::General(why) => of_key(why),
                Error::InconsistentKeys(_) => of_key(not_its_own(chain)),
                _ => of_key(error.to_string()),
            })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// In our words: PEM's own errors repeat a line of the file.
fn unread(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        _ => format!("there is no PEM {what} in it"),
    }
}

fn not_its_own(chain: &Path) -> String {
    format!("it is not the key of the first certificate in {}", chain.display())
}
