"""What is done once to a published image before any agent sees it."""

from __future__ import annotations

import base64

from swe_env.repos.git import ATTRIBUTES

SCRIPT = r"""
workdir=$1 user=$2
# The environment that the image's own harness would work in, before anything is changed.
found=$(
  exec 2>/dev/null
  if [[ -f /opt/miniconda3/bin/activate ]]; then
    . /opt/miniconda3/bin/activate
    conda activate testbed
  elif [[ -x $workdir/.venv/bin/python ]]; then
    export VIRTUAL_ENV=$workdir/.venv PATH=$workdir/.venv/bin:$PATH
  elif [[ -x /root/.venv/bin/python ]]; then
    export VIRTUAL_ENV=/root/.venv PATH=/root/.venv/bin:$PATH
  fi
  env -0 | base64 -w0
)
set -e
[[ -d $workdir && ! -L $workdir ]] || { echo "it has no folder $workdir"; exit 1; }
command -v git >/dev/null || { echo "it has no git"; exit 1; }
cd "$workdir"
export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0
export GIT_AUTHOR_NAME=swe-env GIT_AUTHOR_EMAIL=swe-env@localhost
export GIT_COMMITTER_NAME=swe-env GIT_COMMITTER_EMAIL=swe-env@localhost
export GIT_AUTHOR_DATE="2020-01-01T00:00:00+0000" GIT_COMMITTER_DATE="2020-01-01T00:00:00+0000"
git() {
  command git -c safe.directory='*' -c core.hooksPath=/dev/null -c core.fsmonitor=false \
    -c core.autocrlf=false -c core.excludesFile=/dev/null -c core.attributesFile=/dev/null \
    -c gc.auto=0 "$@"
}
# Where R2E-Gym's images keep the hidden tests.
if [[ -e /r2e_tests || -e /root/r2e_tests || -e r2e_tests ]]; then
  rm -rf /r2e_tests /root/r2e_tests r2e_tests run_tests.sh
fi
find . -mindepth 2 -name .git -prune -exec rm -rf {} +
git rev-parse --git-dir >/dev/null 2>&1 || { rm -rf .git; git init -q .; }
[[ $(git rev-parse --show-toplevel) == $(pwd -P) ]] || { rm -rf .git; git init -q .; }
git ls-files -s | sed -n 's/^160000 [0-9a-f]* [0-9]*\t//p' | while IFS= read -r path; do
  git rm -q --cached -f -- "$path"
done
attributes() { mkdir -p "$1/info"; printf '%s' 'ATTRIBUTES' >"$1/info/attributes"; }
attributes "$(git rev-parse --git-dir)"
git add -A .
git add --renormalize .
commit=$(git commit-tree -m base "$(git write-tree)")
new=$(mktemp -d)
command git init -q --template= "$new"
mkdir -p "$new/.git/objects/pack"
git rev-parse "$commit" | git pack-objects -q --revs "$new/.git/objects/pack/pack" >/dev/null
rm -rf .git
mv "$new/.git" .git
rm -rf "$new"
attributes .git
git symbolic-ref HEAD refs/heads/main
git update-ref refs/heads/main "$commit"
git read-tree HEAD
git update-index -q --refresh || true
rm -rf .git/logs .git/ORIG_HEAD
find . \( ! -user "${user%%:*}" \) -exec chown -h "${user%%:*}" {} +
printf '%s\0%s' "$commit" "$found"
""".replace("ATTRIBUTES", ATTRIBUTES)
"""Cuts the repository's history off: one commit with the files as they are, no other object, ref,
reflog, remote or hook; nested repositories become plain folders. The conda environment ``testbed``
of SWE-bench's images and the ``.venv`` of R2E-Gym's are found. Prints the commit, a NUL, and the
variables of the environment; on failure the reason comes last."""

_OURS = {"_", "SHLVL", "PWD", "OLDPWD", "HOSTNAME", "HOME", "PS1", "TERM", "LS_COLORS"}


def environment(text: str) -> dict[str, str]:
    """The variables printed by `SCRIPT`."""
    pairs = base64.b64decode(text).decode("utf-8", "replace").split("\0")
    found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {
        name: value for name, value in found.items() if name.isidentifier() and name not in _OURS
    }
