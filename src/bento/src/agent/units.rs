//! What systemd does for the agent: it runs activations in a unit of their own, which outlives the agent, and the watchdog.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::nix::not_started;
use crate::process::converse;
use crate::secrets::OWN_UNITS;

/// The unit that activations run in. Its name is the lock: there is only one of it.
pub const ACTIVATION: &str = "bento-activation";
/// The unit of the watchdog.
pub const WATCHDOG: &str = "bento-watchdog";
/// How often a unit is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long systemd may fail to answer before that is an error: it does so while it replaces itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the watchdog looks again, in seconds, once its time has passed.
const AGAIN: u64 = 60;

/// How a unit's program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// It took too long.
    TimedOut,
    /// Otherwise, in systemd's words.
    Otherwise(String),
}

/// Runs `systemctl`; gives what it prints.
fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| not_started("systemctl".as_ref()))?;
    if !output.status.success() {
        bail!("systemctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks systemd something again until it answers.
fn ask(arguments: &[&str]) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match systemctl(arguments) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(TICK),
            answer => return answer,
        }
    }
}

/// A unit's properties, by their names.
fn properties(unit: &str, names: &str) -> Result<BTreeMap<String, String>> {
    let text = ask(&["show", unit, "-p", names])?;
    Ok(text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect())
}

/// Forgets a unit of ours, ending what it runs.
fn forget(unit: &str) {
    // neither has to be there
    let _ = systemctl(&["stop", unit]);
    let _ = systemctl(&["reset-failed", unit]);
}

/// Starts a program in a transient unit.
fn start(unit: &str, options: &[String], program: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", &format!("--unit={unit}")]).args(options);
    if let Ok(path) = std::env::var("PATH") {
        command.arg(format!("--setenv=PATH={path}"));
    }
    let output = command
        .arg("--")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| not_started("systemd-run".as_ref()))?;
    if !output.status.success() {
        bail!("systemd did not start {unit}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a program in the unit of activations, with its output in a file, for no longer than `limit`. What ran there before is
/// waited for first.
pub fn activate(
    program: &Path,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
    output: &Path,
    limit: Duration,
) -> Result<Ended> {
    let unit = format!("{ACTIVATION}.service");
    // the one before has a limit of its own
    wait(&unit)?;
    forget(&unit);
    let mut options = vec![
        "--description=bento: activate a system".to_owned(),
        "--property=Type=exec".to_owned(),
        // how it ended is still known when it has ended
        "--property=RemainAfterExit=yes".to_owned(),
        format!("--property=RuntimeMaxSec={}", limit.as_secs()),
        "--property=TimeoutStopSec=10".to_owned(),
        format!("--property=StandardOutput=append:{}", output.display()),
        format!("--property=StandardError=append:{}", output.display()),
    ];
    options.extend(environment.iter().map(|(name, value)| format!("--setenv={name}={value}")));
    start(ACTIVATION, &options, program, arguments)?;
    let ended = wait(&unit)?.unwrap_or_else(|| Ended::Otherwise("somebody removed its unit".to_owned()));
    forget(&unit);
    Ok(ended)
}

/// Waits for the end of what a unit runs; `None` if there is no such unit.
fn wait(unit: &str) -> Result<Option<Ended>> {
    loop {
        let found = properties(unit, "LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus")?;
        let get = |name: &str| found.get(name).map_or("", String::as_str);
        match (get("LoadState"), get("ActiveState"), get("SubState")) {
            ("not-found", "inactive", _) => return Ok(None),
            ("loaded", "active", "exited") | (_, "failed" | "inactive", _) => {
                return Ok(Some(match (get("Result"), get("ExecMainCode")) {
                    ("timeout", _) => Ended::TimedOut,
                    // CLD_EXITED
                    (_, "1") => Ended::Exited(get("ExecMainStatus").parse().context("systemd's answer has no status")?),
                    (result, _) => Ended::Otherwise(result.to_owned()),
                }));
            }
            _ => std::thread::sleep(TICK),
        }
    }
}

/// Ends an activation that is under way.
pub fn stop_activation() {
    forget(&format!("{ACTIVATION}.service"));
}

/// Has systemd run `program` after `seconds`, and again and again until it is disarmed: by a timer that knows nothing of the
/// agent, of the new configuration or of the clock.
pub fn arm_watchdog(seconds: u64, program: &Path, arguments: &[&str]) -> Result<()> {
    disarm_watchdog();
    let options = [
        "--description=bento: bring back the system that ran before".to_owned(),
        format!("--on-active={seconds}"),
        format!("--timer-property=OnUnitInactiveSec={AGAIN}"),
        "--timer-property=AccuracySec=1".to_owned(),
        // what it starts outlives it
        "--property=KillMode=process".to_owned(),
    ];
    start(WATCHDOG, &options, program, arguments)
}

/// Takes the watchdog back.
pub fn disarm_watchdog() {
    forget(&format!("{WATCHDOG}.timer"));
    // the service may be what runs this; one that failed would keep its name taken
    let _ = systemctl(&["reset-failed", &format!("{WATCHDOG}.service")]);
}

/// The units that have failed or fail over and over, without those of the agent, sorted.
pub fn failed() -> Result<Vec<String>> {
    let text = ask(&["list-units", "--all", "--state=failed,auto-restart", "--plain", "--no-legend", "--no-pager"])?;
    let mut units: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|unit| !unit.starts_with(OWN_UNITS))
        .map(str::to_owned)
        .collect();
    units.sort();
    Ok(units)
}

/// Has units that failed count as stopped, and as not started lately.
pub fn forget_failures(units: &[impl AsRef<str>]) {
    let arguments: Vec<&str> = ["reset-failed", "--"].into_iter().chain(units.iter().map(AsRef::as_ref)).collect();
    // one that is gone needs it no more
    let _ = systemctl(&arguments);
}

/// Restarts those of these units that run or have failed, and gives their names to `say` before. It is an error if that takes longer
/// than `limit`: what starts need not come to an end.
pub fn restart(units: &[String], limit: Duration, say: impl FnOnce(&[&str]) -> Result<()>) -> Result<()> {
    let mut there = Vec::new();
    for unit in units {
        // one that is stopped reads what it needs when somebody starts it, and one may be gone
        if properties(unit, "ActiveState")?.get("ActiveState").is_some_and(|state| state != "inactive") {
            there.push(unit.as_str());
        }
    }
    if there.is_empty() {
        return Ok(());
    }
    say(&there)?;
    // how often they were started lately is no reason not to
    forget_failures(&there);
    let restarted = converse(Command::new("systemctl").args(["restart", "--"]).args(&there), b"", None, limit)?;
    if !restarted.status.success() {
        bail!("systemctl restart -- {}: {}", there.join(" "), restarted.stderr.trim());
    }
    Ok(())
}

/// Whether a unit is active.
pub fn is_active(unit: &str) -> Result<bool> {
    Ok(properties(unit, "ActiveState")?.get("ActiveState").is_some_and(|state| state == "active"))
}

/// How the machine as a whole is, in systemd's word.
pub fn health() -> String {
    // its exit status says the same as its word
    let output = Command::new("systemctl").arg("is-system-running").stdin(Stdio::null()).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Has a service start, without waiting for it.
pub fn start_service(unit: &str) -> Result<()> {
    systemctl(&["start", "--no-block", unit]).map(|_| ())
}

/// Has the machine go down, by `reboot` or `kexec`.
pub fn go_down(verb: &str) -> Result<()> {
    systemctl(&[verb]).map(|_| ())
}
