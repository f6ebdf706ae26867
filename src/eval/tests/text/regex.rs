use std::ops::Range;

use bento_eval::text::regex::{Captures, Regex, RegexError};
use serde_json::{Value, json};

use crate::golden;
use crate::oracle::{Form, Oracle, Random, check, literal};

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| error.to_string())
}

/// What `builtins.match` gives.
fn matched(pattern: &[u8], text: &[u8]) -> Result<Value, String> {
    let regex = Regex::compile(pattern).map_err(|error| error.to_string())?;
    match regex.full_match(text).map_err(|error| error.to_string())? {
        Some(captures) => groups(&captures, text),
        None => Ok(Value::Null),
    }
}

/// What `builtins.split` gives.
fn split(pattern: &[u8], text: &[u8]) -> Result<Value, String> {
    let regex = Regex::compile(pattern).map_err(|error| error.to_string())?;
    let mut pieces = Vec::new();
    let mut end = 0;
    for found in regex.find_iter(text) {
        let found = found.map_err(|error| error.to_string())?;
        pieces.push(json!(utf8(&text[end..found.whole.start])?));
        pieces.push(groups(&found, text)?);
        end = found.whole.end;
    }
    pieces.push(json!(utf8(&text[end..])?));
    Ok(Value::Array(pieces))
}

fn groups(captures: &Captures, text: &[u8]) -> Result<Value, String> {
    let group = |range: &Option<Range<usize>>| match range {
        Some(range) => utf8(&text[range.clone()]).map(|text| json!(text)),
        None => Ok(Value::Null),
    };
    captures.groups.iter().map(group).collect()
}

/// A random pattern with little but structure to it.
fn pattern(random: &mut Random, depth: usize, out: &mut String) {
    for i in 0..=random.below(2) {
        if i > 0 {
            out.push('|');
        }
        for _ in 0..random.below(4) {
            let repeatable = match random.below(if depth == 0 { 8 } else { 13 }) {
                0..=3 => {
                    out.push_str(random.pick(&["a", "b", "c", "a", "b"]));
                    true
                }
                4 => {
                    out.push_str(random.pick(&["[ab]", "[^a]", "[bc]", "[a-c]", "[[:alpha:]]"]));
                    true
                }
                5 => {
                    out.push('.');
                    true
                }
                6 if random.below(3) == 0 => {
                    out.push_str(random.pick(&["^", "$"]));
                    false
                }
                6 | 7 => {
                    out.push_str(random.pick(&["ab", "ba", "aa"]));
                    true
                }
                _ => {
                    out.push('(');
                    pattern(random, depth - 1, out);
                    out.push(')');
                    true
                }
            };
            if repeatable && random.below(2) == 0 {
                out.push_str(random.pick(&["*", "+", "?", "*", "{2}", "{1,2}", "{0,1}", "{1,}", "{0}", "{2,3}"]));
            }
        }
    }
}

fn text(random: &mut Random, letters: &[&str], length: usize) -> String {
    (0..random.below(length + 1)).map(|_| random.pick(letters)).collect()
}

/// Asks the oracle for many cases at once and compares.
fn compare(oracle: &Oracle, cases: &[(String, String)]) {
    let mut expression = b"map (c: [ (builtins.match c.p c.t) (builtins.split c.p c.t) ]) [\n".to_vec();
    for (pattern, text) in cases {
        expression.extend(b"{ p = ");
        expression.extend(literal(pattern.as_bytes()));
        expression.extend(b"; t = ");
        expression.extend(literal(text.as_bytes()));
        expression.extend(b"; }\n");
    }
    expression.push(b']');
    let answers = oracle.json(&expression).unwrap_or_else(|e| panic!("the oracle rejects what we accept: {e}"));
    for ((pattern, text), answer) in cases.iter().zip(answers.as_array().expect("a list")) {
        let (matched, split) =
            (matched(pattern.as_bytes(), text.as_bytes()), split(pattern.as_bytes(), text.as_bytes()));
        assert_eq!(matched.as_ref(), Ok(&answer[0]), "match {pattern:?} {text:?}");
        assert_eq!(split.as_ref(), Ok(&answer[1]), "split {pattern:?} {text:?}");
    }
}

#[test]
fn random_patterns_match_and_split_as_in_cpp_nix() {
    let Some(oracle) = Oracle::find("random_patterns_match_and_split_as_in_cpp_nix") else { return };
    let rounds = std::env::var("BENTO_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let seed = std::env::var("BENTO_FUZZ_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut random = Random(seed);
    for _ in 0..rounds {
        let mut cases = Vec::new();
        while cases.len() < 1000 {
            let mut made = String::new();
            // C++ Nix needs exponential time for loops in loops in loops: deep ones only where they are small.
            let (depth, length) = if random.below(4) == 0 { (3, 14) } else { (2, 28) };
            pattern(&mut random, depth, &mut made);
            if made.len() > length || Regex::compile(made.as_bytes()).is_err() {
                continue;
            }
            for _ in 0..4 {
                cases.push((made.clone(), text(&mut random, &["a", "b", "a", "b", "c"], 7)));
            }
        }
        compare(&oracle, &cases);
    }
}

/// A random bracket expression, mostly a wrong one.
fn bracket(random: &mut Random) -> String {
    let pieces = [
        "a",
        "b",
        "-",
        "-",
        "^",
        "]",
        "[",
        "[:alpha:]",
        "[:digit:]",
        "[:d:]",
        "[.a.]",
        "[.hyphen.]",
        "[=b=]",
        "z",
        "\\",
        "[:",
        "[.",
        "1",
        ".",
        "[.x.]",
        "[:no:]",
        "*",
    ];
    let inside: String = (0..random.below(6)).map(|_| random.pick(&pieces)).collect();
    format!("[{inside}]")
}

#[test]
fn random_bracket_expressions_hold_what_they_hold_in_cpp_nix() {
    let Some(oracle) = Oracle::find("random_bracket_expressions_hold_what_they_hold_in_cpp_nix") else { return };
    let mut random = Random(2);
    let mut cases = Vec::new();
    let mut rejected = Vec::new();
    while cases.len() < 4000 {
        let made = bracket(&mut random);
        if Regex::compile(made.as_bytes()).is_ok() {
            cases.push((made, "ab-^][z\\1.:dxyB*".to_owned()));
        } else {
            rejected.push(made);
        }
    }
    compare(&oracle, &cases);
    for pattern in rejected.iter().take(200) {
        let expression = [b"builtins.match ", &*literal(pattern.as_bytes()), b" \"\""].concat();
        let error = oracle.run(&[], &expression).expect_err("the oracle rejects what we reject");
        assert_eq!(error, format!("error: invalid regular expression '{pattern}'"));
    }
}

#[test]
fn matches_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| Ok(matched(arguments[0], arguments[1])?.to_string());
    check("matches_as_in_cpp_nix", golden::MATCH, Form::Json, "builtins.match @1 @2", ours);
}

#[test]
fn splits_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| Ok(split(arguments[0], arguments[1])?.to_string());
    check("splits_as_in_cpp_nix", golden::SPLIT, Form::Json, "builtins.split @1 @2", ours);
}

#[test]
fn takes_bytes_that_are_not_utf8() {
    let regex = Regex::compile(b"(a|\xff)*([\x80-\xfe])").expect("the pattern is fine");
    let captures = regex.full_match(b"a\xffa\xff\x90").expect("it fits").expect("it matches");
    assert_eq!(captures, Captures { whole: 0..5, groups: vec![Some(3..4), Some(4..5)] });
}

#[test]
fn dot_matches_everything_but_nul() {
    let regex = Regex::compile(b".").expect("the pattern is fine");
    let matching = (0..=255u8).filter(|b| regex.full_match(&[*b]).expect("it fits").is_some()).count();
    assert_eq!(matching, 255);
    assert_eq!(regex.full_match(b"\0"), Ok(None));
}

#[test]
fn long_inputs_take_linear_time_and_no_stack() {
    let long = [vec![b'a'; 1 << 20], b"foo".to_vec()].concat();
    let regex = Regex::compile(b"(.*)foo(.*)").expect("the pattern is fine");
    let captures = regex.full_match(&long).expect("it fits").expect("it matches");
    assert_eq!(captures.groups, [Some(0..1 << 20), Some((1 << 20) + 3..(1 << 20) + 3)]);

    // Each of these is exponential or quadratic in a plain backtracker.
    for pattern in ["(a*)*b", "(a|a)*b", "(a|aa)+(b|c)?d", "((a?)(a*))*b"] {
        let regex = Regex::compile(pattern.as_bytes()).expect("the pattern is fine");
        assert_eq!(regex.full_match(&long[..1 << 17]), Ok(None), "{pattern}");
        assert_eq!(regex.find_iter(&long[..1 << 14]).count(), 0, "{pattern}");
    }
    let regex = Regex::compile(b"a*b|a").expect("the pattern is fine");
    assert_eq!(regex.find_iter(&long[..1 << 17]).count(), 1 << 17);
}

#[test]
fn nesting_and_length_of_patterns_end_in_an_error() {
    let limit = |pattern: &str| Regex::compile(pattern.as_bytes()).err();
    for pattern in ["(".repeat(60_000), "(".repeat(60_000) + &")".repeat(60_000), "a{9}".repeat(20_000)] {
        assert!(limit(&pattern).is_some());
    }
    let nested = "(".repeat(20) + "a" + &"*)".repeat(20) + "*";
    assert_eq!(limit(&nested), Some(RegexError::MemoryLimit(nested.clone().into_bytes())));
}
