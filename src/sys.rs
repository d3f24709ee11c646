//! The calls that Rust's standard library and the crates here have no safe wrapper for.
//!
//! # Giving memory back
//!
//! The need, measured: 10,000 clients that connect at once pass through hyper's buffers, 12 KiB each. When all
//! are handed over those are free again, but a few small blocks among them keep the C library from giving the
//! pages back: 136 MiB stayed resident for ten thousand idle clients that need 12. Besides, the C library
//! learns from what is freed: after the first large table that was outgrown, the next ones come from the threads'
//! heaps, whose ends are not given back before twice as much is free. That was 1 MiB and more of ten thousand
//! `user` clients' 15.
//!
//! The argument: `mallopt` and `malloc_trim` take no pointer and invalidate none. The one sets numbers and is called
//! before there is a second thread; the other gives free pages of the allocator's own heaps back to the kernel,
//! under the allocator's own locks, and may be called at any time from any thread.
//!
//! # Sockets that systemd passes
//!
//! The need: socket activation hands over open descriptors by number alone (sd_listen_fds(3)), and a number
//! becomes an owned descriptor only by assertion.
//!
//! The argument: by that protocol descriptors 3 and up, as many as `LISTEN_FDS` says, belong to the process
//! that `LISTEN_PID` names, which is checked to be us, as is that each is open. They were open before `main`
//! began, so nothing in this process owns them yet; and they are taken at most once, before anything else is
//! opened that could stay open.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::limits::Limits;

/// The sockets that systemd passes, with their names (`FileDescriptorName=`); none where it passes none, and
/// whenever this is called again. To be called first of all.
///
/// # Errors
/// When `LISTEN_PID` and `LISTEN_FDS` are for us and make no sense.
pub fn passed_sockets() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: see the module; each number is in the list once, and the list is made once.
    Ok(passed.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// Large blocks are mappings of their own, so that they come back when they are freed, and a heap's end does too.
/// To be called before there is a second thread. Does nothing where the C library is not glibc.
pub fn settle_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: see the module; the numbers are sizes in bytes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, HEAP_END_BYTES);
        libc::mallopt(libc::M_TOP_PAD, HEAP_STEP_BYTES);
    }
}

/// A block of so many bytes is a mapping of its own. The tables and queues that grow with a crowd are; a message
/// of usual size is not, since a mapping costs a system call and a fault for every page.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: i32 = 64 << 10;

/// More than this at the end of a heap is given back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAP_END_BYTES: i32 = 64 << 10;

/// A heap grows by so much more than it needs.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAP_STEP_BYTES: i32 = 16 << 10;

/// Gives free memory back to the kernel. Takes milliseconds after a burst, during which other threads may wait
/// to allocate: for quiet moments. Does nothing where the C library is not glibc.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        empty_thread_cache();
        // SAFETY: see the module; the argument is the number of bytes to keep at the heap's top.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// A thread that frees what another one allocated: what came with clients that come and go. Its cache of small free
/// blocks (tcache) holds up to seven of each size, which after a rush lie all over the other's heap and keep a page
/// each: measured 50 pages a thread. It gives them back when the rush is over; [`give_memory_back`] then finds the
/// pages free.
///
/// Times are of one clock; the caller tells what time it is.
#[derive(Debug)]
pub struct ThreadCache {
    quiet: Duration,
    longest: Duration,
    /// How many clients came or left since it was emptied last.
    clients: usize,
    /// When the first of them did.
    first_at: Duration,
    /// When the last of them did.
    last_at: Duration,
}

impl ThreadCache {
    /// So many clients since the last time are worth it.
    const CROWD: usize = 64;

    /// So long after the last one a rush is over; less than [`give_memory_back`] is put off.
    const QUIET: Duration = Duration::from_millis(500);

    /// Where somebody comes all the time, it is emptied so often.
    const LONGEST: Duration = Duration::from_secs(10);

    /// An untouched cache, with the intervals that `limits` allow.
    pub fn new(limits: &Limits) -> ThreadCache {
        ThreadCache {
            quiet: limits.every(ThreadCache::QUIET),
            longest: limits.every(ThreadCache::LONGEST),
            clients: 0,
            first_at: Duration::ZERO,
            last_at: Duration::ZERO,
        }
    }

    /// So many clients came or left: what came with them is or will be freed in this turn.
    pub fn passed(&mut self, clients: usize, now: Duration) {
        if clients > 0 {
            self.first_at = if self.clients == 0 { now } else { self.first_at };
            self.clients += clients;
            self.last_at = now;
        }
    }

    /// How long until it is to be emptied; none if it need not be.
    pub fn due_in(&self, now: Duration) -> Option<Duration> {
        let due = (self.last_at + self.quiet).min(self.first_at + self.longest);
        (self.clients >= ThreadCache::CROWD).then(|| due.saturating_sub(now))
    }

    /// Empties it if that is due. Does nothing where the C library is not glibc.
    pub fn settle(&mut self, now: Duration) {
        if self.due_in(now).is_some_and(|time| time.is_zero()) {
            self.clients = 0;
            #[cfg(all(target_os = "linux", target_env = "gnu"))]
            empty_thread_cache();
        }
    }
}

/// Empties the calling thread's cache. Who asks for as many blocks as it may hold gets just these; freed by a thread
/// that ends, they go back to where they are.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn empty_thread_cache() {
    const OF_EACH_SIZE: usize = 7;
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(64 * OF_EACH_SIZE);
    for size in (24..=1032).step_by(16) {
        blocks.extend((0..OF_EACH_SIZE).map(|_| Vec::with_capacity(size)));
    }
    let freeing = std::thread::Builder::new().name("give-back".into()).spawn(move || drop(blocks));
    if let Ok(thread) = freeing {
        // It cannot panic, and if it did the blocks would be free all the same.
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_emptied_after_a_rush_and_not_for_a_few() {
        let at = Duration::from_millis;
        let mut cache = ThreadCache::new(&Limits::default());
        cache.passed(ThreadCache::CROWD - 1, at(1000));
        assert_eq!(cache.due_in(at(9000)), None, "for few it is not worth it");
        cache.passed(1, at(9000));
        assert_eq!(cache.due_in(at(9100)), Some(at(400)));
        cache.passed(1, at(9400));
        assert_eq!(cache.due_in(at(9500)), Some(at(400)), "not within the rush");
        cache.settle(at(9899));
        assert!(cache.due_in(at(9899)).is_some());
        cache.settle(at(9900));
        assert_eq!(cache.due_in(at(9900)), None);

        (0..100).for_each(|n| cache.passed(100, at(20_000 + 200 * n)));
        assert_eq!(cache.due_in(at(29_900)), Some(at(100)), "a rush without end is not waited for");
    }
}
