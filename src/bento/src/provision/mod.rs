//! Provisioning: a machine that runs any Linux becomes a host of the fleet.
//!
//! nixos-anywhere installs; what is here comes before and after that, and between its phases: the machine is looked at, the disk that
//! will be erased is named, the host's key is made so that it is known before there is a host, every wait has an end, and what
//! is done is on record, so that a run that was interrupted is taken up where it was.

pub mod facts;
pub mod installer;
pub mod journal;
pub mod key;
pub mod outline;
pub mod pins;
pub mod template;
pub mod wipe;
