//! Locks, condition variables, replaceable values and threads.
//!
//! **Panics.** One rule for every thread of the service: a thread that panics ends the process with exit code 1, after a log line
//! with the cause, so that the supervisor restarts a whole service instead of keeping half of one. [`spawn`] starts threads under this
//! rule, [`exit_on_panic`] applies it to the current one. Code that can survive a panic of a part (a request handler, the
//! parser of a damaged file) catches it around that part. Since other panics end the process, no lock stays poisoned by a thread
//! that has ended, and [`lock`] ignores poison.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, process};

/// Exit code of the process after a panic.
const EXIT_PANIC: i32 = 1;

/// Locks `mutex`, poisoned or not.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a notification, for `timeout` at most.
pub(crate) fn wait_timeout<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    let waited = condvar.wait_timeout(guard, timeout);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// Waits while `condition` holds.
pub(crate) fn wait_while<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    let waited = condvar.wait_while(guard, condition);
    waited.unwrap_or_else(PoisonError::into_inner)
}

/// Waits while `condition` holds, for `timeout` at most.
pub(crate) fn wait_timeout_while<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    let waited = condvar.wait_timeout_while(guard, timeout, condition);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// Starts a thread; see the module for what a panic in it does.
///
/// # Errors
///
/// If the system has no thread left.
pub(crate) fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_from(thread::Builder::new().name(name.into()), work)
}

/// As [`spawn`], for a builder with more than a name.
pub(crate) fn spawn_from<T: Send + 'static>(
    builder: thread::Builder,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    builder.spawn(|| exit_on_panic(work))
}

/// Does `work`; a panic in it ends the process.
pub(crate) fn exit_on_panic<T>(work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!(thread = thread::current().name(); "process ends after a panic");
        process::exit(EXIT_PANIC)
    })
}

/// A value that is replaced as a whole while other threads use it.
#[derive(Debug)]
pub(crate) struct Swappable<T>(RwLock<Arc<T>>);

impl<T> Swappable<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// The current value; a later replacement does not change it.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the value for later calls of [`Self::get`].
    pub(crate) fn replace(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_value_in_use_outlives_its_replacement() {
        let value = Swappable::new(1);
        let in_use = value.get();
        value.replace(2);
        assert_eq!((*in_use, *value.get()), (1, 2));
    }

    /// Runs the test binary again, where this test panics in a thread.
    #[test]
    fn a_panic_in_a_thread_ends_the_process() {
        const CHILD: &str = "TEST_PANIC_IN_THREAD";
        const NAME: &str = "util::sync::tests::a_panic_in_a_thread_ends_the_process";
        if env::var_os(CHILD).is_some() {
            let level = log::LevelFilter::Info;
            crate::util::logging::start(level, crate::util::logging::LogFormat::Logfmt).unwrap();
            let thread = spawn("panicking", || panic!("for the test")).unwrap();
            let _: Result<(), _> = thread.join();
            unreachable!("the process ends first");
        }
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(EXIT_PANIC), "{stderr}");
        for part in ["level=error", "thread=panicking", "cause=\"for the test\""] {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
    }
}
