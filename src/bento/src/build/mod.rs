//! Building: an evaluation becomes a system in this machine's Nix store, through the machine's own Nix.
//!
//! Remote builders, substituters and their keys are Nix's own business: what `nix.conf` says holds here too.

pub mod apply;
pub mod log;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::evaluation::Evaluation;
use crate::host::Host;
use crate::nix::{Programs, not_started};
use crate::process;
use crate::store_path::StorePath;

use log::{BuildLog, Progress};

/// What has to be built for one host.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Whose system it is.
    pub host: &'a Host,
    /// What its files come to; the derivation is in this machine's store
    /// ([`instantiate_fleet`](crate::evaluation::Evaluator::instantiate_fleet)).
    pub evaluation: &'a Evaluation,
}

/// Someone who is told how far the builds are. Several hosts' builds tell at the same time.
pub trait Watcher: Sync {
    /// A host's build got further.
    fn progress(&self, host: &Host, progress: &Progress);
    /// Something that Nix or a builder printed.
    fn line(&self, host: &Host, line: &str);
    /// A host's build ended, well or not.
    fn done(&self, host: &Host);
}

/// Builds with the machine's Nix.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    programs: Programs,
    options: Vec<String>,
    /// For how long one host's build may take.
    limit: Option<Duration>,
}

impl Builder {
    /// Builds with these further options for Nix.
    pub fn new(options: &[String]) -> Self {
        Self { programs: Programs::default(), options: options.to_vec(), limit: None }
    }

    /// One that ends each host's build that takes more than so many seconds.
    pub fn within(self, seconds: u64) -> Self {
        Self { limit: Some(Duration::from_secs(seconds)), ..self }
    }

    /// Makes sure that there is a Nix to build with.
    pub fn check(&self) -> Result<()> {
        let mut command = self.programs.command("nix-store");
        command.arg("--version");
        succeed(command)
    }

    /// Builds all jobs, several at a time; gives what became of each, in their order.
    pub fn build(&self, jobs: &[Job<'_>], watcher: &dyn Watcher) -> Vec<Result<StorePath>> {
        let at_a_time = std::thread::available_parallelism().map_or(1, NonZero::get).min(jobs.len());
        let waiting = Mutex::new((0..jobs.len()).collect::<VecDeque<_>>());
        let results: Vec<Mutex<Option<Result<StorePath>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..at_a_time {
                scope.spawn(|| {
                    while let Some(index) = waiting.lock().ok().and_then(|mut waiting| waiting.pop_front()) {
                        let result = self.build_one(&jobs[index], watcher);
                        watcher.done(jobs[index].host);
                        if let Ok(mut place) = results[index].lock() {
                            *place = Some(result);
                        }
                    }
                });
            }
        });
        let lost = || Err(anyhow!("the build was lost"));
        results.into_iter().map(|result| result.into_inner().ok().flatten().unwrap_or_else(lost)).collect()
    }

    /// Builds one host's system.
    fn build_one(&self, job: &Job<'_>, watcher: &dyn Watcher) -> Result<StorePath> {
        let mut command = self.programs.command("nix-store");
        command.args(["--log-format", "internal-json", "--verbose", "--realise"]);
        command.arg(job.evaluation.drv_path.as_path()).args(&self.options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_owned();
        if self.limit.is_some() {
            command.process_group(0);
        }
        let mut child = command.spawn().with_context(|| not_started(&program))?;
        let stderr = child.stderr.take().context("nix-store has no error output")?;
        let mut log = BuildLog::default();
        let late = std::thread::scope(|scope| {
            let (ended, end) = mpsc::channel::<()>();
            let id = child.id();
            let clock = self.limit.map(|limit| {
                scope.spawn(move || {
                    let late = end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
                    if late {
                        process::end_group(id);
                    }
                    late
                })
            });
            for line in BufReader::new(stderr).split(b'\n') {
                let line = line.context("cannot read what nix-store prints")?;
                let said = log.read(&String::from_utf8_lossy(&line));
                if let Some(text) = said {
                    watcher.line(job.host, &text);
                }
                if let Some(progress) = log.progress() {
                    watcher.progress(job.host, &progress);
                }
            }
            drop(ended);
            Ok::<_, anyhow::Error>(clock.is_some_and(|clock| clock.join().unwrap_or(false)))
        })?;
        let output = child.wait_with_output().context("cannot wait for nix-store")?;
        if late {
            let seconds = self.limit.unwrap_or_default().as_secs();
            bail!("the build did not end within {seconds} s and was killed");
        }
        if !output.status.success() {
            bail!(
                "the build failed: {}",
                log.failure().unwrap_or_else(|| format!("nix-store ended with {}", output.status))
            );
        }
        let toplevel = &job.evaluation.toplevel;
        if !String::from_utf8_lossy(&output.stdout).lines().any(|line| line == toplevel.as_str()) {
            bail!("Nix built {}, and not {toplevel}", String::from_utf8_lossy(&output.stdout).trim());
        }
        Ok(toplevel.clone())
    }

    /// What Nix would build and fetch for a job, in its words.
    pub fn plan(&self, job: &Job<'_>) -> Result<String> {
        let mut command = self.programs.command("nix-store");
        command.arg("--realise").arg("--dry-run").arg(job.evaluation.drv_path.as_path()).args(&self.options);
        let program = command.get_program().to_owned();
        let output = command.stdin(Stdio::null()).output().with_context(|| not_started(&program))?;
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        if !output.status.success() {
            bail!("{said}");
        }
        Ok(said)
    }

    /// Keeps a store path from being collected for as long as `link` is there. Where there is no Nix nothing collects.
    pub fn keep(&self, path: &StorePath, link: &Path) -> Result<()> {
        if !self.programs.are_installed() {
            return Ok(());
        }
        if let Some(dir) = link.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let mut command = self.programs.command("nix-store");
        command.arg("--realise").arg(path.as_path()).arg("--add-root").arg(link).arg("--indirect");
        succeed(command).with_context(|| format!("cannot keep {path} from being collected"))
    }

    /// Makes sure that a built system is in this machine's store or in one of the binary caches.
    ///
    /// # Errors
    /// When it is in none, with what Nix says of each cache: that may be out of reach, or want other credentials.
    pub fn find(&self, path: &StorePath, caches: &[String]) -> Result<()> {
        if path.as_path().exists() {
            return Ok(());
        }
        let mut reasons = String::new();
        for cache in caches {
            let mut command = self.programs.nix("path-info");
            // Nix remembers for an hour that there was nothing, and for a month that there was something
            command.args(["--refresh", "--store", cache]).arg(path.as_path());
            match succeed(command) {
                Ok(()) => return Ok(()),
                Err(reason) => reasons += &format!("\n    {cache}: {reason:#}"),
            }
        }
        bail!("{path} is neither here nor in one of release.substituters{reasons}");
    }
}

/// Runs a program that has nothing to say but what went wrong.
pub(crate) fn succeed(mut command: std::process::Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| not_started(&program))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: "));
    }
    Ok(())
}
