set -eu
venv="$HOME/attest-venv"
{% include "install.sh" %}
