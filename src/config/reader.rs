//! Reads settings one by one and remembers everything that is wrong with them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Error;
use super::environment::Environment;
use super::known::{self, Kind};
use super::report::{Origin, Report};

/// Longest value and longest file, in bytes: 64 keys or a thousand homeservers fit many times.
pub(super) const MAX_VALUE: usize = 64 * 1024;
/// Most characters of a wrong value that are repeated in an error.
const MAX_SHOWN: usize = 80;

/// A setting that somebody set. No `Debug`: it may be a secret.
pub(super) struct Value {
    pub(super) name: &'static str,
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// The environment, and what was found in it so far.
pub(super) struct Reader<'a> {
    env: &'a Environment,
    pub(super) report: Report,
    pub(super) errors: Vec<Error>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a Environment) -> Self {
        Self {
            env,
            report: Report::default(),
            errors: Vec::new(),
        }
    }

    /// The trimmed value of a variable, or else of the credential of that name; none if empty or wrong.
    pub(super) fn value(&mut self, name: &'static str) -> Option<Value> {
        let given = self.env.get(name).unwrap_or_default();
        let Some(text) = given.to_str().map(str::trim) else {
            self.wrong(name, "UTF-8", "other bytes");
            return None;
        };
        if text.len() > MAX_VALUE {
            self.wrong(name, "at most 64 KiB", format!("{} bytes", text.len()));
            return None;
        }
        if text.is_empty() {
            return self.credential(name);
        }
        Some(Value {
            name,
            text: text.into(),
            origin: Origin::Environment,
        })
    }

    /// Whether somebody has set it, rightly or wrongly; what Kubernetes puts into the environment nobody has.
    pub(super) fn is_set(&self, name: &'static str) -> bool {
        let given = self.env.get(name).unwrap_or_default().to_string_lossy();
        if !given.trim().is_empty() {
            return !known::is_service_link(given.trim());
        }
        let Some(directory) = self.env.get("CREDENTIALS_DIRECTORY").map(Path::new) else {
            return false;
        };
        let present = |file: &String| directory.join(file).exists();
        directory.is_absolute() && credentials(name).iter().any(present)
    }

    /// The content, not trimmed, of the file that a variable names. It has more than white space in it.
    pub(super) fn file(&mut self, name: &'static str) -> Option<Value> {
        let path = PathBuf::from(self.value(name)?.text);
        let text = self.content(name, &path)?;
        if text.trim().is_empty() {
            self.wrong(
                name,
                "a file with a value in it",
                format!("{} empty", path_shown(&path)),
            );
            return None;
        }
        Some(Value {
            name,
            text,
            origin: Origin::File(path),
        })
    }

    /// The value of a variable as `parse` reads it, which gives back the part that it does not understand.
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        default: &str,
        expected: &'static str,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Option<T> {
        let before = self.errors.len();
        let value = self.value(name);
        if self.errors.len() > before {
            return None;
        }
        let value = value.unwrap_or_else(|| Value {
            name,
            text: default.into(),
            origin: Origin::Default,
        });
        self.understood(value, expected, parse)
    }

    /// As [`Reader::parsed`], of a value that is there.
    pub(super) fn understood<T>(
        &mut self,
        value: Value,
        expected: &'static str,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Option<T> {
        match parse(&value.text) {
            Ok(parsed) => {
                let unset = value.text.is_empty();
                let shown = if unset { "(none)" } else { &value.text };
                self.report.set(value.name, shown, value.origin);
                Some(parsed)
            }
            Err(part) => {
                self.wrong(value.name, expected, quoted(part));
                None
            }
        }
    }

    /// Remembers a wrong value; `found` is no secret.
    pub(super) fn wrong(
        &mut self,
        name: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.errors.push(Error::Wrong {
            name,
            expected: expected.into(),
            found: found.into(),
        });
    }

    fn credential(&mut self, name: &'static str) -> Option<Value> {
        let directory = Path::new(self.env.get("CREDENTIALS_DIRECTORY")?);
        if !directory.is_absolute() {
            return None;
        }
        let is_path = known::find(name).is_some_and(|known| known.kind == Kind::Path);
        for file in credentials(name) {
            let path = directory.join(file);
            if !path.exists() {
                continue;
            }
            let text = if is_path {
                path.to_string_lossy().into_owned()
            } else {
                self.content(name, &path)?.trim().to_owned()
            };
            if !text.is_empty() {
                return Some(Value {
                    name,
                    text,
                    origin: Origin::Credentials,
                });
            }
        }
        None
    }

    /// What is in a file, which `name` names.
    pub(super) fn content(&mut self, name: &'static str, path: &Path) -> Option<String> {
        let bytes = match bounded(path) {
            Ok(bytes) => bytes,
            Err(source) => {
                self.errors.push(Error::Unreadable {
                    name,
                    path: path_shown(path),
                    source,
                });
                return None;
            }
        };
        if bytes.len() > MAX_VALUE {
            let found = format!("{} larger", path_shown(path));
            self.wrong(name, "a file of at most 64 KiB", found);
            return None;
        }
        let text = String::from_utf8(bytes).ok();
        if text.is_none() {
            let found = format!("other bytes in {}", path_shown(path));
            self.wrong(name, "a file of UTF-8", found);
        }
        text
    }
}

/// The files in `$CREDENTIALS_DIRECTORY` that may hold a setting.
fn credentials(name: &str) -> [String; 2] {
    [name.to_owned(), name.to_lowercase().replace('_', "-")]
}

/// Reads one byte more than may be there, so that `/dev/zero` has an end.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_VALUE).unwrap_or(u64::MAX);
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A path, unless it looks like the secret itself, put into the variable that should name its file.
fn path_shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with(['/', '.']) {
        quoted(&text)
    } else {
        format!("a relative path of {} characters", text.chars().count())
    }
}

/// A wrong value for an error: escaped, not too long, and without the parts of a URL that may be secret.
pub(super) fn quoted(text: &str) -> String {
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
    let long = shown.char_indices().nth(MAX_SHOWN).map(|(end, _)| end);
    if let Some(end) = long {
        shown.truncate(end);
    }
    if cut || long.is_some() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// How a secret is shown.
pub(super) fn masked(secret: &str) -> String {
    format!("(set, {})", characters(secret))
}

/// What may be said of a wrong secret.
pub(super) fn characters(secret: &str) -> String {
    match secret.chars().count() {
        1 => "1 character".into(),
        n => format!("{n} characters"),
    }
}

#[cfg(test)]
mod tests;
