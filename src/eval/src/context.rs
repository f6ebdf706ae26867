//! String contexts: what a string refers to in the store. Contexts are interned: a string carries a number.

use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::rc::Rc;

/// One thing that a string refers to. Paths are base names in the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Element {
    /// A store path: a source, or a derivation as a file.
    Opaque(Rc<str>),
    /// A derivation with everything that it was built from.
    DrvDeep(Rc<str>),
    /// An output of a derivation.
    Built {
        /// The derivation.
        drv: Derived,
        /// The output's name.
        output: Rc<str>,
    },
}

/// Where a derivation comes from: it is in the store, or it is itself an output of one (dynamic derivations).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Derived {
    /// A store path.
    Path(Rc<str>),
    /// An output of another derivation.
    Output(Rc<Derived>, Rc<str>),
}

/// A set of elements by number; 0 is the empty one.
pub type Context = u32;

/// All contexts of an evaluation.
pub struct Contexts {
    elements: RefCell<Vec<Element>>,
    element_index: RefCell<FxHashMap<Element, u32>>,
    sets: RefCell<Vec<Rc<[u32]>>>,
    set_index: RefCell<FxHashMap<Rc<[u32]>, Context>>,
    unions: RefCell<FxHashMap<(Context, Context), Context>>,
}

impl Default for Contexts {
    fn default() -> Self {
        let empty: Rc<[u32]> = Rc::from([]);
        let index = std::iter::once((empty.clone(), 0)).collect();
        Contexts {
            elements: RefCell::default(),
            element_index: RefCell::default(),
            sets: RefCell::new(vec![empty]),
            set_index: RefCell::new(index),
            unions: RefCell::default(),
        }
    }
}

impl Contexts {
    fn element(&self, element: Element) -> u32 {
        let mut elements = self.elements.borrow_mut();
        *self.element_index.borrow_mut().entry(element).or_insert_with_key(|element| {
            elements.push(element.clone());
            (elements.len() - 1) as u32
        })
    }

    fn set(&self, sorted: &[u32]) -> Context {
        if let Some(&context) = self.set_index.borrow().get(sorted) {
            return context;
        }
        let set: Rc<[u32]> = Rc::from(sorted);
        let mut sets = self.sets.borrow_mut();
        sets.push(set.clone());
        let context = (sets.len() - 1) as Context;
        self.set_index.borrow_mut().insert(set, context);
        context
    }

    /// The context of one element.
    pub fn single(&self, element: Element) -> Context {
        let element = self.element(element);
        self.set(&[element])
    }

    /// The context of these elements.
    pub fn of(&self, elements: impl IntoIterator<Item = Element>) -> Context {
        let mut set: Vec<u32> = elements.into_iter().map(|element| self.element(element)).collect();
        set.sort_unstable();
        set.dedup();
        self.set(&set)
    }

    /// Both together.
    #[inline]
    pub fn union(&self, left: Context, right: Context) -> Context {
        if left == right || right == 0 {
            return left;
        }
        if left == 0 {
            return right;
        }
        self.union_slow(left.min(right), left.max(right))
    }

    fn union_slow(&self, left: Context, right: Context) -> Context {
        if let Some(&context) = self.unions.borrow().get(&(left, right)) {
            return context;
        }
        let (a, b) = (self.sets.borrow()[left as usize].clone(), self.sets.borrow()[right as usize].clone());
        let mut merged: Vec<u32> = a.iter().chain(b.iter()).copied().collect();
        merged.sort_unstable();
        merged.dedup();
        let context = self.set(&merged);
        self.unions.borrow_mut().insert((left, right), context);
        context
    }

    /// The elements of a context, sorted.
    pub fn elements(&self, context: Context) -> Vec<Element> {
        let set = self.sets.borrow()[context as usize].clone();
        let elements = self.elements.borrow();
        let mut result: Vec<Element> = set.iter().map(|&element| elements[element as usize].clone()).collect();
        result.sort();
        result
    }
}
