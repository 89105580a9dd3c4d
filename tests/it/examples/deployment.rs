//! The service, the image and the commands of examples/deploy fit each other, the config and the repository.

use super::{
    documents::code,
    shell::{commands, exchanger_takes},
    yaml,
};
use jobpass_tests::program::{built, root};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

/// Directives, and what they may be set to; those without a value are checked by another test.
const DIRECTIVES: &[(&str, &str, &[&str])] = &[
    ("Unit", "Description", &[]),
    ("Unit", "Documentation", &[]),
    ("Unit", "After", &["network-online.target time-sync.target"]),
    ("Unit", "Wants", &["network-online.target"]),
    ("Service", "Type", &["exec"]),
    ("Service", "User", &["jobpass"]),
    ("Service", "Group", &["jobpass"]),
    ("Service", "ExecStart", &[]),
    ("Service", "ExecReload", &["/bin/kill -HUP $MAINPID"]),
    ("Service", "Restart", &["on-failure"]),
    ("Service", "RestartSec", &["2"]),
    ("Service", "TimeoutStopSec", &["45"]), // more than `limits.drain`
    ("Service", "StateDirectory", &["jobpass"]),
    ("Service", "StateDirectoryMode", &["0700"]),
    ("Service", "LogsDirectory", &["jobpass"]),
    ("Service", "LogsDirectoryMode", &["0750"]),
    ("Service", "LoadCredential", &[]),
    ("Service", "NoNewPrivileges", &["yes"]),
    ("Service", "CapabilityBoundingSet", &[""]),
    ("Service", "AmbientCapabilities", &[""]),
    ("Service", "ProtectSystem", &["strict"]),
    ("Service", "ProtectHome", &["yes"]),
    ("Service", "PrivateTmp", &["yes"]),
    ("Service", "PrivateDevices", &["yes"]),
    ("Service", "PrivateUsers", &["yes"]),
    ("Service", "ProtectClock", &["yes"]),
    ("Service", "ProtectControlGroups", &["yes"]),
    ("Service", "ProtectHostname", &["yes"]),
    ("Service", "ProtectKernelLogs", &["yes"]),
    ("Service", "ProtectKernelModules", &["yes"]),
    ("Service", "ProtectKernelTunables", &["yes"]),
    ("Service", "ProtectProc", &["invisible"]),
    ("Service", "ProcSubset", &["pid"]),
    ("Service", "RestrictAddressFamilies", &["AF_INET AF_INET6 AF_UNIX"]),
    ("Service", "RestrictNamespaces", &["yes"]),
    ("Service", "RestrictRealtime", &["yes"]),
    ("Service", "RestrictSUIDSGID", &["yes"]),
    ("Service", "LockPersonality", &["yes"]),
    ("Service", "MemoryDenyWriteExecute", &["yes"]),
    ("Service", "SystemCallArchitectures", &["native"]),
    ("Service", "SystemCallFilter", &["@system-service", "~@privileged @resources"]),
    ("Service", "SystemCallErrorNumber", &["EPERM"]),
    ("Service", "UMask", &["0077"]),
    ("Service", "LimitCORE", &["0"]),
    ("Service", "MemorySwapMax", &["0"]),
    ("Service", "LimitNOFILE", &["65536"]),
    ("Install", "WantedBy", &["multi-user.target"]),
];

fn read(name: &str) -> String {
    fs::read_to_string(root().join("examples/deploy").join(name)).expect("readable")
}

fn config() -> Value {
    yaml(&root().join("examples/deploy/jobpass-exchanger.yaml"))
}

/// The unit's settings, in order.
fn unit() -> Vec<(String, String, String)> {
    let (mut section, mut settings) = (String::new(), Vec::new());
    for line in read("jobpass-exchanger.service").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            name.strip_suffix(']').expect("a section").clone_into(&mut section);
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("no setting: {line}"));
        settings.push((section.clone(), name.to_owned(), value.to_owned()));
    }
    settings
}

fn set(name: &str) -> String {
    unit().into_iter().find(|(_, other, _)| other == name).unwrap_or_else(|| panic!("no {name}")).2
}

/// What the README's `sh` blocks run.
fn readme() -> Vec<Vec<String>> {
    code(&read("README.md"), &[]).iter().flat_map(|line| commands(line)).collect()
}

/// What the README installs where: from each path, if it is a file, and with which mode.
fn installed() -> BTreeMap<String, (Option<String>, String)> {
    let mut found = BTreeMap::new();
    for command in readme().into_iter().filter(|command| command[0] == "install") {
        let (mut names, mut mode, mut words) = (Vec::new(), String::new(), command.into_iter().skip(1));
        let mut makes = false;
        while let Some(word) = words.next() {
            match word.as_str() {
                "-d" => makes = true,
                "-m" => mode = words.next().expect("a mode"),
                "-g" => drop(words.next().expect("a group")),
                _ => names.push(word),
            }
        }
        if makes {
            found.extend(names.into_iter().map(|name| (name, (None, mode.clone()))));
            continue;
        }
        let to = names.pop().expect("a place");
        assert!(to.ends_with('/'), "{to}");
        for from in names {
            let name = from.rsplit('/').next().expect("a name");
            found.insert(format!("{to}{name}"), (Some(from.clone()), mode.clone()));
        }
    }
    found
}

#[test]
fn the_service_has_every_directive_and_no_other() {
    let settings = unit();
    let of = |section: &str, name: &str| -> Vec<_> {
        settings
            .iter()
            .filter(|(s, n, _)| (s.as_str(), n.as_str()) == (section, name))
            .map(|(.., value)| value)
            .collect()
    };
    for (section, name, values) in DIRECTIVES {
        let found = of(section, name);
        assert!(if values.is_empty() { found.len() == 1 } else { found == *values }, "[{section}] {name}: {found:?}");
    }
    let known: BTreeSet<_> = DIRECTIVES.iter().map(|(section, name, _)| (*section, *name)).collect();
    let strange: Vec<_> = settings.iter().filter(|(s, n, _)| !known.contains(&(s.as_str(), n.as_str()))).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn the_service_finds_what_the_readme_installs() {
    let (installed, config) = (installed(), config());
    for (place, (from, _)) in &installed {
        let Some(from) = from else { continue };
        let is_there = match from.strip_prefix("target/dist/") {
            Some(program) => built(program).exists(),
            None if from.contains('/') => match from.strip_suffix("/*.yaml") {
                Some(directory) => root().join(directory).read_dir().is_ok_and(|mut files| files.next().is_some()),
                None => root().join(from).exists(),
            },
            None => read("README.md").contains(&format!("`{from}`")), // of the reader's own
        };
        assert!(is_there, "{from}, for {place}, is not there");
    }
    let start = commands(&set("ExecStart")).remove(0);
    assert_eq!(installed[&start[0]].1, "0755");
    exchanger_takes(&start[1..]).expect("it takes these arguments");
    let file = start.last().expect("a config");
    assert_eq!(start[start.len() - 2], "--config");
    let directory = file.strip_suffix("/jobpass-exchanger.yaml").expect("its name");
    let mut needed = vec![file.clone(), "/etc/systemd/system/jobpass-exchanger.service".to_owned()];
    needed.extend(["certificate", "key"].map(|name| config["tls"][name].as_str().expect("a path").to_owned()));
    needed.push(format!("{directory}/{}/*.yaml", config["policies"][0].as_str().expect("a directory")));

    let credential = set("LoadCredential");
    let (name, path) = credential.split_once(':').expect("a name and a path");
    assert_eq!(config["backends"]["main-db"]["postgres"]["password"], format!("credential:{name}"));
    assert_eq!(installed[path].1, "0600");
    for path in &needed {
        let parent = path.rsplit_once('/').expect("a directory").0;
        assert!(installed.contains_key(path), "{path} is not installed");
        assert!(installed.contains_key(parent) || !parent.starts_with("/etc/jobpass/"), "{parent} is not made");
    }
    assert_eq!(config["state_dir"], format!("/var/lib/{}", set("StateDirectory")));
    for file in ["file", "head_file"] {
        let path = config["audit"][file].as_str().expect("a path");
        assert!(path.starts_with(&format!("/var/log/{}/", set("LogsDirectory"))), "{path}");
    }
    let user = readme().into_iter().find(|command| command[0] == "useradd").expect("a user");
    assert_eq!(user.last(), Some(&set("User")));
}

/// The lines of the Containerfile: an instruction and its words.
fn containerfile() -> Vec<(String, Vec<String>)> {
    let text = read("Containerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (instruction, rest) = line.split_once(' ').expect("an instruction");
            let list: Option<Vec<String>> = serde_json::from_str(rest).ok();
            (instruction.to_owned(), list.unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect()))
        })
        .collect()
}

#[test]
fn the_image_has_what_it_runs() {
    let (lines, config) = (containerfile(), config());
    let all = |name: &str| lines.iter().filter(|(other, _)| other == name).map(|(_, words)| words).collect::<Vec<_>>();
    let joined = |name: &str| all(name).iter().map(|words| words.join(" ")).collect::<Vec<_>>();

    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("readable");
    let newest =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version").trim_matches('"');
    assert!(all("FROM")[0][0].ends_with(&format!("/rust:{newest}-bookworm")), "built with another Rust than {newest}");
    let build = &joined("RUN")[0];
    assert!(manifest.contains("[profile.dist]\n") && build.contains("--locked --profile dist --bin jobpass-exchanger"));

    for copied in all("COPY") {
        match copied[0].strip_prefix("--from=") {
            None => assert!(root().join(&copied[0]).exists(), "{} is not there", copied[0]),
            Some(stage) => {
                assert_eq!(all("FROM")[0][1..], ["AS", stage]);
                let program = copied[1].strip_prefix("/src/target/dist/").expect("what was built");
                assert!(built(program).exists(), "{program} is not built");
                assert_eq!(copied[2], format!("/usr/local/bin/{}", all("ENTRYPOINT")[0][0]));
            }
        }
    }
    let command = all("CMD")[0];
    exchanger_takes(command).expect("it takes these arguments");
    assert!(installed().contains_key(command.last().expect("a config")), "{command:?}");
    let user = &joined("USER")[0];
    let setup = &joined("RUN")[1];
    assert!(setup.contains("useradd") && setup.split(" && ").any(|line| line.trim().ends_with(user)), "no {user}");
    let state = config["state_dir"].as_str().expect("a path");
    assert_eq!(joined("VOLUME"), [state]);
    for (path, mode) in [(state, "0700"), ("/var/log/jobpass", "0750")] {
        assert!(setup.contains(&format!("install -d -o {user} -g {user} -m {mode} {path}")), "{path}");
    }
    let port = joined("EXPOSE").remove(0);
    assert!(config["listen"].as_str().is_some_and(|listen| listen.ends_with(&format!(":{port}"))), "{port}");

    let podman: Vec<_> = readme().into_iter().filter(|command| command[0] == "podman").collect();
    let [build, secret, run] = &podman[..] else { panic!("{podman:?}") };
    let after =
        |words: &[String], option: &str| words[1 + words.iter().position(|word| word == option).expect("it")].clone();
    assert!(PathBuf::from(root()).join(after(build, "-f")).is_file());
    assert_eq!(after(build, "-t"), *run.last().expect("an image"));
    assert_eq!(after(run, "-p"), format!("{port}:{port}"));
    let (name, rights) =
        after(run, "--secret").split_once(',').map(|(n, r)| (n.to_owned(), r.to_owned())).expect("both");
    assert!(set("LoadCredential").starts_with(&format!("{name}:")) && secret[3] == name);
    let id = setup.split_whitespace().skip_while(|word| *word != "--uid").nth(1).expect("a user id");
    assert_eq!(rights, format!("uid={id},mode=0400"));
    let mounts: Vec<_> = run.windows(2).filter(|pair| pair[0] == "-v").map(|pair| pair[1].as_str()).collect();
    for place in ["/etc/jobpass:ro", state, "/var/log/jobpass"] {
        assert!(mounts.iter().any(|mount| mount.ends_with(&format!(":{place}"))), "{place} is not mounted: {mounts:?}");
    }
}
