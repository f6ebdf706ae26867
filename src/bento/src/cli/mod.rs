//! The command line: one file per command.

mod agent;
mod build;
mod cache;
mod check;
mod config;
mod deploy;
mod diff;
mod eval;
mod fetching;
mod flake_update;
mod fleet;
mod hold;
mod hub;
mod init;
mod keys;
mod log;
mod manual;
mod progress;
mod provision;
mod prune;
mod push;
mod rollout;
mod status;
mod terminal;
mod update;
mod verify;
mod versions;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::fleet::config::Config;

/// Keeps a fleet of NixOS machines up to date.
#[derive(Parser)]
#[command(name = "bento", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Build(build::Build),
    Check(check::Check),
    Deploy(Box<deploy::Deploy>),
    Rollout(Box<rollout::Rollout>),
    Diff(diff::Diff),
    Status(status::Status),
    Versions(versions::Versions),
    Cache(cache::CacheCommand),
    Log(log::Log),
    Hold(hold::Hold),
    Release(hold::Release),
    Verify(verify::Verify),
    Provision(Box<provision::Provision>),
    Prune(prune::Prune),
    Keys(keys::Keys),
    Config(config::Config),
    Hub(hub::Hub),
    Agent(agent::Agent),
    Eval(Box<eval::Eval>),
    Update(update::Update),
    FlakeUpdate(flake_update::FlakeUpdate),
    Completions(manual::Completions),
    Man(manual::Man),
}

impl Command {
    /// Does it; gives the exit status.
    fn run(self) -> Result<ExitCode> {
        match self {
            Self::Init(command) => command.run(),
            Self::Build(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Deploy(command) => command.run(),
            Self::Rollout(command) => command.run(),
            Self::Diff(command) => command.run(),
            Self::Status(command) => command.run(),
            Self::Versions(command) => command.run(),
            Self::Cache(command) => command.run(),
            Self::Log(command) => command.run(),
            Self::Hold(command) => command.run(),
            Self::Release(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Provision(command) => command.run(),
            Self::Prune(command) => command.run(),
            Self::Keys(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::Hub(command) => command.run(),
            Self::Agent(command) => command.run(),
            Self::Eval(command) => command.run(),
            Self::Update(command) => command.run(),
            Self::FlakeUpdate(command) => command.run(),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}

/// Runs the program with this process's arguments: status 0 only if everything happened that was asked for.
pub fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs another command, as a part of one: its name, and what follows that.
fn run(words: Vec<String>) -> Result<ExitCode> {
    let words = std::iter::once("bento".to_owned()).chain(words);
    Cli::try_parse_from(words).context("cannot run a command")?.command.run()
}

/// Prints a command's result. A reader that has seen enough is no error.
fn print(text: &str) -> Result<()> {
    print_on(text).map(|_| ())
}

/// Prints a part of a command's result. Gives whether anybody still reads.
fn print_on(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot print the result"),
    }
}

/// Whether to use colours: on a terminal, unless `NO_COLOR` is set to something.
fn coloured(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a command's result as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n"))
}

/// The socket of the ssh agent, if there is one.
fn ssh_agent() -> Option<PathBuf> {
    std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The fleet's directory and its settings.
fn fleet_config() -> Result<(PathBuf, Config)> {
    let dir = fleet_dir()?;
    let config = Config::read(&dir)?;
    Ok((dir, config))
}

/// The fleet's directory: `BENTO_DIR`, or else the working directory.
fn fleet_dir() -> Result<PathBuf> {
    let here = std::env::current_dir().context("cannot tell the working directory")?;
    let dir = std::env::var_os("BENTO_DIR").filter(|dir| !dir.is_empty());
    Ok(dir.map_or_else(|| here.clone(), |dir| here.join(dir)))
}
