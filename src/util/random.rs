//! Random numbers of the system, for ids, keys and jitter.

/// `N` random bytes.
///
/// # Panics
///
/// If the system returns none, without which TLS is impossible as well.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if let Err(error) = getrandom::getrandom(&mut bytes) {
        panic!("the system returns no random bytes: {error}");
    }
    bytes
}

/// A random number from 0 to `max`, uniformly distributed.
pub(crate) fn up_to(max: u32) -> u32 {
    let random = u64::from(u32::from_ne_bytes(bytes()));
    // the high half of a product of two 32-bit numbers: never above `max`
    u32::try_from((random * (u64::from(max) + 1)) >> 32).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_number_of_a_range_occurs() {
        let mut seen = [false; 4];
        for _ in 0..1000 {
            seen[super::up_to(3) as usize] = true;
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(super::up_to(0), 0);
    }
}
