//! Whether a configuration would lock out who deploys it: read from the evaluated configuration, before anything is activated.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use ssh_key::{HashAlg, PublicKey};

use crate::push::facts::Facts;

/// The function of a host's `config` that gives an [`Access`].
pub const FUNCTION: &str = include_str!("lockout.nix");

/// What decides whether somebody can still log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Access {
    /// Whether sshd runs; unknown if the configuration does not have the option.
    sshd: Option<bool>,
    ports: Vec<u16>,
    keys_files: Vec<String>,
    keys_command: bool,
    root: String,
    allow_users: Option<Vec<String>>,
    users: BTreeMap<String, Vec<String>>,
    mutable_users: bool,
    firewall: Firewall,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Firewall {
    enable: bool,
    all: Open,
    trusted: Vec<String>,
    interfaces: BTreeMap<String, Open>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    ports: Vec<u16>,
    ranges: Vec<(u16, u16)>,
}

impl Open {
    fn lets_in(&self, port: u16) -> bool {
        self.ports.contains(&port) || self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&port))
    }
}

impl Access {
    /// Reads what the function gave.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .context("the configuration's options of sshd, firewall and users are of unknown kinds")
    }

    /// Why whoever came in as `facts` tell would not come in any more, with the key of this fingerprint (if a key it was); nothing if
    /// they would.
    pub fn objections(&self, facts: &Facts, key: Option<&str>) -> Vec<String> {
        let Some(sshd) = self.sshd else { return Vec::new() };
        if !sshd {
            return vec!["services.openssh.enable is false: nobody could log in any more".to_owned()];
        }
        let mut objections = Vec::new();
        let user = &facts.user;
        if let Some(port) = facts.port {
            if !self.ports.contains(&port) {
                let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
                objections.push(format!(
                    "sshd would listen on {}, not on {port} any more (services.openssh.ports)",
                    ports.join(", ")
                ));
            } else if !self.lets_in(port, facts.interface.as_deref()) {
                objections.push(format!(
                    "the firewall would be closed for port {port} (networking.firewall.allowedTCPPorts)"
                ));
            }
        }
        if user == "root" && self.root == "no" {
            objections.push("root could not log in any more (services.openssh.settings.PermitRootLogin)".to_owned());
        }
        if user != "root" && !self.mutable_users && !self.users.contains_key(user) {
            objections.push(format!("there would be no user {user} any more (users.users)"));
        }
        if let Some(users) = &self.allow_users
            && !users.iter().any(|allowed| allowed.split('@').next() == Some(user.as_str()))
        {
            objections.push(format!("{user} could not log in any more (services.openssh.settings.AllowUsers)"));
        }
        if let Some(key) = key
            && !self.keys_command
            && !self.authorises(user, key, &facts.own_keys)
        {
            objections.push(format!(
                "the key that you came with ({key}) would not be let in any more (users.users.{user}.openssh.authorizedKeys.keys)"
            ));
        }
        objections
    }

    fn lets_in(&self, port: u16, interface: Option<&str>) -> bool {
        let Firewall { enable, all, trusted, interfaces } = &self.firewall;
        !enable
            || all.lets_in(port)
            || interface.is_some_and(|name| {
                trusted.iter().any(|trusted| trusted == name)
                    || interfaces.get(name).is_some_and(|open| open.lets_in(port))
            })
    }

    /// Whether the configuration lets a key in, or a file of the user's own does that it leaves in force.
    fn authorises(&self, user: &str, key: &str, own: &[String]) -> bool {
        let has = |lines: &[String]| {
            lines.iter().flat_map(|text| text.lines()).any(|line| fingerprint(line).as_deref() == Some(key))
        };
        let home = self.keys_files.iter().any(|file| file.ends_with(".ssh/authorized_keys"));
        self.users.get(user).is_some_and(|keys| has(keys)) || (home && has(own))
    }
}

/// The fingerprint of a line of `authorized_keys`, which may begin with options.
fn fingerprint(line: &str) -> Option<String> {
    let kinds = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    let start = kinds.iter().filter_map(|kind| {
        let mut at = line.match_indices(kind).map(|(at, _)| at);
        at.find(|at| *at == 0 || line[..*at].ends_with([' ', '\t']))
    });
    let key = PublicKey::from_openssh(line[start.min()?..].trim()).ok()?;
    Some(key.fingerprint(HashAlg::Sha256).to_string())
}
