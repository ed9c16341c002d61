"""Recorded runs against the reference implementation's outputs, through the checker of tests/golden."""

import subprocess
import sys

import support


class Golden(support.TestCase):
    def check(self, golden, model, context, ranks=1, precision="f32", placement="contiguous"):
        tokens = self.folder / "tokens.jsonl"
        checker = [sys.executable, str(support.GOLDEN / "check.py"), str(golden)]
        subprocess.run(checker + ["tokens", str(tokens)], check=True)
        out = self.folder / "run"
        self.switchyard("route", "--model", model, "--corpus", f"golden={tokens}", "--out", out, "--record", "logits", "--precision", precision,
                        "--context", context, "--placement", placement, "--quiet", ranks=ranks)
        verdict = subprocess.run(checker + ["compare", str(out / "routing.h5")], capture_output=True, text=True, check=False)
        self.assertEqual(verdict.returncode, 0, verdict.stdout + verdict.stderr)
        self.assertTrue(verdict.stdout.rstrip().endswith("ok"), verdict.stdout)
        self.assertIn("ok   tokens/loss", verdict.stdout)

    def test_mixtral(self):
        self.check(support.GOLDEN / "mixtral", support.GOLDEN / "mixtral", 256)

    def test_mixtral_on_three_ranks(self):
        self.check(support.GOLDEN / "mixtral", support.GOLDEN / "mixtral", 256, ranks=3, placement="round-robin")

    def test_mistral(self):
        self.check(support.GOLDEN / "mistral", support.GOLDEN / "mistral", 256)

    def test_mistral_with_sliding_window(self):
        self.check(support.GOLDEN / "mistral_swa", support.GOLDEN / "mistral_swa", 256)

    def test_deepseek(self):
        self.check(support.GOLDEN / "deepseek", support.GOLDEN / "deepseek", 256)

    def test_deepseek_on_two_ranks(self):
        self.check(support.GOLDEN / "deepseek", support.GOLDEN / "deepseek", 256, ranks=2)

    def test_grok1(self):
        self.check(support.GOLDEN / "grok1", support.GOLDEN / "grok1", 256)

    def test_demo(self):
        self.check(support.DEMO, support.DEMO, 512)


if __name__ == "__main__":
    support.main()
