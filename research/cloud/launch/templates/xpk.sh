#!/usr/bin/env bash
set -u
export PYTHONUNBUFFERED=1
{% if not options.image %}
python -m pip install --quiet -r requirements-tpu.txt || exit
{% endif %}
stopped() {
  # The machine is taken away: not 0, so that JobSet starts it again elsewhere.
  if [ "$code" = 0 ]; then code=143; fi
}
command=(
{% include "timeout.sh" %}
  python
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
exit "$code"
