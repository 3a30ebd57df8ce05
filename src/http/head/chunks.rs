//! Chunked bodies, RFC 9112 section 7.1: every byte in its place, or refused.

use super::Refusal;

/// Bytes of a line of framing: a size with its extensions, or a trailer. Nobody sends either; they are only tolerated.
const LINE_BYTES: usize = 256;
/// Bytes of all extensions of a body, so that endless chunks of one byte carry no ballast.
const EXTENSION_BYTES: usize = 1024;
/// Bytes of all trailers of a body.
const TRAILER_BYTES: usize = 4096;
/// Hexadecimal digits of a size, leading zeros included.
const SIZE_DIGITS: usize = 16;

/// The decoder of one body. Extensions and trailers are read, bounded and thrown away.
#[derive(Debug, Default)]
pub struct Chunks {
    expected: Expected,
    line: Vec<u8>,
    extensions: usize,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum Expected {
    #[default]
    Size,
    Data(usize),
    /// The CR or LF after the data.
    DataEnd(u8),
    Trailer,
}

impl Chunks {
    /// Decodes what has come into `out`, which holds `room` more bytes at most. Returns how much of the input it has used,
    /// and whether the body is complete; if it is not, all has been used.
    ///
    /// # Errors
    /// The refusal that the client gets: the body is too large, its trailers are, or its framing is wrong.
    pub fn feed(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut room: usize,
    ) -> Result<(usize, bool), Refusal> {
        let mut used = 0;
        while let Some(&byte) = input.get(used) {
            match self.expected {
                Expected::Data(left) => {
                    let count = left.min(input.len() - used);
                    out.extend_from_slice(&input[used..used + count]);
                    room -= count;
                    used += count;
                    self.expected = match left - count {
                        0 => Expected::DataEnd(b'\r'),
                        left => Expected::Data(left),
                    };
                }
                Expected::DataEnd(end) => {
                    if byte != end {
                        return Err(Refusal::Malformed);
                    }
                    used += 1;
                    self.expected = match end {
                        b'\r' => Expected::DataEnd(b'\n'),
                        _ => Expected::Size,
                    };
                }
                Expected::Size | Expected::Trailer => {
                    used += 1;
                    if self.take(byte)? && self.finish_line(room)? {
                        return Ok((used, true));
                    }
                }
            }
        }
        Ok((used, false))
    }

    /// Adds a byte to the line; true once the line is complete.
    fn take(&mut self, byte: u8) -> Result<bool, Refusal> {
        let after_cr = self.line.last() == Some(&b'\r');
        if byte == 0 || self.line.len() >= LINE_BYTES || (byte == b'\n') != after_cr {
            return Err(Refusal::Malformed);
        }
        self.line.push(byte);
        Ok(byte == b'\n')
    }

    /// Reads a complete line; true if it ends the body.
    fn finish_line(&mut self, room: usize) -> Result<bool, Refusal> {
        let line = &self.line[..self.line.len() - 2];
        if matches!(self.expected, Expected::Trailer) {
            self.trailers += self.line.len();
            if self.trailers > TRAILER_BYTES {
                return Err(Refusal::HeadTooLarge);
            }
            if !line.is_empty() && !is_field(line) {
                return Err(Refusal::Malformed);
            }
            let ends = line.is_empty();
            self.line.clear();
            return Ok(ends);
        }
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let visible = |b: &u8| *b == b'\t' || *b == b' ' || b.is_ascii_graphic();
        if digits == 0
            || digits > SIZE_DIGITS
            || !matches!(extension, [] | [b';', ..])
            || !extension.iter().all(visible)
        {
            return Err(Refusal::Malformed);
        }
        self.extensions += extension.len();
        if self.extensions > EXTENSION_BYTES {
            return Err(Refusal::Malformed);
        }
        let size = size.iter().fold(0_u64, |size, digit| {
            (size << 4) | u64::from((*digit as char).to_digit(16).unwrap_or(0))
        });
        if size > room as u64 {
            return Err(Refusal::BodyTooLarge);
        }
        self.expected = match size {
            0 => Expected::Trailer,
            size => Expected::Data(size as usize),
        };
        self.line.clear();
        Ok(false)
    }
}

/// Whether a line is `name: value`; a folded or nameless one is neither.
fn is_field(line: &[u8]) -> bool {
    let name = line.iter().position(|b| *b == b':').unwrap_or(0);
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let text = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
    name > 0 && line[..name].iter().all(token) && line[name..].iter().all(text)
}
