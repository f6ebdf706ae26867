//! Status as metrics, in Prometheus' text format (version 0.0.4).

use std::fmt::Write;

use crate::status::{HostState, HostStatus};

/// The metrics of a fleet, for Prometheus' node exporter to collect, or any scraper to read. `problems` is how many parts of
/// the hub can't be read.
pub fn render(hosts: &[HostStatus], problems: usize) -> String {
    let mut text = String::new();
    let mut family = |name: &str, help: &str, samples: &mut dyn Iterator<Item = (String, f64)>| {
        let samples: Vec<_> = samples.collect();
        if samples.is_empty() {
            return;
        }
        // writing to a string does not fail
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (labels, value) in samples {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let host = |status: &HostStatus| format!("host=\"{}\"", status.machine);
    let truth = |value: bool| if value { 1.0 } else { 0.0 };
    #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53: no serial and no time is as large")]
    let number = |value: u64| value as f64;
    let time = |time: jiff::Timestamp| time.as_microsecond() as f64 / 1e6;

    family(
        "bento_hub_problems",
        "Parts of the hub's directory that can't be read.",
        &mut std::iter::once((String::new(), number(problems as u64))),
    );
    family(
        "bento_hosts",
        "Hosts in each state.",
        &mut HostState::ALL.iter().map(|state| {
            let count = hosts.iter().filter(|status| status.state == *state).count();
            (format!("state=\"{}\"", state.words()), number(count as u64))
        }),
    );
    family(
        "bento_host_state",
        "The state of each host, as a label.",
        &mut hosts.iter().map(|status| (format!("{},state=\"{}\"", host(status), status.state.words()), 1.0)),
    );
    family(
        "bento_host_needs_attention",
        "Whether a person has to look after the host.",
        &mut hosts.iter().map(|status| (host(status), truth(status.state.needs_attention()))),
    );
    family(
        "bento_host_version_info",
        "The system that a host should run, that it runs, and that it booted, as labels.",
        &mut hosts.iter().map(|status| {
            let version = |version: &Option<String>| escaped(version.as_deref().unwrap_or_default());
            let labels = format!(
                "{},desired=\"{}\",running=\"{}\",booted=\"{}\"",
                host(status),
                version(&status.local_version),
                version(&status.remote_version),
                version(&status.booted_version)
            );
            (labels, 1.0)
        }),
    );
    let mut flag = |name: &str, help: &str, value: fn(&HostStatus) -> bool| {
        family(name, help, &mut hosts.iter().map(|status| (host(status), truth(value(status)))));
    };
    flag("bento_host_runs_desired", "Whether the host runs what it should.", HostStatus::versions_match);
    flag("bento_host_stale", "Whether the host should have been heard of since.", |status| status.stale);
    flag("bento_host_held", "Whether the host gets no new release for now.", |status| status.held);
    flag("bento_host_reboot_needed", "Whether the host has to be rebooted.", |status| status.reboot_needed);
    let mut known = |name: &str, help: &str, value: &dyn Fn(&HostStatus) -> Option<f64>| {
        family(name, help, &mut hosts.iter().filter_map(|status| Some((host(status), value(status)?))));
    };
    known("bento_host_serial", "The host's current release.", &|status| status.serial.map(number));
    known("bento_host_reported_serial", "The release that the host last spoke of.", &|status| {
        status.reported_serial.map(number)
    });
    known("bento_host_failed_units", "Units that have failed on the host.", &|status| status.failed_units.map(number));
    known("bento_host_published_timestamp_seconds", "When the release was published.", &|status| {
        status.published.map(time)
    });
    known("bento_host_reported_timestamp_seconds", "When the host last said how an attempt ended.", &|status| {
        status.reported.map(time)
    });
    known("bento_host_seen_timestamp_seconds", "When the host was last heard of.", &|status| status.seen.map(time));
    text
}

/// A label's value: a host may have put anything there.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
