// The statistics that the page holds, and how numbers are written.
const data = JSON.parse(document.getElementById("data").textContent);
const model = data.model;
const layers = model.layers;  // decoder layer of each MoE layer
const L = layers.length, E = model.experts, K = model.top_k;
const names = data.datasets.map(d => d.name);
const D = names.length;
const scopes = data.scopes;  // what pooled figures are of: all datasets together, then each; of one dataset, that alone

/// A table of stats.h5 as it is, or undefined: {path, dimensions, shape, units, name, values}, row-major, null for NaN.
for (const path in data.tables) data.tables[path].path = path;
const table = path => data.tables[path];
/// A dataset's row of a table, flat.
function rowOf(path, dataset) {
  const t = table(path);
  if (!t) return [];
  const inner = t.shape.slice(1).reduce((a, b) => a * b, 1);
  return t.values.slice(dataset * inner, (dataset + 1) * inner);
}
/// A table's value at (dataset, layer) or (dataset, layer, i).
function valueAt(path, dataset, layer, i) {
  const t = table(path);
  if (!t) return null;
  const inner = t.shape.slice(2).reduce((a, b) => a * b, 1);
  return t.values[(dataset * t.shape[1] + (layer || 0)) * inner + (i || 0)];
}
const nothing = "Nothing was recorded of this.";
const known = value => value !== null && value !== undefined && !Number.isNaN(value);
const sum = values => values.reduce((a, b) => a + b, 0);
const range = n => Array.from({length: n}, (_, i) => i);

/// [E] slots of a layer; dataset < 0: of all datasets.
function slots(dataset, layer) {
  const t = table("/load/count");
  const of = d => t.values.slice((d * L + layer) * E, (d * L + layer + 1) * E);
  return dataset >= 0 ? of(dataset) : range(E).map(e => sum(range(D).map(d => of(d)[e])));
}

const whole = n => known(n) ? Math.round(n).toLocaleString("en-US") : "not known";
const figureText = (x, digits) => !known(x) ? "not known" : Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(2) : (+x.toPrecision(digits || 4)).toString();
const percent = (x, digits) => known(x) ? (100 * x).toFixed(digits === undefined ? 1 : digits) + " %" : "not known";
const times = x => !known(x) ? "not known" : (Math.abs(x) >= 1000 ? whole(x) : x.toPrecision(3)) + " ×";
const percentTick = x => figureText(100 * x, 3) + " %";
const probability = p => !known(p) ? "not known" : p < 1e-4 ? p.toExponential(1) : p.toPrecision(2);
/// A token's text; a space, which SentencePiece writes as U+2581, is shown.
const pieceText = id => data.pieces[id] === undefined ? "id " + id : data.pieces[id].replace(/\u2581/g, "␣");
const quoted = id => data.pieces[id] === undefined ? "id " + id : "“" + pieceText(id) + "”";
