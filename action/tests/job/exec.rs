//! `jobpass exec`.

use crate::{
    Ci, Job,
    fake::{PASSWORD, Reply, Seen},
};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

#[test]
fn secrets_do_not_show_whatever_the_child_does_with_them() {
    for (grants, script, stdout) in [
        (&["db"][..], r#"echo "pw=$PGPASSWORD." "#, "pw=***.\n"),
        (&["db"], r#"printf %s "$PGPASSWORD" | base64"#, "***\n"),
        (&["db"], r#"printf 'user:%s' "$PGPASSWORD" | base64"#, "dXNlcjp***\n"),
        (&["db"], r#"printf %s "$PGPASSWORD" | od -An -tx1 | tr -d ' \n'"#, "***"),
        (&["db"], "echo Pa5%2Fword%2Bwith%20spaces%26more Pa5%2fword%2bwith+spaces%26more", "*** ***\n"),
        (&["db"], "printf Pa5/wo; sleep 0.1; printf 'rd+wi'; sleep 0.1; echo 'th spaces&more'", "***\n"),
        (&["db"], "echo Pa5/word+with spices", "Pa5/word+with spices\n"),
        (&["db"], "echo $PGUSER@$PGHOST", "jobpass_1@db.example\n"),
        (&["key"], r#"printf %s "$JOBPASS_TOKEN" | tail -n 1; printf %s "$JOBPASS_TOKEN"; echo"#, "***\n***\n"),
        (&["key"], r#"printf %s "$JOBPASS_TOKEN" | base64 -w 20"#, "***\n"),
        (&["key"], r#"printf %s "$JOBPASS_TOKEN" | base64 -w 20 | sed 's/^/    /'"#, "    ***\n"),
        (&["db"], r#"printf %s "$PGPASSWORD" | fold -w 20; echo"#, "***\n"),
        (&["db"], r#"printf %s "$PGPASSWORD" | od -An -tx1 -v | tr -d '\n' | tr ' ' %; echo"#, "***\n"),
        (&["api"], r#"printf '%.16s...' "$JOBPASS_TOKEN""#, "***..."),
        // What can be read of what jobpass keeps to itself does not show either.
        (
            &["db"],
            "cat $XDG_RUNTIME_DIR/jobpass-*/* | grep -oE '\"(secret|handle)\":\"[^\"]*'",
            "\"secret\":\"***\n\"handle\":\"***\n",
        ),
    ] {
        let job = Job::new(Ci::GitLab);
        let ended = job.exec(grants, script);
        assert_eq!((ended.stdout.as_str(), ended.code), (stdout, Some(0)), "{script}: {}", ended.stderr);
        // The other output is filtered alike.
        let ended = job.exec(grants, &format!("{{ {script}; }} >&2"));
        assert!(ended.stderr.ends_with(stdout), "{script}: {}", ended.stderr);
    }
}

#[test]
fn the_command_does_not_see_into_jobpass() {
    let job = Job::new(Ci::GitLab);
    let script = "for id in $$ $PPID; do head -c 1 /proc/$id/environ | wc -c; done; cat token";
    let like = job.command(&[]);
    // Root may see into everything, but for the capabilities that it does without.
    let program = like.get_program().to_str().expect("UTF-8");
    let without = ["setpriv", "--bounding-set", "-all"].iter().filter(|_| rustix::process::geteuid().is_root());
    let line: Vec<&str> =
        without.copied().chain([program, "exec", "--grant", "db", "--", "sh", "-c", script]).collect();
    let token = job.fake.token();
    std::fs::write(job.path().join("token"), &token).expect("file");
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).current_dir(job.path()).env_clear();
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("JOBPASS_ID_TOKEN", token);
    let ended = crate::Ended::from(command.output().expect("jobpass runs"));
    assert_eq!(ended.stdout, "1\n0\n***", "{}", ended.stderr);
}

#[test]
fn what_a_file_gets_of_both_outputs_holds_no_secret_unless_masks_are_asked_for() {
    for (ci, flags, masked) in
        [(Ci::GitHub, &[][..], false), (Ci::GitHub, &["--mask"], true), (Ci::GitLab, &["--mask"], false)]
    {
        let job = Job::new(ci);
        let ended = job.run(&[&["exec", "--grant", "db"], flags, &["--", "sh", "-c", "echo $PGPASSWORD"]].concat());
        assert_eq!((ended.stdout.as_str(), ended.code), ("***\n", Some(0)), "{ended:?}");
        for (secret, may_show) in job.fake.secrets().into_iter().chain([(PASSWORD.to_owned(), true)]) {
            assert_eq!(ended.stderr.contains(&secret), may_show && masked, "{flags:?} {secret}: {}", ended.stderr);
        }
        assert_eq!(ended.stderr.contains(&format!("::add-mask::{PASSWORD}\n")), masked, "{flags:?}");
    }
}

#[test]
fn a_secret_that_begins_another_leaves_no_tail() {
    let job = Job::new(Ci::GitLab);
    let script = r#"echo "$JOBPASS_TOKEN" "$OTHER""#;
    let ended = job.run(&[
        "exec",
        "--grant",
        "api",
        "--grant",
        "other-api",
        "--env",
        "OTHER=other-api.token",
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(ended.stdout, "*** ***\n", "{}", ended.stderr);
}

#[test]
fn the_child_has_the_credential_and_no_way_to_another() {
    for ci in [Ci::GitHub, Ci::GitLab] {
        let job = Job::new(ci);
        let ended = job.exec(&["db"], "env | cut -d= -f1 | sort | tr '\\n' ' '");
        assert!(ended.stdout.contains("PGDATABASE PGHOST PGPASSWORD PGPORT PGSSLMODE PGUSER "), "{ended:?}");
        for name in ["ACTIONS_ID_TOKEN", "JOBPASS_ID_TOKEN"] {
            assert!(!ended.stdout.contains(name), "{ended:?}");
        }
        assert_eq!(job.fake.story(), "db revoke");
    }
}

#[test]
fn exit_codes_are_a_shells() {
    let script = |text: &'static str| vec!["exec", "--grant", "db", "--", "sh", "-c", text];
    for (args, code, story) in [
        (script("true"), 0, "db revoke"),
        (script("exit 7"), 7, "db revoke"),
        (script("kill -TERM $$"), 143, "db revoke"),
        (script("kill -KILL $$"), 137, "db revoke"),
        (vec!["exec", "--grant", "db", "--", "no-such-command"], 127, ""),
        (vec!["exec", "--grant", "db", "--", "/no/such/command"], 127, ""),
        (vec!["exec", "--grant", "db", "--", "/etc/passwd"], 126, ""),
        (vec!["exec", "--grant", "db", "--", "/etc"], 126, ""),
        (vec!["exec", "--grant", "db", "--grant", "nothing", "--", "true"], 125, "db nothing revoke"),
        (vec!["exec", "--grant", "Not A Name", "--", "true"], 125, ""),
        (vec!["exec", "--grant", "db"], 125, ""),
        (vec!["exec", "--grant", "api", "--grant", "key", "--", "true"], 125, "api key revoke revoke"),
        (vec!["exec", "--grant", "db", "--env", "X=nothing", "--", "true"], 125, "db revoke"),
        (vec!["get", "--grant", "db"], 2, ""),
        (vec!["get", "--grant", "nothing", "--to", "x"], 1, "nothing"),
        (vec!["--help"], 0, ""),
    ] {
        let job = Job::new(Ci::GitLab);
        let ended = job.run(&args);
        assert_eq!((ended.code, job.fake.story().as_str()), (Some(code), story), "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains(PASSWORD));
    }
}

#[test]
fn what_cannot_be_started_after_all_gives_its_credential_back() {
    let job = Job::new(Ci::GitLab);
    let script = job.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("file");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let ended = job.run(&["exec", "--grant", "db", "--", script.to_str().expect("UTF-8")]);
    assert_eq!((ended.code, job.fake.story().as_str()), (Some(127), "db revoke"), "{}", ended.stderr);
}

#[test]
fn a_denial_says_why_and_what_now() {
    let ended = Job::new(Ci::GitHub).exec(&["nothing"], "true");
    let error = ended.stderr.lines().last().unwrap_or_default();
    assert!(
        error.starts_with("::error title=jobpass::grant `nothing` is refused (invalid_target): not yours%0A"),
        "{error}"
    );
    assert!(error.ends_with("%0A  decision_id: d-1"), "{error}");
}

#[test]
fn signals_reach_the_child_and_its_leases_are_given_back() {
    for (signal, code) in [("TERM", 9), ("INT", 9), ("HUP", 9)] {
        let job = Job::new(Ci::GitLab);
        let script = format!("trap 'exit 9' {signal}; echo ready; while :; do sleep 0.02; done");
        let mut command = job.command(&["exec", "--grant", "db", "--", "sh", "-c", &script]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("jobpass runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().expect("kill");
        assert!(kill.success());
        assert_eq!(child.wait().expect("ends").code(), Some(code), "{signal}");
        assert_eq!(job.fake.story(), "db revoke", "{signal}");
    }
}

#[test]
fn a_signal_while_asking_stops_the_asking() {
    let job = Job::new(Ci::GitLab);
    job.fake.script(&[Reply::Status(503, "retry-after: 50\r\n", "")]);
    let mut command = job.command(&["exec", "--grant", "db", "--", "true"]);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("jobpass runs");
    while job.fake.seen().is_empty() {
        std::thread::yield_now();
    }
    Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().expect("kill");
    let ended = child.wait_with_output().expect("ends");
    assert_eq!(ended.status.code(), Some(143));
    assert_eq!(job.fake.story(), "db");
}

#[test]
fn output_flows_while_the_child_waits() {
    let job = Job::new(Ci::GitLab);
    let mut command =
        job.command(&["exec", "--grant", "db", "--", "sh", "-c", "printf 'Name: '; read name; echo \"Hi $name\""]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("jobpass runs");
    let mut stdout = child.stdout.take().expect("stdout");
    let mut prompt = [0; 6];
    stdout.read_exact(&mut prompt).expect("the prompt comes before the answer");
    assert_eq!(&prompt, b"Name: ");
    child.stdin.take().expect("stdin").write_all(b"Ann\n").expect("write");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("read");
    assert_eq!((rest.as_str(), child.wait().expect("ends").code()), ("Hi Ann\n", Some(0)));
}

#[test]
fn a_process_left_behind_holds_nothing_up() {
    for left_behind in ["sleep 60", "for i in $(seq 150); do echo tick; sleep 0.4; done"] {
        let job = Job::new(Ci::GitLab);
        let start = Instant::now();
        let ended = job.exec(&["db"], &format!("({left_behind}) & echo $!"));
        let pid = ended.stdout.lines().find(|line| *line != "tick").expect("a process id");
        // The one that writes may have noticed by itself that nobody reads any more.
        Command::new("kill").arg(pid).stderr(Stdio::null()).status().expect("kill");
        assert_eq!((ended.code, job.fake.story().as_str()), (Some(0), "db revoke"), "{left_behind}");
        assert!(start.elapsed().as_secs() < 30, "{left_behind}: {ended:?}");
    }
}

#[test]
fn once_the_command_has_ended_signals_stop_neither_giving_back_nor_its_own_output() {
    let job = Job::new(Ci::GitLab);
    // More than the pipe behind jobpass takes, so that some of it is still before it; then somebody who never stops.
    let script = "head -c 120000 /dev/zero | tr '\\0' x; (while echo tick; do sleep 0.1; done) & read line";
    let mut command = job.command(&["exec", "--grant", "db", "--", "sh", "-c", script]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("jobpass runs");
    until(|| job.fake.story() == "db");
    job.fake.script(&[Reply::Status(503, "retry-after: 1\r\n", "")]);
    child.stdin.take().expect("stdin").write_all(b"\n").expect("write");
    until(|| job.fake.story() == "db revoke");
    for signal in ["INT", "TERM"] {
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().expect("kill");
    }
    until(|| job.fake.story() == "db revoke revoke");
    let ended = crate::Ended::from(child.wait_with_output().expect("ends"));
    assert_eq!((ended.code, ended.stdout.matches('x').count()), (Some(0), 120_000), "{}", ended.stderr);
}

#[test]
fn a_second_signal_while_asking_waits_for_what_is_given_back() {
    let job = Job::new(Ci::GitLab);
    let busy = |retry_after| Reply::Status(503, retry_after, "");
    job.fake.script(&[Reply::Right, busy("retry-after: 50\r\n"), busy("retry-after: 1\r\n")]);
    let mut command = job.command(&["exec", "--grant", "db", "--grant", "api", "--", "true"]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("jobpass runs");
    for story in ["db api", "db api revoke"] {
        until(|| job.fake.story() == story);
        Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().expect("kill");
    }
    assert_eq!(child.wait().expect("ends").code(), Some(143));
    assert_eq!(job.fake.story(), "db api revoke revoke");
}

fn until(mut it_is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !it_is_so() {
        assert!(start.elapsed().as_secs() < 30, "it never was");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_child_as_in_a_shell() {
    let job = Job::new(Ci::GitLab);
    let mut command = job.command(&["exec", "--grant", "db", "--", "yes"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("jobpass runs");
    let mut some = [0; 2];
    let mut stdout = child.stdout.take().expect("stdout");
    stdout.read_exact(&mut some).expect("output");
    drop(stdout);
    assert_eq!(child.wait().expect("ends").code(), Some(128 + 13));
    assert_eq!(job.fake.story(), "db revoke");
}

#[test]
fn leases_live_as_long_as_the_child() {
    for (script, story, warning) in [
        (vec![], "db renew revoke", None),
        (
            vec![Reply::Status(400, "", r#"{"error":"invalid_grant","error_description":"frozen"}"#)],
            "db renew revoke",
            Some("frozen"),
        ),
    ] {
        let job = Job::new(Ci::GitLab);
        job.fake.expires_in(2);
        // The child ends once the server has seen a renewal.
        let mark = job.path().join("renewed");
        let wait = format!("while ! [ -e {} ]; do sleep 0.02; done; sleep 0.2", mark.display());
        let mut command = job.command(&["exec", "--grant", "db", "--", "sh", "-c", &wait]);
        let child = command.stderr(Stdio::piped()).spawn().expect("jobpass runs");
        while job.fake.seen().is_empty() {
            std::thread::yield_now();
        }
        job.fake.script(&script);
        while !job.fake.story().contains("renew") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::fs::write(&mark, "").expect("mark");
        let ended = crate::Ended::from(child.wait_with_output().expect("ends"));
        assert_eq!((ended.code, job.fake.story().as_str()), (Some(0), story), "{ended:?}");
        assert_eq!(ended.stderr.matches("is not renewed").count(), usize::from(warning.is_some()), "{ended:?}");
        assert!(ended.stderr.contains(warning.unwrap_or_default()), "{ended:?}");
        let handles: Vec<String> = job
            .fake
            .seen()
            .into_iter()
            .filter_map(|seen| match seen {
                Seen::Renew { handle, .. } | Seen::Revoke(handle) => Some(handle),
                _ => None,
            })
            .collect();
        // A handle is replaced by its renewal, and only then.
        assert_eq!(handles[0] == handles[1], warning.is_some(), "{handles:?}");
    }
}

#[test]
fn a_lease_that_cannot_be_given_back_is_told_and_kept_for_later() {
    let job = Job::new(Ci::GitLab);
    let refusal = Reply::Status(400, "", r#"{"error":"invalid_request","error_description":"no"}"#);
    let mut command = job.command(&["exec", "--grant", "db", "--", "sh", "-c", "read line; exit 3"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("jobpass runs");
    while job.fake.seen().is_empty() {
        std::thread::yield_now();
    }
    job.fake.script(&[refusal]);
    child.stdin.take().expect("stdin").write_all(b"\n").expect("write");
    let ended = crate::Ended::from(child.wait_with_output().expect("ends"));
    assert_eq!(ended.code, Some(3), "the child's code counts");
    assert!(ended.stderr.contains("was not given back and lives until it expires"), "{ended:?}");
    let ended = job.run(&["revoke"]);
    assert_eq!((ended.code, job.fake.story().as_str()), (Some(0), "db revoke revoke"), "{ended:?}");
}
