//! `check-config`: prints every setting as the service understands it, and which endpoints are open.

use std::io::{self, Write};

use super::{EXIT_CONFIG, print_errors};
use crate::config::table::{Relation, SETTINGS, Setting};
use crate::config::{Config, ConfigReport, Environment, Mode};
use crate::util::logging::escape_control_chars;

/// Prints all settings to `out`, or all errors to `err`. Returns the exit code.
pub(crate) fn run(env: &Environment, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let (config, report) = Config::read(env, Mode::Serve);
    if let Err(errors) = config {
        print_warnings(&report, err)?;
        print_errors(&errors, err)?;
        return Ok(EXIT_CONFIG);
    }
    print_settings(&report, out)?;
    writeln!(out)?;
    for (group, open, reason) in &report.endpoints {
        let state = if *open { "open" } else { "closed" };
        let (paths, verb) = (group.paths(), group.verb());
        writeln!(out, "{paths} {verb} {state}, since {reason}")?;
    }
    print_warnings(&report, out)?;
    writeln!(out, "configuration is valid")?;
    Ok(0)
}

/// Prints a row for each value of a setting, and one for each setting without a value.
fn print_settings(report: &ConfigReport, out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<[String; 3]> = SETTINGS
        .iter()
        .flat_map(|setting| setting_rows(setting, report))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1].map(|column| width(column).unwrap_or_default());
    for [name, value, origin] in &rows {
        let line = format!("{name:0$}  {value:1$}  {origin}", widths[0], widths[1]);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn setting_rows(setting: &Setting, report: &ConfigReport) -> Vec<[String; 3]> {
    let name = || setting.name.to_owned();
    let values = report
        .settings
        .iter()
        .filter(|row| row.name == setting.name);
    let mut rows: Vec<_> = values
        .map(|row| {
            let value = escape_control_chars(&row.display_value);
            let origin = escape_control_chars(&row.origin.to_string());
            [name(), value, origin]
        })
        .collect();
    if rows.is_empty() && matches!(setting.relation, Relation::Main) {
        let default = setting.default_text().replace('`', "");
        let default = match default.is_empty() {
            true => String::new(),
            false => format!("default: {default}"),
        };
        rows.push([name(), "(not set)".into(), default]);
    }
    rows
}

fn print_warnings(report: &ConfigReport, out: &mut impl Write) -> io::Result<()> {
    let mut warnings = report.warnings.iter();
    warnings.try_for_each(|warning| writeln!(out, "warning: {}", escape_control_chars(warning)))
}
