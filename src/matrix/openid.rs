//! From an OpenID token to the user whom their homeserver knows by it (Matrix spec v1.16, server-server API, "OpenID").

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::json;
use crate::matrix::federation::{self, Federation};
use crate::matrix::id::{Invalid, ServerName, UserId};
use crate::memo::Memo;
use crate::metrics;
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::Limits;

/// Longest token that is passed on, in bytes. Synapse's have 24; escaped, this one still fits a request line.
const MAX_TOKEN: usize = 2048;
/// Verdicts that are remembered: about 250 bytes each.
const MAX_REMEMBERED: usize = 4096;
/// A refusal is remembered for this long at most, so that a token that was too early is not refused for long.
const REFUSED: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    kind: "openid",
    connect: Duration::from_secs(5),
    head: Duration::from_secs(8),
    body: Duration::from_secs(3),
    max_body: 64 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
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
pub struct VerifiedUser(UserId);

impl VerifiedUser {
    /// Who it is.
    pub fn id(&self) -> &UserId {
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
pub enum Error {
    /// Nobody was asked: the server name is not one.
    BadServerName(Invalid),
    /// Nobody was asked: the token is too long.
    TokenTooLong,
    /// The homeserver was not heard.
    Federation(federation::Error),
    /// The homeserver refused it, just now or a moment ago.
    Refused(Refusal),
    /// The homeserver answered with this status, which is neither yes nor no.
    Status(u16),
    /// The homeserver's answer is no userinfo.
    NotUserinfo,
}

/// A clear no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The homeserver does not know the token.
    UnknownToken(u16),
    /// The homeserver vouched for something that is no user id.
    NotAUser,
    /// The homeserver vouched for a user of another server.
    Stranger(UserId),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToken(status) => write!(
                f,
                "the homeserver does not know the token (status {status})"
            ),
            Self::NotAUser => {
                f.write_str("the homeserver vouched for something that is no user id")
            }
            Self::Stranger(user) => write!(
                f,
                "the homeserver vouched for {user}, who is of another server"
            ),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadServerName(expected) => write!(f, "matrix_server_name: expected {expected}"),
            Self::TokenTooLong => write!(f, "access_token: expected at most {MAX_TOKEN} bytes"),
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
pub(crate) type Verdict = Result<VerifiedUser, Refusal>;

/// Reads the userinfo that `server` gave.
pub(crate) fn read(server: &ServerName, body: &[u8]) -> Result<Verdict, Error> {
    let userinfo: Userinfo = json::object(body).ok_or(Error::NotUserinfo)?;
    Ok(match UserId::parse(&userinfo.sub) {
        Ok(user) if user.server() == server => Ok(VerifiedUser(user)),
        Ok(user) => Err(Refusal::Stranger(user)),
        Err(_) => Err(Refusal::NotAUser),
    })
}

/// Asks homeservers who their users are.
#[derive(Debug)]
pub struct Verifier {
    federation: Federation,
    remember: Duration,
    verdicts: Memo<[u8; 32], Verdict>,
}

impl Verifier {
    /// Verdicts are remembered for `remember` (0: not at all), as clients ask for several things in a row with one token.
    pub fn new(federation: Federation, remember: Duration) -> Self {
        Self {
            federation,
            remember,
            verdicts: Memo::new(MAX_REMEMBERED),
        }
    }

    /// The way to the homeservers that are asked.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// Asks `server` whose token it is, for a client at `client`. The user has to be of that very server: no homeserver can vouch for a stranger.
    pub fn verify(
        &self,
        server: &str,
        token: &OpenIdToken,
        client: Option<IpAddr>,
    ) -> Result<VerifiedUser, Error> {
        let server = ServerName::parse(server).map_err(Error::BadServerName)?;
        if token.0.len() > MAX_TOKEN {
            return Err(Error::TokenTooLong);
        }
        // a server name holds no NUL, so no two pairs give one key
        let key = Sha256::new()
            .chain_update(server.as_str())
            .chain_update([0])
            .chain_update(&*token.0)
            .finalize()
            .into();
        let known = self.verdicts.recall(&key, Instant::now());
        metrics::look_up("openid", known.is_some());
        if let Some(verdict) = known {
            return verdict.map_err(Error::Refused);
        }
        let verdict = self.ask(&server, token, client)?;
        let lasting = match verdict {
            Ok(_) => self.remember,
            Err(_) => self.remember.min(REFUSED),
        };
        if !lasting.is_zero() {
            let now = Instant::now();
            self.verdicts
                .learn(key, verdict.clone(), now + lasting, now);
        }
        verdict.map_err(Error::Refused)
    }

    fn ask(
        &self,
        server: &ServerName,
        token: &OpenIdToken,
        client: Option<IpAddr>,
    ) -> Result<Verdict, Error> {
        let token = utf8_percent_encode(&token.0, NON_ALPHANUMERIC);
        let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
        let answer = self
            .federation
            .get(server, &target, LIMITS, client)
            .map_err(Error::Federation)?;
        match answer.status {
            200 => {}
            status @ (401 | 403) => return Ok(Err(Refusal::UnknownToken(status))),
            status => return Err(Error::Status(status)),
        }
        read(server, &answer.body)
    }
}
