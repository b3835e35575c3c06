use serde_json::json;

use super::*;
use crate::config::parse_yaml;

fn group(name: &str, account: &str) -> Group {
    let value = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": name},
        "spec": {"metadata": {"labels": {"app": name}}, "template": {"serviceAccount": account}},
    });
    Group::from_value(&value, "vms").unwrap()
}

fn all(group: &Group, machines: &Machines) -> Vec<Value> {
    let grants = Grants { group, siblings: &[], machines, bound: true };
    let manifests = [vec![grants.account()], grants.rbac(), grants.policy()].concat();
    manifests.into_iter().map(|manifest| manifest.body).collect()
}

#[test]
fn the_example_with_comments_says_what_is_granted() {
    let text = include_str!("../../../packaging/kubernetes/machines.yaml");
    let documents = text.split("\n---\n").map(|one| parse_yaml(one, "machines.yaml").unwrap());
    let documents: Vec<Value> = documents.collect();
    assert_eq!(documents, all(&group("details", "details"), &Machines::default()));
}

#[test]
fn a_prefix_is_one_more_rule_and_names_are_unambiguous() {
    let machines = Machines { name_prefix: "edge-".to_owned(), ..Machines::default() };
    let group = group("details", "other");
    let policy = Grants { group: &group, siblings: &[], machines: &machines, bound: true }.policy();
    let rules = policy[0].body["spec"]["validations"].as_array().unwrap();
    assert_eq!(rules.len(), 10);
    assert!(rules[4].to_string().contains("startsWith('edge-')"), "{}", rules[4]);
    assert_eq!(policy[0].title(), "ValidatingAdmissionPolicy vm-agent.vms.other");
    assert_eq!(policy[0].object.namespace, "");
}

#[test]
fn the_role_is_the_groups_and_the_token_its_accounts() {
    let group = group("details", "other");
    let machines = Machines::default();
    let rbac = Grants { group: &group, siblings: &[], machines: &machines, bound: true }.rbac();
    assert_eq!(rbac[0].title(), "Role vms/vm-agent-details");
    let names: Vec<_> = rbac[0].body["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["resourceNames"].clone())
        .collect();
    assert_eq!(json!(names), json!([["details"], null, ["other"], ["istio-ca-root-cert"]]));
    assert_eq!(rbac[1].body["subjects"][0]["name"], "other");
}

#[test]
fn labels_weights_and_addresses_are_those_of_the_accounts_groups_unless_the_operator_frees_them() {
    let (own, mut sibling) = (group("details", "a"), group("other", "a"));
    sibling.template = json!({"weight": 5000});
    sibling.labels.insert("zone".to_owned(), "{{cloud.zone}}".to_owned());
    let rules = |machines: &Machines, bound| {
        let siblings = std::slice::from_ref(&sibling);
        let policy = Grants { group: &own, siblings, machines, bound }.policy();
        let of = |at: usize| {
            let rules = policy[at].body["spec"]["validations"].as_array().unwrap().clone();
            rules.iter().map(|rule| rule["expression"].as_str().unwrap().to_owned()).collect()
        };
        let (entries, tokens): (Vec<String>, Vec<String>) = (of(0), of(2));
        (entries.join("\n"), tokens.join("\n"))
    };
    let (entries, tokens) = rules(&Machines::default(), true);
    for words in [
        "[{'app': 'details', ",
        "}, {'app': 'other', ",
        "'zone': '*'}",
        "weight <= 5000",
        "k in []",
    ] {
        assert!(entries.contains(words), "{words}: {entries}");
    }
    assert!(!entries.contains("localhost") && tokens.contains("'Secret'"), "{tokens}");
    let free =
        Machines { free_labels: vec!["team".to_owned()], host_names: true, ..Machines::default() };
    let (entries, tokens) = rules(&free, false);
    assert!(entries.contains("k in ['team']") && entries.contains("localhost"), "{entries}");
    assert!(tokens.contains("<= 86400") && !tokens.contains("Secret"), "{tokens}");
}
