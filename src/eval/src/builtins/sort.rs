//! Sorting as C++ Nix does it: the peeksort of Munro and Wild ("Nearly-Optimal Mergesorts", 2018), a stable mergesort that uses
//! the runs that are there. The same comparisons in the same order, because programs can see them: comparators may
//! trace or fail, or be no order at all.

/// Ranges up to this length are sorted by insertion.
const INSERTION_LIMIT: usize = 16;

/// Sorts `values` with a comparison ("is less than") that may fail. If it is not an order, the result is still a permutation.
///
/// # Errors
/// The first of `less`'s.
pub(super) fn sort<T: Copy, E>(values: &mut [T], less: impl FnMut(T, T) -> Result<bool, E>) -> Result<(), E> {
    let len = values.len();
    let mut sorter = Sorter { values, buffer: Vec::new(), less };
    match len {
        0 | 1 => Ok(()),
        2 => {
            if sorter.is_less(1, 0)? {
                sorter.values.swap(0, 1);
            }
            Ok(())
        }
        _ => sorter.range(0, len, 0, len),
    }
}

struct Sorter<'v, T, F> {
    values: &'v mut [T],
    buffer: Vec<T>,
    less: F,
}

impl<T: Copy, E, F: FnMut(T, T) -> Result<bool, E>> Sorter<'_, T, F> {
    fn is_less(&mut self, left: usize, right: usize) -> Result<bool, E> {
        (self.less)(self.values[left], self.values[right])
    }

    /// Sorts from `begin` to `end`; up to `left_end` and from `right_begin` on it is sorted already.
    fn range(&mut self, begin: usize, end: usize, left_end: usize, right_begin: usize) -> Result<(), E> {
        if left_end == end || right_begin == begin {
            return Ok(());
        }
        let len = end - begin;
        if len <= INSERTION_LIMIT {
            return self.insertion(begin, end);
        }
        let middle = begin + len / 2;
        if middle <= left_end {
            self.range(left_end, end, left_end + 1, right_begin)?;
            return self.merge(begin, left_end, end);
        }
        if middle >= right_begin {
            self.range(begin, right_begin, left_end, right_begin - 1)?;
            return self.merge(begin, right_begin, end);
        }
        // The run in the middle, which either never falls, or always does and is turned round.
        let falls = self.is_less(middle, middle - 1)?;
        let mut run_begin = middle - 1;
        while run_begin > left_end && self.is_less(run_begin, run_begin - 1)? == falls {
            run_begin -= 1;
        }
        let mut run_end = middle;
        while run_end < right_begin && self.is_less(run_end, run_end - 1)? == falls {
            run_end += 1;
        }
        if falls {
            self.values[run_begin..run_end].reverse();
        }
        if run_begin == begin && run_end == end {
            return Ok(());
        }
        // The run goes to the side where it makes the two halves more alike.
        if middle - run_begin < run_end - middle {
            // Where the run starts at the very first value there is nothing before it.
            self.range(begin, run_begin, left_end, run_begin.saturating_sub(1))?;
            self.range(run_begin, end, run_end, right_begin)?;
            self.merge(begin, run_begin, end)
        } else {
            self.range(begin, run_end, left_end, run_begin)?;
            self.range(run_end, end, run_end + 1, right_begin)?;
            self.merge(begin, run_end, end)
        }
    }

    fn insertion(&mut self, begin: usize, end: usize) -> Result<(), E> {
        for index in begin + 1..end {
            let mut at = index;
            while at > begin && self.is_less(at, at - 1)? {
                self.values.swap(at, at - 1);
                at -= 1;
            }
        }
        Ok(())
    }

    /// Merges two neighbouring sorted ranges.
    fn merge(&mut self, begin: usize, middle: usize, end: usize) -> Result<(), E> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&self.values[begin..end]);
        let (mut left, mut right) = buffer.split_at(middle - begin);
        let mut at = begin;
        while let (Some((&a, left_rest)), Some((&b, right_rest))) = (left.split_first(), right.split_first()) {
            if (self.less)(b, a)? {
                self.values[at] = b;
                right = right_rest;
            } else {
                self.values[at] = a;
                left = left_rest;
            }
            at += 1;
        }
        self.values[at..at + left.len()].copy_from_slice(left);
        self.values[end - right.len()..end].copy_from_slice(right);
        self.buffer = buffer;
        Ok(())
    }
}
