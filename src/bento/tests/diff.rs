//! `bento diff`: what deploying would change, without building; and closures as C++ Nix compares them.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use bento::diff::{size, split_version};
use common::Lab;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A fleet of one host on the fixture distribution, on a machine without Nix.
struct Fleet {
    dir: TempDir,
}

impl Fleet {
    fn new(lines: &str) -> Self {
        let fleet = Self { dir: tempfile::tempdir().unwrap() };
        let settings = format!("CHROOT_DIR={}/hub\nNOLOCALBUILD=1\n", fleet.dir.path().display());
        fs::write(fleet.dir.path().join("config.sh"), settings).unwrap();
        fleet.write(lines);
        fleet
    }

    /// Writes the host's configuration, with these lines in it.
    fn write(&self, lines: &str) {
        let text = format!(
            "{{ pkgs, ... }}: {{\n networking.hostName = \"web\"; nixpkgs.hostPlatform = \"x86_64-linux\";\n{lines}\n}}\n"
        );
        let dir = self.dir.path().join("hosts/web");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("configuration.nix"), text).unwrap();
    }

    fn bento(&self, arguments: &[&str]) -> String {
        let fixture = fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../../checks/fixture")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_bento"))
            .args(arguments)
            .env_clear()
            .env("PATH", "/nonexistent")
            .env("HOME", self.dir.path())
            .env("BENTO_DIR", self.dir.path())
            .env("NIX_PATH", format!("nixpkgs={}", fixture.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn diff(&self) -> Value {
        serde_json::from_str::<Value>(&self.bento(&["diff", "--json"])).unwrap()[0].clone()
    }
}

#[test]
fn what_changes_is_told_without_building_and_without_nix() {
    let fleet = Fleet::new("environment.systemPackages = [ pkgs.htop ]; systemd.services.old.script = \"true\";");
    assert!(fleet.bento(&["diff"]).contains("web: nothing was published yet; new is /nix/store/"));
    fleet.bento(&["deploy"]);
    assert_eq!(fleet.bento(&["diff"]), "web: no change\n");
    assert_eq!(fleet.diff()["changes"], Value::Null);
    // a package, a unit more, one less, one that differs; no reboot
    fleet.write(
        "environment.systemPackages = [ pkgs.htop pkgs.vim ];\nsystemd.services.new.script = \"true\";\n\
         systemd.services.sshd.environment.COLOUR = \"blue\"; services.openssh.enable = true;",
    );
    let changes = &fleet.diff()["changes"];
    let names: Vec<&str> =
        changes["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"vim") && !names.contains(&"htop"), "{changes}");
    assert_eq!(changes["reboot"], json!([]));
    let has = |kind: &str, unit: &str| changes["units"][kind].as_array().unwrap().contains(&unit.into());
    assert!(has("added", "new.service") && has("removed", "old.service"), "{changes}");
    let text = fleet.bento(&["diff"]);
    assert!(text.contains("  started: ") && text.contains("  stopped: old.service\n"), "{text}");
    assert!(text.contains("  vim: ∅ → "), "{text}");
    fleet.bento(&["deploy"]);
    // another kernel
    fleet.write(
        "environment.systemPackages = [ pkgs.htop pkgs.vim ];\nsystemd.services.new.script = \"false\";\n\
         systemd.services.sshd.environment.COLOUR = \"blue\"; services.openssh.enable = true;\n\
         boot.kernelPackages = pkgs.linuxPackages_latest;",
    );
    let changes = &fleet.diff()["changes"];
    assert_eq!(changes["reboot"], json!(["initrd", "kernel", "kernel modules"]));
    assert!(changes["units"]["changed"].as_array().unwrap().contains(&"new.service".into()), "{changes}");
    let linux = changes["packages"].as_array().unwrap().iter().find(|package| package["name"] == "linux").unwrap();
    assert!(linux["removed"].as_array().unwrap().len() == 1 && linux["added"].as_array().unwrap().len() == 1);
    let markdown = fleet.bento(&["diff", "--markdown"]);
    assert!(markdown.starts_with("### web\n\n**Needs a reboot**: initrd, kernel, kernel modules\n"), "{markdown}");
    assert!(markdown.contains("- restarted: `new.service`\n") && markdown.contains("| linux | "), "{markdown}");
}

#[test]
fn what_a_host_runs_is_compared_and_not_what_it_has_not_taken_up() {
    let fleet = Fleet::new("environment.systemPackages = [ pkgs.htop ];");
    let says = |serial: u32, running: &str| {
        let said = json!({ "schema": 1, "host": "web", "serial": serial, "agent": "0.1.0", "attempt": 1, "outcome": "success",
            "stage": "done", "started": "2024-12-29T11:00:00Z", "finished": "2024-12-29T11:00:00Z", "running": running });
        let file = fleet.dir.path().join(format!("hub/web/logs/report-{serial}-1.json"));
        fs::write(file, said.to_string()).unwrap();
    };
    fleet.bento(&["deploy"]);
    let first = fleet.diff()["new"].as_str().unwrap().to_owned();
    says(1, &first);
    fleet.write("environment.systemPackages = [ pkgs.htop pkgs.vim ];");
    fleet.bento(&["deploy"]);
    let second = fleet.diff()["new"].as_str().unwrap().to_owned();
    // deployed, and not taken up yet: vim is still to come
    let line = fleet.diff();
    assert_eq!((line["old"].as_str().unwrap(), line["new"].as_str().unwrap()), (first.as_str(), second.as_str()));
    let text = fleet.bento(&["diff"]);
    assert!(text.contains(&format!("  it runs release 1; release 2, {second}, is there for it\n")), "{text}");
    assert!(text.contains("  vim: ∅ → "), "{text}");
    assert!(fleet.bento(&["diff", "--markdown"]).contains("\n_it runs release 1; "), "{text}");
    // what was there before that, again
    fleet.write("environment.systemPackages = [ pkgs.htop ];");
    assert!(fleet.bento(&["diff"]).starts_with("web: no change\n  it runs release 1; "));
    // it took up the second, and after that something that nobody knows
    says(2, &second);
    assert_eq!(fleet.diff()["note"], Value::Null);
    says(2, "/nix/store/00000000000000000000000000000000-nixos-system-web");
    let line = fleet.diff();
    assert_eq!(line["old"], second.as_str());
    assert!(
        line["note"].as_str().unwrap().contains("which is of no release that is kept: this is about release 2"),
        "{line}"
    );
}

#[test]
fn closures_are_compared_as_nix_does_it() {
    let Some(lab) = Lab::new() else { return };
    let Some(nix) = std::env::var_os("BENTO_NIX") else {
        eprintln!("skipped: BENTO_NIX is not set");
        return;
    };
    let settings = lab.read("fleet/config.sh");
    lab.write("fleet/config.sh", &settings.replace("NOLOCALBUILD=1", ""));
    let package = r#"let package = name: size: derivation {
        inherit name; system = builtins.currentSystem; builder = "/bin/sh";
        args = [ "-c" "PATH=/usr/bin:/bin; head -c ${toString size} /dev/zero > $out" ];
      }; in"#;
    // the laboratories of all runs have one store: what is to be new to it has to be new in each
    let run = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let host = |packages: &[(&str, u64)]| {
        let list: Vec<String> = packages.iter().map(|(name, size)| format!("${{package \"{name}\" {size}}}")).collect();
        let system =
            format!("{package} {{ name = \"router\"; text = \"{}\"; build = \": {run}\"; }}\n", list.join(" "));
        lab.write("fleet/hosts/router/configuration.nix", &system);
    };
    host(&[
        ("foo-1.0", 9000),
        ("foo-1.0-bin", 10),
        ("bar", 1_048_576),
        ("same-2", 5),
        ("gone-0.1-lib", 1),
        ("grows-3", 1),
    ]);
    lab.bento(&["deploy"]).succeeds();
    host(&[
        ("foo-1.1", 30),
        ("foo-0.9-bin", 10),
        ("bar", 3_000_000),
        ("same-2", 6),
        ("new-unstable-2024-01-01", 20_000),
        ("grows-3", 8193),
    ]);
    // not built: told from the derivations alone
    let diff = || serde_json::from_str::<Value>(&lab.bento(&["diff", "--json"]).succeeds().stdout).unwrap()[0].clone();
    assert_eq!(diff()["closures"], Value::Null);
    let changes = diff()["changes"]["packages"].clone();
    let foo = changes.as_array().unwrap().iter().find(|package| package["name"] == "foo").unwrap().clone();
    assert_eq!(foo, json!({ "name": "foo", "removed": ["1.0", "1.0-bin"], "added": ["0.9-bin", "1.1"] }));
    lab.bento(&["build"]).succeeds();
    let line = diff();
    let (old, new) = (line["old"].as_str().unwrap(), line["new"].as_str().unwrap());
    let nix = std::path::Path::new(&nix).join("nix");
    let script =
        format!("'{}' --extra-experimental-features nix-command store diff-closures {old} {new}", nix.display());
    let expected = lab.shell(&script).succeeds().stdout;
    // without the colours
    let mut plain = String::new();
    let mut rest = expected.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain += before;
        rest = after.split_once('m').unwrap().1;
    }
    plain += rest;
    let text = lab.bento(&["diff"]).succeeds().stdout;
    let (_, closures) = text.split_once("  in the closure:\n").unwrap();
    let closures: String = closures.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    assert_eq!(closures, plain);
    assert!(plain.contains("foo: 1.0 → 0.9, 1.1, -8.8 KiB\n"), "{plain}");
}

#[test]
fn names_are_split_and_sizes_shown_as_in_nix() {
    // what `builtins.parseDrvName` of C++ Nix 2.34 gives
    for (name, parts) in [
        ("nix-0.12pre12876", ("nix", "0.12pre12876")),
        ("a-b-c-1234pre5+git", ("a-b-c", "1234pre5+git")),
        ("hello", ("hello", "")),
        ("x-", ("x-", "")),
        ("x--1", ("x", "-1")),
        ("unit-a.service", ("unit-a.service", "")),
    ] {
        assert_eq!(split_version(name), parts, "{name}");
    }
    for (bytes, text) in
        [(-8192, "-8.0 KiB"), (8192, "8.0 KiB"), (1 << 20, "1024.0 KiB"), (3_000_000, "2.9 MiB"), (1, "0.0 KiB")]
    {
        assert_eq!(size(bytes), text);
    }
}
