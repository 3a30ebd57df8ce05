//! Where the keys of an application's login come from.
