//! Downloads over HTTP and HTTPS.

use super::error::FlakeError;
use super::settings::FetchSettings;
use super::url::{self, Url};
use base64::Engine as _;
use fluent_uri::{Uri, UriRef};
use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// More steps from address to address than this are a circle.
const MAX_REDIRECTS: usize = 10;
/// How often is tried what may work the next time.
const ATTEMPTS: u32 = 3;
/// The time before the second attempt; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);
/// As Nix's `connect-timeout` and `stalled-download-timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Where certificates are looked for if nobody says.
const CERTIFICATES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt"];

/// A header of a request.
pub(super) type RequestHeader = (String, String);

/// What came of a request.
pub(super) enum Reply {
    /// The server has nothing newer than what was asked about.
    Unchanged,
    /// The contents.
    Contents(Contents),
}

/// What a server gave.
pub(super) struct Contents {
    /// The contents, in a file that has no name, at its start.
    pub(super) file: File,
    /// What tells this version from others; empty if the server doesn't.
    pub(super) etag: String,
    /// The address at which this version, and no other, will always be.
    pub(super) immutable_url: Option<String>,
}

/// Downloads files.
pub(super) struct HttpClient {
    agent: OnceCell<ureq::Agent>,
}

/// Why a request failed.
struct Failure {
    reason: String,
    /// Whether another attempt may work.
    transient: bool,
}

impl Failure {
    fn new(reason: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), transient: false }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Failure {
        let transient = matches!(error, ureq::Error::Io(_) | ureq::Error::Protocol(_) | ureq::Error::Timeout(_));
        Failure { reason: error.to_string(), transient }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        // a transfer that broke off
        Failure { reason: error.to_string(), transient: true }
    }
}

impl HttpClient {
    pub(super) fn new() -> HttpClient {
        HttpClient { agent: OnceCell::new() }
    }

    /// Downloads `url`. With `etag`, only if what is there is another version than that.
    ///
    /// # Errors
    /// When the network may not be used or the server doesn't give it.
    pub(super) fn get(
        &self,
        settings: &FetchSettings,
        url: &str,
        headers: &[RequestHeader],
        etag: &str,
    ) -> Result<Reply, FlakeError> {
        let failed = |reason: String| FlakeError::Download { url: url.to_owned(), reason };
        if !settings.network {
            return Err(failed("the network is not to be used".to_owned()));
        }
        let agent = match self.agent.get() {
            Some(agent) => agent,
            None => {
                let agent = new_agent(settings).map_err(failed)?;
                self.agent.get_or_init(|| agent)
            }
        };
        let mut pause = PAUSE;
        for attempt in 1.. {
            match follow(agent, settings, url, headers, etag) {
                Ok(reply) => return Ok(reply),
                Err(failure) if failure.transient && attempt < ATTEMPTS => std::thread::sleep(pause),
                Err(failure) => return Err(failed(failure.reason)),
            }
            pause *= 2;
        }
        unreachable!("the last attempt returns")
    }
}

/// Makes requests with these settings.
fn new_agent(settings: &FetchSettings) -> Result<ureq::Agent, String> {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(certificates(settings)?)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Ok(ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("bento/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .tls_config(tls.build())
        .build()
        .new_agent())
}

/// The certificates that servers are checked against.
fn certificates(settings: &FetchSettings) -> Result<Vec<Certificate<'static>>, String> {
    let known = || CERTIFICATES.iter().map(Path::new).find(|file| file.exists());
    // without a file no server can be trusted, but plain HTTP works
    let Some(file) = settings.certificates.as_deref().or_else(known) else { return Ok(Vec::new()) };
    let failed = |reason: String| format!("cannot read the certificates in '{}': {reason}", file.display());
    let text = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| failed(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    Ok(certificates)
}

/// Requests `url`, and what it redirects to.
fn follow(
    agent: &ureq::Agent,
    settings: &FetchSettings,
    url: &str,
    headers: &[RequestHeader],
    etag: &str,
) -> Result<Reply, Failure> {
    let mut url = Url::parse(url, false).map_err(|error| Failure::new(error.to_string()))?;
    url.fragment.clear();
    let host = url.host().to_owned();
    let mut immutable_url = None;
    for _ in 0..=MAX_REDIRECTS {
        let mut request = agent.get(url.without_credentials().to_string());
        // what one host may know is no other's business
        if url.host() == host {
            for (name, value) in headers {
                request = request.header(name, value);
            }
        }
        if !(url.host() == host && headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")))
            && let Some((user, password)) = credentials(settings, &url)
        {
            let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            request = request.header(header::AUTHORIZATION, format!("Basic {encoded}"));
        }
        if !etag.is_empty() {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let response = request.call()?;
        let status = response.status();
        immutable_url = immutable_link(response.headers()).or(immutable_url);
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let target = text(response.headers(), header::LOCATION.as_str());
            let target = target.ok_or_else(|| Failure::new(format!("HTTP error {status} without a location")))?;
            url = redirect(&url, target).map_err(Failure::new)?;
            continue;
        }
        let found = text(response.headers(), header::ETAG.as_str()).unwrap_or_default().to_owned();
        if status == StatusCode::NOT_MODIFIED || (!etag.is_empty() && found == etag && status.is_success()) {
            return Ok(Reply::Unchanged);
        }
        if !status.is_success() {
            let transient = matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
            return Err(Failure { reason: format!("HTTP error {status}"), transient });
        }
        let mut file = tempfile::tempfile()?;
        io::copy(&mut response.into_body().into_reader(), &mut file)?;
        file.rewind()?;
        return Ok(Reply::Contents(Contents { file, etag: found, immutable_url }));
    }
    Err(Failure::new("it redirects from one address to another without end"))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The address that a server calls immutable: `Link: <URL>; rel="immutable"`.
fn immutable_link(headers: &HeaderMap) -> Option<String> {
    ["link", "x-amz-meta-link"].into_iter().find_map(|name| {
        let (address, relation) = text(headers, name)?.strip_prefix('<')?.split_once(">; ")?;
        relation.eq_ignore_ascii_case("rel=\"immutable\"").then(|| address.to_owned())
    })
}

/// Where `target`, which may be relative to `url`, is.
fn redirect(url: &Url, target: &str) -> Result<Url, String> {
    let bad = |reason: String| format!("it redirects to '{target}', which is no address: {reason}");
    let base = url.to_string();
    let base = Uri::parse(base.as_str()).map_err(|error| bad(error.to_string()))?;
    let reference = UriRef::parse(target).map_err(|error| bad(error.to_string()))?;
    let resolved = reference.resolve_against(&base).map_err(|error| bad(error.to_string()))?;
    let mut next = Url::parse(resolved.as_str(), false).map_err(|error| bad(error.to_string()))?;
    next.fragment.clear();
    if !matches!(url::transport(&next.scheme), "http" | "https") {
        return Err(bad("neither http nor https".to_owned()));
    }
    Ok(next)
}

/// The name and password for a host: those in the address, or those in the netrc file.
fn credentials(settings: &FetchSettings, url: &Url) -> Option<(String, String)> {
    if let Some(own) = url.credentials() {
        return Some(own);
    }
    let text = std::fs::read_to_string(settings.netrc.as_deref()?).ok()?;
    netrc(&text, url.host())
}

/// What a netrc file has for `host`: `machine HOST login NAME password TEXT`, or the entry `default`.
fn netrc(text: &str, host: &str) -> Option<(String, String)> {
    let mut words = text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    let mut wanted = false;
    let (mut login, mut password) = (None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if wanted && password.is_some() {
                    break;
                }
                (login, password) = (None, None);
                wanted = word == "default" || words.next()? == host;
            }
            "login" if wanted => login = words.next(),
            "password" if wanted => password = words.next(),
            "login" | "password" | "account" => {
                words.next();
            }
            _ => {}
        }
    }
    wanted.then(|| Some((login.unwrap_or_default().to_owned(), password?.to_owned())))?
}
