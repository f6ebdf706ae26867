use super::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a set should hold: by symbol, the position and the number that is the value.
type Model = BTreeMap<u32, (u32, i64)>;

fn with_heap(body: impl for<'a> FnOnce(&Heap<'a>)) {
    let arena = Arena::new(REGION / 64).expect("there are addresses");
    body(&Heap::new(&arena));
}

fn int(value: Value<'_>) -> i64 {
    match value.kind() {
        Kind::Int(number) => number,
        _ => panic!("no integer"),
    }
}

fn set<'a>(heap: &Heap<'a>, model: &Model) -> Attrs<'a> {
    // In descending order: the heap sorts.
    let entries = model.iter().rev().map(|(&symbol, &(pos, number))| (Symbol(symbol), Pos(pos), heap.int(number)));
    heap.attrs(&mut entries.collect())
}

/// Asserts that a set holds what the model does, by name and as a whole; the latter flattens it.
fn assert_holds<'a>(heap: &Heap<'a>, attrs: Attrs<'a>, model: &Model) {
    let lookup = |symbol: u32| attrs.find(Symbol(symbol)).map(|(slot, pos)| (pos.0, int(slot.get())));
    let last = model.keys().next_back().map_or(0, |last| last + 2);
    for symbol in 0..last {
        assert_eq!(lookup(symbol), model.get(&symbol).copied(), "symbol {symbol}");
    }
    assert_eq!(attrs.is_empty(), model.is_empty());
    let flat = heap.flat(attrs);
    assert_eq!(flat.len(), model.len());
    let entries: Model = flat.iter().map(|(symbol, pos, slot)| (symbol.0, (pos.0, int(slot.get())))).collect();
    assert_eq!(&entries, model);
    assert!(flat.symbols.is_sorted());
    assert_eq!(lookup(last), None);
}

#[test]
fn integers_up_to_29_bits_need_no_memory() {
    with_heap(|heap| {
        let edge = 1i64 << 28;
        for number in [0, 1, -1, edge - 1, -edge] {
            let used = heap.arena().used();
            assert_eq!(int(heap.int(number)), number);
            assert_eq!(heap.arena().used(), used, "{number}");
        }
        for number in [edge, -edge - 1, i32::MAX.into(), i32::MIN.into(), 1 << 32, i64::MAX, i64::MIN] {
            let used = heap.arena().used();
            assert_eq!(int(heap.int(number)), number);
            assert!(heap.arena().used() > used, "{number}");
        }
        assert!(heap.int(5).same(heap.int(5)) && !heap.int(5).same(heap.int(6)));
    });
}

#[test]
fn constants_are_themselves() {
    assert!(matches!(Value::NULL.kind(), Kind::Null));
    assert!(matches!(Value::bool(true).kind(), Kind::Bool(true)));
    assert!(matches!(Value::bool(false).kind(), Kind::Bool(false)));
    assert!(matches!(Value::prim_op(3).kind(), Kind::PrimOp(3)));
    assert!(Value::UNSET.is_unset() && !Value::NULL.is_unset());
    assert!(Value::NULL.may_replace_thunk() && !Value::prim_op(0).may_replace_thunk());
}

#[test]
fn scalars_in_memory() {
    with_heap(|heap| {
        for number in [0.0, -1.5, f64::INFINITY, f64::MIN_POSITIVE] {
            assert!(matches!(heap.float(number).kind(), Kind::Float(float) if float == number));
        }
        assert!(matches!(heap.path(b"/etc").kind(), Kind::Path(path) if path.bytes() == b"/etc"));
        for bytes in [&b""[..], b"x", b"four", b"\xff not UTF-8 \xfe", &[b'a'; 1000]] {
            for context in [0, 9] {
                let Kind::Str(text) = heap.string_with_context(bytes, context).kind() else { panic!("no string") };
                assert_eq!((text.bytes(), text.context()), (bytes, context));
            }
        }
        let Kind::Str(text) = heap.string_of_parts(&[b"a", b"", b"bc"], 1).kind() else { panic!("no string") };
        assert_eq!((text.bytes(), text.context()), (&b"abc"[..], 1));
        let used = heap.arena().used();
        heap.string(b"");
        assert_eq!(heap.arena().used(), used);
    });
}

#[test]
fn lists_keep_their_order_and_take_other_elements() {
    with_heap(|heap| {
        assert!(heap.empty_list().is_empty() && heap.list(&[]).slots().is_empty());
        for len in [1, 2, 3, 100] {
            let list = heap.list_with(len, |index| heap.int(index as i64));
            assert_eq!(list.len(), len);
            assert_eq!(list.iter().map(int).collect::<Vec<_>>(), (0..len as i64).collect::<Vec<_>>());
            list.slots()[len - 1].set(heap.int(i64::MAX));
            assert_eq!(list.iter().next_back().map(int), Some(i64::MAX));
        }
        let nested = heap.list(&[heap.list(&[Value::NULL]).into(), heap.empty_list().into()]);
        let lengths = nested.iter().map(|inner| match inner.kind() {
            Kind::List(inner) => inner.len(),
            _ => panic!("no list"),
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [1, 0]);
        let failed = heap.try_list(3, |index| if index < 2 { Ok(Value::NULL) } else { Err(index) });
        assert_eq!(failed.err(), Some(2));
    });
}

#[test]
fn sets_are_looked_up_by_name() {
    with_heap(|heap| {
        assert_holds(heap, heap.empty_attrs(), &Model::new());
        // Up to eight names are searched one after the other, more by halves.
        for len in [1, 7, 8, 9, 40] {
            let model: Model = (0..len).map(|index| (index * 2 + 1, (index, i64::from(index) - 5))).collect();
            assert_holds(heap, set(heap, &model), &model);
        }
        let twice = &mut vec![(Symbol(4), Pos(1), heap.int(1)), (Symbol(4), Pos(2), heap.int(2))];
        assert_holds(heap, heap.attrs(twice), &[(4, (1, 1))].into());
        let value: Value<'_> = set(heap, &[(1, (1, 1))].into()).into();
        assert!(value.as_attrs().is_some() && value.as_lambda().is_none() && value.as_thunk().is_none());
    });
}

#[test]
fn more_layers_than_a_set_may_have() {
    with_heap(|heap| {
        let mut model: Model = (0..40).map(|index| (index, (index, 0))).collect();
        let mut attrs = set(heap, &model);
        let mut states = vec![(attrs, model.clone())];
        for round in 0..3 * MAX_LAYERS as u32 {
            // One that is there already and one that is new.
            let upper = [(round, (round + 100, 1)), (round + 40, (round + 200, i64::from(round)))].into();
            attrs = heap.update(attrs, set(heap, &upper));
            model.extend(upper);
            assert!(attrs.layers().count() <= MAX_LAYERS);
            states.push((attrs, model.clone()));
        }
        assert!(states.iter().any(|(attrs, _)| attrs.layers().count() == MAX_LAYERS));
        // Also those whose layers others lie on.
        for (attrs, model) in &states {
            assert_holds(heap, *attrs, model);
            assert_eq!(attrs.layers().count(), 1);
            assert_holds(heap, *attrs, model);
        }
    });
}

#[test]
fn updates_are_those_of_a_map() {
    let rounds = if cfg!(miri) { 10 } else { 300 };
    with_heap(|heap| {
        // A linear congruential generator: the same numbers each time.
        let mut state = 1u64;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % below
        };
        let mut sets = vec![(heap.empty_attrs(), Model::new())];
        for _ in 0..rounds {
            let len = if random(4) == 0 { 2 * MAX_LAYER_SIZE as u32 } else { random(12) };
            let model: Model = (0..len).map(|_| (random(300), (random(1000), i64::from(random(1000))))).collect();
            sets.push((set(heap, &model), model));
            let (left, right) = (random(sets.len() as u32) as usize, random(sets.len() as u32) as usize);
            let mut model = sets[left].1.clone();
            model.extend(&sets[right].1);
            let attrs = heap.update(sets[left].0, sets[right].0);
            if random(3) == 0 {
                assert_holds(heap, attrs, &model);
            }
            sets.push((attrs, model));
        }
        for (attrs, model) in &sets {
            assert_holds(heap, *attrs, model);
        }
    });
}

#[test]
fn sets_that_are_made_alike_share_their_names() {
    with_heap(|heap| {
        let lower = set(heap, &[(1, (1, 1)), (3, (3, 3))].into());
        let upper = set(heap, &[(2, (2, 2))].into());
        let [a, b] = [(); 2].map(|()| heap.flat(heap.update(lower, upper)));
        assert_eq!(a.symbols.as_ptr(), b.symbols.as_ptr());
        assert_ne!(a.values.as_ptr(), b.values.as_ptr());
    });
}

/// An expression and an environment to make thunks of.
fn expr<'a>(heap: &Heap<'a>) -> (&'a Expr<'a>, Env<'a>) {
    (heap.arena().alloc(Expr::Const(Value::NULL)), heap.env(None, 1))
}

fn lambda<'a>(heap: &Heap<'a>) -> (&'a LambdaExpr<'a>, Env<'a>) {
    let body = Expr::Const(Value::TRUE);
    let lambda =
        LambdaExpr { pos: Pos(17), name: None, arg: None, formals: None, body, index: 0, slots: 1, rest: None };
    (heap.arena().alloc(lambda), heap.env(None, 2))
}

#[test]
fn a_thunk_is_taken_restored_and_finished() {
    with_heap(|heap| {
        let (expr, env) = expr(heap);
        let value = heap.thunk_of_expr(expr, env);
        let thunk = value.as_thunk().expect("it is a thunk");
        assert!(thunk.value().is_none() && thunk.function().is_none());
        assert!(value.resolved().same(value));
        let (state, saved) = thunk.enter();
        let ThunkState::Expr(taken, taken_env) = state else { panic!("another state") };
        assert!(std::ptr::eq(taken, expr) && taken_env.0 == env.0);
        // Who asks for it now has asked for it in its own computation; and that stays so.
        for _ in 0..2 {
            let (state, black) = thunk.enter();
            assert!(matches!(state, ThunkState::BlackHole) && thunk.value().is_none());
            thunk.restore(black);
        }
        thunk.restore(saved);
        assert!(matches!(thunk.enter().0, ThunkState::Expr(..)));
        thunk.finish(heap.int(5));
        assert_eq!(thunk.value().map(int), Some(5));
        assert!(matches!(thunk.enter().0, ThunkState::Done(value) if int(value) == 5));
        assert_eq!(int(value.resolved()), 5);
    });
}

#[test]
fn a_thunk_can_be_any_deferred_computation() {
    with_heap(|heap| {
        let (lambda, env) = lambda(heap);
        let function = heap.lambda(lambda, env);
        let call = heap.thunk_of_call(function, heap.int(1 << 40));
        let thunk = call.as_thunk().expect("it is a thunk");
        assert!(thunk.function().is_some_and(|closure| closure.lambda().pos == Pos(17)));
        let (ThunkState::App(closure, argument), _) = thunk.enter() else { panic!("another state") };
        assert!(std::ptr::eq(closure.lambda(), lambda) && int(argument) == 1 << 40);

        let builtin = heap.thunk_of_call(Value::prim_op(1), Value::NULL);
        let thunk = builtin.as_thunk().expect("it is a thunk");
        let (ThunkState::Native(Suspension::Call1(function, _)), _) = thunk.enter() else { panic!("another state") };
        assert!(function.same(Value::prim_op(1)));

        let deferred = heap.thunk_of_suspension(Suspension::Deferred(8));
        let thunk = deferred.as_thunk().expect("it is a thunk");
        assert!(matches!(thunk.enter().0, ThunkState::Native(Suspension::Deferred(8))));
    });
}

#[test]
fn a_mapped_set_has_the_names_without_positions() {
    with_heap(|heap| {
        let (lambda, env) = lambda(heap);
        let function = heap.lambda(lambda, env);
        let source = set(heap, &[(1, (10, 100)), (2, (20, 200))].into());
        let mapped = heap.map_attrs(function, heap.flat(source));
        for (index, (symbol, pos, slot)) in heap.flat(mapped).iter().enumerate() {
            assert_eq!((symbol, pos), (Symbol(index as u32 + 1), Pos::NONE));
            let value = slot.get();
            let thunk = value.as_thunk().expect("it is a thunk");
            let (ThunkState::Map(mapping, at), _) = thunk.enter() else { panic!("another state") };
            assert_eq!(at, index);
            assert!(mapping.function.same(function));
            assert_eq!(int(mapping.source.values[at].get()), (index as i64 + 1) * 100);
        }
        let again = heap.map_attrs(function, heap.flat(source));
        assert_eq!(heap.flat(again).symbols.as_ptr(), heap.flat(mapped).symbols.as_ptr());
    });
}

#[test]
fn environments_lead_outwards() {
    with_heap(|heap| {
        let outer = heap.env(None, 3);
        let middle = heap.env(Some(outer), 0);
        let inner = heap.env(Some(middle), 1);
        assert!((0..3).all(|slot| outer.get(slot).is_unset()) && inner.get(0).is_unset());
        outer.set(2, heap.int(7));
        inner.set(0, heap.int(8));
        assert_eq!((int(inner.up(2).get(2)), int(inner.up(0).get(0))), (7, 8));
        assert!(outer.get(1).is_unset());
        assert!(catch_unwind(AssertUnwindSafe(|| inner.up(3).get(0).same(Value::NULL))).is_err());
    });
}

#[test]
fn functions_know_where_they_were_made() {
    with_heap(|heap| {
        let (lambda, env) = lambda(heap);
        env.set(1, heap.int(3));
        let function = heap.lambda(lambda, env);
        let closure = function.as_lambda().expect("it is a function");
        assert!(std::ptr::eq(closure.lambda(), lambda));
        assert_eq!(int(closure.env().get(1)), 3);
        assert!(!function.may_replace_thunk());
        let app = heap.prim_op_app(4, &[heap.int(1)], &[Value::NULL, function]);
        let Kind::PrimOpApp(app) = app.kind() else { panic!("no application") };
        assert_eq!((app.prim_op, app.args.len(), int(app.args[0])), (4, 3, 1));
        assert!(app.args[2].same(function));
    });
}

#[test]
fn a_heap_that_is_full_panics_before_it_writes() {
    with_heap(|heap| {
        let list = heap.list(&[heap.int(1), heap.int(2)]);
        let too_many = 1 << 30;
        assert!(catch_unwind(AssertUnwindSafe(|| heap.list_with(too_many, |_| Value::NULL).len())).is_err());
        assert_eq!(list.iter().map(int).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(int(heap.int(1 << 40)), 1 << 40);
    });
}
