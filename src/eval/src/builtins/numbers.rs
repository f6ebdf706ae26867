//! Numbers and order: arithmetic, rounding, bits, `lessThan`.

use super::PrimOp;
use crate::error::{Error, Result};
use crate::eval::{Evaluated, Evaluator};
use crate::text::number::write_float;
use crate::value::{Kind, Pos, Value};

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::lazy("__ceil", 1, ceil),
    PrimOp::lazy("__floor", 1, floor),
    PrimOp::strict("__add", 2, 0b11, add),
    PrimOp::strict("__sub", 2, 0b11, sub),
    PrimOp::strict("__mul", 2, 0b11, mul),
    PrimOp::strict("__div", 2, 0b11, div),
    PrimOp::lazy("__bitAnd", 2, bit_and),
    PrimOp::lazy("__bitOr", 2, bit_or),
    PrimOp::lazy("__bitXor", 2, bit_xor),
    PrimOp::strict("__lessThan", 2, 0b11, less_than_builtin),
];

/// -2^63 as a float, which is exact; its negation is the first float above all integers.
const INT_MIN: f64 = i64::MIN as f64;

fn ceil<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let number = ev.force_float(args[0], pos, "while evaluating the first argument passed to builtins.ceil")?;
    rounded(ev, args[0], number.ceil(), pos)
}

fn floor<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let number = ev.force_float(args[0], pos, "while evaluating the first argument passed to builtins.floor")?;
    rounded(ev, args[0], number.floor(), pos)
}

/// The integer that `result` is. An integer argument takes the way over a float as well, and it is an error if that changes
/// it.
fn rounded<'a>(ev: &Evaluator<'a>, argument: Value<'a>, result: f64, pos: Pos) -> Evaluated<'a> {
    const BUG: &str = "Due to a bug (see https://github.com/NixOS/nix/issues/12899)";
    const FUTURE: &str = "\n\tFuture Nix versions might implement the correct behavior.";
    let fits = (INT_MIN..-INT_MIN).contains(&result);
    match ev.force(argument)?.kind() {
        Kind::Int(number) if !fits => Err(Error::eval(
            pos,
            format!("{BUG} the NixInt argument {number} caused undefined behavior in previous Nix versions.{FUTURE}"),
        )),
        Kind::Int(number) if number != result as i64 => Err(Error::eval(
            pos,
            format!(
                "{BUG} a loss of precision occurred in previous Nix versions because the NixInt argument {number} was \
                 rounded to {}.{FUTURE}",
                result as i64
            ),
        )),
        Kind::Float(number) if !fits => {
            let mut text = Vec::new();
            write_float(&mut text, number);
            let text = String::from_utf8_lossy(&text);
            Err(Error::eval(pos, format!("NixFloat argument {text} is not in the range of NixInt")))
        }
        _ => Ok(ev.heap.int(result as i64)),
    }
}

/// What an operation on two numbers does, and what its errors say.
struct Arithmetic {
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
    overflow: &'static str,
    sign: char,
    /// The trace of an error in the first argument, of integers and of floats.
    first: [&'static str; 2],
    second: &'static str,
}

impl Arithmetic {
    #[inline]
    fn apply<'a>(&self, ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
        let (left, right) = (ev.force(args[0])?, ev.force(args[1])?);
        if let (Kind::Int(a), Kind::Int(b)) = (left.kind(), right.kind()) {
            return match (self.ints)(a, b) {
                Some(result) => Ok(ev.heap.int(result)),
                None => Err(self.overflow(a, b, pos)),
            };
        }
        if matches!(left.kind(), Kind::Float(_)) || matches!(right.kind(), Kind::Float(_)) {
            let (a, b) = (ev.force_float(left, pos, self.first[1])?, ev.force_float(right, pos, self.second)?);
            return Ok(ev.heap.float((self.floats)(a, b)));
        }
        // One of them is no number, so this is an error; which one decides what it says.
        ev.force_int(left, pos, self.first[0])?;
        ev.force_int(right, pos, self.second).map(|number| ev.heap.int(number))
    }

    #[cold]
    fn overflow(&self, a: i64, b: i64, pos: Pos) -> Box<Error> {
        Error::eval(pos, format!("integer overflow in {} {a} {} {b}", self.overflow, self.sign))
    }
}

fn add<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    const ADDITION: Arithmetic = Arithmetic {
        ints: i64::checked_add,
        floats: |a, b| a + b,
        overflow: "adding",
        sign: '+',
        first: ["while evaluating the first argument of the addition"; 2],
        second: "while evaluating the second argument of the addition",
    };
    ADDITION.apply(ev, args, pos)
}

fn sub<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    const SUBTRACTION: Arithmetic = Arithmetic {
        ints: i64::checked_sub,
        floats: |a, b| a - b,
        overflow: "subtracting",
        sign: '-',
        first: ["while evaluating the first argument of the subtraction"; 2],
        second: "while evaluating the second argument of the subtraction",
    };
    SUBTRACTION.apply(ev, args, pos)
}

fn mul<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    const MULTIPLICATION: Arithmetic = Arithmetic {
        ints: i64::checked_mul,
        floats: |a, b| a * b,
        overflow: "multiplying",
        sign: '*',
        // Nix leaves a word out of the second.
        first: [
            "while evaluating the first argument of the multiplication",
            "while evaluating the first of the multiplication",
        ],
        second: "while evaluating the second argument of the multiplication",
    };
    MULTIPLICATION.apply(ev, args, pos)
}

fn div<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    const DIVISION: Arithmetic = Arithmetic {
        ints: i64::checked_div,
        floats: |a, b| a / b,
        overflow: "dividing",
        sign: '/',
        first: ["while evaluating the first operand of the division"; 2],
        second: "while evaluating the second operand of the division",
    };
    ev.force(args[0])?;
    if ev.force_float(args[1], pos, DIVISION.second)? == 0.0 {
        return Err(Error::eval(pos, "division by zero"));
    }
    DIVISION.apply(ev, args, pos)
}

fn bit_and<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let a = ev.force_int(args[0], pos, "while evaluating the first argument passed to builtins.bitAnd")?;
    let b = ev.force_int(args[1], pos, "while evaluating the second argument passed to builtins.bitAnd")?;
    Ok(ev.heap.int(a & b))
}

fn bit_or<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let a = ev.force_int(args[0], pos, "while evaluating the first argument passed to builtins.bitOr")?;
    let b = ev.force_int(args[1], pos, "while evaluating the second argument passed to builtins.bitOr")?;
    Ok(ev.heap.int(a | b))
}

fn bit_xor<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let a = ev.force_int(args[0], pos, "while evaluating the first argument passed to builtins.bitXor")?;
    let b = ev.force_int(args[1], pos, "while evaluating the second argument passed to builtins.bitXor")?;
    Ok(ev.heap.int(a ^ b))
}

fn less_than_builtin<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    // Nix forces both before it compares.
    let (a, b) = (ev.force(args[0])?, ev.force(args[1])?);
    less_than(ev, a, b, pos, "").map(Value::bool)
}

/// Whether `a` orders before `b`: numbers by value, strings and paths by their bytes, lists by the first elements that
/// differ. `context` is what the trace says if they can't be compared, nothing if it is empty.
///
/// # Errors
/// When they can't be compared, or what evaluating them gives.
pub(super) fn less_than<'a>(
    ev: &Evaluator<'a>,
    a: Value<'a>,
    b: Value<'a>,
    pos: Pos,
    context: &'static str,
) -> Result<bool> {
    let (mut a, mut b) = (ev.force(a)?, ev.force(b)?);
    // How deep in lists this is. A list's order is that of one pair of elements, so this needs no recursion.
    let mut depth = 0;
    let traced = |mut error: Box<Error>, depth: usize| {
        for _ in 0..depth {
            error = error.traced(Pos::NONE, "while comparing two list elements");
        }
        if context.is_empty() { error } else { error.traced(Pos::NONE, context) }
    };
    loop {
        return Ok(match (a.kind(), b.kind()) {
            (Kind::Int(a), Kind::Int(b)) => a < b,
            (Kind::Str(a), Kind::Str(b)) | (Kind::Path(a), Kind::Path(b)) => a.bytes() < b.bytes(),
            (Kind::Float(a), Kind::Int(b)) => a < b as f64,
            (Kind::Int(a), Kind::Float(b)) => (a as f64) < b,
            (Kind::Float(a), Kind::Float(b)) => a < b,
            (Kind::List(left), Kind::List(right)) => {
                let mut pairs = left.slots().iter().zip(right.slots());
                let differing = loop {
                    let Some((x, y)) = pairs.next() else { break None };
                    if !ev.equal(x.get(), y.get(), pos).map_err(|error| traced(error, depth))? {
                        break Some((x, y));
                    }
                };
                let Some((x, y)) = differing else { return Ok(left.len() < right.len()) };
                (a, b) = (ev.force_slot(x)?, ev.force_slot(y)?);
                depth += 1;
                continue;
            }
            _ => return Err(traced(incomparable(ev, a, b), depth)),
        });
    }
}

#[cold]
fn incomparable<'a>(ev: &Evaluator<'a>, a: Value<'a>, b: Value<'a>) -> Box<Error> {
    let is_function = |kind: Kind<'a>| matches!(kind, Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_));
    let same_type = std::mem::discriminant(&a.kind()) == std::mem::discriminant(&b.kind())
        || is_function(a.kind()) && is_function(b.kind());
    let (a_type, b_type) = (ev.type_of(a), ev.type_of(b));
    let (a, b) = (ev.show_for_error(a), ev.show_for_error(b));
    Error::eval(
        Pos::NONE,
        if same_type {
            format!(
                "cannot compare {a_type} with {b_type}; values of that type are incomparable (values are {a} and {b})"
            )
        } else {
            format!("cannot compare {a_type} with {b_type}; values are {a} and {b}")
        },
    )
}
