#!/bin/sh
# Runs OpenAI's own Python and JavaScript clients against a running endpoint.
#
#   run.sh http://127.0.0.1:8080 [KEY]
#
# DOLPHIN_MODEL names the model; without it the first one listed is used. The clients are installed
# into DOLPHIN_CLIENTS, where they stay for tests that pay for what they ask, or else into a temporary
# directory; nothing is written beside this file.
set -eu

if [ $# -lt 1 ]; then
    echo "usage: $0 URL [KEY]" >&2
    exit 2
fi
DOLPHIN_URL=$1
DOLPHIN_KEY=${2:-}
export DOLPHIN_URL DOLPHIN_KEY

here=$(cd "$(dirname "$0")" && pwd)
work=${DOLPHIN_CLIENTS:-}
if [ -n "$work" ]; then
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT INT TERM
fi
failed=0

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/python/requirements.txt"
cp "$here"/python/*.py "$work/"
PYTHONDONTWRITEBYTECODE=1 "$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$work/test_openai.py" ||
    failed=1

mkdir -p "$work/js"
cp "$here"/js/package.json "$here"/js/package-lock.json "$here"/js/*.mjs "$work/js/"
(cd "$work/js" && npm ci --silent --no-audit --no-fund --ignore-scripts && node --test openai.test.mjs) || failed=1

exit $failed
