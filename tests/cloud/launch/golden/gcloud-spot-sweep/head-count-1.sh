#!/usr/bin/env bash
# Runs as root on every host of head-count-1, at every start of the machine.
set -u
export HOME=/root PYTHONUNBUFFERED=1
venv=/opt/attest-venv
log=/mnt/attest/head-count/logs/head-count-1-$(hostname).log
exec >> /var/log/attest.log 2>&1

give_back() {
  gcloud compute tpus queued-resources delete head-count-1 --project=my-project \
    --zone=us-west4-a --force --quiet --async
}
keep_log() {
  mkdir -p "${log%/*}" && cp /var/log/attest.log "$log"
}
# The longest that this machine may live, whatever happens to what follows.
( trap '' HUP; sleep 6h; sleep 300; keep_log; give_back ) &

prepare() {
  if ! command -v gcsfuse > /dev/null; then
    release=gcsfuse-$(lsb_release -cs)
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg > "$key"
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $release main" \
      > /etc/apt/sources.list.d/gcsfuse.list
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    apt-get -qq -o DPkg::Lock::Timeout=300 install --yes gcsfuse
  fi
  mkdir -p /mnt/attest
  mountpoint -q /mnt/attest || gcsfuse --implicit-dirs my-bucket /mnt/attest
  [ -d /opt/attest ] || git clone --quiet /mnt/attest/head-count/code.bundle /opt/attest
  cd /opt/attest
  if [ ! -e "$venv/ready" ]; then
    export PIP_BREAK_SYSTEM_PACKAGES=1
    python3 -m pip install --quiet uv
    python3 -m uv venv --quiet --clear --python 3.11 "$venv"
    python3 -m uv pip install --quiet --python "$venv/bin/python" -r requirements-tpu.txt
    touch "$venv/ready"
  fi
}
( set -e; prepare )
if [ $? != 0 ]; then
  echo "the machine could not be set up"
  keep_log
  give_back
  exit 1
fi
cd /opt/attest || exit 1

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

timeout --foreground --preserve-status --signal=TERM --kill-after=300 6h "$venv/bin/python" -m \
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
  # The machine is going down; the queued resource stays, so that a restart goes on.
  keep_log
  exit "$code"
fi

echo "ended with code $code"
keep_log
sleep 120  # the other hosts keep their logs
give_back
exit "$code"
