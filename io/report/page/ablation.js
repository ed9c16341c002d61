// What the model loses without its experts.
/// From low over middle to high for a difference on [-most, most].
function signedColour(most) {
  const scale = d3.scale.linear().domain([-most || -1, 0, most || 1]).range([css("--low"), css("--middle"), css("--high")]).interpolate(d3.interpolateLab).clamp(true);
  return value => known(value) ? scale(value) : css("--missing");
}
const signed = (x, digits) => (x > 0 ? "+" : "") + figureText(x, digits === undefined ? 3 : digits);
const signedKey = (svg, most, title) => colourKey(svg, 4, 0, 180, range(25).map(i => signedColour(most)(most * (i - 12) / 12)), [signed(-most), "0", signed(most)], title);

/// Values with intervals, one below another. items: [{text, value, low, high, words}].
function intervalDots(svg, width, items, xLabel) {
  const left = 14 + 7 * Math.max(...items.map(i => i.text.length)), high = 19, bottom = 8 + items.length * high;
  const ends = [].concat(...items.map(i => [i.value, i.low, i.high])).filter(known).concat([0]);
  const x = d3.scale.linear().domain([d3.min(ends), d3.max(ends) || 1]).nice(5).range([left, width - 16]), y = i => 8 + (i + 0.5) * high;
  svg.append("g").attr({class: "axis", transform: "translate(0," + bottom + ")"}).call(d3.svg.axis().scale(x).orient("bottom").ticks(Math.max(2, Math.floor(width / 110))).tickSize(4).tickFormat(v => signed(v)));
  svg.append("line").attr({class: "reference", x1: x(0), x2: x(0), y1: 4, y2: bottom});
  svg.append("text").attr({class: "quiet", x: (left + width) / 2, y: bottom + 34, "text-anchor": "middle"}).text(xLabel);
  svg.append("g").selectAll("text").data(items).enter().append("text").attr({class: "quiet", x: left - 8, y: (d, i) => y(i) + 4, "text-anchor": "end"}).text(d => d.text);
  svg.append("g").selectAll("line").data(items).enter().append("line").filter(d => known(d.low)).attr({x1: d => x(d.low), x2: d => x(d.high), y1: d => y(items.indexOf(d)), y2: d => y(items.indexOf(d)), stroke: seriesColour(0), "stroke-width": 2, "stroke-opacity": 0.5});
  mark(svg.append("g").selectAll("circle").data(items).enter().append("circle").attr({cx: d => x(d.value), cy: (d, i) => y(i), r: 4, fill: seriesColour(0)}), d => d.words);
  svg.attr("data-columns", 1);
  return bottom + 42;
}

function ablationSection(section) {
  const found = data.experiments.ablation, stored = path => found.tables[path];
  if (!stored("/ablation/loss_difference")) {
    element(section, "p", {class: "intro"}, "The tables are too large for a page; they stand in " + found.source + ".");
    return;
  }
  const mode = found.settings.mode, flip = mode === "flip", categories = stored("/ablation/category").values, C = categories.length, X = flip ? 1 : E;
  const at = (name, l, e, c) => stored("/ablation/" + name).values[(l * X + e) * C + c];
  const done = (l, e) => known(at("loss_difference", l, e, 0)), asked = range(L).filter(l => range(X).some(e => done(l, e)));
  const change = {zero: "one expert's output is 0", drop: "one expert cannot be chosen", flip: "the runner-up takes the place of each token's last choice"}[mode];
  const what = (l, e) => "layer " + layers[l] + (flip ? "" : ", expert " + e);
  const columns = ["layer"].concat(flip ? [] : ["expert"], ["category", "loss_difference", "low", "high", "accuracy_difference", "accuracy_low", "accuracy_high", "lost", "gained", "p", "q"]);
  const row = (l, e, c) => [layers[l]].concat(flip ? [] : [e], [categories[c]], ["loss_difference", "loss_difference_low", "loss_difference_high", "accuracy_difference", "accuracy_difference_low", "accuracy_difference_high", "lost", "gained", "mcnemar_p", "mcnemar_q"].map(name => at(name, l, e, c)));
  const interval = (name, l, e, c, scale) => known(at(name + "_low", l, e, c)) ? " [" + signed(scale * at(name + "_low", l, e, c)) + ", " + signed(scale * at(name + "_high", l, e, c)) + "]" : "";
  const words = (l, e, c) => what(l, e) + ", " + categories[c] + (!done(l, e) ? "\nnot ablated" :
    "\n" + signed(at("loss_difference", l, e, c)) + " nats a token" + interval("loss_difference", l, e, c, 1) + "\n" + signed(-100 * at("accuracy_difference", l, e, c)) + " points of next tokens right" +
    "\n" + whole(at("lost", l, e, c)) + " tokens lost, " + whole(at("gained", l, e, c)) + " gained: adjusted p " + probability(at("mcnemar_q", l, e, c)));
  const cost = (l, e) => done(l, e) ? at("loss_difference", l, e, 0) : -Infinity, most = l => d3.max(range(X), e => cost(l, e));
  const state = {category: 0, layer: asked.reduce((best, l) => most(l) > most(best) ? l : best, asked[0]), score: 0};
  const redraw = [], set = (name, value) => { state[name] = value; redraw.forEach(f => f()); };
  const listed = element(section, "div", {id: "ablation-baseline", class: "scroll"});
  fillTable(listed, ["category", "documents", "tokens", "loss, nats", "next token right, %"], categories.map((name, c) => [name, stored("/ablation/documents").values[c], stored("/ablation/tokens").values[c], stored("/ablation/baseline_loss").values[c], 100 * stored("/ablation/baseline_accuracy").values[c]]), 50);
  const controls = element(section, "div", {class: "controls"});
  choice(controls, "Category", categories.map((name, c) => [c, name]), 0, v => set("category", +v));
  if (!flip) choice(controls, "Layer", asked.map(l => [l, "layer " + layers[l]]), state.layer, v => set("layer", +v));
  const grid = element(section, "div", {class: "figures"});
  const across = range(flip ? C : E), place = i => flip ? [0, i] : [i, state.category];
  redraw.push(figure(grid, {id: "ablation-map", wide: true, title: () => "Loss, changed minus as it is" + (flip ? "" : ": " + categories[state.category]),
    note: "Nats a token, when " + change + (flip ? ", by layer and category." : ", by layer and expert."), columns,
    rows: () => [].concat(...asked.map(l => across.map(place).filter(([e]) => done(l, e)).map(([e, c]) => row(l, e, c)))),
    draw: (svg, width) => {
      const values = asked.map(l => across.map(i => at("loss_difference", l, ...place(i)))), largest = d3.max([].concat(...values).filter(known).map(Math.abs));
      const y = signedKey(svg, largest, "nats a token; above 0 the model was better as it is");
      return y + heatMap(svg, width, {rows: asked.map(l => layers[l]), columns: flip ? categories : across, most: flip ? 90 : 40, high: 28, value: (i, j) => values[i][j], colour: signedColour(largest), words: (i, j) => words(asked[i], ...place(j))}, {x: 0, y: y + 4});
    }}));
  const ranking = () => (flip ? asked.map(l => [l, 0]) : range(E).map(e => [state.layer, e]).filter(([l, e]) => done(l, e))).sort((a, b) => at("loss_difference", ...b, state.category) - at("loss_difference", ...a, state.category));
  redraw.push(figure(grid, {id: "ablation-ranking", title: () => (flip ? "Layers" : "Experts of layer " + layers[state.layer]) + " by what the change costs: " + categories[state.category],
    note: "With " + percent(+found.settings.confidence, 0) + " intervals over documents.", columns, rows: () => ranking().map(([l, e]) => row(l, e, state.category)),
    draw: (svg, width) => intervalDots(svg, width, ranking().map(([l, e]) => ({text: String(flip ? layers[l] : e), value: at("loss_difference", l, e, state.category), low: at("loss_difference_low", l, e, state.category), high: at("loss_difference_high", l, e, state.category), words: words(l, e, state.category)})), "nats a token more")}));
  if (flip) return;

  const scores = stored("/importance/score").values, titles = {load: "share of the layer's slots", mean_weight: "mean combine weight", reap: "REAP: mean of combine weight times norm of the output", ean: "EAN: sum of the norms of the output"};
  const score = (s, l, e) => stored("/importance/" + scores[s]).values[l * E + e], correlation = (s, l) => stored("/importance/correlation").values[l * scores.length + s];
  const points = () => range(E).filter(e => done(state.layer, e) && known(score(state.score, state.layer, e)));
  redraw.push(figure(grid, {id: "ablation-scores", title: () => "Cost beside " + titles[scores[state.score]] + ", layer " + layers[state.layer],
    note: () => "All categories. Rank correlation " + figureText(correlation(state.score, state.layer), 2) + " at this layer, " + figureText(stored("/importance/pooled_correlation").values[state.score], 2) + " over all that were ablated.",
    controls: (parent, draw) => { choice(parent, "Score", scores.map((s, i) => [i, titles[s]]), 0, v => { state.score = +v; draw(); }); },
    columns: ["layer", "expert"].concat(scores, ["loss_difference"]),
    rows: () => points().map(e => [layers[state.layer], e].concat(scores.map((name, s) => score(s, state.layer, e)), [at("loss_difference", state.layer, e, 0)])),
    draw: (svg, width) => {
      const shown = points(), x = shown.map(e => score(state.score, state.layer, e)), y = shown.map(e => at("loss_difference", state.layer, e, 0));
      const frame = plot(svg, width, {x: [0, 1.05 * d3.max(x) || 1], y: [Math.min(0, d3.min(y)), d3.max(y) || 1], xLabel: titles[scores[state.score]], yLabel: "nats a token more"});
      mark(svg.append("g").selectAll("circle").data(shown).enter().append("circle").attr({cx: (e, i) => frame.x(x[i]), cy: (e, i) => frame.y(y[i]), r: 5, fill: seriesColour(0), "fill-opacity": 0.7}), (e, i) => what(state.layer, e) + "\n" + titles[scores[state.score]] + " " + figureText(x[i]) + "\n" + signed(y[i]) + " nats a token");
      svg.append("g").selectAll("text").data(shown).enter().append("text").attr({class: "quiet", x: (e, i) => frame.x(x[i]) + 8, y: (e, i) => frame.y(y[i]) + 4}).text(e => e);
      svg.attr("data-columns", 1);
      return frame.height;
    }}));
  figure(grid, {id: "ablation-correlations", title: "Rank correlation of cost with what is known without ablating", note: "Spearman's, over the ablated experts of a layer; all categories.", columns: ["layer", "score", "correlation"],
    rows: () => [].concat(...asked.map(l => scores.map((name, s) => [layers[l], name, correlation(s, l)]))),
    draw: (svg, width) => {
      const y = signedKey(svg, 1, "Spearman's rank correlation");
      return y + heatMap(svg, width, {rows: asked.map(l => layers[l]), columns: scores, most: 90, high: 28, value: (i, s) => correlation(s, asked[i]), colour: signedColour(1), words: (i, s) => "layer " + layers[asked[i]] + ", " + titles[scores[s]] + "\nrank correlation " + figureText(correlation(s, asked[i]), 2)}, {x: 0, y: y + 4});
    }});
}
