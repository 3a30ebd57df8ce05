//! What the gate passes, tiny_http reads as exactly one request with the same body; however the bytes are cut, the gate
//! reads the same.
#![no_main]

use fuzz::{Reader, pass};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    static READER: RefCell<Reader> = RefCell::new(Reader::new());
}

fuzz_target!(|bytes: &[u8]| {
    let whole = pass(bytes, bytes.len().max(1));
    for piece in [1, 7] {
        let cut = pass(bytes, piece);
        assert_eq!(whole.is_some(), cut.is_some(), "cut into {piece}");
        if let (Some(whole), Some(cut)) = (&whole, cut) {
            assert_eq!((whole.used, &whole.request), (cut.used, &cut.request));
        }
    }
    if let Some(passed) = whole {
        // a second head inside of what was passed as one would be a smuggled request
        let head = passed.request.len() - passed.body.len();
        let end = passed
            .request
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        assert_eq!(end, Some(head - 4));
        READER.with_borrow_mut(|reader| reader.must_agree(&passed));
    }
});
