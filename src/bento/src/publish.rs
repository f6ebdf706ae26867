//! Publishing: an evaluated package becomes the current release of a host, all at once or not at all.
//!
//! The steps, each durable before the next: the files under a temporary name, renamed to `releases/N`; in the same way the
//! encrypted secrets, as `releases/N.secrets`; the manifest's signature, beside them; `manifest.json`, whose rename is the moment
//! at which the release is current, with `config`, `manifest.json.sig` and `last_change_date`, for people and for agents of the
//! original bento. A file that the release before has too is the same one, under a second name. A crash before the manifest's
//! rename leaves the old release (and files that the next publish clears), a crash after it the new one (and the next publish
//! mends the rest).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::unistd::{Uid, User};
use ssh_key::PublicKey;

use crate::evaluation::Evaluation;
use crate::files::{self, TEMPORARY};
use crate::host::{Host, HostName};
use crate::hub::{HostDir, Hub, modified, numbers};
use crate::manifest::{self, Manifest, Policy, ReleaseMode, release_dir, signature_file};
use crate::package::{Package, PackageFile, place};
use crate::report::{self, Presence};
use crate::secrets::{Secret, draft::Draft, secrets_dir};
use crate::sign::{self, Signer};
use crate::source::SourceTree;

/// How many releases a host's directory keeps: readers of an old manifest still find its files.
const KEPT: usize = 5;

/// What shall be published to one host.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// For whom.
    pub host: &'a Host,
    /// The staged files.
    pub tree: &'a SourceTree,
    /// What they are.
    pub package: Package,
    /// What only the host may read.
    pub secrets: Vec<Draft>,
    /// What they come to.
    pub evaluation: Evaluation,
    /// Entries of the search path that the host shall use.
    pub search_path: Vec<String>,
    /// How the host shall get the system.
    pub mode: ReleaseMode,
    /// URLs of binary caches that the host shall use besides its own.
    pub substituters: Vec<String>,
    /// The keys that these caches sign with.
    pub trusted_public_keys: Vec<String>,
    /// When the release expires, if ever.
    pub expires: Option<Timestamp>,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The host's current release is the same already; nothing was touched.
    Unchanged {
        /// Its serial.
        serial: u64,
    },
    /// There is (or, if only planned, would be) a new release.
    New {
        /// Its serial.
        serial: u64,
    },
}

/// A user of this machine that may read a host's directory.
#[derive(Clone, Copy, Debug)]
struct Reader {
    uid: u32,
    gid: u32,
}

/// The host's user, if this process may give files away and there is one.
fn reader(host: &Host) -> Result<Option<Reader>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name(host.name.as_str()).with_context(|| format!("cannot look up the user {}", host.name))?;
    Ok(user.map(|user| Reader { uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
}

/// What [`publish`] would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What would become of the candidate.
    pub published: Published,
    /// Why there would be a new release, in words.
    pub why: Vec<String>,
}

/// What [`publish`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of the candidate.
    pub published: Published,
    /// Why there is a new release, in words.
    pub why: Vec<String>,
    /// Whether this process could give the host's directory to its user but there is no such user yet.
    pub lacks_user: bool,
}

/// Says what [`publish`] would do if it signed with the private half of `key`, and does nothing.
pub fn plan(hub: &Hub, candidate: &Candidate<'_>, key: Option<&PublicKey>, now: Timestamp) -> Result<Plan> {
    let next = next_manifest(&hub.host(&candidate.host.name), candidate, key, now)?;
    Ok(Plan {
        published: match next.why.is_empty() {
            true => Published::Unchanged { serial: next.serial },
            false => Published::New { serial: next.serial },
        },
        why: next.why,
    })
}

/// Makes the candidate the host's current release, signed if there is someone to sign it. The caller holds the hub's
/// lock.
pub fn publish(hub: &Hub, candidate: &Candidate<'_>, signer: Option<&Signer>, now: Timestamp) -> Result<Outcome> {
    let dir = hub.host(&candidate.host.name);
    let reader = reader(candidate.host)?;
    let lacks_user = reader.is_none() && Uid::effective().is_root();
    lay_out(&dir, reader)?;
    clear_leftovers(&dir)?;
    let key = signer.map(Signer::public_key);
    let Next { serial, manifest, sealed, whole, why } = next_manifest(&dir, candidate, key, now)?;
    if why.is_empty() {
        finish(&dir, serial, reader)?;
        give_to(&dir.releases(), reader)?;
        give_to(&dir.manifest_file(), reader)?;
        if dir.signature_file(serial).exists() {
            give_to(&dir.signature_file(serial), reader)?;
        }
        return Ok(Outcome { published: Published::Unchanged { serial }, why, lacks_user });
    }
    let releases = dir.releases();
    let temporary = releases.join(format!("{TEMPORARY}{serial}"));
    make_dir(&temporary)?;
    let there = whole.as_ref().map(|current| Served::of(&dir, current)).unwrap_or_default();
    for file in &manifest.files {
        if there.link(file, &temporary)? {
            continue;
        }
        let from = candidate.tree.path().join(&file.path);
        let source = File::open(&from).with_context(|| format!("cannot read {}", from.display()))?;
        put(source, &temporary, &file.path, served_mode(file))?;
    }
    put_in_place(&temporary, &dir.path().join(release_dir(serial)), reader)?;
    if !sealed.is_empty() {
        make_dir(&temporary)?;
        for (secret, content) in manifest.secrets.iter().zip(&sealed) {
            put(content.as_slice(), &temporary, &secret.path, 0o640)?;
        }
        put_in_place(&temporary, &dir.path().join(secrets_dir(serial)), reader)?;
    }
    let (text, gid) = (manifest.to_json()?, reader.map(|r| r.gid));
    match signer {
        // which makes the names of the others durable too, as they lie in the same directory
        Some(signer) => files::write_atomic(&dir.signature_file(serial), signer.sign(&text)?.as_bytes(), 0o640, gid)?,
        None => files::sync_dir(&releases)?,
    }
    files::write(&dir.manifest_file(), &text, 0o640, gid)?;
    finish(&dir, serial, reader)?;
    prune(&dir, serial)?;
    Ok(Outcome { published: Published::New { serial }, why, lacks_user })
}

/// What comes next for a host.
struct Next {
    /// The serial of the release that the host should have: the current one if `why` is empty, else a new one.
    serial: u64,
    /// The manifest that a new release would have.
    manifest: Manifest,
    /// The encrypted secrets, in the manifest's order.
    sealed: Vec<Vec<u8>>,
    /// The manifest of the current release, if its files are as they were.
    whole: Option<Manifest>,
    /// Why a new release is needed.
    why: Vec<String>,
}

/// The files of a release that are known to be as its manifest says, by what is in them.
#[derive(Default)]
struct Served<'a>(BTreeMap<&'a str, PathBuf>);

impl<'a> Served<'a> {
    fn of(dir: &HostDir, manifest: &'a Manifest) -> Self {
        let release = dir.path().join(release_dir(manifest.serial));
        let place = |file: &'a PackageFile| Some((file.blake3.as_str(), place(&release, &file.path).ok()?));
        Self(manifest.files.iter().filter_map(place).collect())
    }

    /// Makes a file of another release one of these, under another name: what is published is never written again. Gives whether that
    /// could be done; if not, a copy does as well.
    fn link(&self, file: &PackageFile, release: &Path) -> Result<bool> {
        let Some(there) = self.0.get(file.blake3.as_str()) else { return Ok(false) };
        if !fs::symlink_metadata(there).is_ok_and(|found| found.is_file() && found.mode() & 0o7777 == served_mode(file))
        {
            return Ok(false);
        }
        make_dirs_above(release, &file.path)?;
        Ok(fs::hard_link(there, place(release, &file.path)?).is_ok())
    }
}

/// The mode that a file has on the hub, where only the host's group reads it.
fn served_mode(file: &PackageFile) -> u32 {
    if file.mode.executable() { 0o750 } else { 0o640 }
}

/// The manifest that a candidate would get, and why the current one does not do.
fn next_manifest(dir: &HostDir, candidate: &Candidate<'_>, key: Option<&PublicKey>, now: Timestamp) -> Result<Next> {
    // a manifest that can't be read is replaced; its serial is the newest release's, as that is written first
    let current = dir.manifest();
    let newest = match &current {
        Ok(Some(current)) => Some(current.serial),
        _ => dir.serials()?.last().copied(),
    };
    let ahead = accepted(dir, &candidate.host.name).filter(|accepted| *accepted > newest.unwrap_or(0));
    let policy = Policy { reboot: candidate.tree.has("REBOOT"), self_update: candidate.tree.has("SELF_UPDATE") };
    if policy.self_update && candidate.mode == ReleaseMode::Closure {
        bail!("a host in closure mode has no flake to update by itself: remove SELF_UPDATE, or use source mode");
    }
    let (secrets, sealed) =
        seal(dir, current.as_ref().ok().and_then(Option::as_ref), &candidate.secrets)?.into_iter().unzip();
    let manifest = Manifest {
        schema: manifest::SCHEMA,
        serial: newest
            .max(ahead)
            .unwrap_or(0)
            .checked_add(1)
            .context("there is no serial after the current release's")?,
        created: now,
        expires: candidate.expires,
        host: candidate.host.name.clone(),
        mode: candidate.mode,
        kind: candidate.host.kind,
        toplevel: candidate.evaluation.toplevel.clone(),
        drv_path: candidate.evaluation.drv_path.clone(),
        search_path: candidate.search_path.clone(),
        substituters: candidate.substituters.clone(),
        trusted_public_keys: candidate.trusted_public_keys.clone(),
        policy,
        secrets,
        files: match candidate.mode {
            ReleaseMode::Source => candidate.package.files.clone(),
            ReleaseMode::Closure => Vec::new(),
        },
    };
    let is_whole = |current: &Manifest| {
        let release = dir.path().join(release_dir(current.serial));
        Package::served(&release, &current.files).is_ok_and(|served| served == current.files)
    };
    let whole = current.as_ref().ok().and_then(Option::as_ref).is_some_and(is_whole);
    let why = match &current {
        Err(_) => vec!["the current release's manifest can't be read".to_owned()],
        Ok(None) => vec!["there is no release yet".to_owned()],
        Ok(Some(current)) => {
            let mut why = manifest.differences(current);
            if !lasts(current.expires, manifest.expires, now) {
                why.push("the current release does not last as long as it should".to_owned());
            }
            if !whole {
                why.push("the current release's files are damaged".to_owned());
            }
            if key.is_some_and(|key| !is_signed(dir, current.serial, key)) {
                why.push("the current release is not signed with this key".to_owned());
            }
            if let Some(ahead) = ahead {
                why.push(format!("the host has had release {ahead} already, and takes none from before that"));
            }
            why
        }
    };
    let serial = match &current {
        Ok(Some(current)) if why.is_empty() => current.serial,
        _ => manifest.serial,
    };
    Ok(Next { serial, manifest, sealed, whole: current.ok().flatten().filter(|_| whole), why })
}

/// The newest release that a host says it has accepted. A hub that comes from a backup, or was made anew, may know of less, and the
/// host would refuse what it publishes. Nothing verifies that: a host that says too much harms itself alone.
fn accepted(dir: &HostDir, host: &HostName) -> Option<u64> {
    /// Enough for ever, and far from the end of all numbers.
    const MOST: u64 = 1 << 53;
    let text = files::read_untrusted(&dir.logs().join(report::PRESENCE), report::LIMIT).ok()?;
    let presence = Presence::parse(&text).ok().filter(|presence| presence.host == *host)?;
    Some(presence.serial).filter(|serial| *serial < MOST)
}

/// The secrets of a release with their encrypted texts: those of the current one that are still the same, and new ones.
pub fn seal(dir: &HostDir, current: Option<&Manifest>, drafts: &[Draft]) -> Result<Vec<(Secret, Vec<u8>)>> {
    let kept = |draft: &Draft| {
        let current = current?;
        let known = |secret: &&Secret| secret.path == draft.path && secret.digest == draft.digest;
        let secret = current.secrets.iter().find(known)?;
        let file = place(&dir.path().join(secrets_dir(current.serial)), &secret.path).ok()?;
        // one that is damaged is made anew
        fs::read(file).ok().filter(|content| blake3::hash(content).to_hex().as_str() == secret.blake3)
    };
    let seal = |draft: &Draft| {
        let content = kept(draft).map_or_else(|| draft.seal(), Ok)?;
        let secret = Secret {
            path: draft.path.clone(),
            access: draft.access.clone(),
            size: content.len() as u64,
            blake3: blake3::hash(&content).to_hex().to_string(),
            digest: draft.digest.clone(),
        };
        Ok((secret, content))
    };
    drafts.iter().map(seal).collect()
}

/// Whether a release's end is still far enough away: at least half as far as a new one's would be, or both have none.
fn lasts(current: Option<Timestamp>, new: Option<Timestamp>, now: Timestamp) -> bool {
    match (current, new) {
        (None, None) => true,
        (Some(current), Some(new)) => {
            let left = |end: Timestamp| end.duration_since(now).as_secs();
            left(current) > left(new) / 2
        }
        _ => false,
    }
}

/// Whether the current manifest, as it lies there, has a signature by this key.
fn is_signed(dir: &HostDir, serial: u64, key: &PublicKey) -> bool {
    let texts = fs::read(dir.manifest_file()).and_then(|text| Ok((text, fs::read(dir.signature_file(serial))?)));
    texts.is_ok_and(|(text, signature)| sign::verify(&text, &signature, &[key.into()]).is_ok())
}

/// Makes a host's directories, with their owners and modes, where they aren't so already.
fn lay_out(dir: &HostDir, reader: Option<Reader>) -> Result<()> {
    let logs = dir.logs();
    for path in [dir.path(), &dir.releases(), &logs] {
        make_dir(path)?;
    }
    give_to_one(dir.path(), reader)?;
    give_to_one(&dir.releases(), reader)?;
    if let Some(reader) = reader {
        let metadata = fs::symlink_metadata(&logs).with_context(|| format!("cannot read {}", logs.display()))?;
        if (metadata.uid(), metadata.gid()) != (reader.uid, reader.gid) {
            std::os::unix::fs::lchown(&logs, Some(reader.uid), Some(reader.gid))
                .with_context(|| format!("cannot give {} to its host", logs.display()))?;
        }
    }
    Ok(())
}

/// Makes a directory that only its owner and group can use, if it isn't there.
fn make_dir(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    match builder.mode(0o750).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("cannot create {}", path.display()))
        }
        Err(_) => Ok(()),
        // the umask may have taken bits away
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o750))
            .with_context(|| format!("cannot set the mode of {}", path.display())),
    }
}

/// Removes what interrupted publishes left: temporary files, and releases that no manifest ever named.
fn clear_leftovers(dir: &HostDir) -> Result<()> {
    files::clear_temporaries(dir.path())?;
    files::clear_temporaries(&dir.releases())?;
    if let Ok(Some(manifest)) = dir.manifest() {
        for serial in dir.serials()? {
            if serial > manifest.serial {
                remove_release(dir, serial)?;
            }
        }
    }
    Ok(())
}

/// Makes the directories that a file of a release is in.
fn make_dirs_above(release: &Path, path: &str) -> Result<()> {
    let mut above = release.to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    for part in &parts[..parts.len() - 1] {
        above.push(part);
        make_dir(&above)?;
    }
    Ok(())
}

/// Writes one file of a release, durably.
fn put(mut source: impl io::Read, release: &Path, path: &str, mode: u32) -> Result<()> {
    let to = place(release, path)?;
    make_dirs_above(release, path)?;
    let context = || format!("cannot write {}", to.display());
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(mode).open(&to).with_context(context)?;
    io::copy(&mut source, &mut copy).with_context(context)?;
    copy.set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    copy.sync_all().with_context(context)
}

/// Makes a directory durable that is complete, and gives it its name: whether that is durable, its parent decides.
fn put_in_place(temporary: &Path, place: &Path, reader: Option<Reader>) -> Result<()> {
    give_to(temporary, reader)?;
    sync_dirs(temporary)?;
    fs::rename(temporary, place).with_context(|| format!("cannot create {}", place.display()))
}

/// Lets the host's group read a file or a whole tree, where it can't already; changes no time of modification.
fn give_to(path: &Path, reader: Option<Reader>) -> Result<()> {
    if reader.is_none() {
        return Ok(());
    }
    give_to_one(path, reader)?;
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            give_to(&entry?.path(), reader)?;
        }
    }
    Ok(())
}

/// Lets the host's group read one file or directory, which stays root's.
fn give_to_one(path: &Path, reader: Option<Reader>) -> Result<()> {
    let Some(reader) = reader else { return Ok(()) };
    let context = || format!("cannot let the host read {}", path.display());
    let metadata = fs::symlink_metadata(path).with_context(context)?;
    if (metadata.uid(), metadata.gid()) != (0, reader.gid) {
        std::os::unix::fs::lchown(path, Some(0), Some(reader.gid)).with_context(context)?;
    }
    Ok(())
}

/// Makes the directories of a tree durable (its files are already).
fn sync_dirs(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    files::sync_dir(dir)
}

/// Brings `config` and `last_change_date` in line with the current release, if they aren't.
///
/// All of it lies in one directory with the manifest, and is made durable at the end: also if nothing is to be changed, as the publish
/// before this one may have been killed just before that.
fn finish(dir: &HostDir, serial: u64, reader: Option<Reader>) -> Result<()> {
    let (config, target) = (dir.config(), release_dir(serial));
    // the original bento had a directory here
    if fs::symlink_metadata(&config).is_ok_and(|metadata| metadata.is_dir()) {
        files::remove(&config)?;
    }
    point(&config, &target)?;
    if dir.signature_file(serial).exists() {
        point(&dir.path().join(manifest::SIGNATURE_LINK), &signature_file(serial))?;
    } else {
        files::remove(&dir.path().join(manifest::SIGNATURE_LINK))?;
    }
    // what it said stays known when another one takes its place
    let kept = dir.kept_manifest_file(serial);
    if !kept.exists() {
        let manifest = dir.manifest_file();
        // not every file system has hard links: a copy does as well
        if fs::hard_link(&manifest, &kept).is_err() {
            let text = fs::read(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
            files::write_atomic(&kept, &text, 0o640, gid(dir))?;
        }
    }
    let touched = modified(&dir.last_change_date());
    if touched.is_none() || touched < modified(&dir.manifest_file()) {
        touch(&dir.last_change_date(), gid(dir), reader)?;
    }
    files::sync_dir(dir.path())
}

/// Gives an empty file the time of now, durably; one that can't be written to is replaced. Whether a new name is durable, its parent
/// decides.
fn touch(file: &Path, gid: Option<u32>, reader: Option<Reader>) -> Result<()> {
    let open = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(file);
    let touched = open.and_then(|file| file.set_modified(SystemTime::now()).and_then(|()| file.sync_all()));
    if touched.is_err() {
        return files::write(file, b"", 0o640, gid);
    }
    give_to_one(file, reader)
}

/// The group of a host's directory, which what lies in it has too.
fn gid(dir: &HostDir) -> Option<u32> {
    fs::symlink_metadata(dir.path()).map(|metadata| metadata.gid()).ok()
}

/// Points a link to its target, if it doesn't already; that is for the caller to make durable.
fn point(link: &Path, target: &str) -> Result<()> {
    if fs::read_link(link).is_ok_and(|current| current == Path::new(target)) {
        return Ok(());
    }
    files::link(target, link)
}

/// Removes all but the last few releases.
fn prune(dir: &HostDir, current: u64) -> Result<()> {
    let all = dir.serials()?;
    for serial in &all[..all.len().saturating_sub(KEPT)] {
        if *serial != current {
            remove_release(dir, *serial)?;
        }
    }
    Ok(())
}

/// Takes a host off the hub: its releases, and the logs and reports that it left. The caller holds the hub's lock.
pub fn withdraw(hub: &Hub, name: &HostName) -> Result<()> {
    // the manifest first: a host whose directory is half gone must not see a release in it
    let dir = hub.host(name);
    files::remove(&dir.manifest_file())?;
    files::remove(dir.path())?;
    files::remove(&hub.roots(name))
}

/// Keeps the systems of a host's releases from being collected by Nix, and those of no other release: `keep` makes the
/// given link one that does so for the current release's system.
pub fn keep_releases(hub: &Hub, name: &HostName, serial: u64, keep: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let roots = hub.roots(name);
    let link = roots.join(serial.to_string());
    if fs::symlink_metadata(&link).is_err() {
        keep(&link)?;
    }
    let kept = hub.host(name).serials()?;
    for old in numbers(&roots)? {
        if !kept.contains(&old) {
            files::remove(&roots.join(old.to_string()))?;
        }
    }
    Ok(())
}

/// Removes the files of a release, its secrets, its manifest and its signature.
fn remove_release(dir: &HostDir, serial: u64) -> Result<()> {
    files::remove(&dir.signature_file(serial))?;
    files::remove(&dir.kept_manifest_file(serial))?;
    // these before the files: by them a release is found that was cut short
    files::remove(&dir.path().join(secrets_dir(serial)))?;
    files::remove(&dir.path().join(release_dir(serial)))
}
