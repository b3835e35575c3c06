//! Any file as a join bundle: what is read can be written and is read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::config::{parse_yaml_with_lines, write_yaml};
use vm_agent::join::Bundle;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Bundle::parse(text, "bundle", parse_yaml_with_lines) {
        Ok(bundle) => {
            let again = write_yaml(&bundle.to_value()).expect("YAML");
            let again = Bundle::parse(&again, "bundle", parse_yaml_with_lines).expect("a bundle");
            assert_eq!((&again.metadata, &again.settings), (&bundle.metadata, &bundle.settings));
        }
        Err(problems) => assert!(!problems.0.is_empty()),
    }
});
