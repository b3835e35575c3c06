//! What proxies get, as they decode it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::base::clock;
use crate::devmesh::kind::Resource;
use crate::devmesh::store::Objects;
use crate::proto::envoy::http_connection_manager::Routes;
use crate::proto::envoy::string_matcher::Pattern;
use crate::proto::envoy::{
    Cluster, ClusterLoadAssignment, DownstreamTlsContext, FilterChain, HttpConnectionManager,
    HttpRbac, Listener, NetworkRbac, RouteConfiguration, UpstreamTlsContext, rules,
};

const LEGACY: &str = "10.0.0.12";

/// The story: `details` (HTTP) and `echo` (TCP) on one machine, `client` on another.
struct Bed {
    objects: Objects,
    domain: TrustDomain,
    mutual_tls: MutualTls,
}

impl Bed {
    fn new() -> Self {
        let objects = Objects::new(clock::system(), None).unwrap();
        let bed = Self {
            objects,
            domain: "cluster.local".parse().unwrap(),
            mutual_tls: MutualTls::Strict,
        };
        bed.put(Resource::WorkloadEntries, "legacy", entry(LEGACY, "details"));
        let http = json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 9080}]);
        let tcp = json!([{"number": 9090, "name": "tcp", "protocol": "TCP"}]);
        bed.put(Resource::ServiceEntries, "details", service("details.internal", http));
        bed.put(Resource::ServiceEntries, "echo", service("echo.internal", tcp));
        bed
    }

    fn put(&self, resource: Resource, name: &str, spec: Value) {
        self.objects.put(resource, "vms", name, json!({"spec": spec}));
    }

    fn resources(&self, type_url: &str, proxy: &Proxy) -> Vec<(String, Any)> {
        let catalog = Catalog::read(&self.objects);
        let (trust_domain, mutual_tls) = (&self.domain, self.mutual_tls);
        let names = BTreeMap::new();
        let view = View { catalog: &catalog, proxy, trust_domain, mutual_tls, names: &names };
        of(type_url, &view).unwrap()
    }

    fn get<M: Message + Default>(&self, type_url: &str, proxy: &Proxy, name: &str) -> M {
        let all = self.resources(type_url, proxy);
        let names: Vec<_> = all.iter().map(|(name, _)| name).collect();
        let found = all.iter().find(|(one, _)| one == name);
        let (_, any) = found.unwrap_or_else(|| panic!("no {name} among {names:?}"));
        M::decode(any.value.as_slice()).unwrap()
    }

    fn inbound(&self) -> Vec<FilterChain> {
        let listener: Listener = self.get(LISTENERS, &server(), "virtualInbound");
        listener.filter_chains
    }

    fn endpoints(&self) -> Vec<(String, u32)> {
        let name = "outbound|80||details.internal";
        let all: ClusterLoadAssignment = self.get(ENDPOINTS, &client(), name);
        let places = all.endpoints.iter().flat_map(|place| &place.lb_endpoints);
        let each = places.map(|one| {
            let socket = one.endpoint.clone().unwrap().address.unwrap().socket_address.unwrap();
            (socket.address, socket.port_value.unwrap())
        });
        each.collect()
    }
}

fn entry(address: &str, account: &str) -> Value {
    json!({"address": address, "serviceAccount": account, "labels": {"app": "details"}})
}

fn service(host: &str, ports: Value) -> Value {
    json!({
        "hosts": [host], "ports": ports, "resolution": "STATIC",
        "workloadSelector": {"labels": {"app": "details"}},
    })
}

fn proxy(name: &str, address: &str) -> Proxy {
    let metadata = json!({
        "NAMESPACE": "vms", "INSTANCE_IPS": address, "LABELS": {"app": name},
    });
    Proxy {
        id: format!("sidecar~{address}~{name}.vms~vms.svc.cluster.local"),
        metadata: metadata.as_object().unwrap().clone(),
        locality: String::new(),
    }
}

fn client() -> Proxy {
    proxy("client", "10.0.0.11")
}

fn server() -> Proxy {
    proxy("details", LEGACY)
}

fn unpack<M: Message + Default>(any: &Option<Any>) -> M {
    M::decode(any.as_ref().unwrap().value.as_slice()).unwrap()
}

fn chain(chains: &[FilterChain], port: u32) -> &FilterChain {
    let of = |chain: &&FilterChain| {
        chain.filter_chain_match.as_ref().is_some_and(|one| one.destination_port == Some(port))
    };
    chains.iter().find(of).unwrap()
}

fn manager(chain: &FilterChain) -> HttpConnectionManager {
    unpack(&chain.filters.last().unwrap().typed_config)
}

#[test]
fn a_caller_has_listeners_routes_and_clusters_under_istios_names() {
    let bed = Bed::new();
    let names = |type_url| -> Vec<String> {
        bed.resources(type_url, &client()).into_iter().map(|(name, _)| name).collect()
    };
    let vip = Catalog::read(&bed.objects).services[1].addresses[0];
    assert_eq!(
        names(LISTENERS),
        ["virtualOutbound", "virtualInbound", "0.0.0.0_80", &format!("{vip}_9090")]
    );
    assert_eq!(
        names(CLUSTERS),
        [
            "BlackHoleCluster",
            "InboundPassthroughCluster",
            "PassthroughCluster",
            "outbound|80||details.internal",
            "outbound|9090||echo.internal"
        ]
    );
    assert_eq!(names(ROUTES), ["80"]);
    let routes: RouteConfiguration = bed.get(ROUTES, &client(), "80");
    let hosts: Vec<_> = routes.virtual_hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["details.internal:80", "allow_any"]);
    let table = bed.resources(NAME_TABLE, &client());
    let table = NameTable::decode(table[0].1.value.as_slice()).unwrap().table;
    assert_eq!(table["echo.internal"].ips, [vip.to_string()]);
}

#[test]
fn calls_are_made_with_mutual_tls_to_the_accounts_of_the_endpoints_alone() {
    let bed = Bed::new();
    let cluster: Cluster = bed.get(CLUSTERS, &client(), "outbound|80||details.internal");
    let meshed = &cluster.transport_socket_matches[0];
    let context: UpstreamTlsContext =
        unpack(&meshed.transport_socket.as_ref().unwrap().typed_config);
    assert_eq!(context.sni, "outbound_.80_._.details.internal");
    let common = context.common_tls_context.unwrap();
    assert_eq!(common.alpn_protocols, ["istio"]);
    let names = common.combined_validation_context.unwrap().default_validation_context.unwrap();
    let [only] = names.match_typed_subject_alt_names.as_slice() else { panic!("{names:?}") };
    assert_eq!(
        only.matcher.clone().unwrap().pattern,
        Some(Pattern::Exact("spiffe://cluster.local/ns/vms/sa/details".to_owned()))
    );
    let assignment: ClusterLoadAssignment =
        bed.get(ENDPOINTS, &client(), "outbound|80||details.internal");
    assert_eq!(assignment.endpoints[0].lb_endpoints[0].metadata, Some(transport::mark()));
    // An endpoint without an account is called in plain text.
    bed.put(Resource::WorkloadEntries, "legacy", entry(LEGACY, ""));
    let assignment: ClusterLoadAssignment =
        bed.get(ENDPOINTS, &client(), "outbound|80||details.internal");
    assert_eq!(assignment.endpoints[0].lb_endpoints[0].metadata, None);
}

#[test]
fn endpoints_are_the_healthy_ones_with_their_own_ports_and_weights() {
    let bed = Bed::new();
    assert_eq!(bed.endpoints(), [(LEGACY.to_owned(), 9080)]);
    let mut other = entry("10.0.0.13", "details");
    other["ports"] = json!({"http": 8000});
    other["weight"] = json!(3);
    other["locality"] = json!("eu/a");
    let checked = json!({"proxy.istio.io/health-checks-enabled": "true"});
    let with = |status: Value| json!({"metadata": {"annotations": checked}, "spec": other, "status": status});
    let health = |status: &str| json!({"conditions": [{"type": "Healthy", "status": status}]});
    let put = |status| bed.objects.put(Resource::WorkloadEntries, "vms", "other", with(status));
    put(json!({}));
    assert_eq!(bed.endpoints().len(), 1, "it was never found healthy");
    put(health("True"));
    assert_eq!(bed.endpoints(), [(LEGACY.to_owned(), 9080), ("10.0.0.13".to_owned(), 8000)]);
    let all: ClusterLoadAssignment = bed.get(ENDPOINTS, &client(), "outbound|80||details.internal");
    let place = &all.endpoints[1];
    assert_eq!(
        (place.locality.clone().unwrap().zone.as_str(), place.load_balancing_weight),
        ("a", Some(3))
    );
    put(health("False"));
    assert_eq!(bed.endpoints().len(), 1);
}

#[test]
fn a_strict_machine_takes_mutual_tls_alone_and_tells_its_program_who_calls() {
    let bed = Bed::new();
    let chains = bed.inbound();
    let of_9080: Vec<_> = chains
        .iter()
        .filter(|one| one.filter_chain_match.as_ref().unwrap().destination_port == Some(9080))
        .collect();
    let [only] = of_9080.as_slice() else { panic!("{of_9080:?}") };
    assert_eq!(only.filter_chain_match.as_ref().unwrap().transport_protocol, "tls");
    let context: DownstreamTlsContext =
        unpack(&only.transport_socket.as_ref().unwrap().typed_config);
    assert_eq!(context.require_client_certificate, Some(true));
    let manager = manager(only);
    let details = manager.set_current_client_cert_details.unwrap();
    assert_eq!((manager.forward_client_cert_details, details.uri), (2, true));
    let Some(Routes::RouteConfig(routes)) = manager.routes else { panic!("no routes") };
    assert_eq!(routes.name, "inbound|9080||");
    assert!(
        chains
            .iter()
            .all(|one| one.transport_socket.is_some() || one.name == "virtualInbound-blackhole")
    );
    // A machine of no service still takes mutual TLS alone.
    let listener: Listener = bed.get(LISTENERS, &client(), "virtualInbound");
    assert_eq!(listener.filter_chains.len(), 2);
}

#[test]
fn the_most_special_peer_authentication_counts() {
    let bed = Bed::new();
    let plain = |chains: &[FilterChain], port| {
        chains.iter().any(|one| {
            one.filter_chain_match.as_ref().unwrap().destination_port == Some(port)
                && one.transport_socket.is_none()
        })
    };
    let mode = |name: &str, mode: &str, selector: Value| {
        let spec = json!({"mtls": {"mode": mode}, "selector": {"matchLabels": selector}});
        bed.put(Resource::PeerAuthentications, name, spec);
    };
    assert!(!plain(&bed.inbound(), 9080));
    mode("all", "PERMISSIVE", json!({}));
    assert!(plain(&bed.inbound(), 9080));
    mode("other", "DISABLE", json!({"app": "other"}));
    mode("own", "STRICT", json!({"app": "details"}));
    assert!(!plain(&bed.inbound(), 9080));
    mode("own", "DISABLE", json!({"app": "details"}));
    let chains = bed.inbound();
    assert!(chain(&chains, 9080).transport_socket.is_none());
    let assignment: ClusterLoadAssignment =
        bed.get(ENDPOINTS, &client(), "outbound|80||details.internal");
    assert_eq!(assignment.endpoints[0].lb_endpoints[0].metadata, None, "callers know it");
}

#[test]
fn a_policy_denies_before_another_allows_and_nobody_else_is_allowed() {
    let bed = Bed::new();
    let rule = |principal: &str, operation: Value| json!({"from": [{"source": {"principals": [principal]}}], "to": [{"operation": operation}]});
    let client = "cluster.local/ns/vms/sa/client";
    let deny = rule(client, json!({"paths": ["/secret*"], "ports": ["9080"]}));
    bed.put(Resource::AuthorizationPolicies, "deny", json!({"action": "DENY", "rules": [deny]}));
    let allow = rule("*", json!({"methods": ["GET"]}));
    bed.put(Resource::AuthorizationPolicies, "allow", json!({"rules": [allow]}));
    let elsewhere = json!({"selector": {"matchLabels": {"app": "other"}}, "rules": []});
    bed.put(Resource::AuthorizationPolicies, "other", elsewhere);
    let chains = bed.inbound();
    let filters = manager(chain(&chains, 9080)).http_filters;
    let rules: Vec<_> = filters[..2]
        .iter()
        .map(|filter| unpack::<HttpRbac>(&filter.typed_config).rules.unwrap())
        .collect();
    assert_eq!(rules[0].action(), rules::Action::Deny);
    assert_eq!(rules[1].action(), rules::Action::Allow);
    let words = format!("{:?}", rules[0].policies["ns[vms]-policy[deny]-rule[0]"]);
    for part in
        ["Prefix(\"/secret\")", "DestinationPort(9080)", "spiffe://cluster.local/ns/vms/sa/client"]
    {
        assert!(words.contains(part), "{part} is not in {words}");
    }
    // Where only connections are seen, a denial leaves out what it says of requests, and what
    // would be allowed by them is not.
    let tcp = &chain(&chains, 9090).filters;
    let rules: Vec<_> = tcp[..2]
        .iter()
        .map(|filter| unpack::<NetworkRbac>(&filter.typed_config).rules.unwrap())
        .collect();
    let words = format!("{:?}", rules[0]);
    assert!(words.contains("DestinationPort(9080)") && !words.contains("/secret"), "{words}");
    assert!(rules[1].policies.is_empty());
}

#[test]
fn made_up_addresses_are_stable_and_never_the_same() {
    let objects = Objects::new(Arc::clone(&clock::system()), None).unwrap();
    for number in 0..300 {
        let spec = service(&format!("host{number}.internal"), json!([]));
        objects.put(Resource::ServiceEntries, "vms", &format!("s{number}"), json!({"spec": spec}));
    }
    let catalog = Catalog::read(&objects);
    let mut all: Vec<_> = catalog.services.iter().map(|one| one.addresses[0]).collect();
    assert!(all.iter().all(|one| one.to_string().starts_with("240.240.")));
    assert_eq!(
        all,
        Catalog::read(&objects).services.iter().map(|one| one.addresses[0]).collect::<Vec<_>>()
    );
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 300);
}

#[test]
fn a_service_that_is_not_exported_is_seen_in_its_own_namespace_alone() {
    let bed = Bed::new();
    let mut hidden =
        service("hidden.internal", json!([{"number": 80, "name": "http", "protocol": "HTTP"}]));
    hidden["exportTo"] = json!(["."]);
    bed.objects.put(Resource::ServiceEntries, "other", "hidden", json!({"spec": hidden}));
    let seen = |namespace: &str| {
        let catalog = Catalog::read(&bed.objects);
        catalog.visible(namespace).any(|one| one.host == "hidden.internal")
    };
    assert_eq!((seen("other"), seen("vms")), (true, false));
}
