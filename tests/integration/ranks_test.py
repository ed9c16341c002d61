"""The record does not depend on ranks, transport, placement or batch size."""

import json

import h5py
import numpy as np
import support


class Ranks(support.TestCase):
    def route(self, name, corpus, *options, ranks=1, batch_tokens=500):
        out = self.folder / name
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={corpus},id=id,category=kind", "--out", out, "--context", 100,
                        "--batch-tokens", batch_tokens, "--block-tokens", 3000, "--quiet", *options, ranks=ranks)
        return out

    def test_rows_are_identical_at_f32(self):
        corpus = self.write_text_corpus()
        reference = self.route("one", corpus, "--precision", "f32", "--record", "logits", "--transport", "local")
        with h5py.File(reference / "routing.h5") as file:
            self.assertGreater(len(file["tokens/id"]), 8000)
            self.assertEqual(len(file["documents/id"]), 40)
        placement = self.folder / "placement.json"
        placement.write_text(json.dumps({"rank_of_expert": [[1, 1, 1, 1, 1, 1, 1, 1]] * 3 + [[0, 1, 1, 0, 1, 1, 1, 0]] * 3}))
        variants = [("mpi1", 1, 500, ["--transport", "mpi"]), ("two", 2, 500, []), ("three", 3, 300, ["--placement", "round-robin"]),
                    ("four", 4, 500, []), ("file", 2, 500, ["--placement", str(placement)]), ("batches", 2, 4096, ["--threads", "2"])]
        for name, ranks, batch_tokens, options in variants:
            with self.subTest(name):
                out = self.route(name, corpus, "--precision", "f32", "--record", "logits", *options, ranks=ranks, batch_tokens=batch_tokens)
                self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
                a, b = support.integer_tables(reference / "stats.h5"), support.integer_tables(out / "stats.h5")
                self.assertEqual(sorted(a), sorted(b))
                self.assertGreater(len(a), 20)
                for table in a:
                    np.testing.assert_array_equal(a[table], b[table], table)

    def test_rows_are_identical_at_bf16_on_the_demo_model(self):
        corpus = self.write_text_corpus(seed=1)
        if support.run("route", "--model", support.DEMO, "--corpus", f"t={corpus}", "--out", self.folder / "dry", "--precision", "bf16", "--dry-run").returncode != 0:
            self.skipTest("this CPU has no bf16")
        reference = self.route("one", corpus, "--precision", "bf16", "--record", "logits")
        for ranks in (2, 3):
            out = self.route(f"r{ranks}", corpus, "--precision", "bf16", "--record", "logits", ranks=ranks, batch_tokens=400 + 100 * ranks)
            self.assert_same_rows(reference / "routing.h5", out / "routing.h5")

    def test_fewer_tokens_than_ranks(self):
        corpus = self.folder / "tiny.jsonl"
        corpus.write_text('{"id": "a", "tokens": [5]}\n{"id": "b", "tokens": []}\n')
        reference = self.route("one", corpus, "--precision", "f32")
        with h5py.File(reference / "routing.h5") as file:
            self.assertEqual(file["tokens/id"][:].tolist(), [5])
            self.assertTrue(np.isnan(file["tokens/loss"][0]))
            self.assertEqual(file["documents/n_tokens"][:].tolist(), [1, 0])
        out = self.route("four", corpus, "--precision", "f32", ranks=4)
        self.assert_same_rows(reference / "routing.h5", out / "routing.h5")

    def test_traffic_adds_up(self):
        corpus = self.write_text_corpus()
        out = self.route("two", corpus, "--precision", "f32", ranks=2)
        with h5py.File(out / "routing.h5") as file:
            slots = file["dispatch/expert_slots"][:].astype(np.int64)
            traffic = file["dispatch/traffic"][:].astype(np.int64)
            tokens = len(file["tokens/id"])
            placement = file["dispatch/placement"][:]
            for i, layer in enumerate(sorted(file["routing"])):
                counts = np.bincount(file[f"routing/{layer}/expert"][:].ravel(), minlength=8)
                np.testing.assert_array_equal(slots[:, i].sum(0), counts)
                for rank in range(2):
                    self.assertEqual(traffic[:, i, :, rank].sum(), counts[placement[i] == rank].sum())
            self.assertEqual(traffic.sum(), 6 * 2 * tokens)
            self.assertEqual(file["dispatch/step_tokens"][:].sum(), tokens)
            self.assertEqual(file["dispatch/send_ranks"][:].sum(), 6 * tokens)

    def test_more_ranks_than_experts_is_refused(self):
        done = support.run("route", "--model", support.DEMO, "--corpus", f"t={self.write_text_corpus()}", "--out", self.folder / "run", ranks=9)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("8", done.stderr)
        self.assertFalse((self.folder / "run" / "run.json").exists())


if __name__ == "__main__":
    support.main()
