"""The command line: help that teaches, options from a file, dry runs, synthetic models, bench, and the record in other tools."""

import json
import re
import subprocess
import sys

import h5py
import numpy as np
import support


class CommandLine(support.TestCase):
    def test_help_and_version(self):
        self.assertRegex(self.switchyard("--version").stdout, r"^switchyard \d+\.\d+\.\d+ \(.+\)\n$")
        overview = self.switchyard("--help").stdout
        for subcommand in ("route", "ablate", "probe", "import", "reduce", "compare", "place", "report", "tokens", "weights", "inspect", "synth", "bench"):
            self.assertIn(subcommand, overview)
            text = self.switchyard(subcommand, "--help").stdout
            self.assertIn("usage: switchyard " + subcommand, text)
            self.assertRegex(text, "(?i)example")
        done = support.run("rout")
        self.assertEqual(done.returncode, 2)
        self.assertIn("unknown subcommand 'rout'", done.stderr)

    def test_config_file_and_command_line_agree(self):
        corpus = self.write_text_corpus(documents=8)
        config = self.folder / "run.ini"
        config.write_text(f"model={support.DEMO}\ncorpus=text={corpus},id=id\ncontext=64\nrecord=counts\nadd-bos=yes\n")
        self.switchyard("route", "--config", config, "--out", self.folder / "a", "--record", "tokens", "--precision", "f32", "--quiet")
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={corpus},id=id", "--context", 64, "--add-bos", "--out", self.folder / "b", "--precision", "f32", "--quiet")
        self.assert_same_rows(self.folder / "a" / "routing.h5", self.folder / "b" / "routing.h5")
        options = json.loads((self.folder / "a" / "run.json").read_text())["options"]
        self.assertEqual((options["context"], options["record"], options["add-bos"]), (64, "tokens", "yes"))

    def test_dry_run_writes_nothing(self):
        corpus = self.write_text_corpus(documents=8)
        done = self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={corpus}", "--out", self.folder / "run", "--dry-run", ranks=2)
        self.assertIn("rank 1", done.stdout)
        self.assertRegex(done.stdout, r"memory about \d")
        self.assertRegex(done.stdout, r"69 bytes a token")
        self.assertFalse((self.folder / "run").exists())

    def test_summary_and_log(self):
        corpus = self.write_text_corpus()
        done = self.switchyard("route", "--model", support.DEMO, "--corpus", f"words={corpus},id=id", "--out", self.folder / "run", "--context", 128, ranks=2)
        with h5py.File(self.folder / "run" / "stats.h5") as stats:
            self.assertIn(f"words: {stats['totals/tokens'][0]:,} tokens of 40 documents, loss {stats['loss/mean'][0]:.3f}", done.stdout)
            top = int(np.argmax(stats["load/count"][0, 3]))
            self.assertRegex(done.stdout, rf"\n +3 .* {stats['load/cv'][0, 3]:.3f} +{stats['load/max_over_mean'][0, 3]:.3f} .* {top}: {100 * stats['load/usage'][0, 3, top]:.1f} %")
        self.assertIn("tokens/s with 2 ranks", done.stdout)
        for rank in range(2):
            self.assertIn("phases: attention", (self.folder / "run" / "log" / f"rank-000{rank}.log").read_text())

    def test_manifest_says_what_share_of_the_run_is_done(self):
        first, second = self.write_text_corpus("first.jsonl"), self.write_text_corpus("second.jsonl", seed=1)
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"first={first}", "--corpus", f"second={second}", "--out", self.folder / "run", "--context", 128,
                        "--block-tokens", 1000, "--commit-seconds", 0, "--quiet", ranks=2)
        details = [json.loads(line)["details"] for line in (self.folder / "run" / "manifest.jsonl").read_text().splitlines()]
        shares = [segment["share"] for segment in details]
        self.assertGreater(len(shares), 10)
        self.assertEqual(shares, sorted(shares))
        self.assertAlmostEqual(shares[-1], 1)
        end_of_first = max(segment["share"] for segment in details if segment["corpus"] == 0)
        self.assertAlmostEqual(end_of_first, first.stat().st_size / (first.stat().st_size + second.stat().st_size))
        self.assertLess(max(segment["share"] for segment in details if segment["next"]["corpus"] == 0), end_of_first)

    def test_sample_template_and_limits(self):
        corpus = self.write_text_corpus(documents=50)
        base = ["route", "--model", support.DEMO, "--context", 64, "--precision", "f32", "--quiet", "--corpus", f"t={corpus},id=id,category=kind"]
        self.switchyard(*base, "--out", self.folder / "a", "--sample", 10, "--seed", 3)
        self.switchyard(*base, "--out", self.folder / "b", "--sample", 10, "--seed", 3, ranks=2)
        self.switchyard(*base, "--out", self.folder / "c", "--sample", 10, "--seed", 4)
        self.assert_same_rows(self.folder / "a" / "routing.h5", self.folder / "b" / "routing.h5")
        ids = {}
        for name in "abc":
            with h5py.File(self.folder / name / "routing.h5") as file:
                ids[name] = [i.decode() for i in file["documents/id"][:]]
        self.assertEqual(len(ids["a"]), 10)
        self.assertEqual(ids["a"], sorted(ids["a"], key=lambda i: int(i[1:])))
        self.assertNotEqual(ids["a"], ids["c"])
        self.switchyard(*base, "--out", self.folder / "d", "--max-tokens", 777)
        with h5py.File(self.folder / "d" / "routing.h5") as file:
            self.assertEqual(len(file["tokens/id"]), 777)
            self.assertEqual(file["documents/truncated"][-1], 1)
            self.assertEqual(file["documents/n_tokens"][:].sum(), 777)
            kinds = self.kinds(corpus)[:len(file["documents/id"])]
            categories = [c.decode() for c in file["corpora/categories"][:]]
            self.assertEqual(categories, list(dict.fromkeys(kinds)))
            self.assertEqual([categories[c] for c in file["documents/category"][:]], kinds)
        self.switchyard(*base, "--out", self.folder / "e", "--max-documents", 4, "--template", "[INST] {kind}: {text} [/INST]")
        with h5py.File(self.folder / "e" / "routing.h5") as file:
            self.assertEqual(len(file["documents/id"]), 4)

    def kinds(self, corpus):
        return [json.loads(line)["kind"] for line in corpus.read_text().splitlines()]

    def test_corpora_of_all_formats_give_the_same_tokens(self):
        texts = ["one, two", 'three "four"', "five"]
        (self.folder / "t").mkdir()
        for i, text in enumerate(texts):
            (self.folder / "t" / f"{i}.txt").write_text(text)
        (self.folder / "lines.txt").write_text("\n".join(texts) + "\n")
        (self.folder / "blank.txt").write_text("\n\n".join(texts) + "\n")
        (self.folder / "c.csv").write_text("text,n\r\n" + "".join('"' + t.replace('"', '""') + f'",{i}\r\n' for i, t in enumerate(texts)))
        (self.folder / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        subprocess.run(["gzip", "-k", self.folder / "c.jsonl"], check=True)
        seen = {}
        corpora = {"files": "t", "lines": "lines.txt,split=line", "blank": "blank.txt,split=blank", "csv": "c.csv", "jsonl": "c.jsonl", "gz": "c.jsonl.gz"}
        words = [w for name, path in corpora.items() for w in ("--corpus", f"{name}={self.folder}/{path}")]
        self.switchyard("route", "--model", support.DEMO, *words, "--out", self.folder / "run", "--context", 64, "--quiet", "--precision", "f32", ranks=2)
        with h5py.File(self.folder / "run" / "routing.h5") as file:
            corpus = file["documents/corpus"][:][file["tokens/document"][:]]
            for i, name in enumerate(corpora):
                seen[name] = file["tokens/id"][:][corpus == i].tolist()
        self.assertGreater(len(seen["files"]), 5)
        for name, ids in seen.items():
            self.assertEqual(ids, seen["files"], name)

    def test_synthetic_models_run_and_bench(self):
        for layout in ("per-expert", "fused"):
            self.switchyard("synth", "--out", self.folder / layout, "--layers", 2, "--d-model", 64, "--experts", 5, "--layout", layout, "--shards", 2 if layout == "fused" else 1)
        corpus = self.folder / "c.jsonl"
        corpus.write_text(json.dumps({"tokens": list(range(200))}) + "\n")
        for layout, ranks in (("per-expert", 1), ("fused", 3)):
            self.switchyard("route", "--model", self.folder / layout, "--corpus", f"c={corpus}", "--out", self.folder / f"run-{layout}", "--context", 50, "--precision", "f32", "--quiet", ranks=ranks)
        self.assert_same_rows(self.folder / "run-per-expert" / "routing.h5", self.folder / "run-fused" / "routing.h5")
        done = self.switchyard("bench", "--model", self.folder / "fused", "--batch-tokens", 256, "--context", 64, "--repetitions", 1, ranks=2)
        self.assertEqual(len(re.findall(r"^record (off|counts|tokens|logits) .*tokens/s", done.stdout, re.M)), 4)

    def test_tokens_are_looked_up(self):
        corpus = self.write_text_corpus()
        out = self.folder / "run"
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"words={corpus},id=id", "--out", out, "--context", 128, "--quiet")
        with h5py.File(out / "stats.h5") as stats, h5py.File(out / "routing.h5") as record:
            self.assertEqual(stats["vocabulary/piece"][:].tolist(), record["vocabulary/piece"][:].tolist())
            pieces = [p.decode() for p in stats["vocabulary/piece"][:]]
            indptr, index, value = (stats[f"tokens/input/{c}"][:].astype(int) for c in ("indptr", "index", "value"))
            counts = np.zeros((6 * 4096, 8), int)
            counts[np.repeat(np.arange(6 * 4096), np.diff(indptr)), index] = value
            counts = counts.reshape(6, 4096, 8)
        self.assertEqual(len(pieces), 4096)
        top = int(np.argmax(counts[3, :, 5]))
        n, of_expert, of_token = counts[3, top, 5], counts[3, :, 5].sum(), counts[3, top].sum()
        done = self.switchyard("tokens", out / "stats.h5", "--expert", "3:5", "--top", 3)
        line = re.search(r"token\n(.*)\n", done.stdout).group(1).split()
        self.assertEqual(line[:2], [str(top), f"{n:,}"])
        self.assertEqual((line[2], line[4], line[6]), (f"{100 * n / of_expert:.2f}", f"{100 * n / of_token:.2f}", f"{n / of_expert / (of_token / counts[3].sum()):.2f}"))
        self.assertEqual(line[7], pieces[top])
        word = pieces.index("\u2581the")
        done = self.switchyard("tokens", out / "stats.h5", "--token", "the")
        best = int(np.argmax(counts[2, word]))
        self.assertRegex(done.stdout, rf"experts of token {word}, ")
        self.assertRegex(done.stdout, rf"\n +2 +{counts[2, word].sum():,}  .* {best}: {100 * counts[2, word, best] / counts[2, word].sum():.1f}")
        for words, code, needle in ((["--expert", "6:0"], 2, "0 to 5"), (["--expert", "three"], 2, "LAYER:EXPERT"), (["--token", "no such token"], 1, "not one token"),
                                    (["--id", "4096"], 2, "4096 tokens"), (["--expert", "0:0", "--dataset", "x"], 2, "words"), ([], 2, "--expert"),
                                    (["--expert", "0:0", "--by", "name"], 2, "count or lift")):
            done = support.run("tokens", out / "stats.h5", *words)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(needle, done.stderr)

    def test_the_documented_example_runs(self):
        corpus = self.write_text_corpus(documents=10)
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"words={corpus},id=id", "--out", self.folder / "run", "--context", 64, "--quiet")
        text = (support.TESTS.parent / "io" / "README.md").read_text()
        example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
        done = subprocess.run([sys.executable, "-c", example], cwd=self.folder, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        with h5py.File(self.folder / "run" / "stats.h5") as stats:
            self.assertIn(f"{stats['load/usage'][0, 5, 7]:.3f}"[:5], done.stdout)
            by_expert = dict(re.findall(r"^(\d) +(\d+) +\d", done.stdout, re.M))
            first = stats["load/slot_count"][0, 0, 0]
            self.assertEqual(by_expert, {str(e): str(n) for e, n in enumerate(first) if n > 0})
            self.assertGreater(len(by_expert), 3)

    def test_record_opens_in_h5dump_and_xarray(self):
        import xarray
        corpus = self.write_text_corpus(documents=10)
        out = self.folder / "run"
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"t={corpus},id=id", "--out", out, "--context", 64, "--quiet")
        for name in ("routing.h5", "stats.h5"):
            subprocess.run(["h5dump", "-H", out / name], check=True, capture_output=True)
            with h5py.File(out / name) as file:
                missing = []
                file.visititems(lambda path, node: missing.append(path) if isinstance(node, h5py.Dataset) and node.attrs.get("CLASS", b"") != b"DIMENSION_SCALE"
                                and not ("units" in node.attrs and "long_name" in node.attrs) else None)
                self.assertEqual(missing, [])
        with xarray.open_dataset(out / "stats.h5", engine="h5netcdf", group="load", phony_dims=None) as load:
            self.assertEqual(load["count"].dims, ("dataset", "layer", "expert"))
            self.assertEqual(load["count"].attrs["units"], "1")
        with xarray.open_dataset(out / "routing.h5", engine="h5netcdf", group="routing/layer_000", phony_dims=None) as layer:
            self.assertEqual(layer["expert"].dims, ("token", "slot"))
            self.assertEqual(layer["entropy"].attrs["units"], "nats")


if __name__ == "__main__":
    support.main()
