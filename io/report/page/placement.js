// Where experts would lie better, and what that gives.
function placementSection(section) {
  const found = data.experiments.placement, get = name => found.tables["/placement/" + name], settings = found.settings;
  const R = +settings.ranks, N = +settings.nodes;
  element(section, "p", {class: "note"}, R + (R === 1 ? " rank" : " ranks") + " on " + N + (N === 1 ? " node" : " nodes") + (+settings.replicas > 0 ? ", " + settings.replicas + " replicas in a layer" : "") + "; fitted on " + settings.datasets + ".");
  if (found.left_out.length > 0) element(section, "p", {class: "note"}, "Too large for this page, but in " + found.source + ": " + found.left_out.join(", ") + ".");
  const methods = get("method_name").values, M = methods.length, chosen = get("chosen").values[0];
  const at = (name, m, l) => get(name).values[m * L + l], mean = (name, m) => sum(range(L).map(l => at(name, m, l))) / L;
  const seconds = get("step_seconds"), steps = get("steps_balancedness_mean"), replayed = get("replayed_ranks_per_token"), pairs = get("ranks_per_token_low");
  const columns = ["method", "balancedness", "by sums", "max/mean"].concat(steps ? ["in steps"] : [], replayed ? ["ranks a token", "nodes a token"] : [], seconds ? ["ms a step"] : []);
  const row = m => [methods[m] + (m === chosen ? " (chosen)" : ""), get("balancedness_mean").values[m], get("balancedness_ratio").values[m], mean("max_over_mean", m)].concat(steps ? [mean("steps_balancedness_mean", m)] : [],
    replayed ? [mean("replayed_ranks_per_token", m), mean("replayed_nodes_per_token", m)] : [], seconds ? [1000 * seconds.values[m]] : []);
  fillTable(element(section, "div", {id: "placement-methods", class: "scroll"}), columns, range(M).map(row), 50);
  const grid = element(section, "div", {class: "figures"});
  const byLayer = (id, title, note, yLabel, series, reference) => figure(grid, {id, title, note, columns: ["layer"].concat(series.map(s => s.name)), rows: () => range(L).map(l => [layers[l]].concat(series.map(s => s.values[l]))),
    draw: (svg, width) => lines(svg, width, {yLabel, fromZero: false, series, reference, key: true, words: (s, l) => "layer " + layers[l] + "\n" + s.name + ": " + figureText(s.values[l]) + (s.low && s.high[l] > s.low[l] ? " (" + figureText(s.low[l]) + " to " + figureText(s.high[l]) + ")" : "")})});

  byLayer("placement-balance", "Largest rank load over the mean", "Over all slots that the placement is fitted on; no plan lies below the bound.", "max / mean",
    range(M).map(m => ({name: methods[m], values: range(L).map(l => at("max_over_mean", m, l))})).concat([{name: "bound", values: get("least_max_over_mean").values, colour: css("--quiet"), dash: "2 3"}]));
  if (steps) byLayer("placement-steps", "Largest rank load over the mean, within recorded steps", "Median over steps; a band reaches from there to the step that 9 of 10 stay below.", "max / mean",
    range(M).map(m => { const of = name => range(L).map(l => 1 + at("steps_imbalance_" + name, m, l)); return {name: methods[m], values: of("p50"), low: of("p50"), high: of("p90")}; }));
  const distinct = (what, id) => {
    if (replayed) return byLayer(id, "Distinct " + what + " that a token's experts lie on", "Counted over token rows.", what + " a token", range(M).map(m => ({name: methods[m], values: range(L).map(l => at("replayed_" + what + "_per_token", m, l))})));
    if (pairs) return byLayer(id, "Distinct " + what + " that a token's experts lie on", K > 2 ? "Pairs of experts only bound it: the band; the line is its middle." : "By the pairs of experts that tokens choose.", what + " a token",
      range(M).map(m => { const low = range(L).map(l => at(what + "_per_token_low", m, l)), high = range(L).map(l => at(what + "_per_token_high", m, l)); return {name: methods[m], values: low.map((v, l) => (v + high[l]) / 2), low, high}; }));
  };
  distinct("ranks", "placement-spread");
  if (N > 1) distinct("nodes", "placement-nodes");

  if (get("rank_load")) {
    const state = {method: chosen}, load = (l, r) => get("rank_load").values[(state.method * L + l) * R + r], even = l => sum(range(R).map(r => load(l, r))) / R;
    const copies = get("plan_expert").shape[1], expertsOf = (l, r) => state.method !== chosen ? "" : "\nexperts " + range(copies).filter(c => get("plan_rank").values[l * copies + c] === r).map(c => get("plan_expert").values[l * copies + c]).join(", ");
    figure(grid, {id: "placement-ranks", wide: R > 16, title: () => "Load of each rank: " + methods[state.method], note: "Slots over the layer's mean; blue below it, orange above.", columns: ["method", "layer", "rank", "slots"],
      controls: (parent, draw) => { choice(parent, "Method", methods.map((n, m) => [m, n]), chosen, v => { state.method = +v; draw(); }); },
      rows: () => [].concat(...range(L).map(l => range(R).map(r => [methods[state.method], layers[l], r, load(l, r)]))),
      draw: (svg, width) => {
        const y = ratioKey(svg, 4, 0, "slots over the mean; rows: layers, columns: ranks");
        return y + heatMap(svg, width, {rows: layers, columns: range(R), most: 60, value: (l, r) => load(l, r) / even(l), colour: ratioColour,
          words: (l, r) => "layer " + layers[l] + ", rank " + r + "\n" + whole(load(l, r)) + " slots, " + times(load(l, r) / even(l)) + " the mean" + expertsOf(l, r)}, {x: 0, y: y + 4});
      }});
  }
  checkFigures(section, grid, found);
  driftFigure(grid, found);
  holdoutFigures(section, grid, found);
}

/// Balance of a run's blocks by when experts were placed.
function driftFigure(grid, found) {
  const values = found.tables["/drift/balancedness"];
  if (!values) return;
  const policies = found.tables["/drift/policy_name"].values, blocks = found.tables["/drift/block"].values, corpora = found.tables["/drift/block_dataset"].values, B = blocks.length;
  const at = (p, b) => values.values[p * B + b];
  figure(grid, {id: "placement-drift", wide: true, title: "How a placement ages: balance of each block", note: "Mean over layers of mean over largest rank load, by when the experts were placed: in order; once, on the first blocks; again and again, on the blocks before; on the block itself.",
    columns: ["block", "dataset"].concat(policies), rows: () => range(B).map(b => [blocks[b], corpora[b]].concat(policies.map((p, i) => at(i, b)))),
    draw: (svg, width) => lines(svg, width, {at: blocks, xLabel: "block of the run", xFormat: d3.format("d"), yLabel: "mean / max", fromZero: false, key: true, series: policies.map((name, p) => ({name, values: range(B).map(b => at(p, b))})),
      words: (s, b) => "block " + blocks[b] + ", " + corpora[b] + "\n" + s.name + ": " + figureText(s.values[b])})});
}

/// What placements promise and give on other text.
function holdoutFigures(section, grid, found) {
  const get = name => found.tables["/holdout/" + name];
  if (get("predicted")) {
    const box = element(section, "div", {id: "placement-holdout", class: "scroll"}), names = get("method_name").values, value = (name, m) => get(name).values[m];
    fillTable(box, ["fitted on half of the documents", "balancedness there", "on the other half", "error", "fitted on that half"], names.map((n, m) => [n, value("predicted", m), value("held_out", m), value("held_out", m) - value("predicted", m), value("best", m)]), 50);
    section.insertBefore(box, grid);
  }
  if (!get("by_datasets")) return;
  const names = get("dataset_name").values, n = names.length, at = (i, j) => get("by_datasets").values[i * n + j];
  if (n > 1) figure(grid, {id: "placement-datasets", title: "Balance on one dataset of a plan fitted on another", note: "Mean over layers of mean over largest rank load. Rows: fitted on; columns: placed; the diagonal is the best that the method gives.", columns: ["fitted_on", "dataset", "balancedness"],
    rows: () => [].concat(...range(n).map(i => range(n).map(j => [names[i], names[j], at(i, j)]))),
    draw: (svg, width) => {
      const all = get("by_datasets").values, least = d3.min(all), y = colourKey(svg, 4, 0, 180, range(25).map(i => amountColour(1)(i / 24)), [figureText(least, 3), figureText(d3.max(all), 3)], "mean / max");
      const colour = v => amountColour(1)((v - least) / (d3.max(all) - least || 1));
      return y + heatMap(svg, width, {rows: names, columns: names.map((name, i) => name.length * 7 < Math.min(60, (width - 140) / n) ? name : i + 1), most: 60, high: 28, value: at, colour, words: (i, j) => "fitted on " + names[i] + "\nbalancedness on " + names[j] + ": " + figureText(at(i, j))}, {x: 0, y: y + 4});
    }});
}

/// Recorded or drawn routing on virtual ranks.
function simulationSection(section) {
  const found = data.experiments.simulation, get = name => found.tables["/simulation/" + name];
  const methods = get("method_name").values, ranks = get("ranks").values, replicas = get("replicas").values, sizes = get("step_tokens").values, steps = get("steps").values;
  const replayed = Boolean(get("remote_slots_per_token"));
  element(section, "p", {class: "note"}, (replayed ? "Token rows of " + found.settings.datasets + ", cut into steps and replayed." : "Steps drawn by the counts of " + found.settings.datasets + ": a model, real steps are less balanced.") +
    " Mean over layers; where there are more ranks than experts, replicas give each one copy.");
  const measures = [["imbalance_p50", "imbalance, median step"], ["imbalance_p90", "imbalance, 9 of 10 steps below"], ["imbalance_p99", "imbalance, 99 of 100 below"], ["imbalance_max", "imbalance, largest"], ["straggler_share", "share of time that the mean rank waits"],
    ["remote_slots_per_token", "slots of a token on other ranks"], ["remote_ranks_per_token", "other ranks that a token reaches"], ["remote_nodes_per_token", "other nodes that a token reaches"], ["received_max_over_mean", "received slots, largest rank over mean"]].filter(([name]) => get(name));
  const mean = (name, m, r, s) => {
    const of = range(L).map(l => get(name).values[((m * ranks.length + r) * sizes.length + s) * L + l]).filter(known);
    return of.length > 0 ? sum(of) / of.length : null;
  };
  const grid = element(section, "div", {class: "figures"}), state = {measure: "imbalance_p50"};
  const cases = [].concat(...range(methods.length).map(m => range(sizes.length).map(s => ({m, s, name: methods[m] + ", " + whole(sizes[s]) + " tokens"}))));
  const called = () => measures.find(m => m[0] === state.measure)[1];
  figure(grid, {id: "simulation-ranks", wide: true, title: () => "By number of ranks: " + called(), note: "Imbalance: largest over mean rank load, less 1. A step's tokens are those of all ranks.",
    controls: (parent, draw) => { choice(parent, "Measure", measures, state.measure, v => { state.measure = v; draw(); }); },
    columns: ["method", "ranks", "replicas", "step_tokens", "steps"].concat(measures.map(m => m[0])),
    rows: () => [].concat(...cases.map(c => range(ranks.length).map(r => [methods[c.m], ranks[r], replicas[r], sizes[c.s], steps[c.s]].concat(measures.map(m => mean(m[0], c.m, r, c.s)))))),
    draw: (svg, width) => lines(svg, width, {at: ranks.map(r => Math.log2(r)), xLabel: "ranks", xFormat: v => Number.isInteger(v) ? String(Math.pow(2, v)) : "", yLabel: called(), key: true,
      series: cases.map(c => ({name: c.name, case: c, values: range(ranks.length).map(r => mean(state.measure, c.m, r, c.s)), colour: seriesColour(c.s), dash: c.m === 0 ? "5 3" : ""})),
      words: (s, r) => s.name + ", " + ranks[r] + (ranks[r] === 1 ? " rank" : " ranks") + (replicas[r] > 0 ? ", " + replicas[r] + " replicas" : "") + "\n" + measures.map(m => [m[1], mean(m[0], s.case.m, r, s.case.s)]).filter(m => known(m[1])).map(m => m[0] + ": " + figureText(m[1], 3)).join("\n")})});
}
