//! Writing so that a crash or a reader at the wrong moment sees the old content or the new, and reading what a stranger
//! may have put there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::syncfs;

/// Every temporary name that bento makes begins with this, so that the next run can clear what a crash left.
pub const TEMPORARY: &str = ".tmp-";

/// The parent directory of a path that has one.
fn parent(path: &Path) -> Result<&Path> {
    path.parent().with_context(|| format!("{} has no parent directory", path.display()))
}

/// Makes the entries of a directory durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))
}

/// Makes all that was written to the file system durable on which a directory lies.
pub fn sync_file_system(dir: &Path) -> Result<()> {
    let context = || format!("cannot sync the file system of {}", dir.display());
    syncfs(File::open(dir).with_context(context)?).with_context(context)
}

/// Replaces a file's content: written beside it, synced, then moved over it by one rename(2).
///
/// `mode` holds the permission bits; `gid` the group, if it shall differ from the process's.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32, gid: Option<u32>) -> Result<()> {
    write(path, content, mode, gid)?;
    sync_dir(parent(path)?)
}

/// As [`write_atomic`], but it is for the caller to make the name durable.
pub fn write(path: &Path, content: &[u8], mode: u32, gid: Option<u32>) -> Result<()> {
    let dir = parent(path)?;
    let context = || format!("cannot write {}", path.display());
    let mut temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir).with_context(context)?;
    temporary.write_all(content).with_context(context)?;
    if gid.is_some() {
        std::os::unix::fs::fchown(temporary.as_file(), None, gid).with_context(context)?;
    }
    temporary.as_file().set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    temporary.as_file().sync_all().with_context(context)?;
    temporary.persist(path).map_err(|e| e.error).with_context(context)?;
    Ok(())
}

/// Points a symbolic link elsewhere by one rename(2), durably.
pub fn link_atomic(target: &str, link: &Path) -> Result<()> {
    self::link(target, link)?;
    sync_dir(parent(link)?)
}

/// As [`link_atomic`], but it is for the caller to make the link durable.
pub fn link(target: &str, link: &Path) -> Result<()> {
    let dir = parent(link)?;
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!("{TEMPORARY}{}-{name}", std::process::id()));
    let context = || format!("cannot point {} to {target}", link.display());
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(context),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary).with_context(context)?;
    fs::rename(&temporary, link).with_context(context)
}

/// Removes what interrupted writes left in a directory.
pub fn clear_temporaries(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, a link or a whole directory; what is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Reads a file that someone else may have put there: never through a symbolic link, never a pipe or a device, never
/// more than `limit` bytes.
pub fn read_untrusted(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let context = || format!("cannot read {}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .with_context(context)?;
    if !file.metadata().with_context(context)?.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).with_context(context)?;
    if content.len() as u64 > limit {
        bail!("{} is larger than {limit} bytes", path.display());
    }
    Ok(content)
}

/// Takes an exclusive lock that ends with the process, or says that another process has it.
///
/// Gives `None` if it is taken. `path` is created if need be.
pub fn try_lock(path: &Path) -> Result<Option<Flock<File>>> {
    let context = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .with_context(context)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(context),
    }
}
