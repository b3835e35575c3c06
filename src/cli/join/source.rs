//! Where a join's settings come from: a directory, a bundle, or the flags alone.

use std::io::Read;
use std::path::Path;

use serde_json::Value;
use zeroize::Zeroizing;

use crate::base::fsio;
use crate::base::problem::{Problem, Problems};
use crate::base::trouble::chain;
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::Overrides;
use crate::cli::progress::Progress;
use crate::cli::settings;
use crate::config::{self, Document, Paths};
use crate::join::{Bundle, Source, read_directory};
use crate::platform;

/// Reads the source; `None` where flags say it all.
pub(super) fn read(path: Option<&Path>, progress: &Progress) -> Result<Option<Source>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let source = if path.is_dir() {
        read_directory(path, config::parse_yaml_with_lines)?
    } else {
        let place = place(path);
        bundle(path)?.into_source(&place)
    };
    for warning in &source.warnings {
        progress.warn(&warning.to_string(), None);
    }
    progress.note("source", &source.place);
    Ok(Some(source))
}

/// Reads a bundle; `-` is standard input.
pub(in crate::cli) fn bundle(path: &Path) -> Result<Bundle, Failure> {
    let origin = place(path);
    let text = if path == Path::new("-") {
        standard_input(&origin)?
    } else {
        Zeroizing::new(fsio::read_text(path, Bundle::MAX_BYTES).map_err(|error| {
            let what =
                if error.is_missing() { "it does not exist".to_owned() } else { chain(&error) };
            let problems = Problems(vec![Problem::new(&*origin, "", what)]);
            let hint = "SOURCE is a bundle that `vm-agent bundle create` made, or the directory \
                        that `istioctl x workload entry configure -o DIR` wrote";
            Failure::from(problems).hint(hint.to_owned())
        })?)
    };
    Ok(Bundle::parse(&text, &origin, config::parse_yaml_with_lines)?)
}

fn standard_input(origin: &str) -> Result<Zeroizing<String>, Failure> {
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = Bundle::MAX_BYTES.saturating_add(1);
    let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
    read.map_err(|error| {
        Failure::new(Exit::Other, anyhow::Error::new(error).context("cannot read a bundle"))
    })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(error) => {
            let what = format!("byte {} is not UTF-8 text", error.valid_up_to());
            Err(Problems(vec![Problem::new(origin, "", what)]).into())
        }
    }
}

fn place(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// The settings of the source with the environment and the flags over them.
pub(super) fn document(
    paths: &Paths,
    source: Option<&Source>,
    overrides: &Overrides,
) -> Result<Document, Failure> {
    let mut document = Document::new();
    if let Some(source) = source {
        document.add(&source.document, &|path| source.origin(path));
        let mut place = |setting: &[&str], path: std::path::PathBuf| {
            let at: Vec<String> = setting.iter().map(|&part| part.to_owned()).collect();
            document.set(&at, path.display().to_string().into(), &source.origin(&at));
        };
        if source.token.is_some() {
            place(&["credential", "tokenFile"], paths.token_file());
        }
        if source.kubernetes.is_some() {
            place(&["registration", "kubernetes", "caFile"], paths.kube_ca());
            place(&["registration", "kubernetes", "tokenFile"], paths.kube_token_file());
        }
        if source.terms.is_some() {
            name(paths, source, &mut document);
        }
    }
    settings::add_environment_and_flags(&mut document, overrides)?;
    check_name(source, &document)?;
    Ok(document)
}

/// A bundle is for many machines: the name of one that joins again stays, so that its registration
/// does too; a new one gets its host name behind the prefix.
fn name(paths: &Paths, source: &Source, document: &mut Document) {
    let Some(terms) = &source.terms else { return };
    if text(&source.document, "name").is_some() {
        return;
    }
    let at = ["workload", "name"].map(str::to_owned);
    let mut before = Document::new();
    let file = paths.config_file();
    if config::add_file(&mut before, &file).is_ok() {
        let before = before.tree();
        let same = ["namespace", "serviceAccount"]
            .iter()
            .all(|field| text(&before, field) == text(&source.document, field));
        let kept = text(&before, "name").filter(|name| name.starts_with(&terms.name_prefix));
        if let Some(kept) = kept.filter(|_| same) {
            return document.set(&at, kept.into(), &file.display().to_string());
        }
    }
    if let Some(host) = platform::host_name().filter(|_| !terms.name_prefix.is_empty()) {
        let name = format!("{}{host}", terms.name_prefix);
        document.set(&at, name.into(), "the bundle's name prefix and the host name");
    }
}

/// The cluster's policy would refuse another name; this says it before.
fn check_name(source: Option<&Source>, document: &Document) -> Result<(), Failure> {
    let Some((source, terms)) = source.and_then(|one| Some((one, one.terms.as_ref()?))) else {
        return Ok(());
    };
    let tree = document.tree();
    let Some(name) = text(&tree, "name") else { return Ok(()) };
    let what = match text(&source.document, "name") {
        Some(only) if only != name => {
            format!("found {name:?}, but the bundle is for {only:?} alone")
        }
        None if !name.starts_with(&terms.name_prefix) => {
            format!(
                "found {name:?}, but the bundle is for names that begin with {:?}",
                terms.name_prefix
            )
        }
        _ => return Ok(()),
    };
    Err(Problems(vec![Problem::new(&*source.place, "workload.name", what)]).into())
}

fn text<'a>(tree: &'a Value, field: &str) -> Option<&'a str> {
    tree.get("workload")?.get(field)?.as_str()
}
