//! Many evaluations at a time, which share what they have in common.
//!
//! One process, the *warm* one, evaluates the first host. Then it is copied for each of the others, as many at a time as
//! there are jobs: a copy has all that was parsed and evaluated before at no cost, and what it does is not seen outside.
//! While there is only the warm process, the other jobs would have nothing to do: so each of them begins with a host in a
//! copy that was made before anything was evaluated, a *cold* one.
//!
//! A host that crashes its copy is one failed host. If the warm process itself crashes, so is the host that it was at, and
//! the next one is tried as the first.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bento_eval::record::{Findings, Readings, RecordingFs};
use bento_eval::store::Store;
use bento_eval::{Aborted, Scratch, Settings, TreeHashes, evaluate_on};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::process::{self, Child, Crash, Limits, Received, Reports};
use crate::builtin::complaint;
use crate::store::NixStore;

/// What all evaluations of a command together may use.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    /// How many evaluations run at a time, at most.
    pub jobs: usize,
    /// How much memory they take together, in bytes.
    pub memory: u64,
    /// How much time on a processor each may take.
    pub time: Duration,
}

/// A function of the evaluator that gives strings.
pub(crate) type Body<'w> =
    Box<dyn for<'a> Fn(&bento_eval::Evaluator<'a>) -> bento_eval::Result<Vec<String>> + Send + Sync + 'w>;

/// Something to evaluate.
pub(crate) struct Work<'w> {
    /// Where the host's own files are.
    pub(crate) place: PathBuf,
    /// What there is to do.
    pub(crate) body: Body<'w>,
}

/// What an evaluation said on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// `warning` or `trace`.
    pub(crate) kind: String,
    /// The text.
    pub(crate) text: String,
}

/// What a result depends on, besides what was to be evaluated.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Used {
    /// What was read.
    pub(crate) readings: Readings,
    /// Variables of the environment, and what they were.
    pub(crate) variables: BTreeMap<String, Option<Vec<u8>>>,
    /// Something that can't be written down, such as the time.
    pub(crate) volatile: Option<String>,
}

/// An evaluation that ended.
pub(crate) struct Finished {
    /// Which.
    pub(crate) index: usize,
    /// What it said, in order.
    pub(crate) messages: Vec<Message>,
    /// The strings, or what went wrong in Nix's words.
    pub(crate) result: Result<Vec<String>, String>,
    /// What it used itself.
    pub(crate) used: Used,
    /// What the evaluation used that it started from.
    pub(crate) shared: Option<Rc<Shared>>,
}

/// What the warm process used.
pub(crate) struct Shared {
    /// Which evaluation it was.
    pub(crate) index: usize,
    /// What that used.
    pub(crate) used: Used,
}

/// What a process reports.
#[derive(Serialize, Deserialize)]
enum Report {
    Message {
        index: usize,
        message: Message,
    },
    Shared {
        index: usize,
        used: Used,
    },
    /// It is begun again, so what it said so far does not count.
    Again {
        index: usize,
    },
    Done {
        index: usize,
        result: Result<Vec<String>, String>,
        used: Used,
        /// Whether nothing was evaluated before.
        cold: bool,
    },
    /// For the warm process alone.
    Learned(Learned),
}

/// What a copy found out of the files that all hosts have in common: the copies that are made after it know it.
#[derive(Serialize, Deserialize)]
struct Learned {
    files: Findings,
    trees: TreeHashes,
}

/// Where an evaluation's messages go, and what it asks of the environment.
struct Sink {
    index: usize,
    reports: Option<Reports>,
    messages: Vec<Message>,
    used: Used,
}

impl Sink {
    fn send(&mut self, report: Report) {
        match (&mut self.reports, report) {
            // if nobody listens any more, this process is about to be ended
            (Some(reports), report) => drop(reports.send(&report)),
            (None, Report::Message { message, .. }) => self.messages.push(message),
            (None, _) => {}
        }
    }
}

#[derive(Clone)]
struct Ears {
    sink: Arc<Mutex<Sink>>,
    /// For what has to be built before it can be read.
    store: NixStore,
}

impl Ears {
    fn new(reports: Option<Reports>, settings: &Settings) -> Self {
        let sink = Sink { index: 0, reports, messages: Vec::new(), used: Used::default() };
        Self { sink: Arc::new(Mutex::new(sink)), store: NixStore::new(settings.store.clone()) }
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, kind: &str, text: &str) {
        let mut sink = self.sink();
        let message = Message { kind: kind.to_owned(), text: text.to_owned() };
        let index = sink.index;
        sink.send(Report::Message { index, message });
    }
}

impl bento_eval::Host for Ears {
    fn env(&self, name: &str) -> Option<Vec<u8>> {
        use std::os::unix::ffi::OsStringExt;
        let value = std::env::var_os(name).map(OsStringExt::into_vec);
        self.sink().used.variables.insert(name.to_owned(), value.clone());
        value
    }

    fn warn(&self, message: &str) {
        self.say("warning", message);
    }

    fn trace(&self, message: &str) {
        self.say("trace", message);
    }

    fn store(&self) -> Option<&dyn Store> {
        Some(&self.store)
    }

    fn volatile(&self, what: &str) {
        self.sink().used.volatile.get_or_insert_with(|| what.to_owned());
    }
}

/// Carries one piece of work out.
fn evaluate(evaluator: &bento_eval::Evaluator<'_>, work: &Work<'_>) -> Result<Vec<String>, String> {
    (work.body)(evaluator).map_err(|error| complaint(*evaluator.diagnose(&error)))
}

impl Resources {
    /// Carries all of `works` out, each an evaluation with these settings, and gives each one's end to `done`. They are
    /// begun in order, but end in any.
    ///
    /// # Errors
    /// When the system refuses what is needed for that; not when an evaluation fails.
    pub(crate) fn run(&self, settings: &Settings, works: &[Work<'_>], done: &mut dyn FnMut(Finished)) -> Result<()> {
        if !process::is_alone() {
            return run_here(settings, works, done);
        }
        let mut queue: VecDeque<usize> = (0..works.len()).collect();
        let mut messages: Vec<Vec<Message>> = vec![Vec::new(); works.len()];
        let mut cold = self.cold();
        while let Some(&first) = queue.front() {
            let child =
                process::spawn(0, Limits::default(), |out| self.warm(settings, works, queue.clone(), cold, out))?;
            let ended = queue.len();
            let crash = listen(child, &mut messages, &mut queue, done)?;
            if queue.len() < ended {
                continue;
            }
            match crash {
                // again, with all of the memory for it alone
                Crash::Memory if cold > 0 => {
                    cold = 0;
                    messages[first].clear();
                }
                crash => {
                    queue.pop_front();
                    let messages = std::mem::take(&mut messages[first]);
                    let result = Err(self.describe(&crash, self.memory));
                    done(Finished { index: first, messages, result, used: Used::default(), shared: None });
                }
            }
        }
        Ok(())
    }

    /// How many cold copies there may be beside the warm process.
    fn cold(&self) -> usize {
        /// What each evaluation must be able to have: the share is fixed before anything is known of what they need.
        const ENOUGH: u64 = 1 << 30;
        let fit = usize::try_from(self.memory / ENOUGH).unwrap_or(usize::MAX);
        self.jobs.min(fit).saturating_sub(1)
    }

    fn describe(&self, crash: &Crash, memory: u64) -> String {
        match crash {
            Crash::Memory => format!(
                "the evaluation needs more than the {} MiB of memory that it may have: allow more with --memory",
                memory >> 20
            ),
            Crash::Time => format!(
                "the evaluation took more than the {} s that it may take: allow more with --time-limit",
                self.time.as_secs()
            ),
            Crash::Other(said) => format!("the evaluator broke down, which is a mistake in bento: {said}"),
        }
    }

    /// The life of a warm process: the first of `queue` is evaluated in it, the others in copies of it, so many of them in
    /// cold ones.
    fn warm(
        &self,
        settings: &Settings,
        works: &[Work<'_>],
        queue: VecDeque<usize>,
        cold: usize,
        out: File,
    ) -> Result<(), Aborted> {
        process::keep_freed_memory();
        let ears = Ears::new(Some(Reports(out)), settings);
        let store = settings.store.as_str().to_owned();
        evaluate_on(
            settings.clone(),
            || Rc::new(RecordingFs::new(Path::new(&store))),
            ears.clone(),
            |evaluator, files: &RecordingFs| self.serve(evaluator, files, &ears, works, queue, cold),
        )
        .inspect_err(|error| eprintln!("{error}"))
    }

    /// As [`Resources::warm`], in its evaluation.
    fn serve(
        &self,
        evaluator: &bento_eval::Evaluator<'_>,
        files: &RecordingFs,
        ears: &Ears,
        works: &[Work<'_>],
        mut queue: VecDeque<usize>,
        cold: usize,
    ) -> ! {
        let Some(first) = queue.pop_front() else { process::leave() };
        // one for each copy that runs at a time; without any it takes longer
        let scratches: Vec<Option<Scratch>> = (0..self.jobs).map(|_| Scratch::new().ok()).collect();
        let copy = |index: usize, place: usize, memory: u64, cold: bool| -> Result<Running> {
            let child = process::spawn(1, Limits { memory: Some(memory), time: Some(self.time) }, |out| {
                evaluator.expect_copies(0);
                if let Some(Some(scratch)) = scratches.get(place) {
                    let _ = evaluator.continue_in(scratch);
                }
                {
                    let mut sink = ears.sink();
                    sink.index = index;
                    sink.reports = Some(Reports(out));
                }
                evaluator.share_imports(Some(&works[index].place));
                let result = evaluate(evaluator, &works[index]);
                ears.store.close();
                let mut sink = ears.sink();
                let used = Used { readings: files.take(), ..std::mem::take(&mut sink.used) };
                sink.send(Report::Done { index, result, used, cold });
                sink.send(Report::Learned(Learned { files: files.findings(), trees: evaluator.tree_hashes() }));
                Ok(())
            })?;
            Ok(Running { index, place, memory, child, received: Received::default(), done: false })
        };
        // they wait with their reports until somebody listens
        let share = self.memory / (cold as u64 + 1);
        let mut running = Vec::new();
        for place in 1..=cold {
            let Some(&index) = queue.front() else { break };
            // what can't be started now is tried again when there is a warm process
            let Ok(copied) = copy(index, place, share, true) else { break };
            queue.pop_front();
            running.push(copied);
        }
        Limits { memory: Some(self.memory - share * running.len() as u64), time: Some(self.time) }.apply();
        ears.sink().index = first;
        evaluator.expect_copies(queue.len());
        evaluator.share_imports(Some(&works[first].place));
        let result = evaluate(evaluator, &works[first]);
        {
            let mut sink = ears.sink();
            let used = Used { readings: files.take(), ..std::mem::take(&mut sink.used) };
            sink.send(Report::Shared { index: first, used });
            sink.send(Report::Done { index: first, result, used: Used::default(), cold: false });
        }
        Limits::default().apply();
        // a copy must not talk where this process does
        ears.store.disconnect();
        // what the copies find out themselves is all that they tell
        drop(files.findings());
        let learn = |learned: Learned| {
            files.learn(learned.files);
            evaluator.learn_trees(learned.trees);
        };
        self.manage(&|index, place, memory| copy(index, place, memory, false), &learn, ears, queue, running);
        ears.store.close();
        process::leave()
    }

    /// Has a copy made for each of `queue`, and passes on what they and those that are running already report.
    fn manage(
        &self,
        copy: &Copier<'_>,
        learn: &dyn Fn(Learned),
        ears: &Ears,
        mut queue: VecDeque<usize>,
        mut running: Vec<Running>,
    ) {
        /// What an evaluation takes at the least.
        const LEAST: u64 = 64 << 20;
        let resident = process::resident();
        let spare = self.memory.saturating_sub(resident).max(LEAST);
        // a copy is expected to need as much for itself as the first evaluation did
        let fit = usize::try_from(spare / resident.max(LEAST)).unwrap_or(usize::MAX);
        let mut jobs = self.jobs.min(fit).max(1);
        let mut starved = VecDeque::new();
        loop {
            if queue.is_empty() && running.is_empty() && !starved.is_empty() {
                // with the others out of the way there is more for each
                queue.append(&mut starved);
                jobs = 1;
            }
            let memory = spare / jobs as u64;
            while running.len() < jobs {
                let Some(index) = queue.pop_front() else { break };
                let place = (0..jobs).find(|place| running.iter().all(|one| one.place != *place)).unwrap_or(jobs);
                match copy(index, place, memory) {
                    Ok(copied) => running.push(copied),
                    Err(error) => {
                        let result = Err(format!("{error:#}"));
                        ears.sink().send(Report::Done { index, result, used: Used::default(), cold: false });
                    }
                }
            }
            if running.is_empty() {
                if starved.is_empty() {
                    return;
                }
                continue;
            }
            for ended in listen_to(&mut running, learn, ears).into_iter().rev() {
                let Running { index, memory, child, done, .. } = running.swap_remove(ended);
                let crash = child.end();
                if done {
                    continue;
                }
                if matches!(crash, Crash::Memory) && memory < spare {
                    ears.sink().send(Report::Again { index });
                    starved.push_back(index);
                    continue;
                }
                let result = Err(self.describe(&crash, memory));
                ears.sink().send(Report::Done { index, result, used: Used::default(), cold: false });
            }
        }
    }
}

/// Takes a warm process's reports until it ends. What it did not report the end of stays in `queue`, with what was said of it
/// in `messages`.
fn listen(
    mut child: Child,
    messages: &mut [Vec<Message>],
    queue: &mut VecDeque<usize>,
    done: &mut dyn FnMut(Finished),
) -> Result<Crash> {
    let mut shared = None;
    let mut received = Received::default();
    while received.read_from(&mut child.reports).context("cannot listen to an evaluation")? {
        while let Some(report) = received.next()? {
            match report {
                Report::Message { index, message } => messages[index].push(message),
                Report::Again { index } => messages[index].clear(),
                Report::Learned(_) => {}
                Report::Shared { index, used } => shared = Some(Rc::new(Shared { index, used })),
                Report::Done { index, result, used, cold } => {
                    queue.retain(|&waiting| waiting != index);
                    let messages = std::mem::take(&mut messages[index]);
                    let shared = if cold { None } else { shared.clone() };
                    done(Finished { index, messages, result, used, shared });
                }
            }
        }
    }
    Ok(child.end())
}

/// Starts the evaluation with a number in a copy, which is the copy at a place among those that run at a time and may have so
/// much memory.
type Copier<'c> = dyn Fn(usize, usize, u64) -> Result<Running> + 'c;

/// A copy that is at work, as the warm process sees it.
struct Running {
    index: usize,
    /// Which of those that run at a time it is.
    place: usize,
    /// How many bytes of memory it may have.
    memory: u64,
    child: Child,
    received: Received,
    done: bool,
}

/// Waits until one of the copies says something, and passes it on. Gives those that have ended, in ascending order.
fn listen_to(running: &mut [Running], learn: &dyn Fn(Learned), ears: &Ears) -> Vec<usize> {
    let mut descriptors: Vec<PollFd<'_>> =
        running.iter().map(|one| PollFd::new(one.child.reports.as_fd(), PollFlags::POLLIN)).collect();
    // an interruption is as good as nothing to read
    let _ = poll(&mut descriptors, PollTimeout::NONE);
    let ready: Vec<bool> = descriptors.iter().map(|one| one.any().unwrap_or(true)).collect();
    let mut ended = Vec::new();
    for (at, one) in running.iter_mut().enumerate().filter(|(at, _)| ready[*at]) {
        let more = one.received.read_from(&mut one.child.reports).unwrap_or(false);
        while let Ok(Some(report)) = one.received.next() {
            match report {
                Report::Learned(learned) => learn(learned),
                report => {
                    one.done |= matches!(report, Report::Done { .. });
                    ears.sink().send(report);
                }
            }
        }
        if !more {
            ended.push(at);
        }
    }
    ended
}

/// As [`Resources::run`], where this process can't be copied: one after the other, each by itself.
fn run_here(settings: &Settings, works: &[Work<'_>], done: &mut dyn FnMut(Finished)) -> Result<()> {
    for (index, work) in works.iter().enumerate() {
        let ears = Ears::new(None, settings);
        let store = settings.store.as_str().to_owned();
        let (result, readings) = evaluate_on(
            settings.clone(),
            || Rc::new(RecordingFs::new(Path::new(&store))),
            ears.clone(),
            |evaluator, files: &RecordingFs| (evaluate(evaluator, work), files.take()),
        )
        .unwrap_or_else(|aborted| (Err(format!("{:#}", anyhow::Error::from(aborted))), Readings::new()));
        let mut sink = ears.sink();
        let used = Used { readings, ..std::mem::take(&mut sink.used) };
        done(Finished { index, messages: std::mem::take(&mut sink.messages), result, used, shared: None });
    }
    Ok(())
}
