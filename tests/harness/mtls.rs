//! A real TLS server of OpenSSL's that takes clients with certificates of one authority only.

use crate::{
    ports,
    program::{self, Program},
};
use std::{fs, net::TcpStream, path::PathBuf, process::Command};
use tempfile::TempDir;
use tokio::sync::Mutex;

/// A running `openssl s_server`; ended on drop.
pub struct MutualTls {
    port: u16,
    directory: TempDir,
    program: Mutex<Option<Program>>,
}

impl MutualTls {
    /// Makes the authority of the clients, the server's own certificate and the job's key and request,
    /// and starts it: under a second.
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("mtls").tempdir().expect("the temporary directory is there");
        let server = Self { port: ports::free(), directory, program: Mutex::default() };
        let config = "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\n\
                      keyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n[server]\n\
                      subjectAltName=IP:127.0.0.1\n";
        fs::write(server.path("openssl.cnf"), config).expect("the directory is ours");
        for (name, more) in [
            ("ca", &["-x509", "-extensions", "ca", "-subj", "/C=DE/O=Acme/OU=CI/CN=Jobs of Acme"][..]),
            ("server", &["-x509", "-extensions", "server", "-subj", "/CN=server"]),
            // What a client asks for in its request is not what it gets.
            ("job", &["-subj", "/CN=root"]),
        ] {
            let mut request = server.openssl("req");
            request.args(["-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
            request.args(["-config", "openssl.cnf", "-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
            request.args(more);
            Program::run(request).await.expect_success();
        }
        server.serve(&[]).await;
        server
    }

    /// One of its files: `ca`, `server` and `job` with `.key` and `.pem` (the job's is its request).
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// From now on refuses what this CRL (PEM) lists.
    pub async fn revoke(&self, crl: &[u8]) {
        fs::write(self.path("crl.pem"), crl).expect("the directory is ours");
        self.serve(&["-CRL", "crl.pem", "-crl_check"]).await;
    }

    /// Asks it for a page with the job's key and this certificate.
    ///
    /// # Errors
    /// What client and server say when the page does not come.
    pub async fn get(&self, certificate: &str) -> Result<(), String> {
        fs::write(self.path("client.pem"), certificate).expect("the directory is ours");
        let log = async || self.program.lock().await.as_ref().map(Program::log).unwrap_or_default();
        let before = log().await.len();
        let mut client = Command::new("sh");
        client.current_dir(self.directory.path()).args(["-c", &self.request("client.pem", "job.key")]);
        let done = Program::run(client).await;
        if done.log.contains("HTTP/1.0 200") {
            return Ok(());
        }
        Err(format!("{}\n{}", done.log, &log().await[before..]))
    }

    /// A line for a shell that asks it for a page with a certificate and key in these files.
    #[must_use]
    pub fn request(&self, certificate: &str, key: &str) -> String {
        format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet -connect 127.0.0.1:{} -CAfile {} \
             -verify_return_error -cert {certificate} -key {key}",
            self.port,
            self.path("server.pem").display()
        )
    }

    /// A command of `openssl`, run where the files are.
    #[must_use]
    pub fn openssl(&self, command: &str) -> Command {
        let mut openssl = program::system("openssl");
        openssl.arg(command).current_dir(self.directory.path());
        openssl
    }

    async fn serve(&self, more: &[&str]) {
        let mut program = self.program.lock().await;
        *program = None;
        let mut server = self.openssl("s_server");
        server.args(["-www", "-accept", &format!("127.0.0.1:{}", self.port)]);
        server.args(["-cert", "server.pem", "-key", "server.key", "-CAfile", "ca.pem", "-Verify", "3"]);
        server.arg("-verify_return_error").args(more);
        let listens = async || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        *program = Some(Program::start(server).ready(listens).await);
    }
}
