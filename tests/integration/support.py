"""What the command-line tests share: running the binary under mpirun, and reading what it leaves."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

import h5py
import numpy as np

BINARY = os.environ["SWITCHYARD"]
MPIRUN = os.environ.get("MPIRUN", "mpirun")
TESTS = pathlib.Path(__file__).resolve().parent.parent
DEMO = TESTS / "data" / "demo"
GOLDEN = TESTS / "golden"


def command(*words, ranks=1, env=None):
    launcher = [] if ranks == 1 else [MPIRUN, "-n", str(ranks)]
    # `env` behind mpirun: what is preloaded into a rank is not preloaded into mpirun. Where there are GPUs, the CPU is what is tested unless they are named.
    settings = {"CUDA_VISIBLE_DEVICES": os.environ.get("SWITCHYARD_TEST_GPUS", "")} | (env or {})
    unset = [word for k, v in settings.items() if v is None for word in ("-u", k)]
    return launcher + ["env", *unset] + [f"{k}={v}" for k, v in settings.items() if v is not None] + [BINARY] + [str(w) for w in words]


def run(*words, ranks=1, timeout=120, env=None):
    """Runs switchyard, `env` added to each rank's environment (None: taken out of it), and returns the finished process, whatever its exit code."""
    return subprocess.run(command(*words, ranks=ranks, env=env), capture_output=True, text=True, timeout=timeout, check=False)


def rows(path):
    """Every data set of token rows in routing.h5, by path."""
    found = {}
    with h5py.File(path, "r") as file:
        for group in ("tokens", "routing", "documents"):
            if group in file:
                file[group].visititems(lambda name, node, group=group: found.__setitem__(f"{group}/{name}", node[...])
                                       if isinstance(node, h5py.Dataset) and node.attrs.get("CLASS", b"") != b"DIMENSION_SCALE" else None)
    return found


def integer_tables(path):
    """Every integer data set of a stats file that does not depend on the number of ranks, by path."""
    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "ui" and not name.startswith("ranks/") and node.attrs.get("CLASS", b"") != b"DIMENSION_SCALE":
            found[name] = node[...]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


class TestCase(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="switchyard-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def switchyard(self, *words, ranks=1, timeout=120, env=None):
        """Runs switchyard, which must succeed."""
        done = run(*words, ranks=ranks, timeout=timeout, env=env)
        self.assertEqual(done.returncode, 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
        return done

    def kill_ranks(self, out):
        """Ends every process of ours whose command line names this OUT."""
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if str(out).encode() in words:
                    os.kill(int(entry), signal.SIGKILL)
            except OSError:
                pass

    def assert_same_rows(self, first, second):
        a, b = rows(first), rows(second)
        self.assertEqual(sorted(a), sorted(b))
        self.assertGreater(len(a), 6)
        compared = 0
        for name in a:
            self.assertEqual(a[name].dtype.kind, b[name].dtype.kind, name)
            self.assertEqual(a[name].shape, b[name].shape, name)
            if a[name].dtype.kind == "f":
                np.testing.assert_array_equal(a[name].view(f"u{a[name].itemsize}"), b[name].view(f"u{b[name].itemsize}"), name)
            else:
                np.testing.assert_array_equal(a[name], b[name], name)
            compared += a[name].size
        self.assertGreater(compared, 0)

    def assert_same_tables(self, first, second, more_than=20):
        """Integer statistics of two stats files that do not depend on the number of ranks: the same, and more than so many."""
        a, b = integer_tables(first), integer_tables(second)
        self.assertEqual(sorted(a), sorted(b))
        self.assertGreater(len(a), more_than)
        for table in a:
            np.testing.assert_array_equal(a[table], b[table], table)

    def write_text_corpus(self, name="corpus.jsonl", documents=40, seed=0):
        """Documents of unequal length made of the words of this repository's licence."""
        rng = np.random.default_rng(seed)
        words = (TESTS.parent / "LICENSE").read_text().split()
        path = self.folder / name
        with path.open("w") as file:
            for i in range(documents):
                count = int(rng.choice([0, 1, 5, 40, 200, 700]))
                start = int(rng.integers(0, len(words)))
                text = " ".join((words + words)[start:start + count])
                file.write(json.dumps({"id": f"d{i}", "text": text, "kind": "long" if count > 100 else "short"}) + "\n")
        return path


def main():
    unittest.main(verbosity=2)
