"""The program with a model on GPUs, on the stand-in for CUDA."""

import json
import os
import re

import h5py
import numpy as np
import support

CPU = support.BINARY
ON_FAKE_GPU = os.environ["SWITCHYARD_ON_FAKE_GPU"]


class Gpu(support.TestCase):
    def setUp(self):
        super().setUp()
        support.BINARY = ON_FAKE_GPU
        self.model = support.GOLDEN / "mixtral"
        self.corpus = self.folder / "tokens.jsonl"
        rng = np.random.default_rng(3)
        with self.corpus.open("w") as file:
            for i in range(12):
                file.write(json.dumps({"id": f"d{i}", "tokens": rng.integers(0, 160, size=int(rng.choice([1, 20, 60]))).tolist()}) + "\n")

    def tearDown(self):
        support.BINARY = CPU

    def route(self, name, *options, ranks=1):
        out = self.folder / name
        done = self.switchyard("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", out, "--context", 32, "--batch-tokens", 64,
                               "--block-tokens", 200, "--precision", "f32", "--record", "logits", *options, ranks=ranks, timeout=300)
        self.assertNotIn("fake GPU:", done.stderr)  # a complaint of the stand-in
        return out, done

    def test_a_run_takes_the_gpu_and_says_so(self):
        out, done = self.route("gpu")
        self.assertRegex(done.stderr, r"(?m)^node \S+: rank 0 x \d+ threads? on CPUs \S+; GPU 0$")
        self.assertRegex(done.stderr, r"(?m)^GPU memory in GiB, first GPU: fake GPU, ")
        self.assertRegex(done.stderr, r"(?m)^rank 0( +\d+\.\d\d){7}$")
        self.assertRegex(done.stderr, r"(?m)^rank 0 loaded \S+ \S+ in .*/s$")
        run = json.loads((out / "run.json").read_text())
        self.assertEqual(run["environment"]["device"], "gpu: fake GPU")
        self.assertEqual(run["environment"]["gpus"], ["0"])
        self.assertEqual((run["options"]["device"], run["options"]["transport"]), ("gpu", "local"))
        self.assertEqual(run["identity"]["device"], "gpu")

    def test_rows_are_those_of_any_number_of_ranks_and_near_those_of_the_cpu(self):
        one, _ = self.route("one")
        for ranks in (2, 3):
            out, done = self.route(f"r{ranks}", ranks=ranks)
            self.assertIn(f"(its share of a GPU of {ranks} ranks)", done.stderr)
            self.assert_same_rows(one / "routing.h5", out / "routing.h5")
        cpu, done = self.route("cpu", "--device", "cpu")
        self.assertNotIn("GPU memory", done.stderr)
        self.assertNotIn("device", json.loads((cpu / "run.json").read_text())["identity"])
        with h5py.File(one / "routing.h5") as a, h5py.File(cpu / "routing.h5") as b:
            self.assertGreater(len(a["tokens/loss"]), 200)
            np.testing.assert_allclose(a["tokens/loss"], b["tokens/loss"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(a["tokens/id"], b["tokens/id"])

    def test_answers_are_those_of_the_cpu(self):
        options = ("--generate", 6, "--generate-batch", 4)
        for temperature in (0, 0.8):
            gpu, _ = self.route(f"gpu{temperature}", *options, "--temperature", temperature)
            cpu, _ = self.route(f"cpu{temperature}", *options, "--temperature", temperature, "--device", "cpu")
            with h5py.File(gpu / "routing.h5") as a, h5py.File(cpu / "routing.h5") as b:
                self.assertGreater(np.sum(a["tokens/phase"][...] == a["tokens/phase"][...].max()), 20)
                same = np.mean(a["tokens/id"][...] == b["tokens/id"][...]) if len(a["tokens/id"]) == len(b["tokens/id"]) else 0
                self.assertGreater(same, 0.95)

    def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(self):
        for words in (("--dry-run",), ()):
            done = support.run("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "big", "--context", 32,
                               "--batch-tokens", 1000000, *words)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"the model needs \S+ GiB of GPU 0, of which 1\.0 GiB are free: \S+ \S+ are missing")
            self.assertIn("smaller --batch-tokens", done.stderr)
        self.assertFalse((self.folder / "big" / "segments").exists())

    def test_bench_measures_the_gpu(self):
        done = self.switchyard("bench", "--model", self.model, "--context", 16, "--batch-tokens", 32, "--repetitions", 1, "--device", "gpu")
        self.assertRegex(done.stdout, r"(?m)^gpu: fake GPU, 1 ranks x \d+ threads, bf16, context 16, 32 tokens a step, .*loaded .*/s$")
        self.assertEqual(len(re.findall(r"(?m)^record \w+ +\d", done.stdout)), 4)

    def test_what_cannot_be_is_refused_with_the_remedy(self):
        inputs = ["--model", self.model, "--corpus", f"t={self.corpus},id=id", "--context", 32]
        base = [*inputs, "--out", self.folder / "no"]
        for command, options, text in (
                ("route", ["--device", "tpu"], "give cpu or gpu"),
                ("route", ["--device", "cpu", "--transport", "nccl"], "use --transport mpi, or --device gpu"),
                ("route", ["--rebalance-every", 1], "use --device cpu"),
                ("ablate", ["--mode", "zero", "--device", "gpu"], "it can do on the CPU alone")):
            done = support.run(command, *(base if command == "route" else [*inputs, "--output-dir", self.folder / "no"]), *options)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(text, done.stderr)
        done = support.run("route", *base, "--transport", "nccl", ranks=2)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("ranks share one here", done.stderr)

    def test_without_a_gpu_asking_for_one_is_an_error(self):
        support.BINARY = CPU
        done = support.run("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "no", "--context", 32, "--device", "gpu")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "nvidia-smi|driver|CUDA_VISIBLE_DEVICES")


if __name__ == "__main__":
    support.main()
