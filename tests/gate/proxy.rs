//! With a real nginx in front, which keeps its connections to us and shares them among its clients: where smuggling hurts.
//!
//! Needs nginx, and therefore runs only when it is named: `cargo test --test gate -- nginx`.

use crate::client::{ATTACKER, PATIENCE, connect_from, read_answer};
use crate::malformed;
use crate::service::Service;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

crate::tests![
    nobody_is_answered_for_another_behind_nginx,
    clients_behind_nginx_have_limits_of_their_own,
];

struct Nginx {
    child: Child,
    address: SocketAddr,
    directory: std::path::PathBuf,
}

impl Nginx {
    /// One process, one kept connection to us: what one client leaves there the next one meets.
    fn before(service: &Service) -> Self {
        let directory = std::env::temp_dir().join(format!("gate-nginx-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let free = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = free.local_addr().expect("address");
        drop(free);
        let upstream = service.address();
        let at = directory.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 512; }}
             http {{
               access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
               fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
               upstream gate {{ server {upstream}; keepalive 1; }}
               server {{
                 listen {address}; ignore_invalid_headers off; client_max_body_size 0;
                 location / {{
                   proxy_pass http://gate; proxy_http_version 1.1; proxy_request_buffering off;
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
            .arg(directory.join("e.log"))
            .spawn();
        let child = child.expect("nginx is installed (apt-get install nginx-light)");
        let begun = Instant::now();
        while connect_from(ATTACKER, address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "nginx does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Self {
            child,
            address,
            directory,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn nobody_is_answered_for_another_behind_nginx() {
    let service = Service::stand(&[]);
    let nginx = Nginx::before(&service);
    let smuggled = b"GET /echo/smuggled HTTP/1.1\r\nHost: s\r\n\r\n";
    let victim = |name: &str| {
        let mut stream = connect_from(ATTACKER, nginx.address).expect("connect");
        let request = format!("GET /echo/{name} HTTP/1.1\r\nHost: v\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        let answer = read_answer(&mut stream, false).expect("an answer");
        assert_eq!(answer.status, 200, "{name}");
        assert!(
            answer.text().starts_with(&format!("GET /echo/{name} ")),
            "{name} got {}",
            answer.text()
        );
    };
    victim("first");
    let mut passed = 0;
    for (index, (row, request)) in malformed::requests().enumerate() {
        let mut stream = connect_from(ATTACKER, nginx.address).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_millis(60)))
            .expect("timeout");
        let _ = stream.write_all(&[&request, &smuggled[..]].concat());
        let mut said = Vec::new();
        match stream.read_to_end(&mut said) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {}
            _ => passed += usize::from(said.starts_with(b"HTTP/1.1 200")),
        }
        drop(stream);
        for name in ["victim", "second"] {
            victim(&format!("{name}-{index}"));
        }
        assert!(!row.is_empty());
    }
    println!("{passed} rows were repaired by nginx and then served");
    service.stop();
}

fn clients_behind_nginx_have_limits_of_their_own() {
    let service = Service::stand(&[("STAND_WORKERS", "8")]);
    let nginx = Nginx::before(&service);
    let begin = |client: &str| {
        let mut stream = connect_from(ATTACKER, nginx.address).expect("connect");
        let request =
            format!("GET /local/700 HTTP/1.1\r\nHost: v\r\nX-Test-Client: {client}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        stream
    };
    let mut greedy: Vec<_> = (0..6).map(|_| begin("192.0.2.1")).collect();
    let mut other = begin("192.0.2.2");
    assert_eq!(
        read_answer(&mut other, false).expect("an answer").status,
        200
    );
    let mut statuses: Vec<u16> = greedy
        .iter_mut()
        .map(|stream| read_answer(stream, false).expect("an answer").status)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 429, 429]);
    service.stop();
}
