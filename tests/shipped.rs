//! What is in the agent that is shipped, which is built without features.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::path::{Path, PathBuf};

/// Names and texts that stand in the development mesh alone.
const MARKS: [&str; 4] =
    ["devmesh-configuration", "devmesh.redb", "virtualInbound-blackhole", "selfsubjectreviews"];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// A build with the feature has all of it: there is nothing to look for then.
#[cfg(not(feature = "devmesh"))]
#[test]
fn nothing_of_the_development_mesh_is_in_the_agent() {
    let agent = std::fs::read(env!("CARGO_BIN_EXE_vm-agent")).unwrap();
    // Symbols of this build are not stripped: a room of the agent is found by its mangled name.
    assert!(contains(&agent, "8registry"), "this build has no symbols to look for");
    assert!(!contains(&agent, "7devmesh"));
    for mark in MARKS {
        assert!(!contains(&agent, mark), "{mark} is in the agent");
    }
}

#[test]
fn the_marks_are_the_development_meshs() {
    for mark in MARKS {
        let files: Vec<PathBuf> = sources(Path::new("src"))
            .into_iter()
            .filter(|path| contains(&std::fs::read(path).unwrap(), mark))
            .collect();
        assert!(!files.is_empty(), "{mark} stands nowhere");
        for file in files {
            assert!(
                file.starts_with("src/devmesh") || file.ends_with("src/devmesh.rs"),
                "{mark} stands in {}",
                file.display()
            );
        }
    }
}
