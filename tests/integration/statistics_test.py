"""Sums kept while routing = recomputed from rows by reduce = recomputed here with numpy from the file alone."""

import json

import h5py
import numpy as np
import support

E, K, LAYERS = 8, 2, 6
MIN_COUNT = 10


def fnv_group(identifier):
    """The group of a document: 64-bit FNV-1a of its id, halves folded, modulo 1024."""
    value = 0xcbf29ce484222325
    for byte in identifier:
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return (value ^ value >> 32) % 1024


def information(table):
    """Plug-in mutual information of a table of counts, nats, and Miller and Madow's correction."""
    table = table.astype(np.float64)
    n = table.sum()
    rows, columns = table.sum(1, keepdims=True), table.sum(0, keepdims=True)
    there = table > 0
    plug_in = (table[there] / n * np.log(table[there] * n / (rows * columns)[there])).sum()
    return plug_in, (there.sum() - (rows > 0).sum() - (columns > 0).sum() + 1) / (2 * n)


class Statistics(support.TestCase):
    def setUp(self):
        super().setUp()
        self.corpus = self.write_text_corpus(documents=60)

    def route(self, level, *more, ranks=2):
        out = self.folder / level
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--out", out, "--context", 128, "--batch-tokens", 600, "--block-tokens", 2500,
                        "--record", level, "--precision", "f32", "--commit-seconds", 0, "--add-bos", "--quiet", *more, ranks=ranks)
        return out

    def test_online_equals_numpy(self):
        out = self.route("logits")
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as stats:
            tokens = record["tokens/id"][:].astype(np.int64)
            position = record["tokens/position"][:]
            loss = record["tokens/loss"][:].astype(np.float64)
            predicted = record["tokens/predicted"][:].astype(np.int64)
            n = len(tokens)
            self.assertGreater(n, 10000)
            has_target = ~np.isnan(loss)
            target = np.where(has_target, np.append(tokens[1:], -1), -1)
            self.assertEqual(stats["totals/tokens"][0], n)
            self.assertEqual(stats["totals/windows"][0], (position == 0).sum())
            self.assertEqual(stats["totals/targets"][0], has_target.sum())
            self.assertEqual(stats["totals/correct"][0], (predicted == target)[has_target].sum())
            self.assertAlmostEqual(stats["loss/mean"][0], loss[has_target].mean(), places=9)
            experts = [record[f"routing/layer_{l:03d}/expert"][:].astype(np.int64) for l in range(LAYERS)]
            pair = (position[1:] > 0)
            self.assertEqual(stats["repetition/pairs"][0], pair.sum())
            for l in range(LAYERS):
                logits = record[f"routing/layer_{l:03d}/logits"][:].astype(np.float64)
                weight = record[f"routing/layer_{l:03d}/weight"][:].astype(np.float64)
                e = experts[l]
                p = np.exp(logits - logits.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                entropy = -(p * np.log(p)).sum(1)
                ranked = np.sort(p, 1)[:, ::-1]
                count = np.bincount(e.ravel(), minlength=E)
                np.testing.assert_array_equal(stats["load/count"][0, l], count)
                np.testing.assert_array_equal(stats["load/slot_count"][0, l], [np.bincount(e[:, j], minlength=E) for j in range(K)])
                np.testing.assert_allclose(stats["load/usage"][0, l], count / count.sum(), rtol=1e-12)
                self.assertAlmostEqual(stats["load/cv"][0, l], count.std() / count.mean(), places=12)
                self.assertAlmostEqual(stats["load/max_over_mean"][0, l], count.max() / count.mean(), places=12)
                pairwise = np.abs(count[:, None].astype(float) - count[None, :]).sum() / (2 * E * E * count.mean())
                self.assertAlmostEqual(stats["load/gini"][0, l], pairwise, places=12)
                self.assertAlmostEqual(stats["load/balancing_loss"][0, l], E * (count / n * p.mean(0)).sum(), places=5)
                lse = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
                self.assertAlmostEqual(stats["load/z_loss"][0, l] / (lse ** 2).mean(), 1, places=5)
                for name, values in (("entropy", entropy), ("margin", ranked[:, K - 1] - ranked[:, K]), ("top_probability", ranked[:, 0])):
                    self.assertEqual(stats[f"{name}/n"][0, l], n)
                    self.assertAlmostEqual(stats[f"{name}/mean"][0, l], values.mean(), places=5)
                    self.assertAlmostEqual(np.sqrt(stats[f"{name}/m2"][0, l] / n), values.std(), places=5)
                    self.assertAlmostEqual(stats[f"{name}/max"][0, l], values.max(), places=4)
                    self.assertEqual(stats[f"{name}/histogram"][0, l].sum(), n)
                moved = np.abs(stats["entropy/histogram"][0, l].astype(np.int64) - np.histogram(entropy, 64, (0, np.log(E)))[0]).sum()
                self.assertLessEqual(moved, 0.002 * n)  # values within f32 rounding of a bin's edge
                self.assertAlmostEqual(stats["entropy/mean_bits"][0, l], entropy.mean() / np.log(2), places=5)
                self.assertEqual(stats["top_probability/confident"][0, l], (ranked[:, 0] > 0.7).sum())
                both = np.zeros((E, E), int)
                for a in range(K):
                    for b in range(K):
                        np.add.at(both, (e[:, a], e[:, b]), 1)
                np.testing.assert_array_equal(stats["coactivation/count"][0, l], both)
                np.testing.assert_array_equal(stats["repetition/top1"][0, l], (e[1:, 0] == e[:-1, 0])[pair].sum())
                common = (e[1:, :, None] == e[:-1, None, :]).any((1, 2))
                np.testing.assert_array_equal(stats["repetition/any"][0, l], common[pair].sum())
                np.testing.assert_allclose(stats["weight/slot_mean"][0, l], weight.mean(0), atol=1e-4)
                np.testing.assert_allclose(stats["load/token_share"][0, l], count / n, rtol=1e-12)
                np.testing.assert_allclose(stats["load/utilisation"][0, l], count / (n * K / E), rtol=1e-12)
                usage = count / count.sum()
                self.assertAlmostEqual(stats["load/effective_experts"][0, l], np.exp(-(usage * np.log(usage)).sum()), places=9)
                self.assertAlmostEqual(stats["load/balancing_loss_per_choice"][0, l], E * (count / n * p.mean(0)).sum() / K, places=5)
                np.testing.assert_allclose(stats["coactivation/conditional"][0, l], both / count[:, None], rtol=1e-12)
                lift = both * n / np.outer(count, count)
                np.testing.assert_allclose(stats["coactivation/lift"][0, l], np.where(np.eye(E) > 0, np.nan, lift), rtol=1e-12)
                self.assertAlmostEqual(stats["repetition/top1_share"][0, l], (e[1:, 0] == e[:-1, 0])[pair].mean(), places=12)
                self.assertAlmostEqual(stats["repetition/any_share"][0, l], common[pair].mean(), places=12)
                self.assertEqual(stats["repetition/top1_null"][0], 1 / E)
                by_expert = [weight[e == x].mean() for x in range(E)]
                np.testing.assert_allclose(stats["weight/mean"][0, l], by_expert, atol=1e-4)
                if l > 0:
                    pairs = np.zeros((E, E), int)
                    for a in range(K):
                        for b in range(K):
                            np.add.at(pairs, (experts[l - 1][:, a], e[:, b]), 1)
                    np.testing.assert_array_equal(stats["flow/count"][0, l - 1], pairs)
                    flow = np.zeros((E, E), int)
                    np.add.at(flow, (experts[l - 1][:, 0], e[:, 0]), 1)
                    np.testing.assert_array_equal(stats["flow/top1_count"][0, l - 1], flow)
                    joint = flow / n
                    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
                    mask = joint > 0
                    self.assertAlmostEqual(stats["flow/mutual_information"][0, l - 1], (joint[mask] * np.log(joint[mask] / independent[mask])).sum(), places=9)
                bucket = np.floor(np.log2(position + 1)).astype(int)
                by_position = np.zeros((20, E), int)
                np.add.at(by_position, (np.repeat(bucket, K), e.ravel()), 1)
                np.testing.assert_array_equal(stats["load/position_count"][0, l], by_position)
                plug_in, bias = information(by_position)
                self.assertAlmostEqual(stats["position/mutual_information"][0, l], plug_in, places=9)
                self.assertAlmostEqual(stats["position/mutual_information_bias"][0, l], bias, places=12)
            for which, ids in (("input", tokens), ("target", target), ("predicted", predicted)):
                dense = np.zeros((LAYERS, 4096, E), int)
                use = ids >= 0
                for l in range(LAYERS):
                    np.add.at(dense[l], (np.repeat(ids[use], K), experts[l][use].ravel()), 1)
                indptr, index, value = (stats[f"tokens/{which}/{c}"][:].astype(np.int64) for c in ("indptr", "index", "value"))
                row = np.repeat(np.arange(LAYERS * 4096), np.diff(indptr))
                sparse = np.zeros((LAYERS * 4096, E), int)
                sparse[row, index] = value
                np.testing.assert_array_equal(sparse.reshape(dense.shape), dense)
                self.check_specialisation(stats[f"tokens/{which}"], dense)
            document_group = np.array([fnv_group(i) for i in record["documents/id"][:]])[record["tokens/document"][:]]
            dense = np.zeros((LAYERS, 1024, E), int)
            for l in range(LAYERS):
                np.add.at(dense[l], (np.repeat(document_group, K), experts[l].ravel()), 1)
            indptr, index, value = (stats[f"groups/{c}"][:].astype(np.int64) for c in ("indptr", "index", "value"))
            sparse = np.zeros((LAYERS * 1024, E), int)
            sparse[np.repeat(np.arange(LAYERS * 1024), np.diff(indptr)), index] = value
            np.testing.assert_array_equal(sparse.reshape(dense.shape), dense)
            self.assertGreater((dense[0].sum(1) > 0).sum(), 30)
            paths, times = np.unique(np.stack([e[:, 0] for e in experts], 1), axis=0, return_counts=True)
            self.assertEqual(stats["paths/undercount"][0], 0)
            self.assertEqual(len(stats["paths/count"]), len(times))
            seen = {tuple(p): c for p, c in zip(stats["paths/expert"][:].tolist(), stats["paths/count"][:].tolist())}
            self.assertEqual(seen, {tuple(p): c for p, c in zip(paths.tolist(), times.tolist())})

    def check_specialisation(self, group, dense):
        """dense [L, V, E]: what /tokens/WHICH says of each layer, from its counts."""
        rng = np.random.default_rng(0)
        for l in range(LAYERS):
            plug_in, bias = information(dense[l])
            self.assertAlmostEqual(group["mutual_information"][0, l], plug_in, places=9)
            self.assertAlmostEqual(group["mutual_information_bias"][0, l], bias, places=12)
            table = dense[l][dense[l].sum(1) >= MIN_COUNT]
            self.assertGreater(len(table), 50)
            total = table.sum(1)
            self.assertAlmostEqual(group["specialisation"][0, l], (table.max(1) / total).mean(), places=12)
            self.assertAlmostEqual(group["specialisation_weighted"][0, l], table.max(1).sum() / total.sum(), places=12)
            usage = dense[l].sum(0) / dense[l].sum()
            shuffled = [np.mean([rng.multinomial(t, usage).max() / t for t in total]) for _ in range(20)]
            self.assertLess(abs(group["specialisation_baseline"][0, l] - np.mean(shuffled)), 5 * np.std(shuffled))

    def test_large_token_tables_keep_frequent_cells_within_a_bound(self):
        def token_table(stats, which):
            indptr, index, value = (stats[f"tokens/{which}/{c}"][:].astype(np.int64) for c in ("indptr", "index", "value"))
            dense = np.zeros((LAYERS * 4096, E), int)
            dense[np.repeat(np.arange(LAYERS * 4096), np.diff(indptr)), index] = value
            return dense.reshape(LAYERS, 4096 * E)

        exact = self.route("logits") / "stats.h5"
        # Of 12,000 cells in 4 bytes each, a layer gets 8,000 bytes: 256 slots of 16, a quarter of them less one.
        bounded, capacity = self.route("tokens", "--token-cells", 12000, ranks=3), 63
        self.switchyard("reduce", bounded, "-o", self.folder / "again.h5", "--recompute", "--quiet", ranks=2)
        self.switchyard("reduce", self.folder / "again.h5", "-o", self.folder / "of-stats.h5", "--quiet")
        for path in (bounded / "stats.h5", self.folder / "again.h5", self.folder / "of-stats.h5"):
            with h5py.File(exact) as all_cells, h5py.File(path) as stats:
                np.testing.assert_array_equal(stats["load/count"][...], all_cells["load/count"][...])
                for which in ("input", "target", "predicted"):
                    truth, kept = token_table(all_cells, which), token_table(stats, which)
                    undercount = stats[f"tokens/{which}/undercount"][0].astype(np.int64)[:, None]
                    self.assertEqual(all_cells[f"tokens/{which}/capacity"][0], 0)
                    self.assertEqual(all_cells[f"tokens/{which}/undercount"][...].max(), 0)
                    self.assertEqual(stats[f"tokens/{which}/capacity"][0], capacity)
                    self.assertTrue(((kept > 0).sum(1) <= capacity).all())
                    self.assertTrue((undercount > 0).all() and (undercount[:, 0] <= truth.sum(1) // (capacity + 1)).all())
                    self.assertTrue(((kept <= truth) & (truth <= kept + undercount)).all())
                    self.assertTrue(np.isnan(stats[f"tokens/{which}/specialisation"][...]).all())
                    self.assertTrue(np.isnan(stats[f"tokens/{which}/mutual_information"][...]).all())
        with h5py.File(bounded / "stats.h5") as stats:
            text = f"at most {stats['tokens/input/undercount'][0, 3]:,} too low"
        self.assertIn(text, self.switchyard("tokens", bounded / "stats.h5", "--expert", "3:0").stdout)
        self.assertNotIn("too low", self.switchyard("tokens", exact, "--expert", "3:0").stdout)
        plan = self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus}", "--out", self.folder / "none", "--token-cells", 12000, "--dry-run").stdout
        self.assertIn("token tables 144.0 KiB", plan)  # 2 x 3 tables x 6 layers x 256 slots x 16 bytes

    def test_cost(self):
        out = self.route("tokens", ranks=2)
        config = json.loads((support.DEMO / "config.json").read_text())
        d, heads, kv, dim = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as stats:
            position = record["tokens/position"][:].astype(np.int64)
            seconds = record["dispatch/seconds"][:].astype(np.float64)
            cost = stats["cost"]
            self.assertGreater(len(seconds), 10)
            self.assertEqual(cost["tokens"][0], len(position))
            a_layer = d * dim * (2 * heads + 2 * kv) + K * 3 * d * config["intermediate_size"] + d * E
            flops = 2 * (LAYERS * a_layer + d * config["vocab_size"]) * len(position) + 4 * LAYERS * heads * dim * (position + 1).sum()
            self.assertEqual(cost["flops"][0], flops)
            self.assertEqual(record["dispatch/flops"][:].sum(), flops)
            slowest = seconds.sum(2).max(1).sum()
            self.assertAlmostEqual(cost["seconds"][0] / slowest, 1, places=9)
            self.assertAlmostEqual(cost["rank_seconds"][0] / (2 * slowest), 1, places=9)
            self.assertAlmostEqual(cost["tokens_per_second"][0] / (len(position) / slowest), 1, places=9)
            self.assertAlmostEqual(cost["flops_per_second"][0] / (flops / slowest), 1, places=9)
            np.testing.assert_allclose(cost["phase_share"][0], seconds.sum((0, 1)) / seconds.sum(), rtol=1e-9)
            names = list(stats["ranks/phase_name"].asstr()[:])
            self.assertEqual(cost["record_share"][0], cost["phase_share"][0, names.index("record")])
            self.assertNotIn("peak_share", cost)
        done = self.switchyard("reduce", out, "-o", self.folder / "peak.h5", "--peak-flops", 1e11)
        self.assertIn("of the peak", done.stdout)
        self.switchyard("reduce", self.folder / "peak.h5", "-o", self.folder / "again.h5", "--quiet")
        for name in ("peak.h5", "again.h5"):
            with h5py.File(self.folder / name) as stats:
                self.assertAlmostEqual(stats["cost/peak_share"][0] / (flops / (2 * slowest * 1e11)), 1, places=9)
        self.switchyard("reduce", self.folder / "peak.h5", out, "-o", self.folder / "both.h5", "--quiet")
        with h5py.File(self.folder / "both.h5") as stats:
            self.assertNotIn("peak_share", stats["cost"])

    def test_recomputed_from_logits_is_equal(self):
        out = self.route("logits")
        self.switchyard("reduce", out, "-o", self.folder / "again.h5", "--recompute", "--quiet")
        with h5py.File(out / "stats.h5") as online, h5py.File(self.folder / "again.h5") as again:
            compared = 0

            def compare(name, node):
                nonlocal compared
                if not isinstance(node, h5py.Dataset) or name.startswith(("ranks/", "cost/")) or node.dtype.kind not in "uif":
                    return
                compared += 1
                if node.dtype.kind == "f":
                    np.testing.assert_allclose(again[name][...], node[...], rtol=1e-9, atol=1e-12, err_msg=name)
                else:
                    np.testing.assert_array_equal(again[name][...], node[...], name)

            online.visititems(compare)
            self.assertGreater(compared, 60)

    def test_recomputed_from_tokens_is_equal_where_rows_hold_enough(self):
        out = self.route("tokens", ranks=3)
        self.switchyard("reduce", out, "-o", self.folder / "again.h5", "--recompute", "--quiet", ranks=2)
        a, b = support.integer_tables(out / "stats.h5"), support.integer_tables(self.folder / "again.h5")
        rounded = {"entropy/histogram", "weight/histogram"}  # of values kept in half precision
        self.assertEqual(sorted(a), sorted(b))
        for name in set(a) - rounded:
            np.testing.assert_array_equal(a[name], b[name], name)
        for name in rounded:
            self.assertLess(np.abs(a[name].astype(np.int64) - b[name].astype(np.int64)).sum(), 0.05 * a[name].sum())
        with h5py.File(out / "stats.h5") as online, h5py.File(self.folder / "again.h5") as again:
            np.testing.assert_allclose(again["entropy/mean"][...], online["entropy/mean"][...], rtol=2e-4)

    def test_levels_and_rank_counts_give_the_same_statistics(self):
        reference = self.route("logits", ranks=1) / "stats.h5"
        counts = self.route("counts", ranks=4)
        with h5py.File(counts / "routing.h5") as file:
            self.assertNotIn("tokens", file)
        self.assert_same_tables(reference, counts / "stats.h5")
        for ranks in (1, 3):
            self.switchyard("reduce", counts, "-o", self.folder / f"s{ranks}.h5", "--quiet", ranks=ranks)
            self.assert_same_tables(reference, self.folder / f"s{ranks}.h5")

    def test_stats_files_reduce_to_what_their_runs_do(self):
        a, b = self.route("logits", ranks=2), self.route("counts", ranks=3)
        self.switchyard("reduce", a, b, "-o", self.folder / "of-runs.h5", "--quiet", ranks=2)
        self.switchyard("reduce", a / "stats.h5", b / "stats.h5", "-o", self.folder / "of-stats.h5", "--quiet")
        self.switchyard("reduce", a / "stats.h5", b, "-o", self.folder / "of-both.h5", "--quiet", ranks=2)
        self.switchyard("reduce", self.folder / "of-runs.h5", "-o", self.folder / "again.h5", "--quiet")
        with h5py.File(self.folder / "of-runs.h5") as expected:
            self.assertEqual([n.decode() for n in expected["datasets/name"][:]], ["logits/text", "counts/text"])
            for other in ("of-stats.h5", "of-both.h5", "again.h5"):
                compared = 0
                with h5py.File(self.folder / other) as file:

                    def compare(name, node):
                        nonlocal compared
                        if not isinstance(node, h5py.Dataset):
                            return
                        compared += 1
                        if name.startswith(("ranks/", "cost/")) and node.dtype.kind == "f":  # sums of seconds, in another order
                            np.testing.assert_allclose(file[name][...], node[...], rtol=1e-9, err_msg=f"{other}: {name}")
                        elif node.dtype.kind == "f":
                            np.testing.assert_allclose(file[name][...], node[...], rtol=1e-12, err_msg=f"{other}: {name}")
                        else:
                            np.testing.assert_array_equal(file[name][...], node[...], f"{other}: {name}")

                    expected.visititems(compare)
                self.assertGreater(compared, 90)
        done = support.run("reduce", a / "stats.h5", "-o", self.folder / "no.h5", "--recompute")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no token rows", done.stderr)

    def test_times_of_ranks_equal_numpy(self):
        """Waiting, stragglers and the cost model, from the parts' ends and a placement with copies; reduced by one rank, by two, and from a stats file."""
        placement, out = self.folder / "copies.json", self.folder / "run"
        placement.write_text(json.dumps({"rank_of_expert": [[[0, 1, 2], 0, 1, 2, [1, 2], 0, 1, 2]]}))
        routed = self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--out", out, "--context", 128, "--placement", placement,
                                 "--batch-tokens", 600, "--block-tokens", 2500, "--record", "counts", "--precision", "f32", "--commit-seconds", 0, ranks=3)
        self.switchyard("reduce", out, "-o", self.folder / "by-two.h5", "--quiet", ranks=2)
        self.switchyard("reduce", out / "stats.h5", "-o", self.folder / "again.h5", "--quiet")
        with h5py.File(out / "routing.h5") as record:
            ends = record["dispatch/layer_end"][:].astype(float)
            begin = record["dispatch/step_begin"][:]
            slots = record["dispatch/expert_slots"][:].astype(float)
            rank_of, logical = record["dispatch/placement"][0], record["dispatch/logical"][0]
            part = {name.decode(): i for i, name in enumerate(record["dispatch/part_name"][:])}
            uncertainty = record["dispatch/clock_uncertainty"][:].max()
        at = begin[:, None, :, None] - begin[:, :1, None, None] + ends
        length = lambda name: ends[..., part[name]] - ends[..., part[name] - 1]
        come, sent, seconds = at[..., part["router"]], at[..., part["scatter"]], length("experts")
        dispatch_wait = come.max(2, keepdims=True) - come
        combine_wait = np.minimum(sent.max(2, keepdims=True) - sent, length("combine_wait"))
        load = np.stack([slots[:, :, rank_of == r].sum(2) for r in range(3)], 2)
        active = np.stack([(slots[:, :, rank_of == r] > 0).sum(2) for r in range(3)], 2)
        excess = seconds.max(2) - seconds.mean(2)
        slowest = seconds.argmax(2)
        by_rank = np.stack([np.where(slowest == r, excess, 0).sum(0) for r in range(3)], 1)
        by_expert = np.zeros((LAYERS, 8))
        for s, l in np.ndindex(*slowest.shape):
            mine = rank_of == slowest[s, l]
            np.add.at(by_expert[l], logical[mine], excess[s, l] * slots[s, l, mine] / load[s, l, slowest[s, l]])
        design = np.stack([np.ones(load.size), load.ravel(), active.ravel()], 1)
        fitted, _, rank, _ = np.linalg.lstsq(design, seconds.ravel(), rcond=None)
        self.assertEqual(rank, 3)
        self.assertGreater(len(begin), 10)
        self.assertGreater(dispatch_wait.sum(), 0)
        expected = {
            "timed_steps": len(begin),
            "clock_uncertainty": uncertainty,
            "layer_dispatch_wait_seconds": dispatch_wait.sum(0),
            "layer_dispatch_seconds": (length("dispatch") + length("dispatch_wait") + length("group") - dispatch_wait).sum(0),
            "layer_expert_seconds": seconds.sum(0),
            "layer_combine_wait_seconds": combine_wait.sum(0),
            "layer_combine_seconds": (length("scatter") + length("combine_wait") + length("combine") - combine_wait).sum(0),
            "layer_straggler_seconds": excess.sum(0),
            "slowest_steps": np.stack([(slowest == r).sum(0) for r in range(3)], 1),
            "straggler_by_rank": by_rank,
            "straggler_by_expert": by_expert,
            "cost_model": fitted,
            "cost_model_r_squared": 1 - ((seconds.ravel() - design @ fitted) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum(),
            "slots_seconds_correlation": [np.corrcoef(load[..., r].ravel(), seconds[..., r].ravel())[0, 1] for r in range(3)],
        }
        for path in (out / "stats.h5", self.folder / "by-two.h5", self.folder / "again.h5"):
            with h5py.File(path) as stats:
                for name, values in expected.items():
                    np.testing.assert_allclose(stats[f"ranks/{name}"][0], values, rtol=1e-6, atol=1e-9, err_msg=name)
        with h5py.File(out / "stats.h5") as stats:
            cost, of_step = excess.sum(), stats["ranks/step_seconds"][0]
        layer = excess.sum(0).argmax()
        self.assertIn(f"stragglers: ranks waited {100 * cost / of_step:.1f} % of step time for the slowest one's experts; layer {layer} cost most ({100 * excess.sum(0)[layer] / cost:.1f} % of it), "
                      f"there expert {by_expert[layer].argmax()} ({100 * by_expert[layer].max() / cost:.1f} %)\n", routed.stdout)
        alone = self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--out", self.folder / "alone", "--max-tokens", 500)
        self.assertNotIn("stragglers", alone.stdout)

    def test_ranks_equal_numpy(self):
        # A second corpus, so that its time begins at another block than the run's.
        out, other = self.folder / "run", self.write_text_corpus("other.jsonl", documents=50, seed=1)
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--corpus", f"other={other},id=id", "--out", out, "--context", 128,
                        "--batch-tokens", 600, "--block-tokens", 2500, "--record", "counts", "--precision", "f32", "--commit-seconds", 0, "--quiet", ranks=3)
        self.switchyard("reduce", out, "-o", self.folder / "by-two.h5", "--quiet", ranks=2)
        with h5py.File(out / "routing.h5") as record:
            dispatch = {name: record[f"dispatch/{name}"][...] for name in ("expert_slots", "seconds", "block", "traffic", "traffic_block", "send_ranks", "placement", "row_bytes", "phase_name")}
            tokens = record["corpora/tokens"][:]
        segments = [h5py.File(path) for path in sorted((out / "segments").glob("*.h5"))]
        self.assertGreater(len(segments), 5)
        first_of_other = next(int(s["dispatch/block"][0]) for s in segments if s["documents/corpus"].size and s["documents/corpus"][0] == 1)
        for segment in segments:
            segment.close()
        experts = list(dispatch["phase_name"]).index(b"experts")
        for path in (out / "stats.h5", self.folder / "by-two.h5"):
            with h5py.File(path) as stats:
                for corpus, (first, last) in enumerate([(0, first_of_other), (first_of_other, 1 << 30)]):
                    steps = np.flatnonzero((dispatch["block"] >= first) & (dispatch["block"] < last))
                    blocks = (dispatch["traffic_block"] >= first) & (dispatch["traffic_block"] < last)
                    self.assertGreater(len(steps), 10)
                    load = np.zeros((len(steps), LAYERS, 3))
                    for rank in range(3):
                        for l in range(LAYERS):
                            load[:, l, rank] = dispatch["expert_slots"][steps][:, l, dispatch["placement"][l] == rank].sum(1)
                    used = load.max(2) > 0
                    mean, largest = load.mean(2), load.max(2)
                    balanced = (mean + 1e-5) / (largest + 1e-5)
                    figures = {
                        "steps": len(steps),
                        "layer_steps": used.sum(0),
                        "balancedness_mean": [balanced[used[:, l], l].mean() for l in range(LAYERS)],
                        "balancedness_ratio": mean.sum(0) / largest.sum(0),
                        "imbalance_max": [(largest[used[:, l], l] / mean[used[:, l], l] - 1).max() for l in range(LAYERS)],
                        "traffic": dispatch["traffic"][blocks].sum((0, 1)),
                        "local_slots": np.trace(dispatch["traffic"][blocks].sum(0), axis1=1, axis2=2),
                        "remote_slots": dispatch["traffic"][blocks].sum((0, 2, 3)) - np.trace(dispatch["traffic"][blocks].sum(0), axis1=1, axis2=2),
                        "send_ranks": dispatch["send_ranks"][blocks].sum(0),
                        "seconds": dispatch["seconds"][steps].astype(float).sum((0, 1)),
                        "step_seconds": dispatch["seconds"][steps].astype(float).sum(2).max(1).sum(),
                        "straggler_seconds": (dispatch["seconds"][steps][:, :, experts].astype(float).max(1) - dispatch["seconds"][steps][:, :, experts].astype(float).mean(1)).sum(),
                    }
                    figures["straggler_share"] = figures["straggler_seconds"] / figures["step_seconds"]
                    figures["remote_bytes"] = figures["remote_slots"] * dispatch["row_bytes"]
                    for name, value in figures.items():
                        np.testing.assert_allclose(stats[f"ranks/{name}"][corpus], value, rtol=1e-5, err_msg=name)
                    for name, quantile in (("imbalance_p50", 0.5), ("imbalance_p90", 0.9)):
                        for l in range(LAYERS):
                            exact = np.quantile(largest[used[:, l], l] / mean[used[:, l], l] - 1, quantile, method="inverted_cdf")
                            self.assertAlmostEqual(stats[f"ranks/{name}"][corpus, l], exact, delta=1 / 64)
                    series = np.zeros((256, 3))
                    units = int(stats["ranks/series_units"][corpus])
                    self.assertEqual(units & (units - 1), 0)
                    for i, step in enumerate(steps):
                        of_block = steps[dispatch["block"][steps] == dispatch["block"][step]]
                        time = (int(dispatch["block"][step]) - first) * 64 + int(np.flatnonzero(of_block == step)[0]) * 64 // len(of_block)
                        series[time // units] += load[i].sum(0)
                    np.testing.assert_array_equal(stats["ranks/series"][corpus], series)
                    self.assertEqual(series.sum(), K * LAYERS * tokens[corpus])

    def test_csv_holds_the_same_numbers(self):
        out = self.route("counts", ranks=1)
        self.switchyard("reduce", out, "-o", self.folder / "s.h5", "--csv", self.folder / "csv", "--quiet")
        lines = (self.folder / "csv" / "load_count.csv").read_text().splitlines()
        self.assertEqual(lines[0], "dataset,layer,expert,count")
        with h5py.File(self.folder / "s.h5") as stats:
            expected = [f"text,{l},{e},{stats['load/count'][0, l, e]}" for l in range(LAYERS) for e in range(E)]
        self.assertEqual(lines[1:], expected)

    def test_special_tokens_can_be_left_out(self):
        out = self.folder / "special"
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.corpus},id=id", "--out", out, "--context", 128, "--precision", "f32", "--add-bos", "--exclude-special", "--quiet")
        with h5py.File(out / "routing.h5") as record, h5py.File(out / "stats.h5") as stats:
            bos = (record["tokens/id"][:] == 1).sum()
            self.assertEqual(bos, 60)
            self.assertEqual(stats["totals/tokens"][0], len(record["tokens/id"]) - bos)
            self.assertEqual(stats["load/count"][0, 0].sum(), K * (len(record["tokens/id"]) - bos))


if __name__ == "__main__":
    support.main()
