//! Which endpoints are open.
//!
//! The rule:
//!
//! 1. A setting of application-service mode's registration or homeserver opens that mode's endpoints.
//! 2. A `TOKEN_SERVER_*` setting opens `/token`.
//! 3. A setting that only the endpoints for OpenID tokens read opens those ("Matrix").
//! 4. Without application-service mode, the name of the SFU's key counts too: `LIVEKIT_API_KEY`, which token servers have, opens
//!    `/token`; `LIVEKIT_KEY` and its files, which Matrix' services have, open Matrix.
//! 5. If no setting opens any of them, Matrix is open. With `--dev`, Matrix and `/token` are.
//!
//! The column `opens` of the table has the settings.

use super::Mode;
use super::reader::SettingsReader;
use super::table::{EndpointGroup, SETTINGS, Setting};

/// Which groups of endpoints are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OpenEndpoints {
    pub matrix: bool,
    pub token: bool,
    pub appservice: bool,
}

impl OpenEndpoints {
    fn contains(self, group: EndpointGroup) -> bool {
        match group {
            EndpointGroup::Matrix => self.matrix,
            EndpointGroup::Token => self.token,
            EndpointGroup::AppService => self.appservice,
        }
    }
}

/// Applies the rule, and adds the reasons to the report.
pub(super) fn find_open_endpoints(reader: &mut SettingsReader<'_>) -> OpenEndpoints {
    let set = |setting: &&Setting| reader.is_set(setting);
    let appservice =
        opening_settings(EndpointGroup::AppService, false).any(|setting| set(&setting));
    let opened_by = EndpointGroup::ALL.map(|group| opening_settings(group, appservice).find(set));
    let none_opened = opened_by.iter().all(Option::is_none);
    let mut open = OpenEndpoints::default();
    for (group, setting) in EndpointGroup::ALL.into_iter().zip(opened_by) {
        let by_default = match (group, reader.mode) {
            (EndpointGroup::AppService, _) | (EndpointGroup::Token, Mode::Serve) => None,
            (_, Mode::Dev) => Some("--dev opens them"),
            (EndpointGroup::Matrix, Mode::Serve) => {
                none_opened.then_some("no setting opens any endpoints")
            }
        };
        let (is_open, reason) = match (setting, by_default) {
            (Some(setting), _) => (true, format!("{} is set", setting.name)),
            (None, Some(reason)) => (true, reason.into()),
            (None, None) => {
                let settings = opening_settings(group, appservice);
                let names: Vec<_> = settings
                    .filter(|setting| setting.is_current())
                    .map(|setting| setting.name)
                    .collect();
                (false, format!("none of {} is set", names.join(", ")))
            }
        };
        match group {
            EndpointGroup::Matrix => open.matrix = is_open,
            EndpointGroup::Token => open.token = is_open,
            EndpointGroup::AppService => open.appservice = is_open,
        }
        reader.report.endpoints.push((group, is_open, reason));
    }
    open
}

/// The settings that open a group, in or without application-service mode.
pub(super) fn opening_settings(
    group: EndpointGroup,
    appservice: bool,
) -> impl Iterator<Item = &'static Setting> {
    let opens = move |setting: &&Setting| {
        let opened = setting.opens;
        opened.is_some_and(|(opened, without)| opened == group && !(without && appservice))
    };
    SETTINGS.iter().copied().filter(opens)
}

/// Warns of settings that are set although no open endpoint reads them.
pub(super) fn warn_unread_settings(reader: &mut SettingsReader<'_>, open: OpenEndpoints) {
    for setting in SETTINGS {
        let is_read = setting.read_by.iter().any(|group| open.contains(*group));
        if let (false, Some(origin)) = (is_read, reader.origin(setting)) {
            reader.report_as(setting, "(set, not read)", origin);
            let closed = setting.read_by.iter().map(|group| {
                let (paths, verb) = (group.paths(), group.verb());
                format!("{paths} {verb} closed")
            });
            let closed = closed.collect::<Vec<_>>().join(", and ");
            let name = setting.name;
            reader.warn(format!("{name} has no effect: {closed}"));
        }
    }
}
