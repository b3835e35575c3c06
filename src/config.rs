//! The configuration: layers in, typed settings out, with the origin of each and every problem at
//! once. It reads one file and starts nothing.

mod document;
mod lines;
mod paths;
mod reader;
mod sections;
mod yaml;

use std::path::Path;

pub use document::Document;
pub use paths::Paths;
pub use reader::Effective;
pub use sections::{
    Identity, Kubernetes, Log, Mesh, Proxy, Registration, RegistrationMode, Settings, Status,
    Workload,
};
pub use yaml::{
    MAX_BYTES, parse as parse_yaml, parse_value as parse_yaml_value, write as write_yaml,
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

/// Adds a configuration file to a document.
///
/// # Errors
/// When it cannot be read, is no YAML, or is no map.
pub fn add_file(document: &mut Document, path: &Path) -> Result<(), Problems> {
    let origin = path.display().to_string();
    let text = fsio::read_text(path, MAX_BYTES).map_err(|error| {
        Problems(vec![Problem::new(&*origin, "", crate::base::trouble::chain(&error))])
    })?;
    let value = yaml::parse(&text, &origin).map_err(|problem| Problems(vec![problem]))?;
    if !value.is_object() {
        let what = "found no settings: expected a map of sections such as `workload:`";
        return Err(Problems(vec![Problem::new(origin, "", what)]));
    }
    document.add(&value, &|path| lines::origin(&origin, &text, path));
    Ok(())
}

/// Parses a duration as settings write it: `60s`, `500ms`, `24h`, `1.5h`.
///
/// # Errors
/// With what was found and what is expected.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::workload::parse_duration(text).ok_or_else(|| {
        format!("{text:?} is no duration: expected a number with a unit, such as 60s or 24h")
    })
}

#[cfg(test)]
mod tests;
