//! The flake that users import: C++ Nix shows and checks it, two versions of it, and this program comes to the same derivations.
//!
//! nixpkgs is that of the trees in `checks/corpora.tsv`, and a user's flake is the template.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use bento::provision::template::FILES;
use serde_json::{Value, json};
use tempfile::TempDir;

const BENTO: &str = env!("CARGO_BIN_EXE_bento");
/// The key of who may log in to servers.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGq573wedqowvWicwgDRToY66/aZd5yYqikW+aDQgeE admin";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const SYSTEMS: [&str; 4] = ["aarch64-darwin", "aarch64-linux", "x86_64-darwin", "x86_64-linux"];
/// The store that C++ Nix copies sources to: one for all tests, as nixpkgs takes its time.
const STORE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/flakes");
/// What a user's flake gets of `lib.mkApps`.
const APPS: [&str; 10] =
    ["build", "check", "default", "deploy", "diff", "flake-update", "hub", "provision", "status", "update"];

/// Flakes to evaluate: `bento`, a copy of the project's files that stays as it is, `nixpkgs`, `user`, a fleet made of the template,
/// and `all`, which has them as inputs.
struct Flakes {
    dir: TempDir,
    programs: PathBuf,
}

impl Flakes {
    /// The flakes, for the C++ Nix whose programs are in the folder that `variable` names; `None`, with the reason, if they can't
    /// be evaluated here.
    fn new(variable: &str) -> Option<Self> {
        let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let (Some(corpora), Some(programs)) = (folder("BENTO_CORPORA"), folder(variable)) else {
            println!(
                "skipped: BENTO_CORPORA and {variable} do not name the folders with nixpkgs-26.11 and with C++ Nix"
            );
            return None;
        };
        let tracked =
            Command::new("git").args(["-C", ROOT, "ls-files"]).output().ok().filter(|git| git.status.success());
        let Some(tracked) = tracked else {
            println!("skipped: these sources are no checkout, so nothing says which files are the flake's");
            return None;
        };
        let flakes = Self { dir: tempfile::tempdir().unwrap(), programs };
        fs::create_dir(flakes.path("bento")).unwrap();
        let files = String::from_utf8(tracked.stdout).unwrap();
        let files = files.lines().filter(|file| Path::new(ROOT).join(file).symlink_metadata().is_ok());
        let mut copy = Command::new("cp");
        copy.args(["-P", "--parents", "--target-directory", &flakes.name("bento")]).args(files).current_dir(ROOT);
        assert!(copy.status().unwrap().success());
        let tree = corpora.join("nixpkgs-26.11");
        flakes.write("nixpkgs/flake.nix", &include_str!("flake/nixpkgs.nix").replace("TREE", tree.to_str().unwrap()));
        flakes.write("nixpkgs/absent.nix", include_str!("../../../checks/hosts/absent.nix"));
        let hosts = include_str!("flake/eval-config.nix").replace("TREE", tree.to_str().unwrap());
        flakes.write("nixpkgs/nixos/lib/eval-config.nix", &hosts);
        let packages = include_str!("flake/packages.nix").replace("TREE", tree.to_str().unwrap());
        flakes.write("nixpkgs/default.nix", &packages);
        let all = [("BENTO", flakes.bento()), ("NIXPKGS", flakes.name("nixpkgs")), ("USER", flakes.name("user"))];
        let text = include_str!("flake/all.nix").to_owned();
        flakes.write("all/flake.nix", &all.iter().fold(text, |text, (name, value)| text.replace(name, value)));
        fs::create_dir(flakes.path("user")).unwrap();
        flakes.nix(&["flake", "init", "--template", &flakes.bento()], "user");
        Some(flakes)
    }

    /// The template `servers` as `nix flake init` lays it out, for somebody with a key, on the sources of this machine.
    fn lay_out_servers(&self) {
        fs::create_dir(self.path("servers")).unwrap();
        self.nix(&["flake", "init", "--template", &format!("{}#servers", self.bento())], "servers");
        let template = Path::new(ROOT).join("templates/servers");
        for file in FILES.map(|(file, _)| file) {
            let laid_out = fs::read(self.path("servers").join(file)).unwrap();
            assert_eq!(laid_out, fs::read(template.join(file)).unwrap(), "{file}");
        }
        let users = fs::read_to_string(self.path("servers/hosts/common/users.nix")).unwrap();
        self.write("servers/hosts/common/users.nix", &users.replace("keys = [ ];", &format!("keys = [ \"{KEY}\" ];")));
        // what would read files that the trees lack is replaced
        let disko = std::env::var("BENTO_DISKO").unwrap_or_else(|_| format!("{ROOT}/src/bento/tests/disko"));
        let sources = include_str!("flake/sources.nix").replace("NIXPKGS", &self.name("nixpkgs"));
        self.write("servers/npins/default.nix", &sources.replace("DISKO", &disko));
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A path as what stands in a flake's inputs after `path:`.
    fn name(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    /// How the project's flake is referred to.
    fn bento(&self) -> String {
        format!("path:{}", self.name("bento"))
    }

    /// Runs a program in one of the folders, and gives what it prints.
    #[track_caller]
    fn run(&self, program: &Path, arguments: &[&str], folder: &str) -> String {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.path(folder))
            .env("HOME", self.dir.path())
            .env("NIX_REMOTE", STORE)
            .env("NIX_CONFIG", "experimental-features = nix-command flakes\nflake-registry =\nsubstituters =\n")
            // most of what a large evaluation takes is its collector's otherwise
            .env("GC_INITIAL_HEAP_SIZE", "2G")
            .env_remove("XDG_CACHE_HOME")
            .output()
            .unwrap();
        assert!(output.status.success(), "{program:?} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs C++ Nix.
    #[track_caller]
    fn nix(&self, arguments: &[&str], folder: &str) -> String {
        self.run(&self.programs.join("nix"), arguments, folder)
    }
}

/// The names in an attribute set of `nix flake show`.
fn names(shown: &Value) -> Vec<&str> {
    shown.as_object().unwrap_or_else(|| panic!("not a set: {shown}")).keys().map(String::as_str).collect()
}

/// C++ Nix shows the flake, and checks it and the one of a user.
fn nix_takes_the_flake(variable: &str) {
    let Some(flakes) = Flakes::new(variable) else { return };
    let (bento, nixpkgs) = (flakes.bento(), format!("path:{}", flakes.name("nixpkgs")));
    let override_nixpkgs = ["--all-systems", "--no-write-lock-file", "--override-input", "nixpkgs", &nixpkgs];

    let show = [&["flake", "show", "--json"], &override_nixpkgs[..], &[bento.as_str()]].concat();
    let shown: Value = serde_json::from_str(&flakes.nix(&show, ".")).unwrap();
    assert_eq!(
        names(&shown),
        ["apps", "checks", "devShells", "formatter", "lib", "nixosModules", "overlays", "packages", "templates"]
    );
    for kind in ["apps", "checks", "devShells", "formatter", "packages"] {
        assert_eq!(names(&shown[kind]), SYSTEMS, "{kind}");
    }
    for system in SYSTEMS {
        let mut apps = names(&shown["apps"][system]);
        apps.retain(|app| *app != "demo");
        assert_eq!(apps, APPS, "{system}");
        assert_eq!(names(&shown["packages"][system]), ["bento", "default"], "{system}");
        assert_eq!(shown["checks"][system].get("scenarios").is_some(), system.ends_with("-linux"), "{system}");
    }
    assert_eq!(names(&shown["nixosModules"]), ["agent", "hub"]);

    flakes.nix(&[&["flake", "check", "--no-build"], &override_nixpkgs[..], &[bento.as_str()]].concat(), ".");
    let user =
        [&["flake", "check", "--no-build"], &override_nixpkgs[..], &["--override-input", "bento", &bento]].concat();
    flakes.nix(&user, "user");

    // the other template has its inputs from npins: here they are this machine's, which only an impure evaluation reads
    flakes.lay_out_servers();
    let shown: Value = serde_json::from_str(&flakes.nix(&["flake", "show", "--json", "--impure"], "servers")).unwrap();
    assert_eq!(names(&shown), ["devShells", "nixosConfigurations"]);
    assert_eq!(names(&shown["nixosConfigurations"]), ["dev-142", "dev-365", "dev-605", "dev-901"]);
    flakes.nix(&["flake", "check", "--no-build", "--impure"], "servers");
}

#[test]
fn nix_2_34_shows_and_checks_it() {
    nix_takes_the_flake("BENTO_NIX");
}

#[test]
fn nix_2_26_shows_and_checks_it() {
    nix_takes_the_flake("BENTO_NIX_2_26");
}

/// The derivations of a part of all that there is: a system, or the hosts. This program comes to the same ones as C++ Nix.
fn derivations(flakes: &Flakes, part: &str) -> Value {
    let reference = format!("path:{}#drvPaths.{part}", flakes.name("all"));
    let said = flakes.nix(&["eval", "--json", "--no-write-lock-file", &reference], "all");
    let said: Value = serde_json::from_str(&said).unwrap();
    // a flake at a time, as there are at most 4 GiB for values
    for name in names(&said) {
        let reference = format!("{reference}.{name}");
        let ours = ["eval", "--strict", "--json", "--no-write-lock-file", "--flake", &reference];
        let ours: Value = serde_json::from_str(&flakes.run(Path::new(BENTO), &ours, "all")).unwrap();
        assert_eq!(ours, said[name], "{part}.{name}");
    }
    said
}

/// Every derivation for a system is the one of C++ Nix. It is a test for each, one after the other, as one process that evaluates all of
/// it would need more memory than a small machine has.
fn every_derivation_is_the_one_of_nix(system: &str) {
    static ALONE: Mutex<()> = Mutex::new(());
    // whatever became of another one
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(flakes) = Flakes::new("BENTO_NIX") else { return };
    // so that the trees are read once, and not for each evaluation
    flakes.nix(&["flake", "lock"], "all");
    let part = derivations(&flakes, system);
    // with and without flakes it is one package
    assert_eq!(part["without-flakes"], part["bento"]["packages"]["bento"]);
    assert_eq!(names(&part["user"]["apps"]), APPS);
    // a user's checks are the systems of his hosts
    let checks = if system == "x86_64-linux" {
        let toplevels = derivations(&flakes, "hosts");
        assert_eq!(names(&toplevels), ["hub", "web"]);
        json!({ "host-hub": toplevels["hub"], "host-web": toplevels["web"] })
    } else {
        json!({})
    };
    assert_eq!(part["user"]["checks"], checks);
}

#[test]
fn every_derivation_for_aarch64_darwin_is_the_one_of_nix() {
    every_derivation_is_the_one_of_nix("aarch64-darwin");
}

#[test]
fn every_derivation_for_aarch64_linux_is_the_one_of_nix() {
    every_derivation_is_the_one_of_nix("aarch64-linux");
}

#[test]
fn every_derivation_for_x86_64_darwin_is_the_one_of_nix() {
    every_derivation_is_the_one_of_nix("x86_64-darwin");
}

#[test]
fn every_derivation_for_x86_64_linux_is_the_one_of_nix() {
    every_derivation_is_the_one_of_nix("x86_64-linux");
}

/// The apps of a flake whose source is the folder `source`, as scripts in `dir`: where this program is bento's package, and the
/// fixture distribution's library is nixpkgs'.
fn scripts(dir: &Path, source: &Path) -> Vec<(String, PathBuf)> {
    let bin = dir.join("package/bin");
    fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(BENTO, bin.join("bento")).unwrap();
    let expression = format!(
        r#"builtins.mapAttrs (_: app: app.program) ((import {ROOT}/lib/default.nix {{
          bento = null;
          systems = [ "here" ];
          nixpkgs = {{ lib = import {ROOT}/checks/fixture/lib; legacyPackages.here.writeShellScript = _: text: text; }};
        }}).mkApps {{ self = "{}"; package = _: "{}"; }}).here"#,
        source.display(),
        dir.join("package").display(),
    );
    let output = Command::new(BENTO).args(["eval", "--strict", "--json", "--expr", &expression]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let texts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let script = |(name, text): (&String, &Value)| {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{}", text.as_str().unwrap())).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        (name.clone(), path)
    };
    texts.as_object().unwrap().iter().map(script).collect()
}

#[test]
fn each_app_is_a_command() {
    let dir = tempfile::tempdir().unwrap();
    let scripts = scripts(dir.path(), dir.path());
    let names: Vec<&str> = scripts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, APPS);
    for (name, script) in &scripts {
        let output = Command::new(script).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let usage = if name == "default" { "Usage: bento ".to_owned() } else { format!("Usage: bento {name} ") };
        assert!(output.status.success() && help.contains(&usage), "{name}: {help}");
    }
}

#[test]
fn apps_work_on_the_fleet_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, files: &[&str]| {
        let folder = dir.path().join(name);
        fs::create_dir_all(folder.join("hosts")).unwrap();
        fs::write(folder.join("config.sh"), format!("CHROOT_DIR=/srv/{name}\n")).unwrap();
        for file in files {
            fs::write(folder.join(file), "").unwrap();
        }
        folder
    };
    let (source, here, other) = (folder("source", &[]), folder("here", &["flake.nix"]), folder("other", &[]));
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let scripts = scripts(&dir.path().join("elsewhere"), &source);
    let (_, app) = scripts.iter().find(|(name, _)| name == "default").unwrap();
    let hub = |folder: &Path, named: Option<&Path>| {
        let mut command = Command::new(app);
        command.args(["config", "check"]).current_dir(folder).env_remove("BENTO_DIR");
        let output = command.envs(named.map(|dir| ("BENTO_DIR", dir))).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(hub(&here, None).contains("/srv/here"), "the one that one is in");
    assert!(hub(&elsewhere, None).contains("/srv/source"), "else the one that the app is of");
    assert!(hub(&here, Some(&other)).contains("/srv/other"), "but the one that is named before both");
}
