//! Progress of builds, for people: a line for each host that is at work where standard error is a terminal, and nothing
//! but what must be said where it is not.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use crate::build::Watcher;
use crate::build::log::Progress;
use crate::host::{Host, HostName};

/// Shows how far builds are.
pub(super) struct Display {
    terminal: bool,
    verbose: bool,
    lines: Mutex<Lines>,
}

/// What is shown below everything else.
#[derive(Default)]
struct Lines {
    hosts: BTreeMap<HostName, String>,
    /// How many lines are on the screen now.
    drawn: usize,
}

impl Display {
    /// Shows to standard error; with `VERBOSE` in the environment, also what builders print.
    pub(super) fn new() -> Self {
        let verbose = std::env::var_os("VERBOSE").is_some_and(|value| !value.is_empty());
        Self { terminal: std::io::stderr().is_terminal(), verbose, lines: Mutex::default() }
    }

    /// Changes the lines, says something above them, and draws them anew.
    fn redraw(&self, said: Option<&str>, change: impl FnOnce(&mut Lines)) {
        let Ok(mut lines) = self.lines.lock() else { return };
        change(&mut lines);
        let mut text = String::new();
        if self.terminal {
            if lines.drawn > 0 {
                text += &format!("\x1b[{}A\x1b[J", lines.drawn);
            }
            if let Some(said) = said {
                text += &format!("{said}\n");
            }
            let width = terminal_size::terminal_size_of(std::io::stderr()).map_or(80, |(width, _)| width.0.into());
            for (host, line) in &lines.hosts {
                let line: String = format!("{host}: {line}").chars().take(width - 1).collect();
                text += &format!("{line}\n");
            }
            lines.drawn = lines.hosts.len();
        } else if let Some(said) = said {
            text = format!("{said}\n");
        }
        // if nobody can read it, it is lost
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

impl Watcher for Display {
    fn progress(&self, host: &Host, progress: &Progress) {
        self.redraw(None, |lines| {
            lines.hosts.insert(host.name.clone(), progress.to_string());
        });
    }

    fn line(&self, host: &Host, line: &str) {
        if self.verbose {
            self.redraw(Some(&format!("{}: {line}", host.name)), |_| ());
        }
    }

    fn done(&self, host: &Host) {
        self.redraw(None, |lines| {
            lines.hosts.remove(&host.name);
        });
    }
}
