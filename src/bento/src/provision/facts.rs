//! What a machine says of itself before it is installed: asked for as whoever logs in, and changing nothing.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::provision::outline::Firmware;
use crate::push::remote::Remote;

/// nixos-anywhere's own requirement, in MiB, less what a kernel keeps of a gibibyte for itself: the installer is all in memory.
/// (Its documentation, docs/requirements.md: "at least 1 GB RAM, excluding swap".)
const MEMORY: u64 = 900;
/// What nixos-anywhere needs on a machine that is not its installer yet (its src/nixos-anywhere.sh, `importFacts` and `main`).
const TOOLS: [&str; 3] = ["tar", "cpio", "setsid"];

/// Asks for everything, in lines of words between tabs. It needs nothing but a shell and what every Linux has.
const SCRIPT: &str = r#"
say() { printf '%s\t%s\n' "$1" "$2"; }
say host "$(uname -n)"
say kernel "$(uname -s) $(uname -r)"
say machine "$(uname -m)"
say user "$(id -un)"
say uid "$(id -u)"
say boot "$(cat /proc/sys/kernel/random/boot_id)"
say memory "$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)"
if [ -d /sys/firmware/efi ]; then say firmware efi; else say firmware bios; fi
say os "$(sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' /etc/os-release 2> /dev/null)"
! grep -q '^VARIANT_ID="\{0,1\}installer"\{0,1\}$' /etc/os-release 2> /dev/null || say installer 1
say container "$(systemd-detect-virt --container 2> /dev/null)"
if [ -e /sys/kernel/kexec_loaded ] && [ "$(cat /proc/sys/kernel/kexec_load_disabled 2> /dev/null)" != 1 ]; then say kexec 1; fi
! grep -q '\[\(integrity\|confidentiality\)\]' /sys/kernel/security/lockdown 2> /dev/null || say lockdown 1
! grep -q ' /mnt ' /proc/mounts || say mounted 1
for tool in tar cpio setsid sudo doas; do ! command -v "$tool" > /dev/null || say tool "$tool"; done
for block in /sys/block/*; do
  name=${block##*/}
  case $name in loop* | ram* | zram* | dm-* | md* | sr* | fd* | nbd*) continue ;; esac
  size=$(cat "$block/size" 2> /dev/null) && [ "$size" -gt 0 ] || continue
  device=/dev/$(echo "$name" | tr '!' /)
  udev=/run/udev/data/b$(cat "$block/dev")
  model=$(cat "$block/device/model" 2> /dev/null)
  [ -n "$model" ] || model=$(sed -n 's/^E:ID_MODEL=//p' "$udev" 2> /dev/null)
  serial=$(cat "$block/serial" "$block/device/serial" 2> /dev/null | head -n 1)
  [ -n "$serial" ] || serial=$(sed -n 's/^E:ID_SERIAL_SHORT=//p' "$udev" 2> /dev/null)
  [ -n "$serial" ] || serial=$(sed -n 's/^E:ID_SERIAL=//p' "$udev" 2> /dev/null)
  links=
  for link in /dev/disk/by-id/* /dev/disk/by-path/*; do
    [ "$(readlink -f "$link" 2> /dev/null)" != "$device" ] || links="$links $link"
  done
  mounts=$(sed -n "s|^$device[p0-9]* \([^ ]*\) .*|\1|p" /proc/mounts | sort -u | tr '\n' ' ')
  printf 'disk\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$device" "$size" "$(cat "$block/ro")" "$model" "$serial" "$links" "$mounts"
done
"#;

/// A machine, as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// What it calls itself.
    pub host: String,
    /// Its kernel.
    pub kernel: String,
    /// Its processor, as `uname -m` names it.
    pub machine: String,
    /// What runs on it, in its own words.
    pub os: String,
    /// Who logs in.
    pub user: String,
    /// Whether that is root.
    pub root: bool,
    /// The kernel's name for this boot.
    pub boot: String,
    /// How much memory it has, in MiB.
    pub memory: u64,
    /// How its firmware starts what it boots.
    pub firmware: Firmware,
    /// Whether NixOS's installer runs on it already.
    pub installer: bool,
    /// Whether its kernel can start another one.
    pub kexec: bool,
    /// The kind of container that it is, if it is one.
    pub container: Option<String>,
    /// Whether something is mounted at /mnt, as it is between formatting and installing.
    pub mounted: bool,
    /// What there is of the programs that installing needs.
    pub tools: Vec<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its device, which may be another one after the next boot.
    pub device: String,
    /// What its maker calls it.
    pub model: Option<String>,
    /// The number that its maker gave it.
    pub serial: Option<String>,
    /// In bytes.
    pub size: u64,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// Its other names, in `/dev/disk`.
    pub links: Vec<String>,
    /// Where parts of it are mounted.
    pub mounts: Vec<String>,
}

impl Disk {
    /// What somebody types who means this disk and no other: its serial, or else its device.
    pub fn word(&self) -> &str {
        self.serial.as_deref().unwrap_or(&self.device)
    }

    /// Whether it has this name.
    pub fn is_called(&self, device: &str) -> bool {
        self.device == device || self.links.iter().any(|link| link == device)
    }

    /// Whether both are the same disk, seen at different times: by the serial, or else by what else does not change.
    pub fn is_same(&self, other: &Self) -> bool {
        self.size == other.size
            && self.model == other.model
            && match (&self.serial, &other.serial) {
                (Some(one), Some(other)) => one == other,
                (None, None) => self.device == other.device || self.links.iter().any(|link| other.links.contains(link)),
                _ => false,
            }
    }

    /// For people: device, model, serial and size.
    pub fn text(&self) -> String {
        let model = self.model.as_deref().unwrap_or("of no known model");
        let serial = self.serial.as_ref().map_or_else(|| "no serial".to_owned(), |serial| format!("serial {serial}"));
        format!("{}: {model}, {serial}, {}", self.device, size_text(self.size))
    }
}

/// A size in bytes, as makers of disks count.
fn size_text(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1_000_000_000_000 { (1_000_000_000_000, "TB") } else { (1_000_000_000, "GB") };
    let tenths = bytes.saturating_mul(10) / unit;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

impl Facts {
    /// Asks a machine.
    pub fn ask(remote: &Remote, limit: Duration) -> Result<Self> {
        let text = remote.run(SCRIPT, limit).context("the machine can't be looked at")?;
        Self::parse(&text)
    }

    /// Reads what the machine said.
    pub fn parse(text: &str) -> Result<Self> {
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').map(str::trim).collect()).collect();
        let all =
            |name: &str| lines.iter().filter(move |line| line[0] == name).map(|line| &line[1..]).collect::<Vec<_>>();
        let first =
            |name: &str| all(name).first().and_then(|words| words.first()).copied().filter(|word| !word.is_empty());
        let needed = |name: &str| {
            first(name).map(str::to_owned).with_context(|| format!("the machine does not say what its {name} is"))
        };
        Ok(Self {
            host: needed("host")?,
            kernel: needed("kernel")?,
            machine: needed("machine")?,
            os: first("os").unwrap_or("an unknown system").to_owned(),
            user: needed("user")?,
            root: first("uid") == Some("0"),
            boot: needed("boot")?,
            memory: needed("memory")?.parse::<u64>().context("the machine's memory is no number")? / 1024,
            firmware: if first("firmware") == Some("efi") { Firmware::Efi } else { Firmware::Bios },
            installer: first("installer").is_some(),
            kexec: first("kexec").is_some() && first("lockdown").is_none(),
            container: first("container").filter(|kind| *kind != "none").map(str::to_owned),
            mounted: first("mounted").is_some(),
            tools: all("tool").iter().filter_map(|words| words.first()).map(|word| (*word).to_owned()).collect(),
            disks: all("disk").into_iter().map(disk).collect::<Result<_>>()?,
        })
    }

    /// Why the machine can't be installed; nothing if it can. `start` says whether its kernel has to start the installer.
    pub fn objections(&self, start: bool) -> Vec<String> {
        let mut objections = Vec::new();
        if !self.kernel.starts_with("Linux ") {
            objections.push(format!("it runs {}, and not Linux", self.kernel));
        }
        if self.memory < MEMORY {
            objections.push(format!("it has {} MiB of memory: the installer needs 1 GiB", self.memory));
        }
        if self.disks.is_empty() {
            objections.push("it has no disk".to_owned());
        }
        if !start || self.installer {
            return objections;
        }
        if !self.root && !self.tools.iter().any(|tool| tool == "sudo" || tool == "doas") {
            objections.push(format!("{} is not root, and there is neither sudo nor doas: log in as root", self.user));
        }
        let missing: Vec<&str> =
            TOOLS.into_iter().filter(|tool| !self.tools.iter().any(|there| there == tool)).collect();
        if !missing.is_empty() {
            objections.push(format!("it lacks {}: install that first", missing.join(", ")));
        }
        if let Some(kind) = &self.container {
            objections.push(format!(
                "it is a container ({kind}), whose kernel is its machine's: NixOS can only be installed on that machine"
            ));
        } else if !self.kexec {
            objections.push(
                "its kernel can't start another one (kexec is missing, switched off, or locked down): boot NixOS's installer there by other \
                 means, and provision that"
                    .to_owned(),
            );
        }
        objections
    }
}

/// A disk's line.
fn disk(words: &[&str]) -> Result<Disk> {
    let [device, sectors, read_only, model, serial, links, mounts] = words else {
        bail!("the machine describes a disk in an unknown way: {words:?}");
    };
    let text = |word: &str| Some(word.to_owned()).filter(|word| !word.is_empty());
    let list = |words: &str| words.split_whitespace().map(str::to_owned).collect();
    // the kernel counts in sectors of 512 bytes, whatever the disk's own have
    let sectors: u64 = sectors.parse().with_context(|| format!("the size of {device} is no number"))?;
    Ok(Disk {
        device: (*device).to_owned(),
        model: text(model),
        serial: text(serial),
        size: sectors.saturating_mul(512),
        read_only: *read_only == "1",
        links: list(links),
        mounts: list(mounts),
    })
}
