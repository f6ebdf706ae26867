//! `bento status`: where each host stands.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;

use crate::hub::Hub;
use crate::status;

/// Show where each host stands
#[derive(Args)]
pub(super) struct Status {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (_, config) = super::fleet_config()?;
        let now = Timestamp::now();
        let hosts = status::status(&Hub::new(&config.hub.directory), now)?;
        if self.json {
            super::print_json(&hosts)?;
        } else {
            let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            super::print(&status::table::render(&hosts, now, coloured))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
