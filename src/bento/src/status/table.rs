//! The table of `bento status`.

use jiff::Timestamp;
use unicode_width::UnicodeWidthStr;

use crate::host::HostKind;
use crate::status::history::printable;
use crate::status::{HostState, HostStatus};

/// The columns' titles and their least widths, in cells of a terminal, with the gap before them.
const COLUMNS: [(&str, usize); 5] =
    [("machine", 10), ("local version", 16), ("remote version", 17), ("state", 19), ("time", 41)];
/// What stands under the titles.
const RULES: [&str; 5] = ["-------", "---------", "-----------", "-------------", "----"];
/// The least gap between two columns.
const GAP: usize = 1;

/// The mark of a state.
pub fn mark(state: HostState) -> &'static str {
    match state {
        HostState::UpToDate | HostState::AutoUpgraded => "💚",
        HostState::SyncPending
        | HostState::RebootNeeded
        | HostState::Held
        | HostState::RebuildPending
        | HostState::ExtraLogs
        | HostState::NewMachine
        | HostState::Removed => "🚩",
        HostState::Rollbacked => "🔃",
        HostState::NotPublished
        | HostState::DamagedRelease
        | HostState::CorruptReport
        | HostState::ForgedReport
        | HostState::Failing
        | HostState::Stale
        | HostState::Diverged => "🛑",
    }
}

/// The ANSI colour of a state.
fn colour(state: HostState) -> &'static str {
    match mark(state) {
        "💚" => "\x1b[32m",
        "🛑" => "\x1b[31m",
        _ => "\x1b[33m",
    }
}

/// The first 8 characters of a version: enough of the hash to tell it from others.
pub fn short(version: &str) -> String {
    version.chars().take(8).collect()
}

/// A time span by its two largest units: `5m 53s`, `2d 3h`. Less than nothing counts as nothing.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let units = [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let parts: Vec<String> = units[first..]
        .iter()
        .take(2)
        .filter(|(count, unit)| *count > 0 || (first == 3 && *unit == "s"))
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    parts.join(" ")
}

/// The cells of one host.
fn cells(status: &HostStatus, now: Timestamp) -> [String; 5] {
    let non_flake = status.kind == Some(HostKind::NonFlake);
    let local = match &status.local_version {
        Some(_) if non_flake => "non-flakes".to_owned(),
        Some(version) => short(version),
        None => "-".to_owned(),
    };
    let remote = match &status.remote_version {
        Some(version) => {
            let mark = match (non_flake, status.versions_match()) {
                (true, _) => "📌",
                (false, true) => "💚",
                (false, false) => "🛑",
            };
            format!("{} {mark}", short(version))
        }
        // as wide as a version with its mark
        None => "-   ".to_owned(),
    };
    let since = |time: Timestamp| span(now.as_second() - time.as_second());
    let mut times = Vec::new();
    times.extend(status.reported.map(|time| format!("(build {})", since(time))));
    if status.stale {
        times.extend(status.seen.map(|time| format!("(seen {})", since(time))));
    }
    if status.pending() {
        times.extend(status.published.map(|time| format!("(new config {})", since(time))));
    }
    let state = format!("{} {}", status.state.words(), mark(status.state));
    [status.machine.to_string(), local, remote, state, times.join(" ")]
}

/// The whole table, with what could not be understood, and what else there is to say, below it. In a window that is not so many cells wide it takes no more
/// than its contents need, and begins with what matters.
pub fn render(hosts: &[HostStatus], now: Timestamp, coloured: bool, window: Option<usize>) -> String {
    let rows: Vec<[String; 5]> = hosts.iter().map(|host| cells(host, now)).collect();
    let content = |column: usize| {
        let title = COLUMNS[column].0;
        let content = rows.iter().map(|row| row[column].width()).chain([title.width()]).max().unwrap_or(0);
        content + if column == 0 { 0 } else { GAP }
    };
    let mut widths: Vec<usize> = (0..COLUMNS.len()).map(|column| COLUMNS[column].1.max(content(column))).collect();
    let narrow = window.is_some_and(|window| widths.iter().sum::<usize>() > window);
    if narrow {
        widths = (0..COLUMNS.len()).map(content).collect();
        // what does not fit is the end of the times
        widths[COLUMNS.len() - 1] = 0;
    }
    let mut text = String::new();
    let mut line = |cells: &[&str], colour: Option<&str>| {
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { 0 } else { GAP };
            text.push_str(&" ".repeat(width.saturating_sub(cell.width()).max(gap)));
            match colour {
                Some(colour) if column == 3 => {
                    text.push_str(colour);
                    text.push_str(cell);
                    text.push_str("\x1b[0m");
                }
                _ => text.push_str(cell),
            }
        }
        text.push('\n');
    };
    line(&COLUMNS.map(|(title, _)| title), None);
    line(&RULES, None);
    for (host, row) in hosts.iter().zip(&rows) {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        line(&cells, coloured.then(|| colour(host.state)));
    }
    for host in hosts {
        for problem in &host.problems {
            text.push_str(&format!("{}: {problem}\n", host.machine));
        }
        for note in &host.notes {
            text.push_str(&format!("{}: {}\n", host.machine, printable(note)));
        }
    }
    text
}
