//! `bento hub`: a hub without sshd, and the web page of any hub.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::serve::{self, HostKey, Keys, Quota, Server};
use crate::web::{Access, Site};

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
    /// A host logs in under its name with one of its keys: those in the settings (hosts.NAME.keys, hub.keys), and those in DIR/NAME.pub.
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
        /// Close a connection that has not logged in after so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
        login_grace: u16,
        /// How many connections from one address (of IPv6, from one /64) may wait to log in at a time; more of them are refused
        #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
        per_address: u16,
        /// How many connections one host may have at a time; more of them are refused
        #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
        per_host: u16,
        /// Serve a web page too, which shows where the hosts stand; if no ADDRESS is given, on 127.0.0.1:8022
        #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = PAGE)]
        web: Option<SocketAddr>,
        /// A file with the token that the page asks for; on an address that others can reach there must be one
        #[arg(long, value_name = "FILE", requires = "web")]
        token: Option<PathBuf>,
    },
    /// Serve only the web page that shows where the hosts stand, and metrics for Prometheus
    ///
    /// For a hub whose directories sshd serves. Nothing can be changed from the page.
    Web {
        /// Where to listen
        #[arg(long, value_name = "ADDRESS", default_value = PAGE)]
        listen: SocketAddr,
        /// A file with the token that the page asks for; on an address that others can reach there must be one
        #[arg(long, value_name = "FILE")]
        token: Option<PathBuf>,
    },
}

/// Where the page is, if nothing else is said: on this machine alone.
const PAGE: &str = "127.0.0.1:8022";

impl Hub {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (fleet, config) = super::fleet_config()?;
        let hub = config.hub(&fleet)?;
        let site = |listen, token: Option<PathBuf>| {
            let access = Access::open(listen, token.as_deref())?;
            Ok::<_, anyhow::Error>(Site { hub: hub.clone(), expected: super::status::expected(&config)?, access })
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start to serve")?;
        match self.command {
            Command::Serve { listen, host_key, keys, quota, login_grace, per_address, per_host, web, token } => {
                let site = web.map(|listen| Ok::<_, anyhow::Error>((listen, site(listen, token)?))).transpose()?;
                serve::check(&hub)?;
                serve::raise_limits()?;
                let host_key = HostKey::open(&host_key.unwrap_or_else(|| hub.root().join(".host_key")))?;
                let quota = Quota { bytes: u64::from(quota) << 20, ..Quota::default() };
                let line = host_key.line.clone();
                let login_grace = Duration::from_secs(login_grace.into());
                let (per_address, per_host) = (per_address.into(), per_host.into());
                let keys = Keys { fleet, dir: keys };
                let server = Server { hub, keys, host_key, quota, login_grace, per_address, per_host };
                runtime.block_on(async {
                    let page = match site {
                        Some((listen, site)) => Some((bind(listen).await?, site)),
                        None => None,
                    };
                    let (address, listener) = bind(listen).await?;
                    super::print(&format!("listening on {address}\nthe hosts pin this key: {line}\n"))?;
                    let mut tasks = JoinSet::new();
                    tasks.spawn(server.serve(listener));
                    if let Some(((address, listener), site)) = page {
                        super::print(&format!("the page is at http://{address}/\n"))?;
                        tasks.spawn(site.serve(listener));
                    }
                    // neither ends by itself
                    tasks.join_next().await.context("nothing is served")?.context("the hub failed")?
                })?;
            }
            Command::Web { listen, token } => {
                let site = site(listen, token)?;
                runtime.block_on(async {
                    let (address, listener) = bind(listen).await?;
                    super::print(&format!("the page is at http://{address}/\n"))?;
                    site.serve(listener).await
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Listens, and says where.
async fn bind(listen: SocketAddr) -> Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    Ok((listener.local_addr().context("cannot tell the address")?, listener))
}
