//! Bad input ends in one clear message: no crash, no endless loop.

use crate::support::{eval, eval_file, is_true, rendered_error, settings};
use bento_eval::{Aborted, NoHost, Settings, evaluate};
use std::path::Path;

const TOO_DEEP: &str = "stack overflow; max-call-depth exceeded";
/// `list` is nested a million deep, `set` likewise.
const DEEP: &str = "let
    nest = wrap: builtins.foldl' (inner: _: wrap inner) 1 (builtins.genList (x: x) 1000000);
    list = nest (inner: [ inner ]);
    set = nest (inner: { a = inner; });
    f = n: if n == 0 then 0 else 1 + f (n - 1);
    g = n: { a = if n == 0 then 0 else (g (n - 1)).a; };
  in ";

fn error(expression: &str) -> String {
    match eval(settings(), expression) {
        Ok(value) => panic!("{expression} is {value}"),
        Err(message) => message,
    }
}

#[test]
fn calls_that_are_too_deep() {
    assert_eq!(error(&format!("{DEEP} f 100000")), TOO_DEEP);
    // No call is nested in another here, only the evaluation of what they return.
    assert_eq!(eval(settings(), &format!("{DEEP} (g 100000).a")).as_deref(), Ok("0"));
    assert_eq!(eval(settings(), &format!("{DEEP} f 2000")).as_deref(), Ok("2000"));
}

#[test]
fn values_that_are_too_deep() {
    for what in ["list", "set"] {
        assert_eq!(error(&format!("{DEEP} {what}")), TOO_DEEP);
        assert_eq!(error(&format!("{DEEP} builtins.deepSeq {what} 1")), TOO_DEEP);
        assert_eq!(error(&format!("{DEEP} builtins.toJSON {what}")), TOO_DEEP);
        assert_eq!(error(&format!("{DEEP} builtins.toXML {what}")), TOO_DEEP);
        assert_eq!(
            is_true(&format!(
                "{DEEP} {what} == builtins.seq {what} (nest (inner: {}))",
                match what {
                    "list" => "[ inner ]",
                    _ => "{ a = inner; }",
                }
            )),
            Err(TOO_DEEP.to_owned())
        );
    }
    assert_eq!(error(&format!("{DEEP} toString list")), TOO_DEEP);
    assert_eq!(error(&format!("{DEEP} list < [ list ]")), TOO_DEEP);
}

#[test]
fn values_that_need_too_much_memory() {
    const LIMIT: usize = 64 << 20;
    let endless = "builtins.foldl' (list: n: list ++ [ n ]) [ ] (builtins.genList (n: n) 1000000)";
    let result = evaluate(Settings { max_heap: LIMIT, ..settings() }, NoHost, |evaluator| {
        evaluator.eval_string(endless.as_bytes(), b"/").and_then(|value| evaluator.force_deep(value)).is_ok()
    });
    let aborted = result.expect_err("more than there is");
    assert!(matches!(aborted, Aborted::Memory { limit: LIMIT }), "{aborted:?}");
    assert_eq!(aborted.to_string(), "the evaluation needs more than 64 MiB for its values");
}

#[test]
fn texts_that_are_too_deep() {
    for (open, middle, close) in [
        ("[", "", "]"),
        ("(", "1", ")"),
        ("x: ", "1", ""),
        ("1+", "1", ""),
        ("{a=", "1", ";}"),
        ("-", "1", ""),
        ("!", "true", ""),
    ] {
        let text = format!("{}{middle}{}", open.repeat(1_000_000), close.repeat(1_000_000));
        let message = error(&text);
        assert!(message.starts_with("stack overflow"), "{open}: {message}");
    }
}

#[test]
fn infinite_recursion() {
    assert_eq!(error("let x = x; in x"), "infinite recursion encountered");
    assert_eq!(error("let f = x: f x; in f 1"), TOO_DEEP);
    // The black hole is gone after the error.
    assert_eq!(error("let x = if (builtins.tryEval x).success then 1 else 2; in x"), "infinite recursion encountered");
}

#[test]
fn missing_and_unreadable_files() {
    assert_eq!(
        eval_file(settings(), Path::new("/does-not-exist.nix")),
        Err("path '/does-not-exist.nix' does not exist".to_owned())
    );
    assert_eq!(error("import /does-not-exist.nix"), "path '/does-not-exist.nix' does not exist");
    let folder = tempfile::tempdir().expect("a directory");
    let path = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink("loop", path("loop")).expect("a link");
    assert!(eval_file(settings(), &path("loop")).is_err());
    // A directory without default.nix.
    assert!(eval_file(settings(), folder.path()).is_err());
    std::fs::write(path("bytes.nix"), [0xff, 0xfe, 0x00, b'1']).expect("a file");
    assert!(eval_file(settings(), &path("bytes.nix")).is_err());
}

#[test]
fn errors_show_where() {
    let text = rendered_error("let\n  s = { a = 1; };\nin builtins.stringLength s.b");
    assert!(text.contains("error: attribute 'b' missing"), "{text}");
    assert!(text.contains("at «string»:3:26:"), "{text}");
    assert!(text.contains("while calling the 'stringLength' builtin"), "{text}");
    let text = rendered_error("{ a = 1 ");
    assert!(text.contains("error: syntax error, unexpected end of file"), "{text}");
    let text = rendered_error("1 - builtins.add");
    assert!(text.contains("while calling the 'sub' builtin"), "{text}");
    assert!(text.contains("expected an integer but found the built-in function 'add': «primop add»"), "{text}");
}
