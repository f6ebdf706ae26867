//! Flakes loaded from generated sources, compared with what C++ Nix makes of the same ones.

#![allow(clippy::unwrap_used)]

mod flake_oracle;

use bento_eval::flake::fetch::{Fetcher, SourceInfo};
use bento_eval::flake::reference::{FlakeRef, ParseOptions, attrs_from_json};
use bento_eval::flake::{
    FetchSettings, FlakeDeclaration, FlakeError, FlakeHost, InputDeclaration, LoadOptions, LockedFlake, load,
};
use bento_eval::fs::{FileSystem, OverlayFs, RealFs};
use bento_store::store_path::StoreDir;
use flake_oracle::{Oracle, quote};
use git2::{IndexAddOption, Oid, Repository, Signature, Time};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// Stands in for the evaluator: C++ Nix reads what `flake.nix` declares.
struct NixHost<'o>(&'o Oracle, Rc<OverlayFs>);

impl FlakeHost for NixHost<'_> {
    type Error = FlakeError;

    fn read_flake(&self, path: &Path, _: &FlakeRef) -> Result<FlakeDeclaration, FlakeError> {
        let text = String::from_utf8(self.1.read_file(path)?).unwrap();
        let file = tempfile::Builder::new().suffix(".nix").tempfile().unwrap();
        fs::write(file.path(), text).unwrap();
        let expression = format!(
            "let f = import {}; in {{ inputs = f.inputs or {{ }}; \
             arguments = builtins.attrNames (builtins.functionArgs f.outputs); \
             description = f.description or null; }}",
            file.path().display()
        );
        let value = self.0.eval(&expression).map_err(FlakeError::Declaration)?;
        let mut inputs = declarations(&value["inputs"])?;
        let self_attrs = value["inputs"].get("self").map(attrs_from_json).transpose()?.unwrap_or_default();
        inputs.remove("self");
        let arguments = value["arguments"].as_array().unwrap();
        Ok(FlakeDeclaration {
            description: value["description"].as_str().map(str::to_owned),
            inputs,
            self_attrs,
            output_arguments: arguments.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
        })
    }

    fn add_context(&self, error: FlakeError, context: String) -> FlakeError {
        error.while_doing(context)
    }
}

fn declarations(inputs: &Value) -> Result<BTreeMap<String, InputDeclaration>, FlakeError> {
    let mut result = BTreeMap::new();
    for (name, input) in inputs.as_object().unwrap() {
        let mut rest = Map::new();
        for (attr, value) in input.as_object().unwrap() {
            if !matches!(attr.as_str(), "flake" | "follows" | "inputs") {
                rest.insert(attr.clone(), value.clone());
            }
        }
        let is_flake = input.get("flake").is_none_or(|flake| flake.as_bool().unwrap());
        let follows = input.get("follows").map(|follows| follows.as_str().unwrap());
        let overrides = input.get("inputs").map(declarations).transpose()?.unwrap_or_default();
        let attrs = attrs_from_json(&Value::Object(rest))?;
        // what `self` is may be said, but it is no reference
        let attrs = if name == "self" { bento_eval::flake::reference::Attrs::new() } else { attrs };
        result.insert(name.clone(), InputDeclaration::new(attrs, is_flake, follows, overrides)?);
    }
    Ok(result)
}

/// A directory for sources, without links on the way to it.
struct Sandbox {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        Sandbox { _dir: dir, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file, with a time that is not now.
    fn write(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        let age = Duration::from_secs(86_400 * (1 + contents.len() as u64));
        fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    fn url(&self, scheme: &str, name: &str) -> String {
        let slashes = if scheme == "path" { "" } else { "//" };
        format!("{scheme}:{slashes}{}", self.path(name).display())
    }

    /// A tree with all that a NAR tells apart.
    fn tree(&self, name: &str) {
        self.write(&format!("{name}/b"), "contents");
        self.write(&format!("{name}/a/x.sh"), "#!/bin/sh\n");
        self.write(&format!("{name}/a.txt"), "");
        self.write(&format!("{name}/ü/%20 name"), "x");
        symlink("../b", self.path(&format!("{name}/a/link"))).unwrap();
        let script = self.path(&format!("{name}/a/x.sh"));
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn flake(&self, name: &str, inputs: &str) {
        self.write(
            &format!("{name}/flake.nix"),
            &format!("{{ description = \"{name}\"; inputs = {{ {inputs} }}; outputs = inputs: {{ }}; }}\n"),
        );
    }

    fn repository(&self, name: &str) -> Repository {
        let repository =
            Repository::init_opts(self.path(name), git2::RepositoryInitOptions::new().initial_head("main").mkdir(true))
                .unwrap();
        repository.config().unwrap().set_bool("core.autocrlf", false).unwrap();
        repository
    }
}

fn add_all(repository: &Repository) {
    let mut index = repository.index().unwrap();
    index.add_all(["*"], IndexAddOption::DEFAULT, None).unwrap();
    index.write().unwrap();
}

fn commit(repository: &Repository, time: i64) -> Oid {
    add_all(repository);
    let tree = repository.find_tree(repository.index().unwrap().write_tree().unwrap()).unwrap();
    let signature = Signature::new("A", "a@example.org", &Time::new(time, 60)).unwrap();
    let head = repository.head().ok().map(|head| head.peel_to_commit().unwrap());
    let parents: Vec<_> = head.iter().collect();
    repository.commit(Some("HEAD"), &signature, &signature, "message", &tree, &parents).unwrap()
}

/// What a flake with its inputs shows of its sources, from C++ Nix.
fn expected(oracle: &Oracle, url: &str) -> Result<Value, String> {
    oracle.eval(&format!(
        "let show = f: {{ out = f.outPath + \"\"; source = f.sourceInfo.outPath + \"\"; \
         info = removeAttrs f.sourceInfo [ \"outPath\" ]; flake = f ? _type; \
         inputs = builtins.mapAttrs (_: show) (f.inputs or {{ }}); }}; in show (builtins.getFlake {})",
        quote(url)
    ))
}

/// The same, from us.
fn shown(fetcher: &Fetcher, flake: &LockedFlake, node: usize) -> Result<Value, FlakeError> {
    let source = flake.source(fetcher, node)?;
    let inputs = if flake.is_flake(node) { flake.inputs(node).clone() } else { BTreeMap::new() };
    let inputs: Result<Map<String, Value>, FlakeError> =
        inputs.into_iter().map(|(name, node)| Ok((name, shown(fetcher, flake, node)?))).collect();
    Ok(json!({
        "out": source.out_path,
        "source": source.source_path,
        "info": info(&source.info),
        "flake": flake.is_flake(node),
        "inputs": inputs?,
    }))
}

fn info(info: &SourceInfo) -> Value {
    let all = json!({
        "narHash": info.nar_hash,
        "submodules": info.submodules,
        "rev": info.rev,
        "shortRev": info.short_rev(),
        "revCount": info.rev_count,
        "dirtyRev": info.dirty_rev,
        "dirtyShortRev": info.dirty_short_rev,
        "lastModified": info.last_modified,
        "lastModifiedDate": info.last_modified_date(),
    });
    let Value::Object(all) = all else { unreachable!("it is an object") };
    Value::Object(all.into_iter().filter(|(_, value)| !value.is_null()).collect())
}

struct Loaded {
    fetcher: Fetcher,
    warnings: Rc<RefCell<Vec<String>>>,
    flake: Result<LockedFlake, FlakeError>,
}

fn load_with(oracle: &Oracle, url: &str, options: &LoadOptions) -> Loaded {
    let overlay = Rc::new(OverlayFs::new(Rc::new(RealFs), Path::new("/nix/store")));
    let warnings = Rc::new(RefCell::new(Vec::new()));
    let sink = warnings.clone();
    let warn = Rc::new(move |text: &str| sink.borrow_mut().push(text.to_owned()));
    let fetcher = Fetcher::new(overlay.clone(), Rc::new(RealFs), StoreDir::default(), FetchSettings::default(), warn);
    let flake = FlakeRef::parse(url, ParseOptions::default())
        .and_then(|flake_ref| load(&fetcher, &NixHost(oracle, overlay), &flake_ref, options));
    Loaded { fetcher, warnings, flake }
}

fn load_flake(oracle: &Oracle, url: &str) -> Loaded {
    load_with(oracle, url, &LoadOptions::default())
}

/// Loads a flake and compares all of its sources with Nix's.
fn agree(oracle: &Oracle, url: &str) -> Loaded {
    let loaded = load_flake(oracle, url);
    let flake = loaded.flake.as_ref().unwrap_or_else(|error| panic!("{url}: {error}"));
    let expected = expected(oracle, url).unwrap_or_else(|error| panic!("{url}: {error}"));
    let ours = shown(&loaded.fetcher, flake, 0).unwrap();
    assert_eq!(ours, expected, "{url}\n{ours:#}\n{expected:#}");
    loaded
}

/// That both refuse a flake, and that our reason is (part of) Nix's.
fn both_refuse(oracle: &Oracle, url: &str, reason: &str) {
    let theirs = expected(oracle, url).expect_err("Nix refuses");
    let loaded = load_flake(oracle, url);
    let ours = match &loaded.flake {
        Err(error) => error.to_string(),
        Ok(flake) => shown(&loaded.fetcher, flake, 0).expect_err("we refuse").to_string(),
    };
    assert!(ours.contains(reason), "{url}: {ours}");
    assert!(theirs.contains(reason), "{url}: {theirs}");
}

#[test]
fn a_path_flake_is_everything_in_its_directory() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    sandbox.flake("f", "");
    sandbox.tree("f");
    agree(&oracle, &sandbox.url("path", "f"));
    sandbox.flake("f/sub", "");
    let loaded = agree(&oracle, &format!("{}?dir=sub", sandbox.url("path", "f")));
    let flake = loaded.flake.unwrap();
    let source = flake.source(&loaded.fetcher, 0).unwrap();
    let b = PathBuf::from(source.source_path).join("b");
    assert_eq!(loaded.fetcher.overlay().read_file(&b).unwrap(), b"contents");
    assert_eq!(flake.description.as_deref(), Some("f/sub"));
    // what is locked has to be so
    let hash = source.info.nar_hash.unwrap().replace('+', "%2B");
    agree(&oracle, &format!("{}?narHash={hash}&lastModified=5&rev={}", sandbox.url("path", "f"), "a".repeat(40)));
    let wrong = "sha256-47DEQpj8HBSa%2B/TImW%2B5JCeuQeRkm5NMpJWZG3hSuFU%3D";
    both_refuse(&oracle, &format!("{}?narHash={wrong}", sandbox.url("path", "f")), "NAR hash mismatch in input");
}

#[test]
fn a_clean_repository_is_its_commit() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("r");
    sandbox.flake("r", "");
    sandbox.tree("r");
    sandbox.write("r/.gitignore", "ignored\n");
    let first = commit(&repository, 1_500_000_000);
    agree(&oracle, &sandbox.url("git+file", "r"));
    sandbox.write("r/untracked", "");
    sandbox.write("r/ignored", "");
    agree(&oracle, &sandbox.url("git+file", "r"));
    fs::remove_file(sandbox.path("r/untracked")).unwrap();
    sandbox.flake("r/sub", "");
    let second = commit(&repository, 1_600_000_000);
    agree(&oracle, &format!("{}?dir=sub", sandbox.url("git+file", "r")));
    agree(&oracle, &format!("{}?rev={first}", sandbox.url("git+file", "r")));
    agree(&oracle, &format!("{}?ref=main", sandbox.url("git+file", "r")));
    agree(&oracle, &format!("{}?ref=refs/heads/main&rev={second}&dir=sub", sandbox.url("git+file", "r")));
    agree(&oracle, &format!("{}?shallow=1", sandbox.url("git+file", "r")));
    let object = repository.find_object(first, None).unwrap();
    repository.tag("v1", &object, &Signature::now("A", "a@example.org").unwrap(), "tag", false).unwrap();
    agree(&oracle, &format!("{}?ref=refs/tags/v1", sandbox.url("git+file", "r")));
    // files of a commit are read from it
    let loaded = load_flake(&oracle, &format!("{}?rev={first}", sandbox.url("git+file", "r")));
    let path = PathBuf::from(loaded.flake.unwrap().source(&loaded.fetcher, 0).unwrap().source_path);
    let overlay = loaded.fetcher.overlay();
    assert!(!overlay.exists(&path.join("sub")).unwrap());
    assert_eq!(overlay.read_file(&path.join("b")).unwrap(), b"contents");
    assert_eq!(overlay.read_link(&path.join("a/link")).unwrap(), "../b");
    assert!(overlay.metadata(&path.join("a/x.sh")).unwrap().executable);
    assert!(overlay.read_file(&path.join("a")).is_err());
}

#[test]
fn a_dirty_repository_is_its_tracked_files() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("r");
    sandbox.flake("r", "");
    sandbox.tree("r");
    commit(&repository, 1_500_000_000);
    sandbox.write("r/b", "changed");
    sandbox.write("r/new-untracked", "");
    let loaded = agree(&oracle, &sandbox.url("git+file", "r"));
    let warning = format!("Git tree '{}' is dirty", sandbox.path("r").display());
    assert_eq!(*loaded.warnings.borrow(), [warning]);
    sandbox.write("r/new/tracked", "");
    let mut index = repository.index().unwrap();
    index.add_path(Path::new("new/tracked")).unwrap();
    index.write().unwrap();
    agree(&oracle, &sandbox.url("git+file", "r"));
    fs::remove_file(sandbox.path("r/a.txt")).unwrap();
    agree(&oracle, &sandbox.url("git+file", "r"));
}

#[test]
fn a_repository_without_a_commit_has_no_revision() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("r");
    sandbox.flake("r", "");
    add_all(&repository);
    agree(&oracle, &sandbox.url("git+file", "r"));
}

#[test]
fn a_bare_repository_is_its_head() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("r");
    sandbox.flake("r", "");
    let head = commit(&repository, 1_500_000_000);
    git2::build::RepoBuilder::new()
        .bare(true)
        .clone(sandbox.path("r").to_str().unwrap(), &sandbox.path("bare"))
        .unwrap();
    let loaded = load_flake(&oracle, &sandbox.url("git+file", "bare"));
    let flake = loaded.flake.unwrap();
    let source = flake.source(&loaded.fetcher, 0).unwrap();
    assert_eq!(source.info.rev, Some(head.to_string()));
    assert_eq!(shown(&loaded.fetcher, &flake, 0).unwrap(), expected(&oracle, &sandbox.url("git+file", "r")).unwrap());
}

#[test]
fn a_shallow_repository_needs_to_be_asked_for_as_such() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("r");
    sandbox.flake("r", "");
    let mut commits = Vec::new();
    for number in 0..3 {
        sandbox.write("r/file", &"x".repeat(number));
        commits.push(commit(&repository, 1_500_000_000));
    }
    fs::write(sandbox.path("r/.git/shallow"), format!("{}\n", commits[1])).unwrap();
    let url = sandbox.url("git+file", "r");
    agree(&oracle, &format!("{url}?shallow=1"));
    agree(&oracle, &format!("{url}?shallow=1&ref=main"));
    agree(&oracle, &url);
    both_refuse(&oracle, &format!("{url}?ref=main"), "is a shallow Git repository, but shallow repositories are only");
}

#[test]
fn submodules_are_included_when_asked_for() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let inner = sandbox.repository("inner");
    sandbox.write("inner/file", "of the submodule");
    commit(&inner, 1_400_000_000);
    let repository = sandbox.repository("r");
    sandbox.flake("r", "");
    let url = format!("file://{}", sandbox.path("inner").display());
    let mut submodule = repository.submodule(&url, Path::new("dir/module"), true).unwrap();
    submodule.clone(None).unwrap();
    submodule.add_finalize().unwrap();
    commit(&repository, 1_500_000_000);
    agree(&oracle, &sandbox.url("git+file", "r"));
    let loaded = agree(&oracle, &format!("{}?submodules=1", sandbox.url("git+file", "r")));
    let path = PathBuf::from(loaded.flake.unwrap().source(&loaded.fetcher, 0).unwrap().source_path);
    let file = path.join("dir/module/file");
    assert_eq!(loaded.fetcher.overlay().read_file(&file).unwrap(), b"of the submodule");
    let head = repository.head().unwrap().target().unwrap();
    let url = format!("{}?submodules=1&rev={head}", sandbox.url("git+file", "r"));
    let loaded = load_flake(&oracle, &url);
    let path = PathBuf::from(loaded.flake.unwrap().source(&loaded.fetcher, 0).unwrap().source_path);
    assert_eq!(loaded.fetcher.overlay().read_file(&path.join("dir/module/file")).unwrap(), b"of the submodule");
    // a flake can want it for itself
    sandbox.flake("r", "self.submodules = true;");
    commit(&repository, 1_500_000_001);
    agree(&oracle, &sandbox.url("git+file", "r"));
}

#[test]
fn what_git_does_not_track_is_not_there() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("r");
    sandbox.write("r/file", "");
    commit(&repository, 1_500_000_000);
    let url = sandbox.url("git+file", "r");
    both_refuse(&oracle, &url, "Path 'flake.nix' does not exist in Git repository \"");
    sandbox.flake("r", "");
    both_refuse(&oracle, &url, "Path 'flake.nix' in the repository \"");
    both_refuse(&oracle, &url, &format!("git -C \"{}\" add \"flake.nix\"", sandbox.path("r").display()));
    both_refuse(&oracle, &format!("{url}?ref=nope"), "nope");
    sandbox.write("p/file", "");
    both_refuse(&oracle, &sandbox.url("path", "p"), "flake.nix' does not exist");
    both_refuse(&oracle, &sandbox.url("path", "nothing"), "does not exist");
}

#[test]
fn inputs_are_locked_in_memory_when_there_is_no_lock_file() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("dep");
    sandbox.flake("dep", &format!("leaf.url = \"{}\";", sandbox.url("path", "leaf")));
    commit(&repository, 1_500_000_000);
    sandbox.flake("leaf", "");
    sandbox.tree("plain");
    sandbox.flake(
        "f",
        &format!(
            "dep.url = \"{}\"; plain = {{ url = \"{}?dir=a\"; flake = false; }}; \
             leaf.follows = \"dep/leaf\"; same = {{ url = \"{}\"; inputs.leaf.follows = \"plain\"; }}; \
             attrs = {{ type = \"path\"; path = \"{}\"; flake = false; }};",
            sandbox.url("git+file", "dep"),
            sandbox.url("path", "plain"),
            sandbox.url("git+file", "dep"),
            sandbox.path("plain").display()
        ),
    );
    let loaded = agree(&oracle, &sandbox.url("path", "f"));
    assert!(loaded.flake.unwrap().lock_changed);
    assert!(loaded.warnings.borrow()[0].contains("• Added input 'dep/leaf':"));
}

#[test]
fn a_changed_lock_makes_a_clean_repository_dirty() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    sandbox.flake("leaf", "");
    let repository = sandbox.repository("r");
    sandbox.flake("r", &format!("leaf.url = \"{}\";", sandbox.url("path", "leaf")));
    commit(&repository, 1_500_000_000);
    let loaded = agree(&oracle, &sandbox.url("git+file", "r"));
    assert_eq!(loaded.flake.unwrap().source(&loaded.fetcher, 0).unwrap().info.rev, None);
}

#[test]
fn relative_inputs_are_in_their_parents_source() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    sandbox.flake("f", "sub.url = \"path:./sub\"; data = { url = \"path:./data\"; flake = false; };");
    sandbox.flake("f/sub", "deep.url = \"path:./deep\"; up.url = \"path:../other\";");
    sandbox.flake("f/sub/deep", "");
    sandbox.flake("f/other", "");
    sandbox.write("f/data/file", "x");
    let url = sandbox.url("path", "f");
    let loaded = agree(&oracle, &url);
    // and again from the lock file
    sandbox.write("f/flake.lock", &loaded.flake.unwrap().lock.to_text());
    let loaded = agree(&oracle, &url);
    assert!(!loaded.flake.unwrap().lock_changed);
    // from another flake, through its own lock file and through ours
    sandbox.flake("g", &format!("f.url = \"{url}\"; f.inputs.data.follows = \"f/sub\";"));
    let loaded = agree(&oracle, &sandbox.url("path", "g"));
    sandbox.write("g/flake.lock", &loaded.flake.unwrap().lock.to_text());
    let loaded = agree(&oracle, &sandbox.url("path", "g"));
    assert!(!loaded.flake.unwrap().lock_changed);
    sandbox.flake("h", "out.url = \"path:../../../../etc\";");
    assert!(load_flake(&oracle, &sandbox.url("path", "h")).flake.is_err());
}

/// A flake `f` with the inputs `dep` (and its `leaf`) and `plain`, and its lock file.
fn locked(sandbox: &Sandbox, oracle: &Oracle) -> String {
    sandbox.flake("leaf", "");
    sandbox.flake("dep", &format!("leaf.url = \"{}\";", sandbox.url("path", "leaf")));
    sandbox.tree("plain");
    let inputs = format!(
        "dep.url = \"{}\"; plain = {{ url = \"{}\"; flake = false; }};",
        sandbox.url("path", "dep"),
        sandbox.url("path", "plain")
    );
    sandbox.flake("f", &inputs);
    let url = sandbox.url("path", "f");
    let text = load_flake(oracle, &url).flake.unwrap().lock.to_text();
    sandbox.write("f/flake.lock", &text);
    inputs
}

#[test]
fn a_lock_file_is_what_nix_would_write() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    locked(&sandbox, &oracle);
    let repository = sandbox.repository("r");
    sandbox.flake(
        "r",
        &format!(
            "f.url = \"{}\"; f.inputs.plain.follows = \"\"; g.url = \"{}\"; sub.url = \"path:./sub\"; dep.follows = \"f/dep\";",
            sandbox.url("path", "f"),
            sandbox.url("git+file", "g")
        ),
    );
    sandbox.flake("r/sub", "");
    commit(&repository, 1_500_000_000);
    let other = sandbox.repository("g");
    sandbox.flake("g", &format!("dep.url = \"{}\";", sandbox.url("path", "dep")));
    commit(&other, 1_500_000_000);
    let url = sandbox.url("git+file", "r");
    let flake = load_flake(&oracle, &url).flake.unwrap();
    let written = sandbox.path("written.lock");
    oracle.lock(&url, &written);
    assert_eq!(flake.lock.to_text(), fs::read_to_string(written).unwrap());
}

/// A lock as older versions of Nix wrote it. Version 5 has what was found out of an input apart from where it is.
fn older(lock: &str, version: u64) -> String {
    let mut lock: Value = serde_json::from_str(lock).unwrap();
    lock["version"] = version.into();
    for node in lock["nodes"].as_object_mut().unwrap().values_mut().filter(|_| version == 5) {
        let Some(locked) = node.get_mut("locked").and_then(Value::as_object_mut) else { continue };
        let info: Map<String, Value> =
            ["lastModified", "narHash"].iter().map(|&name| (name.to_owned(), locked.remove(name).unwrap())).collect();
        node["info"] = info.into();
    }
    lock.to_string()
}

#[test]
fn locks_of_older_versions_are_read_and_written_anew_as_nix_does() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    locked(&sandbox, &oracle);
    let (url, file) = (sandbox.url("path", "f"), sandbox.path("f/flake.lock"));
    let newest = fs::read_to_string(&file).unwrap();
    // so that it shows where the lock is not followed
    sandbox.flake("leaf", "new.url = \"path:/nowhere\";");
    for version in [4, 5, 6, 7, 8] {
        sandbox.write("f/flake.lock", &older(&newest, version));
        if !(5..=7).contains(&version) {
            both_refuse(&oracle, &url, "unsupported version");
            continue;
        }
        let loaded = load_flake(&oracle, &url).flake.unwrap();
        assert_eq!(loaded.lock.to_text(), newest, "version {version}");
        let written = sandbox.path("written.lock");
        oracle.lock(&url, &written);
        assert_eq!(fs::read_to_string(written).unwrap(), newest, "version {version}");
    }
}

#[test]
fn what_is_locked_is_not_read_until_it_is_used() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    locked(&sandbox, &oracle);
    let url = sandbox.url("path", "f");
    agree(&oracle, &url);
    let before = {
        let loaded = load_flake(&oracle, &url);
        shown(&loaded.fetcher, &loaded.flake.unwrap(), 0).unwrap()
    };
    fs::remove_dir_all(sandbox.path("plain")).unwrap();
    sandbox.write("dep/changed", "");
    let loaded = load_flake(&oracle, &url);
    let flake = loaded.flake.unwrap();
    assert!(!flake.lock_changed);
    assert_eq!(shown(&loaded.fetcher, &flake, 0).unwrap(), before);
    let file = |input: &str, name: &str| {
        let source = flake.source(&loaded.fetcher, flake.inputs(0)[input]).unwrap();
        loaded
            .fetcher
            .overlay()
            .read_file(&PathBuf::from(source.out_path).join(name))
            .map_err(|error| error.to_string())
    };
    let error = file("dep", "flake.nix").unwrap_err();
    assert!(error.contains("NAR hash mismatch in input 'path:"), "{error}");
    let error = file("plain", "b").unwrap_err();
    assert!(error.contains("while fetching the input 'path:") && error.contains("does not exist"), "{error}");
}

#[test]
fn a_stale_lock_is_brought_up_to_date_in_memory() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    let inputs = locked(&sandbox, &oracle);
    let url = sandbox.url("path", "f");
    sandbox.flake("leaf2", "");
    // an input more, an override more, an override gone, another reference, an input less
    sandbox.flake("f", &format!("{inputs} more.url = \"{}\";", sandbox.url("path", "leaf2")));
    assert!(agree(&oracle, &url).flake.unwrap().lock_changed);
    sandbox.flake("f", &format!("{inputs} dep.inputs.leaf.follows = \"plain\";"));
    let loaded = agree(&oracle, &url);
    sandbox.write("f/flake.lock", &loaded.flake.unwrap().lock.to_text());
    assert!(!agree(&oracle, &url).flake.unwrap().lock_changed);
    sandbox.flake("f", &inputs);
    assert!(agree(&oracle, &url).flake.unwrap().lock_changed);
    sandbox.flake("f", &format!("dep.url = \"{}\";", sandbox.url("path", "leaf2")));
    assert!(agree(&oracle, &url).flake.unwrap().lock_changed);
    // in pure evaluation only locked references may be resolved
    let options = LoadOptions { allow_unlocked: false, ..LoadOptions::default() };
    let error = load_with(&oracle, &url, &options).flake.unwrap_err().to_string();
    assert!(error.contains("cannot update unlocked flake input 'dep' in pure mode"), "{error}");
}

#[test]
fn inputs_can_be_overridden_from_outside() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    locked(&sandbox, &oracle);
    sandbox.flake("leaf2", "");
    let leaf = FlakeRef::parse(&sandbox.url("path", "leaf2"), ParseOptions::default()).unwrap();
    let overrides =
        vec![(vec!["dep".to_owned(), "leaf".to_owned()], leaf.clone()), (vec!["nothing".to_owned()], leaf.clone())];
    let options = LoadOptions { overrides, ..LoadOptions::default() };
    let loaded = load_with(&oracle, &sandbox.url("path", "f"), &options);
    let flake = loaded.flake.unwrap();
    let node = flake.inputs(flake.inputs(0)["dep"])["leaf"];
    let ours = flake.source(&loaded.fetcher, node).unwrap();
    let expected = expected(&oracle, &sandbox.url("path", "leaf2")).unwrap();
    assert_eq!(ours.out_path, expected["out"].as_str().unwrap());
    let warnings = loaded.warnings.borrow().join("\n");
    assert!(warnings.contains("does not match any input"), "{warnings}");
    assert!(warnings.contains("• Updated input 'dep/leaf':"), "{warnings}");
}

#[test]
fn remote_inputs_are_named_when_they_cannot_be_had() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    for (url, reason) in [
        (
            "github:NixOS/nixpkgs",
            "input 'github:NixOS/nixpkgs' cannot be had: unable to download 'https://api.github.com/",
        ),
        ("git+ssh://git@example.org/x", "input 'git+ssh://git@example.org/x' cannot be had: unable to download 'ssh:"),
        ("https://example.org/x.tar.gz", "input 'https://example.org/x.tar.gz' cannot be had: unable to download"),
        ("nixpkgs", "cannot find flake 'flake:nixpkgs' in the flake registries"),
    ] {
        sandbox.flake("f", &format!("x.url = \"{url}\";"));
        let error = load_flake(&oracle, &sandbox.url("path", "f")).flake.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("while updating the flake input 'x'"), "{error}");
    }
    // locked, it is in the way only of who uses it
    sandbox.flake("f", "x.url = \"github:a/b\";");
    sandbox.write(
        "f/flake.lock",
        &json!({"version": 7, "root": "root", "nodes": {"root": {"inputs": {"x": "x"}}, "x": {
            "locked": {"type": "github", "owner": "a", "repo": "b", "rev": "a".repeat(40), "lastModified": 1,
                "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
            "original": {"type": "github", "owner": "a", "repo": "b"}}}})
        .to_string(),
    );
    let loaded = load_flake(&oracle, &sandbox.url("path", "f"));
    let flake = loaded.flake.unwrap();
    let source = flake.source(&loaded.fetcher, flake.inputs(0)["x"]).unwrap();
    assert_eq!(source.info.short_rev(), Some("aaaaaaa"));
    let file = PathBuf::from(&source.out_path).join("flake.nix");
    let error = loaded.fetcher.overlay().read_file(&file).unwrap_err().to_string();
    assert!(error.contains("cannot be had") && error.contains(&source.source_path), "{error}");
}

#[test]
fn circles_are_refused() {
    let Some(oracle) = Oracle::find() else { return };
    let sandbox = Sandbox::new();
    sandbox.flake("a", &format!("b.url = \"{}\";", sandbox.url("path", "b")));
    sandbox.flake("b", &format!("a.url = \"{}\";", sandbox.url("path", "a")));
    both_refuse(&oracle, &sandbox.url("path", "a"), "found circular import of flake");
    sandbox.flake("c", "a.follows = \"b\"; b.follows = \"a\";");
    both_refuse(&oracle, &sandbox.url("path", "c"), "follow cycle detected: [");
    sandbox.flake("d", "a.follows = \"b/c\";");
    both_refuse(&oracle, &sandbox.url("path", "d"), "input 'a' follows a non-existent input 'b/c'");
    // of several faults the one is named whose path comes first
    sandbox.flake("leaf", "dep.follows = \"\";");
    let leaf = sandbox.url("path", "leaf");
    sandbox.flake("f", &format!("n.url = \"{leaf}\"; n.inputs.dep.follows = \"nowhere\"; u.follows = \"u/v\";"));
    both_refuse(&oracle, &sandbox.url("path", "f"), "input 'n/dep' follows a non-existent input 'nowhere'");
    sandbox.flake("e", "self.foo = true;");
    both_refuse(&oracle, &sandbox.url("path", "e"), "flake 'self' attribute 'foo' is not supported");
}
