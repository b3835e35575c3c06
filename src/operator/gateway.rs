//! How machines outside the cluster reach istiod: the address of a gateway's Service.

use serde_json::Value;

/// The address at which a Service is reached from outside: that of its load balancer, an IP or a
/// name, or its first external IP.
pub(super) fn outside_address(service: &Value) -> Option<String> {
    let text = |at: &str| {
        let text = service.pointer(at).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    text("/status/loadBalancer/ingress/0/ip")
        .or_else(|| text("/status/loadBalancer/ingress/0/hostname"))
        .or_else(|| text("/spec/externalIPs/0"))
}

/// Name and namespace of `NAME` or `NAME.NAMESPACE`.
pub(super) fn place<'a>(service: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    service.split_once('.').unwrap_or((service, namespace))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_load_balancers_address_or_name_comes_before_external_addresses() {
        let of = |ingress: Value| {
            let status = json!({"loadBalancer": {"ingress": [ingress]}});
            outside_address(&json!({"status": status, "spec": {"externalIPs": ["10.0.0.3"]}}))
        };
        assert_eq!(of(json!({"ip": "10.0.0.1"})).unwrap(), "10.0.0.1");
        assert_eq!(of(json!({"hostname": "lb.example.com"})).unwrap(), "lb.example.com");
        assert_eq!(of(json!({})).unwrap(), "10.0.0.3");
        assert_eq!(outside_address(&json!({"status": {"loadBalancer": {}}})), None);
    }

    #[test]
    fn a_service_may_be_in_another_namespace() {
        assert_eq!(place("gw", "istio-system"), ("gw", "istio-system"));
        assert_eq!(place("gw.edge", "istio-system"), ("gw", "edge"));
    }
}
