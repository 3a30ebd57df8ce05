//! The vocabulary of Matrix.

pub mod discovery;
pub mod federation;
pub mod id;
pub mod openid;
