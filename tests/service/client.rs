//! A small HTTP/1.1 client: raw bytes in; status, header fields and body out. Its own, so that a test can send what no
//! well-behaved library would, and sees exactly what is answered.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer may take: the service itself gives up on others after 25 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// Where a service listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One answer.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The value of the field `name`, whatever its case; panics if it stands there twice.
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

    /// Status and errcode, which is what the status table speaks of.
    pub(crate) fn verdict(&self) -> (u16, String) {
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

/// One connection, which can be asked again as long as both sides keep it.
pub(crate) struct Connection {
    stream: BufReader<Box<dyn Stream>>,
}

impl Connection {
    pub(crate) fn open(address: &Address) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends raw bytes. A peer that has already answered and closed is no error here: its answer is still to be read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Reads one answer. `bodiless` says that it answers a HEAD, and so has no body whatever its length field says.
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

/// Sends these very bytes on a connection of their own and reads one answer.
pub(crate) fn raw(address: &Address, bytes: &[u8]) -> Reply {
    try_raw(address, bytes).unwrap_or_else(|error| panic!("no answer from {address:?}: {error}"))
}

/// As [`raw`], for requests that may be answered by closing the connection.
pub(crate) fn try_raw(address: &Address, bytes: &[u8]) -> io::Result<Reply> {
    let mut connection = Connection::open(address)?;
    connection.send(bytes);
    connection.receive(bytes.starts_with(b"HEAD "))
}

/// One request, written as a browser writes it.
pub(crate) fn request(address: &Address, method: &str, path: &str, body: &[u8]) -> Reply {
    raw(address, &written(method, path, body))
}

/// `POST` of a JSON body.
pub(crate) fn post(address: &Address, path: &str, body: &Value) -> Reply {
    request(address, "POST", path, body.to_string().as_bytes())
}

/// The bytes of a request with a body.
pub(crate) fn written(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    with_fields(method, path, "", body)
}

/// As [`written`], passed on by a proxy on this host for a client elsewhere.
pub(crate) fn forwarded(client: &str, path: &str, body: &Value) -> Vec<u8> {
    let fields = format!("X-Forwarded-For: {client}\r\n");
    with_fields("POST", path, &fields, body.to_string().as_bytes())
}

fn with_fields(method: &str, path: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: calls.example.com\r\nOrigin: https://app.example.com\r\n\
         {fields}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}
