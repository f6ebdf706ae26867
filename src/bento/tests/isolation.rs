//! What a host's key can do on the hub, tried with a real `sftp`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::Lab;

/// Runs one command of `sftp` as a host. Gives whether it worked, and what was said.
fn sftp(lab: &Lab, host: &str, command: &str) -> (bool, String) {
    let batch = lab.path("batch");
    fs::write(&batch, format!("{command}\n")).unwrap();
    let output = Command::new("sftp")
        .args([
            "-q",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
        ])
        .arg("-i")
        .arg(lab.path(&format!("keys/{host}")))
        .args(["-P", &lab.port.to_string(), "-b"])
        .arg(&batch)
        .arg(format!("{host}@127.0.0.1"))
        .current_dir(lab.path("home"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

#[test]
fn a_host_reads_its_own_release_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.flake_host("db", "text = \"of db\";");
    lab.bento(&["deploy"]).succeeds();
    for file in ["manifest.json", "config/flake.nix", "releases/1/flake.nix", "last_change_date"] {
        let (worked, said) = sftp(&lab, "web", &format!("get {file} got"));
        assert!(worked, "{file}: {said}");
    }
    fs::write(lab.path("home/mine"), "mine").unwrap();
    // the way out that a link of the host's own offers ends in its own directory too
    assert!(sftp(&lab, "web", "symlink ../../db/manifest.json logs/link").0);
    assert!(sftp(&lab, "web", "symlink /etc/passwd logs/passwd").0);
    let commands = [
        "get ../db/manifest.json got",
        "get /db/manifest.json got",
        "get /etc/passwd got",
        "get logs/link got",
        "get logs/passwd got",
        "put mine manifest.json",
        "put mine mine",
        "put mine config/flake.nix",
        "put mine releases/1/mine",
        "rm manifest.json",
        "rm config",
        "rename manifest.json logs/manifest.json",
        "rename logs other",
        "rename releases/1 logs/1",
        "rmdir logs",
        "mkdir releases/2",
        "chmod 777 manifest.json",
        "symlink logs config2",
        "ln manifest.json hard",
    ];
    let before = common::fingerprint(&lab.path("chroot"));
    for command in commands {
        let (worked, said) = sftp(&lab, "web", command);
        assert!(!worked, "{command}: {said}");
    }
    assert_eq!(common::fingerprint(&lab.path("chroot")), before);
    assert!(sftp(&lab, "web", "put mine logs/mine").0);
}

#[test]
fn a_host_gets_no_shell_and_no_tunnel() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let ssh = |arguments: &[&str]| {
        Command::new("timeout")
            .args(["20", "ssh", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .arg("-i")
            .arg(lab.path("keys/web"))
            .args(["-p", &lab.port.to_string(), "web@127.0.0.1"])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    };
    let output = ssh(&["echo", "a shell"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("a shell"));
    let port = lab.port.to_string();
    assert!(!ssh(&["-W", &format!("127.0.0.1:{port}")]).status.success());
}
