//! A machine that is reached with the system's own ssh, so that its configuration, jump hosts, agents and hardware keys work as
//! they do by hand. One connection carries everything but what has to come by a new one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::ansi::filter_escapes;
use crate::nix::not_started;
use crate::process::{Answer, Spoken, converse};
use crate::push::target::Destination;

/// What ssh ends with when it is at fault itself.
const SSH_FAILED: i32 = 255;
/// What `timeout` ends with when it had to end its program.
const TIMED_OUT: i32 = 124;
/// Where NixOS has its programs, for those whose login shell does not say so.
const MORE_PATH: &str =
    ":/run/wrappers/bin:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/sbin:/sbin";
/// What `ssh -v` says of a library for tokens by which it comes to no key.
const TOKENLESS: [&str; 3] = ["returned no keys", "C_Initialize for provider", "is not a PKCS11 library"];
/// What `ssh -v` says that is no complaint.
const ASIDES: [&str; 5] = ["debug", "OpenSSH_", "Authenticated to ", "Transferred: ", "Bytes per second: "];
/// What stands against settings that are for work by hand: a command or a terminal of its own, output on this side, ports that only one
/// connection can have.
const BY_HAND: [&str; 3] = ["RemoteCommand=none", "PermitLocalCommand=no", "ClearAllForwardings=yes"];
/// How much of what a machine says first is looked at.
const FIRST_LINE: u64 = 4096;
/// How long is waited for more of what an ssh that ended said.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A connection that is silent for so many seconds, three times, is gone.
const ALIVE: u64 = 5;

/// What was wrong with a connection: which hop, why, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{hop}: {reason}{}", .hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct Unreachable {
    /// The machine at which it ended, in words.
    pub hop: String,
    /// Why.
    pub reason: String,
    /// The way out.
    pub hint: Option<String>,
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Remote {
    destination: Destination,
    options: Vec<String>,
    /// Holds the socket that further sessions go through.
    socket: TempDir,
    master: Child,
    /// The fingerprint of the key that let this connection in, if a key did.
    pub key: Option<String>,
}

impl Remote {
    /// Connects, within `limit`. `options` are for ssh.
    pub fn connect(destination: &Destination, options: &[String], limit: Duration) -> Result<Self> {
        let socket = tempfile::Builder::new().prefix("bento-ssh-").tempdir().context("cannot make a directory")?;
        let mut command = ssh(destination, options, limit, Some((Part::Master, &socket.path().join("s"))));
        // its input ends with this process, and so does the connection
        command.args(["-v", "--", &destination.host, &portable("echo bento; exec cat > /dev/null")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut master = command.spawn().with_context(|| not_started("ssh".as_ref()))?;
        let (stdout, stderr) =
            master.stdout.take().zip(master.stderr.take()).context("ssh has no pipes to speak through")?;
        let (said, complaints) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                // nobody listens any more once the connection is there
                let _ = said.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        let (ready, connected) = mpsc::channel();
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = Vec::new();
            let _ = (&mut stdout).take(FIRST_LINE).read_until(b'\n', &mut line);
            let _ = ready.send(String::from_utf8_lossy(&line).trim().to_owned());
            // keeps the pipe open as long as the connection is
            let _ = std::io::copy(&mut stdout, &mut std::io::sink());
        });
        let connected = connected.recv_timeout(limit);
        if connected.as_deref() != Ok("bento") {
            let _ = master.kill();
            let _ = master.wait();
            if let Some(line) = connected.as_ref().ok().filter(|line| !line.is_empty()) {
                bail!(
                    "{destination} lets you in, but its login shell prints {:?} where a command should speak: it has to run commands, and to print \
                     nothing of its own then",
                    filter_escapes(line, false)
                );
            }
            // a proxy that outlives ssh keeps its end of the pipe
            let lines: Vec<String> = std::iter::from_fn(|| complaints.recv_timeout(LAST_WORDS).ok()).collect();
            let late = connected.is_err();
            return Err(explain(destination, options, &lines, late.then_some(limit)).into());
        }
        let lines: Vec<String> = complaints.try_iter().collect();
        let key = key_of(&lines);
        Ok(Self { destination: destination.clone(), options: options.to_vec(), socket, master, key })
    }

    /// The machine.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Runs a script for `/bin/sh` there, for no longer than `limit`; gives what it prints. It ends with this process, too.
    pub fn run(&self, script: &str, limit: Duration) -> Result<String> {
        said(self.run_whole(script, limit)?)
    }

    /// As [`Remote::run`], and gives how the script ended, unless it took too long.
    pub fn run_whole(&self, script: &str, limit: Duration) -> Result<Spoken> {
        let spoken = self.speak(&leashed(script, limit), b"", limit + Duration::from_secs(2 * ALIVE))?;
        if spoken.status.code() == Some(TIMED_OUT) {
            bail!("it did not end within {} s and was killed", limit.as_secs());
        }
        Ok(spoken)
    }

    /// Runs a script there with this input; gives what it prints.
    pub fn feed(&self, script: &str, input: &[u8], limit: Duration) -> Result<String> {
        said(self.speak(script, input, limit)?)
    }

    /// Runs a script there, and gives how it ended.
    pub fn speak(&self, script: &str, input: &[u8], limit: Duration) -> Result<Spoken> {
        let mut command = self.command(limit);
        command.args(["--", &self.destination.host, &portable(script)]);
        self.checked(converse(&mut command, input, None, limit)?)
    }

    /// Runs a script on a terminal there; gives how it ended, without what only a terminal obeys.
    pub fn speak_on_terminal(&self, script: &str, answer: Answer<'_>, limit: Duration) -> Result<Spoken> {
        let mut command = self.command(limit);
        command.args(["-tt", "--", &self.destination.host, &portable(script)]);
        let spoken = self.checked(converse(&mut command, b"", Some(answer), limit)?)?;
        Ok(Spoken { stdout: filter_escapes(&spoken.stdout, false), ..spoken })
    }

    /// What Nix needs to use this connection: the machine as part of a URL, and options for ssh.
    pub fn for_nix(&self) -> (String, String) {
        // a zone is written in more than one way in URLs, and the connection is there already
        let host = match self.destination.host.split_once('%') {
            Some((address, _)) if address.contains(':') => address.to_owned(),
            _ => self.destination.host.clone(),
        };
        // the port is one of the options
        let place = Destination { host, port: None, ..self.destination.clone() }.to_string();
        let mut options: Vec<String> =
            ["-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes"].map(str::to_owned).into();
        options.extend(self.options.iter().cloned());
        options.extend(["-T".to_owned(), "-S".to_owned(), self.socket.path().join("s").display().to_string()]);
        if let Some(port) = self.destination.port {
            options.extend(["-p".to_owned(), port.to_string()]);
        }
        (place, options.join(" "))
    }

    /// A command for ssh that goes through the connection.
    fn command(&self, limit: Duration) -> Command {
        ssh(&self.destination, &self.options, limit, Some((Part::Session, &self.socket.path().join("s"))))
    }

    /// Refuses what ssh itself failed at.
    fn checked(&self, spoken: Spoken) -> Result<Spoken> {
        if spoken.status.code() == Some(SSH_FAILED) {
            let lines: Vec<String> = spoken.stderr.lines().map(str::to_owned).collect();
            return Err(explain(&self.destination, &self.options, &lines, None).into());
        }
        Ok(spoken)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // the process may have ended by itself
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

/// What a process of ssh has to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It makes it.
    Master,
    /// It goes through it.
    Session,
}

/// A command for ssh, with what it has to do with the connection of a socket, if anything. What the user's own options say wins, but for
/// what makes a connection this one, and for settings that are for work by hand (a first `-o` wins over all that follow, a last `-S` over
/// all before it).
fn ssh(destination: &Destination, options: &[String], limit: Duration, part: Option<(Part, &Path)>) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-o", "ControlPersist=no", "-o"]);
    command.arg(if part.is_some_and(|(part, _)| part == Part::Master) {
        "ControlMaster=yes"
    } else {
        "ControlMaster=no"
    });
    for setting in BY_HAND {
        command.args(["-o", setting]);
    }
    command.args(options);
    command.arg("-S").arg(part.map_or(Path::new("none"), |(_, socket)| socket));
    command.args(["-T", "-o", &format!("ConnectTimeout={}", limit.as_secs().clamp(1, 60))]);
    command.args(["-o", &format!("ServerAliveInterval={ALIVE}"), "-o", "ServerAliveCountMax=3"]);
    if let Some(user) = &destination.user {
        command.args(["-l", user]);
    }
    if let Some(port) = destination.port {
        command.args(["-p", &port.to_string()]);
    }
    command
}

/// A script as one word that every login shell hands to `sh` unchanged, and that finds what NixOS has.
fn portable(script: &str) -> String {
    let script = format!("PATH=$PATH{MORE_PATH}\nexport PATH LC_ALL=C\n{script}");
    format!("exec sh -c 'eval \"$(echo {} | base64 -d)\"'", STANDARD.encode(script))
}

/// A script that is ended when its time is over or when nobody holds its standard input any more.
fn leashed(script: &str, limit: Duration) -> String {
    format!(
        "exec 3<&0\n\
         timeout -k 5 {} sh -c 'eval \"$(echo {} | base64 -d)\"' < /dev/null 3<&- & pid=$!\n\
         {{ cat <&3 > /dev/null; kill $pid; }} 2> /dev/null & leash=$!\n\
         wait $pid; status=$?\n\
         kill $leash 2> /dev/null\n\
         exit $status",
        limit.as_secs().max(1),
        STANDARD.encode(script)
    )
}

/// What a script printed, if it ended well.
fn said(spoken: Spoken) -> Result<String> {
    if spoken.status.success() {
        return Ok(spoken.stdout);
    }
    let text = spoken.stderr.trim().trim_start_matches("error: ");
    if text.is_empty() { bail!("it ended with {}", spoken.status) } else { bail!("{text}") }
}

/// The fingerprint of the key that let a connection in, from what `ssh -v` says.
fn key_of(lines: &[String]) -> Option<String> {
    // jump hosts come before the machine, each with an end of its own
    let ends = |line: &String| line.starts_with("Authenticated to ");
    let end = lines.iter().rposition(ends)?;
    let last = lines[..end].rsplit(ends).next()?;
    let by_key = lines[end].contains("using \"publickey\"");
    let accepted = last.iter().rfind(|line| line.contains("Server accepts key: "))?;
    let word = accepted.split_whitespace().find(|word| word.starts_with("SHA256:"))?;
    // who shows a certificate is let in by whoever signed that
    (by_key && !accepted.contains("-CERT ")).then(|| word.to_owned())
}

/// Says which hop a connection ended at, and why, from what ssh said.
fn explain(destination: &Destination, options: &[String], lines: &[String], late: Option<Duration>) -> Unreachable {
    let in_passing = |line: &str| ASIDES.iter().any(|words| line.starts_with(words));
    let said: Vec<&String> = lines.iter().filter(|line| !line.is_empty() && !in_passing(line)).collect();
    let settings = resolved(destination, options);
    let own = settings.iter().find(|(key, _)| key == "hostname").map_or(destination.host.as_str(), |(_, host)| host);
    let jump = settings.iter().find(|(key, value)| key == "proxyjump" && value != "none").map(|(_, jump)| jump.clone());
    let has = |words: &str| said.iter().find(|line| line.contains(words)).map(|line| line.as_str());
    // the innermost hop speaks first
    let named = said.iter().find_map(|line| {
        // an address may have colons
        let connected = line.strip_prefix("ssh: connect to host ").and_then(|rest| rest.split_once(" port "));
        let resolved = || line.strip_prefix("ssh: Could not resolve hostname ").and_then(|rest| rest.split_once(": "));
        Some(connected.or_else(resolved)?.0.to_owned())
    });
    let refused = has("Permission denied").and_then(|line| line.split_once(": Permission denied"));
    let refused = refused.map(|(who, _)| who.rsplit('@').next().unwrap_or(who).to_owned());
    let through_jump =
        jump.clone().filter(|_| has("UNKNOWN port 65535").is_some() || has("stdio forwarding failed").is_some());
    let at = named.or(refused).filter(|host| host != own && *host != destination.host);
    let hop = match (at, through_jump) {
        (Some(hop), _) => format!("the jump host {hop}, on the way to {destination}"),
        // it let ssh in, and could not go on from there
        (None, Some(jump)) if has("stdio forwarding failed").is_some() => {
            format!("{destination}, from the jump host {jump}")
        }
        (None, Some(jump)) => format!("the jump host {jump}, on the way to {destination}"),
        (None, None) => destination.to_string(),
    };
    let last = said.iter().rev().find(|line| !line.contains("UNKNOWN port 65535")).or(said.last());
    let reason = match (late, last) {
        (Some(limit), _) => format!("no connection within {} s", limit.as_secs()),
        (None, Some(line)) => line.trim_end_matches('.').to_owned(),
        (None, None) if lines.iter().any(|line| line.starts_with("Authenticated to ")) => {
            "it lets you in, but runs no command: is the login shell one that does?".to_owned()
        }
        (None, None) => "the connection was lost".to_owned(),
    };
    let hint = if has("Host key verification failed").is_some() || has("REMOTE HOST IDENTIFICATION").is_some() {
        Some("compare its host key, and add it to known_hosts with ssh-keyscan or by one `ssh` by hand")
    } else if has("signing failed for").is_some() {
        Some(
            "that key is let in, but what has it did not sign: is the token plugged in, and its PIN right? `ssh-add -s PROVIDER` gives a token \
             to the agent anew",
        )
    } else if lines.iter().any(|line| TOKENLESS.iter().any(|words| line.contains(words))) {
        Some("ssh finds no key by its PKCS11Provider: is the token plugged in?")
    } else if has("Permission denied").is_some() {
        Some(
            "it takes none of your keys: `ssh-add -l` lists those of the agent; users.users.NAME.openssh.authorizedKeys.keys are let in",
        )
    } else if has("Could not resolve").is_some() {
        Some("is the name right? nixos://USER@ADDRESS/CONFIGURATION takes an address; a Host in ssh_config works, too")
    } else if has("Connection refused").is_some() {
        Some("does sshd run there, on this port?")
    } else if late.is_some() || has("timed out").is_some() || has("No route to host").is_some() {
        Some("is it on, and does a firewall lie between? --skip-unreachable goes on without it")
    } else {
        None
    };
    Unreachable { hop, reason, hint: hint.map(str::to_owned) }
}

/// What ssh's configuration comes to for a machine.
fn resolved(destination: &Destination, options: &[String]) -> Vec<(String, String)> {
    let mut command = ssh(destination, options, Duration::from_secs(1), None);
    command.args(["-G", "--", &destination.host]).stdin(Stdio::null());
    let Ok(output) = command.output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_once(' ')).map(|(key, value)| (key.into(), value.into())).collect()
}
