//! `bento rollout`: waves, and what hosts see when.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bento::fleet::config::Config;
use bento::host::HostName;
use bento::rollout::{RolloutConfig, waves};
use common::Lab;

fn names(names: &[&str]) -> Vec<HostName> {
    names.iter().map(|name| HostName::new(*name).unwrap()).collect()
}

#[test]
fn hosts_come_with_the_first_wave_that_they_fit() {
    let config = Config::parse_toml(
        "[hub]\ndirectory = \"/hub\"\n[hosts.a]\ntags = [\"eu\"]\n[hosts.b]\ntags = [\"eu\"]\n[hosts.d]\ntags = [\"us\"]\n",
    )
    .unwrap();
    let hosts = names(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    let part = |canaries: &[&str], batches: &[&str]| {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let settings = RolloutConfig { canaries: words(canaries), batches: words(batches), ..RolloutConfig::default() };
        let waves = waves(&hosts, &settings, &config).map_err(|error| format!("{error:#}"))?;
        let text = |wave: &bento::rollout::Wave| wave.hosts.iter().map(HostName::as_str).collect::<String>();
        Ok::<_, String>(waves.iter().map(text).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(part(&[], &[]).unwrap(), "abcdefghij");
    assert_eq!(part(&["b"], &["@eu", "@us"]).unwrap(), "b a d cefghij");
    assert_eq!(part(&["1"], &["20%", "3"]).unwrap(), "a bc def ghij");
    assert_eq!(part(&["@eu", "j"], &["@eu", "100%"]).unwrap(), "abj cdefghi");
    for (batch, reason) in [("@nobody", "no host has the tag"), ("0", "at least one host"), ("0%", "from 1% to 100%")] {
        let error = part(&[], &[batch]).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

/// A rollout that runs beside the test.
struct Running(Child);

impl Running {
    fn new(lab: &Lab, arguments: &[&str]) -> Self {
        let mut command = lab.command(&[&["rollout"], arguments].concat());
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for its end; gives whether it went well, and what it said.
    fn end(self) -> (bool, String) {
        let output = self.0.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }
}

/// Waits until a host is offered a release.
#[track_caller]
fn await_serial(lab: &Lab, host: &str, serial: u64) {
    let start = Instant::now();
    while lab.manifest(host)["serial"] != serial {
        assert!(start.elapsed() < Duration::from_secs(60), "{host} is not offered release {serial}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Three hosts that are up to date with release 1, and a change for all of them.
fn three(lab: &Lab, change: &str) {
    for host in ["web", "web2", "db"] {
        lab.flake_host(host, "text = \"one\";");
    }
    lab.bento(&["deploy"]).succeeds();
    for host in ["web", "web2", "db"] {
        lab.agent(host).succeeds();
        lab.flake_host(host, change);
    }
}

#[test]
fn each_wave_waits_for_the_one_before() {
    let Some(lab) = Lab::new() else { return };
    three(&lab, "text = \"two\";");
    let planned = lab.bento(&["rollout", "--canary", "web2", "--dry-run"]).succeeds().stdout;
    assert!(planned.contains("wave 1 of 2, canaries:\n  web2\nwave 2 of 2, the rest:\n  db\n  web\n"), "{planned}");
    let rollout = Running::new(&lab, &["--canary", "web2", "--batch", "1", "--soak", "1s"]);
    await_serial(&lab, "web2", 2);
    // what is changed meanwhile is not part of it, and another one can't begin
    lab.flake_host("web", "text = \"three\";");
    lab.bento(&["rollout"]).fails_with(&["another rollout is at work"]);
    // the others poll, and find nothing new
    lab.agent("db").succeeds();
    assert_eq!((lab.manifest("db")["serial"].clone(), lab.state("db")), (1.into(), "up-to-date".to_owned()));
    lab.agent("web2").succeeds();
    await_serial(&lab, "db", 2);
    assert_eq!(lab.manifest("web")["serial"], 1);
    lab.agent("db").succeeds();
    await_serial(&lab, "web", 2);
    lab.agent("web").succeeds();
    let (ok, said) = rollout.end();
    assert!(ok && said.contains("finished"), "{said}");
    for host in ["web", "web2", "db"] {
        assert_eq!(lab.state(host), "up-to-date");
        let running = lab.running(host).unwrap();
        assert_eq!(
            std::fs::read_to_string(lab.path(&format!("chroot/{host}/releases/2/flake.nix")))
                .unwrap()
                .matches("two")
                .count(),
            1
        );
        assert_eq!(running, lab.manifest(host)["toplevel"]);
    }
    assert!(lab.bento(&["rollout", "--show"]).succeeds().stdout.contains("finished"));
}

#[test]
fn a_failure_stops_it_and_hosts_get_back_what_was_before() {
    let Some(lab) = Lab::new() else { return };
    three(&lab, "text = \"two\";");
    lab.flake_host("db", "text = \"two\"; onTest = \"exit 1\";");
    let before: Vec<String> = ["web", "db"].iter().map(|host| lab.running(host).unwrap()).collect();
    let rollout = Running::new(&lab, &["--canary", "web", "--batch", "db", "--soak", "1s"]);
    await_serial(&lab, "web", 2);
    lab.agent("web").succeeds();
    assert_ne!(lab.running("web").unwrap(), before[0]);
    await_serial(&lab, "db", 2);
    assert!(!lab.agent("db").ok);
    let (ok, said) = rollout.end();
    assert!(!ok && said.contains("db: failed:") && said.contains("stopped: 1 failed, and 0 may"), "{said}");
    // who never had it never sees it
    assert_eq!(lab.manifest("web2")["serial"], 1);
    for (host, before) in ["web", "db"].iter().zip(&before) {
        assert_eq!(lab.manifest(host)["serial"], 3);
        assert_eq!(lab.manifest(host)["toplevel"], before.as_str());
        lab.agent(host).succeeds();
        assert_eq!(lab.running(host).as_ref(), Some(before));
        assert_eq!(lab.state(host), "up-to-date");
    }
}

#[test]
fn failures_that_are_allowed_for_stop_nothing() {
    let Some(lab) = Lab::new() else { return };
    three(&lab, "text = \"two\";");
    lab.flake_host("db", "text = \"two\"; onTest = \"exit 1\";");
    let rollout = Running::new(&lab, &["--canary", "db", "--soak", "1s", "--max-failures", "1"]);
    await_serial(&lab, "db", 2);
    assert!(!lab.agent("db").ok);
    for host in ["web", "web2"] {
        await_serial(&lab, host, 2);
        lab.agent(host).succeeds();
    }
    let (ok, said) = rollout.end();
    assert!(ok, "{said}");
    assert_eq!(lab.manifest("db")["serial"], 2);
}

#[test]
fn a_silent_host_is_a_failed_one() {
    let Some(lab) = Lab::new() else { return };
    three(&lab, "text = \"two\";");
    let (ok, said) =
        Running::new(&lab, &["--canary", "web", "--timeout", "2s", "--undo", "none", "--soak", "1s"]).end();
    assert!(!ok && said.contains("it has not reported within 2 s"), "{said}");
    assert_eq!((lab.manifest("web")["serial"].clone(), lab.manifest("db")["serial"].clone()), (2.into(), 1.into()));
}

#[test]
fn a_host_that_nobody_hears_or_can_believe_any_more_stops_it() {
    let month = Duration::from_secs(30 * 24 * 3600);
    for state in ["stale", "forged report"] {
        let Some(lab) = Lab::new() else { return };
        let keys = lab.path("keys");
        lab.write("fleet/config.sh", &format!("{}HOST_KEYS={}\n", lab.read("fleet/config.sh"), keys.display()));
        three(&lab, "text = \"two\";");
        let rollout = Running::new(&lab, &["--canary", "web", "--soak", "30m", "--undo", "none"]);
        await_serial(&lab, "web", 2);
        lab.agent("web").succeeds();
        assert_eq!(lab.state("web"), "up-to-date");
        // while it is watched
        let seen = "chroot/web/logs/seen.json";
        if state == "stale" {
            let file = std::fs::File::options().write(true).open(lab.path(seen)).unwrap();
            file.set_modified(SystemTime::now() - month).unwrap();
        } else {
            lab.write(seen, &lab.read(seen).replace("\"held\":false", "\"held\":true"));
        }
        let (ok, said) = rollout.end();
        assert!(!ok && said.contains(&format!("web: failed: {state}")), "{said}");
        assert_eq!(lab.manifest("db")["serial"], 1);
    }
}

#[test]
fn one_that_was_killed_goes_on_with_what_it_had() {
    let Some(lab) = Lab::new() else { return };
    three(&lab, "text = \"two\";");
    let mut rollout = Running::new(&lab, &["--canary", "web", "--soak", "1s"]);
    await_serial(&lab, "web", 2);
    // nsenter executes bento in its own place
    rollout.0.kill().unwrap();
    rollout.0.wait().unwrap();
    lab.bento(&["rollout"]).fails_with(&["is not over: --resume goes on with it, --stop stops it"]);
    for host in ["web2", "db"] {
        lab.flake_host(host, "text = \"three\";");
    }
    let rollout = Running::new(&lab, &["--resume"]);
    lab.agent("web").succeeds();
    for host in ["web2", "db"] {
        await_serial(&lab, host, 2);
        assert!(lab.read(&format!("chroot/{host}/releases/2/flake.nix")).contains("two"));
        lab.agent(host).succeeds();
    }
    let (ok, said) = rollout.end();
    assert!(ok, "{said}");
    lab.bento(&["rollout", "--resume"]).fails_with(&["no rollout is under way"]);
}

#[test]
fn what_cannot_be_evaluated_begins_nothing() {
    let Some(lab) = Lab::new() else { return };
    three(&lab, "text = \"two\";");
    lab.flake_host("db", "text = throw \"no luck\";");
    lab.bento(&["rollout", "--canary", "web"]).fails_with(&["nothing is rolled out", "db:", "no luck"]);
    for host in ["web", "web2", "db"] {
        assert_eq!(lab.manifest(host)["serial"], 1);
    }
    lab.bento(&["rollout", "--stop"]).fails_with(&["no rollout is under way"]);
}
