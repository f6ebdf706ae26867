//! Results are remembered: as long as nothing that was read has changed nothing is evaluated again, and no longer.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod fleet_dir;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use fleet_dir::FleetDir;
use serde_json::Value;

/// What `<nixpkgs/nixos>` is here. It reads in all the ways that there are, and needs some memory.
const NIXOS: &str = r#"
{ configuration }:
let
  text = builtins.toJSON {
    memory = builtins.length (builtins.genList (x: x) 1000000);
    imported = import ../lib.nix;
    file = builtins.readFile ../text;
    link = builtins.readFile ../link;
    names = builtins.readDir ../folder;
    there = builtins.pathExists ../maybe;
    kind = builtins.readFileType ../kind;
    tree = builtins.path { path = ../tree; name = "tree"; };
    variable = builtins.getEnv "BENTO_TEST";
    extra = toString (import <extra>);
    host = import configuration;
  };
in {
  config.system.build.toplevel = derivation { name = "system"; system = "x86_64-linux"; builder = "/bin/sh"; inherit text; };
}
"#;

struct Fleet {
    dir: FleetDir,
    program: PathBuf,
    variables: BTreeMap<&'static str, String>,
    include: Vec<String>,
}

impl Deref for Fleet {
    type Target = FleetDir;

    fn deref(&self) -> &FleetDir {
        &self.dir
    }
}

impl Fleet {
    fn new() -> Self {
        let fleet = FleetDir::new(NIXOS);
        fleet.write("nixpkgs/lib.nix", "1");
        fleet.write("nixpkgs/text", "text");
        fleet.write("nixpkgs/kind", "file");
        fleet.write("nixpkgs/one", "one");
        fleet.write("nixpkgs/two", "two");
        fleet.write("nixpkgs/folder/a", "");
        fleet.write("nixpkgs/tree/folder/a", "a");
        fleet.write("extra1/default.nix", "1");
        fleet.write("extra2/default.nix", "2");
        std::os::unix::fs::symlink("one", fleet.path("nixpkgs/link")).unwrap();
        fleet.host("a", "builtins.readFile ./data");
        fleet.write("fleet/hosts/a/data", "data");
        fleet.host("b", "\"b\"");
        Self {
            program: PathBuf::from(env!("CARGO_BIN_EXE_bento")),
            variables: BTreeMap::new(),
            include: vec![
                format!("nixpkgs={}", fleet.path("nixpkgs").display()),
                format!("extra={}", fleet.path("extra1").display()),
            ],
            dir: fleet,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.dir.command(&self.program, arguments);
        command.env_remove("BENTO_TEST").env("XDG_CACHE_HOME", self.path("cache")).envs(&self.variables);
        command
    }

    fn versions(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&["versions", "--json"]);
        for entry in &self.include {
            command.arg("-I").arg(entry);
        }
        command.args(arguments).output().unwrap()
    }

    /// The hosts' versions, evaluated where need be.
    #[track_caller]
    fn evaluate(&self) -> BTreeMap<String, Value> {
        let output = self.versions(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The versions that are known without an evaluation, for which there is no memory here.
    fn known(&self) -> BTreeMap<String, Value> {
        let output = self.versions(&["--memory", "1"]);
        let versions: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
        versions.into_iter().filter(|(_, version)| version["toplevel"].is_string()).collect()
    }

    fn records(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache/bento/evaluations")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn an_evaluation_without_memory_fails() {
    // what the other tests rely on
    assert!(Fleet::new().known().is_empty());
}

#[test]
fn what_is_known_is_not_evaluated_again() {
    let fleet = Fleet::new();
    let versions = fleet.evaluate();
    assert_eq!(versions.len(), 2);
    assert_eq!(fleet.known(), versions);
}

type Change = (&'static str, fn(&mut Fleet));

#[test]
fn each_thing_that_was_read_counts() {
    let changes: [Change; 14] = [
        ("a file that was imported", |fleet| fleet.write("nixpkgs/lib.nix", "2")),
        ("a file that was read, of the same length", |fleet| fleet.write("nixpkgs/text", "tex_")),
        ("what a link leads to", |fleet| fleet.write("nixpkgs/one", "ONE")),
        ("where a link leads", |fleet| {
            fs::remove_file(fleet.path("nixpkgs/link")).unwrap();
            std::os::unix::fs::symlink("two", fleet.path("nixpkgs/link")).unwrap();
        }),
        ("a new file in a directory", |fleet| fleet.write("nixpkgs/folder/b", "")),
        ("a file that is gone from a directory", |fleet| fs::remove_file(fleet.path("nixpkgs/folder/a")).unwrap()),
        ("another kind of file in a directory", |fleet| {
            fs::remove_file(fleet.path("nixpkgs/folder/a")).unwrap();
            fs::create_dir(fleet.path("nixpkgs/folder/a")).unwrap();
        }),
        ("what is there now", |fleet| fleet.write("nixpkgs/maybe", "")),
        ("the kind of a file", |fleet| {
            fs::remove_file(fleet.path("nixpkgs/kind")).unwrap();
            fs::create_dir(fleet.path("nixpkgs/kind")).unwrap();
        }),
        ("a file deep in a tree that is copied", |fleet| fleet.write("nixpkgs/tree/folder/a", "A")),
        ("whether one may be executed", |fleet| {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(fleet.path("nixpkgs/tree/folder/a"), mode).unwrap();
        }),
        ("a variable of the environment", |fleet| {
            fleet.variables.insert("BENTO_TEST", "x".to_owned());
        }),
        ("the search path", |fleet| fleet.include[1] = format!("extra={}", fleet.path("extra2").display())),
        ("a directory above that is a link now", |fleet| {
            fs::rename(fleet.path("extra1"), fleet.path("moved")).unwrap();
            std::os::unix::fs::symlink("extra2", fleet.path("extra1")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let mut fleet = Fleet::new();
        let before = fleet.evaluate();
        change(&mut fleet);
        assert!(fleet.known().is_empty(), "{what}");
        let after = fleet.evaluate();
        assert_ne!(before, after, "{what}");
        assert_eq!(fleet.known(), after, "{what}");
    }
}

#[test]
fn nothing_else_counts() {
    let changes: [Change; 6] = [
        ("a file that was not read", |fleet| fleet.write("nixpkgs/two", "TWO")),
        ("a new file in a directory that was not listed", |fleet| fleet.write("nixpkgs/three", "three")),
        ("a file of a host that was not read", |fleet| fleet.write("fleet/hosts/a/README.md", "a host")),
        ("another time stamp", |fleet| {
            let file = fs::File::options().write(true).open(fleet.path("nixpkgs/text")).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        }),
        ("the same written again", |fleet| {
            fs::remove_file(fleet.path("nixpkgs/lib.nix")).unwrap();
            fleet.write("nixpkgs/lib.nix", "1");
        }),
        ("another variable of the environment", |fleet| {
            fleet.variables.insert("BENTO_OTHER", "x".to_owned());
        }),
    ];
    for (what, change) in changes {
        let mut fleet = Fleet::new();
        let before = fleet.evaluate();
        change(&mut fleet);
        assert_eq!(fleet.known(), before, "{what}");
    }
}

#[test]
fn a_change_of_one_host_concerns_no_other() {
    for (path, name, other) in [
        ("fleet/hosts/a/data", "a", "b"),
        ("fleet/hosts/a/configuration.nix", "a", "b"),
        ("fleet/hosts/b/configuration.nix", "b", "a"),
    ] {
        let fleet = Fleet::new();
        let before = fleet.evaluate();
        fleet.write(path, "\"changed\"");
        let known = fleet.known();
        assert!(!known.contains_key(name), "{path}");
        assert_eq!(known.get(other), before.get(other), "{path}");
    }
}

#[test]
fn a_state_that_was_before_is_known() {
    let fleet = Fleet::new();
    let before = fleet.evaluate();
    fleet.write("nixpkgs/lib.nix", "2");
    fleet.evaluate();
    fleet.write("nixpkgs/lib.nix", "1");
    assert_eq!(fleet.known(), before);
}

#[test]
fn a_change_within_the_tick_of_a_clock_is_seen() {
    let fleet = Fleet::new();
    let stamp = fs::metadata(fleet.path("nixpkgs/text")).unwrap().modified().unwrap();
    fleet.evaluate();
    fleet.write("nixpkgs/text", "tex_");
    fs::File::options().write(true).open(fleet.path("nixpkgs/text")).unwrap().set_modified(stamp).unwrap();
    assert!(fleet.known().is_empty());
}

#[test]
fn another_program_knows_nothing_of_it() {
    let mut fleet = Fleet::new();
    fleet.evaluate();
    let copy = fleet.path("another-bento");
    // by another process: a file that this one has open to write can't be started where a test beside this one starts something
    assert!(Command::new("cp").args([&fleet.program, &copy]).status().unwrap().success());
    fleet.program = copy;
    assert!(fleet.known().is_empty());
}

#[test]
fn the_time_is_not_remembered() {
    let fleet = Fleet::new();
    fleet.host("b", "toString builtins.currentTime");
    fleet.evaluate();
    assert_eq!(fleet.known().into_keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn what_an_evaluation_says_is_said_again() {
    let fleet = Fleet::new();
    fleet.host("b", "builtins.warn \"beware\" (builtins.trace \"look\" \"b\")");
    for arguments in [&[][..], &["--memory", "1"][..]] {
        let said = String::from_utf8(fleet.versions(arguments).stderr).unwrap();
        assert!(said.contains("beware") && said.contains("trace: look"), "{said}");
    }
}

#[test]
fn failures_are_not_remembered() {
    let fleet = Fleet::new();
    fleet.host("b", "throw \"no\"");
    assert!(!fleet.versions(&[]).status.success());
    assert!(!fleet.known().contains_key("b"));
}

/// A flake whose hosts are a and b, with a file beside it.
fn flake(fleet: &Fleet) {
    fs::remove_dir_all(fleet.path("fleet/hosts")).unwrap();
    fleet.write(
        "fleet/flake.nix",
        "{ outputs = { self }: assert builtins.length (builtins.genList (x: x) 1000000) > 0; { nixosConfigurations = builtins.mapAttrs (name: text: { config.system.build.toplevel = \
         derivation { inherit name text; system = \"x86_64-linux\"; builder = \"/bin/sh\"; }; }) \
         { a = builtins.readFile ./data; b = \"b\"; }; }; }",
    );
    fleet.write("fleet/data", "data");
    fleet.write("fleet/flake.lock", "{ \"nodes\": { \"root\": { } }, \"root\": \"root\", \"version\": 7 }\n");
}

#[test]
fn a_flake_s_hosts_are_known_until_a_file_of_it_changes() {
    for (path, text) in [
        ("fleet/data", "other"),
        ("fleet/flake.lock", "{ \"version\": 7, \"nodes\": { \"root\": { } }, \"root\": \"root\" }\n"),
        ("fleet/new", "new"),
    ] {
        let fleet = Fleet::new();
        flake(&fleet);
        let versions = fleet.evaluate();
        assert_eq!(versions.len(), 2);
        assert_eq!(fleet.known(), versions);
        fleet.write(path, text);
        // not even the names of its hosts
        assert!(fleet.known().is_empty(), "{path}");
        fleet.evaluate();
    }
}

#[test]
fn a_damaged_file_counts_as_absent() {
    let damages: [fn(&Path); 3] = [
        |path| fs::write(path, "").unwrap(),
        |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        |path| {
            let mut bytes = fs::read(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        },
    ];
    for damage in damages {
        let fleet = Fleet::new();
        let versions = fleet.evaluate();
        for path in fleet.records() {
            damage(&path);
        }
        assert!(fleet.known().is_empty());
        assert_eq!(fleet.evaluate(), versions);
        assert_eq!(fleet.known(), versions);
        for path in fleet.records() {
            damage(&path);
        }
        let output = fleet.command(&["cache", "verify"]).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("removed"));
        assert!(fleet.records().is_empty());
    }
}

#[test]
fn several_at_once_do_no_harm() {
    let fleet = Fleet::new();
    let versions: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..6).map(|_| scope.spawn(|| fleet.evaluate())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(versions.iter().all(|other| *other == versions[0]));
    let output = fleet.command(&["cache", "verify"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "no file is damaged\n");
    assert_eq!(fleet.known(), versions[0]);
}

#[test]
fn the_limit_is_kept() {
    let mut fleet = Fleet::new();
    fleet.variables.insert("BENTO_CACHE_SIZE", "1".to_owned());
    fleet.evaluate();
    assert!(fleet.records().is_empty());
    fleet.variables.insert("BENTO_CACHE_SIZE", "lots".to_owned());
    let output = fleet.versions(&[]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("BENTO_CACHE_SIZE"));
}

#[test]
fn nothing_is_remembered_where_that_is_not_wanted() {
    let fleet = Fleet::new();
    assert!(fleet.versions(&["--no-cache"]).status.success());
    assert!(!fleet.path("cache").exists());
}

#[test]
fn show_and_clear_tell_what_there_is() {
    let fleet = Fleet::new();
    fleet.evaluate();
    let show = || {
        let output = fleet.command(&["cache", "show", "--json"]).output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let shown = show();
    let hosts: Vec<&str> =
        shown["hosts"].as_array().unwrap().iter().map(|host| host["host"].as_str().unwrap()).collect();
    let place = |name: &str| format!("{name} in {}", fleet.path(&format!("fleet/hosts/{name}")).display());
    assert_eq!(hosts, [place("a"), place("b")]);
    assert!(shown["size"].as_u64().unwrap() > 0);
    let text = String::from_utf8(fleet.command(&["cache", "show"]).output().unwrap().stdout).unwrap();
    assert!(text.contains(&place("a")), "{text}");
    assert!(fleet.command(&["cache", "clear"]).status().unwrap().success());
    assert_eq!(show()["size"], 0);
    assert!(fleet.known().is_empty());
}
