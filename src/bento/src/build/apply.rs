//! Applying a built system by hand, to this machine or to one that is reached over SSH: `bento build switch|test`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::nix::not_started;
use crate::store_path::StorePath;

/// The profile of a NixOS machine's system.
const PROFILE: &str = "/nix/var/nix/profiles/system";

/// How far a system is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// It runs until the next boot.
    Test,
    /// It runs, and is booted from now on.
    Switch,
}

/// A machine that a system is applied to.
#[derive(Clone, Debug)]
pub enum Machine {
    /// This one.
    Here,
    /// One that is reached over SSH.
    Remote {
        /// Its address, as ssh takes it (`TARGET_IP`).
        address: String,
        /// Options for ssh (`NIX_SSHOPTS`), between white space.
        options: String,
    },
}

impl Machine {
    /// What the machine calls itself.
    pub fn host_name(&self) -> Result<String> {
        match self {
            Self::Here => {
                let name = nix::unistd::gethostname().context("cannot tell this machine's name")?;
                Ok(name.to_string_lossy().split('.').next().unwrap_or_default().to_owned())
            }
            Self::Remote { address, .. } => {
                let mut command = self.ssh("uname -n");
                let output = command.stderr(Stdio::inherit()).output().with_context(|| not_started("ssh".as_ref()))?;
                if !output.status.success() {
                    bail!("cannot ask {address} for its name: ssh ended with {}", output.status);
                }
                Ok(String::from_utf8_lossy(&output.stdout).trim().split('.').next().unwrap_or_default().to_owned())
            }
        }
    }

    /// Makes the machine run a system that is in this machine's store.
    pub fn apply(&self, toplevel: &StorePath, extent: Extent) -> Result<()> {
        let (profile, action) = match extent {
            Extent::Switch => (format!("$s nix-env --profile {PROFILE} --set {toplevel}; "), "switch"),
            Extent::Test => (String::new(), "test"),
        };
        match self {
            Self::Here => {
                let sudo = if Uid::effective().is_root() { "s=; " } else { "s=sudo; " };
                let script = format!("set -e; {sudo}{profile}$s {toplevel}/bin/switch-to-configuration {action}");
                run(Command::new("sh").args(["-c", &script])).context("the activation failed")
            }
            Self::Remote { address, options } => {
                let mut copy = Command::new("nix-copy-closure");
                copy.args(["--to", address]).arg(toplevel.as_path()).env("NIX_SSHOPTS", options);
                run(&mut copy).with_context(|| format!("cannot copy {toplevel} to {address}"))?;
                let sudo = "if [ \"$(id -u)\" = 0 ]; then s=; else s=sudo; fi; ";
                let script = format!("set -e; {sudo}{profile}$s {toplevel}/bin/switch-to-configuration {action}");
                run(&mut self.ssh(&script)).with_context(|| format!("the activation on {address} failed"))
            }
        }
    }

    /// A command on the machine, through ssh.
    fn ssh(&self, script: &str) -> Command {
        let mut command = Command::new("ssh");
        if let Self::Remote { address, options } = self {
            command.args(options.split_whitespace()).arg("--").arg(address);
        }
        command.arg(script).stdin(Stdio::null());
        command
    }
}

/// Runs a program that shows what it does; an error is one that doesn't end with status 0.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command.status().with_context(|| not_started(&program))?;
    if !status.success() {
        bail!("{} ended with {status}", program.to_string_lossy());
    }
    Ok(())
}
