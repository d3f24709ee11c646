//! The calls that Rust's standard library and the crates here have no safe wrapper for.
//!
//! # Giving memory back
//!
//! The need, measured: 10,000 clients that connect at once pass through hyper's buffers, 12 KiB each. When all
//! are handed over those are free again, but a few small blocks among them keep the C library from giving the
//! pages back: 136 MiB stayed resident for ten thousand idle clients that need 17.
//!
//! The argument: `malloc_trim` takes no pointer and invalidates none. It gives free pages of the allocator's own
//! heaps back to the kernel, under the allocator's own locks, and may be called at any time from any thread.
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

/// Gives free memory back to the kernel. Takes milliseconds after a burst, during which other threads may wait
/// to allocate: for quiet moments. Does nothing where the C library is not glibc.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: see the module; the argument is the number of bytes to keep at the heap's top.
    unsafe {
        libc::malloc_trim(0);
    }
}
