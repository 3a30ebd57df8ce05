//! JWTs of an application's own login.
