//! The command line: words, exit statuses, and that nothing is changed by what fails.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

use std::path::Path;
use std::process::{Command, Output};

const AGENT: &str = env!("CARGO_BIN_EXE_vm-agent");

fn run(root: &Path, args: &[&str]) -> Output {
    Command::new(AGENT).arg("--root").arg(root).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit status is this one, standard error has these words, and the root is as it was.
fn refused(root: &Path, args: &[&str], status: i32, words: &[&str]) {
    let before = list(root);
    let output = run(root, args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{args:?}: {word:?} is not in {error}");
    }
    assert_eq!(output.stdout, b"", "data is for success");
    assert_eq!(list(root), before);
}

fn list(root: &Path) -> Vec<String> {
    let output = Command::new("find").arg(root).output().unwrap();
    let mut lines: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn configured(yaml: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/vm-agent")).unwrap();
    std::fs::write(root.path().join("etc/vm-agent/config.yaml"), yaml).unwrap();
    root
}

#[test]
fn help_goes_to_standard_output_and_names_every_command_and_status() {
    let output = Command::new(AGENT).arg("--help").output().unwrap();
    let help = text(&output.stdout);
    assert!(output.status.success());
    for word in [
        "join",
        "run",
        "status",
        "wait",
        "leave",
        "doctor",
        "bugreport",
        "cert",
        "config",
        "facts",
        "completions",
        "version",
        "Exit statuses",
    ] {
        assert!(help.contains(word), "{word}");
    }
    assert!(!help.contains("launch-proxy"));
    assert!(
        text(&Command::new(AGENT).arg("version").output().unwrap().stdout)
            .starts_with("vm-agent 0.")
    );
}

#[test]
fn a_wrong_command_line_is_2() {
    let root = tempfile::tempdir().unwrap();
    refused(root.path(), &["jion"], 2, &["unrecognized subcommand", "join"]);
    refused(root.path(), &["wait", "--timeout", "soon"], 2, &["no duration"]);
    refused(root.path(), &["wait", "--for", "happiness"], 2, &["ready, identity, registered"]);
}

#[test]
fn a_join_of_nothing_asks_what_to_join() {
    let root = tempfile::tempdir().unwrap();
    refused(
        root.path(),
        &["join", "--foreground"],
        2,
        &["what shall this machine join?", "bundle create"],
    );
    let empty = root.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    refused(
        root.path(),
        &["join", "--foreground", empty],
        4,
        &["this is no join directory", "it holds nothing"],
    );
    refused(
        root.path(),
        &["join", "--foreground", "https://example.test/bundle.yaml"],
        4,
        &["curl -fsS https://example.test/bundle.yaml | vm-agent join -"],
    );
    refused(
        root.path(),
        &["bundle", "inspect", "nosuch"],
        4,
        &["nosuch: it does not exist", "FILE is a bundle"],
    );
}

#[test]
fn without_an_agent_status_is_11_and_says_how_to_start_one() {
    let root = tempfile::tempdir().unwrap();
    refused(root.path(), &["status"], 11, &["no agent answers", "hint:", "vm-agent join"]);
    refused(root.path(), &["cert", "show"], 11, &["no agent answers"]);
    refused(root.path(), &["wait", "--timeout", "200ms"], 11, &["no agent is running"]);
}

#[test]
fn a_configuration_that_is_not_there_or_wrong_is_4_with_file_and_line() {
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &["run"], 4, &["config.yaml", "No such file", "join first"]);
    let wrong = configured(
        "workload:\n  namespace: vms\n  group: g\nidentity:\n  ttl: 5 parsecs\n  renewAt: 7\n",
    );
    refused(
        wrong.path(),
        &["config", "check"],
        4,
        &["config.yaml:5: identity.ttl", "config.yaml:6: identity.renewAt"],
    );
    refused(wrong.path(), &["run"], 4, &["identity.ttl"]);
    let cut = configured("workload: {namespace: 'v\n");
    refused(cut.path(), &["config", "show"], 4, &["config.yaml", "no valid YAML"]);
}

#[test]
fn config_show_tells_the_origin_of_every_setting() {
    let root = configured("workload:\n  namespace: vms\n  group: g\n");
    let output = run(
        root.path(),
        &["config", "show", "--json", "--set", "identity.ttl=12h", "--name", "vm7"],
    );
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let origin = |setting: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let found = settings.iter().find(|one| one["setting"] == setting).unwrap();
        (
            found["value"].as_str().unwrap().to_owned(),
            found["origin"].as_str().unwrap().rsplit('/').next().unwrap().to_owned(),
        )
    };
    assert_eq!(origin("identity.ttl"), ("12h".to_owned(), "--set".to_owned()));
    assert_eq!(origin("workload.name"), ("vm7".to_owned(), "--name".to_owned()));
    assert_eq!(origin("workload.group"), ("g".to_owned(), "config.yaml:3".to_owned()));
    assert_eq!(origin("mesh.trustDomain"), ("cluster.local".to_owned(), "default".to_owned()));
    assert!(run(root.path(), &["config", "check"]).status.success());
}

#[test]
fn a_root_that_cannot_be_written_is_9() {
    let root = configured(
        "workload: {namespace: vms, group: g, address: 10.0.0.1}\nproxy: {binary: /bin/true}\nstatus: {address: 127.0.0.1, port: 1}\n",
    );
    std::fs::write(root.path().join("run"), "in the way").unwrap();
    refused(root.path(), &["run"], 9, &["cannot make"]);
}

#[test]
fn leaving_a_mesh_that_was_never_joined_is_harmless() {
    let root = tempfile::tempdir().unwrap();
    let output = run(root.path(), &["leave"]);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("was not in a mesh"));
    assert_eq!(list(root.path()).len(), 1);
}
