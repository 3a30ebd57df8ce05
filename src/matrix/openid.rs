//! From an OpenID token to the user whom their homeserver knows by it (Matrix spec v1.16, server-server API, "OpenID").

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::matrix::federation::{self, FederationClient};
use crate::matrix::id::{ServerName, UserId};
use crate::net::http_client::FetchLimits;
use crate::net::permits::MAX_CALLS_PER_SUBNET;
use crate::util::json;
use crate::util::metrics;
use crate::util::ttl_cache::TtlCache;

/// Longest token that is passed on, in bytes. Synapse's have 24; escaped, this one still fits a request line.
const MAX_OPENID_TOKEN: usize = 2048;
/// Verdicts that are remembered: about 250 bytes each.
const MAX_CACHED_RESULTS: usize = 4096;
/// A refusal is remembered for this long at most, so that a token that was too early is not refused for long.
const MAX_REFUSAL_TTL: Duration = Duration::from_secs(10);
const LIMITS: FetchLimits = FetchLimits {
    kind: "openid",
    connect_timeout: Duration::from_secs(5),
    head_timeout: Duration::from_secs(8),
    body_timeout: Duration::from_secs(3),
    max_body: 64 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};

/// What a client got from its homeserver to show to us. Whoever holds it is taken for the user.
#[derive(Clone)]
pub struct OpenIdToken(Box<str>);

impl OpenIdToken {
    /// Takes the `access_token` of a request.
    pub fn new(token: &str) -> Self {
        Self(token.into())
    }
}

impl fmt::Debug for OpenIdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenIdToken(hidden)")
    }
}

/// A user whom their own homeserver vouched for. Nothing but [`Verifier::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifiedUser(UserId);

impl VerifiedUser {
    /// Who it is.
    pub(crate) fn id(&self) -> &UserId {
        &self.0
    }

    /// A user for the tests of the rooms that need one.
    #[cfg(test)]
    pub(crate) fn for_test(id: &str) -> Self {
        Self(UserId::parse(id).unwrap())
    }
}

/// Why a token is not accepted.
#[derive(Debug)]
pub(crate) enum Error {
    /// Nobody was asked: the token is too long.
    TokenTooLong,
    /// The homeserver was not heard.
    Federation(federation::Error),
    /// The homeserver refused it, just now or a moment ago.
    Refused(OpenIdRefusal),
    /// The homeserver answered with this status, which is neither yes nor no.
    Status(u16),
    /// The homeserver's answer is no userinfo.
    NotUserinfo,
}

/// A clear no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OpenIdRefusal {
    /// The homeserver does not know the token.
    UnknownToken(u16),
    /// The homeserver vouched for something that is no user id.
    InvalidUserId,
    /// The homeserver vouched for a user of another server.
    OtherServer(UserId),
}

impl fmt::Display for OpenIdRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToken(status) => write!(
                f,
                "the homeserver does not know the token (status {status})"
            ),
            Self::InvalidUserId => {
                f.write_str("the homeserver vouched for something that is no user id")
            }
            Self::OtherServer(user) => write!(
                f,
                "the homeserver vouched for {user}, who is of another server"
            ),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenTooLong => {
                write!(f, "access_token: expected at most {MAX_OPENID_TOKEN} bytes")
            }
            Self::Federation(error) => error.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Status(status) => write!(f, "the homeserver answered with status {status}"),
            Self::NotUserinfo => f.write_str("the homeserver's answer is no userinfo"),
        }
    }
}

impl std::error::Error for Error {}

#[derive(Deserialize)]
struct Userinfo {
    sub: String,
}

/// A clear answer.
pub(crate) type UserinfoResult = Result<VerifiedUser, OpenIdRefusal>;

/// Reads the userinfo that `server` gave.
pub(crate) fn parse_userinfo(server: &ServerName, body: &[u8]) -> Result<UserinfoResult, Error> {
    let userinfo: Userinfo = json::parse_object(body).ok_or(Error::NotUserinfo)?;
    Ok(match UserId::parse(&userinfo.sub) {
        Ok(user) if user.server() == server => Ok(VerifiedUser(user)),
        Ok(user) => Err(OpenIdRefusal::OtherServer(user)),
        Err(_) => Err(OpenIdRefusal::InvalidUserId),
    })
}

/// Asks homeservers who their users are.
#[derive(Debug)]
pub(crate) struct OpenIdVerifier {
    federation: FederationClient,
    cache_ttl: Duration,
    results: TtlCache<[u8; 32], UserinfoResult>,
}

impl OpenIdVerifier {
    /// Verdicts are remembered for `remember` (0: not at all), as clients ask for several things in a row with one token.
    pub(crate) fn new(federation: FederationClient, remember: Duration) -> Self {
        Self {
            federation,
            cache_ttl: remember,
            results: TtlCache::new(MAX_CACHED_RESULTS),
        }
    }

    /// The way to the homeservers that are asked.
    pub(crate) fn federation(&self) -> &FederationClient {
        &self.federation
    }

    /// Asks `server` whose token it is, for a client at `client`. The user has to be of that very server: no homeserver can vouch for a stranger.
    pub(crate) fn verify(
        &self,
        server: &ServerName,
        token: &OpenIdToken,
        client: Option<IpAddr>,
    ) -> Result<VerifiedUser, Error> {
        if token.0.len() > MAX_OPENID_TOKEN {
            return Err(Error::TokenTooLong);
        }
        // a server name holds no NUL, so no two pairs give one key
        let key = Sha256::new()
            .chain_update(server.as_str())
            .chain_update([0])
            .chain_update(&*token.0)
            .finalize()
            .into();
        let known = self.results.get(&key, Instant::now());
        metrics::count_cache_lookup("openid", known.is_some());
        if let Some(verdict) = known {
            return verdict.map_err(Error::Refused);
        }
        let verdict = self.fetch_userinfo(server, token, client)?;
        let lasting = match verdict {
            Ok(_) => self.cache_ttl,
            Err(_) => self.cache_ttl.min(MAX_REFUSAL_TTL),
        };
        if !lasting.is_zero() {
            let now = Instant::now();
            self.results.insert(key, verdict.clone(), now + lasting);
        }
        verdict.map_err(Error::Refused)
    }

    fn fetch_userinfo(
        &self,
        server: &ServerName,
        token: &OpenIdToken,
        client: Option<IpAddr>,
    ) -> Result<UserinfoResult, Error> {
        let token = utf8_percent_encode(&token.0, NON_ALPHANUMERIC);
        let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
        let answer = self
            .federation
            .get(server, &target, LIMITS, client)
            .map_err(Error::Federation)?;
        match answer.status {
            200 => {}
            status @ (401 | 403) => return Ok(Err(OpenIdRefusal::UnknownToken(status))),
            status => return Err(Error::Status(status)),
        }
        parse_userinfo(server, &answer.body)
    }
}
