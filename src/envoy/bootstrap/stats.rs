//! Which statistics Envoy keeps, and which parts of their names become labels. istiod ends parts of
//! names with `;` and `.=`, which is what these expressions find.

use serde_json::{Value, json};

use crate::envoy::admin::INBOUND_ARRIVALS;
use crate::workload::ProxyConfig;

pub(super) fn config(proxy: &ProxyConfig) -> Value {
    let mut tags: Vec<Value> = TAGS_BEFORE.iter().map(|&(name, regex)| tag(name, regex)).collect();
    let extra = proxy.raw.get("extraStatTags").and_then(Value::as_array);
    for name in extra.into_iter().flatten().filter_map(Value::as_str) {
        tags.push(tag(name, &format!("({name}=\\.=(.*?);\\.;)")));
    }
    tags.extend(TAGS_AFTER.iter().map(|&(name, regex)| tag(name, regex)));
    json!({
        "use_all_default_tags": false,
        "stats_tags": tags,
        "stats_matcher": {"inclusion_list": {"patterns": patterns(proxy)}},
    })
}

fn patterns(proxy: &ProxyConfig) -> Vec<Value> {
    let mut patterns = vec![json!({"prefix": "reporter="})];
    let wanted = |kind: &str| -> Vec<String> {
        let list = proxy.raw.get("proxyStatsMatcher").and_then(|matcher| matcher.get(kind));
        let texts = list.and_then(Value::as_array).into_iter().flatten();
        texts.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let with = |kind: &str, usual: &[&str]| -> Vec<String> {
        wanted(kind).into_iter().chain(usual.iter().map(|&text| text.to_owned())).collect()
    };
    for prefix in with("inclusionPrefixes", &PREFIXES) {
        patterns.push(json!({"prefix": prefix}));
    }
    for suffix in with("inclusionSuffixes", &SUFFIXES) {
        patterns.push(json!({"suffix": suffix}));
    }
    for regex in with("inclusionRegexps", &[r"vhost\..*\.route\..*"]) {
        patterns.push(json!({"safe_regex": {"regex": regex}}));
    }
    patterns.extend([json!({"prefix": "component"}), json!({"prefix": "istio"})]);
    // A drain sees by them when nobody is connected any more, and nobody comes.
    patterns
        .extend(["downstream_cx_active", INBOUND_ARRIVALS].map(|suffix| json!({"suffix": suffix})));
    patterns
}

fn tag(name: &str, regex: &str) -> Value {
    json!({"tag_name": name, "regex": regex})
}

const PREFIXES: [&str; 5] =
    ["cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "wasm"];
const SUFFIXES: [&str; 4] = ["rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied"];

const TAGS_BEFORE: [(&str, &str); 9] = [
    ("cluster_name", r"^cluster(\.(.+);)"),
    (
        "http_conn_manager_prefix",
        r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)",
    ),
    ("thread_name", r"^server(\.(.+))\.watchdog"),
    ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    ("response_code", r"_rq(_(\d{3}))$"),
    ("response_code_class", r"_rq(_(\dxx))$"),
    (
        "http_conn_manager_listener_prefix",
        r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    ("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
    ("mongo_prefix", r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$"),
];

const TAGS_AFTER: [(&str, &str); 7] = [
    ("cache", r"(cache\.(.+?)\.)"),
    ("component", r"(component\.(.+?)\.)"),
    ("tag", r"(tag\.(.+?);\.)"),
    ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
];
