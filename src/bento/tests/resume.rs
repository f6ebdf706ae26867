//! An agent that finds what an earlier run left when it was cut short.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::Lab;

/// Deploys a good system and has the host run it; then a second one is published.
fn with_good_system(lab: &Lab, second: &str) -> String {
    with_systems(lab, "text = \"good\";", second)
}

/// The same, with these systems.
fn with_systems(lab: &Lab, good: &str, second: &str) -> String {
    lab.flake_host("web", good);
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.flake_host("web", second);
    lab.bento(&["deploy"]).succeeds();
    lab.running("web").unwrap()
}

/// The host runs, boots and has as its profile what it ran before, and the hub knows.
fn is_back(lab: &Lab, good: &str) {
    assert_eq!(lab.running("web").unwrap(), good);
    assert_eq!(lab.profile("web"), good);
    assert_eq!(lab.read("hosts/web/boot").trim(), good);
    assert_eq!(lab.state("web"), "rollbacked");
}

/// Changes the phase in the agent's journal.
fn set_phase(lab: &Lab, phase: &serde_json::Value) {
    let mut state: serde_json::Value = serde_json::from_str(&lab.read("hosts/web/state/state.json")).unwrap();
    state["phase"] = phase.clone();
    state["serial"] = 2.into();
    state["attempts"] = 0.into();
    lab.write("hosts/web/state/state.json", &state.to_string());
}

/// A system on trial, in this boot.
fn trial(toplevel: &str, previous: &str) -> serde_json::Value {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    serde_json::json!({
        "toplevel": toplevel, "previous": previous, "standby": previous, "boot": boot.trim(), "failed-units": [],
    })
}

#[test]
fn killed_while_testing_it_goes_back_to_the_recorded_system() {
    let Some(lab) = Lab::new() else { return };
    let good = with_good_system(
        &lab,
        "text = \"new\"; onTest = \"touch \\$TINY_ROOT/testing; sleep 3; echo late >> \\$TINY_ROOT/activations\";",
    );
    lab.agent_killed_while_testing("web");
    assert_ne!(lab.running("web").unwrap(), good);
    lab.agent("web").fails_with(&["release 2 failed here before"]);
    assert_eq!(lab.running("web").unwrap(), good);
    assert_eq!(lab.read("hosts/web/boot").trim(), good);
    // the killed agent's activation went on: the old system's began only when it had ended
    assert_eq!(lab.activations("web")[3..], ["late".to_owned(), format!("test {good}")]);
    let report = &lab.reports("web")[1];
    assert_eq!(report["outcome"], "rollback");
    assert!(report["reason"].as_str().unwrap().contains("interrupted"));
    // the log tells both runs' parts
    let log = lab.log("web", report);
    assert!(log.contains("switching (test)") && log.contains("going back"), "{log}");
    assert_eq!(lab.state("web"), "rollbacked");
}

#[test]
fn a_journal_that_the_disk_has_lost_is_there_a_second_time() {
    let Some(lab) = Lab::new() else { return };
    let good = with_good_system(&lab, "text = \"new\"; onTest = \"touch \\$TINY_ROOT/testing; sleep 3\";");
    lab.agent_killed_while_testing("web");
    let journal = "hosts/web/state/state.json";
    lab.write(journal, &"\0".repeat(lab.read(journal).len()));
    let ran = lab.agent("web").fails_with(&["release 2 failed here before"]);
    assert!(ran.stderr.contains("state.json is damaged"), "{}", ran.stderr);
    is_back(&lab, &good);
}

fn lose_the_journal(lab: &Lab) {
    for file in ["state.json", "state.copy.json"] {
        lab.write(&format!("hosts/web/state/{file}"), "{");
    }
}

#[test]
fn without_its_journal_a_host_goes_back_and_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let good = with_good_system(&lab, "text = \"new\"; onTest = \"touch \\$TINY_ROOT/testing; sleep 3\";");
    lab.agent_killed_while_testing("web");
    lose_the_journal(&lab);
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&["agent", "status", "--config", config.to_str().unwrap()]).fails_with(&["state.json is damaged"]);
    let ran = lab.agent("web").fails_with(&["release 2 failed here before"]);
    assert!(ran.stderr.contains("beginning a new one"), "{}", ran.stderr);
    assert_eq!(lab.running("web").unwrap(), good);
    assert_eq!(lab.read("hosts/web/boot").trim(), good);
    assert_eq!(lab.read("hosts/web/state/state.damaged.json"), "{");
    let report = &lab.reports("web")[1];
    assert_eq!(report["outcome"], "rollback");
    assert!(report["reason"].as_str().unwrap().contains("the agent's journal was lost"));
    assert_eq!(lab.state("web"), "rollbacked");
    // nothing was on trial this time: what was published is taken up, and nothing that is older
    lab.flake_host("web", "text = \"newer\";");
    lab.bento(&["deploy"]).succeeds();
    let older = lab.read("chroot/web/manifest.json");
    lab.flake_host("web", "text = \"newest\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lose_the_journal(&lab);
    lab.agent("web").succeeds();
    assert_eq!(lab.running("web").unwrap(), lab.manifest("web")["toplevel"]);
    lose_the_journal(&lab);
    lab.write("chroot/web/manifest.json", &older);
    lab.sign("web", "keys/admin", "bento-release");
    lab.agent("web").fails_with(&["serial 3, but 4 was already seen"]);
}

#[test]
fn killed_after_the_confirmation_it_makes_the_system_permanent() {
    let Some(lab) = Lab::new() else { return };
    let good = with_good_system(&lab, "text = \"new\";");
    lab.agent("web").succeeds();
    let new = lab.running("web").unwrap();
    // as it was after the confirmation: booted is still the old system, nothing is reported
    fs::remove_file(lab.path("chroot/web/logs/report-2-1.json")).unwrap();
    lab.write("hosts/web/boot", &good);
    set_phase(&lab, &serde_json::json!({ "state": "confirmed", "trial": trial(&new, &good), "reboot": false }));
    lab.agent("web").succeeds();
    assert_eq!(lab.read("hosts/web/boot").trim(), new);
    assert_eq!(lab.state("web"), "up-to-date");
    assert_eq!(lab.activations("web").iter().filter(|line| line.starts_with("test")).count(), 2);
}

#[test]
fn killed_before_the_report_it_reports() {
    let Some(lab) = Lab::new() else { return };
    let good = with_good_system(&lab, "text = \"new\";");
    lab.agent("web").succeeds();
    let new = lab.running("web").unwrap();
    fs::remove_file(lab.path("chroot/web/logs/report-2-1.json")).unwrap();
    set_phase(&lab, &serde_json::json!({ "state": "booted", "trial": trial(&new, &good) }));
    let before = lab.activations("web");
    lab.agent("web").succeeds();
    assert_eq!(lab.activations("web"), before);
    assert_eq!(lab.reports("web")[1]["outcome"], "success");
}

#[test]
fn killed_before_the_build_it_begins_anew() {
    let Some(lab) = Lab::new() else { return };
    with_good_system(&lab, "text = \"new\";");
    for phase in [
        serde_json::json!({ "state": "fetched" }),
        serde_json::json!({ "state": "realised", "toplevel": lab.manifest("web")["toplevel"] }),
    ] {
        set_phase(&lab, &phase);
        lab.agent("web").succeeds();
        assert_eq!(lab.running("web").unwrap(), lab.manifest("web")["toplevel"]);
    }
}

#[test]
fn an_activation_that_hangs_is_ended_and_undone() {
    let Some(lab) = Lab::new() else { return };
    lab.configure_agent("web", "activation-timeout = 1");
    let config = lab.read("hosts/web/agent.toml");
    assert!(config.contains("activation-timeout"));
    let good = with_good_system(&lab, "text = \"new\"; onTest = \"sleep 300\";");
    let start = Instant::now();
    lab.agent("web").fails_with(&["did not end within 1 s and was killed"]);
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(lab.running("web").unwrap(), good);
    assert_eq!(lab.state("web"), "rollbacked");
}

#[test]
fn a_boot_entry_that_cannot_be_written_is_undone() {
    let Some(lab) = Lab::new() else { return };
    let good = with_good_system(&lab, "text = \"new\"; onBoot = \"exit 1\";");
    lab.agent("web").fails_with(&["cannot make the system the one that is booted"]);
    is_back(&lab, &good);
}

#[test]
fn a_boot_partition_without_room_for_the_new_system_keeps_nobody_from_going_back() {
    let Some(lab) = Lab::new() else { return };
    // as the installers of NixOS do: an entry for each generation, or none
    let room = "onBoot = \"[ \\$(readlink \\$TINY_ROOT/nix/var/nix/profiles/system-*-link | sort -u | wc -l) = 1 ] || exit 1\";";
    let good = with_systems(&lab, &format!("text = \"good\"; {room}"), &format!("text = \"new\"; {room}"));
    lab.agent("web").fails_with(&["cannot make the system the one that is booted"]);
    is_back(&lab, &good);
}

#[test]
fn why_nothing_goes_on_is_reported_once_and_not_what_it_hides() {
    let Some(lab) = Lab::new() else { return };
    let good = with_systems(
        &lab,
        "text = \"good\"; onBoot = \"[ ! -e \\$TINY_ROOT/full ] || exit 1\";",
        "text = \"new\"; onTest = \"touch \\$TINY_ROOT/full\"; onBoot = \"exit 1\";",
    );
    lab.agent("web").fails_with(&["nothing can be done about it now"]);
    for _ in 0..2 {
        lab.agent("web").fails_with(&["nothing can be done about it now"]);
        assert_eq!(lab.reports("web").len(), 2);
        assert_eq!(lab.state("web"), "failing");
    }
    let report = &lab.reports("web")[1];
    assert_eq!((&report["outcome"], &report["stage"]), (&"failure".into(), &"boot".into()));
    // it is not known to the hub alone: with the next start of the machine it is over
    fs::remove_file(lab.path("hosts/web/full")).unwrap();
    let state = lab.read("hosts/web/state/state.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    lab.write("hosts/web/state/state.json", &state.replace(boot.trim(), "00000000-0000-0000-0000-000000000000"));
    lab.agent("web").fails_with(&["failed here before"]);
    is_back(&lab, &good);
}

#[test]
fn an_agent_that_lost_its_state_overwrites_no_report() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let first = lab.read("chroot/web/logs/report-1-1.json");
    fs::remove_dir_all(lab.path("hosts/web/state")).unwrap();
    lab.agent("web").succeeds();
    assert_eq!(lab.read("chroot/web/logs/report-1-1.json"), first);
    assert_eq!(lab.reports("web").len(), 2);
    assert_eq!(lab.state("web"), "extra-logs");
}
