//! A host that updates its inputs by itself: a flake with a real input, locked, updated and built.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::Lab;
use serde_json::Value;

/// Writes the flake with another text of its own; its lock stays.
fn write_flake(lab: &Lab, text: &str) {
    let input = lab.path("input");
    lab.flake("fleet/hosts/web", &[]);
    lab.write(
        "fleet/hosts/web/flake.nix",
        &format!(
            "{{ inputs.dep = {{ url = \"git+file://{}\"; flake = false; }}; outputs = {{ self, dep }}: {{
              nixosConfigurations.web.config.system.build.toplevel = import ./system.nix {{
                name = \"web\"; text = \"{text} \" + builtins.readFile \"${{dep}}/text\";
                build = builtins.readFile \"${{dep}}/build\"; onTest = builtins.readFile \"${{dep}}/test\";
              }};
            }}; }}\n",
            input.display()
        ),
    );
}

/// Publishes that.
fn publish(lab: &Lab, text: &str) {
    write_flake(lab, text);
    lab.bento(&["deploy"]).succeeds();
}

/// As [`publish`], with a lock that names the input as it is now.
fn publish_locked(lab: &Lab, text: &str) {
    write_flake(lab, text);
    lab.bento(&["flake-update"]).succeeds();
    lab.bento(&["deploy"]).succeeds();
}

/// What the input holds: a text, and what goes on when the system is built and tried out.
fn set_input(lab: &Lab, text: &str, build: &str, test: &str) {
    lab.write("input/text", text);
    lab.write("input/build", build);
    lab.write("input/test", test);
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(lab.path("input")).args(["-c", "user.name=A", "-c", "user.email=a@example.org"]);
        assert!(command.args(words).stdout(Stdio::null()).status().unwrap().success());
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", text]);
}

/// A host that runs a first release.
fn set_up() -> Option<Lab> {
    let lab = Lab::new()?;
    set_input(&lab, "one", "", "");
    lab.write("fleet/hosts/web/SELF_UPDATE", "");
    publish_locked(&lab, "a");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    Some(lab)
}

/// The text of the system that the host runs.
fn text(lab: &Lab) -> String {
    let system = lab.running("web").unwrap();
    lab.shell(&format!("cat {system}/text")).succeeds().stdout.trim().to_owned()
}

fn last(lab: &Lab) -> Value {
    lab.reports("web").pop().unwrap()
}

#[test]
fn newer_inputs_are_taken_up_and_outlive_the_next_release() {
    let Some(lab) = set_up() else { return };
    assert_eq!(text(&lab), "a one");
    lab.agent("web").succeeds();
    assert_eq!(lab.reports("web").len(), 1);

    set_input(&lab, "two", "", "");
    lab.agent("web").succeeds();
    assert_eq!(text(&lab), "a two");
    assert_eq!(lab.state("web"), "auto-upgraded");
    let report = last(&lab);
    assert_eq!((&report["outcome"], &report["serial"]), (&"autoupdate".into(), &1.into()));
    let input = &report["inputs"][0];
    assert_eq!(input["name"], "dep");
    assert!(input["from"] != input["to"] && input["to"].as_str().unwrap().len() == 40, "{report}");
    // nothing newer, nothing to do
    lab.agent("web").succeeds();
    assert_eq!(lab.reports("web").len(), 2);

    // a release that only changes the configuration does not take the input back
    let lock = lab.read("fleet/hosts/web/flake.lock");
    publish(&lab, "b");
    assert_eq!(lab.read("fleet/hosts/web/flake.lock"), lock);
    lab.agent("web").succeeds();
    assert_eq!(text(&lab), "b two");
    assert_eq!((lab.state("web").as_str(), &last(&lab)["inputs"][0]["name"]), ("auto-upgraded", &"dep".into()));

    // one with another lock is taken up as it is, and the host goes on from there
    set_input(&lab, "three", "", "");
    publish_locked(&lab, "c");
    set_input(&lab, "four", "", "");
    lab.agent("web").succeeds();
    assert_eq!((text(&lab).as_str(), lab.state("web").as_str()), ("c three", "up-to-date"));
    lab.agent("web").succeeds();
    assert_eq!((text(&lab).as_str(), lab.state("web").as_str()), ("c four", "auto-upgraded"));
}

#[test]
fn inputs_that_do_not_work_out_are_left_and_not_tried_again() {
    let Some(lab) = set_up() else { return };
    let builds = lab.path("builds");
    let count = || fs::read_to_string(&builds).unwrap_or_default().lines().count();
    let running = lab.running("web").unwrap();
    // one that can't be built, then one that does not stand its trial
    for (number, (build, test, state)) in
        [("exit 1", "", "failing"), ("", "exit 1", "rollbacked")].into_iter().enumerate()
    {
        set_input(&lab, &format!("bad {number}"), &format!("echo >> {}; {build}", builds.display()), test);
        lab.agent("web").fails_with(&["release 1"]);
        assert_eq!((lab.running("web").unwrap(), lab.state("web")), (running.clone(), state.to_owned()));
        assert_eq!(count(), number + 1);
        lab.agent("web").succeeds();
        assert_eq!((count(), lab.state("web")), (number + 1, state.to_owned()));
    }
    // newer ones are tried
    set_input(&lab, "good", "", "");
    lab.agent("web").succeeds();
    assert_eq!((text(&lab).as_str(), lab.state("web").as_str()), ("a good", "auto-upgraded"));
    // a release that does not work with the host's inputs is taken up with its own
    set_input(&lab, "one", "", "");
    publish(&lab, "${if builtins.readFile \"${dep}/text\" == \"one\" then \"b\" else throw \"too new\"}");
    lab.agent("web").fails_with(&["release 2"]);
    assert_eq!(text(&lab), "a good");
    lab.agent("web").succeeds();
    assert_eq!((text(&lab).as_str(), lab.state("web").as_str()), ("b one", "up-to-date"));
}

#[test]
fn a_source_that_is_away_is_no_failure() {
    let Some(lab) = set_up() else { return };
    fs::rename(lab.path("input"), lab.path("away")).unwrap();
    let said = lab.agent("web").succeeds();
    assert!(said.stderr.contains("cannot look for newer inputs"), "{}", said.stderr);
    // it is reported, once, and neither a failure nor a repetition of the success
    lab.agent("web").succeeds();
    assert_eq!((lab.reports("web").len(), lab.state("web").as_str()), (2, "up-to-date"));
    let report = last(&lab);
    assert_eq!((&report["outcome"], &report["stage"], report.get("reason")), (&"success".into(), &"done".into(), None));
    assert!(report["note"].as_str().unwrap().contains("cannot look for newer inputs"), "{report}");
    let table = lab.bento(&["status"]).succeeds().stdout;
    assert!(table.contains("web: cannot look for newer inputs"), "{table}");
    let log = lab.bento(&["log", "web"]).succeeds().stdout;
    assert!(log.contains("cannot look for newer inputs") && log.contains("input"), "{log}");
    let config = lab.path("hosts/web/agent.toml");
    let standing = lab.bento(&["agent", "status", "--config", config.to_str().unwrap()]).succeeds().stdout;
    assert!(standing.contains("cannot look for newer inputs"), "{standing}");
    // that it is over is reported too
    fs::rename(lab.path("away"), lab.path("input")).unwrap();
    lab.agent("web").succeeds();
    lab.agent("web").succeeds();
    assert_eq!((lab.reports("web").len(), lab.state("web").as_str()), (3, "up-to-date"));
    assert!(last(&lab).get("note").is_none() && !lab.bento(&["status"]).succeeds().stdout.contains("cannot look"));
    // nor does a host update itself that was not told to
    set_input(&lab, "two", "", "");
    fs::remove_file(lab.path("fleet/hosts/web/SELF_UPDATE")).unwrap();
    publish(&lab, "a");
    lab.agent("web").succeeds();
    lab.agent("web").succeeds();
    assert_eq!((text(&lab).as_str(), lab.state("web").as_str()), ("a one", "up-to-date"));
}

#[test]
fn a_pause_that_a_wrong_clock_has_made_does_not_last() {
    let Some(lab) = set_up() else { return };
    set_input(&lab, "two", "", "");
    let mut state: Value = serde_json::from_str(&lab.read("hosts/web/state/state.json")).unwrap();
    // by a clock that was some years ahead
    state["put-off"] = serde_json::json!({ "times": 1, "until": "2099-01-01T00:00:00Z" });
    lab.write("hosts/web/state/state.json", &state.to_string());
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&["agent", "run", "--config", config.to_str().unwrap()]).succeeds();
    assert_eq!((text(&lab).as_str(), lab.state("web").as_str()), ("a two", "auto-upgraded"));
}
