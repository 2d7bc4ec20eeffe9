#!/usr/bin/env bash
set -u
export PYTHONUNBUFFERED=1
signals=0
child=
forwarded=
forward() {
  # Once: a second SIGTERM stops the training without saving.
  if [ -n "$child" ] && [ -z "$forwarded" ]; then
    forwarded=1
    kill -TERM "$child" 2>/dev/null || true
  fi
}
trap 'signals=$((signals + 1)); forward' TERM INT

timeout --foreground --preserve-status --signal=TERM --kill-after=300 24h python -m \
  research.sweep --experiment=experiments/head_count.py --workdir=/mnt/attest/head-count \
  --shard=1/3 --distributed &
child=$!
if [ "$signals" != 0 ]; then forward; fi
# A signal ends `wait` before the command has saved: wait again until none came meanwhile.
while :; do
  seen=$signals
  wait "$child"
  code=$?
  [ "$signals" = "$seen" ] && break
done
if [ "$signals" != 0 ]; then
  # The machine is taken away: not 0, so that whoever watches starts it again elsewhere.
  [ "$code" = 0 ] && code=143
fi
exit "$code"
