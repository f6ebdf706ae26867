//! A fleet that names no hub: with a `bento.toml` that has no `[hub]`, or with no settings at all. It is evaluated and pushed like any
//! other; what needs a hub says so, and how to name one. What pushes do on machines is in `checks/machines/push.py`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A fleet of two hosts, in a plain flake.
const FLAKE: &str = r#"{ outputs = { self }: {
    nixosConfigurations = builtins.mapAttrs (name: _: {
        config.system.build.toplevel = derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
    }) { web = { }; db = { }; };
}; }"#;

/// The fleet, with this `bento.toml` if there is to be one.
fn fleet(settings: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("fleet")).unwrap();
    fs::write(dir.path().join("fleet/flake.nix"), FLAKE).unwrap();
    if let Some(settings) = settings {
        fs::write(dir.path().join("fleet/bento.toml"), settings).unwrap();
    }
    dir
}

/// Runs the program in the fleet.
fn bento(fleet: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bento"));
    command
        .args(arguments)
        .env("BENTO_DIR", fleet.path().join("fleet"))
        .env("HOME", fleet.path())
        // no machine is reached under a name
        .env("NIX_SSHOPTS", "-o ProxyCommand=false")
        .env_remove("NAME")
        .env_remove("NIX_PATH")
        .env_remove("SIGNING_KEY")
        .env_remove("XDG_STATE_HOME")
        .env_remove("XDG_CACHE_HOME")
        .stdin(Stdio::null());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A target at which nobody listens.
fn nobody() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("nixos://127.0.0.1:{port}")
}

#[test]
fn what_needs_no_hub_works() {
    for settings in [None, Some(""), Some("[hosts.web]\ntags = [\"outer\"]\n")] {
        let fleet = fleet(settings);
        let output = bento(&fleet, &["versions"]);
        assert!(output.status.success(), "{}", said(&output));
        let lines: Vec<String> = printed(&output).lines().map(str::to_owned).collect();
        assert!(lines.len() == 2 && lines[0].ends_with("-db") && lines[1].ends_with("-web"), "{lines:?}");
        let output = bento(&fleet, &["build", "dry-run", "web"]);
        assert!(output.status.success(), "{}", said(&output));
        let output = bento(&fleet, &["diff"]);
        let text = printed(&output);
        assert!(output.status.success(), "{}", said(&output));
        assert!(text.contains("web: what it runs is not known") && text.contains("name no hub"), "{text}");
        assert!(text.contains("; new is /nix/store/") && !text.contains("published"), "{text}");
        assert!(printed(&bento(&fleet, &["diff", "--markdown"])).contains("_what it runs is not known"));
        assert!(bento(&fleet, &["keys"]).status.success());
    }
    let fleet = fleet(Some("[push]\nparallel = 3\n"));
    let output = bento(&fleet, &["config", "check"]);
    assert!(output.status.success() && !printed(&output).contains("[hub]"), "{}", printed(&output));
}

#[test]
fn what_needs_a_hub_says_how_to_name_one() {
    let commands: [&[&str]; 11] = [
        &["deploy", "--publish"],
        &["deploy", "--publish", "web"],
        &["status"],
        &["log", "web"],
        &["hold", "web"],
        &["release", "web"],
        &["verify"],
        &["prune", "--yes"],
        &["rollout"],
        &["hub", "serve", "--listen", "127.0.0.1:0"],
        &["hub", "web", "--listen", "127.0.0.1:0"],
    ];
    let place = "this needs a hub, and the fleet's settings name none: ";
    let with = fleet(Some("[hosts.web]\npush = \"nixos://web\"\n"));
    let file = with.path().join("fleet/bento.toml");
    let without = fleet(None);
    for command in commands {
        let output = bento(&with, command);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
        assert!(text.contains(&format!("{place}add a table [hub] to {}", file.display())), "{command:?}: {text}");
        assert!(text.contains("directory = \"/home/chroot\""), "{command:?}: {text}");
        let output = bento(&without, command);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
        assert!(text.contains(place) && text.contains("neither a bento.toml nor a config.sh"), "{command:?}: {text}");
        assert!(text.contains("`bento init` makes one"), "{command:?}: {text}");
    }
}

#[test]
fn a_host_without_a_place_is_not_deployed_and_the_others_are() {
    for settings in [None, Some("[push]\nparallel = 3\n")] {
        let fleet = fleet(settings);
        let output = bento(&fleet, &["deploy"]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for way in ["no hub to publish to", "`bento deploy db`", "--push", "hosts.NAME.push", "hub.directory"] {
            assert!(text.contains(way), "{way}: {text}");
        }
    }
    let fleet = fleet(Some(&format!("[hosts.web]\npush = \"{}\"\n", nobody())));
    let output = bento(&fleet, &["deploy"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("db: failed: the fleet has no hub to publish it to"), "{text}");
    assert!(text.contains("127.0.0.1/web: unreachable: "), "{text}");
    // nothing was pushed that could have been recorded
    assert!(!text.contains("is not recorded"), "{text}");
    let output = bento(&fleet, &["deploy", "--json", "--skip-unreachable"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let lines: Vec<Value> = printed(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["host"] == "db" && lines[0]["outcome"] == "failed", "{lines:?}");
    assert!(lines.iter().any(|line| line["event"] == "summary" && line["skipped"] == 1), "{lines:?}");
}

#[test]
fn a_host_that_is_named_is_pushed_to_under_its_name_or_where_the_settings_say() {
    let targets = |fleet: &TempDir, arguments: &[&str]| {
        let output = bento(fleet, &[&["deploy", "--json", "--skip-unreachable"], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        let lines = printed(&output);
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let ended = lines.filter(|line| line["event"] == "ended");
        let mut targets: Vec<String> = ended.map(|line| line["target"].as_str().unwrap().to_owned()).collect();
        targets.sort();
        targets
    };
    let plain = fleet(None);
    assert_eq!(targets(&plain, &["web"]), ["nixos://web/web"]);
    assert_eq!(targets(&plain, &["w*", "db"]), ["nixos://db/db", "nixos://web/web"]);
    assert_eq!(targets(&plain, &["--push"]), ["nixos://db/db", "nixos://web/web"]);
    assert_eq!(targets(&plain, &["root@web"]), ["nixos://root@web"]);
    let place = nobody();
    let told =
        fleet(Some(&format!("[hosts.web]\npush = \"{place}\"\ntags = [\"outer\"]\n[hosts.db]\ntags = [\"outer\"]\n")));
    assert_eq!(targets(&told, &["@outer"]), [format!("{place}/web"), "nixos://db/db".to_owned()]);
    // what the fleet does not have is told before any machine is asked
    let output = bento(&plain, &["deploy", "mail"]);
    assert!(!output.status.success() && said(&output).contains("no host mail; found: db, web"), "{}", said(&output));
}
