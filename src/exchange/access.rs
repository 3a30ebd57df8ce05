//! Access of homeservers: whose users may have rooms created on the SFU.

use std::collections::BTreeSet;

use crate::matrix::id::ServerName;

/// What the users of a homeserver get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessLevel {
    /// A token, and the LiveKit room is created first.
    Full,
    /// A token only; the room has to exist already.
    Restricted,
}

impl AccessLevel {
    /// The name in log and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Restricted => "restricted",
        }
    }
}

/// `LIVEKIT_FULL_ACCESS_HOMESERVERS`: the homeservers whose users have full access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FullAccessHomeservers {
    /// `*`: every homeserver.
    All,
    /// These homeservers, by exact name.
    Listed(BTreeSet<ServerName>),
}

impl Default for FullAccessHomeservers {
    fn default() -> Self {
        Self::Listed(BTreeSet::new())
    }
}

impl FullAccessHomeservers {
    /// The access level of the users of `server`.
    pub(crate) fn level_of(&self, server: &ServerName) -> AccessLevel {
        match self {
            Self::Listed(names) if !names.contains(server) => AccessLevel::Restricted,
            Self::All | Self::Listed(_) => AccessLevel::Full,
        }
    }

    /// Whether every homeserver has full access.
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Whether no homeserver has full access.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_all() && self.names().next().is_none()
    }

    /// The homeservers listed by name, in order; none for `*`.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ServerName> {
        match self {
            Self::All => None,
            Self::Listed(names) => Some(names),
        }
        .into_iter()
        .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_exactly_and_a_star_lists_none() {
        let name = |text| ServerName::parse(text).unwrap();
        let listed = FullAccessHomeservers::Listed([name("example.com")].into());
        assert_eq!(listed.level_of(&name("example.com")), AccessLevel::Full);
        for other in [
            "Example.com",
            "example.com:8448",
            "a.example.com",
            "example.co",
        ] {
            assert_eq!(listed.level_of(&name(other)), AccessLevel::Restricted);
        }
        let all = FullAccessHomeservers::All;
        assert_eq!(all.level_of(&name("example.com")), AccessLevel::Full);
        assert_eq!(all.names().count(), 0);
        assert_eq!(FullAccessHomeservers::default().names().count(), 0);
    }
}
