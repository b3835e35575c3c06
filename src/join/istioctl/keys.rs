//! The names that Istio's files use, and what becomes of each (Istio `pilot/cmd/pilot-agent/options`,
//! `tools/packaging/common/istio-start.sh`).

/// Two files that disagree on one of these cannot both be for this machine.
pub(super) const ONE_TRUTH: [&str; 5] = [
    "ISTIO_META_AUTO_REGISTER_GROUP",
    "ISTIO_META_CLUSTER_ID",
    "POD_NAMESPACE",
    "SERVICE_ACCOUNT",
    "TRUST_DOMAIN",
];

/// Metadata that we make ourselves from the settings.
pub(super) const OURS: [&str; 6] =
    ["AUTO_REGISTER_GROUP", "CLUSTER_ID", "DNS_CAPTURE", "MESH_ID", "NETWORK", "POD_PORTS"];

/// Whether the files must agree on a variable.
pub(super) fn is_one_truth(name: &str) -> bool {
    ONE_TRUTH.contains(&name)
}

/// What the operator shall know of a variable; `None` when it is translated, or has no meaning
/// beside Istio's own scripts.
pub(super) fn oddity(name: &str, value: &str) -> Option<String> {
    let captures = CAPTURE.iter().any(|(variable, _, _)| *variable == name)
        || SWITCHES.iter().any(|switch| switch.0 == name);
    if name.starts_with("ISTIO_META_") || KNOWN.contains(&name) || captures {
        return None;
    }
    match USUAL.iter().find(|(usual, _)| *usual == name) {
        Some((_, values)) if values.contains(&value) => None,
        Some((_, values)) => {
            let usual = values.first().copied().unwrap_or_default();
            Some(format!("vm-agent always does what {usual:?} means; {value:?} is ignored"))
        }
        None => Some("vm-agent knows no such variable; it is ignored".to_owned()),
    }
}

/// Why a variable cannot be honoured although it changes traffic or identity; `None` for others.
pub(super) fn refusal(name: &str, value: &str) -> Option<String> {
    let (_, usual, instead) = REFUSED.iter().find(|(refused, _, _)| *refused == name)?;
    let wrong = !value.is_empty() && !usual.contains(&value);
    wrong.then(|| format!("found {value:?}, which vm-agent does not do: {instead}"))
}

/// Variables that change traffic or identity, the values that we honour, and what to do instead.
const REFUSED: [(&str, &[&str], &str); 6] = [
    (
        "CA_PROVIDER",
        &["Citadel"],
        "remove it, and set identity.source or mesh.caAddress where certificates come from elsewhere",
    ),
    ("CA_ROOT_CA", &[], "remove it; the roots are those of root-cert.pem, or mesh.rootCert"),
    (
        "CREDENTIAL_FETCHER_TYPE",
        &["JWT", "GoogleComputeEngine"],
        "remove it, and set credential.command or credential.platform",
    ),
    ("DISABLE_ENVOY", &["false"], "remove it; vm-agent always runs Envoy"),
    ("SERVE_ONLY_FILES", &["false"], "remove it, and set identity.source"),
    ("XDS_ROOT_CA", &[], "remove it; the roots are those of root-cert.pem, or mesh.rootCert"),
];

/// Fields of a ProxyConfig that Istio's bootstrap honours and ours does not, and what to do instead.
pub(super) const UNSUPPORTED: [(&str, &str); 11] = [
    ("binaryPath", "set proxy.binary"),
    ("caCertificatesPem", "add the roots to root-cert.pem"),
    ("customConfigFile", "set the mesh's configuration in the cluster"),
    ("envoyAccessLogService", "use the Telemetry API with an extension provider of the mesh"),
    ("envoyMetricsService", "scrape /stats/prometheus at the agent's port"),
    ("privateKeyProvider", "keys are made by vm-agent"),
    ("proxyBootstrapTemplatePath", "set the mesh's configuration in the cluster"),
    ("statsdUdpAddress", "scrape /stats/prometheus at the agent's port"),
    (
        "tracing",
        "no spans are sent by it: use the Telemetry API with an extension provider of the mesh",
    ),
    ("zipkinAddress", "use the Telemetry API with an extension provider of the mesh"),
    ("extensionProviders", "it belongs to the mesh's own configuration"),
];

/// Variables of which we do the usual thing only.
const USUAL: [(&str, &[&str]); 4] = [
    ("ISTIO_CP_AUTH", &["MUTUAL_TLS", ""]),
    ("JWT_POLICY", &["third-party-jwt", "first-party-jwt", ""]),
    ("PILOT_CERT_PROVIDER", &["istiod", ""]),
    ("PKCS8_KEY", &["true", ""]),
];

/// What is translated elsewhere, and what means something to the shell
/// scripts around Istio's agent only.
const KNOWN: [&str; 40] = [
    "CANONICAL_REVISION",
    "CANONICAL_SERVICE",
    "CA_ADDR",
    "CA_PROVIDER",
    "CA_ROOT_CA",
    "CREDENTIAL_FETCHER_TYPE",
    "DISABLE_ENVOY",
    "ECC_CURVE",
    "ECC_SIGNATURE_ALGORITHM",
    "EXEC_USER",
    "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
    "FILE_MOUNTED_CERTS",
    "INSTANCE_IP",
    "ISTIOD_SAN",
    "ISTIO_AGENT_FLAGS",
    "ISTIO_BIN_BASE",
    "ISTIO_CPU_LIMIT",
    "ISTIO_CUSTOM_IP_TABLES",
    "ISTIO_LOG_DIR",
    "ISTIO_METAJSON_LABELS",
    "ISTIO_NAMESPACE",
    "ISTIO_PILOT_PORT",
    "ISTIO_SERVICE",
    "ISTIO_SVC_IP",
    "ISTIO_SYSTEM_NAMESPACE",
    "OUTPUT_CERTS",
    "PILOT_ADDRESS",
    "POD_NAME",
    "POD_NAMESPACE",
    "PROV_CERT",
    "PROXY_CONFIG",
    "SECRET_GRACE_PERIOD_RATIO",
    "SECRET_GRACE_PERIOD_RATIO_JITTER",
    "SECRET_TTL",
    "SERVE_ONLY_FILES",
    "SERVICE_ACCOUNT",
    "TRUST_DOMAIN",
    "WORKLOAD_RSA_KEY_SIZE",
    "XDS_ROOT_CA",
    "ISTIO_DELTA_XDS",
];

/// Variables with one meaningful value: it, and what it sets.
pub(super) const SWITCHES: [(&str, &str, &str, &str, &str); 5] = [
    ("CREDENTIAL_FETCHER_TYPE", "GoogleComputeEngine", "credential", "platform", "gce"),
    ("ISTIO_CUSTOM_IP_TABLES", "true", "capture", "mode", "none"),
    ("METRICS_LOCALHOST_ACCESS_ONLY", "true", "status", "metricsAccess", "loopback"),
    ("PILOT_AGENT_MERGE_ENVOY_STATS", "false", "status", "proxyMetrics", "false"),
    ("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true", "health", "host", "127.0.0.1"),
];

/// Variables of Istio's rules: the section and the setting of each.
pub(super) const CAPTURE: [(&str, &str, &str); 15] = [
    ("CAPTURE_ALL_DNS", "dns", "allQueries"),
    ("INVALID_DROP", "capture", "dropInvalid"),
    ("ISTIO_EXCLUDE_INTERFACES", "capture", "excludeInterfaces"),
    ("ISTIO_INBOUND_INTERCEPTION_MODE", "capture", "interception"),
    ("ISTIO_INBOUND_PORTS", "capture", "inboundPorts"),
    ("ISTIO_LOCAL_EXCLUDE_PORTS", "capture", "excludeInboundPorts"),
    ("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", "capture", "excludeOutboundPorts"),
    ("ISTIO_META_DNS_CAPTURE", "dns", "enabled"),
    ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "capture", "loopbackRange"),
    ("ISTIO_OUTBOUND_OWNER_GROUPS", "capture", "includeOutboundGroups"),
    ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "capture", "excludeOutboundGroups"),
    ("ISTIO_OUTBOUND_PORTS", "capture", "includeOutboundPorts"),
    ("ISTIO_SERVICE_CIDR", "capture", "outboundRanges"),
    ("ISTIO_SERVICE_EXCLUDE_CIDR", "capture", "excludeOutboundRanges"),
    ("KUBE_VIRT_INTERFACES", "capture", "guestInterfaces"),
];
