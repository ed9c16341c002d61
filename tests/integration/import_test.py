"""A run made of served lines = the run whose routing the lines carry, in each layout that engines return."""

import base64
import gzip
import json
import os
import signal
import subprocess
import time

import h5py
import numpy as np
import support

E, K, LAYERS = 8, 2, 6
ADDITIVE = ["totals/tokens", "load/slot_count", "load/position_count", "load/count", "coactivation/count", "flow/count", "flow/top1_count"]
ABSENT = ["load/balancing_loss", "load/balancing_loss_per_choice", "load/z_loss", "load/z_sum", "load/probability_sum", "weight/sum", "weight/mean", "weight/slot_mean", "entropy/mean",
          "entropy/min", "entropy/max", "entropy/mean_bits", "entropy/normalised", "entropy/std", "entropy/median", "margin/mean", "margin/std", "margin/median", "top_probability/mean",
          "top_probability/confident_share", "loss/mean", "loss/perplexity", "loss/accuracy"]
EMPTY = ["entropy/n", "entropy/histogram", "margin/n", "margin/histogram", "top_probability/n", "top_probability/histogram", "top_probability/confident", "weight/histogram", "loss/n",
         "ranks/steps", "ranks/layer_steps", "ranks/local_slots"]


def dense(stats, group, rows):
    """[dataset, rows, E] of a CSR table."""
    indptr, index, value = (stats[f"{group}/{column}"][:].astype(np.int64) for column in ("indptr", "index", "value"))
    datasets = len(stats["datasets/name"])
    table = np.zeros((datasets * rows, E), np.int64)
    table[np.repeat(np.arange(datasets * rows), np.diff(indptr)), index] = value
    return table.reshape(datasets, rows, E)


def paths(stats):
    found = {}
    for dataset, path, count in zip(stats["paths/dataset"][:], stats["paths/expert"][:].tolist(), stats["paths/count"][:].tolist()):
        found.setdefault(int(dataset), {})[tuple(path)] = count
    return found


def base64_of(experts):
    return base64.b64encode(experts.astype("<i4").tobytes()).decode()


class Import(support.TestCase):
    def setUp(self):
        super().setUp()
        self.routed = self.folder / "routed"
        corpus = self.folder / "short.jsonl"
        rng = np.random.default_rng(1)
        words = (support.TESTS.parent / "LICENSE").read_text().split()
        with corpus.open("w") as file:
            for i in range(40):
                count, start = int(rng.choice([0, 2, 9, 40, 120])), int(rng.integers(0, len(words) - 120))
                file.write(json.dumps({"id": f"d{i}", "text": " ".join(words[start:start + count])}) + "\n")
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"served={corpus},id=id", "--out", self.routed, "--context", 1024, "--precision", "f32", "--quiet")
        with h5py.File(self.routed / "routing.h5") as record:
            experts = np.stack([record[f"routing/layer_{l:03d}/expert"][:] for l in range(LAYERS)], 1)
            ids = record["tokens/id"][:]
            self.assertEqual((record["tokens/position"][:] == 0).sum(), (record["documents/n_tokens"][:] > 0).sum())  # a window a document
            begin, length = record["documents/first_token"][:].astype(int), record["documents/n_tokens"][:].astype(int)
            names = record["documents/id"].asstr()[:]
        # (id, token ids [n], experts [n, L, k], tokens of the prompt)
        self.documents = [(name, ids[b:b + n].tolist(), experts[b:b + n], int(rng.integers(0, n + 1)) if n > 0 else 0) for name, b, n in zip(names, begin, length)]
        self.assertGreater(sum(len(d[1]) for d in self.documents), 2000)
        self.assertGreater(sum(len(d[1]) == 0 for d in self.documents), 2)

    def write_lines(self, name, lines):
        path = self.folder / name
        with (gzip.open(path, "wt") if name.endswith(".gz") else path.open("w")) as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
        return path

    def importing(self, lines, out, *more):
        return ["import", lines, "--name", "served", "--experts", E, "-o", out, "--quiet", *more]

    def sglang_lines(self):
        """A token that was generated last has no routing."""
        for name, ids, experts, p in self.documents:
            p = max(p, 1)
            ids = ids + [7]
            yield {"text": "", "output_ids": ids[p:], "meta_info": {"id": name, "prompt_tokens": p, "completion_tokens": len(ids) - p, "routed_experts": base64_of(experts),
                                                                    "input_token_logprobs": [[None, i, None] for i in ids[:p]]}}

    def openai_lines(self):
        for name, ids, experts, p in self.documents:
            yield {"id": name, "choices": [{"index": 0, "text": "", "sgl_ext": {"routed_experts": base64_of(experts)}}],
                   "usage": {"prompt_tokens": p, "completion_tokens": len(ids) + 1 - p}}

    def vllm_lines(self):
        for name, ids, experts, p in self.documents:
            yield {"id": name, "prompt_token_ids": ids[:p], "prompt_routed_experts": experts[:p].tolist(), "usage": {"prompt_tokens": p, "completion_tokens": len(ids) - p},
                   "choices": [{"index": 0, "token_ids": ids[p:], "routed_experts": experts[p:].tolist()}]}

    def flat_lines(self):
        for name, ids, experts, _ in self.documents:
            yield {"id": name, "token_ids": ids, "routed_experts": experts.ravel().tolist()}

    def numpy_repetition(self, phase, prompt_of):
        """Pairs of neighbours of one phase and document, and by layer those with equal first choices and with a common expert."""
        pairs, top1, common = 0, np.zeros(LAYERS, int), np.zeros(LAYERS, int)
        for document in self.documents:
            experts, p = document[2], prompt_of(document)
            part = experts[:p] if phase == 0 else experts[p:]
            pairs += max(0, len(part) - 1)
            for l in range(LAYERS):
                top1[l] += (part[1:, l, 0] == part[:-1, l, 0]).sum()
                common[l] += (part[1:, l, :, None] == part[:-1, l, None, :]).any((1, 2)).sum()
        return pairs, top1, common

    def assert_absent(self, stats):
        for name in ABSENT:
            self.assertTrue(np.isnan(stats[name][...]).all(), name)
        for name in EMPTY:
            self.assertEqual(stats[name][...].sum(), 0, name)

    def assert_equal_to_routed(self, out, phases, has_ids):
        """Datasets by phase add up to the routed run, and repetition, which does not add up, is numpy's."""
        with h5py.File(self.routed / "stats.h5") as routed, h5py.File(out / "stats.h5") as stats:
            self.assertEqual(stats["datasets/name"].asstr()[:].tolist(), ["served", "served (decode)"][:phases])
            for name in ADDITIVE:
                np.testing.assert_array_equal(stats[name][:].sum(0), routed[name][0], name)
            np.testing.assert_array_equal(dense(stats, "groups", LAYERS * 1024).sum(0), dense(routed, "groups", LAYERS * 1024)[0])
            summed = {}
            for of_dataset in paths(stats).values():
                for path, count in of_dataset.items():
                    summed[path] = summed.get(path, 0) + count
            self.assertEqual(summed, paths(routed)[0])
            for phase in range(phases):
                prompt_of = {1: lambda d: len(d[1]), 2: lambda d: d[3]}[phases]
                pairs, top1, common = self.numpy_repetition(phase, prompt_of)
                self.assertGreater(pairs, 500)
                self.assertEqual(stats["repetition/pairs"][phase], pairs)
                np.testing.assert_array_equal(stats["repetition/top1"][phase], top1)
                np.testing.assert_array_equal(stats["repetition/any"][phase], common)
            if phases == 1:
                np.testing.assert_array_equal(stats["repetition/top1"][:], routed["repetition/top1"][:])
                self.assertEqual(stats["totals/windows"][0], routed["totals/windows"][0])
                self.assertEqual(stats["totals/documents"][0], 40)
            if has_ids:
                self.assertEqual(stats["totals/targets"][:].sum(), routed["totals/targets"][0])
                for which in ("input", "target"):
                    np.testing.assert_array_equal(dense(stats, f"tokens/{which}", LAYERS * 4096).sum(0), dense(routed, f"tokens/{which}", LAYERS * 4096)[0], which)
            else:
                self.assertEqual(len(stats["tokens/input/value"]), 0)
            self.assertEqual(len(stats["tokens/predicted/value"]), 0)
            self.assert_absent(stats)

    def assert_recomputed_is_equal(self, out):
        self.switchyard("reduce", out, "-o", self.folder / "again.h5", "--recompute", "--quiet", ranks=2)
        with h5py.File(out / "stats.h5") as stats, h5py.File(self.folder / "again.h5") as again:
            compared = []

            def compare(name, node):
                if isinstance(node, h5py.Dataset) and node.dtype.kind in "uif":
                    np.testing.assert_array_equal(again[name][...], node[...], name)  # NaN equals NaN
                    compared.append(name)

            stats.visititems(compare)
            self.assertGreater(len(compared), 90)

    def test_flat_lists_equal_the_routed_run(self):
        out = self.folder / "flat"
        lines = self.write_lines("flat.jsonl.gz", self.flat_lines())
        done = support.run(*self.importing(lines, out, "--vocabulary", 4096))
        self.assertEqual(done.returncode, 1)
        self.assertIn("--layers and --top-k", done.stderr)
        self.switchyard(*self.importing(lines, out, "--layers", LAYERS, "--top-k", K, "--vocabulary", 4096))
        self.assert_equal_to_routed(out, phases=1, has_ids=True)
        self.assert_recomputed_is_equal(out)
        with h5py.File(self.routed / "routing.h5") as routed, h5py.File(out / "routing.h5") as record:
            for name in ("tokens/id", "tokens/document", "tokens/position", "documents/id", "documents/first_token", "documents/n_tokens", *(f"routing/layer_{l:03d}/expert" for l in range(LAYERS))):
                np.testing.assert_array_equal(record[name][:], routed[name][:], name)
            for name in ("tokens/loss", "tokens/predicted", "routing/layer_000/weight", "routing/layer_000/entropy", "dispatch"):
                self.assertNotIn(name, record)

    def test_sglang_generate(self):
        out = self.folder / "sglang"
        lines = self.write_lines("sglang.jsonl", self.sglang_lines())
        options = ["--layers", LAYERS, "--top-k", K, "--vocabulary", 4096]
        self.documents = [(name, ids, experts, min(max(p, 1), len(ids))) for name, ids, experts, p in self.documents]
        self.switchyard(*self.importing(lines, out, *options, "--segment-tokens", 700))
        self.assertGreater(len((out / "manifest.jsonl").read_text().splitlines()), 2)
        with h5py.File(out / "stats.h5") as stats:
            # The last routed token's target, its successor, was generated and is known to the lines, but is no row.
            rows = sum(len(d[1]) for d in self.documents)
            self.assertEqual(stats["totals/tokens"][0], sum(d[3] for d in self.documents))
            self.assertEqual(stats["totals/tokens"][:].sum(), rows)
            self.assertEqual(stats["totals/documents"][0], 40)
            self.assertEqual(stats["totals/documents"][1], sum(d[3] < len(d[1]) for d in self.documents))
        self.assert_equal_to_routed(out, phases=2, has_ids=True)
        self.assert_recomputed_is_equal(out)

    def test_a_trimmed_prefix_is_no_prefill(self):
        name, ids, experts, _ = max(self.documents, key=lambda d: len(d[1]))
        n, p, begin = len(ids), 50, 20
        line = {"output_ids": ids[p:] + [7], "input_ids": ids[:p], "meta_info": {"id": name, "prompt_tokens": p, "completion_tokens": n + 1 - p, "routed_experts": base64_of(experts[begin:])}}
        out = self.folder / "trimmed"
        self.switchyard(*self.importing(self.write_lines("trimmed.jsonl", [line]), out, "--layers", LAYERS, "--top-k", K, "--vocabulary", 4096))
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as stats:
            self.assertEqual(record["tokens/id"][:].tolist(), ids[begin:])
            self.assertEqual(stats["totals/tokens"][:].tolist(), [p - begin, n - p])

    def test_sglang_openai_without_ids(self):
        for ext in ("sgl_ext", "sglext"):
            with self.subTest(ext):
                out = self.folder / ext
                lines = self.write_lines(f"{ext}.jsonl", [json.loads(json.dumps(line).replace("sgl_ext", ext)) for line in self.openai_lines()])
                self.switchyard(*self.importing(lines, out, "--layers", LAYERS, "--top-k", K, *(["--compress"] if ext == "sglext" else [])))
                self.assert_equal_to_routed(out, phases=2, has_ids=False)
        self.assert_recomputed_is_equal(out)
        with h5py.File(out / "routing.h5") as record:
            self.assertNotIn("tokens/id", record)
            self.assertEqual(set(np.unique(record["tokens/phase"][:])), {0, 1})

    def test_vllm_nested_lists(self):
        out = self.folder / "vllm"
        lines = self.write_lines("vllm.jsonl", self.vllm_lines())
        done = support.run(*self.importing(lines, out))
        self.assertEqual(done.returncode, 2)
        self.assertIn("--vocabulary", done.stderr)
        self.switchyard(*self.importing(lines, out, "--vocabulary", 4096))
        self.assert_equal_to_routed(out, phases=2, has_ids=True)
        self.assert_recomputed_is_equal(out)

    def test_vllm_outputs_in_one_array(self):
        """As the Python API gives them: lists of ids, and one array over prompt and completion without its last token."""
        out = self.folder / "outputs"
        lines = self.write_lines("outputs.jsonl", ({"request_id": name, "prompt_token_ids": ids[:p], "outputs": [{"token_ids": ids[p:] + [7], "routed_experts": experts.tolist()}]}
                                                   for name, ids, experts, p in self.documents))
        self.switchyard(*self.importing(lines, out, "--vocabulary", 4096))
        self.assert_equal_to_routed(out, phases=2, has_ids=True)

    def test_vllm_choices_share_their_prompt(self):
        a, b = sorted(self.documents, key=lambda d: -len(d[1]))[:2]
        line = {"id": "two", "prompt_routed_experts": a[2][:30].tolist(),
                "choices": [{"routed_experts": a[2][30:].tolist()}, {"routed_experts": b[2][5:].tolist()}]}
        out = self.folder / "two"
        self.switchyard(*self.importing(self.write_lines("two.jsonl", [line]), out))
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as stats:
            self.assertEqual(record["documents/id"].asstr()[:].tolist(), ["two", "two#1"])
            self.assertEqual(stats["totals/tokens"][:].tolist(), [30, len(a[1]) - 30 + len(b[1]) - 5])
            np.testing.assert_array_equal(stats["load/count"][1, 2], np.bincount(np.concatenate([a[2][30:, 2], b[2][5:, 2]]).ravel(), minlength=E))

    def test_named_fields_layers_and_categories(self):
        lines = self.write_lines("named.jsonl", ({"r": {"e": np.pad(experts, ((0, 0), (2, 0), (0, 0))).tolist()}, "n": p, "kind": "even" if i % 2 == 0 else "odd"}
                                                 for i, (_, _, experts, p) in enumerate(self.documents)))
        options = ["--routing-field", "r.e", "--prompt-tokens-field", "n", "--category-field", "kind"]
        done = support.run(*self.importing(lines, self.folder / "named", *options))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"named\.jsonl:\d+: token 0, layer 0: expert 0 is chosen twice.*--drop-layers 0")
        self.switchyard(*self.importing(lines, self.folder / "named", *options, "--drop-layers", "0,1"))
        with h5py.File(self.routed / "stats.h5") as routed, h5py.File(self.folder / "named" / "stats.h5") as stats, h5py.File(self.folder / "named" / "routing.h5") as record:
            np.testing.assert_array_equal(stats["load/count"][:].sum(0), routed["load/count"][0])
            self.assertEqual(stats["model/moe_layers"][:].tolist(), [2, 3, 4, 5, 6, 7])
            self.assertEqual(record["documents/id"].asstr()[:2].tolist(), ["named.jsonl:1", "named.jsonl:2"])
            self.assertEqual(record["corpora/categories"].asstr()[record["documents/category"][3]], "odd")
        self.switchyard(*self.importing(lines, self.folder / "numbered", *options, "--drop-layers", "0,1", "--moe-layers", "1,3,5,7,9,11"))
        with h5py.File(self.folder / "numbered" / "routing.h5") as record:
            self.assertEqual(sorted(record["routing"]), [f"layer_{l:03d}" for l in (1, 3, 5, 7, 9, 11)])

    def test_bad_lines(self):
        good = list(self.vllm_lines())
        whole = max(good, key=lambda line: len(line["prompt_routed_experts"]))

        def broken(change):
            line = json.loads(json.dumps(whole))
            change(line)
            return json.dumps(line)

        def set_expert(expert):
            return broken(lambda line: line["prompt_routed_experts"][3][2].__setitem__(1, expert))

        faults = {
            "not valid JSON": '{"id": ',
            "token 3, layer 2: expert 255 of 8": set_expert(255),
            "token 3, layer 2: expert -1 of 8": set_expert(-1),
            "token 3: 5 layers, expected 6": broken(lambda line: line["prompt_routed_experts"][3].pop()),
            "token 3: 1 experts in a layer, expected 2": broken(lambda line: line["prompt_routed_experts"][3][2].pop()),
            "no routing at choices.routed_experts": broken(lambda line: line["choices"][0].pop("routed_experts")),
            "nothing at id": broken(lambda line: line.pop("id")),
            "token ids at prompt_token_ids for a prompt of": broken(lambda line: line["prompt_token_ids"].pop()),
            "token id 4096 at choices.token_ids is not below 4096": broken(lambda line: line["choices"][0]["token_ids"].append(4096)),
            "an expert is no whole number": set_expert("three"),
        }
        lines = self.folder / "bad.jsonl"
        for number, (fault, line) in enumerate(faults.items()):
            with self.subTest(fault):
                lines.write_text(json.dumps(good[1]) + "\n\n" + line + "\n")
                done = support.run(*self.importing(lines, self.folder / f"bad-{number}", "--vocabulary", 4096))
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"{lines}:3: ", done.stderr)
                self.assertIn(fault, done.stderr)
        lines.write_text("\n".join([json.dumps(good[0]), *faults.values(), *(json.dumps(line) for line in good[1:]), *faults.values()]) + "\n")
        out = self.folder / "skipped"
        self.switchyard(*self.importing(lines, out, "--vocabulary", 4096, "--on-bad-line", "skip", "--segment-tokens", 900))
        self.assert_equal_to_routed(out, phases=2, has_ids=True)
        with h5py.File(out / "routing.h5") as record:
            self.assertEqual(record["corpora/skipped"][0], 2 * len(faults))
            places = record["corpora/skipped_places"].asstr()[:].tolist()
        self.assertEqual(len(places), 2 * len(faults))
        for place, (fault, number) in zip(places, [(f, n + 2) for n, f in enumerate(faults)] + [(f, n + 1 + len(faults) + 40) for n, f in enumerate(faults)]):
            self.assertIn(f"bad.jsonl:{number}: ", place)
            self.assertIn(fault, place)
        lines.write_text('{"a": 1}\n')
        done = support.run(*self.importing(lines, self.folder / "none"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("--routing-field", done.stderr)
        done = support.run(*self.importing(self.write_lines("v.jsonl", good), self.folder / "ranks"), ranks=2)
        self.assertEqual(done.returncode, 2)
        self.assertIn("runs in one process", done.stderr)

    def test_a_stopped_or_killed_import_goes_on(self):
        lines = self.write_lines("long.jsonl", (dict(line, id=f"{line['id']}-{turn}") for turn in range(12) for line in self.vllm_lines()))
        options = ["--vocabulary", 4096, "--segment-tokens", 800]
        reference = self.folder / "reference"
        self.switchyard(*self.importing(lines, reference, *options))
        segments = len((reference / "manifest.jsonl").read_text().splitlines())
        self.assertGreater(segments, 20)
        interrupted = {signal.SIGKILL: 0, signal.SIGTERM: 0}
        for turn, sent in enumerate([signal.SIGKILL, signal.SIGTERM] * 3):
            out = self.folder / f"stopped-{turn}"
            process = subprocess.Popen(support.command(*self.importing(lines, out, *options)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            manifest, deadline = out / "manifest.jsonl", time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline and not (manifest.exists() and len(manifest.read_text().splitlines()) > 3 * turn):
                time.sleep(0.002)
            if process.poll() is None:
                os.kill(process.pid, sent)
            _, errors = process.communicate(timeout=60)
            if process.returncode != 0:
                interrupted[sent] += 1
                self.assertEqual(process.returncode, 85 if sent == signal.SIGTERM else -signal.SIGKILL, errors)
                self.assertIn("not complete", self.switchyard("inspect", out).stdout)
            self.switchyard(*self.importing(lines, out, *options))
            self.assertIn("the run is complete", self.switchyard("inspect", out).stdout)
            self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
            self.assert_same_tables(reference / "stats.h5", out / "stats.h5", more_than=40)
        self.assertGreater(interrupted[signal.SIGKILL], 0)
        self.assertGreater(interrupted[signal.SIGTERM], 0)
        again = self.switchyard(*self.importing(lines, reference, *options))
        self.assertEqual(again.stdout, "")
        self.assertEqual(len((reference / "manifest.jsonl").read_text().splitlines()), segments)
        done = support.run(*self.importing(lines, reference, *options, "--token-tables", "none"))
        self.assertEqual(done.returncode, 1)
        self.assertIn('token-tables: "input,target" there, "none" now', done.stderr)
        with lines.open("a") as file:
            file.write("\n")
        done = support.run(*self.importing(lines, reference, *options))
        self.assertRegex(done.stderr, r"corpora\.0\.bytes: \d+ there, \d+ now")

    def test_a_document_longer_than_what_is_read_at_once(self):
        rng = np.random.default_rng(2)
        experts = [rng.integers(0, E, n) for n in (10, 300_000, 70_000, 3)]
        lines = self.write_lines("long.jsonl", ({"id": f"d{i}", "prompt_tokens": 5, "routed_experts": base64_of(e)} for i, e in enumerate(experts)))
        out = self.folder / "long"
        self.switchyard(*self.importing(lines, out, "--layers", 1, "--top-k", 1))
        self.assert_recomputed_is_equal(out)
        with h5py.File(out / "stats.h5") as stats:
            self.assertEqual(stats["totals/windows"][:].tolist(), [4, 3])
            self.assertEqual(stats["repetition/top1"][1, 0], sum((e[6:] == e[5:-1]).sum() for e in experts if len(e) > 5))

    def test_other_commands_take_it(self):
        out = self.folder / "vllm"
        lines = self.write_lines("vllm.jsonl", self.vllm_lines())
        done = self.switchyard("import", lines, "--name", "served", "--experts", E, "--vocabulary", 4096, "-o", out)
        self.assertRegex(done.stdout, r"served \(decode\): [\d,]+ tokens of \d+ documents, loss - nats/token, next token right - %")
        self.assertNotRegex(done.stdout.lower(), r"\bnan\b")
        inspected = self.switchyard("inspect", out / "routing.h5").stdout
        self.assertIn("without loss,predicted,weight,entropy", inspected)
        compared = self.switchyard("compare", out, "-o", self.folder / "c.h5", "--bootstrap", 50, "--permutations", 50).stdout
        self.assertIn("served (decode)", compared)
        with h5py.File(self.folder / "c.h5") as file, h5py.File(out / "stats.h5") as stats:
            u, v = stats["load/usage"][0], stats["load/usage"][1]
            np.testing.assert_allclose(file["compare/tv"][0, 1], np.abs(u - v).sum(1) / 2, rtol=1e-12)
        self.switchyard("tokens", out / "stats.h5", "--expert", "2:3", "--min-count", 1)
        both = self.switchyard("reduce", out, self.routed, "-o", self.folder / "both.h5")
        self.assertIn("routed/served", both.stdout)
        with h5py.File(self.folder / "both.h5") as stats:
            self.assertEqual(stats["datasets/name"].asstr()[:].tolist(), ["vllm/served", "served (decode)", "routed/served"])
            self.assertTrue(np.isnan(stats["load/z_loss"][:2]).all())
            self.assertFalse(np.isnan(stats["load/z_loss"][2]).any())
        self.switchyard("reduce", out / "stats.h5", "-o", self.folder / "again.h5", "--csv", self.folder / "csv", "--quiet")
        self.assert_same_tables(out / "stats.h5", self.folder / "again.h5")
        # Two runs of the same tokens: one routed, one imported, agree wholly.
        saturation = self.switchyard("compare", self.routed, out, "-o", self.folder / "s.h5", "--bootstrap", 50, "--permutations", 50)
        self.assertIn("by chance", saturation.stdout)
        with h5py.File(self.folder / "s.h5") as file:
            np.testing.assert_array_equal(file["saturation/value"][:], 1.0)


if __name__ == "__main__":
    support.main()
