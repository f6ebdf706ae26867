//! Reports on their way: signed by the host, never lost, never out of order, and no more attempts than make sense.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{Lab, Ran};
use serde_json::Value;

/// A laboratory whose fleet knows the host's key.
fn with_known_key() -> Option<Lab> {
    let lab = Lab::new()?;
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    know(&lab, &["web"]);
    Some(lab)
}

/// Writes settings that have these keys for the host.
fn know(lab: &Lab, keys: &[&str]) {
    let keys: Vec<String> = keys.iter().map(|key| lab.read(&format!("keys/{key}.pub")).trim().to_owned()).collect();
    let at = lab.path("");
    let at = at.display();
    let settings = format!(
        "[hub]\ndirectory = \"{at}chroot\"\n[build]\nlocal = false\n[release]\nsigning-key = \"{at}keys/admin\"\n\
         [hosts.web]\nkeys = {keys:?}\n"
    );
    lab.write("fleet/bento.toml", &settings);
}

fn publish(lab: &Lab, system: &str) {
    lab.flake_host("web", system);
    lab.bento(&["deploy"]).succeeds();
}

/// Runs the agent as its timer does.
fn poll(lab: &Lab) -> Ran {
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&["agent", "run", "--config", config.to_str().unwrap()])
}

/// Has the host go back, as somebody at the machine does.
fn roll_back(lab: &Lab) -> Ran {
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&["agent", "rollback", "--config", config.to_str().unwrap()])
}

/// The agent's state file.
fn state(lab: &Lab) -> Value {
    serde_json::from_str(&lab.read("hosts/web/state/state.json")).unwrap()
}

#[test]
fn a_report_is_signed_so_that_anyone_can_check_it() {
    let Some(lab) = with_known_key() else { return };
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    let status = lab.status("web");
    assert_eq!((&status["state"], &status["verified"]), (&"up-to-date".into(), &true.into()), "{status}");
    // by OpenSSH's own program
    lab.write("allowed", &format!("web namespaces=\"bento-report\" {}", lab.read("keys/web.pub")));
    let report = lab.path("chroot/web/logs/report-1-1.json");
    let checked = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "web", "-n", "bento-report", "-f"])
        .arg(lab.path("allowed"))
        .arg("-s")
        .arg(lab.path("chroot/web/logs/report-1-1.json.sig"))
        .stdin(fs::File::open(report).unwrap())
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // hosts whose keys nobody knows are shown all the same
    know(&lab, &[]);
    assert_eq!((lab.state("web").as_str(), &lab.status("web")["verified"]), ("up-to-date", &Value::Null));
}

#[test]
fn a_forged_report_is_shown_as_such() {
    let Some(lab) = with_known_key() else { return };
    publish(&lab, "build = \"exit 1\";");
    lab.agent("web").fails_with(&["the build failed"]);
    assert_eq!(lab.state("web"), "failing");
    let (report, signature) = ("chroot/web/logs/report-1-1.json", "chroot/web/logs/report-1-1.json.sig");
    let (sound, signed) = (lab.read(report), lab.read(signature));

    let shows_forgery = |word: &str| {
        let status = lab.status("web");
        assert_eq!(status["state"], "forged-report", "{status}");
        assert!(status["problems"][0].as_str().unwrap().contains(word), "{status}");
        lab.bento(&["status", "--check"]).fails_with(&[]);
    };
    // changed after it was signed
    lab.write(report, &sound.replace("\"failure\"", "\"success\""));
    shows_forgery("was changed after it was signed");
    // signed by somebody else, in the host's name
    lab.write("forged", &sound.replace("\"failure\"", "\"success\""));
    let forged = lab.path("forged");
    let key = lab.path("keys/db");
    let mut signs = Command::new("ssh-keygen");
    signs.args(["-q", "-Y", "sign", "-n", "bento-report", "-f"]).arg(key).arg(&forged);
    assert!(signs.status().unwrap().success());
    fs::copy(&forged, lab.path(report)).unwrap();
    fs::copy(lab.path("forged.sig"), lab.path(signature)).unwrap();
    shows_forgery("none of the keys that are trusted");
    // not signed at all
    fs::remove_file(lab.path(signature)).unwrap();
    shows_forgery("cannot read");
    // a later one than the host's own, which stays the last that counts
    lab.write(report, &sound);
    lab.write(signature, &signed);
    assert_eq!(lab.state("web"), "failing");
    lab.write("chroot/web/logs/report-1-2.json", &sound.replace("\"attempt\": 1", "\"attempt\": 2"));
    shows_forgery("report-1-2.json");
    assert!(lab.status("web")["reason"].as_str().unwrap().contains("the build failed"));
    // an older one says nothing any more
    lab.write(report, &sound.replace("the build failed", "nothing"));
    fs::remove_file(lab.path("chroot/web/logs/report-1-2.json")).unwrap();
    publish(&lab, "text = \"good\";");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn nobody_else_says_that_a_host_is_there() {
    let Some(lab) = with_known_key() else { return };
    publish(&lab, "");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    let seen = lab.read("chroot/web/logs/seen.json");
    for forged in [
        seen.replace("\"held\":false", "\"held\":true"),
        seen.replace("\"serial\":1", "\"serial\":2"),
        seen[..seen.find(",\"signature\"").unwrap()].to_owned() + "}",
    ] {
        assert_ne!(forged, seen);
        lab.write("chroot/web/logs/seen.json", &forged);
        let status = lab.status("web");
        assert_eq!((&status["state"], &status["held"]), (&"forged-report".into(), &false.into()), "{status}");
    }
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn reports_wait_for_the_hub_and_arrive_in_order() {
    let Some(mut lab) = with_known_key() else { return };
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    // going back and forth needs no hub, and each says so
    publish(&lab, "text = \"two\";");
    lab.agent("web").succeeds();
    lab.stop_hub();
    roll_back(&lab).fails_with(&["not delivered yet"]);
    let queued = lab.names("hosts/web/state/outbox");
    assert_eq!(queued.iter().filter(|name| name.ends_with(".json")).count(), 1, "{queued:?}");
    lab.start_hub("hub");
    poll(&lab).fails_with(&["waiting for a newer one"]);
    assert!(lab.names("hosts/web/state/outbox").is_empty());
    let numbers: Vec<(u64, u64, String)> = lab
        .reports("web")
        .iter()
        .map(|report| {
            let number = |key: &str| report[key].as_u64().unwrap();
            (number("serial"), number("attempt"), report["outcome"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(numbers, [(1, 1, "success".into()), (2, 1, "success".into()), (2, 2, "rollback".into())]);
    assert_eq!(lab.state("web"), "rollbacked");
    // a report of an older release that comes late says nothing of the newer one
    publish(&lab, "text = \"three\";");
    lab.agent("web").succeeds();
    let late = lab.read("chroot/web/logs/report-2-2.json");
    fs::remove_file(lab.path("chroot/web/logs/report-2-2.json")).unwrap();
    lab.write("chroot/web/logs/report-2-2.json", &late);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_report_whose_log_the_disk_has_lost_arrives_without() {
    let Some(mut lab) = with_known_key() else { return };
    for text in ["one", "two"] {
        publish(&lab, &format!("text = \"{text}\";"));
        lab.agent("web").succeeds();
    }
    lab.stop_hub();
    roll_back(&lab).fails_with(&["not delivered yet"]);
    fs::remove_file(lab.path("hosts/web/state/outbox/00000000000000000002-000002.log.gz")).unwrap();
    lab.start_hub("hub");
    let ran = poll(&lab).fails_with(&["waiting for a newer one"]);
    assert!(ran.stderr.contains("a report goes without its log"), "{}", ran.stderr);
    let report = lab.reports("web").pop().unwrap();
    assert_eq!((&report["outcome"], report.get("log")), (&"rollback".into(), None));
    assert_eq!(lab.state("web"), "rollbacked");
}

#[test]
fn what_was_said_in_between_does_not_hide_how_it_ended() {
    let Some(lab) = Lab::new() else { return };
    for text in ["one", "two"] {
        publish(&lab, &format!("text = \"{text}\";"));
        lab.agent("web").succeeds();
    }
    roll_back(&lab).succeeds();
    let why = lab.status("web")["reason"].clone();
    assert!(why.as_str().unwrap().contains("gave up"), "{why}");
    let manifest = lab.read("chroot/web/manifest.json");
    lab.write("chroot/web/manifest.json", "{");
    poll(&lab).fails_with(&["the manifest is not one"]);
    lab.write("chroot/web/manifest.json", &manifest);
    assert_eq!(lab.state("web"), "failing");
    for _ in 0..2 {
        poll(&lab).fails_with(&["release 2 was given up here"]);
        let status = lab.status("web");
        assert_eq!((&status["state"], &status["reason"]), (&"rollbacked".into(), &why));
    }
    assert_eq!(lab.reports("web").len(), 5);
    // and who goes back once more takes up the release
    roll_back(&lab).succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn what_may_pass_is_tried_again_after_longer_and_longer_pauses() {
    let Some(lab) = Lab::new() else { return };
    let builds = lab.path("builds");
    let count = || fs::read_to_string(&builds).unwrap_or_default().lines().count();
    publish(&lab, &format!("build = \"echo >> {}; echo unable to download; exit 1\";", builds.display()));
    poll(&lab).fails_with(&["the build failed"]);
    // a hot loop of polls builds nothing
    for _ in 0..5 {
        poll(&lab).fails_with(&["release 1 could not be taken up 1 times; trying again in"]);
    }
    assert_eq!(count(), 1);
    let mut last = 0;
    for times in 2..=9 {
        let mut state = state(&lab);
        state["put-off"]["until"] = "2020-01-01T00:00:00Z".into();
        lab.write("hosts/web/state/state.json", &state.to_string());
        poll(&lab).fails_with(&["the build failed"]);
        let state = self::state(&lab);
        assert_eq!((count(), &state["put-off"]["times"]), (times, &times.into()));
        let until: jiff::Timestamp = state["put-off"]["until"].as_str().unwrap().parse().unwrap();
        let pause = until.duration_since(jiff::Timestamp::now()).as_secs();
        assert!(pause > last && pause <= 6 * 3600, "{times}: {pause} after {last}");
        last = pause;
    }
    // and it is said once
    assert_eq!(lab.reports("web").len(), 1);
    // somebody who wants it now is not put off
    lab.agent("web").fails_with(&["the build failed"]);
    assert_eq!(count(), 10);
}

#[test]
fn what_is_the_releases_own_fault_is_not_tried_again() {
    let Some(lab) = Lab::new() else { return };
    let builds = lab.path("builds");
    publish(&lab, &format!("build = \"echo >> {}; exit 1\";", builds.display()));
    lab.agent("web").fails_with(&["the build failed"]);
    poll(&lab).fails_with(&["release 1 failed here before; waiting for a newer one"]);
    lab.agent("web").fails_with(&["release 1 failed here before; waiting for a newer one"]);
    assert_eq!(fs::read_to_string(&builds).unwrap().lines().count(), 1);
    assert_eq!(lab.reports("web").len(), 1);
}

#[test]
fn a_release_that_has_expired_is_reported_once() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab, "");
    lab.agent("web").succeeds();
    lab.republish("web", |manifest| manifest["expires"] = "2024-01-01T00:00:00Z".into());
    for _ in 0..3 {
        poll(&lab).fails_with(&["release 1 expired at 2024-01-01", "the time here is"]);
    }
    assert_eq!(lab.reports("web").len(), 2);
    assert_eq!(lab.state("web"), "failing");
    // and that this is over, too
    lab.republish("web", |manifest| manifest["expires"] = "2100-01-01T00:00:00Z".into());
    poll(&lab).succeeds();
    poll(&lab).succeeds();
    assert_eq!((lab.reports("web").len(), lab.state("web").as_str()), (3, "up-to-date"));
}

#[test]
fn another_release_of_the_same_serial_is_taken_up_if_it_is_newer() {
    let Some(lab) = Lab::new() else { return };
    let chroot =
        |action: &str| lab.shell(&action.replace("WEB", &lab.path("chroot/web").display().to_string())).succeeds();
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    // a backup of the hub is put back, and before the host is heard of, another release gets a serial that there was
    chroot("cp -a WEB/. WEB.backup");
    publish(&lab, "text = \"two\";");
    lab.agent("web").succeeds();
    let two = lab.running("web").unwrap();
    let manifest = [lab.read("chroot/web/manifest.json"), lab.read("chroot/web/releases/2.sig")];
    chroot("rm -r WEB && mv WEB.backup WEB");
    publish(&lab, "text = \"three\";");
    assert_eq!(lab.manifest("web")["serial"], 2);
    lab.agent("web").succeeds();
    let three = lab.running("web").unwrap();
    assert_eq!(
        (three.as_str(), lab.state("web").as_str()),
        (lab.manifest("web")["toplevel"].as_str().unwrap(), "up-to-date")
    );
    assert_ne!(two, three);
    // but not the older of the two
    lab.write("chroot/web/manifest.json", &manifest[0]);
    lab.write("chroot/web/releases/2.sig", &manifest[1]);
    poll(&lab).fails_with(&["release 2", "older than the one that was already seen"]);
    assert_eq!(lab.running("web").unwrap(), three);
}

#[test]
fn a_host_that_gets_another_name_takes_up_the_releases_of_that_name() {
    let Some(mut lab) = Lab::new() else { return };
    for text in ["one", "two"] {
        publish(&lab, &format!("text = \"{text}\";"));
        lab.agent("web").succeeds();
    }
    lab.flake_host("db", "text = \"renamed\";");
    lab.bento(&["deploy"]).succeeds();
    lab.stop_hub();
    roll_back(&lab).fails_with(&["not delivered yet"]);
    lab.start_hub("hub");
    let own = lab.path("hosts/web").display().to_string();
    let config = lab.read("hosts/web/agent.toml").replace("\"web\"", "\"db\"").replace("/keys/web\"", "/keys/db\"");
    lab.write("hosts/web/agent.toml", &config);
    assert!(config.contains(&own));
    lab.agent("web").succeeds();
    assert_eq!(lab.running("web").unwrap(), lab.manifest("db")["toplevel"].as_str().unwrap());
    assert_eq!(lab.state("db"), "up-to-date");
    // nobody takes what it said as another host for its word
    let aside = ["00000000000000000002-000002.log.gz", "00000000000000000002-000002.renamed"];
    assert_eq!(lab.names("hosts/web/state/outbox"), aside);
    // what counts from now on is what was seen under that name
    let manifest = lab.read("chroot/db/manifest.json");
    lab.flake_host("db", "text = \"more\";");
    lab.bento(&["deploy", "db"]).succeeds();
    lab.agent("web").succeeds();
    lab.write("chroot/db/manifest.json", &manifest);
    lab.sign("db", "keys/admin", "bento-release");
    poll(&lab).fails_with(&["serial 1, but 2 was already seen"]);
}

#[test]
fn a_build_that_does_not_end_is_ended_and_reported() {
    let Some(lab) = Lab::new() else { return };
    let config = lab.read("hosts/web/agent.toml").replace("[nix]\n", "[nix]\nbuild-timeout = 5\n");
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    let running = lab.running("web").unwrap();
    lab.write("hosts/web/agent.toml", &config);
    publish(&lab, "build = \"sleep 300\";");
    let start = std::time::Instant::now();
    lab.agent("web").fails_with(&["the build failed", "did not end within 5 s and was killed"]);
    assert!(start.elapsed().as_secs() < 60);
    assert_eq!((lab.running("web").unwrap(), lab.state("web")), (running, "failing".to_owned()));
    // the hub has one that ends
    publish(&lab, "text = \"two\";");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn of_a_log_that_is_too_large_the_beginning_and_the_end_are_reported() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab, "onTest = \"echo at the beginning; yes over and over | head -c 40000000; echo at the end\";");
    lab.agent("web").succeeds();
    let report = lab.reports("web").pop().unwrap();
    let log = lab.log("web", &report);
    assert!(log.len() < 17 << 20, "{}", log.len());
    assert!(
        log.contains("at the beginning\n") && log.contains("at the end\n") && log.contains("the hub can be reached")
    );
    let left_out = log.lines().find(|line| line.contains("bytes are left out here")).unwrap();
    assert!(left_out.contains("bento: "), "{left_out}");
    assert_eq!(lab.state("web"), "up-to-date");
}
