//! Those who have connected and not logged in yet, by where they come from: none of them may hold the places of all others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is counted as one: an address of IPv4, or a network of IPv6 with a prefix of 64 bits, which is the least that one customer gets.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

/// What there is of one source.
#[derive(Debug, Default)]
struct Count {
    waiting: usize,
    /// How many were sent away since the first of those that wait has come.
    refused: usize,
}

/// How many have connected and not logged in yet, for each source that has any.
#[derive(Debug)]
pub(super) struct Crowd {
    limit: usize,
    counts: Mutex<HashMap<IpAddr, Count>>,
}

impl Crowd {
    /// At most `limit` of one source.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one more wait, where so many places are `free`, its own among them; `None` if there are too many from there already: as many
    /// as the limit says, or as there are free places, so that some are left whoever comes next.
    pub(super) fn join(self: &Arc<Self>, address: IpAddr, free: usize) -> Option<Waiting> {
        let source = source(address);
        let mut counts = self.counts();
        let count = counts.entry(source).or_default();
        if count.waiting >= self.limit.min(free) {
            if count.refused == 0 {
                eprintln!("{source}: {} connections have not logged in: no more of them for now", count.waiting);
            }
            count.refused += 1;
            return None;
        }
        count.waiting += 1;
        Some(Waiting { crowd: self.clone(), source })
    }
}

/// One that has not logged in; dropped when it has, or is gone.
#[derive(Debug)]
pub(super) struct Waiting {
    crowd: Arc<Crowd>,
    source: IpAddr,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        let Some(count) = counts.get_mut(&self.source) else { return };
        count.waiting -= 1;
        if count.waiting == 0 {
            if count.refused > 0 {
                eprintln!("{}: {} connections were refused", self.source, count.refused);
            }
            counts.remove(&self.source);
        }
    }
}
