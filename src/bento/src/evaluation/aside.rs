//! Evaluating aside: a copy of this process evaluates, and this one takes up what is there already.
//!
//! Only a process with a single thread can be copied, and an evaluator makes copies until its end. So who wants to use other
//! threads meanwhile leaves the evaluator to a copy.

use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::dup2_stderr;
use serde::{Deserialize, Serialize};

use super::Evaluation;
use super::process::{self, Child, Crash, Limits, Received, Reports};

/// Takes up the evaluation of the host with an index.
type Done<'d> = dyn FnMut(usize, Result<Evaluation>) + 'd;

/// Evaluations that are under way.
pub struct Aside(Way);

enum Way {
    /// In a copy of this process.
    Copy(Child),
    /// They are over, as this process can't be copied.
    Ended(Vec<(usize, Result<Evaluation>)>),
}

/// What the copy reports.
#[derive(Serialize, Deserialize)]
enum Report {
    Done { index: usize, result: Result<Evaluation, String> },
    End,
}

impl Aside {
    /// Begins `work`, which gives each evaluation to the function that it gets. This process has to have a single thread; else
    /// the work is over when this returns.
    ///
    /// # Errors
    /// When the system refuses to make a copy.
    pub fn start(work: impl FnOnce(&mut Done<'_>)) -> Result<Self> {
        if !process::is_alone() {
            let mut ended = Vec::new();
            work(&mut |index, result| ended.push((index, result)));
            return Ok(Self(Way::Ended(ended)));
        }
        // what evaluated code says is for whoever reads this process's messages
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().context("cannot tell where messages go")?;
        let child = process::spawn(0, Limits::default(), |out| {
            let _ = dup2_stderr(&stderr);
            let mut reports = Reports(out);
            work(&mut |index, result| {
                let result = result.map_err(|error| format!("{error:#}"));
                // if nobody listens any more, this process is about to be ended
                drop(reports.send(&Report::Done { index, result }));
            });
            drop(reports.send(&Report::End));
            Ok(())
        })?;
        Ok(Self(Way::Copy(child)))
    }

    /// Gives each evaluation to `done`, with its index, as soon as it is there, until all are.
    ///
    /// # Errors
    /// When the copy broke down; what it had evaluated by then was given to `done`.
    pub fn listen(self, done: &mut Done<'_>) -> Result<()> {
        let mut child = match self.0 {
            Way::Ended(ended) => {
                ended.into_iter().for_each(|(index, result)| done(index, result));
                return Ok(());
            }
            Way::Copy(child) => child,
        };
        let mut received = Received::default();
        let mut over = false;
        while !over && received.read_from(&mut child.reports).context("cannot listen to the evaluations")? {
            while let Some(report) = received.next()? {
                match report {
                    Report::Done { index, result } => done(index, result.map_err(|error| anyhow!(error))),
                    Report::End => over = true,
                }
            }
        }
        match child.end() {
            _ if over => Ok(()),
            Crash::Other(said) => bail!("the process that evaluates broke down: {said}"),
            crash => bail!("the process that evaluates was ended: {crash:?}"),
        }
    }
}
