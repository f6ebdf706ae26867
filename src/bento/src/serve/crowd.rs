//! Connections, counted by whose they are: those that have not logged in yet by where they come from, and those that have by the host.
//! Nobody may hold the places of all others.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is counted as one: an address of IPv4, or a network of IPv6 with a prefix of 64 bits, which is the least that one customer gets.
pub(super) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

/// What there is of one owner.
#[derive(Debug, Default)]
struct Count {
    members: usize,
    /// How many were sent away since the first of those that are there has come.
    refused: usize,
}

/// How many connections there are of each owner that has any.
#[derive(Debug)]
pub(super) struct Crowd<O: Display + Eq + Hash> {
    /// What they have in common, in words.
    common: &'static str,
    counts: Mutex<HashMap<O, Count>>,
}

impl<O: Display + Eq + Hash> Crowd<O> {
    fn counts(&self) -> MutexGuard<'_, HashMap<O, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: Clone + Display + Eq + Hash> Crowd<O> {
    /// Of connections of which `common` can be said: `have not logged in`.
    pub(super) fn new(common: &'static str) -> Self {
        Self { common, counts: Mutex::default() }
    }

    /// Counts one more; `None` if there are `limit` of this owner already.
    pub(super) fn join(self: &Arc<Self>, owner: O, limit: usize) -> Option<Member<O>> {
        let mut counts = self.counts();
        let count = counts.entry(owner.clone()).or_default();
        if count.members >= limit {
            if count.refused == 0 {
                eprintln!("{owner}: {} connections {}: no more of them for now", count.members, self.common);
            }
            count.refused += 1;
            return None;
        }
        count.members += 1;
        Some(Member { crowd: self.clone(), owner })
    }
}

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub(super) struct Member<O: Display + Eq + Hash> {
    crowd: Arc<Crowd<O>>,
    owner: O,
}

impl<O: Display + Eq + Hash> Drop for Member<O> {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        let Some(count) = counts.get_mut(&self.owner) else { return };
        count.members -= 1;
        if count.members == 0 {
            if count.refused > 0 {
                eprintln!("{}: {} connections were refused", self.owner, count.refused);
            }
            counts.remove(&self.owner);
        }
    }
}
