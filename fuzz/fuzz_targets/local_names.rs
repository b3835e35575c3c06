//! Any name of a secret that Envoy asks for, and any `Host` field of a request at the status port.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::sds::SecretName;
use vm_agent::status::is_local_host;

fuzz_target!(|text: &str| {
    match SecretName::parse(text) {
        Some(name @ SecretName::FileCertificate { certificate, key }) => {
            assert!(name.is_file());
            assert_eq!(format!("file-cert:{}~{}", certificate.display(), key.display()), text);
        }
        Some(name @ SecretName::FileRoots(path)) => {
            assert!(name.is_file());
            assert_eq!(format!("file-root:{}", path.display()), text);
        }
        Some(_) => assert!(["default", "ROOTCA", "file-root:system"].contains(&text)),
        None => assert!(!text.starts_with("file-root:")),
    }
    if is_local_host(text) {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (text, ""),
        };
        assert!(port.chars().all(|digit| digit.is_ascii_digit()), "{text:?}");
        let address =
            host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_address = address.parse::<std::net::IpAddr>().is_ok();
        assert!(is_address || host.eq_ignore_ascii_case("localhost"), "{text:?}");
    }
});
