"""Plants faults in copies of the project, one at a time, and says which test finds each: what the tests are worth.

    python -m scripts.planted_faults                  all faults of scripts/faults.py, each with the tests it names
    python -m scripts.planted_faults NAME ...         some of them
    python -m scripts.planted_faults --all            each with the whole of `make test`: hours
    python -m scripts.planted_faults --list           what there is

It fails where a fault is not found, and where tests fail without one. The copies lie in build/planted_faults and stay
there, with what was compiled in them; the project itself is only read.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from scripts.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
COPIES = ROOT / "build" / "planted_faults"
# Where distributions keep what puts ccache in front of their compilers.
CCACHE = Path("/usr/lib/ccache")
_FINDER = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """What the tests made of a fault, or of none.

    Attributes:
        found_by: the first test that failed, or how all of them ended; None if they passed.
        seconds: with compiling.
    """

    found_by: str | None
    seconds: float


class Copy:
    """The project in a folder of its own, with at most one fault in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # There while the compiled extension is not that of the sources.
        self._stale = folder / "build" / "stale"
        self._take_sources()

    def run(self, tests: Sequence[Sequence[str]], fault: Fault | None = None) -> Result:
        """Runs pytest with each of these arguments, up to the first that fails."""
        started = time.monotonic()
        if fault is None:
            found_by = self._first_failure(tests)
        else:
            path = self._folder / fault.file
            text = path.read_text()
            path.write_text(fault.planted_in(text))
            try:
                if fault.is_compiled:
                    self._stale.touch()
                    self._build()
                found_by = self._first_failure(tests)
            finally:
                path.write_text(text)
        return Result(found_by, time.monotonic() - started)

    def build_unless_right(self) -> None:
        """Compiles the extension, unless it is that of the sources as they are without a fault."""
        if self._stale.exists():
            self._build()
            self._stale.unlink()

    def _take_sources(self) -> None:
        """Makes the files those of the project. What is the same is left alone, or it would be compiled again."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        names = {name for name in listed if name and (ROOT / name).is_file()}
        extensions = {str(path.relative_to(ROOT)) for path in (ROOT / "charlm").glob("*.so")}
        is_new = not self._folder.exists()
        for path in self._folder.rglob("*"):
            name = str(path.relative_to(self._folder))
            if path.is_file() and name not in names | extensions and not name.startswith((".git/", "build/")):
                path.unlink()
        self._stale.parent.mkdir(parents=True, exist_ok=True)
        for name in sorted(names | extensions):
            to, content = self._folder / name, (ROOT / name).read_bytes()
            if to.exists() and (name in extensions or to.read_bytes() == content):
                continue
            if not is_new and name.startswith(("csrc/", "building/", "setup.py")):
                self._stale.touch()
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to)
        # Some tests ask git which files there are.
        for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):
            subprocess.run(command, cwd=self._folder, check=True)

    def _build(self) -> None:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        built = self._call(command)
        if built.returncode != 0:
            sys.exit(f"{' '.join(command)} in {self._folder}:\n{built.stdout}{built.stderr}")

    def _first_failure(self, tests: Sequence[Sequence[str]]) -> str | None:
        for arguments in tests:
            ended = self._call([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments])
            if ended.returncode in (3, 4, 5):  # a fault that does not compile, or tests that are not there
                sys.exit(f"pytest {' '.join(arguments)} cannot be run:\n{ended.stdout}{ended.stderr}")
            if ended.returncode != 0:
                failed = _FINDER.search(ended.stdout)
                return failed[1] if failed else f"pytest ended with {ended.returncode}"
        return None

    def _call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self._folder), "CHARLM_CUDA": "0"}
        environment |= {"CCACHE_BASEDIR": str(self._folder), "CCACHE_NOHASHDIR": "1"}
        if CCACHE.is_dir():
            environment["PATH"] = f"{CCACHE}:{environment['PATH']}"
        return subprocess.run(command, cwd=self._folder, env=environment, capture_output=True, text=True)


def tests_of(faults: Sequence[Fault], whole_suite: bool) -> list[list[str]]:
    """The arguments of pytest for the tests that are to find these faults: one call for each place where ops run."""
    if whole_suite:
        return [["-n", "auto"], ["-n", "auto", "--device", "simulated"]]
    named: dict[bool, dict[str, None]] = {False: {}, True: {}}
    for fault in faults:
        named[fault.is_simulated].update(dict.fromkeys(fault.tests))
    devices = {False: [], True: ["--device", "simulated"]}
    return [["-n", "0", *devices[simulated], *tests] for simulated, tests in named.items() if tests]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plants faults, and says which test finds each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to plant; all without one")
    parser.add_argument("--list", action="store_true", help="show the faults, and do nothing")
    parser.add_argument("--all", action="store_true", help="run the whole suite for each fault")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies to work in at the same time")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {fault.name for fault in FAULTS}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}: --list has their names")
    # Those that are compiled come last, so that nothing else waits for the extension.
    chosen = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    chosen.sort(key=lambda fault: fault.is_compiled)
    width = max(len(fault.name) for fault in chosen)
    if options.list:
        for fault in chosen:
            print(f"{fault.name:{width}}  {fault.file}")
        return 0

    copies: SimpleQueue[Copy] = SimpleQueue()
    for number in range(min(options.jobs, len(chosen))):
        copies.put(Copy(COPIES / str(number)))

    def run(faults: Sequence[Fault], fault: Fault | None) -> Result:
        copy = copies.get()
        try:
            if fault is None or not fault.is_compiled:
                copy.build_unless_right()
            return copy.run(tests_of(faults, options.all), fault)
        finally:
            copies.put(copy)

    def report(name: str, result: Result, otherwise: str) -> None:
        print(f"{name:{width}}  {result.seconds:5.0f} s  {result.found_by or otherwise}", flush=True)

    unchanged = run(chosen, None)
    report("without a fault", unchanged, "all tests pass")
    if unchanged.found_by is not None:
        return 1
    missed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, result in zip(chosen, pool.map(lambda fault: run([fault], fault), chosen), strict=True):
            missed += result.found_by is None
            report(fault.name, result, "not found")
    print(f"{len(chosen) - missed} of {len(chosen)} faults found")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
