use bento_eval::text::regex::{Captures, Regex, RegexError};
use serde_json::{Value, json};

use crate::oracle::{Oracle, Random, literal};

/// What `builtins.match` gives, as JSON.
fn matched(pattern: &str, text: &str) -> Value {
    let regex = Regex::compile(pattern.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    match regex.full_match(text.as_bytes()).unwrap_or_else(|e| panic!("{e}")) {
        Some(captures) => groups(&captures, text),
        None => Value::Null,
    }
}

/// What `builtins.split` gives, as JSON.
fn split(pattern: &str, text: &str) -> Value {
    let regex = Regex::compile(pattern.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    let mut pieces = Vec::new();
    let mut end = 0;
    for found in regex.find_iter(text.as_bytes()) {
        let found = found.unwrap_or_else(|e| panic!("{e}"));
        pieces.push(json!(text[end..found.whole.start]));
        pieces.push(groups(&found, text));
        end = found.whole.end;
    }
    pieces.push(json!(text[end..]));
    Value::Array(pieces)
}

fn groups(captures: &Captures, text: &str) -> Value {
    captures.groups.iter().map(|group| group.clone().map(|range| text[range].to_owned())).collect()
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
        assert_eq!(matched(pattern, text), answer[0], "match {pattern:?} {text:?}");
        assert_eq!(split(pattern, text), answer[1], "split {pattern:?} {text:?}");
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
            pattern(&mut random, 3, &mut made);
            if made.len() > 24 || Regex::compile(made.as_bytes()).is_err() {
                continue;
            }
            for _ in 0..4 {
                cases.push((made.clone(), text(&mut random, &["a", "b", "a", "b", "c"], 7)));
            }
        }
        compare(&oracle, &cases);
    }
}

#[test]
fn errors_read_as_in_cpp_nix() {
    assert_eq!(Regex::compile(b"(").err().map(|e| e.to_string()), Some("invalid regular expression '('".to_owned()));
    assert_eq!(Regex::compile(b".{100001}").err(), Some(RegexError::MemoryLimit(b".{100001}".to_vec())));
}
