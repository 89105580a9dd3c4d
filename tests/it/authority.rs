//! A private certificate authority.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use reqwest::{Certificate, ClientBuilder};

/// An authority that nobody knows yet.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    /// Its certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    /// A server's certificate and key, PEM.
    pub(crate) fn server(&self, names: &[&str]) -> [String; 2] {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (params, key) = (CertificateParams::new(names).expect("names"), KeyPair::generate().expect("a key"));
        [params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem()]
    }

    /// A client that trusts nobody else.
    pub(crate) fn trusted_by(&self, client: ClientBuilder) -> ClientBuilder {
        client.tls_certs_only([Certificate::from_pem(self.pem().as_bytes()).expect("a certificate")])
    }
}
