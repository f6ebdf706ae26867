//! What the hub keeps of a push, so that `bento status` shows the machine like any other: the release that it should run, and a
//! report of what came of that.
//!
//! A machine with an agent reports by itself; for all others, whoever pushed does.

use std::fs;

use anyhow::{Context, Result};
use jiff::Timestamp;

use crate::files;
use crate::host::HostName;
use crate::hub::Hub;
use crate::push::Ending;
use crate::push::deliver::Delivered;
use crate::report::{self, Outcome, Presence, Report, Stage, parse_report_name};
use crate::store_path::StorePath;

/// Within so many seconds nobody expects a machine to poll that does not do so at all.
const NEVER: u64 = u32::MAX as u64;

/// What there is to report of a push.
#[derive(Clone, Debug)]
pub struct Story<'a> {
    /// The machine.
    pub host: &'a HostName,
    /// The release that it was about.
    pub serial: u64,
    /// When it began.
    pub started: Timestamp,
    /// How it ended.
    pub delivered: &'a Delivered,
}

/// Reports how a push ended, in the place of the machine. A machine that was not reached has said nothing, and so nothing is reported.
/// The caller holds the hub's lock.
pub fn report(hub: &Hub, story: &Story<'_>, now: Timestamp) -> Result<()> {
    let Story { host, serial, started, delivered } = story;
    let (outcome, stage, reason) = match &delivered.ending {
        Ending::Pushed { .. } | Ending::Unchanged { .. } => (Outcome::Success, Stage::Done, None),
        Ending::Failed { stage, reason } => (Outcome::Failure, *stage, Some(reason.clone())),
        Ending::Restored { stage, reason, .. } => (Outcome::Rollback, *stage, Some(reason.clone())),
        Ending::Unreachable { .. } | Ending::Lost { .. } => return Ok(()),
    };
    let logs = hub.host(host).logs();
    let attempt = attempt(hub, host, *serial, outcome)?;
    let facts = delivered.facts.as_ref();
    let running: Option<StorePath> = facts.and_then(|facts| facts.running.clone());
    let report = Report {
        schema: report::SCHEMA,
        host: (*host).clone(),
        serial: *serial,
        attempt,
        outcome,
        stage,
        reason,
        note: None,
        wanted: Some(delivered.toplevel.clone()),
        built: None,
        previous: delivered.previous.clone(),
        running: running.clone(),
        started: *started,
        finished: now,
        log: None,
        failed_units: facts.map(|facts| facts.failed_units.clone()).unwrap_or_default(),
        inputs: Vec::new(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
    };
    files::write_atomic(&logs.join(report.file_name()), &report.to_json()?, 0o640, None)?;
    let Some(facts) = facts else { return Ok(()) };
    let presence = Presence {
        schema: report::SCHEMA,
        host: (*host).clone(),
        serial: *serial,
        running,
        booted: facts.booted.clone(),
        reboot_needed: facts.reboot_needed,
        held: false,
        failed_units: Some(facts.failed_units.len() as u64),
        interval: Some(NEVER),
        time: now,
        agent: report.agent,
        signature: None,
    };
    files::write_atomic(&logs.join(report::PRESENCE), &presence.to_json()?, 0o640, None)
}

/// The number of the attempt at a release that is reported: the next one, or that of the last success if this is one again.
fn attempt(hub: &Hub, host: &HostName, serial: u64, outcome: Outcome) -> Result<u64> {
    let logs = hub.host(host).logs();
    let mut last = 0;
    for entry in fs::read_dir(&logs).with_context(|| format!("cannot list {}", logs.display()))? {
        let name = entry.with_context(|| format!("cannot list {}", logs.display()))?.file_name();
        if let Some((of, attempt)) = name.to_str().and_then(parse_report_name)
            && of == serial
        {
            last = last.max(attempt);
        }
    }
    let file = logs.join(report::report_name(serial, last));
    let succeeded = files::read_untrusted(&file, report::LIMIT)
        .and_then(|text| Report::parse(&text))
        .is_ok_and(|report| report.outcome.is_success());
    Ok(if last > 0 && succeeded && outcome.is_success() { last } else { last + 1 })
}
