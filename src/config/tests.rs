use serde_json::json;

use super::*;

fn read(yaml: &str) -> Result<Loaded, Problems> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    std::fs::write(&path, yaml).unwrap();
    let mut document = Document::new();
    add_file(&mut document, &path)?;
    load(&document, &Paths::new(directory.path())).map_err(|problems| {
        let prefix = format!("{}/", directory.path().display());
        let short = |mut problem: Problem| {
            problem.origin = problem.origin.replace(&prefix, "");
            problem
        };
        Problems(problems.0.into_iter().map(short).collect())
    })
}

#[test]
fn the_least_configuration_gets_every_default() {
    let loaded = read("workload: {namespace: vms, group: client}\n").unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.mesh.discovery.to_string(), "istiod.istio-system.svc:15012");
    assert_eq!(settings.workload.service_account.as_str(), "default");
    assert!(settings.mesh.root_cert.ends_with("etc/vm-agent/root-cert.pem"));
    let ttl = loaded.effective.iter().find(|one| one.setting == "identity.ttl").unwrap();
    assert_eq!((&ttl.value, ttl.origin.as_str()), (&json!("24h"), "default"));
}

#[test]
fn all_problems_are_told_at_once_with_line_field_and_expectation() {
    let yaml = "workload:\n  namespace: Vms\n  group: client\n  address: 'fe80::1'\n  labels:\n    a b: c\n\
                identity:\n  ttl: 60\n  renewAt: 2\nstatus:\n  port: 0\nmehs:\n  x: 1\ncapture:\n  mode: nftables\n";
    let problems = read(yaml).unwrap_err();
    let told: Vec<_> = problems
        .0
        .iter()
        .map(|problem| (problem.origin.as_str(), problem.field.as_str()))
        .collect();
    for expected in [
        ("config.yaml:2", "workload.namespace"),
        ("config.yaml:4", "workload.address"),
        ("config.yaml:6", "workload.labels.a b"),
        ("config.yaml:8", "identity.ttl"),
        ("config.yaml:9", "identity.renewAt"),
        ("config.yaml:11", "status.port"),
        ("config.yaml:13", "mehs.x"),
        ("config.yaml:15", "capture.mode"),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in {told:?}");
    }
    assert_eq!(told.len(), 8, "{told:?}");
}

#[test]
fn a_misspelt_setting_gets_a_suggestion() {
    let problems =
        read("workload: {namespace: vms, group: g}\nidentity: {tll: 60s}\n").unwrap_err();
    assert!(problems.to_string().contains("did you mean identity.ttl?"), "{problems}");
}

#[test]
fn what_is_no_yaml_is_refused_with_its_line() {
    for (yaml, line) in [
        ("a: [1,\n", ""),
        ("a: 1\nb: 'x\n", ""),
        ("a: 1\na: 2\n", "config.yaml:2"),
        ("just text", "config.yaml"),
    ] {
        let problem = read(yaml).unwrap_err().to_string();
        assert!(problem.contains(line) && problem.contains("config.yaml"), "{problem}");
    }
}

#[test]
fn later_layers_win_and_keep_their_origin() {
    let mut document = Document::new();
    document.add(
        &json!({"workload": {"namespace": "vms", "group": "g", "labels": {"a": "1"}}}),
        &|_| "file".to_owned(),
    );
    document.set(
        &["workload".to_owned(), "labels".to_owned(), "b".to_owned()],
        json!("2"),
        "--label",
    );
    document.set(&["workload".to_owned(), "namespace".to_owned()], json!("other"), "--namespace");
    let loaded = load(&document, &Paths::new(Path::new("/"))).unwrap();
    assert_eq!(loaded.settings.workload.namespace.as_str(), "other");
    assert_eq!(loaded.settings.workload.labels.len(), 2);
}

#[test]
fn a_written_document_reads_back_the_same() {
    let tree = json!({"workload": {"namespace": "vms", "labels": {"a/b": "1", "c": "true"}, "ports": {"http": 80}}});
    let text = write_yaml(&tree).unwrap();
    assert_eq!(parse_yaml(&text, "x").unwrap(), tree, "{text}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        drop(parse_yaml(&text, "x"));
    }
}
