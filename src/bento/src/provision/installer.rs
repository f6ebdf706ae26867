//! nixos-anywhere, a phase at a time.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::nix::not_started;
use crate::process;
use crate::provision::journal::Phase;
use crate::push::target::Destination;

/// How often is looked whether somebody wants it to end.
const TICK: Duration = Duration::from_millis(200);

/// What bento says to nixos-anywhere itself, and why nobody else may.
const OURS: [(&str, &str); 12] = [
    ("--phases", "bento runs one after the other"),
    ("--flake", "bento says what is installed"),
    ("-f", "bento says what is installed"),
    ("--store-paths", "bento says what is installed"),
    ("-s", "bento says what is installed"),
    ("--target-host", "bento says where"),
    ("--extra-files", "--extra-files of bento's own takes a directory"),
    ("--copy-host-keys", "the host gets a key of its own"),
    ("--vm-test", "`bento check` does it"),
    (
        "--generate-hardware-config",
        "do it first, with `nixos-anywhere --phases kexec --generate-hardware-config ...`: bento goes on from the installer",
    ),
    ("--disko-mode", "the disks are erased and laid out as the host's configuration says"),
    ("--no-reboot", "the run ends with the host's report"),
];

/// What is handed to nixos-anywhere.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The program.
    pub program: PathBuf,
    /// More options for it.
    pub flags: Vec<String>,
    /// Options for ssh, as nixos-anywhere takes them.
    ssh: Vec<String>,
    /// Where what it prints is kept.
    log: PathBuf,
}

impl Installer {
    /// One with these options; `ssh` are options for ssh. What bento itself has to say is refused.
    pub fn new(program: &Path, flags: &[String], ssh: &[String], log: &Path) -> Result<Self> {
        for (flag, reason) in OURS {
            if flags.iter().any(|given| given == flag) {
                bail!("{flag} can't be handed to nixos-anywhere: {reason}");
            }
        }
        let ssh = translate(ssh)?;
        Ok(Self { program: program.to_owned(), flags: flags.to_vec(), ssh, log: log.to_owned() })
    }

    /// The value of an option that is handed to it.
    pub fn value_of(&self, flag: &str) -> Option<&str> {
        let at = self.flags.iter().position(|given| given == flag)?;
        self.flags.get(at + 1).map(String::as_str)
    }

    /// The command for a phase: `system` is what is installed, `extra` a directory with files that come with it.
    pub fn command(&self, phase: Phase, system: &[String], extra: Option<&Path>, destination: &Destination) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--phases", phase.word()]).args(system);
        if let Some(extra) = extra {
            command.arg("--extra-files").arg(extra);
        }
        if let Some(port) = destination.port {
            command.args(["--ssh-port", &port.to_string()]);
        }
        command.args(&self.ssh).args(&self.flags);
        let user = destination.user.as_ref().map_or_else(String::new, |user| format!("{user}@"));
        command.arg("--target-host").arg(format!("{user}{}", destination.host));
        command
    }

    /// Runs a phase's command with this input, for no longer than `limit`; each line that it prints is kept, and handed to `say`. If
    /// this process is told to end, the program and all that it started is ended first.
    pub fn run(&self, mut command: Command, input: Stdio, limit: Duration, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
        let mut log = OpenOptions::new();
        let log = log.create(true).append(true).mode(0o600).open(&self.log);
        let log = Mutex::new(log.with_context(|| format!("cannot write {}", self.log.display()))?);
        let note = |line: &str| {
            if let Ok(mut log) = log.lock() {
                // what it says is of use, but not of need
                let _ = writeln!(log, "{line}");
            }
        };
        note(&format!("$ {command:?}"));
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.get_program().to_owned();
        let interruptions = Interruptions::watch()?;
        let mut child = command.spawn().with_context(|| not_started(&program))?;
        let (stdout, stderr) = child.stdout.take().zip(child.stderr.take()).context("a program has no pipes")?;
        let last = Mutex::new(Vec::new());
        let ended = std::thread::scope(|scope| {
            for pipe in [Box::new(stdout) as Box<dyn Read + Send>, Box::new(stderr)] {
                let (note, last) = (&note, &last);
                scope.spawn(move || {
                    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                        note(&line);
                        say(&line);
                        if let Ok(mut last) = last.lock() {
                            let last: &mut Vec<String> = &mut last;
                            last.push(line);
                            if last.len() > 8 {
                                last.remove(0);
                            }
                        }
                    }
                });
            }
            let deadline = Instant::now() + limit;
            let ended = loop {
                let tick = Instant::now() + TICK;
                match process::wait_until(&mut child, tick.min(deadline)) {
                    Ok(None) if interruptions.any() => break Ok(Ended::Interrupted),
                    Ok(None) if Instant::now() >= deadline => break Ok(Ended::Late),
                    Ok(None) => {}
                    Ok(Some(status)) => break Ok(Ended::Itself(status)),
                    Err(error) => break Err(error),
                }
            };
            // what it left behind would keep its pipes open
            process::end(&mut child).and(ended)
        })?;
        let place = self.log.display();
        let status = match ended {
            Ended::Itself(status) => status,
            Ended::Late => {
                bail!("it did not end within {} s and was killed; what it said is in {place}", limit.as_secs())
            }
            Ended::Interrupted => bail!("interrupted: nixos-anywhere was ended; what it said is in {place}"),
        };
        if !status.success() {
            let last = last.into_inner().unwrap_or_default().join("\n");
            bail!("nixos-anywhere ended with {status}; all that it said is in {place}, the end of it is:\n{last}");
        }
        Ok(())
    }
}

/// How a run ended.
enum Ended {
    Itself(ExitStatus),
    Late,
    Interrupted,
}

/// What tells this process to end, held back for as long as this lives.
struct Interruptions {
    /// What is held back besides.
    before: SigSet,
    signals: SignalFd,
}

impl Interruptions {
    fn watch() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        let context = "cannot watch for signals";
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context(context)?;
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).context(context)?;
        Ok(Self { before, signals })
    }

    /// Whether there was one since they were last asked for.
    fn any(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}

impl Drop for Interruptions {
    fn drop(&mut self) {
        // this thread's own mask can't be refused
        let _ = self.before.thread_set_mask();
    }
}

/// Options for ssh as nixos-anywhere takes them.
fn translate(options: &[String]) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let (flag, attached) = option.split_at_checked(2).unwrap_or((option, ""));
        let value = match attached {
            "" => rest.next().cloned(),
            value => Some(value.to_owned()),
        };
        let value = value.with_context(|| format!("NIX_SSHOPTS ends with {option}, which needs a value"))?;
        let (flag, value) = match flag {
            "-o" => ("--ssh-option", value),
            "-i" => ("-i", value),
            "-p" => ("--ssh-port", value),
            "-J" => ("--ssh-option", format!("ProxyJump={value}")),
            "-l" => ("--ssh-option", format!("User={value}")),
            _ => bail!(
                "nixos-anywhere has no option for ssh's {flag} (NIX_SSHOPTS): put what it stands for into ~/.ssh/config"
            ),
        };
        words.extend([flag.to_owned(), value]);
    }
    Ok(words)
}
