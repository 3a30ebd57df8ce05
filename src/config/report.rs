//! What was understood, for the log and for `check-config`.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    /// A variable of that name.
    Environment,
    /// A file that a variable names.
    File(PathBuf),
    /// A file in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), `LoadCredential=`).
    Credentials,
    /// Another setting, whose value it follows.
    DerivedFrom(&'static str),
    /// Nobody set it.
    Default,
    /// Nobody set it, and `--dev` has a default of its own.
    DevDefault,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credentials => f.write_str("credentials directory"),
            Self::DerivedFrom(name) => write!(f, "from {name}"),
            Self::Default => f.write_str("default"),
            Self::DevDefault => f.write_str("--dev"),
        }
    }
}

/// A setting as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// The variable.
    pub name: &'static str,
    /// Its value; of a secret only the length.
    pub display_value: String,
    /// Where it was found.
    pub origin: SettingOrigin,
}

/// Warnings and settings, each in the order in which they were read.
#[derive(Debug, Clone, Default)]
pub struct ConfigReport {
    warnings: Vec<String>,
    settings: Vec<EffectiveSetting>,
}

impl ConfigReport {
    /// What the administrator should know; none of it keeps the service from starting.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every setting that has a value, by default or not.
    pub fn settings(&self) -> &[EffectiveSetting] {
        &self.settings
    }

    pub(super) fn add_warning(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    pub(super) fn add_setting(
        &mut self,
        name: &'static str,
        shown: impl Into<String>,
        origin: SettingOrigin,
    ) {
        self.settings.push(EffectiveSetting {
            name,
            display_value: shown.into(),
            origin,
        });
    }
}
