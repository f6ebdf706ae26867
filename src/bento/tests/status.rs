//! `bento status`: the seeds' table, and each state from the files that make it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bento::host::{HostKind, HostName};
use bento::hub::Hub;
use bento::report::{LogName, Outcome};
use bento::status::table::{render, span};
use bento::status::{HostState, HostStatus, status};
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
        reason: None,
        problems: Vec::new(),
    }
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
    assert_eq!(render(&hosts, now(), false), expected);
    let coloured = render(&hosts, now(), true);
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
    let table = render(&hosts, now(), false);
    let widths: Vec<usize> = table.lines().map(unicode_width::UnicodeWidthStr::width).collect();
    assert!(widths.iter().all(|width| *width == 26 + 16 + 17 + 19 + 41), "{table}");
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
        status(&Hub::new(self.dir.path()), now()).unwrap().remove(0)
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

#[test]
fn status_of_500_hosts_takes_less_than_a_fifth_of_a_second() {
    let place = Place::new("flake", 1);
    place.report(1, 1, "success", 0);
    let copy = |from: &Path, to: &Path, name: &str| {
        let text = fs::read_to_string(from).unwrap();
        fs::write(to, text.replace("\"web\"", &format!("\"{name}\""))).unwrap();
    };
    for number in 0..499 {
        let name = format!("host{number}");
        let (web, other) = (place.dir.path().join("web"), place.dir.path().join(&name));
        fs::create_dir_all(other.join("logs")).unwrap();
        for file in ["manifest.json", "logs/report-1-1.json"] {
            copy(&web.join(file), &other.join(file), &name);
        }
    }
    // the best of a few runs: other tests want the processor too
    let took = (0..5).map(|_| {
        let start = std::time::Instant::now();
        let hosts = status(&Hub::new(place.dir.path()), now()).unwrap();
        assert_eq!(hosts.iter().filter(|host| host.state == HostState::UpToDate).count(), 500);
        start.elapsed()
    });
    let best = took.min().unwrap();
    println!("{best:?}");
    assert!(best < Duration::from_millis(200), "{best:?}");
}
