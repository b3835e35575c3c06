//! Anything that a cloud's metadata service, cloud-init or an operator's template may say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::platform::{
    Cloud, Syntax, Template, aws_document, azure_compute, cloud_init, gcp_name,
};
use vm_agent::workload::{is_subdomain, label_problem};

fn check(cloud: &Cloud) {
    let texts = [&cloud.name, &cloud.region, &cloud.zone, &cloud.instance_id, &cloud.instance_name];
    let tags = cloud.tags.iter().flat_map(|(key, value)| [key, value]);
    for text in texts.into_iter().flatten().chain(tags) {
        assert!(!text.is_empty() && text.chars().count() <= 256, "it is short");
        assert!(!text.chars().any(char::is_control), "it is one line");
        if let Some(name) = Syntax::Name.fit(text).filter(|name| name.len() <= 253) {
            assert!(is_subdomain(&name), "{name:?}");
        }
        if let Some(label) = Syntax::Label.fit(text) {
            assert_eq!(label_problem("x", &label), None);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let told = [aws_document(bytes), azure_compute(bytes), Some(cloud_init(bytes))];
    told.iter().flatten().for_each(check);
    let text = String::from_utf8_lossy(bytes);
    let zone = gcp_name(&text);
    check(&Cloud { zone, ..Cloud::default() });
    if let Ok(template) = text.parse::<Template>() {
        assert_eq!(template.to_string(), text);
        let filled = template.fill(Syntax::Label, |_| Some("x".to_owned()));
        assert!(filled.is_ok(), "all facts are known");
        let needed = template.needs().count();
        let lacking = template.fill(Syntax::Label, |_| None);
        assert_eq!(lacking.is_err(), needed > 0, "a default fills what is not known");
    }
});
