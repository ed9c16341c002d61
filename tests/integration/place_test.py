"""Placements of experts: every figure of place.h5 against numpy, what a run does with the plan, mistakes."""

import json
import pathlib
import re

import h5py
import numpy as np
import support

E, L, K = 8, 6, 2
METHODS = ["contiguous", "round_robin", "greedy", "eplb", "search"]
PUBLISHED = {"arxiv": {"0": [55713, 52019, 52619, 50522, 44401, 66285, 44770, 51463], "15": [61212, 52639, 40083, 25549, 60053, 61162, 60951, 56143]},
             "github": {"0": [54849, 51938, 49502, 48693, 49404, 67714, 47790, 47902], "15": [60067, 55928, 42926, 38592, 44435, 69374, 57189, 49281]}}


def plan_of(path):
    """[L][E] lists of ranks of a placement file."""
    return [[[r] if isinstance(r, int) else r for r in layer] for layer in json.loads(pathlib.Path(path).read_text())["rank_of_expert"]]


def loads_of(plan, slots, ranks):
    """[..., ranks] of slots [..., E], shared equally by copies."""
    loads = np.zeros(slots.shape[:-1] + (ranks,))
    for e, copies in enumerate(plan):
        for r in copies:
            loads[..., r] += slots[..., e] / len(copies)
    return loads


def greedy(load, ranks):
    """Ranks of experts: the heaviest first, to the least loaded rank that has room."""
    sums, room, plan = np.zeros(ranks), np.full(ranks, -(-len(load) // ranks)), [None] * len(load)
    for e in np.argsort(-load, kind="stable"):
        r = min((r for r in range(ranks) if room[r] > 0), key=lambda r: (sums[r], r))
        sums[r] += load[e]
        room[r] -= 1
        plan[e] = [r]
    return plan


def balancedness(plans, slots, ranks):
    """Mean over layers of mean over largest rank load; slots: [L, E]."""
    loads = [loads_of(plan, layer.astype(float), ranks) for plan, layer in zip(plans, slots)]
    return np.mean([load.mean() / load.max() for load in loads if load.sum() > 0])


TRAFFIC = ("ranks_per_token", "nodes_per_token", "remote_slots_per_token", "remote_node_slots_per_token", "remote_ranks_per_token", "remote_nodes_per_token")


def replay(experts, plan, ranks, nodes, step_tokens, local):
    """Of tokens' experts [n, k]: sums of TRAFFIC's figures, and largest over mean of the slots that ranks receive in each step."""
    n, of_node, sums, received = len(experts), ranks // nodes, dict.fromkeys(TRAFFIC, 0.0), []
    for first in range(0, n, step_tokens):
        last = min(n, first + step_tokens)
        here = np.zeros(ranks)
        sources = [(t - first) * ranks // (last - first) for t in range(first, last)]
        for t, source in enumerate(sources, first):
            number = t - first - sources.index(source)  # on its rank
            of_token = [source if local and source in plan[e] else plan[e][(number + source) % len(plan[e])] for e in experts[t]]
            of_nodes = [r // of_node for r in of_token]
            sums["ranks_per_token"] += len(set(of_token))
            sums["nodes_per_token"] += len(set(of_nodes))
            sums["remote_slots_per_token"] += sum(r != source for r in of_token)
            sums["remote_node_slots_per_token"] += sum(x != source // of_node for x in of_nodes)
            sums["remote_ranks_per_token"] += len(set(of_token) - {source})
            sums["remote_nodes_per_token"] += len(set(of_nodes) - {source // of_node})
            for r in of_token:
                here[r] += r != source
        received.append(here.max() / here.mean())
    return sums, received


def step_seconds(plan, count, ranks, tokens, model):
    """Of the mean step of one layer by a cost model: slowest rank's seconds, slowest less mean, and what the slowest's are linear in."""
    load, active = loads_of(plan, count, ranks) * tokens * K / count.sum(), np.zeros(ranks)
    for e, copies in enumerate(plan):
        for r in copies:
            active[r] += 1 - (1 - count[e] / count.sum() * K / len(copies)) ** tokens
    time = model[0] + model[1] * load + model[2] * active
    last = time.argmax()
    return time[last], time[last] - time.mean(), np.array([1, load[last], active[last]])


class Place(support.TestCase):
    def route(self, *more, out="run", ranks=2):
        """A run whose stats.h5 holds no cost model: a fit to times of a busy machine may explain much or little of them."""
        corpora = [w for i, name in enumerate(("licence", "words")) for w in ("--corpus", f"{name}={self.write_text_corpus(name + '.jsonl', documents=30 + 10 * i, seed=i)},id=id")]
        self.switchyard("route", "--model", support.DEMO, *corpora, "--out", self.folder / out, "--context", 128, "--batch-tokens", 600, "--precision", "f32", "--quiet", *more, ranks=ranks)
        with h5py.File(self.folder / out / "stats.h5", "r+") as stats:
            for name in ("", "_covariance", "_r_squared"):
                del stats[f"ranks/cost_model{name}"]
        return self.folder / out

    def add_cost_model(self, run):
        """Gives a run's statistics a model of seconds; returns its terms and their covariance."""
        terms, half = (1e-3, 2e-6, 5e-5), np.random.default_rng(0).normal(size=(3, 3)) * [[1e-5], [1e-8], [1e-6]]
        with h5py.File(run / "stats.h5", "r+") as stats:
            n = len(stats["datasets/name"])
            stats["ranks/cost_model"] = np.full((n, 3), terms)
            stats["ranks/cost_model_covariance"] = np.broadcast_to(half @ half.T, (n, 3, 3))
            stats["ranks/cost_model_r_squared"] = np.full(n, 0.9)
        return terms, half @ half.T

    def place(self, source, *more, method="search", ranks=4):
        file, plan = self.folder / "place.h5", self.folder / "plan.json"
        done = self.switchyard("place", source, "--ranks", ranks, "--method", method, "-o", file, "--placement", plan, *more)
        self.assertIn(f"chosen: {method}\n", done.stdout)
        return file, plan_of(plan), done.stdout

    def copies(self, file, plan):
        """Checks that the file's plan is the JSON's."""
        for l in range(len(plan)):
            flat = [(e, r) for e in range(E) for r in plan[l][e]]
            self.assertEqual(flat, list(zip(file["placement/plan_expert"][l].tolist(), file["placement/plan_rank"][l].tolist())))

    def test_figures_of_statistics(self):
        run = self.route()
        with h5py.File(run / "stats.h5") as stats:
            count, pairs = stats["load/count"][:].astype(float), stats["coactivation/count"][:].astype(float)
            names = stats["datasets/name"].asstr()[:].tolist()
            tokens = stats["totals/tokens"][:]
        compared = 0
        for options, chosen in (([], slice(None)), (["--dataset", "words"], [names.index("words")])):
            c, n, t = count[chosen].sum(0), pairs[chosen].sum(0), tokens[chosen].sum()
            for method in METHODS:
                for more, ranks, nodes in (([], 4, 1), (["--nodes", 2, "--replicas", 4], 4, 2), (["--replicas", 1], 3, 1)):
                    path, plan, text = self.place(run / "stats.h5", *options, *more, method=method, ranks=ranks)
                    replicas = more[more.index("--replicas") + 1] if "--replicas" in more else 0
                    with h5py.File(path) as file:
                        self.copies(file, plan)
                        self.assertEqual(sum(len(r) for r in plan[0]), E + replicas)
                        m = [x.decode() for x in file["placement/method_name"][:]].index(method)
                        self.assertEqual(file["placement/chosen"][()], m)
                        means, largest, ratios = [], [], []
                        for l in range(L):
                            load = loads_of(plan[l], c[l], ranks)
                            np.testing.assert_allclose(file["placement/rank_load"][m, l], load, rtol=1e-12)
                            means.append(load.mean())
                            largest.append(load.max())
                            self.assertAlmostEqual(file["placement/max_over_mean"][m, l], load.max() / load.mean(), places=12)
                            self.assertLessEqual(file["placement/least_max_over_mean"][l], load.max() / load.mean() + 1e-12)
                            apart = {}
                            for kind, place in (("rank", lambda r: r), ("node", lambda r: r // (ranks // nodes))):
                                together = np.array([[np.mean([place(a) == place(b) for a in plan[l][i] for b in plan[l][j]]) for j in range(E)] for i in range(E)])
                                share = (np.triu(n[l], 1) * together).sum() / np.triu(n[l], 1).sum()
                                apart[kind] = 1 - share
                                for end in ("low", "high"):  # of two choices pairs say all
                                    self.assertAlmostEqual(file[f"placement/{kind}s_per_token_{end}"][m, l], 2 - share, places=12)
                            objective = load.max() / load.mean() + 0.1 * apart["rank"] + 0.3 * apart["node"]
                            self.assertAlmostEqual(file["placement/objective"][m, l], objective, places=12)
                            if file["placement/exact"][m, l]:
                                self.assertLessEqual(objective, file["placement/objective"][:, l].min() + 1e-12)
                            compared += 1
                        balanced = np.mean([(a + 1e-5) / (b + 1e-5) for a, b in zip(means, largest)])
                        self.assertAlmostEqual(file["placement/balancedness_mean"][m], balanced, places=12)
                        self.assertAlmostEqual(file["placement/balancedness_ratio"][m], sum(means) / sum(largest), places=12)
                        self.assertNotIn("placement/step_seconds", file)
                        self.assertNotIn("placement/replayed_ranks_per_token", file)
                        if method == "search":
                            self.assertTrue((file["placement/objective"][m] <= file["placement/objective"][:].min(0) + 1e-12).all())
                    line = next(x for x in text.splitlines() if x.strip().startswith(method)).split()
                    self.assertEqual(line[1:3], [f"{balanced:.4f}", f"{sum(means) / sum(largest):.4f}"])
                    self.assertIn(f"fitted on {int(t):,} tokens", text)
        self.assertGreaterEqual(compared, 160)

    def test_figures_of_a_run(self):
        run = self.route()
        for rule in ("token", "local"):
            self.check_run(run, rule)

    def check_run(self, run, rule):
        local = rule == "local"
        path, plan, text = self.place(run, "--nodes", 2, "--replicas", 4, "--step-tokens", 500, "--copies", rule)
        with h5py.File(run / "routing.h5") as record, h5py.File(path) as file:
            steps = record["dispatch/expert_slots"][:].astype(float)
            self.assertIn(f"over the {len(steps)} recorded steps", text)
            m = [x.decode() for x in file["placement/method_name"][:]].index("search")
            for l in range(L):
                load = loads_of(plan[l], steps[:, l], 4)
                load = load[load.sum(1) > 0]
                imbalance = load.max(1) / load.mean(1) - 1
                expected = {"balancedness_mean": ((load.mean(1) + 1e-5) / (load.max(1) + 1e-5)).mean(), "balancedness_ratio": load.mean(1).sum() / load.max(1).sum(),
                            "imbalance_p50": np.quantile(imbalance, 0.5), "imbalance_p90": np.quantile(imbalance, 0.9), "imbalance_p99": np.quantile(imbalance, 0.99),
                            "imbalance_max": imbalance.max(), "straggler_share": (load.max(1) - load.mean(1)).sum() / load.max(1).sum()}
                for name, value in expected.items():
                    self.assertAlmostEqual(file[f"placement/steps_{name}"][m, l], value, places=10, msg=name)
                experts = record[f"routing/layer_{l:03d}/expert"][:]
                n = len(experts)
                self.assertGreater(n, 5000)
                sums, received = replay(experts, plan[l], 4, 2, 500, local)
                for name, value in sums.items():
                    self.assertAlmostEqual(file[f"placement/replayed_{name}"][m, l], value / n, places=10, msg=name)
                self.assertAlmostEqual(file["placement/replayed_received_max_over_mean"][m, l], np.mean(received), places=10)

    def test_steps_that_search_balances(self):
        run = self.route()
        balance = {}
        for n in (0, 8, 10000):
            path, plan, _ = self.place(run, "--replicas", 4, "--fit-steps", n, "--rank-weight", 0, "--node-weight", 0)
            with h5py.File(run / "routing.h5") as record, h5py.File(path) as file:
                steps = record["dispatch/expert_slots"][:].astype(float)
                kept = min(n, len(steps))
                chosen = steps[[i * len(steps) // kept for i in range(kept)]] if n else steps.sum(0, keepdims=True)
                self.assertGreater(len(steps), 16)
                m = file["placement/chosen"][()]
                for l in range(L):
                    load = loads_of(plan[l], chosen[:, l], 4)
                    self.assertAlmostEqual(file["placement/objective"][m, l], load.max(1).sum() / load.mean(1).sum(), places=10)
                balance[n] = file["placement/steps_balancedness_ratio"][m].mean()
                greedy_balance = file["placement/steps_balancedness_ratio"][file["placement/method_name"].asstr()[:].tolist().index("greedy")].mean()
        self.assertGreater(balance[10000], balance[0])
        self.assertGreater(balance[10000], greedy_balance)
        done = support.run("place", run / "stats.h5", "--ranks", 2, "--fit-steps", 3)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--fit-steps", done.stderr)

    def test_a_run_with_the_plan_does_what_was_said(self):
        before = self.route()
        path, plan, _ = self.place(before, ranks=2)
        after = self.route("--placement", self.folder / "plan.json", out="again")
        self.assert_same_rows(before / "routing.h5", after / "routing.h5")
        with h5py.File(path) as file, h5py.File(after / "stats.h5") as stats, h5py.File(after / "routing.h5") as record:
            np.testing.assert_array_equal(record["dispatch/placement"][:], file["placement/plan_rank"][:])
            m = file["placement/chosen"][()]
            names = stats["datasets/name"].asstr()[:].tolist()
            # Steps are the same, so that the promise is exact.
            steps = stats["ranks/layer_steps"][:]
            measured = stats["ranks/balancedness_sum"][:].sum(0) / steps.sum(0)
            np.testing.assert_allclose(file["placement/steps_balancedness_mean"][m], measured, rtol=1e-9)
            ratio = stats["ranks/mean_slots"][:].sum(0) / stats["ranks/max_slots"][:].sum(0)
            np.testing.assert_allclose(file["placement/steps_balancedness_ratio"][m], ratio, rtol=1e-9)
            reached = stats["ranks/send_ranks"][:].sum(0).astype(float)
            np.testing.assert_allclose(file["placement/replayed_ranks_per_token"][m], (reached * np.arange(K + 1)).sum(1) / reached.sum(1), rtol=1e-9)
            self.assertEqual(names, ["licence", "words"])

    def test_seconds_by_a_cost_model(self):
        run = self.route()
        (a, b, c), covariance = self.add_cost_model(run)
        with h5py.File(run / "stats.h5") as stats:
            count, steps, tokens = stats["load/count"][:].sum(0).astype(float), stats["ranks/steps"][:].sum(), stats["totals/tokens"][:].sum()
        for more, per_step in (([], tokens / steps), (["--step-tokens", 40], 40)):
            path, plan, text = self.place(run / "stats.h5", "--replicas", 4, *more)
            seconds = waiting = 0
            gradient = np.zeros(3)
            for l in range(L):
                slowest, waited, linear = step_seconds(plan[l], count[l], 4, per_step, (a, b, c))
                seconds += slowest
                waiting += waited
                gradient += linear
            with h5py.File(path) as file:
                m = file["placement/chosen"][()]
                self.assertAlmostEqual(file["placement/step_seconds"][m] / seconds, 1, places=9)
                self.assertAlmostEqual(file["placement/straggler_seconds"][m] / waiting, 1, places=6)
                self.assertAlmostEqual(file["placement/step_seconds_std"][m] / np.sqrt(gradient @ covariance @ gradient), 1, places=9)
            self.assertIn("R^2 0.900", text)
        with h5py.File(run / "stats.h5", "r+") as stats:  # of a machine on which other things decide
            stats["ranks/cost_model_r_squared"][:] = 0.4
        path, _, text = self.place(run / "stats.h5")
        self.assertNotIn("ms a step", text)
        with h5py.File(path) as file:
            self.assertNotIn("placement/step_seconds", file)

    def test_what_was_predicted_and_what_a_run_measured(self):
        """Both sides of a check, counted from the two records, on the text that was predicted from and on another."""
        before = self.route()
        model, covariance = self.add_cost_model(before)
        self.place(before, "--replicas", 2, "--nodes", 2, ranks=2)
        after = self.folder / "after"
        corpora = [w for name, words in (("words", self.folder / "words.jsonl"), ("other", self.write_text_corpus("other.jsonl", documents=25, seed=9))) for w in ("--corpus", f"{name}={words},id=id")]
        self.switchyard("route", "--model", support.DEMO, *corpora, "--out", after, "--context", 128, "--batch-tokens", 900, "--block-tokens", 4000, "--precision", "f32", "--commit-seconds", 0, "--quiet",
                        "--placement", self.folder / "plan.json", "--copies", "local", ranks=2)
        path, plan, text = self.place(before, "--replicas", 2, "--nodes", 2, "--check", after, ranks=2)

        parts = {}  # what segments say, by corpus
        for segment in sorted((after / "segments").glob("*.h5")):
            with h5py.File(segment) as found:
                corpus = ("words", "other")[found["documents/corpus"][0]]
                of_segment = {n: found[f"dispatch/{n}"][:].astype(float) for n in ("expert_slots", "traffic", "send_ranks", "layer_end")}
                names = found["dispatch/part_name"].asstr()[:].tolist()
                np.testing.assert_array_equal(found["dispatch/placement"][:], [[r for e in plan[l] for r in e] for l in range(L)])
                row_bytes = int(found["dispatch/row_bytes"][0])
                rank_of = found["dispatch/placement"][:]
            for key in (corpus, "all datasets"):
                for name, values in of_segment.items():
                    parts.setdefault(key, {}).setdefault(name, []).append(values)
        self.assertGreater(len(parts["all datasets"]["traffic"]), 3)
        with h5py.File(before / "stats.h5") as stats, h5py.File(before / "routing.h5") as record:
            count, steps = stats["load/count"][:].sum(0).astype(float), record["dispatch/expert_slots"][:].astype(float)
            rows = [record[f"routing/layer_{l:03d}/expert"][:] for l in range(L)]
        step_tokens = np.concatenate(parts["all datasets"]["expert_slots"])[:, 0].sum() / K / sum(map(len, parts["all datasets"]["expert_slots"]))
        predicted = {}
        for l in range(L):
            load, of_steps = loads_of(plan[l], count[l], 2), loads_of(plan[l], steps[:, l], 2)
            of_steps = of_steps[of_steps.sum(1) > 0]
            sums, _ = replay(rows[l], plan[l], 2, 2, int(step_tokens), local=True)
            slowest, waited, linear = step_seconds(plan[l], count[l], 2, step_tokens, model)
            room = 1.96 * np.sqrt(linear @ covariance @ linear)
            for name, value in {"balancedness": load.mean() / load.max(), "steps_balancedness_mean": ((of_steps.mean(1) + 1e-5) / (of_steps.max(1) + 1e-5)).mean(),
                                "steps_balancedness_ratio": of_steps.mean(1).sum() / of_steps.max(1).sum(), "ranks_per_token": sums["ranks_per_token"] / len(rows[l]),
                                "remote_slots_per_token": sums["remote_slots_per_token"] / len(rows[l]), "bytes_across_nodes_per_token": sums["remote_node_slots_per_token"] / len(rows[l]) * row_bytes,
                                "step_seconds": slowest, "step_seconds_low": slowest - room, "step_seconds_high": slowest + room, "straggler_seconds": waited}.items():
                predicted.setdefault(name, []).append(value)
        with h5py.File(path) as file:
            check = {name: table[()] for name, table in file["check"].items()}
            self.assertEqual((file.attrs["check"], file.attrs["check-plan"]), (str(after), "search"))
            datasets, texts = file["check/dataset_name"].asstr()[:].tolist(), file["check/text"].asstr()[:].tolist()
            figures = file["check/figure_name"].asstr()[:].tolist()
        self.assertEqual(list(zip(datasets, texts)), [("all datasets", "partly other text"), ("words", "same text"), ("other", "other text")])
        self.assertEqual(figures, [n for n in predicted if not n.endswith(("_low", "_high"))])
        self.assertAlmostEqual(check["step_tokens"], step_tokens, places=9)
        self.assertAlmostEqual(check["recorded_step_tokens"], count[0].sum() / K / len(steps), places=9)
        for name, values in predicted.items():
            np.testing.assert_allclose(check[f"predicted_{name}"], values, rtol=1e-6, err_msg=name)
        self.assertEqual({n for n in check if n.endswith(("_low", "_high"))}, {f"{a}_step_seconds_{b}" for a in ("predicted", "whole") for b in ("low", "high")})
        gradient = sum(step_seconds(plan[l], count[l], 2, step_tokens, model)[2] for l in range(L))
        self.assertAlmostEqual(check["whole_step_seconds_high"] / (sum(predicted["step_seconds"]) + 1.96 * np.sqrt(gradient @ covariance @ gradient)), 1, places=9)
        self.assertAlmostEqual(check["whole_ranks_per_token"], np.mean(predicted["ranks_per_token"]), places=9)
        for d, dataset in enumerate(datasets):
            found = {name: np.concatenate(values) for name, values in parts[dataset].items()}
            seconds = found["layer_end"][..., names.index("experts")] - found["layer_end"][..., names.index("experts") - 1]
            tokens = found["send_ranks"][:, 0].sum()
            self.assertEqual((check["tokens"][d], check["steps"][d]), (tokens, len(seconds)))
            for l in range(L):
                load = np.stack([found["expert_slots"][:, l, rank_of[l] == r].sum(1) for r in range(2)], 1)
                whole, load = load.sum(0), load[load.sum(1) > 0]
                across = found["traffic"][:, l, 0, 1].sum() + found["traffic"][:, l, 1, 0].sum()
                for name, value in {"balancedness": whole.mean() / whole.max(), "steps_balancedness_mean": ((load.mean(1) + 1e-5) / (load.max(1) + 1e-5)).mean(),
                                    "steps_balancedness_ratio": load.mean(1).sum() / load.max(1).sum(), "ranks_per_token": (found["send_ranks"][:, l] * np.arange(K + 1)).sum() / tokens,
                                    "remote_slots_per_token": across / tokens, "bytes_across_nodes_per_token": across * row_bytes / tokens,
                                    "step_seconds": seconds[:, l].max(1).mean(), "straggler_seconds": (seconds[:, l].max(1) - seconds[:, l].mean(1)).mean()}.items():
                    np.testing.assert_allclose(check[f"measured_{name}"][d, l], value, rtol=1e-5, atol=1e-12, err_msg=name)
                    np.testing.assert_allclose(check[f"error_{name}"][d, l], value - predicted[name][l], rtol=1e-4, atol=1e-7, err_msg=name)
            line = next(x for x in text.splitlines() if x.strip().startswith(f"{dataset}, {texts[d]}"))
            balance = check["measured_steps_balancedness_mean"][d].mean()
            self.assertIn(f" {balance:.4f} ({balance - np.mean(predicted['steps_balancedness_mean']):+.4f}) ", line)
            self.assertIn(f" {1e3 * check['measured_step_seconds'][d].sum():.3f} (", line)
        self.assertIn("(the plan of search)", text)

        # A statistics file tells less: no steps, no rows; pairs say how many ranks.
        path, _, text = self.place(before / "stats.h5", "--dataset", "licence", "--check", after, method="greedy", ranks=2)
        with h5py.File(path) as file:
            self.assertTrue(np.isnan(file["check/predicted_steps_balancedness_mean"][:]).all())
            self.assertTrue(np.isnan(file["check/predicted_remote_slots_per_token"][:]).all())  # of copies that depend on a token's rank
            self.assertNotIn("check/measured_bytes_across_nodes_per_token", file)
            self.assertEqual(set(file["check/text"].asstr()[:]), {"other text"})
            self.assertEqual(file.attrs["check-plan"], "")
            self.assertTrue((file["check/predicted_ranks_per_token"][:] > 1).all())
        self.assertIn("the plan of none of these methods", text)
        for words, code, needles in (([before, "--ranks", 4, "--check", after], 2, ["had 2 ranks", "--ranks 2"]), ([before, "--ranks", 2, "--check", before / "stats.h5"], 1, ["OUT folder"]),
                                     ([before, "--ranks", 2, "--simulate", "--check", after], 2, ["--check"])):
            done = support.run("place", *words)
            self.assertEqual(done.returncode, code, done.stderr)
            for needle in needles:
                self.assertIn(needle, done.stderr)
        for segment in (after / "segments").glob("*.h5"):  # as of a run on two hosts
            with h5py.File(segment, "r+") as found:
                found["dispatch/rank_node"][:] = [0, 1]
        self.switchyard("place", before, "--ranks", 2, "--nodes", 2, "--check", after, "--quiet")
        done = support.run("place", before, "--ranks", 2, "--check", after)
        self.assertEqual(done.returncode, 2)
        self.assertIn("on two nodes", done.stderr)
        tokens = self.folder / "tokens.jsonl"
        tokens.write_text("\n".join('{"tokens": [%s]}' % ", ".join(str((7 * i + j) % 64) for j in range(20)) for i in range(5)))
        self.switchyard("route", "--model", support.GOLDEN / "mixtral", "--corpus", f"ids={tokens}", "--out", self.folder / "small", "--quiet", ranks=2)
        done = support.run("place", before, "--ranks", 2, "--check", self.folder / "small")
        self.assertEqual(done.returncode, 1)
        self.assertIn("another model", done.stderr)

    def test_how_placements_age(self):
        run = self.route("--block-tokens", 700)
        path, _, text = self.place(run, "--drift", 3, method="greedy")
        with h5py.File(run / "routing.h5") as record, h5py.File(path) as file:
            steps, block = record["dispatch/expert_slots"][:].astype(float), record["dispatch/block"][:]
            blocks = sorted(set(block))
            n = len(blocks)
            self.assertGreater(n, 8)
            slots = np.array([steps[block == b].sum(0) for b in blocks])
            self.assertEqual(file["drift/block"][:].tolist(), blocks)
            names = file["drift/block_dataset"].asstr()[:].tolist()
            self.assertEqual(list(dict.fromkeys(names)), ["licence", "words"])
            ends = np.cumsum(record["corpora/tokens"][:] * K)
            self.assertEqual(slots[[x == "licence" for x in names], 0].sum(), ends[0])
            fit = lambda first, last: [greedy(slots[first:last, l].sum(0), 4) for l in range(L)]
            even = [[[e * 4 // E] for e in range(E)]] * L
            fixed = fit(0, 3)
            found = dict(zip(file["drift/policy_name"].asstr()[:], file["drift/balancedness"][:]))
            for b in range(n):
                since = b // 3 * 3
                expected = {"contiguous": balancedness(even, slots[b], 4), "oracle": balancedness(fit(b, b + 1), slots[b], 4),
                            "fixed": np.nan if b < 3 else balancedness(fixed, slots[b], 4), "periodic": np.nan if b < 3 else balancedness(fit(since - 3, since), slots[b], 4)}
                for policy, value in expected.items():
                    np.testing.assert_allclose(found[policy][b], value, rtol=1e-12, err_msg=f"{policy} {b}")
            self.assertFalse(np.allclose(found["periodic"][6:], found["fixed"][6:]))
            self.assertIn(f"{np.mean(found['fixed'][3:]):.4f}", text)
        done = support.run("place", run / "stats.h5", "--ranks", 2, "--drift", 3)
        self.assertEqual(done.returncode, 2)
        self.assertIn("run's folder", done.stderr)
        done = support.run("place", run, "--ranks", 2, "--drift", 1000)
        self.assertEqual(done.returncode, 2)
        self.assertIn(f"{n} blocks", done.stderr)

    def test_other_text_than_what_was_fitted(self):
        run = self.route()
        path, _, text = self.place(run / "stats.h5", "--holdout", method="greedy")
        with h5py.File(run / "stats.h5") as stats, h5py.File(path) as file:
            count, groups = stats["load/count"][:], stats["groups/indptr"][:].astype(int)
            index, value = stats["groups/index"][:], stats["groups/value"][:]
            by_group = np.zeros((2 * L * 1024, E))
            by_group[np.repeat(np.arange(2 * L * 1024), np.diff(groups)), index] = value
            by_group = by_group.reshape(2, L, 1024, E).sum(0)
            np.testing.assert_array_equal(by_group.sum(1), count.sum(0))
            even, odd = by_group[:, ::2].sum(1), by_group[:, 1::2].sum(1)
            plans = {"contiguous": ([[[e * 4 // E] for e in range(E)]] * L,) * 2, "greedy": ([greedy(x, 4) for x in even], [greedy(x, 4) for x in odd])}
            names = file["holdout/method_name"].asstr()[:].tolist()
            for method, (fitted, best) in plans.items():
                m = names.index(method)
                np.testing.assert_allclose(file["holdout/predicted"][m], balancedness(fitted, even, 4), rtol=1e-12)
                np.testing.assert_allclose(file["holdout/held_out"][m], balancedness(fitted, odd, 4), rtol=1e-12)
                np.testing.assert_allclose(file["holdout/best"][m], balancedness(best, odd, 4), rtol=1e-12)
            error = file["holdout/held_out"][m] - file["holdout/predicted"][m]
            self.assertRegex(text, rf"greedy .* {error:+.4f} ".replace("+", r"\+"))
            for d in range(2):
                for e in range(2):
                    np.testing.assert_allclose(file["holdout/by_datasets"][d, e], balancedness([greedy(x, 4) for x in count[d]], count[e], 4), rtol=1e-12)
            self.assertGreater(file["holdout/by_datasets"][0, 0], file["holdout/by_datasets"][1, 0])

    def test_virtual_ranks(self):
        run, file = self.route(), self.folder / "simulation.h5"
        text = self.switchyard("place", run, "--simulate", "--ranks", 16, "--nodes", 8, "--step-tokens", "300,2000", "--method", "greedy", "-o", file).stdout
        with h5py.File(run / "routing.h5") as record:
            rows = np.array([record[f"routing/layer_{l:03d}/expert"][:] for l in range(L)]).astype(int)
        n = rows.shape[1]
        with h5py.File(file) as found:
            self.assertEqual(found["simulation/ranks"][:].tolist(), [1, 2, 4, 8, 16])
            self.assertEqual(found["simulation/nodes"][:].tolist(), [1, 1, 2, 4, 8])
            self.assertEqual(found["simulation/replicas"][:].tolist(), [0, 0, 0, 0, 8])
            self.assertEqual(found["simulation/method_name"].asstr()[:].tolist(), ["contiguous", "greedy"])
            self.assertEqual(found["simulation/steps"][:].tolist(), [n // 300, n // 2000])
            compared = 0
            for size, tokens in enumerate((300, 2000)):
                for m, ranks in enumerate((1, 2, 4, 8, 16)):
                    for l in range(L):
                        load = np.bincount(rows[l].ravel(), minlength=E).astype(float)
                        plans = {0: [[e * ranks // E] if ranks <= E else [e, e + E] for e in range(E)]}
                        if ranks <= E:
                            plans[1] = greedy(load, ranks)
                        for method, plan in plans.items():
                            steps = np.array([np.bincount(rows[l, i * tokens:(i + 1) * tokens].ravel(), minlength=E) for i in range(n // tokens)]).astype(float)
                            loads = loads_of(plan, steps, ranks)
                            imbalance = loads.max(1) / loads.mean(1) - 1
                            for name, value in {"imbalance_p50": np.median(imbalance), "imbalance_p99": np.quantile(imbalance, 0.99), "imbalance_max": imbalance.max(),
                                                "straggler_share": (loads.max(1) - loads.mean(1)).sum() / loads.max(1).sum()}.items():
                                self.assertAlmostEqual(found[f"simulation/{name}"][method, m, size, l], value, places=10, msg=name)
                                compared += 1
                            if len(plan[0]) > 1 or l > 1:
                                continue
                            rank = np.array([r[0] for r in plan])[rows[l]]
                            row = np.arange(n) % tokens
                            length = np.where(np.arange(n) // tokens == n // tokens, n % tokens, tokens)
                            source = row * ranks // length
                            self.assertAlmostEqual(found["simulation/remote_slots_per_token"][method, m, size, l], (rank != source[:, None]).sum() / n, places=10)
                            remote = [len(set(a) - {s}) for a, s in zip(rank.tolist(), source.tolist())]
                            self.assertAlmostEqual(found["simulation/remote_ranks_per_token"][method, m, size, l], np.mean(remote), places=10)
                            compared += 2
            self.assertGreater(compared, 300)
        self.assertIn("token rows replayed of licence, words", text)
        counts = self.folder / "counts.json"
        counts.write_text(json.dumps(PUBLISHED))
        self.switchyard("reduce", "--from-counts", counts, "--top-k", 2, "-o", self.folder / "s.h5", "--quiet")
        shown = [self.switchyard("place", self.folder / "s.h5", "--simulate", "--ranks", 1024, "-o", file).stdout for _ in range(2)]
        self.assertEqual(shown[0], shown[1])
        self.assertIn("a model", shown[0])
        with h5py.File(file) as found:
            self.assertNotIn("simulation/remote_slots_per_token", found)
            self.assertEqual(found["simulation/ranks"][-1], 1024)
            usage = np.sum([PUBLISHED[d]["0"] for d in PUBLISHED], 0)
            # Many draws lie near their expectation.
            expected = usage.max() / usage.mean() - 1
            self.assertAlmostEqual(found["simulation/imbalance_p50"][0, 3, 2, 0], expected, delta=0.02)
        done = support.run("place", run, "--simulate", "--ranks", 4, "--holdout")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--holdout", done.stderr)
        self.assertEqual(support.run("place", run, "--ranks", 4, "--step-tokens", "1,0").returncode, 2)
        self.assertEqual(support.run("place", run, "--ranks", 4, "--step-tokens", "10,20").returncode, 2)

    def test_published_counts(self):
        (self.folder / "counts.json").write_text(json.dumps(PUBLISHED))
        self.switchyard("reduce", "--from-counts", self.folder / "counts.json", "--top-k", 2, "-o", self.folder / "s.h5", "--quiet")
        path, plan, text = self.place(self.folder / "s.h5")
        count = np.array([[PUBLISHED[d][l] for l in ("0", "15")] for d in PUBLISHED]).sum(0).astype(float)
        with h5py.File(path) as file:
            m = file["placement/chosen"][()]
            for l in range(2):
                load = loads_of(plan[l], count[l], 4)
                self.assertAlmostEqual(file["placement/max_over_mean"][m, l], load.max() / load.mean(), places=12)
            self.assertTrue(file["placement/exact"][m].all())
            self.assertFalse([n for n in file["placement"] if "per_token" in n or "steps" in n or "seconds" in n])
        self.assertIn("ranks, nodes: not known", text)
        self.assertNotRegex(text, r"\bnan\b")

    def test_mistakes_are_named(self):
        run = self.route()
        for words, code, needles in ((["--ranks", 0], 2, ["--ranks"]), ([], 2, ["ranks"]), (["--ranks", 4, "--nodes", 3], 2, ["--nodes", "divides"]),
                                     (["--ranks", 4, "--groups", 3], 2, ["--groups"]), (["--ranks", 2, "--replicas", 9], 2, ["at most 8"]),
                                     (["--ranks", 3, "--method", "eplb"], 2, ["eplb is not defined", "8 copies"]), (["--ranks", 2, "--method", "best"], 2, ["contiguous, round_robin"]),
                                     (["--ranks", 2, "--dataset", "x"], 2, ["licence, words"]), (["--ranks", 2, "--rank-weight", -1], 2, ["--rank-weight"]),
                                     (["--ranks", 2, "-o", self.folder / "no" / "p.h5"], 1, ["folder is not there"]), (["--ranks", 2, "--experts-per-rank", 3], 2, ["at least 4"])):
            done = support.run("place", run / "stats.h5", *words)
            self.assertEqual(done.returncode, code, (words, done.stderr))
            for needle in needles:
                self.assertIn(needle, done.stderr)
        done = support.run("place", self.folder / "nothing.h5", "--ranks", 2)
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing.h5", done.stderr)
        self.assertRegex(self.switchyard("place", run / "stats.h5", "--ranks", 3).stdout, r"left out: eplb, as 8 copies are not equally many on each of 3 ranks")
        self.assertFalse(re.search("place", str(list(run.iterdir()))))


if __name__ == "__main__":
    support.main()
