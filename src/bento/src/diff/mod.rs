//! Differences between two systems, without building: packages, kernel and initrd, units; and between their closures
//! where both are built.

pub mod closures;
pub mod derivations;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// The versions of each package, by its name. A package without a version has the empty one.
pub type Packages = BTreeMap<String, BTreeSet<String>>;

/// A package whose versions differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// Its name.
    pub name: String,
    /// The versions that only the old system has.
    pub removed: BTreeSet<String>,
    /// The versions that only the new system has.
    pub added: BTreeSet<String>,
    /// By how many bytes the new system's closure has more of it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
}

/// Splits a name into the package's and its version, which begins at the first dash that no letter follows. This is
/// `builtins.parseDrvName`.
pub fn split_version(name: &str) -> (&str, &str) {
    let bytes = name.as_bytes();
    let dash = (0..bytes.len())
        .find(|index| bytes[*index] == b'-' && bytes.get(index + 1).is_some_and(|next| !next.is_ascii_alphabetic()));
    dash.map_or((name, ""), |dash| (&name[..dash], &name[dash + 1..]))
}

/// The packages whose versions differ.
pub fn package_changes(old: &Packages, new: &Packages) -> Vec<PackageChange> {
    let none = BTreeSet::new();
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |name: &String| {
        let (before, after) = (old.get(name).unwrap_or(&none), new.get(name).unwrap_or(&none));
        (before != after).then(|| PackageChange {
            name: name.clone(),
            removed: before - after,
            added: after - before,
            size: None,
        })
    };
    names.into_iter().filter_map(change).collect()
}

/// Versions as `nix store diff-closures` shows them: `∅` for none, `ε` for the empty one.
pub fn versions(versions: &BTreeSet<String>) -> String {
    if versions.is_empty() {
        return "∅".to_owned();
    }
    let shown: BTreeSet<&str> = versions.iter().map(|v| if v.is_empty() { "ε" } else { v.as_str() }).collect();
    shown.into_iter().collect::<Vec<_>>().join(", ")
}

impl PackageChange {
    /// What changed, as `nix store diff-closures` shows it, without colours.
    pub fn text(&self) -> String {
        let mut items = Vec::new();
        if !self.removed.is_empty() || !self.added.is_empty() {
            items.push(format!("{} → {}", versions(&self.removed), versions(&self.added)));
        }
        items.extend(self.size.filter(|size| size.abs() >= closures::SHOWN).map(size));
        items.join(", ")
    }
}

/// A number of bytes, as Nix 2.34 shows it: in the largest unit of which there is more than one, but at least in KiB.
pub fn size(bytes: i64) -> String {
    const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];
    let mut power = 0;
    let mut rest = bytes.unsigned_abs();
    while rest > 1024 && power < UNITS.len() {
        power += 1;
        rest /= 1024;
    }
    let power = power.max(1);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "one digit is shown")]
    let value = bytes as f64 / 1024_f64.powi(power as i32);
    format!("{value:.1} {}iB", UNITS[power - 1])
}
