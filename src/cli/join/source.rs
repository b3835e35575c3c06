//! Where a join's settings come from: a directory, a bundle, or the flags alone.

use std::io::Read;
use std::path::Path;

use serde_json::Value;
use zeroize::Zeroizing;

use crate::base::fsio;
use crate::base::problem::{Problem, Problems};
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::Overrides;
use crate::cli::progress::Progress;
use crate::cli::settings;
use crate::config::{self, Document, Paths};
use crate::join::{Bundle, Setting, Source, outside, programs, read_directory};
use crate::platform;

/// Reads the source; `None` where flags say it all.
pub(super) fn read(path: Option<&Path>, progress: &Progress) -> Result<Option<Source>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let source = if path.is_dir() {
        read_directory(path, config::parse_yaml_with_lines)?
    } else {
        let place = place(path);
        let hint = if place.contains("://") {
            format!("`curl -fsS {place} | vm-agent join -` reads a bundle from a URL")
        } else {
            "SOURCE is a bundle that `vm-agent bundle create` made, or the directory that `istioctl x \
             workload entry configure -o DIR` wrote"
                .to_owned()
        };
        bundle(path, &hint)?.into_source(&place)
    };
    for warning in &source.warnings {
        progress.warn(&warning.to_string(), None);
    }
    progress.note("source", &source.place);
    Ok(Some(source))
}

/// Reads a bundle; `-` is standard input. `hint` says what is wanted where there is no such file.
pub(in crate::cli) fn bundle(path: &Path, hint: &str) -> Result<Bundle, Failure> {
    let origin = place(path);
    let text = if path == Path::new("-") {
        standard_input(&origin)?
    } else {
        Zeroizing::new(fsio::read_text(path, Bundle::MAX_BYTES).map_err(|error| {
            let what = error.without_path();
            let problems = Problems(vec![Problem::new(&*origin, "", what)]);
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
    progress: &Progress,
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
    match source {
        None if text(&document.tree(), "namespace").is_none() => return Err(nothing_to_join()),
        Some(source) if source.terms.is_none() => {
            registers_nobody(source, &mut document, progress);
        }
        _ => {}
    }
    check_name(source, &document)?;
    Ok(document)
}

fn nothing_to_join() -> Failure {
    let error = anyhow::anyhow!("what shall this machine join?");
    let hint = "`vm-agent join BUNDLE.yaml` (made by `vm-agent bundle create`) or `vm-agent join \
                DIRECTORY` (made by `istioctl x workload entry configure`); `vm-agent join --help` \
                lists the flags that say it all";
    Failure::new(Exit::Usage, error).hint(hint.to_owned())
}

/// A directory that was made without `--autoregister`: the WorkloadEntry is somebody else's, as it is
/// for Istio's own agent.
fn registers_nobody(source: &Source, document: &mut Document, progress: &Progress) {
    let tree = document.tree();
    let mode = tree.pointer("/registration/mode");
    if text(&tree, "group").is_some() || mode.is_some() {
        return;
    }
    let at = ["registration", "mode"].map(str::to_owned);
    let origin = format!("{}: no ISTIO_META_AUTO_REGISTER_GROUP", source.place);
    document.set(&at, "none".into(), &origin);
    progress.warn(
        "this machine is not registered: cluster.env names no WorkloadGroup \
         (ISTIO_META_AUTO_REGISTER_GROUP), so its WorkloadEntry has to be made by hand",
        None,
    );
}

/// Refuses what only the machine itself may say, and programs that nobody has allowed.
pub(super) fn check(source: &Source, allow_exec: bool) -> Result<(), Failure> {
    let settings = source.document.as_object();
    let refused = settings.filter(|_| source.terms.is_some()).map(outside).unwrap_or_default();
    if !refused.is_empty() {
        let problem = |Setting { path, .. }: &Setting| {
            let what = "a bundle may not set this: it is for this machine to say";
            Problem::new(source.origin(path), path.join("."), what)
        };
        let first = refused.first().map(|one| one.path.join(".")).unwrap_or_default();
        let hint = format!(
            "look at it with `vm-agent bundle inspect`; where you want it, remove it from the \
             bundle and add `--set {first}=…` to `vm-agent join`"
        );
        let problems = Problems(refused.iter().map(problem).collect());
        return Err(Failure::from(problems).hint(hint));
    }
    let programs = programs(&source.document);
    if allow_exec || programs.is_empty() {
        return Ok(());
    }
    let problem = |Setting { path, value }: &Setting| {
        let command = value.get("command").unwrap_or(value);
        let command: String = command.to_string().chars().take(SHOWN).collect();
        let what = format!("this machine would run a program for it: {command}");
        Problem::new(source.origin(path), path.join("."), what)
    };
    let problems = Problems(programs.iter().map(problem).collect());
    let hint = "read the command, and allow it with `vm-agent join --allow-exec`".to_owned();
    Err(Failure::from(problems).hint(hint))
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

/// Letters of a command that are shown.
const SHOWN: usize = 200;
