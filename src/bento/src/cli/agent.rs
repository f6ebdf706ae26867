//! `bento agent`: what runs on a host.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::agent::config::AgentConfig;
use crate::agent::{self, Polled};

/// The part of bento that runs on a host
#[derive(Args)]
pub(super) struct Agent {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Poll the hub once: take up a new release, and report
    Run {
        /// The agent's configuration
        #[arg(long, value_name = "FILE", default_value = "/etc/bento/agent.toml")]
        config: PathBuf,
    },
}

impl Agent {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Command::Run { config } = self.command;
        match agent::run(&AgentConfig::read(&config)?)? {
            Polled::Current { serial } => super::print(&format!("release {serial} is current\n"))?,
            Polled::Updated { serial, toplevel } => {
                super::print(&format!("release {serial} is active: {toplevel}\n"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
