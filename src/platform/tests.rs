use std::path::Path;

use proptest::prelude::*;

use super::host::{Firmware, Places, host, machine};
use super::survey::survey_at;
use super::*;
use crate::workload::{is_subdomain, label_problem};

fn cloud() -> Cloud {
    Cloud {
        name: Some("aws".to_owned()),
        region: Some("eu-west-1".to_owned()),
        zone: Some("eu-west-1a".to_owned()),
        tags: [("Team".to_owned(), "Web & Shop".to_owned())].into(),
        ..Cloud::default()
    }
}

fn fill(template: &str, syntax: Syntax) -> Result<String, Fact> {
    let host = Host { hostname: Some("vm1".to_owned()), ..Host::default() };
    let facts = Facts { host, cloud: cloud() };
    let template: Template = template.parse().unwrap();
    template.fill(syntax, |fact| facts.get(fact).map(str::to_owned))
}

#[test]
fn a_template_is_filled_with_facts_that_fit_where_they_stand() {
    for (template, syntax, expected) in [
        ("vm-{{hostname}}", Syntax::Name, "vm-vm1"),
        ("{{ cloud.region }}/{{cloud.zone}}/rack7", Syntax::Locality, "eu-west-1/eu-west-1a/rack7"),
        ("{{cloud.tag.Team}}", Syntax::Label, "Web-Shop"),
        ("{{cloud.tag.Team | lower}}", Syntax::Label, "web-shop"),
        ("x{{cloud.tag.Team}}", Syntax::Name, "xweb-shop"),
        ("{{os.name | default \"linux\"}}", Syntax::Label, "linux"),
        ("{{hostname | default \"x\" | lower}}", Syntax::Name, "vm1"),
        ("{{os.name | default \"\"}}", Syntax::Label, ""),
    ] {
        assert_eq!(fill(template, syntax).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn a_fact_that_is_not_known_is_named() {
    assert_eq!(fill("{{hostname}}-{{os.name}}", Syntax::Name), Err(Fact::OsName));
    assert_eq!(fill("{{cloud.tag.env}}", Syntax::Label), Err(Fact::Tag("env".to_owned())));
    let template: Template = "{{os.name}}{{cloud.zone | default \"x\"}}".parse().unwrap();
    assert_eq!(template.needs().collect::<Vec<_>>(), [&Fact::OsName]);
    assert_eq!(template.facts().count(), 2);
}

#[test]
fn what_is_no_template_is_refused_with_the_words_that_are_wrong() {
    for (text, words) in [
        ("{{hostname", "without the other"),
        ("hostname}}", "without the other"),
        ("{{a{{hostname}}", "without the other"),
        ("{{hostname}} }}", "without the other"),
        ("{{host}}", "no fact \"host\""),
        ("{{}}", "no fact \"\""),
        ("{{cloud.tag.}}", "no fact \"cloud.tag.\""),
        ("{{hostname | upper}}", "\"upper\" is neither lower nor default"),
        ("{{hostname | default x}}", "neither lower nor default"),
        ("{{hostname | default \"x\"y\"}}", "neither lower nor default"),
        (&"{{arch}}".repeat(100), "too long"),
        (&format!("{{{{arch}}}}{}", "x".repeat(2048)), "too long"),
    ] {
        let error = text.parse::<Template>().unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn every_name_of_a_fact_is_one() {
    for name in Fact::NAMES {
        assert_eq!(name.parse::<Fact>().unwrap().to_string(), name);
    }
    assert!(Fact::NAMES.is_sorted());
    assert_eq!("cloud.tag.a b/c".parse::<Fact>().unwrap(), Fact::Tag("a b/c".to_owned()));
}

fn firmware(lines: &[(&str, &str)]) -> (tempfile::TempDir, Firmware) {
    let directory = tempfile::tempdir().unwrap();
    for (name, line) in lines {
        std::fs::write(directory.path().join(name), format!("{line}\n")).unwrap();
    }
    let firmware = Firmware::read(directory.path());
    (directory, firmware)
}

#[test]
fn the_firmware_names_the_cloud_and_a_machine_of_ones_own_is_in_none() {
    for (lines, provider) in [
        (&[("sys_vendor", "Amazon EC2")][..], Some(Provider::Aws)),
        (&[("sys_vendor", "Xen"), ("bios_version", "4.11.amazon")], Some(Provider::Aws)),
        (&[("product_name", "Google Compute Engine")], Some(Provider::Gcp)),
        (
            &[
                ("sys_vendor", "Microsoft Corporation"),
                ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
            ],
            Some(Provider::Azure),
        ),
        (&[("sys_vendor", "Microsoft Corporation"), ("product_name", "Virtual Machine")], None),
        (&[("sys_vendor", "QEMU"), ("product_name", "Standard PC")], None),
        (&[], None),
    ] {
        assert_eq!(firmware(lines).1.provider(), provider, "{lines:?}");
    }
}

#[test]
fn the_machine_id_leaves_the_machine_as_a_hash_only() {
    let (directory, firmware) = firmware(&[("sys_vendor", "QEMU"), ("product_uuid", "one")]);
    let id = directory.path().join("machine-id");
    assert_eq!(host(&firmware, &id).machine_id, None);
    std::fs::write(&id, "uninitialized\n").unwrap();
    assert_eq!(host(&firmware, &id).machine_id, None);
    let raw = "0123456789abcdef0123456789abcdef";
    std::fs::write(&id, format!("{raw}\n")).unwrap();
    let shown = host(&firmware, &id).machine_id.unwrap();
    assert!(shown.len() == 12 && shown.bytes().all(|byte| byte.is_ascii_hexdigit()), "{shown}");
    assert!(!raw.contains(&shown));
    let named = host(&firmware, &id);
    let own = machine(&firmware, &named, &id);
    assert!(!own.starts_with(&shown), "the hash on the disk is another one");
    let copy = Firmware { uuid: Some("two".to_owned()), ..firmware };
    assert_ne!(machine(&copy, &named, &id), own, "a copied disk is another machine's");
}

fn config(source: Source, instance_data: &Path) -> Config {
    Config {
        source,
        address: METADATA_ADDRESS,
        instance_data: instance_data.to_owned(),
        tags: BTreeSet::new(),
        other_tags: false,
    }
}

const ON_GOOGLE: &str = r#"{"base64_encoded_keys": [], "ds": {"meta_data": {}}, "v1": {
    "_beta_keys": ["subplatform"], "cloud_name": "gce", "cloud-name": "gce", "platform": "gce",
    "availability_zone": "europe-west1-b", "region": "europe-west1", "instance_id": "4711",
    "local_hostname": "vm1"}}"#;

#[test]
fn what_cloud_init_wrote_is_known_at_once_and_says_whom_to_ask() {
    let (directory, _) = firmware(&[]);
    let file = directory.path().join("instance-data.json");
    let id = directory.path().join("machine-id");
    let places = Places { firmware: directory.path(), machine_id: &id };
    assert_eq!(survey_at(&places, &config(Source::Auto, &file)).provider, None);
    std::fs::write(&file, ON_GOOGLE).unwrap();
    let found = survey_at(&places, &config(Source::Auto, &file));
    assert_eq!(found.provider, Some(Provider::Gcp));
    assert_eq!(found.facts.cloud.name.as_deref(), Some("gcp"));
    assert_eq!(found.facts.cloud.zone.as_deref(), Some("europe-west1-b"));
    let quiet = survey_at(&places, &config(Source::CloudInit, &file));
    assert_eq!((quiet.provider, quiet.facts.cloud), (None, found.facts.cloud));
    let none = survey_at(&places, &config(Source::None, &file));
    assert!(none.provider.is_none() && none.facts.cloud.is_empty());
    let aws = survey_at(&places, &config(Source::Metadata(Provider::Aws), &file));
    assert!(aws.provider == Some(Provider::Aws) && aws.facts.cloud.is_empty());
}

#[test]
fn what_cloud_init_does_not_know_or_may_not_tell_is_not_known() {
    let of =
        |v1: serde_json::Value| cloud_init(serde_json::json!({"v1": v1}).to_string().as_bytes());
    let cloud = of(serde_json::json!({"cloud_name": "openstack", "region": null, "instance_id": 5,
        "availability_zone": "redacted for non-root user"}));
    assert_eq!(cloud, Cloud { name: Some("openstack".to_owned()), ..Cloud::default() });
    assert!(of(serde_json::json!({"cloud_name": "unknown", "region": "x"})).is_empty());
    assert!(cloud_init(b"not json").is_empty() && cloud_init(b"{\"v1\": []}").is_empty());
}

#[test]
fn the_clouds_descriptions_are_read_and_others_are_not() {
    let aws = br#"{"region": "eu-west-1", "availabilityZone": "eu-west-1a", "instanceId": "i-0a",
        "instanceType": "m7i.large"}"#;
    let cloud = aws_document(aws).unwrap();
    assert_eq!(
        (cloud.region.as_deref(), cloud.zone.as_deref()),
        (Some("eu-west-1"), Some("eu-west-1a"))
    );
    assert_eq!(aws_document(b"{}"), None);
    assert_eq!(aws_document(b"{\"region\": 5}"), None);
    let azure = br#"{"location": "westeurope", "zone": "", "name": "vm1", "vmId": "02aab8a4",
        "vmSize": "Standard_D2s", "tagsList": [{"name": "env", "value": "prod"}, {"name": 5}, 5]}"#;
    let cloud = azure_compute(azure).unwrap();
    assert_eq!((cloud.zone.as_deref(), cloud.tags.len()), (None, 1));
    assert_eq!(azure_compute(b"[]"), None);
    assert_eq!(gcp_name("projects/1/zones/europe-west1-b\n").as_deref(), Some("europe-west1-b"));
    assert_eq!(gcp_name("projects/1/zones/"), None);
}

#[test]
fn node_metadata_has_istios_names() {
    let keys = |name: &str| {
        let all = Cloud {
            name: Some(name.to_owned()),
            instance_id: Some("i".to_owned()),
            instance_name: Some("n".to_owned()),
            project: Some("p".to_owned()),
            ..cloud()
        };
        all.node_metadata().into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys("aws"), "aws_availability_zone aws_instance_id aws_region");
    assert_eq!(keys("azure"), "azure_Team azure_location azure_name azure_vmId");
    assert_eq!(keys("gcp"), "gcp_gce_instance gcp_gce_instance_id gcp_location gcp_project");
    assert_eq!(keys("digitalocean"), "");
}

#[test]
fn a_record_is_true_of_its_machine_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("facts.json");
    assert_eq!(Record::read(&path, "one").unwrap(), None);
    let record = Record {
        machine: "one".to_owned(),
        learned_at: 1_790_000_000,
        asked: BTreeSet::from(["Team".to_owned()]),
        cloud: cloud(),
    };
    record.write(&path).unwrap();
    assert_eq!(Record::read(&path, "one").unwrap(), Some(record));
    assert_eq!(Record::read(&path, "two").unwrap(), None);
    std::fs::write(&path, "{}").unwrap();
    assert!(Record::read(&path, "one").is_err());
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader_of_templates(text in "[{}|\" a-z.]{0,60}|.{0,200}") {
        if let Ok(template) = text.parse::<Template>() {
            prop_assert_eq!(template.to_string(), text.as_str());
            let filled = template.fill(Syntax::Address, |_| Some("x".to_owned())).unwrap();
            let literal = !Template::is_template(&text);
            prop_assert!(!literal || filled == text);
        }
    }

    #[test]
    fn a_fact_in_a_name_or_label_follows_their_rules(value in ".{0,300}") {
        if let Some(name) = Syntax::Name.fit(&value).filter(|name| name.len() <= 253) {
            prop_assert!(is_subdomain(&name), "{name:?}");
        }
        if let Some(label) = Syntax::Label.fit(&value) {
            prop_assert_eq!(label_problem("x", &label), None);
        }
        if let Some(part) = Syntax::Locality.fit(&value) {
            prop_assert!(!part.contains('/'));
        }
    }

    #[test]
    fn no_answer_of_a_cloud_breaks_its_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for cloud in [aws_document(&bytes), azure_compute(&bytes), Some(cloud_init(&bytes))] {
            let cloud = cloud.unwrap_or_default();
            prop_assert!(cloud.region.is_none_or(|region| !region.is_empty()));
        }
    }

    #[test]
    fn facts_are_short_and_have_no_control_characters(text in "(?s).{0,600}") {
        let json = serde_json::json!({"region": text, "location": text}).to_string();
        for cloud in [aws_document(json.as_bytes()), azure_compute(json.as_bytes())] {
            let region = cloud.and_then(|cloud| cloud.region).unwrap_or_else(|| "x".to_owned());
            prop_assert!(region.chars().count() <= 256 && !region.chars().any(char::is_control));
            prop_assert_eq!(region.trim(), region.as_str());
        }
    }
}
