use bento_eval::text::json::{JsonError, parse, write_json_string};

use crate::golden;
use crate::oracle::{Form, Oracle, Random, check, literal};
use crate::value::{Tree, Trees};

fn parsed(text: &[u8]) -> Result<Tree, String> {
    parse(text, &mut Trees).map_err(|error| error.to_string())
}

#[test]
fn reads_documents_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| Ok(parsed(arguments[0])?.to_json());
    check("reads_documents_as_cpp_nix_does", golden::FROM_JSON, Form::Json, "builtins.fromJSON @1", ours);
}

#[test]
fn writes_strings_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| {
        let mut out = Vec::new();
        write_json_string(&mut out, arguments[0]).map_err(|error| error.to_string())?;
        String::from_utf8(out).map_err(|error| error.to_string())
    };
    check("writes_strings_as_cpp_nix_does", golden::STRING_TO_JSON, Form::Json, "@1", ours);
}

#[test]
fn a_refused_string_leaves_the_output_as_it_was() {
    let mut out = b"before".to_vec();
    assert!(write_json_string(&mut out, b"a\xff").is_err());
    assert_eq!(out, b"before");
}

#[test]
fn depth_is_no_limit() {
    let depth = 200_000;
    let deep = [vec![b'['; depth], vec![b']'; depth]].concat();
    // Nothing but the depth is kept: a tree of this depth could not be dropped on this thread's stack.
    struct Depth;
    impl bento_eval::text::builder::Builder for Depth {
        type Value = usize;
        type Key = ();
        fn null(&mut self) -> usize {
            0
        }
        fn bool(&mut self, _: bool) -> usize {
            0
        }
        fn int(&mut self, _: i64) -> usize {
            0
        }
        fn float(&mut self, _: f64) -> usize {
            0
        }
        fn string(&mut self, _: &[u8]) -> usize {
            0
        }
        fn key(&mut self, _: &[u8]) {}
        fn list(&mut self, items: std::vec::Drain<'_, usize>) -> usize {
            items.max().unwrap_or(0) + 1
        }
        fn attrs(&mut self, items: std::vec::Drain<'_, ((), usize)>) -> usize {
            items.map(|(_, depth)| depth).max().unwrap_or(0) + 1
        }
    }
    assert_eq!(parse(&deep, &mut Depth), Ok(depth));
    let objects = [b"{\"a\":".repeat(depth), b"1".to_vec(), b"}".repeat(depth)].concat();
    assert_eq!(parse(&objects, &mut Depth), Ok(depth));
    assert!(matches!(parse(&deep[..depth], &mut Depth), Err(JsonError::Parse(_))));
}

/// A random document, mostly well-formed.
fn document(random: &mut Random, depth: usize, out: &mut String) {
    match random.below(if depth == 0 { 8 } else { 12 }) {
        0 => out.push_str(random.pick(&["null", "true", "false"])),
        1 | 2 => out.push_str(&(random.next() as i64 >> random.below(64)).to_string()),
        3 | 4 => {
            let value = f64::from_bits(random.next());
            out.push_str(&if value.is_finite() { format!("{value:e}") } else { "0.5".to_owned() });
        }
        5..=7 => {
            out.push('"');
            for _ in 0..random.below(5) {
                out.push_str(random.pick(&["a", "é", "\\n", "\\u00e9", "\\ud83d\\ude00", "\\\"", "𝄞", " ", "\\/"]));
            }
            out.push('"');
        }
        8 | 9 => {
            out.push('[');
            for i in 0..random.below(4) {
                out.push_str(if i > 0 { "," } else { "" });
                document(random, depth - 1, out);
            }
            out.push(']');
        }
        _ => {
            out.push('{');
            for i in 0..random.below(4) {
                out.push_str(if i > 0 { ", " } else { "\n" });
                out.push_str(random.pick(&["\"a\":", "\"b\" : ", "\"\\u0061\":", "\"\": "]));
                document(random, depth - 1, out);
            }
            out.push('}');
        }
    }
}

#[test]
fn random_documents_read_and_write_as_in_cpp_nix() {
    let Some(oracle) = Oracle::find("random_documents_read_and_write_as_in_cpp_nix") else { return };
    let mut random = Random(3);
    let documents: Vec<String> = (0..3000)
        .map(|_| {
            let mut made = String::new();
            document(&mut random, 3, &mut made);
            made
        })
        .collect();
    let mut expression = b"map builtins.fromJSON [".to_vec();
    expression.extend(documents.iter().flat_map(|text| literal(text.as_bytes())));
    expression.push(b']');
    let printed = oracle.run(&["--json"], &expression).expect("the oracle reads what we made");
    let ours: Vec<String> =
        documents.iter().map(|text| parsed(text.as_bytes()).expect("we read what we made").to_json()).collect();
    assert_eq!(String::from_utf8_lossy(&printed), format!("[{}]", ours.join(",")));
}

#[test]
fn damaged_documents_fail_as_in_cpp_nix() {
    let Some(oracle) = Oracle::find("damaged_documents_fail_as_in_cpp_nix") else { return };
    let mut random = Random(4);
    let mut left = 150;
    while left > 0 {
        let mut made = String::new();
        document(&mut random, 3, &mut made);
        let mut bytes = made.into_bytes();
        let at = random.below(bytes.len());
        match random.below(3) {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            _ => bytes[at] = b"{}[],:\"\\0e-.\n x\xc3"[random.below(16)],
        }
        let Err(error) = parsed(&bytes) else { continue };
        let expression = [b"builtins.fromJSON ", &*literal(&bytes)].concat();
        let theirs = oracle.run(&[], &expression).expect_err("the oracle rejects what we reject");
        let shown = bytes.escape_ascii();
        // Where the text is cut inside a character, the replacement of what is left differs.
        if !error.contains('\u{fffd}') {
            assert_eq!(theirs, format!("error: {error}"), "{shown}");
        }
        left -= 1;
    }
}
