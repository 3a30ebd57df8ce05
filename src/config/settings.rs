//! The settings that take more than one variable, or deserve a word of warning.

use std::fs::File;
use std::path::Path;

use super::reader::{SettingValue, SettingsReader, quote_redacted};
use super::report::SettingOrigin;
use super::{DefaultSettings, Error, OpenEndpoints, values};
use crate::exchange::access::FullAccessHomeservers;
use crate::net::base_url::BaseUrl;
use crate::net::tls::RootCertificates;

/// The only value of `LIVEKIT_INSECURE_SKIP_VERIFY_TLS` that has an effect.
const INSECURE_TLS_OPT_IN: &str = "YES_I_KNOW_WHAT_I_AM_DOING";
const FULL_ACCESS: &str = "LIVEKIT_FULL_ACCESS_HOMESERVERS";
const DEPRECATED_FULL_ACCESS: &str = "LIVEKIT_LOCAL_HOMESERVERS";

/// `LIVEKIT_URL`, as it was given and as it was understood.
pub(super) fn read_sfu_url(
    reader: &mut SettingsReader<'_>,
    defaults: &DefaultSettings,
) -> Option<(String, BaseUrl)> {
    const NAME: &str = "LIVEKIT_URL";
    let before = reader.errors.len();
    let value = reader.read_value(NAME).or_else(|| {
        let text = defaults.sfu_url?.into();
        let origin = defaults.origin();
        Some(SettingValue {
            name: NAME,
            text,
            origin,
        })
    });
    if reader.errors.len() > before {
        return None;
    }
    let Some(value) = value else {
        let expected = values::SFU_URL_EXPECTED.into();
        reader.errors.push(Error::Missing {
            name: NAME,
            expected,
        });
        return None;
    };
    reader.parse_value(value, values::SFU_URL_EXPECTED, |text| {
        Ok((text.to_owned(), values::parse_base_url(text)?))
    })
}

/// `LIVEKIT_API_URL`, or what `LIVEKIT_URL` says.
pub(super) fn read_sfu_api_url(
    reader: &mut SettingsReader<'_>,
    public: Option<&(String, BaseUrl)>,
) -> Option<BaseUrl> {
    const NAME: &str = "LIVEKIT_API_URL";
    if let Some(value) = reader.read_value(NAME) {
        return reader.parse_value(value, values::SFU_URL_EXPECTED, values::parse_base_url);
    }
    let (_, url) = public?;
    let origin = SettingOrigin::DerivedFrom("LIVEKIT_URL");
    reader.report.add_setting(NAME, url.to_string(), origin);
    Some(url.clone())
}

/// Whose users get rooms created, with a warning if that is nobody or everybody.
pub(super) fn read_full_access(
    reader: &mut SettingsReader<'_>,
    defaults: &DefaultSettings,
    doors: OpenEndpoints,
) -> Option<FullAccessHomeservers> {
    let before = reader.errors.len();
    let current = reader.read_value(FULL_ACCESS);
    let older = reader.read_value(DEPRECATED_FULL_ACCESS);
    if reader.errors.len() > before {
        return None;
    }
    let set = current.is_some() || older.is_some();
    if older.is_some() {
        reader.report.add_warning(format!(
            "{DEPRECATED_FULL_ACCESS} is an older name; write {FULL_ACCESS} instead"
        ));
    }
    let mut understood = |value| {
        reader.parse_value(
            value,
            values::HOMESERVERS_EXPECTED,
            values::parse_full_access,
        )
    };
    let access = match (current, older) {
        (Some(current), Some(older)) => {
            let (current, older) = (understood(current)?, understood(older)?);
            if current != older {
                reader.errors.push(Error::Conflict {
                    name: DEPRECATED_FULL_ACCESS,
                    other: FULL_ACCESS,
                });
                return None;
            }
            current
        }
        (Some(value), None) | (None, Some(value)) => understood(value)?,
        (None, None) => understood(SettingValue {
            name: FULL_ACCESS,
            text: defaults.full_access.into(),
            origin: defaults.origin(),
        })?,
    };
    if access.is_empty() && doors.matrix {
        reader.report.add_warning(format!(
            "users of every homeserver are restricted: they can join rooms that exist, and nobody has rooms created; {FULL_ACCESS}=your.server.name names your own"
        ));
    } else if access.is_all() && set {
        reader.report.add_warning(format!(
            "anybody on any homeserver can create rooms on the SFU, as {FULL_ACCESS} is *"
        ));
    }
    Some(access)
}

/// The certificate authorities that are believed. Our own file has to be there and of use; what is set for every program need not.
pub(super) fn read_certificate_authorities(reader: &mut SettingsReader<'_>) -> RootCertificates {
    let mut roots = RootCertificates::built_in_and_system();
    if let Some(value) = reader.read_value("LIVEKIT_CA_FILE") {
        match (
            File::open(&value.text),
            roots.add_file(Path::new(&value.text)),
        ) {
            (Err(source), _) => reader.errors.push(Error::Unreadable {
                name: value.name,
                path: quote_redacted(&value.text),
                source,
            }),
            (Ok(_), Err(error)) => {
                let found = format!("{}: {}", quote_redacted(&value.text), error.reason());
                reader.push_invalid(value.name, "a PEM file of certificates", found);
            }
            (Ok(_), Ok(())) => reader
                .report
                .add_setting(value.name, value.text, value.origin),
        }
    }
    let mut others = Vec::new();
    if let Some(value) = reader.read_value("SSL_CERT_FILE") {
        others.push((roots.add_file(Path::new(&value.text)), value));
    }
    if let Some(value) = reader.read_value("SSL_CERT_DIR") {
        let mut directories = values::split_directories(&value.text).into_iter();
        others.push((
            directories.try_for_each(|path| roots.add_directory(&path)),
            value,
        ));
    }
    for (added, value) in others {
        if let Err(error) = added {
            let (name, text) = (value.name, quote_redacted(&value.text));
            reader
                .report
                .add_warning(format!("{name} is ignored: {text}: {}", error.reason()));
        } else {
            reader
                .report
                .add_setting(value.name, value.text, value.origin);
        }
    }
    roots
}

/// Whether certificates go unchecked: never by a mere `true`.
pub(super) fn read_insecure_skip_verify_tls(reader: &mut SettingsReader<'_>) -> bool {
    const NAME: &str = "LIVEKIT_INSECURE_SKIP_VERIFY_TLS";
    let Some(value) = reader.read_value(NAME) else {
        return false;
    };
    let on = value.text == INSECURE_TLS_OPT_IN;
    if on {
        reader.report.add_warning(format!(
            "CERTIFICATES OF HOMESERVERS ARE NOT CHECKED, as {NAME} demands: whoever is on the way can pose as any user of any homeserver"
        ));
        reader.report.add_setting(NAME, value.text, value.origin);
    } else {
        reader.report.add_warning(format!(
            "{NAME} has no effect: certificates are checked, as its value is not {INSECURE_TLS_OPT_IN}"
        ));
    }
    on
}
