//! What evaluated code and the evaluator say on their way, on standard error.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;

use bento_eval::Host;
use bento_eval::store::Store;

use crate::ansi::filter_escapes;
use crate::store::NixStore;

/// The evaluator's messages go to standard error.
pub(super) struct Terminal {
    /// Whether they have colours.
    pub(super) color: bool,
    store: NixStore,
}

impl Terminal {
    /// Standard error as it is: with colours if somebody sees them and wants them. What has to be built is built in `store`.
    pub(super) fn new(store: NixStore) -> Terminal {
        Terminal { color: coloured(), store }
    }

    fn message(&self, kind: &str, message: &str) {
        let (start, end) = if self.color { ("\x1b[35;1m", "\x1b[0m") } else { ("", "") };
        let gap = if message.is_empty() || message.starts_with('\n') { "" } else { " " };
        say(&format!("{start}{kind}{end}{gap}{message}"));
    }
}

impl Host for Terminal {
    fn env(&self, name: &str) -> Option<Vec<u8>> {
        std::env::var_os(name).map(OsString::into_vec)
    }

    fn warn(&self, message: &str) {
        self.message("warning:", message);
    }

    fn evaluation_warning(&self, message: &str) {
        self.message("evaluation warning:", &indented(message, "evaluation warning: ".len()));
    }

    fn trace(&self, message: &str) {
        say(&format!("trace: {message}"));
    }

    fn store(&self) -> Option<&dyn Store> {
        Some(&self.store)
    }
}

/// A text whose lines but the first begin so far to the right, without white space where they end, as Nix shows it.
fn indented(text: &str, depth: usize) -> String {
    let lines: Vec<&str> = text.trim_end_matches([' ', '\n', '\r', '\t']).split('\n').map(str::trim_end).collect();
    lines.join(&format!("\n{}", " ".repeat(depth)))
}

/// Whether standard error shows colours, and somebody wants them.
fn coloured() -> bool {
    super::coloured(std::io::stderr().is_terminal())
}

/// Writes a line to standard error, without codes that a terminal would obey; if nobody can read it, it is lost.
pub(super) fn say(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", filter_escapes(message, coloured()));
}
