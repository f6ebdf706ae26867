//! What fetching depends on besides the inputs themselves.

use super::reference::Input;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How sources are fetched, and where they are kept. The default uses no network, keeps nothing and has no registry.
#[derive(Clone, Default, Debug)]
pub struct FetchSettings {
    /// Whether the network may be used.
    pub network: bool,
    /// Where sources that were fetched are kept; without it they are gone with the evaluation.
    pub cache: Option<PathBuf>,
    /// For how many seconds what an address that can change led to is taken from the cache without asking again
    /// (`tarball-ttl`).
    pub ttl: u64,
    /// Tokens by host, or host and path (`access-tokens`).
    pub access_tokens: BTreeMap<String, String>,
    /// The file with the names and passwords for hosts (`netrc-file`).
    pub netrc: Option<PathBuf>,
    /// The file with the certificates that servers are checked against, in PEM form (`ssl-cert-file`).
    pub certificates: Option<PathBuf>,
    /// Where names of flakes are looked up.
    pub registries: Registries,
    /// Whether working directories with uncommitted changes are refused (`allow-dirty = false`).
    pub refuse_dirty: bool,
    /// Whether they are used without a warning (`warn-dirty = false`).
    pub quiet_about_dirty: bool,
    /// Whether a lock file may hold what is locked by its NAR hash alone (`allow-dirty-locks`).
    pub allow_dirty_locks: bool,
}

/// Where names of flakes are looked up, in the order in which they are asked.
#[derive(Clone, Default, Debug)]
pub struct Registries {
    /// What the command line gave (`--override-flake`).
    pub overrides: Vec<RegistryEntry>,
    /// The user's file, `~/.config/nix/registry.json`.
    pub user: Option<PathBuf>,
    /// The machine's file, `/etc/nix/registry.json`.
    pub system: Option<PathBuf>,
    /// The file that everybody has (`flake-registry`), as an absolute path or a URL; none if empty.
    pub global: String,
}

/// An entry of a registry: what stands for something else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegistryEntry {
    /// What is looked up.
    pub from: Input,
    /// What it stands for.
    pub to: Input,
    /// The directory of the flake in there.
    pub dir: Option<String>,
    /// Whether only exactly `from` is meant, not `from` with another branch or commit.
    pub exact: bool,
}
