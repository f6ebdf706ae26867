//! The machine that the agent works on: what runs, building, activating, booting.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;

use crate::agent::config::AgentConfig;
use crate::agent::log::Log;
use crate::files;
use crate::host::HostKind;
use crate::manifest::{Manifest, ReleaseMode};
use crate::nix::{Programs, TOPLEVEL, flake_toplevel, non_flake_expression, with_search_path};
use crate::store_path::StorePath;

/// How an activation is done, by the words of `switch-to-configuration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run it, but boot what was booted before.
    Test,
    /// Boot it from now on.
    Boot,
}

/// This machine.
#[derive(Debug)]
pub struct System<'a> {
    config: &'a AgentConfig,
    programs: Programs,
}

impl<'a> System<'a> {
    /// The machine that a configuration is about.
    pub fn new(config: &'a AgentConfig) -> Self {
        Self { config, programs: Programs { dir: config.nix.bin_dir.clone() } }
    }

    /// The system that runs.
    pub fn running(&self) -> Option<StorePath> {
        StorePath::behind(&self.config.system.current_system())
    }

    /// The system that was booted.
    pub fn booted(&self) -> Option<StorePath> {
        StorePath::behind(&self.config.system.booted_system())
    }

    /// Whether the kernel, its modules or the initrd of the system that runs are not those that were booted.
    pub fn reboot_needed(&self) -> bool {
        let (booted, current) = (self.config.system.booted_system(), self.config.system.current_system());
        let behind = |system: &Path, part: &str| std::fs::canonicalize(system.join(part)).ok();
        booted.exists()
            && ["kernel", "kernel-modules", "initrd"].iter().any(|part| behind(&booted, part) != behind(&current, part))
    }

    /// The system that the profile names.
    pub fn profile(&self) -> Option<StorePath> {
        StorePath::behind(&self.config.system.profile())
    }

    /// Keeps a store path from being collected, under a name in the state directory.
    pub fn keep(&self, path: &StorePath, name: &str, log: &mut Log) -> Result<()> {
        let root = self.root(name);
        let mut command = self.programs.command("nix-store");
        command.arg("--realise").arg(path.as_path()).arg("--add-root").arg(root).arg("--indirect");
        log.run(&mut command, None)
    }

    /// Gives a store path free again.
    pub fn release(&self, name: &str) -> Result<()> {
        files::remove(&self.root(name))
    }

    fn root(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }

    /// Builds the system of a fetched release, kept from collection as `result` in the state directory.
    ///
    /// A flake's must be the one that the manifest names; in closure mode it is fetched, not built.
    pub fn build(&self, manifest: &Manifest, tree: &Path, log: &mut Log) -> Result<StorePath> {
        let result = self.root("result");
        // a stale result must never pass for this build's
        files::remove(&result)?;
        let mut command = match (manifest.mode, manifest.kind) {
            (ReleaseMode::Closure, _) => {
                let mut command = self.programs.command("nix-store");
                // without a derivation at hand, all that Nix can do is to fetch
                command.arg("--realise").arg(manifest.toplevel.as_path()).arg("--add-root").arg(&result);
                command.arg("--indirect");
                for (setting, values) in [
                    ("extra-substituters", &manifest.substituters),
                    ("extra-trusted-public-keys", &manifest.trusted_public_keys),
                ] {
                    if !values.is_empty() {
                        command.args(["--option", setting, &values.join(" ")]);
                    }
                }
                command
            }
            (ReleaseMode::Source, HostKind::Flake) => {
                let mut command = self.programs.nix("build");
                command.args(["--no-update-lock-file", "--print-build-logs", "--out-link"]).arg(&result);
                command.arg(flake_toplevel(tree, manifest.host.as_str())?);
                command
            }
            (ReleaseMode::Source, HostKind::NonFlake) => {
                let mut command = self.programs.command("nix-build");
                let own = &self.config.nix.search_path;
                if own.is_empty() {
                    // the release's entries come before NIX_PATH
                    command.args(manifest.search_path.iter().flat_map(|entry| ["-I", entry]));
                } else {
                    let entries: Vec<String> = manifest.search_path.iter().chain(own).cloned().collect();
                    with_search_path(&mut command, &entries);
                }
                command.arg("--out-link").arg(&result).args(["-A", TOPLEVEL, "-E"]);
                command.arg(non_flake_expression(tree)?);
                command
            }
        };
        command.args(&self.config.nix.build_options);
        log.run(&mut command, None).context(match manifest.mode {
            ReleaseMode::Source => "the build failed",
            ReleaseMode::Closure => "the system could not be fetched: is it in a binary cache that this host uses?",
        })?;
        let built = StorePath::behind(&result)
            .with_context(|| format!("the build left no store path in {}", result.display()))?;
        let exact = manifest.kind == HostKind::Flake || manifest.mode == ReleaseMode::Closure;
        if exact && built != manifest.toplevel {
            bail!("the build gave {built}, but the release asks for {}", manifest.toplevel);
        }
        Ok(built)
    }

    /// Activates a system; never while another activation is at work.
    ///
    /// An activation outlives an agent that is killed. It holds its lock as its standard input, so the next agent can
    /// wait for its end; not for longer than any activation may take.
    pub fn activate(&self, toplevel: &StorePath, action: Action, log: &mut Log) -> Result<()> {
        let word = match action {
            Action::Test => "test",
            Action::Boot => "boot",
        };
        let mut command = Command::new(toplevel.as_path().join("bin/switch-to-configuration"));
        command.arg(word).envs(&self.config.system.environment);
        let limit = Duration::from_secs(self.config.system.activation_timeout);
        let lock = self.wait_for_activation(limit, log)?;
        let input = match &lock {
            Some(lock) => Stdio::from(lock.try_clone().context("cannot pass on the lock of activations")?),
            None => Stdio::null(),
        };
        log.run_with_input(&mut command, input, Some(limit))
    }

    /// Waits until no activation is at work. Gives the lock that says so, or nothing if the other one takes too long.
    fn wait_for_activation(&self, limit: Duration, log: &mut Log) -> Result<Option<Flock<File>>> {
        let file = self.config.state_dir.join("activation.lock");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(lock) = files::try_lock(&file)? {
                return Ok(Some(lock));
            }
            if Instant::now() >= deadline {
                log.say("an earlier activation does not end: going on without waiting for it")?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes a system the profile's, so that it is kept and listed as a generation.
    pub fn set_profile(&self, toplevel: &StorePath, log: &mut Log) -> Result<()> {
        let profile = self.config.system.profile();
        if let Some(dir) = profile.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let mut command = self.programs.command("nix-env");
        command.arg("--profile").arg(profile).arg("--set").arg(toplevel.as_path());
        log.run(&mut command, None)
    }
}
