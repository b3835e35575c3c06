//! Any files as the directory that istioctl writes for a machine.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_agent::base::printable::is_printable;
use vm_agent::config::parse_yaml_with_lines;
use vm_agent::join::read_directory;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    cluster_env: &'a str,
    mesh_yaml: &'a str,
    hosts: Option<&'a str>,
    token: Option<&'a str>,
    root: Option<&'a [u8]>,
}

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|input: Input<'_>| {
    let put = |name: &str, content: Option<&[u8]>| {
        let path = DIRECTORY.path().join(name);
        match content {
            Some(content) => std::fs::write(path, content).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
    };
    put("cluster.env", Some(input.cluster_env.as_bytes()));
    put("mesh.yaml", Some(input.mesh_yaml.as_bytes()));
    put("hosts", input.hosts.map(str::as_bytes));
    put("istio-token", input.token.map(str::as_bytes));
    put("root-cert.pem", input.root);
    if let Err(problems) = read_directory(DIRECTORY.path(), parse_yaml_with_lines) {
        assert!(!problems.0.is_empty());
        for problem in &problems.0 {
            assert!(problem.to_string().chars().all(is_printable), "{problem:?}");
        }
    }
});
