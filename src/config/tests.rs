#![allow(clippy::too_many_lines, reason = "a table of cases is read from top to bottom")]

mod templates;

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::credential::Source;

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
                identity:\n  ttl: 60\n  renewAt: 2\nstatus:\n  port: 0\nmehs:\n  x: 1\ncapture:\n  mode: magic\n";
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
        ("config.yaml:13", "mehs"),
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
fn each_wrong_value_is_told_with_what_was_expected() {
    let cases = [
        ("workload: {name: {a: b}}", "workload.name: found a map, expected a text"),
        (
            "workload: {address: [10.0.0.1]}",
            "workload.address: found [\"10.0.0.1\"], expected a text",
        ),
        ("workload: {labels: app=x}", "workload.labels: found \"app=x\", expected a map"),
        (
            "workload: {labels: {version: 1.10}}",
            "workload.labels.version: found 1.1, expected a text (in",
        ),
        ("workload: {labels: {app: [x]}}", "workload.labels.app: found [\"x\"], expected a text"),
        ("workload: {ports: {http: 80.5}}", "workload.ports.http: found 80.5, expected"),
        ("workload: {ports: {http: x}}", "workload.ports.http: found \"x\", expected a port"),
        ("workload: {ports: {http: 70000}}", "workload.ports.http: 70000 is no port"),
        ("workload: {instanceIps: [x]}", "workload.instanceIps: found \"x\", expected IP"),
        ("workload: {network: a b}", "workload.network: "),
        ("workload: {weight: -1}", "workload.weight: found -1, expected a number from 0"),
        ("workload: 5", "workload: expected a map of settings"),
        ("mesh: {proxyConfig: x}", "mesh.proxyConfig: found \"x\", expected a map"),
        (
            "mesh: {proxyConfig: {statusPort: x}}",
            "mesh.proxyConfig.statusPort: found \"x\", expected a port",
        ),
        (
            "mesh: {proxyConfig: {proxyMetadata: {A_TOKEN: [hidden]}}}",
            "proxyMetadata: expected a map of texts",
        ),
        ("mesh: {discoveryAddress: istiod}", "mesh.discoveryAddress: \"istiod\" is no HOST:PORT"),
        (
            "mesh: {connectTo: '10.0.0.1:15012'}",
            "mesh.connectTo: found \"10.0.0.1:15012\", expected a DNS",
        ),
        ("mesh: {clusterId: 'é'}", "mesh.clusterId: expected at most"),
        ("identity: {ttl: 0s}", "identity.ttl: it is zero"),
        ("identity: {ttl: 1000000h}", "identity.ttl: \"1000000h\" is too long"),
        ("identity: {keyAlgorithm: dsa}", "identity.keyAlgorithm: "),
        (
            "identity: {source: vault}",
            "identity.source: found \"vault\", expected istiod, kubernetes",
        ),
        (
            "identity: {source: kubernetes}",
            "identity.source: this source needs identity.signerName",
        ),
        (
            "identity: {source: kubernetes, signerName: mesh}",
            "identity.signerName: found \"mesh\", expected a name such as",
        ),
        (
            "identity: {source: kubernetes, signerName: a.b/c, ttl: 5m}\nregistration: {kubernetes: {kubeconfig: a}}",
            "identity.ttl: the Kubernetes API signs for 10 minutes",
        ),
        (
            "identity: {source: kubernetes, signerName: a.b/c}",
            "identity.source: kubernetes needs the Kubernetes API",
        ),
        (
            "identity: {source: files, files: {keyFile: k}}",
            "identity.source: this source needs identity.files.certFile",
        ),
        ("identity: {source: spiffe}", "identity.source: this source needs identity.spiffeSocket"),
        (
            "identity: {source: spiffe, spiffeSocket: 'tcp://127.0.0.1:1'}",
            "identity.spiffeSocket: \"tcp://127.0.0.1:1\" is no socket",
        ),
        ("identity: {spiffeSocket: /a}", "it has a meaning only where identity.source is spiffe"),
        ("registration: {mode: auto}", "registration.mode: found \"auto\", expected istiod"),
        ("registration: {mode: kubernetes}", "registration.mode: kubernetes needs --kubeconfig"),
        ("credential: {command: [bin/token]}", "expected the absolute path of a program"),
        ("credential: {platform: aws}", "found \"aws\", expected none or gce"),
        ("credential: {tokenLife: 0s}", "credential.tokenLife: it is zero"),
        ("registration: {kubernetes: {kubeconfig: a, tokenFile: b}}", "both a kubeconfig and"),
        (
            "registration: {kubernetes: {server: 'http://k'}}",
            "found \"http://k\", expected https://",
        ),
        (
            "registration: {kubernetes: {server: 'https://u:hidden@k'}}",
            "server: it holds a user name",
        ),
        ("proxy: {concurrency: 1.5}", "proxy.concurrency: found 1.5, expected a number"),
        (
            "proxy: {adminPort: 15020}",
            "proxy.adminPort: found 15020 for proxy.adminPort and status.port",
        ),
        ("status: {port: 15021}", "status.port: found 15021, which the proxy"),
        ("capture: {inboundPorts: [80, http]}", "capture.inboundPorts: found \"http\", expected"),
        ("capture: {outboundRanges: 10.0.0.0/33}", "expected an address range"),
        ("capture: {loopbackRange: 10.0.0.0/8}", "expected a range within 127.0.0.0/8"),
        ("dns: {upstreams: [127.0.0.1:15053]}", "is where the agent itself answers"),
        ("health: {probe: {tcpSocket: {port: 0}}}", "tcpSocket.port: found 0"),
        ("status: {applicationMetrics: 'http://127.0.0.1:15020/x'}", "the agent's own page"),
        ("capture: {mode: on}", "capture.mode: found \"on\", expected auto, nftables"),
        ("dns: {enabled: yes}", "dns.enabled: found \"yes\", expected true or false"),
        (
            "identity: {renewJitter: 0.05, renewal: 0.5}",
            "identity.renewal: there is no such setting",
        ),
        ("workload: {serviceaccount: x}", "did you mean workload.serviceAccount?"),
        ("registration: {kubernetes: {sever: x}}", "did you mean registration.kubernetes.server?"),
        (
            "registration: {mode: istiod, kubernetes: {server: 'https://k', tokenFile: kube-token}}",
            "expected all three of registration.kubernetes.server, caFile and tokenFile",
        ),
        (
            "identiti: {ttl: 1h, renewAt: 0.5}",
            "identiti: there is no such setting: did you mean identity?",
        ),
        ("x: {y: 1, z: 2}", "x: there is no such setting"),
        ("mehs: {x: 1}", "mehs: there is no such setting: did you mean mesh?"),
        ("status: {prot: 1}", "did you mean status.port?"),
    ];
    let good = "workload: {namespace: vms, group: g}\n";
    for (yaml, words) in cases {
        let problems = if yaml.starts_with("workload: {") {
            read(&yaml.replace("workload: {", "workload: {namespace: vms, group: g, "))
        } else if yaml.starts_with("workload") {
            read(yaml)
        } else {
            read(&format!("{good}{yaml}\n"))
        };
        let problems = problems.expect_err(yaml);
        let told = problems.to_string();
        assert!(told.contains(words), "{yaml}: {told} does not contain {words}");
        assert!(told.contains("config.yaml:"), "{yaml}: {told} names no line");
        assert!(!told.contains("hidden"), "{told}");
        assert!(yaml.starts_with("workload: 5") || problems.0.len() == 1, "{yaml}: {told}");
    }
}

#[test]
fn sources_of_tokens_stand_in_the_order_of_the_ladder_and_tokens_in_the_state_directory() {
    let yaml = "workload: {namespace: vms, group: g}\n\
        credential: {oidcTokenFile: /run/oidc, platform: gce, command: [helper, -x], \
        tokenFile: istio-token, tokenLife: 2h}\n\
        registration: {kubernetes: {server: 'https://k', caFile: ca.pem, tokenFile: kube-token}}\n";
    let mut document = Document::new();
    document.add(&parse_yaml(yaml, "x").unwrap(), &|_| "x".to_owned());
    let settings = load(&document, &Paths::new(Path::new("/"))).unwrap().settings;
    let state = PathBuf::from("/var/lib/vm-agent");
    let expected = [
        Source::TokenFile(state.join("istio-token")),
        Source::Kubernetes {
            life: Duration::from_secs(7200),
            kept: Some(state.join("istio-token.json")),
        },
        Source::Command(vec!["helper".to_owned(), "-x".to_owned()]),
        Source::Gce { address: "169.254.169.254".parse().unwrap() },
        Source::OidcTokenFile(PathBuf::from("/run/oidc")),
    ];
    assert_eq!(settings.credential.sources, expected);
    let Some(Kubernetes::Parts { ca_file, token_file, .. }) = settings.registration.kubernetes
    else {
        panic!("there is a Kubernetes API");
    };
    assert_eq!(token_file, state.join("kube-token"));
    assert_eq!(ca_file, PathBuf::from("/etc/vm-agent/ca.pem"));
    let off = read("workload: {namespace: vms, group: g}\ncredential: {kubernetes: false}\n");
    assert_eq!(off.unwrap().settings.credential.sources, []);
}

#[test]
fn what_is_missing_is_told_beside_what_is_wrong() {
    let told = read("workload: {name: A b}\n").unwrap_err().to_string();
    for words in ["workload.name: found", "workload.namespace: missing", "workload.group: missing"]
    {
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn durations_are_read_as_go_writes_them() {
    let seconds = |text| duration(text).map(|duration| duration.as_secs_f64());
    for (text, expected) in
        [("24h0m0s", 86_400.0), ("1h30m", 5_400.0), ("500ms", 0.5), ("1.5h", 5_400.0)]
    {
        assert_eq!(seconds(text), Ok(expected), "{text}");
    }
    for text in ["", "60", "s", "-1s", "1h-5m", "1 h", "5y", "1h5", "inf s", "1e9h", "é", "87601h"]
    {
        assert!(seconds(text).is_err(), "{text}");
    }
}

#[test]
fn settings_are_shown_with_their_line_and_without_secrets() {
    let yaml = "workload:\n  namespace: vms\n  group: g\n  labels: {a: b}\nmesh:\n  metadata:\n    X_TOKEN: hidden\n";
    let effective = read_all(yaml);
    let shown = |setting: &str| {
        let one = effective.iter().find(|one| one.setting == setting).unwrap();
        (one.value.clone(), one.origin.rsplit('/').next().unwrap().to_owned())
    };
    assert_eq!(shown("workload.labels.a"), (json!("b"), "config.yaml:4".to_owned()));
    assert_eq!(shown("mesh.metadata.X_TOKEN"), (json!("(masked)"), "config.yaml:7".to_owned()));
    assert_eq!(shown("workload.ports"), (json!({}), "default".to_owned()));
    assert!(!serde_json::to_string(&effective).unwrap().contains("hidden"));
}

fn read_all(yaml: &str) -> Vec<Effective> {
    read(yaml).unwrap().effective
}

#[test]
fn a_flag_reaches_below_an_empty_section() {
    let mut document = Document::new();
    document.add(&json!({"workload": null, "mesh": null}), &|_| "file".to_owned());
    let path = ["workload", "namespace"].map(str::to_owned);
    document.set(&path, json!("vms"), "--namespace");
    assert_eq!(document.tree().pointer("/workload/namespace"), Some(&json!("vms")));
}

/// As istioctl writes it.
const MESH_YAML: &str = "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n  \
    proxyMetadata:\n    CANONICAL_SERVICE: client\n    ISTIO_META_DNS_CAPTURE: \"true\"\n    \
    POD_NAMESPACE: vms\n    SERVICE_ACCOUNT: client\n    TRUST_DOMAIN: cluster.local\n";

fn read_source(cluster_env: &str, mesh_yaml: &str) -> Result<(Document, Loaded), Problems> {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
    write("cluster.env", cluster_env);
    write("mesh.yaml", mesh_yaml);
    let key = rcgen::KeyPair::generate().unwrap();
    write("root-cert.pem", &rcgen::CertificateParams::default().self_signed(&key).unwrap().pem());
    let source = crate::join::read_directory(directory.path(), parse_yaml_with_lines)?;
    let mut document = Document::new();
    document.add(&source.document, &|path| source.origin(path));
    let loaded = load(&document, &Paths::new(directory.path()))?;
    Ok((document, loaded))
}

#[test]
fn a_join_source_becomes_settings_and_a_file_that_reads_back_the_same() {
    let cluster_env = "ISTIO_METAJSON_LABELS='{\"app\":\"client\",\"version\":\"1.10\"}'\n\
        ISTIO_META_AUTO_REGISTER_GROUP='client'\nPOD_NAMESPACE='vms'\nSERVICE_ACCOUNT='client'\n\
        SECRET_TTL='24h0m0s'\n";
    let (document, loaded) = read_source(cluster_env, MESH_YAML).unwrap();
    assert_eq!(loaded.settings.workload.labels["version"], "1.10");
    assert_eq!(loaded.settings.identity.ttl, Duration::from_secs(86_400));
    assert_eq!(loaded.settings.mesh.proxy_config.metadata["ISTIO_META_DNS_CAPTURE"], "true");
    let again = read(&write_yaml(&document.tree()).unwrap()).unwrap().settings;
    assert_eq!(again.workload, loaded.settings.workload);
    assert_eq!(again.mesh.proxy_config, loaded.settings.mesh.proxy_config);
    assert_eq!(again.mesh.metadata, loaded.settings.mesh.metadata);
}

#[test]
fn a_wrong_value_of_a_join_source_is_told_with_its_line_there() {
    let cluster_env = "ISTIO_META_AUTO_REGISTER_GROUP=G\nPOD_NAMESPACE=vms\nSERVICE_ACCOUNT=client\n\
        SECRET_TTL=1y\n";
    let mesh_yaml = format!("{MESH_YAML}  statusPort: x\n");
    let told = read_source(cluster_env, &mesh_yaml).unwrap_err().to_string();
    for place in [
        "cluster.env:1: workload.group",
        "cluster.env:4: identity.ttl",
        "mesh.yaml:9: mesh.proxyConfig.statusPort",
    ] {
        assert!(told.contains(place), "{told}");
    }
}

#[test]
fn a_mesh_file_that_was_cut_off_anywhere_is_refused() {
    let cluster_env = "ISTIO_META_AUTO_REGISTER_GROUP=g\nPOD_NAMESPACE=vms\nSERVICE_ACCOUNT=client\n\
        TRUST_DOMAIN=cluster.local\n";
    read_source(cluster_env, MESH_YAML).unwrap();
    // Only the end of the last line may be missing.
    for end in 0..MESH_YAML.len() - 1 {
        // A cut between two lines leaves a shorter whole file, which nobody can tell from one.
        let whole = MESH_YAML[..end].ends_with('\n') && end > "defaultConfig:\n".len();
        if !whole {
            assert!(
                read_source(cluster_env, &MESH_YAML[..end]).is_err(),
                "{:?}",
                &MESH_YAML[..end]
            );
        }
    }
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
