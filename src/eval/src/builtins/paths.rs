//! Builtins on paths and files, and copying into the store.

use super::PrimOp;
use super::derivation::{enabled_algo, parse_hash};
use crate::context::{Context, Derived, Element};
use crate::error::{Error, ErrorKind, Result};
use crate::eval::{Coerce, Evaluated, Evaluator};
use crate::fs::{self, FileSystem, FileType, Mount, Resolve, bytes_of, canonical, path_of};
use crate::symbol::sym;
use crate::text::strings::{base_name, dir_name};
use crate::value::{Kind, Pos, Value};
use bento_store::base32;
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::hash::{Hash, HashAlgo, HashError};
use bento_store::nar;
use bento_store::store_path::{HASH_LEN, References, StorePath};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::lazy("__toPath", 1, to_path),
    PrimOp::lazy("__storePath", 1, store_path),
    PrimOp::strict("__pathExists", 1, 1, path_exists),
    PrimOp::strict("baseNameOf", 1, 1, base_name_of),
    PrimOp::strict("dirOf", 1, 1, dir_of),
    PrimOp::strict("__readFile", 1, 1, read_file),
    PrimOp::strict("__findFile", 2, 1, find_file),
    PrimOp::lazy("__hashFile", 2, hash_file),
    PrimOp::strict("__readFileType", 1, 1, read_file_type),
    PrimOp::strict("__readDir", 1, 1, read_dir),
    PrimOp::lazy("__toFile", 2, to_file),
    PrimOp::lazy("__filterSource", 2, filter_source),
    PrimOp::lazy("__path", 1, path),
];

/// The store path of a copy, printed, and its context.
type Copied = (Rc<str>, Context);

/// What was copied into the store.
#[derive(Default)]
pub(crate) struct PathState {
    /// By path.
    copied: RefCell<FxHashMap<Vec<u8>, Copied>>,
    /// The hashes of trees of which a filter kept some.
    filtered: RefCell<FxHashMap<Filtered, Hash>>,
}

/// A tree of which a filter kept some.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
struct Filtered {
    root: PathBuf,
    /// The digest of the paths that were kept.
    kept: [u8; 32],
}

/// Hashes of parts of trees, for other evaluations of the same time: see [`Evaluator::learn_trees`].
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct TreeHashes(Vec<(Filtered, String)>);

/// How something is copied into the store.
struct Copying<'a> {
    name: String,
    method: ContentAddressMethod,
    /// What is left out.
    filter: Option<Value<'a>>,
    /// What the hash must be.
    expected: Option<Hash>,
    /// What the copy refers to.
    references: BTreeSet<StorePath>,
}

impl Copying<'_> {
    /// Everything, as an archive.
    fn of(name: String) -> Self {
        let method = ContentAddressMethod::NixArchive;
        Copying { name, method, filter: None, expected: None, references: BTreeSet::new() }
    }
}

/// Archives what the evaluator's file system shows.
struct Tree<'f>(&'f dyn FileSystem);

/// As [`Tree`], with files that are empty: to find out what there is.
struct Outline<'f>(Tree<'f>);

impl nar::Files for Outline<'_> {
    fn metadata(&self, path: &Path) -> io::Result<nar::Metadata> {
        Ok(match self.0.metadata(path)? {
            nar::Metadata::Regular { executable, .. } => nar::Metadata::Regular { executable, size: 0 },
            other => other,
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<Vec<u8>>> {
        self.0.names(directory)
    }

    fn contents(&self, _: &Path, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }

    fn target(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

impl nar::Files for Tree<'_> {
    fn metadata(&self, path: &Path) -> io::Result<nar::Metadata> {
        let metadata = self.0.metadata(path).map_err(io::Error::other)?;
        Ok(match metadata.file_type {
            FileType::Regular => nar::Metadata::Regular { executable: metadata.executable, size: metadata.size },
            FileType::Directory => nar::Metadata::Directory,
            FileType::Symlink => nar::Metadata::Symlink,
            FileType::Unknown => nar::Metadata::Unknown,
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<Vec<u8>>> {
        let entries = self.0.read_dir(directory).map_err(io::Error::other)?;
        Ok(entries.into_iter().map(|entry| bytes_of(Path::new(&entry.name)).to_vec()).collect())
    }

    fn contents(&self, file: &Path, sink: &mut dyn io::Write) -> io::Result<()> {
        sink.write_all(&self.0.read_file(file).map_err(io::Error::other)?)
    }

    fn target(&self, link: &Path) -> io::Result<Vec<u8>> {
        let target = self.0.read_link(link).map_err(io::Error::other)?;
        Ok(bytes_of(Path::new(&target)).to_vec())
    }
}

fn type_name(file_type: nar::FileType) -> &'static str {
    match file_type {
        nar::FileType::Regular => "regular",
        nar::FileType::Directory => "directory",
        nar::FileType::Symlink => "symlink",
        nar::FileType::Unknown => "unknown",
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl<'a> Evaluator<'a> {
    /// The path that a value stands for.
    ///
    /// # Errors
    /// When it stands for none.
    pub(crate) fn coerce_to_path(
        &self,
        value: Value<'a>,
        context: &mut Context,
        pos: Pos,
        what: &str,
    ) -> Result<Vec<u8>> {
        let value = self.force(value).map_err(|error| error.traced(pos, what))?;
        match value.kind() {
            Kind::Path(path) => return Ok(path.bytes().to_vec()),
            Kind::Attrs(attrs) => {
                if let Some(convert) = attrs.get(sym::TO_STRING) {
                    let convert = self.force_slot(convert)?;
                    let result = self.nested(pos, || self.call(convert, &[value], pos))?;
                    return self.nested(pos, || self.coerce_to_path(result, context, pos, what));
                }
            }
            _ => {}
        }
        let mut text = Vec::new();
        self.coerce_to_string(value, &mut text, context, Coerce::PLAIN, pos, what)?;
        if text.first() != Some(&b'/') {
            let message = format!("string '{}' doesn't represent an absolute path", lossy(&text));
            return Err(Error::eval(Pos::NONE, message).traced(pos, what));
        }
        Ok(bytes_of(&canonical(&text)).to_vec())
    }

    /// The path that a value stands for, once all that has to be built to read it is there.
    ///
    /// # Errors
    /// When the value stands for no path, or something can't be built.
    pub(crate) fn readable_path(&self, value: Value<'a>, pos: Pos) -> Result<Vec<u8>> {
        let mut context = 0;
        let path = self.coerce_to_path(value, &mut context, Pos::NONE, "while realising the context of a path")?;
        if context == 0 {
            return Ok(path);
        }
        let rewrites = self
            .realise(context)
            .map_err(|error| error.traced(pos, format!("while realising the context of path '{}'", lossy(&path))))?;
        let path = rewrites.apply(path);
        self.mount_derivation(&lossy(&path));
        Ok(path)
    }

    /// Files as archives are made of them: those that the evaluation sees.
    pub(crate) fn tree(&self) -> impl nar::Files {
        Tree(&*self.fs)
    }

    /// The store path of a copy of `path` with the name of `path`, printed, and the context of that.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn copy_to_store(&self, path: &[u8], pos: Pos) -> Result<(Rc<str>, Context)> {
        if let Some(copied) = self.state.paths.copied.borrow().get(path) {
            return Ok(copied.clone());
        }
        if path.ends_with(b".drv") {
            return Err(Error::eval(Pos::NONE, "file names are not allowed to end in '.drv'"));
        }
        let source = self.resolve_links(path, Resolve::Ancestors)?;
        let copied =
            self.add_tree(&source, &Copying::of(lossy(base_name(path)))).map_err(|error| placed(error, pos))?;
        self.state.paths.copied.borrow_mut().insert(path.to_vec(), copied.clone());
        Ok(copied)
    }

    /// Works out the store path of a file tree and serves it from where it is.
    fn add_tree(&self, source: &Path, copying: &Copying<'a>) -> Result<(Rc<str>, Context)> {
        let Copying { method, filter, expected, .. } = *copying;
        self.check_path(bytes_of(source))?;
        let shown = || lossy(bytes_of(source));
        if self.fs.lstat(source).map_err(|error| self.file_error(&error, Pos::NONE))?.is_none() {
            return Err(Error::new(ErrorKind::File, Pos::NONE, format!("path '{}' does not exist", shown())));
        }
        let mut kept: Vec<Vec<u8>> = vec![Vec::new()];
        let prefix = bytes_of(source).len() + usize::from(bytes_of(source) != b"/");
        let mut flat = None;
        let hash = if method == ContentAddressMethod::Flat {
            let contents = self.fs.read_file(source).map_err(|error| self.file_error(&error, Pos::NONE))?;
            Hash::digest(HashAlgo::Sha256, flat.insert(contents))
        } else if let Some(filter) = filter {
            let keep = |path: &Path, file_type: nar::FileType| -> Result<bool> {
                let file_type = ev_string(self, type_name(file_type));
                let result = self.call(filter, &[self.heap.string(bytes_of(path)), file_type], Pos::NONE)?;
                let what = "while evaluating the return value of the path filter function";
                let keep = self.force_bool(result, Pos::NONE, what)?;
                if keep {
                    kept.push(bytes_of(path).get(prefix..).unwrap_or_default().to_vec());
                }
                Ok(keep)
            };
            nar::dump(&Outline(Tree(&*self.fs)), source, keep, io::sink())?;
            self.hash_filtered(source, &kept, prefix)?
        } else {
            nar::hash_tree(&Tree(&*self.fs), source, nar::keep_all, HashAlgo::Sha256).map_err(Box::<Error>::from)?.0
        };
        let path = self.copy_path(copying, hash)?;
        if expected.is_some_and(|expected| expected != hash) {
            let message = format!("store path mismatch in (possibly filtered) path added from '{}'", shown());
            return Err(Error::eval(Pos::NONE, message));
        }
        let printed: Rc<str> = Rc::from(self.store.print(&path));
        let place = path_of(printed.as_bytes());
        if !self.fs.is_mounted(place) {
            let filter = filter.map(|_| Rc::new(fs::FileSet::from_nodes(&kept)));
            let mount = match flat {
                // the contents are all that the store's file takes over
                Some(contents) => Mount::File { contents: contents.into(), executable: false },
                None => Mount::Tree { fs: self.fs.clone(), root: source.to_owned(), filter },
            };
            self.fs.mount(place, mount);
        }
        if !copying.references.is_empty() {
            self.state.store.references.borrow_mut().insert(path.clone(), copying.references.clone());
        }
        self.allow_path(printed.as_bytes());
        let context = self.contexts.single(Element::Opaque(Rc::from(path.as_str())));
        Ok((printed, context))
    }

    /// The hash of a tree with only these of its paths, which come in the order of the archive and begin at `prefix`. What
    /// several hosts of a fleet filter (the manual of NixOS is made from its modules) is read once.
    fn hash_filtered(&self, source: &Path, kept: &[Vec<u8>], prefix: usize) -> Result<Hash> {
        let mut digest = blake3::Hasher::new();
        for path in kept {
            digest.update(&(path.len() as u64).to_le_bytes()).update(path);
        }
        let key = Filtered { root: source.to_owned(), kept: *digest.finalize().as_bytes() };
        if let Some(hash) = self.state.paths.filtered.borrow().get(&key)
            && self.reads_again(source, kept)
        {
            return Ok(*hash);
        }
        // the first is the tree itself, which is kept always
        let mut next = kept.iter().skip(1).peekable();
        let keep = |path: &Path, _| -> Result<bool> {
            Ok(next.next_if(|next| bytes_of(path).get(prefix..) == Some(next.as_slice())).is_some())
        };
        let hash = nar::hash_tree(&Tree(&*self.fs), source, keep, HashAlgo::Sha256)?.0;
        self.state.paths.filtered.borrow_mut().insert(key, hash);
        Ok(hash)
    }

    /// Takes up that these files and links of a tree are used as they were read before; false if one was not.
    fn reads_again(&self, root: &Path, kept: &[Vec<u8>]) -> bool {
        kept.iter().all(|path| {
            let place = if path.is_empty() { root.to_owned() } else { root.join(path_of(path)) };
            let is_directory =
                || matches!(self.fs.metadata(&place), Ok(metadata) if metadata.file_type == FileType::Directory);
            is_directory() || self.fs.read_again(&place)
        })
    }

    /// The hashes that were worked out or learned of parts of trees (`builtins.filterSource`, `builtins.path`).
    pub fn tree_hashes(&self) -> TreeHashes {
        let filtered = self.state.paths.filtered.borrow();
        TreeHashes(filtered.iter().map(|(tree, hash)| (tree.clone(), hash.to_base16())).collect())
    }

    /// Takes up hashes of another evaluation, which began at the same time: such a part is not hashed again as long as the
    /// file system knows its files ([`FileSystem::read_again`]).
    pub fn learn_trees(&self, hashes: TreeHashes) {
        let mut filtered = self.state.paths.filtered.borrow_mut();
        for (tree, hash) in hashes.0 {
            if let Ok(hash) = Hash::parse_any(&hash, Some(HashAlgo::Sha256)) {
                filtered.entry(tree).or_insert(hash);
            }
        }
    }

    /// The store path of a copy whose hash is `hash`.
    fn copy_path(&self, copying: &Copying<'_>, hash: Hash) -> Result<StorePath> {
        let address = ContentAddress { method: copying.method, hash };
        let references = References { others: copying.references.clone(), itself: false };
        Ok(self.store.make_content_addressed_path(&copying.name, &address, &references)?)
    }

    /// `builtins.nixPath`.
    pub(crate) fn search_path_value(&self) -> Value<'a> {
        let entries = &self.settings.search_path;
        let list = self.heap.list_with(entries.len(), |index| {
            let (prefix, value) = &entries[index];
            let mut attrs = vec![
                (sym::PREFIX, Pos::NONE, self.heap.string(prefix.as_bytes())),
                (sym::PATH, Pos::NONE, self.heap.string(value.as_bytes())),
            ];
            self.heap.attrs(&mut attrs).into()
        });
        list.into()
    }
}

fn placed(mut error: Box<Error>, pos: Pos) -> Box<Error> {
    if error.pos == Pos::NONE {
        error.pos = pos;
    }
    error
}

fn ev_string<'a>(ev: &Evaluator<'a>, text: &str) -> Value<'a> {
    ev.symbol_string(ev.symbols.intern(text.as_bytes()))
}

fn to_path<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let mut context = 0;
    let what = "while evaluating the first argument passed to builtins.toPath";
    let path = ev.coerce_to_path(args[0], &mut context, pos, what)?;
    Ok(ev.heap.string_with_context(&path, context))
}

fn store_path<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    if ev.settings.pure {
        return Err(Error::eval(pos, "'builtins.storePath' is not allowed in pure evaluation mode"));
    }
    let mut context = 0;
    let what = "while evaluating the first argument passed to 'builtins.storePath'";
    let mut path = ev.coerce_to_path(args[0], &mut context, pos, what)?;
    if ev.store.parse(&path).is_err() {
        path = bytes_of(&ev.resolve_links(&path, Resolve::Full)?).to_vec();
    }
    if !ev.store.contains(&path) {
        return Err(Error::eval(pos, format!("path '{}' is not in the Nix store", lossy(&path))));
    }
    let (base, _) = ev.store.split(&path).map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
    let context = ev.contexts.union(context, ev.contexts.single(Element::Opaque(Rc::from(base.as_str()))));
    Ok(ev.heap.string_with_context(&path, context))
}

fn path_exists<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let value = ev.force(args[0])?;
    let must_be_directory = matches!(value.kind(),
        Kind::Str(text) if text.bytes().ends_with(b"/") || text.bytes().ends_with(b"/."));
    let path = ev.readable_path(value, pos)?;
    if ev.check_path(&path).is_err() {
        return Ok(Value::FALSE);
    }
    let mode = if must_be_directory { Resolve::Full } else { Resolve::Ancestors };
    let resolved = ev.resolve_links(&path, mode)?;
    if ev.check_path(bytes_of(&resolved)).is_err() {
        return Ok(Value::FALSE);
    }
    let metadata = ev.fs.lstat(&resolved).map_err(|error| ev.file_error(&error, pos))?;
    Ok(Value::bool(metadata.is_some_and(|metadata| !must_be_directory || metadata.file_type == FileType::Directory)))
}

fn base_name_of<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.baseNameOf";
    let (text, context) = ev.to_string(args[0], Coerce::PLAIN, pos, what)?;
    Ok(ev.heap.string_with_context(base_name(&text), context))
}

fn dir_of<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let value = ev.force(args[0])?;
    if let Kind::Path(path) = value.kind() {
        let parent = path_of(path.bytes()).parent().unwrap_or(Path::new("/"));
        return Ok(ev.heap.path(bytes_of(parent)));
    }
    let what = "while evaluating the first argument passed to 'builtins.dirOf'";
    let (text, context) = ev.to_string(value, Coerce::PLAIN, pos, what)?;
    Ok(ev.heap.string_with_context(dir_name(&text), context))
}

fn read_file<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let path = ev.readable_path(args[0], pos)?;
    let contents = ev.read_file(&path)?;
    if contents.contains(&0) {
        let message = format!("the contents of the file '{}' cannot be represented as a Nix string", lossy(&path));
        return Err(Error::eval(pos, message));
    }
    let mut context = 0;
    let place = ev.resolve_links(&path, Resolve::Full)?;
    if let (Ok((base, _)), true) = (ev.store.split(bytes_of(&place)), may_refer(&contents)) {
        // A file keeps the references of which it has the hash part.
        let references = ev.references(&base);
        let found = references
            .iter()
            .filter(|reference| memchr::memmem::find(&contents, reference.hash_part().as_bytes()).is_some());
        context = ev.contexts.of(found.map(|reference| Element::Opaque(Rc::from(reference.as_str()))));
    }
    Ok(ev.heap.string_with_context(&contents, context))
}

/// Whether there is anything in a file that could be the hash part of a store path; few have it.
fn may_refer(contents: &[u8]) -> bool {
    contents.split(|byte| !base32::is_digit(*byte)).any(|digits| digits.len() >= HASH_LEN)
}

fn find_file<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[0], pos, "while evaluating the first argument passed to builtins.findFile")?;
    let mut entries = Vec::with_capacity(list.len());
    for element in list.iter() {
        let what = "while evaluating an element of the list passed to builtins.findFile";
        let attrs = ev.force_attrs(element, pos, what)?;
        let prefix = match attrs.get(sym::PREFIX) {
            Some(prefix) => {
                let what =
                    "while evaluating the `prefix` attribute of an element of the list passed to builtins.findFile";
                ev.force_string_no_context(prefix.get(), pos, what)?.to_vec()
            }
            None => Vec::new(),
        };
        let (path, _) = super::attrs::required(ev, attrs, sym::PATH, "in an element of the __nixPath")?;
        let what = "while evaluating the `path` attribute of an element of the list passed to builtins.findFile";
        let (path, context) = ev.to_string(path, Coerce::PLAIN, pos, what)?;
        entries.push((prefix, ev.realise(context)?.apply(path)));
    }
    let what = "while evaluating the second argument passed to builtins.findFile";
    let name = ev.force_string_no_context(args[1], pos, what)?;
    Ok(ev.heap.path(&ev.find_file(&entries, name, pos)?))
}

fn hash_file<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.hashFile";
    let name = lossy(ev.force_string_no_context(args[0], pos, what)?);
    let algo = name.parse().map_err(|error: HashError| Error::eval(pos, error.to_string()))?;
    let algo = enabled_algo(ev, algo)?;
    let path = ev.readable_path(args[1], pos)?;
    Ok(ev.heap.string(Hash::digest(algo, ev.read_file(&path)?).to_base16().as_bytes()))
}

fn read_file_type<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let path = ev.readable_path(args[0], pos)?;
    ev.check_path(&path)?;
    let place = ev.resolve_links(&path, Resolve::Ancestors)?;
    let metadata = ev.fs.metadata(&place).map_err(|error| ev.file_error(&error, pos))?;
    Ok(ev_string(ev, metadata.file_type.name()))
}

fn read_dir<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let path = ev.readable_path(args[0], pos)?;
    ev.check_path(&path)?;
    let place: PathBuf = ev.resolve_links(&path, Resolve::Full)?;
    ev.check_path(bytes_of(&place))?;
    let entries = ev.fs.read_dir(&place).map_err(|error| ev.file_error(&error, pos))?;
    let mut attrs: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let name = ev.symbols.intern(bytes_of(Path::new(&entry.name)));
            (name, Pos::NONE, ev_string(ev, entry.file_type.name()))
        })
        .collect();
    Ok(ev.heap.attrs(&mut attrs).into())
}

/// A derivation as Nix stores it in a string's context.
fn stored(drv: &Derived) -> String {
    match drv {
        Derived::Path(path) => path.to_string(),
        Derived::Output(drv, output) => format!("{output}!{}", stored(drv)),
    }
}

fn to_file<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.toFile";
    let name = lossy(ev.force_string_no_context(args[0], pos, what)?);
    let what = "while evaluating the second argument passed to builtins.toFile";
    let (contents, context) = ev.force_string(args[1], pos, what)?;
    let mut references = BTreeSet::new();
    for element in ev.contexts.elements(context) {
        let Element::Opaque(path) = &element else {
            // Nix names the element here as it stores it.
            let element = match &element {
                Element::Built { drv, output } => format!("!{output}!{}", stored(drv)),
                Element::DrvDeep(drv) => format!("={drv}"),
                Element::Opaque(path) => path.to_string(),
            };
            let message = format!(
                "files created by builtins.toFile may not reference derivations, but {name} references {element}"
            );
            return Err(Error::eval(pos, message));
        };
        references.insert(path.parse::<StorePath>()?);
    }
    let hash = Hash::digest(HashAlgo::Sha256, contents);
    let path = ev.store.make_text_path(&name, &hash, &references)?;
    let printed = ev.store.print(&path);
    ev.fs.mount(path_of(printed.as_bytes()), Mount::File { contents: Rc::from(contents), executable: false });
    ev.allow_path(printed.as_bytes());
    let context = ev.contexts.single(Element::Opaque(Rc::from(path.as_str())));
    ev.state.store.references.borrow_mut().insert(path, references);
    Ok(ev.heap.string_with_context(printed.as_bytes(), context))
}

fn add_path<'a>(
    ev: &Evaluator<'a>,
    path: &[u8],
    context: Context,
    mut copying: Copying<'a>,
    pos: Pos,
) -> Evaluated<'a> {
    let mut add = || {
        let mut path = path.to_vec();
        // As in Nix, what stands for an output whose path is not known is no path in the store.
        if context != 0 && ev.store.split(&path).is_ok() {
            path = ev.realise(context)?.apply(path);
            if let Ok((base, _)) = ev.store.split(&path) {
                copying.references = ev.references(&base);
            }
        }
        // What is wanted may be there already: then it need not be read.
        if let Some(hash) = copying.expected {
            let wanted = ev.copy_path(&copying, hash)?;
            let printed = ev.store.print(&wanted);
            if ev.fs.exists(path_of(printed.as_bytes())).unwrap_or(false) {
                ev.allow_path(printed.as_bytes());
                let context = ev.contexts.single(Element::Opaque(Rc::from(wanted.as_str())));
                return Ok((Rc::from(printed), context));
            }
        }
        let source = ev.resolve_links(&path, Resolve::Full)?;
        ev.add_tree(&source, &copying)
    };
    let (printed, context) =
        add().map_err(|error: Box<Error>| error.traced(pos, format!("while adding path '{}'", lossy(path))))?;
    Ok(ev.heap.string_with_context(printed.as_bytes(), context))
}

fn filter_source<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let mut context = 0;
    let what = "while evaluating the second argument (the path to filter) passed to 'builtins.filterSource'";
    let path = ev.coerce_to_path(args[1], &mut context, pos, what)?;
    let filter =
        ev.force_function(args[0], pos, "while evaluating the first argument passed to builtins.filterSource")?;
    let copying = Copying { filter: Some(filter), ..Copying::of(lossy(base_name(&path))) };
    add_path(ev, &path, context, copying, pos)
}

fn path<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = ev.force_attrs(args[0], pos, "while evaluating the argument passed to 'builtins.path'")?;
    let mut source = None;
    let mut copying = Copying::of(String::new());
    let mut context = 0;
    for (symbol, attr_pos, cell) in ev.heap.flat(attrs).iter() {
        let value = cell.get();
        match ev.symbols.text(symbol) {
            b"path" => {
                let what = "while evaluating the 'path' attribute passed to 'builtins.path'";
                source = Some(ev.coerce_to_path(value, &mut context, attr_pos, what)?);
            }
            b"name" => {
                let what = "while evaluating the `name` attribute passed to builtins.path";
                copying.name = lossy(ev.force_string_no_context(value, attr_pos, what)?);
            }
            b"filter" => {
                let what = "while evaluating the `filter` parameter passed to builtins.path";
                copying.filter = Some(ev.force_function(value, attr_pos, what)?);
            }
            b"recursive" => {
                let what = "while evaluating the `recursive` attribute passed to builtins.path";
                if !ev.force_bool(value, attr_pos, what)? {
                    copying.method = ContentAddressMethod::Flat;
                }
            }
            b"sha256" => {
                let what = "while evaluating the `sha256` attribute passed to builtins.path";
                let text = lossy(ev.force_string_no_context(value, attr_pos, what)?);
                copying.expected = Some(parse_hash(ev, &text, Some(HashAlgo::Sha256))?);
            }
            _ => {
                let message = format!("unsupported argument '{}' to 'builtins.path'", ev.attr_name(symbol));
                return Err(Error::eval(attr_pos, message));
            }
        }
    }
    let Some(source) = source else {
        let message = "missing required 'path' attribute in the first argument to 'builtins.path'";
        return Err(Error::eval(pos, message));
    };
    if copying.name.is_empty() {
        copying.name = lossy(base_name(&source));
    }
    add_path(ev, &source, context, copying, pos)
}
