//! Generated programs, evaluated by both.
//!
//! The programs are typed, so that most have a value, and lean on what nixpkgs uses most: attribute sets, strings, lists, and
//! functions over them. They are the same in every run. `BENTO_DIFFERENTIAL` makes it more batches than the usual few, and
//! `BENTO_SEED` other ones.

use crate::support::{Nix, assert_none, eval, settings};
use std::fmt::Write;

/// How many programs are evaluated in one go.
const BATCH: usize = 150;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Type {
    Bool,
    Int,
    Float,
    Str,
    /// Lists of integers, of strings, of sets.
    Ints,
    Strs,
    Sets,
    /// A set of integers, of strings, of such sets.
    IntSet,
    StrSet,
    Nested,
}

const TYPES: [Type; 10] = [
    Type::Bool,
    Type::Int,
    Type::Float,
    Type::Str,
    Type::Ints,
    Type::Strs,
    Type::Sets,
    Type::IntSet,
    Type::StrSet,
    Type::Nested,
];

const NAMES: [&str; 8] = ["a", "b", "c", "x", "name", "outPath'", "B", "z9"];
const TEXTS: [&str; 16] = [
    "",
    "a",
    "b",
    "ab",
    "foo-1.2.3",
    "1.0pre2",
    "/nix/store/x",
    "x86_64-linux",
    "a,b,c",
    "  pad ",
    "ä",
    "A-b_C",
    "1",
    "10",
    "a\\nb",
    "\\${x}",
];
const PATTERNS: [&str; 14] = [
    "(.*)",
    "a*",
    "(a|b)+",
    "([a-z]+)-([0-9.]+)",
    "[^-]*",
    "(.)(.*)",
    "[[:alpha:]]*",
    "",
    "(a)?b",
    "a|ab",
    ",",
    "([0-9]+)\\\\.?",
    "-",
    "x{1,2}",
];

/// Marsaglia's xorshift: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }
}

/// Writes programs.
struct Generator {
    random: Random,
    /// The variables in scope.
    variables: Vec<(String, Type)>,
    count: usize,
}

impl Generator {
    fn bind(&mut self, of: Type) -> String {
        self.count += 1;
        let name = format!("v{}", self.count);
        self.variables.push((name.clone(), of));
        name
    }

    /// An expression in which a variable of type `of` is bound.
    fn lambda(&mut self, of: Type, result: Type, depth: usize) -> String {
        let name = self.bind(of);
        let body = self.expr(result, depth);
        self.variables.pop();
        format!("({name}: {body})")
    }

    fn lambda2(&mut self, first: Type, second: Type, result: Type, depth: usize) -> String {
        let one = self.bind(first);
        let two = self.bind(second);
        let body = self.expr(result, depth);
        self.variables.truncate(self.variables.len() - 2);
        format!("({one}: {two}: {body})")
    }

    fn variable(&mut self, of: Type) -> Option<String> {
        let found: Vec<&String> =
            self.variables.iter().filter(|(_, other)| *other == of).map(|(name, _)| name).collect();
        if found.is_empty() {
            return None;
        }
        let index = self.random.below(found.len());
        Some(found[index].clone())
    }

    fn text(&mut self) -> String {
        format!("\"{}\"", self.random.pick(&TEXTS))
    }

    fn leaf(&mut self, of: Type) -> String {
        if self.random.below(3) > 0
            && let Some(name) = self.variable(of)
        {
            return name;
        }
        match of {
            Type::Bool => self.random.pick(&["true", "false"]).to_owned(),
            Type::Int => self.random.pick(&["0", "1", "2", "3", "7", "(-1)", "(-5)", "64", "1000003"]).to_owned(),
            Type::Float => self.random.pick(&["0.0", "1.5", "(-2.25)", "1.0e10", "0.1", "1.0e-7", "3.0"]).to_owned(),
            Type::Str => self.text(),
            Type::Ints => self.random.pick(&["[ ]", "[ 1 ]", "[ 3 1 2 ]", "[ 5 5 (-1) 0 ]"]).to_owned(),
            Type::Strs => self
                .random
                .pick(&["[ ]", "[ \"a\" ]", "[ \"b\" \"a\" \"B\" ]", "[ \"\" \"x\" \"ab\" \"a\" ]"])
                .to_owned(),
            Type::Sets => {
                self.random.pick(&["[ ]", "[ { a = 1; } ]", "[ { a = 1; b = 2; } { c = 3; a = 0; } ]"]).to_owned()
            }
            Type::IntSet => {
                self.random.pick(&["{ }", "{ a = 1; }", "{ b = 2; x = 3; }", "{ z9 = 0; B = 1; a = 2; }"]).to_owned()
            }
            Type::StrSet => self.random.pick(&["{ }", "{ a = \"a\"; }", "{ name = \"n\"; b = \"\"; }"]).to_owned(),
            Type::Nested => {
                self.random.pick(&["{ }", "{ a.b = 1; }", "{ x = { a = 1; b = 2; }; c = { }; }"]).to_owned()
            }
        }
    }

    fn set_of(&mut self, of: Type, depth: usize) -> String {
        let mut text = self.random.pick(&["{ ", "rec { "]).to_owned();
        let mut used = Vec::new();
        for _ in 0..self.random.below(5) {
            let name = self.random.pick(&NAMES);
            if used.contains(&name) {
                continue;
            }
            used.push(name);
            let value = self.expr(of, depth);
            let _ = match self.random.below(5) {
                0 => write!(text, "\"{name}\" = {value}; "),
                1 => write!(text, "${{{name:?}}} = {value}; "),
                _ => write!(text, "{name} = {value}; "),
            };
        }
        text + "}"
    }

    fn list_of(&mut self, of: Type, depth: usize) -> String {
        let mut text = "[ ".to_owned();
        for _ in 0..self.random.below(5) {
            let element = self.expr(of, depth);
            let _ = write!(text, "({element}) ");
        }
        text + "]"
    }

    /// What every type has: branches, bindings, calls, selections.
    fn common(&mut self, of: Type, depth: usize) -> String {
        let other = TYPES[self.random.below(TYPES.len())];
        match self.random.below(10) {
            0 => format!(
                "(if {} then {} else {})",
                self.expr(Type::Bool, depth),
                self.expr(of, depth),
                self.expr(of, depth)
            ),
            1 => {
                let value = self.expr(other, depth);
                let name = self.bind(other);
                let body = self.expr(of, depth);
                self.variables.pop();
                format!("(let {name} = {value}; in {body})")
            }
            2 => format!("({} {})", self.lambda(other, of, depth), self.expr(other, depth)),
            3 => {
                let name = self.bind(other);
                let default = self.random.below(2) == 0;
                let body = self.expr(of, depth);
                self.variables.pop();
                let (value, fallback) = (self.expr(other, depth), self.expr(other, depth));
                if default {
                    format!("(({{ {name} ? {fallback}, ... }}@args: {body}) {{ other = {value}; }})")
                } else {
                    format!("((args@{{ {name} }}: {body}) {{ {name} = {value}; }})")
                }
            }
            4 => {
                let name = self.random.pick(&NAMES);
                format!("({{ {name} = {}; }} // {{ other = 1; }}).{name}", self.expr(of, depth))
            }
            5 => {
                let name = self.random.pick(&NAMES);
                format!("({}.{name}.none or {})", self.expr(Type::Nested, depth), self.expr(of, depth))
            }
            6 => {
                let value = self.expr(of, depth);
                format!("(with {{ w = {value}; }}; w)")
            }
            7 => format!("(builtins.elemAt [ {} 1 ({}) ] 2)", self.expr(other, depth), self.expr(of, depth)),
            8 => {
                let value = self.expr(of, depth);
                let what = self.expr(other, depth);
                format!("({} ({what}) ({value}))", self.random.pick(&["builtins.seq", "builtins.deepSeq"]))
            }
            _ => {
                let value = self.expr(of, depth);
                let fallback = self.expr(of, depth);
                let guard = self.expr(Type::Bool, depth);
                format!(
                    "(let t = builtins.tryEval (assert {guard}; {value}); in if t.success then t.value else {fallback})"
                )
            }
        }
    }

    fn expr(&mut self, of: Type, depth: usize) -> String {
        if depth == 0 {
            return self.leaf(of);
        }
        let depth = depth - 1;
        if self.random.below(4) == 0 {
            return self.common(of, depth);
        }
        match of {
            Type::Bool => self.bool(depth),
            Type::Int => self.int(depth),
            Type::Float => self.float(depth),
            Type::Str => self.str(depth),
            Type::Ints => self.ints(depth),
            Type::Strs => self.strs(depth),
            Type::Sets => self.sets(depth),
            Type::IntSet => self.int_set(depth),
            Type::StrSet => self.str_set(depth),
            Type::Nested => self.nested(depth),
        }
    }

    fn bool(&mut self, depth: usize) -> String {
        let of = TYPES[self.random.below(TYPES.len())];
        let (left, right) = (self.expr(of, depth), self.expr(of, depth));
        let name = self.random.pick(&NAMES);
        match self.random.below(12) {
            0 => format!("({left} == {right})"),
            1 => format!("({left} != {right})"),
            2 => format!(
                "({} {} {})",
                self.expr(Type::Int, depth),
                self.random.pick(&["<", "<=", ">", ">="]),
                self.expr(Type::Float, depth)
            ),
            3 => format!(
                "({} {} {})",
                self.expr(Type::Str, depth),
                self.random.pick(&["<", "<=", ">", ">="]),
                self.expr(Type::Str, depth)
            ),
            4 => format!(
                "({} {} {})",
                self.expr(Type::Ints, depth),
                self.random.pick(&["<", "<=", ">", ">="]),
                self.expr(Type::Ints, depth)
            ),
            5 => format!(
                "({} {} {})",
                self.expr(Type::Bool, depth),
                self.random.pick(&["&&", "||", "->", "=="]),
                self.expr(Type::Bool, depth)
            ),
            6 => format!("(!{})", self.expr(Type::Bool, depth)),
            7 => format!("({} ? {name})", self.expr(Type::IntSet, depth)),
            8 => format!("({} ? {name}.a)", self.expr(Type::Nested, depth)),
            9 => format!("(builtins.elem {} {})", self.expr(Type::Str, depth), self.expr(Type::Strs, depth)),
            10 => format!(
                "(builtins.{} {} {})",
                self.random.pick(&["any", "all"]),
                self.lambda(Type::Int, Type::Bool, depth),
                self.expr(Type::Ints, depth)
            ),
            _ => format!(
                "(builtins.{} {left})",
                self.random.pick(&[
                    "isAttrs",
                    "isList",
                    "isString",
                    "isInt",
                    "isFloat",
                    "isBool",
                    "isFunction",
                    "isNull"
                ])
            ),
        }
    }

    fn int(&mut self, depth: usize) -> String {
        let name = self.random.pick(&NAMES);
        match self.random.below(12) {
            0 => format!("({} + {})", self.expr(Type::Int, depth), self.leaf(Type::Int)),
            1 => format!("({} - {})", self.expr(Type::Int, depth), self.leaf(Type::Int)),
            2 => format!(
                "(builtins.{} {} {})",
                self.random.pick(&["bitAnd", "bitOr", "bitXor"]),
                self.expr(Type::Int, depth),
                self.expr(Type::Int, depth)
            ),
            3 => format!("({} / {})", self.expr(Type::Int, depth), self.random.pick(&["1", "2", "7", "(-3)"])),
            4 => format!("(builtins.stringLength {})", self.expr(Type::Str, depth)),
            5 => format!("(builtins.length {})", self.expr(Type::Strs, depth)),
            6 => format!("(builtins.compareVersions {} {})", self.expr(Type::Str, depth), self.expr(Type::Str, depth)),
            7 => format!(
                "(builtins.foldl' {} {} {})",
                self.lambda2(Type::Int, Type::Int, Type::Int, depth),
                self.expr(Type::Int, depth),
                self.expr(Type::Ints, depth)
            ),
            8 => format!("({}.{name} or {})", self.expr(Type::IntSet, depth), self.expr(Type::Int, depth)),
            9 => format!("({}.a.b or {})", self.expr(Type::Nested, depth), self.expr(Type::Int, depth)),
            10 => format!("(builtins.{} {})", self.random.pick(&["ceil", "floor"]), self.expr(Type::Float, depth)),
            _ => format!("(builtins.length (builtins.attrNames {}))", self.expr(Type::Nested, depth)),
        }
    }

    fn float(&mut self, depth: usize) -> String {
        match self.random.below(4) {
            0 => format!("({} + {})", self.expr(Type::Float, depth), self.expr(Type::Int, depth)),
            1 => format!("({} * {})", self.expr(Type::Float, depth), self.random.pick(&["0.5", "3", "(-1.0)"])),
            2 => format!("({} - {})", self.expr(Type::Float, depth), self.expr(Type::Float, depth)),
            _ => format!("({} / {})", self.expr(Type::Float, depth), self.random.pick(&["3", "1.0e3", "(-7.0)"])),
        }
    }

    fn str(&mut self, depth: usize) -> String {
        let of = TYPES[self.random.below(TYPES.len())];
        match self.random.below(14) {
            0 => format!("({} + {})", self.expr(Type::Str, depth), self.expr(Type::Str, depth)),
            1 => format!("\"<${{{}}}-${{toString {}}}>\"", self.expr(Type::Str, depth), self.expr(Type::Int, depth)),
            2 => format!("''\n    one ${{{}}}\n      two\n  ''", self.expr(Type::Str, depth)),
            3 => format!(
                "(builtins.substring {} {} {})",
                self.random.pick(&["0", "1", "3"]),
                self.random.pick(&["0", "2", "(-1)", "100"]),
                self.expr(Type::Str, depth)
            ),
            4 => format!("(builtins.concatStringsSep {} {})", self.text(), self.expr(Type::Strs, depth)),
            5 => {
                let pairs = [
                    ("[ \"a\" ]", "[ \"X\" ]"),
                    ("[ \"a\" \"ab\" \"\" ]", "[ \"1\" \"2\" \"3\" ]"),
                    ("[ \"-\" \"/\" \".\" ]", "[ \"\" \"_\" \"a\" ]"),
                ];
                let (from, to) = pairs[self.random.below(pairs.len())];
                format!("(builtins.replaceStrings {from} {to} {})", self.expr(Type::Str, depth))
            }
            6 => format!(
                "(toString {})",
                self.expr([Type::Int, Type::Bool, Type::Float, Type::Ints, Type::Strs][of as usize % 5], depth)
            ),
            7 => format!("(builtins.toJSON {})", self.expr(of, depth)),
            8 => format!("(builtins.typeOf {})", self.expr(of, depth)),
            9 => format!(
                "(builtins.hashString \"{}\" {})",
                self.random.pick(&["md5", "sha1", "sha256", "sha512"]),
                self.expr(Type::Str, depth)
            ),
            10 => format!(
                "(builtins.parseDrvName {}).{}",
                self.expr(Type::Str, depth),
                self.random.pick(&["name", "version"])
            ),
            11 => format!(
                "({}.{} or {})",
                self.expr(Type::StrSet, depth),
                self.random.pick(&NAMES),
                self.expr(Type::Str, depth)
            ),
            12 => format!(
                "(builtins.foldl' {} {} {})",
                self.lambda2(Type::Str, Type::Str, Type::Str, depth),
                self.expr(Type::Str, depth),
                self.expr(Type::Strs, depth)
            ),
            _ => format!("(builtins.toXML {})", self.expr(of, depth)),
        }
    }

    fn ints(&mut self, depth: usize) -> String {
        match self.random.below(11) {
            0 | 1 => self.list_of(Type::Int, depth),
            2 => format!("({} ++ {})", self.expr(Type::Ints, depth), self.expr(Type::Ints, depth)),
            3 => format!("(map {} {})", self.lambda(Type::Int, Type::Int, depth), self.expr(Type::Ints, depth)),
            4 => format!(
                "(builtins.filter {} {})",
                self.lambda(Type::Int, Type::Bool, depth),
                self.expr(Type::Ints, depth)
            ),
            5 => format!(
                "(builtins.genList {} {})",
                self.lambda(Type::Int, Type::Int, depth),
                self.random.pick(&["0", "1", "4"])
            ),
            6 => format!("(builtins.sort builtins.lessThan {})", self.expr(Type::Ints, depth)),
            7 => format!("(builtins.sort (p: q: p / 2 > q / 2) {})", self.expr(Type::Ints, depth)),
            8 => format!("(builtins.attrValues {})", self.expr(Type::IntSet, depth)),
            9 => format!(
                "(builtins.concatMap {} {})",
                self.lambda(Type::Str, Type::Ints, depth),
                self.expr(Type::Strs, depth)
            ),
            _ => format!(
                "(builtins.partition {} {}).{}",
                self.lambda(Type::Int, Type::Bool, depth),
                self.expr(Type::Ints, depth),
                self.random.pick(&["right", "wrong"])
            ),
        }
    }

    fn strs(&mut self, depth: usize) -> String {
        let pattern = self.random.pick(&PATTERNS);
        match self.random.below(12) {
            0 | 1 => self.list_of(Type::Str, depth),
            2 => format!("({} ++ {})", self.expr(Type::Strs, depth), self.expr(Type::Strs, depth)),
            3 => format!("(map {} {})", self.lambda(Type::Str, Type::Str, depth), self.expr(Type::Strs, depth)),
            4 => format!("(builtins.attrNames {})", self.expr(Type::Nested, depth)),
            5 => format!("(builtins.splitVersion {})", self.expr(Type::Str, depth)),
            6 => format!(
                "(builtins.filter builtins.isString (builtins.split \"{pattern}\" {}))",
                self.expr(Type::Str, depth)
            ),
            7 => format!(
                "(let m = builtins.match \"{pattern}\" {}; in if m == null then [ \"null\" ] else map (g: \"${{builtins.toJSON g}}\") m)",
                self.expr(Type::Str, depth)
            ),
            8 => format!("(builtins.sort (p: q: p < q) {})", self.expr(Type::Strs, depth)),
            9 => format!(
                "(builtins.attrValues (builtins.mapAttrs (n: v: n + toString v) {}))",
                self.expr(Type::IntSet, depth)
            ),
            10 => format!(
                "(map (e: e.key) (builtins.genericClosure {{ startSet = map (key: {{ inherit key; }}) {}; operator = e: if builtins.stringLength e.key > 1 then [ {{ key = builtins.substring 1 (-1) e.key; }} ] else [ ]; }}))",
                self.expr(Type::Strs, depth)
            ),
            _ => format!(
                "(builtins.attrNames (builtins.groupBy {} {}))",
                self.lambda(Type::Int, Type::Str, depth),
                self.expr(Type::Ints, depth)
            ),
        }
    }

    fn sets(&mut self, depth: usize) -> String {
        match self.random.below(5) {
            0 | 1 => self.list_of(Type::IntSet, depth),
            2 => format!("(map {} {})", self.lambda(Type::IntSet, Type::IntSet, depth), self.expr(Type::Sets, depth)),
            3 => format!(
                "(builtins.filter {} {})",
                self.lambda(Type::IntSet, Type::Bool, depth),
                self.expr(Type::Sets, depth)
            ),
            _ => format!("(builtins.attrValues {})", self.expr(Type::Nested, depth)),
        }
    }

    fn int_set(&mut self, depth: usize) -> String {
        let name = self.random.pick(&NAMES);
        match self.random.below(12) {
            0 | 1 => self.set_of(Type::Int, depth),
            2 | 3 => format!("({} // {})", self.expr(Type::IntSet, depth), self.expr(Type::IntSet, depth)),
            4 => format!(
                "(builtins.mapAttrs {} {})",
                self.lambda2(Type::Str, Type::Int, Type::Int, depth),
                self.expr(Type::IntSet, depth)
            ),
            5 => format!("(removeAttrs {} {})", self.expr(Type::IntSet, depth), self.expr(Type::Strs, depth)),
            6 => format!(
                "(builtins.intersectAttrs {} {})",
                self.expr(Type::Nested, depth),
                self.expr(Type::IntSet, depth)
            ),
            7 => format!(
                "(builtins.listToAttrs (map (name: {{ inherit name; value = {}; }}) {}))",
                self.expr(Type::Int, depth),
                self.expr(Type::Strs, depth)
            ),
            8 => format!(
                "(builtins.foldl' (p: q: p // q) {} {})",
                self.expr(Type::IntSet, depth),
                self.expr(Type::Sets, depth)
            ),
            9 => format!(
                "(builtins.zipAttrsWith (n: vs: builtins.foldl' builtins.add 0 vs) {})",
                self.expr(Type::Sets, depth)
            ),
            10 => format!("({}.{name} or {})", self.expr(Type::Nested, depth), self.expr(Type::IntSet, depth)),
            _ => format!(
                "(let self = {{ a = {}; b = self.a + 1; }} // {}; in self)",
                self.leaf(Type::Int),
                self.expr(Type::IntSet, depth)
            ),
        }
    }

    fn str_set(&mut self, depth: usize) -> String {
        match self.random.below(5) {
            0 | 1 => self.set_of(Type::Str, depth),
            2 => format!("({} // {})", self.expr(Type::StrSet, depth), self.expr(Type::StrSet, depth)),
            3 => format!(
                "(builtins.mapAttrs {} {})",
                self.lambda2(Type::Str, Type::Int, Type::Str, depth),
                self.expr(Type::IntSet, depth)
            ),
            _ => format!("(builtins.parseDrvName {})", self.expr(Type::Str, depth)),
        }
    }

    fn nested(&mut self, depth: usize) -> String {
        match self.random.below(6) {
            0 | 1 => self.set_of(Type::IntSet, depth),
            2 | 3 => format!("({} // {})", self.expr(Type::Nested, depth), self.expr(Type::Nested, depth)),
            4 => format!(
                "(builtins.mapAttrs {} {})",
                self.lambda2(Type::Str, Type::IntSet, Type::IntSet, depth),
                self.expr(Type::Nested, depth)
            ),
            _ => format!("(removeAttrs {} {})", self.expr(Type::Nested, depth), self.expr(Type::Strs, depth)),
        }
    }
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// The programs' results in a list; a program that has none does not fail the others.
fn batch(programs: &[String]) -> String {
    let mut text = "let try = value: builtins.tryEval (builtins.deepSeq value value); in [".to_owned();
    for program in programs {
        let _ = write!(text, "\n(try ({program}))");
    }
    text + "\n]"
}

/// What differs between the two in a list of programs, found by halving it.
fn compare(nix: &Nix, programs: &[String], differences: &mut Vec<String>) {
    let text = batch(programs);
    let (ours, theirs) = (eval(settings(), &text), nix.eval(&text));
    match (&ours, &theirs) {
        (Ok(a), Ok(b)) if a == b => {}
        (Err(a), Err(b)) if programs.len() == 1 && a == b => {}
        _ if programs.len() == 1 => {
            differences.push(format!("{}\n    ours:     {ours:?}\n    expected: {theirs:?}", programs[0]));
        }
        _ => {
            let (left, right) = programs.split_at(programs.len() / 2);
            compare(nix, left, differences);
            compare(nix, right, differences);
        }
    }
}

#[test]
fn generated_programs_have_nix_values() {
    let Some(nix) = Nix::find() else { return };
    let seed = number("BENTO_SEED", 1);
    let mut differences = Vec::new();
    for round in 0..number("BENTO_DIFFERENTIAL", 3) {
        let random = Random((seed + round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut generator = Generator { random, variables: Vec::new(), count: 0 };
        let programs: Vec<String> = (0..BATCH)
            .map(|_| {
                let of = TYPES[generator.random.below(TYPES.len())];
                let depth = 2 + generator.random.below(3);
                generator.expr(of, depth)
            })
            .collect();
        compare(&nix, &programs, &mut differences);
    }
    assert_none(&differences);
}
