"""The record does not depend on ranks, transport, placement or batch size."""

import json

import h5py
import numpy as np
import support


class Ranks(support.TestCase):
    def route(self, name, corpus, *options, ranks=1, batch_tokens=500, block_tokens=3000):
        out = self.folder / name
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={corpus},id=id,category=kind", "--out", out, "--context", 100,
                        "--batch-tokens", batch_tokens, "--block-tokens", block_tokens, "--quiet", *options, ranks=ranks)
        return out

    def test_rows_are_identical_at_f32(self):
        corpus = self.write_text_corpus()
        reference = self.route("one", corpus, "--precision", "f32", "--record", "logits", "--transport", "local")
        with h5py.File(reference / "routing.h5") as file:
            self.assertGreater(len(file["tokens/id"]), 8000)
            self.assertEqual(len(file["documents/id"]), 40)
        placement = self.folder / "placement.json"
        placement.write_text(json.dumps({"rank_of_expert": [[1, 1, 1, 1, 1, 1, 1, 1]] * 3 + [[0, 1, 1, 0, 1, 1, 1, 0]] * 3}))
        copies = self.folder / "copies.json"  # on three ranks
        copies.write_text(json.dumps({"rank_of_expert": [[[0, 1, 2], 0, 1, 2, [1, 2], 0, 1, 2]] * 3 + [[0, [0, 2], [0, 1, 2], 2, 2, 0, 1, 2]] * 3, "n_ranks": 3}))
        variants = [("mpi1", 1, 500, ["--transport", "mpi"]), ("two", 2, 500, []), ("three", 3, 300, ["--placement", "round-robin"]),
                    ("four", 4, 500, []), ("file", 2, 500, ["--placement", str(placement)]), ("batches", 2, 4096, ["--threads", "2"]),
                    ("copies", 3, 500, ["--placement", str(copies)]), ("local", 3, 500, ["--placement", str(copies), "--copies", "local"]),
                    ("halves", 2, 500, ["--overlap", "on"]), ("copies in halves", 3, 500, ["--placement", str(copies), "--overlap", "on"])]
        for name, ranks, batch_tokens, options in variants:
            with self.subTest(name):
                block_tokens = 8 * batch_tokens if name == "batches" else 3000  # then ranks receive enough rows of each expert to run them as they arrive
                out = self.route(name, corpus, "--precision", "f32", "--record", "logits", *options, ranks=ranks, batch_tokens=batch_tokens, block_tokens=block_tokens)
                self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
                self.assert_same_tables(reference / "stats.h5", out / "stats.h5")

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

    def test_traffic_of_copies_adds_up(self):
        """Slots of every copy, traffic and ranks reached equal those counted from the rows by the rule's words."""
        corpus = self.write_text_corpus()
        ranks_of = [[0, 1], [0], [1], [0], [0, 1], [1], [0], [1]]
        placement = self.folder / "copies.json"
        placement.write_text(json.dumps({"rank_of_expert": [ranks_of]}))
        for rule in ("token", "local"):
            out = self.route(rule, corpus, "--precision", "f32", "--placement", placement, "--copies", rule, ranks=2)
            with h5py.File(out / "routing.h5") as file:
                logical, rank_of = file["dispatch/logical"][:], file["dispatch/placement"][:]
                self.assertEqual(logical.tolist(), [[e for e in range(8) for _ in ranks_of[e]]] * 6)
                self.assertEqual(rank_of.tolist(), [sum(ranks_of, [])] * 6)
                step_tokens, blocks = file["dispatch/step_tokens"][:].astype(int), file["dispatch/block"][:]
                slots = file["dispatch/expert_slots"][:]
                traffic, reached = file["dispatch/traffic"][:], file["dispatch/send_ranks"][:]
                n_blocks = len(traffic)
                # Rows of a block: rank 0's steps, then rank 1's. A token's number is that in its step.
                source, step_of, number = [], [], []
                for block in range(n_blocks):
                    for rank in range(2):
                        for step in np.flatnonzero(blocks == block):
                            n = step_tokens[step, rank]
                            source += [rank] * n
                            step_of += [step] * n
                            number += range(n)
                source, step_of, number = map(np.array, (source, step_of, number))
                self.assertEqual(len(source), len(file["tokens/id"]))
                self.assertGreater(n_blocks, 2)
                first = np.searchsorted(logical[0], np.arange(8))
                copies = np.bincount(logical[0])
                for i, layer in enumerate(sorted(file["routing"])):
                    expert = file[f"routing/{layer}/expert"][:].astype(int)
                    copy = (number + source)[:, None] % copies[expert]
                    if rule == "local":
                        copy = np.where(copies[expert] == 2, source[:, None], copy)
                    physical = first[expert] + copy
                    expected = np.zeros_like(slots[:, i])
                    np.add.at(expected, (step_of[:, None].repeat(2, 1), physical), 1)
                    np.testing.assert_array_equal(slots[:, i], expected)
                    target = rank_of[i][physical]
                    sent = np.zeros_like(traffic[:, i])
                    np.add.at(sent, (blocks[step_of][:, None].repeat(2, 1), source[:, None].repeat(2, 1), target), 1)
                    np.testing.assert_array_equal(traffic[:, i], sent)
                    distinct = np.bincount(1 + (target[:, 0] != target[:, 1]), minlength=3)
                    np.testing.assert_array_equal(reached[:, i].sum(0), distinct)
                if rule == "local":
                    self.assertLess(traffic[:, :, 0, 1].sum() + traffic[:, :, 1, 0].sum(), other_traffic)
                other_traffic = traffic[:, :, 0, 1].sum() + traffic[:, :, 1, 0].sum()

    def test_experts_that_move_while_a_run_goes_on(self):
        """Same rows; slots and traffic of each segment follow its own placement; experts move where that would have been better for the block before."""
        corpus = self.write_text_corpus()
        reference = self.route("one", corpus, "--precision", "f32", "--record", "logits")
        copies = self.folder / "copies.json"  # on three ranks
        copies.write_text(json.dumps({"rank_of_expert": [[[0, 1, 2], 0, 1, 2, [1, 2], 0, 1, 2]] * 6, "n_ranks": 3}))
        variants = [("two", 2, 1, []), ("three", 3, 2, ["--placement", "round-robin", "--rebalance-method", "greedy"]), ("four", 4, 1, []),
                    ("copies", 3, 1, ["--placement", copies]), ("local", 3, 1, ["--placement", copies, "--copies", "local"])]
        for name, ranks, every, options in variants:
            with self.subTest(name):
                out = self.route(name, corpus, "--precision", "f32", "--record", "logits", "--rebalance-every", every, *options, ranks=ranks)
                self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
                self.assert_same_tables(reference / "stats.h5", out / "stats.h5")
                changed, sums, before = 0, [], None
                for path in sorted((out / "segments").iterdir()):
                    with h5py.File(path) as file:
                        here = {t: file[f"dispatch/{t}"][:].astype(int) for t in ("placement", "logical", "expert_slots")}
                        here["expert"] = [file[f"routing/{layer}/expert"][:].astype(int) for layer in sorted(file["routing"])]
                        traffic = file["dispatch/traffic"][:]
                    self.assertLessEqual(len(traffic), every)
                    for i in range(6):
                        holder, logical, slots = (here[t][i] if t != "expert_slots" else here[t][:, i] for t in ("placement", "logical", "expert_slots"))
                        of_expert = np.zeros(8, int)
                        np.add.at(of_expert, logical, slots.sum(0))
                        np.testing.assert_array_equal(of_expert, np.bincount(here["expert"][i].ravel(), minlength=8))
                        load = self.rank_load(slots, holder, ranks)
                        np.testing.assert_array_equal(traffic[:, i].sum((0, 1)), load.sum(0))
                        sums.append((i, load.mean(1).sum(), load.max(1).sum()))
                        if before is not None and sorted(zip(logical, holder)) != sorted(zip(before["logical"][i], before["placement"][i])):
                            changed += 1
                            if name in ("two", "four"):
                                was = self.objective(before["expert_slots"][:, i], before["expert"][i], before["placement"][i], ranks)
                                self.assertLess(self.objective(before["expert_slots"][:, i], before["expert"][i], holder, ranks), 0.99 * was)
                    before = here
                self.assertGreater(changed, 3)
                with h5py.File(out / "stats.h5") as file:
                    for i, ratio in enumerate(file["ranks/balancedness_ratio"][0]):
                        self.assertAlmostEqual(ratio, sum(s[1] for s in sums if s[0] == i) / sum(s[2] for s in sums if s[0] == i), places=9)

    @staticmethod
    def rank_load(slots, holder, ranks):
        """[steps, ranks] of slots [steps, physical experts]."""
        load = np.zeros((len(slots), ranks))
        np.add.at(load.T, holder, slots.T)
        return load

    def objective(self, slots, experts, holder, ranks):
        """What `search` makes small on one node: largest over mean rank load, and a tenth of the tokens' pairs of experts that lie on two ranks."""
        load = self.rank_load(slots, holder, ranks)
        return load.max(1).sum() / load.mean(1).sum() + 0.1 * np.mean(holder[experts[:, 0]] != holder[experts[:, 1]])

    def test_times_of_ranks_lie_on_one_clock(self):
        """Parts follow one another, phases are their sums, and no rank has its rows before the last one has come to send them."""
        corpus = self.write_text_corpus()
        out = self.route("three", corpus, "--precision", "f32", ranks=3)
        with h5py.File(out / "routing.h5") as file:
            dispatch = {name: file[f"dispatch/{name}"][:] for name in ("step_begin", "layer_end", "seconds", "block", "clock_offset", "clock_uncertainty", "traffic_block")}
            part = {name.decode(): i for i, name in enumerate(file["dispatch/part_name"][:])}
            phase = {name.decode(): i for i, name in enumerate(file["dispatch/phase_name"][:])}
        ends = dispatch["layer_end"].astype(np.float64)
        steps = len(dispatch["block"])
        self.assertGreater(steps, 10)
        self.assertEqual(ends.shape, (steps, 6, 3, 11))
        self.assertEqual(dispatch["clock_offset"].shape, (len(dispatch["traffic_block"]), 3))
        self.assertTrue((dispatch["clock_offset"][:, 0] == 0).all())
        self.assertTrue((dispatch["clock_uncertainty"][:, 1:] > 0).all())
        self.assertLess(dispatch["clock_uncertainty"].max(), 0.1)
        # One after another, through the layers.
        timeline = ends.transpose(0, 2, 1, 3).reshape(steps, 3, -1)
        self.assertTrue((np.diff(timeline, axis=2) >= 0).all())
        self.assertTrue((timeline[:, :, 0] > 0).all())
        self.assertTrue((np.diff(dispatch["step_begin"], axis=0) > 0).all())
        lengths = np.diff(ends, axis=3)
        for name, parts in (("wait", ("dispatch_wait", "combine_wait")), ("router", ("router",)), ("combine", ("scatter", "combine")), ("experts", ("shared", "experts"))):
            expected = sum(lengths[..., part[p] - 1].sum(1) for p in parts)
            np.testing.assert_allclose(dispatch["seconds"][:, :, phase[name]], expected, rtol=1e-3, atol=2e-5, err_msg=name)
        # On the common clock: a rank ends its dispatch, which exchanges counts, after every rank has begun it.
        absolute = dispatch["step_begin"][:, None, :, None] + ends
        begun, ended = absolute[..., part["router"]], absolute[..., part["dispatch"]]
        slack = dispatch["clock_uncertainty"].max() * 2 + 1e-5
        self.assertTrue((ended.min(2) >= begun.max(2) - slack).all())
        self.assertGreater((begun.max(2) - begun.min(2)).max(), 0)

    def test_trace(self):
        """Every part of the chosen steps, where the record has it; parts lie within layers, layers within steps."""
        out = self.route("two", self.write_text_corpus(), "--precision", "f32", "--commit-seconds", 0, ranks=2)
        trace = self.folder / "trace.json"
        with h5py.File(out / "segments" / "segment-000000.h5") as segment:
            before = len(segment["dispatch/block"])  # the range goes over the end of a segment
        chosen = range(before - 1, before + 2)
        done = self.switchyard("inspect", out, "--trace", trace, "--steps", f"{chosen[0]}-{chosen[-1]}")
        self.assertIn("3 steps in ", done.stdout)
        events = json.loads(trace.read_text())["traceEvents"]
        self.assertEqual({(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"}, {(0, "rank 0"), (1, "rank 1")})
        with h5py.File(out / "routing.h5") as file:
            ends, begin = file["dispatch/layer_end"][:].astype(float), file["dispatch/step_begin"][:]
            slots, tokens = file["dispatch/expert_slots"][:], file["dispatch/step_tokens"][:]
            names = [name.decode() for name in file["dispatch/part_name"][:]]
        zero, expected = begin[chosen[0]].min(), []  # the first rank to begin
        for step in chosen:
            for rank in range(2):
                start = lambda seconds: (begin[step, rank] - zero + seconds) * 1e6
                expected.append((rank, f"step {step}", start(0), ends[step, 5, rank, -1] * 1e6, {"tokens": tokens[step, rank]}))
                last = 0
                for layer in range(6):
                    expected.append((rank, f"layer {layer}", start(last), (ends[step, layer, rank, -1] - last) * 1e6, {}))
                    for part, name in enumerate(names):
                        end = ends[step, layer, rank, part]
                        about = {"slots": slots[step, layer, 4 * rank:4 * rank + 4].sum()} if name == "experts" else {}
                        if end > last:
                            expected.append((rank, name, start(last), (end - last) * 1e6, about))
                        last = end
        found = [e for e in events if e["ph"] == "X"]
        self.assertEqual(len(found), len(expected))
        self.assertGreater(len(found), 300)
        self.assertEqual(min(e["ts"] for e in found), 0)
        for event, (rank, name, ts, duration, about) in zip(found, expected):
            self.assertEqual((event["pid"], event["name"]), (rank, name))
            np.testing.assert_allclose((event["ts"], event["dur"]), (ts, duration), rtol=1e-6, atol=0.2)
            self.assertEqual({key: event["args"][key] for key in about}, about)
        for words, code, said in ((("--steps", "99999"), 1, "name steps from 0 to"), (("--steps", "5-3"), 2, "--steps")):
            done = support.run("inspect", out, "--trace", self.folder / "no.json", *words)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(said, done.stderr)
            self.assertFalse((self.folder / "no.json").exists())

    def test_probe_takes_no_copies(self):
        placement = self.folder / "copies.json"
        placement.write_text(json.dumps({"rank_of_expert": [[[0, 1], 0, 1, 0, 1, 0, 1, 1]]}))
        done = support.run("probe", "--model", support.DEMO, "--corpus", f"t={self.write_text_corpus()}", "--placement", placement, "-o", self.folder / "p.h5", ranks=2)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("--placement", done.stderr)

    def test_more_ranks_than_experts_is_refused(self):
        done = support.run("route", "--model", support.DEMO, "--corpus", f"t={self.write_text_corpus()}", "--out", self.folder / "run", ranks=9)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("8", done.stderr)
        self.assertFalse((self.folder / "run" / "run.json").exists())


class DenseFirstLayer(support.TestCase):
    """A model whose layer 0 has no experts, whose other layers have shared ones, and whose weights do not sum to 1."""

    MOE_LAYERS = [1, 2, 3]

    def setUp(self):
        super().setUp()
        self.model = self.folder / "model"
        self.switchyard("synth", "--out", self.model, "--family", "deepseek", "--layers", 4, "--experts", 6, "--top-k", 3, "--d-ff", 24, "--dense-d-ff", 80)
        rng = np.random.default_rng(3)
        self.corpora = []
        for name in "ab":
            path = self.folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"id": f"{name}{i}", "tokens": rng.integers(0, 256, rng.choice([1, 30, 200])).tolist()}) + "\n" for i in range(20)))
            self.corpora += ["--corpus", f"{name}={path}"]

    def route(self, name, *options, ranks=1, batch_tokens=200):
        out = self.folder / name
        self.switchyard("route", "--model", self.model, *self.corpora, "--out", out, "--context", 64, "--batch-tokens", batch_tokens, "--block-tokens", 900,
                        "--precision", "f32", "--record", "logits", "--quiet", *options, ranks=ranks)
        return out

    def test_rows_are_identical(self):
        reference = self.route("one")
        with h5py.File(reference / "routing.h5") as file:
            self.assertEqual(sorted(file["routing"]), [f"layer_{l:03d}" for l in self.MOE_LAYERS])
            self.assertEqual(file["model"].attrs["n_layers"], 4)
            self.assertEqual(file["model"].attrs["renormalised"], 0)
            self.assertGreater(len(file["tokens/id"]), 2000)
        placement = self.folder / "placement.json"
        placement.write_text(json.dumps({"rank_of_expert": [[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1]]}))  # of MoE layers
        for name, ranks, options in [("two", 2, ["--placement", str(placement)]), ("three", 3, ["--placement", "round-robin"]), ("four", 4, [])]:
            with self.subTest(name):
                out = self.route(name, *options, ranks=ranks, batch_tokens=100 + 50 * ranks)
                self.assert_same_rows(reference / "routing.h5", out / "routing.h5")
                self.assert_same_tables(reference / "stats.h5", out / "stats.h5")

    def test_every_subcommand_counts_moe_layers_only(self):
        out = self.route("run", ranks=2)
        again = self.folder / "again.h5"
        self.switchyard("reduce", out, "-o", again, "--recompute")
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as kept, h5py.File(again) as recomputed:
            corpus = np.repeat(record["documents/corpus"][:], record["documents/n_tokens"][:].astype(np.int64))
            for i, layer in enumerate(self.MOE_LAYERS):
                logits = record[f"routing/layer_{layer:03d}/logits"][:].astype(np.float64)
                p = np.exp(logits - logits.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                chosen = -np.sort(-p, axis=1)[:, :3]
                np.testing.assert_allclose(record[f"routing/layer_{layer:03d}/weight"][:], chosen, atol=6e-4)
                self.assertLess(chosen.sum(1).max(), 1)
                for stats in (kept, recomputed):
                    self.assertEqual(stats["model/moe_layers"][:].tolist(), self.MOE_LAYERS)
                    self.assertEqual(stats["model/renormalised"][0], 0)
                    for dataset in range(2):
                        np.testing.assert_allclose(stats["weight/slot_mean"][dataset, i], chosen[corpus == dataset].mean(0), atol=1e-5)
                        counts = np.bincount(record[f"routing/layer_{layer:03d}/expert"][:][corpus == dataset].ravel(), minlength=6)
                        np.testing.assert_allclose(stats["load/usage"][dataset, i], counts / counts.sum(), atol=1e-12)
        # Multiply-adds of a token: projections of 4 layers, a dense one, 3 with routed and shared experts and a router, head; and 1 to 64 keys.
        token = 2 * (4 * 64 * 16 * (2 * 4 + 2 * 2) + 3 * 64 * 80 + 3 * (3 * 64 * 24 * (3 + 2) + 64 * 6) + 64 * 256)
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as stats:
            keys = (record["tokens/position"][:].astype(np.int64) + 1)
            total = token * len(keys) + 4 * 4 * 4 * 16 * keys.sum()
            self.assertEqual(stats["cost/flops"][:].sum(), total)

        self.assertIn("4 layers, 3 with 6 experts, top-3", self.switchyard("inspect", out / "routing.h5").stdout)
        self.assertIn("layer 1's expert 2", self.switchyard("tokens", out / "stats.h5", "--expert", "1:2").stdout)
        refused = support.run("tokens", out / "stats.h5", "--expert", "0:2")
        self.assertEqual(refused.returncode, 2)
        self.assertIn("MoE layers 1 to 3", refused.stderr)
        self.switchyard("compare", out / "stats.h5", "-o", self.folder / "compare.h5", "--permutations", 99, "--bootstrap", 50)
        with h5py.File(self.folder / "compare.h5") as file:
            self.assertEqual(file["compare/jsd"].shape, (2, 2, 3))
        self.switchyard("report", out, "-o", self.folder / "report.html", "--target-layer", 3)
        self.assertIn('"layers":[1,2,3]', (self.folder / "report.html").read_text())
        self.assertIn("record logits", self.switchyard("bench", "--model", self.model, "--batch-tokens", 128, "--context", 64, "--repetitions", 1, ranks=2).stdout)


if __name__ == "__main__":
    support.main()
