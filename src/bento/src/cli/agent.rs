//! `bento agent`: what runs on a host.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::agent::config::AgentConfig;
use crate::agent::page::{self, Page, Sockets};
use crate::agent::standing::Standing;
use crate::agent::{self, AtWork, Polled, hold};
use crate::hub::Hold;
use crate::store_path::StorePath;

/// The part of bento that runs on a host
#[derive(Args)]
pub(super) struct Agent {
    #[command(subcommand)]
    command: Command,
    /// The agent's configuration
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/bento/agent.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Say where this host stands: what it runs, what came of the last release, whether it is held
    Status {
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Poll the hub once: take up a new release, and report
    Run {
        /// Try at once what is put off after a failure
        #[arg(long)]
        now: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to the system that ran before the last one that was taken up
    ///
    /// It has to work as a new one has to, but also counts if the hub is out of reach. The release that is given up is not taken
    /// up again by itself; a second rollback takes it up again.
    Rollback {
        /// Go back to this system instead: a store path, or a link to one such as /nix/var/nix/profiles/system-12-link
        #[arg(long, value_name = "SYSTEM")]
        to: Option<PathBuf>,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep this host as it is: it takes up nothing, and does not restart by itself
    Hold {
        /// Why, for those who wonder
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let this host go that was held
    Release,
    /// Serve the page for the user at this machine: what it runs, what came of the last release, and a button for the next
    ///
    /// Without options that is where systemd listens for it, or else http://localhost:51337/.
    Page {
        /// Listen at this address of loopback
        #[arg(long, value_name = "ADDRESS")]
        listen: Vec<SocketAddr>,
        /// Listen at this unix socket
        #[arg(long, value_name = "FILE")]
        socket: Option<PathBuf>,
        /// End when nobody has looked for so many seconds
        #[arg(long, value_name = "SECONDS")]
        idle: Option<u64>,
    },
    /// Put this host's secrets in place, as after a boot
    Secrets,
    /// Wait until a system that has to prove itself by this boot has done so: what comes before boot-complete.target
    #[command(hide = true)]
    Booted,
    /// Bring a run that takes too long to an end: what the watchdog calls
    #[command(hide = true)]
    Watchdog,
}

impl Agent {
    pub(super) fn run(self) -> Result<ExitCode> {
        let config = AgentConfig::read(&self.config)?;
        match self.command {
            Command::Status { json } => {
                let standing = Standing::read(&config)?;
                if json { super::print_json(&standing)? } else { super::print(&standing.to_string())? }
            }
            Command::Run { now, json } => return tell(agent::run(&config, now), json),
            Command::Rollback { to, json } => {
                let to = to.map(|link| {
                    StorePath::behind(&link).with_context(|| format!("{} leads to no store path", link.display()))
                });
                return tell(agent::rollback(&config, to.transpose()?), json);
            }
            Command::Hold { reason } => hold::hold(&config.state_dir, &Hold { since: Timestamp::now(), reason })?,
            Command::Release => {
                if !hold::release(&config.state_dir)? {
                    bail!("{} is not held here", config.host);
                }
            }
            Command::Page { listen, socket, idle } => {
                let mut sockets = Sockets::inherited()?;
                for address in listen {
                    sockets.listen(address)?;
                }
                if let Some(file) = socket {
                    sockets.listen_unix(&file)?;
                }
                if sockets.is_empty() {
                    sockets.listen((Ipv4Addr::LOCALHOST, page::PORT).into())?;
                }
                for address in sockets.addresses()? {
                    super::print(&format!("http://{address}/\n"))?;
                }
                Page::new(config)?.serve(sockets, idle.map(Duration::from_secs))?;
            }
            Command::Secrets => agent::put_secrets_in_place(&config)?,
            Command::Booted => agent::booted(&config)?,
            Command::Watchdog => agent::watchdog(&config)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says what came of a run; one that was left to another run is no error.
fn tell(polled: Result<Polled>, json: bool) -> Result<ExitCode> {
    let polled = match polled {
        Err(error) if error.is::<AtWork>() => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(AtWork::EXIT_STATUS));
        }
        polled => polled?,
    };
    if json {
        super::print_json(&polled)?;
        return Ok(ExitCode::SUCCESS);
    }
    super::print(&match polled {
        Polled::Current { serial } => format!("release {serial} is current\n"),
        Polled::Held { serial } => {
            format!("this host is held and does not take up release {serial}: `bento agent release` lets it go\n")
        }
        Polled::Updated { serial, toplevel } => format!("release {serial} is active: {toplevel}\n"),
        Polled::WentBack { toplevel } => format!("{toplevel} runs again\n"),
        Polled::Restarting => "the machine is restarting\n".to_owned(),
    })?;
    Ok(ExitCode::SUCCESS)
}
