#!/bin/sh
# The tools that aloe is measured against, each in its own environment under $ALOE_PEERS.
set -eu
home=${ALOE_PEERS:-$HOME/.cache/aloe-peers}
python=${PYTHON:-python3}
mkdir -p "$home"

peer() { # name, then what to install
  name=$1; shift
  [ -e "$home/$name/.ready" ] && { echo "$name: ready"; return; }
  "$python" -m venv "$home/$name"
  "$home/$name/bin/pip" install --quiet torch==2.13.0+cpu || "$home/$name/bin/pip" install --quiet torch==2.13.0
  "$home/$name/bin/pip" install --quiet "$@"
  touch "$home/$name/.ready"
  echo "$name: installed"
}

peer trl trl
peer mergekit mergekit
peer lm-eval "lm-eval[hf]"
peer inspect inspect-ai
peer datatrove "datatrove[processing]"
peer text-dedup text-dedup
