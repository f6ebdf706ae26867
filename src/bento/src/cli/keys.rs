//! `bento keys`: who signs, and who logs in.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::host::HostName;
use crate::sign::{allowed_signers_line, read_public_key};

/// Show the key that releases are signed with, and the hosts' keys in the settings
#[derive(Args)]
pub(super) struct Keys {
    /// Print the line of an allowed_signers file, for `ssh-keygen -Y verify`
    #[arg(long)]
    allowed_signers: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "allowed_signers")]
    json: bool,
}

/// The keys, for `--json`.
#[derive(Serialize)]
struct Listed<'a> {
    signing: Option<String>,
    hosts: BTreeMap<&'a HostName, &'a [String]>,
}

impl Keys {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (_, config) = super::fleet_config()?;
        let signing = config.release.signing_key.as_deref().map(read_public_key).transpose()?;
        if self.allowed_signers {
            let (key, _) = signing.context("no key signs releases: set SIGNING_KEY")?;
            super::print(&allowed_signers_line(&key)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let hosts = config.hosts.iter().map(|(name, host)| (name, host.keys.as_slice()));
        let listed = Listed { signing: signing.map(|(_, text)| text), hosts: hosts.collect() };
        if self.json {
            super::print_json(&listed)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = match &listed.signing {
            Some(key) => format!("releases are signed by\n    {key}\n"),
            None => "releases are not signed: SIGNING_KEY is not set\n".to_owned(),
        };
        for (name, keys) in listed.hosts.iter().filter(|(_, keys)| !keys.is_empty()) {
            text += &format!("{name}\n{}", keys.iter().map(|key| format!("    {key}\n")).collect::<String>());
        }
        super::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
