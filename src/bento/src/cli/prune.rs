//! `bento prune`: take hosts off the hub that the fleet does not have any more.

use std::io::{BufRead, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::evaluation::EvaluationOptions;
use crate::fleet::{Fleet, Selection};
use crate::host::HostName;
use crate::publish;

/// Take hosts off the hub that the fleet does not have any more, with their logs
#[derive(Args)]
pub(super) struct Prune {
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Only say which
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    #[command(flatten)]
    evaluation: EvaluationOptions,
}

impl Prune {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let hub = config.hub(&dir)?;
        let _lock = hub.lock()?;
        let fleet = Fleet::discover(&dir, self.evaluation.open()?.as_ref(), &Selection::default())?;
        if let Some(broken) = fleet.broken.iter().find(|broken| broken.name.is_none()) {
            // it may well have the hosts that seem to be gone
            bail!("{} can't be read, so nobody knows which hosts are gone: {:#}", broken.dir.display(), broken.error);
        }
        let mut names: Vec<HostName> = fleet.hosts.iter().map(|host| host.host.name.clone()).collect();
        names.extend(fleet.broken.iter().filter_map(|broken| broken.name.clone()));
        let gone: Vec<HostName> = hub.hosts()?.into_iter().filter(|name| !names.contains(name)).collect();
        if gone.is_empty() {
            super::print("every host on the hub belongs to the fleet\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        let list = gone.iter().map(HostName::as_str).collect::<Vec<_>>().join(", ");
        if self.dry_run {
            super::print(&format!("would remove {list}\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        if !self.yes {
            eprint!("remove {list} from {}, with their logs? (yes/no) ", hub.root().display());
            std::io::stderr().flush().context("cannot ask")?;
            let mut answer = String::new();
            std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
            if answer.trim() != "yes" {
                bail!("nothing was removed: the answer was not \"yes\" (--yes agrees without being asked)");
            }
        }
        for name in &gone {
            publish::withdraw(&hub, name)?;
            super::print(&format!("removed {name}\n"))?;
        }
        hub.record_fleet(names)?;
        let mut holds = hub.holds()?;
        holds.retain(|name, _| !gone.contains(name));
        hub.record_holds(&holds)?;
        Ok(ExitCode::SUCCESS)
    }
}
