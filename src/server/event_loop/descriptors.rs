//! The descriptor limit, shared out before anyone connects: `accept` must never meet EMFILE.

use super::Error;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Standard streams, event queue, listeners, signals, random numbers, the service manager, a file that is being read.
const OWN_DESCRIPTORS: usize = 18;
/// The gate's end of a worker's connection, and the two of tiny_http.
const DESCRIPTORS_PER_WORKER_CONNECTION: usize = 3;
/// What a worker itself may open at once, a connection and a look-up for it, and what it may leave open for the next one:
/// a connection to a homeserver, and one to the SFU.
const DESCRIPTORS_PER_WORKER: usize = 4;
/// Fewer would let strangers' servers block what is local.
const MIN_WORKERS: usize = 2;

/// How many workers there can be, of those that are wanted, if half of all descriptors is left for clients.
/// Raises the soft limit to the hard one.
///
/// # Errors
/// [`Error::Descriptors`] if there could not even be two.
pub fn affordable_workers(wanted: usize) -> Result<usize, Error> {
    let limit = raise_descriptor_limit();
    let possible = (limit / 2).saturating_sub(OWN_DESCRIPTORS)
        / (DESCRIPTORS_PER_WORKER_CONNECTION + DESCRIPTORS_PER_WORKER);
    if possible < MIN_WORKERS {
        let needed = 2
            * (OWN_DESCRIPTORS
                + MIN_WORKERS * (DESCRIPTORS_PER_WORKER_CONNECTION + DESCRIPTORS_PER_WORKER));
        return Err(Error::Descriptors { limit, needed });
    }
    Ok(possible.min(wanted.max(MIN_WORKERS)))
}

/// How many clients there is room for, beside so many workers.
pub(super) fn affordable_clients(workers: usize) -> Result<usize, Error> {
    let limit = raise_descriptor_limit();
    let needed =
        OWN_DESCRIPTORS + workers * (DESCRIPTORS_PER_WORKER_CONNECTION + DESCRIPTORS_PER_WORKER);
    match limit.checked_sub(needed) {
        None | Some(0) => Err(Error::Descriptors {
            limit,
            needed: needed + 1,
        }),
        Some(room) => Ok(room),
    }
}

fn raise_descriptor_limit() -> usize {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    // where it may not be raised, the lower one counts
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now.maximum,
        Err(_) => now.current,
    };
    current.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}
