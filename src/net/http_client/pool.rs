//! Idle connections, bounded in number and age.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::Agent;

use super::HttpRoute;
use crate::net::address::{Network, Trust};

/// Idle connections to one server of strangers.
const MAX_IDLE_PER_UNLISTED_SERVER: usize = 2;
/// How long a connection may be idle: below the 60 s after which common proxies close it.
const MAX_IDLE_TIME: Duration = Duration::from_secs(50);

/// A connection that was left open after its answer.
#[derive(Debug)]
pub(super) struct PooledConnection {
    pub(super) route: HttpRoute,
    pub(super) agent: Agent,
    /// The network that it is to, counted with every use.
    pub(super) subnet: Network,
    pub(super) idle_since: Instant,
}

/// The connections that wait for their next use, oldest first. Too old ones are closed when the pool is next touched.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    idle: Mutex<Vec<PooledConnection>>,
    max_idle: usize,
}

impl ConnectionPool {
    /// At most `most` idle connections in all.
    pub(super) fn new(most: usize) -> Self {
        Self {
            idle: Mutex::default(),
            max_idle: most,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PooledConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to `route` that was used last.
    pub(super) fn take(&self, route: &HttpRoute) -> Option<PooledConnection> {
        let mut idle = self.lock();
        let now = Instant::now();
        // closing a socket does not block
        idle.retain(|kept| now.duration_since(kept.idle_since) < MAX_IDLE_TIME);
        let index = idle.iter().rposition(|kept| kept.route == *route)?;
        Some(idle.remove(index))
    }

    /// Closes all connections to `route`: one of them has turned out to be dead, and the others may be as old.
    pub(super) fn close_all(&self, route: &HttpRoute) {
        self.lock().retain(|kept| kept.route != *route);
    }

    /// Keeps a connection; strangers' oldest go first when there are too many.
    pub(super) fn put(&self, mut kept: PooledConnection) {
        kept.idle_since = Instant::now();
        let mut idle = self.lock();
        let same = idle
            .iter()
            .filter(|other| other.route == kept.route)
            .count();
        if kept.route.trust == Trust::Unlisted && same >= MAX_IDLE_PER_UNLISTED_SERVER {
            return;
        }
        if idle.len() >= self.max_idle {
            let least = idle
                .iter()
                .enumerate()
                .min_by_key(|(_, other)| (other.route.trust, other.idle_since));
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

    fn kept(name: &str, trust: Trust) -> PooledConnection {
        let route = HttpRoute {
            host: Host::parse(name),
            port: 1,
            tls: None,
            authority: name.into(),
            trust,
        };
        PooledConnection {
            route,
            agent: Agent::new_with_defaults(),
            subnet: Network::subnet_of([127, 0, 0, 1].into()),
            idle_since: Instant::now(),
        }
    }

    #[test]
    fn strangers_never_push_out_a_listed_server() {
        let pool = ConnectionPool::new(50);
        for _ in 0..10 {
            pool.put(kept("own.example", Trust::Listed));
        }
        for n in 0..1000 {
            pool.put(kept(&format!("{n}.example"), Trust::Unlisted));
        }
        assert_eq!(pool.lock().len(), 50);
        let own = kept("own.example", Trust::Listed).route;
        assert_eq!((0..20).filter_map(|_| pool.take(&own)).count(), 10);
        assert!(
            pool.take(&kept("0.example", Trust::Unlisted).route)
                .is_none()
        );
    }

    #[test]
    fn a_stranger_finds_no_room_among_listed_servers() {
        let pool = ConnectionPool::new(2);
        for name in ["a.example", "b.example"] {
            pool.put(kept(name, Trust::Listed));
        }
        pool.put(kept("stranger.example", Trust::Unlisted));
        assert!(
            pool.take(&kept("stranger.example", Trust::Unlisted).route)
                .is_none()
        );
        pool.put(kept("c.example", Trust::Listed));
        assert!(pool.take(&kept("a.example", Trust::Listed).route).is_none());
        pool.close_all(&kept("b.example", Trust::Listed).route);
        assert!(pool.take(&kept("b.example", Trust::Listed).route).is_none());
        assert!(pool.take(&kept("c.example", Trust::Listed).route).is_some());
    }

    #[test]
    fn one_stranger_keeps_few_connections() {
        let pool = ConnectionPool::new(50);
        for _ in 0..10 {
            pool.put(kept("a.example", Trust::Unlisted));
        }
        assert_eq!(pool.lock().len(), MAX_IDLE_PER_UNLISTED_SERVER);
    }
}
