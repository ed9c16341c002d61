"""The report page, in a real browser: no errors, no network, and the numbers of stats.h5."""

import csv
import io
import xml.etree.ElementTree

import h5py
import numpy as np
import support
from browser import Browser

E, K, LAYERS = 8, 2, 6


class Report(support.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()

    def setUp(self):
        super().setUp()
        self.browser.complaints.clear()

    def route(self, *options, ranks=2, corpora=("licence", "again"), model=support.DEMO, name="run", record="counts"):
        out = self.folder / name
        words = []
        for seed, corpus in enumerate(corpora):
            words += ["--corpus", f"{corpus}={self.write_text_corpus(f'{seed}.jsonl', documents=50, seed=seed)},id=id"]
        self.switchyard("route", "--model", model, *words, "--out", out, "--context", 128, "--batch-tokens", 600, "--block-tokens", 2500, "--record", record, "--quiet", *options, ranks=ranks)
        return out

    def open(self, page, width=1200):
        self.browser.open(page, width)
        self.browser.evaluate("switchyard.drawAll()")

    def csv(self, figure):
        return list(csv.DictReader(io.StringIO(self.browser.evaluate(f"switchyard.figures['{figure}'].csv()"))))

    def choose(self, figure, label, value):
        """Takes another value of a choice that stands in a figure, or in its section."""
        found = self.browser.evaluate(f"""(() => {{
            const figure = document.getElementById('{figure}');
            const box = Array.from(figure.querySelectorAll('label')).concat(Array.from(figure.closest('section').querySelectorAll('label'))).find(l => l.firstChild.textContent === '{label}');
            if (!box) return false;
            const select = box.querySelector('select');
            select.value = '{value}';
            select.dispatchEvent(new Event('change'));
            return select.value === '{value}';
        }})()""")
        self.assertTrue(found, f"{figure}: {label} = {value}")

    def assert_figures_answer(self, figures):
        """Each is drawn, and tells a number of what the arrow keys choose."""
        for name in figures:
            self.assertGreater(len(list(xml.etree.ElementTree.fromstring(self.browser.evaluate(f"switchyard.figures['{name}'].svg()")).iter())), 5, name)
            self.browser.evaluate(f"document.getElementById('{name}').focus()")
            self.browser.key("ArrowRight")
            self.assertRegex(self.browser.evaluate(f"document.querySelector('#{name} .readout').textContent"), r"\d", name)
            self.browser.key("Escape")

    def assert_sound(self):
        self.assertEqual(self.browser.complaints, [])
        text = self.browser.evaluate("document.body.innerText")
        for wrong in ("NaN", "undefined", "[object", "Infinity"):
            self.assertNotIn(wrong, text)
        broken = self.browser.evaluate("Array.from(document.querySelectorAll('svg *')).filter(n => Array.from(n.attributes).some(a => /NaN|undefined|Infinity/.test(a.value))).map(n => n.outerHTML.slice(0, 200))")
        self.assertEqual(broken, [])

    def test_numbers_are_those_of_the_statistics(self):
        out = self.route()
        page = self.folder / "report.html"
        self.switchyard("report", out, "-o", page, "--bootstrap", 100, "--permutations", 100, "--target-layer", 3)
        self.switchyard("compare", out, "-o", self.folder / "compare.h5", "--bootstrap", 100, "--permutations", 100, "--quiet", ranks=2)
        self.open(page)
        tables = self.browser.evaluate("switchyard.data.tables")
        with h5py.File(out / "stats.h5") as stats, h5py.File(self.folder / "compare.h5") as compared:
            names = [n.decode() for n in stats["datasets/name"][:]]
            seen = 0
            for path, table in tables.items():
                expected = (stats if path in stats else compared)[path][...]
                self.assertEqual(list(expected.shape), table["shape"], path)
                if expected.dtype.kind in "OS":
                    self.assertEqual([v.decode() for v in expected.ravel()], table["values"])
                elif expected.dtype.kind == "f":
                    np.testing.assert_array_equal(np.array(table["values"], np.float32), expected.ravel().astype(np.float32), path)
                else:
                    self.assertEqual(expected.ravel().tolist(), table["values"], path)
                seen += 1
            self.assertGreater(seen, 50)

            count = stats["load/count"][:]
            rows = self.csv("load-map")
            self.assertEqual(len(rows), 2 * LAYERS * E)
            for row in rows:
                d, l, e = names.index(row["dataset"]), int(row["layer"]), int(row["expert"])
                self.assertEqual(int(row["count"]), count[d, l, e])
                self.assertAlmostEqual(float(row["usage"]), stats["load/usage"][d, l, e], places=12)
            for row in self.csv("compare-layers"):
                l = int(row["layer"])
                for column in ("value", "low", "high", "p", "q"):
                    expected = compared["compare/jsd" + ("" if column == "value" else f"_{column}")][0, 1, l]
                    self.assertEqual(np.float32(row[column]), np.float32(expected), column)

            layer = int(self.csv("compare-ratio")[0]["layer"])
            np.testing.assert_allclose([float(r["usage_ratio"]) for r in self.csv("compare-ratio")], compared["specialisation/usage_ratio"][:, layer].ravel(), rtol=1e-12)

            flow = stats["flow/top1_count"][:]
            for scope, expected in (("0", flow.sum(0)), ("2", flow[1])):
                self.choose("paths-flow", "Dataset", scope)
                found = np.zeros((LAYERS - 1, E, E), int)
                for row in self.csv("paths-flow"):
                    found[int(row["layer"]), int(row["expert"]), int(row["next_expert"])] = int(row["tokens"])
                np.testing.assert_array_equal(found, expected)
            together = stats["coactivation/count"][:]
            self.choose("coactivation-pairs", "Dataset", "1")
            self.choose("coactivation-pairs", "Layer", "2")
            rows = self.csv("coactivation-pairs")
            self.assertEqual(len(rows), E * (E - 1))
            for row in rows:
                i, j = int(row["expert"]), int(row["expert2"])
                self.assertEqual((int(row["layer"]), int(row["tokens"])), (2, together[0, 2, i, j]))
                for column in ("conditional", "lift"):
                    np.testing.assert_allclose(float(row[column] or "nan"), stats[f"coactivation/{column}"][0, 2, i, j], rtol=1e-9)

            indptr, index, value = (stats[f"tokens/input/{c}"][:].astype(np.int64) for c in ("indptr", "index", "value"))
            vocabulary = stats["vocabulary/piece"].asstr()[:]
            dense = np.zeros((2 * LAYERS * len(vocabulary), E), int)
            dense[np.repeat(np.arange(len(dense)), np.diff(indptr)), index] = value
            dense = dense.reshape(2, LAYERS, len(vocabulary), E).sum(0)
            self.browser.evaluate("(() => { const box = document.querySelector('#tokens input'); box.value = 'the'; box.dispatchEvent(new Event('input')); document.querySelector('.matches button').click(); })()")
            rows = self.csv("token-experts")
            token = int(np.flatnonzero(vocabulary == rows[0]["token"])[0])
            self.assertIn("the", rows[0]["token"])
            self.assertEqual(len(rows), LAYERS * E)
            for row in rows:
                self.assertEqual(int(row["count"]), dense[int(row["layer"]), token, int(row["expert"])])
            self.choose("expert-tokens-count", "Layer", "4")
            self.choose("expert-tokens-count", "Expert", "5")
            rows = self.csv("expert-tokens-count")
            layer, of_token = dense[4], dense[4].sum(1)
            best = sorted((v for v in np.flatnonzero(layer[:, 5]) if of_token[v] >= 10), key=lambda v: (-layer[v, 5], v))[:len(rows)]
            self.assertGreater(len(rows), 5)
            self.assertEqual([int(r["id"]) for r in rows], best)
            for row in self.csv("expert-tokens-lift"):
                v = int(row["id"])
                self.assertAlmostEqual(float(row["lift"]), layer[v, 5] / layer[:, 5].sum() / (of_token[v] / layer.sum()), places=9)

            self.choose("paths-frequent", "Dataset", "1")
            paths = {tuple(p): c for p, c, d in zip(stats["paths/expert"][:].tolist(), stats["paths/count"][:].tolist(), stats["paths/dataset"][:].tolist()) if d == 1}
            rows = self.csv("paths-frequent")
            self.assertEqual([int(r["tokens"]) for r in rows], sorted(paths.values(), reverse=True)[:len(rows)])
            for row in rows:
                self.assertEqual(int(row["tokens"]), paths[tuple(int(e) for e in row["path"].split())])

            shown = self.browser.evaluate("Array.from(document.querySelectorAll('#repetition-table tbody tr')).map(r => Array.from(r.cells).map(c => c.textContent))")
            for d, row in enumerate(shown[:2]):
                expected = [f"{100 * s:.1f} %" for s in np.concatenate([stats["repetition/top1_share"][d], stats["repetition/any_share"][d]])]
                self.assertEqual(row, [names[d]] + expected)
            self.assertEqual(shown[2][1:], ["12.5 %"] * LAYERS + ["46.4 %"] * LAYERS)
            traffic = stats["ranks/traffic"][0]
            self.assertEqual([int(r["slots"]) for r in self.csv("ranks-traffic")], traffic.ravel().tolist())
            top = np.unravel_index(stats["load/max_over_mean"][:].argmax(), (2, LAYERS))
            finding = self.browser.evaluate("document.querySelector('#findings li').textContent")
            self.assertIn(f"layer {top[1]} on {names[top[0]]}: expert {count[top].argmax()} takes {100 * count[top].max() / count[top].sum():.1f} %", finding)
        self.assert_sound()

    def test_every_figure_exports_answers_keys_and_fits(self):
        out = self.route(ranks=1)
        page = self.folder / "report.html"
        self.switchyard("report", out / "stats.h5", "-o", page, "--bootstrap", 20, "--permutations", 20, "--quiet")
        source = page.read_text()
        self.assertNotRegex(source, r"<(script|link|img)[^>]*(src|href)=")
        for width in (1400, 820, 390):
            self.open(page, width)
            self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
            self.assert_sound()
        names = self.browser.evaluate("Object.keys(switchyard.figures)")
        self.assertGreater(len(names), 20)
        self.assertEqual(self.browser.evaluate("(() => { const ids = Array.from(document.querySelectorAll('[id]')).map(n => n.id); return ids.length - new Set(ids).size; })()"), 0)
        for name in names:
            self.assertGreater(len(self.csv(name)), 0, name)
            drawing = self.browser.evaluate(f"switchyard.figures['{name}'].svg()")
            self.assertGreater(len(list(xml.etree.ElementTree.fromstring(drawing).iter())), 5, name)
            self.assertEqual(self.browser.evaluate(f"Array.from(document.getElementById('{name}').querySelectorAll('.tools button')).map(b => b.textContent)"), ["CSV", "SVG", "Table"])
            self.browser.evaluate(f"document.getElementById('{name}').focus()")
            self.browser.key("ArrowRight")
            self.assertRegex(self.browser.evaluate(f"document.querySelector('#{name} .readout').textContent"), r"\d", name)
            self.assertFalse(self.browser.evaluate("document.getElementById('tip').hidden"), name)
            self.browser.key("Escape")
            self.assertTrue(self.browser.evaluate("document.getElementById('tip').hidden"), name)
        self.browser.evaluate("document.getElementById('load-map').scrollIntoView()")
        box = self.browser.evaluate("(() => { const b = document.querySelector('#load-map .mark').getBoundingClientRect(); return [b.x + 5, b.y + 5]; })()")
        self.browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
        self.assertRegex(self.browser.evaluate("document.getElementById('tip').textContent"), r"expert 0\n[\d,]+ of [\d,]+ slots")
        self.assertEqual(self.browser.evaluate("Array.from(document.querySelectorAll('select, input')).filter(n => !n.closest('label')).length"), 0)
        self.browser.evaluate("document.querySelector('#load-map .tools button:nth-child(3)').click()")
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('#load-map .scroll tbody tr').length"), 2 * LAYERS * E)
        dark = "getComputedStyle(document.body).backgroundColor"
        light = self.browser.evaluate(dark)
        self.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        self.assertNotEqual(self.browser.evaluate(dark), light)
        self.browser.call("Emulation.setEmulatedMedia", media="print", features=[])
        self.assertEqual(self.browser.evaluate("getComputedStyle(document.querySelector('.tools')).display"), "none")
        self.browser.call("Emulation.setEmulatedMedia", media="", features=[])
        self.assert_sound()

    def test_one_dataset_a_dense_model_and_names_full_of_markup(self):
        page = self.folder / "report.html"
        self.switchyard("report", self.route(ranks=1, corpora=("only",), name="one"), "-o", page, "--quiet")
        self.open(page)
        self.assertIn("There is one dataset", self.browser.evaluate("document.getElementById('comparison').textContent"))
        self.assertNotIn("too low", self.browser.evaluate("document.getElementById('tokens').textContent"))
        self.assert_sound()
        self.assertIsNone(self.browser.evaluate("document.getElementById('documents') && 1"))
        rows = self.folder / "rows"
        self.switchyard("route", "--model", support.DEMO, "--corpus", f"text={self.write_text_corpus(documents=9)},id=id,category=kind", "--out", rows, "--quiet")
        self.switchyard("reduce", rows, "-o", self.folder / "documents.h5", "--per-document", 5, "--quiet")
        self.switchyard("report", self.folder / "documents.h5", "-o", page, "--target-layer", 2, "--quiet")
        self.open(page)
        with h5py.File(self.folder / "documents.h5") as stats:
            expected = np.concatenate([stats["load/count"][0, 2][None], stats["documents/count"][:, 2]])
        self.assertEqual(expected.shape, (6, E))
        self.assertEqual([int(r["count"]) for r in self.csv("document-usage")], expected.ravel().tolist())
        self.assert_sound()
        bounded = self.route("--token-cells", 12000, ranks=1, corpora=("only",), name="bounded")
        self.switchyard("report", bounded, "-o", page, "--quiet")
        self.open(page)
        with h5py.File(bounded / "stats.h5") as stats:
            self.assertIn(f"at most {stats['tokens/input/undercount'][0].max():,} too low", self.browser.evaluate("document.getElementById('token-experts').textContent"))
        self.assert_sound()
        tokens = self.folder / "tokens.jsonl"
        tokens.write_text("\n".join('{"tokens": [%s]}' % ", ".join(str((7 * i + j) % 64) for j in range(20)) for i in range(5)))
        self.switchyard("route", "--model", support.GOLDEN / "mistral", "--corpus", f"dense={tokens}", "--out", self.folder / "dense", "--quiet")
        self.switchyard("report", self.folder / "dense", "-o", page, "--quiet")
        self.open(page)
        self.assertIn("routes nothing", self.browser.evaluate("document.getElementById('overview').textContent"))
        self.assert_sound()
        counts = self.folder / "counts.json"
        counts.write_text('{"web": {"3": [5, 1, 2, 2], "7": [1, 3, 3, 3]}, "code": {"3": [2, 2, 2, 4], "7": [4, 2, 2, 2]}}')
        self.switchyard("reduce", "--from-counts", counts, "--top-k", 2, "-o", self.folder / "counts.h5", "--quiet")
        self.switchyard("report", self.folder / "counts.h5", "-o", page, "--quiet")
        self.open(page)
        self.assertEqual([int(r["count"]) for r in self.csv("load-map")], [2, 2, 2, 4, 4, 2, 2, 2, 5, 1, 2, 2, 1, 3, 3, 3])
        self.assertIn("no groups of documents", self.browser.evaluate("document.getElementById('comparison').textContent"))
        for section in ("entropy", "paths", "coactivation", "repetition"):
            self.assertIn("Nothing was recorded of this.", self.browser.evaluate(f"document.getElementById('{section}').textContent"), section)
        self.assert_sound()
        name = "</script><b>&amp;"
        stats = self.route(ranks=1, corpora=("first", "second"), name="markup") / "stats.h5"
        with h5py.File(stats, "r+") as file:  # as someone else's file may have it
            for path in ("datasets/name", "model/name"):
                values = [name] + [v.decode() for v in file[path][1:]]
                del file[path]
                file[path] = values
            pieces = file["vocabulary/piece"].asstr()[:].tolist()
            del file["vocabulary/piece"]
            file["vocabulary/piece"] = [p.replace("the", name) for p in pieces]
        self.switchyard("report", stats, "-o", page, "--bootstrap", 20, "--permutations", 20, "--quiet")
        self.open(page)
        self.assertEqual(self.browser.evaluate("document.querySelector('#datasets tbody th').textContent"), name)
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('main b').length"), 0)
        self.assert_sound()

    def test_weights_of_a_model(self):
        page, file = self.folder / "report.html", self.folder / "weights.h5"
        model, dense = self.folder / "model", self.folder / "dense"
        sizes = ["--layers", 3, "--d-model", 48, "--d-ff", 72, "--heads", 4, "--head-dim", 12]
        self.switchyard("synth", "--out", model, "--experts", 4, *sizes)
        self.switchyard("synth", "--out", dense, "--family", "mistral", *sizes)
        self.switchyard("weights", "--model", model, "--dense", dense, "--layers", "0,2", "--sample-neurons", 50, "-o", file, "--quiet")
        self.switchyard("report", file, "-o", page, "--quiet")
        for width in (1200, 390):
            self.open(page, width)
            self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
        self.assertEqual(self.browser.evaluate("Object.keys(switchyard.figures)"), ["weights-similarity", "weights-layers", "weights-router", "weights-r2", "weights-plane"])
        for figure in ("weights-similarity", "weights-router", "weights-plane"):
            self.choose(figure, "Layer", "1")
            self.choose(figure, "Matrix", "2")
        self.choose("weights-similarity", "Measure", "assigned_cosine")
        self.assertIn("Of 50 of 72 neurons.", self.browser.evaluate("document.querySelector('#weights-similarity .note').textContent"))
        with h5py.File(file) as weights:
            names, measures = weights["weights/block_name"].asstr()[:].tolist(), ("flat_cosine", "matched_cosine", "assigned_cosine", "assigned_flat_cosine", "kendall_tau")
            rows = self.csv("weights-similarity")
            self.assertEqual(len(rows), 10)
            for row in rows:
                self.assertEqual((row["layer"], row["matrix"]), ("2", "down"))
                for measure in measures:
                    expected = weights[f"down/{measure}"][1, names.index(row["block"]), names.index(row["block2"])]
                    self.assertEqual(np.float32(row[measure]), np.float32(expected))
            upper = np.triu_indices(4, 1)
            rows = self.csv("weights-layers")
            self.assertEqual(len(rows), 2 * 3)
            for row in rows:
                for measure in ("matched_cosine", "assigned_cosine", "kendall_tau"):
                    expected = weights[f"{row['matrix']}/{measure}"][[0, 2].index(int(row["layer"]))][upper].mean()
                    self.assertAlmostEqual(float(row[measure]), expected, places=6)
            rows = self.csv("weights-router")
            self.assertEqual([(int(r["expert"]), int(r["expert2"])) for r in rows], list(zip(*upper)))
            np.testing.assert_array_equal([np.float32(r["router_cosine"]) for r in rows], weights["router/cosine"][1][upper].astype(np.float32))
            np.testing.assert_array_equal([np.float32(r["flat_cosine"]) for r in rows], weights["down/flat_cosine"][1][upper].astype(np.float32))
            rows = self.csv("weights-r2")
            np.testing.assert_array_equal([np.float32(r["r_squared"]) for r in rows], weights["router/r_squared"][:].astype(np.float32).ravel())
            self.assertIn(f"R² = {weights['router/r_squared'][1, 2]:.3g}", self.browser.evaluate("document.querySelector('#weights-router .note').textContent"))
            rows = self.csv("weights-plane")
            self.assertEqual(len(rows), 5 * 72)
            np.testing.assert_array_equal([[np.float32(r["component1"]), np.float32(r["component2"])] for r in rows], weights["down/coordinates"][1].reshape(-1, 2))
        for name in self.browser.evaluate("Object.keys(switchyard.figures)"):
            self.assertGreater(len(list(xml.etree.ElementTree.fromstring(self.browser.evaluate(f"switchyard.figures['{name}'].svg()")).iter())), 5, name)
            self.browser.evaluate(f"document.getElementById('{name}').focus()")
            self.browser.key("ArrowRight")
            self.assertRegex(self.browser.evaluate(f"document.querySelector('#{name} .readout').textContent"), r"\d", name)
            self.browser.key("Escape")
        self.assert_sound()

        pair = self.folder / "pair"
        self.switchyard("synth", "--out", pair, "--experts", 2, *sizes)
        self.switchyard("weights", "--model", pair, "--layers", 1, "-o", file, "--quiet")
        self.switchyard("report", file, "-o", page, "--quiet")
        self.open(page)
        self.assertIn("Too few pairs for a line.", self.browser.evaluate("document.getElementById('weights').textContent"))

    def ablate(self, name, *options):
        out = self.folder / name
        self.switchyard("ablate", "--model", support.DEMO, "--corpus", f"text={self.write_text_corpus('ablated.jsonl', documents=20)},id=id,category=kind", "--context", 128, "--bootstrap", 50, "--output-dir", out, "--quiet", *options)
        return out / "ablation.h5"

    def test_ablation_beside_statistics(self):
        run, page = self.route(ranks=1, corpora=("only",)), self.folder / "report.html"
        file = self.ablate("zero", "--layers", "1,4", "--experts", "0,2,3,6")
        self.switchyard("report", run, file, "-o", page, "--quiet")
        self.open(page)
        columns = {"loss_difference": "loss_difference", "low": "loss_difference_low", "high": "loss_difference_high", "accuracy_difference": "accuracy_difference", "accuracy_low": "accuracy_difference_low",
                   "accuracy_high": "accuracy_difference_high", "lost": "lost", "gained": "gained", "p": "mcnemar_p", "q": "mcnemar_q"}
        with h5py.File(file) as found:
            categories = [n.decode() for n in found["ablation/category"][:]]
            self.assertEqual(sorted(categories), ["all", "long", "short"])
            baseline = self.browser.evaluate("Array.from(document.querySelectorAll('#ablation-baseline tbody tr')).map(r => Array.from(r.cells).map(c => c.textContent))")
            self.assertEqual([r[0] for r in baseline], categories)
            self.assertEqual([int(r[2]) for r in baseline], found["ablation/tokens"][:].tolist())
            compared = 0
            for c, category in enumerate(categories):
                self.choose("ablation-map", "Category", str(c))
                self.choose("ablation-map", "Layer", "4")
                rows = self.csv("ablation-map")
                self.assertEqual(len(rows), 8)
                ranking = self.csv("ablation-ranking")
                best = sorted((0, 2, 3, 6), key=lambda e: -found["ablation/loss_difference"][4, e, c])
                self.assertEqual([int(r["expert"]) for r in ranking], best)
                for row in rows + ranking:
                    self.assertEqual(row["category"], category)
                    for column, name in columns.items():
                        expected = found["ablation/" + name][int(row["layer"]), int(row["expert"]), c]
                        self.assertEqual(np.float32(row[column]), np.float32(expected), column)
                        compared += 1
            self.assertEqual(compared, 3 * 12 * 10)
            names = [n.decode() for n in found["importance/score"][:]]
            for row in self.csv("ablation-scores"):
                for name in names:
                    self.assertEqual(np.float32(row[name]), np.float32(found["importance/" + name][4, int(row["expert"])]))
            rows = self.csv("ablation-correlations")
            self.assertEqual(len(rows), 2 * len(names))
            for row in rows:
                self.assertEqual(np.float32(row["correlation"]), np.float32(found["importance/correlation"][int(row["layer"]), names.index(row["score"])]))
        self.assert_sound()
        self.choose("ablation-scores", "Score", "2")
        self.assertIn("REAP", self.browser.evaluate("document.querySelector('#ablation-scores h3').textContent"))
        for width in (400, 1600):
            self.open(page, width)
            self.assert_sound()
        file = self.ablate("flip", "--mode", "flip")
        self.switchyard("report", file, "-o", page, "--quiet")
        self.open(page)
        with h5py.File(file) as found:
            rows = self.csv("ablation-map")
            self.assertEqual(len(rows), LAYERS * 3)
            for row in rows:
                self.assertEqual(np.float32(row["loss_difference"]), np.float32(found["ablation/loss_difference"][int(row["layer"]), categories.index(row["category"])]))
        self.assert_sound()

    def test_probe_of_a_model(self):
        page, file = self.folder / "report.html", self.folder / "probe.h5"
        corpora = [w for seed, name in enumerate(("licence", "again")) for w in ("--corpus", f"{name}={self.write_text_corpus(f'{seed}.jsonl', documents=9, seed=seed)},id=id")]
        self.switchyard("probe", "--model", support.DEMO, *corpora, "--tokens", 150, "--shown-tokens", 20, "--layers", "0,2,5", "-o", file, "--quiet", ranks=2)
        self.switchyard("report", file, "-o", page, "--target-layer", 2, "--quiet")
        for width in (1200, 390):
            self.open(page, width)
            self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
        figures = ["probe-similarity", "probe-layers", "probe-ranks", "probe-experts", "probe-tokens"]
        self.assertEqual(self.browser.evaluate("Object.keys(switchyard.figures)"), figures)
        self.assertEqual({row["layer"] for row in self.csv("probe-similarity")}, {"2"})
        self.assertIn("licence: 150 tokens, again: 150 tokens.", self.browser.evaluate("document.getElementById('probe').textContent"))
        for figure in ("probe-similarity", "probe-ranks"):
            self.choose(figure, "Layer", "2")
        for figure in ("probe-similarity", "probe-ranks", "probe-experts", "probe-tokens"):
            self.choose(figure, "Dataset", "1")
        for measure in ("intermediate_cosine", "output_angular"):
            self.choose("probe-similarity", "Measure", measure)
        self.choose("probe-experts", "Measure", "sparsity")
        self.choose("probe-tokens", "Choice", "1")
        with h5py.File(file) as probe:
            upper = np.triu_indices(E, 1)
            rows = self.csv("probe-similarity")
            self.assertEqual([(r["dataset"], r["layer"], int(r["expert"]), int(r["expert2"])) for r in rows], [("again", "5", a, b) for a, b in zip(*upper)])
            for measure in ("output_cosine", "output_angular", "intermediate_cosine"):
                np.testing.assert_array_equal([np.float32(r[measure]) for r in rows], probe[f"probe/{measure}"][1, 2][upper].astype(np.float32))
                np.testing.assert_allclose([float(r[measure]) for r in self.csv("probe-layers")], probe[f"probe/{measure}"][:][:, :, upper[0], upper[1]].mean(-1).ravel(), atol=1e-6)
            np.testing.assert_array_equal([int(r["tokens"]) for r in self.csv("probe-ranks")], probe["probe/norm_score_rank"][1, 2].ravel())
            rows = self.csv("probe-experts")
            self.assertEqual(len(rows), 3 * E)
            for measure in ("output_norm", "output_norm_std", "sparsity"):
                np.testing.assert_array_equal([np.float32(r[measure]) for r in rows], probe[f"probe/{measure}"][1].ravel().astype(np.float32))
            rows = self.csv("probe-tokens")
            self.assertEqual(len(rows), 20 * 3)
            for j in range(K):
                np.testing.assert_array_equal([int(r[f"expert{j + 1}"]) for r in rows], probe["tokens_shown/expert"][20:, :, j].ravel())
                np.testing.assert_array_equal([np.float32(r[f"weight{j + 1}"]) for r in rows], probe["tokens_shown/weight"][20:, :, j].ravel())
            self.assertEqual([r["token"].replace("␣", "\u2581") for r in rows[::3]], probe["tokens_shown/piece"].asstr()[20:].tolist())
        self.assert_figures_answer(figures)
        self.assert_sound()
        self.switchyard("report", self.route(ranks=1, corpora=("only",)), file, "-o", page, "--quiet")
        self.open(page)
        self.assertGreater(len(self.csv("load-map")), 0)
        self.assertEqual(len(self.csv("probe-ranks")), E * E)
        self.assert_sound()

    def test_times_of_ranks_and_what_a_slot_costs(self):
        out, page = self.route(), self.folder / "report.html"
        rng, n = np.random.default_rng(0), 300
        slots = rng.integers(100, 900, (2, n)).astype(float)
        experts = rng.integers(1, 5, (2, n)).astype(float)
        seconds = {0: 2e-4 + 5e-7 * slots + 3e-5 * experts + rng.normal(scale=1e-5, size=(2, n)), 1: 1e-3 + 1e-7 * slots + rng.normal(scale=1e-3, size=(2, n))}
        with h5py.File(out / "stats.h5", "r+") as stats:  # a quiet machine, and a busy one
            for d in range(2):
                s, e, t = slots, experts, seconds[d]
                stats["ranks/cost_sums"][d] = np.array([np.ones_like(s), s, e, t, s * s, s * e, e * e, s * t, e * t, t * t]).sum(2).T
        self.switchyard("report", out, "-o", page, "--bootstrap", 20, "--permutations", 20, "--quiet")
        for width in (1400, 820, 390):
            self.open(page, width)
            self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
            self.assert_sound()
        figures = [f for f in self.browser.evaluate("Object.keys(switchyard.figures)") if f.startswith(("ranks-parts", "ranks-straggler", "ranks-cost"))]
        self.assertEqual(figures, ["ranks-parts", "ranks-stragglers", "ranks-straggler-ranks", "ranks-straggler-experts", "ranks-cost-terms", "ranks-cost-fit"])
        self.assert_figures_answer(figures)
        note = lambda figure: self.browser.evaluate(f"document.querySelector('#{figure} .note').textContent")
        shown = lambda rows, column: np.array([np.float32(r[column] or "nan") for r in rows])
        with h5py.File(out / "stats.h5") as stats:
            ranks = stats["ranks"]
            for d in (1, 0):
                self.choose("ranks-parts", "Dataset", d)
                rows = self.csv("ranks-parts")
                self.assertEqual([(int(r["layer"]), int(r["rank"])) for r in rows], [(l, r) for l in range(LAYERS) for r in range(2)])
                for column, name in {"dispatch": "dispatch", "waiting_in_dispatch": "dispatch_wait", "experts": "expert", "combine": "combine", "waiting_in_combine": "combine_wait"}.items():
                    np.testing.assert_array_equal(shown(rows, f"{column}_seconds"), ranks[f"layer_{name}_seconds"][d].ravel().astype(np.float32))
                cost, by_expert = ranks["layer_straggler_seconds"][d], ranks["straggler_by_expert"][d]
                np.testing.assert_array_equal(shown(self.csv("ranks-stragglers"), "straggler_seconds"), cost.astype(np.float32))
                self.assertIn(f"layer {cost.argmax()} cost most, {100 * cost.max() / cost.sum():.1f} % of it", note("ranks-stragglers"))
                rows = self.csv("ranks-straggler-ranks")
                np.testing.assert_array_equal(shown(rows, "straggler_seconds"), ranks["straggler_by_rank"][d].ravel().astype(np.float32))
                np.testing.assert_array_equal([int(r["slowest_steps"]) for r in rows], ranks["slowest_steps"][d].ravel())
                np.testing.assert_array_equal(shown(self.csv("ranks-straggler-experts"), "straggler_seconds"), by_expert.ravel().astype(np.float32))
                worst = np.unravel_index(np.argsort(-by_expert, axis=None)[:3], by_expert.shape)
                self.assertIn("Most costly: " + ", ".join(f"expert {e} of layer {l} ({100 * by_expert[l, e] / cost.sum():.1f} %)" for l, e in zip(*worst)), note("ranks-straggler-experts"))

                def fit(s, e, t):
                    x = np.stack([np.ones(s.size), s.ravel(), e.ravel()], 1)
                    terms, left = np.linalg.lstsq(x, t.ravel(), rcond=None)[:2]
                    return terms, 1 - left[0] / ((t - t.mean()) ** 2).sum(), 1.96 * np.sqrt(np.diag(left[0] / (s.size - 3) * np.linalg.inv(x.T @ x)))
                rows, quality = self.csv("ranks-cost-terms"), self.csv("ranks-cost-fit")
                self.assertEqual([r["rank"] for r in rows], ["all", "0", "1"])
                terms, explained, room = fit(slots, experts, seconds[d])
                for i, name in enumerate(("per_slot", "per_expert"), 1):
                    np.testing.assert_allclose(float(rows[0][f"{name}_low"]), terms[i] - room[i], rtol=1e-4, atol=1e-10)
                    np.testing.assert_allclose(float(rows[0][f"{name}_high"]), terms[i] + room[i], rtol=1e-4, atol=1e-10)
                fits = [(terms, explained)] + [fit(slots[r], experts[r], seconds[d][r])[:2] for r in range(2)]
                np.testing.assert_allclose([[float(r[f"{name}_seconds"]) for name in ("intercept", "per_slot", "per_expert")] for r in rows], [f[0] for f in fits], rtol=1e-4)
                np.testing.assert_allclose(shown(quality, "r_squared"), [f[1] for f in fits], rtol=1e-4)
                np.testing.assert_allclose(shown(quality, "correlation"), [np.nan] + [np.corrcoef(slots[r], seconds[d][r])[0, 1] for r in range(2)], rtol=1e-4)
                words = f"It explains {100 * explained:.0f} % of the seconds' variance" + ("." if d == 0 else ", too little to be believed: below 0.5")
                self.assertIn(words, note("ranks-cost-terms"))
                self.assertEqual(explained > 0.5, d == 0)
        self.choose("ranks-parts", "Rank", 1)
        self.assertRegex(self.browser.evaluate("document.getElementById('ranks-parts').textContent"), "Time by layer and part: rank 1")
        self.assert_sound()
        with h5py.File(out / "stats.h5", "r+") as stats:  # as of a run of an older version
            stats["ranks/timed_steps"][1] = 0
        self.switchyard("report", out, "-o", page, "--bootstrap", 20, "--permutations", 20, "--quiet")
        self.open(page)
        self.choose("ranks-parts", "Dataset", 1)
        for name in figures:
            self.assertEqual(self.csv(name), [], name)
            self.assertEqual(self.browser.evaluate(f"document.querySelectorAll('#{name} .mark').length"), 0, name)
        self.assertIn("not recorded of this dataset", self.browser.evaluate("document.getElementById('ranks-parts').textContent"))
        self.assert_sound()
        self.switchyard("report", self.route(ranks=1, corpora=("only",), name="one"), "-o", page, "--quiet")
        self.open(page)
        self.assertEqual([f for f in self.browser.evaluate("Object.keys(switchyard.figures)") if f in figures], ["ranks-parts", "ranks-cost-terms", "ranks-cost-fit"])
        self.assert_sound()

    def test_energy_where_it_was_counted(self):
        out = self.route()
        page = self.folder / "report.html"
        with h5py.File(out / "stats.h5", "r+") as stats:  # as if the second corpus had been routed where GPUs count
            tokens = stats["cost/tokens"][1]
            for name, values in (("joules", np.array([np.nan, 12345.5])), ("joules_tokens", np.array([0, tokens], np.uint64)),
                                 ("joules_per_token_low", np.array([np.nan, 0.125])), ("joules_per_token_high", np.array([np.nan, 7.5]))):
                stats["cost"].create_dataset(name, data=values).dims[0].attach_scale(stats["cost/tokens"].dims[0][0])
            share = stats["cost/phase_share"][1]
        self.switchyard("report", out / "stats.h5", "-o", page)
        self.open(page)
        section = "document.getElementById('ranks-seconds').closest('section').innerText"
        self.assertNotIn("J a token", self.browser.evaluate(section))
        self.assertEqual({row["joules_estimate"] for row in self.csv("ranks-seconds")}, {""})
        self.choose("ranks-seconds", "Dataset", "1")
        self.assertIn(f"Their GPUs took 12350 J, {float(f'{12345.5 / tokens:.3g}')} J a token (blocks: 0.125 to 7.5).", self.browser.evaluate(section))
        self.assertIn("as if waiting took as much power", self.browser.evaluate(section))
        np.testing.assert_allclose([float(row["joules_estimate"]) for row in self.csv("ranks-seconds")], 12345.5 * share, rtol=1e-5)
        self.assert_figures_answer(["ranks-seconds"])
        self.assertIn(f"again {float(f'{12345.5 / tokens:.4g}')} J", self.browser.evaluate("document.body.innerText"))  # among the facts
        self.assert_sound()

    def test_predicted_and_measured(self):
        run, page, place, plan = self.route(record="tokens"), self.folder / "report.html", self.folder / "place.h5", self.folder / "plan.json"
        with h5py.File(run / "stats.h5", "r+") as stats:  # a quiet machine
            for name, values in (("", [1e-4, 2e-7, 0]), ("_covariance", np.diag([1e-12, 1e-18, 0])), ("_r_squared", 0.9)):
                stats[f"ranks/cost_model{name}"][:] = values
        self.switchyard("place", run, "--ranks", 2, "--placement", plan, "--quiet")
        after = self.route("--placement", plan, name="after", corpora=("licence", "again", "third"))
        self.switchyard("place", run, "--ranks", 2, "--nodes", 2, "--check", after, "-o", place, "--quiet")
        self.switchyard("report", place, "-o", page, "--quiet")
        for width in (1400, 820, 390):
            self.open(page, width)
            self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
            self.assert_sound()
        self.assert_figures_answer(["placement-check-layers"])
        listed = self.browser.evaluate("Array.from(document.querySelectorAll('#placement-check tbody tr')).map(r => Array.from(r.cells).map(c => c.textContent))")
        head = self.browser.evaluate("Array.from(document.querySelectorAll('#placement-check thead th')).map(c => c.textContent)")
        with h5py.File(place) as found:
            check = found["check"]
            figures, names, texts = (check[n].asstr()[:].tolist() for n in ("figure_name", "dataset_name", "text"))
            self.assertEqual(texts, ["partly other text", "same text", "same text", "other text"])
            self.assertEqual(head[2:], [f"{n}, {t}" for n, t in zip(names, texts)])
            self.assertEqual(len(listed), len(figures))
            self.assertEqual(len(figures), 8)
            for f, figure in enumerate(figures):
                self.choose("placement-check-layers", "Figure", f)
                rows = self.csv("placement-check-layers")
                self.assertEqual([(r["dataset"], int(r["layer"]), r["text"]) for r in rows], [(n, l, t) for n, t in zip(names, texts) for l in range(LAYERS)])
                for column in ("predicted", "predicted_low", "predicted_high", "measured", "error"):
                    table = f"{column}_{figure}" if "_" not in column else f"predicted_{figure}_{column.split('_')[1]}"
                    expected = np.broadcast_to(check[table][...] if table in check else np.nan, (len(names), LAYERS)).ravel().astype(np.float32)
                    np.testing.assert_array_equal([np.float32(r[column] or "nan") for r in rows], expected, column)
                over_layers = check[f"measured_{figure}"][:].sum(1) if check["adds_up"][f] else check[f"measured_{figure}"][:].mean(1)
                self.assertAlmostEqual(float(listed[f][1].split()[0]) / check[f"whole_{figure}"][()], 1, places=2)
                for d, cell in enumerate(listed[f][2:]):
                    value, error = cell.split(" (")
                    self.assertAlmostEqual(float(value) / over_layers[d], 1, places=2)
                    self.assertAlmostEqual(float(error[:-1]), over_layers[d] - check[f"whole_{figure}"][()], delta=2e-3 * check[f"whole_{figure}"][()])
            self.assertIn(" to ", listed[figures.index("step_seconds")][1])
        self.choose("placement-check-layers", "Measured on", 3)
        self.assertIn("third, other text", self.browser.evaluate("document.querySelector('#placement-check-layers .note').textContent"))
        self.assert_sound()
        with h5py.File(run / "stats.h5", "r+") as stats:  # and one where other things decide
            stats["ranks/cost_model_r_squared"][:] = 0.1
        self.switchyard("place", run / "stats.h5", "--ranks", 2, "--check", after, "-o", place, "--quiet")
        self.switchyard("report", place, "-o", page, "--quiet")
        self.open(page)
        listed = self.browser.evaluate("Array.from(document.querySelectorAll('#placement-check tbody tr')).map(r => Array.from(r.cells).map(c => c.textContent))")
        self.assertEqual([r[1] for r in listed if r[0].startswith(("balancedness within", "seconds"))], ["–", "–"])
        for f in range(len(listed)):
            self.choose("placement-check-layers", "Figure", f)
            self.assertEqual(self.csv("placement-check-layers")[0]["predicted"] == "", listed[f][1] == "–")
        self.assert_sound()

    def test_placements_and_virtual_ranks(self):
        run, page = self.route(record="tokens"), self.folder / "report.html"
        place, simulation = self.folder / "place.h5", self.folder / "simulation.h5"
        self.switchyard("place", run, "--ranks", 4, "--nodes", 2, "--replicas", 4, "--drift", 2, "--holdout", "-o", place, "--quiet")
        self.switchyard("place", run, "--simulate", "--ranks", 16, "--nodes", 4, "--method", "greedy", "--step-tokens", "300,1500", "-o", simulation, "--quiet")
        self.switchyard("report", run, place, simulation, "-o", page, "--bootstrap", 50, "--permutations", 50, "--quiet")
        for width in (1200, 390):
            self.open(page, width)
            self.assert_sound()
            self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
        figures = [f for f in self.browser.evaluate("Object.keys(switchyard.figures)") if f.startswith(("placement-", "simulation-"))]
        self.assertEqual(figures, ["placement-balance", "placement-steps", "placement-spread", "placement-nodes", "placement-ranks", "placement-drift", "placement-datasets", "simulation-ranks"])
        with h5py.File(place) as found:
            methods = found["placement/method_name"].asstr()[:].tolist()
            listed = self.browser.evaluate("Array.from(document.querySelectorAll('#placement-methods tbody tr')).map(r => Array.from(r.cells).map(c => c.textContent))")
            self.assertEqual([r[0].split()[0] for r in listed], methods)
            self.assertIn("(chosen)", listed[found["placement/chosen"][()]][0])
            for m, cells in enumerate(listed):
                self.assertAlmostEqual(float(cells[1]), found["placement/balancedness_mean"][m], places=3)
            for name, table in {"placement-balance": "max_over_mean", "placement-spread": "replayed_ranks_per_token", "placement-nodes": "replayed_nodes_per_token"}.items():
                rows = self.csv(name)
                self.assertEqual(len(rows), LAYERS)
                for row in rows:
                    for m, method in enumerate(methods):
                        self.assertEqual(np.float32(row[method]), np.float32(found[f"placement/{table}"][m, int(row["layer"])]))
            self.choose("placement-ranks", "Method", methods.index("greedy"))
            np.testing.assert_array_equal([np.float32(r["slots"]) for r in self.csv("placement-ranks")], found["placement/rank_load"][methods.index("greedy")].ravel().astype(np.float32))
            policies = found["drift/policy_name"].asstr()[:].tolist()
            rows = self.csv("placement-drift")
            self.assertEqual(len(rows), len(found["drift/block"]))
            for b, row in enumerate(rows):
                for p, policy in enumerate(policies):
                    np.testing.assert_equal(np.float32(row[policy] or "nan"), np.float32(found["drift/balancedness"][p, b]))
            np.testing.assert_array_equal([np.float32(r["balancedness"]) for r in self.csv("placement-datasets")], found["holdout/by_datasets"][:].ravel().astype(np.float32))
            half = self.browser.evaluate("Array.from(document.querySelectorAll('#placement-holdout tbody tr')).map(r => Array.from(r.cells).map(c => c.textContent))")
            self.assertEqual(len(half), len(methods))
            self.assertAlmostEqual(float(half[0][2]), found["holdout/held_out"][0], places=3)
        with h5py.File(simulation) as found:
            rows = self.csv("simulation-ranks")
            self.assertEqual(len(rows), 2 * 5 * 2)
            for i, row in enumerate(rows):
                m, s, r = np.unravel_index(i, (2, 2, 5))
                self.assertEqual((int(row["ranks"]), int(row["step_tokens"])), (2 ** r, (300, 1500)[s]))
                for measure in ("imbalance_p50", "imbalance_p99", "straggler_share", "remote_ranks_per_token"):
                    self.assertAlmostEqual(float(row[measure]), found[f"simulation/{measure}"][m, r, s].mean(), places=5)
            self.choose("simulation-ranks", "Measure", "straggler_share")
        self.assert_sound()
        self.assert_figures_answer(figures)
        self.switchyard("place", run / "stats.h5", "--ranks", 2, "-o", place, "--quiet")
        self.switchyard("report", place, "-o", page, "--quiet")
        self.open(page)
        self.assertEqual([f for f in self.browser.evaluate("Object.keys(switchyard.figures)")], ["placement-balance", "placement-spread", "placement-ranks"])
        self.assert_sound()

    def test_mistakes_are_named(self):
        out = self.route(ranks=1, corpora=("only",))
        page = self.folder / "report.html"
        done = support.run("report", out, "-o", page, "--target-layer", 9)
        self.assertEqual(done.returncode, 2)
        self.assertIn("name one of: 0 1 2 3 4 5", done.stderr)
        done = support.run("report", self.folder / "nothing.h5", "-o", page)
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing.h5", done.stderr)
        done = support.run("report", out, "-o", self.folder / "no" / "report.html")
        self.assertEqual(done.returncode, 1)
        self.assertIn("report.html", done.stderr)
        self.assertFalse(page.exists())


if __name__ == "__main__":
    support.main()
