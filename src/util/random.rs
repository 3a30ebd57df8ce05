//! Randomness for ids and jitter, from the system.

/// `N` random bytes.
///
/// # Panics
///
/// If the system has no randomness, without which no TLS connection could be made either.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if let Err(error) = getrandom::getrandom(&mut bytes) {
        panic!("the system gives no random bytes: {error}");
    }
    bytes
}

/// A random number from 0 to `most`, each as likely.
pub(crate) fn up_to(most: u32) -> u32 {
    let random = u64::from(u32::from_ne_bytes(bytes()));
    // the high half of a product of two 32-bit numbers: never above `most`
    u32::try_from((random * (u64::from(most) + 1)) >> 32).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_number_of_a_range_turns_up() {
        let mut seen = [false; 4];
        for _ in 0..1000 {
            seen[super::up_to(3) as usize] = true;
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(super::up_to(0), 0);
    }
}
