//! Envoy's bootstrap, equal in meaning to the one that Istio's agent makes
//! (`tools/packaging/common/envoy_bootstrap.json`). Every difference is listed with its reason in
//! `src/envoy/tests.rs`.

mod listeners;
mod node;
mod stats;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::workload::{ProxyConfig, Workload};

/// How the machine's WorkloadEntry comes to be, for istiod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Register {
    /// istiod makes one from this WorkloadGroup.
    Group(String),
    /// It exists under this name.
    Entry(String),
    /// There is none.
    None,
}

/// What the bootstrap is made of.
#[derive(Clone, Debug)]
pub struct BootstrapInputs<'a> {
    /// The machine.
    pub workload: &'a Workload,
    /// The mesh's settings for its proxy.
    pub proxy: &'a ProxyConfig,
    /// `CLUSTER_ID`.
    pub cluster_id: &'a str,
    /// `MESH_ID`.
    pub mesh_id: &'a str,
    /// Node metadata from `ISTIO_META_*` (names without that prefix); ours win.
    pub metadata: &'a BTreeMap<String, String>,
    /// `PLATFORM_METADATA`: what the cloud says of the machine.
    pub platform: &'a BTreeMap<String, String>,
    /// How it is registered.
    pub register: Register,
    /// Whether the agent answers DNS queries of captured programs.
    pub dns_capture: bool,
    /// Whether inbound connections reach it by transparent sockets.
    pub transparent: bool,
    /// The port of the agent's status server.
    pub status_port: u16,
    /// The port of the admin interface.
    pub admin_port: u16,
}

/// The bootstrap. It holds no secret. Its paths are relative to Envoy's working directory.
#[must_use]
pub fn bootstrap(inputs: &BootstrapInputs<'_>) -> Value {
    json!({
        "application_log_config": {"log_format": {"text_format": LOG_FORMAT}},
        "node": node::node(inputs),
        "layered_runtime": {"layers": [
            {"name": "global config", "static_layer": runtime(inputs)},
            {"name": "admin", "admin_layer": {}},
        ]},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                "type_url": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                "value": {"buffer_size_kb": 64},
            },
        }],
        "stats_config": stats::config(inputs.proxy),
        "admin": admin(inputs.admin_port),
        "dynamic_resources": dynamic_resources(),
        "static_resources": {
            "clusters": [
                local_cluster("prometheus_stats", inputs.admin_port),
                local_cluster("agent", inputs.status_port),
                sds_cluster(),
                xds_cluster(),
            ],
            "listeners": listeners::listeners(inputs),
        },
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": i32::MAX,
            },
        }]},
        "deferred_stat_options": {"enable_deferred_creation_stats": true},
    })
}

/// Istio's defaults, changed by `runtimeValues`: an empty text takes a flag away, `true` and
/// `false` become booleans.
fn runtime(inputs: &BootstrapInputs<'_>) -> Value {
    let mut flags = json!({
        "re2.max_program_size.error_level": "32768",
        "envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst": true,
        "envoy.reloadable_features.http_reject_path_with_fragment": false,
        "envoy.reloadable_features.fixed_heap_use_allocated": true,
        "envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": false,
    });
    let wanted = inputs.proxy.raw.get("runtimeValues").and_then(Value::as_object);
    if let (Some(flags), Some(wanted)) = (flags.as_object_mut(), wanted) {
        for (name, value) in wanted {
            match value.as_str() {
                Some("") => drop(flags.remove(name)),
                Some(text) => {
                    let value = text.parse::<bool>().map_or_else(|_| json!(text), Value::from);
                    flags.insert(name.clone(), value);
                }
                None => drop(flags.insert(name.clone(), value.clone())),
            }
        }
    }
    flags
}

fn admin(port: u16) -> Value {
    json!({
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": "/dev/null",
            },
        }],
        "profile_path": "./envoy.prof",
        "address": {"socket_address": {"address": LOCALHOST, "port_value": port}},
    })
}

fn dynamic_resources() -> Value {
    let by_ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    json!({
        "lds_config": by_ads,
        "cds_config": by_ads,
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "set_node_on_first_message_only": true,
            "transport_api_version": "V3",
            "grpc_services": [{
                "envoy_grpc": {
                    "cluster_name": "xds-grpc",
                    // The relay holds a stream as long as istiod cannot be reached, so a new one is
                    // wanted at once whenever the old one ends.
                    "retry_policy": {
                        "retry_back_off": {"base_interval": "0.010s", "max_interval": "5s"}
                    },
                },
            }],
        },
    })
}

fn local_cluster(name: &str, port: u16) -> Value {
    let at =
        json!({"socket_address": {"protocol": "TCP", "address": LOCALHOST, "port_value": port}});
    let mut cluster = static_cluster(name, &at);
    merge(&mut cluster, json!({"connect_timeout": "0.250s"}));
    cluster
}

fn sds_cluster() -> Value {
    let mut cluster = static_cluster("sds-grpc", &json!({"pipe": {"path": "./sds.sock"}}));
    merge(&mut cluster, json!({"typed_extension_protocol_options": http2()}));
    cluster
}

fn xds_cluster() -> Value {
    let many = |priority: &str| {
        json!({"priority": priority, "max_connections": 100_000, "max_pending_requests": 100_000,
            "max_requests": 100_000})
    };
    let mut cluster = static_cluster("xds-grpc", &json!({"pipe": {"path": "./xds.sock"}}));
    merge(
        &mut cluster,
        json!({
            "circuit_breakers": {"thresholds": [many("DEFAULT"), many("HIGH")]},
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 300}},
            "max_requests_per_connection": 1,
            "typed_extension_protocol_options": http2(),
        }),
    );
    cluster
}

fn static_cluster(name: &str, at: &Value) -> Value {
    json!({
        "name": name,
        "alt_stat_name": format!("{name};"),
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at}}]}],
        },
    })
}

fn http2() -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }})
}

fn merge(into: &mut Value, fields: Value) {
    if let (Value::Object(into), Value::Object(fields)) = (into, fields) {
        into.extend(fields);
    }
}

/// The agent's admin client and status server speak to Envoy here; IPv4 loopback exists on
/// machines with IPv6 addresses alone, too.
const LOCALHOST: &str = "127.0.0.1";
/// Time, level, place, message and thread, with tabs between them: what [`super::logs`] reads.
const LOG_FORMAT: &str = "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t";
