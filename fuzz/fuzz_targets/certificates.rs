//! Any bytes as roots and as a certificate chain with its key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::base::printable::is_printable;
use vm_agent::base::trouble::chain;
use vm_agent::identity::{Anchors, Candidate, IssuedIdentity, Roots, SpiffeId};

fuzz_target!(|bytes: &[u8]| {
    for roots in [Roots::from_pem(bytes), Roots::from_der(bytes)] {
        match roots {
            Ok(roots) => {
                assert!(roots.is_within(&roots.union(&roots)));
                assert_eq!(roots.shown().len(), roots.subjects().len());
                let again = Roots::from_pem(roots.pem().as_bytes()).expect("our own PEM");
                assert_eq!(again.certificates(), roots.certificates());
                let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
                let Ok(svid) = Candidate::from_der(bytes, b"", Anchors::Trusted) else { return };
                if let Err(refusal) =
                    IssuedIdentity::verify(svid, &id, &roots, std::time::SystemTime::now())
                {
                    assert!(chain(&refusal).chars().all(is_printable));
                }
            }
            Err(error) => assert!(chain(&error).chars().all(is_printable)),
        }
    }
});
