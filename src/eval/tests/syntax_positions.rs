//! Positions reach store paths (`unsafeGetAttrPos`), so they must be those of C++ Nix. What is expected here is what
//! `nix-instantiate --eval` gave as the position of an error, or what `unsafeGetAttrPos` gave.

use bento_eval::symbol::SymbolTable;
use bento_eval::syntax::ast::{Expr, Node, Pos};
use bento_eval::syntax::{LineIndex, ParseOptions, line_column, parse};
use bumpalo::Bump;

/// Parses `source` and gives `look` its tree.
fn with_tree<T>(source: &str, look: impl FnOnce(Node<'_>, &SymbolTable<'_>) -> T) -> T {
    let arena = Bump::new();
    let symbols = SymbolTable::new(&arena);
    let options = ParseOptions { base_path: b"/", pure: true, pipe_operators: true, ..ParseOptions::default() };
    let node = parse(&arena, &symbols, source.as_bytes(), &options)
        .unwrap_or_else(|error| panic!("{source}: {error} at {}", error.pos));
    look(node, &symbols)
}

/// The position of the outermost node.
fn position(node: Node<'_>) -> Pos {
    match node {
        Expr::Var { pos, .. }
        | Expr::CurPos(pos)
        | Expr::Select { pos, .. }
        | Expr::Call { pos, .. }
        | Expr::With { pos, .. }
        | Expr::If { pos, .. }
        | Expr::Assert { pos, .. }
        | Expr::Binary { pos, .. }
        | Expr::ConcatStrings { pos, .. } => *pos,
        Expr::Lambda(lambda) => lambda.pos,
        Expr::Attrs(attrs) => attrs.pos.get(),
        Expr::Not(operand) => position(operand),
        _ => panic!("a node without a position"),
    }
}

fn assert_position(source: &str, pos: Pos, expected: (u32, u32)) {
    assert_eq!(line_column(source.as_bytes(), pos), expected, "{source}");
}

#[test]
fn nodes_stand_where_nix_reports_their_errors() {
    for (source, expected) in [
        ("  (1 2)", (1, 4)),
        ("\n (1) 2 3", (2, 2)),
        (" ((1 2) 3)", (1, 4)),
        (" if 1 then 2 else 3", (1, 2)),
        (" assert false; 1", (1, 2)),
        (" with 1; a", (1, 2)),
        (" { a = 1; }.b", (1, 2)),
        (" ({ }).b.c", (1, 2)),
        (" [ ] ++\n 1", (1, 6)),
        (" true && 1", (1, 7)),
        (" false || 1", (1, 8)),
        (" true -> 1", (1, 7)),
        (" 1 < { }", (1, 4)),
        (" 1 >= \"a\"", (1, 4)),
        (" - { }", (1, 2)),
        (" 1 - { }", (1, 4)),
        (" 2 * { }", (1, 4)),
        (" 1 / 0", (1, 4)),
        (" f", (1, 2)),
        ("\n <nosuch>", (2, 2)),
        (" 1 |> 2", (1, 4)),
        (" 1 <| 2", (1, 4)),
        (" (a: a) |> 3", (1, 9)),
        (" [ ./a ]\n  ++ __curPos", (2, 3)),
    ] {
        with_tree(source, |node, _| assert_position(source, position(node), expected));
    }
}

#[test]
fn parts_of_strings_and_sums_stand_where_nix_reports_their_errors() {
    for (source, part, expected) in [
        (" 1 + { }", 1, (1, 6)),
        ("\n \"a\" + 1", 1, (2, 8)),
        (" \"x${ { } }y\"", 1, (1, 4)),
        ("  ''\n  a ${1}''", 1, (2, 5)),
        (" ./a/${ { } }/b", 1, (1, 6)),
    ] {
        with_tree(source, |node, _| match node {
            Expr::ConcatStrings { parts, .. } => assert_position(source, parts[part].0, expected),
            _ => panic!("{source}: not a concatenation"),
        });
    }
}

#[test]
fn functions_stand_at_their_first_token() {
    for (source, expected) in [(" ({ a }: a) { }", (1, 3)), (" (x@{ a }: a) { }", (1, 3)), (" ({ a }: a) 1", (1, 3))] {
        with_tree(source, |node, _| match node {
            Expr::Call { pos, function, .. } => {
                assert_position(source, *pos, (1, 2));
                assert_position(source, position(function), expected);
            }
            _ => panic!("{source}: not a call"),
        });
    }
}

#[test]
fn attributes_stand_where_unsafe_get_attr_pos_says() {
    let source = "let y = 1; z = { u = 2; v = 3; }; in {\n  a = 1; b.c = 2;\r\n  b.d = 3;\r  \"e f\" = 4; ${\"g\"} = 5;\n\
                  \tinherit y; inherit (z)\n    u\n v; h = { };\n  h.i = 1; /* … */ j = ./k; l = 2; }\n";
    let expected = [
        ("a", (2, 3)),
        ("b", (2, 10)),
        ("e f", (4, 3)),
        ("g", (4, 14)),
        ("h", (7, 5)),
        ("j", (8, 22)),
        ("l", (8, 31)),
        ("u", (6, 5)),
        ("v", (7, 2)),
        ("y", (5, 10)),
    ];
    with_tree(source, |node, symbols| {
        let Expr::Let { body: Expr::Attrs(attrs), .. } = node else { panic!("not a set in a let") };
        let index = LineIndex::new(source.as_bytes());
        let mut found: Vec<_> = attrs
            .attrs
            .borrow()
            .iter()
            .map(|def| (String::from_utf8_lossy(symbols.text(def.name)).into_owned(), index.line_column(def.pos)))
            .collect();
        found.sort();
        assert_eq!(found, expected.map(|(name, at)| (name.to_owned(), at)));
    });
}

#[test]
fn the_index_agrees_with_counting() {
    let source = b"a\nb\r\nc\rd\n\r\n\r\re";
    let index = LineIndex::new(source);
    for offset in 0..=source.len() as u32 {
        assert_eq!(index.line_column(offset), line_column(source, offset), "offset {offset}");
    }
    assert_eq!(index.line_column(0), (1, 1));
    // a lone carriage return ends a line, and so does one with a line feed after it, after that
    assert_eq!(index.line_column(4), (2, 3));
    assert_eq!(index.line_column(5), (3, 1));
    assert_eq!(index.line_column(7), (4, 1));
    assert_eq!(LineIndex::new(b"").line_column(0), (1, 1));
}
