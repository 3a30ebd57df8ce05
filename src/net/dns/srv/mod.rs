//! Stub resolver for SRV records (RFC 2782): servers from resolv.conf(5), UDP with EDNS0, TCP after a truncated response.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use resolv_conf::ScopedIp;
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

use super::Error;
use crate::util::clock::time_left;
use crate::util::random;

/// Servers of resolv.conf that are queried: the system resolver's own limit (MAXNS).
const MAX_SERVERS: usize = 3;
/// Rounds over all servers: resolv.conf(5) allows 5.
const MAX_ATTEMPTS: u32 = 5;
/// Longest wait for one server: resolv.conf(5) allows 30 s, which is longer than any caller waits.
const MAX_SERVER_WAIT: Duration = Duration::from_secs(5);
/// Shortest wait for one server, even if the deadline leaves less for each.
const MIN_SERVER_WAIT: Duration = Duration::from_millis(500);
/// Largest response over UDP that a query announces, in bytes: passes everywhere unfragmented (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// Largest response over TCP, in bytes: some 200 records.
const MAX_TCP_RESPONSE: usize = 16 * 1024;
/// Records of a response that are read.
const MAX_RECORDS: usize = 64;
/// CNAMEs that are followed within a response.
const MAX_CNAMES: usize = 8;
/// Datagrams that are read for one query, since forged ones may arrive before the response.
const MAX_DATAGRAMS: usize = 64;
/// Server that is queried without resolv.conf.
const LOCAL_RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT);
const DNS_PORT: u16 = 53;

/// Target of an SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrvTarget {
    /// Name in lower case, without the final dot; empty if the record says that there is no such service.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// SRV records of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrvAnswer {
    /// In the order in which to try them; empty without a record.
    pub(crate) targets: Vec<SrvTarget>,
    pub(crate) ttl: Duration,
}

/// Looks up the SRV records of an absolute name. A name without records is no error.
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
    // a dead first server has to leave time for the others, and for another round
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
        // the system resolves the name of an interface
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
    deadline: Instant,
) -> Result<SrvAnswer, Error> {
    let query = |edns| {
        let id = u16::from_ne_bytes(random::bytes());
        let message = build_query(id, name, edns)?;
        let exchange = if tcp { query_tcp } else { query_udp };
        exchange(server, &message, id, name, deadline)
    };
    let mut reply = query(true)?;
    // a server from before EDNS0 (RFC 6891, 7)
    if let DnsReply::Failed(RCODE::FormatError | RCODE::NotImplemented) = reply {
        reply = query(false)?;
    }
    match reply {
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
    deadline: Instant,
) -> Result<DnsReply, Error> {
    let local: SocketAddr = if server.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    // a new socket has a random port, and a connected one receives from the server only
    let socket = UdpSocket::bind(local).map_err(Error::Io)?;
    socket.connect(server).map_err(Error::Io)?;
    socket.send(query).map_err(Error::Io)?;
    let mut buffer = [0; 4096];
    for _ in 0..MAX_DATAGRAMS {
        socket
            .set_read_timeout(Some(time_left(deadline).ok_or(Error::Timeout)?))
            .map_err(Error::Io)?;
        let length = socket.recv(&mut buffer).map_err(map_io_error)?;
        match parse_reply(&buffer[..length], id, name) {
            DnsReply::Unrelated => {}
            DnsReply::Truncated => return query_tcp(server, query, id, name, deadline),
            reply => return Ok(reply),
        }
    }
    Err(Error::Malformed)
}

fn query_tcp(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    name: &str,
    deadline: Instant,
) -> Result<DnsReply, Error> {
    let mut stream =
        TcpStream::connect_timeout(&server, time_left(deadline).ok_or(Error::Timeout)?)
            .map_err(map_io_error)?;
    stream
        .set_write_timeout(Some(time_left(deadline).ok_or(Error::Timeout)?))
        .map_err(Error::Io)?;
    let length = u16::try_from(query.len()).map_err(|_| name_too_long(name))?;
    stream
        .write_all(&[&length.to_be_bytes(), query].concat())
        .map_err(map_io_error)?;
    let mut length = [0; 2];
    read_exact_until(&mut stream, &mut length, deadline)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_TCP_RESPONSE {
        return Err(Error::Malformed);
    }
    let mut answer = vec![0; length];
    read_exact_until(&mut stream, &mut answer, deadline)?;
    match parse_reply(&answer, id, name) {
        reply @ (DnsReply::Answer(_) | DnsReply::Failed(_)) => Ok(reply),
        DnsReply::Truncated | DnsReply::Unrelated => Err(Error::Malformed),
    }
}

/// `Read::read_exact` with a deadline for the whole buffer, which a slow server cannot extend.
fn read_exact_until(
    stream: &mut TcpStream,
    mut buffer: &mut [u8],
    deadline: Instant,
) -> Result<(), Error> {
    while !buffer.is_empty() {
        stream
            .set_read_timeout(Some(time_left(deadline).ok_or(Error::Timeout)?))
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
    /// To be queried again over TCP.
    Truncated,
    /// No response to the query: broken, late or forged.
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
    let is_own = |q: &Question<'_>| {
        lowercase_name(&q.qname) == name.to_ascii_lowercase()
            && q.qtype == QTYPE::TYPE(TYPE::SRV)
            && q.qclass == QCLASS::CLASS(CLASS::IN)
    };
    match packet.questions.as_slice() {
        // FORMERR may lack the question that the server could not parse
        [] if code != RCODE::NoError => return DnsReply::Failed(code),
        [question] if is_own(question) => {}
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

/// Orders by priority, and within a priority at random by weight (RFC 2782). `pick(n)` returns a number from 0 to n.
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
    /// Host and port of each record in a response to the query `id` for `name`, if it is one.
    pub fn srv_answer(message: &[u8], id: u16, name: &str) -> Option<Vec<(String, u16)>> {
        match super::parse_reply(message, id, name) {
            super::DnsReply::Answer(answer) => {
                let targets = answer.targets.into_iter();
                Some(targets.map(|target| (target.host, target.port)).collect())
            }
            _ => None,
        }
    }
}
