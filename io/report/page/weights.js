// How alike a model's experts are by their weights.
function weightsSection(section) {
  const found = data.experiments.weights, get = path => found.tables[path];
  const decoder = get("/weights/decoder_layer").values, blocks = get("/weights/block_name").values, matrices = get("/weights/matrix_name").values;
  const B = blocks.length, M = matrices.length, state = {layer: Math.max(0, decoder.indexOf(layers[data.target_layer])), matrix: 0, measure: "flat_cosine"};
  const measures = [["flat_cosine", "cosine of matrices", "cosine of the matrices, flattened"], ["matched_cosine", "cosine of neurons", "mean cosine of neurons of the same number"],
    ["assigned_cosine", "of neurons, reordered", "mean cosine of neurons after the column's were reordered to make it largest"],
    ["assigned_flat_cosine", "of matrices, reordered", "cosine of the flattened matrices after that reordering"], ["kendall_tau", "Kendall's tau", "Kendall's tau of that reordering and the original order: 0 where they have nothing in common"]]
    .filter(([name]) => get("/gate/" + name));
  const blockName = b => b < E ? String(b) : blocks[b], longName = b => b < E ? "expert " + b : "the " + blocks[b] + " model's block";
  const at = (matrix, measure, l, a, b) => get("/" + matrices[matrix] + "/" + measure).values[(l * B + a) * B + b];
  const routerCosine = (l, a, b) => get("/router/cosine").values[(l * E + a) * E + b];
  const ofMatrix = (name, l, m) => get("/router/" + name).values[l * M + m];
  const pairs = n => [].concat(...range(n).map(a => range(n).filter(b => b > a).map(b => [a, b])));
  const expertPairs = pairs(E), signed = x => known(x) ? x.toFixed(4) : "not known";
  const pickers = names => (parent, draw) => {
    if (names.includes("layer") && decoder.length > 1) choice(parent, "Layer", decoder.map((l, i) => [i, "layer " + l]), state.layer, v => { state.layer = +v; draw(); });
    choice(parent, "Matrix", matrices.map((m, i) => [i, m]), state.matrix, v => { state.matrix = +v; draw(); });
    if (names.includes("measure")) choice(parent, "Measure", measures.map(m => m.slice(0, 2)), state.measure, v => { state.measure = v; draw(); });
  };
  const here = () => matrices[state.matrix] + " matrices, layer " + decoder[state.layer];
  const sampled = +found.settings.reordered_neurons < +found.settings.d_ff ? " Of " + whole(+found.settings.reordered_neurons) + " of " + whole(+found.settings.d_ff) + " neurons." : "";
  if (found.left_out.length > 0) element(section, "p", {class: "note"}, "Too large for this page, but in " + found.source + ": " + found.left_out.join(", ") + ".");
  const grid = element(section, "div", {class: "figures"});

  if (measures.length > 0 && B > 1) {
    const current = () => measures.find(m => m[0] === state.measure);
    figure(grid, {id: "weights-similarity", title: () => "Experts by their " + here(), note: () => current()[2] + "." + (/assigned|tau/.test(state.measure) ? sampled : ""), controls: pickers(["layer", "measure"]),
      columns: ["layer", "matrix", "block", "block2"].concat(measures.map(m => m[0])),
      rows: () => pairs(B).map(([a, b]) => [decoder[state.layer], matrices[state.matrix], blocks[a], blocks[b]].concat(measures.map(m => at(state.matrix, m[0], state.layer, a, b)))),
      draw: (svg, width) => {
        const value = (a, b) => a === b ? null : at(state.matrix, state.measure, state.layer, a, b);
        const most = d3.max(pairs(B), ([a, b]) => Math.abs(value(a, b))) || 1, colour = v => ratioColour(known(v) ? Math.pow(2, 2 * v / most) : null);
        const y = colourKey(svg, 4, 0, 180, range(25).map(i => colour(most * (i - 12) / 12)), [figureText(-most, 3), "0", figureText(most, 3)], current()[1]);
        return y + heatMap(svg, width, {rows: range(B).map(blockName), columns: range(B).map(blockName), most: 40, high: 28, value, colour,
          words: (a, b) => "layer " + decoder[state.layer] + ", " + matrices[state.matrix] + "\n" + longName(a) + (a === b ? "" : " and " + longName(b) + "\n" + measures.map(m => m[1] + " " + signed(at(state.matrix, m[0], state.layer, a, b))).join("\n"))}, {x: 0, y: y + 4});
      }});
    const mean = (m, measure, l) => sum(expertPairs.map(([a, b]) => at(m, measure, l, a, b))) / expertPairs.length;
    if (E > 1 && measures.length === 5) figure(grid, {id: "weights-layers", title: "Cosine of neurons before and after reordering", note: "Mean over neurons and pairs of experts." + sampled,
      columns: ["layer", "matrix", "matched_cosine", "assigned_cosine", "kendall_tau"],
      rows: () => [].concat(...decoder.map((d, l) => range(M).map(m => [d, matrices[m]].concat(["matched_cosine", "assigned_cosine", "kendall_tau"].map(name => mean(m, name, l)))))),
      draw: (svg, width) => lines(svg, width, {at: decoder, xLabel: "decoder layer", xFormat: d3.format("d"), yLabel: "mean cosine",
        series: [].concat(...range(M).map(m => [["matched_cosine", "", "5 3"], ["assigned_cosine", ", reordered", ""]].map(([measure, name, dash]) => ({name: matrices[m] + name, values: decoder.map((d, l) => mean(m, measure, l)), colour: seriesColour(m), dash, matrix: m})))),
        words: (s, l) => "layer " + decoder[l] + ", " + s.name + "\nmean cosine " + signed(s.values[l]) + "\nKendall's tau " + signed(mean(s.matrix, "kendall_tau", l))})});
  }

  if (get("/router/cosine") && get("/gate/flat_cosine") && E > 1) {
    const x = ([a, b]) => at(state.matrix, "flat_cosine", state.layer, a, b), y = ([a, b]) => routerCosine(state.layer, a, b);
    const line = name => ofMatrix(name, state.layer, state.matrix);
    figure(grid, {id: "weights-router", title: () => "The router's rows against the " + here(), controls: pickers(["layer"]),
      note: () => "A point is a pair of experts; the line is least squares. " + (known(line("r_squared")) ? "R² = " + figureText(line("r_squared"), 3) + ", slope " + figureText(line("slope"), 3) + "." : "Too few pairs for a line."),
      columns: ["layer", "matrix", "expert", "expert2", "flat_cosine", "router_cosine"], rows: () => expertPairs.map(p => [decoder[state.layer], matrices[state.matrix], p[0], p[1], x(p), y(p)]),
      draw: (svg, width) => {
        const [low, high] = d3.extent(expertPairs, x), margin = (high - low) / 20 || 0.01, ends = [low - margin, high + margin], ys = d3.extent(expertPairs, y);
        const frame = plot(svg, width, {x: ends, y: ys[0] === ys[1] ? [ys[0] - 0.01, ys[1] + 0.01] : ys, xLabel: "cosine of the " + matrices[state.matrix] + " matrices", yLabel: "cosine of the router's rows", height: 280});
        const fit = v => line("intercept") + line("slope") * v;
        if (known(line("slope"))) svg.append("line").attr({class: "reference", x1: frame.x(ends[0]), x2: frame.x(ends[1]), y1: frame.y(fit(ends[0])), y2: frame.y(fit(ends[1]))});
        mark(svg.append("g").selectAll("circle").data(expertPairs).enter().append("circle").attr({cx: p => frame.x(x(p)), cy: p => frame.y(y(p)), r: E > 16 ? 2 : 4, fill: seriesColours[0], "fill-opacity": 0.7}),
          p => "experts " + p[0] + " and " + p[1] + "\nmatrices " + signed(x(p)) + "\nrouter's rows " + signed(y(p)));
        svg.attr("data-columns", 1);
        return frame.height;
      }});
    figure(grid, {id: "weights-r2", title: "How much of the router's cosines the matrices' explain", note: "R² over pairs of experts.", columns: ["layer", "matrix", "slope", "intercept", "r_squared"],
      rows: () => [].concat(...decoder.map((d, l) => range(M).map(m => [d, matrices[m]].concat(["slope", "intercept", "r_squared"].map(name => ofMatrix(name, l, m)))))),
      draw: (svg, width) => lines(svg, width, {at: decoder, xLabel: "decoder layer", xFormat: d3.format("d"), yLabel: "R²", series: range(M).map(m => ({name: matrices[m], values: decoder.map((d, l) => ofMatrix("r_squared", l, m))})),
        words: (s, l) => "layer " + decoder[l] + ", " + s.name + "\nR² " + figureText(s.values[l], 3)})});
  }

  if (get("/gate/coordinates")) {
    const neurons = get("/weights/neuron").values, N = neurons.length;
    const point = (b, n, c) => get("/" + matrices[state.matrix] + "/coordinates").values[((state.layer * B + b) * N + n) * 2 + c];
    const points = () => [].concat(...range(B).map(b => range(N).map(n => [b, n])));
    const share = c => get("/" + matrices[state.matrix] + "/explained").values[state.layer * 2 + c];
    figure(grid, {id: "weights-plane", wide: true, title: () => "Neurons in the plane of their first two principal components: " + here(), controls: pickers(["layer"]),
      note: () => whole(N) + " neurons of each expert; the plane is that of all neurons of all experts and holds " + percent(share(0) + share(1), 2) + " of their variance.",
      columns: ["layer", "matrix", "block", "neuron", "component1", "component2"], rows: () => points().map(([b, n]) => [decoder[state.layer], matrices[state.matrix], blocks[b], neurons[n], point(b, n, 0), point(b, n, 1)]),
      draw: (svg, width) => {
        const all = points(), extent = c => { const [low, high] = d3.extent(all, ([b, n]) => point(b, n, c)); return low === high ? [low - 1, high + 1] : [low, high]; };
        const frame = plot(svg, width, {x: extent(0), y: extent(1), xLabel: "component 1, " + percent(share(0), 2) + " of the variance", yLabel: "component 2, " + percent(share(1), 2), height: 420});
        mark(svg.append("g").selectAll("circle").data(all).enter().append("circle").attr({cx: ([b, n]) => frame.x(point(b, n, 0)), cy: ([b, n]) => frame.y(point(b, n, 1)), r: 2.5, fill: ([b]) => seriesColour(b), "fill-opacity": 0.6}),
          ([b, n]) => longName(b) + ", neuron " + neurons[n] + "\n" + figureText(point(b, n, 0), 3) + ", " + figureText(point(b, n, 1), 3));
        svg.attr("data-columns", N);
        return seriesKey(svg, width, frame.height, range(B).map(b => ({name: blocks[b], dash: ""})));
      }});
  }
}
