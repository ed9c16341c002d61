// How sure the router is.
function entropySection(section) {
  const quantities = [["entropy", "router entropy", "nats", Math.log(E)], ["margin", "margin between the k-th and the next probability", "", 1],
    ["top_probability", "largest router probability", "", 1]].filter(q => table("/" + q[0] + "/histogram"));
  const state = {dataset: 0, histogram: 0, layer: data.target_layer, quantity: 0};
  const grid = element(section, "div", {class: "figures"});
  const drawMean = figure(grid, {id: "entropy-mean", title: "Mean router entropy by layer", columns: ["dataset", "layer", "mean_nats", "std_nats", "mean_bits"],
    note: () => "Nats; the band is one standard deviation of tokens to either side" + (D > 1 ? ", drawn for " + names[state.dataset] : "") + ". The dashed line, ln E, is a router that cannot decide at all.",
    controls: D > 1 ? parent => choice(parent, "Band of", datasetOptions, 0, v => { state.dataset = +v; drawMean(); }) : undefined,
    rows: () => [].concat(...range(D).map(d => range(L).map(l => [names[d], layers[l], valueAt("/entropy/mean", d, l), valueAt("/entropy/std", d, l), valueAt("/entropy/mean_bits", d, l)]))),
    draw: (svg, width) => lines(svg, width, {yLabel: "entropy, nats", key: true, reference: {value: Math.log(E), text: "ln " + E + " = " + figureText(Math.log(E), 4)},
      series: range(D).map(d => {
        const mean = range(L).map(l => valueAt("/entropy/mean", d, l)), std = range(L).map(l => valueAt("/entropy/std", d, l));
        const band = d === state.dataset;
        return {name: names[d], values: mean, dataset: d, low: band && mean.map((m, l) => known(m) ? m - std[l] : null), high: band && mean.map((m, l) => known(m) ? m + std[l] : null)};
      }),
      words: (s, l) => s.name + ", layer " + layers[l] + "\nmean " + figureText(s.values[l]) + " nats (" + figureText(valueAt("/entropy/mean_bits", s.dataset, l)) + " bits)\nstandard deviation " + figureText(valueAt("/entropy/std", s.dataset, l)) + " nats"})});
  if (quantities.length === 0) return;
  const of = () => quantities[state.quantity];
  const counts = () => { const row = rowOf("/" + of()[0] + "/histogram", state.histogram), bins = row.length / L; return row.slice(state.layer * bins, (state.layer + 1) * bins); };
  figure(grid, {id: "entropy-histogram", title: () => of()[1][0].toUpperCase() + of()[1].slice(1) + " of tokens: " + names[state.histogram] + ", layer " + layers[state.layer],
    columns: ["bin", "low", "high", "tokens"], rows: () => counts().map((n, i, all) => [i, of()[3] * i / all.length, of()[3] * (i + 1) / all.length, n]),
    controls: (parent, draw) => {
      const pick = (label, name, options) => choice(parent, label, options, state[name], v => { state[name] = +v; draw(); });
      if (D > 1) pick("Dataset", "histogram", datasetOptions);
      pick("Layer", "layer", layerOptions);
      pick("Quantity", "quantity", quantities.map((q, i) => [i, q[1]]));
    },
    draw: (svg, width) => histogram(svg, width, {counts: counts(), low: 0, high: of()[3], mean: valueAt("/" + of()[0] + "/mean", state.histogram, state.layer),
      median: valueAt("/" + of()[0] + "/median", state.histogram, state.layer), xLabel: of()[1] + (of()[2] ? ", " + of()[2] : ""), unit: of()[2]})});
  if (table("/top_probability/confident_share"))
    figure(grid, {id: "entropy-confident", title: "Share of tokens whose largest probability exceeds 0.7", columns: ["dataset", "layer", "share"],
      rows: () => [].concat(...range(D).map(d => range(L).map(l => [names[d], layers[l], valueAt("/top_probability/confident_share", d, l)]))),
      draw: (svg, width) => lines(svg, width, {yLabel: "share of tokens", yText: percentTick, key: true, series: range(D).map(d => ({name: names[d], values: range(L).map(l => valueAt("/top_probability/confident_share", d, l))})),
        words: (s, l) => s.name + ", layer " + layers[l] + "\n" + percent(s.values[l], 2) + " of tokens"})});
}
