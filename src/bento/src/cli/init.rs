//! `bento init`: begin a fleet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::fleet::init::{Layout, Made, init};
use crate::provision::template;

/// Lay out a fleet in this directory, around whatever is in it; nothing that is there is changed
#[derive(Args)]
pub(super) struct Init {
    /// One flake for all hosts, instead of a directory with a configuration.nix for each
    #[arg(long)]
    flake: bool,
    /// The public key of whoever signs releases [default: your own, in ~/.ssh]
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
    /// Begin with a whole fleet: `servers` are four machines that `bento provision` installs, with their sources pinned by npins
    #[arg(long, value_enum, conflicts_with = "flake")]
    template: Option<Template>,
}

/// The fleets to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Template {
    Servers,
}

impl Init {
    pub(super) fn run(self) -> Result<ExitCode> {
        let dir = super::fleet_dir()?;
        let signer = match self.signing_key {
            Some(file) => Some((file.clone(), public_key(&file)?)),
            None => own_key(),
        };
        if let Some(Template::Servers) = self.template {
            let key = signer.as_ref().map(|(_, key)| key.as_str());
            let made = template::lay_out(&dir, key)?;
            let mut steps = vec![
                "in bento.toml, say where the machines are; in hosts/NAME/default.nix, which disks they have",
                "`bento check` says what is wrong; `bento provision NAME root@ADDRESS` installs one",
            ];
            if key.is_none() {
                steps.insert(0, "put your public SSH key into hosts/common/users.nix");
            }
            super::print(&summary(&made, &steps))?;
            return Ok(ExitCode::SUCCESS);
        }
        let has_signer = signer.is_some();
        let hub_key = std::fs::read_to_string("/etc/ssh/ssh_host_ed25519_key.pub").ok();
        let hub_key = hub_key.map(|key| key.trim().to_owned());
        let made = init(&dir, &Layout { flake: self.flake, signer, hub_key })?;
        let mut steps = vec![
            "in config.sh, say where the hub's directory is (CHROOT_DIR) and how hosts reach the hub (REMOTE_IP)",
            "in utils/bento.nix, say the same to the hosts, with the hub's public host key",
        ];
        if !has_signer {
            steps.push(
                "make a key to sign with (`ssh-keygen -t ed25519`); its file is SIGNING_KEY in config.sh, its public half \
                 goes to signers in utils/bento.nix",
            );
        }
        steps.extend([
            "put the hosts' configurations into hosts/, and their public keys into utils/fleet.nix, which the hub imports",
            "`bento deploy --dry-run` says what would be published; `bento deploy` builds and publishes it",
        ]);
        super::print(&summary(&made, &steps))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What was made, and what is next.
fn summary(made: &Made, steps: &[&str]) -> String {
    let mut text = String::new();
    for path in &made.created {
        text += &format!("created {}\n", path.display());
    }
    for path in &made.kept {
        text += &format!("kept    {}, which was there\n", path.display());
    }
    text += "\nWhat is next:\n";
    for (number, step) in (1..).zip(steps) {
        text += &format!("  {number}. {step}\n");
    }
    text
}

/// The administrator's own public key, if he has one of the usual name.
fn own_key() -> Option<(PathBuf, String)> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"].iter().find_map(|name| {
        let file = home.join(".ssh").join(name);
        public_key(&file).ok().map(|key| (file, key))
    })
}

/// The text of a public key's file.
fn public_key(file: &Path) -> Result<String> {
    crate::sign::read_public_key(file).map(|(_, text)| text)
}
