//! A server of one's own for the tests of the wires. A fake, as no real one can be told what to answer to each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::net::base_url::BaseUrl;

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordedRequest {
    /// Method and target.
    pub(crate) request_line: String,
    /// The value of `Authorization`.
    pub(crate) authorization: Option<String>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// A server on a port of its own, until the test ends.
pub(crate) struct FakeServer {
    port: u16,
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
}

impl FakeServer {
    /// Answers each request with what `answer` gives for it: status line and fields without the length, and the body. Without
    /// an answer the connection is closed.
    pub(crate) fn new(
        answer: impl Fn(&RecordedRequest) -> Option<(&'static str, Vec<u8>)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<RecordedRequest>>>::default();
        let (all, answer) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, answer) = (all.clone(), answer.clone());
                thread::spawn(move || serve_connection(stream, &all, &*answer));
            }
        });
        Self {
            port,
            requests: asked,
        }
    }

    /// Where it is.
    pub(crate) fn url(&self, path: &str) -> BaseUrl {
        BaseUrl::parse(&format!("http://127.0.0.1:{}{path}", self.port)).unwrap()
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Methods and targets of what it was asked so far.
    pub(crate) fn request_lines(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .map(|asked| asked.request_line)
            .collect()
    }
}

type Responder = dyn Fn(&RecordedRequest) -> Option<(&'static str, Vec<u8>)>;

fn serve_connection(
    stream: TcpStream,
    all: &Mutex<Vec<RecordedRequest>>,
    answer: &Responder,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let field = |name: &str| {
            let fields = head.iter().filter_map(|line| line.split_once(": "));
            let mut named = fields.filter(|(n, _)| n.eq_ignore_ascii_case(name));
            named.next().map(|(_, value)| value.to_owned())
        };
        let length = field("content-length").map_or(0, |value| value.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let line = head[0].trim_end_matches(" HTTP/1.1").to_owned();
        let authorization = field("authorization");
        let asked = RecordedRequest {
            request_line: line,
            authorization,
            body,
        };
        all.lock().unwrap().push(asked.clone());
        let (head, body) = answer(&asked)?;
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        (&stream)
            .write_all(&[head.as_bytes(), &body].concat())
            .ok()?;
    }
}
