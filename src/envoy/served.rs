//! The services that the proxy serves this machine as, from its inbound clusters.

use std::collections::BTreeSet;
use std::io;

use http::Method;
use serde_json::Value;

use super::admin::Admin;

/// The hosts of the services that this machine serves as, as the proxy at this admin port was
/// told; `None` where it was not told whose its inbound clusters are.
///
/// Istio names them in the metadata of each inbound cluster (`filter_metadata.istio.services`,
/// `pilot/pkg/networking/util/util.go`).
///
/// # Errors
/// When nobody answers in time, or the answer makes no sense.
pub async fn served(port: u16) -> io::Result<Option<Vec<String>>> {
    let text = Admin { port }.ask(Method::GET, INBOUND).await?;
    Ok(hosts(&serde_json::from_str(&text)?))
}

fn hosts(dump: &Value) -> Option<Vec<String>> {
    let clusters = dump.pointer("/configs").and_then(Value::as_array);
    let clusters: Vec<&Value> = clusters.into_iter().flatten().collect();
    let services = |cluster: &&Value| {
        let at = "/cluster/metadata/filter_metadata/istio/services";
        cluster.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let of_all = clusters.iter().flat_map(services);
    let host = |service: Value| Some(service.pointer("/host")?.as_str()?.to_owned());
    let hosts: BTreeSet<String> = of_all.filter_map(host).collect();
    (clusters.is_empty() || !hosts.is_empty()).then(|| hosts.into_iter().collect())
}

/// Clusters for what arrives, without what nobody asks for.
const INBOUND: &str = "/config_dump?resource=dynamic_active_clusters&mask=cluster.name,cluster.metadata&name_regex=inbound%5C%7C.*";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_with_several_ports_counts_once_and_unknown_ones_are_no_count() {
        let cluster = |port: u16, host: &str| {
            json!({"cluster": {"name": format!("inbound|{port}||"), "metadata": {"filter_metadata": {
                "istio": {"services": [{"host": host, "name": "n", "namespace": "vms"}]}}}}})
        };
        let dump =
            json!({"configs": [cluster(80, "a.com"), cluster(81, "a.com"), cluster(80, "b.com")]});
        assert_eq!(hosts(&dump).unwrap(), ["a.com", "b.com"]);
        assert_eq!(hosts(&json!({})).unwrap(), Vec::<String>::new());
        assert_eq!(hosts(&json!({"configs": [{"cluster": {"name": "inbound|80||"}}]})), None);
    }
}
