//! How often one address may ask for tokens, whatever it shows.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::server::ClientAddress;
use crate::util::log_throttle::LogThrottle;
use crate::util::rate_limiter::{Rate, RateLimiter};

/// Most addresses whose pace is remembered: 2 MB. Beyond it the one that waits least starts afresh.
const MAX_ADDRESSES: usize = 16_384;

/// Counts the requests of each address, of Matrix and of all others together: a client that tries one path after the other
/// has one user.
#[derive(Debug)]
pub(crate) struct AddressRateLimiter {
    /// Requests a minute, and as many at once; zero is without limit.
    requests_per_minute: u32,
    limiter: RateLimiter<IpAddr>,
    refused_throttle: LogThrottle,
}

impl AddressRateLimiter {
    /// Lets `per_minute` requests of each address pass.
    pub(crate) fn new(per_minute: u32) -> Self {
        Self {
            requests_per_minute: per_minute,
            limiter: RateLimiter::new(MAX_ADDRESSES),
            refused_throttle: LogThrottle::default(),
        }
    }

    /// Counts a request of a client, whose limit is that of `rate_key`, or says how long it has to wait.
    pub(crate) fn check(
        &self,
        client: ClientAddress,
        rate_key: Option<IpAddr>,
    ) -> Result<(), Duration> {
        let Some(address) = rate_key.filter(|_| self.requests_per_minute > 0) else {
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
    fn each_rate_key_has_its_own_limit() {
        let passed = |limiter: &AddressRateLimiter, key: Option<&str>| {
            let key = key.map(|key| key.parse().unwrap());
            let check = |_: &usize| limiter.check(ClientAddress(key), key).is_ok();
            (0..9).filter(check).count()
        };
        let limiter = AddressRateLimiter::new(3);
        assert_eq!(passed(&limiter, Some("1.1.1.1")), 3);
        assert_eq!(passed(&limiter, Some("1.1.1.1")), 0);
        assert_eq!(passed(&limiter, Some("2606:4700::")), 3);
        assert_eq!(passed(&limiter, None), 9);
        assert_eq!(passed(&AddressRateLimiter::new(0), Some("1.1.1.1")), 9);
    }
}
