//! What one stream knows of one type of resources: what the proxy named, and what it has. It sends
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::Any;

/// How a request changes the names of a subscription.
#[derive(PartialEq, Eq)]
pub(super) enum Names {
    /// State of the world: these and no others.
    All(BTreeSet<String>),
    /// Delta: these too, and those no more.
    Change { more: BTreeSet<String>, fewer: Vec<String> },
}

/// What is known of one type on one stream.
#[derive(Default)]
pub(super) struct Subscription {
    pub(super) names: BTreeSet<String>,
    pub(super) nonce: String,
    pub(super) version: String,
    /// What the proxy has by name; `None` for what it has from another stream.
    pub(super) held: BTreeMap<String, Option<Vec<u8>>>,
}

/// Why something is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why<'a> {
    /// The proxy asked for it, or for these names of it.
    Asked(&'a Names),
    /// Something may have changed.
    Changed,
    /// Everything is to be sent again.
    Pushed,
}

impl Subscription {
    /// What is to be sent so that the proxy has these, and the names of those that are no more. In
    /// the state of the world's flavour, all of them as soon as one differs.
    pub(super) fn turn(
        &mut self,
        wanted: Vec<(String, Any)>,
        why: Why<'_>,
        delta: bool,
    ) -> (Vec<(String, Any)>, Vec<String>) {
        let now: BTreeMap<_, _> =
            wanted.iter().map(|(name, any)| (name.clone(), Some(any.value.clone()))).collect();
        let before = std::mem::replace(&mut self.held, now.clone());
        let asked = |name: &String| match why {
            Why::Pushed | Why::Asked(Names::All(_)) => true,
            // No name at all means every one.
            Why::Asked(Names::Change { more, .. }) => more.is_empty() || more.contains(name),
            Why::Changed => false,
        };
        if !delta {
            let news = now != before || why != Why::Changed;
            return (if news { wanted } else { Vec::new() }, Vec::new());
        }
        let gone = |name: &&String| !now.contains_key(*name);
        let mut removed: Vec<String> = before.keys().filter(gone).cloned().collect();
        if let Why::Asked(Names::Change { more, .. }) = why {
            // What does not exist is said to be gone, so that nobody waits for it.
            let never = more.iter().filter(gone).filter(|name| *name != "*");
            removed.extend(never.filter(|name| !before.contains_key(*name)).cloned());
        }
        let differs = |(name, _): &(String, Any)| asked(name) || now.get(name) != before.get(name);
        (wanted.into_iter().filter(differs).collect(), removed)
    }

    /// True when names came in that were not subscribed before.
    pub(super) fn change(&mut self, names: &Names) -> bool {
        match names {
            Names::All(all) => {
                let news = *all != self.names;
                self.names.clone_from(all);
                news
            }
            Names::Change { more, fewer } => {
                self.names.retain(|name| !fewer.contains(name));
                self.names.extend(more.iter().cloned());
                !more.is_empty()
            }
        }
    }
}
