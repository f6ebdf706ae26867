//! The Nix store as data: hashes, store paths, NAR archives and derivations.
//!
//! Knows nothing of the Nix language and touches no store directory by itself. All of it is a function of its arguments,
//! and gives to the byte what C++ Nix 2.34 gives; only [`worker`] does something: it asks a daemon.
//!
//! ```
//! use bento_store::{
//!     derivation::{Derivation, DerivationError, DerivationOutput},
//!     store_path::StoreDir,
//! };
//!
//! let store = StoreDir::default();
//! let mut drv = Derivation {
//!     name: "greeting".into(),
//!     outputs: [("out".into(), DerivationOutput::Deferred)].into(),
//!     platform: b"x86_64-linux".into(),
//!     builder: b"/bin/sh".into(),
//!     args: vec![b"-c".into(), b"echo hello > $out".into()],
//!     env: [
//!         (b"builder".into(), b"/bin/sh".into()),
//!         (b"name".into(), b"greeting".into()),
//!         (b"out".into(), b"".into()),
//!         (b"system".into(), b"x86_64-linux".into()),
//!     ]
//!     .into(),
//!     ..Derivation::default()
//! };
//!
//! // It has no inputs, so nobody will be asked for an input's hash.
//! drv.fill_in_output_paths(&store, |_| Err(DerivationError::NoOutputs))?;
//! assert_eq!(drv.env[b"out".as_slice()], b"/nix/store/pshfvbawf6shjkymaxdibp2s53jjn9c0-greeting");
//! assert_eq!(store.print(&drv.drv_path(&store)?), "/nix/store/li9x1wv4rxj0bshjvlskhn3zlwfjw269-greeting.drv");
//! # Ok::<(), DerivationError>(())
//! ```

pub mod aterm;
pub mod base32;
pub mod content_address;
pub mod derivation;
pub mod derived_path;
pub mod hash;
pub mod nar;
pub mod placeholder;
pub mod store_path;
pub mod worker;
