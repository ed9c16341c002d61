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


class Place(support.TestCase):
    def route(self, *more, out="run", ranks=2):
        corpora = [w for i, name in enumerate(("licence", "words")) for w in ("--corpus", f"{name}={self.write_text_corpus(name + '.jsonl', documents=30 + 10 * i, seed=i)},id=id")]
        self.switchyard("route", "--model", support.DEMO, *corpora, "--out", self.folder / out, "--context", 128, "--batch-tokens", 600, "--precision", "f32", "--quiet", *more, ranks=ranks)
        return self.folder / out

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
        path, plan, text = self.place(run, "--nodes", 2, "--replicas", 4, "--step-tokens", 500)
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
                sums = dict.fromkeys(("ranks_per_token", "nodes_per_token", "remote_slots_per_token", "remote_ranks_per_token", "remote_nodes_per_token"), 0.0)
                received = []
                for first in range(0, n, 500):
                    last = min(n, first + 500)
                    here = np.zeros(4)
                    for t in range(first, last):
                        source = (t - first) * 4 // (last - first)
                        ranks = [plan[l][e][t % len(plan[l][e])] for e in experts[t]]
                        nodes = [r // 2 for r in ranks]
                        sums["ranks_per_token"] += len(set(ranks))
                        sums["nodes_per_token"] += len(set(nodes))
                        sums["remote_slots_per_token"] += sum(r != source for r in ranks)
                        sums["remote_ranks_per_token"] += len(set(ranks) - {source})
                        sums["remote_nodes_per_token"] += len(set(nodes) - {source // 2})
                        for r in ranks:
                            here[r] += r != source
                    received.append(here.max() / here.mean())
                for name, value in sums.items():
                    self.assertAlmostEqual(file[f"placement/replayed_{name}"][m, l], value / n, places=10, msg=name)
                self.assertAlmostEqual(file["placement/replayed_received_max_over_mean"][m, l], np.mean(received), places=10)

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
        a, b, c = 1e-3, 2e-6, 5e-5
        rng = np.random.default_rng(0)
        half = rng.normal(size=(3, 3)) * [[1e-5], [1e-8], [1e-6]]
        covariance = half @ half.T
        with h5py.File(run / "stats.h5", "r+") as stats:
            n = len(stats["datasets/name"])
            stats["ranks/cost_model"] = np.full((n, 3), [a, b, c])
            stats["ranks/cost_model_covariance"] = np.broadcast_to(covariance, (n, 3, 3))
            stats["ranks/cost_model_r_squared"] = np.full(n, 0.9)
            count, steps, tokens = stats["load/count"][:].sum(0).astype(float), stats["ranks/steps"][:].sum(), stats["totals/tokens"][:].sum()
        for more, per_step in (([], tokens / steps), (["--step-tokens", 40], 40)):
            path, plan, text = self.place(run / "stats.h5", "--replicas", 4, *more)
            seconds = waiting = 0
            gradient = np.zeros(3)
            for l in range(L):
                load = loads_of(plan[l], count[l], 4) * per_step * K / count[l].sum()
                active = np.zeros(4)
                for e, copies in enumerate(plan[l]):
                    for r in copies:
                        active[r] += 1 - (1 - count[l, e] / count[l].sum() * K / len(copies)) ** per_step
                time = a + b * load + c * active
                last = time.argmax()
                seconds += time[last]
                waiting += time[last] - time.mean()
                gradient += [1, load[last], active[last]]
            with h5py.File(path) as file:
                m = file["placement/chosen"][()]
                self.assertAlmostEqual(file["placement/step_seconds"][m] / seconds, 1, places=9)
                self.assertAlmostEqual(file["placement/straggler_seconds"][m] / waiting, 1, places=6)
                self.assertAlmostEqual(file["placement/step_seconds_std"][m] / np.sqrt(gradient @ covariance @ gradient), 1, places=9)
            self.assertIn("R^2 0.900", text)

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
        self.assertNotIn("nan", text)

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
