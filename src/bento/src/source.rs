//! A source tree: a host's directory as it will be on the host, in a private place.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::hash::HashAlgo;
use bento_store::nar::{self, NarError};
use bento_store::store_path::StoreDir;
use tempfile::TempDir;

use crate::package::{PackageFile, place};
use crate::secrets::folder::Folders;

/// The base name of every staged tree and of every tree on a host.
///
/// `./.` in a configuration is copied to the store under the directory's base name, so hub and host must agree on it.
pub const TREE_NAME: &str = "config";

/// The time stamp that every file and directory of a tree gets: as in the store, one second after the epoch.
///
/// A `path:` flake's `lastModified` is the newest time stamp in it, so hub and host must agree on that too.
pub fn tree_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1)
}

/// A host's files, copied with symbolic links followed; removed when dropped.
#[derive(Debug)]
pub struct SourceTree {
    /// Holds the tree; private to this user.
    holder: TempDir,
    /// What it is a copy of.
    from: PathBuf,
}

impl SourceTree {
    /// Copies `from` with its symbolic links followed.
    ///
    /// Left out: what is in one of the fleet's folders of secrets and not encrypted, `.git`, `.direnv`, `result` links into the
    /// Nix store, and directories without a file in them (neither git nor a manifest knows these). Modes become 0644 or 0755, or 0600 or 0700 for what the world may not read. A link that
    /// leads nowhere or back to a directory above it, a file that can't be read or is none, and a name that isn't UTF-8
    /// are errors.
    pub fn stage(from: &Path, secrets: &Folders) -> Result<Self> {
        let holder = tempfile::Builder::new()
            .prefix("bento-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a directory to stage in")?;
        let tree = holder.path().join(TREE_NAME);
        make_dir(&tree)?;
        let mut above = Vec::new();
        copy_dir(from, &tree, secrets, &mut above)?;
        stamp(&tree)?;
        Ok(Self { holder, from: from.to_owned() })
    }

    /// The tree of a release, made anew from the files that the hub serves of it.
    pub fn restore(release: &Path, files: &[PackageFile]) -> Result<Self> {
        let holder = tempfile::Builder::new()
            .prefix("bento-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a directory to stage in")?;
        let tree = holder.path().join(TREE_NAME);
        make_dir(&tree)?;
        for file in files {
            let target = place(&tree, &file.path)?;
            if let Some(dir) = target.parent() {
                fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            }
            copy_file(&place(release, &file.path)?, &target, file.mode.bits())?;
        }
        stamp_all(&tree)?;
        Ok(Self { holder, from: release.to_owned() })
    }

    /// The tree as an archive, in which it is a directory of the name [`TREE_NAME`].
    pub fn pack(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let packed = archive.append_dir_all(TREE_NAME, self.path()).and_then(|()| archive.into_inner());
        packed.with_context(|| format!("cannot pack the copy of {}", self.from.display()))
    }

    /// The tree of an archive that [`SourceTree::pack`] made; `origin` is what messages call it.
    pub fn unpack(archive: &[u8], origin: &Path) -> Result<Self> {
        let unpacked = tempfile::tempdir().context("cannot make a directory to unpack in")?;
        let context = || format!("cannot unpack {}", origin.display());
        tar::Archive::new(archive).unpack(unpacked.path()).with_context(context)?;
        let tree = Self::stage(&unpacked.path().join(TREE_NAME), &Folders::default())?;
        Ok(Self { from: origin.to_owned(), ..tree })
    }

    /// Where the tree is; its base name is [`TREE_NAME`].
    pub fn path(&self) -> PathBuf {
        self.holder.path().join(TREE_NAME)
    }

    /// What the tree is a copy of.
    pub fn origin(&self) -> &Path {
        &self.from
    }

    /// A message about the tree, with the files' names in the administrator's directory instead of those in the copy.
    pub fn original_names(&self, message: &str) -> String {
        self.names().original(message)
    }

    /// What [`SourceTree::original_names`] does, for those that can't hold on to the tree.
    pub fn names(&self) -> Names {
        Names { copy: self.path(), from: self.from.clone() }
    }

    /// Whether the tree has a file at this path.
    pub fn has(&self, path: &str) -> bool {
        self.path().join(path).is_file()
    }
}

/// What a tree's files are called in messages.
#[derive(Clone, Debug)]
pub struct Names {
    copy: PathBuf,
    from: PathBuf,
}

impl Names {
    /// A message with the names in the administrator's directory instead of those in the copy, or in the store as what a
    /// flake's source is there.
    pub fn original(&self, message: &str) -> String {
        let (Some(copy), Some(from)) = (self.copy.to_str(), self.from.to_str()) else { return message.to_owned() };
        let message = message.replace(copy, from);
        if !message.contains("-source") {
            return message;
        }
        match self.flake_source() {
            Some(source) => message.replace(&source, from),
            None => message,
        }
    }

    /// The store path of the tree as the source of a flake; `None` if the tree is gone.
    fn flake_source(&self) -> Option<String> {
        let (hash, _) = nar::hash_path::<NarError>(&self.copy, nar::keep_all, HashAlgo::Sha256).ok()?;
        let address = ContentAddress { method: ContentAddressMethod::NixArchive, hash };
        let store = StoreDir::default();
        Some(store.print(&store.make_fixed_output_path("source", &address).ok()?))
    }
}

/// Gives a file or directory the time stamp of trees.
pub fn stamp(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|f| f.set_modified(tree_time()))
        .with_context(|| format!("cannot set the time of {}", path.display()))
}

/// Gives everything in a tree the time stamp of trees, directories after what is in them, and directories their mode.
pub fn stamp_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            stamp_all(&entry.path())?;
        } else {
            stamp(&entry.path())?;
        }
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", dir.display()))?;
    stamp(dir)
}

/// Makes a directory of a tree.
fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("cannot create {}", path.display()))
        }
        _ => fs::set_permissions(path, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot set the mode of {}", path.display())),
    }
}

/// A link that `nix build` leaves: named `result` or `result-...` and pointing into the store.
fn is_build_result(path: &Path, name: &str) -> bool {
    (name == "result" || name.starts_with("result-"))
        && fs::read_link(path).is_ok_and(|target| target.starts_with("/nix/store"))
}

/// The mode that a file has in a tree.
fn tree_mode(mode: u32) -> u32 {
    let normal = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
    if mode & 0o004 == 0 { normal & 0o700 } else { normal }
}

/// Copies one directory; `above` holds the device and inode of each directory that is being copied, to see loops.
/// Gives whether there was any file in it.
fn copy_dir(from: &Path, to: &Path, secrets: &Folders, above: &mut Vec<(u64, u64, PathBuf)>) -> Result<bool> {
    let reading = || format!("cannot read the directory {}", from.display());
    let itself = fs::metadata(from).with_context(reading)?;
    if let Some((_, _, start)) = above.iter().find(|(dev, ino, _)| (*dev, *ino) == (itself.dev(), itself.ino())) {
        bail!(
            "the symbolic link {} leads back to {}, which it is in: such a loop has no end; remove the link",
            from.display(),
            start.display()
        );
    }
    above.push((itself.dev(), itself.ino(), from.to_owned()));
    let mut entries = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>).with_context(reading)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut any = false;
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("the name of {} is not UTF-8", path.display()))?;
        if name == ".git" || name == ".direnv" || is_build_result(&path, name) {
            continue;
        }
        let metadata = fs::metadata(&path).with_context(|| match fs::read_link(&path) {
            Ok(target) => {
                format!("{} is a symbolic link to {}, which can't be followed", path.display(), target.display())
            }
            Err(_) => format!("cannot read {}", path.display()),
        })?;
        let target = to.join(name);
        if metadata.is_dir() {
            make_dir(&target)?;
            if copy_dir(&path, &target, secrets, above)? {
                stamp(&target)?;
                any = true;
            } else {
                fs::remove_dir(&target).with_context(|| format!("cannot remove {}", target.display()))?;
            }
        } else if metadata.is_file() {
            if secrets.keep_out(&path)? {
                continue;
            }
            copy_file(&path, &target, tree_mode(metadata.mode()))?;
            any = true;
        } else {
            bail!("{} is neither a file nor a directory: a host's directory can't hold it", path.display());
        }
    }
    above.pop();
    Ok(any)
}

/// Copies a file's content; never readable to more people than in the end.
fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    let mut copy = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).with_context(context)?;
    io::copy(&mut source, &mut copy).with_context(context)?;
    copy.set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    copy.set_modified(tree_time()).with_context(context)
}
