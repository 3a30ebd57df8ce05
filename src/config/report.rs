//! What was understood, for the log and for `check-config`.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A variable of that name.
    Environment,
    /// A file that a variable names.
    File(PathBuf),
    /// A file in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), `LoadCredential=`).
    Credentials,
    /// Another setting, whose value it follows.
    Follows(&'static str),
    /// Nobody set it.
    Default,
    /// Nobody set it, and `--dev` has a default of its own.
    Dev,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credentials => f.write_str("credentials directory"),
            Self::Follows(name) => write!(f, "from {name}"),
            Self::Default => f.write_str("default"),
            Self::Dev => f.write_str("--dev"),
        }
    }
}

/// A setting as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: &'static str,
    /// Its value; of a secret only the length.
    pub shown: String,
    /// Where it was found.
    pub origin: Origin,
}

/// Warnings and settings, each in the order in which they were read.
#[derive(Debug, Clone, Default)]
pub struct Report {
    warnings: Vec<String>,
    settings: Vec<Setting>,
}

impl Report {
    /// What the administrator should know; none of it keeps the service from starting.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every setting that has a value, by default or not.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    pub(super) fn set(&mut self, name: &'static str, shown: impl Into<String>, origin: Origin) {
        self.settings.push(Setting {
            name,
            shown: shown.into(),
            origin,
        });
    }
}
