//! Pushing: a system is brought to a machine over SSH, tried out there, confirmed by a new connection, and only then kept.
//!
//! Nothing of bento has to be on the machine. What runs there is `sh`, systemd, Nix and one fixed script ([`root::HELPER`]), whose
//! trial outlives every connection and ends in a system that was confirmed, or in the one that ran before. What is decided is
//! decided here, with the agent's own transitions.

pub mod deliver;
pub mod facts;
pub mod lockout;
pub mod record;
pub mod remote;
pub mod root;
pub mod run;
pub mod settings;
pub mod target;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Error, Result};
use serde::Serialize;

use crate::nix::Programs;
use crate::report::Stage;
use crate::store_path::StorePath;

use facts::Facts;
use remote::{Remote, Unreachable};
use root::Root;
use settings::{BuildOn, PushConfig};
use target::Target;

/// What a push is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Connecting.
    Connect,
    /// Looking at the machine.
    Health,
    /// Copying the source to where it is built.
    Source,
    /// Building.
    Build,
    /// Copying the system.
    Copy,
    /// Having the system say whether it may be activated.
    Check,
    /// Activating it for a test, under the watchdog.
    Activate,
    /// Confirming it by a new connection.
    Confirm,
    /// Making it the one that is booted.
    Boot,
    /// Waiting for the system that ran before.
    Restore,
}

impl Step {
    /// What is being done, in a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connecting",
            Self::Health => "looking at the machine",
            Self::Source => "copying the source",
            Self::Build => "building",
            Self::Copy => "copying the system",
            Self::Check => "checking",
            Self::Activate => "activating",
            Self::Confirm => "confirming",
            Self::Boot => "making it the one that is booted",
            Self::Restore => "going back",
        }
    }
}

/// How a push ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Ending {
    /// The machine runs and boots the system.
    Pushed {
        /// It.
        toplevel: StorePath,
        /// Whether a boot is needed for all of it to take effect.
        reboot_needed: bool,
    },
    /// It did so already.
    Unchanged {
        /// It.
        toplevel: StorePath,
    },
    /// Nothing was changed.
    Failed {
        /// Where it ended.
        stage: Stage,
        /// Why.
        reason: String,
    },
    /// The machine runs what it ran before.
    Restored {
        /// Where it ended.
        stage: Stage,
        /// Why.
        reason: String,
        /// What runs.
        previous: Option<StorePath>,
    },
    /// The machine can't be reached, and nothing was changed.
    Unreachable {
        /// At which hop, why, and what helps.
        reason: String,
        /// Whether that was to be accepted.
        skipped: bool,
    },
    /// The machine can't be reached any more; it will end in the new system or in the old one by itself.
    Lost {
        /// Why it can't be told.
        reason: String,
    },
}

impl Ending {
    /// Whether what was asked for happened.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Pushed { .. } | Self::Unchanged { .. } | Self::Unreachable { skipped: true, .. })
    }

    /// For people.
    pub fn text(&self) -> String {
        match self {
            Self::Pushed { toplevel, reboot_needed: false } => format!("pushed {toplevel}"),
            Self::Pushed { toplevel, reboot_needed: true } => {
                format!("pushed {toplevel}; a restart is needed for all of it to take effect")
            }
            Self::Unchanged { toplevel } => format!("unchanged: {toplevel}"),
            Self::Failed { reason, .. } => format!("failed, nothing was changed: {reason}"),
            Self::Restored { reason, previous: Some(previous), .. } => format!("rolled back to {previous}: {reason}"),
            Self::Restored { reason, previous: None, .. } => format!("rolled back: {reason}"),
            Self::Unreachable { reason, skipped: false } => format!("unreachable: {reason}"),
            Self::Unreachable { reason, skipped: true } => format!("skipped, unreachable: {reason}"),
            Self::Lost { reason } => {
                format!(
                    "lost: {reason}; it ends in a confirmed or a restored system, `bento deploy --resume` tells in which"
                )
            }
        }
    }

    /// The end of what went wrong before anything was changed.
    pub fn failed(stage: Stage, error: &Error) -> Self {
        Self::Failed { stage, reason: format!("{error:#}") }
    }
}

/// Someone who is told how far pushes are. Several machines' pushes tell at the same time.
pub trait Observer: Sync {
    /// A push has come to a step.
    fn step(&self, target: &Target, step: Step);
    /// How far it is within the step, in words.
    fn detail(&self, target: &Target, detail: &str);
    /// Something that was printed on the machine.
    fn line(&self, target: &Target, line: &str);
    /// A push has ended.
    fn ended(&self, target: &Target, ending: &Ending);
}

/// How pushes are done.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings.
    pub settings: PushConfig,
    /// Options for ssh.
    pub ssh: Vec<String>,
    /// Whether only healthy machines are pushed to.
    pub health: bool,
    /// Whether a configuration that locks its deployer out is refused.
    pub lockout: bool,
    /// Whether systems are tried out before they are booted; if not, they are only booted the next time.
    pub trial: bool,
    /// Whether an unreachable machine is no failure.
    pub skip_unreachable: bool,
    /// The password that sudo and its like want.
    pub password: Option<String>,
    /// The words in the place of `nix build`, where a target or a builder builds a flake.
    pub build_cmdline: Vec<String>,
    /// More options for Nix, where this machine builds.
    pub build_options: Vec<String>,
}

impl Options {
    /// Whether a machine's system is built on this one.
    pub fn builds_here(&self, facts: &Facts) -> bool {
        match &self.settings.build_on {
            BuildOn::Here => true,
            BuildOn::Auto => {
                cfg!(target_os = "linux")
                    && facts.machine == std::env::consts::ARCH
                    && Programs::default().are_installed()
            }
            BuildOn::Target | BuildOn::Builder(_) => false,
        }
    }
}

/// A machine that is ready to be pushed to.
#[derive(Debug)]
pub struct Machine {
    /// As it was named.
    pub target: Target,
    /// The connection.
    pub remote: Remote,
    /// What it is like.
    pub facts: Facts,
    /// How root's part is done.
    pub root: Root,
}

/// Looks at machines, several at a time: whether they can be reached and are healthy, and whether root's part can be done.
pub fn survey(targets: &[Target], options: &Options, observer: &dyn Observer) -> Vec<Result<Machine, Ending>> {
    let look = |target: &Target| {
        let found = survey_one(target, options, observer);
        if let Err(ending) = &found {
            observer.ended(target, ending);
        }
        found
    };
    in_parallel(targets.iter().collect(), options.settings.parallel, look)
}

fn survey_one(target: &Target, options: &Options, observer: &dyn Observer) -> Result<Machine, Ending> {
    let settings = &options.settings;
    let seconds = Duration::from_secs;
    let early = |error: Error| match error.downcast_ref::<Unreachable>() {
        Some(unreachable) => Ending::Unreachable { reason: unreachable.to_string(), skipped: options.skip_unreachable },
        None => Ending::failed(Stage::Check, &error),
    };
    observer.step(target, Step::Connect);
    let remote =
        Remote::connect(&target.destination, &options.ssh, seconds(settings.connect_timeout)).map_err(early)?;
    observer.step(target, Step::Health);
    let facts = Facts::ask(&remote, seconds(settings.health_timeout)).map_err(early)?;
    if options.health {
        facts.check_health().map_err(early)?;
    }
    let root = Root::set_up(
        &remote,
        settings.escalation,
        options.password.as_deref(),
        facts.root,
        &facts.tools,
        seconds(settings.health_timeout),
    );
    let root = root.map_err(early)?;
    Ok(Machine { target: target.clone(), remote, facts, root })
}

/// Does something with each of these, `at_a_time`; gives what came of each, in their order.
pub(crate) fn in_parallel<T: Send, R: Send>(items: Vec<T>, at_a_time: usize, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let count = items.len();
    let waiting = Mutex::new(items.into_iter().enumerate().collect::<VecDeque<_>>());
    let results: Mutex<Vec<Option<R>>> = Mutex::new((0..count).map(|_| None).collect());
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.pop_front());
    std::thread::scope(|scope| {
        for _ in 0..at_a_time.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while let Some((index, item)) = next() {
                    let result = work(item);
                    if let Ok(mut results) = results.lock() {
                        results[index] = Some(result);
                    }
                }
            });
        }
    });
    // a work that panics takes this thread with it, so none is missing
    results.into_inner().unwrap_or_default().into_iter().flatten().collect()
}
