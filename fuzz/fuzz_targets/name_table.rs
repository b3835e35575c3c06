//! Any name table: every name of it that is a name can be asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use vm_agent::dns::Table;
use vm_agent::proto::nds::NameTable;

fuzz_target!(|bytes: &[u8]| {
    let Ok(table) = NameTable::decode(bytes) else { return };
    for domain in ["vms.svc.cluster.local", "", "."] {
        let made = Table::new(&table, domain);
        let names = table.table.keys().filter(|name| !name.trim_end_matches('.').is_empty());
        assert!(made.is_empty() == (made.len() == 0));
        assert!(names.count() > 0 || made.len() <= table.table.len() * 8);
    }
});
