#!/bin/sh
# Once, on the server, while the SuperLink runs: let these hosts take part.
set -eu
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/server/flwr"
mkdir -p "$$FLWR_HOME"
cp server/config.toml "$$FLWR_HOME/config.toml"
