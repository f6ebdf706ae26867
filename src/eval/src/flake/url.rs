//! URLs as Nix reads and writes them: RFC 3986 with a few liberties.

use super::error::FlakeError;
use fluent_uri::Uri;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A URL taken apart; everything but the scheme is percent-decoded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Url {
    pub(super) scheme: String,
    pub(super) authority: Option<Authority>,
    /// What is between the slashes: an absolute path begins with an empty segment.
    pub(super) path: Vec<String>,
    pub(super) query: BTreeMap<String, String>,
    pub(super) fragment: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Authority {
    user: Option<String>,
    password: Option<String>,
    pub(super) host: String,
    /// Whether the host is an IPv6 (or later) address, which is written in brackets.
    bracketed: bool,
    port: Option<u16>,
}

impl Url {
    /// Parses `text`. When `lenient`, spaces and quotes may stand unencoded in the query, and those and `^` in the
    /// fragment.
    pub(super) fn parse(text: &str, lenient: bool) -> Result<Url, FlakeError> {
        let bad = |reason: &str| FlakeError::BadUrl(format!("'{text}' is not a valid URL: {reason}"));
        let fixed = encode_liberties(text, lenient);
        let uri = Uri::parse(fixed.as_str()).map_err(|error| bad(&error.to_string()))?;
        let scheme = uri.scheme().as_str().to_owned();
        let authority = match uri.authority() {
            None => None,
            Some(parsed) => {
                let port = match parsed.port().map(fluent_uri::pct_enc::EStr::as_str) {
                    None | Some("") => None,
                    Some(digits) => {
                        Some(digits.parse().map_err(|_| FlakeError::BadUrl(format!("port '{digits}' is invalid")))?)
                    }
                };
                let (user, password) = match parsed.userinfo() {
                    None => (None, None),
                    Some(info) => match info.as_str().split_once(':') {
                        None => (Some(decode(info.as_str())?), None),
                        Some((user, password)) => (Some(decode(user)?), Some(decode(password)?)),
                    },
                };
                let host = parsed.host();
                let (host, bracketed) = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                    Some(address) => (address.to_owned(), true),
                    None => (decode(host)?, false),
                };
                Some(Authority { user, password, host, bracketed, port })
            }
        };
        let of_file = transport(&scheme) == "file";
        if let Some(authority) = authority.as_ref().filter(|authority| of_file && !authority.host.is_empty()) {
            return Err(FlakeError::BadUrl(format!(
                "file:// URL '{text}' has unexpected authority '{}'",
                authority.host
            )));
        }
        let mut path = uri.path().as_str();
        if of_file && path.is_empty() {
            path = "/";
        }
        Ok(Url {
            path: path.split('/').map(decode).collect::<Result<_, _>>()?,
            query: parse_query_pairs(uri.query().map_or("", |query| query.as_str()))?,
            fragment: decode(uri.fragment().map_or("", |fragment| fragment.as_str()))?,
            scheme,
            authority,
        })
    }

    /// The host, empty if there is none.
    pub(super) fn host(&self) -> &str {
        self.authority.as_ref().map_or("", |authority| authority.host.as_str())
    }

    /// The name and the password in it; a name alone has an empty password.
    pub(super) fn credentials(&self) -> Option<(String, String)> {
        let authority = self.authority.as_ref()?;
        Some((authority.user.clone()?, authority.password.clone().unwrap_or_default()))
    }

    /// The same without them.
    pub(super) fn without_credentials(&self) -> Url {
        let mut result = self.clone();
        if let Some(authority) = &mut result.authority {
            (authority.user, authority.password) = (None, None);
        }
        result
    }

    /// The path as it stands in the URL but decoded, with empty segments left out.
    pub(super) fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).filter(|segment| !segment.is_empty()).collect()
    }

    /// The path as one of the file system.
    pub(super) fn file_path(&self) -> Result<String, FlakeError> {
        for segment in &self.path {
            if segment.contains('/') {
                return Err(FlakeError::BadUrl(format!(
                    "URL path component '{segment}' contains '/', which is not allowed in file names"
                )));
            }
            if segment.contains('\0') {
                let shown = segment.replace('\0', "␀");
                return Err(FlakeError::BadUrl(format!(
                    "URL path component '{shown}' contains NUL byte which is not allowed"
                )));
            }
        }
        let (mut path, rest) = match self.path.split_first() {
            None => return Ok(String::new()),
            Some((first, rest)) if first.is_empty() => ("/".to_owned(), rest),
            Some((first, rest)) => (first.clone(), rest),
        };
        for segment in rest {
            if !path.is_empty() && !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(segment);
        }
        Ok(path)
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if let Some(authority) = &self.authority {
            f.write_str("//")?;
            if let Some(user) = &authority.user {
                f.write_str(&encode(user, ""))?;
                if let Some(password) = &authority.password {
                    write!(f, ":{}", encode(password, ""))?;
                }
                f.write_char('@')?;
            }
            if authority.bracketed {
                write!(f, "[{}]", authority.host)?;
            } else {
                f.write_str(&encode(&authority.host, ""))?;
            }
            if let Some(port) = authority.port {
                write!(f, ":{port}")?;
            }
        }
        for (index, segment) in self.path.iter().enumerate() {
            if index > 0 {
                f.write_char('/')?;
            }
            f.write_str(&encode(segment, ":@"))?;
        }
        for (index, (name, value)) in self.query.iter().enumerate() {
            f.write_char(if index == 0 { '?' } else { '&' })?;
            write!(f, "{}={}", encode(name, ":@/?"), encode(value, ":@/?"))?;
        }
        if !self.fragment.is_empty() {
            write!(f, "#{}", encode(&self.fragment, ""))?;
        }
        Ok(())
    }
}

/// The scheme's part before a `+`, such as `git` in `git+file`.
pub(super) fn application(scheme: &str) -> Option<&str> {
    scheme.split_once('+').map(|(application, _)| application)
}

/// The scheme without the part before a `+`.
pub(super) fn transport(scheme: &str) -> &str {
    scheme.split_once('+').map_or(scheme, |(_, transport)| transport)
}

/// A path of the file system as URL segments.
pub(super) fn path_segments(path: &str) -> Vec<String> {
    let mut segments = Vec::new();
    if path.starts_with('/') {
        segments.push(String::new());
    }
    segments.extend(path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned));
    if path.is_empty() || path.ends_with('/') {
        segments.push(String::new());
    }
    segments
}

/// Percent-decodes `text`.
pub(super) fn decode(text: &str) -> Result<String, FlakeError> {
    let invalid = |reason: &str| FlakeError::BadUrl(format!("invalid URI parameter '{text}': {reason}"));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        if byte == b'%' {
            let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            let (Some(high), Some(low)) = (digit(index + 1), digit(index + 2)) else {
                return Err(invalid("bad percent-encoding"));
            };
            // two hexadecimal digits: below 256
            decoded.push((high * 16 + low) as u8);
            index += 3;
        } else {
            decoded.push(byte);
            index += 1;
        }
    }
    String::from_utf8(decoded).map_err(|_| invalid("not UTF-8"))
}

/// Percent-encodes all but the unreserved characters and those in `keep`.
pub(super) fn encode(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encode_byte(byte, &mut encoded);
        }
    }
    encoded
}

fn encode_byte(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// Encodes what Nix tolerates beyond the RFC: brackets in the query always, and more if `lenient`.
fn encode_liberties(text: &str, lenient: bool) -> String {
    let (in_query, in_fragment) = if lenient { ("[]\" ", "\" ^") } else { ("[]", "") };
    let (before, fragment) = text.split_once('#').map_or((text, None), |(before, fragment)| (before, Some(fragment)));
    let (path, query) = before.split_once('?').map_or((before, None), |(path, query)| (path, Some(query)));
    let mut fixed = path.to_owned();
    for (mark, part, set) in [('?', query, in_query), ('#', fragment, in_fragment)] {
        if let Some(part) = part {
            fixed.push(mark);
            for char in part.chars() {
                if set.contains(char) {
                    encode_byte(char as u8, &mut fixed);
                } else {
                    fixed.push(char);
                }
            }
        }
    }
    fixed
}

/// Parses a query that does not stand in a URL; spaces and quotes may be unencoded.
pub(super) fn parse_query(query: &str) -> Result<BTreeMap<String, String>, FlakeError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?[]% \"".contains(&byte);
    if !query.bytes().all(allowed) {
        return Err(FlakeError::BadUrl(format!("invalid URI query '{query}': leftover")));
    }
    parse_query_pairs(query)
}

/// Parameters without an equals sign are ignored; of two with one name the first counts.
fn parse_query_pairs(query: &str) -> Result<BTreeMap<String, String>, FlakeError> {
    let mut pairs = BTreeMap::new();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        pairs.entry(decode(name)?).or_insert(decode(value)?);
    }
    Ok(pairs)
}

/// A Git URL in any form that Git users write: `user@host:path`, a plain path, or a URL with or without `git+`.
pub(super) fn fix_git_url(url: &str) -> Result<Url, FlakeError> {
    let scp = (!url.starts_with('/')).then(|| split_scp(url)).flatten();
    let url = scp.as_deref().unwrap_or(url);
    if !url.starts_with("file:") && !url.starts_with("git+file:") && !url.contains("://") {
        let path: Vec<String> = url.split('/').map(str::to_owned).collect();
        if path[0].contains(':') {
            return Err(FlakeError::BadUrl(format!(
                "SCP-like URL '{url}' is not supported; use SSH URL syntax instead (ssh://...)"
            )));
        }
        let authority = url.starts_with('/').then(Authority::default);
        return Ok(Url { scheme: "file".to_owned(), authority, path, ..Url::default() });
    }
    let mut parsed = Url::parse(url, false)?;
    if application(&parsed.scheme) == Some("git") {
        parsed.scheme = transport(&parsed.scheme).to_owned();
    }
    Ok(parsed)
}

/// `user@host:path` as a URL.
fn split_scp(url: &str) -> Option<String> {
    // the user holds no slash, and of several signs the last one divides
    let user_limit = url.find('/').unwrap_or(url.len());
    let (before_colon, path) = url.rsplit_once(':')?;
    let at = before_colon.get(..user_limit.min(before_colon.len()))?.rfind('@')?;
    Some(format!("ssh://{}@{}/{path}", &before_colon[..at], &before_colon[at + 1..]))
}
