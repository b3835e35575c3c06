//! The configuration: layers in, typed settings out, with the origin of each and every problem at
//! once. It reads one file and starts nothing.

mod document;
mod environment;
mod names;
mod paths;
mod reader;
mod reference;
mod secret;
mod sections;
mod yaml;

use std::path::Path;
use std::time::Duration;

pub use document::Document;
pub use environment::add as add_environment;
pub use paths::Paths;
pub use reader::Effective;
pub use reference::{SECTIONS, Section, Setting, reference};
pub use sections::{
    Capture, CaptureMode, Credential, Dns, Facts, Health, Identity, Kubernetes, Log, Mesh, Proxy,
    Registration, RegistrationMode, Settings, Status, Templates, Unfilled, Workload,
};
pub use yaml::{
    Lines, MAX_BYTES, parse as parse_yaml, parse_value as parse_yaml_value,
    parse_with_lines as parse_yaml_with_lines, write as write_yaml,
};

use crate::base::fsio;
use crate::base::problem::{Problem, Problems};
use reader::Reader;

/// Settings that were found good, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Every setting with its origin, defaults included.
    pub effective: Vec<Effective>,
}

/// Makes settings of a document.
///
/// # Errors
/// With all problems.
pub fn load(document: &Document, paths: &Paths) -> Result<Loaded, Problems> {
    let mut reader = Reader::new(document);
    let settings = Settings::read(&mut reader, paths);
    reader.report_unknown();
    let (problems, effective) = reader.finish();
    match settings {
        Some(settings) if problems.is_empty() => Ok(Loaded { settings, effective }),
        _ => Err(Problems(problems)),
    }
}

/// What `workload.facts` of a document says, for a machine without a whole configuration.
///
/// # Errors
/// With all problems of that section.
pub fn load_facts(document: &Document) -> Result<Facts, Problems> {
    let mut reader = Reader::new(document);
    let facts = Facts::read(&mut reader);
    let (problems, _) = reader.finish();
    match facts {
        Some(facts) if problems.is_empty() => Ok(facts),
        _ => Err(Problems(problems)),
    }
}

/// Adds a configuration file to a document.
///
/// # Errors
/// When it cannot be read, is no YAML, or is no map.
pub fn add_file(document: &mut Document, path: &Path) -> Result<(), Problems> {
    let origin = path.display().to_string();
    let text = fsio::read_text(path, MAX_BYTES).map_err(|error| {
        Problems(vec![Problem::new(&*origin, "", crate::base::trouble::chain(&error))])
    })?;
    let (value, lines) =
        yaml::parse_with_lines(&text, &origin).map_err(|problem| Problems(vec![problem]))?;
    if !value.is_object() {
        let what = "found no settings: expected a map of sections such as `workload:`";
        return Err(Problems(vec![Problem::new(origin, "", what)]));
    }
    document.add(&value, &|path| match lines.get(path) {
        Some(line) => format!("{origin}:{line}"),
        None => origin.clone(),
    });
    Ok(())
}

/// Parses a duration as settings and Go write it: `60s`, `500ms`, `24h`, `1.5h`, `1h30m`; at most
/// ten years.
///
/// # Errors
/// With what was found and what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is no duration: expected a number with a unit, such as 60s or 24h");
    let (mut total, mut rest) = (Duration::ZERO, text);
    loop {
        let unit = rest.find(|letter: char| letter.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let tail = rest.get(unit..).unwrap_or_default();
        let end = tail.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (part, tail) = rest.split_at(unit.saturating_add(end));
        let part = crate::workload::parse_duration(part);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        if tail.is_empty() {
            break;
        }
        rest = tail;
    }
    if total > LONGEST {
        return Err(format!("{text:?} is too long: expected at most ten years (87600h)"));
    }
    Ok(total)
}

/// Nothing of ours lasts longer, and sums with the time of day stay far from their end.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[cfg(test)]
mod tests;
