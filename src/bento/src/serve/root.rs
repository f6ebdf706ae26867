//! The file system as one host sees it. Every path is resolved by the kernel inside the host's directory (openat2 with
//! `RESOLVE_IN_ROOT`), as in a chroot: neither `..` nor a link leads out of it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, readlinkat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::host::HostName;

/// The only directory that a host may write to.
const LOGS: &str = "logs";

/// How much a host may leave in its `logs/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes, in all files together.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { bytes: 256 << 20, files: 20_000 }
    }
}

/// How much a host has left, as all of its sessions count it together: what one of them writes, no other may write too.
#[derive(Debug, Default)]
pub(super) struct Usage {
    bytes: u64,
    /// What is open for writing: it takes room also when its name is gone.
    open: Vec<Weak<File>>,
}

/// The usage of each host that has a session.
#[derive(Debug, Default)]
pub(super) struct Usages(Mutex<HashMap<HostName, Weak<Mutex<Usage>>>>);

impl Usages {
    /// A host's.
    pub(super) fn of(&self, host: &HostName) -> Arc<Mutex<Usage>> {
        let mut usages = lock(&self.0);
        usages.retain(|_, usage| usage.strong_count() > 0);
        if let Some(usage) = usages.get(host).and_then(Weak::upgrade) {
            return usage;
        }
        let usage = Arc::default();
        usages.insert(host.clone(), Arc::downgrade(&usage));
        usage
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host's directory.
#[derive(Debug)]
pub(super) struct Root {
    dir: OwnedFd,
    quota: Quota,
    usage: Arc<Mutex<Usage>>,
}

/// A file that is open for writing.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) file: Arc<File>,
    usage: Arc<Mutex<Usage>>,
    /// How many bytes the host may leave in all.
    limit: u64,
}

impl Upload {
    /// Writes a part of it, if the host may leave so much.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EDQUOT)?;
        let mut usage = lock(&self.usage);
        let more = end.saturating_sub(self.file.metadata()?.len());
        if more > 0 && usage.bytes.saturating_add(more) > self.limit {
            return Err(Errno::EDQUOT.into());
        }
        self.file.write_all_at(data, offset)?;
        usage.bytes += more;
        Ok(())
    }
}

impl Root {
    /// The directory of a host.
    pub(super) fn open(dir: &Path, quota: Quota, usage: Arc<Mutex<Usage>>) -> Result<Self> {
        let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        Ok(Self { dir: file.into(), quota, usage })
    }

    /// Opens what a path leads to.
    fn resolve(&self, path: &str, flags: OFlag, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o640) } else { Mode::empty() })
            .resolve(resolve | ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.dir, path, how)
    }

    /// Opens a file for reading. Pipes, devices and directories are none.
    pub(super) fn read(&self, path: &str) -> io::Result<File> {
        let file = File::from(self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, ResolveFlag::empty())?);
        if !file.metadata()?.is_file() {
            return Err(Errno::EACCES.into());
        }
        Ok(file)
    }

    /// What a path leads to, or the link itself.
    pub(super) fn metadata(&self, path: &str, follow: bool) -> io::Result<std::fs::Metadata> {
        let flags = if follow { OFlag::O_PATH } else { OFlag::O_PATH | OFlag::O_NOFOLLOW };
        File::from(self.resolve(path, flags, ResolveFlag::empty())?).metadata()
    }

    /// The names in a directory.
    pub(super) fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let dir = self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, ResolveFlag::empty())?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(dir)? {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            names.extend(name.into_string().ok().filter(|name| name != "." && name != ".."));
        }
        names.sort();
        Ok(names)
    }

    /// Where a link points to.
    pub(super) fn link(&self, path: &str) -> io::Result<String> {
        let link = self.resolve(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, ResolveFlag::empty())?;
        let target = readlinkat(&link, "")?;
        target.into_string().map_err(|_| Errno::EILSEQ.into())
    }

    /// `logs/`, where the host may write.
    fn logs(&self) -> io::Result<OwnedFd> {
        Ok(self.resolve(LOGS, OFlag::O_RDONLY | OFlag::O_DIRECTORY, ResolveFlag::RESOLVE_NO_SYMLINKS)?)
    }

    /// Opens a file in `logs/` for writing: `flags` say whether it is made, emptied, or must be new.
    pub(super) fn write(&self, path: &str, flags: OFlag) -> io::Result<Upload> {
        let name = log_name(path).ok_or(Errno::EACCES)?;
        let mut usage = lock(&self.usage);
        let used = self.used(&name)?;
        let exists = self.metadata(&format!("{LOGS}/{name}"), false).is_ok();
        if !exists && used.files >= self.quota.files {
            return Err(Errno::EDQUOT.into());
        }
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = self.resolve(&format!("{LOGS}/{name}"), flags, ResolveFlag::RESOLVE_NO_SYMLINKS)?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Errno::EACCES.into());
        }
        // counted anew each time: the host may have made room
        usage.open.retain(|file| file.strong_count() > 0);
        let nameless = usage.open.iter().filter_map(|file| file.upgrade()?.metadata().ok());
        let nameless: u64 = nameless.filter(|metadata| metadata.nlink() == 0).map(|metadata| metadata.len()).sum();
        usage.bytes = used.bytes + nameless + metadata.len();
        let file = Arc::new(file);
        usage.open.push(Arc::downgrade(&file));
        Ok(Upload { file, usage: self.usage.clone(), limit: self.quota.bytes })
    }

    /// How much of its quota a host has used, but for one file.
    fn used(&self, but: &str) -> io::Result<Quota> {
        let mut used = Quota { bytes: 0, files: 0 };
        for name in self.list(LOGS)?.iter().filter(|name| *name != but) {
            used.files += 1;
            // one that is gone meanwhile takes nothing
            used.bytes += self.metadata(&format!("{LOGS}/{name}"), false).map_or(0, |metadata| metadata.len());
        }
        Ok(used)
    }

    /// Removes a file in `logs/`.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let name = log_name(path).ok_or(Errno::EACCES)?;
        Ok(unlinkat(self.logs()?, name.as_str(), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Renames a file in `logs/`, never over another.
    pub(super) fn rename(&self, old: &str, new: &str) -> io::Result<()> {
        let (old, new) = (log_name(old).ok_or(Errno::EACCES)?, log_name(new).ok_or(Errno::EACCES)?);
        let logs = self.logs()?;
        match renameat2(logs.as_fd(), old.as_str(), logs.as_fd(), new.as_str(), RenameFlags::RENAME_NOREPLACE) {
            // file systems that can't do that at once: NFS, those in user space, ZFS before 2.2
            Err(Errno::EINVAL) => {
                linkat(logs.as_fd(), old.as_str(), logs.as_fd(), new.as_str(), AtFlags::empty())?;
                Ok(unlinkat(logs.as_fd(), old.as_str(), UnlinkatFlags::NoRemoveDir)?)
            }
            done => Ok(done?),
        }
    }
}

/// A path without `.`, `..` and doubled slashes, as the host's root has it: it begins with a slash.
pub(super) fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The name of a file directly in `logs/`, if that is what a path says.
fn log_name(path: &str) -> Option<String> {
    let normal = normal(path);
    let name = normal.strip_prefix("/logs/")?;
    (!name.is_empty() && !name.contains(['/', '\0'])).then(|| name.to_owned())
}
