//! What a release changed against the one before it, as far as this machine can tell: what the manifests say, what became
//! of the files, and, where they are in the store, the derivations and the closures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use similar::TextDiff;

use crate::diff::{PackageChange, closures, derivations};
use crate::files::read_untrusted;
use crate::hub::HostDir;
use crate::manifest::{Manifest, release_dir};
use crate::package::{PackageFile, place};

/// Files that are larger, in bytes, are not compared line by line.
const LIMIT: u64 = 256 << 10;
/// How long one file's comparison may take, before it gets coarser.
const PATIENCE: Duration = Duration::from_millis(200);
/// How many lines around a change are shown.
const CONTEXT: usize = 3;

/// What differs between two releases of a host.
#[derive(Debug)]
pub struct ReleaseChanges {
    /// In what a host does something else, in words.
    pub differences: Vec<String>,
    /// What became of the files, by path.
    pub files: Vec<FileChange>,
    /// What differs in what the systems are built from; why that can't be told, if it can't.
    pub derivations: Result<derivations::Changes>,
    /// What differs in the closures; why that can't be told, if it can't.
    pub closures: Result<Vec<PackageChange>>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Only the new release has it.
    Added,
    /// Only the old release has it.
    Removed,
    /// Both have it, but not the same.
    Changed,
}

impl Fate {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Its path in the release.
    pub path: String,
    /// What became of it.
    pub fate: Fate,
    /// The lines that differ, as a unified diff, where both are texts that are neither too large nor secret.
    pub lines: Option<String>,
}

/// Compares two releases of a host.
pub fn changes(dir: &HostDir, old: &Manifest, new: &Manifest) -> ReleaseChanges {
    let store = Path::new("/nix/store");
    let derivations = derivations::Graph::read(store, &old.drv_path)
        .and_then(|graph| Ok(graph.changes(&derivations::Graph::read(store, &new.drv_path)?)));
    let closures = closures::closure(&old.toplevel)
        .and_then(|closure| Ok(closures::changes(&closure, &closures::closure(&new.toplevel)?)));
    ReleaseChanges { differences: new.differences(old), files: files(dir, old, new), derivations, closures }
}

/// Compares the files.
fn files(dir: &HostDir, old: &Manifest, new: &Manifest) -> Vec<FileChange> {
    let by_path = |manifest: &'_ Manifest| -> BTreeMap<String, PackageFile> {
        manifest.files.iter().map(|file| (file.path.clone(), file.clone())).collect()
    };
    let (before, after) = (by_path(old), by_path(new));
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let change = |path: &String| {
        let fate = match (before.get(path), after.get(path)) {
            (Some(_), None) => Fate::Removed,
            (None, _) => Fate::Added,
            (Some(old), Some(new)) if old != new => Fate::Changed,
            _ => return None,
        };
        let text = |manifest: &Manifest, files: &BTreeMap<String, PackageFile>| match files.get(path) {
            None => Ok(String::new()),
            Some(file) if is_secret(file) => bail!("{path} is secret"),
            Some(file) => text(&dir.path().join(release_dir(manifest.serial)), &file.path),
        };
        let lines = text(old, &before).and_then(|old| Ok((old, text(new, &after)?))).ok();
        Some(FileChange { path: path.clone(), fate, lines: lines.map(|(old, new)| unified(&old, &new)) })
    };
    paths.into_iter().filter_map(change).collect()
}

/// Whether what a file says is nobody's business: it is one of the secrets, or the host lets none but root read it.
fn is_secret(file: &PackageFile) -> bool {
    file.path.split('/').any(|part| part == "secrets") || file.mode.bits() & 0o044 == 0
}

/// The text of a file of a release.
fn text(release: &Path, path: &str) -> Result<String> {
    String::from_utf8(read_untrusted(&place(release, path)?, LIMIT)?).with_context(|| format!("{path} is no text"))
}

/// The lines that differ, as a unified diff without its head.
fn unified(old: &str, new: &str) -> String {
    let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(old, new);
    diff.unified_diff().context_radius(CONTEXT).to_string()
}
