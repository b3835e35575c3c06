//! The environment's layer of the configuration: `VM_AGENT_SECTION_SETTING` is `section.setting`.

use std::ffi::OsString;
use std::path::Path;

use super::document::Document;
use super::names::unknown_name;
use super::paths::Paths;
use super::reader::Reader;
use super::sections::Settings;
use super::yaml;
use crate::base::problem::{Problem, Problems};

/// Puts the variables of the environment over a document, such as `VM_AGENT_WORKLOAD_SERVICE_ACCOUNT`
/// for `workload.serviceAccount`. A value is YAML (`VM_AGENT_WORKLOAD_LABELS='{app: details}'`).
/// Variables of other programs, and those of ours that name no section, are left alone.
///
/// # Errors
/// With each variable that names a section and no setting of it, is no text or is no YAML.
pub fn add(
    document: &mut Document,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(), Problems> {
    let known = known();
    let mut problems = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let origin = format!("${name}");
        let Some(path) = known.iter().find(|path| variable(path) == name) else {
            problems.extend(unknown(name, &known).map(|what| Problem::new(&*origin, "", what)));
            continue;
        };
        let Some(text) = value.to_str() else {
            problems.push(Problem::new(origin, path.join("."), "it is no UTF-8 text"));
            continue;
        };
        match yaml::parse_value(text, &origin) {
            Ok(value) => document.set(path, value, &origin),
            Err(problem) => problems.push(Problem { field: path.join("."), ..problem }),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Every setting that is read from a document.
fn known() -> Vec<Vec<String>> {
    let empty = Document::new();
    let mut reader = Reader::new(&empty);
    drop(Settings::read(&mut reader, &Paths::new(Path::new("/"))));
    reader.into_known()
}

/// The variable of a setting.
pub(super) fn variable(path: &[String]) -> String {
    let mut name = PREFIX.to_owned();
    for (index, part) in path.iter().enumerate() {
        if index > 0 {
            name.push('_');
        }
        for letter in part.chars() {
            if letter.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
    }
    name
}

/// What is wrong with a variable that names one of our sections and no setting of it.
fn unknown(name: &str, known: &[Vec<String>]) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
    let (section, setting) = rest.split_once('_')?;
    known.iter().find(|path| path.first().is_some_and(|first| first == section))?;
    // The parts of a setting's own name are compared without what separates them.
    let path = [section.to_owned(), setting.replace('_', "")];
    let (_, what) = unknown_name(&path, known);
    Some(what)
}

const PREFIX: &str = "VM_AGENT_";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<serde_json::Value, Problems> {
        let mut document = Document::new();
        let all = variables.iter().map(|&(name, value)| (name.into(), value.into()));
        add(&mut document, all).map(|()| document.tree())
    }

    #[test]
    fn a_variable_sets_the_setting_of_its_name() {
        let tree = with(&[
            ("VM_AGENT_WORKLOAD_SERVICE_ACCOUNT", "client"),
            ("VM_AGENT_WORKLOAD_LABELS", "{app: details, version: '1.10'}"),
            ("VM_AGENT_REGISTRATION_KUBERNETES_SERVER", "https://k:6443"),
            ("VM_AGENT_STATUS_PORT", "15030"),
            ("VM_AGENT_ROOT", "/x"),
            ("HOME", "/root"),
        ]);
        let expected = json!({
            "registration": {"kubernetes": {"server": "https://k:6443"}},
            "status": {"port": 15030},
            "workload": {"labels": {"app": "details", "version": "1.10"}, "serviceAccount": "client"},
        });
        assert_eq!(tree.unwrap(), expected);
    }

    #[test]
    fn a_misspelt_variable_is_a_problem() {
        let problems = with(&[("VM_AGENT_IDENTITY_TLL", "1h"), ("VM_AGENT_STATUS_PORT", "[")]);
        let told = problems.unwrap_err().to_string();
        assert!(told.contains("$VM_AGENT_IDENTITY_TLL: there is no such setting"), "{told}");
        assert!(told.contains("did you mean identity.ttl?"), "{told}");
        assert!(told.contains("$VM_AGENT_STATUS_PORT: status.port: it is no valid YAML"), "{told}");
    }
}
