//! Which disks of a machine are erased: the ones that the layout names, found on the machine, and named by whoever wants it.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::provision::facts::{Disk, Facts};
use crate::provision::outline::Layout;

/// A disk that is erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wipe {
    /// Its name in the layout.
    pub name: String,
    /// Its device there.
    pub device: String,
    /// The disk that it was found to be.
    pub disk: Disk,
}

impl Wipe {
    /// For people.
    pub fn text(&self) -> String {
        let disk = self.disk.text();
        let mounts = match self.disk.mounts.is_empty() {
            true => String::new(),
            false => format!("; now mounted at {}", self.disk.mounts.join(", ")),
        };
        let device = if self.disk.device == self.device { String::new() } else { format!(" as {}", self.device) };
        format!("{disk} (disko.devices.disk.{}{device}){mounts}", self.name)
    }
}

/// Finds the disks that a layout erases; an error says which the machine has instead.
pub fn find(layout: &Layout, facts: &Facts) -> Result<Vec<Wipe>> {
    let mut wipes: Vec<Wipe> = Vec::new();
    for (name, device) in layout.erased() {
        let Some(disk) = facts.disks.iter().find(|disk| disk.is_called(&device)) else {
            let known: Vec<String> = facts
                .disks
                .iter()
                .map(|disk| {
                    let by_id = disk.links.iter().find(|link| link.starts_with("/dev/disk/by-id/"));
                    format!("{} ({})", by_id.unwrap_or(&disk.device), disk.text())
                })
                .collect();
            bail!(
                "the machine has no disk {device} (disko.devices.disk.{name}.device); it has: {}",
                if known.is_empty() { "none".to_owned() } else { known.join("; ") }
            );
        };
        if disk.read_only {
            bail!("{} (disko.devices.disk.{name}) can't be written to", disk.text());
        }
        let needed = layout.needs(&name);
        if needed > disk.size {
            bail!("{} (disko.devices.disk.{name}) is too small: its partitions add up to {needed} bytes", disk.text());
        }
        if let Some(other) = wipes.iter().find(|other| other.disk.device == disk.device) {
            bail!("disko.devices.disk.{name} and {} are both {}", other.name, disk.text());
        }
        wipes.push(Wipe { name, device, disk: disk.clone() });
    }
    Ok(wipes)
}

/// Sees that the disks that were named are still those that are erased: what a device is called can change with the kernel.
pub fn still(named: &[Wipe], layout: &Layout, facts: &Facts) -> Result<()> {
    let found = find(layout, facts)?;
    for wipe in &found {
        match named.iter().find(|named| named.name == wipe.name) {
            Some(named) if named.disk.is_same(&wipe.disk) => {}
            Some(named) => bail!(
                "what was named is not what would be erased: you said {}, and {} is {} now; nothing was erased. Use a name in \
                 /dev/disk/by-id",
                named.disk.text(),
                wipe.device,
                wipe.disk.text()
            ),
            None => bail!("nobody said that {} may be erased", wipe.text()),
        }
    }
    Ok(())
}

/// Which disks nobody has named yet.
pub fn unnamed<'w>(wipes: &'w [Wipe], words: &[String]) -> Vec<&'w Wipe> {
    wipes.iter().filter(|wipe| !words.iter().any(|word| word == wipe.disk.word())).collect()
}
