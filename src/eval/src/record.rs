//! What an evaluation read: the key under which its result may be kept.
//!
//! [`RecordingFs`] is the machine's file system that remembers every answer it gave. An answer that was given depends on
//! nothing else, so if all of them still hold, evaluating again would read the same.

use crate::fs::{DirEntry, FileSystem, FileType, FsError, Metadata, RealFs, bytes_of, path_of};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
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
/// Of what lies in the store it records only whether the store path is there: the rest can't change. What is elsewhere, and
/// what a directory has in it, is looked at once: an evaluation sees its files as they were when it first asked.
pub struct RecordingFs {
    store: PathBuf,
    known: RefCell<FxHashMap<Box<[u8]>, Box<Known>>>,
}

/// What is known of a path. A part that is not *used* came from elsewhere ([`RecordingFs::learn`]), so that nothing depends
/// on it yet.
#[derive(Default)]
struct Known {
    metadata: Option<Metadata>,
    entries: Option<Rc<[DirEntry]>>,
    reading: Reading,
    used: Parts,
    /// What [`RecordingFs::take`] has given already.
    taken: Parts,
    /// Whether [`RecordingFs::findings`] has given it, or it came from there.
    passed_on: bool,
}

/// Some parts of a [`Reading`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Parts {
    node: bool,
    contents: bool,
    listing: bool,
    target: bool,
}

impl Known {
    /// The parts that are used and were not taken; from now on they are.
    fn take(&mut self) -> Option<Reading> {
        // a copy of the process must not change, and so have for itself, what it does not need to
        if self.used == self.taken {
            return None;
        }
        let (used, taken) = (self.used, std::mem::replace(&mut self.taken, self.used));
        let reading = Reading {
            node: self.reading.node.filter(|_| used.node && !taken.node),
            contents: self.reading.contents.filter(|_| used.contents && !taken.contents),
            listing: self.reading.listing.filter(|_| used.listing && !taken.listing),
            target: self.reading.target.clone().filter(|_| used.target && !taken.target),
            stamp: None,
        };
        if reading == Reading::default() {
            return None;
        }
        let stamp = self.reading.stamp.filter(|_| reading.contents.is_some() || reading.listing.is_some());
        Some(Reading { stamp, ..reading })
    }
}

/// What one evaluation found out of the machine's files, for others of the same time: see [`RecordingFs::learn`].
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Findings(Vec<(Vec<u8>, Finding)>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finding {
    metadata: Option<Metadata>,
    entries: Option<Vec<DirEntry>>,
    reading: Reading,
}

impl RecordingFs {
    /// A record without entries; `store` is the store directory.
    #[must_use]
    pub fn new(store: &Path) -> Self {
        RecordingFs { store: store.to_owned(), known: RefCell::default() }
    }

    /// What was read for the first time since this was last asked.
    #[must_use]
    pub fn take(&self) -> Readings {
        let mut known = self.known.borrow_mut();
        known.iter_mut().filter_map(|(path, known)| Some((path.to_vec(), known.take()?))).collect()
    }

    /// What was found out, rather than learned, since this was last asked.
    #[must_use]
    pub fn findings(&self) -> Findings {
        let mut known = self.known.borrow_mut();
        let fresh = known.iter_mut().filter(|(_, known)| !known.passed_on).map(|(path, known)| {
            known.passed_on = true;
            (path, &*known)
        });
        let found = |known: &Known| Finding {
            metadata: known.metadata,
            entries: known.entries.as_deref().map(<[DirEntry]>::to_vec),
            reading: known.reading.clone(),
        };
        Findings(fresh.map(|(path, known)| (path.to_vec(), found(known))).collect())
    }

    /// Takes up what another evaluation, which began at the same time, found out of the files: what nothing is known of here
    /// is not looked at again. It counts as read as soon as somebody asks for it.
    pub fn learn(&self, findings: Findings) {
        let mut all = self.known.borrow_mut();
        for (path, Finding { metadata, entries, reading }) in findings.0 {
            let known =
                all.entry(path.into()).or_insert_with(|| Box::new(Known { passed_on: true, ..Known::default() }));
            if known.reading.node.is_none() {
                (known.metadata, known.reading.node) = (metadata, reading.node);
            }
            if known.reading.contents.is_none() && known.reading.listing.is_none() {
                known.entries = entries.map(Rc::from);
                (known.reading.contents, known.reading.listing) = (reading.contents, reading.listing);
                known.reading.stamp = reading.stamp;
            }
            if known.reading.target.is_none() {
                known.reading.target = reading.target;
            }
        }
    }

    /// What is known of a path already, which is used from now on.
    fn again<T>(
        &self,
        path: &Path,
        find: impl FnOnce(&Known) -> Option<T>,
        part: impl Fn(&mut Parts) -> &mut bool,
    ) -> Option<T> {
        let mut all = self.known.borrow_mut();
        let known = all.get_mut(bytes_of(path))?;
        let found = find(known)?;
        let mut used = known.used;
        *part(&mut used) = true;
        // as in `Known::take`
        if used != known.used {
            known.used = used;
        }
        Some(found)
    }

    /// Changes what is known of a path.
    fn note<T>(&self, path: &Path, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.borrow_mut();
        match known.get_mut(bytes_of(path)) {
            Some(known) => change(known),
            None => change(known.entry(bytes_of(path).into()).or_default()),
        }
    }

    /// Takes up what a path is.
    fn note_metadata(&self, path: &Path, metadata: Option<Metadata>) {
        self.note(path, |known| {
            let node = Some(Node::of(metadata.as_ref()));
            if known.reading.node != node {
                (known.reading.node, known.taken.node, known.passed_on) = (node, false, false);
            }
            known.metadata = metadata;
            known.used.node = true;
        });
    }

    /// The store path that `path` is or is in.
    fn store_path(&self, path: &Path) -> Option<PathBuf> {
        let name = path.strip_prefix(&self.store).ok()?.components().next()?;
        Some(self.store.join(name))
    }

    /// Whether a reading of `path` needs no record of its own.
    fn is_immutable(&self, path: &Path) -> bool {
        let Some(root) = self.store_path(path) else { return false };
        if !self.known.borrow().get(bytes_of(&root)).is_some_and(|known| known.used.node) {
            self.note_metadata(&root, RealFs.lstat(&root).ok().flatten());
        }
        true
    }

    /// Takes up that a read failed, which tells no more than what is there.
    fn failed(&self, path: &Path) {
        if let Ok(metadata) = RealFs.lstat(path) {
            self.note_metadata(path, metadata);
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

impl FileSystem for RecordingFs {
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        if self.is_immutable(path) {
            return RealFs.lstat(path);
        }
        // that nothing is there is asked again, for it may be made meanwhile
        if let Some(metadata) = self.again(path, |known| known.metadata, |used| &mut used.node) {
            return Ok(Some(metadata));
        }
        let found = RealFs.lstat(path)?;
        self.note_metadata(path, found);
        Ok(found)
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        if self.is_immutable(path) {
            return RealFs.read_file(path);
        }
        let (contents, metadata) = RealFs::read(path).inspect_err(|_| self.failed(path))?;
        let stamp = Stamp::settled(&metadata);
        let digest = Some(*blake3::hash(&contents).as_bytes());
        self.note(path, |known| {
            if known.reading.contents != digest {
                (known.reading.contents, known.taken.contents, known.passed_on) = (digest, false, false);
                known.reading.stamp = stamp;
            }
            known.used.contents = true;
        });
        Ok(contents)
    }

    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        if self.is_immutable(path) {
            return RealFs.read_dir(path);
        }
        if let Some(entries) = self.again(path, |known| known.entries.clone(), |used| &mut used.listing) {
            return Ok(entries.to_vec());
        }
        let stamp = std::fs::symlink_metadata(path).ok().and_then(|metadata| Stamp::settled(&metadata));
        let entries = RealFs.read_dir(path).inspect_err(|_| self.failed(path))?;
        self.note(path, |known| {
            known.reading.listing = Some(listing_digest(&entries));
            known.reading.stamp = stamp;
            known.entries = Some(entries.as_slice().into());
            known.used.listing = true;
            known.passed_on = false;
        });
        Ok(entries)
    }

    fn read_link(&self, path: &Path) -> Result<OsString, FsError> {
        let target = RealFs.read_link(path).inspect_err(|_| self.failed(path))?;
        if !self.is_immutable(path) {
            let found = Some(target.as_bytes().to_vec());
            self.note(path, |known| {
                if known.reading.target != found {
                    (known.reading.target, known.taken.target, known.passed_on) = (found, false, false);
                }
                known.used.target = true;
            });
        }
        Ok(target)
    }

    fn read_again(&self, path: &Path) -> bool {
        self.is_immutable(path)
            || self.again(path, |known| known.reading.contents, |used| &mut used.contents).is_some()
            || self.again(path, |known| known.reading.target.clone(), |used| &mut used.target).is_some()
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
