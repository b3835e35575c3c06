//! Facts of the machine, from clouds that answer as the real ones do, and from clouds that do not;
//! and what becomes of them in the agent as a program.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod bed;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bed::{AGENT, Bed, registered, trouble};
use serde_json::{Value, json};
use vm_agent::base::backoff::Retry;
use vm_agent::devmesh::{CloudFault, CloudService, Instance};
use vm_agent::platform::{Config, MetadataError, Provider, Source, Told, ask};

/// Longer than any test takes.
const LIMIT: Duration = Duration::from_secs(120);
const ALL: [Provider; 3] = [Provider::Aws, Provider::Azure, Provider::Gcp];

fn instance() -> Instance {
    let tags = [("Name", "shop-1"), ("env", "Prod"), ("cost:center", "4 & 5")];
    Instance {
        region: "eu-west-1".to_owned(),
        zone: "eu-west-1a".to_owned(),
        id: "i-0abc".to_owned(),
        name: "shop-1".to_owned(),
        size: "m7i.large".to_owned(),
        project: "shop".to_owned(),
        tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        shows_tags: true,
    }
}

async fn cloud() -> CloudService {
    CloudService::start(instance()).await.unwrap()
}

fn config(service: &CloudService, provider: Provider, tags: &[&str]) -> Config {
    Config {
        source: Source::Metadata(provider),
        address: service.address(),
        instance_data: PathBuf::from("/nowhere"),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        other_tags: false,
    }
}

async fn tell(
    service: &CloudService,
    provider: Provider,
    tags: &[&str],
) -> Result<Told, MetadataError> {
    ask(provider, &config(service, provider, tags), LIMIT).await
}

#[tokio::test]
async fn each_cloud_tells_place_name_and_the_tags_that_are_asked_for() {
    let service = cloud().await;
    for provider in ALL {
        let told = tell(&service, provider, &["env", "cost:center", "none"]).await.unwrap();
        let facts = told.cloud;
        assert_eq!(facts.name.as_deref(), Some(provider.name()));
        let place = (facts.region.as_deref(), facts.zone.as_deref());
        let region = if provider == Provider::Gcp { "eu-west" } else { "eu-west-1" };
        assert_eq!(place, (Some(region), Some("eu-west-1a")), "{provider:?}");
        assert_eq!(facts.instance_id.as_deref(), Some("i-0abc"), "{provider:?}");
        assert_eq!(facts.instance_name.as_deref(), Some("shop-1"), "{provider:?}");
        assert_eq!(facts.instance_type.as_deref(), Some("m7i.large"), "{provider:?}");
        assert_eq!(facts.project.is_some(), provider == Provider::Gcp);
        let tags: Vec<_> = facts.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(tags, ["cost:center=4 & 5", "env=Prod"], "{provider:?}");
        assert_eq!(told.unread, BTreeSet::new());
    }
    let asked = service.asked().borrow().clone();
    let tokens = asked.iter().filter(|asked| *asked == "PUT /latest/api/token").count();
    assert_eq!(tokens, 1, "one token for all questions: {asked:?}");
    assert!(!asked.iter().any(|asked| asked.contains("recursive")), "{asked:?}");
}

#[tokio::test]
async fn all_tags_are_listed_where_somebody_wants_to_see_them() {
    let service = cloud().await;
    for (provider, expected) in [(Provider::Aws, 3), (Provider::Azure, 3), (Provider::Gcp, 0)] {
        let config = Config { other_tags: true, ..config(&service, provider, &[]) };
        assert_eq!(ask(provider, &config, LIMIT).await.unwrap().cloud.tags.len(), expected);
    }
}

#[tokio::test]
async fn an_instance_that_does_not_show_its_tags_has_none() {
    let service = CloudService::start(Instance { shows_tags: false, ..instance() }).await.unwrap();
    let told = tell(&service, Provider::Aws, &["env"]).await.unwrap();
    assert_eq!((told.cloud.instance_name, told.cloud.tags.len()), (None, 0));
    assert_eq!(told.unread, BTreeSet::new(), "nothing was left unread");
}

#[tokio::test]
async fn what_is_no_metadata_service_is_told_from_one() {
    let service = cloud().await;
    for provider in ALL {
        let asked_before = service.asked().borrow().len();
        for (fault, words, retry) in [
            (CloudFault::Rubbish, "is not the metadata service of", Retry::Later),
            (CloudFault::Endless, "has a body that is too large", Retry::Later),
            (CloudFault::Redirect, "with HTTP 302", Retry::Later),
            (CloudFault::Refuse(403), "with HTTP 403", Retry::Later),
            (CloudFault::Refuse(503), "with HTTP 503", Retry::Soon),
        ] {
            service.set_fault(fault);
            let error = tell(&service, provider, &["env"]).await.unwrap_err();
            assert!(error.to_string().contains(words), "{provider:?} {fault:?}: {error}");
            assert_eq!(error.retry(), retry, "{provider:?} {fault:?}");
            assert_eq!(
                error.hint().is_some(),
                fault != CloudFault::Refuse(503) && fault != CloudFault::Redirect
            );
        }
        // At most Google's five questions at once, twice AWS's: nobody asks on after a refusal.
        let asked = service.asked().borrow().len() - asked_before;
        assert!(asked <= 25, "{provider:?}: {asked}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Config { address: nobody, ..config(&service, Provider::Aws, &[]) };
    let error = ask(Provider::Aws, &gone, LIMIT).await.unwrap_err();
    assert!(matches!(error, MetadataError::Unreachable { .. }), "{error}");
}

/// The clock jumps as soon as nothing but time can go on.
#[tokio::test(start_paused = true)]
async fn a_service_that_never_answers_is_given_up() {
    let service = cloud().await;
    service.set_fault(CloudFault::Silent);
    for provider in ALL {
        let error = tell(&service, provider, &[]).await.unwrap_err();
        assert!(matches!(error, MetadataError::Silent { .. }), "{provider:?}: {error}");
        assert!(error.retry() == Retry::Soon && error.hint().is_some());
    }
}

#[tokio::test]
async fn tags_that_do_not_come_hold_nothing_up_and_are_not_taken_for_gone() {
    let service = cloud().await;
    service.set_fault(CloudFault::SilentTags);
    for provider in [Provider::Aws, Provider::Gcp] {
        let config = config(&service, provider, &["env"]);
        let told = ask(provider, &config, Duration::from_secs(4)).await.unwrap();
        assert_eq!(told.cloud.zone.as_deref(), Some("eu-west-1a"));
        assert!(told.unread.contains("env") && told.cloud.tags.is_empty(), "{provider:?}");
    }
}

/// A machine of a cloud, that may write its own WorkloadEntry.
struct Machine {
    bed: Bed,
    cloud: CloudService,
}

impl Machine {
    async fn new() -> Self {
        let bed = Bed::new().await;
        bed.mesh.grant("vms", "client");
        Self { bed, cloud: cloud().await }
    }

    /// Writes the configuration, with these settings of `workload` and `workload.facts`.
    fn configure(&self, workload: Value, facts: Value) {
        let put = |map: &mut Value, more: Value| {
            map.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        };
        let mut all = json!({"group": null, "facts": {
            "source": "aws", "address": self.cloud.address().to_string(),
            "instanceData": self.bed.path("instance-data.json")}});
        put(&mut all, workload);
        put(&mut all["facts"], facts);
        self.bed.write_configuration(json!({
            "workload": all,
            "registration": {"mode": "kubernetes", "kubernetes": self.bed.kubernetes()},
        }));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clouds_facts_arrive_in_the_workload_entry_and_the_proxys_node() {
    let mut machine = Machine::new().await;
    let workload = json!({
        "name": "shop-{{cloud.instanceId}}-{{machine.id | default \"0\"}}",
        "labels": {"app": "shop", "stage": "{{cloud.tag.env | lower}}", "at": "{{address}}",
                   "size": "{{cloud.instanceType}}", "rack": "{{cloud.tag.rack | default \"none\"}}"},
        "network": "{{cloud.name}}-net",
    });
    machine.configure(workload, json!({"tags": ["cost:center", "gone"]}));
    machine.bed.start();
    let status = machine.bed.until("registered", registered).await;
    let name = status["workload"]["name"].as_str().unwrap();
    assert!(name.starts_with("shop-i-0abc-"), "{name}");
    let entry = machine.bed.mesh.entry(&format!("vms/{name}")).unwrap();
    assert_eq!(entry["spec"]["locality"], "eu-west-1/eu-west-1a");
    assert_eq!(entry["spec"]["network"], "aws-net");
    let labels = json!({"app": "shop", "stage": "prod", "at": "127.0.0.1", "size": "m7i.large",
        "rack": "none", "cost-center": "4-5"});
    assert_eq!(entry["spec"]["labels"], labels);
    assert_eq!(status["workload"]["labels"], labels, "the status shows what the templates became");
    assert_eq!(status["facts"]["source"], "metadata");
    let bootstrap = std::fs::read_to_string(machine.bed.path("run/vm-agent/envoy.json"));
    let node: Value = serde_json::from_str(&bootstrap.unwrap()).unwrap();
    let node = &node["node"];
    assert_eq!(node["locality"], json!({"region": "eu-west-1", "zone": "eu-west-1a"}));
    let platform = json!({"aws_region": "eu-west-1", "aws_availability_zone": "eu-west-1a", "aws_instance_id": "i-0abc"});
    assert_eq!(node["metadata"]["PLATFORM_METADATA"], platform);
    if let Ok(id) = std::fs::read_to_string("/etc/machine-id") {
        let id = id.trim();
        assert!(id.is_empty() || !status.to_string().contains(id), "the machine ID stays here");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_cloud_delays_no_start_that_can_do_without() {
    let mut machine = Machine::new().await;
    machine.cloud.set_fault(CloudFault::Silent);
    let facts = json!({"budget": "60s"});
    machine.configure(json!({"name": "vm1", "locality": "eu/a"}), facts);
    machine.bed.start();
    let status = machine.bed.until("registered", registered).await;
    assert_eq!(status["facts"]["source"], "none", "the cloud has not said a word yet");
    machine.cloud.asked().wait_for(|asked| !asked.is_empty()).await.unwrap();
    machine.cloud.set_fault(CloudFault::None);
    machine.bed.until("told", |status| status["facts"]["source"] == "metadata").await;
    assert_eq!(machine.bed.mesh.entry("vms/vm1").unwrap()["spec"]["locality"], "eu/a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_speaks_too_late_is_used_by_the_next_start() {
    let mut machine = Machine::new().await;
    machine.cloud.set_fault(CloudFault::Silent);
    machine.configure(json!({"name": "vm1"}), json!({"budget": "100ms"}));
    machine.bed.start();
    let status = machine.bed.until("registered", registered).await;
    assert_eq!(status["workload"]["locality"], Value::Null);
    assert!(trouble(&status, "facts").contains("did not answer within"), "{status}");
    machine.cloud.set_fault(CloudFault::None);
    let words = "locality none is now eu-west-1/eu-west-1a";
    machine.bed.until("told", |status| trouble(status, "facts").contains(words)).await;
    assert_eq!(machine.bed.stop().await, 0);
    let kept = std::fs::metadata(machine.bed.path("var/lib/vm-agent/facts.json")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&kept.permissions()) & 0o777, 0o600);
    // Now a template cannot do without, and the cloud is silent again.
    machine.cloud.set_fault(CloudFault::Silent);
    machine.configure(json!({"name": "vm1", "labels": {"zone": "{{cloud.zone}}"}}), json!({}));
    machine.bed.start();
    let status = machine.bed.until("registered", registered).await;
    assert_eq!(status["facts"]["source"], "remembered");
    assert_eq!(status["workload"]["labels"]["zone"], "eu-west-1a");
    assert_eq!(status["workload"]["locality"], "eu-west-1/eu-west-1a");
    // Meanwhile the machine was moved.
    machine.cloud.set_instance(Instance { zone: "eu-west-1b".to_owned(), ..instance() });
    machine.cloud.set_fault(CloudFault::None);
    let words = "locality eu-west-1/eu-west-1a is now eu-west-1/eu-west-1b, label zone eu-west-1a is now eu-west-1b";
    machine.bed.until("moved", |status| trouble(status, "facts").contains(words)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_template_lacks_is_said_with_the_reason_and_what_helps() {
    let machine = Machine::new().await;
    machine.cloud.set_fault(CloudFault::Silent);
    let workload =
        json!({"name": "vm-{{cloud.instanceName}}", "labels": {"zone": "{{cloud.zone}}"}});
    machine.configure(workload.clone(), json!({"budget": "100ms"}));
    let output = machine.bed.command(&["run"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "it may pass by itself: {said}");
    for words in [
        "workload.name: \"vm-{{cloud.instanceName}}\" cannot be filled in: cloud.instanceName is not known",
        "workload.labels.zone: \"{{cloud.zone}}\" cannot be filled in: cloud.zone is not known",
        "did not answer within 100ms",
        "config.yaml:1",
        "vm-agent facts",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    machine.configure(workload.clone(), json!({"budget": "0s"}));
    let said = text(&machine.bed.command(&["run"]).stderr);
    assert!(said.contains("aws was not waited for"), "{said}");
    machine.configure(workload, json!({"source": "cloud-init"}));
    let said = text(&machine.bed.command(&["run"]).stderr);
    assert!(said.contains("is in no cloud that is known"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_template_becomes_follows_the_rules_of_what_is_typed() {
    let machine = Machine::new().await;
    let workload = json!({
        "name": "{{cloud.tag.env}}-", "address": "{{cloud.zone}}..example.com",
        "labels": {"long": format!("{{{{cloud.zone}}}}{}", "x".repeat(60))},
        "locality": "{{cloud.region}}//{{cloud.zone}}",
    });
    machine.configure(workload.clone(), json!({}));
    let output = machine.bed.command(&["run"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains(
            "workload.address: \"{{cloud.zone}}..example.com\" is now \"eu-west-1a..example.com\""
        ),
        "{said}"
    );
    let mut workload = workload;
    workload["address"] = json!("127.0.0.1");
    machine.configure(workload, json!({}));
    let said = text(&machine.bed.command(&["run"]).stderr);
    for words in [
        "workload.name: \"{{cloud.tag.env}}-\" is now \"prod-\": found \"prod-\", expected 1 to 253",
        "workload.labels.long: ",
        "is no label value",
        "is now \"eu-west-1//eu-west-1a\": ",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_checked_and_shown_without_asking_anybody() {
    let machine = Machine::new().await;
    machine.configure(
        json!({"name": "{{hostname}}", "labels": {"zone": "{{cloud.zone}}"}}),
        json!({}),
    );
    assert!(machine.bed.command(&["config", "check"]).status.success());
    let shown = text(&machine.bed.command(&["config", "show"]).stdout);
    assert!(shown.contains("workload.labels.zone = \"{{cloud.zone}}\""), "{shown}");
    machine.configure(
        json!({"name": "{{host}}", "network": "{{address}}", "labels": {"a": "{{cloud.zon}}", "b": "{{x"}}),
        json!({"source": "gce", "tags": ["&&"], "budget": "1h", "address": "metadata"}),
    );
    let output = machine.bed.command(&["config", "check"]);
    let said = text(&output.stderr);
    for words in [
        "workload.name: there is no fact \"host\"",
        "workload.network: the fact address can be in names and labels only",
        "workload.labels.a: there is no fact \"cloud.zon\": did you mean cloud.zone?",
        "workload.labels.b: \"{{x\" has a {{ or a }} without the other",
        "workload.facts.source: found \"gce\", expected auto",
        "workload.facts.tags: \"&&\" cannot be made the name of a label",
        "workload.facts.budget: it is too long",
        "workload.facts.address: found \"metadata\", expected IP:PORT",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(*machine.cloud.asked().borrow(), Vec::<String>::new());
}

#[tokio::test]
async fn facts_are_shown_by_their_names_in_templates_before_there_is_a_configuration() {
    let service = cloud().await;
    let root = tempfile::tempdir().unwrap();
    let facts = |args: &[&str]| {
        let address = format!("workload.facts.address={}", service.address());
        let mut command = Command::new(AGENT);
        command.arg("--root").arg(root.path()).arg("facts").args(args).args(["--set", &address]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let shown = text(&facts(&["--set", "workload.facts.source=azure"]).await.unwrap().stdout);
    for line in ["cloud.zone            eu-west-1a\n", "cloud.tag.cost:center 4 & 5\n"] {
        assert!(shown.contains(line), "{line:?} is not in {shown}");
    }
    let json = facts(&["--json", "--set", "workload.facts.source=aws"]).await.unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["schema"], &json["cloud"]["instance_id"]), (&json!(1), &json!("i-0abc")));
    service.set_fault(CloudFault::Refuse(403));
    let refused = facts(&["--set", "workload.facts.source=aws"]).await.unwrap();
    let said = text(&refused.stderr);
    assert!(refused.status.success() && said.contains("with HTTP 403"), "{said}");
    assert!(text(&refused.stdout).contains("cloud.zone            -\n"));
}
