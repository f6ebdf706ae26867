//! `modules/bootstrap.sh`: a machine that has only Nix becomes a host of the fleet.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{Lab, Ran};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../modules/bootstrap.sh");

/// Runs the script at the host `web`, of which nothing is there yet.
fn bootstrap(lab: &Lab, host_key: &str, signer: &str, more: &str) -> Ran {
    let at = lab.path("");
    let at = at.display();
    lab.write(
        "settings.toml",
        &format!(
            "timeout = 5\n[confirm]\ntries = 2\npause = 1\n[system]\nroot = \"{at}hosts/web\"\n\
             environment = {{ TINY_ROOT = \"{at}hosts/web\" }}\n"
        ),
    );
    let key = |file: &str| lab.read(file).trim().to_owned();
    lab.shell(&format!(
        "sh {SCRIPT} --hub 127.0.0.1 --port {} --host web --host-key '{}' --signer '{}' --identity {at}keys/web \
         --bento {} --state-dir {at}hosts/web/state --settings {at}settings.toml {more}",
        lab.port,
        key(host_key),
        key(signer),
        env!("CARGO_BIN_EXE_bento"),
    ))
}

fn publish(lab: &Lab) {
    lab.flake_host("web", "text = \"first\";");
    lab.bento(&["deploy"]).succeeds();
}

#[test]
fn one_command_makes_a_machine_a_host_and_nothing_happens_twice() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab);
    let said = bootstrap(&lab, "hub.pub", "keys/admin.pub", "").succeeds();
    assert!(said.stdout.contains("success of release 1"), "{}", said.stdout);
    assert_eq!(lab.running("web").unwrap(), lab.manifest("web")["toplevel"]);
    assert_eq!(lab.state("web"), "up-to-date");
    // the agent of the new system finds nothing to do
    lab.agent("web").succeeds();
    assert_eq!(lab.reports("web").len(), 1);
    assert_eq!(lab.activations("web").len(), 2);
    assert_eq!(lab.state("web"), "up-to-date");
    bootstrap(&lab, "hub.pub", "keys/admin.pub", "").fails_with(&["this machine is a host already"]);
    assert_eq!(lab.activations("web").len(), 2);
}

#[test]
fn a_hub_or_a_release_that_is_not_the_right_one_changes_nothing() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab);
    bootstrap(&lab, "other.pub", "keys/admin.pub", "").fails_with(&["has a host key that is not pinned"]);
    assert_eq!(lab.running("web"), None);
    bootstrap(&lab, "hub.pub", "keys/db.pub", "").fails_with(&["none of the keys that are trusted"]);
    assert_eq!(lab.running("web"), None);
    // and nothing is in the way of another try
    bootstrap(&lab, "hub.pub", "keys/admin.pub", "").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_machine_without_a_key_gets_one_and_says_it() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab);
    for file in ["keys/web", "keys/web.pub"] {
        fs::remove_file(lab.path(file)).unwrap();
    }
    let said = bootstrap(&lab, "hub.pub", "keys/admin.pub", "").fails_with(&[]);
    assert!(said.stdout.contains(lab.read("keys/web.pub").trim()), "{}", said.stdout);
    // the laboratory's hub takes every key that lies there
    bootstrap(&lab, "hub.pub", "keys/admin.pub", "").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn what_it_is_told_is_looked_at() {
    let Some(lab) = Lab::new() else { return };
    for (words, complaint) in [
        ("--hub", "--hub needs a value"),
        ("--colour red", "there is no option --colour"),
        ("", "--hub says where the hub is"),
        ("--hub h", "--host-key is the hub's public key"),
        ("--hub h --host-key k", "--signer is the public key"),
        ("--hub h --host-key k --signer s --port ssh", "--port is a number"),
        ("--hub 'a\"b' --host-key k --signer s", "can't be in"),
    ] {
        lab.shell(&format!("sh {SCRIPT} {words}")).fails_with(&[complaint]);
    }
    assert!(lab.shell(&format!("sh {SCRIPT} --help")).succeeds().stdout.contains("--signer KEY"));
}

#[test]
fn shellcheck_has_nothing_to_say() {
    match Command::new("shellcheck").args(["--severity=style", SCRIPT]).output() {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
        Err(_) => eprintln!("skipped: there is no shellcheck"),
    }
}
