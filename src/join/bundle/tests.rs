use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::*;
use crate::base::problem::Problems;
use crate::config::{parse_yaml_with_lines, write_yaml};

fn root() -> Roots {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    Roots::from_pem(pem.as_bytes()).unwrap()
}

fn token() -> SecretString {
    let claims = URL_SAFE_NO_PAD.encode(json!({"sub": "s", "exp": 1}).to_string());
    SecretString::from(format!("e30.{claims}.c2ln"))
}

fn bundle() -> Bundle {
    let metadata = BundleMetadata {
        group: "details".to_owned(),
        namespace: "vms".to_owned(),
        created: "2026-11-26T12:00:00Z".to_owned(),
        name_prefix: "edge-".to_owned(),
        uses: Some(3),
        secret: "vm-agent-bundle-details-1".to_owned(),
        renew_with: "vm-agent bundle create details -n vms".to_owned(),
    };
    let settings = json!({
        "workload": {"namespace": "vms", "labels": {"version": "1.10", "on": "yes"}},
        "registration": {"mode": "kubernetes", "kubernetes": {"server": "https://k"}},
    });
    let api = KubernetesAccess { roots: root(), token: token() };
    let settings = settings.as_object().unwrap().clone();
    Bundle::new(metadata, settings, root(), (Some(api), Some(token())))
}

fn yaml() -> String {
    // Keys are slow to make, and one bundle is like another.
    static TEXT: LazyLock<String> = LazyLock::new(|| write_yaml(&bundle().to_value()).unwrap());
    TEXT.clone()
}

fn parse(text: &str) -> Result<Bundle, Problems> {
    Bundle::parse(text, "b.yaml", parse_yaml_with_lines)
}

#[test]
fn what_was_written_is_read_the_same() {
    let (wrote, text) = (bundle(), yaml());
    let read = parse(&text).unwrap();
    assert_eq!((&read.metadata, &read.settings), (&wrote.metadata, &wrote.settings));
    let source = read.into_source("b.yaml");
    assert_eq!(source.terms.as_ref().unwrap().name_prefix, "edge-");
    assert!(source.kubernetes.is_some() && source.token.is_some());
    let line = text.lines().position(|line| line.trim_start().starts_with("mode:")).unwrap() + 1;
    let mode = ["registration", "mode"].map(str::to_owned);
    assert_eq!(source.origin(&mode), format!("b.yaml:{line}"));
    assert!(!format!("{source:?}").contains("e30."), "no secret is shown");
}

#[test]
fn every_problem_is_told_at_once_with_its_line_and_without_a_secret() {
    let text = yaml()
        .replace("  namespace: vms\n  created", "  namespce: vms\n  created")
        .replace("uses: 3", "uses: many")
        .replace("istioToken: e30.", "istioToken: hush-")
        .replace("\ntrust:", "\nextra: 1\ntrust:");
    let text = text.replace("-----BEGIN CERTIFICATE-----", "-----BEGIN NOTHING-----");
    let problems = parse(&text).unwrap_err();
    let told = problems.to_string();
    let line =
        |start: &str| text.lines().position(|one| one.trim_start().starts_with(start)).unwrap() + 1;
    for words in [
        format!("b.yaml:{}: metadata.namespce: there is no such field", line("namespce")),
        format!("b.yaml:{}: metadata.uses: expected a number from 1", line("uses")),
        format!("b.yaml:{}: extra: there is no such field", line("extra")),
        format!("b.yaml:{}: trust.mesh: certificate 1 is broken", line("mesh:")),
        format!("b.yaml:{}: credential.istioToken: it is no JSON Web Token", line("istioToken")),
    ] {
        assert!(told.contains(&words), "{words}\n{told}");
    }
    assert!(!told.contains("hush"), "{told}");
}

#[test]
fn another_file_another_version_and_a_part_of_one_are_told_apart() {
    let told = |text: &str| parse(text).unwrap_err().to_string();
    assert!(told("").contains("no join bundle: found an empty file"));
    let pod = told("apiVersion: v1\nkind: Pod\n");
    assert!(pod.contains("found Pod, expected JoinBundle of vm-agent.io/v1"), "{pod}");
    assert!(told("- a\n").contains("no join bundle"));
    assert!(told("workload: {name: x}\n").contains("no join bundle"));
    let next = yaml().replace("vm-agent.io/v1", "vm-agent.io/v2");
    assert!(
        told(&next).contains("another version of vm-agent") && !told(&next).contains("no such")
    );
    let cut = yaml().split("credential:").next().unwrap().to_owned();
    assert!(told(&cut).contains("credential: missing"), "{}", told(&cut));
    let foreign = yaml().replace("mode: kubernetes", "mode: kubernetes\n    force: true");
    assert!(parse(&foreign).is_ok() || told(&foreign).contains("YAML"));
    let mut own = bundle();
    own.settings["registration"]["kubernetes"]["tokenFile"] = json!("/etc/shadow");
    own.settings.insert("credential".to_owned(), json!({"tokenFile": "/etc/shadow"}));
    let told = told(&write_yaml(&own.to_value()).unwrap());
    assert!(
        told.contains("settings.credential") && told.contains("kubernetes.tokenFile"),
        "{told}"
    );
    let large = format!("{}# {}", yaml(), "x".repeat(1 << 20));
    assert!(parse(&large).unwrap_err().to_string().contains("larger than"));
}

#[test]
fn a_token_and_its_roots_belong_together() {
    let mut alone = bundle().to_value();
    alone["trust"].as_object_mut().unwrap().remove("kubernetes");
    let told = parse(&write_yaml(&alone).unwrap()).unwrap_err().to_string();
    assert!(told.contains("trust.kubernetes: missing"), "{told}");
    let mut none = bundle().to_value();
    none["credential"] = json!({});
    none["trust"].as_object_mut().unwrap().remove("kubernetes");
    let told = parse(&write_yaml(&none).unwrap()).unwrap_err().to_string();
    assert!(told.contains("credential: missing: a token"), "{told}");
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        drop(parse(&text));
    }

    #[test]
    fn no_change_of_a_bundle_panics(at in any::<prop::sample::Index>(), byte in any::<char>()) {
        let text = yaml();
        let mut letters: Vec<char> = text.chars().collect();
        let at = at.index(letters.len());
        letters[at] = byte;
        let text: String = letters.into_iter().collect();
        drop(parse(&text));
        let untyped = |_: &str, _: &str| Ok((Value::String(text.clone()), BTreeMap::new()));
        prop_assert!(Bundle::parse(&text, "b", untyped).is_err());
    }
}
