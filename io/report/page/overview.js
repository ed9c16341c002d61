// What stands first, and what a figure needs to be cited.
function findings() {
  const found = [];
  const cells = [].concat(...range(D).map(d => range(L).map(l => [d, l]))).filter(([d, l]) => known(valueAt("/load/max_over_mean", d, l)));
  const best = (of, value) => of.reduce((a, b) => value(b) > value(a) ? b : a);
  if (cells.length > 0) {
    const skew = ([d, l]) => valueAt("/load/max_over_mean", d, l);
    const [d, l] = best(cells, skew), counts = slots(d, l), expert = counts.indexOf(Math.max(...counts));
    const [evenD, evenL] = best(cells, c => -skew(c));
    found.push("Load is least even in layer " + layers[l] + " on " + names[d] + ": expert " + expert + " takes " + percent(counts[expert] / sum(counts)) + " of the slots, " + times(skew([d, l])) + " its even share of " + percent(1 / E) +
      ". The most even is layer " + layers[evenL] + " on " + names[evenD] + " (" + times(skew([evenD, evenL])) + ").");
  }
  if (D > 1 && data.compare) {
    const pairs = [].concat(...range(D).map(i => range(D).filter(j => j > i).map(j => [i, j])));
    const at = ([i, j]) => best(range(L), l => distance("jsd", i, j, l).value), value = p => distance("jsd", p[0], p[1], at(p)).value;
    const far = best(pairs, value), near = best(pairs, p => -value(p)), d = distance("jsd", far[0], far[1], at(far));
    found.push(names[far[0]] + " and " + names[far[1]] + " use the experts most differently: at layer " + layers[at(far)] + " their Jensen-Shannon divergence is " + figureText(d.value, 3) + " nats" +
      (known(d.low) ? " (" + percent(data.compare.confidence, 0) + " interval " + figureText(d.low, 3) + " to " + figureText(d.high, 3) + ", adjusted p " + probability(d.q) + ")" : "") +
      (pairs.length > 1 ? "; " + names[near[0]] + " and " + names[near[1]] + " are closest, at most " + figureText(value(near), 3) + " nats." : "."));
  }
  const repeats = cells.filter(([d, l]) => known(valueAt("/repetition/any_share", d, l)));
  if (repeats.length > 0) {
    const share = ([d, l]) => valueAt("/repetition/any_share", d, l), [d, l] = best(repeats, share);
    found.push("Neighbouring tokens share an expert most often in layer " + layers[l] + " on " + names[d] + ": " + percent(share([d, l])) + " of them, where independent uniform choices give " + percent(table("/repetition/any_null").values[0]) + ".");
  }
  const decided = cells.filter(([d, l]) => known(valueAt("/entropy/mean", d, l)));
  if (found.length < 3 && decided.length > 0) {
    const mean = ([d, l]) => valueAt("/entropy/mean", d, l), sure = best(decided, c => -mean(c)), unsure = best(decided, mean);
    found.push("The router is surest in layer " + layers[sure[1]] + " on " + names[sure[0]] + " (mean entropy " + figureText(mean(sure), 3) + " nats) and least sure in layer " + layers[unsure[1]] + " on " + names[unsure[0]] + " (" + figureText(mean(unsure), 3) + " of at most " + figureText(Math.log(E), 3) + " nats).");
  }
  return found;
}

function overviewSection(section) {
  if (D === 0) {
    element(section, "p", {}, "No routed corpus is in this page, only what experiments found; `switchyard report` takes both together.");
    return;
  }
  if (L > 0) {
    const list = element(section, "ol", {class: "findings", id: "findings"});
    findings().forEach(text => element(list, "li", {}, text));
  } else element(section, "p", {}, "The model is dense: it routes nothing. What it lost on each dataset stands below.");
  const columns = ["dataset", "tokens", "documents", "windows", "loss, nats/token", "perplexity", "next token right"];
  const rows = () => range(D).map(d => [names[d], data.datasets[d].tokens, data.datasets[d].documents, data.datasets[d].windows].concat(["/loss/mean", "/loss/perplexity", "/loss/accuracy"].map(p => rowOf(p, d)[0])));
  const box = element(section, "div", {class: "scroll whole"}), t = element(box, "table", {id: "datasets"});
  const head = element(element(t, "thead"), "tr");
  columns.forEach(c => element(head, "th", {scope: "col"}, c));
  const body = element(t, "tbody");
  rows().forEach(r => {
    const line = element(body, "tr");
    r.forEach((v, i) => element(line, i === 0 ? "th" : "td", i === 0 ? {scope: "row"} : {}, i === 0 ? v : i < 4 ? whole(v) : i === 6 ? percent(v) : figureText(v)));
  });
  const tools = element(section, "div", {class: "tools"});
  element(tools, "button", {type: "button"}, "CSV").addEventListener("click", () => download("datasets.csv", "text/csv", asCsv(columns, rows())));
}

function factsSection(section) {
  const list = element(section, "dl");
  const fact = (name, value) => { if (known(value) && value !== "") { element(list, "dt", {}, name); element(list, "dd", {}, value); } };
  fact("Model", model.name + " (" + model.family + "), " + model.n_layers + " decoder layers, width " + model.d_model + ", vocabulary " + whole(model.vocabulary));
  if (L > 0) fact("Routing", E + " experts in each of " + L + " MoE layers, " + K + " of them for a token");
  fact("Made from", data.sources.join(", "));
  fact("By", data.program);
  if (data.compare) fact("Intervals and tests", whole(data.compare.bootstrap) + " bootstrap resamples, " + whole(data.compare.permutations) + " permutations over groups of documents, seed " + data.compare.seed + ", p adjusted over layers (Benjamini and Hochberg, 1995)");
  Object.keys(data.tables).filter(p => p.startsWith("/cost/") && table(p).shape.length === 1).forEach(p => fact(table(p).name, range(D).filter(d => known(table(p).values[d])).map(d => names[d] + " " + figureText(table(p).values[d]) + (table(p).units === "1" ? "" : " " + table(p).units)).join("; ")));
  fact("Figures", "ratios are 32-bit roundings of those in stats.h5; counts are the same integers. Nothing here is computed from counts summed over layers.");
}
