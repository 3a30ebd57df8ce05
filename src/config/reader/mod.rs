//! Reads settings one by one and remembers everything that is wrong with them.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Error;
use super::environment::Environment;
use super::report::{ConfigReport, SettingOrigin};
use super::table;
use super::table::SettingKind;

/// Longest value and longest file, in bytes: 64 keys or a thousand homeservers fit many times.
pub(super) const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Most characters of a wrong value that are repeated in an error.
const MAX_QUOTED_CHARS: usize = 80;

/// A setting that somebody set. No `Debug`: it may be a secret.
pub(super) struct SettingValue {
    pub(super) name: &'static str,
    pub(super) text: String,
    pub(super) origin: SettingOrigin,
}

/// The environment, and what was found in it so far.
pub(super) struct SettingsReader<'a> {
    env: &'a Environment,
    pub(super) report: ConfigReport,
    pub(super) errors: Vec<Error>,
}

impl<'a> SettingsReader<'a> {
    pub(super) fn new(env: &'a Environment) -> Self {
        Self {
            env,
            report: ConfigReport::default(),
            errors: Vec::new(),
        }
    }

    /// The trimmed value of a variable, or else of the credential of that name; none if empty or wrong.
    pub(super) fn read_value(&mut self, name: &'static str) -> Option<SettingValue> {
        let given = self.env.get(name).unwrap_or_default();
        let Some(text) = given.to_str().map(str::trim) else {
            self.push_invalid(name, "UTF-8", "other bytes");
            return None;
        };
        if text.len() > MAX_VALUE_BYTES {
            self.push_invalid(name, "at most 64 KiB", format!("{} bytes", text.len()));
            return None;
        }
        if text.is_empty() {
            return self.read_credential(name);
        }
        Some(SettingValue {
            name,
            text: text.into(),
            origin: SettingOrigin::Environment,
        })
    }

    /// Whether somebody has set it, rightly or wrongly; what Kubernetes puts into the environment nobody has.
    pub(super) fn is_set(&self, name: &'static str) -> bool {
        let given = self.env.get(name).unwrap_or_default().to_string_lossy();
        if !given.trim().is_empty() {
            return !table::is_kubernetes_service_link(given.trim());
        }
        let Some(directory) = self.env.get("CREDENTIALS_DIRECTORY").map(Path::new) else {
            return false;
        };
        let present = |file: &String| directory.join(file).exists();
        directory.is_absolute() && credential_file_names(name).iter().any(present)
    }

    /// The content, not trimmed, of the file that a variable names. It has more than white space in it.
    pub(super) fn read_file(&mut self, name: &'static str) -> Option<SettingValue> {
        let path = PathBuf::from(self.read_value(name)?.text);
        let text = self.read_file_content(name, &path)?;
        if text.trim().is_empty() {
            self.push_invalid(
                name,
                "a file with a value in it",
                format!("{} empty", quote_path(&path)),
            );
            return None;
        }
        Some(SettingValue {
            name,
            text,
            origin: SettingOrigin::File(path),
        })
    }

    /// The value of a variable as `parse` reads it, which gives back the part that it does not understand.
    pub(super) fn parse_or_default<T>(
        &mut self,
        name: &'static str,
        default: &str,
        expected: &'static str,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Option<T> {
        let before = self.errors.len();
        let value = self.read_value(name);
        if self.errors.len() > before {
            return None;
        }
        let value = value.unwrap_or_else(|| SettingValue {
            name,
            text: default.into(),
            origin: SettingOrigin::Default,
        });
        self.parse_value(value, expected, parse)
    }

    /// As [`Reader::parsed`], of a value that is there.
    pub(super) fn parse_value<T>(
        &mut self,
        value: SettingValue,
        expected: &'static str,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Option<T> {
        match parse(&value.text) {
            Ok(parsed) => {
                let unset = value.text.is_empty();
                let shown = if unset { "(none)" } else { &value.text };
                self.report.add_setting(value.name, shown, value.origin);
                Some(parsed)
            }
            Err(part) => {
                self.push_invalid(value.name, expected, quote_redacted(part));
                None
            }
        }
    }

    /// Remembers a wrong value; `found` is no secret.
    pub(super) fn push_invalid(
        &mut self,
        name: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.errors.push(Error::Invalid {
            name,
            expected: expected.into(),
            found: found.into(),
        });
    }

    fn read_credential(&mut self, name: &'static str) -> Option<SettingValue> {
        let directory = Path::new(self.env.get("CREDENTIALS_DIRECTORY")?);
        if !directory.is_absolute() {
            return None;
        }
        let is_path =
            table::find_setting(name).is_some_and(|known| known.kind == SettingKind::Path);
        for file in credential_file_names(name) {
            let path = directory.join(file);
            if !path.exists() {
                continue;
            }
            let text = if is_path {
                path.to_string_lossy().into_owned()
            } else {
                self.read_file_content(name, &path)?.trim().to_owned()
            };
            if !text.is_empty() {
                return Some(SettingValue {
                    name,
                    text,
                    origin: SettingOrigin::Credentials,
                });
            }
        }
        None
    }

    /// What is in a file, which `name` names.
    pub(super) fn read_file_content(&mut self, name: &'static str, path: &Path) -> Option<String> {
        let bytes = match read_bounded(path) {
            Ok(bytes) => bytes,
            Err(source) => {
                self.errors.push(Error::Unreadable {
                    name,
                    path: quote_path(path),
                    source,
                });
                return None;
            }
        };
        if bytes.len() > MAX_VALUE_BYTES {
            let found = format!("{} larger", quote_path(path));
            self.push_invalid(name, "a file of at most 64 KiB", found);
            return None;
        }
        let text = String::from_utf8(bytes).ok();
        if text.is_none() {
            let found = format!("other bytes in {}", quote_path(path));
            self.push_invalid(name, "a file of UTF-8", found);
        }
        text
    }
}

/// The files in `$CREDENTIALS_DIRECTORY` that may hold a setting.
fn credential_file_names(name: &str) -> [String; 2] {
    [name.to_owned(), name.to_lowercase().replace('_', "-")]
}

/// Reads one byte more than may be there, so that `/dev/zero` has an end.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_VALUE_BYTES).unwrap_or(u64::MAX);
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A path, unless it looks like the secret itself, put into the variable that should name its file.
fn quote_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with(['/', '.']) {
        quote_redacted(&text)
    } else {
        format!("a relative path of {} characters", text.chars().count())
    }
}

/// A wrong value for an error: escaped, not too long, and without the parts of a URL that may be secret.
pub(super) fn quote_redacted(text: &str) -> String {
    let (text, cut) = match text.find(['?', '#']) {
        Some(end) => (&text[..end], true),
        None => (text, false),
    };
    let mut shown: String = match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}://…{}", &text[..scheme], &text[at..])
        }
        _ => text.into(),
    };
    let long = shown
        .char_indices()
        .nth(MAX_QUOTED_CHARS)
        .map(|(end, _)| end);
    if let Some(end) = long {
        shown.truncate(end);
    }
    if cut || long.is_some() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// How a secret is shown.
pub(super) fn mask_secret(secret: &str) -> String {
    format!("(set, {})", describe_length(secret))
}

/// What may be said of a wrong secret.
pub(super) fn describe_length(secret: &str) -> String {
    match secret.chars().count() {
        1 => "1 character".into(),
        n => format!("{n} characters"),
    }
}
