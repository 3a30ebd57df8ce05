//! Who may have rooms created on our SFU.

use std::collections::BTreeSet;

use crate::matrix::id::ServerName;

/// What a user of a homeserver gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLevel {
    /// The LiveKit room is created for them.
    Full,
    /// They get a token; the room has to exist.
    Restricted,
}

impl AccessLevel {
    /// The word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Restricted => "restricted",
        }
    }
}

/// `LIVEKIT_FULL_ACCESS_HOMESERVERS`: the homeservers whose users have full access.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FullAccessHomeservers {
    everyone: bool,
    listed: BTreeSet<ServerName>,
}

impl FullAccessHomeservers {
    /// `*`: users of every homeserver have full access.
    pub fn all() -> Self {
        Self {
            everyone: true,
            listed: BTreeSet::new(),
        }
    }

    /// Users of exactly these homeservers have full access.
    pub fn listed(names: impl IntoIterator<Item = ServerName>) -> Self {
        Self {
            everyone: false,
            listed: names.into_iter().collect(),
        }
    }

    /// The access of the users of `server`.
    pub fn level_of(&self, server: &ServerName) -> AccessLevel {
        if self.everyone || self.is_listed(server) {
            AccessLevel::Full
        } else {
            AccessLevel::Restricted
        }
    }

    /// Whether the administrator named this very server. `*` names nobody.
    fn is_listed(&self, server: &ServerName) -> bool {
        self.listed.contains(server)
    }

    /// Whether everyone has full access.
    pub fn is_all(&self) -> bool {
        self.everyone
    }

    /// Whether nobody has full access.
    pub fn is_empty(&self) -> bool {
        !self.everyone && self.listed.is_empty()
    }

    /// The listed homeservers, in order.
    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.listed.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_exactly_and_a_star_vouches_for_nobody() {
        let name = |text| ServerName::parse(text).unwrap();
        let some = FullAccessHomeservers::listed([name("example.com")]);
        assert_eq!(some.level_of(&name("example.com")), AccessLevel::Full);
        for other in [
            "Example.com",
            "example.com:8448",
            "a.example.com",
            "example.co",
        ] {
            assert_eq!(some.level_of(&name(other)), AccessLevel::Restricted);
        }
        let all = FullAccessHomeservers::all();
        assert_eq!(all.level_of(&name("example.com")), AccessLevel::Full);
        assert!(!all.is_listed(&name("example.com")));
        assert!(FullAccessHomeservers::default().is_empty());
    }
}
