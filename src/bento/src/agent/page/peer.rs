//! Who is on the other end of a connection, as the kernel says.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// The numbers of people, as systemd and NixOS give them; below are services, above are containers' users and nobody.
const PEOPLE: std::ops::Range<u32> = 1000..60000;

/// What somebody may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Nothing: a service, or nobody knows who.
    Stranger,
    /// How the machine stands.
    Person,
    /// The log too.
    Reader,
}

impl Peer {
    /// What the user of this number may see, if members of `groups` may see the log. The superuser may see everything, and so
    /// may who runs the page.
    pub(super) fn of(uid: Option<u32>, groups: &[String]) -> Self {
        let Some(uid) = uid else { return Self::Stranger };
        if uid == 0 || Uid::effective() == Uid::from_raw(uid) {
            return Self::Reader;
        }
        if !PEOPLE.contains(&uid) {
            return Self::Stranger;
        }
        if is_in(Uid::from_raw(uid), groups) { Self::Reader } else { Self::Person }
    }
}

/// Whether a user is a member of one of these groups.
fn is_in(uid: Uid, groups: &[String]) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    let Ok(member_of) = getgrouplist(&name, user.gid) else { return false };
    let wanted = |name: &String| Group::from_name(name).ok().flatten().map(|group| group.gid);
    let wanted: Vec<Gid> = groups.iter().filter_map(wanted).collect();
    wanted.iter().any(|gid| member_of.contains(gid))
}

/// Whose socket the other end of a TCP connection is: the one whose own end is at `from`, on this very machine.
pub(super) fn uid_of_connection(from: SocketAddr, here: SocketAddr) -> Option<u32> {
    // an IPv4 connection may be one of an IPv6 socket
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .find_map(|table| owner(&fs::read_to_string(table).ok()?, from, here))
}

/// The owner of the socket between `local` and `remote` in one of the kernel's tables (proc_net_tcp).
fn owner(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let found = address(fields.get(1)?)? == plain(local) && address(fields.get(2)?)? == plain(remote);
        if found { fields.get(7)?.parse().ok() } else { None }
    })
}

/// An address without the form that IPv4 has in IPv6.
fn plain(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// An address of the kernel's tables: words in the machine's own order, each as a number in base 16.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (words, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in words.as_bytes().chunks(8) {
        bytes.extend(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::from(bytes),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}
