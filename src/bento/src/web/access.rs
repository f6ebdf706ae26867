//! Who may see the page: everybody on this machine, or whoever knows the token.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// The fewest characters that a token has: so many random ones nobody guesses.
const LEAST: usize = 20;

/// Who may see the page.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token's hash: hashes of this kind are compared in constant time.
    token: Option<blake3::Hash>,
}

/// Why a request is not answered: a status, and words for people.
pub(super) type Refusal = (StatusCode, &'static str);

impl Access {
    /// Whoever knows the token in a file may see the page, or without a file everybody on this machine; then `listen` must
    /// be an address that nobody else can reach.
    pub fn open(listen: SocketAddr, token_file: Option<&Path>) -> Result<Self> {
        let Some(file) = token_file else {
            if !listen.ip().is_loopback() {
                bail!(
                    "the page would be there for everybody who can reach {listen}: name a file with a token \
                     (--token), or an address of this machine alone, such as 127.0.0.1"
                );
            }
            return Ok(Self { token: None });
        };
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read the token {}", file.display()))?;
        let token = text.trim();
        if token.len() < LEAST || !token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            bail!(
                "{} must hold a token: at least {LEAST} letters, digits and signs in one line, without spaces and colons; \
                 `openssl rand -hex 32` makes a good one",
                file.display()
            );
        }
        Ok(Self { token: Some(blake3::hash(token.as_bytes())) })
    }

    /// Refuses a request that has no right to an answer.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match self.token {
            Some(token) => match presented(headers) {
                Some(presented) if blake3::hash(presented.as_bytes()) == token => Ok(()),
                _ => {
                    Err((StatusCode::UNAUTHORIZED, "The password is the hub's token; the user's name does not matter."))
                }
            },
            // a page from elsewhere must not get at this one by a name that it makes mean this machine
            None if names_this_machine(headers) => Ok(()),
            None => Err((
                StatusCode::FORBIDDEN,
                "Without a token the page is only for this machine: ask for localhost, or let the hub have a token.",
            )),
        }
    }
}

/// The token that comes with a request: as a bearer's, or as a password, which browsers ask for.
fn presented(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, value) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(BASE64_STANDARD.decode(value.trim()).ok()?).ok()?;
    Some(pair.split_once(':')?.1.to_owned())
}

/// Whether a request was made to an address or a name that only ever means the machine itself.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}
