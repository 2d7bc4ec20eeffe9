# Runs the array `command`, hands a SIGTERM on to it once, and leaves its exit code in `code`;
# after a signal from outside `stopped` runs.
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

"${command[@]}" &
child=$!
if [ "$signals" != 0 ]; then forward; fi
# A signal ends `wait` before the command has saved: wait again until none came meanwhile.
while :; do
  seen=$signals
  wait "$child"
  code=$?
  [ "$signals" = "$seen" ] && break
done
if [ "$signals" != 0 ]; then stopped; fi
