//! Which machine an entry belongs to. Hosts may have one name; their machine ids differ.

/// The annotation that tells to which machine an entry belongs.
pub const MACHINE: &str = "vm-agent.io/machine";

/// A machine as the registry knows it: by a hash of its id, which is not to be shown to others as it
/// is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    hash: String,
    instance: Option<String>,
}

impl Machine {
    /// The machine with this hash.
    #[must_use]
    pub fn of(hash: &str) -> Self {
        Self { hash: hash.to_owned(), instance: None }
    }

    /// The same machine, known to be this one of those with its ID.
    #[must_use]
    pub fn with_instance(self, instance: Option<String>) -> Self {
        Self { instance, ..self }
    }

    /// Which of the machines with this ID it is, where that is known.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
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
/// Enough to tell a namespace's machines apart, and short enough to read.
const MANAGER_DIGITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_name_towards_kubernetes_is_short_and_an_agents() {
        let manager = Machine::of("3d1219c7c4c5404aaa1f6d2a48adfda4").field_manager();
        assert_eq!(manager, "vm-agent-3d1219c7c4c5");
        assert!(is_agent(&manager) && !is_agent("vm-agent") && !is_agent("kubectl"));
    }
}
