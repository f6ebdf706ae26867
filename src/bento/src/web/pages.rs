//! The pages. Everything that is put into one is escaped, and what a host said is also freed of what would turn the text
//! around it.

use std::fmt::Display;

use jiff::{SignedDuration, Timestamp};
use maud::{DOCTYPE, Markup, html};

use super::timeline::{self, Lane};
use crate::diff::PackageChange;
use crate::host::{HostKind, HostName};
use crate::manifest::Manifest;
use crate::status::changes::{Fate, FileChange, ReleaseChanges};
use crate::status::history::{Attempts, Log, Release, Tail, printable};
use crate::status::table::{mark, short, span};
use crate::status::{HostState, HostStatus, Overview};
use crate::store_path::StorePath;

/// How far back timelines go.
pub(super) const TIMELINE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Seconds after which a browser that runs no scripts asks again.
const REFRESH: u32 = 30;

/// A whole page. One that is `live` follows what changes.
fn page(title: &str, live: bool, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · bento" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/style.css";
                @if live {
                    noscript { meta http-equiv="refresh" content=(REFRESH); }
                    script src="/live.js" defer {}
                }
            }
            body {
                nav {
                    strong { "bento" }
                    a href="/" { "Fleet" }
                    a href="/timeline" { "Timeline" }
                    a href="/metrics" { "Metrics" }
                    @if live { span #live { noscript { "asked anew every " (REFRESH) " seconds" } } }
                }
                main { (content) }
            }
        }
    }
}

/// A page that only says something.
pub(super) fn message(title: &str, text: &str) -> Markup {
    page(title, false, &html! { h1 { (title) } p { (printable(text)) } })
}

/// The class of a state: how it is coloured.
fn class(state: HostState) -> &'static str {
    if state.needs_attention() {
        "bad"
    } else if state.is_well() {
        "good"
    } else {
        "waiting"
    }
}

/// A state's words and mark.
fn state(state: HostState) -> Markup {
    html! { span.state class=(class(state)) { (state.words()) " " (mark(state)) } }
}

/// A point of time: how long ago it is, and exactly.
fn ago(time: Option<Timestamp>, now: Timestamp) -> Markup {
    html! {
        @match time {
            Some(time) => time datetime=(time) title=(time) { (span(now.as_second() - time.as_second())) " ago" },
            None => span.dim { "–" },
        }
    }
}

/// A point of time, exactly.
fn at(time: Timestamp) -> Markup {
    html! { time datetime=(time) { (time.strftime("%Y-%m-%d %H:%M:%S UTC")) } }
}

/// A version, cut to what tells it from others.
fn version(version: Option<&str>) -> Markup {
    html! {
        @match version {
            Some(version) => code title=(printable(version)) { (printable(&short(version))) },
            None => span.dim { "–" },
        }
    }
}

/// What could not be read or understood.
fn problems<T: Display>(title: &str, problems: &[T]) -> Markup {
    html! {
        @if !problems.is_empty() {
            section.problems role="alert" {
                strong { (title) }
                ul { @for problem in problems { li { (printable(&problem.to_string())) } } }
            }
        }
    }
}

/// The address of a host's page.
fn host_link(host: &HostName) -> String {
    // a host's name has no character that means something in an address
    format!("/hosts/{host}")
}

/// What a host says besides its state, in a few words.
fn remarks(status: &HostStatus) -> Vec<String> {
    let mut remarks = Vec::new();
    let mut add = |holds: bool, words: &str| {
        if holds {
            remarks.push(words.to_owned());
        }
    };
    add(status.stale && status.state != HostState::Stale, "stale");
    add(status.held && status.state != HostState::Held, "held");
    add(status.reboot_needed && status.state != HostState::RebootNeeded, "reboot needed");
    match status.failed_units {
        Some(1) => remarks.push("1 failed unit".to_owned()),
        Some(count) if count > 1 => remarks.push(format!("{count} failed units")),
        _ => {}
    }
    remarks
}

/// The part of the fleet's page that changes.
pub(super) fn fleet(overview: &Overview, only: Option<HostState>, now: Timestamp) -> Markup {
    let hosts: Vec<&HostStatus> =
        overview.hosts.iter().filter(|status| only.is_none_or(|only| status.state == only)).collect();
    let count = |state: HostState| overview.hosts.iter().filter(|status| status.state == state).count();
    html! {
        (problems("The hub's directory can't be read as it should: hosts may be missing here.", &overview.problems))
        ul.counts {
            li { a href="/" { (overview.hosts.len()) " hosts" } }
            @for state in HostState::ALL.into_iter().filter(|state| count(*state) > 0) {
                li { a class=(class(state)) href=(format!("/?state={}", state.word())) { (count(state)) " " (state.words()) } }
            }
        }
        table {
            thead { tr {
                th scope="col" { "machine" } th scope="col" { "should run" } th scope="col" { "runs" } th scope="col" { "state" }
                th scope="col" { "release" } th scope="col" { "published" } th scope="col" { "reported" }
                th scope="col" { "seen" } th scope="col" { "remarks" }
            } }
            tbody {
                @for status in &hosts {
                    tr {
                        td { a href=(host_link(&status.machine)) { (status.machine) } }
                        td { (version(status.local_version.as_deref())) @if status.kind == Some(HostKind::NonFlake) { " 📌" } }
                        td { (version(status.remote_version.as_deref())) }
                        td { (state(status.state)) }
                        td { @match status.serial { Some(serial) => (serial), None => "–" } }
                        td { (ago(status.published, now)) }
                        td { (ago(status.reported, now)) }
                        td { (ago(status.seen, now)) }
                        td {
                            (remarks(status).join(", "))
                            @if status.state.needs_attention() && let Some(reason) = &status.reason {
                                " " span.dim { (printable(&brief(reason))) }
                            }
                        }
                    }
                }
            }
        }
        @if hosts.is_empty() { p.dim { "There is no host to show." } }
        @for status in hosts.iter().filter(|status| !status.problems.is_empty()) {
            (problems(&format!("What {} left can't all be understood.", status.machine), &status.problems))
        }
        @if !overview.strangers.is_empty() {
            h2 { "What else lies there" }
            ul { @for stranger in &overview.strangers { li { (printable(stranger)) } } }
        }
        p.dim { "As of " (at(now)) "." }
    }
}

/// The first line of a reason, cut to what fits into a table.
fn brief(reason: &str) -> String {
    const LONGEST: usize = 120;
    let line = reason.lines().next().unwrap_or_default();
    if line.chars().count() <= LONGEST { line.to_owned() } else { line.chars().take(LONGEST).chain(['…']).collect() }
}

/// The fleet's page.
pub(super) fn fleet_page(overview: &Overview, only: Option<HostState>, now: Timestamp) -> Markup {
    page("Fleet", true, &html! { h1 { "Fleet" } div #fleet { (fleet(overview, only, now)) } })
}

/// The page with every host's versions over time.
pub(super) fn timeline_page(lanes: &[Lane], found: &[String], now: Timestamp) -> Markup {
    page(
        "Timeline",
        false,
        &html! {
            h1 { "Which version ran when" }
            (problems("Not everything can be read.", found))
            @match timeline::render(lanes, TIMELINE, now) {
                Some(picture) => {
                    (picture)
                    p.dim { "As the hosts' reports say; a dot is the end of an attempt." }
                }
                None => p.dim { "No host has reported anything yet." },
            }
        },
    )
}

/// All that a host's page shows.
pub(super) struct HostView {
    pub(super) status: HostStatus,
    /// What of the hub can't be read.
    pub(super) problems: Vec<String>,
    /// Oldest first.
    pub(super) releases: Vec<Release>,
    pub(super) attempts: Attempts,
    /// Oldest first.
    pub(super) logs: Vec<Log>,
    /// The end of the last log, if there is one.
    pub(super) tail: Option<anyhow::Result<Tail>>,
}

/// A host's page.
pub(super) fn host_page(view: &HostView, now: Timestamp) -> Markup {
    let HostView { status, releases, attempts, logs, .. } = view;
    let lanes = lanes(view);
    page(
        status.machine.as_str(),
        false,
        &html! {
            h1 { (status.machine) }
            p { (state(status.state)) @for remark in remarks(status) { ", " (remark) } }
            @if let Some(reason) = &status.reason { pre { (printable(reason)) } }
            @for note in &status.notes { p { (printable(note)) } }
            (problems("The hub's directory can't be read as it should.", &view.problems))
            (problems("What the host left can't all be understood.", &status.problems))
            dl {
                dt { "should run" } dd { code { (status.local_version.as_deref().unwrap_or("–")) } }
                dt { "runs" } dd { code { (printable(status.remote_version.as_deref().unwrap_or("–"))) } }
                dt { "booted" } dd { code { (printable(status.booted_version.as_deref().unwrap_or("–"))) } }
                dt { "published" } dd { (ago(status.published, now)) }
                dt { "reported" } dd { (ago(status.reported, now)) }
                dt { "seen" } dd { (ago(status.seen, now)) }
            }
            @if let Some(picture) = timeline::render(&lanes, TIMELINE, now) { h2 { "Versions" } (picture) }
            h2 { "Releases" }
            @if releases.is_empty() { p.dim { "Nothing was published yet." } } @else { (release_table(&status.machine, releases)) }
            h2 { "Attempts" }
            (problems("Not every report can be understood.", &attempts.problems))
            @if attempts.attempts.is_empty() { p.dim { "The host has reported none." } } @else { (attempt_table(&status.machine, attempts)) }
            @if let Some(last) = logs.last() {
                h2 { "The last log" }
                p { a href=(log_link(&status.machine, last)) { code { (last.name) } } }
                @match &view.tail {
                    Some(Ok(tail)) => (log_text(tail)),
                    Some(Err(error)) => (problems("It can't be read.", &[format!("{error:#}")])),
                    None => {}
                }
                details {
                    summary { "All logs" }
                    ul { @for log in logs.iter().rev() { li { a href=(log_link(&status.machine, log)) { code { (log.name) } } } } }
                }
            }
        },
    )
}

/// What a host should have run, and what it ran.
fn lanes(view: &HostView) -> Vec<Lane> {
    let wanted = view.releases.iter().filter_map(|release| match &release.manifest {
        Ok(Some(manifest)) => Some((manifest.created, manifest.toplevel.base_name().to_owned())),
        _ => None,
    });
    let wanted = Lane { name: "should run".to_owned(), link: None, versions: wanted.collect(), attempts: Vec::new() };
    vec![wanted, Lane::of_attempts("runs".to_owned(), None, &view.attempts.attempts)]
}

/// The releases, newest first.
fn release_table(host: &HostName, releases: &[Release]) -> Markup {
    html! {
        table {
            thead { tr { th scope="col" { "release" } th scope="col" { "published" } th scope="col" { "system" } th scope="col" { "expires" } th scope="col" {} } }
            tbody {
                @for (index, release) in releases.iter().enumerate().rev() {
                    tr {
                        td { (release.serial) }
                        @match &release.manifest {
                            Ok(Some(manifest)) => {
                                td { (at(manifest.created)) }
                                td { code { (manifest.toplevel.base_name()) } }
                                td { @match manifest.expires { Some(expires) => (at(expires)), None => span.dim { "never" } } }
                                td { @if index > 0 { a href=(format!("{}/releases/{}", host_link(host), release.serial)) { "what it changed" } } }
                            }
                            Ok(None) => td.dim colspan="4" { "what it said was not kept" },
                            Err(error) => td.bad colspan="4" { (printable(&format!("{error:#}"))) },
                        }
                    }
                }
            }
        }
    }
}

/// The attempts, newest first.
fn attempt_table(host: &HostName, attempts: &Attempts) -> Markup {
    html! {
        table {
            thead { tr { th scope="col" { "ended" } th scope="col" { "release" } th scope="col" { "outcome" } th scope="col" { "runs" } th scope="col" { "why" } th scope="col" {} } }
            tbody {
                @for attempt in attempts.attempts.iter().rev() {
                    @let report = &attempt.report;
                    tr {
                        td { (at(attempt.ended)) }
                        td { (report.serial) @if report.attempt > 1 { span.dim { ", attempt " (report.attempt) } } }
                        td class=(if report.outcome.is_success() { "good" } else { "bad" }) { (report.outcome.word()) }
                        td { (version(report.running.as_ref().map(StorePath::base_name))) }
                        td {
                            @if let Some(reason) = &report.reason { (printable(&brief(reason))) }
                            @if !report.failed_units.is_empty() { " " span.bad { (printable(&report.failed_units.join(", "))) } }
                        }
                        td { @if let Some(log) = &report.log { a href=(format!("{}/logs/{}", host_link(host), encoded(log))) { "log" } } }
                    }
                }
            }
        }
        @if attempts.omitted > 0 { p.dim { (attempts.omitted) " older ones are not shown." } }
    }
}

/// The address of a log.
fn log_link(host: &HostName, log: &Log) -> String {
    format!("{}/logs/{}", host_link(host), encoded(&log.name.to_string()))
}

/// A part of an address, with everything but letters, digits and a few signs written as `%XX`.
fn encoded(part: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    part.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The end of a log.
fn log_text(tail: &Tail) -> Markup {
    html! {
        @if tail.cut { p.dim { "Only its end is shown." } }
        pre { (tail.text) }
    }
}

/// A log's page.
pub(super) fn log_page(host: &HostName, log: &Log, tail: &Tail) -> Markup {
    page(
        &format!("Log of {host}"),
        false,
        &html! {
            h1 { "Log of " a href=(host_link(host)) { (host) } }
            p { code { (log.name) } }
            (log_text(tail))
        },
    )
}

/// The page that says what a release changed.
pub(super) fn release_page(host: &HostName, old: &Manifest, new: &Manifest, changes: &ReleaseChanges) -> Markup {
    page(
        &format!("Release {} of {host}", new.serial),
        false,
        &html! {
            h1 { "Release " (new.serial) " of " a href=(host_link(host)) { (host) } }
            dl {
                dt { "before" } dd { code { (old.toplevel) } " " span.dim { "release " (old.serial) ", " (at(old.created)) } }
                dt { "after" } dd { code { (new.toplevel) } " " span.dim { (at(new.created)) } }
            }
            ul { @for difference in &changes.differences { li { (difference) } } }
            h2 { "What the system is built from" }
            @match &changes.derivations {
                Ok(changes) => {
                    @if !changes.reboot.is_empty() { p.bad { "Needs a reboot: " (changes.reboot.join(", ")) } }
                    @for (what, units) in [("started", &changes.units.added), ("stopped", &changes.units.removed), ("restarted", &changes.units.changed)] {
                        @if !units.is_empty() { p { (what) ": " @for unit in units { code { (unit) } " " } } }
                    }
                    (packages(&changes.packages))
                }
                Err(error) => p.dim { "It is not known here: " (printable(&format!("{error:#}"))) },
            }
            h2 { "The closure" }
            @match &changes.closures {
                Ok(changes) => (packages(changes)),
                Err(error) => p.dim { "It is not known here: " (printable(&format!("{error:#}"))) },
            }
            h2 { "Files" }
            @if changes.files.is_empty() { p.dim { "No file differs." } }
            @for file in &changes.files { (file_change(file)) }
        },
    )
}

/// Packages that differ.
fn packages(changes: &[PackageChange]) -> Markup {
    html! {
        @if changes.is_empty() { p.dim { "No package differs." } } @else {
            table { tbody { @for change in changes { tr { td { (change.name) } td { (change.text()) } } } } }
        }
    }
}

/// A file that differs.
fn file_change(file: &FileChange) -> Markup {
    let class = match file.fate {
        Fate::Added => "added",
        Fate::Removed => "removed",
        Fate::Changed => "waiting",
    };
    html! {
        p { code { (file.path) } " " span class=(class) { (file.fate.word()) } }
        @if let Some(lines) = &file.lines {
            pre { @for line in printable(lines).lines() {
                span class=(match line.as_bytes().first() { Some(b'+') => "added", Some(b'-') => "removed", Some(b'@') => "dim", _ => "" }) { (line) } "\n"
            } }
        }
    }
}
