//! `bento completions` and `bento man`: what is made of the command line itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print a shell's completions of bento's commands and options
#[derive(Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual's pages into a directory
#[derive(Args)]
pub(super) struct Man {
    /// The directory, such as share/man/man1; it is made if need be
    dir: PathBuf,
}

impl Completions {
    pub(super) fn run(self) -> Result<ExitCode> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "bento", &mut text);
        super::print(&String::from_utf8_lossy(&text))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Man {
    pub(super) fn run(self) -> Result<ExitCode> {
        let context = || format!("cannot write the manual into {}", self.dir.display());
        std::fs::create_dir_all(&self.dir).with_context(context)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).with_context(context)?;
        Ok(ExitCode::SUCCESS)
    }
}
