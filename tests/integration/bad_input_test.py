"""Bad input: one clear error that names the file, the place and the remedy, exit code 1 (2 for wrong usage), nothing half-written that looks whole."""

import json
import os
import shutil
import struct
import subprocess
import time

import h5py
import numpy as np
import support


class BadInput(support.TestCase):
    def setUp(self):
        super().setUp()
        self.corpus = self.folder / "corpus.jsonl"
        self.corpus.write_text('{"id": "a", "tokens": [1, 2, 3, 4, 5]}\n')
        self.model = self.folder / "model"
        shutil.copytree(support.GOLDEN / "mixtral", self.model)

    def refused(self, *needles, code=1, options=(), corpus=None, model=None, out=None, ranks=1):
        out = out or self.folder / "run"
        done = support.run("route", "--model", model or self.model, "--corpus", f"c={corpus or self.corpus}", "--out", out, "--context", 64, *options, ranks=ranks)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        messages = [line for line in done.stderr.splitlines() if line.startswith("switchyard: ")]
        self.assertEqual(len(messages), 1, done.stderr)
        for needle in needles:
            self.assertIn(str(needle), done.stderr)
        self.assertFalse((out / "routing.h5").exists())
        return done

    def header(self):
        raw = (self.model / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        return json.loads(raw[8:8 + length]), raw[8 + length:]

    def write(self, header, data):
        text = json.dumps(header).encode()
        (self.model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)

    def test_truncated_safetensors(self):
        path = self.model / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        self.refused("model.safetensors")

    def test_truncated_safetensors_on_several_ranks(self):
        path = self.model / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        self.refused("model.safetensors", ranks=3)

    def test_overlapping_tensors(self):
        header, data = self.header()
        names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])
        begin, end = header[names[1]]["data_offsets"]
        header[names[1]]["data_offsets"] = [begin - 2, end - 2]
        self.write(header, data)
        self.refused("model.safetensors", names[1])

    def test_missing_shard(self):
        header, _ = self.header()
        os.rename(self.model / "model.safetensors", self.model / "model-00001-of-00002.safetensors")
        index = {"weight_map": {name: "model-00001-of-00002.safetensors" for name in header if name != "__metadata__"}}
        index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
        (self.model / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused("model-00002-of-00002.safetensors")

    def test_missing_tensor(self):
        header, data = self.header()
        header["somebody.else"] = header.pop("model.layers.1.block_sparse_moe.experts.3.w2.weight", None) or header.pop(next(n for n in header if "down_proj" in n or "w2" in n))
        self.write(header, data)
        self.refused(self.model)

    def test_missing_config_key(self):
        path = self.model / "config.json"
        config = json.loads(path.read_text())
        del config["num_attention_heads"]
        path.write_text(json.dumps(config))
        self.refused("config.json", "num_attention_heads")

    def test_unknown_family(self):
        path = self.model / "config.json"
        config = json.loads(path.read_text())
        config["model_type"] = "abacus"
        path.write_text(json.dumps(config))
        self.refused("abacus", "mixtral")

    def test_nan_in_router(self):
        header, data = self.header()
        name = next(n for n in header if ".1." in n and n.endswith("gate.weight"))
        begin, end = header[name]["data_offsets"]
        data = data[:begin] + b"\xff\x7f" * ((end - begin) // 2) + data[end:]
        self.write(header, data)
        self.refused("layer 1", "token")

    def test_no_model_folder(self):
        self.refused("nowhere", model=self.folder / "nowhere")

    def test_wrong_tokenizer_vocabulary(self):
        shutil.copy(support.GOLDEN / "tokenizer" / "mixtral.model", self.model / "tokenizer.model")
        self.refused("tokenizer.model", "32000", "160")

    def test_token_outside_the_vocabulary(self):
        self.corpus.write_text('{"id": "a", "tokens": [1, 160]}\n')
        self.refused("160", "corpus c")

    def test_text_without_a_tokenizer(self):
        self.corpus.write_text('{"id": "a", "text": "hello"}\n')
        self.refused("tokenizer.model")

    def test_unreadable_line_fails_by_default(self):
        self.corpus.write_text('{"id": "a", "tokens": [1, 2]}\n{"id": "b", "tokens": [3,\n{"id": "c", "tokens": [4]}\n')
        self.refused("corpus.jsonl:2", "--on-bad-document=skip")

    def test_unreadable_line_is_skipped_and_named_on_request(self):
        self.corpus.write_text('{"id": "a", "tokens": [1, 2]}\n{"id": "b", "tokens": [3,\n{"id": "c", "tokens": [4]}\n')
        out = self.folder / "run"
        self.switchyard("route", "--model", self.model, "--corpus", f"c={self.corpus},id=id", "--out", out, "--context", 64, "--on-bad-document", "skip", "--quiet")
        with h5py.File(out / "routing.h5") as file:
            self.assertEqual(file["corpora/skipped"][:].tolist(), [1])
            self.assertEqual(file["corpora/documents"][:].tolist(), [2])
            self.assertIn("corpus.jsonl:2", np.char.decode(file["corpora/skipped_places"][:].astype("S"))[0])
            self.assertEqual(file["tokens/id"][:].tolist(), [1, 2, 4])

    def test_a_later_corpus_without_its_column_is_refused_before_the_first_is_routed(self):
        table = self.folder / "table.csv"
        table.write_text("title,body\nx,y\n")
        done = support.run("route", "--model", self.model, "--corpus", f"c={self.corpus},id=id", "--corpus", f"t={table},field=boddy", "--out", self.folder / "run", "--quiet")
        self.assertEqual(done.returncode, 1)
        self.assertIn('table.csv: no column "boddy"', done.stderr)
        self.assertFalse((self.folder / "run" / "segments").exists())

    def test_missing_corpus(self):
        self.refused("gone.jsonl", corpus=self.folder / "gone.jsonl")

    def test_unknown_option(self):
        self.refused("--frobnicate", "--help", code=2, options=["--frobnicate"])

    def test_wrong_values(self):
        for options, needles in ((["--record", "all"], ["counts", "tokens", "logits"]), (["--precision", "f64"], ["bf16", "f32"]), (["--transport", "pigeon"], ["local", "mpi"]),
                                 (["--context", "0"], ["--context"]), (["--batch-tokens", "10"], ["--batch-tokens"]),
                                 (["--threads", "-1"], ["--threads"]), (["--token-tables", "output"], ["input", "target", "predicted"])):
            with self.subTest(options):
                words = ["route", "--model", self.model, "--corpus", f"c={self.corpus}", "--out", self.folder / "run"] + (["--context", "64"] if "--context" not in options else [])
                done = support.run(*words, *options)
                self.assertEqual(done.returncode, 2, done.stderr)
                for needle in needles:
                    self.assertIn(needle, done.stderr)

    def test_local_transport_on_two_ranks(self):
        self.refused("local", code=2, options=["--transport", "local"], ranks=2)

    def test_bad_placement_file(self):
        path = self.folder / "placement.json"
        path.write_text('{"rank_of_expert": [[0, 0, 0, 0, 0, 0, 0, 7]]}')
        self.refused("placement.json", "7", options=["--placement", path])

    def test_out_that_cannot_be_written(self):
        self.refused("/proc/switchyard", out=support.pathlib.Path("/proc/switchyard"))

    @support.unittest.skipUnless(os.geteuid() == 0, "needs root to mount a small file system")
    def test_full_disk_and_read_only_out(self):
        mount = self.folder / "small"
        mount.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], capture_output=True, check=False).returncode != 0:
            self.skipTest("tmpfs cannot be mounted here")
        self.addCleanup(subprocess.run, ["umount", mount], check=False)
        tokens = np.random.default_rng(0).integers(1, 160, 30000).tolist()
        self.corpus.write_text(json.dumps({"id": "a", "tokens": tokens}) + "\n")
        done = self.refused(mount, out=mount / "run", ranks=2)
        self.assertRegex(done.stderr, "(?i)disk|space|room")
        deadline = time.monotonic() + 60
        while subprocess.run(["mount", "-o", "remount,ro", mount], capture_output=True, check=False).returncode != 0:  # busy until the last rank has ended
            self.assertLess(time.monotonic(), deadline, "the file system stays busy")
            time.sleep(0.1)
        done = self.refused(mount, out=mount / "other")
        self.assertRegex(done.stderr, "(?i)read-only")

    def test_reduce_of_nothing(self):
        done = support.run("reduce", self.folder, "-o", self.folder / "s.h5")
        self.assertEqual(done.returncode, 1)
        self.assertIn("run.json", done.stderr)
        self.assertFalse((self.folder / "s.h5").exists())

    def test_inspect_of_foreign_files(self):
        for name, content in (("text.h5", b"hello"), ("empty.h5", b"")):
            path = self.folder / name
            path.write_bytes(content)
            done = support.run("inspect", path)
            self.assertEqual(done.returncode, 1)
            self.assertIn(name, done.stderr)


if __name__ == "__main__":
    support.main()
