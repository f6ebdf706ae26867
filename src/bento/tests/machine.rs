//! The activation machine in a model of a host: every interleaving of what its actions may come to with kills of the agent,
//! power cuts and failing programs is walked through, and wherever it stops it must end well.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;

use bento::agent::machine::{Action, Attempt, Event, Goal, Phase, Trial};
use bento::report::{Outcome, Stage};
use bento::store_path::StorePath;

/// What the new system is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Good,
    /// The hub can't be reached from it.
    Deaf,
    /// It works when it is activated, but when it is booted the hub can't be reached.
    DeafWhenBooted,
    /// It works when it is activated; its kernel panics, and the machine restarts.
    Panics,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    kind: Kind,
    /// What it is tried out for, and how the release had ended before.
    goal: Goal,
    settled: Option<Outcome>,
    /// Whether that has begun.
    begun: bool,
    /// Whether the new system has another kernel.
    new_kernel: bool,
    /// Whether it may restart by itself for that.
    reboots: bool,
    /// What is on disk.
    phase: Phase,
    profile: char,
    default: char,
    once: bool,
    /// A change of the boot entry and the profile is under way, or was cut short.
    marked: bool,
    /// What is lost in a power cut.
    boot: u32,
    running: char,
    booted: char,
    watchdog: bool,
    /// The machine came up in what was before since the trial began, and nothing was activated since.
    clean: bool,
    /// What was before is the profile's, and no change of it was cut short: there is nothing to change in the boot entry.
    skips: bool,
    /// The new system was seen to work, as it would be booted.
    proven: bool,
    /// The agent is at work, having done so many parts of the phase's action; `None` while it does not run.
    done: Option<usize>,
    /// How many more things may go wrong.
    faults: u32,
}

/// One part of an action.
#[derive(Clone, Copy)]
enum Part {
    Arm,
    Run(char),
    /// See whether what was before is the one that is booted: if so, the next parts change nothing.
    Look,
    Mark(bool),
    Profile(char),
    Default(char),
    Once(bool),
}

/// Has all boots be of one system; with the profile first, as that is what boot entries are made from.
fn boots(system: char) -> Vec<Part> {
    vec![Part::Mark(true), Part::Profile(system), Part::Default(system), Part::Once(false), Part::Mark(false)]
}

/// The same for what was before, where that is not so already.
fn boots_as_before() -> Vec<Part> {
    [vec![Part::Look], boots('A')].concat()
}

fn path(name: char) -> StorePath {
    StorePath::new(format!("/nix/store/{}-nixos-system-{name}", "0".repeat(32))).unwrap()
}

fn reason() -> String {
    "it went wrong".to_owned()
}

impl Host {
    fn new(kind: Kind, new_kernel: bool, reboots: bool, faults: u32) -> Self {
        Self {
            kind,
            goal: Goal::Release,
            settled: None,
            begun: false,
            new_kernel,
            reboots,
            phase: Phase::Idle,
            profile: 'A',
            default: 'A',
            once: false,
            marked: false,
            boot: 1,
            running: 'A',
            booted: 'A',
            watchdog: false,
            clean: false,
            skips: false,
            proven: false,
            done: Some(0),
            faults,
        }
    }

    /// The same, for another goal than a new release.
    fn with_goal(self, goal: Goal, settled: Option<Outcome>) -> Self {
        let phase = settled.map_or(Phase::Idle, |outcome| Phase::Reported { outcome });
        Self { goal, settled, phase, ..self }
    }

    /// Whether the hub can be reached.
    fn hears(&self) -> bool {
        match self.kind {
            Kind::Good | Kind::Panics => true,
            Kind::Deaf => self.running == 'A',
            Kind::DeafWhenBooted => self.running == 'A' || self.booted == 'A',
        }
    }

    fn trial(&self) -> Trial {
        let attempt = match &self.phase {
            Phase::Realised { attempt, .. } => *attempt,
            _ => Attempt { goal: self.goal, settled: self.settled },
        };
        Trial {
            attempt,
            toplevel: path('B'),
            previous: Some(path('A')),
            standby: Some(path('A')),
            boot: self.boot.to_string(),
            failed_units: Vec::new(),
            hub: true,
        }
    }

    /// The parts of what the phase calls for, in order.
    fn parts(&self) -> Vec<Part> {
        use Part::{Arm, Default, Mark, Once, Profile, Run};
        match self.phase.action() {
            // what is half switched is neither
            Some(Action::Try) => vec![Arm, Run('?'), Run('B')],
            Some(Action::Return) => [boots_as_before(), vec![Run('?'), Run('A')]].concat(),
            Some(Action::Settle | Action::Leave) => boots_as_before(),
            Some(Action::Keep) => boots('B'),
            Some(Action::PrepareBoot) => vec![Mark(true), Profile('B'), Default('A'), Once(true), Mark(false)],
            _ => Vec::new(),
        }
    }

    /// What the phase's action may come to when all its parts are done.
    fn events(&self) -> Vec<Event> {
        let trial = self.trial();
        let refused = |stage| Event::Refused { stage, reason: reason(), retry: true };
        let unhealthy = |stage| Event::Unhealthy { stage, reason: reason() };
        match self.phase.action() {
            None if matches!(self.phase, Phase::Waiting { .. }) => vec![Event::RebootDue],
            None => vec![match (self.goal, self.settled) {
                (Goal::SelfUpdate, Some(_)) => Event::Updated,
                (Goal::Rollback, _) | (_, Some(_)) => Event::Recalled { toplevel: path('B'), goal: self.goal },
                (goal, None) => Event::Fetched { goal },
            }],
            Some(Action::Build) => vec![Event::Built { toplevel: path('B') }, refused(Stage::Build)],
            // somebody at the machine goes back although the hub is away
            Some(Action::Check) if self.goal == Goal::Rollback && self.kind == Kind::Good => {
                let alone = Trial { hub: false, ..trial.clone() };
                vec![Event::Ready { trial }, Event::Ready { trial: alone }, refused(Stage::Activate)]
            }
            Some(Action::Check) => vec![Event::Ready { trial }, refused(Stage::Activate)],
            Some(Action::Try | Action::Prove) if !self.hears() => vec![unhealthy(Stage::Confirm)],
            Some(Action::Try) => vec![Event::Healthy { reboot: self.new_kernel }, unhealthy(Stage::Activate)],
            Some(Action::Prove) => vec![Event::Healthy { reboot: false }, unhealthy(Stage::Activate)],
            Some(Action::Return | Action::Settle) => {
                vec![Event::Restored { hub: true }, Event::Restored { hub: false }]
            }
            Some(Action::Keep) => vec![Event::Kept],
            Some(Action::PrepareBoot) => vec![Event::Prepared],
            Some(Action::Reboot | Action::Leave) => Vec::new(),
            Some(Action::Report) => vec![Event::Told],
        }
    }

    /// What it comes to when a program that has to work doesn't.
    fn failures(&self) -> Vec<Event> {
        match self.phase.action() {
            Some(Action::Settle | Action::Keep | Action::PrepareBoot | Action::Reboot | Action::Leave) => {
                vec![Event::Failed { reason: reason() }]
            }
            Some(Action::Return) => {
                let safe = self.hears() && self.default == 'A' && !self.once;
                vec![Event::Stuck { reason: reason(), safe }]
            }
            _ => Vec::new(),
        }
    }

    /// With one part of the action done.
    fn with_part(mut self, part: Part) -> Self {
        match part {
            Part::Arm => self.watchdog = true,
            Part::Run(system) => {
                self.running = system;
                self.clean = false;
            }
            Part::Look => self.skips = self.profile == 'A' && !self.marked,
            _ if self.skips => {}
            Part::Mark(marked) => self.marked = marked,
            Part::Profile(system) => self.profile = system,
            Part::Default(system) => self.default = system,
            Part::Once(once) => self.once = once,
        }
        self.done = self.done.map(|done| done + 1);
        self
    }

    /// In the phase that an event leads to.
    fn after(mut self, event: Event) -> Self {
        let next = self.phase.next(event).unwrap();
        let moves = next != self.phase;
        self.phase = next;
        self.begun = true;
        self.proven |= matches!(self.phase, Phase::Confirmed { reboot: false, .. });
        self.clean &= !matches!(self.phase, Phase::Testing { .. });
        self.skips = false;
        self.done = Some(0);
        if self.phase.action().is_none() {
            self.watchdog = false;
        }
        if self.phase.action().is_none() || !moves {
            self.done = None;
        }
        self
    }

    /// As it comes up.
    fn restarted(mut self) -> Self {
        // few of them are remembered at a time
        self.boot = (self.boot + 1) % 8;
        let system = if self.once { 'B' } else { self.default };
        self.once = false;
        if system == 'B' && self.kind == Kind::Panics {
            return self.restarted();
        }
        self.running = system;
        self.booted = system;
        self.watchdog = false;
        self.clean = system == 'A';
        self.skips = false;
        self.done = None;
        self
    }

    /// With a new run of the agent: by its timer, or by the watchdog.
    fn woken(self) -> Self {
        let running = (self.running != '?').then(|| path(self.running));
        let event = Event::Woke { boot: self.boot.to_string(), running, booted: Some(path(self.booted)) };
        let phase = self.phase.next(event).unwrap();
        Self { phase, skips: false, done: Some(0), ..self }
    }

    /// Whether there is nothing left to do.
    fn over(&self) -> bool {
        match &self.phase {
            Phase::Reported { .. } => self.begun,
            // it goes on with the next boot
            Phase::Waiting { trial } => !self.reboots && trial.boot == self.boot.to_string(),
            _ => false,
        }
    }

    /// What may happen next if nothing goes wrong.
    fn regular(&self) -> Vec<(String, Self)> {
        let Some(done) = self.done else {
            // after the report a run finds nothing to do
            return if self.over() { Vec::new() } else { vec![("woke".to_owned(), self.clone().woken())] };
        };
        if self.over() {
            return Vec::new();
        }
        if let Some(part) = self.parts().get(done) {
            return vec![("part".to_owned(), self.clone().with_part(*part))];
        }
        if matches!(self.phase.action(), Some(Action::Reboot | Action::Leave)) {
            return vec![("restart".to_owned(), self.clone().restarted())];
        }
        self.events().into_iter().map(|event| (name(&event), self.clone().after(event))).collect()
    }

    /// What may happen next if something goes wrong.
    fn faulty(&self) -> Vec<(String, Self)> {
        if self.faults == 0 {
            return Vec::new();
        }
        let hurt = Self { faults: self.faults - 1, ..self.clone() };
        let mut next = vec![("power cut".to_owned(), hurt.clone().restarted())];
        // somebody gives it up before it was booted; what they start looks in which boot it is first
        if matches!(&self.phase, Phase::Waiting { trial } if trial.boot == self.boot.to_string()) {
            let event = Event::Recalled { toplevel: path('A'), goal: Goal::Rollback };
            next.push((name(&event), hurt.clone().after(event)));
        }
        if self.done.is_some() {
            next.push(("kill".to_owned(), Self { done: None, ..hurt.clone() }));
            next.extend(hurt.failures().into_iter().map(|event| (name(&event), hurt.clone().after(event))));
        }
        next
    }

    /// What must hold at every moment.
    fn check(&self) {
        assert!(self.default == 'A' || self.proven, "boots what is not proven: {self:?}");
        assert!(self.kind != Kind::Deaf || self.default == 'A', "boots what is deaf: {self:?}");
        let never = matches!(self.kind, Kind::DeafWhenBooted | Kind::Panics);
        assert!(!never || self.default == 'A', "boots what does not come up: {self:?}");
        if matches!(self.phase, Phase::Testing { .. }) && self.running != 'A' && self.booted == 'A' {
            assert!(self.watchdog, "tries a system without a watchdog: {self:?}");
        }
        if self.done.is_some() {
            match self.phase.action() {
                Some(Action::Return) => {
                    assert!(!self.clean || self.running != 'A', "activates what was booted: {self:?}")
                }
                Some(Action::Settle) => assert!(self.clean, "trusts what no boot has activated: {self:?}"),
                _ => {}
            }
        }
    }

    /// What must hold when all is done.
    fn check_end(&self) {
        let systems = (self.running, self.profile, self.default, self.once);
        match self.phase {
            // nothing came of it, and what held before holds still
            Phase::Reported { outcome } if self.settled == Some(outcome) && self.running == 'A' => {
                assert_eq!(systems, ('A', 'A', 'A', false), "{self:?}");
            }
            Phase::Reported { outcome } if outcome == self.goal.outcome() => {
                assert_eq!(systems, ('B', 'B', 'B', false), "{self:?}");
                assert!(self.hears(), "lost: {self:?}");
            }
            Phase::Reported { outcome: Outcome::Rollback } => assert_eq!(systems, ('A', 'A', 'A', false), "{self:?}"),
            // it works, and the next boot shows whether it does then
            Phase::Waiting { .. } => assert_eq!(systems, ('B', 'B', 'A', true), "{self:?}"),
            // going back failed, but the hub is in reach: somebody can help
            Phase::Reported { outcome: Outcome::Failure } => assert!(self.hears(), "lost: {self:?}"),
            _ => panic!("no end: {self:?}"),
        }
        assert!(!self.watchdog, "{self:?}");
    }
}

/// An event's name in drawings.
fn name(event: &Event) -> String {
    match event {
        Event::Woke { .. } => "woke",
        Event::Fetched { .. } => "fetched",
        Event::Updated => "updated",
        Event::Recalled { .. } => "recalled",
        Event::RebootDue => "reboot due",
        Event::Built { .. } => "built",
        Event::Refused { retry: true, .. } => "refused for now",
        Event::Refused { .. } => "refused",
        Event::Runs { .. } => "runs already",
        Event::Ready { .. } => "ready",
        Event::Healthy { reboot: true } => "healthy, reboot",
        Event::Healthy { .. } => "healthy",
        Event::Unhealthy { .. } => "unhealthy",
        Event::Restored { .. } => "restored",
        Event::Stuck { safe: true, .. } => "stuck, but safe",
        Event::Stuck { .. } => "stuck",
        Event::Kept => "kept",
        Event::Prepared => "prepared",
        Event::Failed { .. } => "failed",
        Event::Told => "told",
    }
    .to_owned()
}

/// Every state that can be reached, with those that lead to it without another fault.
fn explore(faults: u32) -> HashSet<Host> {
    let mut seen = HashSet::new();
    let mut open: Vec<Host> = [Kind::Good, Kind::Deaf].map(|kind| Host::new(kind, false, false, faults)).into();
    for kind in [Kind::Good, Kind::Deaf, Kind::DeafWhenBooted, Kind::Panics] {
        open.extend([false, true].map(|reboots| Host::new(kind, true, reboots, faults)));
    }
    let goals = [
        (Goal::Release, Some(Outcome::Rollback)),
        (Goal::SelfUpdate, None),
        (Goal::SelfUpdate, Some(Outcome::Success)),
        (Goal::Rollback, None),
        (Goal::Rollback, Some(Outcome::Success)),
    ];
    let releases = open.clone();
    open.extend(
        goals
            .into_iter()
            .flat_map(|(goal, settled)| releases.iter().map(move |host| host.clone().with_goal(goal, settled))),
    );
    while let Some(host) = open.pop() {
        if seen.contains(&host) {
            continue;
        }
        host.check();
        open.extend(host.regular().into_iter().chain(host.faulty()).map(|(_, next)| next));
        seen.insert(host);
    }
    seen
}

#[test]
fn nothing_boots_unproven_is_tried_without_a_watchdog_or_is_activated_after_its_own_boot() {
    let seen = explore(3);
    // the walk is worth something only if it got everywhere
    let phases: BTreeSet<&str> = seen.iter().map(|host| host.phase.name()).collect();
    assert_eq!(phases.len(), 15, "{phases:?}");
    assert!(seen.len() > 5_000, "{}", seen.len());
}

#[test]
fn from_every_moment_it_ends_in_a_system_that_reports() {
    // for each state, the most steps to an end if nothing else goes wrong and the attempt isn't made anew
    let mut steps: HashMap<Host, u32> = HashMap::new();
    let mut ends = 0;
    for host in explore(3) {
        let mut open = vec![host];
        while let Some(host) = open.last().cloned() {
            let next: Vec<Host> = host.regular().into_iter().map(|(_, next)| next).collect();
            let anew = |next: &Host| next.phase == Phase::Idle && next.done.is_none();
            let unknown: Vec<Host> =
                next.iter().filter(|next| !anew(next) && !steps.contains_key(next)).cloned().collect();
            if unknown.is_empty() {
                if next.is_empty() {
                    host.check_end();
                    ends += 1;
                }
                let most = next.iter().filter_map(|next| steps.get(next)).max().map_or(0, |most| most + 1);
                steps.insert(host, most);
                open.pop();
            } else {
                assert!(open.len() < 200, "does not end: {host:?}");
                open.extend(unknown);
            }
        }
    }
    assert!(ends > 100, "{ends}");
    assert!(steps.values().all(|steps| *steps < 120));
}

#[test]
fn an_event_out_of_place_is_an_error_and_changes_nothing() {
    let trial = Host::new(Kind::Good, false, false, 0).trial();
    let idle = Phase::Idle;
    let error = idle.next(Event::Kept).unwrap_err();
    assert_eq!(error.phase, "idle");
    assert_eq!(*error.event, Event::Kept);
    let testing = Phase::Testing { trial };
    assert!(testing.next(Event::Told).is_err());
    assert!(testing.next(Event::Prepared).is_err());
}

/// The drawing of what the machine does: every transition that the walk takes.
fn drawing() -> String {
    let mut lines = BTreeSet::new();
    for host in explore(3) {
        for (event, next) in host.regular().into_iter().chain(host.faulty()) {
            let (from, to) = (host.phase.name(), next.phase.name());
            if from == to || ["part", "kill", "power cut", "restart"].contains(&event.as_str()) {
                continue;
            }
            lines.insert(format!("    {from} --> {to}: {event}"));
        }
    }
    let mut text = String::from("stateDiagram-v2\n    [*] --> idle\n");
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
    text
}

/// `docs/src/agent.md` holds the drawing; with `BENTO_BLESS` set, this puts it there.
#[test]
fn the_drawing_in_the_book_is_what_the_machine_does() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/agent.md");
    let page = std::fs::read_to_string(file).unwrap();
    let (head, rest) = page.split_once("```mermaid\n").unwrap();
    let (drawn, tail) = rest.split_once("```\n").unwrap();
    let drawing = drawing();
    if std::env::var_os("BENTO_BLESS").is_some() {
        std::fs::write(file, format!("{head}```mermaid\n{drawing}```\n{tail}")).unwrap();
    } else {
        assert_eq!(drawn, drawing, "set BENTO_BLESS=1 to draw it anew");
    }
}
