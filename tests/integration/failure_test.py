"""A rank that fails ends all ranks, soon, with one message and a non-zero code; a kill at any instant loses and repeats nothing."""

import json
import os
import random
import re
import signal
import subprocess
import time

import h5py
import support

FAULTS = os.environ["SWITCHYARD_FAULT_LIBRARY"]


class Failure(support.TestCase):
    def options(self, corpus, out, *more):
        return ["route", "--model", support.DEMO, "--corpus", f"text={corpus},id=id,category=kind", "--out", out, "--context", 100, "--batch-tokens", 300,
                "--block-tokens", 1500, "--commit-seconds", 0, "--precision", "f32", "--quiet", *more]

    def test_injected_failures_end_all_ranks(self):
        corpus = self.write_text_corpus()
        in_words = {"H5Dcreate2": "cannot create", "H5Dwrite": "cannot write", "H5Fflush": "cannot write the last bytes", "fsync": "cannot sync to disk"}
        for number, fault in enumerate(("MPI_Alltoall:4:1", "MPI_Ialltoallv:1:0", "MPI_Ialltoallv:6:2", "MPI_Wait:3:1", "MPI_Allreduce:5:2", "MPI_Reduce:1:1",
                                        "MPI_Bcast:2:2", "MPI_Barrier:1:1", "MPI_Allgather:2:2", "MPI_Allgatherv:1:1", "MPI_Gatherv:1:2", "H5Dcreate2:2:1",
                                        "H5Dwrite:2:1", "H5Dwrite:1:0", "H5Fflush:1:1", "fsync:2:0", "MPI_Waitall:3:1")):
            with self.subTest(fault):
                out = self.folder / str(number)
                start = time.monotonic()
                done = support.run(*self.options(corpus, out, "--rebalance-every", 1), ranks=3, timeout=60, env={"LD_PRELOAD": FAULTS, "SWITCHYARD_FAULT": fault})
                self.assertLess(time.monotonic() - start, 30)
                self.assertNotEqual(done.returncode, 0, done.stderr)
                messages = [line for line in done.stderr.splitlines() if line.startswith("switchyard: ")]
                self.assertEqual(len(messages), 1, done.stderr)
                call = fault.split(":")[0]
                self.assertIn(in_words.get(call, call), messages[0])

    def test_kill_at_random_instants(self):
        corpus = self.write_text_corpus(documents=40)
        reference = self.folder / "reference"
        self.switchyard(*self.options(corpus, reference), ranks=2)
        segments = len(self.manifest(reference))
        self.assertGreater(segments, 8)
        interrupted = 0
        for seed in range(20):
            rng = random.Random(seed)
            out = self.folder / f"killed-{seed}"
            moving = ["--rebalance-every", seed % 3]
            for _ in range(2):
                process = self.start(corpus, out, rng.choice([1, 2, 3]), *moving)
                done = len(self.manifest(out))
                self.wait_for_segments(out, rng.randint(done, max(done, segments - 1)), process)
                time.sleep(rng.uniform(0, 0.15))
                if process.poll() is None:
                    interrupted += 1
                    os.killpg(process.pid, signal.SIGKILL)  # mpirun and, below, the ranks: they are in its session
                self.kill_ranks(out)
                process.communicate()
            process = self.start(corpus, out, rng.choice([1, 2, 3]), *moving)
            _, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, errors)
            self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
            self.assert_same_tables(reference / "stats.h5", out / "stats.h5")
        self.assertGreater(interrupted, 15)

    def start(self, corpus, out, ranks, *more):
        return subprocess.Popen(support.command(*self.options(corpus, out, *more), ranks=ranks), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait_for_segments(self, out, wanted, process):
        """Returns when the run has committed that many, or has ended: an instant that follows the run's own pace, however busy the machine is."""
        deadline = time.monotonic() + 60
        while len(self.manifest(out)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def test_stop_signal_commits_and_asks_to_be_requeued(self):
        corpus = self.write_text_corpus(documents=200)
        reference, out = self.folder / "reference", self.folder / "stopped"
        self.switchyard(*self.options(corpus, reference))
        stops = 0
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, None):
            process = subprocess.Popen(support.command(*self.options(corpus, out)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if number is not None:
                self.wait_for_segments(out, len(self.manifest(out)) + 1, process)
                process.send_signal(number)
            _, errors = process.communicate(timeout=60)
            if number is None:
                self.assertEqual(process.returncode, 0, errors)
            elif process.returncode != 0:
                stops += 1
                self.assertEqual(process.returncode, 85, errors)
                self.assertIn("repeat the command", errors)
        self.assertGreaterEqual(stops, 1)
        self.assert_same_rows(reference / "routing.h5", out / "routing.h5")

    def test_experts_are_where_they_were_when_a_run_goes_on(self):
        corpus = self.write_text_corpus(documents=200)
        out = self.folder / "moving"
        moving = ["--rebalance-every", 1]
        process = self.start(corpus, out, 2, *moving)
        self.wait_for_segments(out, 4, process)
        os.killpg(process.pid, signal.SIGKILL)
        self.kill_ranks(out)
        process.communicate()
        before = len(self.manifest(out))
        for ranks in (2, 3):
            known = len(self.manifest(out))
            process = self.start(corpus, out, ranks, *moving)
            self.wait_for_segments(out, known + 2, process)
            self.assertIsNone(process.poll(), "the run was over too soon")
            os.killpg(process.pid, signal.SIGKILL)
            self.kill_ranks(out)
            process.communicate()
            places = []
            for number in (0, known - 1, known):
                with h5py.File(out / "segments" / f"segment-{number:06d}.h5") as file:
                    places.append(file["dispatch/placement"][:].tolist())
            if ranks == 2:
                self.assertNotEqual(places[0], places[1])
                self.assertEqual(places[1], places[2])
            else:
                self.assertEqual(places[2], [[0, 0, 1, 1, 1, 2, 2, 2]] * 6)
        self.assertGreater(before, 3)

    def test_a_method_that_is_not_defined_is_said_before_the_model_is_loaded(self):
        corpus = self.write_text_corpus(documents=5)
        for more in ((), ("--dry-run",)):
            done = support.run(*self.options(corpus, self.folder / "none", "--rebalance-every", 1, "--rebalance-method", "eplb", *more), ranks=3)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("--rebalance-method: eplb is not defined here", done.stderr)
        self.assertFalse((self.folder / "none").exists())

    def processes_of(self, out):
        """Process ids of the ranks whose command line names this OUT and that catch SIGUSR1, lowest first."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                with open(f"/proc/{entry}/status") as file:
                    caught = int(re.search(r"^SigCgt:\s*(\w+)", file.read(), re.M).group(1), 16)
                if words[0] == support.BINARY.encode() and str(out).encode() in words and caught >> (signal.SIGUSR1 - 1) & 1:
                    found.append(int(entry))
            except OSError:
                pass
        return sorted(found)

    def test_a_stop_signal_while_the_run_starts(self):
        corpus = self.folder / "corpus"
        corpus.mkdir()
        for i in range(30_000):
            (corpus / f"{i}.txt").touch()
        (corpus / "text.txt").write_text("some text to route\n" * 20)
        reference = self.folder / "reference"
        options = ["route", "--model", support.DEMO, "--corpus", f"text={corpus}", "--context", 100, "--precision", "f32", "--quiet"]
        self.switchyard(*options, "--out", reference)
        for ranks in (1, 2):
            out = self.folder / f"stopped-{ranks}"
            process = subprocess.Popen(support.command(*options, "--out", out, ranks=ranks), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 60
            while len(self.processes_of(out)) < ranks and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            os.kill(self.processes_of(out)[-1], signal.SIGUSR1)  # of one rank: the others learn of it
            _, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 85, errors)
            self.assertIn("0 segments are committed", errors)
            self.assertEqual(self.manifest(out), [])
            self.switchyard(*options, "--out", out, ranks=ranks)
            self.assert_same_rows(reference / "routing.h5", out / "routing.h5")

    def manifest(self, out):
        path = out / "manifest.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def test_restart_with_other_options_is_refused_by_name(self):
        corpus = self.write_text_corpus(documents=5)
        out = self.folder / "run"
        self.switchyard(*self.options(corpus, out))
        done = support.run(*self.options(corpus, out, "--add-bos"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("add-bos: false there, true now", done.stderr)
        with corpus.open("a") as file:
            file.write(json.dumps({"id": "new", "text": "more"}) + "\n")
        done = support.run(*self.options(corpus, out))
        self.assertEqual(done.returncode, 1)
        self.assertIn("corpora.0.hash", done.stderr)

    def test_two_runs_do_not_write_into_one_folder(self):
        import fcntl
        corpus = self.write_text_corpus(documents=5)
        out = self.folder / "run"
        out.mkdir()
        with (out / "run.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = support.run(*self.options(corpus, out), ranks=2)
            self.assertEqual(done.returncode, 1)
            self.assertIn("another process is writing this run", done.stderr)
            self.assertFalse((out / "run.json").exists())
        self.switchyard(*self.options(corpus, out), ranks=2)

    def test_finished_run_routes_nothing_again(self):
        corpus = self.write_text_corpus(documents=5)
        out = self.folder / "run"
        self.switchyard(*self.options(corpus, out))
        before = self.manifest(out)
        self.switchyard(*self.options(corpus, out), ranks=2)
        self.assertEqual(before, self.manifest(out))
        with h5py.File(out / "routing.h5") as file:
            self.assertEqual(len(file["documents/id"]), 5)

    def test_inspect_names_a_missing_and_a_damaged_segment(self):
        corpus = self.write_text_corpus()
        out = self.folder / "run"
        self.switchyard(*self.options(corpus, out))
        whole = self.switchyard("inspect", out)
        self.assertIn("the run is complete", whole.stdout)
        segments = sorted((out / "segments").iterdir())
        self.assertGreater(len(segments), 2)
        segments[0].unlink()
        with segments[1].open("r+b") as file:
            file.seek(3000)
            file.write(b"damage")
        done = support.run("inspect", out)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"FAULT segments/{segments[0].name}", done.stdout)
        self.assertIn(f"FAULT segments/{segments[1].name}", done.stdout)
        with h5py.File(out / "routing.h5") as file:
            self.assertEqual(file["routing/layer_000/expert"][0].tolist(), [255, 255])


if __name__ == "__main__":
    support.main()
