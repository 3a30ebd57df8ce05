//! SRV records (RFC 2782) of absolute names: resolv.conf(5), UDP with EDNS0, TCP when an answer was cut.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use resolv_conf::ScopedIp;
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

use super::Error;
use crate::util::random;

/// Servers of resolv.conf that are asked: the resolver's own limit (MAXNS).
const MAX_SERVERS: usize = 3;
/// Rounds over all servers: resolv.conf(5) allows 5.
const MAX_ATTEMPTS: u32 = 5;
/// Longest wait for one server: resolv.conf(5) allows 30 s, which no caller waits for.
const MAX_SERVER_WAIT: Duration = Duration::from_secs(5);
/// Shortest wait for one server, however little time there is for all of them.
const MIN_SERVER_WAIT: Duration = Duration::from_millis(500);
/// Largest answer over UDP that we announce, in bytes: the size that passes everywhere unfragmented (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// Largest answer over TCP that is read, in bytes: room for some 200 records; more are of no use.
const MAX_TCP_ANSWER: usize = 16 * 1024;
/// Records of an answer that are looked at.
const MAX_RECORDS: usize = 64;
/// CNAMEs that are followed within an answer.
const MAX_CNAMES: usize = 8;
/// Datagrams that are read for one query, in case others pretend to answer it.
const MAX_DATAGRAMS: usize = 64;
/// Where a system without resolv.conf has its resolver, if any.
const LOCAL_RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT);
const DNS_PORT: u16 = 53;

/// One server that a service runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrvTarget {
    /// Its name in lower case, without the final dot; empty if the record says that there is none.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// The servers of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrvAnswer {
    /// In the order in which to try them; empty if there is no such record.
    pub targets: Vec<SrvTarget>,
    /// How long the answer holds.
    pub ttl: Duration,
}

/// Looks up the SRV records of an absolute name. That there are none is an answer, not an error.
pub(crate) fn lookup_srv(name: &str, deadline: Instant) -> Result<SrvAnswer, Error> {
    let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let (conf, _) = resolv_conf::Config::parse_with_errors(&text);
    let mut servers: Vec<SocketAddr> = conf
        .nameservers
        .iter()
        .filter_map(server_address)
        .take(MAX_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push(LOCAL_RESOLVER);
    }
    // a first server that is dead must leave time for the others, and for another round
    let share = deadline.saturating_duration_since(Instant::now()) / (2 * servers.len() as u32);
    let wait = Duration::from_secs(conf.timeout.max(1).into())
        .min(MAX_SERVER_WAIT)
        .min(share.max(MIN_SERVER_WAIT));
    let mut error = Error::Timeout;
    for _ in 0..conf.attempts.clamp(1, MAX_ATTEMPTS) {
        for server in &servers {
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Timeout);
            }
            match query_server(*server, name, conf.use_vc, deadline.min(now + wait)) {
                Ok(answer) => return Ok(answer),
                Err(e) => error = e,
            }
        }
    }
    Err(error)
}

fn server_address(ip: &ScopedIp) -> Option<SocketAddr> {
    match ip {
        // the system knows what an interface's name means
        ScopedIp::V6(ip, Some(scope)) => (format!("{ip}%{scope}"), DNS_PORT)
            .to_socket_addrs()
            .ok()?
            .next(),
        other => Some(SocketAddr::new(other.clone().into(), DNS_PORT)),
    }
}

fn query_server(
    server: SocketAddr,
    name: &str,
    tcp: bool,
    until: Instant,
) -> Result<SrvAnswer, Error> {
    let once = |edns| {
        let id = u16::from_ne_bytes(random::bytes());
        let query = build_query(id, name, edns)?;
        if tcp {
            query_tcp(server, &query, id, name, until)
        } else {
            query_udp(server, &query, id, name, until)
        }
    };
    match once(true)? {
        // a server from before EDNS0 (RFC 6891, 7)
        DnsReply::Failed(RCODE::FormatError | RCODE::NotImplemented) => match once(false)? {
            DnsReply::Answer(answer) => Ok(answer),
            DnsReply::Failed(code) => Err(Error::ResponseCode(format!("{code:?}"))),
            _ => Err(Error::Malformed),
        },
        DnsReply::Answer(answer) => Ok(answer),
        DnsReply::Failed(code) => Err(Error::ResponseCode(format!("{code:?}"))),
        _ => Err(Error::Malformed),
    }
}

fn name_too_long(name: &str) -> Error {
    Error::NotFound(format!("{name} is too long for a DNS name"))
}

fn build_query(id: u16, text: &str, edns: bool) -> Result<Vec<u8>, Error> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(text).map_err(|_| name_too_long(text))?;
    packet.questions.push(Question::new(
        name,
        QTYPE::TYPE(TYPE::SRV),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    if edns {
        *packet.opt_mut() = Some(OPT {
            opt_codes: Vec::new(),
            udp_packet_size: UDP_PAYLOAD,
            version: 0,
        });
    }
    packet.build_bytes_vec().map_err(|_| name_too_long(text))
}

fn query_udp(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    name: &str,
    until: Instant,
) -> Result<DnsReply, Error> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    // a fresh socket has a random port, and, connected, hears nobody but the server
    let socket = UdpSocket::bind(any).map_err(Error::Io)?;
    socket.connect(server).map_err(Error::Io)?;
    socket.send(query).map_err(Error::Io)?;
    let mut buffer = [0; 4096];
    for _ in 0..MAX_DATAGRAMS {
        socket
            .set_read_timeout(Some(time_left(until)?))
            .map_err(Error::Io)?;
        let length = socket.recv(&mut buffer).map_err(map_io_error)?;
        match parse_reply(&buffer[..length], id, name) {
            DnsReply::Unrelated => {}
            DnsReply::Truncated => return query_tcp(server, query, id, name, until),
            reading => return Ok(reading),
        }
    }
    Err(Error::Malformed)
}

fn query_tcp(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    name: &str,
    until: Instant,
) -> Result<DnsReply, Error> {
    let mut stream =
        TcpStream::connect_timeout(&server, time_left(until)?).map_err(map_io_error)?;
    stream
        .set_write_timeout(Some(time_left(until)?))
        .map_err(Error::Io)?;
    let length = u16::try_from(query.len()).map_err(|_| name_too_long(name))?;
    stream
        .write_all(&[&length.to_be_bytes(), query].concat())
        .map_err(map_io_error)?;
    let mut length = [0; 2];
    read_exact_until(&mut stream, &mut length, until)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_TCP_ANSWER {
        return Err(Error::Malformed);
    }
    let mut answer = vec![0; length];
    read_exact_until(&mut stream, &mut answer, until)?;
    match parse_reply(&answer, id, name) {
        reading @ (DnsReply::Answer(_) | DnsReply::Failed(_)) => Ok(reading),
        DnsReply::Truncated | DnsReply::Unrelated => Err(Error::Malformed),
    }
}

/// `Read::read_exact` with a deadline for the whole, so that a server that drips is cut off.
fn read_exact_until(
    stream: &mut TcpStream,
    mut buffer: &mut [u8],
    until: Instant,
) -> Result<(), Error> {
    while !buffer.is_empty() {
        stream
            .set_read_timeout(Some(time_left(until)?))
            .map_err(Error::Io)?;
        match stream.read(buffer) {
            Ok(0) => return Err(Error::Malformed),
            Ok(n) => buffer = &mut buffer[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(map_io_error(error)),
        }
    }
    Ok(())
}

fn time_left(until: Instant) -> Result<Duration, Error> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(Error::Timeout)
    } else {
        Ok(left)
    }
}

fn map_io_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout,
        _ => Error::Io(error),
    }
}

#[derive(Debug)]
enum DnsReply {
    Answer(SrvAnswer),
    Failed(RCODE),
    /// To be asked again over TCP.
    Truncated,
    /// Not an answer to our question: broken, late or forged.
    Unrelated,
}

fn parse_reply(message: &[u8], id: u16, name: &str) -> DnsReply {
    let Ok(packet) = Packet::parse(message) else {
        return DnsReply::Unrelated;
    };
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return DnsReply::Unrelated;
    }
    let code = packet.rcode();
    let asked = |q: &Question<'_>| {
        lowercase_name(&q.qname) == name.to_ascii_lowercase()
            && q.qtype == QTYPE::TYPE(TYPE::SRV)
            && q.qclass == QCLASS::CLASS(CLASS::IN)
    };
    match packet.questions.as_slice() {
        // FORMERR may come without the question that was not understood
        [] if code != RCODE::NoError => return DnsReply::Failed(code),
        [question] if asked(question) => {}
        _ => return DnsReply::Unrelated,
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return DnsReply::Truncated;
    }
    match code {
        RCODE::NoError | RCODE::NameError => DnsReply::Answer(collect_srv(&packet, name)),
        _ => DnsReply::Failed(code),
    }
}

fn lowercase_name(name: &Name<'_>) -> String {
    name.to_string().to_ascii_lowercase()
}

struct SrvRecord {
    priority: u16,
    weight: u16,
    target: SrvTarget,
}

fn collect_srv(packet: &Packet<'_>, name: &str) -> SrvAnswer {
    let records = || {
        packet
            .answers
            .iter()
            .filter(|r| r.class == CLASS::IN)
            .take(MAX_RECORDS)
    };
    let mut owner = name.to_ascii_lowercase();
    let mut ttl = u32::MAX;
    for _ in 0..MAX_CNAMES {
        let alias = records().find_map(|r| match &r.rdata {
            RData::CNAME(to) if lowercase_name(&r.name) == owner => {
                Some((lowercase_name(&to.0), r.ttl))
            }
            _ => None,
        });
        let Some((next, alias_ttl)) = alias else {
            break;
        };
        ttl = ttl.min(alias_ttl);
        owner = next;
    }
    let mut found = Vec::new();
    for record in records().filter(|r| lowercase_name(&r.name) == owner) {
        if let RData::SRV(srv) = &record.rdata {
            ttl = ttl.min(record.ttl);
            let target = SrvTarget {
                host: lowercase_name(&srv.target),
                port: srv.port,
            };
            found.push(SrvRecord {
                priority: srv.priority,
                weight: srv.weight,
                target,
            });
        }
    }
    let ttl = if found.is_empty() { 0 } else { ttl };
    SrvAnswer {
        targets: order_targets(found, random::up_to),
        ttl: Duration::from_secs(ttl.into()),
    }
}

/// RFC 2782: by priority, and within one at random by weight. `pick(n)` gives a number from 0 to n.
fn order_targets(mut records: Vec<SrvRecord>, mut pick: impl FnMut(u32) -> u32) -> Vec<SrvTarget> {
    records.sort_by_key(|r| (r.priority, r.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|r| r.priority) {
        let group = records.iter().take_while(|r| r.priority == priority);
        let chosen = pick(group.clone().map(|r| u32::from(r.weight)).sum());
        let mut sum = 0;
        let reached = |r: &SrvRecord| {
            sum += u32::from(r.weight);
            sum >= chosen
        };
        let index = group.map(reached).position(|it| it).unwrap_or(0);
        ordered.push(records.remove(index).target);
    }
    ordered
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    /// The records in a DNS server's answer to a question for `name` under `id`, if it is one.
    pub fn srv_answer(message: &[u8], id: u16, name: &str) -> Option<super::SrvAnswer> {
        match super::read(message, id, name) {
            super::Reading::Answer(answer) => Some(answer),
            _ => None,
        }
    }
}
