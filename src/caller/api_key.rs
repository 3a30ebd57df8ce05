//! API keys of applications.
