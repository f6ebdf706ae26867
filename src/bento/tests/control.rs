//! What somebody at a host can do: see where it stands, go back to what ran before, keep it as it is.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, Ran};
use serde_json::Value;

/// Runs `bento agent` at a host.
fn agent(lab: &Lab, words: &[&str]) -> Ran {
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&[&["agent", "--config", config.to_str().unwrap()], words].concat())
}

/// What `bento agent status --json` says.
fn standing(lab: &Lab) -> Value {
    serde_json::from_str(&agent(lab, &["status", "--json"]).succeeds().stdout).unwrap()
}

/// Publishes a system for the host; gives the release's serial.
fn publish(lab: &Lab, system: &str) -> u64 {
    lab.flake_host("web", system);
    lab.bento(&["deploy"]).succeeds();
    lab.manifest("web")["serial"].as_u64().unwrap()
}

/// A host that runs its second system; gives both.
fn with_two_systems(lab: &Lab, first: &str, second: &str) -> (String, String) {
    let run = |system| {
        publish(lab, system);
        lab.agent("web").succeeds();
        lab.running("web").unwrap()
    };
    (run(first), run(second))
}

#[test]
fn somebody_at_the_machine_goes_back_and_forth() {
    let Some(lab) = Lab::new() else { return };
    agent(&lab, &["rollback"]).fails_with(&["there is no earlier system on record"]);
    let (old, new) = with_two_systems(&lab, "text = \"old\";", "text = \"new\";");
    assert_eq!(standing(&lab)["before"], old.as_str());

    let said = agent(&lab, &["rollback", "--json"]).succeeds();
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap()["result"], "went-back");
    assert_eq!(lab.running("web").unwrap(), old);
    assert_eq!(lab.profile("web"), old);
    assert_eq!(lab.read("hosts/web/boot").trim(), old);
    let status = lab.status("web");
    assert_eq!(status["state"], "rollbacked");
    assert!(status["reason"].as_str().unwrap().contains("somebody at the machine"), "{status}");
    // it stays, until there is another release
    lab.agent("web").fails_with(&["release 2 was given up here; waiting for a newer one"]);
    assert_eq!(lab.running("web").unwrap(), old);

    // and once more is forth
    agent(&lab, &["rollback"]).succeeds();
    assert_eq!(lab.running("web").unwrap(), new);
    assert_eq!(lab.read("hosts/web/boot").trim(), new);
    assert_eq!(lab.state("web"), "up-to-date");
    lab.agent("web").succeeds();
    assert_eq!(lab.activations("web").iter().filter(|line| line.starts_with("test")).count(), 4);
}

#[test]
fn a_rollback_needs_no_hub() {
    let Some(mut lab) = Lab::new() else { return };
    let (old, _) = with_two_systems(&lab, "text = \"old\";", "text = \"new\";");
    lab.stop_hub();
    agent(&lab, &["rollback"]).fails_with(&["the report is not delivered yet"]);
    assert_eq!(lab.running("web").unwrap(), old);
    assert_eq!(standing(&lab)["undelivered"], 1);
    lab.start_hub("hub");
    lab.agent("web").fails_with(&["waiting for a newer one"]);
    assert_eq!(standing(&lab)["undelivered"], 0);
    assert_eq!(lab.state("web"), "rollbacked");
}

#[test]
fn a_rollback_to_what_no_longer_works_changes_nothing() {
    let Some(lab) = Lab::new() else { return };
    // it works once
    let once = "text = \"old\"; onTest = \"[ ! -e \\$TINY_ROOT/old ] || exit 1; touch \\$TINY_ROOT/old\";";
    let (_, new) = with_two_systems(&lab, once, "text = \"new\";");
    agent(&lab, &["rollback"]).fails_with(&["the activation failed"]);
    assert_eq!(lab.running("web").unwrap(), new);
    assert_eq!(lab.profile("web"), new);
    assert_eq!(lab.state("web"), "rollbacked");
    // the release is as good as it was, and the hub is told
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    assert_eq!(standing(&lab)["last"]["outcome"], "success");
}

#[test]
fn another_system_can_be_named() {
    let Some(lab) = Lab::new() else { return };
    let (first, _) = with_two_systems(&lab, "text = \"one\";", "text = \"two\";");
    publish(&lab, "text = \"three\";");
    lab.agent("web").succeeds();
    agent(&lab, &["rollback", "--to", &lab.running("web").unwrap()]).fails_with(&["runs already"]);
    agent(&lab, &["rollback", "--to", "/etc/passwd"]).fails_with(&["leads to no store path"]);
    agent(&lab, &["rollback", "--to", &first]).succeeds();
    assert_eq!(lab.running("web").unwrap(), first);
    assert_eq!(lab.state("web"), "rollbacked");
    // a newer release is taken up from there
    publish(&lab, "text = \"four\";");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    assert_eq!(standing(&lab)["before"], first.as_str());
}

#[test]
fn a_held_host_stays_as_it_is_and_says_so() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    let running = lab.running("web").unwrap();
    agent(&lab, &["release"]).fails_with(&["web is not held here"]);
    agent(&lab, &["hold", "--reason", "a demonstration"]).succeeds();
    publish(&lab, "text = \"two\";");
    for _ in 0..2 {
        let said = lab.agent("web").succeeds().stdout;
        assert!(said.contains("is held and does not take up release 2"), "{said}");
    }
    assert_eq!(lab.running("web").unwrap(), running);
    assert_eq!((lab.state("web").as_str(), lab.status("web")["held"].as_bool()), ("held", Some(true)));
    let shown = agent(&lab, &["status"]).succeeds().stdout;
    assert!(shown.contains("a demonstration") && shown.contains("success of release 1"), "{shown}");
    agent(&lab, &["release"]).succeeds();
    lab.agent("web").succeeds();
    assert_ne!(lab.running("web").unwrap(), running);
    assert_eq!((lab.state("web").as_str(), lab.status("web")["held"].as_bool()), ("up-to-date", Some(false)));
}

#[test]
fn where_a_host_stands_before_its_first_release() {
    let Some(lab) = Lab::new() else { return };
    let standing = standing(&lab);
    assert_eq!(
        (&standing["serial"], &standing["state"], &standing["busy"]),
        (&0.into(), &"idle".into(), &false.into())
    );
    assert!(agent(&lab, &["status"]).succeeds().stdout.contains("none yet"));
}
