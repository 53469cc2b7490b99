//! The allocator of this binary. It counts the allocations of each thread, so that a test can bound the memory of its
//! calls. The counts are per thread, so tests that run side by side do not disturb each other.
#![allow(unsafe_code, reason = "an allocator is unsafe to write")]
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    /// Bytes allocated now, and the most at one time since [`peak_of`] began.
    static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
    /// The largest single allocation since [`largest_allocation`] began.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    BYTES.with(|counted| {
        let (now, most) = counted.get();
        counted.set((now + bytes, most.max(now + bytes)));
    });
}

fn allocated(bytes: usize) {
    LARGEST.with(|largest| largest.set(largest.get().max(bytes)));
    count(bytes as isize);
}

// SAFETY: the system allocator does the work; the cells need no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
    /// The old and the new block count together for a moment, because the system may have to copy.
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        allocated(new);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that this thread holds. The CPU device's tensors are ordinary memory and count.
pub fn held() -> isize {
    BYTES.with(|counted| counted.get().0)
}

/// The most bytes that `f` held at one time beyond those that were held before it.
pub fn peak_of<T>(f: impl FnOnce() -> T) -> isize {
    let before = held();
    BYTES.with(|counted| counted.set((before, before)));
    drop(f());
    BYTES.with(|counted| counted.get().1) - before
}

/// The size of the largest allocation that `f` makes, in bytes.
pub fn largest_allocation(f: impl FnOnce()) -> usize {
    LARGEST.set(0);
    f();
    LARGEST.get()
}
