//! Progress, for people: a line for each host that is at work where standard error is a terminal, and nothing but what must be
//! said where it is not.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::ansi::filter_escapes;
use crate::build::Watcher;
use crate::build::log::Progress;
use crate::host::Host;

/// Shows how far something is for several hosts.
pub(super) struct Display {
    terminal: bool,
    /// Whether what programs print is shown too.
    pub(super) verbose: bool,
    screen: MultiProgress,
    lines: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Display {
    /// Shows to standard error; with `VERBOSE` in the environment, also what builders print.
    pub(super) fn new() -> Self {
        let verbose = std::env::var_os("VERBOSE").is_some_and(|value| !value.is_empty());
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, verbose, screen: MultiProgress::new(), lines: Mutex::default() }
    }

    /// Whether there are lines that change.
    pub(super) fn is_live(&self) -> bool {
        self.terminal
    }

    /// Says something above the lines, for good.
    pub(super) fn say(&self, text: &str) {
        // if nobody can read it, it is lost; the screen's own way to print shows nothing on a terminal that has no width, as a serial one
        // may not
        let text = filter_escapes(text, super::coloured(self.terminal));
        let say = || writeln!(std::io::stderr().lock(), "{text}");
        let _ = if self.terminal { self.screen.suspend(say) } else { say() };
    }

    /// Says how far a host is.
    pub(super) fn set(&self, host: &str, text: &str) {
        let Ok(mut lines) = self.lines.lock() else { return };
        let line = lines.entry(host.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix}: {wide_msg}");
            let bar = self.screen.add(ProgressBar::no_length());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())).with_prefix(host.to_owned())
        });
        line.set_message(text.to_owned());
        line.tick();
    }

    /// Takes a host's line away.
    pub(super) fn end(&self, host: &str) {
        let line = self.lines.lock().ok().and_then(|mut lines| lines.remove(host));
        if let Some(line) = line {
            line.finish_and_clear();
            self.screen.remove(&line);
        }
    }
}

impl Watcher for Display {
    fn progress(&self, host: &Host, progress: &Progress) {
        self.set(host.name.as_str(), &progress.to_string());
    }

    fn line(&self, host: &Host, line: &str) {
        if self.verbose {
            self.say(&format!("{}: {line}", host.name));
        }
    }

    fn done(&self, host: &Host) {
        self.end(host.name.as_str());
    }
}
