//! From the automaton to decision lists.
//!
//! Between two consumed bytes the automaton only opens and closes groups, goes round loops and takes sides. All ways
//! from one place to the next consumed byte (or to the end of the pattern) can therefore be listed beforehand, in the
//! order in which they would be tried. A way is a [`Decision`]: where it ends, what must hold for it, which groups it
//! opens and closes, and which decision to look at next if the rest of the input matches from there or doesn't.

use super::Failure;
use super::nfa::{ByteSet, Nfa, Op, StateId};

/// Looked at last: no more decisions here.
pub(super) const END: u32 = u32::MAX;

/// As a target: the end of the pattern.
pub(super) const ACCEPT: u32 = u32::MAX;

/// Bounds on the work of listing; beyond lies a nesting of loops that libstdc++ could not run either.
const MAX_STEPS: usize = 1 << 24;
const MAX_OPS: usize = 1 << 22;

/// Holds at the start of the input.
pub(super) const AT_BEGIN: u8 = 1;
/// Holds at its end.
pub(super) const AT_END: u8 = 2;

/// One way from a place to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decision {
    /// The place after the byte that is consumed, or [`ACCEPT`].
    pub(super) target: u32,
    /// The set that the byte must be in: an index into [`Program::sets`]. Meaningless for [`ACCEPT`].
    pub(super) set: u32,
    /// What must hold, a union of [`AT_BEGIN`] and [`AT_END`].
    pub(super) conditions: u8,
    /// The groups that are opened and closed on the way: a range of [`Program::marks`].
    marks: (u32, u32),
    /// The decision to look at after this one has led to a match.
    pub(super) on_match: u32,
    /// The decision to look at after this one has not.
    pub(super) on_failure: u32,
}

/// A group that is opened or closed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    Open(u32),
    Close(u32),
}

/// The compiled pattern.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) decisions: Vec<Decision>,
    marks: Vec<Mark>,
    pub(super) sets: Vec<ByteSet>,
    /// The first decision of each place.
    pub(super) roots: Vec<u32>,
    /// The first decision at the start.
    pub(super) start: u32,
    /// The number of groups in the pattern, without the whole match.
    pub(super) groups: usize,
    /// Whether finding one match can leave a longer one to look for.
    pub(super) compares: bool,
    /// Whether at every place the next byte leaves at most one way.
    pub(super) deterministic: bool,
    /// The bytes that a match can start with; `None` if a match can be empty.
    pub(super) first: Option<ByteSet>,
    /// Whether a match can only start at the start of the input.
    pub(super) anchored: bool,
}

impl Program {
    pub(super) fn marks(&self, decision: &Decision) -> &[Mark] {
        &self.marks[decision.marks.0 as usize..decision.marks.1 as usize]
    }
}

/// The ways from one place, as a tree.
#[derive(Clone, Copy)]
enum Shape {
    /// No way.
    Nothing,
    /// One way: an index into the leaves.
    Leaf(u32),
    /// The second only if the first led to no match.
    Else(u32, u32),
    /// Both, and the longer match wins.
    Longest(u32, u32),
}

/// A node of the tree, with what its ways can start with.
#[derive(Clone, Copy)]
struct Tree {
    shape: Shape,
    bytes: ByteSet,
    accepts: bool,
}

/// A branching state that turned out to lead nowhere, under the loop counts and conditions of the time.
struct Explored {
    state: StateId,
    rounds: Vec<(StateId, u8)>,
    conditions: u8,
}

/// What is left to do in the walk from one place. Later entries come first.
enum Step {
    Visit(StateId),
    DropMark,
    RestoreConditions(u8),
    /// The round of a loop is over.
    EndRound(StateId),
    /// Both branches of a loop are done, or of a `|`.
    JoinElse(Explored),
    JoinLongest(Explored, usize),
    /// The left side of a `|` is done: what it explored must not be taken for a failure on the right.
    SetAside(usize),
}

/// What is left to do in turning a tree into decisions.
enum Lower {
    Visit {
        tree: u32,
        on_match: u32,
        on_failure: u32,
    },
    /// The decision on top of the results is where to go if `tree` fails.
    Else {
        tree: u32,
        on_match: u32,
    },
    /// The two on top are where to go if `tree` matches and if it fails.
    Longest {
        tree: u32,
    },
    /// The one on top is where to go in both cases.
    Either {
        tree: u32,
    },
    /// Remember the result.
    Store {
        tree: u32,
        on_match: u32,
        on_failure: u32,
    },
}

struct Builder<'n> {
    nfa: &'n Nfa,
    /// For a state that consumes a byte: its place and its set.
    places: Vec<(u32, u32)>,
    program: Program,
    steps: usize,
    trees: Vec<Tree>,
    leaves: Vec<Decision>,
    /// How often each loop was entered at this position.
    rounds: Vec<u8>,
    active: Vec<StateId>,
    /// How many entries of `explored` are about each state.
    explored_count: Vec<u32>,
    explored: Vec<Explored>,
    aside: Vec<Explored>,
}

/// Turns the automaton into decision lists.
pub(super) fn build(nfa: &Nfa) -> Result<Program, Failure> {
    let mut program = Program {
        decisions: Vec::new(),
        marks: Vec::new(),
        sets: Vec::new(),
        roots: Vec::new(),
        start: END,
        groups: nfa.groups as usize - 1,
        compares: false,
        deterministic: true,
        first: None,
        anchored: false,
    };
    let mut known_sets = rustc_hash::FxHashMap::default();
    let mut places = vec![(0, 0); nfa.states.len()];
    let mut entries = Vec::new();
    for (state, place) in nfa.states.iter().zip(&mut places) {
        if let Op::Byte(set) = state.op {
            let index = *known_sets.entry(set).or_insert_with(|| {
                program.sets.push(set);
                (program.sets.len() - 1) as u32
            });
            *place = (entries.len() as u32, index);
            entries.push(state.next);
        }
    }
    let mut builder = Builder {
        nfa,
        places,
        program,
        steps: 0,
        trees: Vec::new(),
        leaves: Vec::new(),
        rounds: vec![0; nfa.states.len()],
        active: Vec::new(),
        explored_count: vec![0; nfa.states.len()],
        explored: Vec::new(),
        aside: Vec::new(),
    };
    let root = builder.walk(0, true)?;
    let start_tree = builder.trees[root as usize];
    builder.program.first = (!start_tree.accepts).then_some(start_tree.bytes);
    builder.program.anchored = builder.leaves.iter().all(|leaf| leaf.conditions & AT_BEGIN != 0);
    builder.program.start = builder.lower(root)?;
    // Quantified groups leave their unused original behind: only places that are reached need their list.
    let mut roots = vec![END; entries.len()];
    let mut seen = vec![false; entries.len()];
    let mut scanned = 0;
    loop {
        let pending: Vec<u32> = builder.program.decisions[scanned..].iter().map(|d| d.target).collect();
        scanned = builder.program.decisions.len();
        for place in pending {
            if place == ACCEPT || std::mem::replace(&mut seen[place as usize], true) {
                continue;
            }
            let root = builder.walk(entries[place as usize], false)?;
            roots[place as usize] = builder.lower(root)?;
        }
        if scanned == builder.program.decisions.len() {
            break;
        }
    }
    builder.program.roots = roots;
    Ok(builder.program)
}

impl Builder<'_> {
    fn tree(&mut self, shape: Shape, bytes: ByteSet, accepts: bool) -> u32 {
        self.trees.push(Tree { shape, bytes, accepts });
        (self.trees.len() - 1) as u32
    }

    fn join(&mut self, longest: bool, left: u32, right: u32) -> u32 {
        let (l, r) = (self.trees[left as usize], self.trees[right as usize]);
        if matches!(l.shape, Shape::Nothing) {
            return right;
        }
        if matches!(r.shape, Shape::Nothing) {
            return left;
        }
        // Where the next byte decides between the two, at most one can match.
        let exclusive = !l.accepts && !r.accepts && l.bytes.is_disjoint(&r.bytes);
        let shape = if longest && !exclusive { Shape::Longest(left, right) } else { Shape::Else(left, right) };
        self.tree(shape, l.bytes.union(&r.bytes), l.accepts || r.accepts)
    }

    /// Lists the ways from `entry` as a tree. Gives its root.
    fn walk(&mut self, entry: StateId, at_start: bool) -> Result<u32, Failure> {
        self.trees.clear();
        self.leaves.clear();
        let nothing = self.tree(Shape::Nothing, ByteSet::default(), false);
        let mut results = Vec::new();
        let mut marks = Vec::new();
        let mut conditions = 0;
        let mut todo = vec![Step::Visit(entry)];
        while let Some(step) = todo.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(Failure::MemoryLimit);
            }
            match step {
                Step::Visit(id) => {
                    let state = self.nfa.states[id as usize];
                    match state.op {
                        Op::Byte(set) => {
                            // At the end there is no byte.
                            results.push(if conditions & AT_END != 0 {
                                nothing
                            } else {
                                let leaf = self.leaf(self.places[id as usize], conditions, &marks)?;
                                self.tree(Shape::Leaf(leaf), set, false)
                            });
                        }
                        Op::Accept => {
                            let leaf = self.leaf((ACCEPT, 0), conditions, &marks)?;
                            let tree = self.tree(Shape::Leaf(leaf), ByteSet::default(), true);
                            results.push(tree);
                        }
                        Op::Empty => todo.push(Step::Visit(state.next)),
                        Op::Open(group) | Op::Close(group) => {
                            // The whole match is known without marks.
                            if group != 0 {
                                let open = matches!(state.op, Op::Open(_));
                                marks.push(if open { Mark::Open(group - 1) } else { Mark::Close(group - 1) });
                                todo.push(Step::DropMark);
                            }
                            todo.push(Step::Visit(state.next));
                        }
                        Op::LineBegin if !at_start => results.push(nothing),
                        Op::LineBegin | Op::LineEnd => {
                            todo.push(Step::RestoreConditions(conditions));
                            conditions |= if matches!(state.op, Op::LineBegin) { AT_BEGIN } else { AT_END };
                            todo.push(Step::Visit(state.next));
                        }
                        Op::Repeat | Op::Either => {
                            if self.is_explored(id, conditions) {
                                results.push(nothing);
                                continue;
                            }
                            self.steps += self.active.len();
                            let here = Explored { state: id, rounds: self.current_rounds(), conditions };
                            if matches!(state.op, Op::Either) {
                                let mark = self.explored.len();
                                todo.push(Step::JoinLongest(here, self.aside.len()));
                                todo.push(Step::Visit(state.next));
                                todo.push(Step::SetAside(mark));
                                todo.push(Step::Visit(state.alt));
                            } else if self.rounds[id as usize] < 2 {
                                todo.push(Step::JoinElse(here));
                                todo.push(Step::Visit(state.next));
                                todo.push(Step::EndRound(id));
                                self.rounds[id as usize] += 1;
                                self.active.push(id);
                                todo.push(Step::Visit(state.alt));
                            } else {
                                todo.push(Step::Visit(state.next));
                            }
                        }
                    }
                }
                Step::DropMark => {
                    marks.pop();
                }
                Step::RestoreConditions(before) => conditions = before,
                Step::EndRound(id) => {
                    self.rounds[id as usize] -= 1;
                    self.active.pop();
                }
                Step::SetAside(mark) => {
                    for explored in self.explored.drain(mark..) {
                        self.explored_count[explored.state as usize] -= 1;
                        self.aside.push(explored);
                    }
                }
                Step::JoinElse(here) => {
                    self.join_top(&mut results, false);
                    self.add_explored(here);
                }
                Step::JoinLongest(here, aside) => {
                    self.join_top(&mut results, true);
                    // Whoever comes here next does so because both sides have failed.
                    for explored in self.aside.split_off(aside) {
                        self.add_explored(explored);
                    }
                    self.add_explored(here);
                }
            }
        }
        for explored in self.explored.drain(..) {
            self.explored_count[explored.state as usize] = 0;
        }
        Ok(results.pop().unwrap_or(nothing))
    }

    fn join_top(&mut self, results: &mut Vec<u32>, longest: bool) {
        if let (Some(right), Some(left)) = (results.pop(), results.pop()) {
            let joined = self.join(longest, left, right);
            results.push(joined);
        }
    }

    fn leaf(&mut self, (target, set): (u32, u32), conditions: u8, marks: &[Mark]) -> Result<u32, Failure> {
        let start = self.program.marks.len();
        if start + marks.len() > MAX_OPS {
            return Err(Failure::MemoryLimit);
        }
        self.program.marks.extend_from_slice(marks);
        let marks = (start as u32, (start + marks.len()) as u32);
        self.leaves.push(Decision { target, set, conditions, marks, on_match: END, on_failure: END });
        Ok((self.leaves.len() - 1) as u32)
    }

    fn current_rounds(&self) -> Vec<(StateId, u8)> {
        self.active.iter().map(|&id| (id, self.rounds[id as usize])).collect()
    }

    /// Whether `state` was tried before in this walk, with at least as many ways open, and failed.
    fn is_explored(&mut self, state: StateId, conditions: u8) -> bool {
        if self.explored_count[state as usize] == 0 {
            return false;
        }
        self.steps += self.explored.len();
        self.explored.iter().any(|e| {
            e.state == state
                && e.conditions & !conditions == 0
                && e.rounds.iter().all(|&(id, rounds)| rounds <= self.rounds[id as usize])
        })
    }

    fn add_explored(&mut self, explored: Explored) {
        self.explored_count[explored.state as usize] += 1;
        self.explored.push(explored);
    }

    /// Turns a tree into decisions. Gives the first.
    fn lower(&mut self, root: u32) -> Result<u32, Failure> {
        let mut known = rustc_hash::FxHashMap::default();
        let mut results: Vec<u32> = Vec::new();
        let mut todo = vec![Lower::Visit { tree: root, on_match: END, on_failure: END }];
        while let Some(step) = todo.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(Failure::MemoryLimit);
            }
            match step {
                Lower::Visit { tree, on_match, on_failure } => match self.trees[tree as usize].shape {
                    Shape::Nothing => results.push(on_failure),
                    Shape::Leaf(leaf) => {
                        self.program.compares |= on_match != END;
                        self.program.decisions.push(Decision { on_match, on_failure, ..self.leaves[leaf as usize] });
                        results.push((self.program.decisions.len() - 1) as u32);
                    }
                    Shape::Else(left, right) => {
                        let (l, r) = (self.trees[left as usize], self.trees[right as usize]);
                        // Two ends cannot both be right: only bytes that overlap, or an end among them, leave a choice.
                        self.program.deterministic &= !(l.accepts && r.accepts) && l.bytes.is_disjoint(&r.bytes);
                        todo.push(Lower::Else { tree: left, on_match });
                        todo.push(Lower::Visit { tree: right, on_match, on_failure });
                    }
                    Shape::Longest(left, right) => {
                        if let Some(&first) = known.get(&(tree, on_match, on_failure)) {
                            results.push(first);
                            continue;
                        }
                        self.program.deterministic = false;
                        todo.push(Lower::Store { tree, on_match, on_failure });
                        if on_match == on_failure {
                            todo.push(Lower::Either { tree: left });
                        } else {
                            todo.push(Lower::Longest { tree: left });
                            todo.push(Lower::Visit { tree: right, on_match, on_failure: on_match });
                        }
                        todo.push(Lower::Visit { tree: right, on_match, on_failure });
                    }
                },
                Lower::Else { tree, on_match } => {
                    if let Some(on_failure) = results.pop() {
                        todo.push(Lower::Visit { tree, on_match, on_failure });
                    }
                }
                Lower::Longest { tree } => {
                    // The second result was computed last: it is the one for after a match.
                    if let (Some(on_match), Some(on_failure)) = (results.pop(), results.pop()) {
                        todo.push(Lower::Visit { tree, on_match, on_failure });
                    }
                }
                Lower::Either { tree } => {
                    if let Some(next) = results.pop() {
                        todo.push(Lower::Visit { tree, on_match: next, on_failure: next });
                    }
                }
                Lower::Store { tree, on_match, on_failure } => {
                    if let Some(&first) = results.last() {
                        known.insert((tree, on_match, on_failure), first);
                    }
                }
            }
        }
        Ok(results.pop().unwrap_or(END))
    }
}
