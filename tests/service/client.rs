//! A small HTTP/1.1 client: raw bytes in; status, header fields and body out. Tests can send what no HTTP library would, and see
//! the exact response.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Only a hang takes longer: the service waits for other servers for 25 s at most.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where a service listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A response.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The value of the header field `name`; panics if there are two.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice in {self:?}");
        value
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Status and errcode.
    pub(crate) fn status_and_errcode(&self) -> (u16, String) {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let errcode = body["errcode"].as_str().unwrap_or_default();
        (self.status, errcode.to_owned())
    }

    /// The `jwt` of a successful reply.
    pub(crate) fn jwt(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["jwt"]
            .as_str()
            .unwrap_or_else(|| panic!("no jwt in {self:?}"))
            .to_owned()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "{} {:?} {body:?}", self.status, self.headers)
    }
}

/// A connection, for one request after the other.
pub(crate) struct Connection {
    stream: BufReader<Box<dyn Stream>>,
}

impl Connection {
    pub(crate) fn open(address: &Address) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, TIMEOUT)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
        };
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends raw bytes. Ignores an error: the peer may have closed the connection after its response, which can still be read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Reads a response. `bodiless`: to HEAD, so that it has no body whatever its Content-Length is.
    pub(crate) fn receive(&mut self, bodiless: bool) -> io::Result<Reply> {
        let status_line = self.line()?;
        let status = status_line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| io::Error::other(format!("status line {status_line:?}")))?;
        let mut reply = Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            reply
                .headers
                .push((name.to_owned(), value.trim().to_owned()));
        }
        assert_eq!(reply.header("transfer-encoding"), None, "unsized {reply:?}");
        if bodiless || status == 204 {
            return Ok(reply);
        }
        match reply.header("content-length").map(str::parse::<usize>) {
            Some(length) => {
                reply.body = vec![0; length.map_err(io::Error::other)?];
                self.stream.read_exact(&mut reply.body)?;
            }
            None => {
                self.stream.read_to_end(&mut reply.body)?;
            }
        }
        Ok(reply)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Sends exactly these bytes on a new connection and reads the response.
pub(crate) fn raw(address: &Address, bytes: &[u8]) -> Reply {
    try_raw(address, bytes).unwrap_or_else(|error| panic!("no response from {address:?}: {error}"))
}

/// As [`raw`], for requests to which the service may close the connection without a response.
pub(crate) fn try_raw(address: &Address, bytes: &[u8]) -> io::Result<Reply> {
    let mut connection = Connection::open(address)?;
    connection.send(bytes);
    connection.receive(bytes.starts_with(b"HEAD "))
}

/// Sends a request as a browser writes it.
pub(crate) fn request(address: &Address, method: &str, path: &str, body: &[u8]) -> Reply {
    raw(address, &written(method, path, body))
}

/// `POST` of a JSON body.
pub(crate) fn post(address: &Address, path: &str, body: &Value) -> Reply {
    request(address, "POST", path, body.to_string().as_bytes())
}

/// The bytes of a request with a body.
pub(crate) fn written(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    with_headers(method, path, "", body)
}

/// As [`written`], as a proxy on this host sends it for `client`.
pub(crate) fn forwarded(client: &str, path: &str, body: &Value) -> Vec<u8> {
    let headers = format!("X-Forwarded-For: {client}\r\n");
    with_headers("POST", path, &headers, body.to_string().as_bytes())
}

fn with_headers(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: calls.example.com\r\nOrigin: https://app.example.com\r\n\
         {headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}
