//! Nix's own log of what it does (`--log-format internal-json`), read line by line.
//!
//! The numbers are those of `ActivityType` and `ResultType` in Nix 2.34's `logging.hh`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::ansi::filter_escapes;

/// How many of a builder's last lines are kept to explain its failure.
const TAIL: usize = 25;

const COPY_PATHS: u64 = 103;
const BUILDS: u64 = 104;
const BUILD: u64 = 105;
const BUILD_LOG_LINE: u64 = 101;
const SET_PHASE: u64 = 104;
const PROGRESS: u64 = 105;

/// How far the build of one system is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many derivations are built, and how many there are to build as far as is known.
    pub built: (u64, u64),
    /// How many store paths are fetched, of how many.
    pub fetched: (u64, u64),
    /// The derivation that began last and is still built, and its phase.
    pub current: Option<String>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (what, (done, all)) in [("built", self.built), ("fetched", self.fetched)] {
            if all > 0 {
                parts.push(format!("{what} {done}/{all}"));
            }
        }
        parts.extend(self.current.clone());
        if parts.is_empty() { f.write_str("preparing") } else { f.write_str(&parts.join(", ")) }
    }
}

/// A derivation that is being built.
#[derive(Debug, Default)]
struct Build {
    name: String,
    phase: String,
    tail: VecDeque<String>,
}

/// What was read of a log so far.
#[derive(Debug, Default)]
pub struct BuildLog {
    progress: Progress,
    /// Whether [`BuildLog::progress`] was not asked for since it changed.
    changed: bool,
    builds: BTreeMap<u64, Build>,
    /// The activities whose progress is that of all builds, or of all fetches.
    totals: BTreeMap<u64, u64>,
    /// The builds that ended, newest last: one of them is what failed.
    ended: VecDeque<Build>,
    errors: Vec<String>,
}

/// One line of the log.
#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Line {
    Start {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        fields: Vec<Value>,
    },
    Stop {
        id: u64,
    },
    Result {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        fields: Vec<Value>,
    },
    Msg {
        level: u64,
        msg: String,
    },
    #[serde(other)]
    Other,
}

impl BuildLog {
    /// Reads a line; gives what people may want to see of it.
    pub fn read(&mut self, line: &str) -> Option<String> {
        let Some(json) = line.strip_prefix("@nix ") else {
            return Some(line.trim_end().to_owned()).filter(|line| !line.is_empty());
        };
        let text = |fields: &[Value], index: usize| fields.get(index).and_then(Value::as_str).map(str::to_owned);
        // what this Nix says and we don't know is no progress
        match serde_json::from_str(json).unwrap_or(Line::Other) {
            Line::Start { id, kind: BUILD, fields } => {
                let name = derivation_name(&text(&fields, 0).unwrap_or_default());
                self.builds.insert(id, Build { name, ..Build::default() });
                self.show_current();
            }
            Line::Start { id, kind: kind @ (BUILDS | COPY_PATHS), .. } => {
                self.totals.insert(id, kind);
            }
            Line::Stop { id } => {
                if let Some(build) = self.builds.remove(&id) {
                    if self.ended.len() == TAIL {
                        self.ended.pop_front();
                    }
                    self.ended.push_back(build);
                    self.show_current();
                }
            }
            Line::Result { id, kind: BUILD_LOG_LINE, fields } => {
                let line = text(&fields, 0)?;
                let build = self.builds.get_mut(&id)?;
                if build.tail.len() == TAIL {
                    build.tail.pop_front();
                }
                build.tail.push_back(line.clone());
                return Some(format!("{}> {line}", build.name));
            }
            Line::Result { id, kind: SET_PHASE, fields } => {
                if let (Some(build), Some(phase)) = (self.builds.get_mut(&id), text(&fields, 0)) {
                    build.phase = phase;
                    self.show_current();
                }
            }
            Line::Result { id, kind: PROGRESS, fields } => {
                let number = |index: usize| fields.get(index).and_then(Value::as_u64).unwrap_or(0);
                let counted = (number(0), number(1));
                let place = match self.totals.get(&id) {
                    Some(&BUILDS) => &mut self.progress.built,
                    Some(_) => &mut self.progress.fetched,
                    None => return None,
                };
                self.changed |= *place != counted;
                *place = counted;
            }
            Line::Msg { level: 0, msg } => self.errors.push(filter_escapes(&msg, false)),
            Line::Msg { level: 1, msg } => return Some(filter_escapes(&msg, false)),
            _ => {}
        }
        None
    }

    /// How far it is, if that changed since it was last asked for.
    pub fn progress(&mut self) -> Option<Progress> {
        std::mem::take(&mut self.changed).then(|| self.progress.clone())
    }

    /// Why it failed: what Nix said, with the last lines of the builder that failed.
    pub fn failure(&self) -> Option<String> {
        let errors: Vec<&str> = self.errors.iter().map(|error| error.trim_start_matches("error: ")).collect();
        let text = errors.join("\n");
        if text.is_empty() {
            return None;
        }
        // newer versions of Nix quote the lines by themselves
        let failed = self.ended.iter().rev().find(|build| {
            let first = build.tail.front();
            text.contains(&build.name) && first.is_some()
        });
        let tail = failed.filter(|build| build.tail.back().is_some_and(|last| !text.contains(last.as_str())));
        Some(match tail {
            None => text,
            Some(build) => {
                let lines: Vec<String> = build.tail.iter().map(|line| format!("       > {line}")).collect();
                format!("{text}\n       the last lines of {}:\n{}", build.name, lines.join("\n"))
            }
        })
    }

    /// Shows the build that began last.
    fn show_current(&mut self) {
        let current = self.builds.last_key_value().map(|(_, build)| match build.phase.as_str() {
            "" => build.name.clone(),
            phase => format!("{} ({phase})", build.name),
        });
        self.changed |= self.progress.current != current;
        self.progress.current = current;
    }
}

/// What a derivation's store path calls it.
fn derivation_name(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    let name = base.split_once('-').map_or(base, |(_, name)| name);
    name.strip_suffix(".drv").unwrap_or(name).to_owned()
}
