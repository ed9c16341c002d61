"""What ranks run on is said and recorded; a staged checkpoint gives the same rows."""

import json
import os
import socket
import subprocess

import h5py
import numpy as np
import support


class Binding(support.TestCase):
    def setUp(self):
        super().setUp()
        self.corpus = self.write_text_corpus(documents=20)
        self.cpus = sorted(os.sched_getaffinity(0))

    def route(self, name, *options, ranks=1, env=None):
        out = self.folder / name
        return self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--out", out, "--context", 64, "--block-tokens", 500,
                               "--precision", "f32", *options, ranks=ranks, env=env), out

    def test_ranks_say_where_they_are(self):
        done, out = self.route("run", "--threads", 1, "--device", "cpu", ranks=2, env={"CUDA_VISIBLE_DEVICES": "3,5", "SLURM_STEP_GPUS": "0,1,2,3,4,5", "SLURM_LOCALID": "0"})
        self.assertRegex(done.stderr, rf"(?m)^node {socket.gethostname()}: ranks 0-1 x 1 thread on CPUs \S+; GPUs 3, 5 unused$")
        environment = json.loads((out / "run.json").read_text())["environment"]
        self.assertEqual(environment["hosts"], [socket.gethostname()] * 2)
        self.assertEqual(environment["gpus"], ["3", "5"])
        for cpus in environment["cpus"]:
            numbers = [n for part in cpus.split(",") for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)]
            self.assertEqual(numbers, self.cpus)
        for rank, gpu in enumerate("35"):
            self.assertRegex((out / "log" / f"rank-000{rank}.log").read_text(), rf"rank {rank} of 2 on {socket.gethostname()}, 1 threads on CPUs \S+, GPU {gpu}, ")

    def test_ranks_share_the_cpus_they_are_bound_to(self):
        if len(self.cpus) < 2:
            self.skipTest("one CPU cannot be shared out")
        for ranks, threads in ((1, len(self.cpus)), (2, len(self.cpus) // 2)):
            done, out = self.route(f"run-{ranks}", ranks=ranks, env={"OMP_NUM_THREADS": ""})
            self.assertIn(f" x {threads} thread", done.stderr)
            self.assertNotIn("warning", done.stderr)
            self.assertEqual(json.loads((out / "run.json").read_text())["options"]["threads"], threads)
        # OpenMP that binds threads leaves the first one a single CPU, which is not all that the rank has.
        done, _ = self.route("bound", env={"OMP_NUM_THREADS": "", "OMP_PROC_BIND": "true"})
        self.assertIn(f" x {len(self.cpus)} threads on ", done.stderr)

    def test_more_threads_than_cpus_are_warned_of(self):
        threads = len(self.cpus)
        done, _ = self.route("run", "--threads", threads, "--dry-run", ranks=2)
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
        self.assertEqual(len(warnings), 1, done.stderr)
        self.assertIn(f"run {2 * threads} threads on {threads} CPU", warnings[0])
        self.assertIn("--cpus-per-task", warnings[0])
        done, _ = self.route("quiet", "--threads", threads, "--dry-run", "--quiet", ranks=2)
        self.assertEqual(done.stderr, "")

    def test_malformed_gpu_variables_are_refused(self):
        for variable, value in (("CUDA_VISIBLE_DEVICES", "0,x"), ("SLURM_GPUS_ON_NODE", "many")):
            done = support.run("route", "--model", support.DEMO, "--corpus", f"text={self.corpus}", "--out", self.folder / "run", ranks=2,
                               env={"CUDA_VISIBLE_DEVICES": None, variable: value})
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertEqual(len([line for line in done.stderr.splitlines() if line.startswith(f"switchyard: {variable}: ")]), 1, done.stderr)
            self.assertFalse((self.folder / "run").exists())

    def test_the_record_names_the_node_of_every_rank(self):
        """Also of a run that goes on with fewer ranks: each block has its own row."""
        self.route("whole", ranks=2)
        _, out = self.route("run", "--commit-seconds", 0, ranks=3)
        manifest = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
        self.assertGreater(len(manifest), 3)
        (out / "manifest.jsonl").write_text("".join(manifest[:2]))  # as if killed behind its second segment
        self.route("run", "--commit-seconds", 0, ranks=2)
        self.assert_same_rows(self.folder / "whole" / "routing.h5", out / "routing.h5")
        with h5py.File(out / "routing.h5") as file:
            nodes = file["dispatch/rank_node"][:]
            blocks = file["dispatch/traffic_block"][:]
            self.assertEqual(nodes.shape, (len(blocks), 3))
            three = blocks < 2
            self.assertEqual(nodes.dtype, np.uint32)
            self.assertGreater(len(blocks[~three]), 2)
            self.assertTrue((nodes[three] == 0).all())
            self.assertTrue((nodes[~three][:, :2] == 0).all())
            self.assertTrue((nodes[~three][:, 2] == 0xFFFFFFFF).all())  # there was no third rank
            names = file["dispatch/node_name"][:]
            self.assertEqual(names.shape, (len(blocks), 1))
            self.assertEqual({name.decode() for name in names.ravel()}, {socket.gethostname()})
            # Traffic between nodes of a block: what its ranks' nodes make of the traffic between ranks.
            traffic = file["dispatch/traffic"][:].astype(np.int64)
            self.assertGreater(traffic.sum(), 0)
            between = [traffic[b][:, nodes[b][:, None] != nodes[b][None, :]].sum() for b in np.flatnonzero(three)]
            self.assertEqual(sum(between), 0)


class Staging(support.TestCase):
    def setUp(self):
        super().setUp()
        self.corpus = self.write_text_corpus(documents=20)
        self.disk = self.folder / "disk"

    def words(self, name, *options):
        return ["route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--out", self.folder / name, "--precision", "f32", *options]

    def copies(self):
        return [path for path in self.disk.iterdir() if path.suffix != ".lock"]

    def test_rows_are_those_of_the_checkpoint_itself(self):
        self.switchyard(*self.words("plain"))
        done = self.switchyard(*self.words("first", "--stage-to", self.disk, "--commit-seconds", 0), ranks=2)
        self.assertRegex(done.stderr, rf"(?m)^staged 17\.7 MiB on 1 node to {self.disk} in [0-9.]+ s, \S+ .iB/s$")
        copy, = self.copies()
        self.assertRegex(copy.name, r"^demo-[0-9a-f]{32}$")
        before = (copy / "model.safetensors").stat()
        done = self.switchyard(*self.words("second", "--stage-to", self.disk), ranks=3)
        self.assertIn(f"the checkpoint is read from its copy in {copy}\n", done.stderr)
        after = (copy / "model.safetensors").stat()
        self.assertEqual((before.st_ino, before.st_mtime_ns), (after.st_ino, after.st_mtime_ns))
        for name in ("first", "second"):
            self.assert_same_rows(self.folder / "plain" / "routing.h5", self.folder / name / "routing.h5")
        # It is the same run: staged or not, and named by the model's own folder.
        identity = [json.loads((self.folder / name / "run.json").read_text())["identity"] for name in ("plain", "first")]
        self.assertEqual(identity[0], identity[1])
        self.assertEqual(identity[0]["model"]["name"], "demo")
        done = self.switchyard(*self.words("first"))
        self.assertIn("continuing the run", done.stderr)

    def test_two_jobs_at_once_share_one_copy(self):
        jobs = [subprocess.Popen(support.command(*self.words(f"run-{i}", "--stage-to", self.disk)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for i in range(2)]
        said = [job.communicate(timeout=120)[1] for job in jobs]
        self.assertEqual([job.returncode for job in jobs], [0, 0], said)
        self.assertEqual(len([text for text in said if "staged " in text]), 1, said)
        self.assertEqual(len([text for text in said if "the checkpoint is read from its copy" in text]), 1, said)
        self.assertEqual(len(self.copies()), 1)
        self.assert_same_rows(self.folder / "run-0" / "routing.h5", self.folder / "run-1" / "routing.h5")

    def test_dry_run_copies_nothing(self):
        done = self.switchyard(*self.words("run", "--stage-to", self.disk, "--dry-run"), ranks=2)
        self.assertIn(f"each node copies the checkpoint to {self.disk}", done.stdout)
        self.assertFalse(self.disk.exists())

    def test_a_folder_that_cannot_be_written(self):
        done = support.run(*self.words("run", "--stage-to", "/proc/switchyard"), ranks=2)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(len([line for line in done.stderr.splitlines() if line.startswith("switchyard: /proc/switchyard: ")]), 1, done.stderr)
        self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    support.main()
