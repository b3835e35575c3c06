//! The directory that `istioctl x workload entry configure` writes, translated into our settings
//! (Istio `istioctl/pkg/workload/workload.go`).

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::Source;
use super::shell;
use crate::base::fsio;
use crate::base::problem::{Problem, Problems};
use crate::base::trouble::chain;
use crate::identity::Roots;

/// Reads the directory.
///
/// # Errors
/// With everything that is wrong with its files.
pub fn read_directory(
    directory: &Path,
    parse_yaml: impl Fn(&str, &str) -> Result<Value, Problem>,
) -> Result<Source, Problems> {
    let mut reader = Reader { directory, problems: Vec::new(), warnings: Vec::new() };
    let mesh = reader.mesh(parse_yaml);
    let variables = reader.variables(&mesh);
    let root_pem = reader.roots();
    let token = reader.text("istio-token", true).map(|text| SecretString::from(text.trim()));
    let document = reader.document(mesh, &variables);
    if reader.problems.is_empty() {
        let directory = directory.to_owned();
        Ok(Source { directory, document, root_pem, token, warnings: reader.warnings })
    } else {
        Err(Problems(reader.problems))
    }
}

struct Reader<'a> {
    directory: &'a Path,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// A value and where it stands.
type Variables = BTreeMap<String, (String, String)>;

impl Reader<'_> {
    fn origin(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }

    fn wrong(&mut self, origin: String, field: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(origin, field, what));
    }

    fn text(&mut self, file: &str, optional: bool) -> Option<String> {
        match fsio::read_text(&self.directory.join(file), FILE_BYTES) {
            Ok(text) => Some(text),
            Err(error) if optional && error.is_missing() => None,
            Err(error) => {
                let what = chain(&error);
                self.wrong(self.origin(file), "", what);
                None
            }
        }
    }

    /// `defaultConfig` of mesh.yaml.
    fn mesh(
        &mut self,
        parse_yaml: impl Fn(&str, &str) -> Result<Value, Problem>,
    ) -> Map<String, Value> {
        let Some(text) = self.text("mesh.yaml", false) else { return Map::new() };
        let origin = self.origin("mesh.yaml");
        match parse_yaml(&text, &origin) {
            Err(problem) => self.problems.push(problem),
            Ok(mesh) => match mesh.get("defaultConfig") {
                Some(Value::Object(config)) => return config.clone(),
                Some(_) => self.wrong(origin, "defaultConfig", "expected a map"),
                None => {
                    let what = "missing: this is no mesh.yaml of istioctl, or it was cut off";
                    self.wrong(origin, "defaultConfig", what);
                }
            },
        }
        Map::new()
    }

    /// proxyMetadata of mesh.yaml and cluster.env over it, as Istio's agent reads them. Names and
    /// identities that differ between the two are contradictions.
    fn variables(&mut self, mesh: &Map<String, Value>) -> Variables {
        let mesh_origin = self.origin("mesh.yaml");
        let metadata = mesh.get("proxyMetadata").and_then(Value::as_object);
        let mut all: Variables = metadata
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| {
                Some((name.clone(), (value.as_str()?.to_owned(), mesh_origin.clone())))
            })
            .collect();
        let Some(text) = self.text("cluster.env", false) else { return all };
        let file = self.origin("cluster.env");
        let (variables, problems) = shell::parse(&text, &file);
        if variables.is_empty() && problems.is_empty() {
            self.wrong(file.clone(), "", "it sets nothing: it is empty or was cut off");
        }
        self.problems.extend(problems);
        for variable in variables {
            let origin = format!("{file}:{}", variable.line);
            let before = all.get(&variable.name);
            if let Some((other, at)) = before.filter(|(other, _)| *other != variable.value)
                && ONE_TRUTH.contains(&variable.name.as_str())
            {
                let what = format!("found {:?}, but {at} says {other:?}", variable.value);
                self.problems.push(Problem::new(origin.clone(), &*variable.name, what));
            }
            if !is_known(&variable.name) {
                let what = "vm-agent knows no such variable; it is ignored";
                self.warnings.push(Problem::new(origin.clone(), &*variable.name, what));
            }
            all.insert(variable.name, (variable.value, origin));
        }
        all
    }

    fn roots(&mut self) -> Option<String> {
        let pem = self.text("root-cert.pem", false)?;
        match Roots::from_pem(pem.as_bytes()) {
            Ok(_) => Some(pem),
            Err(error) => {
                let what = chain(&error);
                self.wrong(self.origin("root-cert.pem"), "", what);
                None
            }
        }
    }

    fn document(&mut self, mesh: Map<String, Value>, variables: &Variables) -> Value {
        let value = |name: &str| variables.get(name).map(|(value, _)| value.clone());
        let discovery = mesh.get("discoveryAddress").and_then(Value::as_str).unwrap_or(DISCOVERY);
        let workload = prune(json!({
            "namespace": value("POD_NAMESPACE").or_else(|| value("ISTIO_NAMESPACE")),
            "serviceAccount": value("SERVICE_ACCOUNT"),
            "group": value("ISTIO_META_AUTO_REGISTER_GROUP"),
            "address": value("ISTIO_SVC_IP"),
            "network": value("ISTIO_META_NETWORK"),
            "labels": self.labels(variables),
            "ports": self.ports(variables),
        }));
        let metadata = variables.iter().filter_map(|(name, (value, _))| {
            Some((name.strip_prefix("ISTIO_META_")?.to_owned(), json!(value)))
        });
        let metadata: Map<String, Value> =
            metadata.filter(|(name, _)| !OURS.contains(&name.as_str())).collect();
        let discovery = discovery.to_owned();
        let connect_to = self.gateway(&discovery);
        let settings = json!({
            "discoveryAddress": discovery,
            "caAddress": value("CA_ADDR").filter(|address| *address != discovery),
            "connectTo": connect_to,
            "serverName": value("ISTIOD_SAN"),
            "trustDomain": value("TRUST_DOMAIN"),
            "clusterId": value("ISTIO_META_CLUSTER_ID"),
            "meshId": value("ISTIO_META_MESH_ID"),
            "metadata": metadata,
            "proxyConfig": mesh,
        });
        let identity = prune(json!({
            "ttl": value("SECRET_TTL"),
            "exportDirectory": value("OUTPUT_CERTS").filter(|at| at.starts_with('/')),
            "keyAlgorithm": key_algorithm(variables),
        }));
        prune(json!({"workload": workload, "mesh": prune(settings), "identity": identity}))
    }

    fn labels(&mut self, variables: &Variables) -> Option<Value> {
        let (text, origin) = variables.get("ISTIO_METAJSON_LABELS")?;
        match serde_json::from_str::<BTreeMap<String, String>>(text) {
            Ok(labels) => Some(json!(labels)),
            Err(_) => {
                let what = "expected a JSON object of texts";
                self.wrong(origin.clone(), "ISTIO_METAJSON_LABELS", what);
                None
            }
        }
    }

    /// `[{"name": …, "containerPort": …}]`, from the WorkloadGroup's template.
    fn ports(&mut self, variables: &Variables) -> Option<Value> {
        let (text, origin) = variables.get("ISTIO_META_POD_PORTS")?;
        let Ok(Value::Array(list)) = serde_json::from_str(text) else {
            self.wrong(origin.clone(), "ISTIO_META_POD_PORTS", "expected a JSON list of ports");
            return None;
        };
        let port = |port: &Value| {
            Some((port.get("name")?.as_str()?.to_owned(), port.get("containerPort")?.clone()))
        };
        let ports: Map<String, Value> = list.iter().filter_map(port).collect();
        (!ports.is_empty()).then_some(Value::Object(ports))
    }

    /// The address that the hosts file gives istiod's name: dialled instead of editing /etc/hosts.
    fn gateway(&mut self, discovery: &str) -> Option<String> {
        let name = discovery.rsplit_once(':').map_or(discovery, |(host, _)| host);
        let text = self.text("hosts", true)?;
        let line = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let mut words = line.map(str::split_whitespace);
        words.find_map(|mut words| {
            let address = words.next()?;
            words.any(|host| host == name).then(|| address.to_owned())
        })
    }
}

fn key_algorithm(variables: &Variables) -> Option<String> {
    let value = |name: &str| variables.get(name).map(|(value, _)| value.as_str());
    match (value("ECC_SIGNATURE_ALGORITHM"), value("ECC_CURVE"), value("WORKLOAD_RSA_KEY_SIZE")) {
        (Some("ECDSA"), Some("P384"), _) => Some("ecdsa-p384".to_owned()),
        (Some("ECDSA"), _, _) => Some("ecdsa-p256".to_owned()),
        (_, _, Some(bits)) => Some(format!("rsa-{bits}")),
        _ => None,
    }
}

/// Without nulls, empty texts and empty maps: what is not said is not a setting.
fn prune(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let nothing = |value: &Value| value.is_null() || value == "" || *value == json!({});
    let said = map.into_iter().filter(|(_, value)| !nothing(value));
    Value::Object(said.collect())
}

fn is_known(name: &str) -> bool {
    name.starts_with("ISTIO_META_") || KNOWN.contains(&name)
}

/// Two files that disagree on one of these cannot both be for this machine.
const ONE_TRUTH: [&str; 5] = [
    "ISTIO_META_AUTO_REGISTER_GROUP",
    "ISTIO_META_CLUSTER_ID",
    "POD_NAMESPACE",
    "SERVICE_ACCOUNT",
    "TRUST_DOMAIN",
];

/// Metadata that we make ourselves from the settings.
const OURS: [&str; 6] =
    ["AUTO_REGISTER_GROUP", "CLUSTER_ID", "DNS_CAPTURE", "MESH_ID", "NETWORK", "POD_PORTS"];

/// What Istio's files may set. Those of traffic capture wait for it; those of the shell scripts
/// around Istio's agent have no meaning here.
const KNOWN: [&str; 26] = [
    "CANONICAL_REVISION",
    "CANONICAL_SERVICE",
    "CA_ADDR",
    "ECC_CURVE",
    "ECC_SIGNATURE_ALGORITHM",
    "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
    "ISTIOD_SAN",
    "ISTIO_CP_AUTH",
    "ISTIO_INBOUND_INTERCEPTION_MODE",
    "ISTIO_INBOUND_PORTS",
    "ISTIO_LOCAL_EXCLUDE_PORTS",
    "ISTIO_METAJSON_LABELS",
    "ISTIO_NAMESPACE",
    "ISTIO_PILOT_PORT",
    "ISTIO_SERVICE",
    "ISTIO_SERVICE_CIDR",
    "ISTIO_SVC_IP",
    "ISTIO_SYSTEM_NAMESPACE",
    "OUTPUT_CERTS",
    "POD_NAMESPACE",
    "PROV_CERT",
    "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION",
    "SECRET_TTL",
    "SERVICE_ACCOUNT",
    "TRUST_DOMAIN",
    "WORKLOAD_RSA_KEY_SIZE",
];

const DISCOVERY: &str = "istiod.istio-system.svc:15012";
const FILE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests;
