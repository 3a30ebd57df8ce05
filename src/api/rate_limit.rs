//! How often one address may ask for tokens, whatever it shows.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::server::event_loop::ServerLimits;
use crate::util::log_throttle::LogThrottle;
use crate::util::rate_limiter::{Rate, RateLimiter};

/// Most addresses whose pace is remembered: 2 MB. Beyond it the one that waits least starts afresh.
const MAX_ADDRESSES: usize = 16_384;

/// Counts the requests of each address, of Matrix and of all others together: a client that tries one path after the other
/// has one user.
///
/// What the gate does not count is not counted here either: proxies that are trusted, and private addresses, behind which there
/// may be a proxy that nobody named. See [`Limits`].
#[derive(Debug)]
pub(crate) struct AddressRateLimiter {
    limits: ServerLimits,
    /// Requests a minute, and as many at once; zero is without limit.
    requests_per_minute: u32,
    limiter: RateLimiter<IpAddr>,
    refused_throttle: LogThrottle,
}

impl AddressRateLimiter {
    /// Lets `per_minute` requests of each address pass, as `limits` tells addresses apart.
    pub(crate) fn new(per_minute: u32, limits: ServerLimits) -> Self {
        Self {
            limits,
            requests_per_minute: per_minute,
            limiter: RateLimiter::new(MAX_ADDRESSES),
            refused_throttle: LogThrottle::default(),
        }
    }

    /// What a client is counted under, if it is.
    pub(crate) fn rate_key(&self, client: &str) -> Option<IpAddr> {
        self.limits.limit_key(client.parse().ok()?)
    }

    /// Counts a request of a client, or says how long it has to wait.
    pub(crate) fn check(&self, client: &str) -> Result<(), Duration> {
        let Some(address) = self
            .rate_key(client)
            .filter(|_| self.requests_per_minute > 0)
        else {
            return Ok(());
        };
        let now = Instant::now();
        let passed =
            self.limiter
                .try_acquire(&address, Rate::per_minute(self.requests_per_minute), now);
        if passed.is_err() {
            debug!(
                "refused client={client} status=429 cause=\"too many requests of this address\""
            );
            if let Some(count) = self.refused_throttle.count(now) {
                warn!("rate_limited refused={count} by=address last={client}");
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_pace_and_proxies_have_none() {
        let turnstile = AddressRateLimiter::new(3, ServerLimits::default());
        let passed = |client| (0..9).filter(|_| turnstile.check(client).is_ok()).count();
        assert_eq!(passed("1.1.1.1"), 3);
        assert_eq!(passed("2606:4700::1") + passed("2606:4700::2"), 3);
        assert_eq!(passed("2606:4700:0:1::1"), 3);
        for uncounted in ["127.0.0.1", "::1", "10.0.0.1", "fd00::1", "unix", ""] {
            assert_eq!(passed(uncounted), 9, "{uncounted}");
        }
        let unlimited = AddressRateLimiter::new(0, ServerLimits::default());
        assert!((0..999).all(|_| unlimited.check("1.1.1.1").is_ok()));
    }
}
