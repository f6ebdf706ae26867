use super::{Arena, Full, REGION, STEP, Scratch};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An arena that is no larger than it has to be.
fn small() -> Arena {
    Arena::new(0).expect("there are addresses")
}

#[test]
fn what_is_put_there_stays_as_it_is() {
    let arena = small();
    let number = arena.alloc(7u64);
    let short = arena.alloc(3u16);
    let bytes = arena.alloc_slice_copy(b"twelve bytes");
    let words = arena.alloc_vec(vec![1u32, 2, 3]);
    let nothing = arena.alloc_slice_copy::<u64>(&[]);
    assert_eq!((*number, *short, bytes, words, nothing), (7, 3, &b"twelve bytes"[..], &[1, 2, 3][..], &[][..]));
    assert!(arena.holds(number) && arena.holds(&raw const words[2]));
    assert!(!arena.holds(&raw const arena));
}

#[test]
fn everything_starts_at_a_multiple_of_eight() {
    let arena = small();
    for size in 0..20 {
        let used = arena.used();
        let place = arena.bytes(size);
        assert_eq!(place.addr().get() % 8, 0);
        assert_eq!(arena.used() - used, size.next_multiple_of(8));
    }
}

#[test]
fn an_arena_starts_at_a_multiple_of_the_region() {
    let arenas = [small(), small()];
    let starts = arenas.each_ref().map(|arena| std::ptr::from_ref(arena.alloc(1u8)).addr() & !(REGION - 1));
    assert_ne!(starts[0], starts[1]);
    for (arena, start) in arenas.iter().zip(starts) {
        assert_eq!(arena.base.addr().get(), start);
    }
}

#[test]
fn a_full_arena_says_how_large_it_is_and_keeps_what_it_has() {
    let arena = small();
    let first = arena.alloc(42u64);
    let fill = || {
        loop {
            arena.alloc_slice_copy(&[0u64; 128]);
        }
    };
    let panic: Box<dyn std::any::Any + Send> = match catch_unwind(AssertUnwindSafe(fill)) {
        Ok(()) => unreachable!("the loop has no end"),
        Err(panic) => panic,
    };
    assert_eq!(panic.downcast::<Full>().map(|full| full.limit).ok(), Some(STEP));
    assert_eq!(*first, 42);
    assert!(arena.used() <= STEP);
}

#[test]
#[cfg_attr(miri, ignore = "there are no files of memory under Miri")]
fn a_scratch_serves_one_arena_at_a_time_and_keeps_its_pages() {
    let scratch = Scratch::new().expect("memory");
    let first = Arena::new(3 * STEP).expect("there are addresses");
    let before = first.alloc(1u64);
    first.continue_in(&scratch).expect("nobody has it");
    let behind = first.alloc_slice_copy(&[2u8; STEP]);
    assert_eq!((*before, behind.iter().all(|byte| *byte == 2)), (1, true));
    let second = Arena::new(3 * STEP).expect("there are addresses");
    assert_eq!(second.continue_in(&scratch).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
    assert_eq!(first.continue_in(&scratch).map_err(|error| error.kind()), Err(io::ErrorKind::AlreadyExists));
    drop(first);
    second.continue_in(&scratch).expect("it is free again");
    assert_eq!(*second.alloc(3u64), 3);
    // what the first one left there, which comes as any contents do
    assert_eq!(scratch.0.metadata().expect("it is open").len(), 3 * STEP as u64);
}

#[test]
#[cfg_attr(miri, ignore = "there are no files of memory under Miri")]
fn a_scratch_does_not_make_an_arena_larger() {
    let scratch = Scratch::new().expect("memory");
    let arena = small();
    arena.continue_in(&scratch).expect("nobody has it");
    let fill = || {
        loop {
            arena.alloc_slice_copy(&[0u64; 128]);
        }
    };
    assert!(catch_unwind(AssertUnwindSafe(fill)).is_err());
    assert!(arena.used() <= STEP);
}
