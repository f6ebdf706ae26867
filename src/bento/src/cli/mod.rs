//! The command line: one file per command.

mod agent;
mod cache;
mod deploy;
mod eval;
mod status;
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
    Deploy(deploy::Deploy),
    Agent(agent::Agent),
    Status(status::Status),
    Versions(versions::Versions),
    Cache(cache::CacheCommand),
    Eval(Box<eval::Eval>),
}

/// Runs the program with this process's arguments: status 0 only if everything happened that was asked for.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Deploy(command) => command.run(),
        Command::Agent(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Versions(command) => command.run(),
        Command::Cache(command) => command.run(),
        Command::Eval(command) => command.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a command's result. A reader that has seen enough is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print the result"),
        _ => Ok(()),
    }
}

/// Prints a command's result as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n"))
}

/// The fleet's directory: `BENTO_DIR`, or else the working directory.
fn fleet_dir() -> Result<PathBuf> {
    let here = std::env::current_dir().context("cannot tell the working directory")?;
    let dir = std::env::var_os("BENTO_DIR").filter(|dir| !dir.is_empty());
    Ok(dir.map_or_else(|| here.clone(), |dir| here.join(dir)))
}

/// The fleet's settings.
fn fleet_config(dir: &std::path::Path) -> Result<Config> {
    Config::read(&dir.join("config.sh"))
}
