"""The program with a model on GPUs, on the stand-in for CUDA."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import support

CPU = support.BINARY
ON_FAKE_GPU = os.environ["SWITCHYARD_ON_FAKE_GPU"]
NVML = Path(ON_FAKE_GPU).parent  # folders of stand-ins for it


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

    def route(self, name, *options, ranks=1, precision="f32", level="logits", env=None):
        out = self.folder / name
        done = self.switchyard("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", out, "--context", 32, "--batch-tokens", 64,
                               "--block-tokens", 200, "--precision", precision, "--record", level, *options, ranks=ranks, timeout=300, env=env)
        self.assertNotIn("fake GPU:", done.stderr)  # a complaint of the stand-in
        return out, done

    def test_a_run_takes_the_gpu_and_says_so(self):
        out, done = self.route("gpu")
        self.assertRegex(done.stderr, r"(?m)^node \S+: rank 0 x \d+ threads? on CPUs \S+; GPU 0$")
        self.assertRegex(done.stderr, r"(?m)^GPU memory in GiB, first GPU: fake GPU, ")
        self.assertRegex(done.stderr, r"(?m)^rank 0( +\d+\.\d\d){8}$")
        self.assertRegex(done.stderr, r"(?m)^rank 0 loaded \S+ \S+ in .*/s$")
        run = json.loads((out / "run.json").read_text())
        self.assertEqual(run["environment"]["device"], "gpu: fake GPU")
        self.assertEqual(run["environment"]["gpus"], ["0"])
        self.assertEqual((run["options"]["device"], run["options"]["transport"]), ("gpu", "local"))
        self.assertEqual(run["identity"]["device"], "gpu")
        self.assertRegex(done.stderr, r"(?m)^attention: own kernel$")  # in f32
        self.assertEqual((run["options"]["attention"], run["environment"]["attention"]), ("own", "own kernel"))
        self.assertNotIn("attention", run["identity"])

    def test_attention_is_our_own_kernel_where_cudnn_cannot_be_used(self):
        # On the stand-in there is no GPU for cuDNN, or the build is without it.
        reason = r"(cuDNN cannot use the GPU: |this build of switchyard is without cuDNN|cannot open cuDNN: )"
        out, done = self.route("bf16", precision="bf16")
        self.assertRegex(done.stderr, rf"(?m)^attention: own kernel \({reason}.*\)$")
        self.assertRegex(json.loads((out / "run.json").read_text())["environment"]["attention"], rf"^own kernel \({reason}")
        words = ("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "none", "--dry-run")
        for more, code, text in ((("--attention", "cudnn"), 1, rf"--attention cudnn: {reason}.*use --attention own"),
                                 (("--attention", "fast"), 2, "--attention: unknown attention 'fast'; give cudnn or own"),
                                 (("--attention", "cudnn", "--precision", "f32"), 2, "--attention cudnn: attends in bf16 alone"),
                                 (("--attention", "own", "--device", "cpu"), 2, "--attention: chooses between kernels of GPUs, and this run is on CPUs")):
            done = support.run(*words, *more, ranks=2)
            self.assertEqual(done.returncode, code)
            self.assertRegex(done.stderr, text)

    def test_a_grouped_product_is_chosen_for_the_whole_run(self):
        first, _ = self.route("cublaslt", "--grouped-matmul", "cublaslt", precision="bf16")
        second, _ = self.route("cutlass", precision="bf16", ranks=2)
        for out, chosen, identity in ((first, "cublaslt", None), (second, "cutlass", "cutlass")):
            run = json.loads((out / "run.json").read_text())
            self.assertEqual((run["options"]["grouped-matmul"], run["identity"].get("grouped-matmul")), (chosen, identity))
        with h5py.File(first / "routing.h5") as a, h5py.File(second / "routing.h5") as b:
            np.testing.assert_array_equal(a["tokens/id"], b["tokens/id"])
            np.testing.assert_allclose(a["tokens/loss"], b["tokens/loss"], rtol=0.05, atol=0.05)
        words = ("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--context", 32, "--batch-tokens", 64, "--block-tokens", 200)
        for out, more in ((first, ()), (second, ("--grouped-matmul", "cublaslt"))):
            done = support.run(*words, "--precision", "bf16", "--record", "logits", "--out", out, *more)
            self.assertEqual(done.returncode, 1)
            self.assertIn("grouped-matmul", done.stderr)

    def test_a_grouped_product_that_cannot_be_is_refused(self):
        words = ("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "none", "--dry-run")
        for more, code, text in ((("cudnn",), 1, r"--grouped-matmul cudnn: .*cuDNN.*use --grouped-matmul cublaslt"),
                                 (("fast",), 2, "--grouped-matmul: unknown grouped product 'fast'; give one of cublaslt, cudnn, cutlass"),
                                 (("cutlass", "--precision", "f32"), 2, "--grouped-matmul cutlass: multiplies bf16 alone"),
                                 (("cutlass", "--device", "cpu"), 2, "--grouped-matmul: chooses between kernels of GPUs, and this run is on CPUs")):
            done = support.run(*words, "--grouped-matmul", *more, ranks=2)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertRegex(done.stderr, text)

    def test_rows_are_those_of_any_number_of_ranks_and_near_those_of_the_cpu(self):
        one, _ = self.route("one")
        for ranks in (2, 3):
            out, done = self.route(f"r{ranks}", ranks=ranks)
            self.assertIn(f"(its share of a GPU of {ranks} ranks)", done.stderr)
            self.assert_same_rows(one / "routing.h5", out / "routing.h5")
            self.assertEqual(json.loads((out / "run.json").read_text())["options"]["overlap"], "on")
        whole, _ = self.route("whole", "--overlap", "off", ranks=2)
        self.assert_same_rows(one / "routing.h5", whole / "routing.h5")
        self.assertEqual([json.loads((out / "run.json").read_text())["options"]["overlap"] for out in (one, whole)], ["off", "off"])
        done = support.run("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "none", "--dry-run", "--overlap", "half")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--overlap: is 'half'; give on or off", done.stderr)
        cpu, done = self.route("cpu", "--device", "cpu")
        self.assertNotIn("GPU memory", done.stderr)
        self.assertNotIn("device", json.loads((cpu / "run.json").read_text())["identity"])
        with h5py.File(one / "routing.h5") as a, h5py.File(cpu / "routing.h5") as b:
            self.assertGreater(len(a["tokens/loss"]), 200)
            np.testing.assert_allclose(a["tokens/loss"], b["tokens/loss"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(a["tokens/id"], b["tokens/id"])

    def test_statistics_are_those_of_the_rows_at_every_level(self):
        # Layers are counted on the GPU; recomputed, they are made of the rows and counted on the CPU.
        by_level = {level: self.route(level, ranks=2, level=level)[0] / "stats.h5" for level in ("counts", "tokens", "logits")}
        self.switchyard("reduce", self.folder / "logits", "-o", self.folder / "again.h5", "--recompute", ranks=2)
        with h5py.File(self.folder / "again.h5") as expected:
            names = []
            expected.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" else None)
            names = [name for name in names if not name.startswith(("cost/", "ranks/"))]  # of the runs, not of the rows
            self.assertTrue({"load/probability_sum", "load/z_sum", "entropy/m2", "coactivation/count"} <= set(names))
            self.assertGreater(expected["load/probability_sum"][...].min(), 0)
            for level, path in by_level.items():
                with h5py.File(path) as found:
                    for name in names:
                        tolerance = 1e-5 if expected[name].dtype.kind == "f" else 0
                        np.testing.assert_allclose(found[name][...], expected[name][...], rtol=tolerance, atol=tolerance, err_msg=f"{name} at level {level}")

    def counting(self, library="fake_nvml", gpus=1, **variables):
        """The environment of ranks that find a stand-in for NVML. What it answers comes into the file self.readings."""
        self.readings = self.folder / "readings"
        self.readings.unlink(missing_ok=True)
        return {"LD_LIBRARY_PATH": os.pathsep.join([str(NVML / library), os.environ.get("LD_LIBRARY_PATH", "")]), "FAKE_NVML_READINGS": self.readings, "FAKE_GPUS": gpus, **variables}

    def joules_by_gpu(self):
        """What blocks took, by GPU: each was read once at the start, then before and behind every block."""
        counts = {}
        for line in self.readings.read_text().splitlines():
            gpu, millijoules = line.split()
            counts.setdefault(gpu, []).append(int(millijoules) / 1000)
        self.assertTrue(all(len(c) % 2 == 1 for c in counts.values()))
        return {gpu: np.array(c[2::2]) - np.array(c[1::2]) for gpu, c in counts.items()}

    def expect_energy(self, out, done, expected):
        """expected: [block, rank]."""
        with h5py.File(out / "routing.h5") as file, h5py.File(out / "stats.h5") as stats:
            joules = file["dispatch/joules"]
            self.assertEqual(joules.attrs["units"], "J")
            np.testing.assert_allclose(joules, expected, rtol=1e-12)
            self.assertGreater(len(expected), 2)
            self.assertEqual(len(set(expected[:, 0])), len(expected))
            tokens = len(file["tokens/id"])
            self.assertAlmostEqual(stats["cost/joules"][0], expected.sum(), places=9)
            self.assertEqual(stats["cost/joules_tokens"][0], tokens)
            self.assertAlmostEqual(stats["cost/joules_per_token"][0], expected.sum() / tokens, places=9)
            step_block, step_tokens = file["dispatch/block"][:], file["dispatch/step_tokens"][:].sum(1)
            by_block = [j / step_tokens[step_block == b].sum() for j, b in zip(expected.sum(1), file["dispatch/traffic_block"][:], strict=True)]
            self.assertAlmostEqual(stats["cost/joules_per_token_low"][0], min(by_block), places=9)
            self.assertAlmostEqual(stats["cost/joules_per_token_high"][0], max(by_block), places=9)
            np.testing.assert_allclose(stats["cost/phase_joules_estimate"][0], expected.sum() * stats["cost/phase_share"][0], rtol=1e-9)
        self.assertIn(f", {expected.sum() / tokens:.4g} J/token ({expected.sum():.4g} J of GPUs); ", done.stdout)
        self.assertNotIn("energy", done.stderr)

    def test_energy_of_blocks_is_what_the_counter_says(self):
        out, done = self.route("one", env=self.counting())
        self.expect_energy(out, done, self.joules_by_gpu()["0000:00:00.0"][:, None])

    def test_a_gpu_of_two_ranks_is_counted_once(self):
        out, done = self.route("shared", ranks=2, env=self.counting())
        joules = self.joules_by_gpu()["0000:00:00.0"]
        self.expect_energy(out, done, np.stack([joules, np.zeros(len(joules))], axis=1))

    def test_each_rank_counts_a_gpu_of_its_own(self):
        out, done = self.route("own", "--transport", "mpi", ranks=2, env=self.counting(gpus=2))
        by_gpu = self.joules_by_gpu()
        self.expect_energy(out, done, np.stack([by_gpu["0000:00:00.0"], by_gpu["0000:01:00.0"]], axis=1))

    def test_energy_that_is_not_counted_is_absent_with_the_reason(self):
        for name, reason, ranks, library, variables in (
                ("old", "libnvidia-ml.so.1 has no nvmlDeviceGetTotalEnergyConsumption", 2, "fake_nvml_without_energy", {}),
                ("none", "nvmlDeviceGetTotalEnergyConsumption: Not Supported", 1, "fake_nvml", {"FAKE_NVML_FAILS": "nvmlDeviceGetTotalEnergyConsumption"}),
                ("mig", "the GPU is divided (MIG), and NVML counts the energy of whole GPUs", 1, "fake_nvml", {"FAKE_NVML_MIG": "1"}),
                ("absent", ".+", 1, "no_such_folder", {})):  # no NVML, or a true one that does not know the GPU
            with self.subTest(name):
                out, done = self.route(name, ranks=ranks, env=self.counting(library, **variables))
                reason = reason if name == "absent" else re.escape(reason)
                self.assertEqual(len(re.findall(f"(?m)^energy is not recorded, rank 0: {reason}$", done.stderr)), 1, done.stderr)
                with h5py.File(out / "routing.h5") as file, h5py.File(out / "stats.h5") as stats:
                    self.assertNotIn("joules", file["dispatch"])
                    self.assertEqual([n for n in stats["cost"] if "joules" in n], [])
                self.assertNotIn("J/token", done.stdout)

    def test_on_the_cpu_nothing_is_said_of_energy(self):
        out, done = self.route("cpu", "--device", "cpu", env=self.counting())
        self.assertNotIn("energy", done.stderr)
        self.assertFalse(self.readings.exists())
        with h5py.File(out / "routing.h5") as file:
            self.assertNotIn("joules", file["dispatch"])

    def test_runs_with_and_without_energy_are_reduced_together(self):
        unknown, _ = self.route("unknown", env=self.counting("no_such_folder"))
        counted, _ = self.route("counted", env=self.counting())
        expected = self.joules_by_gpu()["0000:00:00.0"].sum()
        self.switchyard("reduce", unknown, counted, "-o", self.folder / "both.h5", "--csv", self.folder / "csv", ranks=2)
        self.switchyard("reduce", self.folder / "both.h5", "-o", self.folder / "again.h5")
        for name in ("both.h5", "again.h5"):
            with h5py.File(self.folder / name) as stats:
                self.assertEqual(np.isnan(stats["cost/joules"]).tolist(), [True, False])
                self.assertAlmostEqual(stats["cost/joules"][1], expected, places=9)
                tokens = stats["cost/tokens"][1]
                self.assertEqual(stats["cost/joules_tokens"][:].tolist(), [0, tokens])
                self.assertAlmostEqual(stats["cost/joules_per_token"][1], expected / tokens, places=9)
        self.assertEqual(float((self.folder / "csv" / "cost_joules.csv").read_text().splitlines()[2].split(",")[-1]), expected)

    def test_a_run_that_goes_on_where_energy_is_counted(self):
        with self.corpus.open("w") as file:
            for i in range(120):
                file.write(json.dumps({"id": f"d{i}", "tokens": [i % 160] * 60}) + "\n")
        out = self.folder / "on"
        words = ("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", out, "--context", 32, "--batch-tokens", 64, "--block-tokens", 200,
                 "--commit-seconds", 0)
        process = subprocess.Popen(support.command(*words, env=self.counting("no_such_folder")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        manifest = out / "manifest.jsonl"
        while process.poll() is None and not (manifest.exists() and manifest.read_text().count("\n") > 2):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=60), 85)
        before = manifest.read_text().splitlines()
        self.switchyard(*words, env=self.counting(), timeout=300)
        self.switchyard("reduce", out, "-o", self.folder / "by_three.h5", ranks=3)
        expected = self.joules_by_gpu()["0000:00:00.0"]
        with h5py.File(out / "routing.h5") as file, h5py.File(out / "stats.h5") as stats:
            self.assertGreater(len(expected), 2)
            np.testing.assert_allclose(file["dispatch/joules"][:, 0], np.concatenate([np.full(len(before), np.nan), expected]), rtol=1e-12)  # a segment is a block
            tokens = 7200 - sum(json.loads(line)["tokens"] for line in before)
            self.assertEqual(stats["cost/tokens"][0], 7200)
            self.assertEqual(stats["cost/joules_tokens"][0], tokens)
            self.assertAlmostEqual(stats["cost/joules_per_token"][0], expected.sum() / tokens, places=9)
            with h5py.File(self.folder / "by_three.h5") as reduced:
                for name in [n for n in stats["cost"] if "joules" in n]:
                    np.testing.assert_allclose(reduced["cost"][name], stats["cost"][name], rtol=1e-12, err_msg=name)

    def test_answers_are_those_of_the_cpu(self):
        options = ("--generate", 6, "--generate-batch", 4)
        for temperature in (0, 0.8):
            gpu, _ = self.route(f"gpu{temperature}", *options, "--temperature", temperature)
            cpu, _ = self.route(f"cpu{temperature}", *options, "--temperature", temperature, "--device", "cpu")
            with h5py.File(gpu / "routing.h5") as a, h5py.File(cpu / "routing.h5") as b:
                self.assertGreater(np.sum(a["tokens/phase"][...] == a["tokens/phase"][...].max()), 20)
                same = np.mean(a["tokens/id"][...] == b["tokens/id"][...]) if len(a["tokens/id"]) == len(b["tokens/id"]) else 0
                self.assertGreater(same, 0.95)

    def ablate(self, name, *options, ranks=1):
        out = self.folder / name
        done = self.switchyard("ablate", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--output-dir", out, "--context", 32, "--batch-tokens", 64,
                               "--block-tokens", 200, "--precision", "f32", "--bootstrap", 50, *options, ranks=ranks, timeout=300)
        self.assertNotIn("fake GPU:", done.stderr)
        with h5py.File(out / "ablation.h5") as file:
            found = {}
            for name in ("ablation/baseline_loss", "ablation/loss_difference", "ablation/accuracy_difference", "importance/ean", "importance/reap"):
                if name in file:  # flips take no expert away
                    found[name] = file[name][...]
            return found, done

    def test_an_ablation_is_near_that_of_the_cpu_and_the_same_on_any_number_of_ranks(self):
        for mode in ("zero", "drop", "flip"):
            one, done = self.ablate(f"{mode}-1", "--mode", mode, "--layers", "1,2")
            self.assertIn("GPU memory in GiB, first GPU: fake GPU", done.stderr)
            two, _ = self.ablate(f"{mode}-2", "--mode", mode, "--layers", "1,2", ranks=2)
            cpu, done = self.ablate(f"{mode}-cpu", "--mode", mode, "--layers", "1,2", "--device", "cpu")
            self.assertNotIn("GPU memory", done.stderr)
            for name, values in one.items():
                np.testing.assert_array_equal(values, two[name], name)
                np.testing.assert_allclose(values, cpu[name], rtol=1e-4, atol=1e-5, err_msg=name)

    def test_a_probe_is_near_that_of_the_cpu_and_the_same_on_any_number_of_ranks(self):
        found = {}
        for name, ranks, *options in (("one", 1), ("three", 3), ("cpu", 2, "--device", "cpu")):
            done = self.switchyard("probe", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "-o", self.folder / f"{name}.h5", "--context", 32,
                                   "--batch-tokens", 64, "--precision", "f32", *options, ranks=ranks, timeout=300)
            self.assertNotIn("fake GPU:", done.stderr)
            self.assertEqual("GPU memory in GiB, first GPU: fake GPU" in done.stderr, name != "cpu")
            with h5py.File(self.folder / f"{name}.h5") as file:
                found[name] = {}
                file.visititems(lambda path, node, to=found[name]: to.__setitem__(path, node[...]) if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf" else None)
        self.assertGreater(len(found["one"]), 8)
        for name, values in found["one"].items():
            np.testing.assert_array_equal(values, found["three"][name], name)
            np.testing.assert_allclose(values, found["cpu"][name], rtol=1e-3, atol=1e-4, err_msg=name)

    def test_experts_move_from_gpu_to_gpu_while_a_run_goes_on(self):
        for precision in ("f32", "bf16"):
            fixed, _ = self.route(f"fixed-{precision}", precision=precision)
            for ranks in (2, 3):
                moving, done = self.route(f"moving-{precision}-{ranks}", "--rebalance-every", 1, precision=precision, ranks=ranks)
                self.assert_same_rows(fixed / "routing.h5", moving / "routing.h5")
                self.assert_same_tables(fixed / "stats.h5", moving / "stats.h5")
                self.assertRegex(done.stdout, r"(?m)^experts placed anew [1-9]\d* times: [1-9]\d* moved ")
        self.switchyard("synth", "--out", self.folder / "one-layer", "--layers", 1, "--d-model", 512, "--d-ff", 4096, "--heads", 2, "--kv-heads", 1, "--vocabulary", 200)
        plans = []
        for options in ((), ("--rebalance-every", 1)):
            done = self.switchyard("route", "--model", self.folder / "one-layer", "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "none", "--context", 32,
                                   "--batch-tokens", 64, "--dry-run", *options, ranks=2)
            plans.append(float(re.search(r"(?m)^rank 0 +\S+ +(\S+)", done.stderr).group(1)))
        self.assertGreater(plans[0], 0.03)
        self.assertAlmostEqual(plans[1], 2 * plans[0], delta=0.02)  # a layer's experts before and after

    def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(self):
        for words in (("--dry-run",), ()):
            done = support.run("route", "--model", self.model, "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "big", "--context", 32,
                               "--batch-tokens", 1000000, *words)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"the model needs \S+ GiB of GPU 0, of which 1\.0 GiB are free: \S+ \S+ are missing")
            self.assertIn("smaller --batch-tokens", done.stderr)
        self.assertFalse((self.folder / "big" / "segments").exists())

    def test_counts_that_do_not_fit_are_refused_too(self):
        # 4 layers x 200,000 ids x 64 experts: 195 MiB a table, three tables, of the running block and of those before it.
        self.switchyard("synth", "--out", self.folder / "wide", "--layers", 4, "--d-model", 16, "--d-ff", 8, "--heads", 2, "--kv-heads", 1, "--head-dim", 8,
                        "--vocabulary", 200000, "--experts", 64)
        words = ("route", "--model", self.folder / "wide", "--corpus", f"t={self.corpus},id=id", "--out", self.folder / "none", "--context", 32, "--batch-tokens", 64,
                 "--device", "gpu", "--dry-run")
        done = support.run(*words)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"the model needs 1\.2 GiB of GPU 0, of which 1\.0 GiB are free: \S+ MiB are missing")
        self.assertRegex(done.stderr, r"fewer of route's --token-tables \(counts take 1\.1 GiB\)")
        for fewer in (("--token-tables", "input"), ("--token-cells", 1000000), ("--generate", 4)):
            self.switchyard(*words, *fewer)

    def test_bench_measures_the_gpu(self):
        done = self.switchyard("bench", "--model", self.model, "--context", 16, "--batch-tokens", 32, "--repetitions", 1, "--device", "gpu")
        self.assertRegex(done.stdout, r"(?m)^gpu: fake GPU, 1 ranks x \d+ threads, bf16, context 16, 32 tokens a step, .*loaded .*/s$")
        self.assertEqual(len(re.findall(r"(?m)^record \w+ +\d", done.stdout)), 4)
        self.assertRegex(done.stdout, r"(?m)^experts in bf16 by cublaslt +\d+\.\d+ ms +\d+\.\d+ TFLOP/s +1\.00 x cublaslt$")
        self.assertRegex(done.stdout, r"(?m)^experts in bf16 by cutlass +\d+\.\d+ ms +\d+\.\d+ TFLOP/s +\d+\.\d+ x cublaslt$")
        self.assertRegex(done.stdout, r"(?m)^experts in bf16 by cudnn +cannot be measured: ")

    def test_what_cannot_be_is_refused_with_the_remedy(self):
        base = ["--model", self.model, "--corpus", f"t={self.corpus},id=id", "--context", 32, "--out", self.folder / "no"]
        for options, text in ((["--device", "tpu"], "give cpu or gpu"),
                              (["--device", "cpu", "--transport", "nccl"], "use --transport mpi, or --device gpu")):
            done = support.run("route", *base, *options)
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
