use super::*;
use crate::base::backoff::Retry;
use crate::platform::{Cloud, Facts as Known, Host};

fn known() -> Known {
    let text = |text: &str| Some(text.to_owned());
    Known {
        host: Host { hostname: text("vm1"), os_version: text("12"), ..Host::default() },
        cloud: Cloud {
            name: text("gcp"),
            region: text("europe-west1"),
            zone: text("europe-west1-b"),
            tags: [("env", "Prod"), ("app", "other")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Cloud::default()
        },
    }
}

fn complete(workload: &str, facts: &Known) -> Result<Workload, Unfilled> {
    let yaml = format!("workload: {{namespace: vms, group: g, {workload}}}\n");
    let workload = read(&yaml).unwrap().settings.workload;
    let address = workload.said_address(facts)?;
    workload.complete(facts, &address.unwrap_or_else(|| "10.0.0.1".parse().unwrap()))
}

#[test]
fn a_locality_is_what_is_said_or_a_labels_or_the_clouds() {
    for (workload, facts, expected) in [
        ("locality: eu/a", known(), Some("eu/a")),
        ("labels: {istio-locality: eu.b.rack1}", known(), Some("eu/b/rack1")),
        ("labels: {istio-locality: eu, topology.istio.io/locality: us}", known(), Some("us")),
        ("labels: {app: x}", known(), Some("europe-west1/europe-west1-b")),
        ("labels: {app: x}", Known::default(), None),
        ("locality: '{{cloud.region}}/all'", known(), Some("europe-west1/all")),
    ] {
        let locality = complete(workload, &facts).unwrap().locality;
        assert_eq!(
            locality.map(|locality| locality.to_string()).as_deref(),
            expected,
            "{workload}"
        );
    }
}

#[test]
fn tags_become_labels_where_nobody_said_another_value() {
    let labels = complete("labels: {app: mine}, facts: {tags: [env, app, gone]}", &known());
    let labels = labels.unwrap().labels;
    assert_eq!(
        labels.into_iter().collect::<Vec<_>>(),
        [("app".to_owned(), "mine".to_owned()), ("env".to_owned(), "Prod".to_owned())]
    );
}

#[test]
fn every_setting_with_templates_is_filled_by_its_own_rule() {
    let workload = complete(
        "name: '{{hostname}}.{{cloud.tag.env}}', address: '{{hostname}}.example.com', \
         network: '{{cloud.name}}', labels: {at: '{{address}}', os: 'debian-{{os.version}}'}",
        &known(),
    );
    let workload = workload.unwrap();
    assert_eq!(workload.name.as_deref(), Some("vm1.prod"));
    assert_eq!(workload.address.unwrap().to_string(), "vm1.example.com");
    assert_eq!((workload.network.as_str(), &*workload.labels["os"]), ("gcp", "debian-12"));
    assert_eq!(workload.labels["at"], "vm1.example.com");
    assert_eq!(workload.templates, Templates::default());
}

#[test]
fn what_is_not_known_may_pass_and_what_breaks_a_rule_never_does() {
    let lacks = complete("name: 'vm-{{cloud.zone}}'", &Known::default()).unwrap_err();
    assert_eq!((lacks.retry, lacks.problems.0.len()), (Retry::Soon, 1));
    let breaks = complete("name: 'VM-{{hostname}}', network: '{{os.name}}'", &known()).unwrap_err();
    assert_eq!((breaks.retry, breaks.problems.0.len()), (Retry::Never, 2));
    let socket = "address: 'unix:///run/{{hostname}}', ports: {http: 80}";
    let told = complete(socket, &known()).unwrap_err().to_string();
    assert!(
        told.contains("config.yaml:1: workload.address") && told.contains("no ports"),
        "{told}"
    );
}

#[test]
fn a_cloud_is_of_use_where_something_of_it_is_wanted() {
    for (workload, wants, needs) in [
        ("locality: eu", false, 0),
        ("weight: 1", true, 0),
        ("locality: eu, facts: {tags: [env]}", true, 0),
        ("locality: eu, name: '{{hostname}}'", false, 0),
        ("locality: eu, name: '{{cloud.zone}}'", true, 1),
        ("locality: eu, network: '{{cloud.zone | default \"x\"}}'", true, 0),
        ("labels: {istio-locality: eu}", false, 0),
    ] {
        let yaml = format!("workload: {{namespace: vms, group: g, {workload}}}\n");
        let workload = read(&yaml).unwrap().settings.workload;
        assert_eq!((workload.wants_cloud(), workload.needs().count()), (wants, needs), "{yaml}");
    }
}

#[test]
fn tags_in_templates_are_asked_for_too() {
    let yaml =
        "workload: {namespace: vms, group: g, name: 'x-{{cloud.tag.role}}', facts: {tags: env}}\n";
    let asked = read(yaml).unwrap().settings.workload.facts.platform.tags;
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), ["env", "role"]);
}

#[test]
fn a_join_source_may_have_templates() {
    let cluster_env = "ISTIO_METAJSON_LABELS='{\"app\":\"client\",\"zone\":\"{{cloud.zone}}\"}'\n\
        ISTIO_META_AUTO_REGISTER_GROUP='client'\nPOD_NAMESPACE='vms'\nSERVICE_ACCOUNT='client'\n\
        POD_NAME='vm-{{hostname}}'\n";
    let (document, loaded) = read_source(cluster_env, MESH_YAML).unwrap();
    let address = "10.0.0.1".parse().unwrap();
    let workload = loaded.settings.workload.complete(&known(), &address).unwrap();
    assert_eq!(workload.name.as_deref(), Some("vm-vm1"));
    assert_eq!(workload.labels["zone"], "europe-west1-b");
    let again = read(&write_yaml(&document.tree()).unwrap()).unwrap().settings.workload;
    assert_eq!(again.complete(&known(), &address).unwrap().labels, workload.labels);
    let told = read_source(&cluster_env.replace("hostname", "host"), MESH_YAML).unwrap_err();
    assert!(told.to_string().contains("cluster.env:5: workload.name: there is no fact"), "{told}");
}
