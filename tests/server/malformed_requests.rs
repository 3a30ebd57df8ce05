//! Malformed requests.

/// Requests, with the status of the refusal; `^` is CR LF, and a character above 7 bits is one byte.
const TABLE: &[(&str, u16)] = &[
    // framing
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 3^Transfer-Encoding: chunked^^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^Content-Length: 3^^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 3^Content-Length: 3^^abc",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 3^Content-Length: 4^^abc",
        400,
    ),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: 3, 3^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: +3^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: -1^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: 0x3^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: 3 3^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: 3a^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length:^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: 3\t4^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length : 3^^abc", 400),
    ("POST /echo HTTP/1.1^Host: a^Content-Length: 65537^^", 413),
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 10737418240^^",
        413,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 109951162777600^^",
        413,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 18446744073709551615^^",
        413,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Content-Length: 18446744073709551619^^",
        413,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: gzip, chunked^^0^^",
        501,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: identity^^0^^",
        501,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: xchunked^^0^^",
        501,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked, chunked^^0^^",
        501,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: \"chunked\"^^0^^",
        501,
    ),
    ("POST /echo HTTP/1.1^Host: a^Transfer-Encoding:^^0^^", 501),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: \u{b}chunked^^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding : chunked^^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^Transfer-Encoding: chunked^^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.0^Host: a^Transfer-Encoding: chunked^^0^^",
        400,
    ),
    // chunks
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^g^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^-1^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^+3^abc^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^0x3^abc^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^ 3^abc^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^3 ^abc^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^3^abcd^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^3\nabc^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^3;a\rb^abc^0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^3^abc\n0^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^10001^",
        413,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^ffffffffffffffff^",
        413,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^00000000000000000^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^0^no field^^",
        400,
    ),
    (
        "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^0^a: b^ folded^^",
        400,
    ),
    // line ends and other bytes
    ("GET /echo HTTP/1.1\nHost: a^^", 400),
    ("GET /echo HTTP/1.1^Host: a\n^^", 400),
    ("GET /echo HTTP/1.1^Host: a\n\n", 400),
    ("GET /echo HTTP/1.1\rHost: a^^", 400),
    ("GET /echo HTTP/1.1^Host: a^X: b\rGET / HTTP/1.1^^", 400),
    ("GET /echo HTTP/1.1^Host: a^X: b\0c^^", 400),
    ("GET /echo\0 HTTP/1.1^Host: a^^", 400),
    ("GET /echo HTTP/1.1^Host: a^X: b^ folded^^", 400),
    ("GET /echo HTTP/1.1^Host: a^X: b^\tfolded^^", 400),
    ("GET /echo HTTP/1.1^ Host: a^^", 400),
    ("GET /echo HTTP/1.1^Host: a^: nameless^^", 400),
    ("GET /echo HTTP/1.1^Host: a^no colon^^", 400),
    ("GET /echo HTTP/1.1^Host: a^X Y: b^^", 400),
    ("GET /echo HTTP/1.1^Host: a^X: \u{7f}^^", 400),
    ("GET /echo HTTP/1.1^Host: a^Authorization: \u{e9}^^", 400),
    ("^^", 400),
    // Host
    ("GET /echo HTTP/1.1^^", 400),
    ("GET /echo HTTP/1.1^Host: a^Host: a^^", 400),
    ("GET /echo HTTP/1.1^Host: a^host: b^^", 400),
    ("GET /echo HTTP/1.1^Host:^^", 400),
    ("GET /echo HTTP/1.1^Host: a b^^", 400),
    ("GET /echo HTTP/1.1^Host: a, b^^", 400),
    ("GET /echo HTTP/1.1^Host: a/b^^", 400),
    ("GET /echo HTTP/1.0^Host: a^Host: b^^", 400),
    // request line
    ("GET  /echo HTTP/1.1^Host: a^^", 400),
    ("GET /echo  HTTP/1.1^Host: a^^", 400),
    (" GET /echo HTTP/1.1^Host: a^^", 400),
    ("GET /echo HTTP/1.1 ^Host: a^^", 400),
    ("GET /echo HTTP/1.1 junk^Host: a^^", 400),
    ("GET /e cho HTTP/1.1^Host: a^^", 400),
    ("GET echo HTTP/1.1^Host: a^^", 400),
    ("GET /echo#part HTTP/1.1^Host: a^^", 400),
    ("GET * HTTP/1.1^Host: a^^", 400),
    ("GET ftp://a/echo HTTP/1.1^Host: a^^", 400),
    ("GET http:///echo HTTP/1.1^Host: a^^", 400),
    ("GET http://a@b c/ HTTP/1.1^Host: a^^", 400),
    ("GET /\u{e9} HTTP/1.1^Host: a^^", 400),
    ("GET /echo^^", 400),
    ("GET^^", 400),
    ("GET /echo http/1.1^Host: a^^", 400),
    ("GET /echo HTTP/1^Host: a^^", 400),
    ("GET /echo HTTP/1.10^Host: a^^", 400),
    ("GET /echo HTTX/1.1^Host: a^^", 400),
    ("GET /echo HTTP/1.2^Host: a^^", 505),
    ("GET /echo HTTP/0.9^Host: a^^", 505),
    ("GET /echo HTTP/2.0^Host: a^^", 505),
    ("PRI * HTTP/2.0^^SM^^", 505),
    ("GET /echo HTTP/3.0^Host: a^^", 505),
    ("CONNECT a:443 HTTP/1.1^Host: a^^", 501),
    ("TRACE /echo HTTP/1.1^Host: a^^", 501),
    ("get /echo HTTP/1.1^Host: a^^", 501),
    ("G@T /echo HTTP/1.1^Host: a^^", 400),
    ("\u{16}\u{3}\u{1}\0\u{1}", 400),
    // expectations
    (
        "POST /echo HTTP/1.1^Host: a^Expect: 200-ok^Content-Length: 1^^a",
        417,
    ),
];

pub(crate) struct MalformedRequest {
    /// The row of the table.
    pub(crate) row: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) status: u16,
}

pub(crate) fn all() -> impl Iterator<Item = MalformedRequest> {
    TABLE.iter().map(|&(row, status)| MalformedRequest {
        row,
        bytes: bytes(row),
        status,
    })
}

pub(crate) fn bytes(row: &str) -> Vec<u8> {
    row.replace('^', "\r\n").chars().map(|c| c as u8).collect()
}
