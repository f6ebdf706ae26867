//! The machine that the agent works on: what runs, building, activating, booting.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::Flock;
use nix::sys::statvfs::statvfs;

use crate::agent::boot::{self, Loader};
use crate::agent::config::AgentConfig;
use crate::agent::log::Log;
use crate::agent::state;
use crate::agent::units::{self, Ended};
use crate::evaluation::EvaluatorChoice;
use crate::files;
use crate::host::HostKind;
use crate::manifest::{Manifest, ReleaseMode};
use crate::nix::{Programs, TOPLEVEL, flake_toplevel, non_flake_expression, with_search_path};
use crate::store_path::StorePath;

/// The status that `switch-to-configuration` ends with when units failed.
const UNITS_FAILED: i32 = 4;
/// The configuration that an attempt began with, in the state directory.
pub const RECORDED_CONFIG: &str = "attempt.toml";

/// The file in the state directory that is there while profile and boot entry may not agree.
const BOOT_ENTRY: &str = "boot-entry";
/// The link to the derivation of a release that bento evaluated, in the state directory.
pub const DERIVATION: &str = "derivation";

/// How an activation is done, by the words of `switch-to-configuration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run it, but boot what was booted before.
    Test,
    /// Boot it from now on.
    Boot,
}

/// What an activation came to that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activated {
    /// All of it worked.
    Whole,
    /// Units failed that it started or restarted (`switch-to-configuration` ends with status 4).
    UnitsFailed,
}

/// This machine.
#[derive(Debug)]
pub struct System<'a> {
    config: &'a AgentConfig,
    programs: Programs,
    /// Whether systemd runs activations and the watchdog.
    systemd: bool,
}

impl<'a> System<'a> {
    /// The machine that a configuration is about.
    pub fn new(config: &'a AgentConfig) -> Self {
        let programs = Programs { dir: config.nix.bin_dir.clone() };
        Self { config, programs, systemd: config.system.has_systemd() }
    }

    /// The system that runs.
    pub fn running(&self) -> Option<StorePath> {
        StorePath::behind(&self.config.system.current_system())
    }

    /// The system that the profile names.
    pub fn profile(&self) -> Option<StorePath> {
        StorePath::behind(&self.config.system.profile())
    }

    /// The system that was booted.
    pub fn booted(&self) -> Option<StorePath> {
        StorePath::behind(&self.config.system.booted_system())
    }

    /// The kernel's name for this boot.
    pub fn boot_id(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }

    /// Whether a system needs a boot for all of it to take effect.
    pub fn needs_boot(&self, toplevel: &StorePath) -> bool {
        self.booted().is_some_and(|booted| boot::differs(booted.as_path(), toplevel.as_path()))
    }

    /// Whether the system that runs needs a boot for all of it to take effect.
    pub fn reboot_needed(&self) -> bool {
        self.running().is_some_and(|running| self.needs_boot(&running))
    }

    /// Whether there is room for what is about to be written.
    pub fn check_space(&self) -> Result<()> {
        let root = &self.config.system.root;
        let places = [self.config.state_dir.clone(), PathBuf::from("/nix/store"), root.join("boot")];
        for place in places.iter().filter(|place| place.is_dir()) {
            let found = statvfs(place).with_context(|| format!("cannot look at {}", place.display()))?;
            // the fields' types differ between machines
            #[allow(clippy::useless_conversion)]
            let free = (u64::from(found.blocks_available()) * u64::from(found.fragment_size())) >> 20;
            if free < self.config.before.free {
                bail!(
                    "only {free} MiB are free in {}, of the {} that are wanted",
                    place.display(),
                    self.config.before.free
                );
            }
        }
        Ok(())
    }

    /// Has a system say itself whether it may be activated.
    pub fn ask_system(&self, toplevel: &StorePath, log: &mut Log) -> Result<()> {
        let program = toplevel.as_path().join(&self.config.before.program);
        if !program.is_file() {
            return Ok(());
        }
        log.run(&mut Command::new(program), Some(Duration::from_secs(self.config.before.timeout)))
            .context("the system's own check is against activating it")
    }

    /// The units that have failed; none where there is no systemd.
    pub fn failed_units(&self) -> Result<Vec<String>> {
        if self.systemd { units::failed() } else { Ok(Vec::new()) }
    }

    /// Has units that failed count as stopped.
    pub fn forget_failures(&self, units: &[String]) {
        if self.systemd && !units.is_empty() {
            units::forget_failures(units);
        }
    }

    /// Restarts those of these units that run or have failed; where there is no systemd, it only says so.
    pub fn restart(&self, units: &[String], log: &mut Log) -> Result<()> {
        let mut say =
            |units: &[&str]| log.say(&format!("restarting what reads secrets that have changed: {}", units.join(", ")));
        match self.systemd {
            true => units::restart(units, Duration::from_secs(self.config.system.activation_timeout), say),
            false if units.is_empty() => Ok(()),
            false => say(&units.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    }

    /// How many units have failed, if that can be known.
    pub fn count_failed_units(&self) -> Option<u64> {
        if self.systemd { units::failed().ok().map(|units| units.len() as u64) } else { None }
    }

    /// Whether the unit that starts the agent is active; it is not where there is no systemd.
    pub fn has_timer(&self) -> Result<bool> {
        Ok(self.systemd && units::is_active(&self.config.confirm.timer)?)
    }

    /// Has this program bring back what ran before, if nobody confirms a system in time.
    pub fn arm_watchdog(&self, seconds: u64) -> Result<()> {
        if !self.systemd {
            return Ok(());
        }
        let config = self.config.state_dir.join(RECORDED_CONFIG);
        files::write_atomic(&config, self.config.text.as_bytes(), 0o600, None)?;
        // the program itself, not a link that the new system may point elsewhere
        let program =
            std::env::current_exe().and_then(|file| file.canonicalize()).context("cannot find bento itself")?;
        let config = config.to_str().context("state-dir is not UTF-8")?;
        units::arm_watchdog(seconds, &program, &["agent", "watchdog", "--config", config])
    }

    /// Takes the watchdog back.
    pub fn disarm_watchdog(&self) {
        if self.systemd {
            units::disarm_watchdog();
        }
    }

    /// Has the next boot be one of `toplevel` and all others of `standby`. Where the boot loader can't do that, all are of
    /// `toplevel`.
    pub fn boot_once(&self, toplevel: &StorePath, standby: &StorePath, log: &mut Log) -> Result<()> {
        self.change_boot(toplevel, log, |log| {
            self.activate(standby, Action::Boot, log)?;
            let loader = self.loader();
            let once = match &loader {
                Some(loader) => loader.boot_once(toplevel, log),
                None => Err(anyhow!("there is neither systemd-boot nor GRUB")),
            };
            if let Err(error) = once {
                let until = if loader.is_some_and(|loader| loader.counts(toplevel)) {
                    "until it counts it as bad"
                } else {
                    "from now on"
                };
                log.say(&format!(
                    "the boot loader knows no single boot: this system will be booted {until}: {error:#}"
                ))?;
                self.activate(toplevel, Action::Boot, log)?;
            }
            // the profile names the one and the boot entry the other, until all boots are of one of them
            Ok(())
        })
    }

    /// Has all boots be of `toplevel`, which the profile names from now on too.
    pub fn boot_always(&self, toplevel: &StorePath, log: &mut Log) -> Result<()> {
        self.change_boot(toplevel, log, |log| {
            self.activate(toplevel, Action::Boot, log)?;
            self.loader().map_or(Ok(()), |loader| loader.boot_regularly(log))
        })?;
        files::remove(&self.root(BOOT_ENTRY))
    }

    /// Takes a system out of the profile's generations, each of which has a boot entry; gives whether it was one. It must not be the one that
    /// the profile names.
    pub fn forget_generations(&self, toplevel: &StorePath, log: &mut Log) -> Result<bool> {
        let profile = self.config.system.profile();
        let (Some(dir), Some(name)) = (profile.parent(), profile.file_name()) else { return Ok(false) };
        let links = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        let prefix = format!("{}-", name.to_string_lossy());
        let generation = |link: std::fs::DirEntry| {
            let number: u64 = link.file_name().to_str()?.strip_prefix(&prefix)?.strip_suffix("-link")?.parse().ok()?;
            (StorePath::behind(&link.path()).as_ref() == Some(toplevel)).then(|| number.to_string())
        };
        let numbers: Vec<String> = links.filter_map(|link| generation(link.ok()?)).collect();
        if numbers.is_empty() {
            return Ok(false);
        }
        let mut command = self.programs.command("nix-env");
        command.arg("--profile").arg(profile).arg("--delete-generations").args(numbers);
        log.run(&mut command, None)?;
        Ok(true)
    }

    /// Has the profile name `toplevel` and `change` the boot entry, so that a power cut at any time leaves what boots, and what
    /// tells that the two may not agree.
    fn change_boot(
        &self,
        toplevel: &StorePath,
        log: &mut Log,
        change: impl FnOnce(&mut Log) -> Result<()>,
    ) -> Result<()> {
        self.mark_boot_entry(log);
        self.sync_disks(log);
        self.set_profile(toplevel, log)?;
        change(log)?;
        self.sync_disks(log);
        Ok(())
    }

    /// Notes that profile and boot entry may not agree from now on: a change of them may be cut short. On a disk that is full
    /// the change is more urgent.
    fn mark_boot_entry(&self, log: &mut Log) {
        let file = self.root(BOOT_ENTRY);
        let marked = state::with_ballast(&self.config.state_dir, || files::write_atomic(&file, b"", 0o600, None));
        if let Err(error) = marked {
            // no log can be written either
            let _ = log.say(&format!("{error:#}: going on without"));
        }
    }

    /// Has everything that a boot needs reach the disks: Nix calls paths valid whose files are in memory only, and not every boot
    /// loader's installer waits for what it wrote. Only these file systems: one of another machine's might never answer. What can't be
    /// done is logged: the boot entry matters more.
    fn sync_disks(&self, log: &mut Log) {
        let system = &self.config.system;
        let mut places = vec![PathBuf::from("/nix/store")];
        places.extend(["boot", "efi", "boot/efi"].map(|place| system.root.join(place)));
        places.extend(system.profile().parent().map(Path::to_owned));
        for place in places.iter().filter(|place| place.is_dir()) {
            if let Err(error) = files::sync_file_system(place) {
                // no log can be written either
                let _ = log.say(&format!("{error:#}: going on without"));
            }
        }
    }

    /// The boot loader that decides what comes after this boot: only where the system is this machine's own, as its tools
    /// speak to the firmware.
    fn loader(&self) -> Option<Loader> {
        if self.systemd { Loader::find(&self.config.system.root) } else { None }
    }

    /// Whether the machine would boot, and its profile names, this system, as far as can be told: the boot entry follows the
    /// profile, unless the change of both was cut short, or the profile's system is booted only once.
    pub fn boots(&self, toplevel: &StorePath) -> bool {
        self.profile().as_ref() == Some(toplevel) && !self.root(BOOT_ENTRY).exists()
    }

    /// Has the machine go down, to come up in `next` if that is given and possible without its firmware.
    pub fn go_down(&self, next: Option<&StorePath>, log: &mut Log) -> Result<()> {
        if !self.systemd {
            bail!("there is no systemd to restart this machine");
        }
        if let Some(next) = next.filter(|_| self.config.reboot.kexec) {
            match boot::load_kernel(next, log) {
                Ok(()) => return units::go_down("kexec"),
                Err(error) => log.say(&format!("not starting the kernel from this one: {error:#}"))?,
            }
        }
        units::go_down("reboot")
    }

    /// Keeps a store path from being collected, under a name in the state directory.
    pub fn keep(&self, path: &StorePath, name: &str, log: &mut Log) -> Result<()> {
        let root = self.root(name);
        let mut command = self.programs.command("nix-store");
        command.arg("--realise").arg(path.as_path()).arg("--add-root").arg(root).arg("--indirect");
        log.run(&mut command, None)
    }

    /// The store path that is kept under a name, if one is.
    pub fn kept(&self, name: &str) -> Option<StorePath> {
        StorePath::behind(&self.root(name))
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
    /// A flake's must be the one that the manifest names, unless it has `other_inputs`; in closure mode it is fetched, not
    /// built.
    pub fn build(&self, manifest: &Manifest, tree: &Path, other_inputs: bool, log: &mut Log) -> Result<StorePath> {
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
            (ReleaseMode::Source, _) if self.config.nix.evaluator == Some(EvaluatorChoice::Builtin) => {
                let derivation = self.evaluate(manifest, tree, log).context("the evaluation failed")?;
                let mut command = self.programs.command("nix-store");
                command.arg("--realise").arg(derivation.as_path()).arg("--add-root").arg(&result).arg("--indirect");
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
                self.set_search_path(&mut command, manifest);
                command.arg("--out-link").arg(&result).args(["-A", TOPLEVEL, "-E"]);
                command.arg(non_flake_expression(tree)?);
                command
            }
        };
        command.args(&self.config.nix.build_options);
        write_through(&mut command);
        log.run(&mut command, Some(self.config.nix.limit())).context(match manifest.mode {
            ReleaseMode::Source => "the build failed",
            ReleaseMode::Closure => "the system could not be fetched: is it in a binary cache that this host uses?",
        })?;
        let built = StorePath::behind(&result)
            .with_context(|| format!("the build left no store path in {}", result.display()))?;
        let exact = !other_inputs && (manifest.kind == HostKind::Flake || manifest.mode == ReleaseMode::Closure);
        if exact && built != manifest.toplevel {
            bail!("the build gave {built}, but the release asks for {}", manifest.toplevel);
        }
        Ok(built)
    }

    /// Has a command look `<name>` up where a release and this machine have it.
    fn set_search_path(&self, command: &mut Command, manifest: &Manifest) {
        let own = &self.config.nix.search_path;
        if own.is_empty() {
            // the release's entries come before NIX_PATH
            command.args(manifest.search_path.iter().flat_map(|entry| ["-I", entry]));
        } else {
            let entries: Vec<String> = manifest.search_path.iter().chain(own).cloned().collect();
            with_search_path(command, &entries);
        }
    }

    /// Evaluates a release with bento's own evaluator: the derivation of its system, which is in the store then and kept from
    /// collection. In a process of its own, whose memory is free again when the build begins.
    fn evaluate(&self, manifest: &Manifest, tree: &Path, log: &mut Log) -> Result<StorePath> {
        let link = self.root(DERIVATION);
        files::remove(&link)?;
        let program = std::env::current_exe().context("cannot find bento itself")?;
        let mut command = Command::new(program);
        command.arg("eval").arg("--add-root").arg(&link);
        match manifest.kind {
            HostKind::Flake => {
                command.args(["--pure-eval", "--no-update-lock-file", "--flake"]);
                command.arg(flake_toplevel(tree, manifest.host.as_str())?);
            }
            HostKind::NonFlake => {
                self.set_search_path(&mut command, manifest);
                command.args(["-A", TOPLEVEL, "-E"]).arg(non_flake_expression(tree)?);
            }
        }
        write_through(&mut command);
        log.run(&mut command, Some(self.config.nix.limit()))?;
        let derivation = StorePath::behind(&link)
            .with_context(|| format!("the evaluation left no store path in {}", link.display()))?;
        log.say(&format!("evaluated: {derivation}"))?;
        Ok(derivation)
    }

    /// Activates a system; never while another activation is at work.
    ///
    /// An activation outlives an agent that is killed. The next agent waits for its end: with systemd by the name of its
    /// unit, else by a lock that it holds as its standard input; not for longer than any activation may take.
    pub fn activate(&self, toplevel: &StorePath, action: Action, log: &mut Log) -> Result<Activated> {
        let word = match action {
            Action::Test => "test",
            Action::Boot => "boot",
        };
        let program = toplevel.as_path().join("bin/switch-to-configuration");
        let limit = Duration::from_secs(self.config.system.activation_timeout);
        let environment = &self.config.system.environment;
        let code = if self.systemd {
            log.say(&format!("running {} {word}", program.display()))?;
            match units::activate(&program, &[word], environment, log.path(), limit)? {
                Ended::Exited(code) => Some(code),
                Ended::TimedOut => {
                    bail!("{} did not end within {} s and was killed", program.display(), limit.as_secs())
                }
                Ended::Otherwise(how) => bail!("{} did not end by itself: {how}", program.display()),
            }
        } else {
            let lock = self.wait_for_activation(limit, log)?;
            let input = match &lock {
                Some(lock) => Stdio::from(lock.try_clone().context("cannot pass on the lock of activations")?),
                None => Stdio::null(),
            };
            let mut command = Command::new(&program);
            log.status(command.arg(word).envs(environment), input, Some(limit))?.code()
        };
        match code {
            Some(0) => Ok(Activated::Whole),
            Some(UNITS_FAILED) => Ok(Activated::UnitsFailed),
            Some(code) => bail!("{} ended with exit status {code}", program.display()),
            None => bail!("{} was killed", program.display()),
        }
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

/// Has a command, or the daemon that it starts, sync what it adds to the store before Nix calls it valid: else a power cut leaves
/// paths that are valid and empty, which nothing replaces. What the environment says of that itself counts more.
fn write_through(command: &mut Command) {
    let mut config = OsString::from("sync-before-registering = true\n");
    config.extend(std::env::var_os("NIX_CONFIG"));
    command.env("NIX_CONFIG", config);
}
