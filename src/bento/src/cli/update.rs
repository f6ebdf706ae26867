//! `bento update`: newer versions of what the fleet is made of, looked at and deployed in one step.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::files;
use crate::fleet;
use crate::process::Interruptions;
use crate::provision::pins::Pins;

/// For how long locks may be brought up to date, and hosts be compared.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Bring the fleet's pins and locks up to date, show what that changes on each host, and deploy it once somebody has agreed
///
/// Pins are npins's (npins/sources.json), locks are those of flakes. What is not deployed, because somebody says no or interrupts it or
/// a host can't be evaluated any more, leaves pins and locks as they were.
#[derive(Args)]
pub(super) struct Update {
    /// The hosts to show and to deploy: names, globs, @TAG [default: all]
    hosts: Vec<String>,
    /// Update only this input or pin; may be given several times
    #[arg(long, value_name = "NAME")]
    input: Vec<String>,
    /// Deploy without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Only show what would change, and leave pins and locks as they are
    #[arg(long)]
    dry_run: bool,
    /// Look up <NAME> there, before the entries of NIX_PATH
    #[arg(short = 'I', value_name = "NAME=PATH")]
    include: Vec<String>,
}

/// The files that are brought up to date, as they were; a file that was not there has no content.
struct Before(BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Before {
    fn read(files: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let content = |file: PathBuf| match std::fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok((file, None)),
            content => {
                let content = content.with_context(|| format!("cannot read {}", file.display()))?;
                Ok((file, Some(content)))
            }
        };
        Ok(Self(files.into_iter().map(content).collect::<Result<_>>()?))
    }

    /// Whether a file is another one now.
    fn changed(&self) -> bool {
        self.0.iter().any(|(file, content)| std::fs::read(file).ok() != *content)
    }

    /// Puts the files back as they were.
    fn restore(&self) -> Result<()> {
        for (file, content) in &self.0 {
            match content {
                Some(content) if std::fs::read(file).ok().as_ref() != Some(content) => {
                    files::write_atomic(file, content, 0o644, None)?;
                }
                Some(_) => {}
                None => files::remove(file)?,
            }
        }
        Ok(())
    }
}

impl Update {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (root, _) = super::fleet_config()?;
        let pins = Pins::of_fleet(&root)?;
        let flakes = flakes_with_inputs(&root)?;
        if pins.is_empty() && flakes.is_empty() {
            bail!(
                "{} has neither pins nor locks: npins/sources.json and flake.lock are what can be brought up to date",
                root.display()
            );
        }
        let locks = flakes.iter().map(|dir| dir.join("flake.lock"));
        let before = Before::read(locks.chain(pins.iter().map(Pins::file)))?;
        let interruptions = Interruptions::watch()?;
        let done =
            self.renew(&pins, !flakes.is_empty(), &interruptions).and_then(|()| self.review(&before, &interruptions));
        match done {
            Ok(true) => {
                // from here on it is the deployment that is interrupted
                drop(interruptions);
                let deployed = super::run(self.words("deploy"))?;
                if deployed != ExitCode::SUCCESS {
                    eprintln!("not all of it was deployed; pins and locks are the new ones: `bento deploy` goes on");
                }
                Ok(deployed)
            }
            Ok(false) => before.restore().map(|()| ExitCode::SUCCESS),
            Err(error) => {
                before.restore()?;
                Err(error.context("nothing was deployed, and pins and locks are as they were"))
            }
        }
    }

    /// The words of another command about the same hosts.
    fn words(&self, command: &str) -> Vec<String> {
        let mut words = vec![command.to_owned()];
        words.extend(self.include.iter().flat_map(|entry| ["-I".to_owned(), entry.clone()]));
        words.push("--".to_owned());
        words.extend(self.hosts.iter().cloned());
        words
    }

    /// Runs another command, as a process that whoever interrupts this one ends at once.
    fn part(words: Vec<String>, interruptions: &Interruptions) -> Result<bool> {
        let program = std::env::current_exe().context("cannot find bento itself")?;
        Ok(interruptions.attend(Command::new(program).args(words), PATIENCE)?.success())
    }

    /// Brings pins and locks up to date.
    fn renew(&self, pins: &[Pins], flakes: bool, interruptions: &Interruptions) -> Result<()> {
        let mut known = self.input.is_empty();
        for pins in pins {
            let names = pins.names()?;
            let wanted: Vec<String> = self.input.iter().filter(|input| names.contains(input)).cloned().collect();
            if !self.input.is_empty() && wanted.is_empty() {
                continue;
            }
            known = true;
            for moved in pins.update(&wanted, interruptions)? {
                let text = |version: &Option<String>| version.clone().unwrap_or_else(|| "nothing".to_owned());
                super::print(&format!("{}: {} -> {}\n", moved.name, text(&moved.before), text(&moved.after)))?;
            }
        }
        // what only pins have is no input of a flake
        if flakes && (self.input.is_empty() || !known) {
            let mut words = vec!["flake-update".to_owned()];
            words.extend(self.input.iter().cloned());
            if !Self::part(words, interruptions)? {
                bail!("not all locks could be brought up to date");
            }
            known = true;
        }
        if known { Ok(()) } else { bail!("nothing that is pinned or locked is called {}", self.input.join(" or ")) }
    }

    /// Shows what would change; gives whether it is to be deployed.
    fn review(&self, before: &Before, interruptions: &Interruptions) -> Result<bool> {
        if !before.changed() {
            super::print("everything is up to date\n")?;
            return Ok(false);
        }
        if !Self::part(self.words("diff"), interruptions)? {
            bail!("not all hosts can be evaluated with the newer versions");
        }
        if self.dry_run || self.yes {
            return Ok(self.yes);
        }
        if !std::io::stdin().is_terminal() {
            bail!("nobody is there to agree: --yes deploys it without asking");
        }
        let mut out = std::io::stderr().lock();
        write!(out, "Deploy this? [y/N] ").and_then(|()| out.flush()).context("cannot ask")?;
        let answer = interruptions.read_line()?.context("interrupted")?;
        Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
    }
}

/// The fleet's flakes that have a lock file: one without inputs needs none.
fn flakes_with_inputs(root: &Path) -> Result<Vec<PathBuf>> {
    Ok(fleet::flake_dirs(root)?.into_iter().filter(|dir| dir.join("flake.lock").exists()).collect())
}
