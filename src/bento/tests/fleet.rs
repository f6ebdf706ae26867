//! `bento versions`: a fleet is evaluated in one go, what its hosts have in common is shared, and what is wrong with one of
//! them stays with it.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod fleet_dir;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fleet_dir::FleetDir;

/// What `<nixpkgs/nixos>` is here: a configuration is a function of `pkgs`, which each host makes for itself, and gives the
/// text of its system.
const NIXOS: &str = r#"
{ configuration }:
let
  evaluated = import configuration { inherit pkgs; };
  pkgs = import ../pkgs.nix { config = evaluated.config or { }; overlays = evaluated.overlays or [ ]; };
in {
  config.system.build.toplevel = derivation {
    name = "system"; system = "x86_64-linux"; builder = "/bin/sh"; text = evaluated.text;
  };
}
"#;

/// A set of packages that shows all that it was made from.
const PKGS: &str = r#"
{ config, overlays }@args:
let
  base = { inherit config; position = builtins.unsafeGetAttrPos "name" config; hello = "hello"; };
  apply = prev: overlay: prev // overlay final prev;
  final = builtins.foldl' apply base overlays;
in builtins.trace "pkgs" final
"#;

struct Fleet {
    dir: FleetDir,
}

impl Deref for Fleet {
    type Target = FleetDir;

    fn deref(&self) -> &FleetDir {
        &self.dir
    }
}

impl Fleet {
    fn new() -> Self {
        let dir = FleetDir::new(NIXOS);
        dir.write("nixpkgs/pkgs.nix", PKGS);
        Self { dir }
    }

    fn versions(&self, arguments: &[&str]) -> Output {
        let nixpkgs = format!("nixpkgs={}", self.path("nixpkgs").display());
        let mut command =
            self.dir.command(Path::new(env!("CARGO_BIN_EXE_bento")), &["versions", "--no-cache", "--json"]);
        command.args(["-I", &nixpkgs]).args(arguments).output().unwrap()
    }

    /// All hosts' versions, evaluated together.
    #[track_caller]
    fn together(&self) -> BTreeMap<String, serde_json::Value> {
        let output = self.versions(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// All hosts' versions, each evaluated by a process of its own.
    #[track_caller]
    fn apart(&self) -> BTreeMap<String, serde_json::Value> {
        let mut versions = BTreeMap::new();
        for entry in fs::read_dir(self.path("fleet/hosts")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let output = self.versions(&[&name]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let one: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
            versions.extend(one);
        }
        versions
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// How often the set of packages was made.
#[track_caller]
fn times_made(fleet: &Fleet) -> usize {
    let output = fleet.versions(&["--jobs", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output).matches("trace: pkgs").count()
}

#[test]
fn make_equal_packages_once() {
    let fleet = Fleet::new();
    for name in ["a", "b", "c"] {
        fleet.write(&format!("fleet/hosts/{name}/overlay.nix"), "final: prev: { own = prev.hello + \"!\"; }");
        fleet.write(
            &format!("fleet/hosts/{name}/shared.nix"),
            "{ config.unfree = [ \"x\" ]; overlays = [ (import ./overlay.nix) ]; }",
        );
        fleet.host(name, &format!("{{ pkgs }}: import ./shared.nix // {{ text = \"{name} ${{pkgs.own}}\"; }}"));
    }
    assert_eq!(times_made(&fleet), 1);
    assert_eq!(fleet.together(), fleet.apart());
}

#[test]
fn what_the_machine_s_configuration_allows_is_allowed() {
    let fleet = Fleet::new();
    fleet.host("a", "{ pkgs }: { text = pkgs.hello |> (text: text + \"!\"); }");
    let nixpkgs = format!("nixpkgs={}", fleet.path("nixpkgs").display());
    let versions = |conf: &str| {
        let arguments = ["versions", "--no-cache", "-I", &nixpkgs];
        fleet.command(Path::new(env!("CARGO_BIN_EXE_bento")), &arguments).env("NIX_CONFIG", conf).output().unwrap()
    };
    let refused = versions("experimental-features = flakes");
    assert!(!refused.status.success() && stderr(&refused).contains("'pipe-operators' is disabled"), "{refused:?}");
    let allowed = versions("extra-experimental-features = pipe-operators");
    assert!(allowed.status.success(), "{allowed:?}");
}

/// Each of these hosts has the text; what is before it makes its packages differ from another's.
#[test]
fn packages_that_differ_are_made_for_each() {
    let show = "text = builtins.toJSON [ pkgs.hello (pkgs.own or null) (pkgs.shown or null) pkgs.config \
                (pkgs.position.line or null) ];";
    let overlay = |text: &str| format!("{{ pkgs }}: {{ overlays = [ (final: prev: {text}) ]; {show} }}");
    let capturing = |value: &str| {
        format!(
            "{{ pkgs }}: let captured = {value}; in {{ overlays = [ (final: prev: {{ own = captured; }}) ]; {show} }}"
        )
    };
    let with = |value: &str| {
        format!("{{ pkgs }}: {{ overlays = [ (with {{ x = {value}; }}; final: prev: {{ own = x; }}) ]; {show} }}")
    };
    let cases = [
        // a value, or how deep it lies
        [format!("{{ pkgs }}: {{ config.a = 1; {show} }}"), format!("{{ pkgs }}: {{ config.a = 2; {show} }}")],
        [
            format!("{{ pkgs }}: {{ config.a.b = [ 1 {{ c = \"x\"; }} ]; {show} }}"),
            format!("{{ pkgs }}: {{ config.a.b = [ 1 {{ c = \"y\"; }} ]; {show} }}"),
        ],
        [format!("{{ pkgs }}: {{ config.a = 1; {show} }}"), format!("{{ pkgs }}: {{ config.a = 1.0; {show} }}")],
        // what a function does, what it captures, and what it captures by `with`
        [overlay("{ own = 1; }"), overlay("{ own = 2; }")],
        [capturing("1"), capturing("2")],
        [capturing("toString 1"), capturing("toString 2")],
        [with("1"), with("2")],
        // a string's context
        [
            capturing("builtins.toFile \"a\" \"a\""),
            capturing("builtins.unsafeDiscardStringContext (builtins.toFile \"a\" \"a\")"),
        ],
        // where an attribute is written
        [format!("{{ pkgs }}: {{ config.name = 1; {show} }}"), format!("{{ pkgs }}:\n{{ config.name = 1; {show} }}")],
        // one of them fails to evaluate, which nobody asks for
        [
            format!("{{ pkgs }}: {{ overlays = [ (f: p: {{ own = 1; }}) ]; config = {{ }}; {show} }}"),
            format!(
                "{{ pkgs }}: {{ overlays = [ (f: p: {{ own = 1; other = throw \"no\"; }}) ]; config = {{ }}; {show} }}"
            ),
        ],
    ];
    for [one, other] in cases {
        let fleet = Fleet::new();
        fleet.host("a", &one);
        fleet.host("b", &other);
        assert_eq!(times_made(&fleet), 2, "{one}\n{other}");
        assert_eq!(fleet.together(), fleet.apart(), "{one}\n{other}");
    }
}

#[test]
fn the_same_overlay_reads_the_files_next_to_it() {
    let fleet = Fleet::new();
    for (name, data) in [("a", "one"), ("b", "two")] {
        fleet.write(&format!("fleet/hosts/{name}/data"), data);
        fleet.write(
            &format!("fleet/hosts/{name}/overlay.nix"),
            "final: prev: { own = builtins.readFile ./data; shown = baseNameOf __curPos.file; }",
        );
        fleet.host(name, "{ pkgs }: { overlays = [ (import ./overlay.nix) ]; text = pkgs.own; }");
    }
    let versions = fleet.together();
    assert_ne!(versions["a"], versions["b"]);
    assert_eq!(versions, fleet.apart());
}

#[test]
fn one_host_s_calls_are_not_one_another() {
    let fleet = Fleet::new();
    // functions in lists are equal only if they are the same
    let text = "{ pkgs }: { text = let \
                  one = import <nixpkgs/pkgs.nix> { config.f = x: x; overlays = [ ]; }; \
                  two = import <nixpkgs/pkgs.nix> { config.f = x: x; overlays = [ ]; }; \
                in toString ([ one.config.f ] == [ two.config.f ]) + toString ([ one.config.f ] == [ one.config.f ]); }";
    for name in ["a", "b", "c"] {
        fleet.host(name, text);
    }
    assert_eq!(fleet.together(), fleet.apart());
}

/// Hosts that are sound whatever the others are.
fn sound(fleet: &Fleet, names: &[&str]) {
    for name in names {
        fleet.host(name, &format!("{{ pkgs }}: {{ text = \"{name} ${{pkgs.hello}}\"; }}"));
    }
}

#[track_caller]
fn only_fails(fleet: &Fleet, arguments: &[&str], name: &str, words: &[&str], others: &[&str]) {
    let output = fleet.versions(arguments);
    let said = stderr(&output);
    assert!(!output.status.success(), "{said}");
    for word in words {
        assert!(said.contains(word), "says nothing of {word:?}: {said}");
    }
    let versions: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(versions[name]["error"].is_string(), "{versions:?}");
    for other in others {
        assert!(versions[*other]["toplevel"].is_string(), "{other}: {versions:?} {said}");
    }
}

const OTHERS: [&str; 3] = ["b", "c", "d"];

#[test]
fn a_host_that_throws_is_one_failed_host() {
    for name in ["a", "z"] {
        let fleet = Fleet::new();
        sound(&fleet, &OTHERS);
        fleet.host(name, "{ pkgs }: { text = throw \"not today\"; }");
        only_fails(&fleet, &[], name, &["not today"], &OTHERS);
    }
}

#[test]
fn a_host_that_overflows_is_one_failed_host() {
    for name in ["a", "z"] {
        let fleet = Fleet::new();
        sound(&fleet, &OTHERS);
        fleet.host(name, "{ pkgs }: { text = let f = x: 1 + f x; in toString (f 1); }");
        only_fails(&fleet, &[], name, &["stack overflow"], &OTHERS);
    }
}

#[test]
fn a_host_that_runs_out_of_memory_is_one_failed_host() {
    for name in ["a", "z"] {
        let fleet = Fleet::new();
        sound(&fleet, &OTHERS);
        let text = "{ pkgs }: { text = toString (builtins.length (builtins.foldl' (all: _: all ++ all) [ 1 ] \
                    (builtins.genList (x: x) 28))); }";
        fleet.host(name, text);
        only_fails(&fleet, &["--memory", "600M"], name, &["600 MiB", "--memory"][usize::from(name == "z")..], &OTHERS);
    }
}

#[test]
fn a_host_that_does_not_end_is_one_failed_host() {
    for name in ["a", "z"] {
        let fleet = Fleet::new();
        sound(&fleet, &OTHERS);
        let text = "{ pkgs }: { text = toString (builtins.length (builtins.genericClosure { \
                    startSet = [ { key = 1; } ]; operator = x: [ { key = x.key + 1; } ]; })); }";
        fleet.host(name, text);
        only_fails(&fleet, &["--time-limit", "1"], name, &["more than the 1 s", "--time-limit"], &OTHERS);
    }
}

#[test]
fn what_a_host_says_comes_with_its_own_file_names() {
    let fleet = Fleet::new();
    for name in ["a", "b"] {
        fleet.host(name, &format!("{{ pkgs }}: {{ text = builtins.trace \"of {name}: ${{toString ./x}}\" \"\"; }}"));
    }
    let output = fleet.versions(&[]);
    let said = stderr(&output);
    for name in ["a", "b"] {
        let place = fleet.path(&format!("fleet/hosts/{name}/x"));
        let line = format!("trace: of {name}: {}\n", place.display());
        assert_eq!(said.matches(&line).count(), 1, "{said}");
    }
}

#[test]
fn a_mistake_in_shared_code_is_told_by_its_name_in_the_fleet() {
    let fleet = Fleet::new();
    for name in ["a", "b"] {
        fleet.write(&format!("fleet/hosts/{name}/overlay.nix"), "final: prev: { own = 1 + \"x\"; }");
        fleet.host(name, "{ pkgs }: { overlays = [ (import ./overlay.nix) ]; text = pkgs.own; }");
    }
    let output = fleet.versions(&["--jobs", "1"]);
    let said = stderr(&output);
    assert!(!output.status.success());
    assert!(said.contains("overlay.nix:1:"), "{said}");
    assert!(!said.contains("/config/overlay.nix"), "a path of the copy that is evaluated: {said}");
}

#[test]
fn hosts_are_evaluated_within_the_memory_that_is_given() {
    let fleet = Fleet::new();
    // each takes some 130 MB for its values
    let text = "{ pkgs }: { text = toString (builtins.length (builtins.foldl' (all: _: all ++ all) [ 1 ] \
                (builtins.genList (x: x) 23))); }";
    let names: Vec<String> = (0..12).map(|number| format!("host{number:02}")).collect();
    for name in &names {
        fleet.host(name, text);
    }
    let output = fleet.versions(&["--jobs", "8", "--memory", "700M"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let versions: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(versions.len(), names.len());
}

#[test]
fn a_host_may_have_more_than_its_share_of_the_memory() {
    for name in ["a", "b"] {
        let fleet = Fleet::new();
        sound(&fleet, &["a", "b"]);
        // a gigabyte for its values, where two that begin together get as much each, with all else
        let text = "{ pkgs }: { text = builtins.trace \"large\" (toString (builtins.length (builtins.foldl' \
                    (all: _: all ++ all) [ 1 ] (builtins.genList (x: x) 27)))); }";
        fleet.host(name, text);
        let output = fleet.versions(&["--jobs", "2", "--memory", "2G"]);
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches("trace: large").count(), 1, "{said}");
    }
}

#[test]
fn bad_options_are_refused() {
    let fleet = Fleet::new();
    sound(&fleet, &["a"]);
    for (arguments, word) in [
        (["--memory", "much"], "is no size"),
        (["--memory", "99999999999999G"], "is no size"),
        (["--jobs", "0"], "0 is not in"),
        (["--time-limit", "0"], "0 is not in"),
    ] {
        let output = fleet.versions(&arguments);
        assert!(!output.status.success());
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}

/// A deploy that has published the host `a`, and is evaluating `b`, whose evaluation has no end.
fn deploy_half_way(fleet: &Fleet, more: &[&str]) -> Child {
    fleet.write("fleet/config.sh", &format!("CHROOT_DIR={}\nNOLOCALBUILD=1\n", fleet.path("hub").display()));
    fleet.host("a", "{ ... }: { text = \"a\"; }");
    let endless = "builtins.genericClosure { startSet = [ { key = 1; } ]; operator = x: [ { key = x.key + 1; } ]; }";
    fleet.host("b", &format!("{{ ... }}: {{ text = toString (builtins.length ({endless})); }}"));
    let nixpkgs = format!("nixpkgs={}", fleet.path("nixpkgs").display());
    let mut command = fleet.command(Path::new(env!("CARGO_BIN_EXE_bento")), &["deploy", "--no-cache", "--jobs", "1"]);
    let mut child = command.args(["-I", &nixpkgs]).args(more).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !fleet.path("hub/a/manifest.json").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was published");
        assert!(child.try_wait().unwrap().is_none(), "it ended: {}", stderr(&child.wait_with_output().unwrap()));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.try_wait().unwrap().is_none());
    child
}

#[test]
fn a_host_is_published_while_another_is_still_evaluated() {
    let fleet = Fleet::new();
    let output = deploy_half_way(&fleet, &["--time-limit", "2"]).wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("a: published release 1") && said.contains("b: failed: the evaluation took more than"),
        "{said}"
    );
    assert!(!fleet.path("hub/b").exists());
    // the fleet was deployed as a whole all the same
    let record = fs::read_to_string(fleet.path("hub/.fleet.json")).unwrap();
    assert!(record.contains("\"a\"") && record.contains("\"b\""), "{record}");
}

#[test]
fn what_was_not_evaluated_when_the_evaluator_was_killed_has_failed() {
    let fleet = Fleet::new();
    let child = deploy_half_way(&fleet, &[]);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let evaluator = children.split_whitespace().next().unwrap();
    assert!(Command::new("kill").args(["-KILL", evaluator]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("a: published release 1") && said.contains("b: failed: the process that evaluates"),
        "{said}"
    );
    assert!(!fleet.path("hub/b").exists());
}
