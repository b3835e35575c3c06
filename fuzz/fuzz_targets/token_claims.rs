//! Any text as a token: its claims are read or refused, and what it says of its life adds up.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_agent::identity::Claims;

fuzz_target!(|text: &str| {
    let Ok(claims) = Claims::read(text) else { return };
    if let Some(life) = claims.life() {
        assert_eq!(claims.issued_at.and_then(|at| at.checked_add(life)), claims.expires_at);
    }
});
