//! Booting: whether a system needs a boot, and having the next boot, and only that, be one of a certain system.
//!
//! Loaders are known by their own tools: systemd-boot by `bootctl set-oneshot`, GRUB by the variable `next_entry` that
//! `grub-reboot` sets and NixOS's menu reads. Entries are found by what they boot, not by their names; those of systemd-boot
//! may have a counter of boots in theirs (<https://systemd.io/AUTOMATIC_BOOT_ASSESSMENT/>).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::agent::log::Log;
use crate::store_path::StorePath;

/// What a new one of takes effect only with a boot.
const BOOTED: [&str; 4] = ["kernel", "kernel-modules", "initrd", "systemd"];

/// Whether the two systems differ in something that only a boot changes.
pub fn differs(one: &Path, other: &Path) -> bool {
    BOOTED.iter().any(|part| fs::canonicalize(one.join(part)).ok() != fs::canonicalize(other.join(part)).ok())
}

/// A boot loader that can be told about a single boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loader {
    /// systemd-boot, with its entries' directory.
    Systemd(PathBuf),
    /// GRUB, with its directory.
    Grub(PathBuf),
}

impl Loader {
    /// The loader of the machine whose files are below `root`; `None` if it is none of these.
    pub fn find(root: &Path) -> Option<Self> {
        let entries = ["boot/loader/entries", "efi/loader/entries", "boot/efi/loader/entries"];
        if let Some(dir) = entries.iter().map(|dir| root.join(dir)).find(|dir| dir.is_dir()) {
            return Some(Self::Systemd(dir));
        }
        let grub = root.join("boot/grub");
        grub.join("grub.cfg").is_file().then_some(Self::Grub(grub))
    }

    /// Has the next boot, and only that, be one of a system.
    pub fn boot_once(&self, toplevel: &StorePath, log: &mut Log) -> Result<()> {
        match self {
            Self::Systemd(dir) => {
                let name = systemd_entry(dir, toplevel)?;
                let pattern = counted(&name).map(|stem| format!("{stem}[+.]*conf"));
                log.run(Command::new("bootctl").args(["set-oneshot", pattern.as_deref().unwrap_or(&name)]), None)
            }
            Self::Grub(dir) => {
                let file = dir.join("grub.cfg");
                let menu = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                let entry = grub_entry(&menu, toplevel)
                    .with_context(|| format!("{} has no entry that boots {toplevel}", file.display()))?;
                log.run(grub_editenv(dir).args(["set", &format!("next_entry={entry}")]), None)
            }
        }
    }

    /// Whether the loader counts how often a system was booted, and leaves it by itself for another one if none of these boots
    /// came up for good.
    pub fn counts(&self, toplevel: &StorePath) -> bool {
        match self {
            Self::Systemd(dir) => systemd_entry(dir, toplevel).is_ok_and(|name| counted(&name).is_some()),
            Self::Grub(_) => false,
        }
    }

    /// Takes back what [`Loader::boot_once`] did.
    pub fn boot_regularly(&self, log: &mut Log) -> Result<()> {
        match self {
            Self::Systemd(_) => log.run(Command::new("bootctl").args(["set-oneshot", ""]), None),
            Self::Grub(dir) => log.run(grub_editenv(dir).args(["unset", "next_entry"]), None),
        }
    }
}

fn grub_editenv(dir: &Path) -> Command {
    let mut command = Command::new("grub-editenv");
    command.arg(dir.join("grubenv"));
    command
}

/// What every entry has that boots a system.
fn boots(text: &str, toplevel: &StorePath) -> bool {
    let init = format!("init={toplevel}/init");
    text.split_whitespace().any(|word| word == init)
}

/// The file name of the entry that boots a system.
fn systemd_entry(dir: &Path, toplevel: &StorePath) -> Result<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let is_entry = path.extension().is_some_and(|extension| extension == "conf");
        if is_entry && fs::read_to_string(&path).is_ok_and(|text| boots(&text, toplevel)) {
            found.extend(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    // of several generations with the same system the newest has the longest or greatest name
    found.sort_by_key(|name| (name.len(), name.clone()));
    match found.pop() {
        Some(name) => Ok(name),
        None => bail!("{} has no entry that boots {toplevel}", dir.display()),
    }
}

/// What comes before the counter in the name of an entry: `+LEFT` or `+LEFT-DONE`, before `.conf`. The loader renames the
/// entry with each boot, and whether it knows it by the name with the counter or without depends on its version.
pub fn counted(name: &str) -> Option<&str> {
    let (stem, counter) = name.strip_suffix(".conf")?.rsplit_once('+')?;
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(left) && is_number(done)).then_some(stem)
}

/// The place of the entry that boots a system, in the form of `next_entry`: the numbers of the menus' entries, from 0,
/// the outermost first.
pub fn grub_entry(menu: &str, toplevel: &StorePath) -> Option<String> {
    // per open block: the number of the next entry, and, in an entry, its place
    let mut counts = vec![0_usize];
    let mut blocks: Vec<Option<usize>> = Vec::new();
    for line in menu.lines() {
        let line = line.trim();
        if line.starts_with("menuentry ") || line.starts_with("submenu ") {
            let number = counts.last().copied()?;
            *counts.last_mut()? += 1;
            blocks.push(Some(number));
            counts.push(0);
        } else if line.ends_with('{') {
            blocks.push(None);
        } else if line == "}" {
            if blocks.pop()?.is_some() {
                counts.pop();
            }
        } else if line.starts_with("linux ") && boots(line, toplevel) {
            let place: Vec<String> = blocks.iter().flatten().map(usize::to_string).collect();
            return Some(place.join(">"));
        }
    }
    None
}

/// Loads a system's kernel, so that the machine can start it without its firmware. An error says why that can't be.
pub fn load_kernel(toplevel: &StorePath, log: &mut Log) -> Result<()> {
    let parameters = toplevel.as_path().join("kernel-params");
    let parameters =
        fs::read_to_string(&parameters).with_context(|| format!("cannot read {}", parameters.display()))?;
    let mut command = Command::new("kexec");
    command
        .arg("--load")
        .arg(toplevel.as_path().join("kernel"))
        .arg(format!("--initrd={toplevel}/initrd"))
        .arg(format!("--command-line=init={toplevel}/init {}", parameters.trim()));
    log.run_with_input(&mut command, Stdio::null(), None)
}
