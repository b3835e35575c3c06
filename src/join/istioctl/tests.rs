use serde_json::json;

use super::*;

/// As istioctl writes it for the WorkloadGroup `client` in `vms`.
const CLUSTER_ENV: &str = "CANONICAL_SERVICE='client'\nISTIO_INBOUND_PORTS='9080'\n\
    ISTIO_METAJSON_LABELS='{\"app\":\"client\"}'\nISTIO_META_AUTO_REGISTER_GROUP='client'\n\
    ISTIO_META_CLUSTER_ID='Kubernetes'\nISTIO_META_DNS_CAPTURE='true'\nISTIO_META_NETWORK=''\n\
    ISTIO_META_POD_PORTS='[{\"name\":\"http\",\"containerPort\":9080,\"protocol\":\"\"}]'\n\
    ISTIO_META_WORKLOAD_NAME='client'\nISTIO_NAMESPACE='vms'\nPOD_NAMESPACE='vms'\n\
    SERVICE_ACCOUNT='client'\nISTIO_SERVICE_CIDR='*'\nTRUST_DOMAIN='cluster.local'\n";
const MESH: &str = r#"{
"defaultConfig": {
  "discoveryAddress": "istiod.istio-system.svc:15012",
  "proxyMetadata": {
    "POD_NAMESPACE": "vms",
    "SERVICE_ACCOUNT": "client"
  }
}}
"#;

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

    fn append(&self, file: &str, text: &str) {
        let before = std::fs::read_to_string(self.0.path().join(file)).unwrap();
        self.write(file, &format!("{before}{text}"));
    }

    fn read(&self) -> Result<Source, Problems> {
        read_directory(self.0.path(), parse_json)
    }

    /// What a reading says of itself, without the directory.
    fn told(&self) -> String {
        let told = match self.read() {
            Ok(source) => Problems(source.warnings).to_string(),
            Err(problems) => problems.to_string(),
        };
        told.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// JSON is YAML enough for these tests; every key of an object stands on a line of its own.
fn parse_json(text: &str, origin: &str) -> Result<Yaml, Problem> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Problem::new(format!("{origin}:{}", error.line()), "", "no YAML"))?;
    let mut lines = BTreeMap::new();
    let mut at = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some((key, rest)) =
            line.trim().strip_prefix('"').and_then(|line| line.split_once("\":"))
        {
            at.push(key.to_owned());
            lines.insert(at.clone(), number);
            if !rest.trim().starts_with('{') {
                at.pop();
            }
        }
        if line.trim().starts_with('}') {
            at.pop();
        }
    }
    Ok((value, lines))
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
    let none = |_: &str, _: &str| Ok((Value::Null, BTreeMap::new()));
    let other = tempfile::tempdir().unwrap();
    let told = || read_directory(other.path(), none).unwrap_err().to_string();
    assert!(told().ends_with("it has no cluster.env, mesh.yaml, root-cert.pem; it holds nothing"));
    std::fs::write(other.path().join("notes"), "").unwrap();
    assert!(told().ends_with("it holds \"notes\""), "{}", told());
    std::fs::write(other.path().join("mesh.yaml"), "").unwrap();
    assert!(told().contains("cluster.env: it does not exist"), "{}", told());
}

#[test]
fn files_that_contradict_each_other_are_refused_with_both_places() {
    let bed = Bed::new();
    bed.write("cluster.env", &CLUSTER_ENV.replace("POD_NAMESPACE='vms'", "POD_NAMESPACE='prod'"));
    let problems = bed.read().unwrap_err().to_string();
    assert!(problems.contains("cluster.env:11: POD_NAMESPACE: found \"prod\", but"), "{problems}");
    assert!(problems.contains("mesh.yaml:5 says \"vms\""), "{problems}");
    let told = {
        bed.write(
            "cluster.env",
            &CLUSTER_ENV.replace("ISTIO_NAMESPACE='vms'", "ISTIO_NAMESPACE='prod'"),
        );
        bed.told()
    };
    assert!(
        told.contains("cluster.env:11: POD_NAMESPACE: found \"vms\", but ISTIO_NAMESPACE of"),
        "{told}"
    );
    assert!(told.contains("cluster.env:10 says \"prod\""), "{told}");
}

#[test]
fn every_setting_knows_the_line_that_it_came_from() {
    let bed = Bed::new();
    bed.append("hosts", "");
    let source = bed.read().unwrap();
    let origin = |path: &str| {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        source.origin(&path).rsplit('/').next().unwrap().to_owned()
    };
    for (setting, place) in [
        ("workload.serviceAccount", "cluster.env:12"),
        ("workload.labels.app", "cluster.env:3"),
        ("mesh.metadata.WORKLOAD_NAME", "cluster.env:9"),
        ("mesh.discoveryAddress", "mesh.yaml:3"),
        ("mesh.proxyConfig.proxyMetadata.POD_NAMESPACE", "mesh.yaml:5"),
        ("mesh.connectTo", "hosts:1"),
    ] {
        assert_eq!(origin(setting), place, "{setting}");
    }
    assert_eq!(origin("credential.tokenFile"), "istio-token");
}

#[test]
fn every_variable_with_a_meaning_here_becomes_its_setting() {
    let cases = [
        ("POD_NAME=vm7", "/workload/name", json!("vm7")),
        ("ISTIO_SVC_IP=10.0.0.7", "/workload/address", json!("10.0.0.7")),
        ("INSTANCE_IP=10.0.0.8", "/workload/address", json!("10.0.0.8")),
        ("ISTIO_META_NETWORK=vpc", "/workload/network", json!("vpc")),
        ("ISTIO_META_MESH_ID=m", "/mesh/meshId", json!("m")),
        ("ISTIO_META_ISTIO_VERSION=1.30.0", "/mesh/metadata/ISTIO_VERSION", json!("1.30.0")),
        ("CA_ADDR=ca.example:443", "/mesh/caAddress", json!("ca.example:443")),
        ("ISTIOD_SAN=istiod.example", "/mesh/serverName", json!("istiod.example")),
        (
            "PILOT_ADDRESS=istiod.istio-system.svc:99",
            "/mesh/discoveryAddress",
            json!("istiod.istio-system.svc:99"),
        ),
        (
            "ISTIO_PILOT_PORT=15099",
            "/mesh/discoveryAddress",
            json!("istiod.istio-system.svc:15099"),
        ),
        ("SECRET_TTL=1h0m0s", "/identity/ttl", json!("1h0m0s")),
        ("SECRET_GRACE_PERIOD_RATIO=0.25", "/identity/renewAt", json!(0.75)),
        ("SECRET_GRACE_PERIOD_RATIO_JITTER=0.02", "/identity/renewJitter", json!(0.02)),
        ("OUTPUT_CERTS=/etc/certs", "/identity/exportDirectory", json!("/etc/certs")),
        ("OUTPUT_CERTS=./etc/certs", "/identity/exportDirectory", Value::Null),
        ("ECC_SIGNATURE_ALGORITHM=ECDSA", "/identity/keyAlgorithm", json!("ecdsa-p256")),
        (
            "ECC_SIGNATURE_ALGORITHM=ECDSA\nECC_CURVE=P384",
            "/identity/keyAlgorithm",
            json!("ecdsa-p384"),
        ),
        ("WORKLOAD_RSA_KEY_SIZE=4096", "/identity/keyAlgorithm", json!("rsa-4096")),
        ("ISTIO_CPU_LIMIT=3", "/proxy/concurrency", json!(3)),
        ("PROXY_CONFIG='{\"statusPort\": 15099}'", "/mesh/proxyConfig/statusPort", json!(15_099)),
        (
            "PROXY_CONFIG='{\"proxyMetadata\": {\"ISTIO_META_A\": \"b\"}}'",
            "/mesh/proxyConfig/proxyMetadata",
            json!({"POD_NAMESPACE": "vms", "SERVICE_ACCOUNT": "client", "ISTIO_META_A": "b"}),
        ),
        (
            "PROXY_CONFIG='{\"proxyMetadata\": {\"ISTIO_META_A\": \"b\"}}'",
            "/mesh/metadata/A",
            json!("b"),
        ),
        ("SERVICE_ACCOUNT=''\nSERVICE_ACCOUNT=client", "/workload/serviceAccount", json!("client")),
    ];
    for (line, setting, value) in cases {
        let bed = Bed::new();
        bed.append("cluster.env", &format!("{line}\n"));
        let source = bed.read().unwrap_or_else(|problems| panic!("{line}: {problems}"));
        let found = source.document.pointer(setting).cloned().unwrap_or_default();
        assert_eq!(found, value, "{line}");
        assert_eq!(source.warnings, [], "{line}");
    }
}

#[test]
fn a_value_of_the_wrong_form_is_told_with_its_line() {
    for (line, words) in [
        ("SECRET_GRACE_PERIOD_RATIO=half", "expected a share from 0 to 1"),
        ("ECC_SIGNATURE_ALGORITHM=RSA", "expected ECDSA"),
        ("ISTIO_CPU_LIMIT=500m", "expected a number of cores"),
        ("ISTIO_META_POD_PORTS='{}'", "expected a JSON list of ports"),
        ("ISTIO_METAJSON_LABELS='{\"a\": 1}'", "expected a JSON object of texts"),
        ("PROXY_CONFIG='[1]'", "expected a map in YAML"),
        ("PROXY_CONFIG='{'", "no YAML"),
        ("A=$(id)", "would be expanded by a shell"),
        ("A=~/x", "would be expanded by a shell"),
    ] {
        let bed = Bed::new();
        bed.append("cluster.env", &format!("{line}\n"));
        bed.read().expect_err(line);
        let told = bed.told();
        assert!(told.starts_with("cluster.env:15: ") && told.contains(words), "{line}: {told}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let mesh =
        MESH.replace("\"client\"\n", "\"client\",\n    \"TRUST_DOMAIN\": \"cluster.local\"\n");
    for end in 1..mesh.len() - 1 {
        let bed = Bed::new();
        bed.write("mesh.yaml", &mesh[..end]);
        assert!(bed.read().is_err(), "mesh.yaml cut at {end}");
    }
    // YAML that is cut off can still be YAML, and so can shell lines.
    let bed = Bed::new();
    bed.write("mesh.yaml", MESH.replace(",\n    \"SERVICE_ACCOUNT\": \"client\"", "").trim_end());
    let told = bed.told();
    assert!(told.contains("mesh.yaml: its last line has no end, and"), "{told}");
    let bed = Bed::new();
    bed.write("cluster.env", "POD_NAMESPACE='vms'\nISTIO_META_CLUSTER_ID=Kub");
    assert!(
        bed.told().contains("cluster.env: its last line has no end, and SERVICE_ACCOUNT"),
        "{}",
        bed.told()
    );
    let bed = Bed::new();
    bed.write("mesh.yaml", mesh.trim_end());
    bed.write(
        "cluster.env",
        &CLUSTER_ENV.replace(
            "ISTIO_META_AUTO_REGISTER_GROUP='client'\nISTIO_META_CLUSTER_ID='Kubernetes'\n",
            "",
        ),
    );
    assert_eq!(bed.told(), "mesh.yaml: its last line has no end: was it cut off?");
}

#[test]
fn garbage_and_what_cannot_be_read_are_told_file_by_file() {
    let bed = Bed::new();
    for file in ["cluster.env", "mesh.yaml", "root-cert.pem", "istio-token", "hosts"] {
        std::fs::write(bed.0.path().join(file), [0xff, 0xfe, 0, 1]).unwrap();
    }
    let told = bed.told();
    for file in ["cluster.env", "mesh.yaml", "root-cert.pem", "istio-token", "hosts"] {
        assert!(told.contains(&format!("{file}: cannot read")), "{told}");
    }
    let bed = Bed::new();
    std::fs::remove_file(bed.0.path().join("mesh.yaml")).unwrap();
    std::fs::create_dir(bed.0.path().join("mesh.yaml")).unwrap();
    assert!(bed.told().starts_with("mesh.yaml: cannot read"), "{}", bed.told());
    let bed = Bed::new();
    bed.write("cluster.env", &"A=b\n".repeat(300_000));
    assert!(bed.told().contains("it is larger than 1048576 bytes"), "{}", bed.told());
}

#[test]
fn the_hosts_file_gives_the_address_to_dial() {
    for (hosts, address, told) in [
        ("", Value::Null, ""),
        ("# nothing\n", Value::Null, ""),
        ("10.0.0.1 other istiod.istio-system.svc # gateway\n", json!("10.0.0.1"), ""),
        ("::1 ISTIOD.istio-system.svc\n", json!("::1"), ""),
        ("10.0.0.1 other\n", Value::Null, "hosts: it has no address of istiod.istio-system.svc"),
    ] {
        let bed = Bed::new();
        bed.write("hosts", hosts);
        let source = bed.read().unwrap();
        assert_eq!(
            source.document.pointer("/mesh/connectTo").cloned().unwrap_or_default(),
            address
        );
        assert!(bed.told().starts_with(told), "{hosts}: {}", bed.told());
        assert_eq!(source.warnings.is_empty(), told.is_empty(), "{hosts}");
    }
    let bed = Bed::new();
    bed.write("hosts", "\n<pending> istiod.istio-system.svc\n");
    assert!(
        bed.told().starts_with("hosts:2: found \"<pending>\", expected the IP"),
        "{}",
        bed.told()
    );
}

#[test]
fn without_lists_of_what_to_redirect_nothing_is_as_by_istios_script() {
    let capture = |lines: &str| {
        let bed = Bed::new();
        bed.write("cluster.env", &CLUSTER_ENV.replace("ISTIO_INBOUND_PORTS='9080'\n", lines));
        let source = bed.read().unwrap();
        (source.document["capture"].clone(), bed.told())
    };
    let (usual, told) = capture("ISTIO_INBOUND_PORTS='9080'\n");
    assert_eq!((&usual["inboundPorts"], &usual["outboundRanges"]), (&json!("9080"), &json!("*")));
    assert_eq!(told, "");
    let (empty, told) = capture("ISTIO_INBOUND_PORTS=''\n");
    assert_eq!((&empty["inboundPorts"], told.as_str()), (&json!(""), ""));
    let (absent, told) = capture("");
    assert_eq!(absent["inboundPorts"], json!(""));
    assert!(
        told.starts_with("cluster.env: ISTIO_INBOUND_PORTS: it is not set: no inbound"),
        "{told}"
    );
    let bed = Bed::new();
    bed.write("cluster.env", &CLUSTER_ENV.replace("ISTIO_SERVICE_CIDR='*'\n", ""));
    assert_eq!(bed.read().unwrap().document["capture"]["outboundRanges"], json!(""));
    assert!(bed.told().contains("no outbound connection is redirected"), "{}", bed.told());
}

#[test]
fn an_interception_mode_changes_the_rules_wherever_it_stands() {
    let read = |environment: &str, mesh: &str| {
        let bed = Bed::new();
        bed.append("cluster.env", environment);
        bed.write("mesh.yaml", &MESH.replace("  \"discovery", &format!("{mesh}  \"discovery")));
        let source = bed.read().unwrap();
        let at = |path: &str| source.document.pointer(path).cloned().unwrap_or_default();
        let told = bed.told();
        (
            [
                at("/capture/mode"),
                at("/capture/interception"),
                at("/mesh/metadata/UNPRIVILEGED_POD"),
            ],
            told,
        )
    };
    let none = [json!("none"), Value::Null, json!("true")];
    let (by_variable, told) = read("ISTIO_META_INTERCEPTION_MODE=NONE\n", "");
    assert_eq!(by_variable, none);
    assert!(
        told.contains("ISTIO_META_INTERCEPTION_MODE: NONE: no traffic is redirected"),
        "{told}"
    );
    let (by_field, told) = read("", "  \"interceptionMode\": \"NONE\",\n");
    assert_eq!(by_field, none);
    assert!(told.starts_with("mesh.yaml:3: interceptionMode: NONE"), "{told}");
    let unprivileged = "ISTIO_META_INTERCEPTION_MODE=NONE\nISTIO_META_UNPRIVILEGED_POD=false\n";
    assert_eq!(read(unprivileged, "").0[2], json!("false"), "what is said counts");
    let (tproxy, told) = read("", "  \"interceptionMode\": \"TPROXY\",\n");
    assert_eq!((tproxy, told.as_str()), ([Value::Null, json!("tproxy"), Value::Null], ""));
    let (said, _) =
        read("ISTIO_INBOUND_INTERCEPTION_MODE=REDIRECT\n", "  \"interceptionMode\": \"TPROXY\",\n");
    assert_eq!(said[1], json!("REDIRECT"));
    let (own_rules, told) = read("ISTIO_CUSTOM_IP_TABLES=true\n", "");
    assert_eq!((&own_rules[0], told.as_str()), (&json!("none"), ""));
}

#[test]
fn a_sidecar_env_is_read_before_cluster_env() {
    let bed = Bed::new();
    bed.write("cluster.env", &CLUSTER_ENV.replace("ISTIO_META_AUTO_REGISTER_GROUP='client'\n", ""));
    assert_eq!(bed.read().unwrap().document["workload"].get("group"), None);
    bed.write(
        "sidecar.env",
        "ISTIO_META_AUTO_REGISTER_GROUP=client\nISTIO_LOCAL_EXCLUDE_PORTS=22,9999\nSECRET_TTL=12h0m0s\n\
         ISTIO_META_NETWORK=other\n",
    );
    let source = bed.read().unwrap();
    let at = |path: &str| source.document.pointer(path).cloned();
    assert_eq!(at("/workload/group"), Some(json!("client")));
    assert_eq!(at("/capture/excludeInboundPorts"), Some(json!("22,9999")));
    assert_eq!(at("/identity/ttl"), Some(json!("12h0m0s")));
    assert_eq!(at("/workload/network"), None, "cluster.env has an empty one");
    let origin = source.origin(&["identity", "ttl"].map(str::to_owned));
    assert!(origin.ends_with("/sidecar.env:3"), "{origin}");
    assert_eq!(bed.told(), "");
}

#[test]
fn flags_of_istios_agent_become_settings() {
    let read = |flags: &str| {
        let bed = Bed::new();
        bed.append("cluster.env", &format!("ISTIO_AGENT_FLAGS=\"{flags}\"\n"));
        (bed.read().map(|source| source.document).unwrap_or_default(), bed.told())
    };
    let (document, told) =
        read("--log_output_level=dns:debug --proxyLogLevel=debug --concurrency=1");
    assert_eq!(document["proxy"], json!({"logLevel": "debug", "concurrency": 1}));
    assert!(told.contains("--log_output_level=dns:debug: vm-agent has one level"), "{told}");
    let (document, told) = read(
        "--log_output_level default:debug --log_as_json --proxyComponentLogLevel upstream:trace --domain a.b",
    );
    assert_eq!(document["log"], json!({"format": "json", "level": "debug"}));
    assert_eq!(document["proxy"]["logLevel"], "warning,upstream:trace");
    assert_eq!((&document["dns"]["domain"], told.as_str()), (&json!("a.b"), ""));
    for (flags, words) in [
        ("--stsPort=1", "--stsPort: it has no meaning for vm-agent"),
        ("--templateFile=/x", "--templateFile=/x: vm-agent cannot do this"),
        ("--concurrency=many", "--concurrency: found \"many\""),
        ("--log_output_level=loud", "found \"loud\", expected a level"),
        ("proxy", "found \"proxy\", expected flags"),
    ] {
        let (_, told) = read(flags);
        assert!(
            told.starts_with("cluster.env:15: ISTIO_AGENT_FLAGS: ") && told.contains(words),
            "{told}"
        );
    }
}

#[test]
fn certificates_that_others_keep_are_followed() {
    let bed = Bed::new();
    bed.append(
        "cluster.env",
        "FILE_MOUNTED_CERTS=true\nISTIO_META_TLS_CLIENT_KEY=/k/key.pem\nPROV_CERT=''\n",
    );
    std::fs::remove_file(bed.0.path().join("istio-token")).unwrap();
    let source = bed.read().unwrap();
    assert_eq!(
        source.document["identity"],
        json!({"source": "files", "files": {
        "certFile": "/etc/certs/cert-chain.pem", "keyFile": "/k/key.pem",
        "rootFile": "/etc/certs/root-cert.pem"}})
    );
    assert_eq!((source.token.is_none(), bed.told().as_str()), (true, ""));
}

#[test]
fn what_changes_traffic_or_identity_and_is_not_done_is_said() {
    for (field, words) in [
        ("tracing", "use the Telemetry API"),
        ("statsdUdpAddress", "/stats/prometheus"),
        ("envoyAccessLogService", "use the Telemetry API"),
    ] {
        let bed = Bed::new();
        let with = format!("  \"{field}\": {{\"a\": 1}},\n  \"discovery");
        bed.write("mesh.yaml", &MESH.replace("  \"discovery", &with));
        let told = bed.told();
        assert!(
            told.starts_with(&format!("mesh.yaml:3: {field}: ")) && told.contains(words),
            "{told}"
        );
    }
    for line in ["CA_PROVIDER=GoogleCA", "DISABLE_ENVOY=true", "XDS_ROOT_CA=/x"] {
        let bed = Bed::new();
        bed.append("cluster.env", &format!("{line}\n"));
        bed.read().expect_err(line);
        assert!(bed.told().contains("which vm-agent does not do"), "{line}: {}", bed.told());
    }
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let bed = Bed::new();
    bed.write("cluster.env", &format!("{CLUSTER_ENV}NO_SUCH_THING=1\n"));
    let source = bed.read().unwrap();
    assert_eq!(source.warnings[0].field, "NO_SUCH_THING");
    bed.write("cluster.env", &format!("{CLUSTER_ENV}ISTIO_CP_AUTH=NONE\nCA_PROVIDER=Citadel\n"));
    assert_eq!(
        bed.told(),
        "cluster.env:15: ISTIO_CP_AUTH: vm-agent always does what \"MUTUAL_TLS\" means; \"NONE\" is ignored"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn no_bytes_panic(
        environment in "(([A-Z_]{1,8}=|POD_NAMESPACE=|ISTIO_META_POD_PORTS=|PROXY_CONFIG=)[-a-z0-9'\"$\\\\{}\\[\\]: \n]{0,20}){0,6}",
        mesh in "[-{}\\[\\]:,a-z\" \n]{0,80}",
        hosts in "\\PC{0,80}",
    ) {
        let bed = Bed::new();
        bed.write("cluster.env", &environment);
        bed.write("mesh.yaml", &mesh);
        bed.write("hosts", &hosts);
        drop(bed.read());
        bed.write("mesh.yaml", MESH);
        drop(bed.read());
    }
}
