// How datasets differ.
const pairIndex = (i, j) => { const [a, b] = i < j ? [i, j] : [j, i]; return a * D - a * (a + 1) / 2 + b - a - 1; };
/// {value, low, high, p, q} of a pair of datasets at a layer; which: "jsd" or "tv".
function distance(which, i, j, l) {
  const at = pairIndex(i, j) * L + l, of = data.compare[which];
  return {value: of.value[at], low: of.low[at], high: of.high[at], p: of.p[at], q: of.q[at]};
}
const distanceNames = {jsd: "Jensen-Shannon divergence", tv: "total variation"};
const distanceUnits = {jsd: " nats", tv: ""};
function distanceWords(which, i, j, l) {
  const d = distance(which, i, j, l);
  return names[i] + " and " + names[j] + ", layer " + layers[l] + "\n" + distanceNames[which] + " " + figureText(d.value) + distanceUnits[which] +
    (known(d.low) ? "\n" + percent(data.compare.confidence, 0) + " interval over documents [" + figureText(d.low, 3) + ", " + figureText(d.high, 3) + "]\np " + probability(d.p) + ", adjusted over layers " + probability(d.q) : "");
}

function comparisonSection(section) {
  if (D < 2 || !data.compare) {
    element(section, "p", {class: "intro"}, D < 2 ? "There is one dataset: nothing to compare it with. Give several statistics files, or route several corpora." : "The record holds no groups of documents, over which a comparison is made.");
    return;
  }
  const mostAt = which => { let best = [0, 1, 0]; range(D).forEach(i => range(D).forEach(j => { if (i < j) range(L).forEach(l => { if (distance(which, i, j, l).value > distance(which, ...best).value) best = [i, j, l]; }); })); return best; };
  const most = mostAt("jsd");
  const state = {which: "jsd", layer: most[2], first: most[0], second: most[1]};
  const redraw = [];
  const set = (name, value) => { state[name] = value; redraw.forEach(f => f()); };
  const controls = element(section, "div", {class: "controls"});
  choice(controls, "Distance", [["jsd", "Jensen-Shannon divergence, nats"], ["tv", "total variation"]], state.which, v => set("which", v));
  choice(controls, "Layer", layerOptions, state.layer, v => set("layer", +v));
  choice(controls, "First dataset", datasetOptions, state.first, v => set("first", +v));
  choice(controls, "Second dataset", datasetOptions, state.second, v => set("second", +v));
  const grid = element(section, "div", {class: "figures"});
  redraw.push(figure(grid, {id: "compare-matrix", title: () => distanceNames[state.which] + " of the experts' usage, layer " + layers[state.layer],
    note: () => "Of every two datasets" + (state.which === "jsd" ? ", in nats (at most ln 2 = 0.693)." : ", between 0 and 1."),
    columns: ["dataset", "dataset2", "layer", "value", "low", "high", "p", "q"],
    rows: () => [].concat(...range(D).map(i => range(D).filter(j => j > i).map(j => { const d = distance(state.which, i, j, state.layer); return [names[i], names[j], layers[state.layer], d.value, d.low, d.high, d.p, d.q]; }))),
    draw: (svg, width) => {
      const all = [].concat(...range(D).map(i => range(D).map(j => i === j ? 0 : distance(state.which, i, j, state.layer).value))), largest = d3.max(all);
      const y = amountKey(svg, 4, 0, largest, v => figureText(v, 3) + distanceUnits[state.which], distanceNames[state.which]);
      return y + heatMap(svg, width, {rows: names, columns: names.map((n, i) => n.length * 7 < Math.min(76, (width - 140) / D) ? n : i + 1), most: 76, high: 30, value: (i, j) => i === j ? 0 : distance(state.which, i, j, state.layer).value,
        colour: amountColour(largest), words: (i, j) => i === j ? names[i] + " and itself: 0" : distanceWords(state.which, i, j, state.layer)}, {x: 0, y: y + 4});
    }}));
  redraw.push(figure(grid, {id: "compare-layers", title: () => distanceNames[state.which] + " by layer: " + names[state.first] + " and " + names[state.second],
    note: () => percent(data.compare.confidence, 0) + " basic bootstrap interval over groups of documents (" + whole(data.compare.bootstrap) + " resamples). It mirrors the resamples at the value, so that it may lie below it: noise alone makes distances positive.",
    columns: ["layer", "value", "low", "high", "p", "q"],
    rows: () => state.first === state.second ? [] : range(L).map(l => { const d = distance(state.which, state.first, state.second, l); return [layers[l], d.value, d.low, d.high, d.p, d.q]; }),
    draw: (svg, width) => {
      if (state.first === state.second) { svg.append("text").attr({class: "quiet", x: 10, y: 24}).text("Choose two different datasets."); return 40; }
      const of = range(L).map(l => distance(state.which, state.first, state.second, l));
      return lines(svg, width, {yLabel: state.which === "jsd" ? "JSD, nats" : "total variation", series: [{name: "", values: of.map(d => d.value), low: of.map(d => d.low), high: of.map(d => d.high)}],
        words: (s, l) => distanceWords(state.which, state.first, state.second, l)});
    }}));
  const shareOf = (d, e) => { const c = slots(d, state.layer); return c[e] / sum(c) * K; };
  redraw.push(figure(grid, {id: "compare-share", wide: true, title: () => "Share of tokens that choose each expert, layer " + layers[state.layer],
    note: "By dataset; the dashed line is k / E, what an even spread gives.", columns: ["layer", "expert", "dataset", "token_share"],
    rows: () => [].concat(...range(E).map(e => range(D).map(d => [layers[state.layer], e, names[d], shareOf(d, e)]))),
    draw: (svg, width) => {
      const bar = Math.max(3, Math.min(22, (width - 70) / E / (D + 0.8))), group = bar * (D + 0.8), across = Math.max(width, 70 + group * E);
      const most = Math.max(K / E, ...range(D).map(d => Math.max(...range(E).map(e => shareOf(d, e)))));
      const y = d3.scale.linear().domain([0, most]).nice(5).range([190, 14]);
      svg.append("g").attr({class: "axis", transform: "translate(52,0)"}).call(d3.svg.axis().scale(y).orient("left").ticks(5).tickSize(-(across - 60)).tickFormat(percentTick));
      range(E).forEach(e => {
        const g = svg.append("g").attr("transform", "translate(" + (56 + e * group) + ",0)");
        mark(g.selectAll("rect").data(range(D)).enter().append("rect").attr({x: d => d * bar, width: Math.max(1, bar - 1), y: d => y(shareOf(d, e)), height: d => 190 - y(shareOf(d, e)), fill: seriesColour}),
          d => names[d] + ", layer " + layers[state.layer] + ", expert " + e + "\n" + percent(shareOf(d, e), 2) + " of tokens choose it (even: " + percent(K / E, 2) + ")");
        g.append("text").attr({class: "quiet", x: D * bar / 2, y: 206, "text-anchor": "middle"}).text(e);
      });
      svg.append("line").attr({class: "reference", x1: 52, x2: 56 + group * E, y1: y(K / E), y2: y(K / E)});
      svg.append("text").attr({class: "quiet", x: 52 + group * E / 2, y: 222, "text-anchor": "middle"}).text("expert");
      svg.attr({"data-columns": D, "data-width": across});
      return seriesKey(svg, width, 226, names.map(n => ({name: n, dash: ""})));
    }}));
  const ratio = (d, e) => { const here = slots(d, state.layer), all = slots(-1, state.layer); return all[e] > 0 ? here[e] / sum(here) / (all[e] / sum(all)) : null; };
  redraw.push(figure(grid, {id: "compare-ratio", wide: E > 16, title: () => "Usage over the usage on all datasets pooled, layer " + layers[state.layer], columns: ["dataset", "layer", "expert", "usage_ratio"],
    rows: () => [].concat(...range(D).map(d => range(E).map(e => [names[d], layers[state.layer], e, ratio(d, e)]))),
    draw: (svg, width) => {
      const y = ratioKey(svg, 4, 0, "times the pooled usage");
      return y + heatMap(svg, width, {rows: names, columns: range(E), value: ratio, colour: ratioColour, words: (d, e) => names[d] + ", layer " + layers[state.layer] + ", expert " + e + "\n" + times(ratio(d, e)) + " its usage on all datasets pooled"}, {x: 0, y: y + 4});
    }}));
  if (table("/dataset_information/mutual_information"))
    figure(grid, {id: "compare-information", title: "What an expert says of the dataset: I(expert; dataset)", columns: ["layer", "information_nats", "bias_nats"],
      note: "Nats, plug-in less the correction of Miller and Madow.", rows: () => range(L).map(l => [layers[l], table("/dataset_information/mutual_information").values[l], table("/dataset_information/mutual_information_bias").values[l]]),
      draw: (svg, width) => lines(svg, width, {yLabel: "nats", series: [{name: "", values: range(L).map(l => table("/dataset_information/mutual_information").values[l] - table("/dataset_information/mutual_information_bias").values[l])}],
        words: (s, l) => "layer " + layers[l] + "\n" + figureText(s.values[l]) + " nats"})});
}
