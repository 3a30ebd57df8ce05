//! Verification of OpenID tokens by the user's homeserver (Matrix spec v1.16, server-server API, "OpenID").

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::matrix::federation::{self, FederationClient};
use crate::matrix::id::{ServerName, UserId};
use crate::net::http_client::FetchLimits;
use crate::util::json;
use crate::util::metrics;
use crate::util::text::percent_encode;
use crate::util::ttl_cache::TtlCache;

/// Longest OpenID token in bytes: percent-encoded, it has to fit a request line. Tokens of Synapse have 24.
const MAX_OPENID_TOKEN: usize = 2048;
/// Entries of the OpenID cache, of about 250 bytes each.
const MAX_CACHED_RESULTS: usize = 4096;
/// Longest time that a refusal is cached, as the homeserver may accept the token a moment later.
const MAX_REFUSAL_TTL: Duration = Duration::from_secs(10);
const LIMITS: FetchLimits = FetchLimits::new("openid");

/// An OpenID token. Its bearer can act as the user.
#[derive(Clone)]
pub struct OpenIdToken(Box<str>);

impl OpenIdToken {
    /// The `access_token` of a request.
    pub fn new(token: &str) -> Self {
        Self(token.into())
    }
}

impl fmt::Debug for OpenIdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenIdToken(hidden)")
    }
}

/// A user whose homeserver confirmed the user's OpenID token. Made by [`OpenIdVerifier::verify`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifiedUser(UserId);

impl VerifiedUser {
    pub(crate) fn id(&self) -> &UserId {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: &str) -> Self {
        Self(UserId::parse(id).unwrap())
    }
}

/// Why an OpenID token is not accepted.
#[derive(Debug)]
pub(crate) enum Error {
    TokenTooLong,
    /// The homeserver gave no response.
    Federation(federation::Error),
    /// The homeserver refused the token, now or at most 10 s ago.
    Refused(OpenIdRefusal),
    /// A status that is neither a confirmation nor a refusal.
    Status(u16),
    /// The body is not a userinfo object.
    NotUserinfo,
}

/// A refusal by the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OpenIdRefusal {
    /// The homeserver responded with this status.
    UnknownToken(u16),
    InvalidUserId,
    /// The homeserver named a user of another server.
    OtherServer(UserId),
}

impl fmt::Display for OpenIdRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToken(status) => write!(
                f,
                "the homeserver rejects the OpenID token (status {status})"
            ),
            Self::InvalidUserId => f.write_str("the homeserver responded with an invalid user id"),
            Self::OtherServer(user) => write!(
                f,
                "the homeserver responded with {user}, a user of another server"
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
            Self::NotUserinfo => f.write_str("the homeserver's answer is not a userinfo object"),
        }
    }
}

impl std::error::Error for Error {}

#[derive(Deserialize)]
struct Userinfo {
    sub: String,
}

/// The homeserver's answer about a token.
pub(crate) type UserinfoResult = Result<VerifiedUser, OpenIdRefusal>;

/// Parses a userinfo response of `server`. The user has to be of `server`.
pub(crate) fn parse_userinfo(server: &ServerName, body: &[u8]) -> Result<UserinfoResult, Error> {
    let userinfo: Userinfo = json::parse_object(body).ok_or(Error::NotUserinfo)?;
    Ok(match UserId::parse(&userinfo.sub) {
        Ok(user) if user.server() == server => Ok(VerifiedUser(user)),
        Ok(user) => Err(OpenIdRefusal::OtherServer(user)),
        Err(_) => Err(OpenIdRefusal::InvalidUserId),
    })
}

/// Verifies OpenID tokens.
#[derive(Debug)]
pub(crate) struct OpenIdVerifier {
    federation: FederationClient,
    cache: OpenIdCache,
}

impl OpenIdVerifier {
    /// `cache_ttl` is the lifetime of cached answers; 0 turns the cache off.
    pub(crate) fn new(federation: FederationClient, cache_ttl: Duration) -> Self {
        Self {
            federation,
            cache: OpenIdCache::new(cache_ttl),
        }
    }

    pub(crate) fn federation(&self) -> &FederationClient {
        &self.federation
    }

    /// Asks `server` for the user of `token`, on behalf of a client at the address `client`.
    pub(crate) fn verify(
        &self,
        server: &ServerName,
        token: &OpenIdToken,
        client: Option<IpAddr>,
    ) -> Result<VerifiedUser, Error> {
        if token.0.len() > MAX_OPENID_TOKEN {
            return Err(Error::TokenTooLong);
        }
        let key = OpenIdCache::key(server, token);
        let result = match self.cache.get(&key) {
            Some(result) => result,
            None => {
                let result = self.fetch_userinfo(server, token, client)?;
                self.cache.insert(key, &result);
                result
            }
        };
        result.map_err(Error::Refused)
    }

    fn fetch_userinfo(
        &self,
        server: &ServerName,
        token: &OpenIdToken,
        client: Option<IpAddr>,
    ) -> Result<UserinfoResult, Error> {
        let token = percent_encode(&token.0);
        let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
        let response = self
            .federation
            .get(server, &target, LIMITS, client)
            .map_err(Error::Federation)?;
        match response.status {
            200 => parse_userinfo(server, &response.body),
            status @ (401 | 403) => Ok(Err(OpenIdRefusal::UnknownToken(status))),
            status => Err(Error::Status(status)),
        }
    }
}

/// Cache of the homeservers' answers, as clients send one OpenID token in several requests in a row.
#[derive(Debug)]
struct OpenIdCache {
    ttl: Duration,
    results: TtlCache<OpenIdCacheKey, UserinfoResult>,
}

/// SHA-256 of server name and token.
type OpenIdCacheKey = [u8; 32];

impl OpenIdCache {
    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            results: TtlCache::new(MAX_CACHED_RESULTS),
        }
    }

    fn key(server: &ServerName, token: &OpenIdToken) -> OpenIdCacheKey {
        // no server name contains a NUL, so two pairs have two keys
        Sha256::new()
            .chain_update(server.as_str())
            .chain_update([0])
            .chain_update(&*token.0)
            .finalize()
            .into()
    }

    fn get(&self, key: &OpenIdCacheKey) -> Option<UserinfoResult> {
        let result = self.results.get(key, Instant::now());
        metrics::count_cache_lookup("openid", result.is_some());
        result
    }

    fn insert(&self, key: OpenIdCacheKey, result: &UserinfoResult) {
        let ttl = match result {
            Ok(_) => self.ttl,
            Err(_) => self.ttl.min(MAX_REFUSAL_TTL),
        };
        if !ttl.is_zero() {
            self.results
                .insert(key, result.clone(), Instant::now() + ttl);
        }
    }
}
