//! What a machine and a new system have to show before the system is kept: room on the disk, the user's own checks, and the time
//! for a restart.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, Ran};
use serde_json::Value;

/// Publishes a system for the host.
fn publish(lab: &Lab, system: &str) {
    lab.flake_host("web", system);
    lab.bento(&["deploy"]).succeeds();
}

/// A host that runs its first system, which is given too.
fn set_up() -> Option<(Lab, String)> {
    let lab = Lab::new()?;
    publish(&lab, "text = \"first\";");
    lab.agent("web").succeeds();
    let first = lab.running("web").unwrap();
    Some((lab, first))
}

/// The host went back, and says why.
#[track_caller]
fn went_back(lab: &Lab, run: Ran, first: &str, reason: &str) {
    run.fails_with(&[reason]);
    assert_eq!((lab.running("web").unwrap().as_str(), lab.state("web").as_str()), (first, "rollbacked"));
    assert_eq!(lab.profile("web"), first);
}

#[test]
fn nothing_is_tried_out_on_a_disk_that_is_almost_full() {
    let Some((lab, first)) = set_up() else { return };
    lab.configure_agent("web", "[before]\nfree = 1000000000");
    publish(&lab, "text = \"second\";");
    lab.agent("web").fails_with(&["MiB are free in", "of the 1000000000 that are wanted"]);
    assert_eq!((lab.running("web").unwrap(), lab.state("web").as_str()), (first.clone(), "failing"));
    // nothing was activated, and the release is taken up once there is room
    assert_eq!(lab.activations("web").iter().filter(|line| line.starts_with("test")).count(), 1);
    lab.configure_agent("web", "[before]\nfree = 1");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    assert_ne!(lab.running("web").unwrap(), first);
}

#[test]
fn a_system_has_to_pass_the_users_own_checks() {
    let Some((lab, first)) = set_up() else { return };
    let bad = lab.path("hosts/web/bad");
    let check = |probe: &str| format!("[[confirm.checks]]\nname = \"own\"\n{probe}\ntries = 2\npause = 0\ntimeout = 1");
    let works = |number: u32| publish(&lab, &format!("text = \"{number}\";"));
    let program = format!("command = [\"test\", \"!\", \"-e\", \"{}\"]", bad.display());
    lab.configure_agent("web", &check(&program));
    publish(&lab, &format!("text = \"bad\"; onTest = \"touch {}\";", bad.display()));
    went_back(&lab, lab.agent("web"), &first, "the check own failed");
    std::fs::remove_file(&bad).unwrap();
    lab.configure_agent("web", &check("command = [\"sleep\", \"60\"]"));
    works(1);
    went_back(&lab, lab.agent("web"), &first, "the check own failed");
    // nobody listens at the first port, but sshd does at its own
    lab.configure_agent("web", &check("tcp = \"127.0.0.1:1\""));
    works(2);
    went_back(&lab, lab.agent("web"), &first, "cannot connect to 127.0.0.1:1");
    let tcp = format!("tcp = \"127.0.0.1:{}\"", lab.port);
    lab.configure_agent("web", &[check(&program), check(&tcp)].join("\n"));
    works(3);
    let said = lab.agent("web").succeeds();
    assert_eq!(said.stderr.matches("check own: passed").count(), 2, "{}", said.stderr);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_machine_restarts_in_its_window_only() {
    let Some((lab, first)) = set_up() else { return };
    let hours = |from: &str, to: &str| {
        let said = lab.shell(&format!("date -d '{from} hours' +%H:%M; date -d '{to} hours' +%H:%M")).succeeds();
        said.stdout.lines().collect::<Vec<_>>().join("-")
    };
    let restarts = |reboot: &str| {
        lab.configure_agent("web", &format!("[reboot]\n{reboot}"));
        lab.agent("web").succeeds().stderr.contains("restarting the machine")
    };
    lab.shell(&format!("ln -s {first} {}", lab.path("hosts/web/run/booted-system").display())).succeeds();
    // the release asks for a restart
    lab.write("fleet/hosts/web/REBOOT", "");
    publish(&lab, "text = \"another kernel\"; build = \"mkdir -p \\$out; echo k > \\$out/kernel\";");
    assert!(!restarts(&format!("policy = \"window\"\nwindow = \"{}\"", hours("2", "3"))));
    let config = lab.path("hosts/web/agent.toml");
    let standing = lab.bento(&["agent", "status", "--json", "--config", config.to_str().unwrap()]).succeeds().stdout;
    assert_eq!(serde_json::from_str::<Value>(&standing).unwrap()["state"], "waiting");
    assert_eq!(lab.reports("web").pop().unwrap()["stage"], "reboot");
    // nor at any time, if the machine says so
    assert!(!restarts("policy = \"never\""));
    assert!(restarts(&format!("policy = \"window\"\nwindow = \"{}\"", hours("-1", "1"))));
    assert!(restarts(""));
    lab.bento(&["agent", "hold", "--config", config.to_str().unwrap()]).succeeds();
    assert!(!restarts("policy = \"when-needed\""));
}
