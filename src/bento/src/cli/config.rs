//! `bento config`: the fleet's settings.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::fleet::config::Config as Settings;
use crate::status::unverifiable;

/// The fleet's settings
#[derive(Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read the settings, and print what they come to as a bento.toml
    ///
    /// The exit status is 1 if something in them is wrong.
    Check {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Command::Check { json } = self.command;
        let dir = super::fleet_dir()?;
        // without settings there is nothing to check
        Settings::file(&dir)?;
        let settings = Settings::read(&dir)?;
        for (host, keys) in settings.host_keys()? {
            if let Some(why) = unverifiable(&keys) {
                eprintln!("warning: {host} {why}");
            }
        }
        if json {
            super::print_json(&settings)?;
        } else {
            super::print(&toml::to_string(&settings).context("cannot write the settings")?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
