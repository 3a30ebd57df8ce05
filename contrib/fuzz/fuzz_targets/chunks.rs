//! A chunked body in pieces of any size is decoded alike, and as another decoder decodes it; the room is never exceeded.
#![no_main]

use chunked_transfer::Decoder;
use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::ChunkDecoder;
use std::io::Read;

const ROOM: usize = 100;

/// The body and the number of bytes consumed; `None` if it has not ended, the status if it was refused.
fn decode(bytes: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, u16> {
    let (mut decoder, mut body, mut at) = (ChunkDecoder::default(), Vec::new(), 0);
    for part in bytes.chunks(piece) {
        let room = ROOM - body.len();
        let (used, complete) = decoder
            .decode(part, &mut body, room)
            .map_err(|refusal| refusal.status())?;
        assert!(body.len() <= ROOM);
        at += used;
        if complete {
            return Ok(Some((body, at)));
        }
        assert_eq!(used, part.len());
    }
    Ok(None)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    for piece in [1, 3] {
        assert_eq!(whole, decode(bytes, piece), "in pieces of {piece}");
    }
    let Ok(Some((body, used))) = whole else {
        return;
    };
    assert!(bytes[..used].ends_with(b"\r\n"));
    // the other decoder reads no trailers; what it decodes before them must agree
    let mut other = Vec::new();
    if Decoder::new(&bytes[..used]).read_to_end(&mut other).is_ok() {
        assert_eq!(body, other);
    }
    let encoded = [
        format!("{:x}\r\n", body.len()).as_bytes(),
        &body,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    let encoded = if body.is_empty() {
        b"0\r\n\r\n".to_vec()
    } else {
        encoded
    };
    assert_eq!(decode(&encoded, 5), Ok(Some((body, encoded.len()))));
});
