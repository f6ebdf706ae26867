//! Errors that come through the NixOS module system, as users see them: the option, its modules and their own files first.

use bento_eval::{Diagnostic, FrameKind, NoHost, RenderOptions, Settings, evaluate};

/// What is like nixpkgs' module system as far as traces go: the file's name and the words of its contexts.
const MODULES: &str = r#"
let
  inherit (builtins) addErrorContext head;
  definition = file: option: addErrorContext "while evaluating definitions from `${toString file}':" (head [ (import file option) ]);
in
{
  evaluate = file: names:
    if names == [ ] then definition file "none"
    else addErrorContext "while evaluating the option `${head names}':" (
      (import ./modules.nix).evaluate file (builtins.tail names) + definition file (head names)
    );
}
"#;

struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    /// A tree of nixpkgs next to a module with this text.
    fn new(module: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("nixpkgs/lib")).expect("a folder");
        std::fs::write(folder.path().join("nixpkgs/lib/modules.nix"), MODULES).expect("a file");
        std::fs::write(folder.path().join("module.nix"), module).expect("a file");
        Tree { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("the path is UTF-8").to_owned()
    }

    /// Why the option `inner`, which `outer` needs, can't be evaluated.
    fn error(&self) -> Box<Diagnostic> {
        let code = format!(
            "(import {}).evaluate {} [ \"outer\" \"inner\" ]",
            self.path("nixpkgs/lib/modules.nix"),
            self.path("module.nix")
        );
        evaluate(Settings::default(), NoHost, |evaluator| {
            let value = evaluator.eval_string(code.as_bytes(), b"/");
            value.map(|_| ()).map_err(|error| evaluator.diagnose(&error))
        })
        .expect("the evaluation starts")
        .expect_err("the module is wrong")
    }

    /// The same as text, in which the folder is `DIR`.
    fn rendered(&self, options: &RenderOptions) -> String {
        self.error().render(options).replace(&self.path(""), "DIR/")
    }
}

#[test]
fn the_option_and_its_module_are_named_first_and_own_files_stay() {
    let tree = Tree::new("option:\nlet set = { port = throw \"no port for ${option}\"; };\nin set.port\n");
    assert_eq!(
        tree.rendered(&RenderOptions::default()),
        "error:
       … while evaluating the option `inner'
         defined in DIR/module.nix
         which `outer' needs

       … while evaluating the attribute 'port'
         at DIR/module.nix:2:13:
            1| option:
            2| let set = { port = throw \"no port for ${option}\"; };
             |             ^
            3| in set.port

       … while calling the 'throw' builtin
         at DIR/module.nix:2:20:
            1| option:
            2| let set = { port = throw \"no port for ${option}\"; };
             |                    ^
            3| in set.port

       (1 step inside of nixpkgs folded; use '--show-trace' to see them)

       error: no port for none"
    );
}

#[test]
fn options_can_be_had_without_reading_the_text() {
    let tree = Tree::new("option: throw option");
    let error = tree.error();
    let options: Vec<_> = error.options.iter().map(|option| (option.name.as_str(), option.files.clone())).collect();
    assert_eq!(options, [("inner", vec![tree.path("module.nix")]), ("outer", Vec::new())]);
    assert!(error.steps.iter().any(|step| step.kind == FrameKind::Call));
    let files: Vec<&str> = error.steps.iter().filter_map(|step| step.place.as_ref()?.file()).collect();
    assert_eq!(files.last(), Some(&tree.path("module.nix").as_str()));
}

#[test]
fn the_whole_trace_is_still_there() {
    let tree = Tree::new("option: throw option");
    let whole = tree.rendered(&RenderOptions { show_trace: true, ..RenderOptions::default() });
    assert!(whole.contains("… while evaluating definitions from `DIR/module.nix':"), "{whole}");
    assert!(whole.contains("at DIR/nixpkgs/lib/modules.nix:"), "{whole}");
    assert!(!whole.contains("folded"), "{whole}");
}

#[test]
fn nothing_is_said_of_options_that_the_reader_cannot_give() {
    let tree = Tree::new("option: throw option");
    let quiet = tree.rendered(&RenderOptions { mention_show_trace: false, ..RenderOptions::default() });
    assert!(quiet.contains("inside of nixpkgs folded)") && !quiet.contains("--show-trace"), "{quiet}");
}

#[test]
fn hints_say_what_to_do() {
    let hint = |module: &str| Tree::new(module).error().hint;
    assert_eq!(
        hint("option: pkgs.git").as_deref(),
        Some("in a NixOS module, `pkgs' is an argument: let the file start with `{ pkgs, ... }:'")
    );
    assert_eq!(
        hint("option: let x = x; in x").as_deref(),
        Some("the value of `inner' depends on itself: look for what reads it, through `config', to define it")
    );
    assert_eq!(hint("option: undefined"), None);
}

#[test]
fn colours_only_when_asked_for() {
    let tree = Tree::new("option: throw option");
    assert!(!tree.rendered(&RenderOptions::default()).contains('\x1b'));
    assert!(
        tree.rendered(&RenderOptions { color: true, ..RenderOptions::default() }).contains("\x1b[31;1merror:\x1b[0m")
    );
}
