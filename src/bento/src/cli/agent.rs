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
        /// Try at once what is put off after a failure
        #[arg(long)]
        now: bool,
    },
    /// Put this host's secrets in place, as after a boot
    Secrets {
        /// The agent's configuration
        #[arg(long, value_name = "FILE", default_value = "/etc/bento/agent.toml")]
        config: PathBuf,
    },
    /// Wait until a system that has to prove itself by this boot has done so: what comes before boot-complete.target
    #[command(hide = true)]
    Booted {
        /// The agent's configuration
        #[arg(long, value_name = "FILE", default_value = "/etc/bento/agent.toml")]
        config: PathBuf,
    },
    /// Bring a run that takes too long to an end: what the watchdog calls
    #[command(hide = true)]
    Watchdog {
        /// The agent's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Agent {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Run { config, now } => poll(&AgentConfig::read(&config)?, now)?,
            Command::Secrets { config } => agent::put_secrets_in_place(&AgentConfig::read(&config)?)?,
            Command::Booted { config } => agent::booted(&AgentConfig::read(&config)?)?,
            Command::Watchdog { config } => agent::watchdog(&AgentConfig::read(&config)?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Polls the hub, and says what came of it.
fn poll(config: &AgentConfig, now: bool) -> Result<()> {
    match agent::run(config, now)? {
        Polled::Current { serial } => super::print(&format!("release {serial} is current\n"))?,
        Polled::Updated { serial, toplevel } => {
            super::print(&format!("release {serial} is active: {toplevel}\n"))?;
        }
        Polled::Restarting => super::print("the machine is restarting\n")?,
    }
    Ok(())
}
