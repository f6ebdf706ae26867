//! Whether a system on trial works: the user's own checks.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::agent::config::{CheckConfig, Probe};
use crate::agent::log::Log;

/// No answer's first line is longer, in bytes.
const FIRST_LINE: u64 = 1024;

/// Does a check, as often as it may be tried.
pub fn check(check: &CheckConfig, log: &mut Log) -> Result<()> {
    let tries = check.tries.max(1);
    let limit = Duration::from_secs(check.timeout.max(1));
    for number in 1..=tries {
        match probe(&check.probe, limit, log) {
            Ok(()) => return log.say(&format!("check {}: passed", check.name)),
            Err(error) if number == tries => return Err(error.context(format!("the check {} failed", check.name))),
            Err(error) => log.say(&format!("check {}, try {number} of {tries}: {error:#}", check.name))?,
        }
        std::thread::sleep(Duration::from_secs(check.pause));
    }
    Ok(())
}

fn probe(probe: &Probe, limit: Duration, log: &mut Log) -> Result<()> {
    match probe {
        Probe::Command(words) => {
            let [program, arguments @ ..] = words.as_slice() else { bail!("it names no program") };
            log.run_with_input(Command::new(program).args(arguments), Stdio::null(), Some(limit))
        }
        Probe::Tcp(address) => connect(address, limit).map(|_| ()),
        Probe::Http(url) => http(url, limit),
    }
}

/// A connection to the first address of `HOST:PORT` that takes one.
fn connect(address: &str, limit: Duration) -> Result<TcpStream> {
    let mut last = None;
    for address in address.to_socket_addrs().with_context(|| format!("cannot find the address of {address}"))? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = Some(e),
        }
    }
    match last {
        Some(e) => Err(e).with_context(|| format!("cannot connect to {address}")),
        None => bail!("{address} has no address"),
    }
}

/// Asks a server on this machine's network for a page; only the first line of the answer counts (RFC 9112, section 4).
fn http(url: &str, limit: Duration) -> Result<()> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} does not begin with http://"))?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut stream = connect(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bento\r\nConnection: close\r\n\r\n")
        .with_context(|| format!("cannot ask {address}"))?;
    let mut answer = Vec::new();
    let mut stream = stream.take(FIRST_LINE);
    let mut part = [0; 256];
    while !answer.contains(&b'\n') {
        let length = stream.read(&mut part).with_context(|| format!("{address} does not answer"))?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&part[..length]);
    }
    let line = String::from_utf8_lossy(answer.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned();
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => bail!("{url} answers with the status {status}"),
        None => bail!("{address} does not answer with HTTP"),
    }
}
