#!/bin/sh
# Starts a persistent etcd for this machine, unless one answers already. Arguments: --port P, --data-dir D.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python="$here/.venv/bin/python"
[ -x "$python" ] || make -C "$here" install >&2
data="${XDG_DATA_HOME:-$HOME/.local/share}/deepinfer/etcd"
exec "$python" -m deepinfer.fleet.embedded_etcd --detach --data-dir "$data" "$@"
