//! Writes Nix programs that have a type, after the grammar in `rules.txt`.

use std::collections::HashMap;
use std::fmt::Write;
use std::rc::Rc;

/// What an expression gives.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Type {
    /// A value without parts or, in lower case, a piece of text.
    Atom(&'static str),
    List(Rc<Type>),
    /// A set of any names with values of one type.
    Set(Rc<Type>),
    Function(Rc<Type>, Rc<Type>),
    /// Stands for any type in a rule.
    Variable(u8),
}

/// The types that a rule's variables stand for.
type Bindings = HashMap<u8, Type>;

impl Type {
    /// The type at the start of `text`, and what follows it.
    fn parse(text: &'static str) -> (Type, &'static str) {
        let inner = |close: char| {
            let (inner, rest) = Type::parse(&text[1..]);
            let rest = rest.strip_prefix(close).unwrap_or_else(|| panic!("{close} is missing: {text}"));
            (Rc::new(inner), rest)
        };
        match text.as_bytes()[0] {
            b'[' => {
                let (element, rest) = inner(']');
                (Type::List(element), rest)
            }
            b'{' => {
                let (value, rest) = inner('}');
                (Type::Set(value), rest)
            }
            b'(' => {
                let (from, rest) = Type::parse(&text[1..]);
                let rest = rest.strip_prefix("->").unwrap_or_else(|| panic!("-> is missing: {text}"));
                let (to, rest) = Type::parse(rest);
                let rest = rest.strip_prefix(')').unwrap_or_else(|| panic!(") is missing: {text}"));
                (Type::Function(Rc::new(from), Rc::new(to)), rest)
            }
            _ => {
                let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
                let (name, rest) = text.split_at(end);
                match name.as_bytes() {
                    [letter @ b'A'..=b'Z'] => (Type::Variable(*letter), rest),
                    _ => (Type::Atom(name), rest),
                }
            }
        }
    }

    /// Whether the rules for any type hold for it.
    fn is_value(&self) -> bool {
        match self {
            Type::Atom(name) => matches!(*name, "Bool" | "Int" | "Float" | "Str" | "Null" | "Path" | "Drv" | "Any"),
            _ => true,
        }
    }

    /// Whether it stands for a piece of text, not for values.
    fn is_text(&self) -> bool {
        matches!(self, Type::Atom(name) if name.starts_with(|c: char| c.is_ascii_lowercase()))
    }

    /// Whether the type of a rule can be `goal`, and with which types for its variables.
    fn matches(&self, goal: &Type, bindings: &mut Bindings) -> bool {
        match (self, goal) {
            (Type::Variable(letter), _) => match bindings.get(letter) {
                Some(bound) => bound == goal,
                None => {
                    bindings.insert(*letter, goal.clone());
                    goal.is_value()
                }
            },
            (Type::Atom(name), Type::Atom(other)) => name == other,
            (Type::List(element), Type::List(other)) => element.matches(other, bindings),
            (Type::Set(value), Type::Set(other)) => value.matches(other, bindings),
            (Type::Function(from, to), Type::Function(other_from, other_to)) => {
                from.matches(other_from, bindings) && to.matches(other_to, bindings)
            }
            _ => false,
        }
    }
}

enum Part {
    Text(&'static str),
    /// A name that the rule binds: an index, and whether nothing else may have that name.
    Name(usize),
    /// An expression, what is in scope there, and whether it never needs parentheses.
    Hole(Type, Vec<(usize, Type)>, bool),
}

struct Rule {
    result: Type,
    weight: usize,
    may_fail: bool,
    template: &'static str,
    parts: Vec<Part>,
    /// The names that it binds, as the template writes them.
    names: Vec<&'static str>,
    holes: usize,
    /// Whether there is no place in it for another value.
    leaf: bool,
    /// Whether what it gives needs no parentheses around it.
    closed: bool,
}

impl Rule {
    fn parse(line: &'static str) -> Rule {
        let may_fail = line.starts_with('!');
        let (result, rest) = Type::parse(line.trim_start_matches('!'));
        let (count, template) = rest.trim_start().split_once(' ').unwrap_or((rest.trim(), ""));
        let count: usize = count.parse().unwrap_or_else(|_| panic!("no count: {line}"));
        let text = result.is_text();
        let mut rule = Rule {
            weight: if text { count } else { (count * 16).isqrt().max(4) },
            closed: text || is_closed(template),
            result,
            may_fail,
            template,
            parts: Vec::new(),
            names: Vec::new(),
            holes: 0,
            leaf: true,
        };
        let mut rest = template;
        while let Some(at) = rest.find(['‹', '$', '%']) {
            let (before, from) = rest.split_at(at);
            rule.parts.push(Part::Text(before));
            if let Some(hole) = from.strip_prefix('‹') {
                let (hole, after) = hole.split_once('›').unwrap_or_else(|| panic!("› is missing: {line}"));
                let mut fields = hole.split('|');
                let (of, _) = Type::parse(fields.next().unwrap_or_default());
                rule.leaf &= of.is_text();
                let binds = fields.map(|field| {
                    let (name, of) = field.split_once(':').unwrap_or_else(|| panic!("no type: {line}"));
                    (rule.name(name), Type::parse(of).0)
                });
                let binds = binds.collect();
                let bare = after.starts_with([';', '}']) || (after.is_empty() && !before.ends_with([' ', '-', '!']));
                rule.parts.push(Part::Hole(of, binds, bare));
                rule.holes += 1;
                rest = after;
            } else if from.as_bytes().get(1).is_some_and(u8::is_ascii_digit) && !text {
                let index = rule.name(&from[..2]);
                rule.parts.push(Part::Name(index));
                rest = &from[2..];
            } else {
                rule.parts.push(Part::Text(&from[..1]));
                rest = &from[1..];
            }
        }
        rule.parts.push(Part::Text(rest));
        rule
    }

    fn name(&mut self, name: &'static str) -> usize {
        self.names.iter().position(|&other| other == name).unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }
}

/// Whether an expression is one word or stands in brackets.
fn is_closed(text: &str) -> bool {
    let text = text.trim();
    if text.starts_with('"') {
        return text.ends_with('"') && !text.contains("\" ");
    }
    if text.starts_with("''") {
        return true;
    }
    if !text.starts_with(['(', '[', '{']) {
        return !text.contains([' ', '-', '!', '?']);
    }
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1 == text.len();
        }
    }
    false
}

/// Marsaglia's xorshift: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        // Neighbouring seeds must not give similar sequences (the finalizer of splitmix64).
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((state ^ (state >> 31)) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// The rules for one type, each with the sum of the weights up to it: all of them, and those without holes.
type Choices = Rc<[Vec<(usize, usize)>; 2]>;

/// The grammar.
pub(super) struct Grammar {
    rules: Vec<Rule>,
}

impl Grammar {
    pub(super) fn new() -> Grammar {
        let lines = include_str!("rules.txt").lines();
        Grammar { rules: lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(Rule::parse).collect() }
    }

    /// The program of this number.
    pub(super) fn program(&self, seed: u64) -> String {
        let mut random = Random::new(seed);
        let may_fail = random.one_in(3);
        let mut writer =
            Writer { grammar: self, random, scope: Vec::new(), fresh: 0, may_fail, choices: HashMap::new() };
        writer.program()
    }
}

/// Names that bindings may have; they shadow each other.
const NAMES: [&str; 14] =
    ["a", "b", "c", "x", "y", "f", "g", "name", "self", "final", "prev", "pkgs", "config", "args'"];

/// Writes one program.
struct Writer<'g> {
    grammar: &'g Grammar,
    random: Random,
    /// The variables in scope, and those whose type is not known here. The last of a name counts.
    scope: Vec<(String, Option<Type>)>,
    fresh: usize,
    may_fail: bool,
    choices: HashMap<Type, Choices>,
}

impl Writer<'_> {
    fn program(&mut self) -> String {
        let mut text = "let lib = import ./data/lib.nix; in\n".to_owned();
        // Sizes spread evenly over their magnitudes.
        let magnitude = self.random.below(6);
        let size = 4 + self.random.below(8 << magnitude);
        if self.random.one_in(2) {
            let of = self.some_type();
            return text + &self.expression(&of, size, true);
        }
        let count = 2 + self.random.below(7);
        let mut lines = Vec::new();
        let mut names = Vec::new();
        for _ in 0..count {
            let of = self.some_type();
            let value = self.expression(&of, size / count, true);
            let name = self.unique();
            lines.push(format!("  {name} = {value};\n"));
            names.push(name.clone());
            self.scope.push((name, Some(of)));
        }
        // Each uses only those before it, but they may stand in any order.
        for index in (1..lines.len()).rev() {
            lines.swap(index, self.random.below(index + 1));
        }
        let of = self.some_type();
        let value = self.expression(&of, size / count, true);
        let _ = write!(text, "let\n{}in {{\n  inherit {};\n  result = {value};\n}}", lines.concat(), names.join(" "));
        text
    }

    fn unique(&mut self) -> String {
        self.fresh += 1;
        format!("v{}", self.fresh)
    }

    /// A type of values.
    fn some_type(&mut self) -> Type {
        let atom = |name| Type::Atom(name);
        match self.random.below(40) {
            0..=2 => atom("Bool"),
            3..=6 => atom("Int"),
            7 => atom("Float"),
            8..=13 => atom("Str"),
            14 => atom("Null"),
            15 => atom("Path"),
            16 | 17 => atom("Drv"),
            18..=20 => atom("Any"),
            21..=26 => Type::List(Rc::new(self.some_type())),
            27..=36 => Type::Set(Rc::new(self.some_type())),
            _ => Type::Function(Rc::new(self.some_type()), Rc::new(self.some_type())),
        }
    }

    fn choices(&mut self, goal: &Type) -> Choices {
        if let Some(found) = self.choices.get(goal) {
            return Rc::clone(found);
        }
        let mut found = [Vec::new(), Vec::new()];
        let mut sums = [0, 0];
        // The rules for any type are a third of all chances.
        let special = |rule: &Rule| !matches!(rule.result, Type::Variable(_));
        let total = |wanted: bool| -> usize {
            let fits = |rule: &&Rule| special(rule) == wanted && rule.result.matches(goal, &mut Bindings::new());
            self.grammar.rules.iter().filter(fits).map(|rule| rule.weight).sum()
        };
        let totals = [total(false).max(1), total(true).max(1)];
        for (index, rule) in self.grammar.rules.iter().enumerate() {
            if (rule.may_fail && !self.may_fail) || !rule.result.matches(goal, &mut Bindings::new()) {
                continue;
            }
            let share = if special(rule) { 2_000_000 / totals[1] } else { 1_000_000 / totals[0] };
            let weight = rule.weight * share.max(1);
            sums[0] += weight;
            found[0].push((sums[0], index));
            if rule.leaf && !rule.may_fail {
                sums[1] += weight;
                found[1].push((sums[1], index));
            }
        }
        let found = Rc::new(found);
        self.choices.insert(goal.clone(), Rc::clone(&found));
        found
    }

    /// A variable of this type.
    fn variable(&mut self, of: &Type) -> Option<String> {
        let mut seen: Vec<&str> = Vec::new();
        let mut found = Vec::new();
        for (name, other) in self.scope.iter().rev() {
            if !seen.contains(&name.as_str()) {
                seen.push(name);
                if other.as_ref() == Some(of) {
                    found.push(name.clone());
                }
            }
        }
        if found.is_empty() { None } else { Some(found.swap_remove(self.random.below(found.len()))) }
    }

    /// An expression of this type with about `size` parts; `bare` if it needs no parentheses in any case.
    fn expression(&mut self, goal: &Type, size: usize, bare: bool) -> String {
        if (size <= 2 || self.random.one_in(8))
            && !self.random.one_in(4)
            && let Some(name) = self.variable(goal)
        {
            return name;
        }
        let choices = self.choices(goal);
        let rules = &choices[usize::from(size <= 1)];
        let Some(&(total, _)) = rules.last() else { return self.smallest(goal) };
        let chance = self.random.below(total);
        let index = rules[rules.partition_point(|&(sum, _)| sum <= chance)].1;
        let (text, closed) = self.apply(index, goal, size);
        if closed || bare { text } else { format!("({text})") }
    }

    /// What there is to say where no rule without holes is left.
    fn smallest(&mut self, goal: &Type) -> String {
        match goal {
            Type::List(_) => "[ ]".to_owned(),
            Type::Set(_) => "{ }".to_owned(),
            Type::Function(from, to) => {
                let name = self.unique();
                self.scope.push((name.clone(), Some(Type::clone(from))));
                let body = self.expression(to, 1, true);
                self.scope.pop();
                format!("({name}: {body})")
            }
            Type::Atom("Any") => ["1", "\"a\"", "{ }"][self.random.below(3)].to_owned(),
            Type::Atom("Plain") => ["1", "\"a\"", "null"][self.random.below(3)].to_owned(),
            Type::Atom("Coercible") => ["1", "\"a\"", "true"][self.random.below(3)].to_owned(),
            Type::Atom("Literal") => self.literal(1),
            Type::Atom("Indented") => "''x''".to_owned(),
            Type::Atom("Version" | "Key") => "\"a\"".to_owned(),
            Type::Atom(name) => panic!("no rule for {name}"),
            Type::Variable(letter) => panic!("a free variable: {letter}"),
        }
    }

    fn apply(&mut self, index: usize, goal: &Type, size: usize) -> (String, bool) {
        let grammar = self.grammar;
        let rule = &grammar.rules[index];
        let mut bindings = Bindings::new();
        rule.result.matches(goal, &mut bindings);
        match rule.template {
            "‹Elements›" => return (self.elements(&bindings[&b'A'], size), true),
            "‹Attributes›" => return (self.attributes(&bindings[&b'A'], size), true),
            "‹Literal›" => return (self.literal(size), true),
            "‹Indented›" => return (self.indented(size), true),
            _ => {}
        }
        let mut names: Vec<String> = Vec::new();
        for name in &rule.names {
            let name = loop {
                let name = match name.as_bytes()[0] {
                    b'$' if !self.random.one_in(3) => NAMES[self.random.below(NAMES.len())].to_owned(),
                    b'$' | b'%' => self.unique(),
                    _ => (*name).to_owned(),
                };
                if !names.contains(&name) {
                    break name;
                }
            };
            names.push(name);
        }
        // What the rule binds hides what had that name, everywhere in it.
        let outside = self.scope.len();
        self.scope.extend(names.iter().map(|name| (name.clone(), None)));
        let mut left = size.saturating_sub(1);
        let mut holes = rule.holes;
        let mut text = String::new();
        for part in &rule.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Name(name) => text.push_str(&names[*name]),
                Part::Hole(of, binds, bare) => {
                    let of = self.instance(of, &mut bindings);
                    let share = if holes == 1 { left } else { self.random.below(2 * left / holes + 1) };
                    left = left.saturating_sub(share);
                    holes -= 1;
                    if of == Type::Atom("name") {
                        let name = self.attribute_name(&text, rule.template, &names);
                        text.push_str(&name);
                        continue;
                    }
                    let inside = self.scope.len();
                    for (name, of) in binds {
                        let of = self.instance(of, &mut bindings);
                        self.scope.push((names[*name].clone(), Some(of)));
                    }
                    text.push_str(&self.expression(&of, share, *bare));
                    self.scope.truncate(inside);
                }
            }
        }
        self.scope.truncate(outside);
        (text, rule.closed)
    }

    /// A name that neither the rule nor what it has written so far defines.
    fn attribute_name(&mut self, written: &str, template: &str, names: &[String]) -> String {
        for _ in 0..20 {
            let name = self.expression(&Type::Atom("name"), 1, true);
            let defined = format!("{name} =");
            if !written.contains(&defined) && !template.contains(&defined) && !names.contains(&name) {
                return name;
            }
        }
        self.unique()
    }

    fn instance(&mut self, of: &Type, bindings: &mut Bindings) -> Type {
        match of {
            Type::Atom(_) => of.clone(),
            Type::List(element) => Type::List(Rc::new(self.instance(element, bindings))),
            Type::Set(value) => Type::Set(Rc::new(self.instance(value, bindings))),
            Type::Function(from, to) => {
                Type::Function(Rc::new(self.instance(from, bindings)), Rc::new(self.instance(to, bindings)))
            }
            Type::Variable(letter) => {
                if let Some(bound) = bindings.get(letter) {
                    return bound.clone();
                }
                let of = self.some_type();
                bindings.insert(*letter, of.clone());
                of
            }
        }
    }

    fn elements(&mut self, of: &Type, size: usize) -> String {
        let count = self.random.below(6).min(size);
        let mut text = "[ ".to_owned();
        for _ in 0..count {
            text.push_str(&self.expression(of, size / count, false));
            text.push(' ');
        }
        text + "]"
    }

    /// A set as it is written, with all the ways to write an attribute.
    fn attributes(&mut self, of: &Type, size: usize) -> String {
        let count = match self.random.below(20) {
            0 => 8 + self.random.below(80),
            _ => 1 + self.random.below(5),
        };
        let mut text = "{ ".to_owned();
        let mut used: Vec<String> = Vec::new();
        for index in 0..count {
            let name =
                if index < 5 { self.expression(&Type::Atom("name"), 1, true) } else { format!("k{}", index - 4) };
            if used.contains(&name) {
                continue;
            }
            used.push(name.clone());
            let share = size / count;
            let _ = match (self.random.below(16), of) {
                (0, _) => write!(text, "\"{name}\" = {}; ", self.expression(of, share, true)),
                (1, _) => write!(text, "${{\"{name}\"}} = {}; ", self.expression(of, share, true)),
                (2, _) => write!(text, "${{\"{name}\" + \"\"}} = {}; ", self.expression(of, share, true)),
                (3, _) => {
                    let value = self.expression(of, share, true);
                    write!(text, "inherit ({{ {name} = {value}; }}) {name}; ")
                }
                (4, _) => write!(text, "${{if true then null else \"x\"}} = {}; ", self.expression(of, share, true)),
                (5..=8, Type::Set(inner)) => write!(text, "{name}.{name} = {}; ", self.expression(inner, share, true))
                    .and_then(|()| write!(text, "{name}.\"other\" = {}; ", self.expression(inner, share, true))),
                _ => write!(text, "{name} = {}; ", self.expression(of, share, true)),
            };
        }
        text + "}"
    }

    fn literal(&mut self, size: usize) -> String {
        let mut text = "\"".to_owned();
        for _ in 0..self.random.below(4) {
            if size > 2 && self.random.one_in(3) {
                let _ = write!(text, "${{{}}}", self.expression(&Type::Atom("Str"), size / 3, true));
            } else {
                text.push_str(&self.expression(&Type::Atom("text"), 1, true));
            }
        }
        text + "\""
    }

    fn indented(&mut self, size: usize) -> String {
        const PIECES: [&str; 14] =
            ["one", "  two", "$", "''$", "'''", "''\\n", "''\\t", "\t", " ", "$$", "\\", "\"", "''${x}", "ä'"];
        let mut text = "''".to_owned();
        for _ in 0..self.random.below(6) {
            if self.random.one_in(2) {
                let _ = write!(text, "\n{}", " ".repeat(self.random.below(6)));
            }
            if size > 2 && self.random.one_in(3) {
                let _ = write!(text, "${{{}}}", self.expression(&Type::Atom("Str"), size / 3, true));
            } else {
                text.push_str(PIECES[self.random.below(PIECES.len())]);
            }
        }
        // A dollar sign before the end would not end it.
        text + " ''"
    }
}
