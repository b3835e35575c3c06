//! The listeners that are there before istiod says anything: metrics and health.

use serde_json::{Value, json};

use super::BootstrapInputs;

/// Envoy's metrics.
pub(super) const PROMETHEUS_PORT: u16 = 15_090;
/// The health page, which passes through Envoy to the agent.
pub(super) const HEALTH_PORT: u16 = 15_021;

pub(super) fn listeners(inputs: &BootstrapInputs<'_>) -> Value {
    let only_ipv6 = !inputs.workload.instance_ips.is_empty()
        && inputs.workload.instance_ips.iter().all(std::net::IpAddr::is_ipv6);
    let any = if only_ipv6 { "::" } else { "0.0.0.0" };
    let local =
        inputs.proxy.metadata.get("METRICS_LOCALHOST_ACCESS_ONLY").is_some_and(|v| v == "true");
    let metrics_at = if local { super::LOCALHOST } else { any };
    let mut filters = Vec::new();
    if inputs.proxy.raw.get("statsCompression").and_then(Value::as_bool) != Some(false) {
        filters.extend(["brotli", "zstd", "gzip"].map(compressor));
    }
    filters.push(router());
    let metrics = page("stats", "/stats/prometheus", "prometheus_stats", filters);
    let health = page("agent", "/healthz/ready", "agent", vec![router()]);
    json!([listener(metrics_at, PROMETHEUS_PORT, &metrics), listener(any, HEALTH_PORT, &health)])
}

fn listener(address: &str, port: u16, filter: &Value) -> Value {
    json!({
        "name": format!("{address}_{port}"),
        "address": {"socket_address": {"protocol": "TCP", "address": address, "port_value": port}},
        "ignore_global_conn_limit": true,
        "bypass_overload_manager": true,
        "filter_chains": [{"filters": [filter]}],
    })
}

fn page(stat_prefix: &str, prefix: &str, cluster: &str, http_filters: Vec<Value>) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "codec_type": "AUTO",
            "stat_prefix": stat_prefix,
            "route_config": {"virtual_hosts": [{
                "name": "backend",
                "domains": ["*"],
                "routes": [{"match": {"prefix": prefix}, "route": {"cluster": cluster}}],
            }]},
            "http_filters": http_filters,
        },
    })
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    })
}

fn compressor(kind: &str) -> Value {
    let (head, tail) = kind.split_at(1);
    let message = format!("{}{tail}", head.to_uppercase());
    json!({
        "name": format!("envoy.filters.http.compressor.{kind}"),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
            "compressor_library": {
                "name": format!("stats_{kind}"),
                "typed_config": {
                    "@type": format!("type.googleapis.com/envoy.extensions.compression.{kind}.compressor.v3.{message}"),
                },
            },
            "response_direction_config": {"common_config": {"content_type": [
                "text/plain",
                "application/vnd.google.protobuf",
                "application/openmetrics-text",
                "application/openmetrics-protobuf",
            ]}},
        },
    })
}
