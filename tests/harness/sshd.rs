//! A real OpenSSH sshd that trusts one authority for its users' certificates.

use crate::{
    ports,
    program::{self, Finished, Program},
};
use std::{fs, net::TcpStream, os::unix::fs::DirBuilderExt as _, path::PathBuf};
use tempfile::TempDir;

/// What `ssh-keygen` makes keys of.
#[derive(Clone, Copy, Debug)]
pub enum KeyType {
    /// Ed25519, in OpenSSH's format.
    Ed25519,
    /// ECDSA on P-256, in OpenSSH's format.
    Ecdsa,
    /// RSA of 2048 bits, in PKCS #8.
    Rsa,
}

/// A running sshd; ended on drop. It lets the user of the tests in, as the principal `deploy`, from
/// 127.0.0.1, and nobody else.
pub struct Sshd {
    port: u16,
    directory: TempDir,
    program: Program,
}

impl Sshd {
    /// Makes the authority, a key for the job and the host's own, and starts it: under a second.
    pub async fn start(authority: KeyType) -> Self {
        let directory = tempfile::Builder::new().prefix("sshd").tempdir().expect("the temporary directory is there");
        let path = |name: &str| directory.path().join(name);
        for (name, kind) in [("host", KeyType::Ed25519), ("ca", authority), ("job", KeyType::Ed25519)] {
            keygen(kind, &path(name)).await;
        }
        if rustix::process::geteuid().is_root() {
            // Where sshd goes to live when it has dropped its rights.
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd");
            made.expect("root makes directories");
        }
        fs::write(path("principals"), "deploy\n").expect("the directory is ours");
        fs::write(path("principals-of-others"), "operations\n").expect("the directory is ours");
        fs::write(path("revoked"), "").expect("the directory is ours");
        let port = ports::free();
        let home = directory.path().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile none\n\
             TrustedUserCAKeys {home}/ca.pub\nAuthorizedPrincipalsFile {home}/principals\nAuthorizedKeysFile none\n\
             RevokedKeys {home}/revoked\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nLogLevel VERBOSE\nMaxStartups 100\n\
             Match User nobody\nAuthorizedPrincipalsFile {home}/principals-of-others\n"
        );
        fs::write(path("sshd_config"), config).expect("the directory is ours");
        let mut sshd = program::system("sshd");
        sshd.args(["-D", "-e", "-f"]).arg(path("sshd_config"));
        let program = Program::start(sshd).ready(async || TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        Self { port, directory, program }
    }

    /// One of its files: `ca` and `job` are private keys, `….pub` their public halves.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file is there")
    }

    /// Replaces the key revocation list, as a host's timer would.
    pub fn revoke(&self, krl: &[u8]) {
        fs::write(self.path("revoked"), krl).expect("the directory is ours");
    }

    /// Trusts another authority from now on.
    pub fn trust(&self, line: &str) {
        fs::write(self.path("ca.pub"), line).expect("the directory is ours");
    }

    /// Logs in with the job's key and this certificate; `more` are options of `ssh`, and a command.
    pub async fn login(&self, certificate: &str, user: Option<&str>, more: &[&str], command: &str) -> Finished {
        let file = tempfile::NamedTempFile::with_suffix("-cert.pub").expect("the temporary directory is there");
        fs::write(file.path(), certificate).expect("the file is ours");
        let mut ssh = program::system("ssh");
        ssh.args(self.options()).args(["-o", "IdentitiesOnly=yes", "-i"]).arg(self.path("job"));
        ssh.arg("-o").arg(format!("CertificateFile={}", file.path().display())).args(more);
        ssh.args(user.iter().flat_map(|user| ["-l", user]));
        ssh.arg("127.0.0.1").args(Some(command).filter(|command| !command.is_empty()));
        ssh.env_remove("SSH_AUTH_SOCK");
        Program::run(ssh).await
    }

    /// Options of `ssh` that find this host, and nothing that the machine has for others.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let set = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
        let set = set.into_iter().chain(["ExitOnForwardFailure=yes"]).map(|option| format!("-o{option}"));
        ["-Fnone".to_owned(), format!("-p{}", self.port)].into_iter().chain(set).collect()
    }

    /// What it wrote about the logins so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

async fn keygen(kind: KeyType, path: &std::path::Path) {
    let mut keygen = program::system("ssh-keygen");
    keygen.args(["-q", "-N", "", "-C", "test", "-f"]).arg(path);
    match kind {
        KeyType::Ed25519 => keygen.args(["-t", "ed25519"]),
        KeyType::Ecdsa => keygen.args(["-t", "ecdsa", "-b", "256"]),
        KeyType::Rsa => keygen.args(["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
    };
    Program::run(keygen).await.expect_success();
}
