//! A package: what files a tree consists of.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageFile {
    /// Relative to the tree, with `/` between its components.
    pub path: String,
    /// Permission bits on the host, in octal: `0644`, `0755`, `0600` or `0700`.
    pub mode: Mode,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the content, in hexadecimal.
    pub blake3: String,
}

/// The permission bits of a file of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u32);

impl Mode {
    /// The bits of a mode; an error if no file of a package has such a mode.
    pub fn new(bits: u32) -> Result<Self> {
        match bits {
            0o644 | 0o755 | 0o600 | 0o700 => Ok(Self(bits)),
            _ => bail!("a file of a release can't have mode {bits:04o}"),
        }
    }

    /// The permission bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether the file is a program.
    pub fn executable(self) -> bool {
        self.0 & 0o100 != 0
    }
}

impl TryFrom<String> for Mode {
    type Error = anyhow::Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(u32::from_str_radix(&text, 8).with_context(|| format!("{text:?} is no mode"))?)
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        format!("{:04o}", mode.0)
    }
}

/// The files of a tree, by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Sorted by path.
    pub files: Vec<PackageFile>,
}

impl Package {
    /// Reads a staged tree.
    pub fn of(tree: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(tree, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// What the hub serves of these files in `dir`: with the modes that they are to have on the host, as the hub has others.
    pub fn served(dir: &Path, files: &[PackageFile]) -> Result<Vec<PackageFile>> {
        let served = |file: &PackageFile| {
            let place = place(dir, &file.path)?;
            let size = fs::metadata(&place).with_context(|| format!("cannot read {}", place.display()))?.len();
            Ok(PackageFile { size, blake3: hash_file(&place)?, ..file.clone() })
        };
        files.iter().map(served).collect()
    }

    /// BLAKE3 over every file's path, mode, size and content hash: equal for equal packages only, on any machine.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            // NUL ends each field: no path contains it
            hasher.update(format!("{}\0{:04o}\0{}\0{}\0", file.path, file.mode.0, file.size, file.blake3).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Adds the files of one directory.
fn collect(dir: &Path, prefix: &str, files: &mut Vec<PackageFile>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("the name of {} is not UTF-8", entry.path().display()))?;
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &path, files)?;
        } else {
            let metadata = entry.metadata()?;
            let mode = Mode::new(metadata.mode() & 0o777).with_context(|| entry.path().display().to_string())?;
            files.push(PackageFile { path, mode, size: metadata.len(), blake3: hash_file(&entry.path())? });
        }
    }
    Ok(())
}

/// BLAKE3 of a file's content, in hexadecimal.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|h| h.finalize().to_hex().to_string()))
        .with_context(|| format!("cannot read {}", path.display()))
}

/// A file's place below `dir`, for a path that comes from a manifest.
///
/// An error for every path that could lead out of `dir` or be written in two ways.
pub fn place(dir: &Path, path: &str) -> Result<PathBuf> {
    let sound = !path.is_empty()
        && path.len() <= 4096
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if sound { Ok(dir.join(path)) } else { bail!("the path {path:?} is not a plain relative path") }
}
