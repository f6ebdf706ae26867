//! Whatever the parser is given, it ends with a tree or an error: it neither overflows the 64 MiB of stack that it is promised
//! nor takes more than linear time.

use bento_eval::symbol::SymbolTable;
use bento_eval::syntax::{MAX_DEPTH, MAX_HEIGHT, ParseError, ParseOptions, parse, show};
use bumpalo::Bump;

const STACK: usize = 64 << 20;
const MANY: usize = 1_000_000;

/// Parses and shows `source` on a stack of the promised size.
fn run_with(source: Vec<u8>, pure: bool, pipe_operators: bool) -> Result<String, ParseError> {
    let run = move || {
        let arena = Bump::new();
        let symbols = SymbolTable::new(&arena);
        let options = ParseOptions { base_path: b"/", pure, pipe_operators, ..ParseOptions::default() };
        let node = parse(&arena, &symbols, &source, &options)?;
        let mut out = Vec::new();
        show(node, &symbols, &mut out);
        Ok(String::from_utf8_lossy(&out).into_owned())
    };
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(run)
        .expect("a thread can be made")
        .join()
        .expect("the parser doesn't panic")
}

fn run(source: impl Into<Vec<u8>>) -> Result<String, ParseError> {
    run_with(source.into(), false, true)
}

#[test]
fn deep_nesting_is_an_error() {
    for unit in [
        "(",
        "[",
        "{a=",
        "-",
        "!",
        "a: ",
        "{ }: ",
        "a@{ }: ",
        "\"${",
        "''${",
        "./a/${",
        "{ ${",
        "{ ${\"a\"}.${",
        "{ a ? ",
        "{ inherit (",
        "{ inherit ({ a = ",
        "rec { a = ",
        "let { a = ",
        "let a = ",
        "let a = 1; in ",
        "with a; ",
        "assert a; ",
        "if ",
        "if a then ",
        "if a then b else ",
        "x.y or ",
        "x.${",
        "x ? ${",
        "a -> ",
        "a // ",
        "a ++ ",
        "a <| ",
        "f (",
        "[ (",
        "([{ a = (!- ",
        "(a -> a || a && a == a < a // a + a * a ++ ",
        "- (",
        "! [ { a = x: ",
    ] {
        let error = run(unit.repeat(MANY / unit.len())).expect_err(unit);
        assert_eq!(error.message, "stack overflow (possible infinite recursion)", "{unit}");
    }
}

#[test]
fn high_trees_are_an_error() {
    for unit in [" + a", " - a", " && a", " || a", " ? a", " * a", " |> a"] {
        let error = run(format!("a{}", unit.repeat(MANY / 4))).expect_err(unit);
        assert_eq!(error.message, "stack overflow (possible infinite recursion)", "{unit}");
    }
    let error = run(format!("{{ x{} = 1; }}", ".y".repeat(MANY))).expect_err("a long attribute path");
    assert_eq!(error.message, "stack overflow (possible infinite recursion)");
}

#[test]
fn what_is_within_the_limits_parses() {
    let depth = MAX_DEPTH as usize - 1;
    assert_eq!(run(format!("{}1{}", "(".repeat(depth), ")".repeat(depth))), Ok("1".into()));
    assert!(run(format!("{}1{}", "[".repeat(depth - 1), "]".repeat(depth - 1))).is_ok());
    assert!(run(format!("{}1{}", "{a=".repeat(depth), ";}".repeat(depth))).is_ok());
    assert!(run(format!("{}1", "x: ".repeat(depth))).is_ok());
    let height = MAX_HEIGHT as usize - 1;
    assert!(run(format!("1{}", " + 1".repeat(height))).is_ok());
    assert!(run(format!("{{ a{} = 1; }}", ".a".repeat(height - 1))).is_ok());
}

#[test]
fn deep_sets_are_merged() {
    let depth = MAX_DEPTH as usize - 2;
    let set =
        |name| format!("a={}{name}=1;{};", "{a=".repeat(depth - 1) + "{", "}".to_owned() + &";}".repeat(depth - 1));
    let shown = run(format!("{{ {} {} }}", set("x"), set("y"))).expect("it is not too deep");
    assert!(shown.contains("{ x = 1; y = 1; }"));
}

#[test]
fn long_and_flat_texts_parse() {
    let count = MANY / 5;
    for source in [
        format!("[{}]", "1 ".repeat(MANY)),
        format!("f{}", " a".repeat(MANY)),
        format!("x{}", ".y".repeat(MANY)),
        format!("\"{}\"", "${a}b".repeat(count)),
        format!("''{}''", "\n  ${a}b".repeat(count)),
        format!("{{ {} }}", (0..count).map(|n| format!("a{n}=1;")).collect::<String>()),
        format!("{{ {} }}", (0..count).map(|n| format!("x.a{n}=1;")).collect::<String>()),
        format!("{{ {} }}", (0..count).map(|n| format!("x={{a{n}=1;}};")).collect::<String>()),
        format!("{{ {} }}", (0..count).map(|n| format!("x={{inherit (y) a{n};}};")).collect::<String>()),
        format!("y: {{ inherit (y){}; }}", (0..count).map(|n| format!(" a{n}")).collect::<String>()),
        format!("{{ {} }}: 1", (0..60_000).map(|n| format!("a{n},")).collect::<String>()),
    ] {
        assert!(run(source.as_str()).is_ok(), "{}…", &source[..40]);
    }
}

#[test]
fn long_and_wrong_texts_fail_fast() {
    for source in [
        format!("{}:x", "a.b_.".repeat(MANY)),
        "a/".repeat(MANY),
        "/*".repeat(MANY),
        "<a".repeat(MANY),
        ".".repeat(MANY),
        "1.".repeat(MANY),
        "$".repeat(MANY),
        format!("\"{}", "$".repeat(MANY)),
        format!("''{}", "'".repeat(MANY)),
        format!("{{ {} }}", "a = 1; ".repeat(MANY)),
    ] {
        assert!(run(source.as_str()).is_err(), "{}…", &source[..10]);
    }
}

#[test]
fn too_many_formals_are_an_error() {
    let formals: String = (0..65_536).map(|n| format!("a{n},")).collect();
    let error = run(format!("{{ {formals} }}: 1")).expect_err("Nix cannot count so far");
    assert_eq!(error.message, "too many formal arguments, implementation supports at most 65535");
}

#[test]
fn sources_that_a_merge_moved_too_far_are_put_right() {
    // C++ Nix stops with a failed assertion here
    let shown = run("p: q: { a = { inherit (p) x; }; a = { inherit (q) y z; }; }");
    assert_eq!(shown, Ok("(p: (q: { a = { inherit (p) x; inherit (q) y z; }; }))".into()));
}

#[test]
fn home_paths_need_a_home_and_impurity() {
    let error = run_with(b"~/a".to_vec(), true, false).expect_err("evaluation is pure");
    assert_eq!(error.message, "the path '~/a' can not be resolved in pure mode");
    let error = run_with(b"~/a".to_vec(), false, false).expect_err("there is no home");
    assert_eq!(error.message, "cannot determine user's home directory");
}

#[test]
fn pipes_need_to_be_allowed() {
    assert_eq!(run("a: f: a |> f 1 |> f"), Ok("(a: (f: (f (f 1 a))))".into()));
    assert_eq!(run("a: f: f <| f 1 <| a"), Ok("(a: (f: (f (f 1 a))))".into()));
    assert!(run("a |> b <| c").is_err());
    let error = run_with(b"1 |> 2".to_vec(), false, false).expect_err("pipes are experimental");
    assert!(error.message.starts_with("experimental Nix feature 'pipe-operators' is disabled"));
}
