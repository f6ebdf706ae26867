//! Evaluations that were done before: as long as nothing that one read has changed, its result is known.
//!
//! A record says what a host's evaluation came to and what it depended on: answers of the file system, variables of the
//! environment, and through its key the program, its settings and the host. Hosts of a fleet read mostly the same files, so
//! what they read is kept as a *set* that many records refer to, and each record holds where it differs.
//!
//! Every file is written under another name and renamed, and begins with the hash of the rest: a reader sees a whole file
//! or takes it for absent. Nothing is locked: of two writers the last one wins, and both wrote what is true. Files that were
//! not used for longest go when all together are larger than the limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use bento_eval::Settings;
use bento_eval::fs::{bytes_of, path_of};
use bento_eval::record::{Check, Reading, Readings};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::pool::{Finished, Message, Used};
use crate::files;

/// The first bytes of each file; the number counts the forms that there have been.
const MAGIC: &[u8] = b"bento evaluation 1\n";
/// How large all files together get, unless told otherwise.
pub const DEFAULT_LIMIT: u64 = 256 << 20;
/// How many results of one host are kept: as many states of the fleet can be gone back to at no cost.
const ALTERNATIVES: usize = 4;
/// What was read is put into a set of its own if it is at least so much, and most of it is in no other set.
const SET_SIZE: usize = 64;
/// With more changes than this a set is not looked at any further.
const MANY_CHANGES: usize = 2000;
/// A file that is still being written is not older than this.
const WRITING: Duration = Duration::from_secs(3600);
/// The time of a file's last use is kept to within this.
const USED_WITHIN: Duration = Duration::from_secs(60);

/// Names a host's record or a set.
type Id = [u8; 32];

/// A directory with records of evaluations.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
}

/// All results of one host.
#[derive(Default, Serialize, Deserialize)]
struct HostFile {
    /// Whose they are, for people.
    label: String,
    /// The latest first.
    records: Vec<Record>,
}

/// What an evaluation came to, and what it depended on.
#[derive(Serialize, Deserialize)]
struct Record {
    strings: Vec<String>,
    messages: Vec<Message>,
    variables: BTreeMap<String, Option<Vec<u8>>>,
    /// What was read in the host's own tree, by the path in there.
    tree: Readings,
    /// What was read elsewhere: all of these sets, each without some paths...
    sets: Vec<(Id, BTreeSet<Vec<u8>>)>,
    /// ... and these besides.
    besides: Readings,
}

/// A result that still holds.
pub(crate) struct Known {
    pub(crate) strings: Vec<String>,
    pub(crate) messages: Vec<Message>,
}

/// What the cache holds.
#[derive(Debug, Serialize)]
pub struct Contents {
    /// Where it is.
    pub directory: PathBuf,
    /// How large it may get, in bytes.
    pub limit: u64,
    /// How large it is, in bytes.
    pub size: u64,
    /// The hosts that it has results of.
    pub hosts: Vec<Entry>,
    /// How many sets of files there are that results refer to.
    pub sets: usize,
    /// Files that are damaged or of another version of bento, and count as absent.
    pub unreadable: usize,
}

/// The results of one host.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// The host and where it is written.
    pub host: String,
    /// How many results there are.
    pub results: usize,
    /// When one was last used, in seconds since 1970.
    pub used: u64,
}

impl Cache {
    /// The cache in this directory, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>, limit: u64) -> Self {
        Self { dir: dir.into(), limit }
    }

    /// The user's: `bento/evaluations` in `XDG_CACHE_HOME` or else in `~/.cache`; none where neither is known. Its limit is
    /// what `BENTO_CACHE_SIZE` says ([`parse_size`]), or else [`DEFAULT_LIMIT`].
    ///
    /// # Errors
    /// When `BENTO_CACHE_SIZE` is no size.
    pub fn of_user() -> Result<Option<Self>> {
        let limit = match std::env::var("BENTO_CACHE_SIZE") {
            Ok(size) => parse_size(&size).context("the environment variable BENTO_CACHE_SIZE")?,
            Err(_) => DEFAULT_LIMIT,
        };
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Ok(base.map(|base| Self::new(base.join("bento/evaluations"), limit)))
    }

    fn host_path(&self, id: &Id) -> PathBuf {
        self.dir.join(format!("{}.host", hex(id)))
    }

    fn set_path(&self, id: &Id) -> PathBuf {
        self.dir.join(format!("{}.set", hex(id)))
    }

    /// All files, those that are still being written and those of other kinds included.
    fn files(&self) -> Result<Vec<(PathBuf, fs::Metadata)>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.dir.display())),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", self.dir.display()))?;
            // one that is gone meanwhile was another's to remove
            if let Ok(metadata) = entry.metadata() {
                files.push((entry.path(), metadata));
            }
        }
        Ok(files)
    }

    /// What there is.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn contents(&self) -> Result<Contents> {
        let mut contents = Contents {
            directory: self.dir.clone(),
            limit: self.limit,
            size: 0,
            hosts: Vec::new(),
            sets: 0,
            unreadable: 0,
        };
        for (path, metadata) in self.files()? {
            contents.size += metadata.len();
            match extension(&path) {
                "host" => match read::<HostFile>(&path) {
                    Some(file) => contents.hosts.push(Entry {
                        host: file.label,
                        results: file.records.len(),
                        used: u64::try_from(metadata.mtime()).unwrap_or(0),
                    }),
                    None => contents.unreadable += 1,
                },
                "set" if read::<Readings>(&path).is_some() => contents.sets += 1,
                "set" => contents.unreadable += 1,
                _ => {}
            }
        }
        contents.hosts.sort_by(|a, b| a.host.cmp(&b.host));
        Ok(contents)
    }

    /// Removes everything. Gives how many bytes that were.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn clear(&self) -> Result<u64> {
        let mut size = 0;
        for (path, metadata) in self.files()? {
            files::remove(&path)?;
            size += metadata.len();
        }
        Ok(size)
    }

    /// Removes what is damaged or refers to what is not there. Gives how many files that were.
    ///
    /// # Errors
    /// When the directory can't be read or a file can't be removed.
    pub fn verify(&self) -> Result<usize> {
        let mut removed = 0;
        let files = self.files()?;
        let sound_set = |id: &Id| read::<Readings>(&self.set_path(id)).is_some_and(|set| set_id(&set) == *id);
        let mut sets: HashMap<Id, bool> = HashMap::new();
        for (path, _) in files.iter().filter(|(path, _)| extension(path) == "host") {
            let sound = read::<HostFile>(path).is_some_and(|file| {
                let mut named = file.records.iter().flat_map(|record| record.sets.iter().map(|(id, _)| *id));
                named.all(|id| *sets.entry(id).or_insert_with(|| sound_set(&id)))
            });
            if !sound {
                files::remove(path)?;
                removed += 1;
            }
        }
        for (path, _) in files.iter().filter(|(path, _)| extension(path) == "set") {
            if read::<Readings>(path).is_none_or(|set| self.set_path(&set_id(&set)) != *path) {
                files::remove(path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes what was not used for longest until the limit is kept.
    fn shrink(&self) -> Result<()> {
        let mut files = self.files()?;
        let now = SystemTime::now();
        let age = |metadata: &fs::Metadata| metadata.modified().ok().and_then(|time| now.duration_since(time).ok());
        for (path, metadata) in &files {
            let kept = matches!(extension(path), "host" | "set");
            if !kept && age(metadata).is_some_and(|age| age > WRITING) {
                files::remove(path)?;
            }
        }
        files.sort_by_key(|(_, metadata)| metadata.modified().ok());
        let mut size: u64 = files.iter().map(|(_, metadata)| metadata.len()).sum();
        for (path, metadata) in files {
            if size <= self.limit {
                break;
            }
            files::remove(&path)?;
            size -= metadata.len();
        }
        Ok(())
    }

    /// Writes a file whole or not at all. It is not synced: what a power cut leaves of it is found to be damaged.
    fn write(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        let payload = postcard::to_stdvec(value).context("cannot write an evaluation down")?;
        let mut file = tempfile::Builder::new()
            .prefix(files::TEMPORARY)
            .tempfile_in(&self.dir)
            .with_context(|| format!("cannot create a file in {}", self.dir.display()))?;
        let written =
            [MAGIC, blake3::hash(&payload).as_bytes(), &payload].iter().try_for_each(|part| file.write_all(part));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
}

/// Reads a file that [`Cache::write`] wrote; `None` if it is absent, damaged or of another form.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    let (hash, payload) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<32>()?;
    if blake3::hash(payload) != *hash {
        return None;
    }
    postcard::from_bytes(payload).ok()
}

/// Says that a file was used just now.
fn touch(path: &Path) {
    let old = || fs::metadata(path).ok()?.modified().ok()?.elapsed().ok();
    if old().is_some_and(|old| old > USED_WITHIN) {
        // if it can't be said, the file is forgotten sooner
        let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn hex(id: &Id) -> String {
    blake3::Hash::from_bytes(*id).to_hex().to_string()
}

/// A reading without the stamp, which says how it can be checked but not what was read.
fn bare(reading: &Reading) -> Reading {
    Reading { stamp: None, ..reading.clone() }
}

fn set_id(set: &Readings) -> Id {
    let bare: Vec<(&Vec<u8>, Reading)> = set.iter().map(|(path, reading)| (path, bare(reading))).collect();
    // plain data can always be written down
    *blake3::hash(&postcard::to_stdvec(&bare).unwrap_or_default()).as_bytes()
}

/// Names what a result is the result of, except for what the evaluation reads.
pub(crate) struct Key {
    id: Id,
    label: String,
}

impl Key {
    /// `what` is evaluated with these settings by this very program; `label` says it to people.
    pub(crate) fn new(settings: &Settings, what: &[&str], label: String) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let metadata = fs::metadata(&program).with_context(|| format!("cannot look at {}", program.display()))?;
        let identity = (
            env!("CARGO_PKG_VERSION"),
            bytes_of(&program),
            metadata.len(),
            (metadata.mtime(), metadata.mtime_nsec()),
            format!("{settings:?}"),
            what,
        );
        let bytes = postcard::to_stdvec(&identity).context("cannot write down what is evaluated")?;
        Ok(Self { id: *blake3::hash(&bytes).as_bytes(), label })
    }
}

/// A set that was read, and which of it has changed.
struct LoadedSet {
    readings: Readings,
    /// `None` if the set was not compared with the files yet.
    changed: Option<Vec<Vec<u8>>>,
}

/// What a command asks the cache and puts into it: each set is compared with the files once.
pub(crate) struct Session<'c> {
    cache: &'c Cache,
    sets: HashMap<Id, Option<LoadedSet>>,
}

impl<'c> Session<'c> {
    pub(crate) fn new(cache: &'c Cache) -> Self {
        Self { cache, sets: HashMap::new() }
    }

    /// The result for a key, if there is one that still holds; the host's files are now in `tree`.
    pub(crate) fn find(&mut self, key: &Key, tree: &Path) -> Option<Known> {
        let path = self.cache.host_path(&key.id);
        let mut file: HostFile = read(&path)?;
        let found = file.records.iter_mut().position(|record| self.holds(record, tree))?;
        touch(&path);
        let record = file.records.swap_remove(found);
        Some(Known { strings: record.strings, messages: record.messages })
    }

    fn holds(&mut self, record: &Record, tree: &Path) -> bool {
        use std::os::unix::ffi::OsStringExt;
        let variables =
            || record.variables.iter().all(|(name, value)| std::env::var_os(name).map(OsStringExt::into_vec) == *value);
        let in_tree = |path: &[u8]| if path.is_empty() { tree.to_owned() } else { tree.join(path_of(path)) };
        let same = |path: &[u8], reading: &Reading| reading.check(path) != Check::Changed;
        variables()
            && record.tree.iter().all(|(path, reading)| same(bytes_of(&in_tree(path)), reading))
            && record.besides.iter().all(|(path, reading)| same(path, reading))
            && record.sets.iter().all(|(id, without)| {
                self.changes(id).is_some_and(|changed| changed.iter().all(|path| without.contains(path)))
            })
    }

    fn load(&mut self, id: &Id) -> Option<&mut LoadedSet> {
        let cache = self.cache;
        let load = || {
            let path = cache.set_path(id);
            let readings = read(&path)?;
            touch(&path);
            Some(LoadedSet { readings, changed: None })
        };
        self.sets.entry(*id).or_insert_with(load).as_mut()
    }

    /// The paths of a set where something else would be read now; `None` if the set is not there or that is most of it.
    fn changes(&mut self, id: &Id) -> Option<&[Vec<u8>]> {
        let cache = self.cache;
        let set = self.load(id)?;
        if set.changed.is_none() {
            let mut changed = Vec::new();
            let mut stamps = false;
            for (path, reading) in &mut set.readings {
                match reading.check(path) {
                    Check::Same(None) => {}
                    Check::Same(stamp) => {
                        reading.stamp = stamp;
                        stamps = true;
                    }
                    Check::Changed => changed.push(path.clone()),
                }
                if changed.len() > MANY_CHANGES {
                    break;
                }
            }
            if stamps {
                // what was read again need not be the next time; if that can't be written, it is
                let _ = cache.write(&cache.set_path(id), &set.readings);
            }
            set.changed = Some(changed);
        }
        set.changed.as_deref().filter(|changed| changed.len() <= MANY_CHANGES)
    }

    /// Keeps the result of an evaluation that succeeded; `tree` is where the host's files were, `warm` where those of the
    /// host were that the warm process evaluated. What depends on something that can't be checked is not kept.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn keep(&mut self, key: Key, tree: &Path, warm: Option<&Path>, finished: &Finished) -> Result<()> {
        let Ok(strings) = &finished.result else { return Ok(()) };
        let shared = finished.shared.as_ref();
        let parts: Vec<&Used> = shared.iter().map(|shared| &shared.used).chain([&finished.used]).collect();
        if parts.iter().any(|used| used.volatile.is_some()) {
            return Ok(());
        }
        // what the warm host read of its own files is no business of another
        let foreign = warm.filter(|warm| *warm != tree).and_then(Path::parent);
        let mut record = Record {
            strings: strings.clone(),
            messages: finished.messages.clone(),
            variables: BTreeMap::new(),
            tree: Readings::new(),
            sets: Vec::new(),
            besides: Readings::new(),
        };
        for used in parts {
            record.variables.extend(used.variables.clone());
            for (path, reading) in &used.readings {
                let place = path_of(path);
                if let Ok(relative) = place.strip_prefix(tree) {
                    record.tree.insert(bytes_of(relative).to_vec(), bare(reading));
                } else if Some(place) != tree.parent() && !foreign.is_some_and(|foreign| place.starts_with(foreign)) {
                    record.besides.insert(path.clone(), reading.clone());
                }
            }
        }
        self.split(&mut record)?;
        let path = self.cache.host_path(&key.id);
        let mut file: HostFile = read(&path).unwrap_or_default();
        file.label = key.label;
        file.records.insert(0, record);
        file.records.truncate(ALTERNATIVES);
        self.cache.write(&path, &file)
    }

    /// Says what a record has in `besides` by means of sets, as far as there is enough of it.
    fn split(&mut self, record: &mut Record) -> Result<()> {
        while record.besides.len() >= SET_SIZE {
            let read = &record.besides;
            let same = |set: &Readings, path: &Vec<u8>, reading: &Reading| {
                set.get(path).is_some_and(|known| bare(known) == bare(reading))
            };
            let loaded = self.sets.iter().filter_map(|(id, set)| Some((id, &set.as_ref()?.readings)));
            let common = |set: &Readings| read.iter().filter(|(path, reading)| same(set, path, reading)).count();
            let closest = loaded.map(|(id, set)| (common(set), *id, set)).max_by_key(|(common, ..)| *common);
            match closest {
                Some((common, id, set)) if common * 2 > read.len().max(set.len()) => {
                    let absent = set.iter().filter(|(path, reading)| !same(read, path, reading));
                    let without = absent.map(|(path, _)| path.clone()).collect();
                    let rest = read.iter().filter(|(path, reading)| !same(set, path, reading));
                    record.besides = rest.map(|(path, reading)| (path.clone(), reading.clone())).collect();
                    record.sets.push((id, without));
                }
                _ => {
                    let readings = std::mem::take(&mut record.besides);
                    let id = set_id(&readings);
                    self.cache.write(&self.cache.set_path(&id), &readings)?;
                    self.sets.insert(id, Some(LoadedSet { readings, changed: None }));
                    record.sets.push((id, BTreeSet::new()));
                }
            }
        }
        Ok(())
    }

    /// Ends the session: the cache keeps its limit again.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn finish(self) -> Result<()> {
        self.cache.shrink()
    }
}

/// A size in bytes: a number, with `K`, `M` or `G` for powers of 1024.
///
/// # Errors
/// When it is something else.
pub fn parse_size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match size {
        Some(size) => Ok(size),
        None => bail!("{text:?} is no size: give a number, with K, M or G for powers of 1024"),
    }
}
