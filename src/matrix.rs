//! The vocabulary of Matrix.

pub mod id;
