//! `bento status`: the seeds' table, and each state from the files that make it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bento::host::{HostKind, HostName};
use bento::hub::Hub;
use bento::report::{LogName, Outcome};
use bento::status::table::{render, span};
use bento::status::{Expected, HostState, HostStatus, status};
use jiff::{Span, Timestamp};
use tempfile::TempDir;

/// A host's line; times are seconds ago.
fn line(name: &str, kind: HostKind, local: &str, remote: &str, state: HostState, built: i64, new: i64) -> HostStatus {
    let ago = |seconds: i64| Some(now().checked_sub(Span::new().seconds(seconds)).unwrap());
    HostStatus {
        machine: HostName::new(name).unwrap(),
        kind: Some(kind),
        local_version: Some(format!("{local}0000-system")),
        remote_version: Some(format!("{remote}0000-system")),
        state,
        serial: Some(2),
        reported_serial: Some(1),
        published: ago(new),
        reported: ago(built),
        seen: ago(built),
        stale: false,
        held: false,
        reboot_needed: false,
        booted_version: None,
        failed_units: None,
        reason: None,
        notes: Vec::new(),
        verified: None,
        problems: Vec::new(),
    }
}

/// A fleet that polls every quarter of an hour, and whose keys nobody knows.
fn expected() -> Expected {
    Expected { interval: 900, keys: BTreeMap::new() }
}

fn now() -> Timestamp {
    "2024-12-29T12:00:00Z".parse().unwrap()
}

#[test]
fn the_table_is_the_one_of_the_original_bento() {
    use HostKind::{Flake, NonFlake};
    let hosts = [
        line("interbus", NonFlake, "00000000", "1dyc4lgr", HostState::UpToDate, 11, 0),
        line("kikimora", Flake, "996vw3r6", "996vw3r6", HostState::SyncPending, 353, 168),
        line("nas", Flake, "r7ips2c6", "lvbajpc5", HostState::RebuildPending, 349, 105),
        line("t470", Flake, "b2ovrtjy", "ih7vxijm", HostState::Rollbacked, 144, 0),
        line("x1", Flake, "fcz1s2yp", "fcz1s2yp", HostState::UpToDate, 157, 0),
    ];
    let expected =
        "   machine   local version   remote version              state                                     time
   -------       ---------      -----------      -------------                                     ----
  interbus      non-flakes      1dyc4lgr 📌      up to date 💚                              (build 11s)
  kikimora        996vw3r6      996vw3r6 💚    sync pending 🚩       (build 5m 53s) (new config 2m 48s)
       nas        r7ips2c6      lvbajpc5 🛑 rebuild pending 🚩       (build 5m 49s) (new config 1m 45s)
      t470        b2ovrtjy      ih7vxijm 🛑      rollbacked 🔃                           (build 2m 24s)
        x1        fcz1s2yp      fcz1s2yp 💚      up to date 💚                           (build 2m 37s)
";
    assert_eq!(render(&hosts, now(), false, None), expected);
    let coloured = render(&hosts, now(), true, None);
    assert!(coloured.contains("\u{1b}[32mup to date 💚\u{1b}[0m"));
    assert_eq!(
        coloured.replace("\u{1b}[0m", "").replace("\u{1b}[31m", "").replace("\u{1b}[32m", "").replace("\u{1b}[33m", ""),
        expected
    );
}

#[test]
fn long_names_widen_their_column_only() {
    let hosts =
        [line("a-machine-with-a-long-name", HostKind::Flake, "996vw3r6", "996vw3r6", HostState::UpToDate, 1, 1)];
    let table = render(&hosts, now(), false, None);
    let widths: Vec<usize> = table.lines().map(unicode_width::UnicodeWidthStr::width).collect();
    assert!(widths.iter().all(|width| *width == 26 + 16 + 17 + 19 + 41), "{table}");
}

#[test]
fn in_a_narrow_window_the_table_takes_what_its_contents_need() {
    use unicode_width::UnicodeWidthStr;
    let place = Place::new("flake", 1);
    place.report(1, 1, "success", 0);
    let hosts = [place.status()];
    let widest = |table: &str| table.lines().map(UnicodeWidthStr::width).max().unwrap();
    let full = render(&hosts, now(), false, None);
    assert_eq!(render(&hosts, now(), false, Some(widest(&full))), full);
    let narrow = render(&hosts, now(), false, Some(widest(&full) - 1));
    assert!(widest(&narrow) <= 80, "{narrow}");
    let words = |table: &str| table.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&narrow), words(&full));
    // its columns are still columns: the state ends in the same cell on each line
    let ends = |word: &str| narrow.lines().find_map(|line| line.find(word).map(|at| line[..at + word.len()].width()));
    assert_eq!(ends("state"), ends("💚 (build").map(|end| end - " (build".len()));
}

#[test]
fn spans_show_their_two_largest_units() {
    let cases = [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (353, "5m 53s"),
        (3600, "1h"),
        (3601, "1h"),
        (7384, "2h 3m"),
        (86400 * 3 + 3600 * 4 + 5, "3d 4h"),
        (86400 * 400, "400d"),
    ];
    for (seconds, text) in cases {
        assert_eq!(span(seconds), text);
    }
}

#[test]
fn log_names_are_read_whatever_the_version_holds() {
    let hash = "00000000000000000000000000000000";
    for version in [format!("{hash}-nixos-system-a_success_b-24.11"), format!("{hash}-x_failure_rollback")] {
        for (word, outcome) in [
            ("success", Outcome::Success),
            ("autoupdate", Outcome::Autoupdate),
            ("failure", Outcome::Failure),
            ("rollback", Outcome::Rollback),
        ] {
            for number in [1, 2] {
                let suffix = if number == 1 { "" } else { "-2" };
                let name = format!("20241229-1200{suffix}_{version}_{word}.log.gz");
                let log = LogName::parse(&name).unwrap();
                assert_eq!((log.version.as_str(), log.outcome, log.number), (version.as_str(), outcome, number));
                assert_eq!(log.to_string(), name);
            }
        }
    }
    for wrong in
        ["", "x.log.gz", "20241229_v_success.log.gz", "20241229-1200_success.log.gz", "20241229-1200_v_done.log.gz"]
    {
        assert_eq!(LogName::parse(wrong), None, "{wrong}");
    }
}

const HASH: [&str; 2] = ["00000000000000000000000000000000", "11111111111111111111111111111111"];

/// A hub's directory with one host in it.
struct Place {
    dir: TempDir,
}

impl Place {
    /// A host whose release `serial` asks for the first system.
    fn new(kind: &str, serial: u64) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let manifest = serde_json::json!({
            "schema": 1, "serial": serial, "created": "2024-12-29T11:00:00Z", "host": "web", "mode": "source",
            "kind": kind, "toplevel": format!("/nix/store/{}-system", HASH[0]),
            "drv_path": format!("/nix/store/{}-system.drv", HASH[0]),
            "policy": { "reboot": false, "self_update": false }, "files": []
        });
        place.add("manifest.json", &manifest.to_string(), 3600);
        place.add("last_change_date", "", 3600);
        fs::create_dir_all(place.dir.path().join("web/logs")).unwrap();
        place
    }

    /// Adds a file that is so many seconds old.
    fn add(&self, path: &str, text: &str, age: u64) {
        let path: PathBuf = self.dir.path().join("web").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let time = SystemTime::from(now()) - Duration::from_secs(age);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    /// Adds a report of an attempt that left the host with one of the systems.
    fn report(&self, serial: u64, attempt: u64, outcome: &str, system: usize) {
        let report = serde_json::json!({
            "schema": 1, "host": "web", "serial": serial, "attempt": attempt, "outcome": outcome, "stage": "done",
            "running": format!("/nix/store/{}-system", HASH[system]), "started": "2024-12-29T11:30:00Z",
            "finished": "2024-12-29T11:30:00Z", "agent": "0.1.0"
        });
        self.add(&format!("logs/report-{serial}-{attempt}.json"), &report.to_string(), 60);
    }

    /// Adds a log of an agent of the original bento.
    fn log(&self, minute: &str, outcome: &str, system: usize, age: u64) {
        self.add(&format!("logs/{minute}_{}-system_{outcome}.log.gz", HASH[system]), "", age);
    }

    fn state(&self) -> HostState {
        self.status().state
    }

    fn status(&self) -> HostStatus {
        status(&Hub::new(self.dir.path()), &expected(), now()).unwrap().remove(0)
    }
}

#[test]
fn states_come_from_reports() {
    type Said<'a> = &'a [(u64, u64, &'a str, usize)];
    let cases: [(&str, Said<'_>, HostState); 14] = [
        ("flake", &[], HostState::NewMachine),
        ("flake", &[(3, 1, "success", 0)], HostState::UpToDate),
        ("flake", &[(3, 1, "success", 1)], HostState::Diverged),
        ("non-flake", &[(3, 1, "success", 1)], HostState::UpToDate),
        ("flake", &[(3, 1, "failure", 1)], HostState::Failing),
        ("flake", &[(3, 1, "rollback", 1)], HostState::Rollbacked),
        ("flake", &[(3, 1, "rollback", 1), (3, 2, "success", 0)], HostState::UpToDate),
        ("flake", &[(3, 2, "failure", 1), (3, 10, "success", 0)], HostState::UpToDate),
        ("flake", &[(3, 1, "success", 0), (3, 2, "success", 0)], HostState::ExtraLogs),
        ("flake", &[(3, 1, "success", 0), (3, 2, "autoupdate", 1)], HostState::AutoUpgraded),
        ("flake", &[(2, 1, "success", 0)], HostState::SyncPending),
        ("flake", &[(2, 1, "success", 1)], HostState::RebuildPending),
        ("flake", &[(2, 1, "failure", 1)], HostState::RebuildPending),
        ("flake", &[(4, 1, "success", 0)], HostState::Diverged),
    ];
    for (kind, said, state) in cases {
        let place = Place::new(kind, 3);
        for (serial, attempt, outcome, system) in said {
            place.report(*serial, *attempt, outcome, *system);
        }
        assert_eq!(place.state(), state, "{kind} {said:?}");
    }
}

#[test]
fn states_come_from_logs_of_the_original_bento() {
    type Said<'a> = &'a [(&'a str, &'a str, usize, u64)];
    let cases: [(Said<'_>, HostState); 8] = [
        (&[("20241229-1130", "success", 0, 1800)], HostState::UpToDate),
        (&[("20241229-1130", "success", 1, 1800)], HostState::Diverged),
        (&[("20241229-1130", "failure", 1, 1800)], HostState::Failing),
        (&[("20241229-1130", "rollback", 1, 1800)], HostState::Rollbacked),
        (&[("20241229-1130", "autoupdate", 1, 1800)], HostState::AutoUpgraded),
        (&[("20241229-1130", "success", 0, 1800), ("20241229-1140", "success", 0, 1200)], HostState::ExtraLogs),
        (&[("20241229-1000", "success", 0, 7200)], HostState::SyncPending),
        (&[("20241229-1000", "success", 1, 7200)], HostState::RebuildPending),
    ];
    for (said, state) in cases {
        let place = Place::new("flake", 1);
        for (minute, outcome, system, age) in said {
            place.log(minute, outcome, *system, *age);
        }
        assert_eq!(place.state(), state, "{said:?}");
    }
}

#[test]
fn a_host_that_moves_over_is_judged_by_its_reports() {
    let place = Place::new("flake", 1);
    place.log("20241229-1130", "failure", 1, 1800);
    place.report(1, 1, "success", 0);
    assert_eq!(place.state(), HostState::UpToDate);
}

#[test]
fn a_clock_that_is_wrong_does_not_make_times_wrong() {
    let place = Place::new("flake", 1);
    place.report(1, 1, "success", 0);
    let file = place.dir.path().join("web/logs/report-1-1.json");
    let text = fs::read_to_string(&file).unwrap().replace("2024-12-29T11:30", "2030-01-01T00:00");
    place.add("logs/report-1-1.json", &text, 60);
    assert_eq!(place.status().reported.unwrap(), now().checked_sub(Span::new().seconds(60)).unwrap());
}

#[test]
fn what_cannot_be_read_is_not_passed_over() {
    let place = Place::new("flake", 1);
    place.add("logs/holiday.jpg", "", 0);
    assert!(place.status().problems[0].contains("holiday.jpg"));
    place.add("manifest.json", "{", 0);
    let status = place.status();
    assert_eq!(status.state, HostState::DamagedRelease);
    assert!(status.problems.iter().any(|problem| problem.contains("manifest.json")));
    fs::remove_file(place.dir.path().join("web/manifest.json")).unwrap();
    assert_eq!(place.state(), HostState::NotPublished);
}

impl Place {
    /// Adds what the host says with a poll that was so many seconds ago; `more` are more fields.
    fn presence(&self, age: u64, more: &serde_json::Value) {
        let mut presence = serde_json::json!({
            "schema": 1, "host": "web", "serial": 1, "time": "2024-12-29T11:30:00Z", "agent": "0.1.0"
        });
        for (key, value) in more.as_object().unwrap() {
            presence[key] = value.clone();
        }
        self.add("logs/seen.json", &presence.to_string(), age);
    }
}

#[test]
fn a_host_that_went_silent_is_stale_by_its_own_interval() {
    use serde_json::json;
    // hosts that don't say how often they poll are taken to do so every 15 minutes; one lost poll is nothing yet
    let cases = [
        (json!({}), 1800, HostState::UpToDate),
        (json!({}), 1801, HostState::Stale),
        (json!({ "interval": 3600 }), 7200, HostState::UpToDate),
        (json!({ "interval": 3600 }), 7201, HostState::Stale),
        (json!({ "interval": 60 }), 121, HostState::Stale),
        (json!({ "interval": u64::MAX }), 100_000, HostState::UpToDate),
    ];
    for (more, age, state) in cases {
        let place = Place::new("flake", 1);
        place.report(1, 1, "success", 0);
        place.presence(age, &more);
        assert_eq!((place.state(), place.status().stale), (state, state == HostState::Stale), "{more} {age}");
        let shown = render(&[place.status()], now(), false, None).contains("(seen ");
        assert_eq!(shown, state == HostState::Stale);
    }
    // one that never said anything by itself can't be late
    let place = Place::new("flake", 1);
    place.report(1, 1, "success", 0);
    assert_eq!(place.state(), HostState::UpToDate);
    // by the hub's clock: what the host's says does not matter
    place.presence(60, &json!({ "time": "1970-01-01T00:00:00Z" }));
    assert_eq!(place.state(), HostState::UpToDate);
}

#[test]
fn a_host_that_reports_and_of_which_no_poll_can_be_read_is_stale_in_time() {
    for presence in ["", "{\"schema\": 99}", "{\"schema\": 1"] {
        let place = Place::new("flake", 1);
        place.report(1, 1, "success", 0);
        place.add("logs/seen.json", presence, 1800);
        assert_eq!(place.state(), HostState::UpToDate);
        place.add("logs/seen.json", presence, 1801);
        let status = place.status();
        assert_eq!((status.state, status.stale), (HostState::Stale, true), "{presence}");
        assert!(status.problems[0].contains("seen.json"), "{:?}", status.problems);
    }
}

#[test]
fn a_host_that_runs_another_system_by_now_than_it_reported_is_diverged() {
    let running = |system: usize| serde_json::json!({ "running": format!("/nix/store/{}-system", HASH[system]) });
    for kind in ["flake", "non-flake"] {
        for outcome in ["success", "autoupdate"] {
            let place = Place::new(kind, 1);
            place.report(1, 1, outcome, 0);
            place.presence(30, &running(0));
            assert_ne!(place.state(), HostState::Diverged);
            // somebody has activated another one there, or started it from the boot menu
            place.presence(30, &running(1));
            let status = place.status();
            assert_eq!(status.state, HostState::Diverged, "{kind} {outcome}");
            assert_eq!(status.remote_version.unwrap(), format!("{}-system", HASH[1]));
            // what it said before the report does not count against that
            place.presence(90, &running(1));
            assert_ne!(place.state(), HostState::Diverged);
        }
    }
    // a release that waits is what counts, and a failure stays one
    let place = Place::new("flake", 2);
    place.report(1, 1, "success", 0);
    place.presence(30, &running(1));
    assert_eq!(place.state(), HostState::RebuildPending);
    place.report(2, 1, "failure", 0);
    assert_eq!(place.state(), HostState::Failing);
}

#[test]
fn a_report_about_a_release_that_the_hub_never_had_is_none_about_the_one_of_its_serial() {
    let wanted = |attempt: u64, system: usize| {
        serde_json::json!({
            "schema": 1, "host": "web", "serial": 1, "attempt": attempt, "outcome": "success", "stage": "done",
            "wanted": format!("/nix/store/{}-system", HASH[system]), "running": format!("/nix/store/{}-system", HASH[system]),
            "started": "2024-12-29T11:30:00Z", "finished": "2024-12-29T11:30:00Z", "agent": "0.1.0"
        })
        .to_string()
    };
    let place = Place::new("flake", 1);
    place.add("logs/report-1-1.json", &wanted(1, 1), 60);
    assert_eq!(place.state(), HostState::Diverged);
    // the host has taken up that of this serial, too: no repetition
    place.add("logs/report-1-2.json", &wanted(2, 0), 60);
    assert_eq!(place.state(), HostState::UpToDate);
    place.add("logs/report-1-3.json", &wanted(3, 0), 60);
    assert_eq!(place.state(), HostState::ExtraLogs);
}

#[test]
fn what_needs_a_person_is_not_hidden_by_what_does_not() {
    use serde_json::json;
    let silent_and_held = json!({ "held": true, "reboot_needed": true, "interval": 1 });
    for (outcome, state) in
        [("failure", HostState::Failing), ("rollback", HostState::Rollbacked), ("success", HostState::Stale)]
    {
        let place = Place::new("flake", 1);
        place.report(1, 1, outcome, 0);
        place.presence(60, &silent_and_held);
        let status = place.status();
        assert_eq!(status.state, state, "{outcome}");
        assert!(status.stale && status.held && status.reboot_needed);
    }
}

#[test]
fn a_host_says_that_it_needs_a_reboot_or_is_held() {
    use serde_json::json;
    let place = Place::new("flake", 2);
    place.report(2, 1, "success", 0);
    let booted = format!("/nix/store/{}-system", HASH[1]);
    place.presence(60, &json!({ "reboot_needed": true, "booted": booted, "failed_units": 3 }));
    let status = place.status();
    assert_eq!((status.state, status.failed_units), (HostState::RebootNeeded, Some(3)));
    assert_eq!(status.booted_version.unwrap(), format!("{}-system", HASH[1]));
    place.presence(60, &json!({ "reboot_needed": true, "held": true }));
    assert_eq!(place.state(), HostState::Held);
    // a release waits: that is what counts, the reboot comes after it
    let place = Place::new("flake", 3);
    place.report(2, 1, "success", 1);
    place.presence(60, &json!({ "reboot_needed": true }));
    assert_eq!(place.state(), HostState::RebuildPending);
    // another host's word is none
    place.presence(60, &json!({ "host": "db", "held": true }));
    assert_eq!(place.state(), HostState::RebuildPending);
    assert!(place.status().problems[0].contains("seen.json") && place.status().problems[0].contains("host db"));
}

#[test]
fn states_that_need_a_person_are_those_that_bento_does_not_leave_by_itself() {
    use HostState::*;
    let attention: Vec<HostState> = HostState::ALL.into_iter().filter(|state| state.needs_attention()).collect();
    assert_eq!(
        attention,
        [NotPublished, DamagedRelease, CorruptReport, ForgedReport, Failing, Rollbacked, Diverged, RebootNeeded, Stale]
    );
    let words: std::collections::BTreeSet<&str> = HostState::ALL.iter().map(|state| state.words()).collect();
    assert_eq!(words.len(), HostState::ALL.len());
}

/// The program's `status`, for the hub of a place.
fn command(place: &Place, arguments: &[&str]) -> std::process::Command {
    fs::write(place.dir.path().join("config.sh"), format!("CHROOT_DIR={}\n", place.dir.path().display())).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bento"));
    command.arg("status").args(arguments).env("BENTO_DIR", place.dir.path()).env_remove("NO_COLOR");
    command
}

#[test]
fn a_check_fails_when_a_host_needs_a_person() {
    let place = Place::new("flake", 1);
    let check = || command(&place, &["--check"]).output().unwrap().status.code();
    assert_eq!(check(), Some(0), "a new machine");
    place.report(1, 1, "success", 0);
    assert_eq!(check(), Some(0));
    place.report(1, 2, "failure", 0);
    assert_eq!(check(), Some(1));
    let output = command(&place, &["--check", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let hosts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(hosts[0]["state"], "failing");
    // without being asked, it only shows
    assert!(command(&place, &[]).status().unwrap().success());
}

#[test]
fn status_is_told_as_metrics() {
    let place = Place::new("flake", 3);
    place.report(3, 1, "failure", 1);
    let booted = format!("/nix/store/{}-system", HASH[1]);
    place.presence(60, &serde_json::json!({ "booted": booted, "failed_units": 2, "reboot_needed": true }));
    fs::create_dir_all(place.dir.path().join("db")).unwrap();
    let hosts = status(&Hub::new(place.dir.path()), &expected(), now()).unwrap();
    let text = bento::status::metrics::render(&hosts, 0);
    let version = format!(
        "bento_host_version_info{{host=\"web\",desired=\"{}-system\",running=\"{}-system\",booted=\"{1}-system\"}} 1",
        HASH[0], HASH[1]
    );
    for line in [
        "bento_hosts{state=\"failing\"} 1",
        "bento_hosts{state=\"not published\"} 1",
        "bento_hosts{state=\"up to date\"} 0",
        "bento_host_state{host=\"web\",state=\"failing\"} 1",
        "bento_host_needs_attention{host=\"web\"} 1",
        "bento_host_runs_desired{host=\"web\"} 0",
        "bento_host_reboot_needed{host=\"web\"} 1",
        "bento_host_reboot_needed{host=\"db\"} 0",
        "bento_host_serial{host=\"web\"} 3",
        "bento_host_failed_units{host=\"web\"} 2",
        "bento_host_published_timestamp_seconds{host=\"web\"} 1735470000",
        &version,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // what is not known of a host is not told
    assert!(!text.contains("bento_host_serial{host=\"db\"}"));
    let printed = command(&place, &["--metrics"]).output().unwrap();
    assert!(String::from_utf8(printed.stdout).unwrap().contains("bento_hosts{state=\"failing\"} 1"));
    // Prometheus itself finds nothing to say
    use std::io::Write;
    let promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("skipped: promtool is missing");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `bento status` on a terminal of its own.
struct Terminal {
    process: std::process::Child,
    output: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Terminal {
    /// Begins to show; `None` if this machine has no `script` to make a terminal with.
    fn new(place: &Place, no_color: &str) -> Option<Self> {
        use std::io::Read;
        let status = command(place, &[]);
        let line = format!("stty rows 24 cols 200; exec {} status", status.get_program().to_str().unwrap());
        let spawned = std::process::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("BENTO_DIR", place.dir.path())
            .env("NO_COLOR", no_color)
            .env("SHELL", "/bin/sh")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut process) = spawned else {
            eprintln!("skipped: script is missing");
            return None;
        };
        let output = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (shared, mut pipe) = (output.clone(), process.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut bytes = Vec::new();
            while let Ok(count) = pipe.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                bytes.extend_from_slice(&buffer[..count]);
                *shared.lock().unwrap() = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        Some(Self { process, output })
    }

    /// Waits until a text is shown; gives all that was shown so far.
    #[track_caller]
    fn wait_for(&self, text: &str) -> String {
        let start = std::time::Instant::now();
        loop {
            let shown = self.output.lock().unwrap().clone();
            if shown.contains(text) {
                return shown;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no {text:?} in {shown:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn on_a_terminal_the_table_stays_and_follows_what_happens() {
    let place = Place::new("flake", 1);
    let Some(terminal) = Terminal::new(&place, "") else { return };
    let shown = terminal.wait_for("new machine");
    assert!(shown.starts_with("\u{1b}[?7l\u{1b}[H\u{1b}[2J"), "{shown:?}");
    assert!(shown.contains("\u{1b}[33m"), "coloured: {shown:?}");
    let start = std::time::Instant::now();
    place.report(1, 1, "success", 0);
    terminal.wait_for("up to date");
    // because of the change, and not because it looks now and then
    assert!(start.elapsed() < Duration::from_secs(4));
    place.report(1, 2, "rollback", 1);
    terminal.wait_for("rollbacked");
    // a host that comes is watched as well
    let other = place.dir.path().join("web2");
    fs::create_dir_all(other.join("logs")).unwrap();
    terminal.wait_for("not published");
    fs::write(other.join("logs/strange"), "").unwrap();
    terminal.wait_for("strange is neither");
}

#[test]
fn no_color_is_respected() {
    let place = Place::new("flake", 1);
    let Some(terminal) = Terminal::new(&place, "1") else { return };
    assert!(!terminal.wait_for("new machine").contains("\u{1b}[33m"));
}

#[test]
fn a_table_that_is_too_long_for_the_window_says_so() {
    let place = Place::new("flake", 1);
    for number in 0..40 {
        fs::create_dir_all(place.dir.path().join(format!("host{number}/logs"))).unwrap();
    }
    let Some(terminal) = Terminal::new(&place, "") else { return };
    terminal.wait_for("(21 more lines");
}

#[test]
fn status_of_500_hosts_of_some_years_takes_less_than_a_fifth_of_a_second_of_the_processor() {
    let place = Place::new("flake", 20);
    // a host of some years: many files, releases, attempts and logs
    let file = |number| {
        let path = format!("modules/service-{number}/default.nix");
        serde_json::json!({ "path": path, "mode": "0644", "size": 1000, "blake3": "0".repeat(64) })
    };
    let text = fs::read_to_string(place.dir.path().join("web/manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    manifest["files"] = (0..50).map(file).collect();
    place.add("manifest.json", &manifest.to_string(), 60);
    for serial in 1..=20 {
        place.report(serial, 1, "failure", 1);
        place.report(serial, 2, "success", 0);
        place.log(&format!("20241229-11{serial:02}"), "success", 0, 60);
    }
    place.presence(60, &serde_json::json!({}));
    let copy = |from: &Path, to: &Path, name: &str| {
        let text = fs::read_to_string(from).unwrap();
        fs::write(to, text.replace("\"web\"", &format!("\"{name}\""))).unwrap();
    };
    for number in 0..499 {
        let name = format!("host{number}");
        let (web, other) = (place.dir.path().join("web"), place.dir.path().join(&name));
        fs::create_dir_all(other.join("logs")).unwrap();
        copy(&web.join("manifest.json"), &other.join("manifest.json"), &name);
        for entry in fs::read_dir(web.join("logs")).unwrap() {
            let file = entry.unwrap().file_name();
            copy(&web.join("logs").join(&file), &other.join("logs").join(&file), &name);
        }
    }
    // the processor's time for this thread, and not the clock's: others want the processor too
    let spent = || -> u64 {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    let took = (0..5).map(|_| {
        let start = spent();
        let hosts = status(&Hub::new(place.dir.path()), &expected(), now()).unwrap();
        assert_eq!(hosts.iter().filter(|host| host.state == HostState::UpToDate).count(), 500);
        Duration::from_nanos(spent() - start)
    });
    let best = took.min().unwrap();
    println!("{best:?}");
    assert!(best < Duration::from_millis(200), "{best:?}");
}
