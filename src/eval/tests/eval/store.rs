//! What the library says of a store, and asks of one: a store that only writes down what it is asked for.

use crate::support::Printed;
use bento_eval::store::{BuiltOutput, Store, StoreError, Wanted};
use bento_eval::{Host, Settings, evaluate};
use bento_store::hash::{Hash, HashAlgo};
use bento_store::store_path::{References, StoreDir, StorePath};
use bento_store::worker::{Contents, Object};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What was wanted, and the names of the objects that came with it.
type Request = (Vec<String>, Vec<String>);
type Asked = Arc<Mutex<Vec<Request>>>;

/// Says that everything is built already, and is what lies at `place`.
struct Shelf {
    place: Option<PathBuf>,
    asked: Asked,
}

impl Host for Shelf {
    fn env(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn warn(&self, _: &str) {}
    fn trace(&self, _: &str) {}
    fn store(&self) -> Option<&dyn Store> {
        Some(self)
    }
}

impl Store for Shelf {
    fn build(
        &self,
        wanted: &[Wanted],
        objects: &[Object],
        contents: &dyn Contents,
    ) -> Result<Vec<BuiltOutput>, StoreError> {
        for object in objects {
            check(object, contents);
        }
        let mut names: Vec<String> = objects.iter().map(|object| object.path.name().to_owned()).collect();
        names.sort();
        let shown = wanted.iter().map(|wanted| wanted.path.show(&StoreDir::default())[44..].to_owned()).collect();
        self.asked.lock().expect("nobody panicked").push((shown, names));
        let Some(place) = &self.place else { return Err("the shelf with x.drv is empty".into()) };
        let output = |wanted: &Wanted| {
            let path = wanted.known.clone().expect("it is known before the build");
            BuiltOutput { path, place: Some(place.clone()) }
        };
        Ok(wanted.iter().map(output).collect())
    }

    fn references(&self, _: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
        Ok(BTreeSet::new())
    }
}

/// An object's archive is the one that was announced, and its path is the one that follows from that.
fn check(object: &Object, contents: &dyn Contents) {
    let info = contents.info(object).expect("the object can be described");
    let mut nar = Vec::new();
    contents.nar(object, &mut nar).expect("the object can be read");
    assert_eq!((info.nar_size, info.nar_hash), (nar.len() as u64, Hash::digest(HashAlgo::Sha256, &nar)));
    assert_eq!(info.references, object.references);
    let address = info.address.expect("the object has an address");
    let references = References { others: info.references, itself: false };
    let path = StoreDir::default().make_content_addressed_path(object.path.name(), &address, &references);
    assert_eq!(path.expect("there is such a path"), object.path);
}

/// The value of an expression, with what the store was asked for.
fn eval(expression: &str, place: Option<&Path>) -> (Printed, Vec<Request>) {
    let asked = Asked::default();
    let shelf = Shelf { place: place.map(Path::to_owned), asked: asked.clone() };
    let expression = expression.to_owned();
    let printed = evaluate(Settings::default(), shelf, move |evaluator| {
        let value = evaluator.eval_string(expression.as_bytes(), b"/");
        let text = value.and_then(|value| evaluator.force_deep(value)).and_then(|value| evaluator.print(value, true));
        text.map(|text| String::from_utf8_lossy(&text).into_owned()).map_err(|error| error.message)
    });
    let asked = asked.lock().expect("nobody panicked").clone();
    (printed.expect("the evaluation starts"), asked)
}

const CODE: &str = "let
    base = { system = \"s\"; builder = \"b\"; };
    leaf = builtins.toFile \"leaf\" \"x\";
    dep = derivation (base // { name = \"dep\"; text = builtins.toFile \"text\" \"${leaf}\"; });
    code = derivation (base // { name = \"code.nix\"; inherit dep; });
    unrelated = derivation (base // { name = \"unrelated\"; });
  in ";

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn what_has_to_be_built_is_asked_for_once_with_all_that_it_needs() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "{ y = 6 * 7; }").expect("the file can be written");
    let expression = format!("{CODE} builtins.seq unrelated.drvPath [ (import code).y (builtins.readFile code) ]");
    let (printed, asked) = eval(&expression, Some(file.path()));
    assert_eq!(printed.as_deref(), Ok("[ 42 \"{ y = 6 * 7; }\" ]"));
    let objects = names(&["code.nix.drv", "dep.drv", "leaf", "text"]);
    assert_eq!(asked, [(names(&["code.nix.drv^out"]), objects)]);
}

#[test]
fn nothing_is_asked_for_that_is_only_named() {
    let (printed, asked) = eval(&format!("{CODE} builtins.stringLength \"${{code}} ${{dep.drvPath}}\""), None);
    assert!(printed.is_ok(), "{printed:?}");
    assert_eq!(asked, []);
}

#[test]
fn what_the_store_says_is_the_error() {
    let (printed, _) = eval(&format!("{CODE} builtins.pathExists code"), None);
    assert_eq!(printed, Err("the shelf with x.drv is empty".to_owned()));
    let caught = format!("{CODE} (builtins.tryEval (builtins.readDir code)).success");
    assert_eq!(eval(&caught, None).0, Err("the shelf with x.drv is empty".to_owned()));
}

#[test]
fn without_a_store_what_has_to_be_built_is_an_error_that_names_it() {
    let error =
        crate::support::eval(Settings::default(), &format!("{CODE} import code")).expect_err("it can't be built");
    assert!(error.contains("-code.nix.drv^out' during evaluation (import from derivation)"), "{error}");
}

#[test]
fn a_source_that_has_changed_is_not_taken_for_the_same() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("file");
    std::fs::write(&file, "before").expect("a file");
    let expression = format!("(derivation {{ name = \"n\"; system = \"s\"; builder = {}; }}).drvPath", file.display());
    let shelf = Shelf { place: None, asked: Asked::default() };
    let error = evaluate(Settings::default(), shelf, move |evaluator| {
        let path = evaluator.eval_string(expression.as_bytes(), b"/").expect("it can be evaluated");
        let path = evaluator.force_string(path, bento_eval::value::Pos::NONE, "").expect("it is a string").0;
        let drv = evaluator.store_dir().parse(path).expect("it is a path");
        let objects = evaluator.closure([drv]);
        assert_eq!(objects.len(), 2);
        objects.iter().for_each(|object| check(object, evaluator));
        std::fs::write(&file, "after").expect("the file can be written");
        let source = objects.iter().find(|object| object.path.name() == "file").expect("the source is there");
        evaluator.info(source).expect_err("it is another file").to_string()
    });
    assert_eq!(error.expect("the evaluation starts"), "it has changed since its path was computed; evaluate again");
}
