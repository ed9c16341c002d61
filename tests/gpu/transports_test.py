"""On a GPU, the record does not depend on ranks, transport, placement, moves of experts, halves or batch size, in f32 nor in bf16. Ranks share a GPU where there are too few."""

import json
import os
import pathlib
import sys

import h5py

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import support  # noqa: E402 (found by the line above)


class Transports(support.TestCase):
    def setUp(self):
        super().setUp()
        self.corpus = self.write_text_corpus()

    def words(self, name, *options):
        return ("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id,category=kind", "--out", self.folder / name, "--device", "gpu",
                "--context", 100, "--record", "logits", "--block-tokens", 3000, "--quiet", *options)

    def route(self, name, *options, ranks=1):
        self.switchyard(*self.words(name, *options), ranks=ranks)
        return self.folder / name

    def expect_any_transport(self, *precision):
        one = self.route("one", "--batch-tokens", 500, "--transport", "local", *precision)
        with h5py.File(one / "routing.h5") as file:
            self.assertGreater(len(file["tokens/id"]), 8000)
        copies = self.folder / "copies.json"
        copies.write_text(json.dumps({"rank_of_expert": [[[0, 1, 2], 0, 1, 2, [1, 2], 0, 1, 2]] * 6, "n_ranks": 3}))
        for name, ranks, *options in (("nccl", 1, "--transport", "nccl", "--batch-tokens", 500), ("mpi", 1, "--transport", "mpi", "--batch-tokens", 4096),
                                      ("two", 2, "--transport", "mpi", "--batch-tokens", 400), ("whole", 2, "--transport", "mpi", "--overlap", "off"),
                                      ("three", 3, "--transport", "mpi", "--placement", copies), ("moving", 3, "--transport", "mpi", "--rebalance-every", 1), ("four", 4, "--transport", "mpi", "--batch-tokens", 300)):
            with self.subTest(name):
                out = self.route(name, *options, *precision, ranks=ranks)
                self.assert_same_rows(one / "routing.h5", out / "routing.h5")
                self.assert_same_tables(one / "stats.h5", out / "stats.h5")

    def test_rows_are_identical_at_f32(self):
        self.expect_any_transport("--precision", "f32")

    def test_rows_are_identical_at_bf16(self):
        for grouped in ("cublaslt", "cutlass"):
            with self.subTest(grouped):
                self.folder = self.folder / grouped
                self.folder.mkdir()
                self.expect_any_transport("--precision", "bf16", "--grouped-matmul", grouped)

    def test_two_ranks_by_nccl(self):
        """By a GPU each, or by a NCCL (2.30.3 and later) that lets them share one."""
        one = self.route("one")
        for overlap in ("on", "off"):
            words = self.words(overlap, "--transport", "nccl", "--overlap", overlap)
            done = support.run(*words, ranks=2, env={"NCCL_MULTI_RANK_GPU_ENABLE": "1"})
            if done.returncode != 0 and "invalid usage" in done.stderr.lower():
                self.skipTest("needs two GPUs, or NCCL 2.30.3 or later")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assert_same_rows(one / "routing.h5", self.folder / overlap / "routing.h5")


if __name__ == "__main__":
    os.environ.setdefault("SWITCHYARD_TEST_GPUS", "0")
    support.main()
