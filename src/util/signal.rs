//! Signals as bytes of a pipe.

use std::ffi::c_int;
use std::io;
use std::os::unix::net::UnixStream;

/// Catches `signals` from now on; each of them writes a byte to the returned stream, which blocks.
pub(crate) fn signal_pipe(signals: &[c_int]) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, sender.try_clone()?)?;
    }
    Ok(receiver)
}
