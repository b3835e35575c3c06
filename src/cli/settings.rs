//! The command line's layer of the configuration.

use serde_json::Value;

use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use crate::agent::Configuration;
use crate::base::problem::{Problem, Problems};
use crate::config::{self, Document, Loaded, Paths};

/// The paths that the global options name.
pub(super) fn paths(global: &Global) -> Paths {
    Paths::new(&global.root)
}

/// The configuration file with the flags over it.
///
/// # Errors
/// With every problem of the file and the flags.
pub(super) fn from_file(global: &Global, overrides: &Overrides) -> Result<Document, Failure> {
    let path = global.config.clone().unwrap_or_else(|| paths(global).config_file());
    let mut document = Document::new();
    let added = config::add_file(&mut document, &path);
    added.map_err(|problems| {
        let hint = (!path.exists()).then(|| "join first: `vm-agent join DIR`".to_owned());
        Failure::from(problems).hint(hint)
    })?;
    add_environment_and_flags(&mut document, overrides)?;
    Ok(document)
}

/// Puts the environment, and the flags over it, over a document.
///
/// # Errors
/// When a flag's text has a wrong form.
pub(super) fn add_environment_and_flags(
    document: &mut Document,
    overrides: &Overrides,
) -> Result<(), Failure> {
    config::add_environment(document, std::env::vars_os())?;
    let wrong = |what: String| Failure::new(Exit::Usage, anyhow::anyhow!(what));
    for flag in overrides.settings().map_err(wrong)? {
        let value = if flag.literal {
            Value::from(flag.value)
        } else {
            config::parse_yaml_value(&flag.value, flag.flag)
                .map_err(|problem| wrong(problem.to_string()))?
        };
        document.set(&flag.path, value, flag.flag);
    }
    Ok(())
}

/// The settings of a start, which can be read again from the file with the same flags over it.
pub(super) fn configuration(
    global: &Global,
    loaded: Loaded,
    overrides: Overrides,
) -> Configuration {
    let global = global.clone();
    let read = move || {
        let document = from_file(&global, &overrides).map_err(problems)?;
        config::load(&document, &paths(&global))
    };
    Configuration { loaded, read: Box::new(read) }
}

fn problems(failure: Failure) -> Problems {
    problems_of(failure).unwrap_or_else(|failure| {
        Problems(vec![Problem::new("command line", "", failure.error.to_string())])
    })
}

/// The problems of the settings, for which a command failed.
///
/// # Errors
/// With the failure, where it is another one.
pub(super) fn problems_of(failure: Failure) -> Result<Problems, Failure> {
    let Failure { exit, error, hint } = failure;
    error.downcast().map_err(|error| Failure { exit, error, hint })
}

/// Makes settings of a document.
///
/// # Errors
/// With every problem.
pub(super) fn load(document: &Document, global: &Global) -> Result<Loaded, Failure> {
    Ok(config::load(document, &paths(global))?)
}
