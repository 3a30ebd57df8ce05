//! The settings that take more than one variable, or deserve a word of warning.

use std::fs::File;
use std::path::Path;

use super::reader::{Reader, Value, quoted};
use super::report::Origin;
use super::{Defaults, Doors, Error, values};
use crate::access::FullAccess;
use crate::net::base_url::BaseUrl;
use crate::net::tls::Roots;

/// The only value of `LIVEKIT_INSECURE_SKIP_VERIFY_TLS` that has an effect.
const INSECURE: &str = "YES_I_KNOW_WHAT_I_AM_DOING";
const FULL_ACCESS: &str = "LIVEKIT_FULL_ACCESS_HOMESERVERS";
const OLDER_FULL_ACCESS: &str = "LIVEKIT_LOCAL_HOMESERVERS";

/// `LIVEKIT_URL`, as it was given and as it was understood.
pub(super) fn sfu_url(reader: &mut Reader<'_>, defaults: &Defaults) -> Option<(String, BaseUrl)> {
    const NAME: &str = "LIVEKIT_URL";
    let before = reader.errors.len();
    let value = reader.value(NAME).or_else(|| {
        let text = defaults.url?.into();
        let origin = defaults.origin();
        Some(Value {
            name: NAME,
            text,
            origin,
        })
    });
    if reader.errors.len() > before {
        return None;
    }
    let Some(value) = value else {
        let expected = values::SFU_URL.into();
        reader.errors.push(Error::Missing {
            name: NAME,
            expected,
        });
        return None;
    };
    reader.understood(value, values::SFU_URL, |text| {
        Ok((text.to_owned(), values::url(text)?))
    })
}

/// `LIVEKIT_API_URL`, or what `LIVEKIT_URL` says.
pub(super) fn api_url(
    reader: &mut Reader<'_>,
    public: Option<&(String, BaseUrl)>,
) -> Option<BaseUrl> {
    const NAME: &str = "LIVEKIT_API_URL";
    if let Some(value) = reader.value(NAME) {
        return reader.understood(value, values::SFU_URL, values::url);
    }
    let (_, url) = public?;
    let origin = Origin::Follows("LIVEKIT_URL");
    reader.report.set(NAME, url.to_string(), origin);
    Some(url.clone())
}

/// Whose users get rooms created, with a warning if that is nobody or everybody.
pub(super) fn full_access(
    reader: &mut Reader<'_>,
    defaults: &Defaults,
    doors: Doors,
) -> Option<FullAccess> {
    let before = reader.errors.len();
    let current = reader.value(FULL_ACCESS);
    let older = reader.value(OLDER_FULL_ACCESS);
    if reader.errors.len() > before {
        return None;
    }
    let set = current.is_some() || older.is_some();
    if older.is_some() {
        reader.report.warn(format!(
            "{OLDER_FULL_ACCESS} is an older name; write {FULL_ACCESS} instead"
        ));
    }
    let mut understood = |value| reader.understood(value, values::HOMESERVERS, values::homeservers);
    let access = match (current, older) {
        (Some(current), Some(older)) => {
            let (current, older) = (understood(current)?, understood(older)?);
            if current != older {
                reader.errors.push(Error::Conflict {
                    name: OLDER_FULL_ACCESS,
                    other: FULL_ACCESS,
                });
                return None;
            }
            current
        }
        (Some(value), None) | (None, Some(value)) => understood(value)?,
        (None, None) => understood(Value {
            name: FULL_ACCESS,
            text: defaults.full_access.into(),
            origin: defaults.origin(),
        })?,
    };
    if access.is_nobody() && doors.matrix {
        reader.report.warn(format!(
            "users of every homeserver are restricted: they can join rooms that exist, and nobody has rooms created; {FULL_ACCESS}=your.server.name names your own"
        ));
    } else if access.is_everyone() && set {
        reader.report.warn(format!(
            "anybody on any homeserver can create rooms on the SFU, as {FULL_ACCESS} is *"
        ));
    }
    Some(access)
}

/// The certificate authorities that are believed. Our own file has to be there and of use; what is set for every program need not.
pub(super) fn authorities(reader: &mut Reader<'_>) -> Roots {
    let mut roots = Roots::common();
    if let Some(value) = reader.value("LIVEKIT_CA_FILE") {
        match (
            File::open(&value.text),
            roots.add_file(Path::new(&value.text)),
        ) {
            (Err(source), _) => reader.errors.push(Error::Unreadable {
                name: value.name,
                path: quoted(&value.text),
                source,
            }),
            (Ok(_), Err(error)) => {
                let found = format!("{}: {}", quoted(&value.text), error.reason());
                reader.wrong(value.name, "a PEM file of certificates", found);
            }
            (Ok(_), Ok(())) => reader.report.set(value.name, value.text, value.origin),
        }
    }
    let mut others = Vec::new();
    if let Some(value) = reader.value("SSL_CERT_FILE") {
        others.push((roots.add_file(Path::new(&value.text)), value));
    }
    if let Some(value) = reader.value("SSL_CERT_DIR") {
        let mut directories = values::directories(&value.text).into_iter();
        others.push((
            directories.try_for_each(|path| roots.add_directory(&path)),
            value,
        ));
    }
    for (added, value) in others {
        if let Err(error) = added {
            let (name, text) = (value.name, quoted(&value.text));
            reader
                .report
                .warn(format!("{name} is ignored: {text}: {}", error.reason()));
        } else {
            reader.report.set(value.name, value.text, value.origin);
        }
    }
    roots
}

/// Whether certificates go unchecked: never by a mere `true`.
pub(super) fn insecure(reader: &mut Reader<'_>) -> bool {
    const NAME: &str = "LIVEKIT_INSECURE_SKIP_VERIFY_TLS";
    let Some(value) = reader.value(NAME) else {
        return false;
    };
    let on = value.text == INSECURE;
    if on {
        reader.report.warn(format!(
            "CERTIFICATES OF HOMESERVERS ARE NOT CHECKED, as {NAME} demands: whoever is on the way can pose as any user of any homeserver"
        ));
        reader.report.set(NAME, value.text, value.origin);
    } else {
        reader.report.warn(format!(
            "{NAME} has no effect: certificates are checked, as its value is not {INSECURE}"
        ));
    }
    on
}
