//! Files of the administrator.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Reads a file of at most `max_bytes`; the bound also ends a read of `/dev/zero`.
///
/// # Errors
///
/// [`io::ErrorKind::FileTooLarge`] for a larger file, else the system's error.
pub(crate) fn read_bounded(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        let reason = format!("larger than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_above_the_bound_is_an_error() {
        let path = Path::new("Cargo.toml");
        let length = std::fs::metadata(path).unwrap().len() as usize;
        assert_eq!(read_bounded(path, length).unwrap().len(), length);
        for (path, max) in [(path, length - 1), (Path::new("/dev/zero"), 9)] {
            let error = read_bounded(path, max).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert!(error.to_string().contains(&max.to_string()), "{error}");
        }
    }
}
