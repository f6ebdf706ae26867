# The way in without Nix.

.PHONY: build demo

# the program, in target/release/bento
build:
	cargo build --release --locked -p bento

# the whole path on this machine: see the script's head
demo:
	checks/demo
