//! The Nix store as an evaluation sees it: what it would contain, and, where there is one, what is built in it.
//!
//! An evaluation writes nothing. What it has made can be had from it: [`Evaluator::closure`] tells what there is, and the
//! [`Evaluator`] itself is the [`Contents`] of it. That is all that a [`bento_store::worker::Connection`] needs to put it
//! into a store. What has to be built before it can be read (import from derivation) is asked of the caller's [`Store`].

use crate::context::{Context, Derived, Element};
use crate::error::{Error, ErrorKind, Result};
use crate::eval::Evaluator;
use crate::fs::{FileSystem, FileType, Mount, path_of};
use crate::value::Pos;
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::derived_path::SingleDerivedPath;
use bento_store::hash::{Hash, HashAlgo};
use bento_store::nar::{self, NarError};
use bento_store::store_path::{References, StoreDir, StorePath};
use bento_store::worker::{Contents, Object, PathInfo};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

/// Why a store did not do what was asked; the text is shown to the user as it is.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// A Nix store, for what can only be read once it is built. The evaluator asks it for nothing else.
pub trait Store {
    /// Sees to it that these outputs are there; gives each of them, in the same order. `objects` is everything that is needed
    /// of what the evaluation has made, `contents` what they consist of.
    ///
    /// # Errors
    /// When the store can't be reached or something can't be built. The text says which derivation was wanted.
    fn build(
        &self,
        wanted: &[Wanted],
        objects: &[Object],
        contents: &dyn Contents,
    ) -> std::result::Result<Vec<BuiltOutput>, StoreError>;

    /// What a path in the store refers to; nothing if it isn't there.
    ///
    /// # Errors
    /// When the store can't be reached.
    fn references(&self, path: &StorePath) -> std::result::Result<BTreeSet<StorePath>, StoreError>;
}

/// An output that has to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The output.
    pub path: SingleDerivedPath,
    /// Where it will be, if that is known before the build.
    pub known: Option<StorePath>,
}

/// An output that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltOutput {
    /// Its path.
    pub path: StorePath,
    /// Where it can be read, if that is not its path.
    pub place: Option<PathBuf>,
}

/// What an evaluation knows of the store.
#[derive(Default)]
pub(crate) struct StoreState {
    /// The outputs that were built, or were there.
    built: RefCell<FxHashMap<Element, StorePath>>,
    /// What store paths refer to that the evaluation has made or asked for; derivations have their own.
    pub(crate) references: RefCell<FxHashMap<StorePath, BTreeSet<StorePath>>>,
}

/// What has to be put in the place of strings that stand for outputs.
#[derive(Default)]
pub(crate) struct Rewrites(Vec<(String, String)>);

impl Rewrites {
    /// The text with everything in its place.
    pub(crate) fn apply(&self, mut text: Vec<u8>) -> Vec<u8> {
        for (placeholder, path) in &self.0 {
            while let Some(at) = memchr::memmem::find(&text, placeholder.as_bytes()) {
                text.splice(at..at + placeholder.len(), path.bytes());
            }
        }
        text
    }
}

impl Evaluator<'_> {
    /// Has everything built that a context names and that can't be read yet.
    ///
    /// # Errors
    /// When that is not allowed, there is no store to build it in, or it can't be built.
    pub(crate) fn realise(&self, context: Context) -> Result<Rewrites> {
        let mut rewrites = Rewrites::default();
        if context == 0 {
            return Ok(rewrites);
        }
        let mut elements = self.contexts.elements(context);
        elements.retain(|element| matches!(element, Element::Built { .. }));
        let Some(first) = elements.first() else { return Ok(rewrites) };
        if !self.settings.allow_import_from_derivation {
            let message = format!(
                "cannot build '{}' during evaluation because the option 'allow-import-from-derivation' is disabled",
                self.show_context_element(first)
            );
            return Err(Error::new(ErrorKind::Unbuilt, Pos::NONE, message));
        }
        if self.settings.trace_import_from_derivation {
            let first = self.show_context_element(first);
            self.host.warn(&format!("built '{first}' during evaluation due to an import from derivation"));
        }
        self.build_missing(&elements)?;
        if self.settings.ca_derivations {
            let built = self.state.store.built.borrow();
            for element in &elements {
                let (Element::Built { drv, output }, Some(path)) = (element, built.get(element)) else { continue };
                rewrites.0.push((self.output_placeholder(drv, output)?.render(), self.store.print(path)));
            }
        }
        Ok(rewrites)
    }

    /// Sees to it that these outputs can be read.
    fn build_missing(&self, elements: &[Element]) -> Result<()> {
        let mut missing = Vec::new();
        for element in elements {
            let Element::Built { drv, output } = element else { continue };
            if self.state.store.built.borrow().contains_key(element) {
                continue;
            }
            // what is there need not be asked for, and there need not be a store to ask
            match self.static_output(drv, output)? {
                Some(path) if self.is_there(&path)? => self.keep_built(element, path)?,
                known => missing.push((element, known)),
            }
        }
        let Some((first, _)) = missing.first() else { return Ok(()) };
        let Some(store) = self.host.store() else {
            let message = format!(
                "cannot build '{}' during evaluation (import from derivation): there is no Nix to build it with; where \
                 there is one, 'nix-store --realise' builds it, and what is in the store can be read",
                self.show_context_element(first)
            );
            return Err(Error::new(ErrorKind::Unbuilt, Pos::NONE, message));
        };
        let wanted = missing
            .iter()
            .map(|(element, known)| Ok(Wanted { path: derived_path(element)?, known: known.clone() }))
            .collect::<Result<Vec<_>>>()?;
        let objects = self.closure(wanted.iter().map(|wanted| wanted.path.base().clone()));
        let built = store.build(&wanted, &objects, self).map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
        for ((element, _), output) in missing.into_iter().zip(built) {
            let printed = self.store.print(&output.path);
            if let Some(place) = output.place {
                self.fs.mount(path_of(printed.as_bytes()), Mount::real(place));
            }
            if !self.is_there(&output.path)? {
                let message = format!("'{printed}' was built, but is not on this machine");
                return Err(Error::new(ErrorKind::File, Pos::NONE, message));
            }
            self.keep_built(element, output.path)?;
        }
        Ok(())
    }

    fn is_there(&self, path: &StorePath) -> Result<bool> {
        let printed = self.store.print(path);
        self.fs.exists(path_of(printed.as_bytes())).map_err(|error| self.file_error(&error, Pos::NONE))
    }

    /// Remembers an output that is there, and lets it be read with all that it refers to.
    fn keep_built(&self, element: &Element, path: StorePath) -> Result<()> {
        if self.settings.pure || self.settings.restricted {
            let mut todo = vec![path.clone()];
            let mut seen = BTreeSet::new();
            while let Some(path) = todo.pop() {
                if seen.insert(path.clone()) {
                    self.allow_path(self.store.print(&path).as_bytes());
                    todo.extend(self.references(&path));
                }
            }
        }
        self.state.store.built.borrow_mut().insert(element.clone(), path);
        Ok(())
    }

    /// What a path refers to. Where there is no store to ask, what the evaluation has not made refers to nothing.
    pub(crate) fn references(&self, path: &StorePath) -> BTreeSet<StorePath> {
        if let Some(references) = self.made(path) {
            return references;
        }
        let references = self.host.store().and_then(|store| store.references(path).ok()).unwrap_or_default();
        self.state.store.references.borrow_mut().insert(path.clone(), references.clone());
        references
    }

    /// What a path refers to if that is known without asking.
    fn made(&self, path: &StorePath) -> Option<BTreeSet<StorePath>> {
        if let Some(references) = self.derivation_references(path) {
            return Some(references);
        }
        if let Some(references) = self.state.store.references.borrow().get(path) {
            return Some(references.clone());
        }
        self.fs.is_mounted(path_of(self.store.print(path).as_bytes())).then(BTreeSet::new)
    }

    /// The store directory.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store
    }

    /// Everything that these store paths refer to, themselves included, as far as the evaluation has made it: derivations,
    /// files and sources that were or would be copied. The rest has to be in the store already.
    pub fn closure(&self, roots: impl IntoIterator<Item = StorePath>) -> Vec<Object> {
        let mut todo: Vec<StorePath> = roots.into_iter().collect();
        let mut seen = BTreeSet::new();
        let mut objects = Vec::new();
        while let Some(path) = todo.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if let Some(references) = self.made(&path) {
                todo.extend(references.iter().cloned());
                objects.push(Object { path, references });
            }
        }
        objects
    }

    /// Where an object can be read.
    fn place(&self, object: &Object) -> PathBuf {
        let printed = self.store.print(&object.path);
        self.mount_derivation(&printed);
        PathBuf::from(printed)
    }

    /// How the path of an object follows from what is in it.
    fn address(&self, object: &Object, nar_hash: Hash) -> std::result::Result<Option<ContentAddress>, StoreError> {
        let place = self.place(object);
        let mut candidates = vec![ContentAddress { method: ContentAddressMethod::NixArchive, hash: nar_hash }];
        if self.fs.metadata(&place)?.file_type == FileType::Regular {
            let hash = Hash::digest(HashAlgo::Sha256, self.fs.read_file(&place)?);
            candidates.push(ContentAddress { method: ContentAddressMethod::Text, hash });
            candidates.push(ContentAddress { method: ContentAddressMethod::Flat, hash });
        }
        let references = References { others: object.references.clone(), itself: false };
        let name = object.path.name();
        let fits = |address: &ContentAddress| {
            self.store.make_content_addressed_path(name, address, &references).is_ok_and(|path| path == object.path)
        };
        Ok(candidates.into_iter().find(fits))
    }
}

fn derived_path(element: &Element) -> Result<SingleDerivedPath> {
    fn of(derived: &Derived) -> Result<SingleDerivedPath> {
        Ok(match derived {
            Derived::Path(path) => SingleDerivedPath::Opaque(path.parse()?),
            Derived::Output(drv, output) => {
                SingleDerivedPath::Built { drv: Box::new(of(drv)?), output: output.to_string() }
            }
        })
    }
    match element {
        Element::Opaque(path) | Element::DrvDeep(path) => Ok(SingleDerivedPath::Opaque(path.parse()?)),
        Element::Built { drv, output } => {
            Ok(SingleDerivedPath::Built { drv: Box::new(of(drv)?), output: output.to_string() })
        }
    }
}

/// What [`Evaluator::closure`] names, from where the evaluation has read it. It is read again, and has to be the same.
impl Contents for Evaluator<'_> {
    fn info(&self, object: &Object) -> std::result::Result<PathInfo, StoreError> {
        let place = self.place(object);
        let (nar_hash, nar_size) = nar::hash_tree::<NarError>(&self.tree(), &place, nar::keep_all, HashAlgo::Sha256)?;
        let Some(address) = self.address(object, nar_hash)? else {
            return Err("it has changed since its path was computed; evaluate again".into());
        };
        Ok(PathInfo {
            deriver: None,
            nar_hash,
            nar_size,
            references: object.references.clone(),
            registered: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            address: Some(address),
        })
    }

    fn nar(&self, object: &Object, sink: &mut dyn Write) -> std::result::Result<(), StoreError> {
        Ok(nar::dump::<NarError>(&self.tree(), &self.place(object), nar::keep_all, sink)?)
    }
}
