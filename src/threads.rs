// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every thread of the library begins here: it takes no signal of the program's, and may have descriptors of its own.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Signals by which the kernel tells a thread of its own fault. Blocked, they would end the process without a word.
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

/// Begins a thread that stays when its caller goes on, though it begins with what the caller lends it. `lent` is done
/// before this returns, with what it has made, or with none if it has panicked; `rest` gets the same and stays.
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
    // SAFETY: what is borrowed for 'a is in `lent` and `answer` only. `lent` is used up before the answer is sent, or
    // dropped before `tell` is; the answer is received here. So nothing of 'a is left on that thread when recv() returns.
    unsafe { Builder::new().name(name.into()).spawn_unchecked(work) }?;
    Ok(told.recv().ok())
}

/// While this lives the calling thread takes no signals, and neither do the threads that it begins: they have its mask
/// from their first instruction. What comes meanwhile comes afterwards.
struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    fn new() -> Self {
        // SAFETY: sets of signals are plain data that the first call fills. By libc, and not by a system call: it leaves
        // open the signal through which setuid(2) reaches all threads.
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
        // SAFETY: the set that was there before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Gives the calling thread descriptors of its own, of which only these are open: what it opens from then on no process
/// that is forked gets a copy of, and it holds nothing of the program's. Refused before Linux 5.9; then all is as before.
pub(crate) fn have_own_descriptors(needed: &[RawFd]) -> io::Result<()> {
    // include/uapi/linux/close_range.h
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    let mut needed: Vec<u32> = needed.iter().filter_map(|&fd| fd.try_into().ok()).collect();
    needed.sort_unstable();
    // From the top: what is above the highest is not even copied.
    close_range(needed.last().map_or(0, |last| last + 1), u32::MAX, CLOSE_RANGE_UNSHARE)?;
    for (i, &end) in needed.iter().enumerate() {
        let first = i.checked_sub(1).map_or(0, |before| needed[before] + 1);
        if first < end {
            close_range(first, end - 1, 0)?;
        }
    }
    Ok(())
}

/// Closes these, on a thread that has descriptors of its own.
pub(crate) fn close_own_descriptors(fds: &[RawFd]) {
    for fd in fds.iter().filter_map(|&fd| u32::try_from(fd).ok()) {
        drop(close_range(fd, fd, 0));
    }
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: only called for descriptors of a thread's own, which nothing in it refers to.
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
            // Those of libc.
            assert!(!is_in(mask, 32) && !is_in(mask, 33), "{mask:x}");
        }
        assert_eq!(blocked(), before);
    }

    #[test]
    fn what_a_thread_with_descriptors_of_its_own_opens_nobody_else_has() {
        let [kept, closed] = [(); 2].map(|()| File::open("/dev/null").unwrap());
        let fds = [kept.as_raw_fd(), closed.as_raw_fd()];
        let open = || fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let work = move || {
            have_own_descriptors(&fds[..1]).unwrap();
            // The one that was kept, and the one by which they are listed.
            let few = open();
            let _new = [(); 5].map(|()| File::open("/dev/null").unwrap());
            (few, open())
        };
        assert_eq!(spawn("own", work).unwrap().join().unwrap(), (2, 7));
        assert!(fs::metadata(format!("/proc/self/fd/{}", fds[1])).is_ok(), "here nothing was closed");
    }

    #[test]
    fn a_loan_that_panics_has_no_answer() {
        let lent = || -> ((), ()) { std::panic::resume_unwind(Box::new(5)) };
        assert_eq!(spawn_lending("lending", lent, drop).unwrap(), None);
    }
}
