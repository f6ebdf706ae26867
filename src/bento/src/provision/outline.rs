//! What a host's evaluated configuration says of itself before it is deployed or installed: the conditions that do not hold, what is
//! laid out on its disks and what is wrong with that, and how it is reached.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The function of a host's `config` that gives an [`Outline`].
pub const FUNCTION: &str = include_str!("outline.nix");

/// A host's configuration, as far as it is looked at before anything is built.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outline {
    /// What the assertions say that do not hold.
    pub failed: Vec<String>,
    /// What the configuration warns of.
    pub warnings: Vec<String>,
    /// What disko lays out; nothing if the host has no layout.
    pub layout: Option<Layout>,
    /// Which of disko's outputs there are in `config.system.build`.
    scripts: Vec<String>,
    /// How it is booted.
    boot: Boot,
    /// The device of each file system, by where it is mounted.
    file_systems: BTreeMap<String, Option<String>>,
    /// The ports of sshd.
    pub ports: Vec<u16>,
    /// Whether bento's agent is part of it.
    pub agent: bool,
    /// The private key with which that agent logs in, if it has one.
    pub identity: Option<String>,
}

/// The disks of a host, and what spans several of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The disks: all that is on them is erased when the host is installed.
    pub disks: Vec<Node>,
    /// Arrays, groups of volumes, pools, and file systems without a disk.
    pub volumes: Vec<Node>,
}

/// A disk, a partition, a volume, or what is on one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name in the configuration.
    pub name: String,
    /// Its type, in disko's word.
    #[serde(rename = "type")]
    kind: String,
    /// Where it is.
    pub device: Option<String>,
    format: Option<String>,
    mountpoint: Option<String>,
    member: Option<String>,
    size: Option<String>,
    purpose: Option<String>,
    children: Vec<Node>,
}

/// How a host is booted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Boot {
    efi: bool,
    bios: bool,
    efi_mountpoint: String,
}

/// How a machine's firmware starts what it boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// A boot loader that is a file of the EFI system partition.
    Efi,
    /// A boot loader in the first sectors of a disk.
    Bios,
}

impl Node {
    /// It, and all that is in it.
    fn all(&self) -> Vec<&Self> {
        let mut nodes = vec![self];
        nodes.extend(self.children.iter().flat_map(Self::all));
        nodes
    }
}

impl Layout {
    fn all(&self) -> impl Iterator<Item = &Node> {
        self.disks.iter().chain(&self.volumes).flat_map(Node::all)
    }

    /// How many bytes the partitions of a disk add up to, as far as their sizes are fixed.
    pub fn needs(&self, name: &str) -> u64 {
        let partitions = self.disks.iter().filter(|disk| disk.name == name).flat_map(Node::all);
        partitions.filter(|node| node.purpose.is_some()).filter_map(|node| bytes(node.size.as_deref()?)).sum()
    }

    /// The devices that are erased, each with its name in the configuration.
    pub fn erased(&self) -> Vec<(String, String)> {
        self.disks.iter().filter_map(|disk| Some((disk.name.clone(), disk.device.clone()?))).collect()
    }
}

impl Outline {
    /// Reads what the function gave.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("the configuration's options of disks and boot loaders are of unknown kinds")
    }

    /// Whether disko gives this output for the host.
    pub fn has_output(&self, name: &str) -> bool {
        self.scripts.iter().any(|script| script == name)
    }

    /// What is wrong with the layout of the disks, each with the way out; nothing if the host has none.
    pub fn objections(&self) -> Vec<String> {
        let Some(layout) = &self.layout else { return Vec::new() };
        let mut objections = Vec::new();
        let mut devices: BTreeMap<&str, &str> = BTreeMap::new();
        for disk in &layout.disks {
            let option = format!("disko.devices.disk.{}", disk.name);
            match disk.device.as_deref() {
                Some(device) if device.starts_with("/dev/") => {
                    if let Some(other) = devices.insert(device, &disk.name) {
                        objections.push(format!(
                            "{option}.device and that of {other} are both {device}: each disk can be laid out once"
                        ));
                    }
                }
                Some(device) => objections.push(format!("{option}.device is {device:?}: a disk is in /dev")),
                None => objections.push(format!("{option} has no device")),
            }
            let nodes = disk.all();
            let whole =
                nodes.iter().filter(|node| node.purpose.is_some() && node.size.as_deref() == Some("100%")).count();
            if whole > 1 {
                objections.push(format!("{whole} partitions of {option} want all that is left (size = \"100%\")"));
            }
        }
        let mut mounted: BTreeMap<&str, &Node> = BTreeMap::new();
        for node in layout.all() {
            let Some(mountpoint) = node.mountpoint.as_deref() else { continue };
            if !mountpoint.starts_with('/') {
                objections.push(format!("{} is mounted at {mountpoint:?}, which is no absolute path", node.name));
            }
            if let Some(other) = mounted.insert(mountpoint, node) {
                objections.push(format!("{} and {} are both mounted at {mountpoint}", other.name, node.name));
            }
        }
        if !self.file_systems.contains_key("/") {
            objections.push("nothing is mounted at /: a partition needs content.mountpoint = \"/\"".to_owned());
        }
        let groups: BTreeSet<&str> = layout.volumes.iter().map(|volume| volume.name.as_str()).collect();
        let members: BTreeSet<&str> = layout.all().filter_map(|node| node.member.as_deref()).collect();
        for group in members.difference(&groups) {
            objections.push(format!("a disk is part of {group}, which disko.devices does not have"));
        }
        for volume in &layout.volumes {
            let needs = ["mdadm", "lvm_vg", "zpool"].contains(&volume.kind.as_str());
            if needs && !members.contains(volume.name.as_str()) {
                objections.push(format!("no disk is part of {} (disko.devices.{})", volume.name, volume.kind));
            }
        }
        if self.boot.efi {
            let place = self.boot.efi_mountpoint.as_str();
            match mounted.get(place) {
                None => objections.push(format!(
                    "the boot loader lies at {place} (boot.loader.efi.efiSysMountPoint), where nothing is mounted: the disk needs a \
                     partition of type EF00 with that mountpoint"
                )),
                Some(node) if node.format.as_deref() != Some("vfat") => objections.push(format!(
                    "what is mounted at {place} for the boot loader is no vfat: firmware can't read it"
                )),
                Some(_) => {}
            }
        }
        let for_bios = |node: &Node| node.purpose.as_deref() == Some("EF02") || node.kind == "table";
        if self.boot.bios && !layout.all().any(for_bios) {
            objections.push(
                "GRUB starts from the disk itself (boot.loader.grub.devices), which has no partition of type EF02 for it".to_owned(),
            );
        }
        if !self.boot.efi && !self.boot.bios {
            objections
                .push("there is no boot loader: boot.loader.systemd-boot or boot.loader.grub with a device".to_owned());
        }
        objections
    }

    /// What could be better about the layout of the disks.
    pub fn advice(&self) -> Vec<String> {
        let fickle = |device: &str| {
            ["/dev/sd", "/dev/vd", "/dev/xvd", "/dev/nvme", "/dev/hd"].iter().any(|prefix| device.starts_with(prefix))
        };
        let disks = self.layout.iter().flat_map(Layout::erased).filter(|(_, device)| fickle(device));
        disks
            .map(|(name, device)| {
                format!(
                    "disko.devices.disk.{name}.device is {device}, which may be another disk after the next boot: a name in \
                     /dev/disk/by-id is always the same one"
                )
            })
            .collect()
    }

    /// Why the host could not be booted by this firmware; nothing if it could.
    pub fn misfit(&self, firmware: Firmware) -> Option<&'static str> {
        match firmware {
            Firmware::Efi if !self.boot.efi => Some(
                "the machine boots by EFI, and the configuration has a boot loader for BIOS only: use boot.loader.systemd-boot, or \
                 boot.loader.grub.efiSupport",
            ),
            Firmware::Bios if !self.boot.bios => Some(
                "the machine boots by BIOS, and the configuration has a boot loader for EFI only: use boot.loader.grub with the disk in \
                 boot.loader.grub.devices, or switch the machine's firmware to EFI",
            ),
            _ => None,
        }
    }
}

/// A size as `sgdisk` takes it, if it is fixed: `512M`.
fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &size[digits.len()..] {
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
