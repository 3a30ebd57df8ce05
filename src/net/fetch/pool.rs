//! Idle connections, bounded in number and age.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::Agent;

use super::Route;
use crate::net::address::{Network, Trust};

/// Idle connections to one server of strangers.
const MAX_IDLE_STRANGER: usize = 2;
/// How long a connection may be idle: below the 60 s after which common proxies close it.
const MAX_AGE: Duration = Duration::from_secs(50);

/// A connection that was left open after its answer.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) route: Route,
    pub(super) agent: Agent,
    /// The network that it is to, counted with every use.
    pub(super) near: Network,
    pub(super) since: Instant,
}

/// The connections that wait for their next use, oldest first. Too old ones are closed when the pool is next touched.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<Kept>>,
    most: usize,
}

impl Pool {
    /// At most `most` idle connections in all.
    pub(super) fn new(most: usize) -> Self {
        Self {
            idle: Mutex::default(),
            most,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to `route` that was used last.
    pub(super) fn take(&self, route: &Route) -> Option<Kept> {
        let mut idle = self.lock();
        let now = Instant::now();
        // closing a socket does not block
        idle.retain(|kept| now.duration_since(kept.since) < MAX_AGE);
        let index = idle.iter().rposition(|kept| kept.route == *route)?;
        Some(idle.remove(index))
    }

    /// Closes all connections to `route`: one of them has turned out to be dead, and the others may be as old.
    pub(super) fn forget(&self, route: &Route) {
        self.lock().retain(|kept| kept.route != *route);
    }

    /// Keeps a connection; strangers' oldest go first when there are too many.
    pub(super) fn put(&self, mut kept: Kept) {
        kept.since = Instant::now();
        let mut idle = self.lock();
        let same = idle
            .iter()
            .filter(|other| other.route == kept.route)
            .count();
        if kept.route.trust == Trust::Stranger && same >= MAX_IDLE_STRANGER {
            return;
        }
        if idle.len() >= self.most {
            let least = idle
                .iter()
                .enumerate()
                .min_by_key(|(_, other)| (other.route.trust, other.since));
            match least {
                Some((index, least)) if least.route.trust <= kept.route.trust => {
                    drop(idle.remove(index))
                }
                _ => return,
            }
        }
        idle.push(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address::Host;

    fn kept(name: &str, trust: Trust) -> Kept {
        let route = Route {
            host: Host::parse(name),
            port: 1,
            tls: None,
            authority: name.into(),
            trust,
        };
        Kept {
            route,
            agent: Agent::new_with_defaults(),
            near: Network::neighbourhood([127, 0, 0, 1].into()),
            since: Instant::now(),
        }
    }

    #[test]
    fn strangers_never_push_out_a_listed_server() {
        let pool = Pool::new(50);
        for _ in 0..10 {
            pool.put(kept("own.example", Trust::FullAccess));
        }
        for n in 0..1000 {
            pool.put(kept(&format!("{n}.example"), Trust::Stranger));
        }
        assert_eq!(pool.lock().len(), 50);
        let own = kept("own.example", Trust::FullAccess).route;
        assert_eq!((0..20).filter_map(|_| pool.take(&own)).count(), 10);
        assert!(
            pool.take(&kept("0.example", Trust::Stranger).route)
                .is_none()
        );
    }

    #[test]
    fn a_stranger_finds_no_room_among_listed_servers() {
        let pool = Pool::new(2);
        for name in ["a.example", "b.example"] {
            pool.put(kept(name, Trust::FullAccess));
        }
        pool.put(kept("stranger.example", Trust::Stranger));
        assert!(
            pool.take(&kept("stranger.example", Trust::Stranger).route)
                .is_none()
        );
        pool.put(kept("c.example", Trust::FullAccess));
        assert!(
            pool.take(&kept("a.example", Trust::FullAccess).route)
                .is_none()
        );
        pool.forget(&kept("b.example", Trust::FullAccess).route);
        assert!(
            pool.take(&kept("b.example", Trust::FullAccess).route)
                .is_none()
        );
        assert!(
            pool.take(&kept("c.example", Trust::FullAccess).route)
                .is_some()
        );
    }

    #[test]
    fn one_stranger_keeps_few_connections() {
        let pool = Pool::new(50);
        for _ in 0..10 {
            pool.put(kept("a.example", Trust::Stranger));
        }
        assert_eq!(pool.lock().len(), MAX_IDLE_STRANGER);
    }
}
