//! Archives: tar, compressed or not, and zip, unpacked without leaving anything behind.
//!
//! The contents of all files go, one after the other, into one temporary file that has no name; what is in memory is the
//! tree of names only.

use super::error::FlakeError;
use crate::fs::{self, DirEntry, FileSystem, FileType, FsError, Metadata, Operation};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A tree of files that was unpacked, with its root at `/`.
pub(super) struct PackedFs {
    contents: File,
    root: Node,
}

#[derive(Clone)]
enum Node {
    Directory(BTreeMap<Vec<u8>, Node>),
    /// Where its contents are.
    File {
        start: u64,
        len: u64,
        executable: bool,
    },
    Symlink(Vec<u8>),
}

impl Node {
    fn file_type(&self) -> FileType {
        match self {
            Node::Directory(_) => FileType::Directory,
            Node::File { .. } => FileType::Regular,
            Node::Symlink(_) => FileType::Symlink,
        }
    }
}

/// What is being unpacked.
struct Unpacker {
    contents: File,
    len: u64,
    root: BTreeMap<Vec<u8>, Node>,
    /// The newest time of modification, in seconds since the epoch.
    newest: u64,
}

impl PackedFs {
    /// Unpacks the archive that `file` holds from its start; its first bytes tell its kind. If there is but one directory in
    /// it, that is what is taken. Also gives the newest time of modification in there. `name` is the archive's for messages.
    ///
    /// # Errors
    /// When it cannot be read or is no archive, or holds what cannot be in a store path.
    pub(super) fn unpack(file: File, name: &str) -> Result<(PackedFs, u64), FlakeError> {
        let unpack = || {
            let mut unpacker = Unpacker { contents: tempfile::tempfile()?, len: 0, root: BTreeMap::new(), newest: 0 };
            unpacker.read(file)?;
            Ok(unpacker)
        };
        let Unpacker { contents, mut root, newest, .. } = unpack().map_err(|error| failed(name, &error))?;
        if root.len() == 1
            && matches!(root.first_key_value(), Some((_, Node::Directory(_))))
            && let Some((_, Node::Directory(inner))) = root.pop_first()
        {
            root = inner;
        }
        Ok((PackedFs { contents, root: Node::Directory(root) }, newest))
    }

    /// A tree that is one file, with what `file` holds.
    ///
    /// # Errors
    /// When its size can't be told.
    pub(super) fn of_file(file: File, name: &str) -> Result<PackedFs, FlakeError> {
        let len = file.metadata().map_err(|error| failed(name, &error))?.len();
        Ok(PackedFs { contents: file, root: Node::File { start: 0, len, executable: false } })
    }

    fn node(&self, path: &Path) -> Option<&Node> {
        let mut node = &self.root;
        for name in fs::bytes_of(path).split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Node::Directory(entries) = node else { return None };
            node = entries.get(name)?;
        }
        Some(node)
    }
}

fn failed(name: &str, error: &io::Error) -> FlakeError {
    FlakeError::Source(format!("cannot unpack \"{name}\": {}", fs::io_reason(error)))
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

impl Unpacker {
    fn read(&mut self, mut archive: File) -> io::Result<()> {
        let mut start = [0; 6];
        let mut len = 0;
        while len < start.len() {
            match archive.read(&mut start[len..])? {
                0 => break,
                count => len += count,
            }
        }
        archive.rewind()?;
        let archive = BufReader::with_capacity(1 << 17, archive);
        match &start[..len] {
            [] => Err(invalid("it is empty")),
            [0x1f, 0x8b, ..] => self.tar(flate2::bufread::MultiGzDecoder::new(archive)),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => self.tar(liblzma::bufread::XzDecoder::new_multi_decoder(archive)),
            [b'B', b'Z', b'h', ..] => self.tar(bzip2::bufread::MultiBzDecoder::new(archive)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                self.tar(ruzstd::decoding::StreamingDecoder::new(archive).map_err(|error| invalid(error.to_string()))?)
            }
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => self.zip(archive),
            _ => self.tar(archive),
        }
    }

    fn tar(&mut self, archive: impl Read) -> io::Result<()> {
        use tar::EntryType;
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            if kind == EntryType::XGlobalHeader {
                continue;
            }
            let path = entry.path_bytes().into_owned();
            let mut modified = entry.header().mtime().unwrap_or(0);
            for extension in entry.pax_extensions()?.into_iter().flatten() {
                let extension = extension?;
                if extension.key_bytes() == b"mtime" {
                    let seconds = extension.value().ok().and_then(|text| text.split('.').next()?.parse().ok());
                    modified = seconds.unwrap_or(modified);
                }
            }
            self.newest = self.newest.max(modified);
            let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
            let node = match (kind, target) {
                (EntryType::Directory, _) => {
                    self.directory(&path)?;
                    continue;
                }
                (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                    let executable = entry.header().mode()? & 0o100 != 0;
                    self.file(&mut entry, executable)?
                }
                (EntryType::Symlink, Some(target)) => Node::Symlink(target),
                (EntryType::Link, Some(target)) => self.find(&target)?.clone(),
                _ => {
                    let path = String::from_utf8_lossy(&path);
                    return Err(invalid(format!("file '{path}' in tarball has unsupported file type {kind:?}")));
                }
            };
            self.insert(&path, node)?;
        }
        Ok(())
    }

    fn zip(&mut self, archive: impl Read + Seek) -> io::Result<()> {
        let mut archive = zip::ZipArchive::new(archive).map_err(io::Error::from)?;
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(io::Error::from)?;
            let path = entry.name_raw().to_vec();
            self.newest = self.newest.max(zip_time(&entry));
            if entry.is_dir() {
                self.directory(&path)?;
                continue;
            }
            let node = if entry.is_symlink() {
                let mut target = Vec::new();
                entry.read_to_end(&mut target)?;
                Node::Symlink(target)
            } else {
                let executable = entry.unix_mode().unwrap_or(0) & 0o100 != 0;
                self.file(&mut entry, executable)?
            };
            self.insert(&path, node)?;
        }
        Ok(())
    }

    /// Keeps a file's contents.
    fn file(&mut self, reader: &mut impl Read, executable: bool) -> io::Result<Node> {
        let start = self.len;
        let len = io::copy(reader, &mut self.contents)?;
        self.len += len;
        Ok(Node::File { start, len, executable })
    }

    /// The directory at `names`, made if it isn't there.
    fn directory_of<'n>(
        root: &'n mut BTreeMap<Vec<u8>, Node>,
        names: &[&[u8]],
    ) -> io::Result<&'n mut BTreeMap<Vec<u8>, Node>> {
        let mut directory = root;
        for name in names {
            let node = directory.entry(name.to_vec()).or_insert_with(|| Node::Directory(BTreeMap::new()));
            let Node::Directory(inner) = node else {
                let name = String::from_utf8_lossy(name);
                return Err(invalid(format!("'{name}' is a file, and a directory as well")));
            };
            directory = inner;
        }
        Ok(directory)
    }

    fn directory(&mut self, path: &[u8]) -> io::Result<()> {
        let path = fs::canonical(path);
        Unpacker::directory_of(&mut self.root, &names(&path)).map(|_| ())
    }

    fn insert(&mut self, path: &[u8], node: Node) -> io::Result<()> {
        let path = fs::canonical(path);
        let names = names(&path);
        let (name, parents) = names.split_last().ok_or_else(|| invalid("its root is not a directory"))?;
        Unpacker::directory_of(&mut self.root, parents)?.insert(name.to_vec(), node);
        Ok(())
    }

    /// What a hard link links to.
    fn find(&self, path: &[u8]) -> io::Result<&Node> {
        let missing = || invalid(format!("a hard link leads to '{}', which is no file", String::from_utf8_lossy(path)));
        let canonical = fs::canonical(path);
        let names = names(&canonical);
        let (name, parents) = names.split_last().ok_or_else(missing)?;
        let mut directory = &self.root;
        for parent in parents {
            let Some(Node::Directory(inner)) = directory.get(*parent) else { return Err(missing()) };
            directory = inner;
        }
        directory.get(*name).filter(|node| !matches!(node, Node::Directory(_))).ok_or_else(missing)
    }
}

/// When a file was last modified: zip keeps local time, but newer archives add the seconds since the epoch.
fn zip_time<R: Read>(entry: &zip::read::ZipFile<'_, R>) -> u64 {
    let extra = entry.extra_data_fields().find_map(|field| match field {
        zip::ExtraField::ExtendedTimestamp(times) => times.mod_time(),
        _ => None,
    });
    if let Some(seconds) = extra {
        return u64::from(seconds);
    }
    let local = || {
        let time = entry.last_modified()?;
        let part = |number: u8| i8::try_from(number).ok();
        let date = jiff::civil::DateTime::new(
            i16::try_from(time.year()).ok()?,
            part(time.month())?,
            part(time.day())?,
            part(time.hour())?,
            part(time.minute())?,
            part(time.second())?,
            0,
        );
        let zoned = date.ok()?.to_zoned(jiff::tz::TimeZone::system()).ok()?;
        u64::try_from(zoned.timestamp().as_second()).ok()
    };
    local().unwrap_or(0)
}

fn names(path: &Path) -> Vec<&[u8]> {
    fs::bytes_of(path).split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect()
}

impl FileSystem for PackedFs {
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        Ok(self.node(path).map(|node| {
            let (executable, size) = match node {
                Node::File { len, executable, .. } => (*executable, *len),
                Node::Directory(_) | Node::Symlink(_) => (false, 0),
            };
            Metadata { file_type: node.file_type(), executable, size, modified: 0 }
        }))
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        let read = || match self.node(path) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Node::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::Symlink(_)) => Err(io::Error::from_raw_os_error(libc::ELOOP)),
            Some(Node::File { start, len, .. }) => {
                let len = usize::try_from(*len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
                let mut contents = vec![0; len];
                self.contents.read_exact_at(&mut contents, *start)?;
                Ok(contents)
            }
        };
        read().map_err(|error| FsError::new(Operation::ReadFile, path, error))
    }

    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        let error = match self.node(path) {
            Some(Node::Directory(entries)) => {
                let entry = |(name, node): (&Vec<u8>, &Node)| DirEntry {
                    name: OsStr::from_bytes(name).to_owned(),
                    file_type: node.file_type(),
                };
                return Ok(entries.iter().map(entry).collect());
            }
            Some(_) => io::Error::from_raw_os_error(libc::ENOTDIR),
            None => io::ErrorKind::NotFound.into(),
        };
        Err(FsError::new(Operation::ReadDir, path, error))
    }

    fn read_link(&self, path: &Path) -> Result<OsString, FsError> {
        let error = match self.node(path) {
            Some(Node::Symlink(target)) => return Ok(OsString::from_vec(target.clone())),
            Some(_) => io::Error::from_raw_os_error(libc::EINVAL),
            None => io::ErrorKind::NotFound.into(),
        };
        Err(FsError::new(Operation::ReadLink, path, error))
    }
}
