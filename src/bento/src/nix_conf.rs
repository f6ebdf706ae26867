//! The machine's Nix configuration, as far as fetching depends on it: what `nix.conf` says of tokens, registries and so on
//! counts for bento too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bento_eval::flake::{FetchSettings, Registries};

/// As Nix: an hour.
const TARBALL_TTL: u64 = 3600;
const FLAKE_REGISTRY: &str = "https://channels.nixos.org/flake-registry.json";
/// More files that include each other than this are a circle.
const MAX_INCLUDES: u32 = 20;

/// How sources are fetched on this machine, with the network: according to `nix.conf`, the user's file of that name, and
/// `NIX_CONFIG`. What can't be read or makes no sense is left out.
#[must_use]
pub fn fetch_settings() -> FetchSettings {
    let directory = conf_dir();
    let config_home = config_home();
    let mut settings = FetchSettings {
        network: true,
        cache: cache_dir(),
        ttl: TARBALL_TTL,
        netrc: Some(directory.join("netrc")),
        certificates: env("NIX_SSL_CERT_FILE").or_else(|| env("SSL_CERT_FILE")).map(PathBuf::from),
        registries: Registries {
            user: config_home.as_ref().map(|home| home.join("registry.json")),
            system: Some(directory.join("registry.json")),
            global: FLAKE_REGISTRY.to_owned(),
            ..Registries::default()
        },
        ..FetchSettings::default()
    };
    apply_file(&mut settings, &directory.join("nix.conf"), 0);
    let mut files: Vec<PathBuf> = match env("NIX_USER_CONF_FILES") {
        Some(files) => files.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect(),
        None => {
            let shared = env("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".to_owned());
            let shared = shared.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join("nix"));
            config_home.into_iter().chain(shared).map(|dir| dir.join("nix.conf")).collect()
        }
    };
    // the first one counts most
    files.reverse();
    for file in files {
        apply_file(&mut settings, &file, 0);
    }
    if let Some(text) = env("NIX_CONFIG") {
        apply(&mut settings, &text, &directory, 0);
    }
    settings
}

/// Gives one of the settings about fetching a value, as `nix.conf` and `--option` do. Gives whether `name` is one of them.
///
/// # Errors
/// When the value makes no sense.
pub fn set(settings: &mut FetchSettings, name: &str, value: &str) -> Result<bool> {
    let truth = || is_true(value).with_context(|| format!("Boolean setting '{name}' has invalid value '{value}'"));
    let path = || Some(value).filter(|path| !path.is_empty()).map(PathBuf::from);
    let tokens = || {
        let pairs = value.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(host, token)| (host.to_owned(), token.to_owned())).collect::<BTreeMap<_, _>>()
    };
    match name {
        "access-tokens" => settings.access_tokens = tokens(),
        "extra-access-tokens" => settings.access_tokens.extend(tokens()),
        "netrc-file" => settings.netrc = path(),
        "ssl-cert-file" => settings.certificates = path(),
        "flake-registry" => value.clone_into(&mut settings.registries.global),
        "tarball-ttl" => {
            settings.ttl = value.parse().with_context(|| format!("setting '{name}' has invalid value '{value}'"))?;
        }
        "allow-dirty" => settings.refuse_dirty = !truth()?,
        "warn-dirty" => settings.quiet_about_dirty = !truth()?,
        "allow-dirty-locks" => settings.allow_dirty_locks = truth()?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// A Boolean as Nix's settings have it.
#[must_use]
pub fn is_true(value: &str) -> Option<bool> {
    match value {
        "true" | "yes" | "1" => Some(true),
        "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Whether Nix takes this for the address of a tarball rather than for a path.
#[must_use]
pub fn is_pseudo_url(text: &str) -> bool {
    text.starts_with("channel:")
        || text
            .split_once("://")
            .is_some_and(|(scheme, _)| matches!(scheme, "http" | "https" | "file" | "channel" | "git" | "s3" | "ssh"))
}

/// The entries of `NIX_PATH`, which are separated by colons; those in an address (`name=https://…`) don't count.
#[must_use]
pub fn split_nix_path(text: &str) -> Vec<String> {
    let mut entries = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.find(':').unwrap_or(rest.len());
        let value = rest[..end].rfind('=').map_or(0, |equals| equals + 1);
        if end < rest.len() && (is_pseudo_url(&rest[value..]) || rest[value..].starts_with("flake:")) {
            end = rest[end + 1..].find(':').map_or(rest.len(), |next| end + 1 + next);
        } else if end == 0 {
            rest = &rest[1..];
            continue;
        }
        entries.push(rest[..end].to_owned());
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    entries
}

fn apply_file(settings: &mut FetchSettings, file: &Path, depth: u32) {
    if let Ok(text) = std::fs::read_to_string(file) {
        apply(settings, &text, file.parent().unwrap_or(Path::new("/")), depth);
    }
}

/// Applies `NAME = VALUE` lines; `include` takes files from `directory`.
fn apply(settings: &mut FetchSettings, text: &str, directory: &Path, depth: u32) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["include" | "!include", file] if depth < MAX_INCLUDES => {
                apply_file(settings, &directory.join(file), depth + 1);
            }
            [name, "=", value @ ..] => {
                // what is wrong there is for Nix to complain of
                let _ = set(settings, name, &value.join(" "));
            }
            _ => {}
        }
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn home(directory: &str) -> Option<PathBuf> {
    env("HOME").map(|home| Path::new(&home).join(directory))
}

fn conf_dir() -> PathBuf {
    env("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from)
}

/// The directory of the user's Nix configuration.
fn config_home() -> Option<PathBuf> {
    let own = env("NIX_CONFIG_HOME").map(PathBuf::from);
    own.or_else(|| Some(env("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home(".config"))?.join("nix")))
}

/// Where what is fetched is kept.
fn cache_dir() -> Option<PathBuf> {
    Some(env("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home(".cache"))?.join("bento/fetch"))
}
