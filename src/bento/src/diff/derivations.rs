//! Differences between the derivations of two systems: nothing has to be built for that.
//!
//! A derivation's closure has all that a system is built from. What of it ends up in the system only a build tells, so a
//! package that is listed may also be one that is only used to build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use bento_store::derivation::{Derivation, DerivationOutput};
use bento_store::store_path::StoreDir;
use serde::Serialize;

use super::{PackageChange, Packages, package_changes, split_version};
use crate::store_path::StorePath;

/// How the names of units end.
const KINDS: [&str; 9] =
    [".automount", ".mount", ".path", ".service", ".slice", ".socket", ".swap", ".target", ".timer"];

/// The derivations of a system, by their store paths' base names.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    root: String,
    derivations: BTreeMap<String, Derivation>,
}

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Packages, by their versions.
    pub packages: Vec<PackageChange>,
    /// Parts of the system that only a reboot changes: kernel, its modules, initrd.
    pub reboot: Vec<String>,
    /// Units that are new, gone or changed: activation starts, stops and (unless told otherwise) restarts them.
    pub units: Units,
}

/// Units of systemd that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Units {
    /// Those that only the new system has.
    pub added: BTreeSet<String>,
    /// Those that only the old system has.
    pub removed: BTreeSet<String>,
    /// Those that both have, but not the same.
    pub changed: BTreeSet<String>,
}

impl Graph {
    /// Reads a derivation and all that it needs from files in `dir`, each under its base name, as in the Nix store.
    pub fn read(dir: &Path, drv_path: &StorePath) -> Result<Self> {
        let store = StoreDir::default();
        let root = drv_path.base_name().to_owned();
        let mut derivations = BTreeMap::new();
        let mut waiting = vec![root.clone()];
        while let Some(base) = waiting.pop() {
            if derivations.contains_key(&base) {
                continue;
            }
            let file: PathBuf = dir.join(&base);
            let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let name = base.split_once('-').map_or("", |(_, name)| name).trim_end_matches(".drv");
            let derivation = Derivation::parse(&store, name, &text)
                .map_err(|error| anyhow!("{} is no derivation: {error}", file.display()))?;
            waiting.extend(derivation.input_drvs.keys().map(|path| path.as_str().to_owned()));
            derivations.insert(base, derivation);
        }
        Ok(Self { root, derivations })
    }

    /// The packages: derivations with a version that are no downloads.
    fn packages(&self) -> Packages {
        let mut packages = Packages::new();
        for derivation in self.derivations.values() {
            if derivation.outputs.values().any(|output| matches!(output, DerivationOutput::CaFixed(_))) {
                continue;
            }
            let variable = |name: &str| {
                let value = derivation.env.get(name.as_bytes())?;
                Some(String::from_utf8_lossy(value).into_owned()).filter(|value| !value.is_empty())
            };
            let (name, version) = match (variable("pname"), variable("version")) {
                (Some(name), Some(version)) => (name, version),
                _ => {
                    let (name, version) = split_version(&derivation.name);
                    (name.to_owned(), version.to_owned())
                }
            };
            if !version.is_empty() {
                packages.entry(name).or_default().insert(version);
            }
        }
        packages
    }

    /// The derivations that the system itself uses directly, by name, and that only a reboot brings: each one's paths.
    fn booted(&self) -> BTreeMap<&'static str, BTreeSet<&str>> {
        let mut parts = BTreeMap::new();
        let inputs = self.derivations.get(&self.root).map(|root| root.input_drvs.keys()).into_iter().flatten();
        for input in inputs {
            let Some(derivation) = self.derivations.get(input.as_str()) else { continue };
            let name = derivation.name.as_str();
            // as NixOS names them: linux-6.12.9, linux-6.12.9-modules or kernel-modules, initrd-linux-6.12.9
            let part = match name {
                _ if name.starts_with("initrd-") => "initrd",
                _ if name.starts_with("linux-") && name.ends_with("-modules") => "kernel modules",
                _ if name.starts_with("kernel-modules") => "kernel modules",
                _ if name.starts_with("linux-") => "kernel",
                _ => continue,
            };
            parts.entry(part).or_insert_with(BTreeSet::new).insert(input.as_str());
        }
        parts
    }

    /// The units: each one's derivation.
    fn units(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut units = BTreeMap::new();
        for (path, derivation) in &self.derivations {
            // the scripts of units are called unit-script-...
            let unit = derivation.name.strip_prefix("unit-");
            if let Some(unit) = unit.filter(|unit| KINDS.iter().any(|kind| unit.ends_with(kind))) {
                units.entry(unit).or_insert_with(BTreeSet::new).insert(path.as_str());
            }
        }
        units
    }

    /// What differs in another graph.
    pub fn changes(&self, new: &Self) -> Changes {
        let (old_parts, new_parts) = (self.booted(), new.booted());
        let parts: BTreeSet<_> = old_parts.keys().chain(new_parts.keys()).copied().collect();
        let reboot = parts.into_iter().filter(|part| old_parts.get(part) != new_parts.get(part));
        let (old_units, new_units) = (self.units(), new.units());
        let mut units = Units::default();
        for unit in old_units.keys().chain(new_units.keys()).collect::<BTreeSet<_>>() {
            let place = match (old_units.get(unit), new_units.get(unit)) {
                (None, _) => &mut units.added,
                (_, None) => &mut units.removed,
                (old, new) if old != new => &mut units.changed,
                _ => continue,
            };
            place.insert((*unit).to_owned());
        }
        Changes {
            packages: package_changes(&self.packages(), &new.packages()),
            reboot: reboot.map(str::to_owned).collect(),
            units,
        }
    }
}
