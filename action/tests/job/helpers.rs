//! What tools read: files of `exec`, its SSH agent, and the commands that other programs call.

use crate::{Ci, Ended, Job, fake::PASSWORD};
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

#[test]
fn files_end_with_the_command() {
    for (args, script, stdout) in [
        (
            &["--grant", "db", "--file", "PGPASSFILE=pgpass"][..],
            r#"stat -c %a "$PGPASSFILE" $(dirname "$PGPASSFILE"); cat "$PGPASSFILE"; echo "$PGHOST ${PGPASSWORD-unset}""#,
            "600\n700\ndb.example:5432:app:jobpass_1:***\ndb.example unset\n",
        ),
        (
            &["--grant", "db", "--file", "PGSERVICEFILE=pgservice", "--env", "PW=db.password"],
            r#"grep -c "^password=$PW" "$PGSERVICEFILE"; echo $PGSERVICE"#,
            "1\njobpass\n",
        ),
        (
            &["--grant", "k8s"],
            r#"grep -o '"users"' "$KUBECONFIG"; echo ${JOBPASS_KUBERNETES_TOKEN-unset}"#,
            "\"users\"\nunset\n",
        ),
        (
            &["--grant", "id", "--file", "AZURE_FEDERATED_TOKEN_FILE=token"],
            r#"wc -c < "$AZURE_FEDERATED_TOKEN_FILE""#,
            "24\n",
        ),
        (
            &["--grant", "images", "--file", "DOCKER_CONFIG=docker_config"],
            r#"cat "$DOCKER_CONFIG/config.json"; echo; stat -c %a "$DOCKER_CONFIG" "$DOCKER_CONFIG/config.json""#,
            "{\"auths\":{\"registry.example\":{\"auth\":\"am9icGFzczp***k=\",\"registrytoken\":\"***\"}}}\n700\n600\n",
        ),
    ] {
        let job = Job::new(Ci::GitLab);
        let tell = format!("{script}; find \"$XDG_RUNTIME_DIR\" -path '*exec-*' >&2");
        let ended = job.run(&[&["exec"], args, &["--", "sh", "-c", &tell]].concat());
        assert_eq!((ended.stdout.as_str(), ended.code), (stdout, Some(0)), "{args:?}: {}", ended.stderr);
        let path = ended.stderr.lines().find(|line| line.contains("/exec-")).expect("a file outside the workspace");
        assert!(!std::path::Path::new(path).exists(), "{path} is still there");
    }
    for (args, complaint) in [
        (&["--grant", "db", "--file", "X=nothing"][..], "X=nothing: no credential here has that field; there are"),
        (&["--grant", "db", "--file", "PGUSER=pgpass"], "both set PGUSER"),
        (&["--grant", "api", "--grant", "other-api", "--file", "X=token"], "write GRANT.token"),
    ] {
        let job = Job::new(Ci::GitLab);
        let ended = job.run(&[&["exec"], args, &["--", "true"]].concat());
        assert!(ended.code == Some(125) && ended.stderr.contains(complaint), "{args:?}: {}", ended.stderr);
        assert!(job.fake.story().ends_with(" revoke"), "{}", job.fake.story());
    }
}

#[test]
fn ssh_finds_the_key_and_its_certificate_in_an_agent() {
    let job = Job::new(Ci::GitLab);
    let script = r#"ssh-add -L | cut -d ' ' -f 1,3; ssh-add -D 2>&1; echo x > data
        ssh-add -L > key.pub && ssh-keygen -q -Y sign -n test -f key.pub data 2>&1 && head -n 1 data.sig; ls -A $(dirname $SSH_AUTH_SOCK)"#;
    let ended = job.exec(&["ssh"], script);
    let stdout = "ssh-ed25519-cert-v01@openssh.com jobpass\nFailed to remove all identities.\n-----BEGIN SSH SIGNATURE-----\nagent\n";
    assert_eq!((ended.stdout.as_str(), ended.code), (stdout, Some(0)), "{}", ended.stderr);
}

fn with_input(mut command: Command, input: &str) -> Ended {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let _ = child.stdin.take().expect("stdin").write_all(input.as_bytes());
    Ended::from(child.wait_with_output().expect("ends"))
}

#[test]
fn docker_gets_what_is_meant_for_its_registry() {
    for (arguments, input, code, part, story) in [
        (&["get"][..], "registry.example\n", 0, r#""Secret":"bearer-token-of-the-api""#, "api"),
        (&["get"], "https://registry.example/v2/", 0, r#""Username":"jobpass""#, "api"),
        (&["get"], "registry.evil\n", 1, "credentials not found in native keychain", ""),
        (&["list"], "", 0, r#"{"registry.example":"jobpass"}"#, ""),
        (&["erase"], "registry.example", 0, "", ""),
        (&["store"], "{}", 1, "", ""),
    ] {
        let job = Job::new(Ci::GitLab);
        let link = job.path().join("docker-credential-jobpass");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_jobpass"), &link).expect("symlink");
        let like = job.command(&[]);
        let mut command = Command::new(&link);
        command.args(arguments).env_clear().env("JOBPASS_DOCKER_GRANTS", "registry.example=api");
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ended = with_input(command, input);
        assert!(ended.code == Some(code) && ended.stdout.contains(part), "{arguments:?} {input}: {ended:?}");
        assert_eq!(job.fake.story(), story, "{arguments:?} {input}");
    }
}

#[test]
fn git_gets_what_is_meant_for_its_host() {
    for (url, password) in [
        ("https://git.example/a.git", Some("password=bearer-token-of-the-api")),
        ("https://git.evil/a.git", None),
        ("http://git.example/a.git", None),
    ] {
        let job = Job::new(Ci::GitLab);
        let jobpass = env!("CARGO_BIN_EXE_jobpass");
        let like = job.command(&[]);
        let mut git = Command::new("git");
        git.env_clear().envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let helper = format!("credential.helper=!{jobpass} git-credential --grant api --host git.example");
        git.env("HOME", job.path()).env("GIT_TERMINAL_PROMPT", "0").args(["-c", &helper, "credential", "fill"]);
        let ended = with_input(git, &format!("url={url}\n\n"));
        match password {
            Some(password) => assert!(ended.stdout.contains(password), "{url}: {ended:?}"),
            None => assert!(ended.code != Some(0) && job.fake.story().is_empty(), "{url}: {ended:?}"),
        }
    }
}

#[test]
fn kubernetes_and_google_get_their_documents() {
    for (args, part) in [
        (&["kubectl-credential", "--grant", "k8s"][..], r#""kind":"ExecCredential","status":{"expirationTimestamp":"#),
        (&["google-credential", "--grant", "id"], r#""id_token":"header.payload.signature""#),
    ] {
        let ended = Job::new(Ci::GitHub).run(args);
        assert!(ended.code == Some(0) && ended.stdout.contains(part), "{args:?}: {ended:?}");
        assert!(args[0] != "google-credential" || ended.stderr.is_empty(), "Google reads it too: {ended:?}");
    }
    for args in [&["kubectl-credential", "--grant", "db"][..], &["google-credential", "--grant", "api"]] {
        let job = Job::new(Ci::GitLab);
        let ended = job.run(args);
        assert_eq!(ended.code, Some(1), "{args:?}: {ended:?}");
        assert!(job.fake.story().ends_with(" revoke"), "{args:?}");
        assert!(!(ended.stdout + &ended.stderr).contains(PASSWORD), "{args:?}");
    }
}

#[test]
fn openssl_finds_the_certificate_and_its_key_in_files() {
    let script = r#"openssl x509 -in "$JOBPASS_CERTIFICATE" -noout -pubkey > of-certificate
        openssl pkey -in "$JOBPASS_PRIVATE_KEY" -pubout > of-key; cmp of-certificate of-key && echo one key
        stat -c %a "$JOBPASS_PRIVATE_KEY"; env | grep -c BEGIN; cat "$JOBPASS_PRIVATE_KEY""#;
    let job = Job::new(Ci::GitLab);
    let ended = job.exec(&["x509"], script);
    assert!(ended.stdout.starts_with("one key\n600\n0\n***"), "{ended:?}");
    assert!(!ended.stdout.contains("PRIVATE KEY"), "{ended:?}");
    let ended = job.run(&["get", "--grant", "x509", "--field", "pem", "--to", "pem"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let pem = std::fs::read_to_string(job.path().join("pem")).expect("file");
    assert_eq!(pem.matches("-----BEGIN ").count(), 2, "the certificate, then its key");
}
