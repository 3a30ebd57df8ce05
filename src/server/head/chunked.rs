//! The chunked coding, RFC 9112 section 7.1, without leniency.

use crate::server::service::RequestRefusal;

/// Bytes of a line of framing: a size with its extensions, or a trailer field. Both are rare and only tolerated.
const MAX_LINE_BYTES: usize = 256;
/// Bytes of all extensions of a body, so that many small chunks do not carry large extensions.
const MAX_EXTENSION_BYTES: usize = 1024;
/// Bytes of all trailer fields of a body.
const MAX_TRAILER_BYTES: usize = 4096;
/// Hexadecimal digits of a size, leading zeros included.
const MAX_SIZE_DIGITS: usize = 16;

/// Decodes one body; discards extensions and trailer fields.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    state: ChunkState,
    line: Vec<u8>,
    extension_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum ChunkState {
    #[default]
    Size,
    Data(usize),
    /// The empty line after the data.
    DataEnd,
    Trailer,
}

impl ChunkDecoder {
    /// Appends the decoded `input` to `out`, at most `room` bytes. Returns the number of bytes consumed, and whether the body
    /// is complete; an incomplete body has consumed the whole input.
    ///
    /// # Errors
    /// [`RequestRefusal::BodyTooLarge`], [`RequestRefusal::HeadTooLarge`] for the trailer, or [`RequestRefusal::Malformed`].
    pub fn decode(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut room: usize,
    ) -> Result<(usize, bool), RequestRefusal> {
        let mut used = 0;
        while let Some(&byte) = input.get(used) {
            if let ChunkState::Data(left) = self.state {
                let count = left.min(input.len() - used);
                out.extend_from_slice(&input[used..used + count]);
                room -= count;
                used += count;
                self.state = match left - count {
                    0 => ChunkState::DataEnd,
                    left => ChunkState::Data(left),
                };
            } else {
                used += 1;
                if self.push_line_byte(byte)? && self.parse_line(room)? {
                    return Ok((used, true));
                }
            }
        }
        Ok((used, false))
    }

    /// Appends a byte to the line; true if the line is complete.
    fn push_line_byte(&mut self, byte: u8) -> Result<bool, RequestRefusal> {
        let after_cr = self.line.last() == Some(&b'\r');
        let out_of_place = matches!(self.state, ChunkState::DataEnd) && !b"\r\n".contains(&byte);
        if byte == 0
            || out_of_place
            || self.line.len() >= MAX_LINE_BYTES
            || (byte == b'\n') != after_cr
        {
            return Err(RequestRefusal::Malformed);
        }
        self.line.push(byte);
        Ok(byte == b'\n')
    }

    /// Interprets a complete line; true if it ends the body.
    fn parse_line(&mut self, room: usize) -> Result<bool, RequestRefusal> {
        let line = &self.line[..self.line.len() - 2];
        let ends_body = match self.state {
            ChunkState::Trailer => {
                self.trailer_bytes += self.line.len();
                if self.trailer_bytes > MAX_TRAILER_BYTES {
                    return Err(RequestRefusal::HeadTooLarge);
                }
                if !line.is_empty() && !is_header_line(line) {
                    return Err(RequestRefusal::Malformed);
                }
                line.is_empty()
            }
            ChunkState::DataEnd => {
                self.state = ChunkState::Size;
                false
            }
            ChunkState::Size | ChunkState::Data(_) => {
                let (size, extension_bytes) = parse_size_line(line)?;
                self.extension_bytes += extension_bytes;
                if self.extension_bytes > MAX_EXTENSION_BYTES {
                    return Err(RequestRefusal::Malformed);
                }
                self.state = match usize::try_from(size) {
                    Ok(0) => ChunkState::Trailer,
                    Ok(size) if size <= room => ChunkState::Data(size),
                    _ => return Err(RequestRefusal::BodyTooLarge),
                };
                false
            }
        };
        self.line.clear();
        Ok(ends_body)
    }
}

/// Parses the size of a chunk, and counts the bytes of its extensions.
fn parse_size_line(line: &[u8]) -> Result<(u64, usize), RequestRefusal> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    let visible = |b: &u8| *b == b'\t' || *b == b' ' || b.is_ascii_graphic();
    if !(1..=MAX_SIZE_DIGITS).contains(&digits)
        || !matches!(extension, [] | [b';', ..])
        || !extension.iter().all(visible)
    {
        return Err(RequestRefusal::Malformed);
    }
    let size = size.iter().fold(0_u64, |size, digit| {
        (size << 4) | u64::from((*digit as char).to_digit(16).unwrap_or(0))
    });
    Ok((size, extension.len()))
}

/// Whether a line is `name: value`, without folding.
fn is_header_line(line: &[u8]) -> bool {
    let name = line.iter().position(|b| *b == b':').unwrap_or(0);
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let text = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
    name > 0 && line[..name].iter().all(token) && line[name..].iter().all(text)
}
