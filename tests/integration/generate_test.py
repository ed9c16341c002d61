"""Answers (route --generate): equal to routing whole documents again for every token, on any number of ranks, after any kill."""

import json
import os
import signal
import subprocess
import time

import h5py
import numpy as np
import support

LAYERS, E, K = 6, 8, 2
PREFILL, DECODE = 0, 1


def read(path, *names):
    with h5py.File(path) as file:
        return [file[name].asstr()[:] if h5py.check_string_dtype(file[name].dtype) else file[name][:].astype(np.int64) if file[name].dtype.kind == "u" else file[name][:] for name in names]


class Generate(support.TestCase):
    def options(self, corpus, out, *more, tokens=12):
        return ["route", "--model", support.DEMO, "--corpus", corpus, "--out", out, "--context", 100, "--generate", tokens, "--precision", "f32", "--quiet", *more]

    def prompts(self, lengths=(1, 7, 0, 30, 12, 80, 3), name="prompts"):
        """A corpus of ready tokens, ids of the demo model."""
        rng = np.random.default_rng(5)
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"id": f"q{i}", "tokens": rng.integers(3, 4096, n).tolist()}) + "\n" for i, n in enumerate(lengths)))
        return f"{name}={path},id=id"

    def route_ids(self, name, documents):
        """Routes documents of ready ids, each one window, without answers, and returns the record."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"tokens": [int(t) for t in ids]}) + "\n" for ids in documents))
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"ids={path}", "--out", self.folder / name, "--context", 100, "--precision", "f32", "--no-stats", "--quiet")
        return self.folder / name / "routing.h5"

    def documents(self, record):
        """The rows of each document: slices."""
        first, n = read(record, "documents/first_token", "documents/n_tokens")
        return [slice(int(a), int(a + b)) for a, b in zip(first, n)]

    def test_answers_equal_routing_again_for_every_token(self):
        record = self.folder / "run" / "routing.h5"
        self.switchyard(*self.options(self.prompts(), self.folder / "run", tokens=4))
        ids, phase, position, prompt = read(record, "tokens/id", "tokens/phase", "tokens/position", "documents/prompt_tokens")
        places = self.documents(record)
        self.assertEqual(prompt.tolist(), [1, 7, 0, 30, 12, 80, 3])
        documents = []
        for rows, n in zip(places, prompt):
            self.assertEqual(phase[rows].tolist(), [PREFILL] * n + [DECODE] * (4 if n else 0))
            self.assertEqual(position[rows].tolist(), list(range(n + (4 if n else 0))))
            documents.append(ids[rows][:n].tolist())
        for turn in range(4):
            again = self.route_ids(f"turn{turn}", documents)
            predicted, = read(again, "tokens/predicted")
            for i, rows in enumerate(self.documents(again)):
                if documents[i]:
                    documents[i].append(int(predicted[rows][-1]))
        self.assertEqual([d for rows in places for d in ids[rows].tolist()], [t for d in documents for t in d])
        self.assertEqual(places[-1].stop, len(ids))

        # Documents with their answers, as one text: but for phase, every row is the same, bit for bit.
        found, expected = support.rows(record), support.rows(self.route_ids("whole", documents))
        compared = 0
        for name in sorted(expected):
            if name == "tokens/phase" or not name.startswith(("tokens", "routing")):
                continue
            self.assertEqual(found[name].tobytes(), expected[name].tobytes(), name)
            compared += found[name].size
        self.assertGreater(compared, 150 * (5 + LAYERS * (2 * K + 1)))

    def test_equal_on_any_ranks_and_batches(self):
        corpus = self.text_prompts()
        for drawn in ((), ("--temperature", 0.8, "--seed", 3)):
            name = "drawn" if drawn else "greedy"
            self.switchyard(*self.options(corpus, self.folder / f"{name}1", *drawn))
            for ranks, more in ((2, ("--generate-batch", 3)), (3, ("--batch-tokens", 100, "--placement", "round-robin")), (1, ("--generate-batch", 1))):
                out = self.folder / f"{name}-{ranks}-{more[0]}"
                self.switchyard(*self.options(corpus, out, *drawn, *more), ranks=ranks)
                self.assert_same_rows(self.folder / f"{name}1" / "routing.h5", out / "routing.h5")
                self.assert_same_tables(self.folder / f"{name}1" / "stats.h5", out / "stats.h5")
        greedy, drawn = (read(self.folder / f"{name}1" / "routing.h5", "documents/response")[0] for name in ("greedy", "drawn"))
        self.assertGreater(sum(a != b for a, b in zip(greedy, drawn)), 10)
        self.assertGreater(sum(len(text) > 10 for text in greedy), 10)

    def text_prompts(self, documents=24):
        """Beginnings of sentences."""
        words = (support.TESTS.parent / "LICENSE").read_text().split()
        path = self.folder / "text.jsonl"
        path.write_text("".join(json.dumps({"id": f"d{i}", "text": " ".join(words[i * 37:i * 37 + i % 9])}) + "\n" for i in range(documents)))
        return f"text={path},id=id"

    def test_statistics_by_phase_are_those_of_the_rows(self):
        out = self.folder / "run"
        self.switchyard(*self.options(self.text_prompts(), out, "--block-tokens", 150, "--commit-seconds", 0, "--record", "logits"), ranks=2)
        self.assertGreater(len((out / "manifest.jsonl").read_text().splitlines()), 2)
        phase, ids, predicted, loss, document = read(out / "routing.h5", *(f"tokens/{name}" for name in ("phase", "id", "predicted", "loss", "document")))
        experts = np.stack(read(out / "routing.h5", *(f"routing/layer_{l:03d}/expert" for l in range(LAYERS))))
        names, count, tokens, documents = read(out / "stats.h5", "datasets/name", "load/count", "totals/tokens", "totals/documents")
        self.assertEqual(list(names), ["text", "text (decode)"])
        self.assertEqual(documents.tolist(), [24, len(set(document[phase == DECODE]))])
        for p in (PREFILL, DECODE):
            self.assertEqual(tokens[p], (phase == p).sum())
            self.assertGreater(tokens[p], 50)
            np.testing.assert_array_equal(count[p], [np.bincount(e[phase == p].ravel(), minlength=E) for e in experts])
        # A greedy answer is what was predicted; only a document's last token has no loss.
        last = np.append(document[1:] != document[:-1], True)
        np.testing.assert_array_equal(np.isnan(loss), last)
        np.testing.assert_array_equal(ids[1:][(phase[1:] == DECODE)], predicted[:-1][phase[1:] == DECODE])

        self.switchyard("reduce", out, "-o", self.folder / "again.h5", "--recompute", "--quiet", ranks=2)
        with h5py.File(out / "stats.h5") as stats, h5py.File(self.folder / "again.h5") as again:
            compared = []

            def compare(name, node):
                if isinstance(node, h5py.Dataset) and node.dtype.kind in "ui":
                    np.testing.assert_array_equal(again[name][...], node[...], name)
                    compared.append(name)

            stats.visititems(compare)
            self.assertGreater(len(compared), 40)

        self.switchyard("reduce", out, "-o", self.folder / "d.h5", "--per-document", 10, "--quiet")
        dataset, name, usage = read(self.folder / "d.h5", "documents/dataset", "documents/id", "documents/count")
        expected = []
        for p in (PREFILL, DECODE):
            for d in range(10):
                rows = (document == d) & (phase == p)
                if rows.any() or (p == PREFILL and not (document == d).any()):
                    expected.append((p, f"d{d}", [np.bincount(e[rows].ravel(), minlength=E).tolist() for e in experts]))
        self.assertEqual(list(zip(dataset.tolist(), name, usage.tolist())), expected)
        self.assertGreater(len(expected), 15)

    def test_killed_and_continued_on_other_ranks(self):
        corpus = self.text_prompts(60)
        options = lambda out: self.options(corpus, out, "--block-tokens", 150, "--commit-seconds", 0)
        reference = self.folder / "reference"
        self.switchyard(*options(reference))
        lines = lambda out: len((out / "manifest.jsonl").read_text().splitlines()) if (out / "manifest.jsonl").exists() else 0
        self.assertGreater(lines(reference), 5)
        interrupted = 0
        for turn, (first, second) in enumerate(((1, 3), (2, 1), (3, 2))):
            out = self.folder / f"killed{turn}"
            process = subprocess.Popen(support.command(*options(out), ranks=first), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            deadline = time.monotonic() + 60
            while lines(out) < 2 + turn and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            if process.poll() is None:
                interrupted += 1
                os.killpg(process.pid, signal.SIGKILL)
            self.kill_ranks(out)
            process.wait()
            self.switchyard(*options(out), ranks=second)
            self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
            self.assert_same_tables(reference / "stats.h5", out / "stats.h5")
        self.assertGreaterEqual(interrupted, 1)

    def test_prompts_are_the_template_and_are_cut_to_leave_room(self):
        corpus = self.text_prompts()
        template = ("--template", "[INST] {text} [/INST]", "--add-bos")
        self.switchyard(*self.options(corpus, self.folder / "run", *template))
        self.switchyard("route", "--model", support.DEMO, "--corpus", corpus, "--out", self.folder / "prompts", "--precision", "f32", "--quiet", *template)
        phase, ids, response = read(self.folder / "run" / "routing.h5", "tokens/phase", "tokens/id", "documents/response")
        prompts, pieces = read(self.folder / "prompts" / "routing.h5", "tokens/id", "vocabulary/piece")
        np.testing.assert_array_equal(ids[phase == PREFILL], prompts)
        self.assertEqual(sum((prompts == 1)), 24)  # BOS begins each
        for i, rows in enumerate(self.documents(self.folder / "run" / "routing.h5")):
            text = "".join(pieces[t] for t in ids[rows][phase[rows] == DECODE] if t > 2).replace("\u2581", " ")
            if "<0x" not in text:  # bytes are not pieces of text
                self.assertEqual(response[i].strip(), text.strip())

        self.switchyard(*self.options(self.prompts((88, 89, 150), "long"), self.folder / "long"))
        n, prompt, truncated, document, id_ = read(self.folder / "long" / "routing.h5", "documents/n_tokens", "documents/prompt_tokens", "documents/truncated", "tokens/document", "tokens/id")
        self.assertEqual((n.tolist(), prompt.tolist(), truncated.tolist()), ([100, 100, 100], [88, 88, 88], [0, 1, 1]))
        given = [json.loads(line)["tokens"] for line in (self.folder / "long.jsonl").read_text().splitlines()]
        for d in range(3):
            self.assertEqual(id_[document == d][:88].tolist(), given[d][:88])

    def test_the_end_token_ends_an_answer(self):
        corpus = self.prompts()
        self.switchyard(*self.options(corpus, self.folder / "whole"))
        record = self.folder / "whole" / "routing.h5"
        ids, prompt = read(record, "tokens/id", "documents/prompt_tokens")
        answers = [ids[rows][n:].tolist() for rows, n in zip(self.documents(record), prompt)]
        end = answers[1][4]
        model = self.folder / "model"
        model.mkdir()
        for name in ("model.safetensors", "tokenizer.model"):
            (model / name).symlink_to(support.DEMO / name)
        (model / "config.json").write_text(json.dumps({**json.loads((support.DEMO / "config.json").read_text()), "eos_token_id": [2, end]}))
        options = self.options(corpus, self.folder / "run")
        options[options.index("--model") + 1] = model
        self.switchyard(*options, ranks=2)
        record = self.folder / "run" / "routing.h5"
        ids, prompt = read(record, "tokens/id", "documents/prompt_tokens")
        found = [ids[rows][n:].tolist() for rows, n in zip(self.documents(record), prompt)]
        self.assertEqual(found, [a[:a.index(end) + 1] if end in a else a for a in answers])
        self.assertLessEqual(len(found[1]), 5)

    def test_dense_models_and_counts(self):
        path = self.folder / "p.jsonl"
        path.write_text("".join(json.dumps({"tokens": list(range(3, 3 + n))}) + "\n" for n in (20, 4)))
        for ranks in (1, 2):
            self.switchyard("route", "--model", support.GOLDEN / "mistral_swa", "--corpus", f"p={path}", "--out", self.folder / f"dense{ranks}", "--generate", 20, "--precision", "f32", "--quiet", ranks=ranks)
        self.assert_same_rows(self.folder / "dense1" / "routing.h5", self.folder / "dense2" / "routing.h5")
        with h5py.File(self.folder / "dense1" / "routing.h5") as record:
            self.assertEqual(record["documents/prompt_tokens"][:].tolist(), [20, 4])
            self.assertNotIn("response", record["documents"])  # there is no tokenizer
        corpus = self.text_prompts()
        self.switchyard(*self.options(corpus, self.folder / "rows"))
        self.switchyard(*self.options(corpus, self.folder / "counts", "--record", "counts"), ranks=2)
        for name in ("documents/response", "documents/n_tokens", "documents/first_token"):
            self.assertEqual(read(self.folder / "rows" / "routing.h5", name)[0].tolist(), read(self.folder / "counts" / "routing.h5", name)[0].tolist())
        self.assert_same_tables(self.folder / "rows" / "stats.h5", self.folder / "counts" / "stats.h5")

    def test_what_it_says(self):
        corpus = self.text_prompts()
        done = support.run(*[w for w in self.options(corpus, self.folder / "run") if w != "--quiet"])
        self.assertEqual(done.returncode, 0, done.stderr)
        n, prompt = read(self.folder / "run" / "routing.h5", "documents/n_tokens", "documents/prompt_tokens")
        self.assertIn(f"{n.sum():,} tokens, {(n - prompt).sum():,} of them generated,", done.stdout)
        self.assertIn("text (decode): ", done.stdout)
        done = self.switchyard(*self.options(corpus, self.folder / "dry", "--dry-run"))
        self.assertIn("answers' keys, values and routing up to ", done.stdout)
        for more, words in ((("--generate", 100), "--generate"), (("--temperature", -1), "--temperature"), (("--temperature", 1, "--generate", 0), "give --generate N too")):
            options = ["route", "--model", support.DEMO, "--corpus", corpus, "--out", self.folder / "x", "--context", 100, "--generate", 5, *more]
            if more.count("--generate"):
                del options[options.index("--generate"):options.index("--generate") + 2]
            done = support.run(*options)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(words, done.stderr)
        done = support.run(*self.options(corpus, self.folder / "run", tokens=11))
        self.assertEqual(done.returncode, 1)
        self.assertIn("generate", done.stderr)


if __name__ == "__main__":
    support.main()
