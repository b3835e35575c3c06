//! Any answer of a SPIFFE Workload API: our certificate is in it, or it is said why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use vm_agent::identity::{IssuedIdentity, Roots, SpiffeId};
use vm_agent::spiffe::{Answer, choose};

fuzz_target!(|bytes: &[u8]| {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
    drop(Roots::from_der(bytes));
    let Ok(mut answer) = Answer::decode(bytes) else { return };
    if let Some(first) = answer.svids.first_mut() {
        first.spiffe_id = id.to_string();
    }
    let Ok(candidate) = choose(answer, &id) else { return };
    let Ok(known) = Roots::from_pem(candidate.chain_pem.as_bytes()) else { return };
    drop(IssuedIdentity::verify(candidate, &id, &known, std::time::SystemTime::now()));
});
