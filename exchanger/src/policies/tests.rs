//! Directories of several teams: what one writes does not reach another's.

use super::*;
use crate::{
    app,
    config::{Config, Env},
};
use rustix::fs::{FileType, Mode};

const CONFIG: &str = "public_url: https://jobpass.acme.example
listen: 127.0.0.1:0
state_dir: state
issuers:
  github: { tenants: [\"1001\"] }
backends:
  id: { signed_jwt: { audiences: [https://cloud.example] } }
policies: [a, ./b, b/./team/]
";

struct World {
    root: tempfile::TempDir,
    policies: Policies,
}

impl World {
    /// Starts with these files.
    fn new(files: &[(&str, String)]) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        for directory in ["a", "b/team"] {
            fs::create_dir_all(root.path().join(directory)).expect("made");
        }
        fs::write(root.path().join("jobpass.yaml"), CONFIG).expect("written");
        for (path, text) in files {
            fs::write(root.path().join(path), text).expect("written");
        }
        let (policies, report) = Self::load(&root);
        assert_eq!(report.stale, []);
        Self { root, policies }
    }

    fn load(root: &tempfile::TempDir) -> (Policies, Report) {
        let config = Config::load(&root.path().join("jobpass.yaml"), &Env::default()).expect("a config");
        let (issuers, backends) = app::policy_world(&config).expect("built");
        Policies::load(config.policies, &root.path().join("state"), issuers, backends)
    }

    fn write(&self, path: &str, text: &str) -> Report {
        fs::write(self.root.path().join(path), text).expect("written");
        self.policies.reload()
    }

    fn remove(&self, path: &str) -> Report {
        fs::remove_file(self.root.path().join(path)).expect("removed");
        self.policies.reload()
    }

    /// The grants in force, each with its file's directory and its TTL.
    fn grants(&self) -> Vec<String> {
        let set = self.policies.current();
        let mut found: Vec<_> = set
            .grants()
            .map(|grant| {
                let directory = Path::new(grant.path()).parent().expect("a directory");
                let directory = directory.strip_prefix(self.root.path()).expect("within").display().to_string();
                format!("{directory}: {} {}", grant.name(), grant.ttl())
            })
            .collect();
        found.sort();
        found
    }
}

fn grant(name: &str, ttl: &str) -> String {
    format!(
        "grant: {name}\nowner: team@acme.example\nreview_by: 2099-01-01\nbackend: id\n\
         credential: {{ audience: https://cloud.example, sub: x }}\nttl: {ttl}\nrules:\n  - name: main\n    issuer: github\n    \
         match: {{ repository_owner_id: \"1001\", repository_id: \"7\", event_name: push, ref: refs/heads/main }}\n"
    )
}

fn dangerous(name: &str) -> String {
    grant(name, "30m").replace("push", "pull_request_target")
}

#[test]
fn a_name_that_is_taken_takes_nothing_from_its_holder() {
    for (newcomer, holder) in [("a", "b"), ("b", "a")] {
        let world = World::new(&[(&format!("{holder}/x.yaml"), grant("shared", "10m"))]);
        let report = world.write(&format!("{newcomer}/x.yaml"), &dangerous("shared"));
        assert!(report.stale.iter().all(|(stale, _)| stale.ends_with(newcomer)), "{report:?}");
        assert_eq!(world.grants(), [format!("{holder}: shared 600")]);
        world.remove(&format!("{holder}/x.yaml"));
        assert_eq!(world.grants(), [] as [String; 0], "what lint refuses is not taken when the name is free");
        let (again, _) = World::load(&world.root);
        assert_eq!(again.current().grants().count(), 0, "nor after a restart");
    }
}

#[test]
fn whose_name_is_taken_may_change_on() {
    for (newcomer, holder) in [("a", "b"), ("b", "a")] {
        let world = World::new(&[(&format!("{holder}/x.yaml"), grant("shared", "10m"))]);
        world.write(&format!("{newcomer}/x.yaml"), &grant("shared", "20m"));
        world.write(&format!("{holder}/x.yaml"), &grant("shared", "5m"));
        assert_eq!(world.grants(), [format!("{holder}: shared 300")]);
    }
}

#[test]
fn of_two_newcomers_with_one_name_neither_gets_it() {
    let world = World::new(&[("a/x.yaml", grant("shared", "10m")), ("b/y.yaml", grant("other", "10m"))]);
    fs::write(world.root.path().join("b/x.yaml"), grant("shared", "20m")).expect("written");
    fs::remove_dir_all(world.root.path().join("state/policies")).expect("forgotten");
    let (fresh, report) = World::load(&world.root);
    assert_eq!((fresh.current().grants().count(), report.stale.len()), (0, 2));
}

#[test]
fn what_binds_grants_stays_while_there_are_errors() {
    let guards = "forbid:\n  - { name: no-tags, issuer: github, match: { ref_type: tag } }\n";
    for name in ["guards.yaml", "guards.yml"] {
        let guards_path = format!("a/{name}");
        let world = World::new(&[("a/x.yaml", grant("x", "10m")), (&guards_path, guards.to_owned())]);
        let guarded = world.policies.current().digest().to_owned();
        world.write("a/x.yaml", "grant: [");
        world.remove(&guards_path);
        assert_eq!(*world.policies.current().digest(), guarded, "{name}");
        world.write("b/guards.yaml", guards);
        assert_eq!(*world.policies.current().digest(), guarded, "{name} is moved");
        world.write("a/x.yaml", &grant("x", "5m"));
        assert_eq!(world.grants(), ["a: x 300"]);
    }
}

#[test]
fn what_binds_grants_is_in_force_though_nothing_else_is() {
    let guards = "forbid:\n  - { name: no-tags, issuer: github, match: { ref_type: tag } }\n";
    let world = World::new(&[("a/guards.yaml", guards.to_owned()), ("b/y.yaml", grant("y", "10m"))]);
    let guarded = world.policies.current().digest().to_owned();
    let start_anew = || {
        fs::remove_dir_all(world.root.path().join("state/policies")).expect("forgotten");
        World::load(&world.root).0
    };
    let odd = world.root.path().join("a/x.yaml");
    fs::write(&odd, "grant: [").expect("written");
    assert_eq!(*start_anew().current().digest(), guarded, "beside a file with errors");
    fs::remove_file(&odd).expect("removed");
    std::os::unix::fs::symlink("/nowhere", &odd).expect("linked");
    assert_eq!(*start_anew().current().digest(), guarded, "beside a file that cannot be read");
    fs::remove_file(&odd).expect("removed");
    fs::write(&odd, grant("y", "10m")).expect("written");
    assert_eq!(start_anew().current().grants().count(), 0, "nobody has the name");
    fs::write(world.root.path().join("b/y.yaml"), grant("z", "10m")).expect("written");
    assert_eq!(start_anew().current().grants().count(), 2);
    fs::remove_file(world.root.path().join("a/guards.yaml")).expect("removed");
    std::os::unix::fs::symlink("/nowhere", world.root.path().join("a/guards.yaml")).expect("linked");
    assert_eq!(start_anew().current().grants().count(), 0, "nobody knows what binds them");
}

#[test]
fn new_guards_bind_though_their_directory_is_held_up() {
    let guards = "forbid:\n  - { name: no-tags, issuer: github, match: { ref_type: tag } }\n";
    let world = World::new(&[("a/x.yaml", grant("x", "10m")), ("b/y.yaml", grant("y", "10m"))]);
    let before = world.policies.current().digest().to_owned();
    fs::write(world.root.path().join("a/z.yaml"), grant("y", "10m")).expect("written");
    assert_eq!(world.write("a/guards.yaml", guards).stale.len(), 1);
    assert_ne!(*world.policies.current().digest(), before);
    assert_eq!(world.grants(), ["a: x 600", "b: y 600"]);
}

#[test]
fn what_was_removed_stays_removed() {
    let world = World::new(&[("a/x.yaml", grant("x", "10m")), ("b/y.yaml", grant("y", "10m"))]);
    world.write("a/z.yaml", "grant: [");
    world.remove("a/x.yaml");
    world.write("a/x.yaml", &grant("x", "5m"));
    assert_eq!(world.grants(), ["b: y 600"]);
    assert_eq!(World::load(&world.root).0.current().grants().count(), 1, "after a restart too");
    // A pipe holds up nothing.
    rustix::fs::mknodat(rustix::fs::CWD, world.root.path().join("b/guards.yaml"), FileType::Fifo, Mode::RUSR, 0)
        .expect("made");
    world.write("b/z.yaml", "grant: \u{0}");
    std::os::unix::fs::symlink("/nowhere", world.root.path().join("b/odd.yaml")).expect("linked");
    world.write("b/w.yaml", &grant("w", "5m"));
    assert_eq!(world.grants(), ["b: y 600"]);
    // With its directory, every grant is removed.
    fs::rename(world.root.path().join("b"), world.root.path().join("elsewhere")).expect("moved");
    world.policies.reload();
    assert_eq!(world.grants(), [] as [String; 0]);
}

#[test]
fn what_is_wrong_within_a_directory_does_not_hold_up_the_one_around_it() {
    let world = World::new(&[("b/outer.yaml", grant("outer", "10m")), ("b/team/inner.yaml", grant("inner", "10m"))]);
    world.write("b/team/inner.yaml", &dangerous("inner"));
    let report = world.write("b/outer.yaml", &grant("outer", "5m"));
    assert_eq!(world.grants(), ["b/team: inner 600", "b: outer 300"], "{report:?}");
}

#[test]
fn a_scope_binds_what_is_within_however_that_is_spelt() {
    let scope = "owner: team@acme.example\nmax_ttl: 5m\n".to_owned();
    let world = World::new(&[("b/scope.yaml", scope), ("b/team/inner.yaml", grant("inner", "5m"))]);
    assert_eq!(world.write("b/team/inner.yaml", &grant("inner", "10m")).stale.len(), 1);
    fs::create_dir(world.root.path().join("a/deep")).expect("made");
    fs::write(world.root.path().join("a/deep/guards.yaml"), "").expect("written");
    let notes: Vec<_> = passed_over(&world.policies.directories).collect();
    assert!(notes.len() == 1 && notes[0].contains("a/deep/guards.yaml"), "{notes:?}");
}

#[test]
fn a_grant_is_removed_also_beside_what_cannot_be_read() {
    type Spoil = fn(&Path);
    let spoils: [Spoil; 5] = [
        |path| std::os::unix::fs::symlink("/proc/self/pagemap", path).expect("linked"),
        |path| std::os::unix::fs::symlink("/nowhere/x.yaml", path).expect("linked"),
        |path| std::os::unix::fs::symlink("../../jobpass.yaml", path).expect("linked"),
        |path| fs::write(path, b"grant: \xff").expect("written"),
        |path| fs::write(path, " ".repeat(2 * 1024 * 1024)).expect("written"),
    ];
    for spoil in spoils {
        let guards = "forbid:\n  - { name: no-tags, issuer: github, match: { ref_type: tag } }\n".to_owned();
        let world = World::new(&[
            ("b/guards.yaml", guards),
            ("b/one.yaml", grant("one", "10m")),
            ("b/two.yaml", grant("two", "10m")),
        ]);
        spoil(&world.root.path().join("b/odd.yaml"));
        let report = world.write("b/two.yaml", &grant("two", "5m"));
        assert!(report.stale.iter().any(|(_, why)| why.contains("odd.yaml")), "{report:?}");
        assert_eq!(world.grants(), ["b: one 600", "b: two 600"]);
        world.remove("b/one.yaml");
        assert_eq!(world.grants(), ["b: two 600"]);
        let guarded = world.policies.current().digest().to_owned();
        world.remove("b/guards.yaml");
        assert_eq!(*world.policies.current().digest(), guarded, "a guard is not removed so");
    }
}

#[test]
fn a_file_that_means_harm_is_told_in_a_few_lines() {
    let world = World::new(&[]);
    let far = format!("\"1001\",{}event_name: pull_request_target", " ".repeat(66_000));
    let many: Vec<_> = (0..7000).map(|n| format!("your-{n}")).collect();
    let many = format!("\"1001\", repository: [{}]", many.join(", "));
    for odd in [far, many] {
        let report = world.write("a/x.yaml", &grant("x", "10m").replace("\"1001\"", &odd));
        assert_eq!(report.stale.len(), 1);
        let told: usize = report.diagnostics.iter().map(String::len).sum();
        assert!(told < 100_000, "{told} bytes");
    }
}
