//! What was fetched is kept on disk, by its contents, so that it needn't be fetched again.
//!
//! `trees` holds sources, each named by the hash of its NAR, which was computed when it was stored. `index` holds what is
//! known of an address: which tree it led to, and when. `git` holds clones. Everything gets its name by one rename, so a
//! reader sees all of it or nothing, and evaluations that run at the same time don't disturb each other.

use super::error::FlakeError;
use crate::fs::{self, FileSystem, FileType};
use bento_store::hash::{Hash, HashAlgo};
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The directory that things are kept in.
#[derive(Clone, Debug)]
pub(super) struct FetchCache {
    root: PathBuf,
}

/// What is known of an address.
pub(super) struct Known {
    /// The attributes that were noted.
    pub(super) attrs: Map<String, Value>,
    /// When, in seconds since the epoch.
    time: u64,
}

impl Known {
    /// What was found out just now.
    pub(super) fn now(attrs: Map<String, Value>) -> Known {
        Known { attrs, time: now() }
    }

    /// Whether it was noted less than `ttl` seconds ago.
    pub(super) fn is_fresh(&self, ttl: u64) -> bool {
        self.time.saturating_add(ttl) > now() && self.time <= now()
    }

    /// An attribute that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.attrs.get(name)?.as_str()
    }

    /// An attribute that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.attrs.get(name)?.as_u64()
    }

    /// The NAR hash that was noted.
    pub(super) fn nar_hash(&self) -> Option<Hash> {
        Hash::parse_sri(self.text("narHash")?).ok()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl FetchCache {
    pub(super) fn new(root: PathBuf) -> FetchCache {
        FetchCache { root }
    }

    fn failed(&self, error: &io::Error) -> FlakeError {
        FlakeError::Source(format!(
            "cannot write to the cache of sources \"{}\": {}",
            self.root.display(),
            fs::io_reason(error)
        ))
    }

    fn index_file(&self, key: &Value) -> PathBuf {
        let name = Hash::digest(HashAlgo::Sha256, key.to_string().as_bytes()).to_nix32();
        self.root.join("index").join(name).with_extension("json")
    }

    /// What was noted under `key`. A file that can't be read counts as none.
    pub(super) fn look_up(&self, key: &Value) -> Option<Known> {
        let text = std::fs::read(self.index_file(key)).ok()?;
        let mut file: Value = serde_json::from_slice(&text).ok()?;
        let time = file.get("time")?.as_u64()?;
        match (file.get("key")? == key, file.get_mut("attrs")?.take()) {
            (true, Value::Object(attrs)) => Some(Known { attrs, time }),
            _ => None,
        }
    }

    /// Notes what is known of `key` as of now.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn note(&self, key: &Value, attrs: &Map<String, Value>) -> Result<(), FlakeError> {
        let text = json!({"key": key, "time": now(), "attrs": attrs}).to_string();
        let write = || {
            let file = self.index_file(key);
            let directory = self.directory("index")?;
            let mut temporary = tempfile::Builder::new().prefix(".tmp-").tempfile_in(directory)?;
            temporary.write_all(text.as_bytes())?;
            temporary.persist(file)?;
            Ok(())
        };
        write().map_err(|error: io::Error| self.failed(&error))
    }

    fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let directory = self.root.join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    fn tree_path(&self, hash: Hash) -> PathBuf {
        self.root.join("trees").join(hash.to_nix32())
    }

    /// Where the tree whose NAR has this hash is kept, if it is.
    pub(super) fn tree(&self, hash: Hash) -> Option<PathBuf> {
        Some(self.tree_path(hash)).filter(|path| path.symlink_metadata().is_ok())
    }

    /// Keeps the tree at `root` of `files`, whose NAR has the hash `hash`. Gives where.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub(super) fn add_tree(&self, files: &dyn FileSystem, root: &Path, hash: Hash) -> Result<PathBuf, FlakeError> {
        let target = self.tree_path(hash);
        if self.tree(hash).is_some() {
            return Ok(target);
        }
        let directory = self.directory("trees").map_err(|error| self.failed(&error))?;
        let temporary =
            tempfile::Builder::new().prefix(".tmp-").tempdir_in(directory).map_err(|error| self.failed(&error))?;
        let place = temporary.path().join("tree");
        self.copy(files, root, &place)?;
        match std::fs::rename(&place, &target) {
            // another evaluation was faster
            Err(_) if self.tree(hash).is_some() => {}
            Err(error) => return Err(self.failed(&error)),
            Ok(()) => {}
        }
        Ok(target)
    }

    fn copy(&self, files: &dyn FileSystem, from: &Path, to: &Path) -> Result<(), FlakeError> {
        let metadata = files.metadata(from)?;
        match metadata.file_type {
            FileType::Directory => {
                std::fs::create_dir(to).map_err(|error| self.failed(&error))?;
                for entry in files.read_dir(from)? {
                    self.copy(files, &from.join(&entry.name), &to.join(&entry.name))?;
                }
            }
            FileType::Symlink => {
                symlink(files.read_link(from)?, to).map_err(|error| self.failed(&error))?;
            }
            FileType::Regular | FileType::Unknown => {
                let mode = if metadata.executable { 0o555 } else { 0o444 };
                std::fs::write(to, files.read_file(from)?)
                    .and_then(|()| std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode)))
                    .map_err(|error| self.failed(&error))?;
            }
        }
        Ok(())
    }

    /// The place for the clone of the repository at `url`, and a lock that keeps others from fetching into it until it is
    /// dropped.
    ///
    /// # Errors
    /// When the lock can't be had.
    pub(super) fn clone_of(&self, url: &str, shallow: bool) -> Result<(PathBuf, std::fs::File), FlakeError> {
        let name = Hash::digest(HashAlgo::Sha256, url.as_bytes()).to_nix32();
        let name = if shallow { format!("{name}-shallow") } else { name };
        let lock = || {
            let directory = self.directory("git")?;
            let lock = std::fs::File::create(directory.join(format!("{name}.lock")))?;
            lock.lock()?;
            Ok((directory.join(&name), lock))
        };
        lock().map_err(|error: io::Error| self.failed(&error))
    }
}
