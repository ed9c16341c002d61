"""`switchyard weights` against numpy and scipy, from the same checkpoint."""

import itertools
import json
import struct

import h5py
import numpy as np
import scipy.optimize
import scipy.stats
import support

MATRICES = ("gate", "up", "down")
EXPERTS = {"block_sparse_moe": ("w1", "w3", "w2"), "mlp": ("gate_proj", "up_proj", "down_proj"), "moe_block": ("linear", "linear_v", "linear_1")}


def tensors(folder):
    """Every tensor of model.safetensors as float64."""
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, about in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + place for place in about["data_offsets"])
        if about["dtype"] == "BF16":
            values = (np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], "<f4")
        found[name] = values.reshape(about["shape"]).astype(np.float64)
    return found


def blocks(folder, layer):
    """Neurons of a layer's experts, or of its dense block, by matrix, a row each: [blocks, d_ff, d]; and the router."""
    model, prefix = tensors(folder), f"model.layers.{layer}."
    if prefix + "mlp.gate_proj.weight" in model:
        gate, up, down = ([model[f"{prefix}mlp.{name}_proj.weight"]] for name in MATRICES)
        router = None
    else:
        block, names = next((block, names) for block, names in EXPERTS.items() if f"{prefix}{block}.gate.weight" in model)
        router = model[f"{prefix}{block}.gate.weight"]
        gate, up, down = ([model[f"{prefix}{block}.experts.{e}.{name}.weight"] for e in range(len(router))] for name in names)
    return {"gate": np.stack(gate), "up": np.stack(up), "down": np.stack(down).transpose(0, 2, 1)}, router


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def flat_cosine(a, b):
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def similarity(a, b, which):
    """What is said of two blocks; which: the neurons that are reordered."""
    cosines = unit(a[which]) @ unit(b[which]).T
    rows, order = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    return {
        "flat_cosine": flat_cosine(a, b),
        "matched_cosine": (unit(a) * unit(b)).sum(-1).mean(),
        "assigned_cosine": cosines[rows, order].mean(),
        "assigned_flat_cosine": flat_cosine(a[which], b[which][order]),
        "kendall_tau": scipy.stats.kendalltau(rows, order).statistic,
    }


class Weights(support.TestCase):
    def synth(self, name, *options):
        self.switchyard("synth", "--out", self.folder / name, "--layers", 3, "--d-model", 48, "--d-ff", 72, "--heads", 4, "--head-dim", 12, *options)
        return self.folder / name

    def weights(self, name, *words, ranks=1):
        self.switchyard("weights", "-o", self.folder / name, "--quiet", *words, ranks=ranks)
        with h5py.File(self.folder / name) as file:
            tables = {}
            file.visititems(lambda path, node: tables.__setitem__(path, node[...]) if isinstance(node, h5py.Dataset) else None)
            for path, node in ((path, file[path]) for path in tables):
                if node.attrs.get("CLASS", b"") != b"DIMENSION_SCALE":
                    self.assertTrue(node.attrs["units"] and node.attrs["long_name"], path)
            return tables, dict(file.attrs)

    def check_matrix(self, tables, matrix, at, neurons, which):
        """Of one layer: neurons, [blocks, d_ff, d]. Returns how many pairs were compared, and how many orders differ."""
        pairs = different = 0
        for a, b in itertools.combinations(range(len(neurons)), 2):
            pairs += 1
            expected = similarity(neurons[a], neurons[b], which)
            # Two orders may be equally good within the rounding of f32: then what else depends on the order may differ.
            other = abs(tables[f"{matrix}/kendall_tau"][at, a, b] - expected["kendall_tau"]) > 1e-12
            different += other
            for figure, value in expected.items():
                table = tables[f"{matrix}/{figure}"][at]
                self.assertEqual(table.shape, (len(neurons), len(neurons)))
                self.assertEqual(table[a, b], table[b, a])
                self.assertEqual(table[a, a], 1)
                if not (other and figure in ("kendall_tau", "assigned_flat_cosine")):
                    np.testing.assert_allclose(table[a, b], value, atol=2e-7, rtol=0, err_msg=f"{matrix} {figure} {at} {a} {b}")
        return pairs, different

    def check_plane(self, tables, matrix, at, neurons, experts):
        kept = tables["weights/neuron"]
        together = neurons[:experts].reshape(-1, neurons.shape[-1])
        centred = together - together.mean(0)
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(tables[f"{matrix}/explained"][at], singular[:2] ** 2 / (singular ** 2).sum(), rtol=1e-4)
        axes = axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(1)])[:, None]
        expected = (neurons[:, kept] - together.mean(0)) @ axes.T
        self.assertEqual(tables[f"{matrix}/coordinates"][at].shape, expected.shape)
        np.testing.assert_allclose(tables[f"{matrix}/coordinates"][at], expected, atol=2e-3 * np.abs(expected).max())

    def check_router(self, tables, at, router):
        upper = np.triu_indices(len(router), 1)
        cosines = unit(router) @ unit(router).T
        np.testing.assert_allclose(tables["router/cosine"][at], cosines, atol=1e-12)
        for m, matrix in enumerate(MATRICES):
            line = scipy.stats.linregress(tables[f"{matrix}/flat_cosine"][at][upper], cosines[upper])
            np.testing.assert_allclose([tables[f"router/{name}"][at, m] for name in ("slope", "intercept", "r_squared")],
                                       [line.slope, line.intercept, line.rvalue ** 2], rtol=1e-6, atol=1e-9)

    def check_model(self, tables, folder, dense=None, sample=None):
        experts, pairs, different = len(tables["router/cosine"][0]), 0, 0
        for at, layer in enumerate(tables["weights/decoder_layer"]):
            neurons, router = blocks(folder, layer)
            beside = blocks(dense, layer)[0] if dense else None
            for matrix in MATRICES:
                rows = np.concatenate([neurons[matrix], beside[matrix]]) if dense else neurons[matrix]
                which = np.arange(rows.shape[1]) if sample is None else sample
                compared = self.check_matrix(tables, matrix, at, rows, which)
                pairs, different = pairs + compared[0], different + compared[1]
                self.check_plane(tables, matrix, at, rows, experts)
            self.check_router(tables, at, router)
        self.assertLessEqual(different, pairs // 50)
        return pairs

    def test_demo_model_equals_numpy_and_scipy(self):
        tables, facts = self.weights("demo.h5", "--model", support.DEMO, "--layers", "0,4-5")
        self.assertEqual((facts["format"], facts["format_version"], facts["d_ff"]), ("switchyard-weights", "1.0", "256"))
        self.assertEqual((tables["model/name"][0], tables["model/family"][0], tables["model/moe_layers"].tolist()), (b"demo", b"mixtral", list(range(6))))
        self.assertEqual(tables["weights/decoder_layer"].tolist(), [0, 4, 5])
        self.assertEqual(self.check_model(tables, support.DEMO), 3 * 3 * 28)

    def test_dense_model_is_one_more_block(self):
        model = self.synth("moe", "--experts", 5)
        dense = self.synth("dense", "--family", "mistral", "--seed", 9)
        tables, facts = self.weights("weights.h5", "--model", model, "--dense", dense)
        self.assertEqual(facts["dense"], "dense")
        self.assertEqual([name.decode() for name in tables["weights/block_name"]], [f"expert {e}" for e in range(5)] + ["dense"])
        self.assertEqual(tables["router/cosine"].shape, (3, 5, 5))
        self.assertEqual(self.check_model(tables, model, dense), 3 * 3 * 15)
        alone, _ = self.weights("alone.h5", "--model", model)
        for path in ("gate/flat_cosine", "up/assigned_cosine", "down/coordinates"):
            np.testing.assert_array_equal(tables[path][:, :5, ..., :][:, :, :alone[path].shape[2]], alone[path], path)

    def test_every_family(self):
        for family, layers in (("deepseek", [1, 2]), ("grok-1", [0, 1, 2])):
            model = self.synth(family, "--family", family, "--experts", 4)
            tables, _ = self.weights(family + ".h5", "--model", model, ranks=2)
            self.assertEqual(tables["weights/decoder_layer"].tolist(), layers)
            self.assertEqual(self.check_model(tables, model), len(layers) * 3 * 6)
        done = support.run("weights", "--model", self.folder / "deepseek", "--layers", "0-1", "-o", self.folder / "w.h5")
        self.assertIn("'0-1' does not name MoE layers", done.stderr)
        self.assertIn("give some of 1,2", done.stderr)

    def test_sample_reorders_the_same_neurons_of_all(self):
        model = self.synth("moe", "--experts", 3, "--dtype", "f32")
        every, _ = self.weights("every.h5", "--model", model)
        tables, facts = self.weights("some.h5", "--model", model, "--sample-neurons", 40, "--seed", 7)
        again, _ = self.weights("again.h5", "--model", model, "--sample-neurons", 40, "--seed", 7)
        other, _ = self.weights("other.h5", "--model", model, "--sample-neurons", 40, "--seed", 8)
        self.assertEqual(facts["reordered_neurons"], "40")
        np.testing.assert_array_equal(tables["gate/matched_cosine"], every["gate/matched_cosine"])
        np.testing.assert_array_equal(tables["gate/assigned_cosine"], again["gate/assigned_cosine"])
        self.assertTrue((tables["gate/assigned_cosine"] != other["gate/assigned_cosine"]).any())
        self.assertEqual(self.check_model(tables, model, sample=tables["weights/reordered"]), 3 * 3 * 3)

    def test_bits_do_not_depend_on_ranks_threads_or_layout(self):
        model, fused = self.synth("moe"), self.synth("fused", "--layout", "fused")
        one, _ = self.weights("one.h5", "--model", model)
        runs = [self.weights("three.h5", "--model", model, ranks=3), self.weights("four.h5", "--model", model, "--threads", 1, ranks=4),
                self.weights("threads.h5", "--model", model, "--threads", 3), self.weights("fused.h5", "--model", fused)]
        for tables, _ in runs:
            self.assertEqual(sorted(tables), sorted(one))
            for path, values in one.items():
                if path == "model/name":
                    continue
                if values.dtype.kind == "f":
                    np.testing.assert_array_equal(tables[path].view(f"u{values.itemsize}"), values.view(f"u{values.itemsize}"), path)
                else:
                    np.testing.assert_array_equal(tables[path], values, path)
        self.assertGreater(len(one), 25)

    def test_csv_and_summary(self):
        model = self.synth("moe", "--experts", 2)
        done = self.switchyard("weights", "--model", model, "-o", self.folder / "w.h5", "--csv", self.folder / "csv")
        with h5py.File(self.folder / "w.h5") as file:
            value = file["down/flat_cosine"][2, 0, 1]
            self.assertTrue(np.isnan(file["router/r_squared"][...]).all())  # one pair makes no line
            self.assertRegex(done.stdout, rf"\n +2 .*{file['gate/kendall_tau'][2, 0, 1]:7.4f} +{file['up/kendall_tau'][2, 0, 1]:7.4f} +{file['down/kendall_tau'][2, 0, 1]:7.4f}")
        lines = (self.folder / "csv" / "down_flat_cosine.csv").read_text().splitlines()
        self.assertEqual(lines[0], "layer,block,block2,flat_cosine")
        self.assertEqual(len(lines), 1 + 3 * 2 * 2)
        self.assertIn(f"2,0,1,{value!r}", lines)

    def test_what_cannot_be_compared_is_said(self):
        model = self.synth("moe")
        dense = self.folder / "dense"
        self.switchyard("synth", "--out", dense, "--family", "mistral", "--layers", 2, "--d-model", 48, "--d-ff", 80, "--heads", 4, "--head-dim", 12)
        done = support.run("weights", "--model", model, "-o", self.folder / "w.h5", "--dense", dense)
        self.assertEqual(done.returncode, 1)
        self.assertIn("d_ff is 80, the model's 72, layers is 2, the model's 3", done.stderr)
        self.assertNotIn("d_model is", done.stderr)
        for words, text in ((["--model", dense], "dense model, which has no experts"), (["--model", model, "--dense", model], "is no dense model"),
                            (["--model", model, "--layers", "1,7"], "'1,7' does not name MoE layers"), (["--model", model, "--layers", "2-"], "give some of 0,1,2"),
                            (["--model", model, "--sample-neurons", "1"], "at least 2"), (["--model", model, "-o", self.folder / "no" / "w.h5"], "its folder is not there")):
            done = support.run("weights", *words, *([] if "-o" in words else ["-o", self.folder / "w.h5"]))
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(text, done.stderr)
        self.assertFalse((self.folder / "w.h5").exists())

    def overwrite(self, folder, tensors):
        """Puts other values into an f32 model."""
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + size])
        for name, values in tensors.items():
            begin, end = (8 + size + place for place in header["model.layers." + name + ".weight"]["data_offsets"])
            data[begin:end] = values.astype("<f4").tobytes()
        path.write_bytes(data)

    def test_known_answers(self):
        model = self.synth("moe", "--experts", 3, "--dtype", "f32")
        rng = np.random.default_rng(5)
        order = rng.permutation(72)
        neurons = rng.standard_normal((72, 48))
        zeros = np.zeros((72, 48))
        some = neurons.copy()
        some[:36] = 0
        moe = "{}.block_sparse_moe.experts.{}.{}".format
        # Up: expert 1 has expert 0's neurons in another order, expert 2 has minus them. Down: half of expert 1's are zeros. Gate: nothing but zeros.
        self.overwrite(model, {moe(1, 0, "w3"): neurons, moe(1, 1, "w3"): neurons[order], moe(1, 2, "w3"): -neurons,
                               moe(1, 0, "w2"): neurons.T, moe(1, 1, "w2"): some.T, moe(1, 2, "w2"): 3 * neurons.T,
                               moe(1, 0, "w1"): zeros, moe(1, 1, "w1"): zeros, moe(1, 2, "w1"): zeros})
        tables, _ = self.weights("w.h5", "--model", model, "--layers", 1)
        near = lambda path, a, b, expected: np.testing.assert_allclose(tables[path][0, a, b], expected, atol=1e-6, err_msg=path)
        near("up/assigned_cosine", 0, 1, 1)
        near("up/assigned_flat_cosine", 0, 1, 1)
        near("up/kendall_tau", 0, 1, scipy.stats.kendalltau(range(72), np.argsort(order)).statistic)
        near("up/kendall_tau", 1, 0, scipy.stats.kendalltau(range(72), order).statistic)
        near("up/flat_cosine", 0, 2, -1)
        near("up/matched_cosine", 0, 2, -1)
        near("down/matched_cosine", 0, 1, 0.5)
        near("down/flat_cosine", 0, 1, np.linalg.norm(some) / np.linalg.norm(neurons))
        near("down/matched_cosine", 0, 2, 1)
        near("down/kendall_tau", 0, 2, 1)
        for figure in ("flat_cosine", "matched_cosine", "assigned_cosine", "assigned_flat_cosine"):
            near("gate/" + figure, 0, 1, 0)
        self.assertTrue(np.isnan(tables["gate/explained"]).all())
        self.assertFalse(tables["gate/coordinates"].any())
        self.assertTrue(np.isnan(tables["router/r_squared"][0, 0]))  # equal cosines

    def test_weights_that_are_no_numbers_are_named(self):
        model = self.synth("moe", "--dtype", "f32")
        values = np.ones((48, 72))
        values[3, 4] = np.nan
        self.overwrite(model, {"1.block_sparse_moe.experts.6.w2": values})
        done = support.run("weights", "--model", model, "-o", self.folder / "w.h5", ranks=2)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("layer 1, expert 6: the down matrix holds values that are infinite or no numbers", done.stderr)
        self.assertFalse((self.folder / "w.h5").exists())


if __name__ == "__main__":
    support.main()
