//! The memory that the values of one evaluation live in.
//!
//! One range of addresses, reserved at once and put to use from its start. Its size is at most 4 GiB and its start is a
//! multiple of that, so that 32 bits say where something lies in it, and the address of anything in it says where it
//! starts: what is kept in memory refers to other things in half a word (see [`crate::value`]). Nothing is freed before
//! the whole.
//!
//! With `value`, this is the crate's only module with `unsafe`. Its invariants:
//! 1. `base .. base + committed` is readable and writable memory of this arena alone, and stays so until it is dropped.
//! 2. What lies below `used` was given out, once. `used` only grows, and is a multiple of eight.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr::NonNull;

/// The size of the range that 32 bits can address, and what the start of each arena is a multiple of.
///
/// Miri's memory is the interpreter's own, so it gets a smaller one. All of an address below the region's start is found
/// in 32 bits then, too.
pub(crate) const REGION: usize = if cfg!(miri) { 1 << 20 } else { 1 << 32 };

/// How much is put to use at a time.
const STEP: usize = if cfg!(miri) { 512 << 10 } else { 2 << 20 };

/// What lies at the start and is never given out, so that small offsets can have other meanings.
const RESERVED: usize = 64;

/// What a thread panics with when its arena is full.
pub(crate) struct Full {
    /// The size in bytes that is not enough.
    pub(crate) limit: usize,
}

/// Memory for values.
pub struct Arena {
    base: NonNull<u8>,
    used: Cell<usize>,
    committed: Cell<usize>,
    limit: usize,
}

impl Arena {
    /// Reserves `limit` bytes, and no more than 4 GiB. Only what is used of them takes memory.
    ///
    /// # Errors
    /// When there are not so many addresses left.
    pub fn new(limit: usize) -> std::io::Result<Self> {
        let limit = limit.clamp(STEP, REGION).next_multiple_of(STEP);
        let base = reserve(limit)?;
        base.as_ptr().expose_provenance();
        Ok(Arena { base, used: Cell::new(RESERVED), committed: Cell::new(0), limit })
    }

    /// How many bytes are in use.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether this lies in here.
    pub(crate) fn holds<T>(&self, place: *const T) -> bool {
        (self.base.addr().get()..self.base.addr().get() + self.used.get()).contains(&place.addr())
    }

    /// `size` bytes, aligned to eight, with any contents.
    #[inline]
    pub(crate) fn bytes(&self, size: usize) -> NonNull<u8> {
        let start = self.used.get();
        // Sizes are those of something in memory, or a count below 2^32 times a small number: no overflow.
        let end = start + size.next_multiple_of(8);
        if end > self.committed.get() {
            self.commit(end);
        }
        self.used.set(end);
        // SAFETY: `start` is below `committed`, so inside of the range.
        unsafe { self.base.add(start) }
    }

    #[cold]
    #[inline(never)]
    fn commit(&self, end: usize) {
        let committed = self.committed.get();
        let wanted = end.next_multiple_of(STEP);
        // SAFETY: the range from `committed` to `limit` belongs to this arena and nothing refers to it yet.
        let done = wanted <= self.limit && unsafe { protect(self.base.add(committed), wanted - committed) };
        if !done {
            // No message: whoever started the evaluation reports it.
            std::panic::resume_unwind(Box::new(Full { limit: self.limit }));
        }
        self.committed.set(wanted);
    }

    /// Moves a value here. It is never dropped.
    #[inline]
    pub fn alloc<T>(&self, value: T) -> &T {
        const { assert!(align_of::<T>() <= 8 && !std::mem::needs_drop::<T>()) };
        let place = self.bytes(size_of::<T>()).cast::<T>();
        // SAFETY: invariant 2: fresh memory, large enough and aligned.
        unsafe {
            place.write(value);
            place.as_ref()
        }
    }

    /// Moves a vector's elements here. They are never dropped.
    pub fn alloc_vec<T>(&self, mut vec: Vec<T>) -> &[T] {
        const { assert!(align_of::<T>() <= 8 && !std::mem::needs_drop::<T>()) };
        let place = self.bytes(size_of_val(vec.as_slice())).cast::<T>();
        // SAFETY: invariant 2, as above; the vector forgets the elements that were moved.
        unsafe {
            std::ptr::copy_nonoverlapping(vec.as_ptr(), place.as_ptr(), vec.len());
            let len = vec.len();
            vec.set_len(0);
            std::slice::from_raw_parts(place.as_ptr(), len)
        }
    }

    /// Copies a slice here.
    pub fn alloc_slice_copy<T: Copy>(&self, slice: &[T]) -> &[T] {
        const { assert!(align_of::<T>() <= 8) };
        let place = self.bytes(size_of_val(slice)).cast::<T>();
        // SAFETY: invariant 2, as above.
        unsafe {
            std::ptr::copy_nonoverlapping(slice.as_ptr(), place.as_ptr(), slice.len());
            std::slice::from_raw_parts(place.as_ptr(), slice.len())
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the range was reserved by `reserve`, and everything that borrowed from it is gone.
        unsafe { release(self.base, self.limit) };
    }
}

#[cfg(not(miri))]
fn reserve(size: usize) -> std::io::Result<NonNull<u8>> {
    let protection = libc::PROT_NONE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, twice: whatever lies before and behind the aligned part is given back.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), REGION + size, protection, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let before = start.addr().next_multiple_of(REGION) - start.addr();
        let base = start.byte_add(before);
        if before > 0 {
            libc::munmap(start, before);
        }
        if before < REGION {
            libc::munmap(base.byte_add(size), REGION - before);
        }
        Ok(NonNull::new_unchecked(base.cast()))
    }
}

/// Makes reserved memory usable; false if there is none.
#[cfg(not(miri))]
unsafe fn protect(start: NonNull<u8>, size: usize) -> bool {
    // SAFETY: the caller names a range of its own mapping.
    unsafe {
        let start = start.as_ptr().cast();
        let done = libc::mprotect(start, size, libc::PROT_READ | libc::PROT_WRITE) == 0;
        // All pages at once instead of one fault for each. Where the kernel does not know how, they come one by one.
        libc::madvise(start, size, libc::MADV_POPULATE_WRITE);
        done
    }
}

#[cfg(not(miri))]
unsafe fn release(base: NonNull<u8>, size: usize) {
    // SAFETY: the caller names its own mapping.
    unsafe { libc::munmap(base.as_ptr().cast(), size) };
}

/// Under Miri there is no `mmap`.
#[cfg(miri)]
fn layout(size: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(size, REGION).expect("a power of two")
}

#[cfg(miri)]
fn reserve(size: usize) -> std::io::Result<NonNull<u8>> {
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { std::alloc::alloc(layout(size)) }).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

#[cfg(miri)]
unsafe fn protect(_: NonNull<u8>, _: usize) -> bool {
    true
}

#[cfg(miri)]
unsafe fn release(base: NonNull<u8>, size: usize) {
    // SAFETY: the caller gives back what `reserve` gave.
    unsafe { std::alloc::dealloc(base.as_ptr(), layout(size)) };
}

#[cfg(test)]
mod tests;
