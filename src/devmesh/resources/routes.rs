//! Routes: which service a request's host means, one configuration for each port that speaks HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use prost_types::Duration;

use super::{PASS_THROUGH, View, pack};
use crate::devmesh::catalog::{Port, Service};
use crate::proto::envoy::{
    Decorator, PreviousHostsPredicate, RetryHostPredicate, RetryPolicy, Route, RouteAction,
    RouteConfiguration, RouteMatch, VirtualHost,
};

/// The ports on which some service speaks HTTP.
pub(super) fn ports(view: &View<'_>) -> BTreeSet<u16> {
    let all = view.services().flat_map(|service| &service.ports);
    all.filter(|port| port.is_http()).map(|port| port.number).collect()
}

pub(super) fn routes(view: &View<'_>) -> Vec<RouteConfiguration> {
    let mut by_port = BTreeMap::<u16, Vec<VirtualHost>>::new();
    for service in view.services() {
        for port in service.ports.iter().filter(|port| port.is_http()) {
            by_port.entry(port.number).or_default().push(host(service, port));
        }
    }
    by_port.into_iter().map(|(port, hosts)| configuration(port, hosts)).collect()
}

fn configuration(port: u16, mut virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    // Two services with one address: the first one has it.
    let mut taken = BTreeSet::new();
    for host in &mut virtual_hosts {
        host.domains.retain(|domain| taken.insert(domain.clone()));
    }
    virtual_hosts.push(VirtualHost {
        name: "allow_any".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route("allow_any", PASS_THROUGH, "", None)],
        include_request_attempt_count: true,
    });
    RouteConfiguration {
        name: port.to_string(),
        virtual_hosts,
        validate_clusters: Some(false),
        ignore_port_in_host_matching: true,
    }
}

fn host(service: &Service, port: &Port) -> VirtualHost {
    let name = format!("{}:{}", service.host, port.number);
    let address = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let mut domains = vec![service.host.clone()];
    domains.extend(service.addresses.iter().map(address));
    let operation = format!("{name}/*");
    let action = route("default", &service.cluster(port), &operation, Some(retries()));
    VirtualHost { name, domains, routes: vec![action], include_request_attempt_count: true }
}

/// All requests to one cluster. Like Istio's routes, without a limit of time.
pub(super) fn route(
    name: &str,
    cluster: &str,
    operation: &str,
    retry_policy: Option<RetryPolicy>,
) -> Route {
    Route {
        r#match: Some(RouteMatch { prefix: "/".to_owned() }),
        route: Some(RouteAction {
            cluster: cluster.to_owned(),
            timeout: Some(Duration::default()),
            retry_policy,
        }),
        decorator: (!operation.is_empty()).then(|| Decorator { operation: operation.to_owned() }),
        name: name.to_owned(),
    }
}

/// Istio's default: what cannot have been worked on is tried again elsewhere.
fn retries() -> RetryPolicy {
    let elsewhere = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        typed_config: Some(pack(PREVIOUS_HOSTS, &PreviousHostsPredicate {})),
    };
    RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled".to_owned(),
        num_retries: Some(2),
        retry_host_predicate: vec![elsewhere],
        host_selection_retry_max_attempts: 5,
    }
}

const PREVIOUS_HOSTS: &str =
    "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
