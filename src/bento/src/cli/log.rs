//! `bento log`: what a host said of its attempts.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::host::HostName;
use crate::status::history::{Log as HostLog, logs};
use crate::status::watch::Watch;

/// Show the last log of a host
#[derive(Args)]
pub(super) struct Log {
    /// The host
    host: HostName,
    /// The last one that tells of a failure
    #[arg(long)]
    failure: bool,
    /// Only list the logs, oldest first
    #[arg(long, conflicts_with_all = ["failure", "follow"])]
    list: bool,
    /// Show those that arrive from now on, too
    #[arg(short, long)]
    follow: bool,
}

impl Log {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let hub = config.hub(&dir)?;
        let dir = hub.host(&self.host);
        if !dir.logs().exists() {
            bail!("the hub has no host {}", self.host);
        }
        // watched before it is read: what arrives in between is not missed
        let watch = self.follow.then(|| Watch::new(&hub)).transpose()?;
        let read = || -> Result<Vec<HostLog>> {
            let mut logs = logs(&dir)?;
            logs.retain(|log| !self.failure || !log.name.outcome.is_success());
            Ok(logs)
        };
        let mut known = read()?;
        if self.list {
            let names = known.iter().filter_map(|log| log.file.file_name()).map(|name| format!("{}\n", name.display()));
            super::print(&names.collect::<String>())?;
            return Ok(ExitCode::SUCCESS);
        }
        match known.last() {
            Some(last) => super::print(&last.text()?)?,
            None if self.follow => {}
            None => bail!("{} has left no {}", self.host, if self.failure { "log of a failure" } else { "log" }),
        }
        let Some(watch) = watch else { return Ok(ExitCode::SUCCESS) };
        loop {
            watch.wait(&hub, Duration::from_secs(3600))?;
            let now = read()?;
            for log in now.iter().filter(|log| !known.contains(log)) {
                if !super::print_on(&log.text()?)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            known = now;
        }
    }
}
