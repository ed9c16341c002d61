"""Every expert on every token = a brute force in numpy from the checkpoint's own bytes, on any number of ranks."""

import json

import h5py
import numpy as np
import support

LAYERS, D, D_FF, HEADS, KV_HEADS, HEAD_DIM, E, K, VOCABULARY, CONTEXT = 3, 48, 40, 4, 2, 12, 5, 2, 300, 24
SIZES = ["--layers", LAYERS, "--d-model", D, "--d-ff", D_FF, "--heads", HEADS, "--kv-heads", KV_HEADS, "--head-dim", HEAD_DIM, "--experts", E, "--top-k", K,
         "--vocabulary", VOCABULARY, "--dtype", "f32"]


def tensors(path):
    """Every tensor of an f32 safetensors file, as writable views of one array, and the array."""
    data = np.fromfile(path, np.uint8)
    begin = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:begin].tobytes())
    return {name: data[begin + t["data_offsets"][0]:begin + t["data_offsets"][1]].view("<f4").reshape(t["shape"]) for name, t in header.items() if name != "__metadata__"}, data


silu = lambda x: x / (1 + np.exp(-x))
rms_norm = lambda x, weight, epsilon: x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


class Mixtral:
    """A forward pass of a window in float64."""

    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.epsilon, self.theta = config["rms_norm_eps"], config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.weights = {name: w.astype(np.float64) for name, w in tensors(folder / "model.safetensors")[0].items()}

    def rotate(self, x):
        n, half = x.shape[0], HEAD_DIM // 2
        angle = np.arange(n)[:, None] * self.theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)

    def attention(self, x, layer):
        n = len(x)
        q, k, v = (x @ layer(f"self_attn.{p}_proj").T for p in "qkv")
        q, k, v = self.rotate(q.reshape(n, HEADS, HEAD_DIM)), self.rotate(k.reshape(n, KV_HEADS, HEAD_DIM)), v.reshape(n, KV_HEADS, HEAD_DIM)
        k, v = (np.repeat(a, HEADS // KV_HEADS, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD_DIM)
        scores = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf) - scores.max(-1, keepdims=True))
        return np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(n, -1) @ layer("self_attn.o_proj").T

    def window(self, tokens):
        """By layer: router probabilities [n, E], choices [n, k], their weights, all outputs [n, E, d], all intermediate states [n, E, d_ff]."""
        x = self.weights["model.embed_tokens.weight"][tokens]
        seen = []
        for l in range(LAYERS):
            layer = lambda name, l=l: self.weights[f"model.layers.{l}.{name}.weight"]
            x = x + self.attention(rms_norm(x, layer("input_layernorm"), self.epsilon), layer)
            h = rms_norm(x, layer("post_attention_layernorm"), self.epsilon)
            logits = h @ layer("block_sparse_moe.gate").T
            p = np.exp(logits - logits.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            chosen = np.argsort(-p, axis=-1, kind="stable")[:, :K]
            weight = np.take_along_axis(p, chosen, -1)
            weight /= weight.sum(-1, keepdims=True)
            expert = lambda e, w, layer=layer: layer(f"block_sparse_moe.experts.{e}.{w}")
            states = np.stack([silu(h @ expert(e, "w1").T) for e in range(E)], 1)
            outputs = np.stack([(states[:, e] * (h @ expert(e, "w3").T)) @ expert(e, "w2").T for e in range(E)], 1)
            seen.append((p, chosen, weight, outputs, states))
            x = x + np.einsum("nk,nkd->nd", weight, np.take_along_axis(outputs, chosen[:, :, None], 1))
        return seen


def descending_ranks(x):
    return np.argsort(np.argsort(-x, axis=-1, kind="stable"), axis=-1, kind="stable")


def cosines(x):
    """[n, E, d] -> [n, E, E]; 0 with a vector of zeros."""
    norm = np.linalg.norm(x, axis=-1)
    scale = norm[:, :, None] * norm[:, None, :]
    return np.divide(np.einsum("ned,nfd->nef", x, x), scale, out=np.zeros_like(scale), where=scale > 0).clip(-1, 1)


def expected(probabilities, outputs, states):
    """The figures of one layer, from all its tokens."""
    cosine, norm = cosines(outputs), np.linalg.norm(outputs, axis=-1)
    ranks = np.zeros((E, E), int)
    np.add.at(ranks, (descending_ranks(norm), descending_ranks(probabilities)), 1)
    magnitude = np.abs(states)
    mean = states.mean(0)
    return {"output_cosine": cosine.mean(0), "output_angular": (1 - np.arccos(cosine) / np.pi).mean(0), "norm_score_rank": ranks, "output_norm": norm.mean(0),
            "output_norm_std": norm.std(0), "intermediate_mean": mean, "intermediate_cosine": cosines(mean[None])[0],
            "sparsity": ((magnitude < 1e-3 * magnitude.max(-1, keepdims=True)) | (states == 0)).mean((0, 2))}


def stored(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, node: found.__setitem__(name, node.asstr()[:] if h5py.check_string_dtype(node.dtype) else node[:])
                        if isinstance(node, h5py.Dataset) and node.attrs.get("CLASS", b"") != b"DIMENSION_SCALE" else None)
    return found


class Probe(support.TestCase):
    def setUp(self):
        super().setUp()
        self.model = self.folder / "model"
        self.switchyard("synth", "--out", self.model, *SIZES)
        rng = np.random.default_rng(5)
        self.documents = {"a": [rng.integers(0, VOCABULARY, n).tolist() for n in (1, 30, 24, 7, 60)], "b": [rng.integers(0, VOCABULARY, n).tolist() for n in (50, 3, 90)]}
        for name, documents in self.documents.items():
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps({"id": f"{name}{i}", "tokens": tokens}) + "\n" for i, tokens in enumerate(documents)))

    def probe(self, output, *more, ranks=1):
        corpora = [w for name in self.documents for w in ("--corpus", f"{name}={self.folder}/{name}.jsonl,id=id")]
        done = self.switchyard("probe", "--model", self.model, *corpora, "--context", CONTEXT, "--precision", "f32", "-o", self.folder / output, *more, ranks=ranks)
        if "--quiet" in more:
            self.assertEqual(done.stdout + done.stderr, "")
        return stored(self.folder / output)

    def windows(self, name, limit):
        """(document, tokens of a window), cut at `limit` tokens."""
        found = []
        for i, tokens in enumerate(self.documents[name]):
            tokens = tokens[:max(0, limit)]
            limit -= len(tokens)
            found += [(f"{name}{i}", tokens[at:at + CONTEXT]) for at in range(0, len(tokens), CONTEXT)]
        return found

    def reference(self, limit):
        """By dataset: windows and, by layer, the five arrays of all tokens."""
        model = Mixtral(self.model)
        for name in self.documents:
            windows = self.windows(name, limit)
            seen = [model.window(tokens) for _, tokens in windows]
            yield windows, [[np.concatenate([s[l][part] for s in seen]) for part in range(5)] for l in range(LAYERS)]

    def test_every_figure_equals_numpy(self):
        found = self.probe("p.h5", "--tokens", 110, "--shown-tokens", 40, "--quiet")
        compared, differing_ranks = 0, 0
        at = 0
        for d, (windows, layers) in enumerate(self.reference(110)):
            self.assertEqual(found["datasets/tokens"][d], 110)
            self.assertEqual(found["datasets/documents"][d], len({document for document, _ in windows}))
            for l, (p, chosen, weight, outputs, states) in enumerate(layers):
                for name, value in expected(p, outputs, states).items():
                    if name == "norm_score_rank":
                        differing_ranks += np.abs(found[f"probe/{name}"][d, l].astype(int) - value).sum()
                    elif name == "sparsity":
                        np.testing.assert_allclose(found[f"probe/{name}"][d, l], value, atol=3 / (110 * D_FF))
                    else:
                        np.testing.assert_allclose(found[f"probe/{name}"][d, l], value, rtol=2e-4, atol=2e-6, err_msg=f"{name} {d} {l}")
                    compared += value.size
                np.testing.assert_array_equal(found["tokens_shown/expert"][at:at + 40, l], chosen[:40])
                np.testing.assert_allclose(found["tokens_shown/weight"][at:at + 40, l], weight[:40], rtol=1e-4)
            rows = [(document, p, token) for document, tokens in windows for p, token in enumerate(tokens)][:40]
            self.assertEqual(list(zip(found["tokens_shown/document"][at:at + 40], found["tokens_shown/position"][at:at + 40], found["tokens_shown/id"][at:at + 40])), rows)
            self.assertEqual(set(found["tokens_shown/dataset"][at:at + 40]), {d})
            at += 40
        self.assertEqual(len(found["tokens_shown/id"]), at)
        self.assertLessEqual(differing_ranks, 4)  # one near tie may fall otherwise in f32
        self.assertEqual(compared, 2 * LAYERS * (4 * E * E + 3 * E + E * D_FF))
        self.assertEqual(found["probe/norm_score_rank"].sum(), 2 * LAYERS * 110 * E)

    def test_equal_bits_on_any_number_of_ranks(self):
        whole = self.probe("1.h5", "--quiet", "--batch-tokens", 100)
        for ranks, more in ((1, ["--batch-tokens", 24]), (2, ["--batch-tokens", 24]), (3, ["--placement", "round-robin"]), (4, ["--batch-tokens", 50])):
            other = self.probe("n.h5", "--quiet", *more, ranks=ranks)
            self.assertEqual(sorted(whole), sorted(other))
            for name, value in whole.items():
                self.assertEqual(value.tolist() if value.dtype == object else value.tobytes(), other[name].tolist() if value.dtype == object else other[name].tobytes(), f"{name}, {ranks} ranks")
        self.assertGreaterEqual(len(whole), 25)
        np.testing.assert_array_equal(whole["datasets/tokens"], [122, 143])

    def test_some_layers_are_those_of_all(self):
        whole = self.probe("all.h5", "--quiet")
        done = self.probe("some.h5", "--layers", "2,0,2", "--csv", self.folder / "csv", ranks=2)
        self.assertEqual(done["probe/decoder_layer"].tolist(), [0, 2])
        for name in ("output_cosine", "norm_score_rank", "intermediate_mean", "sparsity"):
            np.testing.assert_array_equal(done[f"probe/{name}"], whole[f"probe/{name}"][:, [0, 2]])
        np.testing.assert_array_equal(done["tokens_shown/expert"], whole["tokens_shown/expert"][:, [0, 2]])
        lines = (self.folder / "csv" / "probe_sparsity.csv").read_text().splitlines()
        self.assertEqual(lines[0], "dataset,layer,expert,sparsity")
        self.assertEqual([float(line.split(",")[3]) for line in lines[1:]], done["probe/sparsity"].ravel().tolist())
        none = self.probe("none.h5", "--shown-tokens", 0, "--samples", 1, "--seed", 2, "--quiet")
        self.assertEqual(none["tokens_shown/expert"].shape, (0, LAYERS, K))
        self.assertEqual(none["datasets/documents"].tolist(), [1, 1])

    def test_known_answers(self):
        file = self.model / "model.safetensors"
        weights, data = tensors(file)
        for l in range(LAYERS):
            w = lambda e, name, l=l: weights[f"model.layers.{l}.block_sparse_moe.experts.{e}.{name}.weight"]
            for e in (1, 2):
                for name in ("w1", "w2", "w3"):
                    w(e, name)[:] = w(0, name)
            w(2, "w2")[:] *= -1
            w(3, "w1")[:] = 0
        data.tofile(file)
        found = self.probe("p.h5", "--tokens", 60, ranks=2)
        for value, (same, opposite, zero) in (("output_cosine", (1, -1, 0)), ("output_angular", (1, 0, 0.5))):
            pairs = found[f"probe/{value}"]
            np.testing.assert_allclose(pairs[..., 0, 1], same, atol=1e-3)
            np.testing.assert_allclose(pairs[..., 1, 2], opposite, atol=1e-3)
            np.testing.assert_array_equal(pairs[..., 3, :], zero)
            np.testing.assert_array_equal(pairs[..., 4, 4], 1)
        np.testing.assert_array_equal(found["probe/sparsity"][..., 3], 1)
        np.testing.assert_array_equal(found["probe/output_norm"][..., 3], 0)
        np.testing.assert_allclose(found["probe/intermediate_cosine"][..., 0, 2], 1, rtol=1e-12)
        np.testing.assert_array_equal(found["probe/intermediate_cosine"][..., 3, 3], 0)
        np.testing.assert_array_equal(found["probe/norm_score_rank"].sum(-1), 60)
        for l in range(LAYERS):  # expert 3 has the least norm
            scores = np.concatenate([window[l][0] for window in map(Mixtral(self.model).window, [t for _, t in self.windows("a", 60)])])
            np.testing.assert_array_equal(found["probe/norm_score_rank"][0, l, 4], np.bincount(descending_ranks(scores)[:, 3], minlength=E))

    def test_choices_are_those_of_route(self):
        found = self.probe("p.h5", "--shown-tokens", 1000, "--quiet", ranks=2)
        corpora = [w for name in self.documents for w in ("--corpus", f"{name}={self.folder}/{name}.jsonl,id=id")]
        self.switchyard("route", "--model", self.model, *corpora, "--context", CONTEXT, "--precision", "f32", "--out", self.folder / "run", "--quiet")
        with h5py.File(self.folder / "run" / "routing.h5") as record:
            np.testing.assert_array_equal(found["tokens_shown/id"], record["tokens/id"][:])
            for l in range(LAYERS):
                np.testing.assert_array_equal(found["tokens_shown/expert"][:, l], record[f"routing/layer_{l:03d}/expert"][:])
        self.assertEqual(len(found["tokens_shown/id"]), 265)

    def test_shared_experts_and_dense_layers_take_no_part(self):
        self.switchyard("synth", "--family", "deepseek", "--out", self.folder / "deepseek", "--layers", 3, "--experts", E, "--vocabulary", VOCABULARY, "--dtype", "f32")
        self.model = self.folder / "deepseek"
        one, three = self.probe("1.h5", "--quiet"), self.probe("3.h5", "--quiet", ranks=3)
        self.assertEqual(one["probe/decoder_layer"].tolist(), [1, 2])
        self.assertEqual(one["probe/output_cosine"].shape, (2, 2, E, E))
        for name, value in one.items():
            np.testing.assert_array_equal(value, three[name], name)
        self.switchyard("probe", "--model", self.model, "--corpus", f"a={self.folder}/a.jsonl", "--context", CONTEXT, "--precision", "f32", "--layers", 1, "-o", self.folder / "l.h5", "--quiet", ranks=2)
        np.testing.assert_array_equal(stored(self.folder / "l.h5")["probe/output_norm"], one["probe/output_norm"][:1, :1])

    def test_summary(self):
        done = self.switchyard("probe", "--model", support.DEMO, "--corpus", f"t={support.TESTS.parent}/LICENSE", "--tokens", 100, "-o", self.folder / "p.h5", ranks=2)
        found = stored(self.folder / "p.h5")
        pairs = found["probe/output_cosine"][0, 2][~np.eye(8, dtype=bool)]
        self.assertIn("t: every expert on 100 tokens of 1 documents", done.stdout)
        self.assertRegex(done.stdout, rf"\n +2 +{pairs.mean():.4f} .* {found['probe/norm_score_rank'][0, 2, 0, 0]:.1f} % +{100 * found['probe/sparsity'][0, 2].mean():.2f} %")
        self.assertEqual(found["tokens_shown/piece"][0], "\u2581")

    def test_what_cannot_be_probed(self):
        self.switchyard("synth", "--out", self.folder / "dense", "--family", "mistral")
        (self.folder / "wrong.jsonl").write_text(json.dumps({"tokens": [VOCABULARY]}) + "\n")
        good = f"a={self.folder}/a.jsonl"
        for model, more, code, needle in (("dense", [], 2, "dense model"), ("model", ["--layers", "3"], 2, "not a MoE layer"), ("model", ["--layers", "1,x"], 2, "'x'"), ("model", ["--layers", ""], 2, "names no layer"),
                                          ("model", ["--tokens", 0], 2, "--tokens"), ("model", ["--corpus", f"w={self.folder}/wrong.jsonl"], 1, "outside the model's vocabulary")):
            done = support.run("probe", "--model", self.folder / model, "--corpus", good, "-o", self.folder / "p.h5", "--precision", "f32", *more, ranks=2)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(needle, done.stderr)
            self.assertEqual(support.run("probe", "--model", self.folder / model, "--corpus", good, "-o", self.folder / "p.h5", "--precision", "f32", *more).returncode, code, done.stderr)
        self.assertEqual(list(self.folder.glob("p.h5*")), [])
        weights, data = tensors(self.model / "model.safetensors")
        weights["model.layers.2.block_sparse_moe.experts.4.w1.weight"][0, 0] = np.nan
        data.tofile(self.model / "model.safetensors")
        done = support.run("probe", "--model", self.model, "--corpus", good, "-o", self.folder / "p.h5", "--precision", "f32")
        self.assertEqual(done.returncode, 1)
        self.assertIn("layer 2, expert 4", done.stderr)
        self.assertEqual(list(self.folder.glob("p.h5*")), [])


if __name__ == "__main__":
    support.main()
