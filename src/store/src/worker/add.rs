//! Adding objects: only what is missing, in one go, what is referred to before what refers.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io::{self, Write},
};

use super::{
    Connection, Op, PathInfo, Turn, Version, WorkerError,
    wire::{Frames, WriteWire, lost},
};
use crate::{hash::HashFormat, store_path::StorePath};

/// A store object that is to be in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its path.
    pub path: StorePath,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
}

/// Where objects come from. It is asked about those only that are missing.
pub trait Contents {
    /// What the store is to know of the object: its references, the hash and the length of its NAR, and, unless the
    /// daemon trusts its user or there is a signature, its content address.
    ///
    /// # Errors
    /// Whatever keeps it from being had.
    fn info(&self, object: &Object) -> Result<PathInfo, Box<dyn Error + Send + Sync>>;

    /// Writes the object's NAR, which must be the one that [`Contents::info`] has described.
    ///
    /// # Errors
    /// Whatever keeps it from being had, and those of `sink`.
    fn nar(&self, object: &Object, sink: &mut dyn Write) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What adding objects came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// How many objects were missing, and were added.
    pub objects: usize,
    /// How many bytes their NARs have.
    pub bytes: u64,
}

impl Connection {
    /// Sees to it that all of these are in the store. What is there already is left as it is; what they refer to must be
    /// among them or in the store.
    ///
    /// Everything is kept from the garbage collector until the connection is closed.
    ///
    /// # Errors
    /// An object refers to something that is nowhere; `contents` fails; the daemon refuses an object (such as one whose
    /// hash is another), or it or the connection fails. What was added until then stays.
    pub fn add_missing(&mut self, objects: &[Object], contents: &dyn Contents) -> Result<Added, WorkerError> {
        let referred: BTreeSet<&StorePath> = objects
            .iter()
            .flat_map(|object| object.references.iter().filter(|reference| **reference != object.path))
            .collect();
        for object in objects.iter().filter(|object| !referred.contains(&object.path)) {
            self.add_temp_root(&object.path)?;
        }
        let mut added = Added::default();
        // The collector may have taken something away before what refers to it was there, but not over and over.
        for _ in 0..ATTEMPTS {
            let missing = self.missing(objects)?;
            if missing.is_empty() {
                return Ok(added);
            }
            added.objects += missing.len();
            added.bytes += self.add(&missing, contents)?;
        }
        match self.missing(objects)?.first() {
            None => Ok(added),
            Some(object) => {
                let path = self.store.print(&object.path);
                Err(WorkerError::Protocol(format!("'{path}' is not in the store although it was added")))
            }
        }
    }

    /// The objects that are not in the store, those that are referred to first.
    fn missing<'o>(&mut self, objects: &'o [Object]) -> Result<Vec<&'o Object>, WorkerError> {
        let by_path: BTreeMap<&StorePath, &Object> = objects.iter().map(|object| (&object.path, object)).collect();
        let mut paths: BTreeSet<StorePath> = by_path.keys().map(|path| (*path).clone()).collect();
        paths.extend(objects.iter().flat_map(|object| object.references.iter().cloned()));
        let valid = self.query_valid_paths(&paths, false)?;
        let mut sorting = Sorting { by_path, valid, entered: BTreeSet::new(), sorted: Vec::new() };
        for object in objects {
            sorting.visit(object).map_err(|error| match error {
                Unsorted::Circle(path) => WorkerError::Circle(self.store.print(path)),
                Unsorted::NotInStore { path, referrer } => {
                    WorkerError::NotInStore { path: self.store.print(path), referrer: self.store.print(referrer) }
                }
            })?;
        }
        Ok(sorting.sorted)
    }

    /// Adds objects, none of which is in the store, in this order. Gives how long their NARs are together.
    fn add(&mut self, missing: &[&Object], contents: &dyn Contents) -> Result<u64, WorkerError> {
        if self.version < Version::v1(32) {
            return missing.iter().map(|object| self.add_one(object, contents)).sum();
        }
        let store = self.store.clone();
        self.exchange(|this| {
            this.begin(Op::AddMultipleToStore, |to| {
                to.bool(false)?; // not to repair
                to.bool(true) // not to check signatures; done all the same if the user is not trusted
            })?;
            this.stream(|to, come| {
                to.number(missing.len() as u64).map_err(lost)?;
                let mut bytes = 0;
                for object in missing {
                    let failed = |source| WorkerError::Contents { path: store.print(&object.path), source };
                    let info = contents.info(object).map_err(failed)?;
                    to.string(store.print(&object.path)).map_err(lost)?;
                    write_info(to, &store, &info).map_err(lost)?;
                    bytes += write_nar(to, &info, object, contents, failed)?;
                    if come()? {
                        break;
                    }
                }
                Ok(bytes)
            })
        })
    }

    /// Adds one object, which older daemons can.
    fn add_one(&mut self, object: &Object, contents: &dyn Contents) -> Result<u64, WorkerError> {
        let (store, version) = (self.store.clone(), self.version);
        let failed = |source| WorkerError::Contents { path: store.print(&object.path), source };
        let info = contents.info(object).map_err(failed)?;
        self.exchange(|this| {
            this.begin(Op::AddToStoreNar, |to| {
                to.string(store.print(&object.path))?;
                write_info(to, &store, &info)?;
                to.bool(false)?;
                to.bool(true)
            })?;
            if version >= Version::v1(23) {
                return this.stream(|to, _| write_nar(to, &info, object, contents, failed));
            }
            if version < Version::v1(21) {
                let written = write_nar(&mut this.transport.to, &info, object, contents, failed)?;
                this.send(|_| Ok(()))?;
                this.settle()?;
                return Ok(written);
            }
            // The daemon asks for each part: the whole must be at hand.
            let mut nar = Vec::new();
            let written = write_nar(&mut nar, &info, object, contents, failed)?;
            let mut rest = nar.as_slice();
            loop {
                match this.message()? {
                    Turn::More => {}
                    Turn::Done => return Ok(written),
                    Turn::Wants(most) => {
                        let length = usize::try_from(most).unwrap_or(usize::MAX).min(rest.len());
                        let (part, after) = rest.split_at(length);
                        this.send(|to| to.string(part))?;
                        rest = after;
                    }
                }
            }
        })
    }

    /// Begins an operation, whose data follow.
    fn begin(
        &mut self,
        op: Op,
        arguments: impl FnOnce(&mut super::transport::Output) -> io::Result<()>,
    ) -> Result<(), WorkerError> {
        self.send(|to| {
            to.number(op as u64)?;
            arguments(to)
        })
    }

    /// Sends data in frames, and waits until the daemon has worked. `write` gets where to write, and what tells whether the
    /// daemon has ended the operation, so that nothing more needs to be written.
    fn stream<T>(
        &mut self,
        write: impl FnOnce(&mut dyn Write, &mut dyn FnMut() -> Result<bool, WorkerError>) -> Result<T, WorkerError>,
    ) -> Result<T, WorkerError> {
        let mut to = std::mem::replace(&mut self.transport.to, io::BufWriter::new(Box::new(io::sink())));
        let mut refusal = None;
        let mut frames = Frames::new(&mut to);
        let mut come = || {
            while self.transport.has_come()? {
                match self.message() {
                    Ok(Turn::More) => {}
                    Ok(_) => return Err(WorkerError::Protocol("it has ended before the data".into())),
                    Err(error @ WorkerError::Failed { .. }) => {
                        refusal = Some(error);
                        return Ok(true);
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        };
        let written = write(&mut frames, &mut come);
        let finished = match &written {
            // a daemon that is told that all is well would take the half for the whole
            Err(_) => Ok(()),
            Ok(_) => frames.finish().map_err(lost),
        };
        self.transport.to = to;
        let written = written.and_then(|written| finished.map(|()| written));
        match (refusal, written) {
            (Some(refusal), Ok(_)) => Err(refusal),
            (None, Ok(written)) => self.settle().map(|()| written),
            // A daemon that gives up says why before it hangs up.
            (_, Err(error @ WorkerError::Lost { .. })) => Err(match self.settle() {
                Err(reason @ WorkerError::Failed { .. }) => reason,
                _ => error,
            }),
            (_, Err(error)) => Err(error),
        }
    }
}

/// How often objects are added that were there and are gone.
const ATTEMPTS: usize = 3;

/// Writes what a store is to know of an object.
fn write_info(to: &mut (impl Write + ?Sized), store: &crate::store_path::StoreDir, info: &PathInfo) -> io::Result<()> {
    to.string(info.deriver.as_ref().map(|deriver| store.print(deriver)).unwrap_or_default())?;
    to.string(info.nar_hash.format(HashFormat::Base16, false))?;
    to.strings(info.references.iter().map(|reference| store.print(reference)))?;
    to.number(info.registered)?;
    to.number(info.nar_size)?;
    to.bool(info.ultimate)?;
    to.strings(info.signatures.iter())?;
    to.string(info.address.map(|address| address.to_string()).unwrap_or_default())
}

/// Writes an object's NAR, if it is as long as was said: else nothing that follows would be read right. `failed` makes an
/// error of what `contents` says.
fn write_nar(
    to: &mut (impl Write + ?Sized),
    info: &PathInfo,
    object: &Object,
    contents: &dyn Contents,
    failed: impl Fn(Box<dyn Error + Send + Sync>) -> WorkerError,
) -> Result<u64, WorkerError> {
    let mut counted = Counted { to, bytes: 0, failure: None };
    let written = contents.nar(object, &mut counted);
    match (counted.failure, written) {
        (Some(failure), _) => Err(lost(failure)),
        (None, Err(error)) => Err(failed(error)),
        (None, Ok(())) if counted.bytes != info.nar_size => Err(failed("it has changed while it was read".into())),
        (None, Ok(())) => Ok(counted.bytes),
    }
}

/// Counts, and tells a daemon that is gone from contents that can't be had.
struct Counted<'w, W: Write + ?Sized> {
    to: &'w mut W,
    bytes: u64,
    failure: Option<io::Error>,
}

impl<W: Write + ?Sized> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.to.write(bytes) {
            Ok(written) => {
                self.bytes += written as u64;
                Ok(written)
            }
            Err(error) => {
                let kind = error.kind();
                if kind != io::ErrorKind::Interrupted {
                    self.failure = Some(error);
                }
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // who writes an object doesn't know what comes behind it
        Ok(())
    }
}

/// Sorts objects so that what is referred to comes first.
struct Sorting<'o> {
    by_path: BTreeMap<&'o StorePath, &'o Object>,
    valid: BTreeSet<StorePath>,
    entered: BTreeSet<&'o StorePath>,
    sorted: Vec<&'o Object>,
}

enum Unsorted<'o> {
    Circle(&'o StorePath),
    NotInStore { path: &'o StorePath, referrer: &'o StorePath },
}

impl<'o> Sorting<'o> {
    /// Sorts in an object and all that it refers to. Chains of references can be long, so it has a stack of its own.
    fn visit(&mut self, object: &'o Object) -> Result<(), Unsorted<'o>> {
        if self.valid.contains(&object.path) || !self.entered.insert(&object.path) {
            return Ok(());
        }
        let mut open: BTreeSet<&StorePath> = BTreeSet::from([&object.path]);
        let mut stack = vec![(object, object.references.iter())];
        while let Some((object, references)) = stack.last_mut() {
            let referrer = *object;
            let Some(reference) = references.next() else {
                open.remove(&referrer.path);
                self.sorted.push(referrer);
                stack.pop();
                continue;
            };
            if *reference == referrer.path || self.valid.contains(reference) {
                continue;
            }
            let Some(next) = self.by_path.get(reference) else {
                return Err(Unsorted::NotInStore { path: reference, referrer: &referrer.path });
            };
            if open.contains(reference) {
                return Err(Unsorted::Circle(reference));
            }
            if self.entered.insert(&next.path) {
                open.insert(&next.path);
                stack.push((next, next.references.iter()));
            }
        }
        Ok(())
    }
}
