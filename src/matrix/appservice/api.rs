//! The names of what our homeserver can be asked for, while its MSCs are unstable and when they are not.

/// What it can be asked for, and the versions of the client-server API that have it.
pub(super) struct VersionedEndpoint {
    pub(super) index: usize,
    pub(super) name: &'static str,
    pub(super) unstable_prefix: &'static str,
    pub(super) stable_prefix: &'static str,
}

pub(super) const IS_JOINED: VersionedEndpoint = VersionedEndpoint {
    index: 0,
    name: "is_joined (MSC4502)",
    unstable_prefix: "unstable/io.element.msc4502",
    stable_prefix: "v3",
};
pub(super) const FED_PROXY: VersionedEndpoint = VersionedEndpoint {
    index: 1,
    name: "fed_proxy (MSC4512)",
    unstable_prefix: "unstable/io.element.msc4512",
    stable_prefix: "v1",
};
pub(super) const DELAYED_EVENTS: VersionedEndpoint = VersionedEndpoint {
    index: 2,
    name: "delayed events (MSC4140)",
    unstable_prefix: "unstable/org.matrix.msc4140",
    stable_prefix: "v1",
};
