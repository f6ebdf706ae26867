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

use crate::process::{self, Interruptions};
use crate::provision::journal::Phase;
use crate::push::remote::Remote;
use crate::push::target::Destination;
use crate::store_path::StorePath;

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

/// Ends what nixos-anywhere started on the machine: each command that has $MARK among its words, with all of its process group.
/// Whoever loses its connection is not ended by that.
const END: &str = r#"
group() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d ' ' -f 3; }
ours=$(group $$)
groups() {
  for process in /proc/[0-9]*; do
    case $(tr '\0' ' ' 2> /dev/null < "$process/cmdline") in *"$MARK"*) group "${process#/proc/}" ;; esac
  done | grep -vx "$ours" | sort -u
}
signal=TERM
for try in 1 2 3 4 5 6 7 8 9 10; do
  left=$(groups)
  [ -n "$left" ] || exit 0
  [ $try != 1 ] || echo ended
  [ $try -lt 6 ] || signal=KILL
  # not every shell takes a -- before the group
  for one in $left; do kill -$signal "-$one" 2> /dev/null; done
  sleep 1
done
echo "it can't be ended" >&2
exit 1
"#;

/// Ends what an interrupted phase has left at work on a machine: what has one of these store paths among its words. Gives whether
/// there was anything.
pub fn end_on(remote: &Remote, paths: &[&StorePath], limit: Duration) -> Result<bool> {
    let mut ended = false;
    for path in paths {
        let said = remote.run(&format!("MARK={path}\n{END}"), limit);
        ended |= !said.with_context(|| format!("{path} is still at work on the machine"))?.is_empty();
    }
    Ok(ended)
}

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
        let interruptions = Interruptions::watch()?;
        let mut child = interruptions.spawn(&mut command)?;
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
