//! Waiting until something changes on the hub: a release, a report, a host that comes or goes.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::hub::Hub;

/// How long to wait after a first change for others that belong to it.
const SETTLE: Duration = Duration::from_millis(50);

/// A watch over a hub's directory.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Begins to watch. What changes from now on ends the next [`Watch::wait`].
    pub fn new(hub: &Hub) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("cannot watch files")?;
        let watch = Self { inotify };
        watch.cover(hub)?;
        Ok(watch)
    }

    /// Watches the directories that there are now. Those that are watched already stay so.
    fn cover(&self, hub: &Hub) -> Result<()> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let mut dirs = vec![hub.root().to_owned()];
        for name in hub.hosts()? {
            let dir = hub.host(&name);
            dirs.extend([dir.path().to_owned(), dir.logs()]);
        }
        for dir in dirs {
            match self.inotify.add_watch(&dir, flags) {
                // what is gone again is not watched
                Ok(_) | Err(nix::errno::Errno::ENOENT) => {}
                Err(nix::errno::Errno::ENOSPC) => {
                    return Err(anyhow::anyhow!("there are more directories than this machine lets a user watch"))
                        .context("raise the sysctl fs.inotify.max_user_watches");
                }
                Err(error) => return Err(error).with_context(|| format!("cannot watch {}", dir.display())),
            }
        }
        Ok(())
    }

    /// Waits until something changes, but no longer than `limit`. Gives whether something did.
    pub fn wait(&self, hub: &Hub, limit: Duration) -> Result<bool> {
        if !self.readable(limit)? {
            return Ok(false);
        }
        // a report comes as several changes
        std::thread::sleep(SETTLE);
        while self.readable(Duration::ZERO)? {
            self.inotify.read_events().context("cannot watch files")?;
        }
        self.cover(hub)?;
        Ok(true)
    }

    fn readable(&self, limit: Duration) -> Result<bool> {
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit) {
            Ok(count) => Ok(count > 0),
            // a signal, such as that of a window that changes its size
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("cannot wait for changes"),
        }
    }
}
