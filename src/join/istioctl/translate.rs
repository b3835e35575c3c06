//! From Istio's names to our settings. Each setting keeps the place that it came from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Number, Value, json};

use super::{CONFIG, Fact, Facts, Reader, keys};

/// Settings, and where each stands.
#[derive(Default)]
pub(super) struct Settings {
    tree: Map<String, Value>,
    origins: BTreeMap<Vec<String>, String>,
}

impl Settings {
    /// Sets one; an empty text, list or map says nothing.
    pub(super) fn put(&mut self, section: &str, name: &str, value: Value, origin: &str) {
        if value.is_null() || value == "" || value == json!({}) || value == json!([]) {
            return;
        }
        let section_map = self.tree.entry(section).or_insert_with(|| json!({}));
        if let Value::Object(map) = section_map {
            map.insert(name.to_owned(), value);
        }
        self.origins.insert(vec![section.to_owned(), name.to_owned()], origin.to_owned());
    }

    /// Sets a list to nothing at all, which is another thing than leaving it out.
    pub(super) fn put_empty(&mut self, section: &str, name: &str, origin: &str) {
        if let Some(Value::Object(map)) = self.tree.get_mut(section) {
            map.insert(name.to_owned(), json!(""));
        } else {
            self.tree.insert(section.to_owned(), json!({ (name): "" }));
        }
        self.origins.insert(vec![section.to_owned(), name.to_owned()], origin.to_owned());
    }

    /// Adds a metadatum of Envoy's node to those that are there.
    pub(super) fn put_metadata(&mut self, name: &str, value: &str, origin: &str) {
        let mesh = self.tree.entry("mesh").or_insert_with(|| json!({}));
        let metadata =
            mesh.as_object_mut().map(|mesh| mesh.entry("metadata").or_insert_with(|| json!({})));
        if let Some(Value::Object(metadata)) = metadata {
            metadata.insert(name.to_owned(), json!(value));
            let path = ["mesh", "metadata", name].map(str::to_owned).to_vec();
            self.origins.insert(path, origin.to_owned());
        }
    }

    fn put_fact(&mut self, section: &str, name: &str, fact: Option<&Fact>) {
        if let Some(fact) = fact {
            self.put(section, name, json!(fact.value), &fact.origin);
        }
    }
}

impl Reader<'_> {
    /// The settings that the files make, and the place of each.
    pub(super) fn document(
        &mut self,
        facts: &Facts,
        hosts: Option<&str>,
    ) -> (Value, BTreeMap<Vec<String>, String>) {
        let mut settings = Settings::default();
        self.workload(facts, &mut settings);
        self.mesh_settings(facts, hosts, &mut settings);
        self.identity(facts, &mut settings);
        self.proxy(facts, &mut settings);
        self.capture(facts, &mut settings);
        self.agent_flags(facts, &mut settings);
        self.unsupported(facts);
        (Value::Object(settings.tree), settings.origins)
    }

    fn workload(&mut self, facts: &Facts, settings: &mut Settings) {
        let fact = |name: &str| facts.variables.get(name).filter(|fact| !fact.value.is_empty());
        let (namespace, scripts) = (fact("POD_NAMESPACE"), fact("ISTIO_NAMESPACE"));
        if let (Some(one), Some(other)) = (namespace, scripts)
            && one.value != other.value
        {
            let what = format!(
                "found {:?}, but ISTIO_NAMESPACE of {} says {:?}",
                one.value, other.origin, other.value
            );
            self.wrong(&one.origin, "POD_NAMESPACE", what);
        }
        settings.put_fact("workload", "name", fact("POD_NAME"));
        settings.put_fact("workload", "namespace", namespace.or(scripts));
        settings.put_fact("workload", "serviceAccount", fact("SERVICE_ACCOUNT"));
        settings.put_fact("workload", "group", fact("ISTIO_META_AUTO_REGISTER_GROUP"));
        let address = fact("ISTIO_SVC_IP").or_else(|| fact("INSTANCE_IP"));
        settings.put_fact("workload", "address", address);
        settings.put_fact("workload", "network", fact("ISTIO_META_NETWORK"));
        self.labels(facts, settings);
        self.ports(facts, settings);
    }

    fn labels(&mut self, facts: &Facts, settings: &mut Settings) {
        let name = "ISTIO_METAJSON_LABELS";
        let Some(fact) = facts.variables.get(name).filter(|fact| !fact.value.is_empty()) else {
            return;
        };
        match serde_json::from_str::<BTreeMap<String, String>>(&fact.value) {
            Ok(labels) => settings.put("workload", "labels", json!(labels), &fact.origin),
            Err(_) => self.wrong(&fact.origin, name, "expected a JSON object of texts"),
        }
    }

    /// `[{"name": …, "containerPort": …}]`, from the WorkloadGroup's template.
    fn ports(&mut self, facts: &Facts, settings: &mut Settings) {
        let name = "ISTIO_META_POD_PORTS";
        let Some(fact) = facts.variables.get(name).filter(|fact| !fact.value.is_empty()) else {
            return;
        };
        let Ok(Value::Array(list)) = serde_json::from_str(&fact.value) else {
            return self.wrong(&fact.origin, name, "expected a JSON list of ports");
        };
        let port = |port: &Value| {
            Some((port.get("name")?.as_str()?.to_owned(), port.get("containerPort")?.clone()))
        };
        let named: Map<String, Value> =
            list.iter().filter_map(port).filter(|(name, _)| !name.is_empty()).collect();
        settings.put("workload", "ports", Value::Object(named), &fact.origin);
    }

    fn mesh_settings(&mut self, facts: &Facts, hosts: Option<&str>, settings: &mut Settings) {
        let fact = |name: &str| facts.variables.get(name).filter(|fact| !fact.value.is_empty());
        let file = self.origin("mesh.yaml");
        let place = |name: &str| {
            let place = facts.places.get(&[name.to_owned()][..]);
            place.or_else(|| facts.places.get(&Vec::new())).unwrap_or(&file).clone()
        };
        let discovery = discovery(facts, &place("discoveryAddress"));
        settings.put("mesh", "discoveryAddress", json!(discovery.value), &discovery.origin);
        let authority = fact("CA_ADDR").filter(|fact| fact.value != discovery.value);
        settings.put_fact("mesh", "caAddress", authority);
        if let Some((address, origin)) = self.gateway(&discovery.value, hosts) {
            settings.put("mesh", "connectTo", json!(address), &origin);
        }
        settings.put_fact("mesh", "serverName", fact("ISTIOD_SAN"));
        settings.put_fact("mesh", "trustDomain", fact("TRUST_DOMAIN"));
        settings.put_fact("mesh", "clusterId", fact("ISTIO_META_CLUSTER_ID"));
        settings.put_fact("mesh", "meshId", fact("ISTIO_META_MESH_ID"));
        let mut metadata = Map::new();
        for (name, fact) in &facts.variables {
            let Some(name) = name.strip_prefix("ISTIO_META_") else { continue };
            if !keys::OURS.contains(&name) && !name.is_empty() {
                metadata.insert(name.to_owned(), json!(fact.value));
                let path = ["mesh", "metadata", name].map(str::to_owned).to_vec();
                settings.origins.insert(path, fact.origin.clone());
            }
        }
        settings.put("mesh", "metadata", Value::Object(metadata), &self.origin("cluster.env"));
        let policy = facts.proxy_config.get("controlPlaneAuthPolicy").and_then(Value::as_str);
        if policy.is_some_and(|policy| policy != "MUTUAL_TLS") {
            let what = "vm-agent always uses TLS towards istiod, and checks its certificate";
            self.warn(&place("controlPlaneAuthPolicy"), "controlPlaneAuthPolicy", what);
        }
        let config = Value::Object(facts.proxy_config.clone());
        settings.put("mesh", "proxyConfig", config, &place(CONFIG));
        for (path, origin) in &facts.places {
            let mut at = ["mesh", "proxyConfig"].map(str::to_owned).to_vec();
            at.extend(path.iter().cloned());
            settings.origins.insert(at, origin.clone());
        }
    }

    /// The address that the hosts file gives istiod's name: dialled instead of editing /etc/hosts.
    fn gateway(&mut self, discovery: &str, hosts: Option<&str>) -> Option<(String, String)> {
        let name = discovery.rsplit_once(':').map_or(discovery, |(host, _)| host);
        let file = self.origin("hosts");
        let mut others = false;
        for (number, line) in hosts?.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(address) = words.next() else { continue };
            if !words.any(|host| host.eq_ignore_ascii_case(name)) {
                others = true;
                continue;
            }
            let origin = format!("{file}:{}", number.saturating_add(1));
            if address.parse::<IpAddr>().is_err() {
                let found: String = address.chars().take(60).collect();
                self.wrong(
                    &origin,
                    "",
                    format!("found {found:?}, expected the IP address of {name}"),
                );
            }
            return Some((address.to_owned(), origin));
        }
        if others {
            self.warn(
                &file,
                "",
                format!("it has no address of {name}, which is looked up instead"),
            );
        }
        None
    }

    fn identity(&mut self, facts: &Facts, settings: &mut Settings) {
        let fact = |name: &str| facts.variables.get(name).filter(|fact| !fact.value.is_empty());
        certificate_files(facts, settings);
        settings.put_fact("identity", "ttl", fact("SECRET_TTL"));
        // Istio's own place is relative and holds what only its agent reads.
        let export = fact("OUTPUT_CERTS").filter(|fact| fact.value.starts_with('/'));
        settings.put_fact("identity", "exportDirectory", export);
        // Istio counts the share that is left, we that which has passed.
        for (name, setting, turned) in [
            ("SECRET_GRACE_PERIOD_RATIO", "renewAt", true),
            ("SECRET_GRACE_PERIOD_RATIO_JITTER", "renewJitter", false),
        ] {
            let Some(fact) = fact(name) else { continue };
            let share = fact.value.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
            match share.and_then(|share| Number::from_f64(if turned { 1.0 - share } else { share }))
            {
                Some(share) => {
                    settings.put("identity", setting, Value::Number(share), &fact.origin)
                }
                None => {
                    let what = format!("found {:?}, expected a share from 0 to 1", fact.value);
                    self.wrong(&fact.origin, name, what);
                }
            }
        }
        let (signature, curve, bits) =
            (fact("ECC_SIGNATURE_ALGORITHM"), fact("ECC_CURVE"), fact("WORKLOAD_RSA_KEY_SIZE"));
        match (signature, bits) {
            (Some(fact), _) if fact.value == "ECDSA" => {
                let large = curve.is_some_and(|curve| curve.value == "P384");
                let algorithm = if large { "ecdsa-p384" } else { "ecdsa-p256" };
                settings.put("identity", "keyAlgorithm", json!(algorithm), &fact.origin);
            }
            (Some(fact), _) => {
                let what = format!("found {:?}, expected ECDSA", fact.value);
                self.wrong(&fact.origin, "ECC_SIGNATURE_ALGORITHM", what);
            }
            (None, Some(bits)) => {
                let algorithm = format!("rsa-{}", bits.value);
                settings.put("identity", "keyAlgorithm", json!(algorithm), &bits.origin);
            }
            (None, None) => {}
        }
    }

    fn proxy(&mut self, facts: &Facts, settings: &mut Settings) {
        let user = facts.variables.get("EXEC_USER").filter(|fact| !fact.value.is_empty());
        settings.put_fact("proxy", "user", user);
        let name = "ISTIO_CPU_LIMIT";
        let said = facts.proxy_config.contains_key("concurrency");
        let Some(fact) = facts.variables.get(name).filter(|fact| !said && !fact.value.is_empty())
        else {
            return;
        };
        match fact.value.parse::<u32>() {
            Ok(0) => {}
            Ok(workers) => settings.put("proxy", "concurrency", json!(workers), &fact.origin),
            Err(_) => {
                let what = format!("found {:?}, expected a number of cores", fact.value);
                self.wrong(&fact.origin, name, what);
            }
        }
    }
}

/// With `FILE_MOUNTED_CERTS` others keep the certificate (Istio `pkg/istio-agent/agent.go`).
fn certificate_files(facts: &Facts, settings: &mut Settings) {
    let name = "FILE_MOUNTED_CERTS";
    let Some(wanted) = facts.variables.get(name).filter(|fact| is_true(&fact.value)) else {
        return;
    };
    settings.put("identity", "source", json!("files"), &wanted.origin);
    let mut files = Map::new();
    for (setting, variable, usual) in [
        ("certFile", "ISTIO_META_TLS_CLIENT_CERT_CHAIN", "/etc/certs/cert-chain.pem"),
        ("keyFile", "ISTIO_META_TLS_CLIENT_KEY", "/etc/certs/key.pem"),
        ("rootFile", "ISTIO_META_TLS_CLIENT_ROOT_CERT", "/etc/certs/root-cert.pem"),
    ] {
        let fact = facts.variables.get(variable).filter(|fact| !fact.value.is_empty());
        let path = fact.map_or(usual, |fact| fact.value.as_str());
        files.insert(setting.to_owned(), json!(path));
        let origin = fact.map_or(&wanted.origin, |fact| &fact.origin);
        let at = ["identity", "files", setting].map(str::to_owned).to_vec();
        settings.origins.insert(at, origin.clone());
    }
    settings.put("identity", "files", Value::Object(files), &wanted.origin);
}

/// As Go's `strconv.ParseBool` reads it.
fn is_true(text: &str) -> bool {
    ["1", "t", "T", "TRUE", "true", "True"].contains(&text)
}

/// istiod, as Istio's start script finds it: the variables that name it, else the ProxyConfig.
fn discovery(facts: &Facts, place: &str) -> Fact {
    let fact = |name: &str| facts.variables.get(name).filter(|fact| !fact.value.is_empty());
    if let Some(fact) = fact("PILOT_ADDRESS") {
        return Fact { value: fact.value.clone(), origin: fact.origin.clone() };
    }
    let (namespace, port) = (fact("ISTIO_SYSTEM_NAMESPACE"), fact("ISTIO_PILOT_PORT"));
    if let Some(said) = port.or(namespace) {
        let value = |fact: Option<&Fact>, usual: &str| {
            fact.map_or_else(|| usual.to_owned(), |fact| fact.value.clone())
        };
        let (namespace, port) = (value(namespace, "istio-system"), value(port, "15012"));
        let value = format!("istiod.{namespace}.svc:{port}");
        return Fact { value, origin: said.origin.clone() };
    }
    let said = facts.proxy_config.get("discoveryAddress").and_then(Value::as_str);
    Fact { value: said.unwrap_or(DISCOVERY).to_owned(), origin: place.to_owned() }
}

const DISCOVERY: &str = "istiod.istio-system.svc:15012";
