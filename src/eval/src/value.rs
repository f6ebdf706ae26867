//! Values and how they lie in memory.
//!
//! A [`Value`] is one machine word: a pointer into the arena with a tag in its low three bits, or an immediate. Everything
//! that it can point to lives in an arena that outlives `'a` and is never freed piecemeal, so a handle is `Copy` and never
//! dangles. What lies in the arena refers to the rest of it in half a word, an offset from the start of the arena, which
//! is found from the address of what refers; so a value in memory ([`Slot`]) takes four bytes.
//!
//! Invariants, on which every `unsafe` block below rests:
//! 1. A word with tag `T` holds a pointer that was made by the one constructor for `T` in this module, from an allocation of
//!    the arena of lifetime `'a` that is aligned to eight bytes and fully initialised. Nothing else makes words. Of an
//!    immediate only the lower half means anything.
//! 2. Headers ([`List`], [`Attrs`], `Keys`, [`Str`], `Env`) are followed by as many elements as their constructor was told.
//!    An `Env` does not store its length in release builds: slots come from the resolver, which counts them when it
//!    sizes the environment. Debug builds check.
//! 3. What holds an offset ([`Slot`], `Near` and what is made of them) lies in the arena that the offset is for: they have
//!    constructors in this module only, which write into the arena. `'a` is invariant and belongs to one arena, so what is
//!    in one can't get into another. Expressions, too, are only made in the evaluator's arena.
//! 4. What is shared is only changed through [`Cell`]s, and the arena belongs to one thread (none of the types is `Send`).
#![allow(unsafe_code)]

use crate::arena::{Arena, REGION};
use crate::expr::{Expr, LambdaExpr};
use crate::symbol::Symbol;
use rustc_hash::FxHashMap;
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

    /// This position, or if it is none, another.
    #[inline]
    pub(crate) fn or(self, other: Pos) -> Pos {
        if self == Pos::NONE { other } else { self }
    }
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

/// Where the arena starts in which this lies.
#[inline]
fn region_of<T>(place: *const T) -> usize {
    place.addr() & !(REGION - 1)
}

/// The pointer that `offset` stands for in the arena in which `place` lies.
#[inline]
fn near<T, U>(place: *const T, offset: u32) -> *mut U {
    std::ptr::with_exposed_provenance_mut(region_of(place) | offset as usize)
}

/// A value in the arena, in half a word.
#[repr(transparent)]
pub struct Slot<'a> {
    half: Cell<u32>,
    life: PhantomData<Cell<&'a ()>>,
}

impl<'a> Slot<'a> {
    /// The value.
    #[inline]
    pub fn get(&self) -> Value<'a> {
        // Miri's arenas start where they can, which would go into an immediate's lower half.
        if cfg!(miri) && matches!(self.half.get() as usize & TAG_MASK, INT | CONST) {
            return Value::immediate(self.half.get() as usize);
        }
        // SAFETY: no arena starts at address 0, so the sum is not 0 (invariant 3 makes it the word that was set).
        let word = unsafe { NonNull::new_unchecked(near(self, self.half.get())) };
        Value { word, life: PhantomData }
    }

    /// Puts another value there.
    #[inline]
    pub fn set(&self, value: Value<'a>) {
        debug_assert!(!value.is_pointer() || region_of(self) == region_of(value.word.as_ptr()), "from another arena");
        self.half.set(value.half());
    }
}

/// A reference from one thing in the arena to another, in half a word.
struct Near<'a, T> {
    offset: Cell<u32>,
    life: PhantomData<Cell<&'a T>>,
}

impl<'a, T> Near<'a, T> {
    #[inline]
    fn new(target: NonNull<T>) -> Self {
        Near { offset: Cell::new(target.addr().get() as u32), life: PhantomData }
    }

    /// Only for what lies in the arena itself: `self` must not be a copy on the stack.
    #[inline]
    fn get(&self) -> NonNull<T> {
        // SAFETY: as for `Slot::get`.
        unsafe { NonNull::new_unchecked(near(self, self.offset.get())) }
    }
}

/// A function with its environment.
pub struct Closure<'a> {
    lambda: Near<'a, LambdaExpr<'a>>,
    env: Near<'a, EnvHead<'a>>,
}

impl<'a> Closure<'a> {
    /// The function.
    #[inline]
    pub(crate) fn lambda(&'a self) -> &'a LambdaExpr<'a> {
        // SAFETY: invariant 3.
        unsafe { self.lambda.get().as_ref() }
    }

    /// Where it was made.
    #[inline]
    pub(crate) fn env(&'a self) -> Env<'a> {
        Env(self.env.get())
    }
}

/// A built-in function that still waits for arguments.
pub struct PrimOpApp<'a> {
    /// Its index in the table of builtins.
    pub(crate) prim_op: u32,
    /// The arguments so far.
    pub(crate) args: &'a [Value<'a>],
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
    pub(crate) const UNSET: Value<'a> = Value::constant(UNSET_CODE);

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
    pub(crate) fn prim_op(index: u32) -> Self {
        Value::constant(PRIM_OP_CODE + index as usize)
    }

    #[inline]
    fn tagged<T>(pointer: NonNull<T>, tag: usize) -> Self {
        Value { word: pointer.cast::<u8>().map_addr(|address| address | tag), life: PhantomData }
    }

    #[inline]
    fn half(self) -> u32 {
        self.word.addr().get() as u32
    }

    #[inline]
    fn is_pointer(self) -> bool {
        !matches!(self.tag(), INT | CONST)
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
    pub(crate) fn same(self, other: Value<'a>) -> bool {
        self.half() == other.half()
    }

    /// A number that no other value in memory has at the same time; for immediates their encoding.
    #[inline]
    pub(crate) fn address(self) -> usize {
        self.half() as usize
    }

    /// Whether this marks a slot without a value.
    #[inline]
    pub(crate) fn is_unset(self) -> bool {
        self.same(Value::UNSET)
    }

    /// The thunk, if this is one (evaluated or not).
    #[inline]
    pub(crate) fn as_thunk(self) -> Option<&'a Thunk<'a>> {
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
    pub(crate) fn as_lambda(self) -> Option<&'a Closure<'a>> {
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
    pub(crate) fn may_replace_thunk(self) -> bool {
        match self.tag() {
            LAMBDA => false,
            CONST => self.half() as usize >> 3 < PRIM_OP_CODE,
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
            LIST => Kind::List(List(self.pointer(), PhantomData)),
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
            INT => Kind::Int(i64::from(self.half() as i32 >> 3)),
            _ => match self.half() as usize >> 3 {
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
pub struct Str<'a>(NonNull<StrHead>, PhantomData<Cell<&'a ()>>);

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
pub struct List<'a>(NonNull<u32>, PhantomData<Cell<&'a ()>>);

impl<'a> List<'a> {
    /// Its elements. Whoever evaluates one may put the result into its slot.
    #[inline]
    pub fn slots(self) -> &'a [Slot<'a>] {
        // SAFETY: invariant 2: the first half word is the length, that many slots follow.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(1).cast(), self.len()) }
    }

    /// How many elements it has.
    #[inline]
    pub fn len(self) -> usize {
        // SAFETY: invariant 2.
        unsafe { *self.0.as_ptr() as usize }
    }

    /// Whether it has no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Its elements' values.
    #[inline]
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Value<'a>> + ExactSizeIterator {
        self.slots().iter().map(Slot::get)
    }
}

/// The names of an attribute set, sorted by symbol, each with the position of its definition. Sets with the same names from
/// the same place share them.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a>(NonNull<u32>, PhantomData<Cell<&'a ()>>);

/// The length, and the offset of the same names without positions, 0 as long as there is none.
const KEYS_HEAD: usize = 2;

impl<'a> Keys<'a> {
    #[inline]
    fn offset(self) -> u32 {
        self.0.addr().get() as u32
    }

    #[inline]
    fn len(self) -> usize {
        // SAFETY: invariant 2: the first word is the length.
        unsafe { *self.0.as_ptr() as usize }
    }

    /// Where the offset of the same names without positions is.
    #[inline]
    fn bare(self) -> &'a Cell<u32> {
        // SAFETY: invariant 2: the header's second half word, which is only accessed through this.
        unsafe { &*self.0.as_ptr().add(1).cast::<Cell<u32>>() }
    }

    /// The names, in ascending order of symbols.
    #[inline]
    pub(crate) fn symbols(self) -> &'a [Symbol] {
        // SAFETY: invariant 2: `len` symbols (each a `u32`, the type being a plain wrapper) follow the header.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(KEYS_HEAD).cast::<Symbol>(), self.len()) }
    }

    /// The names' positions.
    #[inline]
    pub(crate) fn positions(self) -> &'a [Pos] {
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

/// A set without a base is followed by its values, and this is all of the header that it has: [`PLAIN_HEAD`]. Else
/// `keys` has [`LAYERED`] added and the header is whole.
#[repr(C)]
struct AttrsHead<'a> {
    /// The offset of the names.
    keys: Cell<u32>,
    /// The offset of the values, which belong to another set.
    values: Cell<u32>,
    /// The offset of the set that this one lies on, 0 for none.
    base: Cell<u32>,
    life: PhantomData<Cell<&'a ()>>,
}

const PLAIN_HEAD: usize = 1;
const LAYERED: u32 = 1;

/// The attributes of a set without layers, parallel slices sorted by symbol.
#[derive(Clone, Copy)]
pub struct Flat<'a> {
    /// Names.
    pub symbols: &'a [Symbol],
    /// Positions of the definitions.
    pub positions: &'a [Pos],
    /// Values. Whoever evaluates one may put the result into its slot.
    pub values: &'a [Slot<'a>],
    /// Names and positions, to make further sets with the same ones.
    pub(crate) keys: Keys<'a>,
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

    /// Name, position and slot of each attribute.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Symbol, Pos, &'a Slot<'a>)> + use<'a> {
        let (positions, values) = (self.positions, self.values);
        self.symbols.iter().enumerate().map(move |(index, &symbol)| (symbol, positions[index], &values[index]))
    }
}

impl<'a> Attrs<'a> {
    /// The keys and the values of the set itself, and what it lies on.
    #[inline]
    fn parts(self) -> (Keys<'a>, NonNull<Slot<'a>>, Option<Attrs<'a>>) {
        let head = self.0.as_ptr();
        // SAFETY: invariants 2 and 3: the first half word is always there, the others if it says so. All offsets are of
        // something in this arena, so none is 0.
        unsafe {
            let keys = (*head.cast::<Cell<u32>>()).get();
            if keys & LAYERED == 0 {
                let keys = Keys(NonNull::new_unchecked(near(head, keys)), PhantomData);
                return (keys, self.0.cast::<Slot<'a>>().add(PLAIN_HEAD), None);
            }
            let keys = Keys(NonNull::new_unchecked(near(head, keys & !LAYERED)), PhantomData);
            let values = NonNull::new_unchecked(near(head, (*head).values.get()));
            let base = (*head).base.get();
            let base = if base == 0 { None } else { Some(Attrs(NonNull::new_unchecked(near(head, base)))) };
            (keys, values, base)
        }
    }

    #[inline]
    fn keys(self) -> Keys<'a> {
        self.parts().0
    }

    /// What it lies on.
    #[inline]
    fn base(self) -> Option<Attrs<'a>> {
        self.parts().2
    }

    #[inline]
    fn layer(self) -> Flat<'a> {
        let (keys, values, _) = self.parts();
        // SAFETY: invariant 2: a set has as many values as keys.
        let values = unsafe { std::slice::from_raw_parts(values.as_ptr(), keys.len()) };
        Flat { symbols: keys.symbols(), positions: keys.positions(), values, keys }
    }

    /// The slot of an attribute.
    #[inline]
    pub fn get(self, symbol: Symbol) -> Option<&'a Slot<'a>> {
        self.find(symbol).map(|(slot, _)| slot)
    }

    /// The slot of an attribute and the position of its definition.
    #[inline]
    pub fn find(self, symbol: Symbol) -> Option<(&'a Slot<'a>, Pos)> {
        let mut current = self;
        loop {
            let (keys, values, base) = current.parts();
            if let Some(index) = keys.find(symbol) {
                // SAFETY: invariant 2: a set has as many values as keys, and `find` gives an index below their number.
                let slot = unsafe { values.add(index).as_ref() };
                return Some((slot, keys.positions()[index]));
            }
            current = base?;
        }
    }

    /// Whether there are no attributes. (An empty set never gets a layer, and no layer is empty.)
    #[inline]
    pub fn is_empty(self) -> bool {
        self.keys().len() == 0
    }

    /// The set and those that it lies on, the uppermost first.
    fn layers(self) -> impl Iterator<Item = Attrs<'a>> {
        std::iter::successors(Some(self), |attrs| attrs.base())
    }

    /// About how many attributes there are: those of the layers, not counted once where two have the same name.
    pub(crate) fn size_hint(self) -> usize {
        self.layers().map(|layer| layer.keys().len()).sum()
    }
}

/// A deferred computation. After it was carried out it holds the result.
pub struct Thunk<'a> {
    /// The offset of what describes the computation, with a tag; 0 when the result is known.
    state: Cell<u32>,
    /// The result, or a value or the offset of an environment that the computation needs.
    payload: Slot<'a>,
}

const STATE_TAG: u32 = TAG_MASK as u32;
const STATE_EXPR: u32 = 1;
const STATE_APP: u32 = 2;
const STATE_NATIVE: u32 = 3;
const STATE_MAP: u32 = 4;
/// Nothing lies at that offset.
const BLACK_HOLE: u32 = 8;

/// What a thunk stands for.
pub(crate) enum ThunkState<'a> {
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
pub(crate) enum Suspension<'a> {
    /// `f x`
    Call1(Value<'a>, Value<'a>),
    /// `f x y`
    Call2(Value<'a>, Value<'a>, Value<'a>),
    /// Whatever the evaluator registered under this number.
    Deferred(u32),
    /// What has failed already.
    Failed,
}

/// A function that is to be applied to each attribute of a set. The thunks of the resulting attributes share it.
pub(crate) struct Mapping<'a> {
    /// The function, which takes a name and a value.
    pub(crate) function: Value<'a>,
    /// The attributes.
    pub(crate) source: Flat<'a>,
}

/// What a thunk held before it became a black hole.
#[derive(Clone, Copy)]
pub(crate) struct SavedState(u32);

impl<'a> Thunk<'a> {
    /// The value, if it is known.
    #[inline]
    pub fn value(&self) -> Option<Value<'a>> {
        if self.state.get() == 0 { Some(self.payload.get()) } else { None }
    }

    /// The function, if the computation is a call of one.
    #[inline]
    pub(crate) fn function(&self) -> Option<&'a Closure<'a>> {
        let state = self.state.get();
        if state & STATE_TAG != STATE_APP {
            return None;
        }
        // SAFETY: as in `enter`.
        Some(unsafe { &*near::<_, Closure<'a>>(self, state & !STATE_TAG) })
    }

    /// Takes the computation out and leaves a black hole, unless the value is known or the thunk is a black hole already.
    /// Deferred calls stay as they are: where one needs itself, it is not it that notices, as in C++ Nix.
    #[inline]
    pub(crate) fn enter(&self) -> (ThunkState<'a>, SavedState) {
        let state = self.state.get();
        let saved = SavedState(state);
        if state == 0 {
            return (ThunkState::Done(self.payload.get()), saved);
        }
        if state == BLACK_HOLE {
            return (ThunkState::BlackHole, saved);
        }
        let pointer: *mut u8 = near(self, state & !STATE_TAG);
        // SAFETY: the constructors in `Heap` pair each state's tag with the offset of the type named here.
        let taken = unsafe {
            match state & STATE_TAG {
                STATE_EXPR => {
                    self.state.set(BLACK_HOLE);
                    ThunkState::Expr(&*pointer.cast::<Expr<'a>>(), Env(self.payload.get().word.cast()))
                }
                STATE_APP => ThunkState::App(&*pointer.cast::<Closure<'a>>(), self.payload.get()),
                STATE_MAP => ThunkState::Map(&*pointer.cast::<Mapping<'a>>(), self.payload.get().half() as usize >> 3),
                _ => {
                    let suspension = &*pointer.cast::<Suspension<'a>>();
                    if !matches!(suspension, Suspension::Call1(..) | Suspension::Call2(..)) {
                        self.state.set(BLACK_HOLE);
                    }
                    ThunkState::Native(suspension)
                }
            }
        };
        (taken, saved)
    }

    /// Records the result.
    #[inline]
    pub(crate) fn finish(&self, value: Value<'a>) {
        self.payload.set(value);
        self.state.set(0);
    }

    /// Puts back what [`Thunk::enter`] took, after an error.
    pub(crate) fn restore(&self, saved: SavedState) {
        self.state.set(saved.0);
    }
}

/// An environment: the values of one scope's variables and the scope around it.
#[derive(Clone, Copy)]
pub(crate) struct Env<'a>(NonNull<EnvHead<'a>>);

#[repr(C)]
struct EnvHead<'a> {
    /// The offset of the environment further out, 0 for none.
    up: u32,
    #[cfg(debug_assertions)]
    len: u32,
    life: PhantomData<Cell<&'a ()>>,
}

/// The length of an environment's header in half words.
const ENV_HEAD: usize = size_of::<EnvHead<'static>>() / 4;

impl<'a> Env<'a> {
    #[inline]
    fn slot(self, index: u32) -> &'a Slot<'a> {
        // SAFETY: invariant 2; the resolver gives only slots that it has counted.
        unsafe {
            #[cfg(debug_assertions)]
            assert!(index < (*self.0.as_ptr()).len, "slot out of range");
            &*self.0.as_ptr().cast::<Slot<'a>>().add(ENV_HEAD + index as usize)
        }
    }

    /// A variable's value, [`Value::UNSET`] if it has none yet.
    #[inline]
    pub(crate) fn get(self, index: u32) -> Value<'a> {
        self.slot(index).get()
    }

    /// Sets a variable.
    #[inline]
    pub(crate) fn set(self, index: u32, value: Value<'a>) {
        self.slot(index).set(value);
    }

    /// The environment around it.
    #[inline]
    pub(crate) fn outer(self) -> Option<Env<'a>> {
        // SAFETY: invariants 2 and 3.
        let up = unsafe { (*self.0.as_ptr()).up };
        // SAFETY: as for `Slot::get`.
        (up != 0).then(|| Env(unsafe { NonNull::new_unchecked(near(self.0.as_ptr(), up)) }))
    }

    /// The environment `levels` further out.
    ///
    /// # Panics
    /// If there are fewer, which the resolver rules out.
    #[inline(always)]
    pub(crate) fn up(self, levels: u32) -> Env<'a> {
        let mut env = self;
        for _ in 0..levels {
            // SAFETY: invariants 2 and 3.
            let up = unsafe { (*env.0.as_ptr()).up };
            assert!(up != 0, "the resolver counts levels");
            // SAFETY: as for `Slot::get`.
            env = Env(unsafe { NonNull::new_unchecked(near(env.0.as_ptr(), up)) });
        }
        env
    }
}

/// Makes values in the arena.
pub struct Heap<'a> {
    arena: &'a Arena,
    empty_attrs: Attrs<'a>,
    empty_list: List<'a>,
    empty_string: Str<'a>,
    /// How sets are made from others, as the same names meet again and again: by the offsets of the keys of the layers that
    /// are merged, the uppermost first; and by 0, the offset of a set's keys and the symbols that are removed.
    recipes: RefCell<FxHashMap<Box<[u32]>, Recipe<'a>>>,
    shape_buffer: RefCell<Vec<u32>>,
}

/// How a set is made from others: it depends on their names only.
struct Recipe<'a> {
    keys: Keys<'a>,
    /// Where the value of each comes from.
    places: Box<[Place]>,
}

/// A place in one of several sets.
#[derive(Clone, Copy)]
struct Place {
    source: u32,
    index: u32,
}

impl Place {
    fn slot<'a>(self, sources: &[Flat<'a>]) -> &'a Slot<'a> {
        &sources[self.source as usize].values[self.index as usize]
    }
}

/// How many layers a set has at most. (C++ Nix: 8; ours are cheaper to look through than to copy.)
const MAX_LAYERS: usize = 16;
/// A set with more attributes than this is merged, not laid on top.
const MAX_LAYER_SIZE: usize = 64;
/// Unless what it would lie on is this many times as large.
const LAYER_RATIO: usize = 2;

impl<'a> Heap<'a> {
    /// Makes values in `arena`.
    pub(crate) fn new(arena: &'a Arena) -> Self {
        let keys = alloc_keys(arena, 0);
        Heap {
            arena,
            empty_attrs: alloc_attrs(arena, keys),
            empty_list: alloc_list(arena, 0),
            empty_string: alloc_str(arena, &[&[]], 0),
            recipes: RefCell::default(),
            shape_buffer: RefCell::default(),
        }
    }

    /// The arena.
    #[inline]
    pub(crate) fn arena(&self) -> &'a Arena {
        self.arena
    }

    /// An integer.
    #[inline]
    pub fn int(&self, value: i64) -> Value<'a> {
        let short = value as i32;
        if i64::from(short << 3 >> 3) == value {
            Value::immediate(((short << 3) as u32 as usize) | INT)
        } else {
            Value::tagged(NonNull::from(self.arena.alloc(Boxed::Int(value))), BOXED)
        }
    }

    /// A floating-point number.
    pub fn float(&self, value: f64) -> Value<'a> {
        Value::tagged(NonNull::from(self.arena.alloc(Boxed::Float(value))), BOXED)
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
        alloc_str(self.arena, &[bytes], context).into()
    }

    /// The string of all parts one after the other.
    pub fn string_of_parts(&self, parts: &[&[u8]], context: u32) -> Value<'a> {
        alloc_str(self.arena, parts, context).into()
    }

    /// An absolute path; the caller made it canonical.
    pub fn path(&self, bytes: &[u8]) -> Value<'a> {
        let text = alloc_str(self.arena, &[bytes], 0);
        Value::tagged(NonNull::from(self.arena.alloc(Boxed::Path(text))), BOXED)
    }

    /// A built-in function with some of its arguments.
    pub(crate) fn prim_op_app(&self, prim_op: u32, done: &[Value<'a>], more: &[Value<'a>]) -> Value<'a> {
        let args = self.arena.alloc_slices_copy(done, more);
        Value::tagged(NonNull::from(self.arena.alloc(Boxed::App(PrimOpApp { prim_op, args }))), BOXED)
    }

    /// A function.
    #[inline]
    pub(crate) fn lambda(&self, lambda: &'a LambdaExpr<'a>, env: Env<'a>) -> Value<'a> {
        self.arena.alloc(Closure { lambda: Near::new(NonNull::from(lambda)), env: Near::new(env.0) }).into()
    }

    /// `payload` is a value or the pointer of an environment.
    #[inline]
    fn thunk<T>(&self, state: &'a T, tag: u32, payload: NonNull<u8>) -> Value<'a> {
        debug_assert!(self.arena.holds(state), "what a thunk refers to lies in the arena");
        debug_assert!(std::ptr::from_ref(state).addr() & TAG_MASK == 0, "and starts at a multiple of eight");
        let half = Cell::new(payload.addr().get() as u32);
        let thunk = Thunk {
            state: Cell::new(std::ptr::from_ref(state).addr() as u32 | tag),
            payload: Slot { half, life: PhantomData },
        };
        self.arena.alloc(thunk).into()
    }

    /// An expression for later.
    #[inline]
    pub(crate) fn thunk_of_expr(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Value<'a> {
        // An expression may stand in the middle of a slice.
        const { assert!(align_of::<Expr<'_>>() >= 8) };
        self.thunk(expr, STATE_EXPR, env.0.cast())
    }

    /// `function argument`, for later.
    #[inline]
    pub(crate) fn thunk_of_call(&self, function: Value<'a>, argument: Value<'a>) -> Value<'a> {
        match function.resolved().as_lambda() {
            Some(closure) => self.thunk(closure, STATE_APP, argument.word),
            None => self.thunk_of_suspension(Suspension::Call1(function, argument)),
        }
    }

    /// The same names without positions.
    fn bare_keys(&self, keys: Keys<'a>) -> Keys<'a> {
        let known = keys.bare().get();
        if known != 0 {
            // SAFETY: the offset was written below and is that of keys in this arena.
            return Keys(unsafe { NonNull::new_unchecked(near(keys.0.as_ptr(), known)) }, PhantomData);
        }
        let bare = self.keys(keys.symbols().iter().map(|&symbol| (symbol, Pos::NONE)));
        bare.bare().set(bare.offset());
        keys.bare().set(bare.offset());
        bare
    }

    /// A call for each attribute, for later: the set with the same names and the results.
    pub(crate) fn map_attrs(&self, function: Value<'a>, source: Flat<'a>) -> Attrs<'a> {
        let mapping = self.arena.alloc(Mapping { function, source });
        self.attrs_with_keys(self.bare_keys(source.keys), |index| {
            self.thunk(mapping, STATE_MAP, self.int(index as i64).word)
        })
    }

    /// Another deferred computation.
    pub(crate) fn thunk_of_suspension(&self, suspension: Suspension<'a>) -> Value<'a> {
        let suspension = self.arena.alloc(suspension);
        self.thunk(suspension, STATE_NATIVE, Value::UNSET.word)
    }

    /// An environment with `len` variables, none of them set.
    #[inline]
    pub(crate) fn env(&self, up: Option<Env<'a>>, len: usize) -> Env<'a> {
        let halves = alloc_halves(self.arena, ENV_HEAD + len);
        // SAFETY: the memory is fresh; header and all slots are written before the handle is given out.
        unsafe {
            halves.cast::<EnvHead<'a>>().write(EnvHead {
                up: up.map_or(0, |up| up.0.addr().get() as u32),
                #[cfg(debug_assertions)]
                len: len as u32,
                life: PhantomData,
            });
            fill_unset(halves.add(ENV_HEAD), len);
        }
        Env(halves.cast())
    }

    /// An environment of `len` variables like `known`, of which it takes over the first ones.
    #[inline]
    pub(crate) fn env_after(&self, known: Env<'a>, taken: u32, len: usize) -> Env<'a> {
        let env = self.env(known.outer(), len);
        for slot in 0..taken {
            env.set(slot, known.get(slot));
        }
        env
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
        let list = alloc_list(self.arena, len);
        for (index, slot) in list.slots().iter().enumerate() {
            slot.set(element(index)?);
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
    pub(crate) fn keys(&self, sorted: impl ExactSizeIterator<Item = (Symbol, Pos)>) -> Keys<'a> {
        let keys = alloc_keys(self.arena, sorted.len());
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
    pub(crate) fn attrs_with_keys(&self, keys: Keys<'a>, mut value: impl FnMut(usize) -> Value<'a>) -> Attrs<'a> {
        if keys.len() == 0 {
            return self.empty_attrs;
        }
        let attrs = alloc_attrs(self.arena, keys);
        for (index, slot) in attrs.layer().values.iter().enumerate() {
            slot.set(value(index));
        }
        attrs
    }

    /// A set of these attributes, which must be sorted by symbol and have no duplicates.
    pub(crate) fn attrs_sorted(&self, sorted: &[(Symbol, Pos, Value<'a>)]) -> Attrs<'a> {
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
        if attrs.base().is_some() {
            self.flatten(attrs);
        }
        attrs.layer()
    }

    #[cold]
    fn flatten(&self, attrs: Attrs<'a>) {
        let layers: Vec<Flat<'a>> = attrs.layers().map(Attrs::layer).collect();
        let (keys, values, _) = self.merged(&layers).parts();
        // SAFETY: invariant 2: it has a base, so its header is whole.
        let head = unsafe { attrs.0.as_ref() };
        head.keys.set(keys.0.addr().get() as u32 | LAYERED);
        head.values.set(values.addr().get() as u32);
        head.base.set(0);
    }

    /// One set with the attributes of all these. The first has precedence.
    fn merged(&self, layers: &[Flat<'a>]) -> Attrs<'a> {
        self.made_of(layers, layers.iter().map(|layer| layer.keys.offset()), || {
            let mut all: Vec<(Symbol, Place)> = Vec::new();
            for (source, layer) in (0..).zip(layers) {
                all.extend((0..).zip(layer.symbols).map(|(index, symbol)| (*symbol, Place { source, index })));
            }
            // stable, so that of those with the same name the uppermost comes first
            all.sort_by_key(|(symbol, _)| *symbol);
            all.dedup_by_key(|(symbol, _)| *symbol);
            all.into_iter().map(|(_, place)| place).collect()
        })
    }

    /// A set without these attributes, which are sorted and which it has.
    pub(crate) fn without(&self, flat: Flat<'a>, removed: &[Symbol]) -> Attrs<'a> {
        let shape = [0, flat.keys.offset()].into_iter().chain(removed.iter().map(|symbol| symbol.0));
        self.made_of(&[flat], shape, || {
            let all = (0..).zip(flat.symbols);
            let kept = all.filter(|(_, symbol)| removed.binary_search(symbol).is_err());
            kept.map(|(index, _)| Place { source: 0, index }).collect()
        })
    }

    /// A set of attributes of `sources`, by the recipe that is known by `shape`, or else with what `choose` chooses, sorted
    /// by symbol.
    fn made_of(
        &self,
        sources: &[Flat<'a>],
        shape: impl Iterator<Item = u32>,
        choose: impl FnOnce() -> Box<[Place]>,
    ) -> Attrs<'a> {
        let mut buffer = self.shape_buffer.take();
        buffer.clear();
        buffer.extend(shape);
        let mut recipes = self.recipes.borrow_mut();
        let make =
            |recipe: &Recipe<'a>| self.attrs_with_keys(recipe.keys, |index| recipe.places[index].slot(sources).get());
        let made = if let Some(recipe) = recipes.get(buffer.as_slice()) {
            make(recipe)
        } else {
            let places = choose();
            let attribute = |place: &Place| {
                let Flat { symbols, positions, .. } = sources[place.source as usize];
                (symbols[place.index as usize], positions[place.index as usize])
            };
            let recipe = Recipe { keys: self.keys(places.iter().map(attribute)), places };
            let made = make(&recipe);
            recipes.insert(buffer.as_slice().into(), recipe);
            made
        };
        self.shape_buffer.replace(buffer);
        made
    }

    /// A set with the attributes of `upper`'s own layer on top of `base`.
    fn layered(&self, upper: Attrs<'a>, base: Attrs<'a>) -> Attrs<'a> {
        let (keys, values, _) = upper.parts();
        let head = self.arena.alloc(AttrsHead {
            keys: Cell::new(keys.offset() | LAYERED),
            values: Cell::new(values.addr().get() as u32),
            base: Cell::new(base.0.addr().get() as u32),
            life: PhantomData,
        });
        Attrs(NonNull::from(head))
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
            return self.merged(&[self.flat(right), self.flat(left)]);
        }
        if left.layers().count() < MAX_LAYERS {
            return self.layered(right, left);
        }
        // All layers but the lowest, which is the largest as a rule, become one.
        let own = |layers: &[Attrs<'a>]| layers.iter().map(|layer| layer.layer()).collect::<Vec<_>>();
        let layers: Vec<Attrs<'a>> = std::iter::once(right).chain(left.layers()).collect();
        let (lowest, upper) = (layers[layers.len() - 1], &layers[..layers.len() - 1]);
        let upper_len: usize = upper.iter().map(|layer| layer.keys().len()).sum();
        if upper_len * 2 > lowest.keys().len() {
            return self.merged(&own(&layers));
        }
        self.layered(self.merged(&own(upper)), lowest)
    }
}

#[inline]
fn alloc_halves(arena: &Arena, len: usize) -> NonNull<u32> {
    arena.bytes(len * 4).cast()
}

/// Makes `len` half words the slots of no value.
///
/// # Safety
/// They must be fresh memory.
#[inline]
unsafe fn fill_unset(start: NonNull<u32>, len: usize) {
    for index in 0..len {
        // SAFETY: the caller's.
        unsafe { start.add(index).write(Value::UNSET.half()) };
    }
}

fn alloc_list<'a>(arena: &'a Arena, len: usize) -> List<'a> {
    let short = u32::try_from(len).expect("lists have fewer than 2^32 elements");
    let halves = alloc_halves(arena, len + 1);
    // SAFETY: the memory is fresh; length and all elements are written before the handle is given out.
    unsafe {
        halves.write(short);
        fill_unset(halves.add(1), len);
    }
    List(halves, PhantomData)
}

/// A set without a base; no attribute has a value yet.
#[inline]
fn alloc_attrs<'a>(arena: &'a Arena, keys: Keys<'a>) -> Attrs<'a> {
    let halves = alloc_halves(arena, PLAIN_HEAD + keys.len());
    // SAFETY: the memory is fresh; the header and all slots are written before the handle is given out.
    unsafe {
        halves.write(keys.offset());
        fill_unset(halves.add(PLAIN_HEAD), keys.len());
    }
    Attrs(halves.cast())
}

fn alloc_str<'a>(arena: &'a Arena, parts: &[&[u8]], context: u32) -> Str<'a> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let short = u32::try_from(len).expect("strings are shorter than 4 GiB");
    let head = arena.bytes(size_of::<StrHead>() + len).cast::<StrHead>();
    // SAFETY: the memory is fresh and holds the header and `len` bytes, all written here.
    unsafe {
        head.write(StrHead { len: short, context });
        let mut at = head.add(1).cast::<u8>();
        for part in parts {
            std::ptr::copy_nonoverlapping(part.as_ptr(), at.as_ptr(), part.len());
            at = at.add(part.len());
        }
    }
    Str(head, PhantomData)
}

fn alloc_keys<'a>(arena: &'a Arena, len: usize) -> Keys<'a> {
    let short = u32::try_from(len).expect("sets have fewer than 2^32 attributes");
    let halves = alloc_halves(arena, KEYS_HEAD + 2 * len);
    // SAFETY: the memory is fresh: two half words of header, then `len` symbols and `len` positions, zeroed here.
    unsafe {
        halves.write(short);
        halves.add(1).write(0);
        halves.add(KEYS_HEAD).write_bytes(0, 2 * len);
    }
    Keys(halves, PhantomData)
}

#[cfg(test)]
mod tests;
