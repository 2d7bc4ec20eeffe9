#!/usr/bin/env bash
# Runs as root on every host of {{ shard }}, at every start of the machine.
set -u
export HOME=/root PYTHONUNBUFFERED=1
venv=/opt/attest-venv
log=/mnt/attest/{{ name }}/logs/{{ shard }}-$(hostname).log
exec >> /var/log/attest.log 2>&1

# The command has no maximum lifetime (its alpha has, for flex-start only), so the machine deletes
# its queued resource; the service account needs roles/tpu.admin for that.
give_back() {
  gcloud compute tpus queued-resources delete {{ shard }} --project={{ options.project }} \
    --zone={{ options.zone }} --force --quiet --async
}
keep_log() {
  mkdir -p "${log%/*}" && cp /var/log/attest.log "$log"
}
# The longest that this machine may live, whatever happens to what follows.
( trap '' HUP; sleep {{ options.hours }}h; sleep 300; keep_log; give_back ) &

# gcsfuse as cloud.google.com/storage/docs/cloud-storage-fuse/install has it.
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
  mountpoint -q /mnt/attest || gcsfuse --implicit-dirs {{ options.bucket }} /mnt/attest
  [ -d /opt/attest ] || git clone --quiet /mnt/attest/{{ name }}/code.bundle /opt/attest
  cd /opt/attest
{% filter indent(2, first=True) %}
{% include "install.sh" %}
{% endfilter %}
}
( set -e; prepare )
if [ $? != 0 ]; then
  echo "the machine could not be set up"
  keep_log
  give_back
  exit 1
fi
cd /opt/attest || exit 1
stopped() {
  # The machine is going down; the queued resource stays, so that a restart goes on.
  keep_log
  exit "$code"
}
command=(
{% include "timeout.sh" %}
  "$venv/bin/python"
{% include "arguments.sh" %}
  --workdir=/mnt/attest/{{ name }}
{% if job.shards > 1 %}
  --shard={{ number }}/{{ job.shards }}
{% endif %}
{% if tpu.distributed %}
  --distributed
{% endif %}
)
{% include "supervise.sh" %}
echo "ended with code $code"
keep_log
sleep 120  # the other hosts keep their logs
give_back
exit "$code"
