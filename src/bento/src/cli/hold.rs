//! `bento hold` and `bento release`: keep hosts at what they have, and let them go again.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;

use crate::host::HostName;
use crate::hub::{Hold as Held, Hub};

/// Publish nothing new for these hosts until they are released
#[derive(Args)]
pub(super) struct Hold {
    /// The hosts
    #[arg(required = true)]
    hosts: Vec<HostName>,
    /// Why, for those who wonder
    #[arg(long)]
    reason: Option<String>,
}

/// Let hosts go that were held
#[derive(Args)]
pub(super) struct Release {
    /// The hosts
    #[arg(required = true)]
    hosts: Vec<HostName>,
}

impl Hold {
    pub(super) fn run(self) -> Result<ExitCode> {
        let hub = hub()?;
        let _lock = hub.lock()?;
        let known: Vec<HostName> = hub.hosts()?.into_iter().chain(hub.fleet()?.unwrap_or_default()).collect();
        if let Some(unknown) = self.hosts.iter().find(|host| !known.contains(host)) {
            bail!("the hub has no host {unknown}");
        }
        let mut holds = hub.holds()?;
        let since = Timestamp::now();
        for host in &self.hosts {
            holds.insert(host.clone(), Held { since, reason: self.reason.clone() });
        }
        hub.record_holds(&holds)?;
        for host in &self.hosts {
            super::print(&format!("{host} is held: it gets no new release\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Release {
    pub(super) fn run(self) -> Result<ExitCode> {
        let hub = hub()?;
        let _lock = hub.lock()?;
        let mut holds = hub.holds()?;
        for host in &self.hosts {
            if holds.remove(host).is_none() {
                bail!("{host} is not held");
            }
        }
        hub.record_holds(&holds)?;
        for host in &self.hosts {
            super::print(&format!("{host} is released: the next deploy publishes what is new\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The fleet's hub.
fn hub() -> Result<Hub> {
    let (dir, config) = super::fleet_config()?;
    config.hub(&dir)
}
