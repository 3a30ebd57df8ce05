//! Why a caller does not get what they ask for.

use std::fmt;

/// Why something was not allowed. Names the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyError {
    /// Fields without which it cannot be done.
    Missing(Vec<&'static str>),
    /// A value that nobody could have.
    Invalid {
        /// The field.
        field: String,
        /// What it takes.
        expected: String,
    },
    /// A value that this caller may not have.
    Forbidden {
        /// The field.
        field: String,
        /// Why not, for the caller.
        reason: String,
    },
}

impl PolicyError {
    /// A value that nobody could have.
    pub fn invalid(field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            expected: expected.into(),
        }
    }

    /// A value that this caller may not have.
    pub fn forbidden(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Forbidden {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// The field that is amiss, or the first of them.
    pub fn field(&self) -> &str {
        match self {
            Self::Missing(fields) => fields.first().copied().unwrap_or_default(),
            Self::Invalid { field, .. } | Self::Forbidden { field, .. } => field,
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(fields) => write!(f, "{}: required", fields.join(", ")),
            Self::Invalid { field, expected } => write!(f, "{field}: expected {expected}"),
            Self::Forbidden { field, reason } => write!(f, "{field}: {reason}"),
        }
    }
}

impl std::error::Error for PolicyError {}
