//! `bento hub`: a hub without sshd.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::hub::Hub as Directory;
use crate::serve::{self, HostKey, Keys, Quota, Server};

/// The hub's side
#[derive(Args)]
pub(super) struct Hub {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the hosts their directories over SFTP, without sshd, and without root
    ///
    /// A host logs in under its name with one of its keys: those in the settings (hosts.NAME.keys), and those in DIR/NAME.pub.
    Serve {
        /// Where to listen
        #[arg(long, value_name = "ADDRESS", default_value = "[::]:2022")]
        listen: SocketAddr,
        /// The server's private key; it is made if it isn't there [default: .host_key in the hub's directory]
        #[arg(long, value_name = "FILE")]
        host_key: Option<PathBuf>,
        /// A directory with a public key for each host, as NAME.pub
        #[arg(long, value_name = "DIR")]
        keys: Option<PathBuf>,
        /// How much one host may leave in its logs, in MiB
        #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
        quota: u32,
    },
}

impl Hub {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Command::Serve { listen, host_key, keys, quota } = self.command;
        let (fleet, config) = super::fleet_config()?;
        let hub = Directory::new(&config.hub.directory);
        serve::check(&hub)?;
        let host_key = HostKey::open(&host_key.unwrap_or_else(|| hub.root().join(".host_key")))?;
        let quota = Quota { bytes: u64::from(quota) << 20, ..Quota::default() };
        let line = host_key.line.clone();
        let server = Server { hub, keys: Keys { fleet, dir: keys }, host_key, quota };
        server.run(listen, |address| {
            super::print(&format!("listening on {address}\nthe hosts pin this key: {line}\n"))
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
