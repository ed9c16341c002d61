"""Experts of single documents = numpy's from the rows, on any number of ranks."""

import json

import h5py
import numpy as np
import support

E, K, LAYERS = 8, 2, 6


def documents(path):
    with h5py.File(path) as stats:
        names = stats["datasets/name"].asstr()[:]
        return {name: stats[f"documents/{name}"].asstr()[:].tolist() if name in ("id", "category") else stats[f"documents/{name}"][:] for name in ("dataset", "id", "category", "tokens", "count")} | {"names": names.tolist()}


class Documents(support.TestCase):
    def route(self, name, *more, documents=30, ranks=2):
        corpus = self.write_text_corpus(f"{name}.jsonl", documents=documents, seed=len(name))
        out = self.folder / name
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"{name}={corpus},id=id,category=kind", "--out", out, "--context", 128, "--batch-tokens", 600,
                        "--block-tokens", 900, "--commit-seconds", 0, "--precision", "f32", "--add-bos", "--quiet", *more, ranks=ranks)
        return out

    def expected(self, out, wanted, excluded=()):
        with h5py.File(out / "routing.h5") as record:
            categories = [*record["corpora/categories"].asstr()[:], ""]
            ids, experts = record["tokens/id"][:], [record[f"routing/layer_{l:03d}/expert"][:] for l in range(LAYERS)]
            for d in range(wanted):
                begin, n = record["documents/first_token"][d], record["documents/n_tokens"][d]
                rows = begin + np.flatnonzero(~np.isin(ids[begin:begin + n], excluded))
                yield (record["documents/id"].asstr()[d], categories[record["documents/category"][d]], len(rows),
                       np.array([np.bincount(e[rows].ravel(), minlength=E) for e in experts]))

    def assert_documents(self, found, expected, dataset):
        at = np.flatnonzero(found["dataset"] == dataset)
        self.assertEqual(len(at), len(expected))
        for i, (name, category, tokens, count) in zip(at, expected):
            self.assertEqual((found["id"][i], found["category"][i], found["tokens"][i]), (name, category, tokens))
            np.testing.assert_array_equal(found["count"][i], count)

    def test_equal_to_numpy_on_any_number_of_ranks(self):
        out = self.route("text")
        expected = list(self.expected(out, 25))
        self.assertGreater(sum(d[2] for d in expected), 5000)
        self.assertGreater(len((out / "manifest.jsonl").read_text().splitlines()), 5)  # documents lie across segments
        for ranks in (1, 2, 3):
            self.switchyard("reduce", out, "-o", self.folder / "s.h5", "--per-document", 25, "--quiet", ranks=ranks)
            self.assert_documents(documents(self.folder / "s.h5"), expected, 0)
        self.switchyard("reduce", out, "-o", self.folder / "s.h5", "--per-document", 4000, "--quiet")
        with h5py.File(self.folder / "s.h5") as stats:
            np.testing.assert_array_equal(stats["documents/count"][:].sum(0), stats["load/count"][0])
        with h5py.File(out / "stats.h5") as stats:
            self.assertNotIn("documents", stats)

    def test_special_tokens_are_left_out_here_too(self):
        out = self.route("special", "--exclude-special")
        self.switchyard("reduce", out, "-o", self.folder / "s.h5", "--per-document", 4000, "--quiet")
        self.assert_documents(documents(self.folder / "s.h5"), list(self.expected(out, 30, [0, 1, 2])), 0)
        with h5py.File(self.folder / "s.h5") as stats:
            np.testing.assert_array_equal(stats["documents/count"][:].sum(0), stats["load/count"][0])

    def test_stats_files_append(self):
        a, b = self.route("first"), self.route("second", documents=12)
        for out, n in ((a, 7), (b, 5)):
            self.switchyard("reduce", out, "-o", out / "d.h5", "--per-document", n, "--quiet")
        self.switchyard("reduce", a / "d.h5", b / "d.h5", "-o", self.folder / "both.h5", "--csv", self.folder / "csv", "--quiet")
        found = documents(self.folder / "both.h5")
        self.assertEqual(found["names"], ["first", "second"])
        self.assert_documents(found, list(self.expected(a, 7)), 0)
        self.assert_documents(found, list(self.expected(b, 5)), 1)
        lines = (self.folder / "csv" / "documents_count.csv").read_text().splitlines()
        self.assertEqual(lines[0], "document,layer,expert,count")
        self.assertEqual(lines[1:], [f"{d},{l},{e},{found['count'][d, l, e]}" for d in range(12) for l in range(LAYERS) for e in range(E)])

    def test_phases_of_served_documents_are_apart(self):
        rng = np.random.default_rng(3)
        served = [rng.permuted(np.tile(np.arange(E), (n, LAYERS, 1)), axis=2)[:, :, :K] for n in (5, 9, 1)]
        lines = self.folder / "served.jsonl"
        lines.write_text("".join(json.dumps({"id": f"q{i}", "prompt_tokens": 3, "routed_experts": experts.tolist()}) + "\n" for i, experts in enumerate(served)))
        self.switchyard("import", lines, "--name", "served", "--experts", E, "-o", self.folder / "run", "--quiet")
        done = self.switchyard("reduce", self.folder / "run", "-o", self.folder / "s.h5", "--per-document", 10)
        self.assertIn("served (decode), document q1: 6 tokens", done.stdout)
        found = documents(self.folder / "s.h5")
        count = lambda experts: np.array([np.bincount(experts[:, l].ravel(), minlength=E) for l in range(LAYERS)])
        self.assert_documents(found, [(f"q{i}", "", min(3, len(e)), count(e[:3])) for i, e in enumerate(served)], 0)
        self.assert_documents(found, [(f"q{i}", "", len(e) - 3, count(e[3:])) for i, e in enumerate(served) if len(e) > 3], 1)

    def test_what_it_needs(self):
        done = support.run("reduce", self.route("counts", "--record", "counts"), "-o", self.folder / "s.h5", "--per-document", 5)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no token rows", done.stderr)
        done = support.run("reduce", self.folder / "counts", "-o", self.folder / "s.h5", "--per-document", 5000)
        self.assertEqual(done.returncode, 2)
        self.assertIn("at most 4096", done.stderr)


if __name__ == "__main__":
    support.main()
