"""ablate: figures equal those of checkpoints whose expert is silenced, on any number of ranks, through kills and restarts."""

import csv
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time

import h5py
import numpy as np
import support


def silence(model, silent, layer, expert):
    """A copy of a bf16 checkpoint whose expert's down projection is zero: its output is 0."""
    shutil.copytree(model, silent, copy_function=shutil.copyfile)
    path = silent / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    begin, end = header[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"]["data_offsets"]
    data[8 + length + begin:8 + length + end] = bytes(end - begin)
    path.write_bytes(data)


class Ablate(support.TestCase):
    def setUp(self):
        super().setUp()
        words = (support.TESTS.parent / "LICENSE").read_text().split()
        rng = np.random.default_rng(0)
        self.corpus = self.folder / "news.csv"
        with self.corpus.open("w", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            for i in range(60):
                start = int(rng.integers(0, len(words) - 90))
                writer.writerow([1 + i % 3, " ".join(words[start:start + 3]), " ".join(words[start + 3:start + int(rng.integers(4, 60))])])
        self.text = ["--model", support.DEMO, "--corpus", f"news={self.corpus},header=no,field=3,category=1", "--template", "{2}: {3}", "--context", 64, "--precision", "f32"]

    def options(self, out, *more, batch_tokens=300):
        return ["ablate", *self.text, "--output-dir", out, "--batch-tokens", batch_tokens, "--block-tokens", 500, "--bootstrap", 50, *more]

    def tables(self, out):
        with h5py.File(out / "ablation.h5") as file:
            found = {}
            file.visititems(lambda name, node: found.__setitem__(name, node[...]) if isinstance(node, h5py.Dataset) and node.attrs.get("CLASS", b"") != b"DIMENSION_SCALE" else None)
            found["settings"] = dict(file.attrs)
            return found

    def assert_same_tables(self, first, second):
        a, b = self.tables(first), self.tables(second)
        self.assertEqual(sorted(a), sorted(b))
        self.assertGreater(len(a), 20)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], name)
        self.assertEqual((first / "ablation.state").read_bytes(), (second / "ablation.state").read_bytes())

    def route(self, name, model=support.DEMO):
        out = self.folder / name
        self.switchyard("route", "--model", model, *self.text[2:], "--out", out, "--quiet")
        return support.rows(out / "routing.h5"), out

    def test_zeroed_experts_equal_silenced_checkpoints(self):
        out = self.folder / "zero"
        done = self.switchyard(*self.options(out, "--layer", 4, "--layer", 1, "--experts", "6,0,3"), ranks=2)
        found = self.tables(out)
        names = [name.decode() for name in found["ablation/category"]]
        self.assertEqual(names, ["all", "1", "2", "3"])
        self.assertEqual(found["ablation/loss_difference"].shape, (6, 8, 4))
        base, run = self.route("base")
        scored = ~np.isnan(base["tokens/loss"])
        category = 1 + base["tokens/document"] % 3
        following = np.append(base["tokens/id"][1:], 0)  # of a scored token: the next one of its document
        right = (base["tokens/predicted"] == following) & scored
        which = {0: scored, **{c: scored & (category == c) for c in (1, 2, 3)}}
        for c, of in which.items():
            self.assertEqual(found["ablation/tokens"][c], of.sum())
            self.assertEqual(found["ablation/documents"][c], 60 if c == 0 else 20)
            self.assertAlmostEqual(found["ablation/baseline_loss"][c], base["tokens/loss"][of].mean(dtype=float), places=9)
            self.assertAlmostEqual(found["ablation/baseline_accuracy"][c], right[of].mean(), places=12)
        compared, moved = 0, 0
        for layer in range(6):
            for expert in range(8):
                if layer not in (1, 4) or expert not in (0, 3, 6):
                    self.assertTrue(np.isnan(found["ablation/loss"][layer, expert]).all())
                    continue
                silence(support.DEMO, self.folder / "silent", layer, expert)
                rows, _ = self.route(f"silent-{layer}-{expert}", self.folder / "silent")
                shutil.rmtree(self.folder / "silent")
                now = (rows["tokens/predicted"] == following) & scored
                for c, of in which.items():
                    at = (layer, expert, c)
                    self.assertAlmostEqual(found["ablation/loss"][at], rows["tokens/loss"][of].mean(dtype=float), places=9)
                    difference = (rows["tokens/loss"][of].astype(float) - base["tokens/loss"][of]).mean()
                    self.assertAlmostEqual(found["ablation/loss_difference"][at], difference, places=9)
                    self.assertAlmostEqual(found["ablation/accuracy"][at], now[of].mean(), places=12)
                    self.assertAlmostEqual(found["ablation/accuracy_difference"][at], right[of].mean() - now[of].mean(), places=12)
                    self.assertEqual(found["ablation/lost"][at], (right & ~now & of).sum())
                    self.assertEqual(found["ablation/gained"][at], (now & ~right & of).sum())
                    self.assertLessEqual(found["ablation/loss_difference_low"][at], found["ablation/loss_difference_high"][at])
                    moved += abs(difference) > 1e-4
                    compared += 1
                shown = found["ablation/loss_difference"][layer, expert, 0]
                self.assertRegex(done.stdout, rf"\n +{expert} +{re.escape(f'{shown:+.5f}')} ")
        self.assertEqual(compared, 24)
        self.assertGreater(moved, 12)
        # What routing alone says: equal to route's own statistics and to its rows.
        with h5py.File(run / "stats.h5") as stats:
            usage = stats["load/usage"][0]
        for layer in (1, 4):
            np.testing.assert_allclose(found["importance/load"][layer], usage[layer], rtol=1e-12)
            experts, weights = base[f"routing/layer_{layer:03d}/expert"], base[f"routing/layer_{layer:03d}/weight"].astype(float)
            means = [weights[experts == e].mean() for e in range(8)]
            np.testing.assert_allclose(found["importance/mean_weight"][layer], means, rtol=1e-3)  # rows hold halves
            self.assertTrue((found["importance/reap"][layer] > 0).all())
            counts = np.bincount(experts.ravel(), minlength=8)
            self.assertTrue((found["importance/ean"][layer] >= found["importance/reap"][layer] * counts).all())
            order = np.argsort(-found["ablation/loss_difference"][layer, [0, 3, 6], 0])
            np.testing.assert_array_equal(found["importance/rank"][layer, [0, 3, 6], 0][order], [1, 2, 3])
        lines = (out / "csv" / "ablation_loss_difference.csv").read_text().splitlines()
        self.assertEqual(lines[0], "layer,expert,category,loss_difference")
        self.assertEqual(len(lines), 1 + 6 * 8 * 4)
        at = 1 + (4 * 8 + 6) * 4
        self.assertTrue(lines[at].startswith("4,6,all,"), lines[at])
        self.assertEqual(float(lines[at].split(",")[3]), found["ablation/loss_difference"][4, 6, 0])
        self.assertEqual((out / "csv" / "importance_correlation.csv").read_text().splitlines()[5].split(",")[:2], ["1", "load"])
        self.assertIn("ablation/loss_difference", self.switchyard("inspect", out / "ablation.h5").stdout)

    def test_ranks_and_batches_do_not_matter(self):
        for mode in ("zero", "drop", "flip"):
            outs = []
            for ranks, batch_tokens, placement, overlap in ((1, 300, "contiguous", "off"), (2, 64, "contiguous", "on"), (3, 300, "round-robin", "off")):
                outs.append(self.folder / f"{mode}{ranks}")
                self.switchyard(*self.options(outs[-1], "--mode", mode, "--layers", "2,5", *([] if mode == "flip" else ["--experts", "1,7"]), "--samples", 20, "--seed", 3, "--quiet",
                                              "--placement", placement, "--overlap", overlap, batch_tokens=batch_tokens), ranks=ranks)
            self.assert_same_tables(outs[0], outs[1])
            self.assert_same_tables(outs[0], outs[2])
            found = self.tables(outs[0])
            self.assertEqual(found["ablation/documents"][0], 20)
            self.assertEqual(found["ablation/loss"].ndim, 2 if mode == "flip" else 3)
            self.assertEqual("importance/rank" in found, mode != "flip")

    def start(self, out, ranks, *more):
        return subprocess.Popen(support.command(*self.options(out, "--layers", "1,3", "--experts", "0,2", "--commit-seconds", 0, *more), ranks=ranks),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait_for_another_state(self, out, process):
        path = out / "ablation.state"
        stamp = lambda: path.stat().st_mtime_ns if path.exists() else 0
        before, deadline = stamp(), time.monotonic() + 60
        while stamp() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def kill_ranks(self, out):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        if str(out).encode() in file.read().split(b"\0"):
                            os.kill(int(entry), signal.SIGKILL)
                except OSError:
                    pass

    def test_killed_at_any_instant_and_continued_on_other_ranks(self):
        reference = self.folder / "reference"
        process = self.start(reference, 1)
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        interrupted = continued = 0
        for seed in range(4):
            rng = random.Random(seed)
            out = self.folder / f"killed-{seed}"
            for _ in range(2):
                process = self.start(out, rng.choice([1, 2, 3]))
                self.wait_for_another_state(out, process)
                time.sleep(rng.uniform(0, 0.1))
                if process.poll() is None:
                    interrupted += 1
                    os.killpg(process.pid, signal.SIGKILL)
                self.kill_ranks(out)
                process.communicate()
            process = self.start(out, rng.choice([1, 2, 3]))
            _, errors = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, errors)
            continued += "continuing the ablation" in errors
            self.assert_same_tables(reference, out)
        self.assertGreater(interrupted, 4)
        self.assertGreater(continued, 2)

    def test_a_stop_signal_saves_and_a_finished_run_stands(self):
        reference, out = self.folder / "reference", self.folder / "stopped"
        process = self.start(reference, 1)
        process.communicate(timeout=120)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            process = self.start(out, 1)
            self.wait_for_another_state(out, process)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 85, errors)
            self.assertIn("repeat the command", errors)
            self.assertFalse((out / "ablation.h5").exists())
        process = self.start(out, 2)
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        self.assert_same_tables(reference, out)
        state = (out / "ablation.state").stat().st_mtime_ns
        process = self.start(out, 1)
        text, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn("rank correlation", text)
        self.assertEqual((out / "ablation.state").stat().st_mtime_ns, state)
        self.assert_same_tables(reference, out)
        self.assertIn("the ablation is complete", self.switchyard("inspect", out).stdout)
        (out / "ablation.state").write_bytes(b"\xa1")
        process = self.start(out, 1)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn("ablation.state: is damaged", errors)

    def test_categories_of_several_corpora(self):
        plain = self.folder / "plain.txt"
        plain.write_text((support.TESTS.parent / "LICENSE").read_text()[:2000])
        out = self.folder / "out"
        self.switchyard("ablate", "--model", support.DEMO, "--corpus", f"news={self.corpus},header=no,field=3,category=1", "--corpus", f"plain={plain}", "--output-dir", out, "--layers", 3, "--experts", 2,
                        "--bootstrap", 50, "--quiet")
        found = self.tables(out)
        self.assertEqual([name.decode() for name in found["ablation/category"]], ["all", "news/1", "news/2", "news/3", "plain"])
        self.assertEqual(found["ablation/documents"].tolist(), [61, 20, 20, 20, 1])
        self.assertTrue(np.isnan(found["ablation/loss_difference_low"][3, 2, 4]))  # one document: nothing to resample
        self.assertFalse(np.isnan(found["ablation/loss_difference_low"][3, 2, :4]).any())

    def test_bad_options_are_named(self):
        out = self.folder / "out"
        self.switchyard(*self.options(out, "--layers", 2, "--experts", 1, "--samples", 3, "--quiet"))
        dense = support.GOLDEN / "mistral"
        for words, code, needle in ((self.options(out, "--layers", 3, "--experts", 1, "--samples", 3), 1, "ablation.layers.0: 2 there, 3 now"),
                                    (self.options(out, "--layers", 2, "--experts", 1, "--samples", 3, "--mode", "drop"), 1, 'ablation.mode: "zero" there, "drop" now'),
                                    (self.options(self.folder / "a", "--layers", 6), 2, "decoder layer 6 has no routed experts"), (self.options(self.folder / "a", "--experts", "1,8"), 2, "no expert 8"),
                                    (self.options(self.folder / "a", "--layers", "1-2"), 2, "no list of numbers"), (self.options(self.folder / "a", "--mode", "half"), 2, "zero, drop or flip"),
                                    (self.options(self.folder / "a", "--mode", "flip", "--experts", "1"), 2, "a flip changes tokens"), (self.options(self.folder / "a", "--layers", "1", "--layer", "1"), 2, "two lists"),
                                    (self.options(self.folder / "a", "--bootstrap", "2"), 2, "--bootstrap"),
                                    (["ablate", "--model", dense, "--corpus", f"news={self.corpus},header=no,field=3", "--output-dir", self.folder / "a"], 1, "dense model")):
            with self.subTest(needle):
                done = support.run(*words)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(needle, done.stderr)
        self.assertFalse((self.folder / "a").exists())
        self.switchyard("synth", "--out", self.folder / "full", "--layers", 1, "--d-model", 32, "--d-ff", 32, "--heads", 2, "--kv-heads", 1, "--head-dim", 16, "--vocabulary", 64, "--experts", 2, "--top-k", 2)
        tokens = self.folder / "tokens.jsonl"
        tokens.write_text(json.dumps({"tokens": [1, 2, 3]}) + "\n")
        done = support.run("ablate", "--model", self.folder / "full", "--corpus", f"t={tokens}", "--mode", "drop", "--output-dir", self.folder / "b", ranks=2)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("no other expert to take a place", done.stderr)


if __name__ == "__main__":
    support.main()
