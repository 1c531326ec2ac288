"""`python -m tests.fuzz TARGET... --seconds N`: fuzzes each for that long with Atheris (pip install atheris).

A finding is printed with its input and ends the target with status 1; its input is kept in the folder of `--corpus`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

# What reads these is compiled, and no coverage leads into it: they are tried with changed seeds.
BLIND = ("weights",)


def blindly(name: str, seconds: int) -> None:
    from tests.fuzz.targets import SEEDS, TARGETS, mutated

    rng, end, runs = random.Random(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = rng.choice(SEEDS[name])
        for _ in range(rng.randint(1, 8)):
            data = mutated(data, rng)
        try:
            TARGETS[name](data)
        except BaseException:
            print(f"found: {data!r}", file=sys.stderr)
            raise
        runs += 1
    print(f"{name}: {runs} runs in {seconds} seconds")


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["octavo"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(SEEDS[name]):
        (folder / f"seed-{i}").write_bytes(seed)
    # A grammar may take two seconds before its process is killed; nothing else may take one.
    flags = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={corpus}/found-{name}-", str(folder)], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them when none is named")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here and options.targets[0] in BLIND:
        blindly(options.targets[0], options.seconds)
        return 0
    if options.here:
        fuzz(options.targets[0], options.seconds, options.corpus)
        return 0
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in options.targets or TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", name, "--here", f"--seconds={options.seconds}"]
        done = subprocess.run([*command, f"--corpus={options.corpus}"], check=False)
        if done.returncode:
            failed.append(name)
    print(f"findings in {', '.join(failed)}" if failed else "no findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
