//! The generated protocol code is what `src/proto/idl` says. `make gen` rewrites it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test")]

use std::path::Path;

#[test]
fn generated_code_is_fresh() {
    let idl = Path::new("src/proto/idl");
    let checked_in = Path::new("src/proto/gen");
    let made = tempfile::tempdir().unwrap();
    let files =
        ["discovery", "sds", "tls", "istio_ca", "nds", "envoy"].map(|name| format!("{name}.proto"));
    let descriptors = protox::compile(&files, [idl]).unwrap();
    tonic_prost_build::configure()
        .out_dir(made.path())
        .bytes(".")
        .btree_map(".")
        .codec_path("crate::proto::codec::UnsharedCodec")
        .extern_path(".envoy.service.discovery.v3", "crate::proto::discovery")
        .compile_fds(descriptors.clone())
        .unwrap();
    // The discovery package cannot be external to itself: it is generated apart.
    let only_discovery = protox::compile(["discovery.proto"], [idl]).unwrap();
    tonic_prost_build::configure()
        .out_dir(made.path())
        .bytes(".")
        .btree_map(".")
        .compile_fds(only_discovery)
        .unwrap();
    // Its messages hold keys, which are wiped after use: shared buffers cannot be.
    let workload = protox::compile(["workload.proto"], [idl]).unwrap();
    tonic_prost_build::configure().out_dir(made.path()).compile_fds(workload).unwrap();
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(made.path()).unwrap() {
        let path = entry.unwrap().path();
        let fresh = std::fs::read_to_string(&path).unwrap();
        let target = checked_in.join(path.file_name().unwrap());
        if std::fs::read_to_string(&target).ok().as_deref() != Some(&fresh) {
            stale.push(target.display().to_string());
            if std::env::var("PROTO_WRITE").is_ok() {
                std::fs::write(&target, fresh).unwrap();
            }
        }
    }
    assert!(
        stale.is_empty() || std::env::var("PROTO_WRITE").is_ok(),
        "{stale:?} differ from src/proto/idl: run `make gen`"
    );
}
