// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start of every thread of the library. Threads block the program's signals, and may have descriptors of their
//! own.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// The signals of a thread's own faults. If they were blocked, a fault would end the process without calling a handler.
const FAULTS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let _blocked = SignalsBlocked::new();
    Builder::new().name(name.into()).spawn(work)
}

pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let _blocked = SignalsBlocked::new();
    Builder::new().name(name.into()).spawn_scoped(scope, work)
}

/// Starts a thread that first runs `lent`, which may borrow from the caller, and then `rest`, which may not.
///
/// The caller waits for `lent` and gets its second result, or none if it has panicked. `rest` gets the first result,
/// and goes on after this function has returned.
pub(crate) fn spawn_lending<'a, T: Send + 'static, U: Send + 'a>(
    name: &str,
    lent: impl FnOnce() -> (T, U) + Send + 'a,
    rest: impl FnOnce(T) + Send + 'static,
) -> io::Result<Option<U>> {
    let (tell, told) = crossbeam_channel::bounded(1);
    let work = move || {
        let (kept, answer) = lent();
        drop(tell.send(answer));
        drop(tell);
        rest(kept);
    };
    let _blocked = SignalsBlocked::new();
    // SAFETY: only `lent` and `answer` hold borrows of 'a. `lent` is used up before the answer is sent, or dropped
    // before `tell` is. The answer is received here. So the thread holds no borrow of 'a when recv() returns.
    unsafe { Builder::new().name(name.into()).spawn_unchecked(work) }?;
    Ok(told.recv().ok())
}

/// While this lives, the calling thread blocks signals. Threads that it starts inherit this mask, so they block signals
/// from their first instruction. Signals that come meanwhile are delivered afterwards.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        // SAFETY: sets of signals are plain data, which the first call fills. libc is used instead of the system call,
        // because it leaves open the signal by which setuid(2) reaches all threads.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            for fault in FAULTS {
                libc::sigdelset(&raw mut all, fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: this is the set that was in use before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Gives the calling thread a descriptor table of its own, and closes all descriptors in it but `needed`.
///
/// Then forked processes get no copies of files that this thread opens, and the thread keeps none of the program's
/// files open. Before Linux 5.9 this is an error, and nothing changes.
pub(crate) fn have_own_descriptors(needed: &[RawFd]) -> io::Result<()> {
    // include/uapi/linux/close_range.h
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    let mut needed: Vec<u32> = needed.iter().filter_map(|&fd| fd.try_into().ok()).collect();
    needed.sort_unstable();
    // Descriptors above the highest needed one are closed first: so the kernel does not copy them.
    close_range(needed.last().map_or(0, |last| last + 1), u32::MAX, CLOSE_RANGE_UNSHARE)?;
    for (i, &end) in needed.iter().enumerate() {
        let first = i.checked_sub(1).map_or(0, |before| needed[before] + 1);
        if first < end {
            close_range(first, end - 1, 0)?;
        }
    }
    Ok(())
}

/// Closes these descriptors, on a thread that has a descriptor table of its own.
pub(crate) fn close_own_descriptors(fds: &[RawFd]) {
    for fd in fds.iter().filter_map(|&fd| u32::try_from(fd).ok()) {
        drop(close_range(fd, fd, 0));
    }
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: only called on a thread with a descriptor table of its own, where nothing refers to these descriptors.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;
    use std::thread;

    /// The mask of the calling thread, proc_pid_status(5).
    fn blocked() -> u64 {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    fn is_in(mask: u64, signal: i32) -> bool {
        mask & 1 << (signal - 1) != 0
    }

    #[test]
    fn a_thread_takes_no_signals_but_those_of_its_own_faults() {
        let before = blocked();
        let plain = spawn("plain", blocked).unwrap().join().unwrap();
        let scoped = thread::scope(|scope| spawn_scoped(scope, "scoped", blocked).unwrap().join().unwrap());
        let lending = spawn_lending("lending", || ((), blocked()), drop).unwrap().unwrap();
        for mask in [plain, scoped, lending] {
            let open = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGRTMAX()];
            assert!(open.iter().all(|&signal| is_in(mask, signal)), "{mask:x}");
            assert!(FAULTS.iter().all(|&signal| !is_in(mask, signal)), "{mask:x}");
            // The signals of libc.
            assert!(!is_in(mask, 32) && !is_in(mask, 33), "{mask:x}");
        }
        assert_eq!(blocked(), before);
    }

    #[test]
    fn files_of_a_thread_with_its_own_descriptors_are_open_nowhere_else() {
        let [kept, closed] = [(); 2].map(|()| File::open("/dev/null").unwrap());
        let fds = [kept.as_raw_fd(), closed.as_raw_fd()];
        let open = || fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let work = move || {
            have_own_descriptors(&fds[..1]).unwrap();
            // The kept descriptor, and the descriptor of the directory that lists them.
            let few = open();
            let _new = [(); 5].map(|()| File::open("/dev/null").unwrap());
            (few, open())
        };
        assert_eq!(spawn("own", work).unwrap().join().unwrap(), (2, 7));
        assert!(fs::metadata(format!("/proc/self/fd/{}", fds[1])).is_ok(), "here nothing was closed");
    }

    #[test]
    fn a_lent_function_that_panics_has_no_answer() {
        let lent = || -> ((), ()) { std::panic::resume_unwind(Box::new(5)) };
        assert_eq!(spawn_lending("lending", lent, drop).unwrap(), None);
    }
}
