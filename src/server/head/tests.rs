use super::*;

const ALLOWED: &[&str] = &["Host", "Origin"];

fn parse(head: &str) -> Result<RequestHead<'_>, RequestRefusal> {
    let mut scanned = 0;
    assert_eq!(
        find_head_end(head.as_bytes(), &mut scanned),
        Ok(Some(head.len()))
    );
    RequestHead::parse(head.as_bytes(), ALLOWED)
}

fn written(head: &str) -> String {
    let mut out = Vec::new();
    parse(head).unwrap().write_backend_head(7, &mut out);
    String::from_utf8(out).unwrap()
}

fn decode(
    bytes: &[u8],
    piece: usize,
    room: usize,
) -> Result<(Vec<u8>, usize, bool), RequestRefusal> {
    let (mut decoder, mut body, mut total) = (ChunkDecoder::default(), Vec::new(), 0);
    for part in bytes.chunks(piece) {
        let left = room - body.len();
        let (used, complete) = decoder.decode(part, &mut body, left)?;
        total += used;
        if complete {
            return Ok((body, total, true));
        }
    }
    Ok((body, total, false))
}

#[test]
fn only_allowed_headers_are_written() {
    assert_eq!(
        written(
            "POST /a?b HTTP/1.1\r\nHost: h\r\nCookie: c\r\nX-Internal-Request-Id: 1\r\nConnection: host\r\n\
             origin: o\r\nContent-Length: 5\r\n\r\n"
        ),
        "POST /a?b HTTP/1.1\r\nTE: identity\r\nX-Internal-Request-Id: 7\r\nHost: h\r\norigin: o\r\nContent-Length: 5\r\n\r\n"
    );
}

#[test]
fn the_authority_of_a_target_replaces_the_host() {
    let head = "GET http://a:1/p HTTP/1.1\r\nHost: b\r\n\r\n";
    assert!(written(head).starts_with("GET /p HTTP/1.1\r\n"));
    assert!(written(head).contains("\r\nHost: a:1\r\n"));
}

#[test]
fn the_length_of_a_chunked_body_is_filled_in() {
    let mut request = Vec::new();
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    parse(head).unwrap().write_backend_head(7, &mut request);
    let body = request.len();
    request.extend_from_slice(b"0123456789ab");
    set_content_length(&mut request, body);
    let text = String::from_utf8(request).unwrap();
    assert!(
        text.ends_with("\r\nContent-Length: 0000000012\r\n\r\n0123456789ab"),
        "{text}"
    );
}

#[test]
fn close_overrides_keep_alive() {
    for (headers, keep_alive) in [
        ("", true),
        ("Connection: close\r\n", false),
        ("Connection: keep-alive, Close\r\n", false),
        ("Connection: close\r\nConnection: keep-alive\r\n", false),
        ("Connection: upgrade\r\n", true),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        assert_eq!(parse(&head).unwrap().keep_alive, keep_alive, "{headers}");
    }
    assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
    assert!(
        parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .unwrap()
            .keep_alive
    );
}

#[test]
fn only_http11_requests_with_a_body_expect_to_continue() {
    let expects = |version, length| {
        let head = format!(
            "POST / HTTP/1.{version}\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: {length}\r\n\r\n"
        );
        parse(&head).unwrap().expects_continue()
    };
    assert!(expects(1, 5));
    assert!(!expects(1, 0));
    assert!(!expects(0, 5));
}

#[test]
fn the_end_of_a_head_is_found_in_pieces_of_any_size() {
    let head = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET";
    for piece in 1..head.len() {
        let (mut scanned, mut received, mut end) = (0, 0, None);
        while end.is_none() && received < head.len() {
            received = (received + piece).min(head.len());
            end = find_head_end(&head[..received], &mut scanned).unwrap();
        }
        assert_eq!(end, Some(head.len() - 3), "in pieces of {piece}");
    }
    for wrong in [&b"GET / HTTP/1.1\n"[..], b"GET / HTTP/1.1\rH", b"\0", b"\n"] {
        assert_eq!(find_head_end(wrong, &mut 0), Err(RequestRefusal::Malformed));
    }
}

#[test]
fn chunks_are_decoded_in_pieces_of_any_size() {
    let bytes = b"5;x=y\r\nhello\r\n00b\r\n world 1234\r\n0\r\nT: v\r\n\r\nNEXT";
    for piece in 1..bytes.len() {
        let decoded = decode(bytes, piece, 16);
        assert_eq!(
            decoded,
            Ok((b"hello world 1234".to_vec(), bytes.len() - 4, true))
        );
    }
    assert_eq!(decode(bytes, 7, 15), Err(RequestRefusal::BodyTooLarge));
    assert!(matches!(decode(&bytes[..30], 7, 16), Ok((_, 30, false))));
}
