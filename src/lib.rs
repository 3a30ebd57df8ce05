//! The map.
pub mod access;
pub mod livekit {
    pub mod token;
}
pub mod matrix {
    pub mod id;
}
pub mod net {
    pub mod address;
    pub mod base_url;
}
