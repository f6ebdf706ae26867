//! The template `servers`: what `bento init` lays out, and what it evaluates to, by C++ Nix and by this program.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bento::provision::template::FILES;
use serde_json::{Value, json};
use tempfile::TempDir;

const BENTO: &str = env!("CARGO_BIN_EXE_bento");
const TEMPLATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../templates/servers");
const SERVERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers.nix");
const DISKO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/disko");
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGq573wedqowvWicwgDRToY66/aZd5yYqikW+aDQgeE admin";

/// Runs the program in a directory, as somebody with this home.
fn bento(dir: &Path, home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BENTO);
    command.args(arguments).env("BENTO_DIR", dir).env("HOME", home).env_remove("NAME").env_remove("NIX_PATH");
    command.env("XDG_CACHE_HOME", home.join("cache")).output().unwrap()
}

/// The template as it is laid out for somebody with a key.
fn laid_out() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("home/.ssh")).unwrap();
    fs::write(dir.path().join("home/.ssh/id_ed25519.pub"), KEY).unwrap();
    let fleet = dir.path().join("fleet");
    fs::create_dir(&fleet).unwrap();
    let output = bento(&fleet, &dir.path().join("home"), &["init", "--template", "servers"]);
    assert!(output.status.success(), "{output:?}");
    dir
}

/// The paths of all files below a directory, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path.strip_prefix(dir).unwrap().to_owned()) }
        }
    }
    found.sort();
    found
}

#[test]
fn init_lays_out_every_file_with_the_own_key() {
    let dir = laid_out();
    let fleet = dir.path().join("fleet");
    let shipped = files(Path::new(TEMPLATE));
    assert_eq!(files(&fleet), shipped);
    assert_eq!(FILES.len(), shipped.len());
    let users = fs::read_to_string(fleet.join("hosts/common/users.nix")).unwrap();
    assert!(users.contains(&format!("keys = [ \"{KEY}\" ];")), "{users}");
    for path in &shipped {
        let (ours, theirs) = (fleet.join(path), Path::new(TEMPLATE).join(path));
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o100;
        assert_eq!(mode(&ours), mode(&theirs), "{}", path.display());
        if !path.ends_with("users.nix") {
            assert_eq!(fs::read(ours).unwrap(), fs::read(theirs).unwrap(), "{}", path.display());
        }
    }
    // what is there stays
    fs::write(fleet.join("shell.nix"), "mine").unwrap();
    let output = bento(&fleet, &dir.path().join("home"), &["init", "--template", "servers"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("kept    shell.nix") && !said.contains("created"), "{said}");
    assert_eq!(fs::read_to_string(fleet.join("shell.nix")).unwrap(), "mine");
    // the settings are sound
    let output = bento(&fleet, &dir.path().join("home"), &["config", "check"]);
    assert!(output.status.success(), "{output:?}");
}

/// What a program with the options of `nix-instantiate --eval` makes of the machines; `None`, with the reason, if it can't be asked.
fn machines(mut program: Command, servers: &Path, more: &[&str]) -> Option<Value> {
    let Some(corpora) = std::env::var_os("BENTO_CORPORA") else {
        eprintln!("skipped: BENTO_CORPORA does not name a folder with nixpkgs-26.11");
        return None;
    };
    // disko itself, where somebody has it
    let disko = std::env::var("BENTO_DISKO").unwrap_or_else(|_| DISKO.to_owned());
    program.args(["--strict", "--json", SERVERS, "--arg", "servers"]).arg(servers).args(["--arg", "nixpkgs"]);
    program.arg(Path::new(&corpora).join("nixpkgs-26.11")).args(["--arg", "disko", &disko]).args(more);
    let output = program.env("NIX_REMOTE", "dummy://").env_remove("NIX_PATH").output().unwrap();
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn both_evaluators_make_the_same_machines_of_it() {
    let Some(programs) = std::env::var_os("BENTO_NIX") else {
        eprintln!("skipped: BENTO_NIX, the folder of Nix's programs, is not set");
        return;
    };
    let dir = laid_out();
    let servers = dir.path().join("fleet");
    let mut theirs = Command::new(Path::new(&programs).join("nix-instantiate"));
    theirs.arg("--eval");
    let Some(machines) = machines(theirs, &servers, &[]) else { return };
    let mut ours = Command::new(BENTO);
    ours.arg("eval");
    assert_eq!(self::machines(ours, &servers, &[]).unwrap(), machines);

    let names: Vec<&str> = machines.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["dev-142", "dev-365", "dev-605", "dev-901"]);
    for (name, machine) in machines.as_object().unwrap() {
        assert_eq!((&machine["failed"], &machine["warnings"]), (&json!([]), &json!([])), "{name}");
        assert_eq!(machine["hostName"], json!(name));
        assert!(machine["toplevel"].as_str().unwrap().contains(&format!("-nixos-system-{name}-")), "{machine}");
        assert_eq!((&machine["fileSystems"]["/"], &machine["fileSystems"]["/boot"]), (&json!("ext4"), &json!("vfat")));
        assert_eq!(machine["agent"], json!(false));
    }
    assert_eq!(machines["dev-365"]["ports"], json!([22, 80]));
    assert_eq!(machines["dev-605"]["fileSystems"]["/data"], json!("ext4"));
    assert_eq!(machines["dev-901"]["devices"], json!(["/dev/nvme0n1"]));
}

#[test]
fn with_bento_pinned_the_machines_have_its_agent() {
    let dir = laid_out();
    let mut ours = Command::new(BENTO);
    ours.arg("eval");
    let machines = machines(ours, &dir.path().join("fleet"), &["--arg", "bento", CHECKOUT]);
    let Some(machines) = machines else { return };
    for (name, machine) in machines.as_object().unwrap() {
        assert_eq!((&machine["failed"], &machine["agent"]), (&json!([]), &json!(true)), "{name}");
    }
}

/// The flake, with pins of the same form that lead to archives of this machine: a system of nixpkgs' shape that tells what it got.
#[test]
fn the_flake_takes_its_sources_from_the_pins() {
    let dir = laid_out();
    let fleet = dir.path().join("fleet");
    let nixpkgs = dir.path().join("nixpkgs");
    fs::create_dir_all(nixpkgs.join("nixos/lib")).unwrap();
    let system = r#"{ system, modules, specialArgs }: { config.system.build.toplevel = derivation {
        name = "nixos-system-${toString (builtins.length modules)}-${(builtins.elemAt modules 5).networking.hostName}";
        builder = "/bin/sh"; system = "x86_64-linux"; sources = builtins.attrNames specialArgs.sources; disko = builtins.head modules;
    }; }"#;
    fs::write(nixpkgs.join("nixos/lib/eval-config.nix"), system).unwrap();
    let disko = dir.path().join("disko");
    fs::create_dir(&disko).unwrap();
    fs::copy(Path::new(DISKO).join("module.nix"), disko.join("module.nix")).unwrap();
    let file = fleet.join("npins/sources.json");
    let mut pins: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for source in ["nixpkgs", "disko"] {
        let archive = dir.path().join(format!("{source}.tar.gz"));
        let packed =
            Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(dir.path()).arg(source).status().unwrap();
        assert!(packed.success());
        let url = format!("file://{}", archive.display());
        let hash = format!("(builtins.fetchTree {{ type = \"tarball\"; url = \"{url}\"; }}).narHash");
        let output = bento(&fleet, dir.path(), &["eval", "--raw", "-E", &hash]);
        assert!(output.status.success(), "{output:?}");
        pins["pins"][source]["url"] = json!(url);
        pins["pins"][source]["hash"] = json!(String::from_utf8(output.stdout).unwrap());
    }
    fs::write(&file, pins.to_string()).unwrap();
    let output = bento(&fleet, dir.path(), &["versions", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let versions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(versions.as_object().unwrap().len(), 4);
    for name in ["dev-142", "dev-365", "dev-605", "dev-901"] {
        let toplevel = versions[name]["toplevel"].as_str().unwrap_or_else(|| panic!("{versions}"));
        assert!(toplevel.ends_with(&format!("-nixos-system-6-{name}")), "{toplevel}");
    }
    // a source that is not what was pinned is refused
    pins["pins"]["disko"]["hash"] = json!("sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    fs::write(&file, pins.to_string()).unwrap();
    let output = bento(&fleet, dir.path(), &["versions", "--no-cache"]);
    assert!(!output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("hash mismatch in file downloaded from"), "{output:?}");
}

/// Runs git in a directory, as somebody who has no settings.
fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Admin", "-c", "user.email=admin@example.org"]).args(arguments).current_dir(dir);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    let output = command.output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The template `servers` with what npins itself makes of repositories on this machine, which stand for nixpkgs, disko and
/// nixos-anywhere.
#[test]
fn npins_itself_pins_the_sources_of_servers_and_brings_them_up_to_date() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if let Some(program) = ["npins", "nix-prefetch-git", "nix-store", "jq"].iter().find(|program| !is_there(program)) {
        eprintln!("skipped: {program} is missing");
        return;
    }
    let dir = laid_out();
    let at = dir.path().join("fleet");
    for sub in ["nixpkgs/nixos/lib", "disko", "nixos-anywhere"] {
        fs::create_dir_all(dir.path().join("git").join(sub)).unwrap();
    }
    let system = r#"{ system, modules, specialArgs }: { config.system.build.toplevel = derivation {
        name = "nixos-system-${import ../../release.nix}-${(builtins.elemAt modules 5).networking.hostName}";
        builder = "/bin/sh"; system = "x86_64-linux"; disko = "${builtins.head modules}";
    }; }"#;
    fs::write(dir.path().join("git/nixpkgs/nixos/lib/eval-config.nix"), system).unwrap();
    fs::write(dir.path().join("git/nixpkgs/release.nix"), "\"one\"\n").unwrap();
    fs::write(dir.path().join("git/disko/module.nix"), "{ }\n").unwrap();
    fs::write(dir.path().join("git/nixos-anywhere/README"), "of its own\n").unwrap();
    let repository = |name: &str| dir.path().join("git").join(name);
    let commit = |name: &str| {
        git(&repository(name), &["add", "."]);
        git(&repository(name), &["commit", "--quiet", "--message", "a change"]);
        git(&repository(name), &["rev-parse", "HEAD"])
    };
    // what npins fetches goes into a store of its own
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&at).env("BENTO_DIR", &at).env("HOME", dir.path().join("home"));
        command.env("NIX_REMOTE", dir.path().join("store")).env_remove("NIX_PATH").env_remove("XDG_CACHE_HOME");
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    };
    let shipped = fs::read_to_string(at.join("npins/default.nix")).unwrap();
    // the pins that are shipped are of a form that npins reads
    let (ok, said) = run("npins", &["show"]);
    assert!(ok && said.contains("nixos-anywhere") && said.contains("1.13.0"), "{said}");
    fs::remove_dir_all(at.join("npins")).unwrap();
    let (ok, said) = run("npins", &["init", "--bare"]);
    assert!(ok, "{said}");
    let own = fs::read_to_string(at.join("npins/default.nix")).unwrap();
    let mut first = String::new();
    for name in ["disko", "nixos-anywhere", "nixpkgs"] {
        git(&repository(name), &["init", "--quiet", "--initial-branch", "main"]);
        first = commit(name);
        let url = format!("file://{}", repository(name).display());
        let (ok, said) = run("npins", &["add", "--name", name, "git", &url, "--branch", "main"]);
        assert!(ok, "{said}");
    }
    // npins' own file and the one that is shipped give the same, and both evaluators find that in them
    let sources = "let pins = import ./npins; of = pin: { path = pin.outPath; inherit (pin) revision; files = builtins.readDir pin.outPath; };
        in { nixpkgs = of pins.nixpkgs; disko = of pins.disko; nixos-anywhere = of pins.nixos-anywhere; }";
    let mut found = Vec::new();
    for file in [&own, &shipped] {
        fs::write(at.join("npins/default.nix"), file).unwrap();
        let (ok, said) = run(BENTO, &["eval", "--strict", "--json", "-E", sources]);
        assert!(ok, "{said}");
        found.push(serde_json::from_str::<Value>(&said).unwrap());
        if let Some(programs) = std::env::var_os("BENTO_NIX") {
            let nix = Path::new(&programs).join("nix-instantiate");
            let (ok, said) = run(nix.to_str().unwrap(), &["--eval", "--strict", "--json", "-E", sources]);
            assert!(ok, "{said}");
            found.push(serde_json::from_str(said.lines().last().unwrap()).unwrap());
        }
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:#?}");
    assert_eq!(found[0]["nixpkgs"]["revision"], json!(first));
    assert_eq!(found[0]["nixpkgs"]["files"]["release.nix"], json!("regular"));
    fs::write(at.join("npins/default.nix"), &own).unwrap();

    let settings = format!("[hub]\ndirectory = \"{}/hub\"\n[build]\nlocal = false\n", dir.path().display());
    fs::write(at.join("bento.toml"), settings).unwrap();
    let (ok, said) = run(BENTO, &["deploy"]);
    assert!(ok && said.contains("-nixos-system-one-dev-365"), "{said}");
    let pins = || fs::read_to_string(at.join("npins/sources.json")).unwrap();
    let pinned = pins();
    let (ok, said) = run(BENTO, &["update", "--yes"]);
    assert!(ok && said.contains("everything is up to date") && pins() == pinned, "{said}");
    // a newer nixpkgs: looked at, refused, and deployed
    fs::write(dir.path().join("git/nixpkgs/release.nix"), "\"two\"\n").unwrap();
    let second = commit("nixpkgs");
    let moved = format!("nixpkgs: {first} -> {second}");
    let (ok, said) = run(BENTO, &["update", "--dry-run"]);
    assert!(ok && said.contains(&moved) && said.contains("nixos-system-two-dev-365") && pins() == pinned, "{said}");
    let (ok, said) = run(BENTO, &["update", "--yes"]);
    assert!(ok && said.contains(&moved), "{said}");
    for host in ["dev-142", "dev-365", "dev-605", "dev-901"] {
        assert!(said.contains(&format!("{host}: published release 2")), "{host}: {said}");
        let manifest = fs::read(dir.path().join("hub").join(host).join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let toplevel = manifest["toplevel"].as_str().unwrap();
        assert!(toplevel.ends_with(&format!("-nixos-system-two-{host}")), "{toplevel}");
    }
    // a repository that is gone: the pins stay what they were
    let pinned = pins();
    fs::rename(repository("disko"), repository("away")).unwrap();
    let (ok, said) = run(BENTO, &["update", "--yes"]);
    assert!(!ok && said.contains("npins ended with") && said.contains("as they were") && pins() == pinned, "{said}");
}
