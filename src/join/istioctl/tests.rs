use super::*;

/// As istioctl writes it for the WorkloadGroup `client` in `vms`.
const CLUSTER_ENV: &str = "CANONICAL_SERVICE='client'\nISTIO_INBOUND_PORTS='9080'\n\
    ISTIO_METAJSON_LABELS='{\"app\":\"client\"}'\nISTIO_META_AUTO_REGISTER_GROUP='client'\n\
    ISTIO_META_CLUSTER_ID='Kubernetes'\nISTIO_META_DNS_CAPTURE='true'\nISTIO_META_NETWORK=''\n\
    ISTIO_META_POD_PORTS='[{\"name\":\"http\",\"containerPort\":9080,\"protocol\":\"\"}]'\n\
    ISTIO_META_WORKLOAD_NAME='client'\nISTIO_NAMESPACE='vms'\nPOD_NAMESPACE='vms'\n\
    SERVICE_ACCOUNT='client'\nTRUST_DOMAIN='cluster.local'\n";
const MESH: &str = r#"{"defaultConfig": {"discoveryAddress": "istiod.istio-system.svc:15012",
    "proxyMetadata": {"POD_NAMESPACE": "vms", "SERVICE_ACCOUNT": "client"}}}"#;

struct Bed(tempfile::TempDir);

impl Bed {
    fn new() -> Self {
        let bed = Self(tempfile::tempdir().unwrap());
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        bed.write("cluster.env", CLUSTER_ENV);
        bed.write("mesh.yaml", MESH);
        bed.write("root-cert.pem", &root);
        bed.write("istio-token", "e30.e30.e30\n");
        bed.write("hosts", "10.99.0.1 istiod.istio-system.svc\n");
        bed
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.path().join(file), text).unwrap();
    }

    fn read(&self) -> Result<Source, Problems> {
        // JSON is YAML enough for these tests.
        read_directory(self.0.path(), |text, origin| {
            serde_json::from_str(text)
                .map_err(|error| Problem::new(format!("{origin}:{}", error.line()), "", "no YAML"))
        })
    }
}

#[test]
fn the_directory_of_istioctl_becomes_settings() {
    let source = Bed::new().read().unwrap();
    assert_eq!(source.warnings, []);
    let at = |path: &str| source.document.pointer(path).cloned();
    assert_eq!(at("/workload/namespace"), Some(json!("vms")));
    assert_eq!(at("/workload/group"), Some(json!("client")));
    assert_eq!(at("/workload/labels"), Some(json!({"app": "client"})));
    assert_eq!(at("/workload/ports"), Some(json!({"http": 9080})));
    assert_eq!(at("/mesh/connectTo"), Some(json!("10.99.0.1")));
    assert_eq!(at("/mesh/metadata"), Some(json!({"WORKLOAD_NAME": "client"})));
    assert_eq!(at("/workload/network"), None, "an empty text says nothing");
}

#[test]
fn a_missing_empty_or_broken_file_is_named_with_its_line() {
    let cases: [(&str, &str, &str); 7] = [
        ("cluster.env", "", "cluster.env: it sets nothing"),
        ("cluster.env", "POD_NAMESPACE='vms\n", "cluster.env:1: POD_NAMESPACE: a single quote"),
        ("mesh.yaml", "", "mesh.yaml:1"),
        ("mesh.yaml", "{\"defaultConfig\":", "mesh.yaml:1"),
        ("mesh.yaml", "{}", "mesh.yaml: defaultConfig: missing"),
        ("root-cert.pem", "hello", "root-cert.pem: it holds no certificate"),
        (
            "cluster.env",
            "ISTIO_METAJSON_LABELS='{'\n",
            "cluster.env:1: ISTIO_METAJSON_LABELS: expected a JSON",
        ),
    ];
    for (file, text, words) in cases {
        let bed = Bed::new();
        bed.write(file, text);
        let problems = bed.read().unwrap_err().to_string();
        assert!(problems.contains(words), "{problems} / {words}");
    }
    let empty = tempfile::tempdir().unwrap();
    let problems = read_directory(empty.path(), |_, _| Ok(Value::Null)).unwrap_err();
    assert_eq!(problems.0.len(), 3, "{problems}");
}

#[test]
fn files_that_contradict_each_other_are_refused_with_both_places() {
    let bed = Bed::new();
    bed.write("cluster.env", &CLUSTER_ENV.replace("POD_NAMESPACE='vms'", "POD_NAMESPACE='prod'"));
    let problems = bed.read().unwrap_err().to_string();
    assert!(problems.contains("cluster.env:11: POD_NAMESPACE: found \"prod\", but"), "{problems}");
    assert!(problems.contains("mesh.yaml says \"vms\""), "{problems}");
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let bed = Bed::new();
    bed.write("cluster.env", &format!("{CLUSTER_ENV}NO_SUCH_THING=1\n"));
    let source = bed.read().unwrap();
    assert_eq!(source.warnings[0].field, "NO_SUCH_THING");
}
