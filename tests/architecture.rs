//! The house's rules, as tests: who may import whom, who may use which crate, how large a file is.
//! `docs/architecture.md` explains them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every room and the rooms that it may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("proto", &[]),
    ("capture", &["base"]),
    ("dns", &["base", "proto"]),
    ("health", &["base"]),
    ("identity", &["base"]),
    ("platform", &["base"]),
    ("systemd", &["base"]),
    ("workload", &["base", "identity"]),
    ("kube", &["base", "identity"]),
    ("spiffe", &["base", "proto", "identity"]),
    ("credential", &["base", "identity", "kube"]),
    ("controlplane", &["base", "proto", "identity", "credential"]),
    ("join", &["base", "identity", "workload"]),
    ("ca", &["base", "proto", "identity", "credential", "controlplane", "kube"]),
    ("xds", &["base", "proto", "workload", "controlplane"]),
    ("registry", &["base", "identity", "workload", "kube"]),
    ("operator", &["base", "identity", "workload", "kube", "join"]),
    ("envoy", &["base", "identity", "workload"]),
    ("secrets", &["base", "identity", "ca", "controlplane", "spiffe"]),
    ("sds", &["base", "proto", "identity", "secrets"]),
    (
        "config",
        &[
            "base",
            "capture",
            "dns",
            "health",
            "identity",
            "platform",
            "systemd",
            "workload",
            "kube",
            "spiffe",
            "credential",
            "controlplane",
            "join",
            "ca",
            "xds",
            "registry",
            "envoy",
            "secrets",
            "sds",
        ],
    ),
    (
        "status",
        &[
            "base",
            "capture",
            "dns",
            "health",
            "identity",
            "platform",
            "workload",
            "credential",
            "ca",
            "secrets",
            "sds",
            "xds",
            "registry",
            "envoy",
        ],
    ),
    (
        "agent",
        &[
            "base",
            "proto",
            "capture",
            "dns",
            "health",
            "identity",
            "platform",
            "systemd",
            "workload",
            "kube",
            "credential",
            "controlplane",
            "join",
            "ca",
            "xds",
            "registry",
            "envoy",
            "secrets",
            "sds",
            "config",
            "status",
        ],
    ),
    (
        "doctor",
        &[
            "base",
            "capture",
            "dns",
            "workload",
            "kube",
            "credential",
            "controlplane",
            "registry",
            "envoy",
            "secrets",
            "config",
            "agent",
        ],
    ),
    (
        "cli",
        &[
            "base",
            "capture",
            "identity",
            "platform",
            "kube",
            "credential",
            "join",
            "config",
            "status",
            "agent",
            "doctor",
            "envoy",
            "controlplane",
            "registry",
            "operator",
            "secrets",
            "systemd",
        ],
    ),
    ("devmesh", &["base", "proto", "identity", "workload"]),
];

/// Crates and words that belong to a few rooms or files.
const OWNED: &[(&str, &[&str])] = &[
    ("hickory_proto", &["dns/"]),
    ("rcgen", &["identity/", "devmesh.rs", "devmesh/"]),
    ("webpki", &["identity/"]),
    ("clap", &["cli.rs", "cli/"]),
    ("anyhow", &["cli.rs", "cli/"]),
    ("clap_complete", &["cli/completions.rs"]),
    ("clap_mangen", &["cli/man.rs"]),
    ("reqwest", &["kube/"]),
    ("serde_saphyr", &["config/yaml.rs", "kube/kubeconfig", "devmesh/"]),
    ("sd_notify", &["systemd.rs"]),
    ("sd_listen_fds", &["systemd/store.rs"]),
    ("sysinfo", &["platform/"]),
    ("axum", &["status/", "devmesh.rs", "devmesh/"]),
    ("redb", &["devmesh/disk.rs"]),
    ("tokio::spawn", &[]),
    ("tracker.spawn", &["base/tasks.rs"]),
    (
        "Command::new",
        &[
            "envoy/launcher.rs",
            "envoy/binary.rs",
            "cli/service.rs",
            "capture/tool.rs",
            "kube/kubeconfig/exec.rs",
            "base/program.rs",
            "systemd/job.rs",
        ],
    ),
    ("SystemTime::now", &["base/clock.rs"]),
    ("env::var", &[]),
    ("env::vars", &[]),
    ("env::vars_os", &["cli/settings.rs"]),
    ("env::var_os", &["cli/screen.rs", "cli/run.rs", "cli/bundle/cluster.rs", "systemd.rs"]),
    // Whatever is read may be a named pipe: base::fsio opens regular files only.
    ("File::open", &["base/fsio.rs"]),
    ("fs::read", &[]),
    ("fs::read_to_string", &[]),
    ("File::create", &[]),
    ("OpenOptions", &["base/fsio.rs", "envoy/output.rs"]),
    ("fs::write", &[]),
    ("fs::rename", &["base/fsio.rs"]),
    ("UnixListener::bind", &["base/uds.rs"]),
    ("fexecve", &["envoy/launch.rs"]),
];

/// Tasks whose end is nobody's business: one for each connection, stream, query or order. Any other one that is spawned is
/// `critical` or `essential`, so that its end is seen.
const SHORT_TASKS: &[&str] = &[
    "dns-query",
    "dns-stream",
    "dns-table",
    "proxy-restart",
    "sds-stream",
    "status-connection",
    "xds stream",
];

/// Lines of a file, its tests apart.
const LINES: usize = 400;

/// One source file without its comments and tests.
struct Source {
    path: PathBuf,
    room: String,
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.extend(read(&path));
            }
        }
    }
    found
}

/// `None` for generated code, tests, and the files outside the rooms.
fn read(path: &Path) -> Option<Source> {
    let inner = path.strip_prefix("src").unwrap();
    let name = inner.to_str().unwrap();
    if name.contains("/gen/")
        || name.ends_with("tests.rs")
        || name.contains("/tests/")
        || name.starts_with("bin/")
    {
        return None;
    }
    let room = inner.components().next().unwrap().as_os_str().to_str().unwrap();
    let room = room.trim_end_matches(".rs").to_owned();
    if ["main", "lib"].contains(&room.as_str()) {
        return None;
    }
    let code = strip(&std::fs::read_to_string(path).unwrap());
    let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
    Some(Source { path: inner.to_owned(), room, code, lines })
}

/// The code without comments, up to the tests where they stand in the file itself.
fn strip(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let line = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    code.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The rooms that a file's code names.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + 7..];
        if rest.starts_with('{') {
            found.insert("{ (one `use` line a room, so that this test can read it)".to_owned());
        }
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let is_path = at == 0 || !code[..at].ends_with([':', '_']);
        if is_path && !name.is_empty() {
            found.insert(name);
        }
    }
    found
}

/// A room's face could reach its neighbours by `super::` as well; only its own inner files may.
fn sideways(sources: &[Source]) -> Vec<String> {
    let face = |source: &&Source| source.path.components().count() == 1;
    let reaches = |source: &&Source| {
        source.code.lines().any(|line| {
            // Inside an inline module `super` is the room itself.
            !line.starts_with(' ') && line.contains("super::")
        })
    };
    let found = sources.iter().filter(face).filter(reaches);
    found.map(|source| format!("{}: write crate:: for super::", source.path.display())).collect()
}

fn forbidden_imports(sources: &[Source]) -> Vec<String> {
    let rooms: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources {
        let Some(allowed) = rooms.get(source.room.as_str()) else {
            wrong.push(format!(
                "{}: the room {:?} is not in the table",
                source.path.display(),
                source.room
            ));
            continue;
        };
        for import in imports(&source.code) {
            if import != source.room && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{}: {} may not import {import}; move the type down, or let agent connect the two", source.path.display(), source.room));
            }
        }
    }
    wrong
}

fn stolen(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        let path = source.path.to_str().unwrap();
        for (what, owners) in OWNED {
            let uses = source.code.match_indices(what).any(|(at, _)| {
                let before = source.code[..at].chars().next_back();
                let after = source.code[at + what.len()..].chars().next();
                let word =
                    |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
                !word(before) && !word(after)
            });
            if uses && !owners.iter().any(|owner| path.starts_with(owner)) {
                wrong.push(format!("{path}: {what} belongs to {owners:?}"));
            }
        }
    }
    wrong
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    assert_eq!(forbidden_imports(&sources()), Vec::<String>::new());
    assert_eq!(sideways(&sources()), Vec::<String>::new());
}

#[test]
fn the_table_has_no_cycle() {
    // Each room may import only rooms that stand above it in the table.
    for (at, (room, allowed)) in ROOMS.iter().enumerate() {
        for import in *allowed {
            let place = ROOMS.iter().position(|(name, _)| name == import);
            assert!(
                place.is_some_and(|place| place < at),
                "{room} imports {import}, which does not stand above it"
            );
        }
    }
}

#[test]
fn crates_and_dangerous_calls_stay_with_their_owners() {
    assert_eq!(stolen(&sources()), Vec::<String>::new());
}

#[test]
fn only_tasks_of_one_connection_or_order_may_end_unseen() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room != "devmesh") {
        for (at, start) in source.code.match_indices(".spawn(\"") {
            let name = source.code[at + start.len()..].split('"').next().unwrap_or_default();
            if !SHORT_TASKS.contains(&name) {
                wrong.push(format!("{}: {name}: use critical or essential", source.path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn files_stay_readable() {
    let sources = sources();
    let mut lines: Vec<usize> = sources.iter().map(|source| source.lines).collect();
    lines.sort_unstable();
    let large: Vec<_> =
        sources.iter().filter(|source| source.lines > LINES).map(|source| &source.path).collect();
    println!(
        "{} files, median {} lines, 95th {}",
        lines.len(),
        lines[lines.len() / 2],
        lines[lines.len() * 95 / 100]
    );
    assert_eq!(large, Vec::<&PathBuf>::new(), "files over {LINES} lines");
}

#[test]
fn the_checks_find_what_they_look_for() {
    let bad = |room: &str, code: &str| {
        vec![Source {
            path: PathBuf::from(format!("{room}/x.rs")),
            room: room.to_owned(),
            code: strip(code),
            lines: 1,
        }]
    };
    assert_eq!(forbidden_imports(&bad("base", "use crate::agent::Agent;")).len(), 1);
    assert_eq!(forbidden_imports(&bad("base", "// crate::agent")).len(), 0);
    assert_eq!(forbidden_imports(&bad("base", "use crate::{agent, base};")).len(), 1);
    let tests = |start: &str| format!("#[cfg(test)]\nmod tests{start}\nuse crate::agent::Agent;");
    assert_eq!(forbidden_imports(&bad("base", &tests(";"))).len(), 1);
    assert_eq!(forbidden_imports(&bad("base", &tests(" {"))).len(), 0);
    assert_eq!(forbidden_imports(&bad("attic", "")).len(), 1);
    let mut face = bad("base", "use super::agent::Agent;");
    assert_eq!(sideways(&face).len(), 0);
    face[0].path = PathBuf::from("base.rs");
    assert_eq!(sideways(&face).len(), 1);
    assert_eq!(stolen(&bad("xds", "tokio::spawn(async {});")).len(), 1);
    assert_eq!(stolen(&bad("xds", "std::env::var_os(name)")).len(), 1);
    assert_eq!(stolen(&bad("xds", "use rcgen::KeyPair;")).len(), 1);
    assert_eq!(stolen(&bad("identity", "use rcgen::KeyPair;")).len(), 0);
}
