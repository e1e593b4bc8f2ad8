# Sourced by quickstart, test and lint: the virtual environment they share.
#
#   prepare_environment EXTRAS
#
# makes .venv in the checkout, or brings it up to date, so that it holds the
# package (editable) with EXTRAS (comma-separated, may be empty) in the versions
# of constraints.txt, and sets `python` to its interpreter. Where nothing has
# changed it returns at once.
#
# .venv/recsys-state says what is there: "installing" from before the first
# file is made until pip has ended, so a run that was killed leaves that word;
# then the fingerprint of what was asked for, and the extras.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

is_python_3_11() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

system_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    if is_python_3_11 "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 is needed and was not found as python3.11 or python3." \
    "On Debian 12: apt-get install python3.11 python3.11-venv"
}

make_venv() {
  local base
  base=$(system_python) || exit 1
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$base lacks the modules venv and ensurepip." \
      "On Debian 12: apt-get install python3.11-venv"
  echo "Making an environment in .venv: downloads about 750 MB, fills 3 GB," \
    "takes 2 to 10 minutes ..." >&2
  mkdir "$venv"
  printf 'installing\n' >"$venv/recsys-state"
  "$base" -m venv "$venv" || fail "$base -m venv .venv failed, see above."
}

install_package() {
  local extras=$1 log=$venv/install.log
  # setuptools first and no build isolation: what builds the package, and the
  # one dependency that has no wheel, is then pinned like everything else.
  {
    "$python" -m pip install --disable-pip-version-check \
      --constraint="$root/constraints.txt" setuptools wheel &&
      "$python" -m pip install --disable-pip-version-check \
        --constraint="$root/constraints.txt" --no-build-isolation \
        --editable="$root${extras:+[$extras]}"
  } >"$log" 2>&1
}

update_environment() {
  local extras=$1 state='' fingerprint
  fingerprint=$(
    cd "$root" && { pwd && cat setup.cfg pyproject.toml constraints.txt; } |
      cksum
  )
  [[ -r $venv/recsys-state ]] && state=$(<"$venv/recsys-state")
  if [[ -e $venv ]] &&
    { [[ $state == installing ]] || ! is_python_3_11 "$python"; }; then
    echo "The environment in .venv is incomplete: making it again." >&2
    state=''
    rm -rf "$venv"
  fi
  # An environment with more extras serves those who need none.
  case $state in
    "$fingerprint [$extras]") return ;;
    "$fingerprint ["*) [[ $extras ]] || return 0 ;;
  esac
  if [[ -e $venv ]]; then
    echo "Bringing the environment in .venv up to date ..." >&2
  else
    make_venv
  fi
  printf 'installing\n' >"$venv/recsys-state"
  if ! install_package "$extras"; then
    cat "$venv/install.log" >&2
    # pip gave up by itself and left what was there before in place.
    [[ $state ]] && printf '%s\n' "$state" >"$venv/recsys-state"
    fail "" "pip could not install the package, see above." \
      "(The same is in .venv/install.log. Running this again tries again.)"
  fi
  printf '%s [%s]\n' "$fingerprint" "$extras" >"$venv/recsys-state"
}

prepare_environment() (
  # One at a time, where there is flock: the other waits here.
  if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock 9
  fi
  update_environment "$1"
)
