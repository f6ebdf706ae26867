//! Makes a program that shows a difference as small as it can be.

/// How many programs may be tried.
const TRIES: usize = 600;

/// The smallest program found, by leaving out and replacing parts, for which `holds` is still true.
pub(super) fn shrink(program: &str, mut holds: impl FnMut(&str) -> bool) -> String {
    let mut best: Vec<String> = tokens(program);
    let mut tries = 0;
    let mut attempt = |candidate: Vec<String>, best: &mut Vec<String>| {
        tries += 1;
        let shorter = candidate.concat().len() < best.concat().len();
        if tries > TRIES || !shorter || !holds(&candidate.concat()) {
            return false;
        }
        *best = candidate;
        true
    };
    loop {
        let before = best.concat().len();
        // A part in brackets, or a string, becomes one of the parts in it, or something trivial.
        let mut at = 0;
        while at < best.len() {
            if let Some(end) = closing(&best, at) {
                let mut tried = false;
                for replacement in ["", "null", "1", "{ }", "[ ]", "\"\""] {
                    tried |= attempt(replaced(&best, at, end, &[replacement.to_owned()]), &mut best);
                    if tried {
                        break;
                    }
                }
                if !tried {
                    let inner: Vec<(usize, usize)> =
                        (at + 1..end).filter_map(|start| closing(&best, start).map(|end| (start, end))).collect();
                    for (start, stop) in inner {
                        let part = best[start..stop].to_vec();
                        if attempt(replaced(&best, at, end, &part), &mut best) {
                            break;
                        }
                    }
                }
            }
            at += 1;
        }
        // Runs of words go, the longest first.
        let mut length = best.len() / 2;
        while length > 0 {
            let mut at = 0;
            while at + length <= best.len() {
                let blank = best[at..at + length].iter().all(|token| token.trim().is_empty());
                if blank || !attempt(replaced(&best, at, at + length, &[]), &mut best) {
                    at += 1 + length / 4;
                }
            }
            length = if length > 24 { length / 2 } else { length - 1 };
        }
        if best.concat().len() == before {
            return best.concat();
        }
    }
}

fn replaced(tokens: &[String], from: usize, to: usize, by: &[String]) -> Vec<String> {
    [&tokens[..from], by, &tokens[to..]].concat()
}

/// Where the brackets that open at this word are closed, exclusive.
fn closing(tokens: &[String], at: usize) -> Option<usize> {
    let opens = |token: &str| matches!(token, "(" | "[" | "{" | "${");
    if !opens(&tokens[at]) {
        return None;
    }
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        if opens(token) {
            depth += 1;
        } else if matches!(token.as_str(), ")" | "]" | "}") {
            depth -= 1;
            if depth == 0 {
                return Some(index + 1);
            }
        }
    }
    None
}

/// Words, brackets and what is between them; all of them together are the text.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut rest = text;
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '\'' | '-');
    while let Some(c) = rest.chars().next() {
        let len = if rest.starts_with("${") || rest.starts_with("''") || rest.starts_with("//") {
            2
        } else if c.is_alphanumeric() || c == '_' {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if c.is_whitespace() {
            rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len())
        } else {
            c.len_utf8()
        };
        tokens.push(rest[..len].to_owned());
        rest = &rest[len..];
    }
    tokens
}
