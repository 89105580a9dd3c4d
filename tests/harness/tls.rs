//! Certificates for real servers.

use crate::program::{self, Program};
use std::path::Path;

/// Makes an authority (`ca.pem`) and the certificate of a server on 127.0.0.1 by it (`server.pem`, `server.key`).
pub async fn certificates(directory: &Path) {
    let server = ["-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1", "-CA", "ca.pem", "-CAkey", "ca.key"];
    let server = [&server[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat();
    for (name, more) in [("ca", &["-subj", "/CN=authority"][..]), ("server", &server)] {
        let mut openssl = program::system("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        openssl.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]).args(more);
        openssl.current_dir(directory);
        Program::run(openssl).await.expect_success();
    }
}
