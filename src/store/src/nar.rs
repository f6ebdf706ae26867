//! NAR, Nix's archive: the one serialisation of a file tree that hashes are made of.
//!
//! It has what a build can see and nothing else: contents, names, whether a file is executable, where a symbolic link
//! points. Every tree has exactly one NAR, and [`parse`] accepts no other bytes.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::hash::{Hash, HashAlgo, Hasher};

/// How deep directories may nest, in writing and in reading. Nix 2.34's limit.
pub const MAX_DEPTH: usize = 64;

const MAGIC: &[u8] = b"nix-archive-1";
/// No tag is longer than 10 bytes; the rest is there so that messages can show a wrong one.
const MAX_TAG: usize = 32;
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;
const BUFFER: usize = 64 * 1024;

/// Why a NAR can't be written, read or unpacked. The texts are Nix's own where Nix has one.
#[derive(Debug, Error)]
pub enum NarError {
    /// The file tree can't be read, or the unpacked one can't be written.
    #[error("cannot {action} '{}': {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Neither a regular file, a directory nor a symbolic link.
    #[error("file '{}' has an unsupported type", .0.display())]
    UnsupportedType(PathBuf),
    /// More or fewer bytes than the file had at first.
    #[error("file '{}' changed while it was read", .0.display())]
    Changed(PathBuf),
    /// Directories nest deeper than [`MAX_DEPTH`].
    #[error("path '{}' exceeds maximum NAR directory depth of {MAX_DEPTH}", .0.display())]
    PathTooDeep(PathBuf),
    /// The archive can't be written.
    #[error("cannot write the archive: {0}")]
    Write(#[source] io::Error),
    /// The archive can't be read.
    #[error("cannot read the archive at byte {offset}: {source}")]
    Read {
        /// Bytes from the start of the archive.
        offset: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The archive is not one.
    #[error("bad archive: {reason} (at byte {offset})")]
    Bad {
        /// Bytes from the start of the archive, just behind what is wrong.
        offset: u64,
        /// What is wrong.
        reason: BadNar,
    },
}

/// What is wrong with something that should be a NAR.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadNar {
    /// Another file format.
    #[error("input doesn't look like a Nix archive")]
    Magic,
    /// The end of the input in the middle of the archive.
    #[error("unexpected end-of-file")]
    Truncated,
    /// Something else stands where only this may stand.
    #[error("expected tag '{expected}', got '{found}'")]
    Tag {
        /// The tags that may stand here.
        expected: &'static str,
        /// The tag that does.
        found: String,
    },
    /// A file type that doesn't exist.
    #[error("unknown file type '{0}'")]
    FileType(String),
    /// A string longer than any that may stand here.
    #[error("string is too long")]
    TooLong,
    /// Padding that is not zero.
    #[error("non-zero padding")]
    Padding,
    /// A name that is empty, `.`, `..`, or contains a slash or a zero byte.
    #[error("NAR contains invalid file name '{0}'")]
    Name(String),
    /// A name that doesn't come after the one before it.
    #[error("NAR directory is not sorted")]
    Unsorted,
    /// A target that is empty or contains a zero byte.
    #[error("NAR contains invalid symlink target")]
    Target,
    /// Directories nest deeper than [`MAX_DEPTH`].
    #[error("NAR directory nesting exceeds maximum depth of {MAX_DEPTH}")]
    TooDeep,
}

/// The type of a file, as a filter is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else. It can't be archived, but it can be filtered out.
    Unknown,
}

impl FileType {
    /// The name that Nix gives it, in `builtins.path`'s filter and in `builtins.readDir`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a NAR needs to know of a file before its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    /// A regular file.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
        /// Its length in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Unknown,
}

impl Metadata {
    /// The type alone.
    #[must_use]
    pub const fn file_type(self) -> FileType {
        match self {
            Self::Regular { .. } => FileType::Regular,
            Self::Directory => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::Unknown => FileType::Unknown,
        }
    }
}

/// A file system that trees can be archived from: the machine's ([`OsFiles`]) or one that only exists in a program.
pub trait Files {
    /// What `path` is. Symbolic links are not followed.
    ///
    /// # Errors
    /// The file doesn't exist or can't be looked at.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// The names in a directory, in any order, without `.` and `..`.
    ///
    /// # Errors
    /// The directory can't be read.
    fn names(&self, directory: &Path) -> io::Result<Vec<Vec<u8>>>;

    /// Writes a regular file's contents to `sink`: as many bytes as [`Files::metadata`] told.
    ///
    /// # Errors
    /// The file can't be read, or `sink` fails.
    fn contents(&self, file: &Path, sink: &mut dyn Write) -> io::Result<()>;

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// The link can't be read.
    fn target(&self, link: &Path) -> io::Result<Vec<u8>>;
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

impl Files for OsFiles {
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let found = fs::symlink_metadata(path)?;
        Ok(if found.is_dir() {
            Metadata::Directory
        } else if found.is_symlink() {
            Metadata::Symlink
        } else if found.is_file() {
            Metadata::Regular { executable: found.permissions().mode() & 0o100 != 0, size: found.len() }
        } else {
            Metadata::Unknown
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<Vec<u8>>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_vec())).collect()
    }

    fn contents(&self, file: &Path, sink: &mut dyn Write) -> io::Result<()> {
        io::copy(&mut File::open(file)?, sink).map(|_| ())
    }

    fn target(&self, link: &Path) -> io::Result<Vec<u8>> {
        fs::read_link(link).map(|target| target.into_os_string().into_vec())
    }
}

/// A filter for [`dump`] that keeps everything.
///
/// # Errors
/// None.
pub fn keep_all(_: &Path, _: FileType) -> Result<bool, NarError> {
    Ok(true)
}

/// Writes the NAR of the tree at `root` to `sink`.
///
/// `filter` is asked about each entry of each directory, in order, with its path (`root` and what is below it) and its
/// type, but not about `root` itself. What it refuses is left out, and a directory that it refuses is not entered.
///
/// # Errors
/// Those of `filter`; a file that can't be read, that changes while it is read, or of a type that NARs don't have;
/// directories that nest too deep; a `sink` that fails.
pub fn dump<E: From<NarError>>(
    files: &(impl Files + ?Sized),
    root: &Path,
    filter: impl FnMut(&Path, FileType) -> Result<bool, E>,
    sink: impl Write,
) -> Result<(), E> {
    let mut dumper = Dumper { files, filter, sink: BufWriter::with_capacity(BUFFER, sink) };
    dumper.string(MAGIC)?;
    let metadata = files.metadata(root).map_err(|e| file_error("read", root, e))?;
    dumper.node(root, metadata, 0)?;
    dumper.sink.flush().map_err(|e| NarError::Write(e).into())
}

/// The hash of the NAR of the tree at `root`, and the NAR's length in bytes. `filter` is as for [`dump`].
///
/// # Errors
/// Those of [`dump`].
pub fn hash_tree<E: From<NarError>>(
    files: &(impl Files + ?Sized),
    root: &Path,
    filter: impl FnMut(&Path, FileType) -> Result<bool, E>,
    algo: HashAlgo,
) -> Result<(Hash, u64), E> {
    let mut hasher = Hasher::new(algo);
    dump(files, root, filter, &mut hasher)?;
    Ok(hasher.finish())
}

/// As [`hash_tree`], for a tree of the machine's file system.
///
/// # Errors
/// Those of [`dump`].
pub fn hash_path<E: From<NarError>>(
    path: &Path,
    filter: impl FnMut(&Path, FileType) -> Result<bool, E>,
    algo: HashAlgo,
) -> Result<(Hash, u64), E> {
    hash_tree(&OsFiles, path, filter, algo)
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> NarError {
    NarError::File { action, path: path.to_owned(), source }
}

struct Dumper<'f, T: ?Sized, F, W: Write> {
    files: &'f T,
    filter: F,
    sink: BufWriter<W>,
}

impl<T: Files + ?Sized, F, W: Write> Dumper<'_, T, F, W> {
    fn node<E: From<NarError>>(&mut self, path: &Path, metadata: Metadata, depth: usize) -> Result<(), E>
    where
        F: FnMut(&Path, FileType) -> Result<bool, E>,
    {
        if depth >= MAX_DEPTH {
            return Err(NarError::PathTooDeep(path.to_owned()).into());
        }
        self.strings(&[b"(", b"type"])?;
        match metadata {
            Metadata::Regular { executable, size } => {
                self.string(b"regular")?;
                if executable {
                    self.strings(&[b"executable", b""])?;
                }
                self.string(b"contents")?;
                self.contents(path, size)?;
            }
            Metadata::Directory => {
                self.string(b"directory")?;
                let mut names = self.files.names(path).map_err(|e| file_error("read directory", path, e))?;
                names.sort_unstable();
                for name in names {
                    let entry = path.join(OsStr::from_bytes(&name));
                    let metadata = self.files.metadata(&entry).map_err(|e| file_error("read", &entry, e))?;
                    if (self.filter)(&entry, metadata.file_type())? {
                        self.strings(&[b"entry", b"(", b"name", &name, b"node"])?;
                        self.node(&entry, metadata, depth + 1)?;
                        self.string(b")")?;
                    }
                }
            }
            Metadata::Symlink => {
                let target = self.files.target(path).map_err(|e| file_error("read link", path, e))?;
                self.strings(&[b"symlink", b"target", &target])?;
            }
            Metadata::Unknown => return Err(NarError::UnsupportedType(path.to_owned()).into()),
        }
        Ok(self.string(b")")?)
    }

    fn contents(&mut self, path: &Path, size: u64) -> Result<(), NarError> {
        self.raw(&size.to_le_bytes())?;
        let mut counted = Counted { sink: &mut self.sink, left: size, failed: None, too_long: false };
        let result = self.files.contents(path, &mut counted);
        let Counted { left, failed, too_long, .. } = counted;
        if let Some(e) = failed {
            return Err(NarError::Write(e));
        }
        if too_long {
            return Err(NarError::Changed(path.to_owned()));
        }
        result.map_err(|e| file_error("read", path, e))?;
        if left > 0 {
            return Err(NarError::Changed(path.to_owned()));
        }
        self.padding(size)
    }

    fn strings(&mut self, texts: &[&[u8]]) -> Result<(), NarError> {
        texts.iter().try_for_each(|text| self.string(text))
    }

    fn string(&mut self, text: &[u8]) -> Result<(), NarError> {
        let len = text.len() as u64;
        self.raw(&len.to_le_bytes())?;
        self.raw(text)?;
        self.padding(len)
    }

    fn padding(&mut self, len: u64) -> Result<(), NarError> {
        self.raw(&[0; 8][..padding_len(len)])
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.sink.write_all(bytes).map_err(NarError::Write)
    }
}

/// Strings and contents are padded with zeros to a multiple of 8 bytes.
fn padding_len(len: u64) -> usize {
    ((8 - len % 8) % 8) as usize
}

/// Lets through as many bytes as were announced, and tells a failing sink from a failing source.
struct Counted<'s, W> {
    sink: &'s mut W,
    left: u64,
    failed: Option<io::Error>,
    too_long: bool,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => self.left = left,
            None => {
                self.too_long = true;
                return Err(io::Error::other("file has grown"));
            }
        }
        if let Err(e) = self.sink.write_all(bytes) {
            self.failed = Some(e);
            return Err(io::Error::other("sink has failed"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is done with the files of a NAR that is read. Paths are relative to the archive's root, which is the empty path.
pub trait Visitor {
    /// A directory, before its entries.
    ///
    /// # Errors
    /// Reading stops at an error.
    fn directory(&mut self, path: &Path) -> io::Result<()>;

    /// A regular file. `size` is what the archive says; nothing guarantees that as many bytes will come, in which case
    /// `contents` ends with an error. What is not read of `contents` is skipped.
    ///
    /// # Errors
    /// Reading stops at an error.
    fn regular(&mut self, path: &Path, executable: bool, size: u64, contents: &mut dyn Read) -> io::Result<()>;

    /// A symbolic link.
    ///
    /// # Errors
    /// Reading stops at an error.
    fn symlink(&mut self, path: &Path, target: &[u8]) -> io::Result<()>;
}

/// Does nothing: for a NAR that is only checked.
impl Visitor for () {
    fn directory(&mut self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn regular(&mut self, _: &Path, _: bool, _: u64, _: &mut dyn Read) -> io::Result<()> {
        Ok(())
    }

    fn symlink(&mut self, _: &Path, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a NAR from `source`, and not a byte more. Reads in small pieces, so `source` should be buffered.
///
/// Names that reach `visitor` are never empty, `.` or `..`, contain no slash and no zero byte, and come in strictly
/// rising order within a directory. Memory use does not depend on the lengths that the archive announces.
///
/// # Errors
/// Anything that [`dump`] would not have written, the end of `source` in the middle, and errors of `source` and
/// `visitor`. `visitor` has seen what came before.
pub fn parse(source: impl Read, visitor: &mut impl Visitor) -> Result<(), NarError> {
    let mut parser = Parser { source, offset: 0, visitor, path: PathBuf::new() };
    match parser.string(MAGIC.len()) {
        Ok(magic) if magic == MAGIC => parser.node(0),
        Ok(_) | Err(NarError::Bad { reason: BadNar::TooLong | BadNar::Padding, .. }) => Err(parser.bad(BadNar::Magic)),
        Err(e) => Err(e),
    }
}

/// Unpacks a NAR from `source` to `destination`, which must not exist. Files get the permissions that the process's
/// mask leaves of 0777 and 0666.
///
/// Nothing outside `destination` is written, whatever the archive contains: nothing that exists is replaced, and no
/// link of the archive is followed.
///
/// # Errors
/// Those of [`parse`], and what the file system refuses. What was unpacked until then stays.
pub fn unpack(source: impl Read, destination: &Path) -> Result<(), NarError> {
    parse(source, &mut Unpacker { destination })
}

struct Unpacker<'d> {
    destination: &'d Path,
}

impl Unpacker<'_> {
    fn place(&self, path: &Path) -> PathBuf {
        // Joining the empty path would add a slash, and that would follow a link.
        if path.as_os_str().is_empty() { self.destination.to_owned() } else { self.destination.join(path) }
    }
}

impl Visitor for Unpacker<'_> {
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir(self.place(path))
    }

    fn regular(&mut self, path: &Path, executable: bool, _: u64, contents: &mut dyn Read) -> io::Result<()> {
        let mode = if executable { 0o777 } else { 0o666 };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(self.place(path))?;
        io::copy(contents, &mut file).map(|_| ())
    }

    fn symlink(&mut self, path: &Path, target: &[u8]) -> io::Result<()> {
        symlink(OsStr::from_bytes(target), self.place(path))
    }
}

struct Parser<'v, R, V> {
    source: R,
    offset: u64,
    visitor: &'v mut V,
    path: PathBuf,
}

impl<R: Read, V: Visitor> Parser<'_, R, V> {
    fn bad(&self, reason: BadNar) -> NarError {
        NarError::Bad { offset: self.offset, reason }
    }

    fn node(&mut self, depth: usize) -> Result<(), NarError> {
        if depth >= MAX_DEPTH {
            return Err(self.bad(BadNar::TooDeep));
        }
        self.expect("(")?;
        self.expect("type")?;
        match self.string(MAX_TAG)?.as_slice() {
            b"regular" => {
                let mut tag = self.string(MAX_TAG)?;
                let executable = tag == b"executable";
                if executable {
                    self.string(0)?;
                    tag = self.string(MAX_TAG)?;
                }
                if tag != b"contents" {
                    return Err(self.bad(BadNar::Tag { expected: "contents", found: lossy(&tag) }));
                }
                self.contents(executable)?;
                self.expect(")")
            }
            b"directory" => {
                self.visitor.directory(&self.path).map_err(|e| self.unpack_error(e))?;
                self.entries(depth)
            }
            b"symlink" => {
                self.expect("target")?;
                let target = self.string(MAX_TARGET)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(self.bad(BadNar::Target));
                }
                self.visitor.symlink(&self.path, &target).map_err(|e| self.unpack_error(e))?;
                self.expect(")")
            }
            other => Err(self.bad(BadNar::FileType(lossy(other)))),
        }
    }

    fn entries(&mut self, depth: usize) -> Result<(), NarError> {
        let mut previous = Vec::new();
        loop {
            match self.string(MAX_TAG)?.as_slice() {
                b")" => return Ok(()),
                b"entry" => {}
                other => return Err(self.bad(BadNar::Tag { expected: "entry' or ')", found: lossy(other) })),
            }
            self.expect("(")?;
            self.expect("name")?;
            let name = self.string(MAX_NAME)?;
            if matches!(name.as_slice(), b"" | b"." | b"..") || name.iter().any(|c| matches!(c, b'/' | 0)) {
                return Err(self.bad(BadNar::Name(lossy(&name))));
            }
            if name <= previous {
                return Err(self.bad(BadNar::Unsorted));
            }
            self.expect("node")?;
            self.path.push(OsStr::from_bytes(&name));
            self.node(depth + 1)?;
            self.path.pop();
            self.expect(")")?;
            previous = name;
        }
    }

    fn contents(&mut self, executable: bool) -> Result<(), NarError> {
        let size = self.number()?;
        let mut contents = Contents { source: &mut self.source, left: size, failed: None };
        let visited = self.visitor.regular(&self.path, executable, size, &mut contents);
        let skipped = visited.and_then(|()| io::copy(&mut contents, &mut io::sink()).map(|_| ()));
        let Contents { left, failed, .. } = contents;
        self.offset += size - left;
        if let Some(e) = failed {
            return Err(self.read_error(e));
        }
        skipped.map_err(|e| self.unpack_error(e))?;
        self.padding(size)
    }

    fn expect(&mut self, tag: &'static str) -> Result<(), NarError> {
        let found = self.string(MAX_TAG)?;
        if found == tag.as_bytes() {
            Ok(())
        } else {
            Err(self.bad(BadNar::Tag { expected: tag, found: lossy(&found) }))
        }
    }

    fn string(&mut self, max: usize) -> Result<Vec<u8>, NarError> {
        let len = self.number()?;
        match usize::try_from(len) {
            Ok(size) if size <= max => {
                let mut text = vec![0; size];
                self.fill(&mut text)?;
                self.padding(len)?;
                Ok(text)
            }
            _ => Err(self.bad(BadNar::TooLong)),
        }
    }

    fn number(&mut self) -> Result<u64, NarError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn padding(&mut self, len: u64) -> Result<(), NarError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes[..padding_len(len)])?;
        if bytes == [0; 8] { Ok(()) } else { Err(self.bad(BadNar::Padding)) }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), NarError> {
        self.source.read_exact(bytes).map_err(|e| self.read_error(e))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn read_error(&self, source: io::Error) -> NarError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            self.bad(BadNar::Truncated)
        } else {
            NarError::Read { offset: self.offset, source }
        }
    }

    fn unpack_error(&self, source: io::Error) -> NarError {
        file_error("unpack", &self.path, source)
    }
}

/// A file's contents within the archive. Its end before `left` is an error, so that a cut file never looks whole.
struct Contents<'s, R> {
    source: &'s mut R,
    left: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        match self.source.read(&mut buffer[..want]) {
            Ok(0) => {
                self.failed = Some(io::ErrorKind::UnexpectedEof.into());
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let kind = e.kind();
                self.failed = Some(e);
                Err(kind.into())
            }
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
