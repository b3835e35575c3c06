//! Any text as a configuration file, and as the ProxyConfig of a mesh.yaml: it is read, or every problem is
//! one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::base::printable::is_printable;
use vm_agent::base::problem::Problems;
use vm_agent::config::{
    Document, Paths, duration, load, load_facts, parse_yaml_with_lines, write_yaml,
};
use vm_agent::join::translate;

fn check(problems: &Problems) {
    assert!(!problems.0.is_empty());
    for problem in &problems.0 {
        assert!(problem.to_string().chars().all(is_printable), "{problem:?}");
    }
}

fuzz_target!(|text: &str| {
    drop(duration(text));
    let Ok((tree, _)) = parse_yaml_with_lines(text, "file") else { return };
    let written = write_yaml(&tree).expect("YAML");
    assert_eq!(parse_yaml_with_lines(&written, "file").expect("our own YAML").0, tree);
    let Some(map) = tree.as_object() else { return };
    if let Err(problems) = translate(map.clone(), "mesh.yaml") {
        check(&problems);
    }
    let mut document = Document::new();
    document.add(&tree, &|_| "file".to_owned());
    if let Err(problems) = load(&document, &Paths::new(std::path::Path::new("/nonexistent"))) {
        check(&problems);
    }
    if let Err(problems) = load_facts(&document) {
        check(&problems);
    }
});
