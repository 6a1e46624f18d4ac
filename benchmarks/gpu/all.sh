#!/bin/sh
# All that a GPU can tell, in one command of under ten minutes: quick results first, kept as they
# come. For a bare, offline host: a plain copy of the checkout, python3 with torch and Triton.
#
#     sh benchmarks/gpu/all.sh OUT [first | second | STAGE ...] [--dry-run]
#     sh benchmarks/gpu/all.sh --copy FOLDER      such a copy, without the stored models; its size
#
# first (the default): versions, bundle, check, bench, e2e. second: those of them that failed here,
# then tune, check-full, bench-shapes, bench-fp8. --dry-run: the same on a CPU, interpreted, tiny.
#
# OUT gets summary.txt (a line per stage), output.txt (all that the stages print), rows as *.jsonl,
# and logs.tar.gz (the servers' logs), which is also written when the script is stopped by a signal.
# Triton's cache, the unpacked bundle and the names of failed stages stay in build/gpu.
#
# Variables:
#     GPU_PYTHON  the interpreter; default python3
#     BUNDLE      a tar file that brings SGLang: env.sh, sourced with B as the folder that holds it,
#                 makes it importable. Without it, and without an installed SGLang, e2e is skipped
#     SMOKE       a Python program that tries the bundle: a line with FAIL or BAD first is a
#                 failure. Default: gpu_smoke.py beside the bundle, or else the import of SGLang
#     LIMIT_S     seconds that the whole command may take; default 590
set -u

PYTHON=${GPU_PYTHON:-python3}
BUNDLE=${BUNDLE:-}
SMOKE=${SMOKE:-}
LIMIT_S=${LIMIT_S:-590}
KILL_S=8   # from a stage's time-out to SIGKILL: its servers are stopped meanwhile
STOP_S=12  # from a program's own limit to its time-out: the result under way comes to its end
PACK_S=10
FIRST="versions bundle check bench e2e"
SECOND="tune check-full bench-shapes bench-fp8"

# Each stage: its seconds ("+": and all that earlier stages left over), what to look at, its command.
run_stage() {
  case $1 in
    versions)     stage 20 output.txt sh -c "$VERSIONS" ;;
    bundle)       bundle ;;
    check)        program 80 output.txt check --quick ;;
    bench)        program 100 bench.jsonl bench --models qwen3-30b --out "$OUT/bench.jsonl" ;;
    e2e)          e2e ;;
    tune)         program 150 tune.jsonl tune --slots 8 --out "$OUT/tune.jsonl" ;;
    check-full)   program 150 output.txt check ;;
    bench-shapes) program 110 bench.jsonl bench --out "$OUT/bench.jsonl" --models \
                    qwen3-235b-tp8 mixtral-tp2 deepseek-v2-lite gpt-oss-120b qwen2-57b ;;
    bench-fp8)    program 110+ bench.jsonl bench --out "$OUT/bench.jsonl" --models \
                    qwen3-30b-fp8block qwen3-30b-fp8row mixtral-tp2-fp8block ;;
    *)            note "$1" "no such stage" ;;
  esac
}

bundle() {
  if [ -z "$BUNDLE" ]; then
    note bundle "skipped: BUNDLE is not set"
    return
  fi
  stage 50 output.txt sh -c "$UNPACK" sh "$PYTHON" "$BUNDLE" "$B" "$SMOKE"
  use_bundle
}

e2e() {
  if ! "$PYTHON" -c "$HAS_SGLANG" >/dev/null; then
    note e2e "skipped: no SGLang (set BUNDLE, or install it)"
  elif [ -n "$DRY_RUN" ]; then
    program 280+ e2e.jsonl e2e --batches 4 --rounds 1 --out "$OUT/e2e.jsonl"
  else
    program 280+ "e2e.jsonl, logs.tar.gz" e2e --batches 16 1 64 --rounds 1 --out "$OUT/e2e.jsonl"
  fi
}

HAS_SGLANG='import importlib.util, sys; sys.exit(importlib.util.find_spec("sglang") is None)'
# shellcheck disable=SC2016  # expanded by the stage's own shell
VERSIONS='
nvidia-smi || echo "no nvidia-smi"
nvcc --version | tail -n 2
[ ! -r build/gpu/commit ] || echo "commit $(cat build/gpu/commit)"
echo "$(nproc) cores, $(grep MemTotal /proc/meminfo)"
"$PYTHON" -c "
import importlib.metadata as metadata, platform, torch
found = {each.name: each.version for each in metadata.distributions()}
names = (\"torch\", \"triton\", \"transformers\", \"sglang\")
print(\"python\", platform.python_version(), *(f\"{name} {found.get(name)}\" for name in names))
print(torch.cuda.get_device_name() if torch.cuda.is_available() else \"no CUDA device\")
"'
# Unpacked beside its place and then moved: a folder of that name is whole.
# shellcheck disable=SC2016
UNPACK='
if [ ! -r "$3/env.sh" ]; then
  rm -rf "$3.part"
  "$1" -c "
import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter=\"tar\")" "$2" "$3.part" || exit 1
  mv "$3.part" "$3" || exit 1
fi
B=$3; export B; . "$3/env.sh"
[ -r "$4" ] || exec "$1" -c "import sglang; print(sglang.__version__)"
"$1" "$4" >"$3/smoke.txt" 2>&1; code=$?
cat "$3/smoke.txt"
[ $code -eq 0 ] && ! grep -Eq "^(FAIL|BAD)" "$3/smoke.txt"'

# program SECONDS LOOK MODULE ARGUMENT...: one of benchmarks.gpu, with its own limit before ours
program() {
  allow "$1"
  look=$2 module=$3
  shift 3
  [ "$ALLOWED_S" -gt "$STOP_S" ] || ALLOWED_S=0
  hundredths=$(((ALLOWED_S - STOP_S) * 100 / 60))
  minutes=$(printf '%d.%02d' $((hundredths / 100)) $((hundredths % 100)))
  # shellcheck disable=SC2086  # no word where it is empty
  execute "$look" "$PYTHON" -m "benchmarks.gpu.$module" "$@" --limit-min "$minutes" $DRY_RUN
}

# stage SECONDS LOOK COMMAND...
stage() {
  allow "$1"
  shift
  execute "$@"
}

# allow SECONDS[+]: sets ALLOWED_S, so that a stage killed after it still ends by the deadline
allow() {
  left_s=$((DEADLINE_S - $(date +%s) - KILL_S))
  ALLOWED_S=${1%+}
  [ -z "$DRY_RUN" ] || ALLOWED_S=$((3 * ALLOWED_S)) # the interpreter's pace is the machine's
  case $1 in *+) ALLOWED_S=$left_s ;; esac
  [ "$ALLOWED_S" -le "$left_s" ] || ALLOWED_S=$left_s
}

# execute LOOK COMMAND...: run it for ALLOWED_S at most, and sum it up
execute() {
  LOOK=$1
  shift
  if [ "$ALLOWED_S" -le 0 ]; then
    note "$STAGE" "skipped: no time left"
    return
  fi
  printf '\n==> %s, at most %s s\n' "$STAGE" "$ALLOWED_S" >>"$OUT/output.txt"
  touch "$FAILED/$STAGE"
  BEGAN_S=$(date +%s) BEGAN_BYTE=$(($(wc -c <"$OUT/output.txt") + 1))
  # In the background, since a shell runs no trap before a command in the foreground has ended.
  timeout -k "$KILL_S" "$ALLOWED_S" "$@" >>"$OUT/output.txt" 2>&1 &
  CHILD=$!
  wait "$CHILD"
  finish $?
}

# finish EXIT: the stage's line, and the end of what it printed where it failed
finish() {
  CHILD=
  tail -c "+$BEGAN_BYTE" "$OUT/output.txt" >"$WORK/stage.txt"
  last=$(grep '[^[:space:]]' "$WORK/stage.txt" | tail -n 1 | cut -c 1-100)
  case $1 in 124 | 137) last="time is up; $last" ;; esac
  printf '%-13s %4d s  exit %-3d  %s  [%s]\n' \
    "$STAGE" $(($(date +%s) - BEGAN_S)) "$1" "$last" "$LOOK" | tee -a "$OUT/summary.txt"
  if [ "$1" -eq 0 ]; then
    rm -f "$FAILED/$STAGE"
  else
    HAS_FAILED=1
    tail -n 12 "$WORK/stage.txt" | cut -c 1-200 | sed 's/^/    /'
  fi
}

note() {
  printf '%-13s %s\n' "$1" "$2" | tee -a "$OUT/summary.txt"
}

use_bundle() {
  if [ -r "$B/env.sh" ]; then
    . "$B/env.sh"
    export TRITON_CACHE_DIR="$WORK/triton" # the bundle may name another
  fi
}

pack() {
  for log in "$WORK"/e2e/*.log "$OUT/output.txt" "$OUT/summary.txt"; do
    [ ! -r "$log" ] || echo "$log"
  done >"$WORK/logs.txt"
  timeout "$PACK_S" tar czPf "$OUT/logs.tar.gz" --transform 's|.*/||' -T "$WORK/logs.txt"
}

stopped() {
  trap '' HUP INT TERM
  if [ -n "$CHILD" ]; then
    kill -TERM "$CHILD" # timeout passes it on, and kills after KILL_S
    wait "$CHILD"
    finish 143
  fi
  note all "stopped by a signal"
  pack
  exit 143
}

# The stages of a pass: in the second, first those of the first that ran here and failed.
stages_of() {
  case $1 in
    first) echo "$FIRST" ;;
    second)
      for name in $FIRST; do
        [ ! -e "$FAILED/$name" ] || echo "$name"
      done
      echo "$SECOND"
      ;;
    *) echo "$@" ;;
  esac
}

needs_bundle() {
  [ -n "$BUNDLE" ] && [ ! -r "$B/env.sh" ] && case " $* " in *" bundle "*) false ;; esac
}

copy() {
  if [ -n "$(ls -A "$1")" ]; then
    echo "$1 is not empty" >&2
    exit 2
  fi
  mkdir -p "$1/build/gpu"
  git archive HEAD -- . ':(exclude)models/*.safetensors' | tar xf - -C "$1" || exit 2
  git rev-parse --short HEAD >"$1/build/gpu/commit"
  echo "$1: $(du -sk --apparent-size "$1" | cut -f 1) KiB"
}

usage() {
  sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"
  exit "$1"
}

DRY_RUN='' NAMES='' OUT=''
for argument in "$@"; do
  case $argument in
    --help | -h) usage 0 ;;
    --dry-run) DRY_RUN=--dry-run ;;
    --copy) ;;
    -*) usage 2 >&2 ;;
    *) if [ -z "$OUT" ]; then OUT=$argument; else NAMES="$NAMES $argument"; fi ;;
  esac
done
[ -n "$OUT" ] || usage 2 >&2
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
case $BUNDLE in '' | /*) ;; *) BUNDLE=$PWD/$BUNDLE ;; esac
[ -n "$SMOKE" ] || SMOKE=$(dirname "$BUNDLE")/gpu_smoke.py
case $SMOKE in /*) ;; *) SMOKE=$PWD/$SMOKE ;; esac
case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
cd "$(dirname "$0")/../.." || exit 2
if [ "$1" = --copy ]; then
  copy "$OUT"
  exit
fi

DEADLINE_S=$(($(date +%s) + LIMIT_S - PACK_S))
WORK=$PWD/build/gpu B=$PWD/build/gpu/bundle CHILD='' HAS_FAILED=0
FAILED=$WORK/failed$DRY_RUN # a file for each stage that has begun and not succeeded
mkdir -p "$FAILED"
export PYTHON B PYTHONUNBUFFERED=1 TRITON_CACHE_DIR="$WORK/triton"
export PYTHONPATH="$PWD/kernels:$PWD/controller${PYTHONPATH:+:$PYTHONPATH}"
trap stopped HUP INT TERM
use_bundle
# shellcheck disable=SC2046,SC2086  # words
set -- $(stages_of ${NAMES:-first})
if needs_bundle "$@"; then set -- bundle "$@"; fi
for STAGE in "$@"; do
  run_stage "$STAGE"
done
pack
echo "results are in $OUT"
exit $HAS_FAILED
