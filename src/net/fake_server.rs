//! Fake HTTP server for unit tests of clients, with a response of the test's choice to each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::net::base_url::BaseUrl;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordedRequest {
    /// Method and target.
    pub(crate) request_line: String,
    /// Value of `Authorization`.
    pub(crate) authorization: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// The server, until the test process ends.
pub(crate) struct FakeServer {
    port: u16,
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
}

impl FakeServer {
    /// Answers each request with the result of `respond`: status line and header fields without the length, and the body; `None`
    /// closes the connection.
    pub(crate) fn new(
        respond: impl Fn(&RecordedRequest) -> Option<(&'static str, Vec<u8>)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<RecordedRequest>>>::default();
        let (recorded, respond) = (requests.clone(), Arc::new(respond));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (recorded, respond) = (recorded.clone(), respond.clone());
                thread::spawn(move || serve_connection(stream, &recorded, &*respond));
            }
        });
        Self { port, requests }
    }

    pub(crate) fn url(&self, path: &str) -> BaseUrl {
        BaseUrl::parse(&format!("http://127.0.0.1:{}{path}", self.port)).unwrap()
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Methods and targets of all requests so far.
    pub(crate) fn request_lines(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .map(|request| request.request_line)
            .collect()
    }
}

type Responder = dyn Fn(&RecordedRequest) -> Option<(&'static str, Vec<u8>)>;

fn serve_connection(
    stream: TcpStream,
    recorded: &Mutex<Vec<RecordedRequest>>,
    respond: &Responder,
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
        let request = RecordedRequest {
            request_line: head[0].trim_end_matches(" HTTP/1.1").to_owned(),
            authorization: field("authorization"),
            body,
        };
        recorded.lock().unwrap().push(request.clone());
        let (head, body) = respond(&request)?;
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        (&stream)
            .write_all(&[head.as_bytes(), &body].concat())
            .ok()?;
    }
}
