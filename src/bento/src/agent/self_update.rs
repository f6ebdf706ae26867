//! Self update: a host that updates its flake's inputs by itself (a file `SELF_UPDATE` in its directory).
//!
//! The lock that comes of it is the host's own and is kept apart from the release. The next release is built with it as long as
//! that has the lock which it was made from: so a change of the configuration does not take the inputs back. A release with
//! another lock says which inputs the administrator wants now, and the host goes on from there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::log::Log;
use crate::files;
use crate::host::HostKind;
use crate::manifest::{Manifest, ReleaseMode};
use crate::report::InputChange;
use crate::source::{SourceTree, stamp_all};

/// A lock's name in a flake, and of the host's own in the state directory.
const LOCK: &str = "flake.lock";
/// The lock that is being tried out, in the state directory.
const CANDIDATE: &str = "flake.lock.candidate";
/// How long looking for newer inputs may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// The host's own lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OwnLock {
    /// The BLAKE3 hash of the release's lock that it was made from.
    pub base: String,
    /// Its own.
    pub hash: String,
}

/// Whether a host is to update its inputs by itself.
pub fn is_wanted(manifest: &Manifest) -> bool {
    manifest.policy.self_update && manifest.kind == HostKind::Flake && manifest.mode == ReleaseMode::Source
}

/// The hash of a lock.
pub fn hash(lock: &[u8]) -> String {
    blake3::hash(lock).to_hex().to_string()
}

/// The lock of a release's tree, which may have none.
fn lock_of(tree: &Path) -> Result<Vec<u8>> {
    let file = tree.join(LOCK);
    match fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        lock => lock.with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Puts a lock into a tree.
fn set_lock(tree: &Path, lock: &[u8]) -> Result<()> {
    let file = tree.join(LOCK);
    files::write_atomic(&file, lock, 0o444, None)?;
    stamp_all(tree)
}

/// A release's tree with the host's own lock; `None` if it has none that was made from this release's.
pub fn with_own_lock(
    manifest: &Manifest,
    tree: &Path,
    own: Option<&OwnLock>,
    state_dir: &Path,
) -> Result<Option<SourceTree>> {
    let Some(own) = own.filter(|_| is_wanted(manifest)) else { return Ok(None) };
    let lock = lock_of(state_dir)?;
    if hash(&lock_of(tree)?) != own.base || hash(&lock) != own.hash {
        return Ok(None);
    }
    let copy = SourceTree::restore(tree, &manifest.files)?;
    set_lock(&copy.path(), &lock)?;
    offer(state_dir, &lock)?;
    Ok(Some(copy))
}

/// Looks for newer inputs. Gives a release's tree with a lock that names them, and that lock's hash; `None` if there are none.
pub fn update(
    manifest: &Manifest,
    tree: &Path,
    own: Option<&OwnLock>,
    state_dir: &Path,
    log: &mut Log,
) -> Result<Option<(SourceTree, String)>> {
    let copy = match with_own_lock(manifest, tree, own, state_dir)? {
        Some(copy) => copy,
        None => SourceTree::restore(tree, &manifest.files)?,
    };
    let before = lock_of(&copy.path())?;
    let program = std::env::current_exe().context("cannot find bento itself")?;
    let mut command = Command::new(program);
    // in a process of its own, as it may take much memory
    command.arg("flake-update").env("BENTO_DIR", copy.path()).env("XDG_CACHE_HOME", state_dir.join("cache"));
    log.run(&mut command, Some(LIMIT)).context("cannot look for newer inputs")?;
    let after = lock_of(&copy.path())?;
    if after == before {
        return Ok(None);
    }
    stamp_all(&copy.path())?;
    offer(state_dir, &after)?;
    Ok(Some((copy, hash(&after))))
}

/// Remembers a lock as the one that is being tried out.
fn offer(state_dir: &Path, lock: &[u8]) -> Result<()> {
    files::write_atomic(&candidate(state_dir), lock, 0o600, None)
}

fn candidate(state_dir: &Path) -> PathBuf {
    state_dir.join(CANDIDATE)
}

/// The hash of the lock that was tried out.
pub fn tried(state_dir: &Path) -> Option<String> {
    fs::read(candidate(state_dir)).ok().map(|lock| hash(&lock))
}

/// Makes the lock that was tried out the host's own.
pub fn keep(state_dir: &Path, tree: &Path) -> Result<OwnLock> {
    let file = candidate(state_dir);
    let lock = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    files::write_atomic(&state_dir.join(LOCK), &lock, 0o600, None)?;
    Ok(OwnLock { base: hash(&lock_of(tree)?), hash: hash(&lock) })
}

/// In which inputs the lock that was tried out differs from the release's.
pub fn changes(state_dir: &Path, tree: &Path) -> Result<Vec<InputChange>> {
    let old = inputs(&lock_of(tree)?).context("the release's flake.lock")?;
    let file = candidate(state_dir);
    let new = inputs(&fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?)?;
    let mut changes = Vec::new();
    for (name, input) in &new {
        let from = old.get(name).map(|old| old.revision.clone());
        if from.as_ref() != Some(&input.revision) {
            let (to, modified) = (Some(input.revision.clone()), input.modified);
            changes.push(InputChange { name: name.clone(), from, to, modified });
        }
    }
    for (name, input) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
        changes.push(InputChange { name: name.clone(), from: Some(input.revision.clone()), to: None, modified: None });
    }
    Ok(changes)
}

/// One input of a lock.
struct Input {
    revision: String,
    modified: Option<Timestamp>,
}

/// The inputs of a lock by the names of their nodes; none of one that is empty.
fn inputs(lock: &[u8]) -> Result<BTreeMap<String, Input>> {
    #[derive(Deserialize)]
    struct File {
        nodes: BTreeMap<String, Node>,
    }
    #[derive(Deserialize)]
    struct Node {
        locked: Option<Locked>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Locked {
        rev: Option<String>,
        nar_hash: Option<String>,
        last_modified: Option<i64>,
    }
    if lock.is_empty() {
        return Ok(BTreeMap::new());
    }
    let File { nodes } = serde_json::from_slice(lock).context("no lock file")?;
    let mut inputs = BTreeMap::new();
    for (name, node) in nodes {
        let Some(locked) = node.locked else { continue };
        let Some(revision) = locked.rev.or(locked.nar_hash) else {
            bail!("the input {name} has neither rev nor narHash")
        };
        let modified = locked.last_modified.and_then(|seconds| Timestamp::from_second(seconds).ok());
        inputs.insert(name, Input { revision, modified });
    }
    Ok(inputs)
}
