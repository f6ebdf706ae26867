//! `bento cache`: look at what is remembered of evaluations, and clear it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::evaluation::cache::{Cache, Contents};

/// Look at the results of evaluations that are remembered, or forget them
///
/// They lie in bento/evaluations below XDG_CACHE_HOME or ~/.cache. A result is used as long as nothing has changed that the
/// evaluation read, so nothing has to be cleared for results to be right.
#[derive(Args)]
pub(super) struct CacheCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Say where the results are, how large, and of which hosts
    Show {
        /// Print that as JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget all results
    Clear,
    /// Look for damaged files, and remove them
    Verify,
}

impl CacheCommand {
    pub(super) fn run(self) -> Result<ExitCode> {
        let cache = Cache::of_user()?
            .context("there is no place for a cache: neither XDG_CACHE_HOME nor HOME is an absolute path")?;
        match self.action {
            Action::Show { json: true } => super::print_json(&cache.contents()?)?,
            Action::Show { json: false } => super::print(&text(&cache.contents()?))?,
            Action::Clear => super::print(&format!("{} removed\n", size(cache.clear()?)))?,
            Action::Verify => match cache.verify()? {
                0 => super::print("no file is damaged\n")?,
                1 => super::print("1 damaged file removed\n")?,
                many => super::print(&format!("{many} damaged files removed\n"))?,
            },
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A size for people.
fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The contents for people.
fn text(contents: &Contents) -> String {
    let mut text = format!(
        "{}\n{} of {} at most, {} sets of files\n",
        contents.directory.display(),
        size(contents.size),
        size(contents.limit),
        contents.sets
    );
    if contents.unreadable > 0 {
        text += &format!("{} unreadable files: `bento cache verify` removes them\n", contents.unreadable);
    }
    for entry in &contents.hosts {
        let used = i64::try_from(entry.used).ok().and_then(|used| Timestamp::from_second(used).ok());
        let used = used.map_or_else(String::new, |used| format!(", last used {used}"));
        let results = if entry.results == 1 { "1 result".to_owned() } else { format!("{} results", entry.results) };
        text += &format!("{}: {results}{used}\n", entry.host);
    }
    text
}
