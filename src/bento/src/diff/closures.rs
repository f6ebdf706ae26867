//! Differences between the closures of two built systems, equal to what `nix store diff-closures` of Nix 2.34 prints.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::{PackageChange, Packages, package_changes, split_version};
use crate::nix::{Programs, not_started};
use crate::store_path::StorePath;

/// The least difference of sizes that is shown, in bytes.
pub const SHOWN: i64 = 8 * 1024;

/// A closure: the size in bytes of each path that belongs to it.
pub type Closure = BTreeMap<StorePath, u64>;

/// Asks the machine's Nix for the closure of a path that is in the store.
pub fn closure(path: &StorePath) -> Result<Closure> {
    let programs = Programs::default();
    let lines = |arguments: &[&str], paths: &[&str]| -> Result<Vec<String>> {
        let mut command = programs.command("nix-store");
        command.args(arguments).args(paths);
        let output = command.output().with_context(|| not_started("nix-store".as_ref()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    };
    let paths = lines(&["--query", "--requisites"], &[path.as_str()])
        .with_context(|| format!("cannot tell the closure of {path}"))?;
    let mut sizes = Vec::new();
    // command lines are not endless
    for chunk in paths.chunks(1000) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        sizes.extend(lines(&["--query", "--size"], &chunk).with_context(|| format!("cannot tell the size of {path}"))?);
    }
    if sizes.len() != paths.len() {
        bail!("nix-store told the sizes of {} paths instead of {}", sizes.len(), paths.len());
    }
    let entry = |(path, size): (String, String)| {
        Ok((StorePath::new(path)?, size.trim().parse().with_context(|| format!("{size:?} is no size"))?))
    };
    paths.into_iter().zip(sizes).map(entry).collect()
}

/// The packages of which versions or sizes differ.
pub fn changes(old: &Closure, new: &Closure) -> Vec<PackageChange> {
    let (old_packages, old_sizes) = packages(old);
    let (new_packages, new_sizes) = packages(new);
    let delta = |name: &str| {
        let size = |sizes: &BTreeMap<String, u64>| i64::try_from(sizes.get(name).copied().unwrap_or(0)).unwrap_or(0);
        size(&new_sizes) - size(&old_sizes)
    };
    let mut changes = package_changes(&old_packages, &new_packages);
    let same = new_packages.keys().filter(|name| old_packages.get(*name) == new_packages.get(*name));
    changes.extend(same.filter(|name| delta(name).abs() >= SHOWN).map(|name| PackageChange {
        name: name.clone(),
        removed: Default::default(),
        added: Default::default(),
        size: None,
    }));
    for change in &mut changes {
        change.size = Some(delta(&change.name));
    }
    changes.sort_by(|a, b| a.name.cmp(&b.name));
    changes
}

/// The versions and the size of each package of a closure.
fn packages(closure: &Closure) -> (Packages, BTreeMap<String, u64>) {
    let (mut packages, mut sizes) = (Packages::new(), BTreeMap::new());
    for (path, size) in closure {
        let name = path.base_name().split_once('-').map_or("", |(_, name)| name);
        let (name, version) = split_version(without_output(name));
        packages.entry(name.to_owned()).or_default().insert(version.to_owned());
        *sizes.entry(name.to_owned()).or_default() += size;
    }
    (packages, sizes)
}

/// A name without what looks like an output's: the regular expression `(.*)-([a-z]+|lib32|lib64)` in Nix.
fn without_output(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((rest, end))
            if matches!(end, "lib32" | "lib64")
                || (!end.is_empty() && end.bytes().all(|byte| byte.is_ascii_lowercase())) =>
        {
            rest
        }
        _ => name,
    }
}
