//! The fleet: which hosts there are, read from the administrator's directory.
//!
//! A directory below `hosts/` with a `flake.nix` holds a host for each of its `nixosConfigurations`, one with only a
//! `configuration.nix` is a host of the directory's name, and a `flake.nix` at the top holds hosts as well. With a flake
//! at the top, other directories below `hosts/` are that flake's business.

pub mod config;
pub mod init;
mod selection;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use crate::evaluation::{Evaluator, Subject};
use crate::host::{Host, HostKind, HostName};
use crate::secrets::folder::{self, Folders};
use crate::source::SourceTree;

pub use selection::{Selection, Shard};

/// A host of the fleet and its files.
#[derive(Debug)]
pub struct FleetHost {
    /// Name and kind.
    pub host: Host,
    /// The directory that it is written in, for messages.
    pub dir: PathBuf,
    /// The staged files; hosts of one flake share them.
    pub tree: Arc<SourceTree>,
    /// The host's folder of secrets, if there is one.
    pub secrets: Option<PathBuf>,
}

impl FleetHost {
    /// The host as evaluators take it.
    pub fn subject(&self) -> Subject<'_> {
        Subject { tree: &self.tree, host: &self.host }
    }

    /// Whether there are secrets for it.
    pub fn has_secrets(&self) -> Result<bool> {
        self.secrets.as_deref().map_or(Ok(false), folder::has_secrets)
    }
}

/// Something in the fleet that is no sound host.
#[derive(Debug)]
pub struct Broken {
    /// The host, where it is known which.
    pub name: Option<HostName>,
    /// The directory.
    pub dir: PathBuf,
    /// What is wrong, naming file and place.
    pub error: anyhow::Error,
}

/// What was found.
#[derive(Debug)]
pub struct Fleet {
    /// The sound hosts by name.
    pub hosts: Vec<FleetHost>,
    /// What is no host but should be one.
    pub broken: Vec<Broken>,
}

/// A directory that holds hosts.
struct Candidate {
    dir: PathBuf,
    kind: HostKind,
    /// Whether it is the fleet's directory itself.
    top: bool,
}

impl Fleet {
    /// Finds the hosts of the fleet in `root` and stages those that are selected.
    ///
    /// What is wrong with one directory is in [`Fleet::broken`] and stops no other host; an error is what concerns the
    /// whole fleet, and a selected name that isn't there.
    pub fn discover(root: &Path, evaluator: &dyn Evaluator, selection: &Selection) -> Result<Self> {
        let mut broken = Vec::new();
        let candidates = candidates(root, &mut broken)?;
        let secrets = Folders::of_fleet(root)?;
        if candidates.is_empty() && broken.is_empty() {
            bail!(
                "{} holds no host: make a directory hosts/NAME with a configuration.nix or a flake.nix, or a flake.nix \
                 beside hosts/ (BENTO_DIR tells where the fleet is)",
                root.display()
            );
        }
        // several directories may claim a name
        let mut found: BTreeMap<HostName, Vec<FleetHost>> = BTreeMap::new();
        // not staged, but known to be there
        let mut unselected = Vec::new();
        for candidate in candidates {
            if candidate.kind == HostKind::NonFlake {
                let name = dir_name(&candidate.dir).ok().and_then(|name| HostName::new(name).ok());
                unselected.extend(name.filter(|name| !selection.includes(name)));
            }
            match hosts_of(&candidate, &secrets, evaluator, selection) {
                Ok(hosts) => {
                    for host in hosts {
                        found.entry(host.host.name.clone()).or_default().push(host);
                    }
                }
                Err(error) => {
                    let name = match candidate.kind {
                        HostKind::NonFlake => dir_name(&candidate.dir).and_then(|name| Ok(HostName::new(name)?)).ok(),
                        HostKind::Flake => None,
                    };
                    broken.push(Broken { name, dir: candidate.dir, error });
                }
            }
        }
        let mut hosts = Vec::new();
        for (name, mut claims) in found {
            if claims.len() > 1 {
                let dirs: Vec<String> = claims.iter().map(|claim| claim.dir.display().to_string()).collect();
                let error = anyhow!(
                    "the host name {name} is taken more than once: by {}; rename it in all but one of them",
                    dirs.join(" and by ")
                );
                broken.push(Broken { name: Some(name), dir: claims.remove(0).dir, error });
            } else {
                hosts.append(&mut claims);
            }
        }
        let fleet = Self { hosts, broken };
        fleet.check_selection(selection, &unselected)?;
        Ok(fleet)
    }

    /// Complains about selected names that nothing in the fleet has.
    fn check_selection(&self, selection: &Selection, unselected: &[HostName]) -> Result<()> {
        let names = self.hosts.iter().map(|host| &host.host.name);
        let known = names.clone().chain(self.broken.iter().filter_map(|broken| broken.name.as_ref()));
        let Some(missing) = selection.missing(known) else { return Ok(()) };
        // a flake that can't be read may well hold the name
        if let Some(broken) = self.broken.iter().find(|broken| broken.name.is_none()) {
            bail!("{missing} was found, but {} could not be read: {:#}", broken.dir.display(), broken.error);
        }
        let mut all: Vec<&str> = names.chain(unselected).map(HostName::as_str).collect();
        all.sort_unstable();
        let hint = if all.is_empty() { String::new() } else { format!("; found: {}", all.join(", ")) };
        bail!("the fleet has {missing}{hint}");
    }

    /// What is broken that a command is about: with a selection, only what concerns it.
    pub fn concerned(&self, selection: &Selection) -> impl Iterator<Item = &Broken> {
        let concerns = |name: &HostName| selection.includes(name);
        self.broken.iter().filter(move |broken| broken.name.as_ref().map_or(selection.is_all(), concerns))
    }

    /// The hosts that a command is about.
    pub fn selected(&self, selection: &Selection) -> impl Iterator<Item = &FleetHost> {
        self.hosts.iter().filter(move |host| selection.includes(&host.host.name))
    }
}

/// The directories with a flake in the fleet in `root`: the top if it has one, and those below `hosts/`.
pub fn flake_dirs(root: &Path) -> Result<Vec<PathBuf>> {
    let candidates = candidates(root, &mut Vec::new())?;
    Ok(candidates.into_iter().filter(|found| found.kind == HostKind::Flake).map(|found| found.dir).collect())
}

/// A directory's own name.
fn dir_name(dir: &Path) -> Result<&str> {
    dir.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no name in UTF-8", dir.display()))
}

/// Finds the directories that hold hosts; those that should but don't go to `broken`.
fn candidates(root: &Path, broken: &mut Vec<Broken>) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    let top_flake = root.join("flake.nix").exists();
    if top_flake {
        candidates.push(Candidate { dir: root.to_owned(), kind: HostKind::Flake, top: true });
    }
    let hosts = root.join("hosts");
    let entries = match fs::read_dir(&hosts) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && top_flake => return Ok(candidates),
        Err(e) => {
            return Err(e).with_context(|| {
                format!("cannot read {}: is {} a fleet's directory? (BENTO_DIR tells)", hosts.display(), root.display())
            });
        }
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", hosts.display()))?;
        // hosts/default.nix and the like are no hosts, hidden directories neither
        if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            dirs.push(entry.path());
        }
    }
    dirs.sort();
    for dir in dirs {
        if dir.join("flake.nix").exists() {
            candidates.push(Candidate { dir, kind: HostKind::Flake, top: false });
        } else if dir.join("configuration.nix").exists() {
            candidates.push(Candidate { dir, kind: HostKind::NonFlake, top: false });
        } else if !top_flake {
            let name = dir_name(&dir).ok().and_then(|name| HostName::new(name).ok());
            let error = match fs::read_dir(&dir) {
                Err(e) => anyhow!(e).context(format!("cannot read the directory {}", dir.display())),
                Ok(_) => anyhow!(
                    "{} has neither a configuration.nix nor a flake.nix: add one, or move the directory out of hosts/",
                    dir.display()
                ),
            };
            broken.push(Broken { name, dir, error });
        }
    }
    Ok(candidates)
}

/// The hosts that a directory holds: all names of a flake, as a clash must be seen even if only one is selected.
fn hosts_of(
    candidate: &Candidate,
    secrets: &Folders,
    evaluator: &dyn Evaluator,
    selection: &Selection,
) -> Result<Vec<FleetHost>> {
    let dir = &candidate.dir;
    let existing = |folder: PathBuf| Some(folder).filter(|folder| folder.is_dir());
    match candidate.kind {
        HostKind::NonFlake => {
            let name = HostName::new(dir_name(dir)?).with_context(|| format!("the directory {}", dir.display()))?;
            if !selection.includes(&name) {
                return Ok(Vec::new());
            }
            let tree = Arc::new(SourceTree::stage(dir, secrets)?);
            let secrets = existing(dir.join(folder::NAME));
            Ok(vec![FleetHost { host: Host { name, kind: HostKind::NonFlake }, dir: dir.clone(), tree, secrets }])
        }
        HostKind::Flake => {
            let tree = Arc::new(SourceTree::stage(dir, secrets)?);
            let names = evaluator
                .flake_hosts(&tree)
                .map_err(|error| anyhow!(tree.original_names(&format!("{error:#}"))))
                .with_context(|| format!("cannot read nixosConfigurations of {}", dir.join("flake.nix").display()))?;
            if names.is_empty() {
                bail!("{} has no nixosConfigurations", dir.join("flake.nix").display());
            }
            // at the top such a folder is whatever the flake makes of it
            let whole = if candidate.top { None } else { existing(dir.join(folder::NAME)) };
            if let Some(whole) = whole.as_ref().filter(|_| names.len() > 1)
                && folder::has_secrets(whole)?
            {
                bail!(
                    "{} belongs to no host, as the flake beside it has several: put secrets into {}/NAME/{}",
                    whole.display(),
                    dir.join("hosts").display(),
                    folder::NAME
                );
            }
            let alone = names.len() == 1;
            let mut hosts = Vec::new();
            for name in names {
                let name = HostName::new(name)
                    .with_context(|| format!("nixosConfigurations of {}", dir.join("flake.nix").display()))?;
                let host = Host { name, kind: HostKind::Flake };
                let own = existing(dir.join("hosts").join(host.name.as_str()).join(folder::NAME));
                let secrets = match (own, whole.clone().filter(|_| alone)) {
                    (Some(own), Some(whole)) => bail!(
                        "the secrets of {} are in two places: {} and {}; keep one",
                        host.name,
                        own.display(),
                        whole.display()
                    ),
                    (own, whole) => own.or(whole),
                };
                hosts.push(FleetHost { host, dir: dir.clone(), tree: tree.clone(), secrets });
            }
            Ok(hosts)
        }
    }
}
