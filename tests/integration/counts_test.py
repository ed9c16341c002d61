"""Published expert counts as statistics: the load family and nothing else."""

import json
import os
import pathlib

import h5py
import numpy as np
import support

# Of Mixtral-8x7B-v0.1, as published with OLMoE (allenai/OLMoE, scripts/routing_output): slots by layer and expert.
MIXTRAL = {"arxiv": {"0": [55713, 52019, 52619, 50522, 44401, 66285, 44770, 51463], "15": [61212, 52639, 40083, 25549, 60053, 61162, 60951, 56143]},
           "github": {"0": [54849, 51938, 49502, 48693, 49404, 67714, 47790, 47902], "15": [60067, 55928, 42926, 38592, 44435, 69374, 57189, 49281]}}
LOAD = {"load/count", "load/usage", "load/token_share", "load/utilisation", "load/cv", "load/gini", "load/max_over_mean", "load/min_over_mean", "load/effective_experts", "load/diversity"}
ALWAYS = {"repetition/top1_null", "repetition/any_null"}


class Counts(support.TestCase):
    def reduce(self, counts, *more):
        path = self.folder / "counts.json"
        path.write_text(json.dumps(counts) if not isinstance(counts, str) else counts)
        return support.run("reduce", "--from-counts", path, "-o", self.folder / "s.h5", *more)

    def test_mixtral(self):
        done = self.reduce({"source": "allenai/OLMoE", "mixtral": MIXTRAL}, "--top-k", 2)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"github: 208,896 tokens")
        self.assertNotRegex(done.stdout.lower(), r"\bnan\b")
        with h5py.File(self.folder / "s.h5") as stats:
            self.assertEqual(stats["datasets/name"].asstr()[:].tolist(), ["arxiv", "github"])
            self.assertEqual(stats["model/moe_layers"][:].tolist(), [0, 15])
            self.assertEqual(stats["model/name"].asstr()[0], "mixtral")
            self.assertAlmostEqual(stats["load/max_over_mean"][1, 0], 1.297, places=3)
            self.assertEqual(stats["totals/tokens"][:].tolist(), [208896, 208896])
            for d, dataset in enumerate(MIXTRAL.values()):
                for l, counts in enumerate(dataset.values()):
                    c = np.array(counts)
                    np.testing.assert_array_equal(stats["load/count"][d, l], c)
                    np.testing.assert_allclose(stats["load/usage"][d, l], c / c.sum(), rtol=1e-12)
                    np.testing.assert_allclose(stats["load/token_share"][d, l], 2 * c / c.sum(), rtol=1e-12)
                    np.testing.assert_allclose(stats["load/cv"][d, l], c.std() / c.mean(), rtol=1e-12)
                    u = c / c.sum()
                    np.testing.assert_allclose(stats["load/effective_experts"][d, l], np.exp(-(u * np.log(u)).sum()), rtol=1e-12)
            known = []

            def visit(name, node):
                if isinstance(node, h5py.Dataset) and "/" in name and node.dtype.kind == "f" and not np.isnan(node[...]).all() and not name.startswith("ranks/") and not name.endswith("/m2"):
                    known.append(name)

            stats.visititems(visit)
            self.assertEqual(set(known), {n for n in LOAD if n != "load/count"} | ALWAYS)
        again = support.run("reduce", self.folder / "s.h5", "-o", self.folder / "again.h5", "--quiet")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assert_same_tables(self.folder / "s.h5", self.folder / "again.h5")
        compared = support.run("compare", self.folder / "s.h5")
        self.assertEqual(compared.returncode, 1)
        self.assertIn("no groups of documents", compared.stderr)

    def test_wrong_counts_are_named(self):
        good = [1, 2, 3, 4]
        for counts, more, code, text in (
                ({"a": {"0": good}, "b": {"0": good, "1": good}}, ("--top-k", 2), 1, "other layers"),
                ({"a": {"0": good, "1": [1, 2, 3]}}, ("--top-k", 2), 1, "layer 1: has 3 experts, others 4"),
                ({"a": {"0": good, "1": [1, 2, 3, 6]}}, ("--top-k", 2), 1, "layer 1: 12 slots"),
                ({"a": {"0": [1, 2, 3, 5]}}, ("--top-k", 2), 1, "11 slots"),
                ({"a": {"0": [0, 0, 3, 7]}}, ("--top-k", 2), 1, "10 slots"),
                ({"a": {"0": [1, -2, 3, 4]}}, ("--top-k", 2), 1, "whole numbers"),
                ({"a": {"first": good}}, ("--top-k", 2), 1, "is no number"),
                ({"a": {"0": good}}, ("--top-k", 5), 1, "4 experts for 5 choices"),
                ({"a": {"0": good}}, (), 2, "--top-k"),
                ({"m": {"a": {"0": good}}, "n": {"a": {"0": good}}}, ("--top-k", 2), 2, "one of m, n"),
                ({"m": {"a": {"0": good}}}, ("--top-k", 2, "--model-key", "x"), 2, "one of m"),
                ({"m": 1}, ("--top-k", 2), 1, "holds no counts"),
                ("{", ("--top-k", 2), 1, "not valid JSON")):
            with self.subTest(text=text, counts=counts):
                done = self.reduce(counts, *more)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(text, done.stderr)
        self.assertEqual(self.reduce({"m": {"a": {"0": good}}, "n": {"a": {"0": good}}}, "--top-k", 2, "--model-key", "n", "--quiet").returncode, 0)
        self.assertEqual(support.run("reduce", "-o", self.folder / "x.h5").returncode, 2)

    def test_the_published_file(self):
        path = os.environ.get("SWITCHYARD_PUBLISHED_COUNTS")
        if not path or not pathlib.Path(path).exists():
            self.skipTest("SWITCHYARD_PUBLISHED_COUNTS names no file with the counts of Mixtral and OLMoE")
        counts = json.loads(pathlib.Path(path).read_text())
        for model, k in (("mixtral_8x7b", 2), ("olmoe_1b_7b", 8)):
            self.switchyard("reduce", "--from-counts", path, "--model-key", model, "--top-k", k, "-o", self.folder / "s.h5", "--quiet")
            with h5py.File(self.folder / "s.h5") as stats:
                for d, name in enumerate(stats["datasets/name"].asstr()[:]):
                    for l, layer in enumerate(stats["model/moe_layers"][:]):
                        c = np.array(counts[model][name][str(layer)])
                        np.testing.assert_array_equal(stats["load/count"][d, l], c)
                        self.assertAlmostEqual(stats["load/max_over_mean"][d, l], c.max() / c.mean(), places=12)
                self.assertEqual(len(stats["datasets/name"]), 5)


if __name__ == "__main__":
    support.main()
