//! Behind a real nginx, which reuses its connections to the server for different clients: there a smuggled request does harm.

use crate::client::{CLIENT, HEALTH, connect_from, get, read_response, read_status, wait_until};
use crate::echo::EchoServer;
use crate::malformed_requests;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

struct Nginx {
    child: Child,
    address: SocketAddr,
    directory: PathBuf,
}

impl Nginx {
    /// Starts nginx with one process and one idle connection: what one client leaves there meets the next one.
    fn in_front_of(server: &EchoServer) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = free.local_addr().expect("an address");
        drop(free);
        let name = format!("server-nginx-{}-{}", std::process::id(), address.port());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let upstream = server.address();
        let at = directory.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 512; }}
             http {{
               access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
               fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
               upstream server {{ server {upstream}; keepalive 1; }}
               server {{
                 listen {address}; ignore_invalid_headers off; client_max_body_size 0;
                 location / {{
                   proxy_pass http://server; proxy_http_version 1.1; proxy_request_buffering off;
                   proxy_set_header Connection ''; proxy_set_header Host $host;
                   proxy_set_header X-Forwarded-For $http_x_test_client; proxy_pass_request_headers on;
                 }}
               }}
             }}"
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, config).expect("config");
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(directory.join("startup.log"))
            .spawn();
        let child = child.expect("nginx (apt-get install nginx-light)");
        wait_until("nginx", || TcpStream::connect(address).is_ok());
        Self {
            child,
            address,
            directory,
        }
    }

    fn send(&self, request: &[u8]) -> TcpStream {
        let mut stream = connect_from(CLIENT, self.address).expect("connect");
        stream.write_all(request).expect("write");
        stream
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn no_client_gets_the_response_to_another_one() {
    let server = EchoServer::start();
    let nginx = Nginx::in_front_of(&server);
    let check_exchange = |name: &str| {
        let response = read_response(&mut nginx.send(&get(&format!("/echo/{name}"))));
        let text = response.text();
        assert_eq!(response.status, 200, "{name}");
        assert!(
            text.starts_with(&format!("GET /echo/{name} ")),
            "{name} got {text}"
        );
    };
    check_exchange("first");
    let mut repaired = 0;
    for (index, request) in malformed_requests::all().enumerate() {
        let mut stream = connect_from(CLIENT, nginx.address).expect("connect");
        let timeout = Duration::from_millis(60);
        stream.set_read_timeout(Some(timeout)).expect("timeout");
        let smuggled = b"GET /echo/smuggled HTTP/1.1\r\nHost: s\r\n\r\n";
        let _ = stream.write_all(&[&request.bytes, &smuggled[..]].concat());
        let mut received = Vec::new();
        match stream.read_to_end(&mut received) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {}
            _ => repaired += usize::from(received.starts_with(b"HTTP/1.1 200")),
        }
        drop(stream);
        for name in ["next", "second"] {
            check_exchange(&format!("{name}-{index}"));
        }
    }
    eprintln!("{repaired} requests were repaired by nginx and then served");
    server.stop();
}

#[test]
fn limits_apply_to_the_clients_of_nginx() {
    let server = EchoServer::with_workers(8);
    let nginx = Nginx::in_front_of(&server);
    let send = |client: &str| {
        let request =
            format!("GET /local/a HTTP/1.1\r\nHost: v\r\nX-Test-Client: {client}\r\n\r\n");
        nginx.send(request.as_bytes())
    };
    let mut greedy: Vec<_> = (0..6).map(|_| send("192.0.2.1")).collect();
    server.wait_held(4);
    let mut other = send("192.0.2.2");
    server.wait_held(5);
    assert_eq!(read_status(&mut nginx.send(HEALTH)), 200);
    server.release("a");
    assert_eq!(read_status(&mut other), 200);
    let mut statuses: Vec<u16> = greedy.iter_mut().map(read_status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 429, 429]);
    server.stop();
}
