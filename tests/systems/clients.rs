//! Clients that are not ours, with what jobpass hands over: google-auth, azure-identity, kubectl and skopeo. What the
//! first three talk to are strict fakes, since none of their systems can be had on a machine of one's own.

use crate::world::{as_job, grant, issuer};
use jobpass_exchanger::demo::{Ci, issuer::Issuer};
use jobpass_tests::{
    entra::{Entra, TENANT},
    google::{Google, PROVIDER},
    http::now,
    https::Certificate,
    kubernetes::{ADMIN, Kubernetes},
    program::{self, Program},
    registry::{ISSUER, PASSWORD, Registry, SERVICE, USER},
    server::{Server, Setup},
};
use serde_json::json;
use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};
use tempfile::TempDir;

const ACCOUNT: &str = "deploy@acme-prod.iam.gserviceaccount.com";
const CLIENT: &str = "00000000-0000-4000-8000-000000000001";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// A job on GitHub.
struct Job {
    server: Server,
    github: Issuer,
    home: TempDir,
}

impl Job {
    async fn start(setup: impl FnOnce(Setup) -> Setup) -> Self {
        let github = issuer(Ci::GitHub).await;
        let server = setup(Setup::new().issuer("github", github.url(), &["1001"])).start().await;
        Self { server, github, home: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs a program as a step of the job would; answers what it wrote.
    async fn step(&self, mut command: Command) -> String {
        as_job(&mut command, &self.github, &self.server, self.home.path());
        command.env("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1");
        Program::run(command).await.expect_success()
    }

    /// Runs a script whose container tools ask `docker-credential-jobpass` about a registry.
    async fn with_docker_helper(&self, host: &str, grants: &str, script: &str) -> String {
        let helpers = json!({ "credHelpers": { host: "jobpass" } });
        let (auth, bin) = (self.file("auth.json", &helpers.to_string()), self.home.path().join("bin"));
        fs::create_dir_all(&bin).unwrap();
        let helper = bin.join("docker-credential-jobpass");
        if !helper.exists() {
            symlink(program::built("jobpass"), helper).unwrap();
        }
        let mut command = Command::new("sh");
        let set = "export PATH=$0:\"$PATH\" REGISTRY_AUTH_FILE=$1 JOBPASS_DOCKER_GRANTS=$2;";
        command.args(["-c", &format!("{set} {script}")]).args([&bin, &auth]).arg(grants);
        self.step(command).await
    }

    async fn jobpass(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program::built("jobpass"));
        command.args(arguments);
        self.step(command).await
    }
}

/// The Python in which `tests/run` installed the libraries.
fn python() -> PathBuf {
    program::bin().parent().unwrap().join("venv/bin/python")
}

#[tokio::test]
async fn google_auth_trades_a_token_of_ours() {
    let google = Google::start(now).await;
    let audience = format!("https://iam.googleapis.com/{PROVIDER}");
    let job = Job::start(|setup| {
        setup.backend("oidc", json!({ "signed_jwt": { "audiences": [audience] } })).grant("google-login.yaml")
    })
    .await;
    google.trust(&job.server.url);
    google.bind("grant:google-login", ACCOUNT);
    let config = |account: &str| {
        json!({
            "type": "external_account",
            "audience": format!("//iam.googleapis.com/{PROVIDER}"),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/v1/token", google.url),
            "service_account_impersonation_url":
                format!("{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken", google.url),
            "credential_source": {
                "executable": { "command": "jobpass google-credential --grant google-login", "timeout_millis": 30000 },
            },
        })
    };
    let script = job.file(
        "ask_google.py",
        "import json, sys\n\
         from google.auth import pluggable\n\
         from google.auth.transport import requests\n\
         credentials = pluggable.Credentials.from_info(json.load(open(sys.argv[1])), scopes=[sys.argv[2]])\n\
         try:\n\
         \x20   print(requests.AuthorizedSession(credentials).get(sys.argv[3]).status_code)\n\
         except Exception as error:\n\
         \x20   print(type(error).__name__, error)\n",
    );
    for (account, expected) in
        [(ACCOUNT, "200"), ("other@acme-prod.iam.gserviceaccount.com", "iam.serviceAccounts.getAccessToken")]
    {
        let mut command = Command::new(python());
        let object = format!("{}/storage/v1/b/releases/o/x", google.url);
        command.arg(&script).arg(job.file("config.json", &config(account).to_string())).args([SCOPE, &object]);
        let told = job.step(command).await;
        assert!(told.contains(expected), "{account}: {told} {:?}", google.refused());
    }
    assert!(job.jobpass(&["revoke"]).await.contains("cannot be taken back"));
}

#[tokio::test]
async fn azure_identity_trades_a_token_file() {
    let job = Job::start(|setup| {
        let oidc = json!({ "signed_jwt": { "audiences": ["api://AzureADTokenExchange"] } });
        setup.signing(&["ES256", "RS256"]).backend("oidc", oidc).grant("entra-login.yaml")
    })
    .await;
    let certificate = Certificate::make().await;
    let entra = Entra::start_tls(&certificate, now).await;
    entra.federate(CLIENT, &job.server.url, "grant:entra-login", "api://AzureADTokenExchange");
    let script = job.file(
        "ask_azure.py",
        "import os, requests, sys\n\
         from azure.identity import WorkloadIdentityCredential\n\
         authority, tenant, client, ca = sys.argv[1:]\n\
         credential = WorkloadIdentityCredential(tenant_id=tenant, client_id=client, authority=authority,\n\
         \x20   token_file_path=os.environ['AZURE_FEDERATED_TOKEN_FILE'], disable_instance_discovery=True,\n\
         \x20   connection_verify=ca)\n\
         token = credential.get_token('https://management.example/.default').token\n\
         for resource in ('management.example', 'graph.example'):\n\
         \x20   headers = {'Authorization': 'Bearer ' + token}\n\
         \x20   print(requests.get(f'{authority}/{resource}', headers=headers, verify=ca).status_code)\n",
    );
    let (python, script) = (python().display().to_string(), script.display().to_string());
    let told = job
        .jobpass(&[
            "exec",
            "--grant",
            "entra-login",
            "--file",
            "AZURE_FEDERATED_TOKEN_FILE=token",
            "--",
            &python,
            &script,
            &entra.url,
            TENANT,
            CLIENT,
            certificate.authority().to_str().unwrap(),
        ])
        .await;
    assert!(told.contains("200\n401\n"), "{told} {:?}", entra.refused());
}

#[tokio::test]
async fn kubectl_reads_the_kubeconfig_and_calls_the_plugin() {
    // Kubernetes clients send no token over plain http.
    let certificate = Certificate::make().await;
    let cluster = Kubernetes::start_tls(&certificate, now).await;
    let job = Job::start(|setup| {
        let token = setup.secret("cluster-token", ADMIN);
        let backend = json!({
            "server": cluster.url, "token": token, "bound": true,
            "ca_file": certificate.authority(), "allow_networks": ["127.0.0.0/8"],
        });
        setup.backend("cluster", json!({ "kubernetes": backend })).grant("cluster.yaml")
    })
    .await;
    job.server.keep_quiet(ADMIN);
    let told = job.jobpass(&["exec", "--grant", "cluster", "--", "kubectl", "get", "pods", "-o", "name"]).await;
    assert!(told.contains("pod/api-0"), "{told} {:?}", cluster.refused());
    assert!(cluster.secrets().is_empty(), "the lease was given back");

    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1beta1", "command": "jobpass",
        "args": ["kubectl-credential", "--grant", "cluster"], "interactiveMode": "Never",
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": cluster.url, "certificate-authority": certificate.authority() } }],
        "users": [{ "name": "x", "user": { "exec": exec } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x", "namespace": "prod" } }],
    });
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("--kubeconfig").arg(job.file("config", &config.to_string())).args(["get", "pods", "-o", "name"]);
    let told = job.step(kubectl).await;
    assert!(told.contains("pod/api-0"), "{told} {:?}", cluster.refused());
    assert!(!cluster.secrets().is_empty());
    job.jobpass(&["revoke"]).await;
    assert!(cluster.secrets().is_empty(), "the plugin's credential is the job's to give back");

    // What the role does not allow the cluster refuses, and everything once the credential was taken back.
    let kept = job.home.path().join("kept").display().to_string();
    let tries = format!(
        "cp \"$KUBECONFIG\" {kept}; kubectl get pods; for try in 'get pods -n kube-system' 'delete pod api-0 --wait=false' \
         'get --raw /api/v1/namespaces/prod/secrets'; do kubectl $try 2>&1 || true; done"
    );
    let told = job.jobpass(&["exec", "--grant", "cluster", "--", "sh", "-euc", &tries]).await;
    assert!(told.contains("api-0") && told.matches("Error from server (Forbidden)").count() == 3, "{told}");
    let mut kubectl = Command::new("sh");
    kubectl.args(["-c", &format!("! kubectl --kubeconfig {kept} get pods 2>&1")]);
    let told = job.step(kubectl).await;
    assert!(told.contains("You must be logged in to the server"), "{told}");
    assert_eq!(job.server.lease_states().iter().filter(|state| *state == "ended: revoked").count(), 3);
}

#[tokio::test]
async fn google_auth_uses_the_token_of_the_backend() {
    let google = Google::start(now).await;
    let backend = json!({ "gcp": {
        "provider": PROVIDER, "projects": ["acme-prod"], "insecure_http": true, "sts_url": google.url, "iam_url": google.url,
    } });
    let boundary = json!([{ "bucket": "releases", "roles": ["roles/storage.objectViewer"] }]);
    let credential = json!({ "service_account": ACCOUNT, "boundary": boundary });
    let job = Job::start(|setup| {
        setup.backend("google", backend).grant_text("g", &grant("google-token", "google", &credential, "15m"))
    })
    .await;
    google.trust(&job.server.url);
    google.bind("grant:google-token", ACCOUNT);
    let script = job.file(
        "use_google.py",
        "import os, sys\n\
         from google.auth.transport import requests\n\
         from google.oauth2.credentials import Credentials\n\
         session = requests.AuthorizedSession(Credentials(os.environ['GOOGLE_OAUTH_ACCESS_TOKEN']))\n\
         for bucket in ('releases', 'others'):\n\
         \x20   print(session.get(f'{sys.argv[1]}/storage/v1/b/{bucket}/o/x').status_code)\n",
    );
    let (python, script) = (python().display().to_string(), script.display().to_string());
    let told = job.jobpass(&["exec", "--grant", "google-token", "--", &python, &script, &google.url]).await;
    assert!(told.contains("200\n403\n"), "{told} {:?}", google.refused());
}

#[tokio::test]
async fn azures_pipeline_uses_the_token_of_the_backend() {
    let certificate = Certificate::make().await;
    let entra = Entra::start_tls(&certificate, now).await;
    let backend = json!({ "azure": {
        "tenant": TENANT, "authority": entra.url, "ca_file": certificate.authority(), "allow_networks": ["127.0.0.0/8"],
    } });
    let credential = json!({ "client_id": CLIENT, "scope": "https://management.example/.default" });
    let job = Job::start(|setup| {
        let setup = setup.signing(&["ES256", "RS256"]).backend("entra", backend);
        setup.grant_text("a", &grant("azure-token", "entra", &credential, "90m"))
    })
    .await;
    entra.federate(CLIENT, &job.server.url, "grant:azure-token", "api://AzureADTokenExchange");
    let script = job.file(
        "use_azure.py",
        "import os, sys, time\n\
         from azure.core import PipelineClient\n\
         from azure.core.credentials import AccessToken\n\
         from azure.core.pipeline.policies import BearerTokenCredentialPolicy\n\
         from azure.core.rest import HttpRequest\n\
         class OfTheJob:\n\
         \x20   def get_token(self, *scopes, **options):\n\
         \x20       return AccessToken(os.environ['AZURE_ACCESS_TOKEN'], int(time.time()) + 600)\n\
         policies = [BearerTokenCredentialPolicy(OfTheJob(), 'https://management.example/.default')]\n\
         client = PipelineClient(sys.argv[1], policies=policies, connection_verify=sys.argv[2])\n\
         for resource in ('management.example', 'graph.example'):\n\
         \x20   print(client.send_request(HttpRequest('GET', f'{sys.argv[1]}/{resource}')).status_code)\n",
    );
    let (python, script) = (python().display().to_string(), script.display().to_string());
    let ca = certificate.authority().display().to_string();
    let told = job.jobpass(&["exec", "--grant", "azure-token", "--", &python, &script, &entra.url, &ca]).await;
    assert!(told.contains("200\n401\n"), "{told} {:?}", entra.refused());
}

#[tokio::test]
async fn skopeo_asks_the_credential_helper() {
    let registry = Registry::with_password().await;
    let host = registry.host();
    let job = Job::start(|setup| {
        let login = setup.secret("registry-login", &json!({ "username": USER, "password": PASSWORD }).to_string());
        let fixed = json!({
            "grant": "images", "owner": "images@acme.example", "source": { "secret": login },
            "rotate_every": "36500d", "rotated_at": "2026-10-01",
        });
        let setup = setup.backend("old-registry", json!({ "fixed": fixed }));
        setup.grant_text("images", &grant("images", "old-registry", &json!({ "as": "fields" }), "5m"))
    })
    .await;
    job.server.keep_quiet(PASSWORD);
    let run = async |grants: &str| {
        let image = registry.path("image");
        let script = format!(
            "skopeo --insecure-policy copy --dest-tls-verify=false oci:{}:latest docker://{host}/app:latest 2>&1 && \
             skopeo --insecure-policy inspect --tls-verify=false docker://{host}/app:latest || echo refused",
            image.display()
        );
        job.with_docker_helper(&host, grants, &script).await
    };
    let told = run("other.example=images").await;
    assert!(told.contains("refused"), "{told}");
    let told = run(&format!("{host}=images")).await;
    assert!(told.contains("\"Digest\"") && !told.contains("refused"), "{told}");
    assert!(job.server.lease_states().len() > 1, "each call is an exchange");
}

#[tokio::test]
async fn skopeo_is_sent_to_jobpass_for_its_token() {
    let mut registry = Registry::start().await;
    let host = registry.host();
    let job = Job::start(|setup| {
        let key = fs::read_to_string(registry.path("signer.key")).expect("the file is there");
        let backend = json!({ "oci_registry": {
            "registry": host, "service": SERVICE, "issuer": ISSUER, "key": setup.secret("signer", &key),
            "certificate": registry.path("signer.pem"),
        } });
        let access = json!({ "access": [{ "repository": "ci/app", "actions": ["pull", "push"] }] });
        setup.backend("images", backend).grant_text("push", &grant("push", "images", &access, "5m"))
    })
    .await;
    registry.send_clients_to(&format!("{}/oci_registry/images/token", job.server.url)).await;
    let copy = format!(
        "skopeo --insecure-policy copy --dest-tls-verify=false oci:{}:latest docker://{host}",
        registry.path("image").display()
    );
    let script = format!(
        "{copy}/ci/app:latest && skopeo --insecure-policy inspect --tls-verify=false docker://{host}/ci/app:latest; \
         {copy}/ci/other:latest 2>&1 || echo refused elsewhere"
    );
    let told = job.with_docker_helper(&host, &format!("{host}=push"), &script).await;
    assert!(told.contains("\"Digest\"") && told.contains("denied") && told.contains("refused elsewhere"), "{told}");

    // The same by the file that `docker login` would have written, until the lease is taken back.
    let inspect = format!("skopeo --insecure-policy inspect --tls-verify=false docker://{host}/ci/app:latest");
    let script =
        format!("export REGISTRY_AUTH_FILE=$HOME/login.json; cp \"$LOGIN/config.json\" $REGISTRY_AUTH_FILE; {inspect}");
    let mut command = Command::new(program::built("jobpass"));
    command.args(["exec", "--grant", "push", "--file", "LOGIN=docker_config", "--", "sh", "-c", &script]);
    let told = job.step(command).await;
    assert!(told.contains("\"Digest\""), "{told}");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("REGISTRY_AUTH_FILE=$HOME/login.json {inspect} 2>&1 || echo refused")]);
    let told = job.step(command).await;
    assert!(told.contains("unauthorized") && told.contains("refused"), "{told}");
}
