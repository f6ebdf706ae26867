//! Bad input: each ends in one clear message and exit status 1, with nothing published or half written.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

use common::{Lab, fingerprint};
use tempfile::TempDir;

/// What `bento deploy` says in a fleet that needs no Nix to be found wrong. Gives the error output.
#[track_caller]
fn refused(fleet: &TempDir, arguments: &[&str]) -> String {
    let output = run(fleet, arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let published = fs::read_dir(fleet.path().join("chroot")).map_or(0, |dir| {
        dir.filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
    });
    assert_eq!(published, 0, "something was published");
    stderr
}

fn run(fleet: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bento"));
    command.args(arguments).env("BENTO_DIR", fleet.path()).env_remove("NAME").output().unwrap()
}

/// A fleet with nothing but a `config.sh`.
fn fleet() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.sh"), format!("CHROOT_DIR={}/chroot\n", dir.path().display())).unwrap();
    dir
}

/// Adds a file to a fleet.
fn add(fleet: &TempDir, path: &str, text: &str) {
    let path = fleet.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_fleet_without_hosts() {
    let fleet = fleet();
    assert!(refused(&fleet, &["deploy"]).contains("hosts"));
    fs::create_dir(fleet.path().join("hosts")).unwrap();
    assert!(refused(&fleet, &["deploy"]).contains("holds no host"));
}

#[test]
fn a_host_without_configuration() {
    let fleet = fleet();
    add(&fleet, "hosts/web/hardware-configuration.nix", "{ }");
    let said = refused(&fleet, &["deploy"]);
    assert!(said.contains("web: failed") && said.contains("neither a configuration.nix nor a flake.nix"), "{said}");
}

#[test]
fn names_that_no_host_can_have() {
    for name in ["-web", ".web", "we b", "wéb", "web;rm"] {
        let fleet = fleet();
        add(&fleet, &format!("hosts/{name}/configuration.nix"), "{ }");
        let said = refused(&fleet, &["deploy"]);
        // a hidden directory is no host at all
        assert!(said.contains(if name == ".web" { "holds no host" } else { "is no host name" }), "{name}: {said}");
    }
}

#[test]
fn a_settings_file_with_more_than_assignments_is_not_executed() {
    for (line, word) in [
        ("touch executed", "line 2"),
        ("TIMEOUT=$(touch executed)", "line 2"),
        ("TIMEOUT=`touch executed`", "line 2"),
        ("TIMEOUT=$HOME", "line 2"),
        ("TIMEOUT=20; touch executed", "line 2"),
        ("TIMEOUT=\"20", "not closed"),
        ("TIMEOUT=soon", "whole number of seconds"),
        ("REMOTE_PORT=70000", "1 to 65535"),
        ("CHROOT_DIR=relative", "absolute path"),
        ("CHROOT_DIR=", "CHROOT_DIR is not set"),
        ("TIMEOUT=20 touch executed", "line 2"),
    ] {
        let fleet = fleet();
        add(&fleet, "hosts/web/configuration.nix", "{ }");
        let old = fs::read_to_string(fleet.path().join("config.sh")).unwrap();
        add(&fleet, "config.sh", &format!("{old}{line}\n"));
        let said = refused(&fleet, &["deploy"]);
        assert!(said.contains("config.sh") && said.contains(word), "{line}: {said}");
        assert!(!fleet.path().join("executed").exists());
        assert!(!std::path::Path::new("executed").exists());
    }
    // without settings it is no error that there are none
    let fleet = tempfile::tempdir().unwrap();
    assert!(refused(&fleet, &["deploy"]).contains("a fleet's directory?"));
}

#[test]
fn links_that_lead_nowhere_or_in_a_circle() {
    for (target, word) in [("../../missing", "can't be followed"), ("..", "leads back"), ("loop", "can't be followed")]
    {
        let fleet = fleet();
        add(&fleet, "hosts/web/configuration.nix", "{ }");
        fs::create_dir(fleet.path().join("hosts/web/sub")).unwrap();
        symlink(target, fleet.path().join("hosts/web/sub/loop")).unwrap();
        let said = refused(&fleet, &["deploy"]);
        assert!(said.contains("sub/loop") && said.contains(word), "{target}: {said}");
    }
}

#[test]
fn a_file_that_is_none() {
    let fleet = fleet();
    add(&fleet, "hosts/web/configuration.nix", "{ }");
    assert!(Command::new("mkfifo").arg(fleet.path().join("hosts/web/pipe")).status().unwrap().success());
    assert!(refused(&fleet, &["deploy"]).contains("pipe is neither a file nor a directory"));
}

#[test]
fn an_unreadable_file() {
    let Some(lab) = Lab::new() else { return };
    // root reads everything: the administrator is somebody else here
    fs::set_permissions(lab.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    lab.non_flake("web", "");
    lab.write("fleet/hosts/web/secret", "not for you");
    fs::set_permissions(lab.path("fleet/hosts/web/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    lab.write("fleet/config.sh", &format!("CHROOT_DIR={}\n", lab.path("nobody").display()));
    fs::create_dir(lab.path("nobody")).unwrap();
    std::os::unix::fs::chown(lab.path("nobody"), Some(65534), Some(65534)).unwrap();
    lab.copy_program();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(lab.path("bento"))
        .arg("deploy")
        .env("BENTO_DIR", lab.path("fleet"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot read") && said.contains("hosts/web/secret"), "{said}");
    assert_eq!(lab.names("nobody"), [".bento.lock", ".fleet.json"]);
}

#[test]
fn a_name_that_two_flakes_have() {
    let Some(lab) = Lab::new() else { return };
    lab.flake("fleet/hosts/attic", &[("web", ""), ("db", "")]);
    lab.flake("fleet/hosts/cellar", &[("web", "")]);
    let said = lab.bento(&["deploy"]).fails_with(&["web: failed", "hosts/attic", "hosts/cellar", "more than once"]);
    assert!(said.stderr.contains("db: published"), "{}", said.stderr);
    assert!(!lab.path("chroot/web").exists());
    // also with the flake at the top
    lab.flake("fleet", &[("db", "")]);
    lab.bento(&["deploy", "db"]).fails_with(&["db: failed", "hosts/attic", "more than once"]);
}

#[test]
fn a_flake_with_a_syntax_error() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.write("fleet/hosts/web/flake.nix", "{ outputs = { self }: { nixosConfigurations = ; }; }");
    lab.flake_host("db", "");
    lab.bento(&["deploy"]).fails_with(&["hosts/web/flake.nix", "syntax error", "flake.nix:1:"]);
    assert!(!lab.path("chroot/web").exists());
    assert!(lab.path("chroot/db").exists());
    lab.bento(&["deploy", "db"]).succeeds();
    lab.bento(&["deploy", "web"]).fails_with(&["no host web was found, but", "hosts/web"]);
}

#[test]
fn a_configuration_with_an_error_names_the_administrators_file() {
    let Some(lab) = Lab::new() else { return };
    lab.non_flake("router", "text = undefinedVariable;");
    let file = lab.path("fleet/hosts/router/configuration.nix");
    lab.bento(&["deploy"]).fails_with(&["undefinedVariable", &format!("{}:1:", file.display())]);
}

#[test]
fn an_unreachable_hub() {
    let Some(mut lab) = Lab::new() else { return };
    lab.stop_hub();
    lab.agent("web").fails_with(&["cannot reach the hub 127.0.0.1"]);
    assert_eq!(lab.names("hosts/web/state/releases").len(), 0);
}

#[test]
fn a_hub_that_accepts_and_says_nothing_does_not_hold_the_agent() {
    let Some(lab) = Lab::new() else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let config = lab.read("hosts/web/agent.toml");
    let config = config.replace(&format!("port = {}", lab.port), &format!("port = {port}"));
    lab.write("hosts/web/agent.toml", &config.replace("timeout = 10", "timeout = 1"));
    let start = std::time::Instant::now();
    lab.agent("web").fails_with(&["127.0.0.1"]);
    assert!(start.elapsed().as_secs() < 10);
}

#[test]
fn a_wrong_host_key() {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.stop_hub();
    lab.start_hub("other");
    lab.agent("web").fails_with(&["not pinned", "host-keys"]);
    assert_eq!(lab.names("hosts/web/state/releases").len(), 0);
}

#[test]
fn a_key_that_the_hub_does_not_know() {
    let Some(lab) = Lab::new() else { return };
    let config = lab.read("hosts/web/agent.toml");
    lab.write("hosts/web/agent.toml", &config.replace("keys/web\"", "keys/db\""));
    lab.agent("web").fails_with(&["cannot log in", "as web", "keys/db"]);
}

#[test]
fn a_corrupted_download() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let file = lab.path("chroot/web/releases/1/flake.nix");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replace("web", "wab")).unwrap();
    lab.agent("web").fails_with(&["releases/1/flake.nix is damaged", "BLAKE3"]);
    assert!(lab.activations("web").is_empty());
    assert_eq!(lab.names("hosts/web/state/releases"), [".tmp-1"]);
    // it is said once, not with every poll
    lab.agent("web").fails_with(&["damaged"]);
    assert_eq!(lab.reports("web").len(), 1);
    assert_eq!(lab.state("web"), "failing");
    // the next deploy sees that the release is not whole any more
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 2);
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn manifests_that_are_not_for_this_host_and_moment() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    for text in ["one", "two"] {
        lab.flake_host("web", &format!("text = \"{text}\";"));
        lab.bento(&["deploy"]).succeeds();
    }
    lab.agent("web").succeeds();
    let sound = lab.read("chroot/web/manifest.json");
    let running = lab.running("web");
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 10] = [
        (|m| m["host"] = "db".into(), "for the host db"),
        (|m| m["serial"] = 1.into(), "already seen"),
        (|m| m["serial"] = 0.into(), "serial 0"),
        (|m| m["expires"] = "2020-01-01T00:00:00Z".into(), "expired"),
        (|m| m["schema"] = 2.into(), "schema 2"),
        (|m| m["surprise"] = 1.into(), "surprise"),
        (|m| m["toplevel"] = "/etc/passwd".into(), "/nix/store"),
        (|m| m["files"][0]["path"] = "../../../etc/cron.d/x".into(), "plain relative path"),
        (|m| m["files"][0]["path"] = "/etc/cron.d/x".into(), "plain relative path"),
        (|m| m["files"][0]["mode"] = "4755".into(), "4755"),
    ];
    for (change, word) in cases {
        lab.write("chroot/web/manifest.json", &sound);
        lab.republish("web", change);
        lab.agent("web").fails_with(&[word]);
        assert_eq!(lab.running("web"), running);
    }
    for text in ["", "{", "null", "[1]", &"[".repeat(100_000)] {
        lab.write("chroot/web/manifest.json", text);
        lab.agent("web").fails_with(&["error: the manifest is "]);
    }
    assert_eq!(lab.activations("web").len(), 2);
    lab.write("chroot/web/manifest.json", &sound);
    lab.sign("web", "keys/admin", "bento-release");
    assert_eq!(lab.state("web"), "failing");
    lab.agent("web").succeeds();
    // it takes its complaints back, and only once
    assert_eq!(lab.state("web"), "up-to-date");
    let reports = lab.reports("web").len();
    lab.agent("web").succeeds();
    assert_eq!(lab.reports("web").len(), reports);
}

#[test]
fn a_hub_that_takes_no_reports_does_not_keep_the_host_from_its_release() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    let logs = lab.path("chroot/web/logs");
    std::os::unix::fs::chown(&logs, Some(0), None).unwrap();
    fs::set_permissions(&logs, fs::Permissions::from_mode(0o700)).unwrap();
    lab.agent("web").fails_with(&["the report is not delivered yet", "report"]);
    assert_eq!(lab.running("web").unwrap(), lab.manifest("web")["toplevel"]);
    lab.agent("web").fails_with(&["cannot deliver the reports of earlier runs"]);
    // a damaged one in the queue holds up nothing
    lab.write("hosts/web/state/outbox/0.json", "{");
    std::os::unix::fs::chown(&logs, Some(61000), None).unwrap();
    let ran = lab.agent("web").succeeds();
    assert!(ran.stderr.contains("0.json is damaged"), "{}", ran.stderr);
    assert_eq!(lab.names("hosts/web/state/outbox"), ["0.damaged"]);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some(lab) = Lab::new() else { return };
    let mut child = lab.command(&["status"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_agent_configuration_with_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzrqJEQg7md5z/sBMxAWqutOvle06BEkXGJtOe6s/GJ";
    let good = format!(
        "host = \"web\"\nstate-dir = \"{}/state\"\nsigners = [\"{key} admin\"]\n[hub]\naddress = \"127.0.0.1\"\nport = 1\nuser = \"web\"\n\
         host-keys = [\"{key}\"]\nidentity = \"/nonexistent\"\n",
        dir.path().display()
    );
    for (from, to, word) in [
        ("host = \"web\"", "host = \"../web\"", "is no host name"),
        ("port = 1", "prot = 1", "prot"),
        ("port = 1", "port = 100000", "line 6"),
        (&format!("\"{key}\""), "\"ssh-ed25519 AAAA\"", "cut short"),
        (&format!("\"{key}\""), "\"nonsense\"", "not of the form"),
        (&format!("\"{key}\""), "", "host-keys is empty"),
        (&format!("\"{key} admin\""), "", "signers is empty"),
        (&format!("{key} admin"), "ssh-ed25519 AAAA", "no public key"),
        ("signers", "unsigned-releases = true\nsigners", "choose one"),
        ("/state", "state", "cannot reach the hub"),
    ] {
        fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_bento")).args(["agent", "run", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{to}: {said}");
        assert!(said.contains(word), "{to}: {said}");
    }
}

#[test]
fn reports_that_cannot_be_understood_are_shown_as_such() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let sound = lab.read("chroot/web/logs/report-1-1.json");
    let outside = lab.path("outside.json");
    fs::write(&outside, sound.replace("\"attempt\": 1", "\"attempt\": 2")).unwrap();
    let second = lab.path("chroot/web/logs/report-1-2.json");
    let other_host = sound.replace("\"attempt\": 1", "\"attempt\": 2").replace("\"web\"", "\"db\"");
    for (text, word) in [
        ("{", "no report"),
        (&sound, "its name says otherwise"),
        (&other_host, "a report of the host db"),
        ("{\"schema\": 7}", "schema 7"),
        (&" ".repeat(2 << 20), "larger than"),
    ] {
        fs::write(&second, text).unwrap();
        assert_eq!(lab.state("web"), "corrupt-report");
        let table = lab.bento(&["status"]).succeeds().stdout;
        assert!(
            table.contains("corrupt report 🛑") && table.contains("report-1-2.json") && table.contains(word),
            "{table}"
        );
    }
    // the host may not have the hub read other files for it, nor wait for a pipe
    fs::remove_file(&second).unwrap();
    symlink(&outside, &second).unwrap();
    assert_eq!(lab.state("web"), "corrupt-report");
    fs::remove_file(&second).unwrap();
    assert!(Command::new("mkfifo").arg(&second).status().unwrap().success());
    assert_eq!(lab.state("web"), "corrupt-report");
    // an older one that is corrupt does not hide a newer one that is not
    fs::remove_file(&second).unwrap();
    fs::write(&second, fs::read(&outside).unwrap()).unwrap();
    fs::write(lab.path("chroot/web/logs/report-1-1.json"), "{").unwrap();
    assert_eq!(lab.state("web"), "up-to-date");
    assert_eq!(lab.status("web")["problems"].as_array().unwrap().len(), 1);
}

#[test]
fn a_dry_run_writes_nothing() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    let ran = lab.bento(&["deploy", "--dry-run"]).succeeds();
    assert!(ran.stderr.contains("web: would publish release 1"), "{}", ran.stderr);
    assert!(lab.names("chroot").is_empty());
    lab.bento(&["deploy"]).succeeds();
    let before = fingerprint(&lab.path("chroot"));
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy", "--dry-run"]).succeeds();
    assert_eq!(fingerprint(&lab.path("chroot")), before);
}
