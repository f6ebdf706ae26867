//! The machine's Nix configuration, as far as evaluating and fetching depend on it: what `nix.conf` says of features, tokens,
//! registries and so on counts for bento too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use bento_eval::Settings;
use bento_eval::flake::{FetchSettings, Registries};
use bento_eval::syntax::Lint;

/// As Nix: an hour.
const TARBALL_TTL: u64 = 3600;
const FLAKE_REGISTRY: &str = "https://channels.nixos.org/flake-registry.json";
/// More files that include each other than this are a circle.
const MAX_INCLUDES: u32 = 20;

/// What evaluation and fetching are to be like on this machine, with the network: according to `nix.conf`, the user's file of that
/// name, and `NIX_CONFIG`. What can't be read or makes no sense is left out.
#[must_use]
pub fn settings() -> Settings {
    let directory = conf_dir();
    let fetch = FetchSettings {
        network: true,
        cache: Some(cache_dir()),
        ttl: TARBALL_TTL,
        netrc: Some(directory.join("netrc")),
        certificates: env("NIX_SSL_CERT_FILE").or_else(|| env("SSL_CERT_FILE")).map(PathBuf::from),
        registries: Registries {
            user: config_home().map(|home| home.join("registry.json")),
            system: Some(directory.join("registry.json")),
            global: FLAKE_REGISTRY.to_owned(),
            ..Registries::default()
        },
        ..FetchSettings::default()
    };
    let mut settings = Settings { fetch, ..Settings::default() };
    let mut said = machine();
    // this one counts more than `system`, wherever it stands
    said.sort_by_key(|(name, _)| name == "eval-system");
    for (name, value) in said {
        // what is wrong there is for Nix to complain of
        let _ = set(&mut settings, &name, &value);
    }
    settings
}

/// Whether whole traces of errors are shown.
#[must_use]
pub fn shows_trace() -> bool {
    says("show-trace")
}

/// Where this machine looks `<name>` up, before its [`channels`]: `NIX_PATH`, or else what the configuration says.
#[must_use]
pub fn search_path() -> Vec<String> {
    if let Ok(text) = std::env::var("NIX_PATH") {
        return split_nix_path(&text);
    }
    let mut entries = Vec::new();
    for (name, value) in machine() {
        let value = value.split_whitespace().map(str::to_owned);
        match name.as_str() {
            "nix-path" => entries = value.collect(),
            "extra-nix-path" => entries.extend(value),
            _ => {}
        }
    }
    entries
}

/// Where `<name>` is looked up last: the channels of the user and of root, if there are any.
#[must_use]
pub fn channels() -> Vec<String> {
    const ROOT: &str = "/nix/var/nix/profiles/per-user/root/channels";
    let user = if says("use-xdg-base-directories") {
        let own = env("NIX_STATE_HOME").map(PathBuf::from);
        own.or_else(|| Some(env("XDG_STATE_HOME").map(PathBuf::from).or_else(|| home(".local/state"))?.join("nix")))
            .map(|state| state.join("defexpr"))
    } else {
        home(".nix-defexpr")
    };
    let user = user.map(|user| user.join("channels")).filter(|place| place.exists());
    let mut entries: Vec<String> =
        user.and_then(|place| place.into_os_string().into_string().ok()).into_iter().collect();
    if Path::new(ROOT).join("nixpkgs").exists() {
        entries.push(format!("nixpkgs={ROOT}/nixpkgs"));
    }
    if Path::new(ROOT).exists() {
        entries.push(ROOT.to_owned());
    }
    entries
}

/// Gives one of the settings about evaluating or fetching a value, as `nix.conf` and `--option` do. Gives whether `name` is one of
/// them.
///
/// # Errors
/// When the value makes no sense.
pub fn set(settings: &mut Settings, name: &str, value: &str) -> Result<bool> {
    let truth = || is_true(value).with_context(|| format!("Boolean setting '{name}' has invalid value '{value}'"));
    let lint = || {
        let known = value.parse::<Lint>();
        known.map_err(|()| {
            anyhow!("option '{name}' has invalid value '{value}' (expected 'ignore', 'warn', or 'fatal')")
        })
    };
    match name {
        "experimental-features" => enable_features(settings, value, false),
        "extra-experimental-features" => enable_features(settings, value, true),
        "restrict-eval" => settings.restricted = truth()?,
        "pure-eval" => settings.pure = truth()?,
        "trace-verbose" => settings.trace_verbose = truth()?,
        "abort-on-warn" => settings.abort_on_warn = truth()?,
        "allow-import-from-derivation" => settings.allow_import_from_derivation = truth()?,
        "trace-import-from-derivation" => settings.trace_import_from_derivation = truth()?,
        "system" => value.clone_into(&mut settings.system),
        "eval-system" if value.is_empty() => {}
        "eval-system" => value.clone_into(&mut settings.system),
        "lint-absolute-path-literals" => settings.lints.absolute_path_literals = lint()?,
        "lint-short-path-literals" => settings.lints.short_path_literals = lint()?,
        "lint-url-literals" => settings.lints.url_literals = lint()?,
        "max-call-depth" => {
            settings.max_call_depth =
                value.parse().with_context(|| format!("setting '{name}' has invalid value '{value}'"))?;
        }
        _ => return set_fetching(&mut settings.fetch, name, value),
    }
    Ok(true)
}

/// Allows these experimental features of the language, besides those that are allowed already if `keep` says so, and no others.
fn enable_features(settings: &mut Settings, names: &str, keep: bool) {
    let names: Vec<&str> = names.split_whitespace().collect();
    let features = [
        ("pipe-operators", &mut settings.pipe_operators),
        ("ca-derivations", &mut settings.ca_derivations),
        ("dynamic-derivations", &mut settings.dynamic_derivations),
        ("impure-derivations", &mut settings.impure_derivations),
        ("git-hashing", &mut settings.git_hashing),
        ("blake3-hashes", &mut settings.blake3_hashes),
        ("fetch-closure", &mut settings.fetch_closure),
        ("parse-toml-timestamps", &mut settings.parse_toml_timestamps),
    ];
    for (name, enabled) in features {
        *enabled = names.contains(&name) || (keep && *enabled);
    }
}

/// Gives one of the settings about fetching a value, as `nix.conf` and `--option` do. Gives whether `name` is one of them.
///
/// # Errors
/// When the value makes no sense.
pub fn set_fetching(settings: &mut FetchSettings, name: &str, value: &str) -> Result<bool> {
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

/// Whether the machine's configuration says yes to something.
fn says(setting: &str) -> bool {
    machine().iter().rfind(|(name, _)| name == setting).and_then(|(_, value)| is_true(value)).unwrap_or(false)
}

/// What the machine's configuration says, each setting with its value; what comes later counts more. What can't be read is left out.
fn machine() -> Vec<(String, String)> {
    let directory = conf_dir();
    let mut said = Vec::new();
    read_file(&mut said, &directory.join("nix.conf"), 0);
    let mut files: Vec<PathBuf> = match env("NIX_USER_CONF_FILES") {
        Some(files) => files.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect(),
        None => {
            let shared = env("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".to_owned());
            let shared = shared.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join("nix"));
            config_home().into_iter().chain(shared).map(|dir| dir.join("nix.conf")).collect()
        }
    };
    // the first one counts most
    files.reverse();
    for file in files {
        read_file(&mut said, &file, 0);
    }
    if let Some(text) = env("NIX_CONFIG") {
        read(&mut said, &text, &directory, 0);
    }
    said
}

fn read_file(said: &mut Vec<(String, String)>, file: &Path, depth: u32) {
    if let Ok(text) = std::fs::read_to_string(file) {
        read(said, &text, file.parent().unwrap_or(Path::new("/")), depth);
    }
}

/// Reads `NAME = VALUE` lines; `include` takes files from `directory`.
fn read(said: &mut Vec<(String, String)>, text: &str, directory: &Path, depth: u32) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["include" | "!include", file] if depth < MAX_INCLUDES => {
                read_file(said, &directory.join(file), depth + 1);
            }
            [name, "=", value @ ..] => said.push(((*name).to_owned(), value.join(" "))),
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

/// Where what is fetched is kept: in the machine's cache where nobody has a home directory, as with services.
fn cache_dir() -> PathBuf {
    let own = env("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home(".cache"));
    own.unwrap_or_else(|| PathBuf::from("/var/cache")).join("bento/fetch")
}
