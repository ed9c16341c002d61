// What the ranks of the machine did.
function ranksSection(section) {
  const withRanks = range(D).filter(d => table("/ranks/traffic") && sum(rowOf("/ranks/traffic", d)) > 0);
  if (withRanks.length === 0) {
    element(section, "p", {class: "intro"}, "No ranks were recorded: this routing was not made by switchyard's own run.");
    return;
  }
  const state = {dataset: withRanks[0]};
  const controls = element(section, "div", {class: "controls"});
  const cost = element(section, "p", {class: "intro"});
  const grid = element(section, "div", {class: "figures"});
  const traffic = () => { const row = rowOf("/ranks/traffic", state.dataset), n = Math.round(Math.sqrt(row.length)); return range(n).map(s => row.slice(s * n, (s + 1) * n)); };
  const usedRanks = () => range(traffic().length).filter(r => sum(traffic()[r]) > 0 || sum(traffic().map(row => row[r])) > 0);
  const series = () => {
    const row = rowOf("/ranks/series", state.dataset), n = traffic().length;
    return range(row.length / n).map(i => row.slice(i * n, (i + 1) * n)).filter(bin => sum(bin) > 0);
  };
  const energyIsKnown = () => table("/cost/joules") && known(rowOf("/cost/joules", state.dataset)[0]);
  const redraw = [];
  const describe = () => {
    const one = path => rowOf(path, state.dataset)[0], local = sum(rowOf("/ranks/local_slots", state.dataset)), remote = sum(rowOf("/ranks/remote_slots", state.dataset));
    cost.textContent = whole(one("/ranks/steps")) + " steps. " + percent(remote / (local + remote)) + " of slots went to another rank, " + figureText(sum(rowOf("/ranks/remote_bytes", state.dataset)) / 1e6, 3) + " MB one way. Stragglers in the expert phase cost " +
      figureText(one("/ranks/straggler_seconds"), 3) + " s, " + percent(one("/ranks/straggler_share")) + " of the run's " + figureText(one("/ranks/step_seconds"), 3) + " s." +
      (energyIsKnown() ? " Their GPUs took " + figureText(one("/cost/joules"), 4) + " J, " + figureText(one("/cost/joules_per_token"), 3) + " J a token (blocks: " + figureText(one("/cost/joules_per_token_low"), 3) + " to " + figureText(one("/cost/joules_per_token_high"), 3) + ")." : "");
  };
  redraw.push(describe);
  redraw.push(figure(grid, {id: "ranks-load", title: "Load of each rank over the corpus", note: "Slots that a rank's experts took over the ranks' mean; 1 is even.", columns: ["bin", "rank", "slots"],
    rows: () => [].concat(...series().map((bin, i) => usedRanks().map(r => [i, r, bin[r]]))),
    draw: (svg, width) => {
      const bins = series(), ranks = usedRanks();
      return lines(svg, width, {at: bins.map((b, i) => 100 * (i + 0.5) / bins.length), fromZero: false, xLabel: "share of the corpus, %", xFormat: v => v + " %", yLabel: "over the mean", key: true, reference: {value: 1, text: "even: 1"},
        series: ranks.map(r => ({name: "rank " + r, rank: r, values: bins.map(b => b[r] / (sum(b) / ranks.length))})), words: (s, i) => s.name + "\n" + whole(bins[i][s.rank]) + " slots, " + times(s.values[i]) + " the mean"});
    }}));
  redraw.push(figure(grid, {id: "ranks-traffic", title: "Slots from the token's rank to the expert's rank", note: "All layers. The diagonal stays on its rank.", columns: ["source_rank", "expert_rank", "slots"],
    rows: () => [].concat(...usedRanks().map(s => usedRanks().map(r => [s, r, traffic()[s][r]]))),
    draw: (svg, width) => {
      const t = traffic(), ranks = usedRanks(), most = Math.max(...ranks.map(s => Math.max(...ranks.map(r => t[s][r])))), all = sum(ranks.map(s => sum(t[s])));
      const y = amountKey(svg, 4, 0, most, whole, "slots; rows: source rank, columns: expert rank");
      return y + heatMap(svg, width, {rows: ranks, columns: ranks, most: 60, high: 40, value: (i, j) => t[ranks[i]][ranks[j]], colour: amountColour(most),
        words: (i, j) => "from rank " + ranks[i] + " to rank " + ranks[j] + "\n" + whole(t[ranks[i]][ranks[j]]) + " slots, " + percent(t[ranks[i]][ranks[j]] / all)}, {x: 0, y: y + 4});
    }}));
  const phases = () => {
    const seconds = rowOf("/ranks/seconds", state.dataset), joules = energyIsKnown() ? rowOf("/cost/phase_joules_estimate", state.dataset) : [];
    return table("/ranks/phase_name").values.map((n, i) => ({name: n, seconds: seconds[i], joules: joules[i]}));
  };
  redraw.push(figure(grid, {id: "ranks-seconds", title: "Time by phase, of all ranks", columns: table("/cost/joules") ? ["phase", "seconds", "joules_estimate"] : ["phase", "seconds"],
    note: () => energyIsKnown() ? "Energy of a phase is an estimate: the GPUs' energy in proportion to its time, as if waiting took as much power as computing." : "",
    rows: () => phases().map(p => table("/cost/joules") ? [p.name, p.seconds, known(p.joules) ? p.joules : null] : [p.name, p.seconds]),
    draw: (svg, width) => {
      const all = sum(phases().map(p => p.seconds));
      return rankedBars(svg, width, phases().map(p => ({text: p.name, value: p.seconds, words: p.name + "\n" + figureText(p.seconds) + " s, " + percent(p.seconds / all) + (known(p.joules) ? "\nestimated " + figureText(p.joules, 3) + " J" : "")})), v => figureText(v, 3) + " s");
    }}));
  const byLayer = (id, title, note, yLabel, shown, reference) => redraw.push(figure(grid, {id, title, note, columns: ["layer"].concat(shown.map(s => s[1])), rows: () => range(L).map(l => [layers[l]].concat(shown.map(s => valueAt(s[0], state.dataset, l)))),
    draw: (svg, width) => lines(svg, width, {yLabel, key: true, reference, series: shown.map(s => ({name: s[1], values: range(L).map(l => valueAt(s[0], state.dataset, l))})), words: (s, l) => "layer " + layers[l] + "\n" + s.name + ": " + figureText(s.values[l])})}));
  byLayer("ranks-balancedness", "Balancedness of ranks by layer", "Mean over largest load: of each step, then averaged (SGLang), or of sums over steps (vLLM). 1 is even.", "mean / max", [["/ranks/balancedness_mean", "mean of steps"], ["/ranks/balancedness_ratio", "ratio of sums"]], {value: 1, text: "even: 1"});
  byLayer("ranks-imbalance", "Imbalance of ranks by layer", "Largest over mean load less 1, its quantiles over steps (TensorRT-LLM).", "max / mean − 1", [["/ranks/imbalance_p50", "median"], ["/ranks/imbalance_p90", "90 %"], ["/ranks/imbalance_p99", "99 %"], ["/ranks/imbalance_max", "largest"]], {value: 0, text: "even: 0"});
  redraw.push(...rankTimeFigures(grid, state), ...costModelFigures(grid, state));
  const leftOut = table("/ranks/timed_steps") ? timeParts.map(p => p.path).concat("/ranks/straggler_by_rank", "/ranks/straggler_by_expert").filter(p => !table(p)) : [];
  if (leftOut.length > 0) element(section, "p", {class: "note"}, "Too large for this page, but in stats.h5: " + leftOut.join(", ") + ".");
  if (D > 1) choice(controls, "Dataset", withRanks.map(d => [d, names[d]]), state.dataset, v => { state.dataset = +v; redraw.forEach(f => f()); });
  describe();
}
