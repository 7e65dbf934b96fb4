# shellcheck shell=bash
# Makes .venv fit for what the caller is about to run. Sourced by scripts/run and scripts/test.
#
#   setup run      streamsink and what it needs
#   setup dev      the same, and the tools that check it
#   fetch_model    the default model, where it is not there yet
#
# PYTHON chooses the interpreter (3.10 or newer). CMAKE_ARGS goes to the build of llama.cpp, for
# example -DGGML_CUDA=on. Either may be left out the next time; a different one makes .venv anew.
#
# A finished .venv carries a stamp, written last and removed first. With it, setup takes a few
# hundredths of a second; without it (interrupted, or made by other means) or with one that no
# longer fits (checkout moved, Python replaced), .venv is made anew. bash 3.2 will do.

root=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/streamsink.stamp
log=$venv/install.log

say() { printf 'streamsink: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

setup() {
    local wanted=$1 python
    if is_ready "$wanted"; then return; fi
    python=$(find_python)
    lock "$python"
    # Whoever held the lock may have done the work.
    if ! is_ready "$wanted"; then
        install "$wanted" "$python"
    fi
    unlock
}

fetch_model() {
    # Both mean the default model when they are given no name.
    if ! "$venv/bin/streamsink" models path >/dev/null 2>&1; then
        "$venv/bin/streamsink" models pull >/dev/null
    fi
}

# --- What is there -------------------------------------------------------------------------------

# The stamp's lines; nothing where there is none.
stamped() { sed -n "$1p" "$stamp" 2>/dev/null || true; }

version_of() { "$1" -c 'import sys; print(*sys.version_info)' 2>/dev/null; }

# A venv's prefix follows from where it lies, so a moved one no longer fits its stamp.
interpreter() {
    "$venv/bin/python" -c 'import sys; print(sys.prefix, *sys.version_info)' 2>/dev/null
}

project() { cat "$root/pyproject.toml" "$root/scripts/setup.sh" | cksum; }

# How llama.cpp is compiled, beside CMAKE_ARGS.
recipe() { cat "$root/scripts/llama-cpp.cmake" "$root/scripts/ldtilecfg.h" | cksum; }

# CMAKE_ARGS on one line; when unset, as .venv was built.
cmake_args() {
    if [ -n "${CMAKE_ARGS+set}" ]; then
        printf '%s\n' "${CMAKE_ARGS//$'\n'/ }"
    else
        stamped 2
    fi
}

is_sound() {
    [ -f "$stamp" ] && [ -x "$venv/bin/streamsink" ] &&
        [ "$(interpreter)" = "$(stamped 1)" ] &&
        [ "$(cmake_args)" = "$(stamped 2)" ] &&
        [ "$(recipe)" = "$(stamped 3)" ] &&
        if [ -n "${PYTHON:-}" ]; then
            [ "$(version_of "$PYTHON")" = "$(version_of "$venv/bin/python")" ]
        fi
}

is_ready() {
    is_sound && [ "$(project)" = "$(stamped 4)" ] &&
        case "$(stamped 5)" in dev | "$1") true ;; *) false ;; esac
}

find_python() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        # Run, not looked up: version managers put commands on PATH that only print an error.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "needs Python 3.10 or newer, and found none as ${candidates[*]}; set PYTHON to one"
}

# --- One at a time -------------------------------------------------------------------------------

# Python's flock, since macOS has no command of that name. The lock belongs to the open file, so it
# outlives this interpreter, is shared with every child, and falls with the last of them.
lock() {
    exec 9>"$root/.venv.lock"
    "$1" - <<'PYTHON' || die "cannot lock $root/.venv.lock"
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while waiting is no news
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("streamsink: another setup is at work on .venv, waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PYTHON
}

unlock() { exec 9>&-; }

# --- Making it -----------------------------------------------------------------------------------

install() {
    local wanted=$1 python=$2 args begun=$SECONDS
    args=$(cmake_args)
    trap interrupted INT
    if is_sound; then
        if [ "$(stamped 5)" = dev ]; then wanted=dev; fi
        rm -f "$stamp"
    else
        make_venv "$python"
    fi
    pip_install "$wanted" "$args"
    {
        interpreter
        printf '%s\n' "$args"
        recipe
        project
        printf '%s\n' "$wanted"
    } >"$stamp.new"
    mv "$stamp.new" "$stamp"
    trap - INT
    say "ready after $(duration $((SECONDS - begun)))"
}

interrupted() {
    clear_line
    say "interrupted; the next start begins .venv anew"
    exit 130
}

make_venv() {
    local why='' output
    if [ -e "$venv" ]; then why=' anew: it was unfinished, moved, or made in another way'; fi
    say "making .venv with $("$1" --version)$why"
    rm -f "$stamp"
    if ! output=$("$1" -m venv --clear "$venv" 2>&1); then
        printf '%s\n' "$output" >&2
        die "$1 could not make a virtual environment (Debian, Ubuntu: apt install python3-venv)"
    fi
}

# pip's cache files a compiled wheel under its source and the Python, not under the options of its
# build: one for the CPU would pass for one with CUDA. So each set of options has a cache of its own.
cache_of() {
    local folder
    folder=$("$venv/bin/python" -m pip cache dir 2>/dev/null) || return
    printf '%s\n' "$folder/streamsink-$({ echo "$1"; recipe; } | cksum | cut -d ' ' -f 1)"
}

# pip runs in the foreground, so that Ctrl-C reaches it and the compilers under it.
pip_install() {
    local target=. cache=() folder defines progress failed=0
    if [ "$1" = dev ]; then target='.[dev]'; fi

    if folder=$(cache_of "$2"); then cache=(--cache-dir "$folder"); fi

    # Beside CMAKE_ARGS and not in it: that is split at spaces, and this path may have some.
    defines="CMAKE_PROJECT_INCLUDE=$root/scripts/llama-cpp.cmake"
    defines+=${SKBUILD_CMAKE_DEFINE:+;$SKBUILD_CMAKE_DEFINE}

    : >"$log"
    show_progress "$2" 9>&- &
    progress=$!
    # shellcheck disable=SC2064
    trap "kill $progress 2>/dev/null || true" EXIT
    (
        cd "$root" || exit
        export CMAKE_ARGS=$2 SKBUILD_CMAKE_DEFINE=$defines
        exec "$venv/bin/python" -m pip install --verbose --no-input --disable-pip-version-check \
            ${cache[@]+"${cache[@]}"} --editable "$target"
    ) >"$log" 2>&1 </dev/null || failed=1
    kill "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    trap - EXIT
    clear_line
    if [ "$failed" = 1 ]; then explain_failure; fi
}

explain_failure() {
    if grep -q 'Building wheel for llama' "$log" && ! has_compiler; then
        die "llama.cpp must be compiled here and there is no C++ compiler" \
            "(Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)"
    fi
    # The compiler's and pip's own words, without the commands around them.
    { grep -iE '(^|[ :])error:' "$log" || tail -n 12 "$log"; } | tail -n 12 | cut -c -200 >&2
    die "the installation failed; all that pip said is in $log"
}

has_compiler() {
    local compiler
    for compiler in ${CXX:+"$CXX"} c++ g++ clang++; do
        if "$compiler" --version >/dev/null 2>&1; then return; fi
    done
    return 1
}

# --- Telling about it ----------------------------------------------------------------------------

is_terminal() { [ -t 2 ] && [ "${TERM:-dumb}" != dumb ]; }

clear_line() { if is_terminal; then printf '\r\033[K' >&2; fi; }

duration() {
    if [ "$1" -ge 60 ]; then printf '%d min ' $(($1 / 60)); fi
    printf '%d s' $(($1 % 60))
}

# What pip is at, read off its log: a moving line in a terminal, a line every 30 s elsewhere.
show_progress() {
    local begun=$SECONDS told=$SECONDS doing cores estimate announced=no
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    # 280 seconds of one core, measured on x86-64 without a GPU backend.
    estimate="about $((280 / cores / 60 + 1)) min on $cores cores"
    if [ -n "$1" ]; then estimate="with $1"; fi
    while kill -0 $$ 2>/dev/null; do
        doing=$(sed -n \
            -e 's/^ *Collecting \([A-Za-z0-9_.-]*\).*/fetching \1/p' \
            -e 's/^Installing collected packages.*/installing/p' \
            -e 's/^ *Running command Building wheel for llama.*/compiling llama.cpp/p' \
            -e 's/^ *\[\([0-9]*\)\/\([0-9]*\)\] .*/compiling llama.cpp, step \1 of \2/p' \
            "$log" | tail -n 1)
        doing=${doing:-starting pip}
        if [ "$announced" = no ] && [ "${doing%%,*}" = 'compiling llama.cpp' ]; then
            announced=yes
            clear_line
            say "compiling llama.cpp, this once: $estimate"
        fi
        if is_terminal; then
            printf '\r\033[Kstreamsink: %s, %s' "$doing" "$(duration $((SECONDS - begun)))" >&2
        elif [ $((SECONDS - told)) -ge 30 ]; then
            told=$SECONDS
            say "$doing, $(duration $((SECONDS - begun)))"
        fi
        sleep 1
    done
}
