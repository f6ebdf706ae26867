//! The sources that npins pins: which of them there are, and having `npins` bring them up to date.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::Interruptions;

/// Where npins keeps what is pinned, in a directory.
const FILE: &str = "npins/sources.json";
/// For how long npins may take.
const LIMIT: Duration = Duration::from_secs(900);

/// The pins of one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The directory that has `npins/` in it.
    pub dir: PathBuf,
}

/// A pin that is another one now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// What it was: a version, or a revision.
    pub before: Option<String>,
    /// What it is.
    pub after: Option<String>,
}

impl Pins {
    /// Those of a fleet: at its top, and in each directory below `hosts/`.
    pub fn of_fleet(root: &Path) -> Result<Vec<Self>> {
        let mut dirs = vec![root.to_owned()];
        let hosts = root.join("hosts");
        match fs::read_dir(&hosts) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries.with_context(|| format!("cannot read {}", hosts.display()))? {
                    dirs.push(entry.with_context(|| format!("cannot read {}", hosts.display()))?.path());
                }
            }
        }
        dirs.sort();
        Ok(dirs.into_iter().map(|dir| Self { dir }).filter(|pins| pins.file().is_file()).collect())
    }

    /// The file that they are in.
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// What each is: a version or, where there is none, a revision or a hash.
    fn read(&self) -> Result<BTreeMap<String, String>> {
        let file = self.file();
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let all: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not npins's", file.display()))?;
        let pins = all.get("pins").and_then(Value::as_object);
        let pins = pins.with_context(|| format!("{} is not npins's: it has no pins", file.display()))?;
        let what = |pin: &Value| {
            let text = |key: &str| pin.get(key).and_then(Value::as_str).map(str::to_owned);
            text("version").or_else(|| text("revision")).or_else(|| text("hash")).unwrap_or_default()
        };
        Ok(pins.iter().map(|(name, pin)| (name.clone(), what(pin))).collect())
    }

    /// The names of those that there are.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.read()?.into_keys().collect())
    }

    /// Has npins bring these pins up to date, or all if none is named; gives those that are others now. It is ended when this
    /// process is told to.
    pub fn update(&self, names: &[String], interruptions: &Interruptions) -> Result<Vec<Moved>> {
        let before = self.read()?;
        let mut command = Command::new("npins");
        command.arg("-d").arg(self.dir.join("npins")).arg("update").args(names);
        // what it prints is for people, and no result of this program's
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        let status = interruptions.attend(&mut command, LIMIT).with_context(|| {
            format!(
                "{} is npins's: nix-shell has it in a fleet of `bento init --template servers`",
                self.file().display()
            )
        })?;
        if !status.success() {
            bail!("npins ended with {status}; it has said why");
        }
        let after = self.read()?;
        let all: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let moved = all.into_iter().filter(|name| before.get(*name) != after.get(*name));
        Ok(moved
            .map(|name| Moved {
                name: name.clone(),
                before: before.get(name).cloned(),
                after: after.get(name).cloned(),
            })
            .collect())
    }
}
