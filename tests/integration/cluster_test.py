"""What ranks run on is said and recorded; a staged checkpoint gives the same rows."""

import json
import os
import socket

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
        done, out = self.route("run", "--threads", 1, ranks=2, env={"CUDA_VISIBLE_DEVICES": "3,5", "SLURM_STEP_GPUS": "0,1,2,3,4,5", "SLURM_LOCALID": "0"})
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
            done = support.run("route", "--model", support.DEMO, "--corpus", f"text={self.corpus}", "--out", self.folder / "run", ranks=2, env={variable: value})
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


if __name__ == "__main__":
    support.main()
