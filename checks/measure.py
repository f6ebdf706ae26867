"""What checks/corpora and checks/bench share: the table of hosts, the two evaluators, and what a run of them took."""

import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Host:
    """A row of corpora.tsv, with the folder of the trees filled in."""

    corpus: str
    folder: Path  # where the corpus is, if it is there
    search: str
    expression: tuple[str, ...]
    name: str
    expected: str  # the derivation's path, by C++ Nix

    @property
    def arguments(self):
        return ["-I", self.search, *self.expression]


@dataclass(frozen=True)
class Run:
    """A program's run: what it printed, and what it took."""

    status: int
    output: str
    error: str
    cpu: float  # seconds, user and system, of the program and its children
    memory: float  # MB (1,000,000 bytes) resident at the most

    @property
    def path(self):
        """The store path that was printed last, if any."""
        lines = self.output.split()
        return lines[-1].strip('"') if self.status == 0 and lines else None

    @property
    def complaint(self):
        """The last line of what went wrong."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}, and no message"


def corpora():
    """The folder that BENTO_CORPORA names. Without it, that is said and the program ends: nothing was asked for."""
    folder = os.environ.get("BENTO_CORPORA")
    if not folder:
        print("skipped: BENTO_CORPORA is not set; it names the folder with the trees of checks/corpora.tsv")
        sys.exit(0)
    folder = Path(folder).resolve()
    if not folder.is_dir():
        sys.exit(f"BENTO_CORPORA: {folder} is no folder")
    return folder


def hosts(folder, names=()):
    """The hosts of corpora.tsv: all, or those with the names given, each of which must exist."""
    rows = []
    for line in (HERE / "corpora.tsv").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        corpus, search, expression, name, expected = line.replace("CORPORA", str(folder)).split("\t")
        rows.append(Host(corpus, folder / corpus, search, tuple(shlex.split(expression)), name, expected))
    unknown = set(names) - {row.name for row in rows}
    if unknown:
        sys.exit(f"corpora.tsv has no host {', '.join(sorted(unknown))}")
    return [row for row in rows if not names or row.name in names]


def bento():
    """The program: BENTO, or what `make build` makes."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = Path(os.environ.get("BENTO") or target / "release" / "bento").resolve()
    if not os.access(program, os.X_OK):
        sys.exit(f"{program} is no program: run `make build`, or name it in BENTO")
    return str(program)


def nix():
    """The folder of C++ Nix's programs: BENTO_NIX, or None."""
    folder = os.environ.get("BENTO_NIX")
    if folder and not os.access(Path(folder) / "nix-instantiate", os.X_OK):
        sys.exit(f"BENTO_NIX: {folder} has no nix-instantiate")
    return Path(folder).resolve() if folder else None


def run(command, **environment):
    """Runs a command from the folder of the table, with these variables set besides, and gives what became of it."""
    # the user's own search path and settings have no part in a comparison
    env = {key: value for key, value in os.environ.items() if key not in ("NIX_PATH", "NIX_REMOTE")} | environment
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with subprocess.Popen(command, cwd=HERE, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err) as child:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Run(
            child.returncode,
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * 1024 / 1e6,
        )


def nix_evaluates(programs, host):
    """C++ Nix works the derivation's path out; the store that does not exist keeps it from writing anything."""
    command = [programs / "nix-instantiate", "--eval", *host.arguments, "-A", f"{host.name}.drvPath"]
    return run(command, NIX_REMOTE="dummy://")
