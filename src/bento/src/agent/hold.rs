//! Holding a host on the spot: it goes on telling the hub that it is there, and takes up nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files;
use crate::hub::Hold;

/// The file in a state directory that says so.
fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("held.json")
}

/// Since when, and why, a host is held; `None` if it isn't.
///
/// A file that can't be understood holds too: whoever put it there wanted that.
pub fn read(state_dir: &Path) -> Result<Option<Hold>> {
    let file = file(state_dir);
    let text = match std::fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let hold = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged: `bento agent release` removes it", file.display()))?;
    Ok(Some(hold))
}

/// Holds a host, from its next run on.
pub fn hold(state_dir: &Path, hold: &Hold) -> Result<()> {
    super::prepare(state_dir)?;
    files::write_atomic(&file(state_dir), &serde_json::to_vec_pretty(hold)?, 0o600, None)
}

/// Lets a host go. Gives whether it was held.
pub fn release(state_dir: &Path) -> Result<bool> {
    let file = file(state_dir);
    let held = file.exists();
    files::remove(&file)?;
    Ok(held)
}
