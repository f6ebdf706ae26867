//! bento keeps a fleet of NixOS machines up to date.
//!
//! Data flows forward through one type per noun: a [`source::SourceTree`] becomes a [`package::Package`] (files and
//! hashes), an [`evaluation::Evaluation`] (the system that a host should run), a release ([`manifest::Manifest`], put on
//! the hub by [`publish`]), an activation on the host ([`agent`]), a [`report::Report`], and at last a line of
//! [`status`]. The command line in [`cli`] only strings these together.

pub mod agent;
pub mod ansi;
pub mod build;
pub mod builtin;
pub mod cli;
pub mod diff;
pub mod evaluation;
pub mod files;
pub mod fleet;
pub mod host;
mod http;
pub mod hub;
pub mod manifest;
pub mod nix;
pub mod nix_conf;
pub mod package;
pub mod process;
pub mod provision;
pub mod publish;
pub mod push;
pub mod report;
pub mod rollout;
pub mod secrets;
pub mod serve;
pub mod sign;
pub mod source;
pub mod ssh;
pub mod status;
pub mod store;
pub mod store_path;
pub mod web;
