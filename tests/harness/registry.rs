//! A real container registry (distribution 2.8) that takes one signer's tokens.

use crate::{
    http::now,
    ports,
    program::{self, Program},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The `iss` of the tokens that it takes.
pub const ISSUER: &str = "https://jobpass.acme.example";
/// Their `aud`.
pub const SERVICE: &str = "registry.acme.example";

/// The user of one that knows passwords.
pub const USER: &str = "ci";
/// That user's.
pub const PASSWORD: &str = "registry-password-of-old";

/// A running, empty registry; ended and removed on drop.
pub struct Registry {
    port: u16,
    directory: TempDir,
    _program: Option<Program>,
}

impl Registry {
    /// Makes the signer and an image for the job to push, and starts it: about two seconds.
    pub async fn start() -> Self {
        Self::with(|directory| {
            let bundle = directory.join("signer.pem");
            json!({ "token": {
                "realm": "http://127.0.0.1:9/", "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle,
            } })
        })
        .await
    }

    /// The same, and it takes no tokens, but the user [`USER`] with [`PASSWORD`].
    pub async fn with_password() -> Self {
        Self::with(|directory| {
            // bcrypt, cost 5.
            let hash = "$2y$05$abcdefghijklmnopqrstuuX9zXcQ62P4fH57XASnSI7sqUQETXkXC";
            let users = directory.join("htpasswd");
            fs::write(&users, format!("{USER}:{hash}\n")).expect("the directory is ours");
            json!({ "htpasswd": { "realm": "registry", "path": users } })
        })
        .await
    }

    async fn with(auth: impl FnOnce(&Path) -> Value) -> Self {
        let directory =
            tempfile::Builder::new().prefix("registry").tempdir().expect("the temporary directory is there");
        let path = |name: &str| directory.path().join(name);
        let mut certificate = program::system("openssl");
        certificate.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        certificate.args(["-subj", "/CN=signer", "-days", "2", "-keyout"]).arg(path("signer.key"));
        certificate.arg("-out").arg(path("signer.pem"));
        Program::run(certificate).await.expect_success();
        image(&path("image"));

        let port = ports::free();
        let config = json!({
            "version": 0.1, "log": { "level": "info" }, "http": { "addr": format!("127.0.0.1:{port}") },
            "storage": { "filesystem": { "rootdirectory": path("data") }, "delete": { "enabled": true } },
            "auth": auth(directory.path()),
        });
        fs::write(path("config.yml"), config.to_string()).expect("the directory is ours");
        let mut registry = Self { port, directory, _program: None };
        registry.serve().await;
        registry
    }

    async fn serve(&mut self) {
        let mut registry = program::system("docker-registry");
        registry.arg("serve").arg(self.path("config.yml"));
        let listens = async || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        self._program = Some(Program::start(registry).ready(listens).await);
    }

    /// From now on it sends its clients to this token server.
    pub async fn send_clients_to(&mut self, realm: &str) {
        let path = self.path("config.yml");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("the file is there")).expect("JSON");
        config["auth"]["token"]["realm"] = realm.into();
        fs::write(path, config.to_string()).expect("the directory is ours");
        self._program = None; // ended, so that its port is free
        self.serve().await;
    }

    /// `host:port`, as clients name it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// One of its files: `signer.key`, `signer.pem`, `image` (an OCI layout).
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A token of the signer's own for one repository.
    #[must_use]
    pub fn token(&self, repository: &str, actions: &[&str]) -> String {
        let read = |name: &str| fs::read_to_string(self.path(name)).expect("the file is there");
        let certificate: String = read("signer.pem").lines().filter(|line| !line.starts_with('-')).collect();
        let header = Header { x5c: Some(vec![certificate]), ..Header::new(Algorithm::ES256) };
        let (key, now) = (EncodingKey::from_ec_pem(read("signer.key").as_bytes()).expect("a key"), now());
        let access = json!([{ "type": "repository", "name": repository, "actions": actions }]);
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": "test", "jti": repository, "iat": now, "nbf": now, "exp": now + 300,
            "access": access,
        });
        jsonwebtoken::encode(&header, &claims, &key).expect("the key signs")
    }

    /// Pushes the image to a repository with `skopeo`.
    ///
    /// # Errors
    /// What `skopeo` and the registry say.
    pub async fn push(&self, token: &str, repository: &str) -> Result<(), String> {
        let image = format!("oci:{}:latest", self.path("image").display());
        self.skopeo("copy", &["--dest-tls-verify=false", "--dest-registry-token", token, &image], repository).await
    }

    /// Reads the image's manifest and configuration with `skopeo`.
    ///
    /// # Errors
    /// What `skopeo` and the registry say.
    pub async fn pull(&self, token: &str, repository: &str) -> Result<(), String> {
        self.skopeo("inspect", &["--tls-verify=false", "--registry-token", token], repository).await
    }

    /// Deletes the image with `skopeo`.
    ///
    /// # Errors
    /// What `skopeo` and the registry say.
    pub async fn delete(&self, token: &str, repository: &str) -> Result<(), String> {
        self.skopeo("delete", &["--tls-verify=false", "--registry-token", token], repository).await
    }

    async fn skopeo(&self, command: &str, arguments: &[&str], repository: &str) -> Result<(), String> {
        let mut skopeo = program::system("skopeo");
        skopeo.args(["--insecure-policy", command]).args(arguments);
        skopeo.arg(format!("docker://{}/{repository}:latest", self.host())).env("HOME", self.directory.path());
        let done = Program::run(skopeo).await;
        if done.status.success() { Ok(()) } else { Err(done.log) }
    }
}

/// An image of one empty layer, as an OCI layout (image-spec, "Image Layout").
fn image(layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the directory is ours");
    let blob = |media_type: &str, bytes: &[u8]| -> Value {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).expect("the directory is ours");
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &[0; 1024]); // the end of a tar archive
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
    });
    let mut manifest = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).expect("the directory is ours");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the directory is ours");
}
