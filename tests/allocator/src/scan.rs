//! The allocator that looks at what is freed.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    slice,
    sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// How many bytes of a secret in a row give it away: few enough to see what growing buffers leave behind, and enough
/// that chance never brings them together.
pub(crate) const WINDOW: usize = 8;

/// A power of two, several times the windows of all canaries.
const SLOTS: usize = 1 << 15;
const CANARIES: usize = 256;

/// Looks at blocks while it is armed. In between it leaves the making of canaries and inputs alone.
pub(crate) struct Scanning;

static ARMED: AtomicBool = AtomicBool::new(false);
static WINDOWS: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
static OWNERS: [AtomicU16; SLOTS] = [const { AtomicU16::new(0) }; SLOTS];
static FOUND: [AtomicUsize; CANARIES] = [const { AtomicUsize::new(0) }; CANARIES];
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// What was freed while armed.
pub(crate) struct Freed {
    pub(crate) blocks: usize,
    pub(crate) bytes: usize,
    /// Canaries, by number, and how many blocks held a piece of each.
    pub(crate) found: Vec<(usize, usize)>,
}

/// Looks for this canary from now on, under this number.
pub(crate) fn watch(number: usize, canary: &[u8]) {
    assert!(number < CANARIES && canary.len() >= WINDOW);
    for window in canary.windows(WINDOW) {
        let window = u64::from_le_bytes(window.try_into().expect("it is this long"));
        assert_ne!(window, 0, "a canary is nothing that empty memory holds");
        let mut slot = slot_of(window);
        loop {
            match WINDOWS[slot].load(Relaxed) {
                0 => {
                    OWNERS[slot].store(u16::try_from(number).expect("they are few"), Relaxed);
                    WINDOWS[slot].store(window, Relaxed);
                    break;
                }
                // A piece of an earlier canary too; finding it is what counts.
                known if known == window => break,
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    }
}

/// Runs this and says what was freed in the course of it.
pub(crate) fn freed_by(work: impl FnOnce()) -> Freed {
    BLOCKS.store(0, Relaxed);
    BYTES.store(0, Relaxed);
    for count in &FOUND {
        count.store(0, Relaxed);
    }
    ARMED.store(true, Relaxed);
    work();
    ARMED.store(false, Relaxed);
    let found = FOUND.iter().map(|count| count.load(Relaxed)).enumerate();
    Freed {
        blocks: BLOCKS.load(Relaxed),
        bytes: BYTES.load(Relaxed),
        found: found.filter(|(_, count)| *count > 0).collect(),
    }
}

// SAFETY: every block comes from `System` with the layout that was asked for, and goes back to it with the same one.
unsafe impl GlobalAlloc for Scanning {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Zeroed, so that every byte may be read when it is freed, and holds nothing of what was there before.
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if ARMED.load(Relaxed) {
            // SAFETY: the block is still allocated, was filled when it was, and nobody else has it any more.
            look(unsafe { slice::from_raw_parts(block, layout.size()) });
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, layout) }
    }

    /// As if the block always moved: whether it does is luck.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is none that overflows.
        let new_layout = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the caller promises that the size is not zero.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both are at least that long, and apart.
            unsafe { new.copy_from_nonoverlapping(block, layout.size().min(size)) };
            // SAFETY: the caller gives the old block up.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}

fn look(block: &[u8]) {
    BLOCKS.fetch_add(1, Relaxed);
    BYTES.fetch_add(block.len(), Relaxed);
    let mut window = 0_u64;
    let mut last = None;
    for byte in block {
        window = window >> 8 | u64::from(*byte) << 56;
        if window == 0 {
            continue;
        }
        let mut slot = slot_of(window);
        loop {
            match WINDOWS[slot].load(Relaxed) {
                0 => break,
                known if known == window => {
                    let owner = usize::from(OWNERS[slot].load(Relaxed));
                    // One for each stretch, not for each of its windows.
                    if last != Some(owner) {
                        FOUND[owner].fetch_add(1, Relaxed);
                        last = Some(owner);
                    }
                    break;
                }
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    }
}

fn slot_of(window: u64) -> usize {
    const BITS: u32 = SLOTS.trailing_zeros();
    usize::try_from(window.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)).expect("it is below SLOTS")
}
