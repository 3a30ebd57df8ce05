//! What the event loop accepts, tiny_http reads as exactly one request with the same body. Bytes in pieces of any size are read
//! alike.
#![no_main]

use fuzz::{TinyHttp, accept};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    static TINY_HTTP: RefCell<TinyHttp> = RefCell::new(TinyHttp::new());
}

fuzz_target!(|bytes: &[u8]| {
    let whole = accept(bytes, bytes.len().max(1));
    for piece in [1, 7] {
        let pieces = accept(bytes, piece);
        assert_eq!(whole.is_some(), pieces.is_some(), "in pieces of {piece}");
        if let (Some(whole), Some(pieces)) = (&whole, pieces) {
            assert_eq!((whole.used, &whole.request), (pieces.used, &pieces.request));
        }
    }
    if let Some(accepted) = whole {
        // a second head inside of it would be a smuggled request
        let head = accepted.request.len() - accepted.body.len();
        let end = accepted
            .request
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        assert_eq!(end, Some(head - 4));
        TINY_HTTP.with_borrow_mut(|tiny_http| tiny_http.assert_agrees(&accepted));
    }
});
