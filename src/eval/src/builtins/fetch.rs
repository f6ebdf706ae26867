//! Builtins that fetch: what is on this machine is read from where it is, what the store has is taken from there, and anything
//! else is downloaded, if the settings let the network be used.

use super::PrimOp;
use crate::context::Element;
use crate::error::{Error, Result};
use crate::flake::fetch::SourceInfo;
use crate::flake::reference::{Attr, Attrs as RefAttrs, FlakeRef, Input, ParseOptions};
use crate::flake::{FlakeError, UseRegistries, local_path};
use crate::fs::{self, FileSystem, Mount};
use crate::symbol::sym;
use crate::value::{Attrs, Kind, Pos, Value};
use crate::{Coerce, Evaluated, Evaluator};
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::hash::{Hash, HashAlgo};
use bento_store::store_path::{StorePath, check_name};
use std::borrow::Cow;
use std::path::Path;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("fetchTree", 1, 1, |evaluator, args, pos| fetch_tree(evaluator, args[0], pos, false)),
    PrimOp::strict("fetchGit", 1, 1, |evaluator, args, pos| fetch_tree(evaluator, args[0], pos, true)),
    PrimOp::strict("__fetchurl", 1, 1, |evaluator, args, pos| fetch(evaluator, args[0], pos, &FETCH_URL)),
    PrimOp::strict("fetchTarball", 1, 1, |evaluator, args, pos| fetch(evaluator, args[0], pos, &FETCH_TARBALL)),
    PrimOp::strict("fetchMercurial", 1, 1, fetch_mercurial),
    PrimOp::strict("__fetchClosure", 1, 1, fetch_closure),
];

/// A path in the store as a string that refers to the store path it is in.
pub(super) fn store_path_value<'a>(evaluator: &Evaluator<'a>, path: &str) -> Value<'a> {
    let context = match evaluator.store.split(path.as_bytes()) {
        Ok((store_path, _)) => evaluator.contexts.single(Element::Opaque(store_path.as_str().into())),
        Err(_) => 0,
    };
    evaluator.heap.string_with_context(path.as_bytes(), context)
}

/// A source as `fetchTree` and a flake's `sourceInfo` show it. `fetchGit` wants a revision of zeros where there is none.
pub(super) fn tree_attrs<'a>(evaluator: &Evaluator<'a>, path: &str, info: &SourceInfo, empty_rev: bool) -> Attrs<'a> {
    let heap = &evaluator.heap;
    let mut attrs = vec![(sym::OUT_PATH, Pos::NONE, store_path_value(evaluator, path))];
    let mut add = |name: &str, value: Value<'a>| {
        attrs.push((evaluator.symbols.intern(name.as_bytes()), Pos::NONE, value));
    };
    let string = |text: &str| heap.string(text.as_bytes());
    if let Some(hash) = &info.nar_hash {
        add("narHash", string(hash));
    }
    if let Some(submodules) = info.submodules {
        add("submodules", Value::bool(submodules));
    }
    match (&info.rev, info.short_rev()) {
        (Some(rev), Some(short_rev)) => {
            add("rev", string(rev));
            add("shortRev", string(short_rev));
        }
        _ if empty_rev => {
            add("rev", string(&"0".repeat(40)));
            add("shortRev", string("0000000"));
        }
        _ => {}
    }
    match info.rev_count {
        Some(count) => add("revCount", heap.int(count as i64)),
        None if empty_rev => add("revCount", heap.int(0)),
        None => {}
    }
    if let (Some(rev), Some(short_rev)) = (&info.dirty_rev, &info.dirty_short_rev) {
        add("dirtyRev", string(rev));
        add("dirtyShortRev", string(short_rev));
    }
    if let Some(time) = info.last_modified {
        add("lastModified", heap.int(time as i64));
    }
    if let Some(date) = info.last_modified_date() {
        add("lastModifiedDate", string(&date));
    }
    heap.attrs(&mut attrs)
}

impl<'a> Evaluator<'a> {
    /// Checks that a URL may be fetched: if evaluation is restricted, only what may be read may be fetched.
    fn check_uri(&self, uri: &str, pos: Pos) -> Result<()> {
        if !self.settings.restricted {
            return Ok(());
        }
        let path = if uri.starts_with('/') { Some(fs::canonical(uri.as_bytes())) } else { local_path(uri) };
        match path {
            Some(path) => self.check_path(fs::bytes_of(&path)),
            None => Err(Error::eval(pos, format!("access to URI '{uri}' is forbidden in restricted mode"))),
        }
    }

    /// Where an entry of the search path that is a URL, `channel:NAME` or `flake:REFERENCE` leads: a store path.
    ///
    /// # Errors
    /// When it is malformed or can't be had.
    pub(crate) fn fetch_search_path_entry(&self, text: &str) -> Result<Vec<u8>> {
        self.host.volatile(text);
        let input = match text.strip_prefix("flake:") {
            Some(reference) => {
                let options = ParseOptions { is_flake: false, ..ParseOptions::default() };
                self.fetcher().resolve(&FlakeRef::parse(reference, options)?.input, UseRegistries::All)?.0
            }
            None => Input::parse_url(&resolve_channel(text))?,
        };
        let tree = self.fetcher().fetch(&input)?;
        let path = self.store.print(&tree.store_path).into_bytes();
        self.allow_path(&path);
        Ok(path)
    }

    /// A store path that was fetched, as a string. It may be read from now on.
    fn fetched(&self, store_path: &StorePath) -> Value<'a> {
        let path = self.store.print(store_path);
        self.allow_path(path.as_bytes());
        store_path_value(self, &path)
    }
}

/// `fetchTree` and `fetchGit`.
fn fetch_tree<'a>(evaluator: &Evaluator<'a>, argument: Value<'a>, pos: Pos, git: bool) -> Evaluated<'a> {
    let fetcher_name = if git { "fetchGit" } else { "fetchTree" };
    let argument = evaluator.force(argument)?;
    let mut input = match argument.as_attrs() {
        Some(attrs) => Input::from_attrs(tree_arguments(evaluator, attrs, pos, git, fetcher_name)?)?,
        None => {
            let what = format!("while evaluating the first argument passed to '{fetcher_name}'");
            let (url, _) = evaluator.to_string(argument, Coerce::PLAIN, pos, &what)?;
            let url = evaluator.utf8(&url, pos)?;
            if git {
                Input::from_attrs(RefAttrs::from([
                    ("type".to_owned(), "git".into()),
                    ("url".to_owned(), url.into()),
                    ("exportIgnore".to_owned(), true.into()),
                ]))?
            } else {
                Input::parse_url(&url)?
            }
        }
    };
    if !evaluator.settings.pure {
        input = evaluator.fetcher().resolve(&input, UseRegistries::Limited)?.0;
    }
    let locked = input.is_locked()?;
    if !locked {
        evaluator.host.volatile(&input.to_string());
    }
    if evaluator.settings.pure && !locked {
        if input.nar_hash()?.is_none() {
            let message = format!("in pure evaluation mode, '{fetcher_name}' doesn't fetch unlocked input '{input}'");
            return Err(Error::eval(pos, message));
        }
        evaluator.host.warn(&format!(
            "Input '{input}' is unlocked (e.g. lacks a Git revision) but is checked by NAR hash. This is not reproducible \
             and will break after garbage collection or when shared."
        ));
    }
    evaluator.check_uri(&input.to_url_string()?, pos)?;
    if input.attrs().contains_key("__final") {
        let message = format!("input '{input}' is not allowed to use the '__final' attribute");
        return Err(Error::eval(Pos::NONE, message));
    }
    let tree = evaluator.fetcher().fetch(&input)?;
    let path = evaluator.store.print(&tree.store_path);
    evaluator.allow_path(path.as_bytes());
    Ok(tree_attrs(evaluator, &path, &SourceInfo::of(&tree.input)?, git).into())
}

/// The attributes of an input from those that `fetchTree` or `fetchGit` was called with.
fn tree_arguments<'a>(
    evaluator: &Evaluator<'a>,
    given: Attrs<'a>,
    pos: Pos,
    git: bool,
    fetcher_name: &str,
) -> Result<RefAttrs> {
    let mut attrs = RefAttrs::new();
    let kind = match given.find(sym::TYPE) {
        Some(_) if git => return Err(Error::eval(pos, "unexpected argument 'type'")),
        Some((cell, pos)) => {
            let what = format!("while evaluating the `type` argument passed to '{fetcher_name}'");
            evaluator.utf8(evaluator.force_string_no_context(cell.get(), pos, &what)?, pos)?
        }
        None if git => "git".to_owned(),
        None => {
            return Err(Error::eval(pos, format!("argument 'type' is missing in call to '{fetcher_name}'")));
        }
    };
    let is_git = kind == "git";
    attrs.insert("type".to_owned(), kind.into());
    for (name, attr_pos, cell) in evaluator.heap.flat(given).iter() {
        if name == sym::TYPE {
            continue;
        }
        let name = evaluator.name(name);
        let value = evaluator.force_slot(cell)?;
        let attr = match value.kind() {
            Kind::Str(text) | Kind::Path(text) => Attr::String(evaluator.utf8(text.bytes(), attr_pos)?),
            Kind::Bool(truth) => Attr::Bool(truth),
            Kind::Int(number) => Attr::Int(u64::try_from(number).map_err(|_| {
                Error::eval(pos, format!("negative value given for '{fetcher_name}' argument '{name}': {number}"))
            })?),
            _ => {
                let found = evaluator.type_of(value);
                let message = format!(
                    "argument '{name}' to '{fetcher_name}' is {found} while a string, Boolean or integer is expected"
                );
                return Err(Error::eval(Pos::NONE, message));
            }
        };
        attrs.insert(name, attr);
    }
    if git && !attrs.contains_key("exportIgnore") && attrs.get("submodules") != Some(&Attr::Bool(true)) {
        attrs.insert("exportIgnore".to_owned(), true.into());
    }
    if is_git && !git && !attrs.contains_key("shallow") {
        attrs.insert("shallow".to_owned(), true.into());
    }
    if !git && attrs.contains_key("name") {
        return Err(Error::eval(pos, format!("argument 'name' isn’t supported in call to '{fetcher_name}'")));
    }
    Ok(attrs)
}

/// The URL that `channel:NAME` stands for; any other as it is.
fn resolve_channel(url: &str) -> Cow<'_, str> {
    match url.strip_prefix("channel:") {
        Some(channel) => format!("https://channels.nixos.org/{channel}/nixexprs.tar.xz").into(),
        None => url.into(),
    }
}

/// What tells `fetchurl` and `fetchTarball` apart.
struct Download {
    name: &'static str,
    unpack: bool,
    default_name: &'static str,
}

const FETCH_URL: Download = Download { name: "fetchurl", unpack: false, default_name: "" };
const FETCH_TARBALL: Download = Download { name: "fetchTarball", unpack: true, default_name: "source" };

/// `fetchurl` and `fetchTarball`.
fn fetch<'a>(evaluator: &Evaluator<'a>, argument: Value<'a>, pos: Pos, download: &Download) -> Evaluated<'a> {
    let who = download.name;
    let argument = evaluator.force(argument)?;
    let mut url = None;
    let mut expected = None;
    let mut name = None;
    if let Some(attrs) = argument.as_attrs() {
        for (attr, attr_pos, cell) in evaluator.heap.flat(attrs).iter() {
            let text =
                |what: &str| evaluator.utf8(evaluator.force_string_no_context(cell.get(), attr_pos, what)?, attr_pos);
            match evaluator.symbols.text(attr) {
                b"url" => url = Some(text("while evaluating the url we should fetch")?),
                b"sha256" => {
                    let hash = text("while evaluating the sha256 of the content we should fetch")?;
                    let parsed = Hash::parse_allow_empty(&hash, Some(HashAlgo::Sha256))
                        .map_err(|error| Error::eval(attr_pos, error.to_string()))?;
                    if hash.is_empty() {
                        evaluator.host.warn(&format!("found empty hash, assuming '{}'", parsed.to_sri()));
                    }
                    expected = Some(parsed);
                }
                b"name" => name = Some(text("while evaluating the name of the content we should fetch")?),
                _ => {
                    let message = format!("unsupported argument '{}' to '{who}'", evaluator.attr_name(attr));
                    return Err(Error::eval(pos, message));
                }
            }
        }
        if url.is_none() {
            return Err(Error::eval(pos, "'url' argument required"));
        }
    }
    let mut url = match url {
        Some(url) => url,
        None => {
            let what = "while evaluating the url we should fetch";
            evaluator.utf8(evaluator.force_string_no_context(argument, pos, what)?, pos)?
        }
    };
    if download.unpack {
        url = resolve_channel(&url).into_owned();
    }
    evaluator.check_uri(&url, pos)?;
    let name_given = name.is_some();
    let mut name = name.unwrap_or_else(|| download.default_name.to_owned());
    if name.is_empty() {
        let path = url.strip_suffix('/').unwrap_or(&url);
        name = path.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Err(error) = check_name(&name) {
        let advice = if name_given {
            "Please change the value for the 'name' attribute passed to"
        } else if argument.as_attrs().is_some() {
            "Please add a valid 'name' attribute to the argument for"
        } else {
            // The second space in front of what follows is Nix's.
            "Please pass an attribute set with 'url' and 'name' attributes to"
        };
        let gap = if advice.contains("'url' and 'name'") { "  " } else { " " };
        let message = format!(
            "invalid store path name when fetching URL '{url}': {error}. {advice} '{who}',{gap}so that it can create a \
             valid store path."
        );
        return Err(Error::eval(pos, message));
    }
    if evaluator.settings.pure && expected.is_none() {
        let message = format!("in pure evaluation mode, '{who}' requires a 'sha256' argument");
        return Err(Error::eval(pos, message));
    }
    if expected.is_none() {
        evaluator.host.volatile(&url);
    }
    let method = if download.unpack { ContentAddressMethod::NixArchive } else { ContentAddressMethod::Flat };
    let path_for = |hash: Hash| {
        evaluator
            .store
            .make_fixed_output_path(&name, &ContentAddress { method, hash })
            .map_err(|error| Error::eval(pos, error.to_string()))
    };
    let expected_path = expected.map(path_for).transpose()?;
    if let Some(path) = &expected_path {
        let place = evaluator.store.print(path);
        if evaluator.fs.exists(Path::new(&place)).map_err(FlakeError::from)? {
            return Ok(evaluator.fetched(path));
        }
    }
    let input = Input::from_attrs(RefAttrs::from([
        ("type".to_owned(), if download.unpack { "tarball" } else { "file" }.into()),
        ("url".to_owned(), url.as_str().into()),
        ("name".to_owned(), name.as_str().into()),
    ]))?;
    let tree = evaluator.fetcher().fetch(&input)?;
    let (store_path, hash) = if download.unpack {
        (tree.store_path.clone(), tree.input.nar_hash()?)
    } else {
        let file = evaluator.store.print(&tree.store_path);
        let contents = evaluator.fs.read_file(Path::new(&file)).map_err(FlakeError::from)?;
        let hash = Hash::digest(HashAlgo::Sha256, &contents);
        let store_path = path_for(hash)?;
        let place = evaluator.store.print(&store_path);
        evaluator.fs.mount(Path::new(&place), Mount::File { contents: contents.into(), executable: false });
        (store_path, Some(hash))
    };
    if let (Some(expected), Some(got)) = (expected, hash)
        && expected != got
    {
        let show = |hash: Hash| format!("sha256:{}", hash.to_nix32());
        let message = format!(
            "hash mismatch in file downloaded from '{url}':\n  specified: {}\n  got:       {}",
            show(expected),
            show(got)
        );
        return Err(Error::eval(pos, message));
    }
    Ok(evaluator.fetched(&store_path))
}

fn fetch_mercurial<'a>(evaluator: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let argument = evaluator.force(args[0])?;
    let mut url = Vec::new();
    if let Some(attrs) = argument.as_attrs() {
        for (attr, attr_pos, cell) in evaluator.heap.flat(attrs).iter() {
            let what =
                |name: &str| format!("while evaluating the `{name}` attribute passed to builtins.fetchMercurial");
            match evaluator.symbols.text(attr) {
                b"url" => (url, _) = evaluator.to_string(cell.get(), Coerce::PLAIN, attr_pos, &what("url"))?,
                b"rev" => {
                    evaluator.force_string_no_context(cell.get(), attr_pos, &what("rev"))?;
                }
                b"name" => {
                    evaluator.force_string_no_context(cell.get(), attr_pos, &what("name"))?;
                }
                _ => {
                    let message = format!("unsupported argument '{}' to 'fetchMercurial'", evaluator.attr_name(attr));
                    return Err(Error::eval(attr_pos, message));
                }
            }
        }
        if url.is_empty() {
            return Err(Error::eval(pos, "'url' argument required"));
        }
    } else {
        let what = "while evaluating the first argument passed to builtins.fetchMercurial";
        (url, _) = evaluator.to_string(argument, Coerce::PLAIN, pos, what)?;
    }
    let url = String::from_utf8_lossy(&url);
    let message = format!(
        "cannot fetch '{url}': Mercurial repositories are not supported; 'fetchGit', or 'fetchTarball' of an archive of it, \
         are"
    );
    Err(Error::eval(pos, message))
}

fn fetch_closure<'a>(evaluator: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = evaluator.force_attrs(args[0], pos, "while evaluating the argument passed to builtins.fetchClosure")?;
    let mut from_path = None;
    let mut to_path = None;
    let mut from_store = None;
    let mut input_addressed = false;
    for (attr, attr_pos, cell) in evaluator.heap.flat(attrs).iter() {
        let name = evaluator.name(attr);
        let what = format!("while evaluating the attribute '{name}' passed to builtins.fetchClosure");
        let text = || {
            let (text, _) = evaluator.to_string(cell.get(), Coerce::PLAIN, attr_pos, &what)?;
            evaluator.utf8(&text, attr_pos)
        };
        let parse = |text: String| {
            evaluator.store.parse(text.as_bytes()).map_err(|error| Error::eval(attr_pos, error.to_string()))
        };
        match name.as_str() {
            "fromPath" => from_path = Some(parse(text()?)?),
            // empty: it is to be worked out
            "toPath" => to_path = Some(text()?).filter(|path| !path.is_empty()).map(parse).transpose()?,
            "fromStore" => from_store = Some(text()?),
            "inputAddressed" => input_addressed = evaluator.force_bool(cell.get(), attr_pos, &what)?,
            _ => {
                return Err(Error::eval(pos, format!("attribute '{name}' isn't supported in call to 'fetchClosure'")));
            }
        }
    }
    let missing = |name| Error::eval(pos, format!("attribute '{name}' is missing in call to 'fetchClosure'"));
    let from_path = from_path.ok_or_else(|| missing("fromPath"))?;
    if input_addressed && to_path.is_some() {
        let message = "attribute 'inputAddressed' is set to true, but 'toPath' is also set. Please remove one of them";
        return Err(Error::eval(pos, message));
    }
    let from_store = from_store.ok_or_else(|| missing("fromStore"))?;
    let wanted = to_path.unwrap_or(from_path);
    let path = evaluator.store.print(&wanted);
    if !evaluator.fs.exists(Path::new(&path)).map_err(FlakeError::from)? {
        let message = format!(
            "cannot fetch '{path}' from '{from_store}': evaluation does not use the network; copy it into the store first"
        );
        return Err(Error::eval(pos, message));
    }
    Ok(evaluator.fetched(&wanted))
}
