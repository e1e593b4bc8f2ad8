# Sourced by quickstart, test and lint: the virtual environment they share.
#
#   prepare_environment EXTRAS
#
# creates or updates .venv in the checkout, so that it contains the package
# (editable) with EXTRAS (comma-separated, may be empty) in the versions of
# constraints.txt, and sets `python` to its interpreter. If nothing has changed,
# it returns at once.
#
# .venv/recsys-state records what is installed. It reads "installing" from
# before the first file is written until pip has finished, so that a killed run
# leaves that word; then it holds the fingerprint of the request, and the extras.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

is_supported_python() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
    2>/dev/null
}

system_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if is_supported_python "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11, 3.12 or 3.13 is required, and neither python3 nor" \
    "python3.11 to python3.13 is one. On Debian or Ubuntu:" \
    "apt-get install python3 python3-venv"
}

make_venv() {
  local base
  base=$(system_python) || exit 1
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$base has no venv and ensurepip modules." \
      "On Debian or Ubuntu: apt-get install python3-venv"
  echo "Creating an environment in .venv (downloads about 750 MB, takes 3 GB of" \
    "disk and 2 to 10 minutes) ..." >&2
  mkdir "$venv"
  printf 'installing\n' >"$venv/recsys-state"
  "$base" -m venv "$venv" || fail "$base -m venv .venv failed; see above."
}

install_package() {
  local extras=$1 log=$venv/install.log
  # setuptools first, and no build isolation: the tools that build the package,
  # and the one dependency without a wheel, are then pinned, too.
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
    { [[ $state == installing ]] || ! is_supported_python "$python"; }; then
    echo "The environment in .venv is incomplete; creating it again." >&2
    state=''
    rm -rf "$venv"
  fi
  # An environment with extras also serves those who need none.
  case $state in
    "$fingerprint [$extras]") return ;;
    "$fingerprint ["*) [[ $extras ]] || return 0 ;;
  esac
  if [[ -e $venv ]]; then
    echo "Updating the environment in .venv ..." >&2
  else
    make_venv
  fi
  printf 'installing\n' >"$venv/recsys-state"
  if ! install_package "$extras"; then
    cat "$venv/install.log" >&2
    # pip gave up by itself and left the previous installation in place.
    [[ $state ]] && printf '%s\n' "$state" >"$venv/recsys-state"
    fail "" "pip could not install the package; see above, or" \
      ".venv/install.log. Run this again to retry."
  fi
  printf '%s [%s]\n' "$fingerprint" "$extras" >"$venv/recsys-state"
}

prepare_environment() (
  # Where flock exists, concurrent runs wait for each other here.
  if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock 9
  fi
  update_environment "$1"
)
