//! What an evaluation read: the key under which its result may be kept.
//!
//! [`RecordingFs`] is the machine's file system that remembers every answer it gave. An answer that was given depends on
//! nothing else, so if all of them still hold, evaluating again would read the same.

use crate::fs::{DirEntry, FileSystem, FileType, FsError, Metadata, RealFs, bytes_of, path_of};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// BLAKE3 of what was read.
pub type Digest = [u8; 32];

/// What is known of the place that a reading came from: as long as it is the same, so is what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The clocks of some file systems tick only every two seconds.
const TICK: i64 = 2;

impl Stamp {
    /// The stamp of a place that is read right after; `None` if it was written so short a time ago that a change after the
    /// reading might leave it the same stamp.
    fn settled(metadata: &std::fs::Metadata) -> Option<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let newest = metadata.mtime().max(metadata.ctime());
        (newest.saturating_add(TICK) < i64::try_from(now).ok()?).then(|| Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// What was found out about one path. What nobody asked for is absent.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reading {
    /// What it is.
    pub node: Option<Node>,
    /// A file's contents.
    pub contents: Option<Digest>,
    /// A directory's entries with their types.
    pub listing: Option<Digest>,
    /// Where a symbolic link points.
    pub target: Option<Vec<u8>>,
    /// The stamp of the place, before contents or entries were read.
    pub stamp: Option<Stamp>,
}

/// What a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Node {
    /// Nothing is there.
    Nothing,
    /// A file that may not be executed.
    File,
    /// A file that may be executed.
    Executable,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Unknown,
}

impl Node {
    fn of(metadata: Option<&Metadata>) -> Self {
        match metadata {
            None => Node::Nothing,
            Some(metadata) => match metadata.file_type {
                FileType::Regular if metadata.executable => Node::Executable,
                FileType::Regular => Node::File,
                FileType::Directory => Node::Directory,
                FileType::Symlink => Node::Symlink,
                FileType::Unknown => Node::Unknown,
            },
        }
    }
}

/// All that was read, by path. (Paths are bytes, so that any can be written down.)
pub type Readings = BTreeMap<Vec<u8>, Reading>;

/// The machine's file system, which keeps a record of what was read.
///
/// Of what lies in the store it records only whether the store path is there: the rest can't change.
pub struct RecordingFs {
    store: PathBuf,
    readings: RefCell<Readings>,
}

impl RecordingFs {
    /// A record without entries; `store` is the store directory.
    #[must_use]
    pub fn new(store: &Path) -> Self {
        RecordingFs { store: store.to_owned(), readings: RefCell::default() }
    }

    /// What was read since this was last asked.
    #[must_use]
    pub fn take(&self) -> Readings {
        self.readings.take()
    }

    fn record(&self, path: &Path, note: impl FnOnce(&mut Reading)) {
        note(self.readings.borrow_mut().entry(bytes_of(path).to_vec()).or_default());
    }

    /// The store path that `path` is or is in.
    fn store_path(&self, path: &Path) -> Option<PathBuf> {
        let name = path.strip_prefix(&self.store).ok()?.components().next()?;
        Some(self.store.join(name))
    }

    /// Whether a reading of `path` needs no record of its own.
    fn is_immutable(&self, path: &Path) -> bool {
        let Some(root) = self.store_path(path) else { return false };
        if !self.readings.borrow().contains_key(bytes_of(&root)) {
            let node = RealFs.lstat(&root).map_or(Node::Unknown, |metadata| Node::of(metadata.as_ref()));
            self.record(&root, |reading| reading.node = Some(node));
        }
        true
    }

    /// Takes up that a read failed, which tells no more than what is there.
    fn failed(&self, path: &Path) {
        if let Ok(metadata) = RealFs.lstat(path) {
            self.record(path, |reading| reading.node = Some(Node::of(metadata.as_ref())));
        }
    }
}

fn listing_digest(entries: &[DirEntry]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for entry in entries {
        // neither a name nor the name of a type has a zero byte
        hasher.update(entry.name.as_bytes()).update(b"\0").update(entry.file_type.name().as_bytes()).update(b"\0");
    }
    *hasher.finalize().as_bytes()
}

fn stamp(path: &Path) -> Option<Stamp> {
    Stamp::settled(&std::fs::symlink_metadata(path).ok()?)
}

impl FileSystem for RecordingFs {
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        let found = RealFs.lstat(path)?;
        if !self.is_immutable(path) {
            self.record(path, |reading| reading.node = Some(Node::of(found.as_ref())));
        }
        Ok(found)
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        if self.is_immutable(path) {
            return RealFs.read_file(path);
        }
        let stamp = stamp(path);
        let contents = RealFs.read_file(path).inspect_err(|_| self.failed(path))?;
        let digest = *blake3::hash(&contents).as_bytes();
        self.record(path, |reading| {
            reading.contents = Some(digest);
            reading.stamp = stamp;
        });
        Ok(contents)
    }

    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        if self.is_immutable(path) {
            return RealFs.read_dir(path);
        }
        let stamp = stamp(path);
        let entries = RealFs.read_dir(path).inspect_err(|_| self.failed(path))?;
        let digest = listing_digest(&entries);
        self.record(path, |reading| {
            reading.listing = Some(digest);
            reading.stamp = stamp;
        });
        Ok(entries)
    }

    fn read_link(&self, path: &Path) -> Result<OsString, FsError> {
        let target = RealFs.read_link(path).inspect_err(|_| self.failed(path))?;
        if !self.is_immutable(path) {
            self.record(path, |reading| reading.target = Some(target.as_bytes().to_vec()));
        }
        Ok(target)
    }
}

/// What a reading would be now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// The same. If that was found out by reading again, with the new stamp of the place.
    Same(Option<Stamp>),
    /// Something else.
    Changed,
}

impl Reading {
    /// Whether reading `path` now would give the same. Contents and entries are not looked at if the place still has its
    /// stamp.
    #[must_use]
    pub fn check(&self, path: &[u8]) -> Check {
        let path = path_of(path);
        let metadata = match std::fs::symlink_metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(_) => return Check::Changed,
        };
        let node = Node::of(metadata.as_ref().map(Metadata::of).as_ref());
        if self.node.is_some_and(|known| known != node) {
            return Check::Changed;
        }
        if let Some(known) = &self.target
            && !std::fs::read_link(path).is_ok_and(|target| target.as_os_str().as_bytes() == known)
        {
            return Check::Changed;
        }
        if self.contents.is_none() && self.listing.is_none() {
            return Check::Same(None);
        }
        let stamp = metadata.as_ref().and_then(Stamp::settled);
        if self.stamp.is_some() && self.stamp == stamp {
            return Check::Same(None);
        }
        let same = self.contents.is_none_or(|known| {
            RealFs.read_file(path).is_ok_and(|contents| *blake3::hash(&contents).as_bytes() == known)
        }) && self
            .listing
            .is_none_or(|known| RealFs.read_dir(path).is_ok_and(|entries| listing_digest(&entries) == known));
        if same { Check::Same(stamp) } else { Check::Changed }
    }
}
