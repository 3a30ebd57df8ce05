//! Reads settings from the environment and from files, and collects everything that is wrong with them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::Mode;
use super::suggest::is_kubernetes_service_link;
use super::table::{EndpointGroup, Relation, Section, Setting};
use super::values::{parse_boolean, parse_digits};
use crate::util::file::read_bounded;
use crate::util::text::truncate_chars;

/// Longest value and longest file, in bytes: enough for 64 keys or a thousand homeservers.
pub(super) const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Longest part of a wrong value in an error, in characters.
const MAX_QUOTED_CHARS: usize = 80;

/// Environment variables, as a map: tests need no process environment. Variables whose name is not UTF-8 are dropped.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The environment of this process.
    pub(crate) fn from_process() -> Self {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        std::env::vars_os().filter_map(named).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(name).map(OsString::as_os_str)
    }

    /// All variables, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_os_str()))
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let owned = |(name, value): (K, V)| (name.into(), value.into());
        Self(variables.into_iter().map(owned).collect())
    }
}

impl fmt::Debug for Environment {
    /// Names only: any value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A setting that cannot be used, by its name. Never holds a secret.
#[derive(Debug)]
pub enum Error {
    /// A value that the setting does not take; of a secret, `found` is the length.
    Invalid {
        name: &'static str,
        expected: String,
        found: String,
    },
    /// A setting that is needed and not set.
    Missing {
        name: &'static str,
        expected: String,
    },
    /// Two variables that set the same and differ; `other` was read first.
    Conflict {
        name: &'static str,
        other: &'static str,
    },
    /// A file that cannot be read.
    Unreadable {
        name: &'static str,
        path: String,
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid {
                name,
                expected,
                found,
            } => write!(f, "{name}: expected {expected}, found {found}"),
            Self::Missing { name, expected } => {
                write!(f, "{name}: expected {expected}, found nothing")
            }
            Self::Conflict { name, other } => write!(
                f,
                "{name}: expected the same as in {other}, found another value"
            ),
            Self::Unreadable { name, path, source } => write!(
                f,
                "{name}: expected a readable file, found {path}: {source}"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Several errors in one line.
pub(crate) fn join_errors(errors: &[Error]) -> String {
    let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingOrigin {
    /// A variable of the setting's name.
    Environment,
    /// A file that a variable names.
    File(PathBuf),
    /// A file in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), `LoadCredential=`).
    Credentials,
    /// The value of another setting.
    DerivedFrom(&'static str),
    Default,
    /// The default of `--dev`.
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

/// A setting as the service understands it.
#[derive(Debug, Clone)]
pub(crate) struct EffectiveSetting {
    /// The variable.
    pub name: &'static str,
    /// The value; of a secret only the length.
    pub display_value: String,
    pub origin: SettingOrigin,
}

/// What `check-config` prints about settings that were read.
#[derive(Debug, Clone, Default)]
pub struct ConfigReport {
    /// Notes for the administrator that do not prevent a start.
    pub(crate) warnings: Vec<String>,
    /// Settings that are set or have a default value, in the order in which they were read.
    pub(crate) settings: Vec<EffectiveSetting>,
    /// For each group of endpoints whether it is open, and why.
    pub(crate) endpoints: Vec<(EndpointGroup, bool, String)>,
}

/// The value of a setting. No `Debug`: it may be a secret.
pub(super) struct SettingValue {
    pub(super) setting: &'static Setting,
    pub(super) text: String,
    pub(super) origin: SettingOrigin,
}

impl SettingValue {
    /// Whether the text must not be shown. The path of a file with a secret is none, its content is.
    fn is_secret(&self) -> bool {
        let is_content = matches!(self.origin, SettingOrigin::File(_));
        self.setting.secret || is_content && self.setting.main().secret
    }
}

/// Proof that an error was reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// The outcome of reading one section of settings.
#[derive(Debug)]
pub(crate) struct SectionOutcome {
    pub section: Section,
    /// Empty if the section can be used.
    pub errors: Vec<Error>,
}

/// Reads settings and collects outcomes.
pub(super) struct SettingsReader<'a> {
    env: &'a Environment,
    pub(super) mode: Mode,
    pub(super) report: ConfigReport,
    pub(super) errors: Vec<Error>,
    pub(super) outcomes: Vec<SectionOutcome>,
}

impl<'a> SettingsReader<'a> {
    pub(super) fn new(env: &'a Environment, mode: Mode) -> Self {
        Self {
            env,
            mode,
            report: ConfigReport::default(),
            errors: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// Reads a section. If it is wrong, `current` stands in for it: what a running service uses, if there is one.
    pub(super) fn section<T: Clone>(
        &mut self,
        section: Section,
        current: Option<&T>,
        read: impl FnOnce(&mut Self) -> Result<T, Reported>,
    ) -> Option<T> {
        let value = read(self);
        let errors = std::mem::take(&mut self.errors);
        let value = value.ok().filter(|_| errors.is_empty());
        let value = value.or_else(|| current.cloned());
        self.outcomes.push(SectionOutcome { section, errors });
        value
    }

    /// The trimmed value of the variable, or else of the credential of its name; none if that is empty.
    pub(super) fn value(
        &mut self,
        setting: &'static Setting,
    ) -> Result<Option<SettingValue>, Reported> {
        let given = self.env.get(setting.name).unwrap_or_default();
        let Some(text) = given.to_str().map(str::trim) else {
            return Err(self.invalid(setting, "UTF-8", "other bytes"));
        };
        if text.len() > MAX_VALUE_BYTES {
            let found = format!("{} bytes", text.len());
            return Err(self.invalid(setting, "at most 64 KiB", found));
        }
        if text.is_empty() {
            return self.credential(setting);
        }
        Ok(Some(SettingValue {
            setting,
            text: text.into(),
            origin: SettingOrigin::Environment,
        }))
    }

    /// The content, untrimmed, of the file whose path is the value. It is more than white space.
    pub(super) fn file(
        &mut self,
        setting: &'static Setting,
    ) -> Result<Option<SettingValue>, Reported> {
        let Some(value) = self.value(setting)? else {
            return Ok(None);
        };
        let path = PathBuf::from(value.text);
        let text = self.file_content(setting, &path)?;
        if text.trim().is_empty() {
            let found = format!("{} empty", quote_path(&path));
            return Err(self.invalid(setting, "a file with a value in it", found));
        }
        Ok(Some(SettingValue {
            setting,
            text,
            origin: SettingOrigin::File(path),
        }))
    }

    /// The value of the first of several variables for one setting that is set; the others have to agree with it.
    pub(super) fn any_of(
        &mut self,
        settings: &[&'static Setting],
    ) -> Result<Option<SettingValue>, Reported> {
        let values: Vec<_> = settings
            .iter()
            .map(|setting| match setting.relation {
                Relation::FileOf(_) => self.file(setting),
                _ => self.value(setting),
            })
            .collect();
        let values: Result<Vec<_>, Reported> = values.into_iter().collect();
        let trimmed = values?.into_iter().flatten().map(|value| SettingValue {
            text: value.text.trim().into(),
            ..value
        });
        self.agreed(trimmed.collect())
    }

    /// The first of several values; the others have to agree with it.
    pub(super) fn agreed(
        &mut self,
        values: Vec<SettingValue>,
    ) -> Result<Option<SettingValue>, Reported> {
        let mut values = values.into_iter();
        let Some(first) = values.next() else {
            return Ok(None);
        };
        let mut result = Ok(());
        for other in values.filter(|value| value.text != first.text) {
            result = Err(self.conflict(other.setting, first.setting));
        }
        result.map(|()| Some(first))
    }

    /// The value, or else its default (an empty text if there is none), as `parse` understands it.
    pub(super) fn parse<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Result<T, Reported> {
        let value = match self.value(setting)? {
            Some(value) => value,
            None if setting.is_required() && setting.default_value(self.mode).is_none() => {
                return Err(self.missing(setting, setting.expected_form()));
            }
            None => self.default_value(setting),
        };
        self.parse_value(value, parse)
    }

    /// The value as `parse` understands it; none if the setting is not set.
    pub(super) fn parse_optional<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Result<Option<T>, Reported> {
        let value = self.value(setting)?;
        value
            .map(|value| self.parse_value(value, parse))
            .transpose()
    }

    /// The default of a setting that is not set.
    pub(super) fn default_value(&self, setting: &'static Setting) -> SettingValue {
        let text = setting.default_value(self.mode).unwrap_or_default();
        SettingValue {
            setting,
            text: text.into(),
            origin: match self.mode {
                Mode::Dev if setting.default_value(Mode::Serve) != Some(text) => {
                    SettingOrigin::DevDefault
                }
                _ => SettingOrigin::Default,
            },
        }
    }

    /// The value as `parse` understands it, which returns the part that it does not accept.
    pub(super) fn parse_value<T>(
        &mut self,
        value: SettingValue,
        parse: impl Fn(&str) -> Result<T, &str>,
    ) -> Result<T, Reported> {
        match parse(&value.text) {
            Ok(parsed) => {
                self.report_value(&value);
                Ok(parsed)
            }
            Err(part) => {
                let found = match value.is_secret() {
                    true => describe_length(&value.text),
                    false => quote_redacted(part),
                };
                Err(self.invalid(value.setting, value.setting.expected_form(), found))
            }
        }
    }

    /// An integer in the range of the setting.
    pub(super) fn integer<T: TryFrom<u64>>(
        &mut self,
        setting: &'static Setting,
    ) -> Result<T, Reported> {
        let (min, max) = setting.range.unwrap_or((0, u64::MAX));
        self.parse(setting, |text| {
            let number: u64 = parse_digits(text)?;
            let number = Some(number).filter(|number| (min..=max).contains(number));
            number
                .and_then(|number| T::try_from(number).ok())
                .ok_or(text)
        })
    }

    pub(super) fn boolean(&mut self, setting: &'static Setting) -> Result<bool, Reported> {
        self.parse(setting, parse_boolean)
    }

    /// Where the setting is set, rightly or wrongly. Values that Kubernetes injects do not count.
    pub(super) fn origin(&self, setting: &Setting) -> Option<SettingOrigin> {
        let value = self.env.get(setting.name).unwrap_or_default();
        let value = value.to_string_lossy();
        if !value.trim().is_empty() {
            let is_injected = is_kubernetes_service_link(value.trim());
            return (!is_injected).then_some(SettingOrigin::Environment);
        }
        let credential = self.credential_path(setting);
        credential.map(|_| SettingOrigin::Credentials)
    }

    pub(super) fn is_set(&self, setting: &Setting) -> bool {
        self.origin(setting).is_some()
    }

    /// The file in `$CREDENTIALS_DIRECTORY` for a setting, if it exists: its name is the setting's, or that in lower case with dashes.
    fn credential_path(&self, setting: &Setting) -> Option<PathBuf> {
        let directory = Path::new(self.env.get("CREDENTIALS_DIRECTORY")?);
        let names = [
            setting.name.to_owned(),
            setting.name.to_lowercase().replace('_', "-"),
        ];
        let mut paths = names.iter().map(|name| directory.join(name));
        paths.find(|path| path.is_absolute() && path.exists())
    }

    /// Adds a value to the report; of a secret only its length.
    pub(super) fn report_value(&mut self, value: &SettingValue) {
        let display_text = match (value.is_secret(), value.text.is_empty()) {
            (_, true) => return,
            (true, _) => mask_secret(&value.text),
            (false, _) => value.text.clone(),
        };
        self.report_as(value.setting, display_text, value.origin.clone());
    }

    /// Adds a value to the report in this form.
    pub(super) fn report_as(
        &mut self,
        setting: &Setting,
        display_value: impl Into<String>,
        origin: SettingOrigin,
    ) {
        self.report.settings.push(EffectiveSetting {
            name: setting.name,
            display_value: display_value.into(),
            origin,
        });
    }

    /// Adds a note for the administrator that does not prevent a start.
    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.report.warnings.push(warning.into());
    }

    /// Collects a wrong value; `found` is no secret.
    pub(super) fn invalid(
        &mut self,
        setting: &Setting,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Reported {
        self.errors.push(Error::Invalid {
            name: setting.name,
            expected: expected.into(),
            found: found.into(),
        });
        Reported(())
    }

    pub(super) fn missing(&mut self, setting: &Setting, expected: impl Into<String>) -> Reported {
        self.errors.push(Error::Missing {
            name: setting.name,
            expected: expected.into(),
        });
        Reported(())
    }

    pub(super) fn conflict(&mut self, setting: &Setting, other: &Setting) -> Reported {
        self.errors.push(Error::Conflict {
            name: setting.name,
            other: other.name,
        });
        Reported(())
    }

    fn credential(&mut self, setting: &'static Setting) -> Result<Option<SettingValue>, Reported> {
        let Some(path) = self.credential_path(setting) else {
            return Ok(None);
        };
        let text = match setting.path {
            true => path.to_string_lossy().into_owned(),
            false => self.file_content(setting, &path)?.trim().to_owned(),
        };
        Ok((!text.is_empty()).then_some(SettingValue {
            setting,
            text,
            origin: SettingOrigin::Credentials,
        }))
    }

    /// The content of a file for `setting`.
    pub(super) fn file_content(
        &mut self,
        setting: &Setting,
        path: &Path,
    ) -> Result<String, Reported> {
        match read_bounded(path, MAX_VALUE_BYTES) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
                let found = format!("other bytes in {}", quote_path(path));
                self.invalid(setting, "a file of UTF-8", found)
            }),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let found = format!("{} larger", quote_path(path));
                Err(self.invalid(setting, "a file of at most 64 KiB", found))
            }
            Err(source) => {
                self.errors.push(Error::Unreadable {
                    name: setting.name,
                    path: quote_path(path),
                    source,
                });
                Err(Reported(()))
            }
        }
    }
}

/// A path in quotes. A relative one is not shown: it may be a secret in the variable that should name its file.
fn quote_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with(['/', '.']) {
        quote_redacted(&text)
    } else {
        format!("a relative path of {} characters", text.chars().count())
    }
}

/// A wrong value in quotes: escaped, truncated, and without the parts of a URL that may be secret.
pub(super) fn quote_redacted(text: &str) -> String {
    let public = &text[..text.find(['?', '#']).unwrap_or(text.len())];
    let mut display_text = match (public.find("://"), public.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}://…{}", &public[..scheme], &public[at..])
        }
        _ => public.to_owned(),
    };
    let end = truncate_chars(&display_text, MAX_QUOTED_CHARS).len();
    if end < display_text.len() || public.len() < text.len() {
        display_text.truncate(end);
        display_text.push('…');
    }
    format!("{display_text:?}")
}

/// A secret, as reports show it.
pub(super) fn mask_secret(secret: &str) -> String {
    format!("(set, {})", describe_length(secret))
}

/// A wrong secret, as errors show it.
pub(super) fn describe_length(secret: &str) -> String {
    match secret.chars().count() {
        1 => "1 character".into(),
        n => format!("{n} characters"),
    }
}
