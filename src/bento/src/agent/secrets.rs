//! The host's secrets: kept encrypted beside the agent's state, decrypted below `/run`, which is gone with the power.
//!
//! Each system has the secrets of the release that brought it. They are in place before it is activated, those of the system
//! before come back with that, and after a boot those of the system that came up.
//!
//! ```text
//! STATE/secrets/
//!   sets/NAME/             the encrypted secrets of one release, and set.json, which says what they are
//!   trial -> sets/NAME     those of the system that is being tried out
//!   previous -> sets/NAME  those of the system to go back to
//!   current -> sets/NAME   those of the last system that worked
//! /run/bento/
//!   secrets -> secrets.d/NAME/files
//!   secrets.d/NAME/        the only one, but for a moment: files/, and set.json
//!   restart.json           units that have not heard yet of secrets that have changed
//! ```

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::agent::config::AgentConfig;
use crate::files::{self, TEMPORARY};
use crate::manifest::Manifest;
use crate::package::place;
use crate::secrets::{Access, LIMIT, Secret};
use crate::sign::read_public_key;
use crate::store_path::StorePath;

/// The version of the schema of a set's record.
const SCHEMA: u32 = 1;
/// The file of a set's record.
const RECORD: &str = "set.json";
/// The file of the units that have to be restarted.
const RESTART: &str = "restart.json";
/// The number of ramfs, which nix has no name for: linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Which of the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Trial,
    Previous,
    Current,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Trial => "trial",
            Self::Previous => "previous",
            Self::Current => "current",
        }
    }
}

/// What a set of secrets is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    schema: u32,
    /// The release.
    serial: u64,
    /// The system that it came to here.
    toplevel: StorePath,
    secrets: Vec<Secret>,
}

/// A set of secrets, decrypted, in the order of its record.
struct Open {
    record: Record,
    contents: Vec<Zeroizing<Vec<u8>>>,
}

/// The secrets of this host.
#[derive(Debug)]
pub struct Secrets {
    /// The encrypted sets.
    kept: PathBuf,
    /// Where they are decrypted.
    run: PathBuf,
    /// The private key that they are decrypted with.
    identity: PathBuf,
}

impl Secrets {
    /// Those of the host that a configuration is about.
    pub fn new(config: &AgentConfig) -> Self {
        Self {
            kept: config.state_dir.join("secrets"),
            run: config.system.root.join("run/bento"),
            identity: config.hub.identity.clone(),
        }
    }

    /// Sees that a release's secrets can be decrypted and put in place here; `fetched` holds them. Changes nothing.
    pub fn check(&self, manifest: &Manifest, fetched: &Path) -> Result<()> {
        if manifest.secrets.is_empty() {
            return Ok(());
        }
        self.decrypt(fetched, &manifest.secrets)?;
        self.check_memory()
    }

    /// Lays out a release's secrets for a host that is yet to be installed, in what will be its state directory: as those of the
    /// system that it is installed with. `fetched` holds them.
    pub fn lay_out(state_dir: &Path, manifest: &Manifest, fetched: &Path, toplevel: &StorePath) -> Result<()> {
        let secrets = Self { kept: state_dir.join("secrets"), run: PathBuf::new(), identity: PathBuf::new() };
        if manifest.secrets.is_empty() {
            return Ok(());
        }
        secrets.prepare(manifest, fetched, toplevel, None)?;
        secrets.accept()
    }

    /// Keeps a release's secrets as those of the system that is to be tried out, and what there is now as those of the one to go
    /// back to.
    pub fn prepare(
        &self,
        manifest: &Manifest,
        fetched: &Path,
        toplevel: &StorePath,
        running: Option<&StorePath>,
    ) -> Result<()> {
        let (serial, toplevel, secrets) = (manifest.serial, toplevel.clone(), manifest.secrets.clone());
        let record = Record { schema: SCHEMA, serial, toplevel, secrets };
        if record.secrets.is_empty() && !self.kept.exists() {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&record)?;
        let name = format!("sets/{serial}-{}", &blake3::hash(&text).to_hex()[..16]);
        let set = self.kept.join(&name);
        if !set.is_dir() {
            let sets = self.kept.join("sets");
            make_dir(&sets, 0o700)?;
            files::clear_temporaries(&sets)?;
            let temporary = sets.join(format!("{TEMPORARY}{serial}"));
            make_dir(&temporary, 0o700)?;
            for secret in &record.secrets {
                let content = read(&place(fetched, &secret.path)?, secret.size)?;
                let target = place(&temporary.join("files"), &secret.path)?;
                make_dir(target.parent().unwrap_or(&temporary), 0o700)?;
                files::write_atomic(&target, &content, 0o600, None)?;
            }
            files::write_atomic(&temporary.join(RECORD), &text, 0o600, None)?;
            fs::rename(&temporary, &set).with_context(|| format!("cannot create {}", set.display()))?;
            files::sync_dir(&sets)?;
        }
        self.try_set(&name, running)
    }

    /// Has the system that is to be tried out, which ran before, get its secrets back if they are still there, and else those that
    /// there are now.
    pub fn prepare_return(&self, toplevel: &StorePath, running: Option<&StorePath>) -> Result<()> {
        match self.set_of(toplevel).or_else(|| self.link(Role::Current)) {
            Some(set) => self.try_set(&set, running),
            None => Ok(()),
        }
    }

    /// Makes a set that of the system that is to be tried out, and keeps what there is now for the one to go back to.
    fn try_set(&self, set: &str, running: Option<&StorePath>) -> Result<()> {
        // a trial that waits for its boot is what runs, and what to go back to
        if let Some(before) = running.and_then(|running| self.set_of(running)).or_else(|| self.link(Role::Current)) {
            self.point(Role::Previous, &before)?;
        }
        self.point(Role::Trial, set)?;
        self.forget_others()
    }

    /// Puts the secrets of the system that is about to be activated in place. A secret whose owner is not known yet is root's
    /// for now: the system may bring its owner.
    pub fn place_trial(&self) -> Result<()> {
        match self.link(Role::Trial) {
            Some(set) => self.place(&set),
            None => self.clear(),
        }
    }

    /// Puts the secrets of a system in place that ran before, or after a boot those of the one that came up.
    pub fn place_for(&self, toplevel: Option<&StorePath>) -> Result<()> {
        match toplevel.and_then(|toplevel| self.set_of(toplevel)).or_else(|| self.link(Role::Current)) {
            Some(set) => self.place(&set),
            None => self.clear(),
        }
    }

    /// The system that was tried out is kept: so are its secrets.
    pub fn accept(&self) -> Result<()> {
        let Some(set) = self.link(Role::Trial) else { return Ok(()) };
        self.point(Role::Current, &set)?;
        for role in [Role::Trial, Role::Previous] {
            files::remove(&self.kept.join(role.name()))?;
        }
        self.forget_others()
    }

    /// The system that was tried out is given up.
    pub fn discard(&self) -> Result<()> {
        files::remove(&self.kept.join(Role::Trial.name()))
    }

    /// Whether secrets are in place.
    pub fn in_place(&self) -> bool {
        self.files().is_some()
    }

    /// Gives the secrets that are in place to their owners. An error names an owner that isn't there.
    pub fn give_away(&self) -> Result<()> {
        let Some(files) = self.files() else { return Ok(()) };
        let placed = files.parent().context("the secrets lie nowhere")?;
        let record = read_record(placed)?;
        for secret in &record.secrets {
            let file = place(&files, &secret.path)?;
            give(&file, &secret.access).with_context(|| format!("the secret {}", secret.path))?;
        }
        Ok(())
    }

    /// The units that have to be restarted because what they read has changed since they may have started, sorted. They are known
    /// until [`Secrets::restarted`], or until the machine restarts.
    pub fn to_restart(&self) -> Vec<String> {
        let text = fs::read(self.run.join(RESTART)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// These units have been restarted.
    pub fn restarted(&self) -> Result<()> {
        files::remove(&self.run.join(RESTART))
    }

    /// Notes the units that read secrets which differ between what is in place and what comes.
    fn note_changes(&self, new: &[Secret]) -> Result<()> {
        // where that can't be read, all of it counts as changed
        let placed = self.files().and_then(|files| read_record(files.parent()?).ok());
        let old = placed.map_or_else(Vec::new, |record| record.secrets);
        let differs = |secret: &&Secret| !(old.contains(secret) && new.contains(secret));
        let changed = old.iter().chain(new).filter(differs).flat_map(|secret| secret.access.units.clone());
        let units: BTreeSet<String> = changed.chain(self.to_restart()).collect();
        if units.is_empty() {
            return Ok(());
        }
        make_dir(&self.run, 0o751)?;
        files::write_atomic(&self.run.join(RESTART), &serde_json::to_vec(&units)?, 0o600, None)
    }

    /// Where the link to the decrypted secrets leads, if it is there.
    fn files(&self) -> Option<PathBuf> {
        let target = fs::read_link(self.run.join("secrets")).ok()?;
        Some(self.run.join(target)).filter(|files| files.is_dir())
    }

    /// The name of the set in a role.
    fn link(&self, role: Role) -> Option<String> {
        let target = fs::read_link(self.kept.join(role.name())).ok()?;
        Some(target.to_str()?.to_owned())
    }

    fn point(&self, role: Role, set: &str) -> Result<()> {
        files::link_atomic(set, &self.kept.join(role.name()))
    }

    /// The set that came with a system, if one did.
    fn set_of(&self, toplevel: &StorePath) -> Option<String> {
        [Role::Previous, Role::Current, Role::Trial]
            .into_iter()
            .filter_map(|role| self.link(role))
            .find(|set| read_record(&self.kept.join(set)).is_ok_and(|record| &record.toplevel == toplevel))
    }

    /// Removes the sets that no link leads to.
    fn forget_others(&self) -> Result<()> {
        let linked: Vec<String> =
            [Role::Trial, Role::Previous, Role::Current].into_iter().filter_map(|role| self.link(role)).collect();
        files::clear_temporaries(&self.kept)?;
        let sets = self.kept.join("sets");
        for entry in fs::read_dir(&sets).with_context(|| format!("cannot list {}", sets.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", sets.display()))?;
            let name = format!("sets/{}", entry.file_name().to_string_lossy());
            if !linked.contains(&name) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Decrypts secrets; `dir` holds them.
    fn decrypt(&self, dir: &Path, secrets: &[Secret]) -> Result<Vec<Zeroizing<Vec<u8>>>> {
        let identity = &self.identity;
        let file = File::open(identity).with_context(|| format!("cannot read the key {}", identity.display()))?;
        let key = age::ssh::Identity::from_buffer(BufReader::new(file), None)
            .with_context(|| format!("{} is no SSH private key", identity.display()))?;
        match &key {
            age::ssh::Identity::Unencrypted(_) => {}
            age::ssh::Identity::Encrypted(_) => {
                bail!("{} has a passphrase: secrets can't be decrypted with it", identity.display())
            }
            age::ssh::Identity::Unsupported(_) => {
                bail!("secrets can't be decrypted with {}: it is neither ed25519 nor RSA", identity.display())
            }
        }
        let decrypt = |secret: &Secret| {
            let sealed = read(&place(dir, &secret.path)?, secret.size)?;
            let mut content = Zeroizing::new(Vec::new());
            age::Decryptor::new_buffered(sealed.as_slice())
                .and_then(|decryptor| decryptor.decrypt(std::iter::once(&key as &dyn age::Identity)))
                .map_err(|error| match error {
                    age::DecryptError::NoMatchingKeys => {
                        anyhow!("it is encrypted to other keys than {}", self.public())
                    }
                    error => anyhow!("{error}"),
                })
                .and_then(|reader| Ok(reader.take(LIMIT + 1).read_to_end(&mut content)?))
                .with_context(|| format!("the secret {} can't be decrypted", secret.path))?;
            if content.len() as u64 > LIMIT {
                bail!("the secret {} is larger than {LIMIT} bytes", secret.path);
            }
            Ok(content)
        };
        secrets.iter().map(decrypt).collect()
    }

    /// The public half of the key, for messages: what the administrator has to write down.
    fn public(&self) -> String {
        match read_public_key(&self.identity) {
            Ok((_, line)) => format!("this host's ({line}): say so to the administrator, whose settings have others"),
            Err(_) => format!("that in {}", self.identity.display()),
        }
    }

    /// Refuses to decrypt anything onto a disk.
    fn check_memory(&self) -> Result<()> {
        let existing = self.run.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        let kind =
            statfs(existing).with_context(|| format!("cannot look at {}", existing.display()))?.filesystem_type();
        if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
            bail!("{} is not in memory (tmpfs): secrets are not decrypted onto a disk", existing.display());
        }
        Ok(())
    }

    /// Decrypts a set and puts it in place of the one that is there, by one rename.
    fn place(&self, set: &str) -> Result<()> {
        let dir = self.kept.join(set);
        let record = read_record(&dir)?;
        if record.secrets.is_empty() {
            return self.clear();
        }
        self.check_memory()?;
        self.note_changes(&record.secrets)?;
        let contents = self.decrypt(&dir.join("files"), &record.secrets)?;
        let open = Open { record, contents };
        let sets = self.run.join("secrets.d");
        for dir in [&self.run, &sets] {
            make_dir(dir, 0o751)?;
        }
        let holder = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(&sets)
            .with_context(|| format!("cannot write to {}", sets.display()))?;
        fs::set_permissions(holder.path(), Permissions::from_mode(0o751))
            .with_context(|| format!("cannot set the mode of {}", holder.path().display()))?;
        open.write(holder.path())?;
        let holder = holder.keep();
        let name = holder.file_name().unwrap_or_default().to_string_lossy();
        files::link_atomic(&format!("secrets.d/{name}/files"), &self.run.join("secrets"))?;
        for entry in fs::read_dir(&sets).with_context(|| format!("cannot list {}", sets.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", sets.display()))?.path();
            if path != holder {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the secrets that are in place.
    fn clear(&self) -> Result<()> {
        self.note_changes(&[])?;
        files::remove(&self.run.join("secrets"))?;
        files::remove(&self.run.join("secrets.d"))
    }
}

impl Open {
    /// Writes the secrets into a directory, each readable to nobody but its owner at any time.
    fn write(&self, holder: &Path) -> Result<()> {
        let files = holder.join("files");
        make_dir(&files, 0o751)?;
        for (secret, content) in self.record.secrets.iter().zip(&self.contents) {
            let file = place(&files, &secret.path)?;
            let mut above = files.clone();
            let parts: Vec<&str> = secret.path.split('/').collect();
            for part in &parts[..parts.len() - 1] {
                above.push(part);
                make_dir(&above, 0o751)?;
            }
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&file)
                .and_then(|mut copy| copy.write_all(content))
                .with_context(|| format!("cannot write the secret {}", file.display()))?;
            // whoever is unknown now gets it when the system that brings him is active
            let _ = give(&file, &secret.access);
        }
        files::write_atomic(&holder.join(RECORD), &serde_json::to_vec_pretty(&self.record)?, 0o600, None)
    }
}

/// The record of a set.
fn read_record(dir: &Path) -> Result<Record> {
    let file = dir.join(RECORD);
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let record: Record = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
    if record.schema != SCHEMA {
        bail!("{} has schema {}, but this bento knows only {SCHEMA}", file.display(), record.schema);
    }
    crate::secrets::check(&record.secrets).with_context(|| file.display().to_string())?;
    Ok(record)
}

/// Reads a file that must have so many bytes.
fn read(file: &Path, size: u64) -> Result<Vec<u8>> {
    let content = files::read_untrusted(file, size)?;
    if content.len() as u64 != size {
        bail!("{} is damaged: it has {} bytes instead of {size}", file.display(), content.len());
    }
    Ok(content)
}

/// Makes a directory and those above it, where they aren't there.
fn make_dir(dir: &Path, mode: u32) -> Result<()> {
    let context = || format!("cannot create {}", dir.display());
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(dir).with_context(context)?;
    // the umask may have taken bits away
    fs::set_permissions(dir, Permissions::from_mode(mode)).with_context(context)
}

/// Gives a secret to its owner and group, with its mode.
fn give(file: &Path, access: &Access) -> Result<()> {
    let user = match access.owner.parse() {
        Ok(number) => Uid::from_raw(number),
        Err(_) => {
            User::from_name(&access.owner)
                .with_context(|| format!("cannot look up the user {}", access.owner))?
                .with_context(|| format!("this host has no user {}", access.owner))?
                .uid
        }
    };
    let group = match access.group.parse() {
        Ok(number) => Gid::from_raw(number),
        Err(_) => {
            Group::from_name(&access.group)
                .with_context(|| format!("cannot look up the group {}", access.group))?
                .with_context(|| format!("this host has no group {}", access.group))?
                .gid
        }
    };
    let context = || format!("cannot give {} to {}", file.display(), access.owner);
    let open = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(file).with_context(context)?;
    std::os::unix::fs::fchown(&open, Some(user.as_raw()), Some(group.as_raw())).with_context(context)?;
    open.set_permissions(Permissions::from_mode(access.mode.bits())).with_context(context)
}
