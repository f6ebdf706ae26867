#!/bin/sh
# Says what is wrong with the machines' configurations, or with those that are named
cd "$(dirname "$0")/.." && exec bento check --no-build "$@"
