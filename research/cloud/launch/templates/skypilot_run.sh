set -u
venv="$HOME/attest-venv"
export PYTHONUNBUFFERED=1
stopped() {
  # The machine is taken away: not 0, so that SkyPilot starts it again elsewhere.
  if [ "$code" = 0 ]; then code=143; fi
}
command=(
{% include "timeout.sh" %}
  "$venv/bin/python"
{% include "arguments.sh" %}
  --workdir=/mnt/attest/{{ name }}
{% if job.shards > 1 %}
  --shard="$SHARD"
{% endif %}
{% if tpu and tpu.distributed %}
  --distributed
{% endif %}
)
{% include "supervise.sh" %}
exit "$code"
