//! Which machine an entry belongs to. Hosts may have one name; their machine ids differ.

use aws_lc_rs::hmac;

/// The annotation that tells to which machine an entry belongs.
pub const MACHINE: &str = "vm-agent.io/machine";

/// A machine as the registry knows it: a hash of its id, since an id such as `/etc/machine-id` is
/// not to be shown to others as it is (systemd `machine-id(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    hash: String,
}

impl Machine {
    /// The machine with this id: HMAC-SHA256 under the id of our own constant, of which the first
    /// 16 bytes are kept, as systemd's `sd_id128_get_machine_app_specific` does.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, id.as_bytes());
        let tag = hmac::sign(&key, APPLICATION);
        let hash = tag.as_ref().iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Self { hash }
    }

    /// What the annotation says.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Our name towards Kubernetes' field ownership.
    #[must_use]
    pub fn field_manager(&self) -> String {
        format!("{MANAGER}{}", self.hash.get(..MANAGER_DIGITS).unwrap_or(&self.hash))
    }
}

/// Whether a field manager is some machine's agent.
pub(super) fn is_agent(manager: &str) -> bool {
    manager.starts_with(MANAGER)
}

const MANAGER: &str = "vm-agent-";
/// Hashes of one machine id by different programs must not be the same.
const APPLICATION: &[u8] = b"vm-agent.io/machine 7c0b6f52-6d0e-4f6b-9a57-2f6d0f3a7c11";
const HASH_BYTES: usize = 16;
/// Enough to tell a namespace's machines apart, and short enough to read.
const MANAGER_DIGITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_one_hash_that_does_not_show_its_id() {
        let id = "3d1219c7c4c5404aaa1f6d2a48adfda4";
        let (one, same, other) = (Machine::of(id), Machine::of(id), Machine::of("other"));
        assert_eq!(one, same);
        assert_ne!(one, other);
        assert_eq!(one.hash().len(), 32);
        assert!(!one.hash().contains(&id[..8]));
        assert_eq!(one.field_manager(), format!("vm-agent-{}", &one.hash()[..12]));
        assert!(is_agent(&one.field_manager()) && !is_agent("vm-agent") && !is_agent("kubectl"));
    }
}
