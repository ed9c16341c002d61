// Every expert on every token of a sample: how alike experts are, whatever the router chose.
function probeSection(section) {
  const found = data.experiments.probe, get = path => found.tables[path];
  const corpora = get("/datasets/name").values, tokens = get("/datasets/tokens").values, decoder = get("/probe/decoder_layer").values, P = decoder.length;
  const state = {dataset: 0, layer: Math.max(0, decoder.indexOf(layers[data.target_layer])), measure: "output_cosine", single: "output_norm", slot: 0};
  const at = (measure, d, l, i) => { const t = get("/probe/" + measure), inner = t.values.length / (corpora.length * P); return t.values[(d * P + l) * inner + i]; };
  const there = measures => measures.filter(([name]) => get("/probe/" + name));
  const datasetPicker = (parent, draw) => { if (corpora.length > 1) choice(parent, "Dataset", corpora.map((n, d) => [d, n]), state.dataset, v => { state.dataset = +v; draw(); }); };
  const pickers = (parent, draw) => {
    datasetPicker(parent, draw);
    if (P > 1) choice(parent, "Layer", decoder.map((d, l) => [l, "layer " + d]), state.layer, v => { state.layer = +v; draw(); });
  };
  const here = () => "layer " + decoder[state.layer] + ": " + corpora[state.dataset];
  const signed = x => known(x) ? x.toFixed(4) : "not known";
  element(section, "p", {class: "note"}, corpora.map((n, d) => n + ": " + whole(tokens[d]) + " tokens").join(", ") + (found.left_out.length > 0 ? ". Too large for this page, but in " + found.source + ": " + found.left_out.join(", ") : "") + ".");
  const grid = element(section, "div", {class: "figures"});

  const measures = there([["output_cosine", "cosine of outputs", "Mean over tokens of the cosine of two experts' outputs", 0], ["output_angular", "angular similarity of outputs", "Mean over tokens of 1 - arccos(cosine) / π of two experts' outputs; ½ is at right angles", 0.5],
    ["intermediate_cosine", "cosine of intermediate states", "Cosine of two experts' mean intermediate states", 0]]);
  const pairs = [].concat(...range(E).map(a => range(E).filter(b => b > a).map(b => [a, b])));
  if (measures.length > 0 && E > 1) {
    state.measure = measures[0][0];
    figure(grid, {id: "probe-similarity", title: () => "How alike experts are, " + here(), note: () => measures.find(m => m[0] === state.measure)[2] + ".",
      controls: (parent, draw) => { pickers(parent, draw); choice(parent, "Measure", measures.map(m => m.slice(0, 2)), state.measure, v => { state.measure = v; draw(); }); },
      columns: ["dataset", "layer", "expert", "expert2"].concat(measures.map(m => m[0])),
      rows: () => pairs.map(([a, b]) => [corpora[state.dataset], decoder[state.layer], a, b].concat(measures.map(m => at(m[0], state.dataset, state.layer, a * E + b)))),
      draw: (svg, width) => {
        const [measure, name, , middle] = measures.find(m => m[0] === state.measure), value = (a, b) => a === b ? null : at(measure, state.dataset, state.layer, a * E + b);
        const most = d3.max(pairs.map(([a, b]) => value(a, b)).filter(known), v => Math.abs(v - middle)) || 1, colour = v => ratioColour(known(v) ? Math.pow(2, 2 * (v - middle) / most) : null);
        const y = colourKey(svg, 4, 0, 180, range(25).map(i => colour(middle + most * (i - 12) / 12)), [middle - most, middle, middle + most].map(v => figureText(v, 3)), name);
        return y + heatMap(svg, width, {rows: range(E), columns: range(E), most: 40, high: 28, value, colour,
          words: (a, b) => here() + "\nexpert " + a + (a === b ? "" : " and " + b + "\n" + measures.map(m => m[1] + " " + signed(at(m[0], state.dataset, state.layer, a * E + b))).join("\n"))}, {x: 0, y: y + 4});
      }});
    const mean = (measure, d, l) => { const values = pairs.map(([a, b]) => at(measure, d, l, a * E + b)); return values.every(known) ? sum(values) / values.length : null; };
    const series = [["output_cosine", "", ""], ["intermediate_cosine", ", intermediate states", "5 3"]].filter(([name]) => get("/probe/" + name));
    figure(grid, {id: "probe-layers", title: "Mean cosine of two experts by layer", note: "Mean over pairs of experts: of their outputs for a token, and of their mean intermediate states.", columns: ["dataset", "layer"].concat(measures.map(m => m[0])),
      rows: () => [].concat(...corpora.map((n, d) => decoder.map((layer, l) => [n, layer].concat(measures.map(m => mean(m[0], d, l)))))),
      draw: (svg, width) => lines(svg, width, {at: decoder, xLabel: "decoder layer", xFormat: d3.format("d"), yLabel: "mean cosine",
        series: [].concat(...corpora.map((n, d) => series.map(([measure, name, dash]) => ({name: n + name, values: decoder.map((x, l) => mean(measure, d, l)), colour: seriesColour(d), dash})))),
        words: (s, l) => s.name + ", layer " + decoder[l] + "\nmean cosine " + signed(s.values[l])})});
  }

  if (get("/probe/norm_score_rank")) {
    const count = (norm, score) => at("norm_score_rank", state.dataset, state.layer, norm * E + score), share = (norm, score) => count(norm, score) / tokens[state.dataset];
    figure(grid, {id: "probe-ranks", title: () => "Whether the router prefers large outputs, " + here(), note: "Rows: an expert's rank among the norms of a token's outputs, 0 the largest. Columns: its rank among the router's probabilities. Were the two independent, every cell would hold 1/E of the tokens.",
      controls: pickers, columns: ["dataset", "layer", "norm_rank", "score_rank", "tokens"],
      rows: () => [].concat(...range(E).map(n => range(E).map(s => [corpora[state.dataset], decoder[state.layer], n, s, count(n, s)]))),
      draw: (svg, width) => {
        const y = ratioKey(svg, 4, 0, "times 1/E of the tokens");
        return y + heatMap(svg, width, {rows: range(E), columns: range(E), most: 40, high: 28, value: share, colour: v => ratioColour(known(v) ? v * E : null),
          words: (n, s) => here() + "\nnorm rank " + n + ", score rank " + s + "\n" + whole(count(n, s)) + " tokens, " + percent(share(n, s))}, {x: 0, y: y + 4});
      }});
  }

  const singles = there([["output_norm", "norm of outputs"], ["sparsity", "sparsity of intermediate states"]]);
  if (singles.length > 0) {
    const value = (l, e) => at(state.single, state.dataset, l, e), text = v => state.single === "sparsity" ? percent(v, 2) : figureText(v);
    figure(grid, {id: "probe-experts", title: () => (state.single === "sparsity" ? "Sparsity" : "Output norm") + " by expert: " + corpora[state.dataset],
      note: () => state.single === "sparsity" ? "Share of a token's intermediate state below a thousandth of its largest magnitude." : "Mean over tokens of the Euclidean norm of the output.",
      controls: (parent, draw) => { datasetPicker(parent, draw); choice(parent, "Measure", singles, state.single, v => { state.single = v; draw(); }); },
      columns: ["dataset", "layer", "expert", "output_norm", "output_norm_std", "sparsity"],
      rows: () => [].concat(...decoder.map((layer, l) => range(E).map(e => [corpora[state.dataset], layer, e].concat(["output_norm", "output_norm_std", "sparsity"].map(m => at(m, state.dataset, l, e)))))),
      draw: (svg, width) => {
        const most = d3.max(range(P * E).map(i => value(Math.floor(i / E), i % E)).filter(known)) || 1, y = amountKey(svg, 4, 0, most, text, singles.find(s => s[0] === state.single)[1]);
        return y + heatMap(svg, width, {rows: decoder, columns: range(E), value, colour: amountColour(most), words: (l, e) => corpora[state.dataset] + ", layer " + decoder[l] + ", expert " + e +
          "\nnorm " + figureText(at("output_norm", state.dataset, l, e)) + " ± " + figureText(at("output_norm_std", state.dataset, l, e), 3) + "\nsparsity " + percent(at("sparsity", state.dataset, l, e), 2)}, {x: 0, y: y + 4});
      }});
  }

  const shownOf = get("/tokens_shown/dataset").values;
  if (get("/tokens_shown/expert") && shownOf.length > 0) {
    const column = name => get("/tokens_shown/" + name).values, expert = column("expert"), weight = column("weight"), pieces = column("piece"), ids = column("id"), documents = column("document"), positions = column("position");
    const shown = () => range(shownOf.length).filter(t => shownOf[t] === state.dataset), cell = (t, l, j) => (t * P + l) * K + j;
    const text = t => pieces[t] === "" ? "id " + ids[t] : pieces[t].replace(/\u2581/g, "␣");
    const colour = e => E <= seriesColours.length ? seriesColour(e) : d3.hsl(360 * e / E, 0.5, e % 2 === 0 ? 0.45 : 0.65).toString();
    figure(grid, {id: "probe-tokens", wide: true, title: () => "Experts chosen for the first tokens: " + corpora[state.dataset], note: () => (state.slot === 0 ? "The expert of largest weight" : "Choice " + (state.slot + 1)) + " of each token, layer by layer; a colour is an expert's number, which means another expert in another layer.",
      controls: (parent, draw) => { datasetPicker(parent, draw); if (K > 1) choice(parent, "Choice", range(K).map(j => [j, String(j + 1)]), state.slot, v => { state.slot = +v; draw(); }); },
      columns: ["dataset", "document", "position", "id", "token", "layer"].concat(...range(K).map(j => ["expert" + (j + 1), "weight" + (j + 1)])),
      rows: () => [].concat(...shown().map(t => decoder.map((layer, l) => [corpora[state.dataset], documents[t], positions[t], ids[t], text(t), layer].concat(...range(K).map(j => [expert[cell(t, l, j)], weight[cell(t, l, j)]]))))),
      draw: (svg, width) => {
        const rows = shown(), y = colourKey(svg, 4, 0, Math.min(width - 20, Math.max(180, 6 * E)), range(E).map(colour), ["0", String(E - 1)], "expert");
        return y + heatMap(svg, width, {rows: rows.map(text), columns: decoder, value: (i, l) => expert[cell(rows[i], l, state.slot)], colour, high: 16,
          words: (i, l) => "“" + text(rows[i]) + "”, " + documents[rows[i]] + ", position " + positions[rows[i]] + "\nlayer " + decoder[l] + ": " + range(K).map(j => expert[cell(rows[i], l, j)] + " (" + figureText(weight[cell(rows[i], l, j)], 3) + ")").join(", ")}, {x: 0, y: y + 4});
      }});
  }
}
