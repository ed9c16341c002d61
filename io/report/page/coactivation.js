// Experts that one token chooses together.
function coactivationSection(section) {
  const kept = data.coactivation;
  if (!kept) {
    element(section, "p", {class: "intro"}, K < 2 ? "A token has one expert: nothing is chosen together." : "Nothing was recorded of this.");
    return;
  }
  const state = {scope: 0, layer: data.target_layer, measure: "lift"};
  const grid = element(section, "div", {class: "figures"});
  // Tokens that chose both: every pair i < j in row order, or [pair, tokens, ...] of the most frequent ones.
  const pairs = () => {
    const of = kept.pairs[state.scope * L + state.layer], together = range(E).map(() => Array(E).fill(kept.whole ? 0 : null));
    const put = (i, j, n) => { together[i][j] = together[j][i] = n; };
    if (kept.whole) { let at = 0; for (let i = 0; i < E; ++i) for (let j = i + 1; j < E; ++j) put(i, j, of[at++]); }
    else for (let i = 0; i < of.length; i += 2) put(Math.floor(of[i] / E), of[i] % E, of[i + 1]);
    return together;
  };
  const members = () => kept.scopes.length === D ? [state.scope] : state.scope === 0 ? range(D) : [state.scope - 1];
  const chosen = () => range(E).map(e => sum(members().map(d => slots(d, state.layer)[e])));
  const tokens = () => sum(chosen()) / K;
  const value = (together, counts, i, j) => i === j || !known(together[i][j]) ? null : state.measure === "count" ? together[i][j] : state.measure === "conditional" ? together[i][j] / counts[i] : together[i][j] * tokens() / (counts[i] * counts[j]);
  const titles = {lift: "times what independent choices would give", conditional: "share of the row's tokens that chose the column too", count: "tokens that chose both"};
  figure(grid, {id: "coactivation-pairs", wide: true, title: () => "Experts chosen together, layer " + layers[state.layer] + ": " + kept.scopes[state.scope],
    note: () => titles[state.measure] + (kept.whole ? "." : "; the " + whole(kept.kept) + " most frequent pairs of a layer are in this page."), 
    controls: (parent, draw) => {
      if (kept.scopes.length > 1) choice(parent, "Dataset", kept.scopes.map((s, i) => [i, s]), 0, v => { state.scope = +v; draw(); });
      choice(parent, "Layer", layerOptions, state.layer, v => { state.layer = +v; draw(); });
      choice(parent, "Measure", [["lift", "lift"], ["conditional", "conditional share"], ["count", "tokens"]], state.measure, v => { state.measure = v; draw(); });
    },
    columns: ["layer", "expert", "expert2", "tokens", "conditional", "lift"],
    rows: () => { const t = pairs(), c = chosen(), n = tokens(); return [].concat(...range(E).map(i => range(E).filter(j => j !== i && known(t[i][j])).map(j => [layers[state.layer], i, j, t[i][j], t[i][j] / c[i], t[i][j] * n / (c[i] * c[j])]))); },
    draw: (svg, width) => {
      const together = pairs(), counts = chosen(), values = range(E).map(i => range(E).map(j => value(together, counts, i, j))), most = d3.max([].concat(...values).filter(known)) || 1;
      const y = state.measure === "lift" ? ratioKey(svg, 4, 0, "times chance") : amountKey(svg, 4, 0, most, v => state.measure === "count" ? whole(v) : percent(v), titles[state.measure]);
      return y + heatMap(svg, width, {rows: range(E), columns: range(E), most: 40, high: 28, value: (i, j) => values[i][j], colour: state.measure === "lift" ? ratioColour : amountColour(most),
        words: (i, j) => "layer " + layers[state.layer] + ", experts " + i + " and " + j + (i === j ? "\n" + whole(counts[i]) + " tokens chose it" : !known(together[i][j]) ? "\nnot among the most frequent pairs" :
          "\n" + whole(together[i][j]) + " tokens chose both: " + percent(together[i][j] / counts[i]) + " of those of expert " + i + "\n" + times(together[i][j] * tokens() / (counts[i] * counts[j])) + " what independent choices would give")}, {x: 0, y: y + 4});
    }});
}
