//! Homeservers that the administrator configured.

use std::collections::{BTreeMap, BTreeSet};

use crate::matrix::id::ServerName;
use crate::net::address::Trust;
use crate::net::base_url::BaseUrl;

/// Base URLs of one API (federation or client-server) that replace discovery, and the homeservers that may be on private addresses.
#[derive(Debug, Default)]
pub(crate) struct ServerDirectory {
    base_urls: BTreeMap<ServerName, BaseUrl>,
    listed: BTreeSet<ServerName>,
}

impl ServerDirectory {
    /// `base_urls` are the overrides of the API; `listed` are the full-access homeservers.
    pub(crate) fn new(
        base_urls: BTreeMap<ServerName, BaseUrl>,
        listed: impl IntoIterator<Item = ServerName>,
    ) -> Self {
        Self {
            base_urls,
            listed: listed.into_iter().collect(),
        }
    }

    /// The configured base URL of a server.
    pub(super) fn base_url(&self, server: &ServerName) -> Option<&BaseUrl> {
        self.base_urls.get(server)
    }

    /// Which addresses a server may have, by who named it.
    pub(super) fn trust(&self, server: &ServerName) -> Trust {
        if self.base_urls.contains_key(server) {
            Trust::Administrator
        } else if self.listed.contains(server) {
            Trust::Listed
        } else {
            Trust::Unlisted
        }
    }
}
