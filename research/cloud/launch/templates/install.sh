# Images of TPU machines carry an older Python; uv brings 3.11.
if [ ! -e "$venv/ready" ]; then
  export PIP_BREAK_SYSTEM_PACKAGES=1
  python3 -m pip install --quiet uv
  python3 -m uv venv --quiet --clear --python 3.11 "$venv"
  python3 -m uv pip install --quiet --python "$venv/bin/python" -r requirements-{{ kind }}.txt
  touch "$venv/ready"
fi
