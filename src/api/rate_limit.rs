//! Rate limit of each client address for requests for tokens, whatever credentials they have.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::util::rate_limiter::{Rate, RateLimiter};

/// Addresses with a rate: 2 MB.
const MAX_ADDRESSES: usize = 16_384;

/// Limits the requests of each address. All endpoints share the limit, so that trying one after the other gains nothing.
#[derive(Debug)]
pub(crate) struct AddressRateLimiter {
    /// `None`: no limit.
    rate: Option<Rate>,
    limiter: RateLimiter<IpAddr>,
}

impl AddressRateLimiter {
    /// Allows `requests_per_minute`, and as many at once; 0 is no limit.
    pub(crate) fn new(requests_per_minute: u32) -> Self {
        Self {
            rate: (requests_per_minute > 0).then(|| Rate::per_minute(requests_per_minute)),
            limiter: RateLimiter::new(MAX_ADDRESSES),
        }
    }

    /// Counts a request of `rate_key`; `None` is a client without a limit.
    ///
    /// # Errors
    /// The limit is exceeded; retry after the duration.
    pub(crate) fn check(&self, rate_key: Option<IpAddr>) -> Result<(), Duration> {
        match (rate_key, self.rate) {
            (Some(address), Some(rate)) => self.limiter.try_acquire(&address, rate, Instant::now()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rate_key_has_its_own_limit() {
        let passed = |limiter: &AddressRateLimiter, key: Option<&str>| {
            let key = key.map(|key| key.parse().unwrap());
            (0..9).filter(|_| limiter.check(key).is_ok()).count()
        };
        let limiter = AddressRateLimiter::new(3);
        assert_eq!(passed(&limiter, Some("1.1.1.1")), 3);
        assert_eq!(passed(&limiter, Some("1.1.1.1")), 0);
        assert_eq!(passed(&limiter, Some("2606:4700::")), 3);
        assert_eq!(passed(&limiter, None), 9);
        assert_eq!(passed(&AddressRateLimiter::new(0), Some("1.1.1.1")), 9);
    }
}
