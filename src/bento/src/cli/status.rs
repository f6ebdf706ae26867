//! `bento status`: where each host stands.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;

use crate::fleet::config::Config;
use crate::hub::Hub;
use crate::status::watch::Watch;
use crate::status::{self, Expected, HostStatus, metrics, table};

/// How often the table is drawn anew on a terminal, for its times, when nothing changes.
const REDRAW: u16 = 5;

/// Show where each host stands
///
/// On a terminal the table stays, and is drawn anew when something changes; otherwise it is printed once.
#[derive(Args)]
pub(super) struct Status {
    /// Show the table for ever, and draw it anew at least every so many seconds
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    delay: Option<u16>,
    /// Show the table once, also on a terminal
    #[arg(long, conflicts_with = "delay")]
    once: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "delay")]
    json: bool,
    /// Print the result as metrics for Prometheus
    #[arg(long, conflicts_with_all = ["delay", "json"])]
    metrics: bool,
    /// Exit with status 1 if a host needs a person to look after it
    #[arg(long, conflicts_with = "delay")]
    check: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let hub = config.hub(&dir)?;
        let expected = expected(&config)?;
        let read = || status::status(&hub, &expected, Timestamp::now());
        let terminal = std::io::stdout().is_terminal();
        if self.delay.is_some() || (terminal && !self.once && !self.json && !self.metrics && !self.check) {
            return stay(&hub, read, Duration::from_secs(self.delay.unwrap_or(REDRAW).into()), terminal);
        }
        let hosts = read()?;
        if self.json {
            super::print_json(&hosts)?;
        } else if self.metrics {
            super::print(&metrics::render(&hosts, 0))?;
        } else {
            super::print(&table::render(
                &hosts,
                Timestamp::now(),
                super::coloured(terminal),
                window().map(|(width, _)| width),
            ))?;
        }
        let attention = self.check && hosts.iter().any(|host| host.state.needs_attention());
        Ok(if attention { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// What a fleet's settings say about what hosts say.
pub(super) fn expected(config: &Config) -> Result<Expected> {
    Ok(Expected { interval: config.status.interval_seconds(), keys: config.host_keys()? })
}

/// Shows the table for as long as someone looks.
fn stay(hub: &Hub, read: impl Fn() -> Result<Vec<HostStatus>>, delay: Duration, terminal: bool) -> Result<ExitCode> {
    let watch = Watch::new(hub)?;
    loop {
        let size = window();
        let text = table::render(&read()?, Timestamp::now(), super::coloured(terminal), size.map(|(width, _)| width));
        if terminal {
            // to the upper left corner, and nothing left of what was below; a line that is too long is cut, or it would be two
            let text = shown(&text, size.map(|(_, height)| height));
            super::print(&format!("\x1b[?7l\x1b[H\x1b[2J{text}\x1b[?7h"))?;
        } else if !super::print_on(&text)? {
            return Ok(ExitCode::SUCCESS);
        }
        watch.wait(hub, delay)?;
    }
}

/// The cells and lines of the window that standard output is shown in, if it is a terminal.
fn window() -> Option<(usize, usize)> {
    let (width, height) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some((width.0.into(), height.0.into()))
}

/// The lines of a text that fit into so many, with a last one that says how many don't.
fn shown(text: &str, height: Option<usize>) -> String {
    let lines: Vec<&str> = text.lines().collect();
    match height {
        Some(height) if lines.len() >= height && height > 2 => {
            let rest = lines.len() - (height - 2);
            format!("{}\n({rest} more lines: a larger window shows them)", lines[..height - 2].join("\n"))
        }
        _ => text.to_owned(),
    }
}
