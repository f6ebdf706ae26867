//! What a machine says of itself before it is pushed to: asked for as whoever logs in, and changing nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host::HostName;
use crate::push::remote::Remote;
use crate::store_path::StorePath;

/// Asks for everything, as lines `NAME=VALUE`.
const SCRIPT: &str = r#"
[ -e /etc/NIXOS ] && echo nixos=1
echo "host=$(uname -n)"
echo "machine=$(uname -m)"
echo "user=$(id -un)"
echo "uid=$(id -u)"
echo "boot=$(cat /proc/sys/kernel/random/boot_id)"
echo "running=$(readlink -f /run/current-system)"
echo "booted=$(readlink -f /run/booted-system)"
echo "profile=$(readlink -f /nix/var/nix/profiles/system)"
# what a new one of takes effect only with a boot
for part in kernel kernel-modules initrd systemd; do
  [ "$(readlink -f "/run/booted-system/$part")" = "$(readlink -f "/run/current-system/$part")" ] || { echo reboot=1; break; }
done
[ ! -e /run/current-system/etc/systemd/system/bento-upgrade.service ] || echo agent=1
echo "state=$(timeout "$PATIENCE" systemctl is-system-running --wait 2> /dev/null)"
systemctl list-units --all --state=failed,auto-restart --plain --no-legend --no-pager 2> /dev/null |
  sed 's/^[^a-zA-Z0-9]*//; s/ .*//; s/^/failed=/' | grep -v '^failed=bento-\(activation\|push-\)'
set -- ${SSH_CONNECTION:-}
[ $# -lt 4 ] || { echo "port=$4"; ip -o address 2> /dev/null | sed -n "s|^[0-9]*: *\([^ ]*\) .*inet6* $3/.*|interface=\1|p"; }
sed 's/^/key=/' ~/.ssh/authorized_keys 2> /dev/null
# its last line may have no end
echo
for tool in sudo doas run0; do ! command -v "$tool" > /dev/null || echo "tool=$tool"; done
echo "free=$(df -Pm /nix/store | awk 'END { print $4 }')"
"#;
/// A machine, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it calls itself.
    pub host: String,
    /// Its processor, as `uname -m` names it.
    pub machine: String,
    /// Who logs in.
    pub user: String,
    /// Whether that is root.
    pub root: bool,
    /// The kernel's name for this boot.
    pub boot: String,
    /// The system that runs.
    pub running: Option<StorePath>,
    /// The system that was booted.
    pub booted: Option<StorePath>,
    /// The system that the profile names.
    pub profile: Option<StorePath>,
    /// Whether a boot is needed for all of what runs to take effect.
    pub reboot_needed: bool,
    /// Whether bento's agent is part of the system that runs.
    pub agent: bool,
    /// How it is as a whole, in systemd's word.
    pub state: String,
    /// The units that have failed, sorted.
    pub failed_units: Vec<String>,
    /// The port of sshd that the connection came in by.
    pub port: Option<u16>,
    /// The interface that it came in by.
    pub interface: Option<String>,
    /// The lines of the user's own `authorized_keys`.
    pub own_keys: Vec<String>,
    /// What there is of sudo, doas and run0.
    pub tools: Vec<String>,
    /// How many MiB are free in the store.
    pub free: Option<u64>,
}

impl Facts {
    /// Asks a machine; waits for the end of its start, if it is still starting.
    pub fn ask(remote: &Remote, limit: Duration) -> Result<Self> {
        let patience = limit.as_secs().saturating_sub(5).max(1);
        let text = remote
            .run(&format!("PATIENCE={patience}\n{SCRIPT}\ntrue"), limit)
            .context("the machine can't be looked at")?;
        let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            found.entry(name).or_default().push(value);
        }
        let all =
            |name: &str| found.get(name).into_iter().flatten().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        let first = |name: &str| found.get(name).and_then(|values| values.first()).copied();
        let path = |name: &str| first(name).and_then(|path| StorePath::new(path).ok());
        if first("nixos").is_none() {
            bail!("this is no machine with NixOS: it has no /etc/NIXOS");
        }
        let mut failed_units = all("failed");
        failed_units.sort();
        failed_units.dedup();
        Ok(Self {
            host: first("host").unwrap_or_default().split('.').next().unwrap_or_default().to_owned(),
            machine: first("machine").unwrap_or_default().to_owned(),
            user: first("user").context("the machine does not say who logs in")?.to_owned(),
            root: first("uid") == Some("0"),
            boot: first("boot").unwrap_or_default().to_owned(),
            running: path("running"),
            booted: path("booted"),
            profile: path("profile"),
            reboot_needed: first("reboot").is_some(),
            agent: first("agent").is_some(),
            state: first("state").unwrap_or("unknown").to_owned(),
            failed_units,
            port: first("port").and_then(|port| port.parse().ok()),
            interface: first("interface").map(|name| name.split('@').next().unwrap_or(name).to_owned()),
            own_keys: all("key"),
            tools: all("tool"),
            free: first("free").and_then(|free| free.parse().ok()),
        })
    }

    /// Whether the machine is fit to be pushed to; else why not.
    pub fn check_health(&self) -> Result<()> {
        if self.state == "running" {
            return Ok(());
        }
        if self.failed_units.is_empty() {
            bail!("the system is not healthy: systemd says that it is {:?}", self.state);
        }
        bail!(
            "the system is not healthy: units have failed: {} (look at them with `systemctl status UNIT`; `systemctl reset-failed` \
             forgets them; --preflight-check=skip goes on all the same)",
            self.failed_units.join(", ")
        )
    }

    /// The configuration that the machine shall run if nobody says which.
    pub fn config(&self) -> Result<HostName> {
        HostName::new(self.host.as_str())
            .context("the machine's own name names no configuration: add /CONFIGURATION to the target")
    }
}
