// Which tokens an expert gets, and where a token goes.
const tokenTables = {input: "the token itself", target: "the token that follows", predicted: "the model's guess of the token that follows"};
function tokensSection(section) {
  const kept = data.tokens;
  if (!kept) {
    element(section, "p", {class: "intro"}, "No token table was kept.");
    return;
  }
  const isWord = t => /\p{L}{2}/u.test(pieceText(kept.id[t]));
  const busiest = slots(-1, data.target_layer);
  const state = {scope: 0, token: Math.max(0, range(kept.id.length).findIndex(isWord)), layer: data.target_layer, expert: busiest.indexOf(Math.max(...busiest)), which: Object.keys(data.expert_tokens)[0]};
  element(section, "h3", {}, "A token's experts");
  const controls = element(section, "div", {class: "controls"});
  const label = element(controls, "label", {}, "Search a token (of the " + whole(kept.id.length) + " most frequent of " + whole(kept.seen) + " seen)");
  const input = element(label, "input", {type: "search", autocomplete: "off"});
  const matches = element(section, "div", {class: "matches", role: "group", "aria-label": "Matching tokens"});
  const grid = element(section, "div", {class: "figures"});
  // Of a table that did not fit into memory, the most frequent cells are kept.
  const bound = (which, at) => { const least = Math.max(...at.map(l => data.expert_tokens[which].undercount[l])); return least > 0 ? " Counts are at most " + whole(least) + " too low (sketch)." : ""; };
  // cells: [scope, token, layer, E kept] counts by expert, or pairs of expert and count where only the largest are kept.
  const experts = (t, l) => {
    const found = Array(E).fill(kept.whole ? 0 : null), width = kept.whole ? E : 2 * kept.experts;
    const at = ((state.scope * kept.id.length + t) * L + l) * width;
    if (kept.whole) return kept.cells.slice(at, at + E);
    for (let i = 0; i < kept.experts; ++i) if (kept.cells[at + 2 * i + 1] > 0) found[kept.cells[at + 2 * i]] = kept.cells[at + 2 * i + 1];
    return found;
  };
  const total = t => kept.total[state.scope * kept.id.length + t];
  const draw = figure(grid, {id: "token-experts", wide: true, title: () => "Where " + quoted(kept.id[state.token]) + " goes: " + kept.scopes[state.scope],
    note: () => "Share of its " + whole(total(state.token)) + " slots of a layer by expert" + (kept.whole ? "." : "; the " + kept.experts + " most chosen experts of a layer are in this page, `switchyard tokens --token` prints all.") + bound("input", range(L)),
    columns: ["token", "layer", "expert", "count", "share"],
    rows: () => [].concat(...range(L).map(l => experts(state.token, l).map((n, e) => [data.pieces[kept.id[state.token]], layers[l], e, n, known(n) && total(state.token) > 0 ? n / total(state.token) : null]).filter(r => known(r[3])))),
    draw: (svg, width) => {
      const values = range(L).map(l => experts(state.token, l)), all = total(state.token), most = Math.max(...[].concat(...values).filter(known)) / (all || 1), colour = amountColour(most);
      const y = amountKey(svg, 4, 0, most, v => percent(v, 0), "share of the token's slots");
      return y + heatMap(svg, width, {rows: layers, columns: range(E), value: (l, e) => known(values[l][e]) && all > 0 ? values[l][e] / all : null, colour: v => known(v) ? colour(v) : css("--page"),
        words: (l, e) => quoted(kept.id[state.token]) + ", layer " + layers[l] + ", expert " + e + "\n" + (known(values[l][e]) ? whole(values[l][e]) + " of " + whole(all) + " slots, " + percent(values[l][e] / all, 1) : "not among the most chosen")}, {x: 0, y: y + 4});
    }});
  const search = () => {
    const wanted = input.value.trim().toLowerCase();
    const found = range(kept.id.length).filter(t => { const text = (data.pieces[kept.id[t]] || "id " + kept.id[t]).replace(/\u2581/g, "").toLowerCase(); return wanted === "" || text.includes(wanted) || String(kept.id[t]) === wanted; });
    const exact = t => (data.pieces[kept.id[t]] || "").replace(/\u2581/g, "").toLowerCase() === wanted ? 0 : 1;
    if (wanted === "") found.sort((a, b) => isWord(b) - isWord(a) || a - b);
    else found.sort((a, b) => exact(a) - exact(b) || a - b);
    matches.textContent = "";
    found.slice(0, 24).forEach(t => element(matches, "button", {type: "button", class: "piece", "aria-pressed": String(t === state.token)}, quoted(kept.id[t])).addEventListener("click", () => { state.token = t; search(); draw(); }));
    if (found.length === 0) element(matches, "p", {class: "note"}, "No token of this page contains it. `switchyard tokens --token` looks up all.");
  };
  input.addEventListener("input", search);
  if (kept.scopes.length > 1) choice(controls, "Dataset", kept.scopes.map((s, i) => [i, s]), 0, v => { state.scope = +v; draw(); });
  search();

  const box = element(section, "div");
  element(box, "h3", {}, "An expert's tokens");
  const pick = element(box, "div", {class: "controls"});
  const lists = element(box, "div", {class: "figures"});
  const redraw = [];
  const set = (name, value) => { state[name] = value; redraw.forEach(f => f()); };
  choice(pick, "Layer", layerOptions, state.layer, v => set("layer", +v));
  choice(pick, "Expert", range(E).map(e => [e, "expert " + e]), state.expert, v => set("expert", +v));
  choice(pick, "By", Object.keys(data.expert_tokens).map(w => [w, tokenTables[w]]), state.which, v => set("which", v));
  // [id, count, ...] of the expert's tokens; lift = (N[v, e] / N[e]) / (N[v] / N), with N[v] in total.
  const listed = by => {
    const of = data.expert_tokens[state.which], at = state.layer * E + state.expert;
    return range(of[by][at].length / 2).map(i => {
      const id = of[by][at][2 * i], count = of[by][at][2 * i + 1], all = of.total[id];
      return {id, count, all, share: count / of.slots[at], lift: count / of.slots[at] / (all / of.layer_slots)};
    });
  };
  const list = (by, title, value, valueText) => redraw.push(figure(lists, {id: "expert-tokens-" + by, title: () => title + ": layer " + layers[state.layer] + ", expert " + state.expert,
    note: () => (by === "lift" ? "Lift: the token's share in the expert over its share of all slots. Tokens with at least 10 slots." : "Slots of the token that went to the expert, all datasets together.") + bound(state.which, [state.layer]),
    columns: ["id", "token", "count", "share_of_expert", "share_of_token", "lift"], rows: () => listed(by).map(t => [t.id, data.pieces[t.id], t.count, t.share, t.count / t.all, t.lift]),
    draw: (svg, width) => rankedBars(svg, width, listed(by).map(t => ({text: pieceText(t.id), value: value(t), words: quoted(t.id) + "\n" + whole(t.count) + " of its " + whole(t.all) + " slots go here (" + percent(t.count / t.all) + ")\n" + percent(t.share, 2) + " of the expert, lift " + figureText(t.lift, 3)})), valueText)}));
  list("count", "Most frequent tokens", t => t.count, whole);
  list("lift", "Tokens of highest lift", t => t.lift, times);

  const knownTables = Object.keys(tokenTables).filter(w => table("/tokens/" + w + "/specialisation"));
  if (knownTables.length === 0) return;
  let dataset = 0;
  figure(element(section, "div", {class: "figures"}), {id: "token-specialisation", wide: true, title: () => "How much of the routing follows from the token alone: " + names[dataset],
    controls: D > 1 ? (parent, draw) => choice(parent, "Dataset", datasetOptions, 0, v => { dataset = +v; draw(); }) : undefined,
    note: "Mean over token ids (10 slots and more) of the largest expert's share of the id's slots; dotted: the same with experts dealt at random.",
    columns: ["dataset", "by", "layer", "specialisation", "baseline", "mutual_information_nats", "bias_nats"],
    rows: () => [].concat(...range(D).map(d => [].concat(...knownTables.map(w => range(L).map(l => [names[d], w, layers[l]].concat(["specialisation", "specialisation_baseline", "mutual_information", "mutual_information_bias"].map(c => valueAt("/tokens/" + w + "/" + c, d, l)))))))),
    draw: (svg, width) => lines(svg, width, {yLabel: "largest expert's share", yText: percentTick, key: true,
      series: [].concat(...knownTables.map((w, i) => [["specialisation", tokenTables[w], ""], ["specialisation_baseline", "by chance", "2 3"]].map(([c, n, dash]) => ({name: n, colour: seriesColour(i), dash, values: range(L).map(l => valueAt("/tokens/" + w + "/" + c, dataset, l))})))),
      words: (s, l) => "by " + s.name + ", layer " + layers[l] + "\n" + percent(s.values[l], 1)})});
}
