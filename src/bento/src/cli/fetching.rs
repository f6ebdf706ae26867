//! The options about fetching and locking that commands share; they are Nix's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bento_eval::flake::lock::parse_input_path;
use bento_eval::flake::reference::{FlakeRef, ParseOptions};
use bento_eval::flake::{FetchSettings, LoadOptions, LockPolicy, RegistryEntry, Update};
use clap::Args;

use crate::nix_conf;

/// How sources are fetched.
#[derive(Args)]
pub(super) struct FetchArgs {
    /// Don't use the network
    #[arg(long)]
    offline: bool,

    /// Ask again whether what was fetched a while ago is still the newest
    #[arg(long)]
    refresh: bool,

    /// Have the flake reference FROM stand for TO
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    override_flake: Vec<String>,

    /// The global flake registry: an absolute path or a URL; none if empty
    #[arg(long, value_name = "REGISTRY")]
    flake_registry: Option<String>,

    /// Tokens for forges: HOST=TOKEN, between spaces
    #[arg(long, value_name = "TOKENS")]
    access_tokens: Option<String>,

    /// The file with names and passwords for hosts
    #[arg(long, value_name = "FILE")]
    netrc_file: Option<String>,

    /// Let a lock file hold what is locked by its NAR hash alone
    #[arg(long)]
    allow_dirty_locks: bool,
}

impl FetchArgs {
    /// Changes the settings of this machine as these arguments say.
    pub(super) fn apply(&self, settings: &mut FetchSettings) -> Result<()> {
        let given = [
            ("flake-registry", &self.flake_registry),
            ("access-tokens", &self.access_tokens),
            ("netrc-file", &self.netrc_file),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                nix_conf::set_fetching(settings, name, value)?;
            }
        }
        settings.network &= !self.offline;
        settings.allow_dirty_locks |= self.allow_dirty_locks;
        if self.offline {
            settings.ttl = u64::MAX;
        }
        if self.refresh {
            settings.ttl = 0;
        }
        for pair in self.override_flake.chunks_exact(2) {
            let from = FlakeRef::parse(&pair[0], ParseOptions::default())?;
            let to = reference(&pair[1])?;
            let dir = Some(to.subdir).filter(|dir| !dir.is_empty());
            settings.registries.overrides.push(RegistryEntry { from: from.input, to: to.input, dir, exact: false });
        }
        Ok(())
    }
}

/// What happens to a flake's lock file.
#[derive(Args)]
pub(super) struct LockArgs {
    /// Use REF for the input PATH (names with slashes between them), and write no lock file
    #[arg(long, num_args = 2, value_names = ["PATH", "REF"])]
    override_input: Vec<String>,

    /// Update the lock of the input PATH; may be given several times
    #[arg(long, value_name = "PATH")]
    update_input: Vec<String>,

    /// Refuse a flake whose lock file doesn't fit
    #[arg(long)]
    no_update_lock_file: bool,

    /// Don't write a lock file
    #[arg(long)]
    no_write_lock_file: bool,

    /// Look no names up in registries
    #[arg(long)]
    no_registries: bool,

    /// Start from this lock file, not from the flake's
    #[arg(long, value_name = "FILE")]
    reference_lock_file: Option<PathBuf>,

    /// Write the lock file there
    #[arg(long, value_name = "FILE")]
    output_lock_file: Option<PathBuf>,
}

impl LockArgs {
    /// What loading a flake does.
    pub(super) fn options(&self) -> Result<LoadOptions> {
        let mut overrides = Vec::new();
        for pair in self.override_input.chunks_exact(2) {
            overrides.push((parse_input_path(&pair[0])?, reference(&pair[1])?));
        }
        let updates = self.update_input.iter().map(|path| parse_input_path(path)).collect::<Result<_, _>>()?;
        let policy = if self.no_write_lock_file || !overrides.is_empty() {
            LockPolicy::InMemory
        } else if self.no_update_lock_file {
            LockPolicy::Refuse
        } else {
            LockPolicy::Write { must: false }
        };
        Ok(LoadOptions {
            overrides,
            update: Update::Inputs(updates),
            policy,
            registries: !self.no_registries,
            reference_lock_file: self.reference_lock_file.clone(),
            output_lock_file: self.output_lock_file.clone(),
            ..LoadOptions::default()
        })
    }
}

/// A flake reference from the command line: relative paths start from the working directory.
fn reference(text: &str) -> Result<FlakeRef> {
    let here: PathBuf = std::env::current_dir().context("cannot tell the working directory")?;
    let here: &Path = &here;
    Ok(FlakeRef::parse(text, ParseOptions { base_dir: Some(here), ..ParseOptions::default() })?)
}
