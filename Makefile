# The way in without Nix. Each target is a script that says at its head what it does and needs.

.PHONY: build demo test scenarios corpora bench lint

# the program, in target/release/bento
build:
	cargo build --release --locked -p bento

# the whole path on this machine, in a minute or two: checks/demo
demo:
	@checks/demo

# every test that can run here: checks/test
test:
	@checks/test

# everything that can happen to a host, on machines with a real systemd, and the table of it in docs: checks/machines/run
scenarios:
	cargo build --locked -p bento
	@checks/machines/run --book
	@checks/machines/run --push
	@checks/machines/quota

# there is something to evaluate, and no other program was named
evaluated := $(if $(BENTO_CORPORA),$(if $(BENTO),,build))

# real NixOS hosts, compared with what C++ Nix computes (BENTO_CORPORA names the trees): checks/corpora
corpora: $(evaluated)
	@checks/corpora

# what evaluating them takes, one host and fleets, bento and C++ Nix in turns (BENTO_CORPORA and BENTO_NIX): checks/bench,
# checks/bench-fleet; and what a hub with many hosts takes: checks/bench-hub
bench: $(if $(BENTO),,build)
	@checks/bench
	@checks/bench-fleet --plot docs/src/fleet.svg
	@checks/bench-hub

# format, lints, dependencies and shell scripts: checks/lint
lint:
	@checks/lint
