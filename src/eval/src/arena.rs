//! The memory that the values of one evaluation live in.
//!
//! One range of addresses, reserved at once and put to use from its start. Its size is at most 4 GiB and its start is a
//! multiple of that, so that 32 bits say where something lies in it, and the address of anything in it says where it
//! starts: what is kept in memory refers to other things in half a word (see [`crate::value`]). Nothing is freed before
//! the whole.
//!
//! With `value`, this is the crate's only module with `unsafe`. Its invariants:
//! 1. `base .. base + committed` is readable and writable memory of this arena alone, and stays so until it is dropped.
//!    (What comes from a [`Scratch`] is shared with nobody either: the lock on it sees to that.)
//! 2. What lies below `used` was given out, once. `used` only grows, and is a multiple of eight.
#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell};
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// The size of the range that 32 bits can address, and what the start of each arena is a multiple of.
///
/// Miri's memory is the interpreter's own, so it gets a smaller one. All of an address below the region's start is found
/// in 32 bits then, too.
pub(crate) const REGION: usize = if cfg!(miri) { 1 << 20 } else { 1 << 32 };

/// How much is put to use at a time.
const STEP: usize = if cfg!(miri) { 512 << 10 } else { 2 << 20 };

/// How long getting a step in small pages takes, about.
const SMALL_PAGES: Duration = Duration::from_millis(1);
/// How much longer large pages may take in all, so that they are worth it. A machine that has the memory at hand needs half the time of
/// small ones. Where it is a virtual one that gives free memory back to its host, its large free blocks are those that are gone: to
/// get them again takes 2 to 6 ms a step (512 faults of the host's), small pages out of what was used lately take 1 ms.
const PATIENCE: Duration = Duration::from_millis(10);
/// How much longer for each copy of the process that will work with them: they save it about a twentieth of a second or more.
const PATIENCE_FOR_COPY: Duration = Duration::from_millis(30);
/// More of them don't make it worth more: all of an arena's memory is large pages then.
const MOST_COPIES: usize = 1000;

/// What lies at the start and is never given out, so that small offsets can have other meanings.
const RESERVED: usize = 64;

/// What a thread panics with when its arena is full.
pub(crate) struct Full {
    /// The size in bytes that is not enough.
    pub(crate) limit: usize,
}

/// Memory for values.
pub(crate) struct Arena {
    base: NonNull<u8>,
    used: Cell<usize>,
    committed: Cell<usize>,
    limit: usize,
    /// How much longer than small pages large ones may still take. They are asked for until this is used up.
    patience: Cell<Duration>,
    scratch: OnceCell<Borrowed>,
}

/// Memory that copies of a process evaluate in, one after the other ([`crate::Evaluator::continue_in`]). The kernel gives
/// each of them pages that are there already, while it would have to find and clear new ones.
#[derive(Debug)]
pub struct Scratch(File);

impl Scratch {
    /// Some, which takes no memory before it is used. What was used stays in memory until this is dropped in all processes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        anonymous_file().map(Scratch)
    }

    /// The memory for one process alone.
    fn lock(&self) -> io::Result<File> {
        use std::os::fd::AsRawFd;
        // Opened again, for locks belong to what was opened, which copies of a process have in common.
        let place = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let file = File::options().read(true).write(true).open(place)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// A scratch that an arena goes on in.
struct Borrowed {
    /// Holds the lock.
    _file: File,
    /// Where in the arena it begins.
    start: usize,
    /// How much of it those that had it before have used, so that it takes memory already.
    present: usize,
    /// Reserved addresses, which are made usable, but not used, along with the scratch: so that the scratch counts as this
    /// process's own memory where that is limited (`RLIMIT_DATA`).
    counted: NonNull<u8>,
}

impl Arena {
    /// Reserves `limit` bytes, and no more than 4 GiB. Only what is used of them takes memory.
    ///
    /// # Errors
    /// When there are not so many addresses left.
    pub(crate) fn new(limit: usize) -> io::Result<Self> {
        let limit = limit.clamp(STEP, REGION).next_multiple_of(STEP);
        let base = reserve_region(limit)?;
        base.as_ptr().expose_provenance();
        Ok(Arena {
            base,
            used: Cell::new(RESERVED),
            committed: Cell::new(0),
            limit,
            patience: Cell::new(PATIENCE),
            scratch: OnceCell::new(),
        })
    }

    /// Takes longer to get memory that is quicker to use, as so many copies of the process will use it, too.
    pub(crate) fn expect_copies(&self, count: usize) {
        let more = PATIENCE_FOR_COPY * count.min(MOST_COPIES) as u32;
        self.patience.set(PATIENCE + more);
    }

    /// Takes all further memory from `scratch`.
    ///
    /// # Errors
    /// When another process has it, this arena has one already, or the system refuses. Then the arena goes on as before.
    pub(crate) fn continue_in(&self, scratch: &Scratch) -> io::Result<()> {
        if self.scratch.get().is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = scratch.lock()?;
        let start = self.committed.get();
        let size = self.limit - start;
        file.set_len(size as u64)?;
        // it is used from its start on, without gaps
        let present = usize::try_from(file.metadata()?.blocks() * 512).unwrap_or(0);
        let counted = reserve(size)?;
        // SAFETY: the range from `committed` to `limit` belongs to this arena and nothing refers to it yet; the file is as
        // large, and locked.
        if let Err(error) = unsafe { map(self.base.add(start), size, &file) } {
            // SAFETY: reserved above.
            unsafe { release(counted, size) };
            return Err(error);
        }
        // none was there, as nothing else can have set it in between
        let _ = self.scratch.set(Borrowed { _file: file, start, present, counted });
        Ok(())
    }

    /// How many bytes are in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
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
        let size = wanted - committed;
        let place = self.base.as_ptr().wrapping_add(committed);
        let scratch = self.scratch.get();
        let counted = scratch.map_or(place, |scratch| scratch.counted.as_ptr().wrapping_add(committed - scratch.start));
        // SAFETY: the range from `committed` to `limit` belongs to this arena and nothing refers to it yet; so does, if there
        // is a scratch, as much from `counted` as from its start.
        let done = wanted <= self.limit && unsafe { protect(counted, size) };
        if !done {
            // No message: whoever started the evaluation reports it.
            std::panic::resume_unwind(Box::new(Full { limit: self.limit }));
        }
        // SAFETY: as above, and usable now.
        unsafe {
            match scratch {
                Some(scratch) if wanted - scratch.start <= scratch.present => look_at(place, size),
                Some(_) => populate_from_file(place, size),
                None if !self.patience.get().is_zero() => {
                    let begun = Instant::now();
                    ask_for_large_pages(place, size);
                    populate(place, size);
                    let expected = SMALL_PAGES * (size / STEP) as u32;
                    self.patience.set((self.patience.get() + expected).saturating_sub(begun.elapsed()));
                }
                None => populate(place, size),
            }
        }
        self.committed.set(wanted);
    }

    /// Moves a value here. It is never dropped.
    #[inline]
    pub(crate) fn alloc<T>(&self, value: T) -> &T {
        const { assert!(align_of::<T>() <= 8 && !std::mem::needs_drop::<T>()) };
        let place = self.bytes(size_of::<T>()).cast::<T>();
        // SAFETY: invariant 2: fresh memory, large enough and aligned.
        unsafe {
            place.write(value);
            place.as_ref()
        }
    }

    /// Moves a vector's elements here. They are never dropped.
    pub(crate) fn alloc_vec<T>(&self, mut vec: Vec<T>) -> &[T] {
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
    pub(crate) fn alloc_slice_copy<T: Copy>(&self, slice: &[T]) -> &[T] {
        self.alloc_slices_copy(slice, &[])
    }

    /// Copies two slices here, the one behind the other, as one.
    pub(crate) fn alloc_slices_copy<T: Copy>(&self, first: &[T], second: &[T]) -> &[T] {
        const { assert!(align_of::<T>() <= 8) };
        let place = self.bytes(size_of_val(first) + size_of_val(second)).cast::<T>();
        // SAFETY: invariant 2, as above.
        unsafe {
            std::ptr::copy_nonoverlapping(first.as_ptr(), place.as_ptr(), first.len());
            std::ptr::copy_nonoverlapping(second.as_ptr(), place.as_ptr().add(first.len()), second.len());
            std::slice::from_raw_parts(place.as_ptr(), first.len() + second.len())
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the ranges were reserved by `reserve_region` and `reserve`, and everything that borrowed from them is gone.
        unsafe {
            release(self.base, self.limit);
            if let Some(scratch) = self.scratch.get() {
                release(scratch.counted, self.limit - scratch.start);
            }
        }
    }
}

/// `size` bytes of addresses, nothing behind them.
#[cfg(not(miri))]
fn reserve(size: usize) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// As [`reserve`], from a multiple of [`REGION`] on.
#[cfg(not(miri))]
fn reserve_region(size: usize) -> io::Result<NonNull<u8>> {
    let start = reserve(REGION + size)?.as_ptr();
    let before = start.addr().next_multiple_of(REGION) - start.addr();
    // SAFETY: whatever lies before and behind the aligned part is given back.
    unsafe {
        let base = start.byte_add(before);
        if before > 0 {
            libc::munmap(start.cast(), before);
        }
        if before < REGION {
            libc::munmap(base.byte_add(size).cast(), REGION - before);
        }
        Ok(NonNull::new_unchecked(base))
    }
}

/// Makes reserved memory usable; false if there is none.
#[cfg(not(miri))]
unsafe fn protect(start: *mut u8, size: usize) -> bool {
    // SAFETY: the caller names a range of its own mapping.
    unsafe { libc::mprotect(start.cast(), size, libc::PROT_READ | libc::PROT_WRITE) == 0 }
}

/// Has the kernel use large pages for usable memory of the process's own, where it knows how to do that.
#[cfg(not(miri))]
unsafe fn ask_for_large_pages(start: *mut u8, size: usize) {
    // SAFETY: the caller names a range of its own mapping.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
}

/// Gets the pages of usable memory of the process's own all at once instead of with one fault for each, where the kernel knows how to do
/// that.
#[cfg(not(miri))]
unsafe fn populate(start: *mut u8, size: usize) {
    // SAFETY: the caller names a range of its own mapping.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_POPULATE_WRITE) };
}

/// As [`populate`], for memory of a file. (The kernel maps several of a file's pages at a time only for who asks to read; that they
/// are written to later takes no further fault, as the file is in memory only.)
#[cfg(not(miri))]
unsafe fn populate_from_file(start: *mut u8, size: usize) {
    // SAFETY: the caller names a range of its own mapping.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_POPULATE_READ) };
}

/// As [`populate_from_file`], where the pages exist already: where one of them is read, the kernel maps those around it, too, and is done
/// sooner than if it were asked for each.
#[cfg(not(miri))]
unsafe fn look_at(start: *mut u8, size: usize) {
    /// So much around what is read (`fault_around_bytes`), if nobody has changed that.
    const AROUND: usize = 64 << 10;
    for offset in (0..size).step_by(AROUND) {
        // SAFETY: the caller names a range of its own mapping, which may be read, and whatever is in it is a byte.
        unsafe { start.add(offset).read_volatile() };
    }
}

/// Puts a file's memory in the place of reserved addresses.
#[cfg(not(miri))]
unsafe fn map(start: NonNull<u8>, size: usize, file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the caller names a range of its own mapping that nothing refers to.
    let done = unsafe { libc::mmap(start.as_ptr().cast(), size, protection, flags, file.as_raw_fd(), 0) };
    if done == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(not(miri))]
fn anonymous_file() -> io::Result<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a string with an end; a descriptor that is not negative is new and belongs to nobody else.
    unsafe {
        let descriptor = libc::memfd_create(c"evaluation".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from_raw_fd(descriptor)) }
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
fn reserve_region(size: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { std::alloc::alloc(layout(size)) }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(miri)]
fn reserve(_: usize) -> io::Result<NonNull<u8>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(miri)]
unsafe fn map(_: NonNull<u8>, _: usize, _: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(miri)]
fn anonymous_file() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(miri)]
unsafe fn protect(_: *mut u8, _: usize) -> bool {
    true
}

#[cfg(miri)]
unsafe fn ask_for_large_pages(_: *mut u8, _: usize) {}

#[cfg(miri)]
unsafe fn populate(_: *mut u8, _: usize) {}

#[cfg(miri)]
unsafe fn populate_from_file(_: *mut u8, _: usize) {}

#[cfg(miri)]
unsafe fn look_at(_: *mut u8, _: usize) {}

#[cfg(miri)]
unsafe fn release(base: NonNull<u8>, size: usize) {
    // SAFETY: the caller gives back what `reserve` gave.
    unsafe { std::alloc::dealloc(base.as_ptr(), layout(size)) };
}

#[cfg(test)]
mod tests;
