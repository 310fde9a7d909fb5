// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells a forked child from the process in which a collector was started.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of this process. A forked child has another number than its parent.
///
/// It is not the pid, which may be the same in another pid namespace. It is kept in memory that the kernel wipes in a
/// child (MADV_WIPEONFORK).
pub(crate) fn this_process() -> u64 {
    static LATEST: AtomicU64 = AtomicU64::new(0);
    let Some(wiped) = wiped_on_fork() else { return rustix::process::getpid().as_raw_nonzero().get() as u64 };
    match wiped.load(Ordering::Relaxed) {
        0 => {
            let fresh = LATEST.fetch_add(1, Ordering::Relaxed) + 1;
            wiped
                .compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|n| n, |_| fresh)
        }
        known => known,
    }
}

/// A word that becomes zero in a forked child. None if there is no memory for it.
fn wiped_on_fork() -> Option<&'static AtomicU64> {
    const PAGE: usize = 4096;
    static WORD: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
    *WORD.get_or_init(|| {
        // SAFETY: this is new memory, at an address that the kernel chooses. It is zero at first and never unmapped. It
        // has a page of its own, so nothing else is wiped.
        unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            let page = mmap_anonymous(ptr::null_mut(), PAGE, access, MapFlags::PRIVATE).ok()?;
            madvise(page, PAGE, Advice::LinuxWipeOnFork).ok()?;
            NonNull::new(page.cast()).map(|word| AtomicU64::from_ptr(word.as_ptr()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_has_another_number() {
        let here = this_process();
        assert_eq!(this_process(), here);
        // SAFETY: the child touches atomics only, and leaves at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let there = this_process();
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(there == here || there != this_process())) };
        }
        let mut status = -1;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, this_process()), (0, here));
    }
}
