//! A limited number of places that clients share: when all are taken, the client that has most of
//! them gives one back. So nobody can take the places of others by taking many.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::clients::Client;

/// Places for all clients together.
#[derive(Debug)]
pub(super) struct Shares {
    limit: usize,
    /// What one client may have at most.
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// By the order in which they were taken or used last.
    places: BTreeMap<u64, Holder>,
    counts: HashMap<Client, usize>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    client: Client,
    is_busy: bool,
    evicted: CancellationToken,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    shares: Arc<Shares>,
    number: u64,
    evicted: CancellationToken,
}

impl Shares {
    pub(super) fn new(limit: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { limit, each, taken: Mutex::default() })
    }

    /// A place for a client. Where there is none, the client that holds most loses one: the one that
    /// was not used for the longest time, of those that are not busy where there is one.
    pub(super) fn take(self: &Arc<Self>, client: Client) -> Place {
        let evicted = CancellationToken::new();
        let mut taken = self.taken();
        let own = taken.counts.get(&client).copied().unwrap_or_default();
        if own >= self.each {
            taken.evict(client);
        } else if taken.places.len() >= self.limit {
            // Of several with as many, the one that asks now.
            let most = taken.counts.iter().max_by_key(|(_, count)| **count);
            let heaviest = most.filter(|(_, count)| **count > own).map(|(client, _)| *client);
            taken.evict(heaviest.unwrap_or(client));
        }
        let holder = Holder { client, is_busy: false, evicted: evicted.clone() };
        let number = taken.insert(holder);
        let count = taken.counts.entry(client).or_default();
        *count = count.saturating_add(1);
        drop(taken);
        Place { shares: Arc::clone(self), number, evicted }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn insert(&mut self, holder: Holder) -> u64 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.places.insert(number, holder);
        number
    }

    fn evict(&mut self, client: Client) {
        let of_client = || self.places.iter().filter(|(_, holder)| holder.client == client);
        let idle = of_client().find(|(_, holder)| !holder.is_busy);
        let oldest = idle.or_else(|| of_client().next()).map(|(number, _)| *number);
        if let Some(holder) = oldest.and_then(|number| self.remove(number)) {
            holder.evicted.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Holder> {
        let holder = self.places.remove(&number)?;
        if let Some(count) = self.counts.get_mut(&holder.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&holder.client);
            }
        }
        Some(holder)
    }
}

impl Place {
    /// Resolves when somebody else has got the place.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Notes that the place is used now, and whether it goes on being used.
    pub(super) fn used(&mut self, is_busy: bool) {
        let mut taken = self.shares.taken();
        if let Some(holder) = taken.places.remove(&self.number) {
            self.number = taken.insert(Holder { is_busy, ..holder });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shares.taken().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Client = Client::User(1);
    const OTHER: Client = Client::User(2);

    fn is_gone(place: &Place) -> bool {
        place.evicted.is_cancelled()
    }

    #[test]
    fn the_client_with_most_places_gives_its_oldest_to_another() {
        let shares = Shares::new(4, 4);
        let of_one: Vec<_> = (0..4).map(|_| shares.take(ONE)).collect();
        let of_other = [shares.take(OTHER), shares.take(OTHER)];
        assert_eq!(of_one.iter().map(is_gone).collect::<Vec<_>>(), [true, true, false, false]);
        // With equal shares, who asks for more gives of its own.
        let third = shares.take(OTHER);
        assert!(is_gone(&of_other[0]) && !is_gone(&of_other[1]) && !is_gone(&third));
        let third = shares.take(ONE);
        assert!(is_gone(&of_one[2]) && !is_gone(&of_one[3]) && !is_gone(&third));
    }

    #[test]
    fn one_client_has_a_limit_of_its_own() {
        let shares = Shares::new(4, 2);
        let places = [shares.take(ONE), shares.take(ONE), shares.take(ONE)];
        assert_eq!(places.each_ref().map(is_gone), [true, false, false]);
    }

    #[test]
    fn what_is_idle_goes_before_what_is_busy_and_what_was_used_goes_last() {
        let shares = Shares::new(3, 3);
        let mut places = [shares.take(ONE), shares.take(ONE), shares.take(ONE)];
        places[0].used(true);
        places[1].used(true);
        places[1].used(false);
        drop(shares.take(OTHER));
        assert_eq!(places.each_ref().map(is_gone), [false, false, true], "the oldest idle one");
        drop(places);
        assert!(shares.taken().places.is_empty() && shares.taken().counts.is_empty());
    }
}
