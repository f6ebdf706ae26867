//! Values and the arena that they live in.
//!
//! This is the crate's one module with `unsafe`. A [`Value`] is one machine word: a pointer into the arena with a tag in its low
//! three bits, or an immediate. Everything that it can point to lives in a [`bumpalo::Bump`] that outlives `'a` and is never
//! freed piecemeal, so a handle is `Copy` and never dangles.
//!
//! Invariants, on which every `unsafe` block below rests:
//! 1. A word with tag `T` holds a pointer that was made by the one constructor for `T` in this module, from an allocation of
//!    the arena of lifetime `'a` that is aligned to eight bytes and fully initialised. Nothing else makes words.
//! 2. Headers ([`List`], [`Attrs`], [`Keys`], [`Str`], [`Env`]) are followed by as many elements as their constructor was told;
//!    their raw pointers keep the provenance of the whole allocation. An [`Env`] does not store its length in release
//!    builds: slots come from the resolver, which counts them when it sizes the environment. Debug builds check.
//! 3. What is shared is only changed through [`Cell`]s, and the arena belongs to one thread (none of the types is `Send`).
#![allow(unsafe_code)]

use crate::expr::{Expr, LambdaExpr};
use crate::symbol::Symbol;
use bumpalo::Bump;
use rustc_hash::FxHashMap;
use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A position: an offset into the concatenation of all files read, 0 for none. See `position::Positions`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
#[repr(transparent)]
pub struct Pos(pub u32);

impl Pos {
    /// No position.
    pub const NONE: Pos = Pos(0);
}

const TAG_MASK: usize = 7;
const THUNK: usize = 0;
const ATTRS: usize = 1;
const LIST: usize = 2;
const STR: usize = 3;
const LAMBDA: usize = 4;
const BOXED: usize = 5;
const INT: usize = 6;
const CONST: usize = 7;

const NULL_CODE: usize = 1;
const FALSE_CODE: usize = 2;
const TRUE_CODE: usize = 3;
const UNSET_CODE: usize = 4;
const PRIM_OP_CODE: usize = 16;

/// A Nix value or the promise of one, in one word.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Value<'a> {
    word: NonNull<u8>,
    life: PhantomData<Cell<&'a ()>>,
}

/// What a [`Value`] is.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// Not evaluated yet, or evaluated since the handle was copied.
    Thunk(&'a Thunk<'a>),
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string with its context.
    Str(Str<'a>),
    /// An absolute path.
    Path(Str<'a>),
    /// A list.
    List(List<'a>),
    /// An attribute set.
    Attrs(Attrs<'a>),
    /// A function with its environment.
    Lambda(&'a Closure<'a>),
    /// A built-in function: its index in the table of builtins.
    PrimOp(u32),
    /// A built-in function with some of its arguments.
    PrimOpApp(&'a PrimOpApp<'a>),
}

/// A function with its environment.
pub struct Closure<'a> {
    /// The function.
    pub lambda: &'a LambdaExpr<'a>,
    /// Where it was made.
    pub env: Env<'a>,
}

/// A built-in function that still waits for arguments.
pub struct PrimOpApp<'a> {
    /// Its index in the table of builtins.
    pub prim_op: u32,
    /// The arguments so far.
    pub args: &'a [Value<'a>],
}

enum Boxed<'a> {
    Path(Str<'a>),
    Float(f64),
    Int(i64),
    App(PrimOpApp<'a>),
}

impl<'a> Value<'a> {
    /// `null`
    pub const NULL: Value<'a> = Value::constant(NULL_CODE);
    /// `true`
    pub const TRUE: Value<'a> = Value::constant(TRUE_CODE);
    /// `false`
    pub const FALSE: Value<'a> = Value::constant(FALSE_CODE);
    /// Marks a slot of an environment that has no value yet; never reaches a Nix program.
    pub const UNSET: Value<'a> = Value::constant(UNSET_CODE);

    /// A word that points nowhere.
    const fn immediate(word: usize) -> Self {
        let word = NonNull::new(std::ptr::without_provenance_mut(word)).expect("a tag is never zero");
        Value { word, life: PhantomData }
    }

    const fn constant(code: usize) -> Self {
        Value::immediate((code << 3) | CONST)
    }

    /// A Boolean.
    #[inline]
    pub fn bool(value: bool) -> Self {
        if value { Value::TRUE } else { Value::FALSE }
    }

    /// The built-in function with this index in the table of builtins.
    pub fn prim_op(index: u32) -> Self {
        Value::constant(PRIM_OP_CODE + index as usize)
    }

    #[inline]
    fn tagged<T>(pointer: NonNull<T>, tag: usize) -> Self {
        Value { word: pointer.cast::<u8>().map_addr(|address| address | tag), life: PhantomData }
    }

    #[inline]
    fn tag(self) -> usize {
        self.word.addr().get() & TAG_MASK
    }

    #[inline]
    fn pointer<T>(self) -> NonNull<T> {
        let pointer = self.word.as_ptr().map_addr(|address| address & !TAG_MASK);
        // SAFETY: only called for pointer tags; by invariant 1 the untagged address is that of an allocation, so not null.
        unsafe { NonNull::new_unchecked(pointer).cast() }
    }

    /// Whether both are the very same word: the same thunk, the same heap object or equal immediates.
    #[inline]
    pub fn same(self, other: Value<'a>) -> bool {
        self.word == other.word
    }

    /// A number that no other value in memory has at the same time; for immediates their encoding.
    #[inline]
    pub fn address(self) -> usize {
        self.word.addr().get()
    }

    /// Whether this marks a slot without a value.
    #[inline]
    pub fn is_unset(self) -> bool {
        self.same(Value::UNSET)
    }

    /// The thunk, if this is one (evaluated or not).
    #[inline]
    pub fn as_thunk(self) -> Option<&'a Thunk<'a>> {
        if self.tag() == THUNK {
            // SAFETY: invariant 1.
            Some(unsafe { self.pointer::<Thunk<'a>>().as_ref() })
        } else {
            None
        }
    }

    /// The attribute set, if this is one.
    #[inline]
    pub fn as_attrs(self) -> Option<Attrs<'a>> {
        if self.tag() == ATTRS { Some(Attrs(self.pointer())) } else { None }
    }

    /// The function, if this is a lambda.
    #[inline]
    pub fn as_lambda(self) -> Option<&'a Closure<'a>> {
        if self.tag() == LAMBDA {
            // SAFETY: invariant 1.
            Some(unsafe { self.pointer::<Closure<'a>>().as_ref() })
        } else {
            None
        }
    }

    /// The thunk's value if this is an evaluated thunk, else itself.
    #[inline]
    pub fn resolved(self) -> Value<'a> {
        match self.as_thunk() {
            Some(thunk) => thunk.value().unwrap_or(self),
            None => self,
        }
    }

    /// Whether a slot may keep this instead of the thunk that it came from. Functions keep their thunk, because Nix
    /// compares functions inside of lists and sets by the identity of the place that holds them.
    #[inline]
    pub fn may_replace_thunk(self) -> bool {
        match self.tag() {
            LAMBDA => false,
            CONST => self.word.addr().get() >> 3 < PRIM_OP_CODE,
            BOXED => !matches!(self.kind(), Kind::PrimOpApp(_)),
            _ => true,
        }
    }

    /// What this is.
    #[inline]
    pub fn kind(self) -> Kind<'a> {
        match self.tag() {
            // SAFETY: invariant 1, in this and the next arms.
            THUNK => Kind::Thunk(unsafe { self.pointer::<Thunk<'a>>().as_ref() }),
            ATTRS => Kind::Attrs(Attrs(self.pointer())),
            LIST => Kind::List(List(self.pointer())),
            STR => Kind::Str(Str(self.pointer(), PhantomData)),
            // SAFETY: as above.
            LAMBDA => Kind::Lambda(unsafe { self.pointer::<Closure<'a>>().as_ref() }),
            // SAFETY: as above.
            BOXED => match unsafe { self.pointer::<Boxed<'a>>().as_ref() } {
                Boxed::Path(path) => Kind::Path(*path),
                Boxed::Float(float) => Kind::Float(*float),
                Boxed::Int(int) => Kind::Int(*int),
                Boxed::App(app) => Kind::PrimOpApp(app),
            },
            INT => Kind::Int((self.word.addr().get() as i64) >> 3),
            _ => match self.word.addr().get() >> 3 {
                NULL_CODE => Kind::Null,
                FALSE_CODE => Kind::Bool(false),
                TRUE_CODE => Kind::Bool(true),
                UNSET_CODE => unreachable!("a slot was read before it was set"),
                code => Kind::PrimOp((code - PRIM_OP_CODE) as u32),
            },
        }
    }
}

impl<'a> From<Attrs<'a>> for Value<'a> {
    #[inline]
    fn from(attrs: Attrs<'a>) -> Self {
        Value::tagged(attrs.0, ATTRS)
    }
}

impl<'a> From<List<'a>> for Value<'a> {
    #[inline]
    fn from(list: List<'a>) -> Self {
        Value::tagged(list.0, LIST)
    }
}

impl<'a> From<Str<'a>> for Value<'a> {
    #[inline]
    fn from(text: Str<'a>) -> Self {
        Value::tagged(text.0, STR)
    }
}

impl<'a> From<&'a Thunk<'a>> for Value<'a> {
    #[inline]
    fn from(thunk: &'a Thunk<'a>) -> Self {
        Value::tagged(NonNull::from(thunk), THUNK)
    }
}

impl<'a> From<&'a Closure<'a>> for Value<'a> {
    #[inline]
    fn from(closure: &'a Closure<'a>) -> Self {
        Value::tagged(NonNull::from(closure), LAMBDA)
    }
}

/// A string: its bytes and the number of its context (see `context::Contexts`).
#[derive(Clone, Copy)]
pub struct Str<'a>(NonNull<StrHead>, PhantomData<&'a [u8]>);

#[repr(C)]
struct StrHead {
    len: u32,
    context: u32,
}

impl<'a> Str<'a> {
    /// Its bytes.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        // SAFETY: invariant 2: `len` bytes follow the header.
        unsafe {
            let len = (*self.0.as_ptr()).len as usize;
            std::slice::from_raw_parts(self.0.as_ptr().add(1).cast::<u8>(), len)
        }
    }

    /// The number of its context, 0 for none.
    #[inline]
    pub fn context(self) -> u32 {
        // SAFETY: invariant 2.
        unsafe { (*self.0.as_ptr()).context }
    }
}

/// A list.
#[derive(Clone, Copy)]
pub struct List<'a>(NonNull<Cell<Value<'a>>>);

impl<'a> List<'a> {
    /// Its elements. Whoever evaluates one may put the result into its cell.
    #[inline]
    pub fn cells(self) -> &'a [Cell<Value<'a>>] {
        // SAFETY: invariant 2: the first word is the length, that many cells follow.
        unsafe {
            let len = *self.0.as_ptr().cast::<usize>();
            std::slice::from_raw_parts(self.0.as_ptr().add(1), len)
        }
    }

    /// How many elements it has.
    #[inline]
    pub fn len(self) -> usize {
        self.cells().len()
    }

    /// Whether it has no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Its elements' values.
    #[inline]
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Value<'a>> + ExactSizeIterator {
        self.cells().iter().map(Cell::get)
    }
}

/// The names of an attribute set, sorted by symbol, each with the position of its definition. Sets with the same names from
/// the same place share them.
#[derive(Clone, Copy)]
pub struct Keys<'a>(NonNull<u32>, PhantomData<&'a [u32]>);

const KEYS_HEAD: usize = 2;

impl<'a> Keys<'a> {
    #[inline]
    fn len(self) -> usize {
        // SAFETY: invariant 2: the first word is the length.
        unsafe { *self.0.as_ptr() as usize }
    }

    /// The names, in ascending order of symbols.
    #[inline]
    pub fn symbols(self) -> &'a [Symbol] {
        // SAFETY: invariant 2: `len` symbols (each a `u32`, the type being a plain wrapper) follow the header.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(KEYS_HEAD).cast::<Symbol>(), self.len()) }
    }

    /// The names' positions.
    #[inline]
    pub fn positions(self) -> &'a [Pos] {
        // SAFETY: invariant 2: `len` positions follow the symbols.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(KEYS_HEAD + self.len()).cast::<Pos>(), self.len()) }
    }

    #[inline]
    fn find(self, symbol: Symbol) -> Option<usize> {
        let symbols = self.symbols();
        if symbols.len() <= 8 {
            return symbols.iter().position(|&other| other == symbol);
        }
        symbols.binary_search(&symbol).ok()
    }
}

/// An attribute set. `a // b` may be a layer with `b`'s attributes on top of `a`; see [`Heap::update`].
#[derive(Clone, Copy)]
pub struct Attrs<'a>(NonNull<AttrsHead<'a>>);

struct AttrsHead<'a> {
    keys: Cell<Keys<'a>>,
    values: Cell<NonNull<Cell<Value<'a>>>>,
    base: Cell<Option<Attrs<'a>>>,
}

/// The attributes of a set without layers, parallel slices sorted by symbol.
#[derive(Clone, Copy)]
pub struct Flat<'a> {
    /// Names.
    pub symbols: &'a [Symbol],
    /// Positions of the definitions.
    pub positions: &'a [Pos],
    /// Values. Whoever evaluates one may put the result into its cell.
    pub values: &'a [Cell<Value<'a>>],
    /// Names and positions, to make further sets with the same ones.
    pub keys: Keys<'a>,
}

impl<'a> Flat<'a> {
    /// How many attributes there are.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Name, position and cell of each attribute.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Symbol, Pos, &'a Cell<Value<'a>>)> + use<'a> {
        let (positions, values) = (self.positions, self.values);
        self.symbols.iter().enumerate().map(move |(index, &symbol)| (symbol, positions[index], &values[index]))
    }
}

impl<'a> Attrs<'a> {
    #[inline]
    fn head(self) -> &'a AttrsHead<'a> {
        // SAFETY: invariant 1.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn layer(self) -> Flat<'a> {
        let head = self.head();
        let keys = head.keys.get();
        // SAFETY: invariant 2: a set has as many values as keys.
        let values = unsafe { std::slice::from_raw_parts(head.values.get().as_ptr(), keys.len()) };
        Flat { symbols: keys.symbols(), positions: keys.positions(), values, keys }
    }

    /// The cell of an attribute.
    #[inline]
    pub fn get(self, symbol: Symbol) -> Option<&'a Cell<Value<'a>>> {
        self.find(symbol).map(|(cell, _)| cell)
    }

    /// The cell of an attribute and the position of its definition.
    #[inline]
    pub fn find(self, symbol: Symbol) -> Option<(&'a Cell<Value<'a>>, Pos)> {
        let mut current = self;
        loop {
            let head = current.head();
            let keys = head.keys.get();
            if let Some(index) = keys.find(symbol) {
                // SAFETY: invariant 2: a set has as many values as keys, and `find` gives an index below their number.
                let cell = unsafe { &*head.values.get().as_ptr().add(index) };
                return Some((cell, keys.positions()[index]));
            }
            current = head.base.get()?;
        }
    }

    /// Whether there are no attributes. (An empty set never gets a layer, and no layer is empty.)
    #[inline]
    pub fn is_empty(self) -> bool {
        self.head().keys.get().len() == 0
    }

    /// About how many attributes there are: those of the layers, not counted once where two have the same name.
    pub fn size_hint(self) -> usize {
        let mut size = 0;
        let mut current = Some(self);
        while let Some(attrs) = current {
            size += attrs.head().keys.get().len();
            current = attrs.head().base.get();
        }
        size
    }

    /// Its layers, at least 1.
    fn depth(self) -> usize {
        let mut depth = 1;
        let mut current = self;
        while let Some(base) = current.head().base.get() {
            depth += 1;
            current = base;
        }
        depth
    }
}

/// A deferred computation. After it was carried out it holds the result.
pub struct Thunk<'a> {
    state: Cell<*mut u8>,
    payload: Cell<NonNull<u8>>,
    life: PhantomData<Cell<&'a ()>>,
}

const STATE_EXPR: usize = 1;
const STATE_APP: usize = 2;
const STATE_NATIVE: usize = 3;
const STATE_MAP: usize = 4;
const BLACK_HOLE: *mut u8 = std::ptr::without_provenance_mut(8);

/// What a thunk stands for.
pub enum ThunkState<'a> {
    /// The value is known.
    Done(Value<'a>),
    /// An expression in an environment.
    Expr(&'a Expr<'a>, Env<'a>),
    /// A function's call with one argument.
    App(&'a Closure<'a>, Value<'a>),
    /// A function's call with the name and the value of the attribute at this index of a set.
    Map(&'a Mapping<'a>, usize),
    /// Something else.
    Native(&'a Suspension<'a>),
    /// It is being computed right now.
    BlackHole,
}

/// Deferred calls that are not written in the program.
pub enum Suspension<'a> {
    /// `f x`
    Call1(Value<'a>, Value<'a>),
    /// `f x y`
    Call2(Value<'a>, Value<'a>, Value<'a>),
    /// Whatever the evaluator registered under this number.
    Deferred(u32),
}

/// A function that is to be applied to each attribute of a set. The thunks of the resulting attributes share it.
pub struct Mapping<'a> {
    /// The function, which takes a name and a value.
    pub function: Value<'a>,
    /// The attributes.
    pub source: Flat<'a>,
}

/// What a thunk held before it became a black hole.
#[derive(Clone, Copy)]
pub struct SavedState(*mut u8);

impl<'a> Thunk<'a> {
    /// The value, if it is known.
    #[inline]
    pub fn value(&self) -> Option<Value<'a>> {
        if self.state.get().is_null() { Some(Value { word: self.payload.get(), life: PhantomData }) } else { None }
    }

    /// Takes the computation out and leaves a black hole, unless the value is known or the thunk is a black hole already.
    #[inline]
    pub fn enter(&self) -> (ThunkState<'a>, SavedState) {
        let state = self.state.get();
        let payload = self.payload.get();
        let saved = SavedState(state);
        if state.is_null() {
            return (ThunkState::Done(Value { word: payload, life: PhantomData }), saved);
        }
        if state == BLACK_HOLE {
            return (ThunkState::BlackHole, saved);
        }
        self.state.set(BLACK_HOLE);
        let pointer = state.map_addr(|address| address & !TAG_MASK);
        // SAFETY: the constructors in `Heap` pair each state's tag with a pointer to the type named here.
        let taken = unsafe {
            match state.addr() & TAG_MASK {
                STATE_EXPR => ThunkState::Expr(&*pointer.cast::<Expr<'a>>(), Env(payload.cast())),
                STATE_APP => {
                    ThunkState::App(&*pointer.cast::<Closure<'a>>(), Value { word: payload, life: PhantomData })
                }
                STATE_MAP => ThunkState::Map(&*pointer.cast::<Mapping<'a>>(), payload.addr().get() >> 3),
                _ => ThunkState::Native(&*pointer.cast::<Suspension<'a>>()),
            }
        };
        (taken, saved)
    }

    /// Records the result.
    #[inline]
    pub fn finish(&self, value: Value<'a>) {
        self.payload.set(value.word);
        self.state.set(std::ptr::null_mut());
    }

    /// Puts back what [`Thunk::enter`] took, after an error.
    pub fn restore(&self, saved: SavedState) {
        self.state.set(saved.0);
    }
}

/// An environment: the values of one scope's variables and the scope around it.
#[derive(Clone, Copy)]
pub struct Env<'a>(NonNull<EnvHead<'a>>);

struct EnvHead<'a> {
    life: PhantomData<Cell<&'a ()>>,
    up: Option<Env<'a>>,
    #[cfg(debug_assertions)]
    len: usize,
}

impl<'a> Env<'a> {
    #[inline]
    fn slot(self, index: u32) -> &'a Cell<Value<'a>> {
        // SAFETY: invariant 2; the resolver gives only slots that it has counted.
        unsafe {
            #[cfg(debug_assertions)]
            assert!((index as usize) < (*self.0.as_ptr()).len, "slot out of range");
            &*self.0.as_ptr().add(1).cast::<Cell<Value<'a>>>().add(index as usize)
        }
    }

    /// A variable's value, [`Value::UNSET`] if it has none yet.
    #[inline]
    pub fn get(self, index: u32) -> Value<'a> {
        self.slot(index).get()
    }

    /// Sets a variable.
    #[inline]
    pub fn set(self, index: u32, value: Value<'a>) {
        self.slot(index).set(value);
    }

    /// The environment `levels` further out.
    ///
    /// # Panics
    /// If there are fewer, which the resolver rules out.
    #[inline]
    pub fn up(self, levels: u32) -> Env<'a> {
        let mut env = self;
        for _ in 0..levels {
            // SAFETY: invariant 2.
            env = unsafe { (*env.0.as_ptr()).up }.expect("the resolver counts levels");
        }
        env
    }
}

/// Makes values in the arena.
pub struct Heap<'a> {
    bump: &'a Bump,
    empty_attrs: Attrs<'a>,
    empty_list: List<'a>,
    empty_string: Str<'a>,
    merge_buffer: RefCell<Vec<(Symbol, Pos, Value<'a>)>>,
    /// By the keys of the layers that were merged, the uppermost first: the result's. The same sets meet again and again.
    /// By a set's keys and 0: the same names without positions.
    merged_keys: RefCell<FxHashMap<Box<[usize]>, Keys<'a>>>,
}

/// How many layers a set has at most. (C++ Nix: 8; ours are cheaper to look through than to copy.)
const MAX_LAYERS: usize = 16;
/// A set with more attributes than this is merged, not laid on top.
const MAX_LAYER_SIZE: usize = 64;
/// Unless what it would lie on is this many times as large.
const LAYER_RATIO: usize = 2;

impl<'a> Heap<'a> {
    /// Makes values in `bump`.
    pub fn new(bump: &'a Bump) -> Self {
        let keys = alloc_keys(bump, 0);
        let words = alloc_words(bump, 3);
        // SAFETY: three fresh words hold the header; no values follow.
        let empty_attrs = unsafe {
            words.cast::<AttrsHead<'a>>().write(AttrsHead {
                keys: Cell::new(keys),
                values: Cell::new(NonNull::dangling()),
                base: Cell::new(None),
            });
            Attrs(words.cast())
        };
        Heap {
            bump,
            empty_attrs,
            empty_list: alloc_list(bump, 0),
            empty_string: alloc_str(bump, &[&[]], 0),
            merge_buffer: RefCell::new(Vec::new()),
            merged_keys: RefCell::default(),
        }
    }

    /// The arena.
    #[inline]
    pub fn arena(&self) -> &'a Bump {
        self.bump
    }

    /// An integer.
    #[inline]
    pub fn int(&self, value: i64) -> Value<'a> {
        let shifted = value << 3;
        if shifted >> 3 == value {
            Value::immediate((shifted as usize) | INT)
        } else {
            Value::tagged(NonNull::from(self.bump.alloc(Boxed::Int(value))), BOXED)
        }
    }

    /// A floating-point number.
    pub fn float(&self, value: f64) -> Value<'a> {
        Value::tagged(NonNull::from(self.bump.alloc(Boxed::Float(value))), BOXED)
    }

    /// A string without context.
    pub fn string(&self, bytes: &[u8]) -> Value<'a> {
        self.string_with_context(bytes, 0)
    }

    /// A string with the context of this number.
    pub fn string_with_context(&self, bytes: &[u8], context: u32) -> Value<'a> {
        if bytes.is_empty() && context == 0 {
            return self.empty_string.into();
        }
        alloc_str(self.bump, &[bytes], context).into()
    }

    /// The string of all parts one after the other.
    pub fn string_of_parts(&self, parts: &[&[u8]], context: u32) -> Value<'a> {
        alloc_str(self.bump, parts, context).into()
    }

    /// An absolute path; the caller made it canonical.
    pub fn path(&self, bytes: &[u8]) -> Value<'a> {
        let text = alloc_str(self.bump, &[bytes], 0);
        Value::tagged(NonNull::from(self.bump.alloc(Boxed::Path(text))), BOXED)
    }

    /// A built-in function with some of its arguments.
    pub fn prim_op_app(&self, prim_op: u32, done: &[Value<'a>], more: &[Value<'a>]) -> Value<'a> {
        let args = self.bump.alloc_slice_fill_with(done.len() + more.len(), |index| {
            *done.get(index).unwrap_or_else(|| &more[index - done.len()])
        });
        Value::tagged(NonNull::from(self.bump.alloc(Boxed::App(PrimOpApp { prim_op, args }))), BOXED)
    }

    /// A function.
    #[inline]
    pub fn lambda(&self, lambda: &'a LambdaExpr<'a>, env: Env<'a>) -> Value<'a> {
        (&*self.bump.alloc(Closure { lambda, env })).into()
    }

    #[inline]
    fn thunk<T>(&self, state: &'a T, tag: usize, payload: NonNull<u8>) -> Value<'a> {
        const { assert!(align_of::<T>() >= 8) };
        let state = NonNull::from(state).cast::<u8>().as_ptr().map_addr(|address| address | tag);
        (&*self.bump.alloc(Thunk { state: Cell::new(state), payload: Cell::new(payload), life: PhantomData })).into()
    }

    /// An expression for later.
    #[inline]
    pub fn thunk_of_expr(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Value<'a> {
        self.thunk(expr, STATE_EXPR, env.0.cast())
    }

    /// `function argument`, for later.
    #[inline]
    pub fn thunk_of_call(&self, function: Value<'a>, argument: Value<'a>) -> Value<'a> {
        match function.resolved().as_lambda() {
            Some(closure) => self.thunk(closure, STATE_APP, argument.word),
            None => self.thunk_of_suspension(Suspension::Call1(function, argument)),
        }
    }

    /// A call for each attribute, for later: the set with the same names and the results.
    pub fn map_attrs(&self, function: Value<'a>, source: Flat<'a>) -> Attrs<'a> {
        let mapping: &'a Mapping<'a> = self.bump.alloc(Mapping { function, source });
        // Not the set's own keys: the result's attributes have no positions. No keys are at address 0.
        let shape = Box::from([source.keys.0.addr().get(), 0]);
        let keys = *self
            .merged_keys
            .borrow_mut()
            .entry(shape)
            .or_insert_with(|| self.keys(source.symbols.iter().map(|&symbol| (symbol, Pos::NONE))));
        self.attrs_with_keys(keys, |index| self.thunk(mapping, STATE_MAP, self.int(index as i64).word))
    }

    /// Another deferred computation.
    pub fn thunk_of_suspension(&self, suspension: Suspension<'a>) -> Value<'a> {
        let suspension: &'a Suspension<'a> = self.bump.alloc(suspension);
        self.thunk(suspension, STATE_NATIVE, Value::UNSET.word)
    }

    /// An environment with `len` variables, none of them set.
    #[inline]
    pub fn env(&self, up: Option<Env<'a>>, len: usize) -> Env<'a> {
        let head = size_of::<EnvHead<'a>>() / 8;
        let words = alloc_words(self.bump, head + len);
        // SAFETY: the words are fresh; header and all slots are written before the handle is given out.
        unsafe {
            words.cast::<EnvHead<'a>>().write(EnvHead {
                life: PhantomData,
                up,
                #[cfg(debug_assertions)]
                len,
            });
            let slots = words.add(head).cast::<Value<'a>>();
            for index in 0..len {
                slots.add(index).write(Value::UNSET);
            }
        }
        Env(words.cast())
    }

    /// `[ ]`
    pub fn empty_list(&self) -> List<'a> {
        self.empty_list
    }

    /// A list of `len` elements, of which each gets what `element` gives for its index.
    ///
    /// # Errors
    /// The first of `element`'s.
    pub fn try_list<E>(
        &self,
        len: usize,
        mut element: impl FnMut(usize) -> Result<Value<'a>, E>,
    ) -> Result<List<'a>, E> {
        if len == 0 {
            return Ok(self.empty_list);
        }
        let list = alloc_list(self.bump, len);
        for (index, cell) in list.cells().iter().enumerate() {
            cell.set(element(index)?);
        }
        Ok(list)
    }

    /// A list of `len` elements, of which each gets what `element` gives for its index.
    pub fn list_with(&self, len: usize, mut element: impl FnMut(usize) -> Value<'a>) -> List<'a> {
        match self.try_list(len, |index| Ok::<_, std::convert::Infallible>(element(index))) {
            Ok(list) => list,
        }
    }

    /// A list of these values.
    pub fn list(&self, values: &[Value<'a>]) -> List<'a> {
        self.list_with(values.len(), |index| values[index])
    }

    /// `{ }`
    pub fn empty_attrs(&self) -> Attrs<'a> {
        self.empty_attrs
    }

    /// The keys of sets with these attributes, which must be sorted by symbol and have no duplicates.
    pub fn keys(&self, sorted: impl ExactSizeIterator<Item = (Symbol, Pos)>) -> Keys<'a> {
        let keys = alloc_keys(self.bump, sorted.len());
        let len = keys.len();
        for (index, (symbol, pos)) in sorted.enumerate().take(len) {
            // SAFETY: invariant 2: `len` symbols and `len` positions follow the header, and `index < len`.
            unsafe {
                keys.0.as_ptr().add(KEYS_HEAD + index).write(symbol.0);
                keys.0.as_ptr().add(KEYS_HEAD + len + index).write(pos.0);
            }
        }
        debug_assert!(keys.symbols().is_sorted_by(|a, b| a < b), "keys must be sorted and unique");
        keys
    }

    /// A set with these keys, of which each gets what `value` gives for its index.
    #[inline]
    pub fn attrs_with_keys(&self, keys: Keys<'a>, mut value: impl FnMut(usize) -> Value<'a>) -> Attrs<'a> {
        let len = keys.len();
        if len == 0 {
            return self.empty_attrs;
        }
        let words = alloc_words(self.bump, 3 + len);
        // SAFETY: the words are fresh; all values and the header are written before the handle is given out.
        unsafe {
            let values = words.add(3).cast::<Value<'a>>();
            for index in 0..len {
                values.add(index).write(Value::UNSET);
            }
            for index in 0..len {
                values.add(index).write(value(index));
            }
            words.cast::<AttrsHead<'a>>().write(AttrsHead {
                keys: Cell::new(keys),
                values: Cell::new(values.cast()),
                base: Cell::new(None),
            });
        }
        Attrs(words.cast())
    }

    /// A set of these attributes, which must be sorted by symbol and have no duplicates.
    pub fn attrs_sorted(&self, sorted: &[(Symbol, Pos, Value<'a>)]) -> Attrs<'a> {
        if sorted.is_empty() {
            return self.empty_attrs;
        }
        let keys = self.keys(sorted.iter().map(|&(symbol, pos, _)| (symbol, pos)));
        self.attrs_with_keys(keys, |index| sorted[index].2)
    }

    /// A set of these attributes in any order; of several with one name the first counts.
    pub fn attrs(&self, entries: &mut Vec<(Symbol, Pos, Value<'a>)>) -> Attrs<'a> {
        entries.sort_by_key(|entry| entry.0);
        entries.dedup_by_key(|entry| entry.0);
        self.attrs_sorted(entries)
    }

    /// All attributes of a set. A layered set is merged in place first.
    #[inline]
    pub fn flat(&self, attrs: Attrs<'a>) -> Flat<'a> {
        if attrs.head().base.get().is_some() {
            self.flatten(attrs);
        }
        attrs.layer()
    }

    #[cold]
    fn flatten(&self, attrs: Attrs<'a>) {
        let mut layers = vec![attrs];
        while let Some(base) = layers[layers.len() - 1].head().base.get() {
            layers.push(base);
        }
        let flat = self.merged(&layers);
        attrs.head().keys.set(flat.head().keys.get());
        attrs.head().values.set(flat.head().values.get());
        attrs.head().base.set(None);
    }

    /// One set with the attributes of all these layers, each without what it lies on. The first has precedence.
    fn merged(&self, layers: &[Attrs<'a>]) -> Attrs<'a> {
        let mut merged = self.merge_buffer.take();
        let mut other = Vec::new();
        merged.clear();
        for (index, layer) in layers.iter().enumerate() {
            if index == 0 {
                merged.extend(layer.layer().iter().map(|(symbol, pos, cell)| (symbol, pos, cell.get())));
            } else {
                std::mem::swap(&mut merged, &mut other);
                merged.clear();
                merge(layer.layer(), &other, &mut merged);
            }
        }
        let shape: Box<[usize]> = layers.iter().map(|layer| layer.head().keys.get().0.addr().get()).collect();
        let keys = *self
            .merged_keys
            .borrow_mut()
            .entry(shape)
            .or_insert_with(|| self.keys(merged.iter().map(|&(symbol, pos, _)| (symbol, pos))));
        let result = self.attrs_with_keys(keys, |index| merged[index].2);
        self.merge_buffer.replace(merged);
        result
    }

    /// A set with the attributes of `upper`'s own layer on top of `base`.
    fn layered(&self, upper: Attrs<'a>, base: Attrs<'a>) -> Attrs<'a> {
        let words = alloc_words(self.bump, 3);
        // SAFETY: three fresh words hold the header; the values are those of `upper`, which has as many as keys.
        unsafe {
            words.cast::<AttrsHead<'a>>().write(AttrsHead {
                keys: Cell::new(upper.head().keys.get()),
                values: Cell::new(upper.head().values.get()),
                base: Cell::new(Some(base)),
            });
        }
        Attrs(words.cast())
    }

    /// `left // right`
    pub fn update(&self, left: Attrs<'a>, right: Attrs<'a>) -> Attrs<'a> {
        if left.is_empty() {
            return right;
        }
        if right.is_empty() {
            return left;
        }
        let right_len = self.flat(right).len();
        if right_len > MAX_LAYER_SIZE && right_len * LAYER_RATIO > left.size_hint() {
            self.flat(left);
            return self.merged(&[right, left]);
        }
        if left.depth() < MAX_LAYERS {
            return self.layered(right, left);
        }
        // All layers but the lowest, which is the largest as a rule, become one.
        let mut layers = vec![right, left];
        while let Some(base) = layers[layers.len() - 1].head().base.get() {
            layers.push(base);
        }
        let lowest = layers[layers.len() - 1];
        let upper_len: usize = layers[..layers.len() - 1].iter().map(|layer| layer.layer().len()).sum();
        if upper_len * 2 > lowest.layer().len() {
            return self.merged(&layers);
        }
        self.layered(self.merged(&layers[..layers.len() - 1]), lowest)
    }
}

/// Merges two sorted sequences; where both have a name, `upper` wins.
fn merge<'a>(lower: Flat<'a>, upper: &[(Symbol, Pos, Value<'a>)], into: &mut Vec<(Symbol, Pos, Value<'a>)>) {
    let mut upper = upper.iter().copied().peekable();
    for (symbol, pos, cell) in lower.iter() {
        while let Some(entry) = upper.next_if(|entry| entry.0 < symbol) {
            into.push(entry);
        }
        match upper.next_if(|entry| entry.0 == symbol) {
            Some(entry) => into.push(entry),
            None => into.push((symbol, pos, cell.get())),
        }
    }
    into.extend(upper);
}

#[inline]
fn alloc_words(bump: &Bump, words: usize) -> NonNull<u64> {
    // A length here is that of something in memory or smaller than 2^32, so the size fits.
    let layout = Layout::from_size_align(words * 8, 8).expect("a size below isize::MAX");
    bump.alloc_layout(layout).cast()
}

fn alloc_list<'a>(bump: &'a Bump, len: usize) -> List<'a> {
    let words = alloc_words(bump, len + 1);
    // SAFETY: the words are fresh; length and all elements are written before the handle is given out.
    unsafe {
        words.cast::<usize>().write(len);
        for index in 0..len {
            words.add(1 + index).cast::<Value<'a>>().write(Value::UNSET);
        }
    }
    List(words.cast())
}

fn alloc_str<'a>(bump: &'a Bump, parts: &[&[u8]], context: u32) -> Str<'a> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let short = u32::try_from(len).expect("strings are shorter than 4 GiB");
    let words = alloc_words(bump, 1 + len.div_ceil(8));
    // SAFETY: the words are fresh and hold the header and `len` bytes, all written here.
    unsafe {
        words.cast::<StrHead>().write(StrHead { len: short, context });
        let mut at = words.add(1).cast::<u8>();
        for part in parts {
            std::ptr::copy_nonoverlapping(part.as_ptr(), at.as_ptr(), part.len());
            at = at.add(part.len());
        }
    }
    Str(words.cast(), PhantomData)
}

fn alloc_keys<'a>(bump: &'a Bump, len: usize) -> Keys<'a> {
    let short = u32::try_from(len).expect("sets have fewer than 2^32 attributes");
    let words = alloc_words(bump, 1 + len);
    // SAFETY: the words are fresh: one of header, then `len` symbols and `len` positions, zeroed here.
    unsafe {
        let halves = words.cast::<u32>();
        for index in 0..2 * len + KEYS_HEAD {
            halves.add(index).write(0);
        }
        halves.write(short);
    }
    Keys(words.cast(), PhantomData)
}
