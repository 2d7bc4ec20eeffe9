#!/usr/bin/env bash
set -u
export PYTHONUNBUFFERED=1
python -m pip install --quiet -r requirements-tpu.txt || exit
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
  research.train --config=configs/text.py --config.model.width=256 \
  '--config.model.pattern=('"'"''"'"', '"'"''"'"')' --workdir=/mnt/attest/text-wide \
  --distributed &
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
