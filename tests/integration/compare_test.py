"""compare: distances equal numpy's from stats.h5, differences are found where they are, the same figures on any number of ranks."""

import json
import shutil

import h5py
import numpy as np
import support


class Compare(support.TestCase):
    def setUp(self):
        super().setUp()
        licence = (support.TESTS.parent / "LICENSE").read_text().split()
        rng = np.random.default_rng(0)
        for name in ("prose", "again", "code"):
            with (self.folder / f"{name}.jsonl").open("w") as file:
                for i in range(60):
                    start = int(rng.integers(0, len(licence) - 80))
                    words = licence[start:start + 80] if name != "code" else [f"x{rng.integers(9)} += {rng.integers(99)};" for _ in range(40)]
                    file.write(json.dumps({"id": f"{name}-{i}", "text": " ".join(words)}) + "\n")
        self.run_folder = self.folder / "run"
        corpora = [w for name in ("prose", "again", "code") for w in ("--corpus", f"{name}={self.folder}/{name}.jsonl,id=id")]
        self.switchyard("route", "--model", support.DEMO, *corpora, "--out", self.run_folder, "--context", 128, "--record", "counts", "--precision", "f32", "--quiet")
        self.stats = self.run_folder / "stats.h5"

    def test_figures_equal_numpy_and_the_difference_is_found(self):
        done = self.switchyard("compare", self.stats, "-o", self.folder / "compare.h5", "--csv", self.folder / "csv")
        self.assertRegex(done.stdout, r"prose +code .* 6 of 6")
        self.assertRegex(done.stdout, r"prose +again .* 0 of 6")
        with h5py.File(self.stats) as stats, h5py.File(self.folder / "compare.h5") as compared:
            usage = stats["load/usage"][:]
            count = stats["load/count"][:].astype(float)

            def h(p):
                return -(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)).sum(-1)

            checked = 0
            for i in range(3):
                for j in range(3):
                    if i == j:
                        self.assertTrue(np.isnan(compared["compare/jsd"][i, j]).all())
                        continue
                    jsd = h((usage[i] + usage[j]) / 2) - (h(usage[i]) + h(usage[j])) / 2
                    np.testing.assert_allclose(compared["compare/jsd"][i, j], jsd, atol=1e-12)
                    np.testing.assert_allclose(compared["compare/tv"][i, j], np.abs(usage[i] - usage[j]).sum(-1) / 2, atol=1e-12)
                    checked += jsd.size
            self.assertEqual(checked, 36)
            self.assertTrue((compared["compare/jsd_p"][0, 2] == 1 / 1001).all())
            self.assertTrue((compared["compare/jsd_low"][0, 2] > 0).all())
            self.assertTrue((compared["compare/jsd_low"][0, 1] == 0).any())
            self.assertTrue((compared["compare/jsd_q"][0, 1] > 0.05).all())
            pooled = count.sum(0) / count.sum((0, 2))[:, None]
            np.testing.assert_allclose(compared["specialisation/usage_ratio"][:], usage / pooled, rtol=1e-12)
            joint = count.transpose(1, 0, 2) / count.sum((0, 2))[:, None, None]
            independent = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
            information = np.where(joint > 0, joint * np.log(np.where(joint > 0, joint, 1) / independent), 0).sum((1, 2))
            np.testing.assert_allclose(compared["dataset_information/mutual_information"][:], information, atol=1e-12)
            self.assertEqual(compared["compare/jsd"].attrs["units"], "nats")
        lines = (self.folder / "csv" / "compare_jsd.csv").read_text().splitlines()
        self.assertEqual(lines[0], "dataset,dataset2,layer,jsd")
        self.assertTrue(lines[7].startswith("prose,again,0,"), lines[7])
        self.assertIn("compare/jsd", self.switchyard("inspect", self.folder / "compare.h5").stdout)

    def test_ranks_and_order_do_not_matter(self):
        found = []
        for ranks in (1, 2, 4):
            out = self.folder / f"c{ranks}.h5"
            self.switchyard("compare", self.stats, "-o", out, "--bootstrap", 100, "--permutations", 100, "--quiet", ranks=ranks)
            with h5py.File(out) as file:
                found.append({name: file[f"compare/{name}"][:] for name in file["compare"] if not name.startswith("dataset")})
        self.assertGreater(len(found[0]), 11)
        for name in found[0]:
            for other in found[1:]:
                np.testing.assert_array_equal(found[0][name], other[name], name)

    def test_equal_names_of_two_files_are_told_apart(self):
        shutil.copytree(self.run_folder, self.folder / "second")
        done = self.switchyard("compare", self.stats, self.folder / "second" / "stats.h5", "--bootstrap", 50, "--permutations", 50)
        self.assertIn("run/prose", done.stdout)
        self.assertIn("second/prose", done.stdout)
        self.assertRegex(done.stdout, r"run/code +second/code +\d+ +0\.00000 .* 0 of 6")

    def test_router_saturation_of_two_checkpoints_equals_numpy(self):
        rng = np.random.default_rng(1)
        corpora = []
        for name in ("a", "b"):
            with (self.folder / f"{name}.jsonl").open("w") as file:
                for i in range(30):
                    file.write(json.dumps({"id": f"{name}{i}", "tokens": rng.integers(0, 64, int(rng.integers(1, 90))).tolist()}) + "\n")
            corpora += ["--corpus", f"{name}={self.folder}/{name}.jsonl,id=id"]
        for seed in (1, 2):
            self.switchyard("synth", "--out", self.folder / f"model{seed}", "--layers", 3, "--d-model", 32, "--d-ff", 32, "--heads", 2, "--kv-heads", 1, "--head-dim", 16,
                            "--vocabulary", 64, "--experts", 6, "--top-k", 3, "--seed", seed)
            self.switchyard("route", "--model", self.folder / f"model{seed}", *corpora, "--out", self.folder / f"run{seed}", "--context", 32, "--quiet", ranks=seed)
        first, second = self.folder / "run1", self.folder / "run2"
        found = []
        for ranks in (1, 3):
            done = self.switchyard("compare", first, second, "-o", self.folder / "s.h5", "--bootstrap", 200, "--permutations", 50, ranks=ranks)
            with h5py.File(self.folder / "s.h5") as file:
                found.append({name: file[f"saturation/{name}"][:] for name in ("value", "low", "high", "expected", "tokens")})
        for name in found[0]:
            np.testing.assert_array_equal(found[0][name], found[1][name], name)
        with h5py.File(first / "routing.h5") as a, h5py.File(second / "routing.h5") as b:
            ends = np.cumsum(a["corpora/tokens"][:])
            for c, (begin, end) in enumerate(zip(ends - a["corpora/tokens"][:], ends)):
                self.assertEqual(found[0]["tokens"][c], end - begin)
                for l in range(3):
                    x, y = (f[f"routing/layer_{l:03d}/expert"][begin:end] for f in (a, b))
                    share = (x[:, :, None] == y[:, None, :]).any(2).sum() / x.size
                    self.assertAlmostEqual(found[0]["value"][c, l], share, places=12)
                    chance = (np.bincount(x.ravel(), minlength=6) * np.bincount(y.ravel(), minlength=6)).sum() / len(x) ** 2 / 3
                    self.assertAlmostEqual(found[0]["expected"][c, l], chance, places=12)
                    self.assertLess(found[0]["low"][c, l], share)
                    self.assertGreater(found[0]["high"][c, l], share)
                    self.assertIn(f"{share:.4f}", done.stdout)
        shutil.copytree(first, self.folder / "same")
        done = self.switchyard("compare", first, self.folder / "same", "--bootstrap", 50, "--permutations", 50)
        self.assertEqual(done.stdout.count("1.0000  [1.0000, 1.0000]"), 6)
        lines = (self.folder / "b.jsonl").read_text().replace('"tokens": [', '"tokens": [63, ', 1)
        (self.folder / "b.jsonl").write_text(lines)
        self.switchyard("route", "--model", self.folder / "model1", *corpora, "--out", self.folder / "other", "--context", 32, "--quiet")
        done = support.run("compare", first, self.folder / "other", "--bootstrap", 50, "--permutations", 50, ranks=2)
        self.assertEqual(done.returncode, 1)
        self.assertIn("other corpora or numbers of tokens", done.stderr)

    def test_bad_input_is_named(self):
        one = self.folder / "one"
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"prose={self.folder}/prose.jsonl,id=id", "--out", one, "--context", 128, "--record", "counts", "--quiet")
        old = self.folder / "old.h5"
        shutil.copy(self.stats, old)
        with h5py.File(old, "r+") as file:
            del file["groups"]
        damaged = self.folder / "damaged.h5"
        shutil.copy(self.stats, damaged)
        with h5py.File(damaged, "r+") as file:
            file["groups/value"][0] += 1
        for words, code, needle in (([one / "stats.h5"], 1, "hold one dataset"), ([old], 1, "/groups/indptr: missing"), ([damaged], 1, "do not add up"),
                                    ([self.folder / "gone.h5"], 1, "gone.h5"), ([self.run_folder / "run.json"], 1, "run.json"),
                                    ([self.stats, self.stats], 1, "name each file once"), ([self.stats, "--confidence", "2"], 2, "--confidence"),
                                    ([self.stats, "--permutations", "3"], 2, "--permutations"), ([], 2, "--stats")):
            with self.subTest(needle):
                done = support.run("compare", *words)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(needle, done.stderr)


if __name__ == "__main__":
    support.main()
