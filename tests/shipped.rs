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

/// A file as text, whatever is in it: texts are found in it as they are.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

/// A build with the feature has all of it: there is nothing to look for then.
#[cfg(not(feature = "devmesh"))]
#[test]
fn nothing_of_the_development_mesh_is_in_the_agent() {
    let agent = text(Path::new(env!("CARGO_BIN_EXE_vm-agent")));
    // Symbols of this build are not stripped: a room of the agent is found by its mangled name.
    assert!(agent.contains("8registry"), "this build has no symbols to look for");
    assert!(!agent.contains("7devmesh"));
    for mark in MARKS {
        assert!(!agent.contains(mark), "{mark} is in the agent");
    }
}

#[test]
fn the_marks_are_the_development_meshs() {
    for mark in MARKS {
        let files: Vec<PathBuf> = sources(Path::new("src"))
            .into_iter()
            .filter(|path| text(path).contains(mark))
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
