//! The activation machine: which state an attempt at a release is in, what each state calls for, and where each outcome
//! leads.
//!
//! It is pure. A [`Phase`] says which [`Action`] comes next, the action (elsewhere) ends in an [`Event`], and
//! [`Phase::next`] gives the phase after that, which is on disk before its own action begins. Whatever cuts a run short,
//! the next run reads the phase, tells the machine in which boot and in which system it woke ([`Event::Woke`]), and goes
//! on from there; so every action must be one that can be done again.
//!
//! What holds in every state: the boot entry names a system that has proven itself, so that a power cycle is a way back;
//! and a system on trial is given up by itself unless it was confirmed.

use serde::{Deserialize, Serialize};

use crate::report::{Outcome, Stage};
use crate::store_path::StorePath;

/// What an attempt is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// The hub's release.
    #[default]
    Release,
    /// The release with inputs that the host has updated by itself.
    SelfUpdate,
    /// What ran before, because somebody at the machine wants it back.
    Rollback,
}

impl Goal {
    /// How the attempt ends if the system works.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Release => Outcome::Success,
            Self::SelfUpdate => Outcome::Autoupdate,
            Self::Rollback => Outcome::Rollback,
        }
    }
}

/// An attempt: what it is for, and what holds if it comes to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attempt {
    /// What it is for.
    pub goal: Goal,
    /// How the release had ended before, if it was done with: that stays so if this attempt leaves the host as it was.
    pub settled: Option<Outcome>,
}

impl Attempt {
    /// The phase in which the host is if nothing came of it.
    fn undone(self) -> Phase {
        self.settled.map_or(Phase::Idle, |outcome| Phase::Reported { outcome })
    }

    /// Whether something else is left to be done if this fails, whatever the reason: what holds already, or the release as it
    /// was published.
    fn may_be_left(self) -> bool {
        match self.goal {
            Goal::Release => false,
            Goal::SelfUpdate => self.settled.is_none(),
            Goal::Rollback => true,
        }
    }

    /// The end of an attempt that changed nothing.
    fn refused(self, stage: Stage, reason: String, retry: bool, built: Option<StorePath>) -> Phase {
        let retry = retry || self.may_be_left();
        Phase::Ended { attempt: self, outcome: Outcome::Failure, stage, reason, built, previous: None, retry }
    }
}

/// A system on trial, and what there was before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trial {
    /// What the trial is part of.
    #[serde(default)]
    pub attempt: Attempt,
    /// The system.
    pub toplevel: StorePath,
    /// What ran before: what to go back to.
    pub previous: Option<StorePath>,
    /// What the boot entry names as long as the system has not proven itself: what ran before, or what was booted if that
    /// has another kernel.
    pub standby: Option<StorePath>,
    /// The boot in which this part of the trial takes place, as the kernel names it.
    pub boot: String,
    /// Units that had failed before: nobody blames the new system for them.
    pub failed_units: Vec<String>,
    /// Whether the hub could be reached before. If not, nobody blames the new system for that either.
    #[serde(default = "was_reached")]
    pub hub: bool,
}

/// Releases are tried out only if it could.
fn was_reached() -> bool {
    true
}

/// Where an attempt at a release is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Phase {
    /// Nothing is under way.
    Idle,
    /// The files are there and verified; the build may begin.
    Fetched {
        /// What they are there for.
        #[serde(default)]
        attempt: Attempt,
    },
    /// The system is built; the machine may be looked at.
    Realised {
        /// What it is built for.
        #[serde(default)]
        attempt: Attempt,
        /// It.
        toplevel: StorePath,
    },
    /// The system is being tried out, under the watchdog.
    Testing {
        /// It, and what was before.
        trial: Trial,
    },
    /// The system did not work out: what ran before is being brought back.
    Returning {
        /// It, and what was before.
        trial: Trial,
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: String,
    },
    /// The system did not work out, and a boot has brought back what ran before: what outlives a boot is put right.
    Settling {
        /// The system, and what was before.
        trial: Trial,
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: String,
    },
    /// The system works; it may become the one that is booted.
    Confirmed {
        /// It, and what was before.
        trial: Trial,
        /// Whether it has to prove itself by a boot first, because its kernel is not the one that runs.
        reboot: bool,
    },
    /// The next boot, and only that, will be one of the system; the report of this is missing.
    Staged {
        /// It, and what was before.
        trial: Trial,
    },
    /// The system runs, and waits for the boot that proves it.
    Waiting {
        /// It, and what was before.
        trial: Trial,
    },
    /// The machine is going down, to come up in the system.
    Rebooting {
        /// It, and what was before.
        trial: Trial,
    },
    /// The machine came up in the system, and has to show that it works.
    Proving {
        /// It, and what was before.
        trial: Trial,
    },
    /// The machine is going down, to come up in what was before.
    Leaving {
        /// What is left, and what was before.
        trial: Trial,
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: String,
        /// Whether activating what was before was tried, and failed.
        stuck: bool,
    },
    /// The system is the one that is booted; the report is missing.
    Booted {
        /// It, and what was before.
        trial: Trial,
    },
    /// The attempt ended in the old system; the report is missing.
    Ended {
        /// What it was.
        #[serde(default)]
        attempt: Attempt,
        /// [`Outcome::Failure`] or [`Outcome::Rollback`].
        outcome: Outcome,
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: String,
        /// What was built, if it got that far.
        built: Option<StorePath>,
        /// What ran before.
        previous: Option<StorePath>,
        /// Whether the same release may be tried again.
        retry: bool,
    },
    /// The report is queued; the release is done with.
    Reported {
        /// How it ended.
        outcome: Outcome,
    },
}

/// What a phase calls for. Each can be done again after it was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Build the system.
    Build,
    /// Look at the machine: may a system be tried out now?
    Check,
    /// Arm the watchdog, activate the system for a test, and see whether it works.
    Try,
    /// See that boot entry and profile name what was before, and activate it.
    Return,
    /// See that boot entry and profile name what was before, which a boot has activated.
    Settle,
    /// Make the system the profile's and the boot entry's.
    Keep,
    /// Have the next boot, and only that, be one of the system.
    PrepareBoot,
    /// Have the machine go down.
    Reboot,
    /// See whether the booted system works.
    Prove,
    /// See that profile and boot entry name what was before, and have the machine go down.
    Leave,
    /// Queue the report.
    Report,
}

/// What an action came to, or what a run found when it began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A run began: what was under way was cut short, or waited for a boot.
    Woke {
        /// The boot.
        boot: String,
        /// The system that runs.
        running: Option<StorePath>,
        /// The system that was booted.
        booted: Option<StorePath>,
    },
    /// The files of a release are there and verified.
    Fetched {
        /// What for: the release, or that with the host's own inputs.
        goal: Goal,
    },
    /// The host has updated the inputs of the release that it runs.
    Updated,
    /// Somebody at the machine wants a system back that it ran before.
    Recalled {
        /// It.
        toplevel: StorePath,
        /// What for: a rollback, or the release after one.
        goal: Goal,
    },
    /// Now is the time for the boot that the system waits for.
    RebootDue,
    /// The system was built.
    Built {
        /// It.
        toplevel: StorePath,
    },
    /// Build or check failed; nothing was changed.
    Refused {
        /// Where.
        stage: Stage,
        /// Why.
        reason: String,
        /// Whether it may pass by itself.
        retry: bool,
    },
    /// The machine runs and boots the system already.
    Runs {
        /// It, as its own predecessor.
        trial: Trial,
    },
    /// The machine is fit for a trial.
    Ready {
        /// It.
        trial: Trial,
    },
    /// The system works.
    Healthy {
        /// Whether it has to prove itself by a boot.
        reboot: bool,
    },
    /// The system does not work.
    Unhealthy {
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: String,
    },
    /// What was before is back.
    Restored {
        /// Whether the hub can be reached from there.
        hub: bool,
    },
    /// What was before could not be brought back.
    Stuck {
        /// Why.
        reason: String,
        /// Whether the hub can be reached all the same, and the boot entry names what was before.
        safe: bool,
    },
    /// The system is the one that is booted.
    Kept,
    /// The next boot will be one of the system.
    Prepared,
    /// What [`Action::Settle`], [`Action::Keep`], [`Action::PrepareBoot`], [`Action::Reboot`] or [`Action::Leave`] should
    /// do did not work.
    Failed {
        /// Why.
        reason: String,
    },
    /// The report is queued.
    Told,
}

/// An event that can't happen in a phase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent's state {phase} knows no event {event:?}: this is a defect of bento")]
pub struct Misplaced {
    /// The phase's name.
    pub phase: &'static str,
    /// The event.
    pub event: Box<Event>,
}

impl Phase {
    /// The name that it has on disk and in drawings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fetched { .. } => "fetched",
            Self::Realised { .. } => "realised",
            Self::Testing { .. } => "testing",
            Self::Returning { .. } => "returning",
            Self::Settling { .. } => "settling",
            Self::Confirmed { .. } => "confirmed",
            Self::Staged { .. } => "staged",
            Self::Waiting { .. } => "waiting",
            Self::Rebooting { .. } => "rebooting",
            Self::Proving { .. } => "proving",
            Self::Leaving { .. } => "leaving",
            Self::Booted { .. } => "booted",
            Self::Ended { .. } => "ended",
            Self::Reported { .. } => "reported",
        }
    }

    /// What is to be done now; nothing if the release is done with.
    pub fn action(&self) -> Option<Action> {
        Some(match self {
            Self::Idle | Self::Waiting { .. } | Self::Reported { .. } => return None,
            Self::Fetched { .. } => Action::Build,
            Self::Realised { .. } => Action::Check,
            Self::Testing { .. } => Action::Try,
            Self::Returning { .. } => Action::Return,
            Self::Settling { .. } => Action::Settle,
            Self::Confirmed { reboot: false, .. } => Action::Keep,
            Self::Confirmed { reboot: true, .. } => Action::PrepareBoot,
            Self::Rebooting { .. } => Action::Reboot,
            Self::Proving { .. } => Action::Prove,
            Self::Leaving { .. } => Action::Leave,
            Self::Staged { .. } | Self::Booted { .. } | Self::Ended { .. } => Action::Report,
        })
    }

    /// The system on trial, and what there was before, if one is.
    pub fn trial(&self) -> Option<&Trial> {
        match self {
            Self::Testing { trial }
            | Self::Returning { trial, .. }
            | Self::Settling { trial, .. }
            | Self::Confirmed { trial, .. }
            | Self::Staged { trial }
            | Self::Waiting { trial }
            | Self::Rebooting { trial }
            | Self::Proving { trial }
            | Self::Leaving { trial, .. }
            | Self::Booted { trial } => Some(trial),
            Self::Idle | Self::Fetched { .. } | Self::Realised { .. } | Self::Ended { .. } | Self::Reported { .. } => {
                None
            }
        }
    }

    /// The phase after an event; the same phase if nothing can be done about it in this run. An error is an event that this
    /// phase can't see.
    pub fn next(&self, event: Event) -> Result<Self, Misplaced> {
        if let Event::Woke { boot, running, booted } = event {
            return Ok(self.clone().woken(boot, running.as_ref(), booted.as_ref()));
        }
        let misplaced = |event| Err(Misplaced { phase: self.name(), event: Box::new(event) });
        Ok(match self.clone() {
            Self::Idle => match event {
                Event::Fetched { goal } => Self::Fetched { attempt: Attempt { goal, settled: None } },
                Event::Recalled { toplevel, goal } => {
                    Self::Realised { attempt: Attempt { goal, settled: None }, toplevel }
                }
                event => return misplaced(event),
            },
            Self::Reported { outcome } => match event {
                Event::Fetched { goal } => Self::Fetched { attempt: Attempt { goal, settled: None } },
                Event::Updated => Self::Fetched { attempt: Attempt { goal: Goal::SelfUpdate, settled: Some(outcome) } },
                Event::Recalled { toplevel, goal } => {
                    Self::Realised { attempt: Attempt { goal, settled: Some(outcome) }, toplevel }
                }
                event => return misplaced(event),
            },
            Self::Fetched { attempt } => match event {
                Event::Built { toplevel } => Self::Realised { attempt, toplevel },
                Event::Refused { stage, reason, retry } => attempt.refused(stage, reason, retry, None),
                event => return misplaced(event),
            },
            Self::Realised { attempt, toplevel } => match event {
                Event::Ready { trial } => Self::Testing { trial },
                Event::Runs { trial } => Self::Booted { trial },
                Event::Refused { stage, reason, retry } => attempt.refused(stage, reason, retry, Some(toplevel)),
                event => return misplaced(event),
            },
            Self::Testing { trial } => match event {
                Event::Healthy { reboot } => Self::Confirmed { trial, reboot },
                Event::Unhealthy { stage, reason } => Self::Returning { trial, stage, reason },
                event => return misplaced(event),
            },
            Self::Returning { trial, stage, reason } => match event {
                Event::Restored { hub } => trial.restored(stage, reason, hub),
                Event::Stuck { reason: why, safe } => {
                    let reason = format!("{reason}; going back failed too: {why}");
                    if safe || trial.previous.is_none() {
                        // the host is not as it was
                        let attempt = Attempt { settled: None, ..trial.attempt };
                        Trial { attempt, ..trial }.ended(Outcome::Failure, stage, reason, false)
                    } else {
                        // the boot entry still names what was before
                        Self::Leaving { trial, stage, reason, stuck: true }
                    }
                }
                event => return misplaced(event),
            },
            Self::Settling { trial, stage, reason } => match event {
                Event::Restored { hub } => trial.restored(stage, reason, hub),
                // it runs what it should, and another restart would mend nothing: the next run tries again
                Event::Failed { .. } => return Ok(self.clone()),
                event => return misplaced(event),
            },
            Self::Confirmed { trial, reboot } => match event {
                Event::Kept if !reboot => Self::Booted { trial },
                Event::Prepared if reboot => Self::Staged { trial },
                Event::Failed { reason } => Self::Returning { trial, stage: Stage::Boot, reason },
                event => return misplaced(event),
            },
            Self::Staged { trial } => match event {
                Event::Told => Self::Waiting { trial },
                event => return misplaced(event),
            },
            Self::Waiting { trial } => match event {
                Event::Fetched { goal } => Self::Fetched { attempt: Attempt { goal, settled: None } },
                Event::Recalled { .. } => {
                    let reason = format!("somebody at the machine gave up {}", trial.toplevel);
                    Self::Returning { trial, stage: Stage::Reboot, reason }
                }
                Event::RebootDue => Self::Rebooting { trial },
                event => return misplaced(event),
            },
            Self::Rebooting { trial } => match event {
                Event::Failed { .. } => Self::Waiting { trial },
                event => return misplaced(event),
            },
            Self::Proving { trial } => match event {
                Event::Healthy { .. } => Self::Confirmed { trial, reboot: false },
                Event::Unhealthy { stage, reason } => Self::Leaving { trial, stage, reason, stuck: false },
                event => return misplaced(event),
            },
            Self::Leaving { trial, stage, reason, stuck } => match event {
                Event::Failed { reason: why } => {
                    if stuck {
                        // neither way works now, and nothing else is left: the next run tries again
                        return Ok(self.clone());
                    }
                    let reason = format!("{reason}; the machine could not be restarted: {why}");
                    Self::Returning { trial, stage, reason }
                }
                event => return misplaced(event),
            },
            Self::Booted { trial } => match event {
                Event::Told => Self::Reported { outcome: trial.attempt.goal.outcome() },
                event => return misplaced(event),
            },
            Self::Ended { attempt, outcome, retry, .. } => match event {
                Event::Told if retry || attempt.settled.is_some() => attempt.undone(),
                Event::Told => Self::Reported { outcome },
                event => return misplaced(event),
            },
        })
    }

    /// The phase from which a run goes on that began in this boot, in this system.
    fn woken(self, boot: String, running: Option<&StorePath>, booted: Option<&StorePath>) -> Self {
        let Some(trial) = self.trial().cloned() else {
            return match self {
                // nothing was changed yet: the poll begins anew
                Self::Fetched { attempt } | Self::Realised { attempt, .. } => attempt.undone(),
                other => other,
            };
        };
        let same_boot = trial.boot == boot;
        let in_it = running == Some(&trial.toplevel);
        // Only a boot makes a system whole: where an activation was cut short, the link to what runs may lead to the one system
        // while units are still the other's. So it takes a boot since the state was written, or one after which nothing was
        // activated.
        let clean = (!same_boot || matches!(self, Self::Settling { .. }))
            && trial.previous.is_some()
            && running == trial.previous.as_ref()
            && booted == running;
        let trial = Trial { boot, ..trial };
        let back = |trial, stage, reason| match clean {
            true => Self::Settling { trial, stage, reason },
            false => Self::Returning { trial, stage, reason },
        };
        let came_back = || match running {
            Some(system) => format!("the machine restarted by itself, and came up in {system}"),
            None => "the machine restarted by itself, and came up in an unknown system".to_owned(),
        };
        match self {
            Self::Testing { .. } => {
                let toplevel = &trial.toplevel;
                let reason = if same_boot {
                    format!("the agent was interrupted while it tried out {toplevel}")
                } else {
                    format!("{} while {toplevel} was tried out", came_back())
                };
                back(trial, Stage::Activate, reason)
            }
            Self::Returning { stage, reason, .. } | Self::Settling { stage, reason, .. } => back(trial, stage, reason),
            // where a power cut undid what was confirmed, the release begins anew
            Self::Confirmed { .. } if !same_boot && !in_it => {
                if trial.attempt == Attempt::default() {
                    return Phase::Idle;
                }
                // nothing comes after that would set right what is half done
                let reason = format!("{}, before {} was made permanent", came_back(), trial.toplevel);
                back(trial, Stage::Boot, reason)
            }
            Self::Confirmed { reboot: true, .. } if !same_boot => Self::Proving { trial },
            Self::Confirmed { reboot, .. } => Self::Confirmed { trial, reboot },
            Self::Staged { .. } if same_boot => Self::Staged { trial },
            Self::Waiting { .. } if same_boot => Self::Waiting { trial },
            Self::Rebooting { .. } if same_boot => Self::Rebooting { trial },
            Self::Staged { .. } | Self::Waiting { .. } | Self::Rebooting { .. } | Self::Proving { .. } if in_it => {
                Self::Proving { trial }
            }
            Self::Staged { .. } | Self::Waiting { .. } | Self::Rebooting { .. } | Self::Proving { .. } => {
                let reason = format!("{} did not come up for good: {}", trial.toplevel, came_back());
                back(trial, Stage::Boot, reason)
            }
            Self::Leaving { stage, reason, stuck, .. } if same_boot => Self::Leaving { trial, stage, reason, stuck },
            // never a second restart for the same reason: what is left to do is done without
            Self::Leaving { stage, reason, .. } => back(trial, stage, reason),
            Self::Booted { .. } if !same_boot && !in_it => {
                let reason = format!("{}, not in {}", came_back(), trial.toplevel);
                back(trial, Stage::Boot, reason)
            }
            Self::Booted { .. } => Self::Booted { trial },
            Self::Idle | Self::Fetched { .. } | Self::Realised { .. } | Self::Ended { .. } | Self::Reported { .. } => {
                self
            }
        }
    }
}

impl Trial {
    /// Of the units that have failed now, those that had not before.
    pub fn new_failures(&self, mut failed: Vec<String>) -> Vec<String> {
        failed.retain(|unit| !self.failed_units.contains(unit));
        failed
    }

    /// The end of this trial in what ran before.
    fn restored(self, stage: Stage, reason: String, hub: bool) -> Phase {
        // a hub that is out of reach from the old system as well is down: not the release's fault
        let down = stage == Stage::Confirm && !hub && self.hub;
        let reason = if down { format!("the hub is out of reach from the old system too: {reason}") } else { reason };
        let retry = down || self.attempt.may_be_left();
        self.ended(Outcome::Rollback, stage, reason, retry)
    }

    /// The end of this trial.
    fn ended(self, outcome: Outcome, stage: Stage, reason: String, retry: bool) -> Phase {
        let (attempt, built) = (self.attempt, Some(self.toplevel));
        Phase::Ended { attempt, outcome, stage, reason, built, previous: self.previous, retry }
    }
}
