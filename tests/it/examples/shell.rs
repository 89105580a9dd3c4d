//! The commands in scripts and documents, as a shell would take them apart, and whether our programs know them.

use jobpass_tests::program::built;
use std::process::{Command, Stdio};

/// All calls of a program in a script, word by word, those within quoted words too.
pub(super) fn calls(script: &str, program: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for command in commands(script) {
        let assigns = |word: &String| word.contains('=') && !word.starts_with(['-', '=']) && !word.contains(' ');
        let begin = command.iter().take_while(|word| assigns(word)).count();
        // `credential_process = jobpass …` in a file of settings.
        let begin = command.iter().position(|word| word == "=").map_or(begin, |at| at + 1);
        let own = command.get(begin).is_some_and(|word| word.trim_start_matches('!') == program);
        let call = command.get(begin + 1..).unwrap_or_default();
        if own && call.first().is_some_and(|word| word.starts_with(|letter: char| letter.is_ascii_lowercase())) {
            found.push(call.to_vec());
        }
        // What is quoted may be a script itself; `\n` is how printf is told to end a line.
        let quoted = command.iter().filter(|word| word.contains(char::is_whitespace));
        found.extend(quoted.flat_map(|word| calls(&word.replace("\\n", "\n"), program)));
    }
    found
}

/// A script's commands, each as its words. Knows quotes, comments, continued lines and what stands between commands.
pub(super) fn commands(script: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut letters = script.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('\n') | None => {}
                Some('n') => word.get_or_insert_default().push_str("\\n"),
                Some(other) => word.get_or_insert_default().push(other),
            },
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                while let Some(quoted) = letters.next_if(|next| *next != letter) {
                    word.push(quoted);
                    if letter == '"' && quoted == '\\' {
                        word.pop();
                        word.extend(letters.next());
                    }
                }
                letters.next();
                letters.next_if_eq(&','); // JSON's
            }
            '#' if word.is_none() => while letters.next_if(|next| *next != '\n').is_some() {},
            _ if letter.is_whitespace() || "|;&()<>".contains(letter) => {
                words.extend(word.take());
                if letter == '\n' || !letter.is_whitespace() {
                    commands.push(std::mem::take(&mut words));
                }
            }
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

/// The values of an option.
pub(super) fn values<'a>(call: &'a [String], option: &str) -> Vec<&'a str> {
    let own = call.iter().take_while(|word| *word != "--").collect::<Vec<_>>();
    own.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

/// Has `jobpass` itself read these arguments; it ends before it does anything, since no server is named to it. One
/// that is named alone need only be there.
pub(super) fn job_takes(call: &[String]) -> Result<(), String> {
    let mut call = call.to_vec();
    match &call[..] {
        [_] => call.push("--help".to_owned()),
        [git, ..] if git == "git-credential" => call.push("get".to_owned()), // git says what it wants
        _ => {}
    }
    let (ended, said) = run(Command::new(built("jobpass")).args(&call));
    let understood = ended == Some(0) || said.starts_with("jobpass: error: ");
    if understood { Ok(()) } else { Err(format!("jobpass {call:?}: {said}")) }
}

/// Has `jobpass-exchanger` itself read these arguments, and tell their meaning instead of doing it.
pub(super) fn exchanger_takes(call: &[String]) -> Result<(), String> {
    let (ended, said) = run(Command::new(built("jobpass-exchanger")).args(call).arg("--help"));
    if ended == Some(0) { Ok(()) } else { Err(format!("jobpass-exchanger {call:?}: {said}")) }
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let said = command.env_clear().stdin(Stdio::null()).output().expect("it runs");
    (said.status.code(), String::from_utf8_lossy(&said.stderr).into_owned())
}

#[test]
fn calls_are_found_wherever_they_stand() {
    for (script, expected) in [
        ("jobpass revoke", &["revoke"][..]),
        ("A=1 jobpass get --to x | cat\njobpass env", &["get --to x", "env"]),
        ("cd x && jobpass exec -- \\\n sh -c 'a  b' # jobpass none", &["exec -- sh -c a  b"]),
        ("printf '[x]\\na = jobpass version --json\\n' > \"$F\"", &["version --json"]),
        ("git config helper '!jobpass git-credential --host h'", &["git-credential --host h"]),
        (r#"{ "command": "jobpass get --field a", "b": 1 }"#, &["get --field a"]),
        ("name: \"jobpass {{ lease.id }}\"", &[]),
        ("useradd jobpass; install -g jobpass x; ln -s $(command -v jobpass)", &[]),
    ] {
        let found: Vec<_> = calls(script, "jobpass").iter().map(|call| call.join(" ")).collect();
        assert_eq!(found, expected, "{script}");
    }
    let call = ["exec", "--grant", "a", "--", "--grant", "b"].map(str::to_owned);
    assert_eq!(values(&call, "--grant"), ["a"]);
}

#[test]
fn what_our_programs_do_not_know_is_found() {
    let words = |line: &str| commands(line).remove(0);
    for (line, known) in [
        ("exec --grant a --env B=c -- sh", true),
        ("exec --grnt a -- sh", false),
        ("exec --grant a", false),
        ("revoke --handle-file FILE", true),
        ("revoke", true),
        ("git-credential --grant a --host h", true),
        ("revok", false),
    ] {
        assert_eq!(job_takes(&words(line)).is_ok(), known, "jobpass {line}");
    }
    for (line, known) in
        [("policy test grants", true), ("policy test --grant x", false), ("freeze --reason x", true), ("freez", false)]
    {
        assert_eq!(exchanger_takes(&words(line)).is_ok(), known, "jobpass-exchanger {line}");
    }
}
