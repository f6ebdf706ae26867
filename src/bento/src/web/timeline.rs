//! A timeline: for each lane which version there was when, as a picture that needs no script.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};

use crate::report::Outcome;
use crate::status::history::Attempt;
use crate::status::table::short;

/// The picture's width and that of the names before the lanes, and the heights of a lane and of the axis, in its own units.
const WIDTH: f64 = 1000.0;
const NAMES: f64 = 150.0;
const LANE: f64 = 26.0;
const AXIS: f64 = 22.0;
/// How many points of time are named below.
const TICKS: i32 = 5;
/// How many colours there are for versions.
const COLOURS: usize = 8;

/// One line of the picture.
#[derive(Debug)]
pub(super) struct Lane {
    /// What is written before it.
    pub(super) name: String,
    /// Where that leads to.
    pub(super) link: Option<String>,
    /// From when there was which version, in order.
    pub(super) versions: Vec<(Timestamp, String)>,
    /// Attempts: when one ended, how, and in words.
    pub(super) attempts: Vec<(Timestamp, Outcome, String)>,
}

impl Lane {
    /// What a host ran, as its reports say.
    pub(super) fn of_attempts(name: String, link: Option<String>, attempts: &[Attempt]) -> Self {
        let mut versions: Vec<(Timestamp, String)> = Vec::new();
        let mut add = |time: Timestamp, version: &str| {
            if versions.last().is_none_or(|(_, last)| last != version) {
                versions.push((time, version.to_owned()));
            }
        };
        for Attempt { report, ended } in attempts {
            // what it ran while it was at it
            if let Some(previous) = &report.previous {
                add(report.started.min(*ended), previous.base_name());
            }
            if let Some(running) = &report.running {
                add(*ended, running.base_name());
            }
        }
        let words = |report: &crate::report::Report| {
            format!("release {}, attempt {}: {}", report.serial, report.attempt, report.outcome.word())
        };
        let attempts = attempts.iter().map(|attempt| (attempt.ended, attempt.report.outcome, words(&attempt.report)));
        Self { name, link, versions, attempts: attempts.collect() }
    }

    fn begin(&self) -> Option<Timestamp> {
        self.versions.iter().map(|(time, _)| *time).chain(self.attempts.iter().map(|(time, ..)| *time)).min()
    }
}

/// The lanes over the last `longest`, or as far back as they go. There may be nothing to show.
pub(super) fn render(lanes: &[Lane], longest: SignedDuration, now: Timestamp) -> Option<Markup> {
    let from = lanes.iter().filter_map(Lane::begin).min()?;
    let from = from.max(now.checked_sub(longest).unwrap_or(from)).min(now);
    let span = now.duration_since(from).as_secs_f64().max(1.0);
    let x = |time: Timestamp| {
        let part = time.duration_since(from).as_secs_f64() / span;
        NAMES + part.clamp(0.0, 1.0) * (WIDTH - NAMES - 8.0)
    };
    let colours = colours(lanes);
    #[allow(clippy::cast_precision_loss, reason = "there are not that many hosts")]
    let y = |lane: usize| lane as f64 * LANE;
    let height = y(lanes.len()) + AXIS;
    let ticks: Vec<Timestamp> = (0..=TICKS)
        .map(|tick| {
            from + SignedDuration::try_from_secs_f64(span * f64::from(tick) / f64::from(TICKS)).unwrap_or_default()
        })
        .collect();
    // days where it spans several, and else the time
    let format = if span > 2.0 * 86400.0 { "%Y-%m-%d" } else { "%m-%d %H:%M" };
    Some(html! {
        svg.timeline viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label="Versions over time" {
            @for (index, tick) in ticks.iter().enumerate() {
                line.tick x1=(number(x(*tick))) x2=(number(x(*tick))) y1="0" y2=(number(y(lanes.len()))) {}
                text.axis x=(number(x(*tick))) y=(number(height - 6.0))
                    text-anchor=(match index { 0 => "start", last if last == ticks.len() - 1 => "end", _ => "middle" }) {
                    (tick.strftime(format))
                }
            }
            @for (index, lane) in lanes.iter().enumerate() {
                @match &lane.link {
                    Some(link) => a href=(link) { (name(&lane.name, y(index))) },
                    None => (name(&lane.name, y(index))),
                }
                @for (begin, end, version) in stretches(lane, from, now) {
                    rect class=(format!("v{}", colours[version])) x=(number(x(begin))) y=(number(y(index) + 5.0))
                        width=(number((x(end) - x(begin)).max(1.0))) height=(number(LANE - 10.0)) {
                        title { (version) " from " (begin.strftime("%Y-%m-%d %H:%M:%S")) " UTC" }
                    }
                    @if x(end) - x(begin) > 70.0 {
                        text x=(number(x(begin) + 5.0)) y=(number(y(index) + 17.0)) { (short(version)) }
                    }
                }
                @for (time, outcome, words) in lane.attempts.iter().filter(|(time, ..)| *time >= from) {
                    circle class=(format!("outcome-{}", outcome.word())) cx=(number(x(*time))) cy=(number(y(index) + 5.0)) r="4" {
                        title { (words) ", " (time.strftime("%Y-%m-%d %H:%M:%S")) " UTC" }
                    }
                }
            }
        }
    })
}

/// A lane's name.
fn name(text: &str, y: f64) -> Markup {
    html! { text x="0" y=(number(y + 17.0)) { (text) } }
}

/// The stretches of time of a lane's versions that reach into what is shown.
fn stretches(lane: &Lane, from: Timestamp, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp, &str)> {
    let ends = lane.versions.iter().skip(1).map(|(time, _)| *time).chain([now]);
    let stretches = lane.versions.iter().zip(ends);
    stretches.map(|((begin, version), end)| (*begin, end, version.as_str())).filter(move |(_, end, _)| *end >= from)
}

/// The colour of each version, the same in all lanes: the next one for each that is new, so that neighbours differ.
fn colours(lanes: &[Lane]) -> BTreeMap<&str, usize> {
    let mut versions: Vec<(Timestamp, &str)> =
        lanes.iter().flat_map(|lane| &lane.versions).map(|(time, version)| (*time, version.as_str())).collect();
    versions.sort_unstable();
    let mut colours = BTreeMap::new();
    for (_, version) in versions {
        let next = colours.len() % COLOURS;
        colours.entry(version).or_insert(next);
    }
    colours
}

/// A coordinate, with no more digits than can be seen.
fn number(value: f64) -> String {
    format!("{value:.1}")
}
